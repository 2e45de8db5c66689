"""The labels of one image while they are read: what is an object, what is ignored, what is lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vitp.data.formats.tally import Tally
from vitp.records.geometry import area, as_flat, as_points, bounds, clockwise, is_convex, min_area_quad
from vitp.records.labels import ObjectLabel

ROUNDING_PIXELS = 1.0
"""A box that overshoots the image by no more than this was rounded, which is not worth a finding."""

Fate = Literal["used", "lost", "flat", "outside"]


@dataclass(frozen=True)
class Shape:
    """Where a label lies, as its file says it, in pixels.

    Attributes:
        box: x1, y1, x2, y2; follows from the corners or the outline where it is None.
        quad: Four corners of an oriented box, in order; they may lie outside the image.
        polygons: Rings of the outline.
        holes: Rings that are cut out of it.
    """

    box: Sequence[float] | None = None
    quad: Sequence[float] | None = None
    polygons: Sequence[Sequence[float]] = ()
    holes: Sequence[Sequence[float]] = ()


@dataclass
class ImageLabels:
    """Collects the labels of one image.

    A label that can't be used never becomes "there is nothing": where its place is known, the place is ignored;
    where it isn't, the image has no object labels at all. The same holds when more labels lie outside the image than
    in it. A single label outside the image, and one without area, are left out.

    Attributes:
        size: Width and height of the image.
        source: File or folder that the labels stand in, for the tally.
        note: Takes findings: where, text.
        tally: Counts the labels of the set.
        point_size: Side in pixels of the box that a label without width and height gets around its centre; None:
            such a label has no area.
        objects: The objects.
        ignored: Places that are neither object nor background.
        lost: Labels whose place isn't known.
        outside: Labels that lie outside the image.
    """

    size: tuple[int, int]
    source: str
    note: Callable[[str, str], None]
    tally: Tally
    point_size: float | None = None
    objects: list[ObjectLabel] = field(default_factory=list)
    ignored: list[ObjectLabel] = field(default_factory=list)
    lost: int = 0
    outside: int = 0
    _seen: set[ObjectLabel] = field(default_factory=set)

    def add(self, where: str, category: str, shape: Shape, *, difficult: bool = False) -> ObjectLabel | None:
        """Add an object; return it, or None with a finding when it can't be used.

        Boxes are clipped to the image. The same label twice counts once.

        Args:
            where: "file:row" for findings.
            category: Class name.
            shape: Where it lies.
            difficult: Hard to see, or a crowd.
        """
        label, fate, text = self._checked(where, category, shape, difficult)
        if label is None:
            self._miss(where, category, category, fate, text)
            return None
        if label in self._seen:
            self.note(where, f"{category} {_numbers(label.box)} stands there twice; counted once")
            return None
        self._seen.add(label)
        self.objects.append(label)
        self.tally.use(self.source, category, label.box)
        return label

    def ignore(self, where: str, why: str, category: str, shape: Shape) -> None:
        """Add a label whose class the set doesn't know: its place is neither object nor background.

        Args:
            where: "file:row" for findings.
            why: What is wrong, as in 'class number 7 is not one of 0–1'.
            category: What the label calls its class.
            shape: Where it lies.
        """
        label, fate, text = self._checked(where, category, shape, False)
        if label is None:
            self._miss(where, "", why, fate, text)
            return
        self.ignored.append(label)
        self.note(where, f"{why}; its place is ignored")
        self.tally.lose(self.source, "", f"{where}: {why}")

    def exclude(self, where: str, category: str, shape: Shape) -> None:
        """Add a label of a class that wasn't asked for: its place is ignored, which is no fault of the label."""
        label, fate, text = self._checked(where, category, shape, False)
        self.tally.excluded[category] += 1
        if label is not None:
            self.ignored.append(label)
            self.note(where, f'class "{category}" was not asked for; its place is ignored')
        elif fate == "lost":
            self.lost += 1
            self.note(where, f'class "{category}" was not asked for, and it {text}; {_UNLABELLED}')

    def lose(self, where: str, why: str, category: str = "") -> None:
        """Count a label without a usable place: the image has no object labels."""
        self.lost += 1
        self.note(where, f"{why}; {_UNLABELLED}")
        self.tally.lose(self.source, category, f"{where}: {why}")

    @property
    def are_known(self) -> bool:
        """Whether the objects are all that there are outside of `ignored`."""
        return not self.lost and self.outside <= len(self.objects)

    def _miss(self, where: str, category: str, what: str, fate: Fate, text: str) -> None:
        if fate == "lost":
            self.lose(where, f"{what} {text}", category)
        elif fate == "flat":
            self.note(where, f"{what} {text}; left out")
            self.tally.drop(self.source, category, f"{where}: {what} {text}")
        else:
            self.outside += 1
            self.note(where, f"{what} {text}; left out")
            self.tally.lose(self.source, category, f"{where}: {what} {text}")

    def _checked(
        self, where: str, category: str, shape: Shape, difficult: bool
    ) -> tuple[ObjectLabel | None, Fate, str]:
        """Return the label, or why there is none."""
        numbers = [*(shape.box or ()), *(shape.quad or ())]
        numbers += [value for ring in (*shape.polygons, *shape.holes) for value in ring]
        if not numbers:
            return None, "lost", "has no place"
        if not all(math.isfinite(value) for value in numbers):
            return None, "lost", "has a coordinate that is not a number"
        quad = shape.quad
        if quad is not None:
            points = as_points(quad)
            if not is_convex(points):
                text = "corners are crossed or bent inwards; replaced by the rectangle around them"
                self.note(where, f"{category}'s {text}")
                points = min_area_quad(points)
            if area(points) <= 0:
                return None, "flat", "has no area"
            quad = as_flat(clockwise(points))
        box = shape.box
        if box is None:
            if quad is None and not any(area(as_points(ring)) > 0 for ring in shape.polygons):
                return None, "flat", "has no area"
            rings = [quad] if quad is not None else shape.polygons
            box = bounds(as_points([value for ring in rings for value in ring]))
        clipped, fate, text = self._clipped(where, category, self._grown(box))
        if clipped is None:
            return None, fate, text
        polygons, holes = (tuple(_floats(ring) for ring in r) for r in (shape.polygons, shape.holes))
        corners = _floats(quad) if quad is not None else None
        return ObjectLabel(category, clipped, corners, polygons, difficult, holes), "used", ""

    def _grown(self, box: Sequence[float]) -> Sequence[float]:
        """Return a small box around the centre of a label without width and height, where that was asked for."""
        x1, y1, x2, y2 = box
        if self.point_size is None or x1 != x2 or y1 != y2:
            return box
        half = self.point_size / 2
        return x1 - half, y1 - half, x2 + half, y2 + half

    def _clipped(
        self, where: str, category: str, box: Sequence[float]
    ) -> tuple[tuple[float, float, float, float] | None, Fate, str]:
        x1, y1, x2, y2 = (float(value) for value in box)
        width, height = self.size
        shown = _numbers((x1, y1, x2, y2))
        if x2 < x1 or y2 < y1:
            return None, "lost", f"ends before it begins {shown}"
        if x2 == x1 or y2 == y1:
            return None, "flat", f"has no area {shown}"
        inside = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
        if inside[2] <= inside[0] or inside[3] <= inside[1]:
            return None, "outside", f"{shown} lies outside the image of {width}×{height}"
        if max(abs(a - b) for a, b in zip(inside, (x1, y1, x2, y2), strict=True)) > ROUNDING_PIXELS:
            self.note(where, f"{category} {shown} reaches outside the image; clipped")
        return inside, "used", ""


_UNLABELLED = "the image counts as unlabelled"


def _floats(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _numbers(box: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"
