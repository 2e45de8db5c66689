"""Printing: the console of the commands, and the tables that several of them show."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vitp.core.words import decimals

if TYPE_CHECKING:
    from vitp.metrics.results import Scores

MOST_KINDS = 12
"""Kinds of findings of which one each is printed."""
_PLACES = re.compile(r"\"[^\"]*\"|\S*[/\\]\S*|\S+\.\w{2,5}\b|[\d.,]*\d")
"""What tells two findings of one kind apart: quoted names, paths, names of files, numbers."""
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
    """Print how many findings there are, if there are any, and one of each kind with the number of those like it.

    Findings are of one kind when they differ in places, names of files and numbers alone. What is found once must not
    hide behind a thousand of another kind.
    """
    if not findings:
        return
    make_console().print(f"[yellow]{len(findings):,} {what}[/]: {note}".rstrip())
    kinds: dict[str, list[str]] = {}
    for finding in findings:
        _, _, text = finding.rpartition(": ")
        kinds.setdefault(_PLACES.sub("#", text), []).append(finding)
    for alike in list(kinds.values())[:MOST_KINDS]:
        print_lines([f"  {alike[0]}" + (f" (and {len(alike) - 1:,} more like it)" if len(alike) > 1 else "")])
    if hidden := sum(len(alike) for alike in list(kinds.values())[MOST_KINDS:]):
        print_lines([f"  and {hidden:,} more of other kinds"])


def print_scores(scores: Scores, title: str) -> None:
    """Print the values of each class as a table in percent, and those of all together below it.

    Where an interval is known it stands behind its value.
    """
    columns = list(dict.fromkeys(name for row in scores.per_class.values() for name in row))
    if "sensitivity" in columns and "recall" in columns:
        columns.remove("recall")  # its other name
    rows = [
        (name, *(_shown(row, column, scores.class_intervals.get(name, {})) for column in columns))
        for name, row in scores.per_class.items()
    ]
    print_table(["", *columns], rows, title, left=1)
    values = (f"{name} {_shown(scores.values, name, scores.value_intervals)}" for name in scores.values)
    shown = ", ".join(values)
    make_console().print(shown, markup=False)
    if any("[" in cell for row in rows for cell in row[1:]) or "[" in shown:
        make_console().print("[dim]in brackets: 95 % intervals[/]")


def _shown(row: Mapping[str, float], name: str, intervals: Mapping[str, tuple[float, float]]) -> str:
    value = row.get(name)
    if value is None or math.isnan(value):
        return "–"
    text = _number(value, name)
    low, high = intervals.get(name, (math.nan, math.nan))
    return text if math.isnan(low) else f"{text} [{_number(low, name)}, {_number(high, name)}]"


def _number(value: float, name: str) -> str:
    if name in ("images", "cases"):
        return f"{value:,.0f}"
    if name.endswith(("pixels", "_mm", "_mm2", "_ml")):
        return decimals(value, 1 if abs(value) >= 10 or name.endswith("pixels") else 2)
    return decimals(100 * value, 1)


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
