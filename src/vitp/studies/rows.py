"""Rows of finished cells: a file of JSON Lines that is committed, so that no machine does work that another has done.

One line a cell, without its weights. A cell of the study whose row is there counts as done, unless a cell that is open
needs its files: then it is done again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitp.core.errors import ConfigError
from vitp.core.files import to_json, write_text
from vitp.core.reading import lines_of, parse_json, read_text
from vitp.studies.grid import Study, StudyCell, ordered

ROWS_FILE = "cells.jsonl"
ROWS_FORMAT = 1
_PARTS: dict[str, type] = {
    "key": str,
    "kind": str,
    "version": int,
    "name": str,
    "settings": dict,
    "values": dict,
    "cost": dict,
    "machine": dict,
}
_VALUES_ONLY = ("lr", "equal")
"""Roles of needs that are asked for their values; all others are asked for files, but for those of a choice."""


@dataclass
class FinishedRows:
    """The rows of a file.

    Attributes:
        path: Of the file; it needn't be there yet.
        by_key: Key of the cell → its row. Those of other studies and settings are kept as they are.
    """

    path: Path
    by_key: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take in rows whose cells have none yet, and write the file anew where there are some.

        Raises:
            ConfigError: Somebody else has written something else into it meanwhile that can't be read.
        """
        new: dict[str, dict[str, Any]] = {}
        for row in rows:
            if row["key"] not in self.by_key:
                new.setdefault(str(row["key"]), dict(row))  # cells of one key: under the first one's name
        if not new:
            return
        # Others may work on the same study and have written meanwhile.
        self.by_key = read_rows(self.path).by_key | self.by_key
        self.by_key |= {key: row for key, row in new.items() if key not in self.by_key}
        write_text(self.path, "".join(f"{to_json(row)}\n" for row in self.by_key.values()))


def read_rows(path: Path) -> FinishedRows:
    """Return the rows of a file; none where there is no file.

    Raises:
        ConfigError: A line is no row, is of another version of the file, or two say different things of one cell.
    """
    found = FinishedRows(path)
    lines: dict[str, int] = {}
    try:
        text = read_text(path) if path.exists() else ""
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"can't be read ({error})", where=str(path), fix="name a file of rows") from error
    for number, line in enumerate(lines_of(text), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = _row_of(line, where)
        known = found.by_key.get(row["key"])
        if known is not None and any(known[part] != row[part] for part in ("kind", "settings", "values")):
            raise ConfigError(
                f'"{row["name"]}" has other values than "{known["name"]}" in line {lines[row["key"]]}, and they are one '
                f"cell ({row['key']})",
                where=where,
                fix="leave one of the two lines out",
            )
        found.by_key.setdefault(row["key"], row)
        lines.setdefault(row["key"], number)
    return found


def _row_of(line: str, where: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise ConfigError(f"is no JSON ({error})", where=where, fix="mend or remove the line") from error
    if not isinstance(row, dict) or "format" not in row:
        raise ConfigError("is no row of a finished cell", where=where, fix="mend or remove the line")
    if row["format"] != ROWS_FORMAT:
        what = f"is of format {row['format']!r}, and this version of vitp reads format {ROWS_FORMAT}"
        raise ConfigError(what, where=where, fix="use the version of vitp that wrote it, or another file")
    for part, kind in _PARTS.items():
        if not isinstance(row.get(part), kind):
            raise ConfigError(f'has no "{part}" as a row has it', where=where, fix="mend or remove the line")
    return row


def row_of(result: Mapping[str, Any], cell: StudyCell, version: int) -> dict[str, Any]:
    """Return the row of a result as `Store.finish` wrote it."""
    # The file is committed, and what somebody's machine is called is no part of a result.
    machine = {name: value for name, value in result["machine"].items() if name != "host"}
    return {
        "format": ROWS_FORMAT,
        **{part: result[part] for part in ("key", "kind")},
        "version": version,
        "name": cell.name,
        "facts": dict(cell.facts),
        **{part: result[part] for part in ("settings", "values", "cost", "when")},
        "machine": machine,
        "commit": result.get("commit", ""),
    }


def check_rows(
    rows: FinishedRows, study: Study, keys: Mapping[str, str], versions: Mapping[str, int]
) -> None:
    """Refuse rows that are of another version of their work, or not of the cell whose key they have.

    Raises:
        ConfigError: There is one.
    """
    for row in rows.by_key.values():
        where = f'{rows.path}: "{row["name"]}"'
        if row["version"] != versions.get(row["kind"], 0):
            what = f'is of version {row["version"]} of the work "{row["kind"]}", which is {versions.get(row["kind"], 0)} now'
            raise ConfigError(what, where=where, fix="remove the line: equal settings give other results now")
    for cell in study.cells:
        found = rows.by_key.get(keys[cell.name])
        if found is not None and (found["kind"], found["settings"]) != (
            cell.kind,
            parse_json(to_json(cell.settings)),
        ):
            what = f'has the key of the cell "{cell.name}" and other settings'
            raise ConfigError(what, where=f'{rows.path}: "{found["name"]}"', fix="mend or remove the line")


def to_do_again(
    study: Study, keys: Mapping[str, str], rows: Mapping[str, Any], local: set[str]
) -> frozenset[str]:
    """Return the names of the cells that have a row and must be done again, as an open cell needs their files.

    Args:
        study: The cells.
        keys: Name of a cell → its key.
        rows: Key → row.
        local: Names of the cells that this machine has, files and all.
    """
    wanted: set[str] = set()  # for their files
    again: set[str] = set()
    # From last to first: whoever needs a cell's files is known before the cell is looked at.
    for cell in reversed(ordered(study.cells)):
        if cell.name in local:
            continue
        if keys[cell.name] in rows:
            if not cell.keep or cell.name not in wanted:
                continue
            again.add(cell.name)
        by_files = (name for role, name in cell.needs.items() if role not in _VALUES_ONLY)
        wanted |= set(by_files) if cell.kind != "choose" else set()
    return frozenset(again)
