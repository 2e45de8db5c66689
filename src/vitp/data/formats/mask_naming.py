"""Which value of masks is which class: by the option, by a file beside them, by what is published, or as they occur."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.data.formats.class_names import first_synonyms, numbered
from vitp.data.formats.mask_classes import (
    MOST_FOUND_CLASSES,
    MaskClasses,
    find_colour_table,
    from_file,
    from_option,
    from_table,
    from_values,
    named_values,
)
from vitp.data.formats.mask_kinds import (
    MaskFacts,
    Strays,
    find_strays,
    refuse_two_whites,
    shares,
    shown,
    totals,
)
from vitp.data.formats.mask_nodata import check_left
from vitp.data.formats.tables import find_key, first_table_rows
from vitp.data.formats.walk import bases_of, named_file, read_label_lines, within
from vitp.records.labels import BACKGROUND, IGNORE

_CLASSES, _CODES, _OBJECT_INFO = "classes.txt", "codes.txt", "objectInfo150.txt"
_INFO = re.compile(r"(\d+)[\s,]+[\d.]+[\s,]+\d+[\s,]+\d+[\s,]+\d+[\s,]+(\S.*)$")
"""A row of ADE20K's table: number, share of the pixels, counts of images, whether it is stuff, and name."""

_VALUE_KEYS = ("pixel_value", "pixel_values", "value", "grey_value", "gray_value")
_NAME_KEYS = ("class", "name", "class_name", "label", "category")

