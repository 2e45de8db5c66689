"""Outlines on the ground → outlines in the pixels of rasters.

Shapes: N features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.data.formats.drawn_masks import DrawnPart
from vitp.data.formats.places import GroundPlace
from vitp.data.formats.walk import Note
from vitp.io.ground import corners, ground_matrix, is_geographic, reproject
from vitp.io.vectors import VectorLayer
from vitp.records.geometry import as_flat, as_points, bounds, min_area_quad
from vitp.records.labels import NOT_LABELLED, ObjectLabel

_POINTS, _LINES, _AREAS = "points", "lines", "areas"
_KINDS = {0: _POINTS, 4: _POINTS, 1: _LINES, 2: _LINES, 5: _LINES, 3: _AREAS, 6: _AREAS, 7: _AREAS}
"""shapely's number of a type → what it is; collections are read as the areas in them."""


@dataclass(frozen=True)
class Widths:
    """Metres that points and lines are given, None where they are refused."""

    point: float | None = None
    line: float | None = None


@dataclass
class PlacedShapes:
    """The shapes of one layer, mended, and found again in each reference system.

    Attributes:
        features: Features of the layer.
        shapes_N: shapely geometries in its reference system; None where there is none.
        met_N: Whether a raster met it so far.
    """

    features: VectorLayer
    shapes_N: np.ndarray
    met_N: np.ndarray
    _known: dict[str, tuple[np.ndarray, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, features: VectorLayer, widths: Widths, note: Note, place: str) -> PlacedShapes:
        """Return the shapes of a layer, broken ones mended with a finding.

        Raises:
            DataError: The layer has no reference system, or holds points or lines that are to be given a width.
        """
        if features.crs is None:
            raise DataError(
                "doesn't say which coordinate reference system its coordinates are in",
                where=str(features.path),
                fix="name it with -o labels_crs=EPSG:…",
            )
        _check_kinds(features, widths)
        shapely = need("geo", "shapely", str(features.path))
        shapes_N = features.shapes_N.copy()
        broken_N = ~shapely.is_valid(shapes_N) & (shapes_N != None)  # noqa: E711  an array of objects
        for number in np.flatnonzero(broken_N).tolist():
            why = shapely.is_valid_reason(shapes_N[number]).split("[")[0].lower()
            shapes_N[number] = shapely.make_valid(shapes_N[number])
            note(f"{place}:{number + 1}", f"its outline was mended ({why})")
        return cls(features, shapes_N, np.zeros(len(shapes_N), bool))

    @property
    def empty(self) -> np.ndarray:
        """Numbers of the features without a place."""
        shapely = need("geo", "shapely", str(self.features.path))
        finite_N = np.isfinite(shapely.bounds(self.shapes_N)).all(1)
        return np.flatnonzero(~finite_N)

    def on(self, placed: GroundPlace, widths: Widths) -> Iterator[tuple[int, Any]]:
        """Yield number and shape of each feature that meets a raster, in its pixels, as polygons; points as points."""
        shapely = need("geo", "shapely", str(self.features.path))
        geometry, size = placed
        shapes_N, tree = self._within(geometry.crs)
        outline = shapely.polygons(corners(geometry, size))
        reach = shapely.buffer(outline, _reach(placed, widths)) if widths != Widths() else outline
        ground = ground_matrix(*placed) if widths != Widths() else None
        found = set(tree.query(reach, predicate="intersects").tolist())
        beyond = _beyond_180(shapely, tree, reach) if is_geographic(geometry.crs) else set()
        for number in sorted(found | beyond):
            own = shapes_N[number]
            own = _brought_to(shapely, own, outline.centroid.x) if number in beyond else own
            shape = shapely.transform(own, geometry.to_pixels)
            if _KINDS.get(shapely.get_type_id(shape)) == _LINES and ground is not None:
                shape = _widened(shapely, shape, ground, float(widths.line or 0))
            if not shape.is_empty:
                self.met_N[number] = True
                yield number, shape

    def _within(self, crs: str) -> tuple[np.ndarray, Any]:
        """Return the shapes in a reference system, and a tree of them; what it doesn't reach is left out."""
        if crs not in self._known:
            shapely = need("geo", "shapely", crs)
            source = str(self.features.crs)
            moved_N = shapely.transform(self.shapes_N, lambda points: reproject(points, source, crs))
            moved_N[~np.isfinite(shapely.bounds(moved_N)).all(1)] = None
            self._known[crs] = moved_N, shapely.STRtree(moved_N)
        return self._known[crs]


def _beyond_180(shapely: Any, tree: Any, reach: Any) -> set[int]:
    """Return the shapes that meet a raster once a whole turn is added to their longitudes or taken from them."""
    turned = [shapely.transform(reach, lambda points, by=by: points + (by, 0)) for by in (-360.0, 360.0)]
    return {int(number) for one in turned for number in tree.query(one, predicate="intersects")}


def _brought_to(shapely: Any, shape: Any, longitude: float) -> Any:
    """Return a shape whose parts lie on the same side of the 180th meridian as a longitude; parts that touch join."""
    parts = []
    for part in shapely.get_parts(shape):
        west, _, east, _ = shapely.bounds(part)
        by = 360.0 * round((longitude - (west + east) / 2) / 360)
        parts.append(shapely.transform(part, lambda points, by=by: points + (by, 0)))
    return parts[0] if len(parts) == 1 else shapely.union_all(parts)


def _check_kinds(features: VectorLayer, widths: Widths) -> None:
    shapely = need("geo", "shapely", str(features.path))
    kinds = [_KINDS.get(int(number), "") for number in shapely.get_type_id(features.shapes_N)]
    for kind, width, option in ((_POINTS, widths.point, "point_size"), (_LINES, widths.line, "line_width")):
        if (count := kinds.count(kind)) and width is None:
            raise DataError(
                f"{count:,} of its {len(kinds):,} features are {kind}, which have no area",
                where=str(features.path),
                fix=f"give them one with -o {option}=METRES, or name another layer",
            )


def _reach(placed: GroundPlace, widths: Widths) -> float:
    """Return a length in map units that half a width surely doesn't reach."""
    geometry, size = placed
    ground = ground_matrix(geometry, size)
    if ground is None:
        fix = "save the raster in a system with a length, or draw areas"
        raise DataError("metres have no meaning in its reference system", where=geometry.crs[:60], fix=fix)
    a, b, _, d, e, _ = geometry.transform
    per_metre = max(np.hypot(a, d) / np.hypot(*ground[:2]), np.hypot(b, e) / np.hypot(*ground[2:]))
    return float(max(widths.point or 0, widths.line or 0) * per_metre)


def _widened(shapely: Any, line: Any, ground: tuple[float, float, float, float], metres: float) -> Any:
    """Return a line in pixels as the area of a width in metres."""
    matrix = np.array(ground).reshape(2, 2)
    flat = shapely.transform(line, lambda points: points @ matrix)
    wide = shapely.buffer(flat, metres / 2, cap_style="flat", join_style="mitre")
    return shapely.transform(wide, lambda points: points @ np.linalg.inv(matrix))


def point_boxes(
    shape: Any, ground: tuple[float, float, float, float] | None, metres: float
) -> list[tuple[float, ...]]:
    """Return a box of a side in metres around each point in pixels; empty where a shape isn't points."""
    shapely = need("geo", "shapely", "labels")
    if ground is None or _KINDS.get(int(shapely.get_type_id(shape))) != _POINTS:
        return []
    half = np.array([metres / 2 / np.hypot(*ground[:2]), metres / 2 / np.hypot(*ground[2:])])
    return [tuple(map(float, (*(point - half), *(point + half)))) for point in shapely.get_coordinates(shape)]


def object_label(category: str, parts: Sequence[DrawnPart]) -> ObjectLabel:
    """Return an object of polygons in pixels: box, smallest oriented box, outline and holes."""
    points_N2 = np.concatenate([as_points(part[0]) for part in parts])
    return ObjectLabel(
        category,
        bounds(points_N2),
        as_flat(min_area_quad(points_N2)),
        tuple(part[0] for part in parts),
        holes=tuple(hole for part in parts for hole in part[1:]),
    )


@dataclass
class LabelledArea:
    """The ground that is labelled; outside of it nothing is known."""

    shapes: PlacedShapes

    def outside(self, placed: GroundPlace) -> tuple[ObjectLabel, ...] | None:
        """Return the places of a raster that are not labelled; None where all of it isn't."""
        shapely = need("geo", "shapely", str(self.shapes.features.path))
        width, height = placed[1]
        whole = shapely.box(0, 0, width, height)
        inside = shapely.union_all([shape for _, shape in self.shapes.on(placed, Widths())])
        if shapely.intersection(whole, inside).area < 1:
            return None
        rest = shapely.difference(whole, inside)
        parts = [
            p for polygon in shapely.get_parts(rest) for p in without_holes(shapely, polygon) if p.area > 0.5
        ]
        rings = [as_flat(shapely.get_coordinates(part.exterior)[:-1]) for part in parts]
        return tuple(ObjectLabel(NOT_LABELLED, bounds(as_points(ring)), None, (ring,)) for ring in rings)


def without_holes(shapely: Any, polygon: Any) -> list[Any]:
    """Return polygons without holes that cover the same; ignored places are what their outer rings say."""
    if polygon.geom_type != "Polygon":
        return []
    if not len(polygon.interiors):
        return [polygon]
    x1, y1, x2, y2 = polygon.bounds
    middle = shapely.centroid(polygon.interiors[0]).x
    halves = [
        shapely.intersection(polygon, shapely.box(*box))
        for box in ((x1, y1, middle, y2), (middle, y1, x2, y2))
    ]
    return [p for half in halves for part in shapely.get_parts(half) for p in without_holes(shapely, part)]
