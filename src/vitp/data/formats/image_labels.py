"""The labels of an image while they are read: objects, ignored places, lost labels; and their counts in a set.

A label that can't be used never becomes "there is nothing", and a set that lost its labels never passes as an
empty one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from vitp.core.errors import DataError
from vitp.data.formats.class_names import is_passed_over
from vitp.data.formats.walk import Note
from vitp.records.geometry import Box, area, as_flat, as_points, bounds, clockwise, is_convex, min_area_quad
from vitp.records.labels import ObjectLabel

_ROUNDING_PIXELS = 1.0
"""A box that overshoots the image by no more than this was rounded, which is not worth a finding."""

FEWEST_FOR_SHARE = 10
"""Labels from which on a set is refused when more than half of them are lost; below, only when all are."""

_SLOPPY = 0.1
"""Share of its sides by which a box that was drawn carelessly around a cut object may reach outside of the image."""

_SAME_EDGE = 2.0
"""Pixels by which the edges of a box and of its outline may differ."""

_SAME_AREA = 0.02
"""Share by which the area that a file states and that of its box may differ."""

_FEWEST_IN_FOLDER = 3
"""Labels from which on a folder of label files is refused when all of its labels are lost."""

_UNLABELLED = "the image counts as unlabelled"
_MEND = "mend them, or say how they are meant with the format's options"

_Key = tuple[str, str]
"""Source and class."""


@dataclass
class Tally:
    """Counts of a set's labels, by the file or folder that they stand in and by class.

    Attributes:
        used: Labels that became objects, by (source, class).
        lost: Labels that can't be used, by (source, class); the class is "" where it isn't known.
        flat: Labels without area, likewise.
        excluded: Labels of classes that weren't asked for, by class.
        unasked: Places where nobody said what is there, by what they are called.
        largest: Largest coordinate of a source's used boxes in pixels.
        doubtful: Boxes of a source that were given as four numbers, those of them that reach outside the image, those
            that reach far outside, and those whose numbers would be two corners in it.
        outlined: Objects of a source with an outline (or an area) and four numbers of a box, and those of them whose
            outline fits these only as two corners.
        first: First line about a label that is lost or has no area, by (source, class).
        mends: What to do about a label, by its line, where more can be said than that it has to be mended.
        folders: Sources that are folders of label files.
        unlabelled: Images that lost a label without a place.
        absent: Labelled images that aren't there.
        first_absent: Line about the first of them.
    """

    used: Counter[_Key] = field(default_factory=Counter)
    lost: Counter[_Key] = field(default_factory=Counter)
    flat: Counter[_Key] = field(default_factory=Counter)
    excluded: Counter[str] = field(default_factory=Counter)
    unasked: Counter[str] = field(default_factory=Counter)
    largest: dict[str, float] = field(default_factory=dict)
    doubtful: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    outlined: dict[str, tuple[int, int]] = field(default_factory=dict)
    first: dict[_Key, str] = field(default_factory=dict)
    mends: dict[str, str] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    unlabelled: int = 0
    absent: int = 0
    first_absent: str = ""

    def lose(self, source: str, category: str, line: str, *, flat: bool = False, mend: str = "") -> None:
        """Count a label that can't be used, or one without area; the line says which and why, `mend` what to do."""
        (self.flat if flat else self.lost)[source, category] += 1
        if mend:
            self.mends.setdefault(line, mend)
        self.first.setdefault((source, category), line)

    def doubt(self, source: str, *, outside: bool, far: bool, corners: bool) -> None:
        """Count a box whose four numbers could be two corners."""
        boxes, beyond, further, fitting = self.doubtful.get(source, (0, 0, 0, 0))
        self.doubtful[source] = boxes + 1, beyond + outside, further + far, fitting + corners

    def compare(self, source: str, shape: LabelShape) -> None:
        """Count whether an outline lies in its box, or only in the one that its numbers would be as two corners."""
        if not shape.polygons or shape.box is None or shape.corners is None:
            return
        outline = bounds(np.concatenate([as_points(ring) for ring in shape.polygons]))
        as_box, as_corners = (
            max(abs(a - b) for a, b in zip(outline, one, strict=True)) for one in (shape.box, shape.corners)
        )
        known, turned = self.outlined.get(source, (0, 0))
        self.outlined[source] = known + 1, turned + (as_corners <= _SAME_EDGE < as_box)

    def compare_area(self, source: str, shape: LabelShape, stated: Any) -> None:
        """Count whether an area that a file states is that of its box, or of the one between two corners."""
        if shape.box is None or shape.corners is None or isinstance(stated, bool):
            return
        try:
            wanted = float(stated)
        except (TypeError, ValueError, OverflowError):
            return
        if not wanted > 0:
            return
        as_box, as_corners = (
            abs((x2 - x1) * (y2 - y1) - wanted) <= _SAME_AREA * wanted
            for x1, y1, x2, y2 in (shape.box, shape.corners)
        )
        known, turned = self.outlined.get(source, (0, 0))
        self.outlined[source] = known + 1, turned + (as_corners and not as_box)

    def check(self, root: str, images: int, *, partial: bool = False) -> None:
        """Refuse a set whose labels are lost.

        Args:
            root: The set's folder.
            images: Images that were read.
            partial: Most of the labelled images may be missing.

        Raises:
            DataError: All labels of the set, of a file, of a folder (from three on) or of a class are lost, or more
                than half of the set's (from ten on), or all boxes of a file or folder lie within one pixel; or none
                of the classes that were asked for occurs; or most labelled images are missing.
        """
        if self.absent > images and self.absent + images >= FEWEST_FOR_SHARE and not partial:
            raise DataError(
                f"{self.absent:,} of {self.absent + images:,} labelled images aren't there "
                f"(the first: {self.first_absent})",
                where=root,
                fix="add them, or check how the labels name them; -o partial=true reads those that are there",
            )
        for source in dict.fromkeys(source for source, _ in (*self.used, *self.lost, *self.flat) if source):
            fewest = _FEWEST_IN_FOLDER if source in self.folders else 1
            self._refuse_lost(source, fewest, source=source)
            if self.largest.get(source, 2.0) <= 1.0:
                what = "all boxes lie within the first pixel: their coordinates look like shares of the image"
                raise DataError(what, where=source, fix="write them in pixels")
        for source, (boxes, outside, far, fitting) in self.doubtful.items():
            if fitting == boxes >= _FEWEST_IN_FOLDER and 2 * outside > boxes and far:
                raise DataError(
                    f"{outside:,} of {boxes:,} boxes reach outside their images, but all lie inside when their numbers are "
                    "two corners (x1, y1, x2, y2)",
                    where=source,
                    fix="write position and size as the format has them; cut boxes that are meant so at the image's border",
                )
        for source, (known, turned) in self.outlined.items():
            if turned >= _FEWEST_IN_FOLDER and 2 * turned > known:
                raise DataError(
                    f"the outlines or areas of {turned:,} of {known:,} objects fit their boxes only when the boxes' numbers "
                    "are two corners (x1, y1, x2, y2)",
                    where=source,
                    fix="write boxes as position and size (x, y, width, height), as the format has them",
                )
        for category in sorted({category for _, category in (*self.lost, *self.flat)} - {""}):
            self._refuse_lost(root, category=category)
        self._refuse_lost(root)
        used, lost, flat = (counts.total() for counts in (self.used, self.lost, self.flat))
        if used + lost + flat >= FEWEST_FOR_SHARE and lost + flat > used:
            line = next(iter(self.first.values()))
            raise DataError(
                f"{lost + flat:,} of {used + lost + flat:,} labels can't be used (the first: {line})",
                where=root,
                fix=self.mends.get(line, _MEND),
            )
        if self.excluded and not used:
            what = f"no label is of a class that was asked for; the labels are of {self._excluded()}"
            raise DataError(what, where=root, fix="write the option classes like the labels")

    def _refuse_lost(
        self, where: str, fewest: int = 1, *, source: str | None = None, category: str | None = None
    ) -> None:
        """Refuse when none of the labels of a source, of a class or of all can be used."""

        def belongs(key: _Key) -> bool:
            return source in (None, key[0]) and category in (None, key[1])

        used, lost, flat = (
            sum(count for key, count in counts.items() if belongs(key))
            for counts in (self.used, self.lost, self.flat)
        )
        # One label without area is a slip of the mouse; several say that these labels are points.
        if used or lost + flat < fewest or (not lost and flat < 2):
            return
        line = next(line for key, line in self.first.items() if belongs(key))
        of = "" if category is None else f' of the class "{category}"'
        what = f"none of the {lost + flat:,} labels{of} can be used (the first: {line})"
        raise DataError(what, where=where, fix=self.mends.get(line, _MEND))

    def _excluded(self) -> str:
        named = ", ".join(f"{name} {count:,}" for name, count in self.excluded.most_common(8))
        return named + (" …" if len(self.excluded) > 8 else "")

    def lines(self) -> list[str]:
        """Return what became of the labels, in words; nothing when all are used."""
        parts = []
        if lost := self.lost.total():
            parts.append(f"{lost:,} can't be used")
        if flat := self.flat.total():
            parts.append(f"{flat:,} without area dropped")
        if excluded := self.excluded.total():
            parts.append(f"{excluded:,} of other classes ignored in their places ({self._excluded()})")
        if self.unlabelled:
            images = "image" if self.unlabelled == 1 else "images"
            parts.append(f"{self.unlabelled:,} {images} left without object labels")
        lines = [f"labels: {self.used.total():,} used, {', '.join(parts)}"] if parts else []
        for name, count in self.unasked.items():
            places = "1 place" if count == 1 else f"{count:,} places"
            lines.append(
                f"{places} of {name} ignored, which is no class by its name: neither objects nor background"
            )
        return lines


