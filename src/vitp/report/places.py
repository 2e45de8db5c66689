"""Questions and answers taken apart for a page: places to draw over the picture, classes to colour, and words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vitp.core.words import spoken
from vitp.data.synthesis.answers import grid_rows, parse_boxes, parse_geochat, parse_quads
from vitp.io.colours import CLASS_COLOURS
from vitp.records.instructions import COORDINATE_RANGE

_NEUTRAL = {"background", "none", "other", "unlabelled"}
_GREY = "#98a2b0"
_PART = re.compile(
    r"(?P<mark><image>)|<ref>(?P<ref>.*?)</ref>|<(?P<tag>box|quad)>(?P<list>.*?)</(?P=tag)>|(?P<geo>(?:\{<[^{}]*\})+)",
    re.DOTALL,
)
# Regions in questions stand without a name, so the parsers of answers leave them out.
_ASKED_BOX = re.compile(r"<box>\s*\[*\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]*\s*</box>")


class Colours:
    """Class name → colour, in order of first use, the same for a whole page; grey for what is no class."""

    def __init__(self) -> None:
        self._given: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        """Return the colour of a class."""
        key = class_words(name).casefold()
        if key in _NEUTRAL:
            return _GREY
        return self._given.setdefault(key, CLASS_COLOURS[len(self._given) % len(CLASS_COLOURS)])


def class_words(name: str) -> str:
    """Return the name of a class as it is read, hyphens of grids gone."""
    return spoken(name).replace("-", " ")


@dataclass(frozen=True, slots=True)
class PlaceOutline:
    """A polygon over a picture.

    Attributes:
        label: Class name.
        corners: x1, y1, x2, y2, … on 0..1000 of the whole image.
        turn: Number of the question that names it, or whose answer does; 0 for a region of the record.
    """

    label: str
    corners: tuple[int, ...]
    turn: int = 0

    @property
    def points(self) -> str:
        """The corners as SVG wants them."""
        return " ".join(f"{x},{y}" for x, y in zip(self.corners[::2], self.corners[1::2], strict=True))


def box_corners(box: Sequence[int]) -> tuple[int, ...]:
    """Return the corners of the box x1, y1, x2, y2, clockwise."""
    x1, y1, x2, y2 = box
    return x1, y1, x2, y1, x2, y2, x1, y2


def outlines_in(text: str, size: tuple[int, int], turn: int = 0) -> list[PlaceOutline]:
    """Return the named boxes and oriented boxes of a text; broken ones are left out.

    Args:
        text: A question or an answer.
        size: Width and height of the image in pixels, which GeoChat's angles are meant in.
        turn: Number of the question.
    """
    found = [(label, box_corners(box)) for label, box in parse_boxes(text, limit=COORDINATE_RANGE)]
    found += parse_quads(text, limit=COORDINATE_RANGE)
    found += [(label, _turned(box, angle, size)) for label, box, angle in parse_geochat(text)]
    return [PlaceOutline(label, corners, turn) for label, corners in found]


def asked_outlines(question: str) -> list[PlaceOutline]:
    """Return the regions without a name that a question is about."""
    boxes = [[int(value) for value in match] for match in _ASKED_BOX.findall(question)]
    return [
        PlaceOutline("", box_corners(box))
        for box in boxes
        if box[0] < box[2] <= COORDINATE_RANGE and box[1] < box[3] <= COORDINATE_RANGE
    ]


def _turned(box: tuple[int, int, int, int], angle: int, size: tuple[int, int]) -> tuple[int, ...]:
    """Turn a box around its centre, in pixels: on 0..1000 an oblong image would shear it."""
    sx, sy = size[0] / COORDINATE_RANGE, size[1] / COORDINATE_RANGE
    cx, cy = (box[0] + box[2]) / 2 * sx, (box[1] + box[3]) / 2 * sy
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    corners = box_corners(box)
    points: list[int] = []
    for x, y in zip(corners[::2], corners[1::2], strict=True):
        dx, dy = x * sx - cx, y * sy - cy
        points += [round((cx + dx * cos - dy * sin) / sx), round((cy + dx * sin + dy * cos) / sy)]
    return tuple(points)


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of a question or an answer.

    Attributes:
        kind: "text", "mark" (where an image goes in), "class", "places" or "grid".
        text: As it stands.
        words: For places: how many there are, in words.
        rows: For a grid: the names in its cells, row by row.
    """

    kind: str
    text: str
    words: str = ""
    rows: Sequence[Sequence[str]] = ()


def text_parts(text: str) -> list[TextPart]:
    """Return a question or an answer in parts; a grid is one part."""
    grid = grid_answer(text)
    if len(grid) > 2:
        return [TextPart("grid", text, rows=grid)]
    parts: list[TextPart] = []
    last = 0
    for match in _PART.finditer(text):
        parts.append(TextPart("text", text[last : match.start()]))
        last = match.end()
        if match["mark"]:
            parts.append(TextPart("mark", "image"))
        elif match["ref"] is not None:
            parts.append(TextPart("class", match["ref"].strip()))
        else:
            named = parts[-2:-1] and parts[-2].kind == "class" and not parts[-1].text.strip()
            parts.append(
                TextPart("places", (match["geo"] or match["list"]).strip(), _counted(match, bool(named)))
            )
    parts.append(TextPart("text", text[last:]))
    return [part for part in parts if part.text.strip()]


def _counted(match: re.Match[str], named: bool) -> str:
    """Return in words how many places a text gives."""
    listed = match["list"] or ""
    # In a list of places the outer bracket is none of them.
    count = (
        match["geo"].count("{")
        if match["geo"]
        else max(1, listed.count("[") - listed.lstrip().startswith("[["))
    )
    if not named:
        return "the marked place" if count == 1 else f"the {count} marked places"
    return f"{count} {'box' if match['tag'] == 'box' else 'oriented box'}{'es' if count > 1 else ''}"


def grid_answer(text: str) -> list[list[str]]:
    """Return the names of a grid answer by row, or an empty list when the text is none.

    A grid has at least two rows and columns and as many names in each row.
    """
    rows = grid_rows(text)
    square = len(rows) >= 2 and len(rows[0]) >= 2 and all(len(row) == len(rows[0]) for row in rows)
    # `2,3; 2,4` and sentences with a semicolon have the same signs.
    words = all(re.fullmatch(r"[^\W\d][\w-]*", name) for row in rows for name in row)
    return rows if square and words else []
