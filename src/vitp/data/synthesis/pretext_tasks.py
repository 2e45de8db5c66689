"""Questions that an image alone answers: how a copy was turned, where a crop lies, which patch is blank, which colour
covers most of it. Nothing has to be labelled.

Answers follow from the pixels, with a margin: what is nearly the same either way (a symmetric image, halves of equal
texture, a crop that fits in two places) isn't asked. Pixels that hold nothing (nodata, transparent ones) count for
nothing: their black is no colour, and where they begin is no texture. Questions about a changed copy show the image
first and the copy, an address of a view of the same file (`vitp.io.parts`), as the second; each is a record of its own.

Shapes: C channels, H × W pixels.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from scipy import ndimage

from vitp.data.augment import resize_image, resize_mask
from vitp.data.synthesis import phrases
from vitp.data.synthesis.choosing import one_of, one_weighted, worded
from vitp.data.synthesis.pretext_look import LEAST_HELD, SmallImage, SmallPart, look_at
from vitp.io.parts import FilePart, part_address
from vitp.records.channels import Channels
from vitp.records.instructions import IMAGE_MARK, InstructionRecord, Turn
from vitp.records.labels import LabelledImage

NINTHS_SIDE = 3
"""Rows and columns of the grid in which patches are blank and crops lie."""

_ALIKE = 0.02
"""Mean difference, of values on 0..1, up to which two pictures look the same."""

_FIT = 0.002
"""Mean squared difference by which a crop must fit anywhere else worse than where it lies."""

_LEAD = 0.2
"""Share of the pixels by which a colour must lead."""

_BRIGHTER, _ROUGHER = 0.06, 1.5
"""Difference of mean values, and ratio of mean gradients, from which on two halves differ."""


@dataclass(frozen=True)
class PretextQuestion:
    """A question, its answer, and what is shown beside the image or instead of it.

    Attributes:
        question, answer: Texts.
        views: What is shown as parts of the image; empty: the image itself.
        whole: Whether the whole image is shown in front of the views.
    """

    question: str
    answer: str
    views: tuple[FilePart, ...] = ()
    whole: bool = False


# --- questions about the image itself


_HUES = (
    *((15, "red"), (40, "orange"), (70, "yellow"), (165, "green"), (195, "cyan"), (260, "blue")),
    *((345, "purple"), (361, "red")),
)
"""Degrees of hue below which a colour ends."""


def colour_names(pixels_HWC: np.ndarray) -> np.ndarray:
    """Return the name of each pixel's colour, (H, W), of red, green and blue on 0..1."""
    hue_HW, saturation_HW, value_HW = cv2.split(
        cv2.cvtColor(np.ascontiguousarray(pixels_HWC, np.float32), cv2.COLOR_RGB2HSV)
    )
    ends, names = zip(*_HUES, strict=True)
    found_HW = np.array(names, dtype=object)[np.searchsorted(ends, hue_HW, side="right")]
    found_HW[(found_HW == "orange") & (value_HW < 0.6)] = "brown"
    found_HW[saturation_HW < 0.15] = "grey"
    found_HW[(saturation_HW < 0.15) & (value_HW > 0.8)] = "white"
    found_HW[value_HW < 0.2] = "black"
    return found_HW


def colour(look: SmallImage, rng: np.random.Generator) -> PretextQuestion | None:
    """Ask for the colour that covers most of the image, where it leads clearly."""
    if not look.coloured:
        return None
    shown = colour_names(look.small_HWC)[look.held_HW].astype(str)
    names, counts = np.unique(shown, return_counts=True)
    shares = np.sort(counts / counts.sum())[::-1]
    if shares[0] - (shares[1] if len(shares) > 1 else 0.0) < _LEAD:
        return None
    return PretextQuestion(worded(rng, phrases.COLOUR), str(names[counts.argmax()]))


_SIDES = {1: ("left", "right"), 0: ("upper", "lower")}
"""Axis of an image → its halves."""