@dataclass(frozen=True)
class LabelShape:
    """Where a label lies, as its file says it, in pixels.

    Attributes:
        box: x1, y1, x2, y2; follows from the corners or the outline where it is None.
        quad: Four corners of an oriented box, in order; they may lie outside the image.
        polygons: Rings of the outline.
        holes: Rings that are cut out of it.
        corners: What the box would be if its four numbers were those of two corners; only where that may be meant.
    """

    box: Sequence[float] | None = None
    quad: Sequence[float] | None = None
    polygons: Sequence[Sequence[float]] = ()
    holes: Sequence[Sequence[float]] = ()
    corners: Sequence[float] | None = None


@dataclass(frozen=True)
class _Misfit:
    """Why a label is no object: its place isn't known ("lost"), has no area ("flat") or lies "outside"."""

    fate: Literal["lost", "flat", "outside"]
    text: str


@dataclass
class ImageLabels:
    """Collects the labels of one image.

    A label that can't be used never becomes "there is nothing": where its place is known, the place is ignored;
    where it isn't, the image has no object labels at all. The same holds when more labels lie outside the image than
    in it. A single label outside the image, and one without area, are left out.

    Attributes:
        size: Width and height of the image.
        source: File or folder that the labels stand in, for the tally.
        note: Takes findings.
        tally: Counts the labels of the set.
        point_size: Side in pixels of the box that a label without width and height gets around its centre; None:
            such a label has no area.
        objects: The objects.
        ignored: Places that are neither object nor background.
        lost: Number of labels whose place isn't known.
        outside: Number of labels that lie outside the image.
    """

    size: tuple[int, int]
    source: str
    note: Note
    tally: Tally
    point_size: float | None = None
    objects: list[ObjectLabel] = field(default_factory=list)
    ignored: list[ObjectLabel] = field(default_factory=list)
    lost: int = 0
    outside: int = 0
    _seen: set[ObjectLabel] = field(default_factory=set)

    def add(
        self,
        where: str,
        category: str,
        shape: LabelShape,
        *,
        known: Collection[str] | None = None,
        difficult: bool = False,
    ) -> ObjectLabel | None:
        """Add an object; return it, or None with a finding when it can't be used.

        Boxes are clipped to the image. The same label twice counts once.

        Args:
            where: "file:row" for findings.
            category: Class name.
            shape: Where it lies.
            known: Classes that are asked for; the place of another one is ignored. None: all but those whose name
                says that nobody cares what is there.
            difficult: Hard to see, or a crowd.
        """
        if is_passed_over(category) and category not in (known or ()):
            self._pass_over(where, category, shape)
            return None
        if known is not None and category not in known:
            self._exclude(where, category, shape)
            return None
        label = self._checked(where, category, shape, difficult)
        if shape.corners is not None and shape.box is not None:
            outside, far = not self._holds(shape.box), not self._holds(shape.box, _SLOPPY)
            corners = self._holds(shape.corners)
            self.tally.doubt(self.source, outside=outside, far=far, corners=corners)
            self.tally.compare(self.source, shape)
        if isinstance(label, _Misfit):
            self._miss(where, category, category, label)
            return None
        if label in self._seen:
            self.note(where, f"{category} {_numbers(label.box)} stands there twice; counted once")
            return None
        self._seen.add(label)
        self.objects.append(label)
        self.tally.used[self.source, category] += 1
        self.tally.largest[self.source] = max(self.tally.largest.get(self.source, 0.0), *label.box[2:])
        return label

    def ignore(self, where: str, why: str, category: str, shape: LabelShape) -> None:
        """Add a label whose class the set doesn't know: its place is neither object nor background.

        Args:
            where: "file:row" for findings.
            why: What is wrong, as in 'class number 7 is not one of 0–1'.
            category: What the label calls its class.
            shape: Where it lies.
        """
        label = self._checked(where, category, shape, False)
        if isinstance(label, _Misfit):
            self._miss(where, "", why, label)
            return
        self.ignored.append(label)
        self.note(where, f"{why}; its place is ignored")
        self.tally.lose(self.source, "", f"{where}: {why}")

    def _pass_over(self, where: str, category: str, shape: LabelShape) -> None:
        """Ignore the place of a label that itself says that nobody cares what is there; that is no fault."""
        label = self._checked(where, category, shape, False)
        self.tally.unasked[category] += 1
        if not isinstance(label, _Misfit):
            self.ignored.append(label)
        elif label.fate == "lost":
            self.lose(where, f"{category} {label.text}")

    def _exclude(self, where: str, category: str, shape: LabelShape) -> None:
        """Ignore the place of a label of a class that wasn't asked for, which is no fault of the label."""
        label = self._checked(where, category, shape, False)
        self.tally.excluded[category] += 1
        if not isinstance(label, _Misfit):
            self.ignored.append(label)
            self.note(where, f'class "{category}" was not asked for; its place is ignored')
        elif label.fate == "lost":
            self.lost += 1
            self.note(where, f'class "{category}" was not asked for, and it {label.text}; {_UNLABELLED}')

    def lose(self, where: str, why: str, category: str = "") -> None:
        """Count a label without a usable place: the image has no object labels."""
        self.lost += 1
        self.note(where, f"{why}; {_UNLABELLED}")
        self.tally.lose(self.source, category, f"{where}: {why}")

    @property
    def are_known(self) -> bool:
        """Whether the objects are all that there are outside of `ignored`."""
        return not self.lost and self.outside <= len(self.objects)

    def _miss(self, where: str, category: str, what: str, misfit: _Misfit) -> None:
        if misfit.fate == "lost":
            self.lose(where, f"{what} {misfit.text}", category)
            return
        self.outside += misfit.fate == "outside"
        self.note(where, f"{what} {misfit.text}; left out")
        flat = misfit.fate == "flat"
        self.tally.lose(self.source, category, f"{where}: {what} {misfit.text}", flat=flat)

    def _checked(
        self, where: str, category: str, shape: LabelShape, difficult: bool
    ) -> ObjectLabel | _Misfit:
        numbers = [*(shape.box or ()), *(shape.quad or ())]
        numbers += [value for ring in (*shape.polygons, *shape.holes) for value in ring]
        if not numbers:
            return _Misfit("lost", "has no place")
        if not all(math.isfinite(value) for value in numbers):
            return _Misfit("lost", "has a coordinate that is not a number")
        quad = None
        if shape.quad is not None:
            points = as_points(shape.quad)
            if not is_convex(points):
                text = "corners are crossed or bent inwards; replaced by the rectangle around them"
                self.note(where, f"{category}'s {text}")
                points = min_area_quad(points)
            if area(points) <= 0:
                return _Misfit("flat", "has no area")
            quad = as_flat(clockwise(points))
        box = shape.box
        if box is None:
            if quad is None and not any(area(as_points(ring)) > 0 for ring in shape.polygons):
                return _Misfit("flat", "has no area")
            rings = [quad] if quad is not None else shape.polygons
            box = bounds(as_points([value for ring in rings for value in ring]))
        clipped = self._clipped(where, category, box)
        if isinstance(clipped, _Misfit):
            return clipped
        polygons, holes = (
            tuple(tuple(map(float, ring)) for ring in rings) for rings in (shape.polygons, shape.holes)
        )
        return ObjectLabel(category, clipped, quad, polygons, difficult, holes)

    def _holds(self, box: Sequence[float], share: float = 0.0) -> bool:
        """Return whether a box has an area and lies in the image, but for rounding and a share of its own sides."""
        x1, y1, x2, y2 = box
        wide, high = (max(_ROUNDING_PIXELS, share * side) for side in (x2 - x1, y2 - y1))
        within = max(-x1, x2 - self.size[0]) <= wide and max(-y1, y2 - self.size[1]) <= high
        return x1 < x2 and y1 < y2 and within

    def _clipped(self, where: str, category: str, box: Sequence[float]) -> Box | _Misfit:
        x1, y1, x2, y2 = (float(value) for value in box)
        if self.point_size is not None and x1 == x2 and y1 == y2:
            half = self.point_size / 2
            x1, y1, x2, y2 = x1 - half, y1 - half, x2 + half, y2 + half
        width, height = self.size
        shown = _numbers((x1, y1, x2, y2))
        if x2 < x1 or y2 < y1:
            return _Misfit("lost", f"ends before it begins {shown}")
        if x2 == x1 or y2 == y1:
            return _Misfit("flat", f"has no area {shown}")
        inside = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
        if inside[2] <= inside[0] or inside[3] <= inside[1]:
            return _Misfit("outside", f"{shown} lies outside the image of {width}×{height}")
        if max(abs(a - b) for a, b in zip(inside, (x1, y1, x2, y2), strict=True)) > _ROUNDING_PIXELS:
            self.note(where, f"{category} {shown} reaches outside the image; clipped")
        return inside


def _numbers(box: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"
