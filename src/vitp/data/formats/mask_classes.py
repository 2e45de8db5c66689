"""Classes of the values or colours of masks: from the user, from a table beside the masks, or found.

Tables of class and colour are `class_dict.csv`, `label_colors.txt`, `labelmap.txt` or JSON.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ImageColor

from vitp.core.errors import ConfigError, DataError
from vitp.core.reading import lines_of, parse_json
from vitp.data.formats.class_names import is_ignored_name, numbered
from vitp.data.formats.walk import read_label_lines, read_label_text
from vitp.records.labels import BACKGROUND, IGNORE

MOST_FOUND_CLASSES = 64
"""More different values than this are a photograph or a lossy file, not a mask."""

_LARGEST_INDEX = 63
"""Values up to this count classes; larger ones are grey levels somebody chose."""

_IGNORE_NAME = "ignore"

_COLOUR_NAMES = {
    **dict(zip((0xFFFFFF, 0xFF0000, 0x00FF00, 0x0000FF), ("white", "red", "green", "blue"), strict=True)),
    **dict(zip((0xFFFF00, 0x00FFFF, 0xFF00FF), ("yellow", "cyan", "magenta"), strict=True)),
}


@dataclass(frozen=True)
class MaskClasses:
    """Names of classes, pairs of value (0xRRGGBB) and class index or `IGNORE`, and lines about their source.

    `told` holds the values that somebody named, by an option or in a file; the others were found or assumed.
    """

    names: tuple[str, ...]
    values: tuple[tuple[int, int], ...]
    said: tuple[str, ...] = ()
    told: frozenset[int] = frozenset()


def from_option(classes: str | Sequence[str] | Mapping[str, str | int], *, colour: bool) -> MaskClasses:
    """Return the map that "name=value,name=value" or {name: value} says.

    A value is an index, a colour name, #rrggbb or r:g:b; one name may stand several times. "ignore" is no
    class. Black, or index 0, is "background" where it isn't named.

    Args:
        classes: The option.
        colour: The masks hold colours, not indices.

    Raises:
        ConfigError: An entry can't be understood.
    """
    if isinstance(classes, Mapping):
        entries = [(name, str(value)) for name, value in classes.items()]
    else:
        words = classes.split(",") if isinstance(classes, str) else list(classes)
        entries = [
            (n.strip(), v.strip()) for n, _, v in (word.partition("=") for word in words if word.strip())
        ]
    pairs = [(name, _value(name, value, colour)) for name, value in entries]
    if not pairs:
        raise ConfigError("names no class", where="classes", fix='write "background=0,forest=white"')
    if len({value for _, value in pairs}) < len(pairs):
        raise ConfigError("gives one value to two classes", where="classes", fix="give each value once")
    told = frozenset(value for _, value in pairs)
    if 0 not in told and BACKGROUND not in dict(pairs):
        pairs.insert(0, (BACKGROUND, 0))
    names = tuple(dict.fromkeys(name for name, _ in pairs if name != _IGNORE_NAME))
    values = tuple((v, IGNORE if name == _IGNORE_NAME else names.index(name)) for name, v in pairs)
    return MaskClasses(names, values, told=told)


def _value(name: str, text: str, colour: bool) -> int:
    fix = 'write "name=index", "name=white", "name=#00ff00" or "name=0:255:0"'
    if not name or not text:
        raise ConfigError(f'"{name}={text}" is not a class and its value', where="classes", fix=fix)
    try:
        if not colour:
            # Binary greyscale masks are told in colours, too: white is 255 there.
            return int(text) if text.lstrip("-").isdigit() else _packed(text) & 0xFF
        return 0 if text == "0" else _packed(text)
    except ValueError as error:
        what = f'"{text}" is not a value of {"colour" if colour else "index"} masks'
        raise ConfigError(what, where="classes", fix=fix) from error


def _packed(text: str) -> int:
    # In CSS, and so for Pillow, "green" is a dark (0, 128, 0); people who draw masks mean (0, 255, 0).
    named = {name: value for value, name in _COLOUR_NAMES.items()}
    if text.lower() in named:
        return named[text.lower()]
    if text.count(":") == 2:
        r, g, b = (int(part) for part in text.split(":"))
    else:
        r, g, b = ImageColor.getrgb(text)[:3]
    return r << 16 | g << 8 | b


def from_file(path: Path, *, colour: bool, occurring: Collection[int] = ()) -> MaskClasses:
    """Return the map in a file of lines `name` (in the order of the indices), `index name` or `name=value`.

    Names such as "void" and "no-data" are no classes: their values are ignored.

    Args:
        path: The file.
        colour: The masks hold colours, not indices.
        occurring: The values in the masks; they tell numbered lines from names that begin with a number.

    Raises:
        DataError: The file can't be read or names colours no class.
    """
    lines = [line.strip() for line in read_label_lines(path) if line.strip()]
    if lines and all("=" in line for line in lines):
        return from_option(lines, colour=colour)
    if (table := read_colour_table(path)) is not None:
        return from_table(table, colour=colour)
    if colour:
        what = "names no colours, but the masks are coloured"
        raise DataError(what, where=str(path), fix='write lines like "forest=white"')
    pairs = numbered(lines, occurring)
    top = max((value for value in occurring if value != IGNORE), default=0)
    if pairs is None and top == len(lines):
        first = "" if 0 not in occurring else ", or background is the first and isn't named"
        raise DataError(
            f"names {len(lines)} classes, from 0 to {top - 1}, but the masks hold values up to {top}: the lines may count "
            f"from 1{first}",
            where=str(path),
            fix=f'write the number before each name ("1 {lines[0]}"), or a line for each value from 0 on',
        )
    said = () if pairs is None else (f"{path.name}: each line is a value of the masks and its class",)
    return named_values(path, [(name, i) for i, name in (pairs or enumerate(lines))], said)


def from_table(table: ColourTable, *, colour: bool) -> MaskClasses:
    """Return the map of a table of colours. For masks of indices the table needs numbers, or grey levels.

    Raises:
        DataError: The masks hold indices, and the table doesn't say which is which class.
    """
    path = table.path
    said = (f"{path.name}: the classes and their colours",)
    if colour:
        return named_values(path, [(name, value) for name, value, _ in table.rows], said)
    numbers = [(name, number) for name, _, number in table.rows if number is not None]
    if len(numbers) == len(table.rows):
        return named_values(path, numbers, (f"{path.name}: the classes and their numbers",))
    if all(value % 0x010101 == 0 for _, value, _ in table.rows):
        return named_values(path, [(name, value & 255) for name, value, _ in table.rows], said)
    order = ",".join(f"{name}={i}" for i, (name, _, _) in enumerate(table.rows))
    fix = f'if the order of the rows is that of the values, -o classes="{order}"'
    raise DataError("names colours, but the masks hold one value a pixel", where=str(path), fix=fix)


def named_values(path: Path, pairs: Sequence[tuple[str, int]], said: tuple[str, ...]) -> MaskClasses:
    """Return the map of names and values, in which names of no class are ignored.

    Raises:
        DataError: A value has two names.
    """
    if len({value for _, value in pairs}) < len(pairs):
        raise DataError("gives one value to two classes", where=str(path), fix="give each value once")
    names = tuple(dict.fromkeys(name for name, _ in pairs if not is_ignored_name(name)))
    ignored = [name for name, _ in pairs if is_ignored_name(name)]
    if ignored:
        said += (
            f"{path.name}: {', '.join(ignored)} {'is' if len(ignored) == 1 else 'are'} no class; ignored there",
        )
    values = tuple((v, names.index(n) if n in names else IGNORE) for n, v in pairs)
    return MaskClasses(names, values, said, frozenset(value for _, value in pairs))


def from_values(values: Sequence[int], root: Path, *, colour: bool, palette: bool) -> MaskClasses:
    """Return a map for the values that occur, when nobody named them.

    Two values with 0 among them are background and foreground. 255 beside small indices is ignored, which is the
    field's convention; beside other grey levels (0, 128, 255) it may as well be a class, which is refused. Otherwise
    colours and indices become the names.

    Raises:
        DataError: There are too many values for a mask, or 255 has two readings.
    """
    found = sorted(set(values))
    if len(found) > MOST_FOUND_CLASSES:
        raise DataError(
            f"the masks hold {len(found)} different values, too many for classes",
            where=str(root),
            fix="name the classes with the option classes, and use lossless masks; numbers of instances are read "
            "with the option mask_type=instances; photographs are no masks: --format images reads them without labels, and "
            "their folders may be classes: --format folders",
        )
    if len(found) == 1 and found[0] != 0:
        text = f"#{found[0]:06x}" if colour else str(found[0])
        what = f"all pixels of all masks have one value, {text}: a class, or what nothing is known of"
        raise DataError(
            what, where=str(root), fix=f"name it: -o classes=NAME={text} or -o classes=ignore={text}"
        )
    if found and found[0] < 0:
        levels = ",".join(f"{'background' if v == 0 else f'NAME_{v}'}={v}" for v in found if v >= 0)
        raise DataError(
            f"the masks hold {', '.join(map(str, found))}: values below 0 may say what to ignore, or be classes",
            where=str(root),
            fix=f'name the values: -o classes="{levels},ignore={found[0]}"',
        )
    ignored = [] if colour else _ignored(found, root, palette=palette)
    used = [v for v in found if v not in ignored]
    if set(used) <= {0, max(used, default=0)}:
        names = [BACKGROUND if v == 0 else "foreground" for v in used]
    elif colour:
        names = [BACKGROUND if v == 0 else _COLOUR_NAMES.get(v, f"#{v:06x}") for v in used]
    else:
        names = [BACKGROUND if v == 0 else f"class_{v}" for v in used]
    return MaskClasses(
        tuple(names), tuple((v, i) for i, v in enumerate(used)) + tuple((v, IGNORE) for v in ignored)
    )


def _ignored(found: Sequence[int], root: Path, *, palette: bool) -> list[int]:
    """Return [255] where it says what to ignore, and [] where it is a class or doesn't occur."""
    others = [value for value in found if value not in (0, IGNORE)]
    if IGNORE not in found or not others:
        return []
    if palette or max(others) <= _LARGEST_INDEX:
        return [IGNORE]
    levels = ",".join(f"{'background' if v == 0 else f'NAME_{v}'}={v}" for v in found if v != IGNORE)
    raise DataError(
        f"the masks hold {', '.join(map(str, found))}: 255 may be a class, or say what to ignore",
        where=str(root),
        fix=f'name the values: -o classes="{levels},NAME_255=255" or -o classes="{levels},ignore=255"',
    )


