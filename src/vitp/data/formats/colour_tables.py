"""Tables of class and colour beside masks: `class_dict.csv`, `label_colors.txt`, `labelmap.txt`, JSON."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.core.reading import parse_json
from vitp.data.formats.walk import read_label_text

_SUFFIXES = (".csv", ".tsv", ".txt", ".json")
_LARGEST = 1 << 20
_STEM = re.compile(r"class|label|colou?r|palette|legend|categor", re.IGNORECASE)
_COLOUR_STEM = re.compile(r"colou?r|palette|class_dict|labelmap", re.IGNORECASE)
_NAME_KEYS = ("name", "class", "class_name", "classname", "label", "category", "title", "readable")
_ID_KEYS = ("id", "index", "value", "class_id", "label_id", "train_id", "number")
_RGB_KEYS = (("r", "g", "b"), ("red", "green", "blue"))
_HEX_KEYS = ("color", "colour", "rgb", "hex")
_BETWEEN = r"[\s,;]+"
_RGB = _BETWEEN.join([r"(\d{1,3})"] * 3)
_CVAT = re.compile(r"([^:]*[^\W\d][^:]*):(\d{1,3}),(\d{1,3}),(\d{1,3})(?::.*)?$")
_COLOUR_FIRST = re.compile(rf"(?:(\d+){_BETWEEN})?{_RGB}{_BETWEEN}([^\W\d].*)$")
_NAME_FIRST = re.compile(rf"(?:(\d+){_BETWEEN})?([^\W\d].*?){_BETWEEN}{_RGB}$")
_FIX = 'write rows "name,r,g,b" of 0–255, or name the classes with the option classes'

_Row = tuple[str, int, int | None]
"""Name, colour 0xRRGGBB and number (None where the table has none) of a class."""


@dataclass(frozen=True)
class ColourTable:
    """The classes of a table: name, colour 0xRRGGBB and number (None where the table has none) of each."""

    path: Path
    rows: tuple[_Row, ...]


def find_colour_table(root: Path) -> ColourTable | None:
    """Return the table of colours in a set's folder, or None without one.

    Raises:
        DataError: It can't be read, or two tables say different things.
    """
    tables = []
    for path in sorted(root.iterdir()):
        if path.suffix.lower() in _SUFFIXES and path.is_file() and path.stat().st_size <= _LARGEST:
            table = read_colour_table(path)
            if table is not None:
                tables.append(table)
    for other in tables[1:]:
        if other.rows != tables[0].rows:
            raise DataError(
                f"{tables[0].path.name} and {other.path.name} give classes different colours",
                where=str(root),
                fix="keep one of them, or name the classes with the option classes",
            )
    return tables[0] if tables else None


def read_colour_table(path: Path) -> ColourTable | None:
    """Return a file's classes and colours, or None when the file isn't a table of colours.

    Raises:
        DataError: It is one by its name or its other rows, but a row can't be understood.
    """
    if path.suffix.lower() == ".json":
        rows = _json_rows(path) if _STEM.search(path.stem) else None
    else:
        rows = _text_rows(path)
    if rows is None:
        if _COLOUR_STEM.search(path.stem):
            raise DataError("can't be understood as a table of colours", where=str(path), fix=_FIX)
        return None
    colours: dict[int, str] = {}
    for name, colour, _ in rows:
        if colours.setdefault(colour, name) != name:
            text = f"{colour >> 16}, {colour >> 8 & 255}, {colour & 255}"
            what = f'gives the colour {text} to "{colours[colour]}" and "{name}"'
            raise DataError(what, where=str(path), fix="give each class its own colour")
    return ColourTable(path, tuple(rows))


def _is_colour(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) == 3 and all(isinstance(v, int) for v in value)
    text = str(value).strip()
    return re.fullmatch(r"#?[0-9A-Fa-f]{6}|\D*\d{1,3}\D+\d{1,3}\D+\d{1,3}\D*", text) is not None


def _colour(value: str | Sequence[Any], where: str) -> int:
    """Return 0xRRGGBB of "#rrggbb", of text with three numbers, or of three values."""
    if isinstance(value, str):
        text = value.strip().removeprefix("#")
        if re.fullmatch(r"[0-9A-Fa-f]{6}", text):
            return int(text, 16)
        value = re.findall(r"\d+", text)
    if len(value) != 3 or not all(str(v).strip().isdigit() and int(v) <= 255 for v in value):
        raise DataError(f"{', '.join(map(str, value))} is no colour of 0–255", where=where, fix=_FIX)
    r, g, b = (int(v) for v in value)
    return r << 16 | g << 8 | b


def _number(value: Any) -> int | None:
    return int(value) if isinstance(value, int) or (value and str(value).strip().isdigit()) else None


def _by_keys(row: Mapping[str, Any], name_keys: Sequence[str]) -> tuple[Any, Any, int | None]:
    """Return a row's name, colour and number; None for what it doesn't have."""
    name = next((row[key] for key in name_keys if isinstance(row.get(key), str)), None)
    parts = next(([row[key] for key in keys] for keys in _RGB_KEYS if set(keys) <= row.keys()), None)
    colour = parts or next((row[key] for key in _HEX_KEYS if isinstance(row.get(key), str | list)), None)
    return name, colour, next((n for key in _ID_KEYS if (n := _number(row.get(key))) is not None), None)


def _text_rows(path: Path) -> list[_Row] | None:
    try:
        text = read_label_text(path)
    except DataError:
        if _COLOUR_STEM.search(path.stem):
            raise
        return None
    lines = [
        (number, line.strip())
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith(("#", "//"))
    ]
    headed = _headed_rows(path, lines) if lines else None
    if headed is not None or not lines or not _STEM.search(path.stem):
        return headed
    rows = [(number, line, _plain_row(line, f"{path}:{number}")) for number, line in lines]
    if rows[0][2] is None and len(rows) > 1:  # a head in words of its own
        rows = rows[1:]
    if all(row is None for _, _, row in rows):
        return None
    for number, line, row in rows:
        if row is None:
            raise DataError(f'"{line}" is no class with its colour', where=f"{path}:{number}", fix=_FIX)
    return [row for _, _, row in rows if row is not None]


def _plain_row(line: str, where: str) -> _Row | None:
    if match := _CVAT.match(line):
        return match[1].strip(), _colour(match.groups()[1:], where), None
    if match := _COLOUR_FIRST.match(line):
        return match[5].strip(' "'), _colour(match.groups()[1:4], where), _number(match[1])
    if match := _NAME_FIRST.match(line):
        return match[2].strip(' "'), _colour(match.groups()[2:], where), _number(match[1])
    return None


def _headed_rows(path: Path, lines: list[tuple[int, str]]) -> list[_Row] | None:
    """Return the rows of a table whose head names the columns, or None when it has no such head."""
    marks = [mark for mark in ",;\t" if mark in lines[0][1]]
    if not marks:
        return None
    cells = list(csv.reader([line for _, line in lines], delimiter=marks[0], skipinitialspace=True))
    head = [cell.strip().lower() for cell in cells[0]]
    name, colour, _ = _by_keys(dict.fromkeys(head, ""), _NAME_KEYS)
    if name is None or colour is None:
        return None
    rows: list[_Row] = []
    for (line, _), row in zip(lines[1:], cells[1:], strict=True):
        where = f"{path}:{line}"
        name, colour, number = _by_keys(dict(zip(head, row, strict=False)), _NAME_KEYS)
        if not rows and isinstance(colour, str) and not _is_colour(colour):
            return None  # the column of that name holds something else
        if len(row) != len(head) or not name.strip():
            raise DataError(f"has {len(row)} cells, the head {len(head)}, or no name", where=where, fix=_FIX)
        rows.append((name.strip(), _colour(colour, where), number))
    return rows or None


def _json_rows(path: Path) -> list[_Row] | None:
    try:
        content = parse_json(read_label_text(path))
    except json.JSONDecodeError as error:
        if not _COLOUR_STEM.search(path.stem):
            return None
        raise DataError(f"is not JSON ({error.msg})", where=str(path), fix=_FIX) from error
    if isinstance(content, dict):
        inner = next((content[k] for k in ("labels", "classes") if isinstance(content.get(k), list)), None)
        if inner is None:
            inner = [{"name": name, "color": value} for name, value in content.items()]
        content = inner
    rows: list[_Row | None] = []
    for number, row in enumerate(content if isinstance(content, list) else (), 1):
        known = {str(key).lower(): value for key, value in row.items()} if isinstance(row, Mapping) else {}
        # Where there are both, "readable" is the name to speak.
        name, colour, own = _by_keys(known, ("readable", *_NAME_KEYS))
        usable = bool(name) and _is_colour(colour)
        rows.append((name.strip(), _colour(colour, f"{path}: entry {number}"), own) if usable else None)
    if all(row is None for row in rows):
        return None
    if None in rows:
        raise DataError(f"entry {rows.index(None) + 1} has no name and colour", where=str(path), fix=_FIX)
    return [row for row in rows if row is not None]