def _halves(values_HW: np.ndarray, held_HW: np.ndarray, axis: int) -> tuple[float, float] | None:
    """Return the mean of what holds something in each half; None where that is less than half of one."""
    middle = [values_HW.shape[axis] // 2]
    pairs = zip(*(np.array_split(one_HW, middle, axis=axis) for one_HW in (values_HW, held_HW)), strict=True)
    means = [float(values[held].mean()) for values, held in pairs if held.mean() >= LEAST_HELD]
    return (means[0], means[1]) if len(means) == 2 else None


def brighter_half(look: SmallImage, rng: np.random.Generator) -> PretextQuestion | None:
    """Ask which half is brighter: left or right, or upper or lower."""
    axis = int(rng.integers(2))
    if (halves := _halves(look.grey_HW, look.held_HW, axis)) is None:
        return None
    one, other = halves
    if abs(one - other) < _BRIGHTER:
        return None
    first, second = _SIDES[axis]
    question = worded(rng, phrases.BRIGHTER_HALF, first=first, second=second)
    return PretextQuestion(question, first if one > other else second)


def texture_half(look: SmallImage, rng: np.random.Generator) -> PretextQuestion | None:
    """Ask which half has more texture: the larger mean gradient."""
    axis = int(rng.integers(2))
    # Not where something ends and nothing begins.
    within_HW = ndimage.binary_erosion(look.held_HW, border_value=1)
    if (halves := _halves(gradients(look.grey_HW), within_HW, axis)) is None:
        return None
    one, other = halves
    if max(one, other) < 0.01 or max(one, other) < _ROUGHER * min(one, other):
        return None
    first, second = _SIDES[axis]
    question = worded(rng, phrases.TEXTURE_HALF, first=first, second=second)
    return PretextQuestion(question, first if one > other else second)


def gradients(grey_HW: np.ndarray) -> np.ndarray:
    """Return the size of the gradient at each pixel, (H, W)."""
    down_HW, right_HW = np.gradient(grey_HW.astype(np.float64))
    found_HW: np.ndarray = np.hypot(down_HW, right_HW)
    return found_HW


# --- questions about views of the image


def _unlike(one: SmallPart, other: SmallPart) -> bool:
    """Return whether two parts differ in what both hold; how what holds nothing lies is no difference."""
    a, b = (resize_image(part.values_hwC, (32, 32)) for part in (one, other))
    both_hw = np.logical_and(
        *(resize_mask(part.held_hw.astype(np.uint8), (32, 32)) > 0 for part in (one, other))
    )
    return bool(both_hw.mean() >= LEAST_HELD / 2) and float(np.abs(a - b)[both_hw].mean()) > _ALIKE


def turned_copy(look: SmallImage, rng: np.random.Generator) -> PretextQuestion | None:
    """Ask by how much a copy is turned; not of images that look alike when they are turned."""
    copies = [
        SmallPart(np.rot90(look.small_HWC, -quarters), np.rot90(look.held_HW, -quarters))
        for quarters in range(4)
    ]
    pairs = ((a, b) for number, a in enumerate(copies) for b in copies[:number])
    if not all(_unlike(a, b) for a, b in pairs):
        return None
    degrees = one_of(rng, (90, 180, 270))
    return PretextQuestion(worded(rng, phrases.TURNED), str(degrees), (FilePart(turn=degrees),), True)


def mirrored(look: SmallImage, rng: np.random.Generator) -> PretextQuestion | None:
    """Ask whether a copy is the mirror image; not of symmetric images."""
    if not _unlike(look.whole, SmallPart(look.small_HWC[:, ::-1], look.held_HW[:, ::-1])):
        return None
    mirror = bool(rng.integers(2))
    view = FilePart(mirror=1) if mirror else FilePart()
    return PretextQuestion(worded(rng, phrases.MIRRORED), "yes" if mirror else "no", (view,), True)


def missing_patch(look: SmallImage, rng: np.random.Generator) -> PretextQuestion | None:
    """Ask which cell of the grid is blank.

    Only a cell that shows something is, and no other one may look so or hold nothing.
    """
    edges = [round(1000 * n / NINTHS_SIDE) for n in range(NINTHS_SIDE + 1)]
    cells = {
        (row, column): look.part(
            (edges[column] / 1000, edges[row] / 1000, edges[column + 1] / 1000, edges[row + 1] / 1000)
        )
        for row in range(NINTHS_SIDE)
        for column in range(NINTHS_SIDE)
    }
    shown = [place for place, cell in cells.items() if cell.shows]
    if not shown or any(not cell.is_held or _is_grey(cell) for cell in cells.values()):
        return None
    row, column = one_of(rng, shown)
    hole = FilePart(hole=(edges[column], edges[row], edges[column + 1], edges[row + 1]))
    question = worded(rng, phrases.MISSING_PATCH, n=NINTHS_SIDE)
    return PretextQuestion(question, f"row {row + 1}, column {column + 1}", (hole,))


def _is_grey(cell: SmallPart) -> bool:
    """Return whether a cell looks as a blank one does."""
    return float(np.abs(cell.values_hwC[cell.held_hw] - 128 / 255).mean()) < 2 * _ALIKE


_ROWS, _COLUMNS = ("upper", "middle", "lower"), ("left", "middle", "right")


def place_name(row: int, column: int) -> str:
    """Return what a ninth of an image is called."""
    return "centre" if row == column == 1 else f"{_ROWS[row]} {_COLUMNS[column]}"


def crop_place(look: SmallImage, rng: np.random.Generator) -> PretextQuestion | None:
    """Ask in which ninth of the image a crop lies; it must fit nowhere else."""
    row, column = (int(n) for n in rng.integers(NINTHS_SIDE, size=2))
    x, y = ((n + 0.5) / NINTHS_SIDE + rng.uniform(-0.04, 0.04) for n in (column, row))
    side = 0.32
    x, y = (min(max(v, side / 2), 1 - side / 2) for v in (x, y))
    box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    crop = look.part(box)
    if not crop.shows:
        return None
    whole_HW, crop_hw = (
        np.ascontiguousarray(v.mean(2), np.float32) for v in (look.small_HWC, crop.values_hwC)
    )
    mask_hw = None if crop.held_hw.all() else crop.held_hw.astype(np.float32)
    fit = cv2.matchTemplate(whole_HW, crop_hw, cv2.TM_SQDIFF, mask=mask_hw) / crop.held_hw.sum()
    height, width = look.small_HWC.shape[:2]
    top, left = round(box[1] * height), round(box[0] * width)
    rows, columns = np.ogrid[: fit.shape[0], : fit.shape[1]]
    near = (abs(rows - top) < height / 8) & (abs(columns - left) < width / 8)
    if not near.all() and float(fit[~near].min()) < _FIT:
        return None
    return PretextQuestion(
        worded(rng, phrases.CROP_PLACE), place_name(row, column), (look.window(box),), True
    )


def larger_crop(look: SmallImage, rng: np.random.Generator) -> PretextQuestion | None:
    """Ask which of two crops shows the larger part of an image; one of them lies within the other."""
    side = rng.uniform(0.6, 0.9)
    x, y = rng.uniform(0, 1 - side, 2)
    inner = side * rng.uniform(0.4, 0.6)
    a, b = rng.uniform(0, side - inner, 2)
    outer_box = (x, y, x + side, y + side)
    inner_box = (x + a, y + b, x + a + inner, y + b + inner)
    small, large = look.part(inner_box), look.part(outer_box)
    if not (small.shows and large.is_held and _unlike(small, large)):
        return None
    first_larger = bool(rng.integers(2))
    boxes = (outer_box, inner_box) if first_larger else (inner_box, outer_box)
    views = tuple(look.window(box) for box in boxes)
    return PretextQuestion(worded(rng, phrases.LARGER_CROP), "first" if first_larger else "second", views)


Ask = Callable[[SmallImage, np.random.Generator], PretextQuestion | None]

PLAIN_TASKS: Mapping[str, Ask] = {
    "colour": colour,
    "brighter_half": brighter_half,
    "texture_half": texture_half,
}
VIEW_TASKS: Mapping[str, Ask] = {
    "turned": turned_copy,
    "mirrored": mirrored,
    "missing_patch": missing_patch,
    "crop_place": crop_place,
    "larger_crop": larger_crop,
}
PRETEXT_TASKS = (*PLAIN_TASKS, *VIEW_TASKS)
"""Tasks that need no labels. They are asked of bare images, and of labelled ones where a weight is given."""


@dataclass(frozen=True)
class PretextRecord:
    """A record, and the task of each of its turns."""

    record: InstructionRecord
    tasks: tuple[str, ...]


def pretext_records(
    item: LabelledImage,
    named: LabelledImage,
    channels: Channels | None,
    weights: Mapping[str, float],
    *,
    seed: int,
    most: int,
    **head: Any,
) -> list[PretextRecord]:
    """Return records of questions that the image alone answers: one about itself, and one for each view.

    Args:
        item: The image; what is shown of a pair or series is the first one.
        named: The same, as records name it.
        channels: What is seen of the set's bands.
        weights: Weights of `PRETEXT_TASKS`; those that aren't named have 0.
        seed: Seed, from 0 on.
        most: Questions of an image; a third of them, at least one, are about views.
        **head: Source and licence of the records.
    """
    chosen = {name: weights.get(name, 0.0) for name in PRETEXT_TASKS if weights.get(name, 0.0) > 0}
    look = look_at(item, channels) if chosen else None
    if look is None:
        return []
    rng = np.random.default_rng([seed, zlib.crc32(f"pretext {item.id}".encode(errors="surrogatepass"))])
    views = max(1, most // 3)
    plain = _asked(PLAIN_TASKS, chosen, look, rng, most - views)
    records = []
    if plain:
        turns = [(f"{IMAGE_MARK}\n" if not number else "", q) for number, (_, q) in enumerate(plain)]
        texts = tuple(Turn(mark + q.question, q.answer) for mark, q in turns)
        records.append(_record(f"{item.id}@itself", (named.image,), texts, (look.size,), head))
    found = [PretextRecord(record, tuple(name for name, _ in plain)) for record in records]
    for name, question in _asked(VIEW_TASKS, chosen, look, rng, views):
        parts = [FilePart()] * question.whole + list(question.views)
        images = tuple(part_address(named.image, part) for part in parts)
        sizes = tuple(_size(part, look.size) for part in parts)
        marks = [
            f"{f'Image-{n}: ' if len(images) > 1 else ''}{IMAGE_MARK}\n" for n in range(1, 1 + len(images))
        ]
        turn = Turn("".join(marks) + question.question, question.answer)
        found.append(PretextRecord(_record(f"{item.id}@{name}", images, (turn,), sizes, head), (name,)))
    return found


def _record(
    name: str,
    images: tuple[str, ...],
    turns: tuple[Turn, ...],
    sizes: tuple[tuple[int, int], ...],
    head: Mapping[str, Any],
) -> InstructionRecord:
    return InstructionRecord(id=name, images=images, turns=turns, sizes=sizes, independent=True, **head)


def _size(part: FilePart, size: tuple[int, int]) -> tuple[int, int]:
    if part.window is not None:
        x1, y1, x2, y2 = part.window
        return x2 - x1, y2 - y1
    return size[::-1] if part.turn in (90, 270) else size


def _asked(
    tasks: Mapping[str, Ask],
    weights: Mapping[str, float],
    look: SmallImage,
    rng: np.random.Generator,
    most: int,
) -> list[tuple[str, PretextQuestion]]:
    """Return up to `most` questions of different tasks, chosen by their weights."""
    left = [name for name in tasks if name in weights]
    found: list[tuple[str, PretextQuestion]] = []
    while left and len(found) < most:
        name = one_weighted(rng, left, [weights[name] for name in left])
        left.remove(name)
        if (question := tasks[name](look, rng)) is not None:
            found.append((name, question))
    return found
