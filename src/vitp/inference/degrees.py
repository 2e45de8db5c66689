"""Polygons of a map in longitude and latitude, as RFC 7946 wants them: none reaches across the 180th meridian.

Shapes: P polygons, N points.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.io.ground import LONGITUDE_LATITUDE, reproject

_SUSPECT = 90.0
"""Degrees of longitude; of what is wider it isn't taken for granted that its corners are joined the short way."""
_STEPS = 64
"""Steps into which the longer side of such a polygon is divided, so that the way of its edges can be followed."""
POLYGONS = "polygons of a raster"
"""What needs the packages of geography, for messages."""


def in_degrees(polygons_P: np.ndarray, crs: str) -> np.ndarray:
    """Return polygons of a reference system in longitude and latitude on −180..180 and −90..90.

    What reaches across the 180th meridian is cut there into several parts (RFC 7946, section 3.1.9); what lies around
    a pole reaches up to it.

    Args:
        polygons_P: Shapely polygons and multipolygons.
        crs: Their reference system.

    Raises:
        DataError: The system doesn't reach as far as a polygon does.
    """
    shapely = need("geo", "shapely", POLYGONS)

    def to_degrees(points_N2: np.ndarray) -> np.ndarray:
        return reproject(points_N2, crs, LONGITUDE_LATITUDE)

    degrees_P: np.ndarray = shapely.transform(polygons_P, to_degrees)
    if not len(degrees_P):
        return degrees_P
    if not np.isfinite(shapely.get_coordinates(degrees_P)).all():
        what = "its reference system doesn't reach as far as its polygons, so they have no longitude and latitude"
        raise DataError(what, where=crs[:60], fix="choose --vector gpkg, which keeps the system")
    west_P, _, east_P, _ = shapely.bounds(degrees_P).T
    for number in np.flatnonzero((west_P < -180) | (east_P > 180) | (east_P - west_P > _SUSPECT)):
        one = polygons_P[number]
        x1, y1, x2, y2 = shapely.bounds(one)
        followed = shapely.transform(shapely.segmentize(one, max(x2 - x1, y2 - y1) / _STEPS), to_degrees)
        if (cut := _cut(shapely, followed)) is not None:
            degrees_P[number] = cut
    return degrees_P


def _cut(shapely: Any, shape: Any) -> Any | None:
    """Return a shape cut at the 180th meridian; None where it lies on one side of it."""
    turns = [_unwound(ring) for part in shapely.get_parts(shape) for ring in shapely.get_rings(part)]
    if all(np.abs(ring_N2[:, 0]).max() <= 180 and not wound for ring_N2, wound in turns):
        return None
    pieces = []
    for part in shapely.get_parts(shape):
        outer, *holes = (_on_globe(shapely, *_unwound(ring)) for ring in shapely.get_rings(part))
        pieces.append(shapely.difference(outer, shapely.union_all(holes)) if holes else outer)
    found = [one for one in shapely.get_parts(shapely.union_all(pieces)) if one.geom_type == "Polygon"]
    return found[0] if len(found) == 1 else shapely.MultiPolygon(found)


def _unwound(ring: Any) -> tuple[np.ndarray, bool]:
    """Return (N, 2) corners of a ring whose longitudes go on beyond 180°, and whether it goes around a pole."""
    points_N2 = need("geo", "shapely", POLYGONS).get_coordinates(ring)
    points_N2[:, 0] = np.unwrap(points_N2[:, 0], period=360)
    return points_N2, bool(abs(points_N2[-1, 0] - points_N2[0, 0]) > 180)


def _on_globe(shapely: Any, ring_N2: np.ndarray, wound: bool) -> Any:
    """Return what a ring encloses on −180..180, cut at both ends."""
    if wound:
        pole = np.copysign(90.0, ring_N2[:, 1].mean())
        ends_22 = np.column_stack([ring_N2[[-1, 0], 0], [pole, pole]])
        ring_N2 = np.concatenate([ring_N2, ends_22, ring_N2[:1]])
    area = shapely.make_valid(shapely.polygons(ring_N2))
    west, _, east, _ = shapely.bounds(area)
    turns = range(round(np.floor((west + 180) / 360)), round(np.ceil((east - 180) / 360)) + 1)
    whole = shapely.box(-180, -90, 180, 90)
    moved = [
        shapely.transform(area, lambda points, by=360.0 * turn: points - np.array([by, 0.0]))
        for turn in turns
    ]
    return shapely.union_all(shapely.intersection(moved, whole))