_CITYSCAPES = (
    *(
        "unlabeled",
        "ego vehicle",
        "rectification border",
        "out of roi",
        "static",
        "dynamic",
        "ground",
        "road",
    ),
    *(
        "sidewalk",
        "parking",
        "rail track",
        "building",
        "wall",
        "fence",
        "guard rail",
        "bridge",
        "tunnel",
        "pole",
    ),
    *("polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car"),
    *("truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
)
"""The names of Cityscapes' ids, from 0 on."""

_CITYSCAPES_IGNORED = frozenset((*range(7), 9, 10, 14, 15, 16, 18, 29, 30))
"""Ids that its benchmark ignores."""


def from_label_ids(values: Collection[int]) -> MaskClasses | None:
    """Return the classes of Cityscapes' `labelIds`, or None where values occur that aren't its ids.

    What its benchmark ignores is ignored: 19 classes are left.

    Args:
        values: The values that occur.
    """
    if not set(values) <= {*range(len(_CITYSCAPES)), IGNORE}:
        return None
    names = tuple(name for i, name in enumerate(_CITYSCAPES) if i not in _CITYSCAPES_IGNORED)
    pairs = tuple(
        (i, IGNORE if i in _CITYSCAPES_IGNORED else names.index(name)) for i, name in enumerate(_CITYSCAPES)
    )
    ignored = ", ".join(f"{i} {_CITYSCAPES[i]}" for i in sorted(_CITYSCAPES_IGNORED))
    said = (
        f"labelIds: named as Cityscapes publishes its ids, {len(names)} classes; ignored as in its benchmark: "
        f"{ignored}; -o classes=… or a classes.txt names the values otherwise"
    )
    return MaskClasses(names, pairs, (said,), frozenset(range(len(_CITYSCAPES))))


def name_file(root: Path) -> Path | None:
    """Return the file of a set's folder that names the values of its masks, or None.

    These are `classes.txt`, `codes.txt`, which has as many lines, and ADE20K's `objectInfo150.txt`.
    """
    return named_file(root, (_CLASSES, _CODES, _OBJECT_INFO))


def _from_names(path: Path, values: Collection[int], *, colour: bool) -> MaskClasses | str:
    """Return the classes that a file names, or why they aren't those of the values; "" where it names none."""
    if path.name.lower() == _CLASSES:
        return from_file(path, colour=colour, occurring=values)
    lines = [line.strip() for line in read_label_lines(path) if line.strip()]
    if not any(sign.isalpha() for line in lines for sign in line):
        return ""  # codes of something else
    if colour:
        return "names no colours, but the masks are coloured"
    if path.name.lower() != _CODES:
        return (
            from_object_info(path, lines) or "has rows that aren't number, four facts and name, as ADE20K's"
        )
    top = max({*values} - {IGNORE}, default=0)
    if top >= len(lines) and numbered(lines, values) is None:
        return (
            f"names {len(lines)} classes, from 0 to {len(lines) - 1}, but the masks hold values up to {top}"
        )
    return from_file(path, colour=colour, occurring=values)


def from_object_info(path: Path, lines: Sequence[str]) -> MaskClasses | None:
    """Return the classes of ADE20K's table, whose rows are number, four facts and name; None where rows differ.

    The number 0 says that a pixel is of none of them, which its benchmark ignores.

    Args:
        path: The file.
        lines: Its lines, with the head.
    """
    rows = [match for line in lines[1:] if (match := _INFO.match(line))]
    if not rows or len(rows) < len(lines) - 1:
        return None
    names = first_synonyms([row[2] for row in rows])
    pairs = [("unlabelled", 0), *((name, int(row[1])) for name, row in zip(names, rows, strict=True))]
    return named_values(path, pairs, (f"{path.name}: the classes and their numbers",))


def from_value_tables(root: Path) -> MaskClasses | None:
    """Return the classes of tables of value and class, as Roboflow writes `_classes.csv` into each split; or None.

    Raises:
        DataError: Two of them differ.
    """
    found: dict[Path, list[tuple[str, int]]] = {}
    for _, base in bases_of(root):
        for path in (one for one in sorted(base.iterdir()) if one.suffix.lower() == ".csv" and one.is_file()):
            told = [_value_and_class(row) for row in first_table_rows(path)]
            if told and None not in told:
                found[path] = [row for row in told if row is not None]
    for path, rows in found.items():
        if rows != next(iter(found.values())):
            what = f"names other classes than {within(next(iter(found)), root)}"
            raise DataError(
                what, where=str(path), fix="make them alike, or name the classes with the option classes"
            )
    for path, rows in found.items():
        said = f"{', '.join(within(one, root) for one in found)}: the classes and their values"
        return named_values(path, rows, (said,))
    return None


def _value_and_class(row: dict[str, Any]) -> tuple[str, int] | None:
    value, name = find_key(row, _VALUE_KEYS), find_key(row, _NAME_KEYS)
    if value is None or name is None or not str(row[value]).strip().isdigit():
        return None
    return str(row[name]).strip(), int(row[value])


def _named_by_files(root: Path, counts: Counter[int], *, colour: bool, label_ids: bool) -> MaskClasses | None:
    """Return which value is which class by a list, a table, or what is published; None where nothing says it.

    Raises:
        DataError: A list is all there is, and doesn't fit the values.
    """
    table, names = find_colour_table(root), name_file(root)
    misfit = ""
    if names is not None and (table is None or not colour or table.path == names):
        named = _from_names(names, counts, colour=colour)
        if isinstance(named, MaskClasses):
            if table is None or table.path == names:
                return named
            line = f"{table.path.name}: not used, {names.name} names the values of the masks"
            return replace(named, said=(*named.said, line))
        misfit = named
    other = from_table(table, colour=colour) if table is not None else None
    if other is None and not colour:
        other = from_value_tables(root)
    if other is None and label_ids and not colour:
        other = from_label_ids(counts)
    if names is None or not misfit:
        return other
    if other is None:
        lines = 'write lines like "forest=white"' if colour else 'write a line "VALUE name" for each value'
        fix = f"{lines}, or use the option classes; move the file away if it is about something else"
        raise DataError(misfit, where=str(names), fix=fix)
    return replace(other, said=(*other.said, f"{names.name}: not used, it {misfit}"))


def name_classes(
    root: Path,
    whole: Sequence[MaskFacts],
    facts: Sequence[MaskFacts],
    classes: str | Sequence[str] | Mapping[str, str | int] | None,
    strays: str,
    *,
    colour: bool,
    palette: bool,
    label_ids: bool = False,
) -> MaskClasses:
    """Return which value is which class.

    Args:
        root: The set's folder.
        whole: Facts of the masks with what is nodata.
        facts: Those without.
        classes: The option that names the values.
        strays: What becomes of the values of smoothed edges.
        colour: The values are colours.
        palette: The masks have palettes.
        label_ids: By their names they are Cityscapes' labelIds.

    Raises:
        DataError: Nothing names the values, and they have no or two readings.
    """
    if classes:
        return from_option(classes, colour=colour)
    counts = totals(facts)
    if (named := _named_by_files(root, counts, colour=colour, label_ids=label_ids)) is not None:
        return named
    check_left(whole, facts, root, colour=colour)
    if not (colour or palette):
        refuse_two_whites(facts, root)
    found = find_strays(facts, colour=colour)
    if found is None or len(found.main) > MOST_FOUND_CLASSES:
        return from_values(list(counts), root, colour=colour, palette=palette)
    _refuse_photographs(root, counts, found, strays)
    if not strays:
        kept = shares(counts, found.main, colour=colour)
        raise DataError(
            f"the masks hold {len(counts)} values, of which {len(counts) - len(found.main)} are on only "
            f"{found.pixels} pixels ({found.share:.2%}): {found.why}; the others are {kept}",
            where=str(root),
            fix="-o strays=nearest gives those pixels to the nearest of the others, -o strays=ignore ignores them; "
            "if they are classes, name all with the option classes",
        )
    return from_values(found.main, root, colour=colour, palette=palette)


def _refuse_photographs(root: Path, counts: Counter[int], found: Strays, strays: str) -> None:
    """Refuse files of which most pixels have values that can't be classes, unless the option strays decides it."""
    if found.main and (strays or found.share <= 0.5 or len(counts) <= MOST_FOUND_CLASSES):
        return
    lossy = (
        "; masks that were saved with loss: -o strays=nearest, and the classes with the option classes"
        if found.main
        else ""
    )
    raise DataError(
        f"the files that should be masks look like photographs: {len(counts):,} different values, and none is on more "
        f"than {max(counts.values()) / counts.total():.2%} of the pixels",
        where=str(root),
        fix="name the folder that holds the masks (-o images=FOLDER -o masks=FOLDER); photographs as targets, as of image "
        f"restoration, aren't read as labels: --format images reads photographs without labels{lossy}",
    )


def check_used(
    root: Path, facts: Sequence[MaskFacts], named: MaskClasses, strays: str, *, colour: bool
) -> None:
    """Make sure that the masks hold classes: otherwise what is known of the classes is wrong, not the images empty.

    Raises:
        DataError: They hold no class but background, or mostly values that nothing names.
    """
    counts = totals(facts)
    wanted = {v for v, i in named.values if i != IGNORE and named.names[i] != BACKGROUND}
    if not counts.keys() & wanted:
        texts = ", ".join(shown(v, colour=colour) for v in sorted(counts)[:10])
        what = f"no mask holds any of the classes; the values that occur are {texts}"
        raise DataError(what, where=str(root), fix="name them with the option classes")
    known = {value for value, _ in named.values} | (set() if colour else {IGNORE})
    unknown = [value for value in counts if value not in known]
    share = sum(counts[value] for value in unknown) / counts.total()
    if share > 0.5 and strays != "nearest":
        raise DataError(
            f"{share:.0%} of the masks' pixels have values that no class has: "
            f"{shares(counts, unknown, colour=colour)}",
            where=str(root),
            fix="name them with the option classes, where they are to be ignored as ignore=VALUE",
        )
