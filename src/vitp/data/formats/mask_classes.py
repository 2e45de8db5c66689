"""Which value or colour of a mask file is which class: from the user, from a file, or found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageColor

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.class_names import is_ignored_name, numbered
from vitp.data.formats.colour_tables import ColourTable, read_colour_table
from vitp.data.formats.walk import read_label_text
from vitp.records.labels import BACKGROUND, IGNORE

_MOST_FOUND_CLASSES = 64
"""More different values than this are a photograph or a lossy file, not a mask."""

_LARGEST_INDEX = 63
"""Values up to this count classes; larger ones are grey levels somebody chose."""

_IGNORE_NAME = "ignore"

_COLOURS = {
    "white": 0xFFFFFF,
    "red": 0xFF0000,
    "green": 0x00FF00,
    "blue": 0x0000FF,
    "yellow": 0xFFFF00,
    "cyan": 0x00FFFF,
    "magenta": 0xFF00FF,
}
_COLOUR_NAMES = {value: name for name, value in _COLOURS.items()}


@dataclass(frozen=True)
class MaskClasses:
    """Names of classes, pairs of value (0xRRGGBB) and class index or `IGNORE`, and lines about their source."""

    names: tuple[str, ...]
    values: tuple[tuple[int, int], ...]
    said: tuple[str, ...] = ()


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
    if all(value != 0 for _, value in pairs) and BACKGROUND not in dict(pairs):
        pairs.insert(0, (BACKGROUND, 0))
    names = tuple(dict.fromkeys(name for name, _ in pairs if name != _IGNORE_NAME))
    return MaskClasses(
        names, tuple((v, IGNORE if name == _IGNORE_NAME else names.index(name)) for name, v in pairs)
    )


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
    if text.lower() in _COLOURS:
        return _COLOURS[text.lower()]
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
    lines = [line.strip() for line in read_label_text(path).splitlines() if line.strip()]
    if lines and all("=" in line for line in lines):
        return from_option(lines, colour=colour)
    if (table := read_colour_table(path)) is not None:
        return from_table(table, colour=colour)
    if colour:
        raise DataError(
            "names no colours, but the masks are coloured",
            where=str(path),
            fix='write lines like "forest=white"',
        )
    pairs = numbered(lines, occurring)
    said = () if pairs is None else (f"{path.name}: each line is a value of the masks and its class",)
    return _named_values(path, [(name, i) for i, name in (pairs or enumerate(lines))], said)


def from_table(table: ColourTable, *, colour: bool) -> MaskClasses:
    """Return the map of a table of colours. For masks of indices the table needs numbers, or grey levels.

    Raises:
        DataError: The masks hold indices, and the table doesn't say which is which class.
    """
    path = table.path
    said = (f"{path.name}: the classes and their colours",)
    if colour:
        return _named_values(path, [(name, value) for name, value, _ in table.rows], said)
    numbers = [(name, number) for name, _, number in table.rows if number is not None]
    if len(numbers) == len(table.rows):
        return _named_values(path, numbers, (f"{path.name}: the classes and their numbers",))
    if all(value % 0x010101 == 0 for _, value, _ in table.rows):
        return _named_values(path, [(name, value & 255) for name, value, _ in table.rows], said)
    order = ",".join(f"{name}={i}" for i, (name, _, _) in enumerate(table.rows))
    raise DataError(
        "names colours, but the masks hold one value a pixel",
        where=str(path),
        fix=f'if the order of the rows is that of the values, -o classes="{order}"',
    )


def _named_values(path: Path, pairs: Sequence[tuple[str, int]], said: tuple[str, ...]) -> MaskClasses:
    if len({value for _, value in pairs}) < len(pairs):
        raise DataError("gives one value to two classes", where=str(path), fix="give each value once")
    names = tuple(dict.fromkeys(name for name, _ in pairs if not is_ignored_name(name)))
    ignored = [name for name, _ in pairs if is_ignored_name(name)]
    if ignored:
        said += (
            f"{path.name}: {', '.join(ignored)} {'is' if len(ignored) == 1 else 'are'} no class; ignored there",
        )
    return MaskClasses(names, tuple((v, names.index(n) if n in names else IGNORE) for n, v in pairs), said)


def from_values(values: Sequence[int], root: Path, *, colour: bool, palette: bool) -> MaskClasses:
    """Return a map for the values that occur, when nobody named them.

    Two values with 0 among them are background and foreground. 255 beside small indices is ignored, which is the
    field's convention; beside other grey levels (0, 128, 255) it may as well be a class, which is refused. Otherwise
    colours and indices become the names.

    Raises:
        DataError: There are too many values for a mask, or 255 has two readings.
    """
    found = sorted(set(values))
    if len(found) > _MOST_FOUND_CLASSES:
        raise DataError(
            f"the masks hold {len(found)} different values, too many for classes",
            where=str(root),
            fix="name the classes with the option classes, and use lossless masks; numbers of instances are read "
            "with the option mask_type=instances",
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
