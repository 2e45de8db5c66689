"""One record as the page shows it: pictures with shapes over them, questions and answers in parts."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from vitp.core.words import spoken
from vitp.data.synthesis.answers import parse_boxes, parse_geochat, parse_quads
from vitp.io.images import is_scene, load_image
from vitp.records.instructions import COORDINATE_RANGE, IMAGE_MARK, InstructionRecord
from vitp.records.labels import IGNORE, LabelledImage

LARGEST_SIDE = 480
_JPEG_QUALITY = 84
_PALETTE = (
    "#2f7ed8", "#e8743b", "#19a979", "#d6377d", "#8a5ad6", "#c9a227", "#13a4b4", "#c4513f", "#6b8e23",
    "#945c87", "#3f51b5", "#b7791f",
)  # fmt: skip
_PART = re.compile(
    r"(?P<mark><image>)|<ref>(?P<ref>.*?)</ref>|<(?P<tag>box|quad)>(?P<list>.*?)</(?P=tag)>|(?P<geo>\{<.*?\})",
    re.DOTALL,
)


_NEUTRAL = {"background", "none", "other", "unlabelled"}
_GREY = "#98a2b0"


class Colours:
    """Class name → colour, in order of first use, the same for a whole page; grey for what is no class."""

    def __init__(self) -> None:
        self._given: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        """Return the colour of a class."""
        key = spoken(name).replace("-", " ").casefold()
        if key in _NEUTRAL:
            return _GREY
        return self._given.setdefault(key, _PALETTE[len(self._given) % len(_PALETTE)])


@dataclass(frozen=True, slots=True)
class Shape:
    """A polygon over a picture.

    Attributes:
        label: Class name.
        colour: Of its class.
        points: `x,y x,y …` on 0..1000.
        turn: Number of the question or answer it stands in, 0 for a region of the record.
    """

    label: str
    colour: str
    points: str
    turn: int


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of text: kind is `text`, `mark`, `ref`, `numbers` or `grid`.

    Attributes:
        kind: How it is set.
        text: Its text.
        colour: Of the class it names.
        rows: Of a grid: (name, colour) of each cell.
    """

    kind: str
    text: str = ""
    colour: str = ""
    rows: tuple[tuple[tuple[str, str], ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """One image: data addresses of the picture and its mask, size in pixels, shapes."""

    src: str
    width: int
    height: int
    mask: str
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class Card:
    """All that the page shows of a record."""

    id: str
    source: str
    origin: str
    independent: bool
    pictures: tuple[Picture, ...]
    turns: tuple[tuple[tuple[Part, ...], tuple[Part, ...]], ...]
    legend: tuple[tuple[str, str], ...]
    search: str
    facts: tuple[str, ...] = field(default=())


def make_card(
    record: InstructionRecord,
    colours: Colours,
    *,
    labels: LabelledImage | None = None,
    classes: tuple[str, ...] = (),
    facts: tuple[str, ...] = (),
) -> Card:
    """Return a record's card.

    Args:
        record: The record.
        colours: Of the page.
        labels: The labelled image it was made from; gives the masks.
        classes: Names of the values of its semantic mask.
        facts: Short texts for the card's foot.

    Raises:
        DataError: An image can't be read.
    """
    images = [load_image(address) for address in record.images]
    pictures = []
    for number, image in enumerate(images):
        mask, names = _mask_of(labels, number, image.size, classes, colours)
        shapes = _shapes(record, number, image.size, colours)
        scale = min(1.0, LARGEST_SIDE / max(image.size))
        small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        pictures.append((Picture(_jpeg(small), image.width, image.height, mask, shapes), names))
    used = [(shape.label, shape.colour) for picture, _ in pictures for shape in picture.shapes]
    used += [(name, colours(name)) for _, names in pictures for name in names]
    turns = tuple((_parts(t.question, colours), _answer_parts(t.answer, colours)) for t in record.turns)
    used += [cell for _, answer in turns for part in answer for line in part.rows for cell in line]
    legend: dict[str, str] = {}
    for name, colour in used:
        legend.setdefault(spoken(name).replace("-", " "), colour)
    texts = [record.id, record.source, *(f"{t.question} {t.answer}" for t in record.turns), *legend]
    return Card(
        id=record.id,
        source=record.source,
        origin=record.origin.rsplit("/", 1)[-1],
        independent=record.independent,
        pictures=tuple(picture for picture, _ in pictures),
        turns=turns,
        legend=tuple(legend.items()),
        search=" ".join(texts).casefold(),
        facts=facts,
    )


def _shapes(
    record: InstructionRecord, number: int, size: tuple[int, int], colours: Colours
) -> tuple[Shape, ...]:
    shapes = [
        Shape(r.label, colours(r.label), _points(r.quad or _corners(r.box)), 0)
        for r in record.regions
        if r.image == number
    ]
    for turn, pair in enumerate(record.turns, 1):
        for text in (pair.question, pair.answer):
            # Coordinates in text don't say which image they mean: they are drawn on each.
            found = [(label, _corners(box)) for label, box in parse_boxes(text)]
            found += parse_quads(text)
            found += [(label, _turned(box, angle, size)) for label, box, angle in parse_geochat(text)]
            shapes += [Shape(label, colours(label), _points(points), turn) for label, points in found]
    return tuple(shapes)


def _corners(box: tuple[int, int, int, int]) -> tuple[int, ...]:
    x1, y1, x2, y2 = box
    return x1, y1, x2, y1, x2, y2, x1, y2


def _turned(box: tuple[int, int, int, int], angle: int, size: tuple[int, int]) -> tuple[int, ...]:
    """Turn a box around its centre, in pixels: on 0..1000 an oblong image would shear it."""
    sx, sy = size[0] / COORDINATE_RANGE, size[1] / COORDINATE_RANGE
    cx, cy = (box[0] + box[2]) / 2 * sx, (box[1] + box[3]) / 2 * sy
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    corners = _corners(box)
    points: list[int] = []
    for x, y in zip(corners[::2], corners[1::2], strict=True):
        dx, dy = x * sx - cx, y * sy - cy
        points += [round((cx + dx * cos - dy * sin) / sx), round((cy + dx * sin + dy * cos) / sy)]
    return tuple(points)


def _points(values: tuple[int, ...]) -> str:
    return " ".join(f"{x},{y}" for x, y in zip(values[::2], values[1::2], strict=True))


def _parts(text: str, colours: Colours) -> tuple[Part, ...]:
    parts: list[Part] = []
    last = 0
    for match in _PART.finditer(text):
        parts.append(Part("text", text[last : match.start()]))
        last = match.end()
        if match["mark"]:
            parts.append(Part("mark", "image"))
        elif match["ref"] is not None:
            parts.append(Part("ref", match["ref"], colours(match["ref"])))
        else:
            parts.append(Part("numbers", match["geo"] or match["list"]))
    parts.append(Part("text", text[last:]))
    first_mark = text.lstrip().startswith(IMAGE_MARK)
    kept = [part for part in parts if part.text.strip()]
    # Where the marks only open the question, the pictures beside it say as much.
    return tuple(
        part for part in kept if not (part.kind == "mark" and first_mark and text.count(IMAGE_MARK) == 1)
    )


def _answer_parts(text: str, colours: Colours) -> tuple[Part, ...]:
    rows = [row.split() for row in text.strip().rstrip(".").split(";") if row.strip()]
    if len(rows) < 3 or len({len(row) for row in rows}) > 1 or len(rows[0]) < 3 or "," in text:
        return _parts(text, colours)
    cells = tuple(tuple((name.replace("-", " "), colours(name)) for name in row) for row in rows)
    return (Part("grid", text, rows=cells),)


def _mask_of(
    labels: LabelledImage | None,
    number: int,
    size: tuple[int, int],
    classes: tuple[str, ...],
    colours: Colours,
) -> tuple[str, list[str]]:
    """Return the data address of a mask for the `number`-th image, and the classes in it."""
    if labels is None:
        return "", []
    if number == 0 and labels.semantic is not None:
        return _coloured(labels.semantic, classes, colours, size)
    if number == 1 and labels.change is not None:
        change = labels.change
        return _coloured(lambda: change().astype(np.uint8), ("", "changed"), colours, size)
    return "", []


def _coloured(
    read: Callable[[], np.ndarray], classes: tuple[str, ...], colours: Colours, size: tuple[int, int]
) -> tuple[str, list[str]]:
    mask_HW = read()
    rgba_HW4 = np.zeros((*mask_HW.shape, 4), np.uint8)
    names = []
    for value in np.unique(mask_HW).tolist():
        name = classes[value] if value < len(classes) else ""
        if value == IGNORE or not name:
            continue
        names.append(name)
        colour = colours(name)
        rgba_HW4[mask_HW == value] = (*bytes.fromhex(colour[1:]), 255)
    scale = min(1.0, LARGEST_SIDE / max(size))
    small = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    image = Image.fromarray(rgba_HW4).resize(small, Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.quantize(256, method=Image.Quantize.FASTOCTREE).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(), names


def _jpeg(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture_key(address: str) -> str:
    """Return what a record's image and a labelled image are matched by: the path without detours."""
    return address if is_scene(address) else str(Path(address).resolve())
