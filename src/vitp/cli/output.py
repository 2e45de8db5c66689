"""Printing: the console of the commands, and the tables that several of them show."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from vitp.metrics.results import Scores

PIPE_WIDTH = 200
"""Columns when nobody looks: a path that is broken over two lines can't be searched for."""


def make_console() -> Console:
    """Return a console on standard output as wide as the terminal, wider when the output goes into a file."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str, *, left: int = 99) -> None:
    """Print a table.

    Args:
        columns: Their heads.
        rows: Cells.
        title: Above the table.
        left: Number of columns, from the first on, that are aligned to the left; the others hold numbers.
    """
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right")
    for row in rows:
        table.add_row(*row)
    make_console().print(table)


def print_lines(lines: Iterable[str], **style: Any) -> None:
    """Print lines as they are, whatever brackets they hold; a long one is not broken."""
    console = make_console()
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True, **style)


def print_findings(findings: Sequence[str], what: str, note: str = "") -> None:
    """Print how many findings there are and the first five of them, if there are any."""
    if findings:
        make_console().print(f"[yellow]{len(findings):,} {what}[/]: {note}".rstrip())
        print_lines(f"  {finding}" for finding in findings[:5])


def print_scores(scores: Scores, title: str) -> None:
    """Print the values of each class as a table in percent, and those of all together below it."""
    columns = list(dict.fromkeys(name for row in scores.per_class.values() for name in row))
    rows = ((name, *(_shown(row, column) for column in columns)) for name, row in scores.per_class.items())
    print_table(["", *columns], rows, title, left=1)
    make_console().print(", ".join(f"{name} {_shown(scores.values, name)}" for name in scores.values))


def _shown(row: Mapping[str, float], name: str) -> str:
    value = row.get(name)
    if value is None or math.isnan(value):
        return "–"
    if name == "images":
        return f"{value:,.0f}"
    return f"{value:.1f}" if name.endswith("pixels") else f"{100 * value:.1f}"


def write_result(path: Path | None, value: Any) -> None:
    """Write JSON where a file was named, and say so."""
    from vitp.core.files import write_json

    if path is not None:
        write_json(path, value)
        make_console().print(f"wrote {path}")


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))


def progress_bars() -> Progress:
    """Return bars with a count and the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=make_console())


def shown_path(path: Path) -> str:
    """Return a path relative to the working folder where it is in it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
