"""Questions with the expected and the given answer, drawn over their image."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from markupsafe import Markup, escape
from PIL import Image

from vitp.data.records import COORDINATE_RANGE, IMAGE_MARK
from vitp.data.synthesis.answers import grid_rows, parse_boxes, parse_quads
from vitp.errors import DataError
from vitp.evaluation.report.pictures import Picture, data_address, open_picture
from vitp.evaluation.report.svg import element, text_width

CLASS_COLOURS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#ff9f43",
    "#8d6e63",
    "#b7b7b7",
    "#2ec4b6",
    "#7e57c2",
    "#e6e6e6",
)
"""Fills of grid cells by class, on pictures of any brightness (after Tol's bright scheme)."""

_DRAWN_WIDTH = 400.0
# Regions in questions stand without a name, so the parsers of answers leave them out.
_ASKED_BOX = re.compile(r"<box>\s*\[*\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]*\s*</box>")
_PLACES = re.compile(r"(?:<ref>([^<>]*)</ref>)?\s*<(box|quad)>([^<>]*)</\2>")


@dataclass(frozen=True)
class Sample:
    """One question to the model.

    Attributes:
        image: What it was asked about.
        question, expected, answer: Texts; boxes are in their text form and are drawn.
        task: Kind of the question, such as "grounding".
        score: 0..1, or None when it was not scored.
    """

    image: Picture
    question: str
    expected: str
    answer: str
    task: str = ""
    score: float | None = None


@dataclass(frozen=True)
class Shape:
    """An outline on 0..1000 of the whole image, x1, y1, x2, y2, …"""

    label: str
    corners: tuple[float, ...]


def shapes_in(text: str) -> list[Shape]:
    """Return the boxes and oriented boxes of an answer; broken ones are left out."""
    boxes = [
        Shape(label, (a, b, c, b, c, d, a, d))
        for label, (a, b, c, d) in parse_boxes(text, limit=COORDINATE_RANGE)
    ]
    return boxes + [Shape(label, quad) for label, quad in parse_quads(text, limit=COORDINATE_RANGE)]


def asked_shapes(question: str) -> list[Shape]:
    """Return the regions that a question is about."""
    found = [tuple(int(v) for v in match) for match in _ASKED_BOX.findall(question)]
    return [
        Shape("", (a, b, c, b, c, d, a, d))
        for a, b, c, d in found
        if a < c <= COORDINATE_RANGE and b < d <= COORDINATE_RANGE
    ]


def grid_of(text: str) -> list[list[str]]:
    """Return the names of a grid answer by row, or an empty list when the text is none.

    A grid has at least two rows and columns and as many names in each row.
    """
    rows = grid_rows(text)
    square = len(rows) >= 2 and len(rows[0]) >= 2 and all(len(row) == len(rows[0]) for row in rows)
    # `2,3; 2,4` and sentences with a semicolon have the same signs.
    words = all(re.fullmatch(r"[^\W\d][\w-]*", name) for row in rows for name in row)
    return rows if square and words else []


def draw_shapes(
    size: tuple[int, int],
    *,
    expected: Sequence[Shape] = (),
    answered: Sequence[Shape] = (),
    asked: Sequence[Shape] = (),
) -> Markup:
    """Return an SVG that lies over an image of `size`: expected shapes dashed, answered solid, asked dotted."""
    width, height = _DRAWN_WIDTH, _DRAWN_WIDTH * size[1] / size[0]
    parts: list[str] = []
    # Dashes last: where both agree, the dashed line shows on top of the solid one.
    for style, shapes in (("asked", asked), ("answered", answered), ("expected", expected)):
        for shape in shapes:
            points = [
                (x / COORDINATE_RANGE * width, y / COORDINATE_RANGE * height)
                for x, y in zip(shape.corners[::2], shape.corners[1::2], strict=True)
            ]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(element("polygon", class_=f"halo {style}", points=path))
            parts.append(element("polygon", class_=f"shape {style}", points=path))
    parts += _labels(answered or expected, "answered" if answered else "expected", width, height)
    return _overlay(parts, width, height)


def _labels(shapes: Sequence[Shape], style: str, width: float, height: float) -> list[str]:
    parts = []
    for shape in shapes[:12]:
        if not shape.label:
            continue
        x = min(shape.corners[::2]) / COORDINATE_RANGE * width
        y = min(shape.corners[1::2]) / COORDINATE_RANGE * height
        wide = text_width(shape.label, 13) + 10
        x = min(x, max(width - wide, 0.0))
        top = y - 19 if y >= 19 else y
        parts.append(element("rect", class_=f"tag {style}", x=x, y=top, width=wide, height=18, rx=3))
        parts.append(element("text", class_="tag", x=x + 5, y=top + 13.5, text=shape.label))
    return parts


def draw_grid(
    names: Sequence[Sequence[str]],
    size: tuple[int, int],
    colours: dict[str, str],
    *,
    truth: Sequence[Sequence[str]] = (),
) -> Markup:
    """Return an SVG of coloured cells over an image of `size`; cells that differ from `truth` are crossed."""
    width, height = _DRAWN_WIDTH, _DRAWN_WIDTH * size[1] / size[0]
    parts = []
    for r, row in enumerate(names):
        for c, name in enumerate(row):
            x, y = width * c / len(row), height * r / len(names)
            w, h = width / len(row), height / len(names)
            cell = element("title", text=name)
            parts.append(
                element(
                    "rect", cell, class_="cell", x=x, y=y, width=w, height=h, fill=colours.get(name, "#000")
                )
            )
            if truth and _at(truth, r, c) != name:
                a, b, d = x + w / 2, y + h / 2, min(w, h) * 0.16
                cross = f"M{a - d:.1f} {b - d:.1f}l{2 * d:.1f} {2 * d:.1f}m0 {-2 * d:.1f}l{-2 * d:.1f} {2 * d:.1f}"
                parts.append(element("path", class_="miss", d=cross))
    return _overlay(parts, width, height)


def _at(rows: Sequence[Sequence[str]], r: int, c: int) -> str | None:
    return rows[r][c] if r < len(rows) and c < len(rows[r]) else None


def _overlay(parts: Iterable[str], width: float, height: float) -> Markup:
    svg = element(
        "svg", *parts, class_="overlay", viewBox=f"0 0 {width:.0f} {height:.1f}", aria_hidden="true"
    )
    return Markup(svg)


def readable(text: str) -> Markup:
    """Return a question or answer as HTML: image marks left out, boxes as short chips with their numbers behind."""
    text = text.replace(IMAGE_MARK, "").strip()
    parts, end = [], 0
    for match in _PLACES.finditer(text):
        count = max(1, match[3].count("[") - (1 if match[3].lstrip().startswith("[[") else 0))
        what = f"{count} {'box' if match[2] == 'box' else 'oriented box'}{'es' if count > 1 else ''}"
        shown = f"{match[1].strip()} · {what}" if match[1] else what
        parts.append(escape(text[end : match.start()]))
        parts.append(Markup('<span class="place" title="{}">{}</span>').format(match[3].strip(), shown))
        end = match.end()
    parts.append(escape(text[end:]))
    return Markup("").join(parts)


@dataclass(frozen=True)
class Samples:
    """Samples as cards, to be filtered by task.

    Attributes:
        samples: The samples.
        title: Above them.
        note: Small text below.
        base: Relative paths of images that don't exist as they are, are looked for here.
    """

    kind: ClassVar[str] = "samples"
    samples: Sequence[Sample]
    title: str = ""
    note: str = ""
    base: Path | None = None

    @property
    def tasks(self) -> list[str]:
        """The tasks, in order of appearance."""
        return list(dict.fromkeys(sample.task for sample in self.samples if sample.task))

    @cached_property
    def colours(self) -> dict[str, str]:
        """Class name → colour of its grid cells."""
        names = dict.fromkeys(
            name
            for sample in self.samples
            if grid_of(sample.expected)
            for text in (sample.expected, sample.answer)
            for row in grid_of(text)
            for name in row
        )
        return {name: CLASS_COLOURS[place % len(CLASS_COLOURS)] for place, name in enumerate(names)}

    @cached_property
    def cards(self) -> list[dict[str, Any]]:
        """What each card shows."""
        pictures: dict[str, tuple[str, tuple[int, int]] | str] = {}
        cards = []
        for sample in self.samples:
            key = str(sample.image) if isinstance(sample.image, (str, Path)) else str(id(sample.image))
            if key not in pictures:
                pictures[key] = self._load(sample.image)
            loaded = pictures[key]
            card: dict[str, Any] = {
                "task": sample.task,
                "question": readable(sample.question),
                "expected": readable(sample.expected),
                "answer": readable(sample.answer) if sample.answer.strip() else Markup("<em>no answer</em>"),
                "badge": badge(sample.score),
                "views": [],
                "missing": loaded if isinstance(loaded, str) else "",
                "legend": [],
            }
            if not isinstance(loaded, str):
                card["views"] = self._views(sample, *loaded)
            truth, given = grid_of(sample.expected), grid_of(sample.answer)
            if truth:
                right = sum(
                    _at(given, r, c) == name for r, row in enumerate(truth) for c, name in enumerate(row)
                )
                total = sum(len(row) for row in truth)
                card["expected"] = Markup("{} cells").format(total)
                card["answer"] = (
                    Markup("{} of {} cells right").format(right, total) if given else card["answer"]
                )
                used = dict.fromkeys(name for rows in (truth, given) for row in rows for name in row)
                card["legend"] = [(name, self.colours[name]) for name in used]
            cards.append(card)
        return cards

    def _load(self, image: Picture) -> tuple[str, tuple[int, int]] | str:
        """Return the address and size of a picture, or why it can't be shown."""
        try:
            loaded: Image.Image = open_picture(image, base=self.base)
        except DataError as error:
            return str(error)
        return data_address(loaded), loaded.size

    def _views(self, sample: Sample, address: str, size: tuple[int, int]) -> list[dict[str, Any]]:
        truth, given = grid_of(sample.expected), grid_of(sample.answer)
        if truth:
            views = [
                {"caption": "expected", "address": address, "overlay": draw_grid(truth, size, self.colours)}
            ]
            if given:
                overlay = draw_grid(given, size, self.colours, truth=truth)
                views.append({"caption": "answered", "address": address, "overlay": overlay})
            return views
        overlay = draw_shapes(
            size,
            expected=shapes_in(sample.expected),
            answered=shapes_in(sample.answer),
            asked=asked_shapes(sample.question),
        )
        return [{"caption": "", "address": address, "overlay": overlay}]

    @property
    def has_shapes(self) -> bool:
        """Whether the legend of dashed and solid lines is needed."""
        return any(shapes_in(s.expected) or shapes_in(s.answer) for s in self.samples)


def badge(score: float | None) -> dict[str, str] | None:
    """Return style and text of the badge of a score in 0..1, or None without a score."""
    if score is None:
        return None
    if score >= 0.999:
        return {"style": "good", "text": "✓ right"}
    if score <= 0.001:
        return {"style": "bad", "text": "✗ wrong"}
    return {"style": "part", "text": f"{score * 100:.0f} % right"}
