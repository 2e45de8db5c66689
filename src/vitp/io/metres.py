"""Metres of pixels and square metres of polygons, in whatever reference system they are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.io.open_pixels import Geometry


def need_pyproj(where: str) -> Any:
    """Return the module pyproj.

    Raises:
        DataError: It isn't installed.
    """
    try:
        import pyproj
    except ImportError as error:
        raise DataError(
            "needs pyproj to know metres", where=where, fix="install it with `pip install 'vitp[geo]'`"
        ) from error
    return pyproj


def metres_per_pixel(geometry: Geometry, size: tuple[int, int]) -> float:
    """Return the side of a square of a pixel's area, in metres.

    In a projected system it is the pixel's side in its units; in degrees it is measured on the ellipsoid, in the
    middle of the image.

    Args:
        geometry: Where the image lies.
        size: Width and height.
    """
    pyproj = need_pyproj(geometry.crs)
    crs = pyproj.CRS(geometry.crs)
    a, b, _, d, e, _ = geometry.transform
    if not crs.is_geographic:
        return math.sqrt(abs(a * e - b * d)) * crs.axis_info[0].unit_conversion_factor
    x, y = size[0] / 2, size[1] / 2
    corners_N2 = geometry.to_map(np.array([[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]]))
    area, _ = pyproj.Geod(ellps="WGS84").polygon_area_perimeter(*corners_N2.T)
    return math.sqrt(abs(float(area)))


def square_metres(polygons: np.ndarray, crs: str) -> np.ndarray:
    """Return (N,) areas of shapely polygons in a reference system: on the plane of a projected one, else geodesic."""
    import shapely

    pyproj = need_pyproj(crs)
    system = pyproj.CRS(crs)
    if not system.is_geographic:
        planar_N: np.ndarray = shapely.area(polygons) * system.axis_info[0].unit_conversion_factor ** 2
        return planar_N
    geod = pyproj.Geod(ellps="WGS84")
    # Of a polygon whose rings turn the wrong way the area would be negative, or that of the rest of the Earth.
    return np.array([abs(geod.geometry_area_perimeter(one)[0]) for one in shapely.normalize(polygons)])
