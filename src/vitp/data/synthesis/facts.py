"""`Facts`: all that is known of one image, computed on demand and once, in the units that answers use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import cv2
import numpy as np

from vitp.data.ignored import rings_of, touched
from vitp.data.nodata import held_by, held_change, held_classes, held_histogram, held_transition, where_held
from vitp.data.synthesis.classes import (
    NEVER_ASKED,
    SetClasses,
    class_states,
    countable,
    is_usable,
)
from vitp.data.synthesis.volume_facts import VolumeIndex
from vitp.records.geometry import Box, as_flat, as_points
from vitp.records.instructions import COORDINATE_RANGE
from vitp.records.labels import BACKGROUND, LabelledImage, ObjectLabel
from vitp.records.regions import rasterise

UNKNOWN = "unknown"
"""Name of a grid cell of which more than half isn't labelled or holds nothing, or that a difficult object or ignored
place touches."""

_OBJECT_CELL_SHARE = 0.25
"""Where only objects are labelled, an object names the cells that it covers to this share."""


@dataclass(frozen=True)
class Limits:
    """Limits of the answers.

    Attributes:
        grid: Cells per row and per column of grid questions.
        max_boxes: Most boxes in one answer.
        coordinate_range: Coordinates in text are integers on 0..this.
        object_share: A grid cell is named after an object class that covers at least this share of it, though
            land covers more. 1: the plain majority; below it small objects show in the grid.
        oriented_style: How oriented boxes are written: four corners, or GeoChat's box and angle.
    """

    grid: int = 6
    max_boxes: int = 8
    coordinate_range: int = COORDINATE_RANGE
    object_share: float = 1.0
    oriented_style: Literal["quad", "geochat"] = "quad"


class Question(NamedTuple):
    """A question and its answer; `about` is what must not be asked twice of one image."""

    question: str
    answer: str
    about: str = ""


@dataclass(frozen=True, slots=True)
class Placed:
    """An object in fractions of its image.

    Attributes:
        label: As it was read.
        x, y: Centre, 0..1.
        share: Share of the image's area, by the box clipped to the image.
        box: The clipped box x1, y1, x2, y2, 0..1.
    """

    label: ObjectLabel
    x: float
    y: float
    share: float
    box: Box

    @property
    def category(self) -> str:
        """Class name."""
        return self.label.category


def place(label: ObjectLabel, width: int, height: int) -> Placed:
    """Return an object, clipped to its image, in fractions of it."""
    x1, x2 = (min(max(v, 0.0), width) / width for v in label.box[::2])
    y1, y2 = (min(max(v, 0.0), height) / height for v in label.box[1::2])
    return Placed(label, (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) * (y2 - y1), (x1, y1, x2, y2))


def scale_box(box: Box, limit: int) -> tuple[int, int, int, int]:
    """Return a box of fractions as integers on 0..limit that spans at least one unit both ways."""
    x1, y1, x2, y2 = (round(v * limit) for v in box)
    if x1 >= x2:
        x1, x2 = (x1, x1 + 1) if x1 < limit else (limit - 1, limit)
    if y1 >= y2:
        y1, y2 = (y1, y1 + 1) if y1 < limit else (limit - 1, limit)
    return x1, y1, x2, y2


def topmost(boxes: Iterable[tuple[int, int, int, int]], limit: int) -> list[tuple[int, int, int, int]] | None:
    """Return the first boxes from the top by their upper edge, `limit` at most.

    None where two share the edge that decides: which of the two is the last one would be a matter of taste.
    """
    found = sorted(boxes, key=lambda b: (b[1], b[0], b[3], b[2]))
    if len(found) > limit and found[limit - 1][1] == found[limit][1]:
        return None
    return found[:limit]


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection over union of two boxes x1, y1, x2, y2."""
    common = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union if union > 0 else 0.0


def match_pairs(overlaps: Iterable[tuple[float, int, int]], least: float) -> list[tuple[int, int]]:
    """Match two lists one to one, best overlap first.

    Args:
        overlaps: Rows of (overlap, place in the first list, place in the second list).
        least: Pairs that overlap less don't match.
    """
    matched: list[tuple[int, int]] = []
    first: set[int] = set()
    second: set[int] = set()
    for share, i, j in sorted(overlaps, reverse=True):
        if share >= least and i not in first and j not in second:
            first.add(i)
            second.add(j)
            matched.append((i, j))
    return matched


