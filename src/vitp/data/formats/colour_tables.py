"""Tables of class and colour beside masks: `class_dict.csv`, `label_colors.txt`, `labelmap.txt`, JSON."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
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


@dataclass(frozen=True)
class ColourTable:
    """The classes of a table.

    Attributes:
        path: Of the table.
        rows: Name, colour 0xRRGGBB and number (None where the table has none) of each class.
    """

    path: Path
    rows: tuple[tuple[str, int, int | None], ...]


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
            raise DataError(
                f'gives the colour {text} to "{colours[colour]}" and "{name}"',
                where=str(path),
                fix="give each class its own colour",
            )
    return ColourTable(path, tuple(rows))


def _packed(values: Any, where: str) -> int:
    if len(values) != 3 or not all(str(v).strip().isdigit() and int(v) <= 255 for v in values):
        raise DataError(f"{', '.join(map(str, values))} is no colour of 0–255", where=where, fix=_FIX)
    r, g, b = (int(v) for v in values)
    return r << 16 | g << 8 | b


def _is_colour(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) == 3 and all(isinstance(v, int) for v in value)
    text = str(value).strip()
    return re.fullmatch(r"#?[0-9A-Fa-f]{6}|\D*\d{1,3}\D+\d{1,3}\D+\d{1,3}\D*", text) is not None


def _colour(value: Any, where: str) -> int:
    if isinstance(value, str):
        text = value.strip().removeprefix("#")
        if re.fullmatch(r"[0-9A-Fa-f]{6}", text):
            return int(text, 16)
        value = re.findall(r"\d+", text)
    return _packed(value if isinstance(value, list | tuple) else [value], where)


def _text_rows(path: Path) -> list[tuple[str, int, int | None]] | None:
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
    if not lines:
        return None
    headed = _headed_rows(path, lines)
    if headed is not None:
        return headed
    if not _STEM.search(path.stem):
        return None
    rows = [(number, line, _plain_row(line, f"{path}:{number}")) for number, line in lines]
    if rows[0][2] is None and len(rows) > 1:  # a head in words of its own
        rows = rows[1:]
    if all(row is None for _, _, row in rows):
        return None
    for number, line, row in rows:
        if row is None:
            raise DataError(f'"{line}" is no class with its colour', where=f"{path}:{number}", fix=_FIX)
    return [row for _, _, row in rows if row is not None]


def _plain_row(line: str, where: str) -> tuple[str, int, int | None] | None:
    if match := _CVAT.match(line):
        return match[1].strip(), _packed(match.groups()[1:], where), None
    if match := _COLOUR_FIRST.match(line):
        return match[5].strip(' "'), _packed(match.groups()[1:4], where), _number(match[1])
    if match := _NAME_FIRST.match(line):
        return match[2].strip(' "'), _packed(match.groups()[2:], where), _number(match[1])
    return None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.strip().isdigit() else None


def _headed_rows(path: Path, lines: list[tuple[int, str]]) -> list[tuple[str, int, int | None]] | None:
    """Return the rows of a table whose head names the columns, or None when it has no such head."""
    marks = [mark for mark in ",;\t" if mark in lines[0][1]]
    if not marks:
        return None
    cells = list(csv.reader([line for _, line in lines], delimiter=marks[0], skipinitialspace=True))
    head = [cell.strip().lower() for cell in cells[0]]
    name = next((head.index(key) for key in _NAME_KEYS if key in head), None)
    parts = next(([head.index(k) for k in keys] for keys in _RGB_KEYS if set(keys) <= set(head)), None)
    hexed = next((head.index(key) for key in _HEX_KEYS if key in head), None)
    if name is None or (parts is None and hexed is None):
        return None
    if parts is None and not all(_is_colour(row[hexed]) for row in cells[1:2] if hexed and len(row) > hexed):
        return None
    number = next((head.index(key) for key in _ID_KEYS if key in head), None)
    rows = []
    for (line, _), row in zip(lines[1:], cells[1:], strict=True):
        where = f"{path}:{line}"
        if len(row) != len(head) or not row[name].strip():
            raise DataError(f"has {len(row)} cells, the head {len(head)}, or no name", where=where, fix=_FIX)
        colour = _packed([row[i] for i in parts], where) if parts else _colour(row[hexed or 0], where)
        rows.append((row[name].strip(), colour, _number(row[number]) if number is not None else None))
    return rows or None


def _json_rows(path: Path) -> list[tuple[str, int, int | None]] | None:
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
    if not isinstance(content, list) or not content:
        return None
    rows = [_json_row(row, f"{path}: entry {i}") for i, row in enumerate(content, 1)]
    if all(row is None for row in rows):
        return None
    if None in rows:
        raise DataError(f"entry {rows.index(None) + 1} has no name and colour", where=str(path), fix=_FIX)
    return [row for row in rows if row is not None]


def _json_row(row: Any, where: str) -> tuple[str, int, int | None] | None:
    if not isinstance(row, Mapping):
        return None
    known = {str(key).lower(): value for key, value in row.items()}
    # Where there are both, "readable" is the name to speak.
    name = next((known[k] for k in ("readable", *_NAME_KEYS) if isinstance(known.get(k), str)), None)
    parts = next(([known[k] for k in keys] for keys in _RGB_KEYS if set(keys) <= known.keys()), None)
    value = parts or next((known[k] for k in _HEX_KEYS if isinstance(known.get(k), str | list)), None)
    if not name or not _is_colour(value):
        return None
    number = next((known[k] for k in _ID_KEYS if isinstance(known.get(k), int)), None)
    return name.strip(), _colour(value, where), number
