"""What the console says of an exported graph, and its options as they are typed."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from vitp.core.errors import ConfigError
from vitp.core.words import decimals
from vitp.deployment.export import ExportedGraph


def parsed_batch(text: str) -> int | None:
    """Return the number of images at once; None: any.

    Raises:
        ConfigError: It is neither a number nor "dynamic".
    """
    if text == "dynamic":
        return None
    if text.isdigit() and 1 <= int(text) <= 4096:
        return int(text)
    raise ConfigError(
        f'"{text}" is no batch', where="--batch", fix="write a number from 1 to 4096, or dynamic"
    )


def graph_summary(done: ExportedGraph) -> Table:
    """Return a table of what was compared."""
    table = Table(
        "compared", "model", "graph", "difference", "allowed", title=f"comparison of {done.contract.task}"
    )
    outputs = done.outputs
    for name, value in outputs.largest.items():
        table.add_row(f"{name}, {outputs.images} images", "", "", f"{value:.1e}", f"{outputs.tolerance:.0e}")
    if outputs.rows:
        table.add_row(f"rows without a partner, of {outputs.rows}", "", "", f"{outputs.lonely:.2%}", "1 %")
    for of, scores in (("", done.scores), ("int8: ", done.int8)):
        if scores is None:
            continue
        mine, other = (side[scores.headline] for side in (scores.before, scores.after))
        numbers = ("–" if value is None else decimals(100 * value, 2) for value in (mine, other))
        lost = decimals(-scores.lost, 2, signed=True)
        table.add_row(
            escape(f"{of}{scores.headline}, {scores.images} images"), *numbers, lost, f"{scores.tolerance:g}"
        )
    return table
