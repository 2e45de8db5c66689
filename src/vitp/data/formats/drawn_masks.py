"""Masks that are drawn from outlines when they are asked for.

A pixel belongs to an outline when its centre lies in it. Larger outlines are drawn first, so that a smaller one lies on
top of what it overlaps; of equally large ones the later one does. An outline that holds no pixel's centre isn't seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from vitp.core.errors import ConfigError, DataError
from vitp.core.extras import need
from vitp.records.geometry import area, as_flat, as_points, point_inside
from vitp.records.labels import BACKGROUND, IGNORE, LabelledImage, LabelledSet, ObjectLabel

DrawnPart = tuple[tuple[float, ...], ...]
"""Rings of one polygon, x1, y1, …: its outline, then its holes."""

Drawn = tuple[int, tuple[DrawnPart, ...]]
"""A value and the polygons that get it."""

_MARGIN = 2.0
"""Pixels around a window to which outlines are cut: borders don't move the pixels within."""


@dataclass(frozen=True, slots=True)
class DrawnMask:
    """Value of each pixel, from outlines.

    Attributes:
        size: Width and height.
        shapes: In the order in which they are drawn; see `drawing_order`.
        change: Whether the mask is one of change, of which any value but 0 is one.
    """

    size: tuple[int, int]
    shapes: tuple[Drawn, ...]
    change: bool = False

    def __call__(self) -> np.ndarray:
        """Return the mask (H, W) uint8, or bool for change; 0 where no outline is.

        Raises:
            DataError: The extra `geo` isn't installed.
        """
        width, height = self.size
        mask_HW = np.zeros((height, width), np.uint8)
        shapes = [
            (
                {"type": "MultiPolygon", "coordinates": [[_closed(ring) for ring in part] for part in parts]},
                value,
            )
            for value, parts in self.shapes
        ]
        if shapes:
            features, affine = (
                need("geo", "rasterio.features", "mask"),
                need("geo", "rasterio", "mask").Affine,
            )
            features.rasterize(shapes, out=mask_HW, transform=affine.identity())
        return mask_HW > 0 if self.change else mask_HW

    def windowed(self, window: tuple[int, int, int, int]) -> DrawnMask:
        """Return the mask of a part, with what lies in it of the outlines."""
        shapely = need("geo", "shapely", "mask")
        x1, y1, x2, y2 = window
        kept: list[Drawn] = []
        for value, parts in self.shapes:
            points_N2 = np.concatenate([as_points(part[0]) for part in parts])
            low, high = points_N2.min(0), points_N2.max(0)
            if high[0] <= x1 or high[1] <= y1 or low[0] >= x2 or low[1] >= y2:
                continue
            whole = shapely.MultiPolygon([polygon_of(part) for part in parts])
            if (
                low[0] < x1 - _MARGIN
                or low[1] < y1 - _MARGIN
                or high[0] > x2 + _MARGIN
                or high[1] > y2 + _MARGIN
            ):
                whole = shapely.make_valid(whole)
                whole = shapely.clip_by_rect(whole, x1 - _MARGIN, y1 - _MARGIN, x2 + _MARGIN, y2 + _MARGIN)
            moved = shapely.transform(whole, lambda points: points - (x1, y1))
            if own := parts_of(moved):
                kept.append((value, own))
        return DrawnMask((x2 - x1, y2 - y1), tuple(kept), self.change)


def _closed(ring: tuple[float, ...]) -> list[list[float]]:
    """Return a ring as GeoJSON has it, with its first point at its end; an open triangle would be no shape."""
    points: list[list[float]] = as_points(ring).tolist()
    return [*points, points[0]]


def polygon_of(part: DrawnPart) -> Any:
    """Return a shapely polygon."""
    shapely = need("geo", "shapely", "mask")
    return shapely.Polygon(as_points(part[0]), [as_points(hole) for hole in part[1:]])


def parts_of(shape: Any) -> tuple[DrawnPart, ...]:
    """Return the polygons of a shapely geometry; what has no area is left out."""
    shapely = need("geo", "shapely", "mask")
    return tuple(
        tuple(as_flat(shapely.get_coordinates(ring)[:-1]) for ring in (polygon.exterior, *polygon.interiors))
        for polygon in _polygons(shapely, shape)
        if polygon.area > 0
    )


def _polygons(shapely: Any, shape: Any) -> list[Any]:
    found = []
    for part in shapely.get_parts(shape):
        if part.geom_type == "Polygon":
            found.append(part)
        elif part.geom_type in ("MultiPolygon", "GeometryCollection"):
            found += _polygons(shapely, part)
    return found


