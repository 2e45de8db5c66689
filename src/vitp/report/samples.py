"""Questions with the expected and the given answer, drawn over their image."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from markupsafe import Markup, escape

from vitp.core.errors import DataError
from vitp.data.synthesis.answers import grid_rows, parse_boxes, parse_quads
from vitp.io.colours import CLASS_COLOURS
from vitp.records.instructions import COORDINATE_RANGE, IMAGE_MARK
from vitp.report.drawing import Shape, at, draw_grid, draw_shapes, picture_definition
from vitp.report.pictures import Picture, data_address, open_picture

# Regions in questions stand without a name, so the parsers of answers leave them out.
_ASKED_BOX = re.compile(r"<box>\s*\[*\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]*\s*</box>")
_PLACES = re.compile(r"(?:<ref>([^<>]*)</ref>\s*)?<(box|quad)>([^<>]*)</\2>")


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


def readable(text: str) -> Markup:
    """Return a question or answer as HTML: image marks left out, boxes as short chips with their numbers behind."""
    text = text.replace(IMAGE_MARK, "").strip()
    parts, end = [], 0
    for match in _PLACES.finditer(text):
        count = max(1, match[3].count("[") - (1 if match[3].lstrip().startswith("[[") else 0))
        what = f"{count} {'box' if match[2] == 'box' else 'oriented box'}{'es' if count > 1 else ''}"
        if match[1]:
            shown = f"{match[1].strip()} · {what}"
        else:
            shown = "the marked place" if count == 1 else f"the {count} marked places"
        parts.append(escape(text[end : match.start()]))
        parts.append(Markup('<span class="place" title="{}">{}</span>').format(match[3].strip(), shown))
        end = match.end()
    parts.append(escape(text[end:]))
    return Markup("").join(parts)


@dataclass(frozen=True)
class _Loaded:
    name: str
    address: str
    size: tuple[int, int]


def _key(image: Picture) -> str:
    return str(image) if isinstance(image, (str, Path)) else f"object {id(image)}"


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
    def _pictures(self) -> dict[str, _Loaded | str]:
        """Picture by key, or why it can't be shown."""
        found: dict[str, _Loaded | str] = {}
        for sample in self.samples:
            key = _key(sample.image)
            if key not in found:
                found[key] = self._load(sample.image)
        return found

    def _load(self, image: Picture) -> _Loaded | str:
        try:
            loaded = open_picture(image, base=self.base)
        except DataError as error:
            return str(error)
        address = data_address(loaded)
        return _Loaded(
            "p" + hashlib.sha256(address.encode(errors="surrogatepass")).hexdigest()[:16],
            address,
            loaded.size,
        )

    @property
    def definitions(self) -> list[Markup]:
        """The pictures, each once."""
        loaded = {p.name: p for p in self._pictures.values() if isinstance(p, _Loaded)}
        return [picture_definition(p.name, p.address, p.size) for p in loaded.values()]

    @cached_property
    def cards(self) -> list[dict[str, Any]]:
        """What each card shows."""
        return [self._card(sample) for sample in self.samples]

    def _card(self, sample: Sample) -> dict[str, Any]:
        loaded = self._pictures[_key(sample.image)]
        card: dict[str, Any] = {
            "task": sample.task,
            "question": readable(sample.question),
            "expected": readable(sample.expected),
            "answer": readable(sample.answer) if sample.answer.strip() else Markup("<em>no answer</em>"),
            "badge": badge(sample.score),
            "views": [] if isinstance(loaded, str) else self._views(sample, loaded),
            "missing": loaded if isinstance(loaded, str) else "",
            "legend": [],
        }
        truth, given = grid_of(sample.expected), grid_of(sample.answer)
        if truth:
            right = sum(at(given, r, c) == name for r, row in enumerate(truth) for c, name in enumerate(row))
            total = sum(len(row) for row in truth)
            card["expected"] = Markup("{} cells").format(total)
            if given:
                card["answer"] = Markup("{} of {} cells right").format(right, total)
            used = dict.fromkeys(name for rows in (truth, given) for row in rows for name in row)
            card["legend"] = [(name, self.colours[name]) for name in used]
        return card

    def _views(self, sample: Sample, picture: _Loaded) -> list[tuple[str, Markup]]:
        """Return caption and drawing of each view of the picture: grids are shown twice."""
        name, size = picture.name, picture.size
        truth, given = grid_of(sample.expected), grid_of(sample.answer)
        if truth:
            views = [("expected", draw_grid(name, size, truth, self.colours))]
            if given:
                views.append(("answered", draw_grid(name, size, given, self.colours, truth=truth)))
            return views
        drawing = draw_shapes(
            name,
            size,
            expected=shapes_in(sample.expected),
            answered=shapes_in(sample.answer),
            asked=asked_shapes(sample.question),
        )
        return [("", drawing)]

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
    return {"style": "part", "text": f"{score * 100:.0f} %"}