def scale_quad(quad: tuple[float, ...], width: int, height: int, limit: int) -> tuple[int, ...]:
    """Return an oriented box in pixels as integers on 0..limit, clockwise from its topmost, leftmost corner."""
    corners = [
        tuple(
            min(max(round(v / side * limit), 0), limit)
            for v, side in zip(quad[i : i + 2], (width, height), strict=True)
        )
        for i in range(0, 8, 2)
    ]
    area = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(corners, corners[1:] + corners[:1], strict=True))
    if area < 0:  # y points down, so a positive area is clockwise to the eye
        corners.reverse()
    first = min(range(4), key=lambda i: (corners[i][1], corners[i][0]))
    return tuple(v for corner in corners[first:] + corners[:first] for v in corner)


def inner_point(there_HW: np.ndarray, rng: np.random.Generator, limit: int) -> tuple[int, int] | None:
    """Return x and y on 0..limit of a random pixel of a mask whose 3×3 neighbours belong to it, too, or None."""
    places = np.flatnonzero(there_HW.ravel())
    height, width = there_HW.shape
    for place in places[rng.integers(len(places), size=8)] if len(places) else ():
        row, column = divmod(int(place), width)
        x, y = round((column + 0.5) / width * limit), round((row + 0.5) / height * limit)
        # A coordinate stands for several pixels of a large image: look where the text really points.
        row, column = min(y * height // limit, height - 1), min(x * width // limit, width - 1)
        if there_HW[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].all():
            return x, y
    return None


@lru_cache(maxsize=64)
def _cell_index(height: int, width: int, n: int) -> np.ndarray:
    rows, columns = np.arange(height) * n // height, np.arange(width) * n // width
    return (rows[:, None] * n + columns[None, :]).astype(np.int64) * 256


def cell_histogram(mask_HW: np.ndarray, n: int) -> np.ndarray:
    """Return the number of pixels of each value of a mask in each cell of an n×n grid, shape (n·n, 256)."""
    index = _cell_index(*mask_HW.shape, n) + mask_HW
    return np.bincount(index.ravel(), minlength=n * n * 256).reshape(n * n, 256)


class Facts:
    """All that is known of one image; masks are read at most once.

    Args:
        item: The image's labels.
        classes: Classes of its set.
        limits: Limits of the answers.
        volumes: The other slices of its volume, where it is a slice.
        shown: The slices that are seen, the image among them; None: only the image.
    """

    def __init__(
        self,
        item: LabelledImage,
        classes: SetClasses,
        limits: Limits,
        volumes: VolumeIndex | None = None,
        shown: tuple[LabelledImage, ...] | None = None,
    ) -> None:
        self.item, self.classes, self.limits, self.volumes = item, classes, limits, volumes
        self.shown = shown or (item,)
        # Presence questions so far: (class, there or not). The next ones keep yes and no in balance.
        self.yes_no_asked: list[tuple[str, bool]] = []
        # Captions that were answers so far, with the wordings that asked for them.
        self.captions_asked: dict[str, str] = {}

    @cached_property
    def held(self) -> np.ndarray | None:
        """Where the image, both dates of a pair, holds something, (H, W) bool; None: everywhere."""
        return held_by(self.item, self.classes.channels)

    @property
    def holds_nothing(self) -> bool:
        """Whether there is nothing to see in the image, or in what both dates of a pair have in common."""
        return self.held is not None and not self.held.any()

    @cached_property
    def mask(self) -> np.ndarray | None:
        """The semantic mask (H, W) uint8, 255 where a place is ignored or the image holds nothing, or None."""
        return None if self.item.semantic is None else held_classes(self.item, self.held)

    @cached_property
    def histogram(self) -> np.ndarray | None:
        """Pixels of each value of the mask, shape (256,), of those where the image holds something."""
        return None if self.mask is None else held_histogram(self.mask, self.held)

    @cached_property
    def change(self) -> np.ndarray | None:
        """The change mask (H, W) bool, false where a date holds nothing, or None; None, too, where nothing is held."""
        if self.item.change is None or self.holds_nothing:
            return None
        changed_HW: np.ndarray = held_change(self.item, self.held) == 1
        return changed_HW

    def change_counts(self, n: int) -> np.ndarray:
        """Return each cell's unchanged and changed pixels on an n×n grid, (n·n, 2), of those that both dates hold."""
        assert self.change is not None
        return cell_histogram(where_held(self.change.astype(np.uint8), self.held), n)[:, :2]

    @cached_property
    def transition(self) -> np.ndarray | None:
        """The classes at both dates (2, H, W) uint8, 255 where they aren't known or a date holds nothing, or None."""
        return None if self.item.transition is None else held_transition(self.item, self.held)

    @cached_property
    def objects(self) -> tuple[Placed, ...]:
        """The objects that have an area inside the image, difficult ones included."""
        return self._placed(self.item.objects or ())

    @cached_property
    def by_class(self) -> dict[str, list[Placed]]:
        """Class → its objects, for classes all of whose objects are known and clear: those that can be counted."""
        found: dict[str, list[Placed]] = {name: [] for name in countable(self.item)}
        for placed in self.objects:
            if placed.category in found:
                found[placed.category].append(placed)
        return found

    @cached_property
    def ignored(self) -> tuple[Placed, ...]:
        """The places of which nothing is known, so far as they lie in the image."""
        return self._placed(self.item.ignored)

    def _placed(self, labels: tuple[ObjectLabel, ...]) -> tuple[Placed, ...]:
        width, height = self.item.width, self.item.height
        return tuple(place(o, width, height) for o in labels if is_usable(o.box, width, height))

    @cached_property
    def states(self) -> dict[str, bool | None]:
        """Class → present, absent or not to be told."""
        return class_states(self.item, self.classes, self.histogram)

    @cached_property
    def present(self) -> list[str]:
        """Classes that are in the image."""
        return [name for name, state in self.states.items() if state]

    @cached_property
    def absent(self) -> list[str]:
        """Classes that are certainly not in the image."""
        return [name for name, state in self.states.items() if state is False]

    @cached_property
    def absent_objects(self) -> list[str]:
        """Object classes that are certainly not in the image."""
        return [name for name in self.classes.object_classes if self.states.get(name) is False]

    @cached_property
    def object_names(self) -> frozenset[str]:
        """The set's object classes."""
        return frozenset(self.classes.object_classes)

    @cached_property
    def shares(self) -> dict[str, float]:
        """Semantic class → share of the labelled pixels, 0..1; empty without mask or without labelled pixels."""
        names = self.classes.semantic_classes
        if self.histogram is None or not (total := int(self.histogram[: len(names)].sum())):
            return {}
        return {name: int(self.histogram[i]) / total for i, name in enumerate(names)}

    @cached_property
    def grid(self) -> list[list[str]]:
        """Class name of each cell by row and column; empty where it can't be told for most of the cells."""
        if self.mask is not None:
            flat = self._mask_cells()
        elif self.item.objects is not None:
            flat = self._object_cells[0]
        else:
            return []
        n = self.limits.grid
        if not flat or sum(name == UNKNOWN for name in flat) > n * n // 4:
            return []
        return [flat[row * n : row * n + n] for row in range(n)]

    def _mask_cells(self) -> list[str]:
        assert self.mask is not None
        n, names = self.limits.grid, self.classes.semantic_classes
        if min(self.mask.shape) < n or not names:
            return []
        histogram = cell_histogram(self.mask, n)
        known, total = histogram[:, : len(names)], histogram.sum(1)
        best = known.argmax(1)
        objects = [i for i, name in enumerate(names) if name in self.object_names]
        if objects and self.limits.object_share < 1:
            winner = known[:, objects].argmax(1)
            covers = known[:, objects].max(1) >= np.maximum(self.limits.object_share * total, 1)
            best = np.where(covers, np.asarray(objects)[winner], best)
        unknown = 2 * known.sum(1) < total
        return [UNKNOWN if u else names[int(b)] for u, b in zip(unknown, best, strict=True)]

    @cached_property
    def listable(self) -> frozenset[str]:
        """The classes whose cells in the grid are all known, so that they can be listed in full."""
        if self.item.ignored:
            return frozenset()
        if self.mask is None:
            return frozenset(self.by_class) - self._object_cells[1]
        open_cells = any(UNKNOWN in row for row in self.grid)
        return frozenset() if open_cells else frozenset(self.classes.semantic_classes) - {BACKGROUND}

    @cached_property
    def _object_cells(self) -> tuple[list[str], frozenset[str]]:
        """The class of each cell by clear objects, and the classes that can't be told in some cell."""
        cells = self._clear_cells()
        if self.held is not None:
            # Where an image holds nothing no object was looked for; a cell of an object stays that.
            counts = cell_histogram(self.held.astype(np.uint8), self.limits.grid)[:, :2]
            empty = counts[:, 0] > counts[:, 1]
            cells = [
                UNKNOWN if gone and name == BACKGROUND else name
                for name, gone in zip(cells, empty, strict=True)
            ]
        unclear = [placed.label for placed in self.objects if placed.label.difficult]
        unclear += [placed.label for placed in self.ignored]
        if not unclear:
            return cells, frozenset()
        n, fine = self.limits.grid, 16
        hidden_HW = touched(unclear, (self.item.height, self.item.width), (n * fine, n * fine))
        hidden = cell_histogram(hidden_HW.astype(np.uint8), n)[:, 1] > 0
        lost = {name for name, hide in zip(cells, hidden, strict=True) if hide} - {BACKGROUND, UNKNOWN}
        return [UNKNOWN if hide else name for name, hide in zip(cells, hidden, strict=True)], frozenset(lost)

    def _clear_cells(self) -> list[str]:
        n, fine = self.limits.grid, 16
        clear = [placed for placed in self.objects if not placed.label.difficult]
        names = list(dict.fromkeys(p.category for p in clear))[:254]
        canvas = np.full((n * fine, n * fine), 255, np.uint8)
        width, height = self.item.width, self.item.height
        ordered = sorted(clear, key=lambda p: -p.share)
        for placed in ordered:
            # The smaller object lies on top: it would vanish otherwise.
            if placed.category in names:
                scale = n * fine / width, n * fine / height
                canvas[_covered(placed.label, scale, n * fine)] = names.index(placed.category)
        histogram = cell_histogram(canvas, n)[:, : len(names)] if names else np.zeros((n * n, 1), int)
        enough = histogram.max(1) >= _OBJECT_CELL_SHARE * fine * fine
        cells = [
            names[int(best)] if ok else BACKGROUND
            for ok, best in zip(enough, histogram.argmax(1), strict=True)
        ]
        # An object too small to fill a quarter of any cell still has its centre in one.
        for placed in ordered:
            cell = min(int(placed.y * n), n - 1) * n + min(int(placed.x * n), n - 1)
            x1, y1, x2, y2 = placed.label.box
            if placed.label.holes and min((x2 - x1) * n / width, (y2 - y1) * n / height) > 1:
                continue  # the centre of a large ring lies in its hole
            if cells[cell] == BACKGROUND and placed.category in names:
                cells[cell] = placed.category
        return cells

    @property
    def askable_cells(self) -> list[tuple[int, int, str]]:
        """Row and column from 1, and class, of the cells that a question can be about."""
        return [
            (row, column, name)
            for row, names in enumerate(self.grid, 1)
            for column, name in enumerate(names, 1)
            if name != UNKNOWN and (name == BACKGROUND or name.casefold() not in NEVER_ASKED)
        ]

    def text_box(self, placed: Placed) -> tuple[int, int, int, int]:
        """Return an object's box as it stands in answers."""
        return scale_box(placed.box, self.limits.coordinate_range)


def _covered(label: ObjectLabel, scale: tuple[float, float], side: int) -> np.ndarray:
    """Return which of (side, side) cells an object covers or touches; its holes are left out.

    Args:
        label: The object.
        scale: Cells a pixel, across and down.
        side: Cells.
    """
    rings = [as_points(ring) * scale for ring in rings_of(label)]
    covered = np.zeros((side, side), np.uint8)
    for ring in rings:
        # One by one: of two rings at once OpenCV would leave out what they share.
        cv2.fillPoly(covered, [np.round(ring * 16).astype(np.int32) - 8], 1, shift=4)
    if label.holes:
        holes = [as_flat(as_points(hole) * scale) for hole in label.holes]
        inside = rasterise([as_flat(ring) for ring in rings], covered.shape, holes)
        covered[(rasterise(holes, covered.shape) > 0) & (inside == 0)] = 0
    return covered > 0