def drawing_order(shapes: Sequence[Drawn]) -> tuple[Drawn, ...]:
    """Return shapes from the largest to the smallest."""

    def covered(shape: Drawn) -> float:
        rings = [
            (area(as_points(part[0])), [area(as_points(hole)) for hole in part[1:]]) for part in shape[1]
        ]
        return sum(whole - sum(holes) for whole, holes in rings)

    return tuple(sorted(shapes, key=covered, reverse=True))


def drawn_to_json(mask: DrawnMask) -> dict[str, Any]:
    """Return a mask as plain values."""
    row: dict[str, Any] = {
        "drawn": [[value, [[list(ring) for ring in part] for part in parts]] for value, parts in mask.shapes],
        "size": list(mask.size),
    }
    return row | {"change": True} if mask.change else row


def drawn_from_json(row: Mapping[str, Any]) -> DrawnMask:
    """Return the mask that `drawn_to_json` wrote down.

    Raises:
        KeyError, TypeError, ValueError: The values aren't of that form.
    """
    shapes = tuple(
        (int(value), tuple(tuple(_ring(ring) for ring in part) for part in parts))
        for value, parts in row["drawn"]
    )
    width, height = (int(value) for value in row["size"])
    if not (width > 0 and height > 0) or any(not parts or not all(parts) for _, parts in shapes):
        raise ValueError("an outline is empty")
    return DrawnMask((width, height), shapes, bool(row.get("change", False)))


def _ring(values: Any) -> tuple[float, ...]:
    ring = tuple(float(value) for value in values)
    if len(ring) < 6 or len(ring) % 2:
        raise ValueError(f"{values!r:.60} is no ring")
    return ring


def with_drawn_masks(labelled: LabelledSet, semantic: bool | str) -> LabelledSet:
    """Return a set whose outlines of objects are masks of classes, too.

    Where an object is difficult, or a place ignored, the mask is ignored; so it is where only the box of an object is
    known. An image without objects is background; one of which nothing is known has no mask.

    Args:
        labelled: Objects with outlines.
        semantic: False leaves the set as it is; True: masks instead of objects; "both": beside them.

    Raises:
        ConfigError: `semantic` is something else.
        DataError: No object has an outline.
    """
    if semantic not in (True, False, "both"):
        raise ConfigError(f'is "{semantic}"', where="semantic", fix="choose true, false or both")
    if semantic is False:
        return labelled
    names = (BACKGROUND, *(name for name in labelled.object_classes if name != BACKGROUND))
    if not any(label.polygons for item in labelled.items for label in item.objects or ()):
        what = "has no object with an outline, so no masks of classes can be drawn"
        raise DataError(what, where=labelled.name, fix="leave out -o semantic")
    boxes = sum(not o.polygons and not o.difficult for item in labelled.items for o in item.objects or ())
    line = "masks of classes: drawn from the outlines of objects; the rest is background"
    line += f"; the places of {boxes:,} objects without an outline are ignored" if boxes else ""
    items = [replace(item, semantic=_drawn_mask(item, names)) for item in labelled.items]
    if semantic is True:
        items = [replace(item, objects=None, ignored=()) for item in items]
    return replace(
        labelled,
        items=items,
        semantic_classes=names,
        object_classes=() if semantic is True else labelled.object_classes,
        understood=(*labelled.understood, line),
    )


def _drawn_mask(item: LabelledImage, names: Sequence[str]) -> DrawnMask | None:
    if item.objects is None:
        return None
    known = [
        (
            names.index(label.category) if label.polygons and not label.difficult else IGNORE,
            object_parts(label),
        )
        for label in item.objects
    ]
    # Last, and on top: of what lies there nothing is known.
    hidden = [(IGNORE, object_parts(label)) for label in item.ignored]
    shapes = [shape for shape in drawing_order(known) if shape[0] != IGNORE]
    return DrawnMask(
        (item.width, item.height), (*shapes, *(shape for shape in known if shape[0] == IGNORE), *hidden)
    )


def object_parts(label: ObjectLabel) -> tuple[DrawnPart, ...]:
    """Return the polygons of an object, each with the holes that lie in it; those of its box where it has none."""
    if not label.polygons:
        x1, y1, x2, y2 = label.box
        return ((label.quad or (x1, y1, x2, y1, x2, y2, x1, y2),),)
    holes = [[] for _ in label.polygons]  # type: list[list[tuple[float, ...]]]
    rings = [as_points(ring).astype(np.float32).reshape(-1, 1, 2) for ring in label.polygons]
    for hole in label.holes:
        place = point_inside(as_points(hole))
        depth = [cv2.pointPolygonTest(ring, place, True) for ring in rings]
        # A hole may lie in a part that lies in a hole of another one.
        around = [n for n, inside in enumerate(depth) if inside > 0]
        owner = min(around, key=lambda n: area(as_points(label.polygons[n])), default=int(np.argmax(depth)))
        holes[owner].append(hole)
    return tuple((ring, *own) for ring, own in zip(label.polygons, holes, strict=True))
