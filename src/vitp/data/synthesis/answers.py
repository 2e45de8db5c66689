"""The text form of answers, and back. Parsers read what models write: they never raise.

Forms (integers on 0..1000 of the whole image unless a set was made with another range):

- boxes: `<ref>ship</ref><box>[[x1, y1, x2, y2], …]</box>`
- oriented boxes, default: `<ref>ship</ref><quad>[[x1, y1, x2, y2, x3, y3, x4, y4], …]</quad>`, corners clockwise
- oriented boxes after GeoChat: `<ref>ship</ref>{<x1><y1><x2><y2>|<angle>}…`, see `format_geochat`
- grids: names separated by blanks, rows by `; `; names of several words are hyphenated
- cells: `row,column; row,column; …`, counted from 1
- shares: `35%`, or `less than 5%` for what is above 0 and would round to it
- nothing: `none`
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from vitp.core.words import NUMBER_WORDS, cell_name, spoken

TextBox = tuple[int, int, int, int]
"""x1, y1, x2, y2 as they stand in answers."""

NONE = "none"
"""The answer where there is nothing to give."""

_REF = r"<\s*ref\s*>([^<>]*)<\s*/\s*ref\s*>\s*"
# The closing tag may be missing: an answer that was cut off still counts for its complete boxes.
_BOXES = re.compile(_REF + r"<\s*box\s*>([^<>]*)")
_QUADS = re.compile(_REF + r"<\s*quad\s*>([^<>]*)")
_GEOCHAT = re.compile(_REF + r"((?:\{[^{}]*\}\s*)+)")
_LIST = re.compile(r"\[([^\[\]]*)\]")
_INTEGERS = re.compile(r"\s*\d{1,6}(?:\s*,\s*\d{1,6})*\s*")
_ROTATED = re.compile(r"\{\s*" + r"<\s*(-?\s*\d{1,6})\s*>\s*" * 4 + r"\|\s*<\s*(-?\s*\d{1,3})\s*>\s*\}")
_CELL = re.compile(r"\s*(\d{1,4})\s*,\s*(\d{1,4})\s*")
_COUNT = re.compile(r"(?<![\d.,-])\d{1,9}(?![\d.,]*\d)")
_WORD_VALUES = {word: value for value, word in enumerate(NUMBER_WORDS)}


def _format(tag: str, label: str, rows: Iterable[Sequence[int]]) -> str:
    inner = ", ".join(f"[{', '.join(str(int(v)) for v in row)}]" for row in rows)
    return f"<ref>{spoken(label)}</ref><{tag}>[{inner}]</{tag}>" if inner else NONE


def format_boxes(label: str, boxes: Sequence[Sequence[int]]) -> str:
    """Return the boxes of one class as text, top to bottom, or `none` for an empty list."""
    return _format("box", label, sorted(boxes, key=lambda b: (b[1], b[0], b[3], b[2])))


def format_quads(label: str, quads: Sequence[Sequence[int]]) -> str:
    """Return the oriented boxes of one class as text, by their topmost corner, or `none`."""
    return _format("quad", label, sorted(quads, key=lambda q: (min(q[1::2]), min(q[::2]))))


def format_geochat(label: str, boxes: Sequence[tuple[TextBox, int]]) -> str:
    """Return oriented boxes the way GeoChat writes them, or `none`.

    Args:
        label: Class name.
        boxes: `((x1, y1, x2, y2), angle)`: the box *before* it is turned around its centre (its longer side
            lies along x, so it can reach over the image's border), and the degrees that it is turned by,
            clockwise as seen in the image, -90 < angle ≤ 90.
    """
    if not boxes:
        return NONE
    ordered = sorted(boxes, key=lambda b: (b[0][1] + b[0][3], b[0][0]))
    parts = ("{" + "".join(f"<{int(v)}>" for v in box) + f"|<{int(angle)}>}}" for box, angle in ordered)
    return f"<ref>{spoken(label)}</ref>" + "".join(parts)


def format_grid(names: Sequence[Sequence[str]]) -> str:
    """Return class names by row and column as text: `water water storage-tank; road …`."""
    return "; ".join(" ".join(cell_name(name) for name in row) for row in names)


def format_cells(cells: Iterable[tuple[int, int]]) -> str:
    """Return (row, column) pairs, counted from 1, as `1,2; 3,4`, row by row, or `none`."""
    return "; ".join(f"{row},{column}" for row, column in sorted(set(cells))) or NONE


def is_none(text: str) -> bool:
    """Return whether the text says that there is nothing."""
    return text.strip().rstrip(".").casefold() in (NONE, "nothing", "no")


def _lists(text: str, length: int, limit: int) -> list[tuple[int, ...]]:
    found = []
    for inner in _LIST.findall(text):
        if _INTEGERS.fullmatch(inner):
            values = tuple(int(v) for v in inner.split(","))
            if len(values) == length and max(values) <= limit:
                found.append(values)
    return found


def parse_boxes(text: str, *, limit: int = 1000) -> list[tuple[str, TextBox]]:
    """Return (label, box) for each well-formed box; those that are broken or leave 0..limit are left out."""
    found: list[tuple[str, TextBox]] = []
    for label, inner in _BOXES.findall(text):
        for x1, y1, x2, y2 in _lists(inner, 4, limit):
            if x1 < x2 and y1 < y2:
                found.append((label.strip(), (x1, y1, x2, y2)))
    return found


def parse_quads(text: str, *, limit: int = 1000) -> list[tuple[str, tuple[int, ...]]]:
    """Return (label, eight corner coordinates) for each well-formed oriented box."""
    return [
        (label.strip(), quad) for label, inner in _QUADS.findall(text) for quad in _lists(inner, 8, limit)
    ]


def parse_geochat(text: str) -> list[tuple[str, TextBox, int]]:
    """Return (label, box before it is turned, angle in degrees) for each box in GeoChat's form."""
    found: list[tuple[str, TextBox, int]] = []
    for label, inner in _GEOCHAT.findall(text):
        for match in _ROTATED.findall(inner):
            x1, y1, x2, y2, angle = (int(re.sub(r"\s", "", v)) for v in match)
            if x1 < x2 and y1 < y2 and -90 <= angle <= 90:
                found.append((label.strip(), (x1, y1, x2, y2), angle))
    return found


def grid_rows(text: str) -> list[list[str]]:
    """Return the names of a grid answer by row, however many there are."""
    # A tokenizer that separates signs writes "storage - tank" back; names have no blanks of their own.
    joined = re.sub(r"\s*-\s*", "-", text.strip().rstrip("."))
    return [row.split() for row in joined.split(";") if row.strip()]


def parse_cells(text: str) -> list[tuple[int, int]]:
    """Return the (row, column) pairs of a cell list, counted from 1; broken parts are left out."""
    matches = (_CELL.fullmatch(part) for part in text.strip().rstrip(".").split(";"))
    return [(int(m[1]), int(m[2])) for m in matches if m]


def parse_count(text: str) -> int | None:
    """Return the first whole number of the text, in digits or as a word up to twenty, or None."""
    match = _COUNT.search(text)
    if match:
        return int(match[0])
    words = re.findall(r"[a-z]+", text.casefold())
    return next((_WORD_VALUES[word] for word in words if word in _WORD_VALUES), None)


def format_share(share: float, step: int) -> str:
    """Return a share as a percentage, rounded to a step; one above 0 that would round to it as "less than"."""
    percent = round(share * 100 / step) * step
    return f"less than {step}%" if share > 0 and percent == 0 else f"{percent}%"


def parse_share(text: str) -> tuple[int, bool] | None:
    """Return the percentage of the text, and whether it says "less than" that; None where it has none."""
    percent = parse_count(text)
    if percent is None:
        return None
    return percent, re.search(r"less than|below|under|<", text.casefold()) is not None


def parse_yes_no(text: str) -> bool | None:
    """Return True for an answer that starts with yes, False for no, None otherwise."""
    match = re.match(r"\W*(yes|no)\b", text.casefold())
    return None if match is None else match[1] == "yes"