def says(named: MaskClasses, *, colour: bool) -> str:
    """Return a line about which value is which class."""
    listed = [
        f"{f'#{value:06x}' if colour else value} = {_IGNORE_NAME if i == IGNORE else named.names[i]}"
        for value, i in named.values
    ]
    more = f" and {len(listed) - 20} more" if len(listed) > 20 else ""
    return f"values of the masks: {', '.join(listed[:20])}{more}"


def parse_value(text: str) -> int:
    """Return the value that "17", "white", "#ffffff" or "255:255:255" names.

    Raises:
        ValueError: It is none of these.
    """
    return int(text) if text.isdigit() else _packed(text)


_SUFFIXES = (".csv", ".tsv", ".txt", ".json")
_LARGEST = 1 << 20
_STEM = re.compile(r"class|label|colou?r|palette|legend|categor", re.IGNORECASE)
_COLOUR_STEM = re.compile(r"colou?r|palette|class_dict|labelmap", re.IGNORECASE)
_NAME_KEYS = ("name", "class", "class_name", "classname", "label", "category", "title", "readable")
_ID_KEYS = ("id", "index", "value", "class_id", "label_id", "train_id", "number")
_RGB_KEYS = (("r", "g", "b"), ("red", "green", "blue"))
_HEX_KEYS = ("color", "colour", "rgb", "hex")
_BETWEEN = r"[\s,;]+"
_ASIDE = r"[\s,;:=]+"
_RGB = r"[(\[]?" + _BETWEEN.join([r"(\d{1,3})"] * 3) + r"[)\]]?"
_CVAT = re.compile(r"([^:]*[^\W\d][^:]*):(\d{1,3}),(\d{1,3}),(\d{1,3})(?::.*)?$")
_COLOUR_FIRST = re.compile(rf"(?:(\d+){_ASIDE})?{_RGB}{_ASIDE}([^\W\d].*)$")
_NAME_FIRST = re.compile(rf"(?:(\d+){_ASIDE})?([^\W\d].*?){_ASIDE}{_RGB}$")
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
        for number, line in enumerate(lines_of(text), 1)
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
