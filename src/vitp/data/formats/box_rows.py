"""A row of a table of boxes: its class, its four numbers, and what these may be."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from vitp.core.errors import DataError
from vitp.data.formats.class_columns import MISSING_WORDS
from vitp.data.formats.tables import find_key
from vitp.data.formats.walk import words_of
from vitp.records.geometry import Box

BoxForm = Literal["corners", "size", "centre"]
Four = tuple[float, float, float, float]

SEVERAL_BOXES = ("boxesstring", "boxes_string")
"""Columns whose cells hold the boxes of an image, parted by semicolons."""

_ANNOTATOR_KEYS = (
    "rad_id",
    "radiologist",
    "annotator",
    "annotator_id",
    "reader",
    "reader_id",
    "rater",
    "rater_id",
)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_ROUNDING = 1.0
"""Pixels by which a box may reach outside of its image without speaking against how its numbers are read."""

_NOTHING = (
    "no finding",
    "no findings",
    "no object",
    "no objects",
    "no box",
    "none",
    "empty",
    "nothing",
    "normal",
)
"""Classes of rows without a box that say that there is nothing to be boxed, as VinDr-CXR's "No finding"."""

FORMS = {
    "corners": "left, top, right and bottom",
    "size": "left, top, width and height",
    "centre": "centre, width and height",
}


@dataclass
class BoxRow:
    """A row: its place, class, and four numbers; None: none, or `wrong` says why they can't be read.

    `box` are these numbers as x1, y1, x2, y2 in pixels, once it is known what the numbers of the table are.
    """

    where: str
    category: str
    numbers: Four | None
    wrong: str = ""
    box: Box | None = None


def spread(rows: Iterable[tuple[int, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """Return rows of one box each, of rows whose cell may hold several: "x y x y;x y x y", as GWHD's BoxesString."""
    found: list[tuple[int, Mapping[str, Any]]] = []
    for number, row in rows:
        if isinstance(row, dict):
            key = find_key(row, SEVERAL_BOXES)
            parts = str(row.get(key) or "").split(";") if key else [""]
            found += (
                [(number, {**row, key: part}) for part in parts]
                if key and len(parts) > 1
                else [(number, row)]
            )
    return found


def of_annotator(
    rows: Sequence[tuple[int, Mapping[str, Any]]], image: str, annotator: str, where: str
) -> tuple[list[tuple[int, Mapping[str, Any]]], str]:
    """Return the rows of one of several people who boxed the same images, and a line that says whose.

    Args:
        rows: Numbers of rows, and the rows.
        image: Column of the image.
        annotator: Their name in the table; "all" takes the boxes of all for objects; "" where nobody said it.
        where: The table.

    Raises:
        DataError: Several boxed an image and nobody said whose boxes count, or there is nobody of this name.
    """
    key = find_key(dict(rows[0][1]), _ANNOTATOR_KEYS) if rows else None
    people: dict[str, set[str]] = defaultdict(set)
    for _, row in rows if key else ():
        people[str(row.get(image))].add(str(row.get(key)).strip())
    names = sorted(set().union(*people.values()))
    listed = ", ".join(names[:8])
    if annotator and annotator != "all":
        if annotator not in names:
            fix = f"choose one of {listed}, or all" if names else "leave the option annotator out"
            raise DataError(f'holds no boxes of "{annotator}"', where=where, fix=fix)
        own = [(number, row) for number, row in rows if str(row.get(key)).strip() == annotator]
        return own, f'{len(own):,} of {len(rows):,} rows, those with "{annotator}" in the column "{key}"'
    shared = sum(len(own) > 1 for own in people.values())
    if not shared:
        return list(rows), ""
    if not annotator:
        raise DataError(
            f'the column "{key}" says that several people ({listed}) boxed the same images ({shared:,}), so an object may '
            "have several boxes",
            where=where,
            fix=f"-o annotator={names[0]} reads the boxes of one, -o annotator=all takes each box for an object",
        )
    return list(rows), f'the boxes of all in the column "{key}" ({listed}) count, each as an object'


def says_nothing(category: str) -> bool:
    """Return whether the class of a row without a box says that nothing is in the image."""
    return " ".join(words_of(category)) in _NOTHING


def row_of(where: str, row: Mapping[str, Any], label: str, box: Sequence[str]) -> BoxRow:
    """Return what a row of a table says, by its column of the class ("" without) and those of the box."""
    category = " ".join(str(row.get(label) or "").split()) if label else ""
    if category.lower() in MISSING_WORDS:
        category = ""
    if re.fullmatch(r"\d+\.0", category):
        category = category[:-2]
    cells = [row.get(key) for key in box]
    if len(cells) == 1:
        value = cells[0]
        cells = value if isinstance(value, list) else list(_NUMBER.findall(str(value or "")))
        if not cells:
            cells = [value]
    texts = [str("" if cell is None else cell).strip() for cell in cells]
    if all(text.lower() in ("", "[]", *MISSING_WORDS) or says_nothing(text) for text in texts):
        return BoxRow(where, category, None)
    try:
        x, y, w, h = (float(re.sub(r"^([-+]?\d+),(\d+)$", r"\1.\2", text)) for text in texts)
    except ValueError:
        return BoxRow(where, category, None, f"its box is not four numbers ({', '.join(texts)[:40]})")
    return BoxRow(where, category, (x, y, w, h))


def whole_of(value: Any) -> object:
    """Return a cell as a whole number, or its beginning where it is none."""
    try:
        return int(float(value or 0))
    except (TypeError, ValueError, OverflowError):
        return str(value)[:40]


def box_of(form: BoxForm, numbers: Four) -> Box:
    """Return four numbers as x1, y1, x2, y2."""
    x, y, w, h = numbers
    if form == "corners":
        return numbers
    return (x, y, x + w, y + h) if form == "size" else (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def in_pixels(numbers: Four, size: tuple[int, int]) -> Four:
    """Return four shares of an image of (width, height) in its pixels."""
    x, y, w, h = numbers
    return x * size[0], y * size[1], w * size[0], h * size[1]


def is_image(numbers: Four, size: tuple[int, int]) -> bool:
    """Return whether the last two of four numbers are the width and height of the image."""
    return numbers[2:] == (size[0], size[1])


def fits(form: str, numbers: Four, size: tuple[int, int]) -> bool:
    """Return whether four numbers are a box in its image, when they are read so."""
    x1, y1, x2, y2 = box_of(cast(BoxForm, form), numbers)
    inside = min(x1, y1) >= -_ROUNDING and x2 <= size[0] + _ROUNDING and y2 <= size[1] + _ROUNDING
    return inside and x2 > x1 and y2 > y1
