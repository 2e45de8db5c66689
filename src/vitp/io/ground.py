"""Where images lie on the ground, and how large their pixels are there, through pyproj.

Coordinates are in the order x, y: east or longitude first, whatever order a reference system's definition names.

Shapes: N points.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.io.contract import Geometry
from vitp.io.open_pixels import is_picture_file, open_pixels
from vitp.io.parts import base_address, part_address, split_address
from vitp.io.rasters import raster_driver
from vitp.io.storage import SCENE_PREFIX
from vitp.records.channels import Channels

LONGITUDE_LATITUDE = "OGC:CRS84"
"""Longitude and latitude in degrees, in this order."""

RASTER_SUFFIXES = frozenset({".tif", ".tiff", ".jp2", ".j2k", ".vrt", ".img", ".nc", ".hdf", ".h5", ".dat"})
"""Suffixes of files that may say where they lie."""

_STEP = 8.0
"""Pixels on each side of the centre over which the size of a pixel is measured."""


def may_be_placed(address: str | Path) -> bool:
    """Return whether an image may say where it lies, by its suffix; folders of bands may, too."""
    path = Path(base_address(address))
    return path.suffix.lower() in RASTER_SUFFIXES or path.is_dir()


def check_crs(crs: str, where: str) -> str:
    """Return the name of a coordinate reference system; a bare number is one of EPSG.

    Raises:
        DataError: There is no such system.
    """
    name = f"EPSG:{crs}" if crs.isdigit() else crs
    try:
        need("geo", "pyproj", where).CRS.from_user_input(name)
    except need("geo", "pyproj", where).exceptions.CRSError as error:
        what = f'"{crs[:60]}" is no coordinate reference system'
        raise DataError(what, where=where, fix="write it as EPSG:32633") from error
    return name


@lru_cache(maxsize=256)
def _between(source: str, target: str) -> Any:
    pyproj = need("geo", "pyproj", source)
    return pyproj.Transformer.from_crs(source, target, always_xy=True)


def reproject(points_N2: np.ndarray, source: str, target: str) -> np.ndarray:
    """Return (N, 2) points of one coordinate reference system in another; infinite where it doesn't reach."""
    if source == target or not len(points_N2):
        return points_N2
    return np.column_stack(_between(source, target).transform(points_N2[:, 0], points_N2[:, 1]))


def is_geographic(crs: str) -> bool:
    """Return whether coordinates are angles."""
    return bool(need("geo", "pyproj", crs).CRS.from_user_input(crs).is_geographic)


def metres_of_unit(crs: str) -> float | None:
    """Return how many metres a unit of a projected system's axes is on its map; None for angles."""
    found = need("geo", "pyproj", crs).CRS.from_user_input(crs)
    if found.is_geographic or found.is_geocentric or not found.axis_info:
        return None
    return float(found.axis_info[0].unit_conversion_factor)


def corners(geometry: Geometry, size: tuple[int, int], steps: int = 1) -> np.ndarray:
    """Return the outline of an image in map coordinates, (4 · steps, 2), with `steps` points a side."""
    width, height = size
    share = np.arange(steps) / steps
    sides = [
        np.column_stack([share * width, np.zeros(steps)]),
        np.column_stack([np.full(steps, width), share * height]),
        np.column_stack([width - share * width, np.full(steps, height)]),
        np.column_stack([np.zeros(steps), height - share * height]),
    ]
    return geometry.to_map(np.concatenate(sides).astype(np.float64))


def centre_lonlat(geometry: Geometry, size: tuple[int, int]) -> tuple[float, float]:
    """Return longitude and latitude of an image's centre in degrees."""
    centre = geometry.to_map(np.array([[size[0] / 2, size[1] / 2]]))
    lon, lat = reproject(centre, geometry.crs, LONGITUDE_LATITUDE)[0]
    return float(lon), float(lat)


def ground_matrix(geometry: Geometry, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """Return what one pixel is on the ground at the centre of an image, in metres.

    Measured along the geodesic, so that degrees, feet and the stretched metres of Web Mercator come out right.

    Returns:
        East and north of one pixel along x, east and north of one pixel along y; None where the reference system
        says nothing about the earth and has no length, or doesn't reach there.

    Raises:
        DataError: pyproj isn't installed, or doesn't know the system.
    """
    return _measured(geometry, size, _STEP)[0]


def pixel_metres(geometry: Geometry, size: tuple[int, int]) -> tuple[float, float]:
    """Return how many metres a pixel of an image has along its rows and along its columns.

    Projected systems give them themselves, in whatever unit they count, unless they stretch the ground by more than
    1 % at the centre of the image, as Web Mercator does. Then, and in degrees, the distance on the ellipsoid counts.

    Args:
        geometry: Where the image lies.
        size: Width and height of the image.

    Raises:
        DataError: pyproj isn't installed, or the system can't be measured in metres there.
    """
    ground, own = _measured(geometry, size, 0.5)
    if ground is None:
        raise _immeasurable(geometry, "it says nothing about the earth, or doesn't reach there")
    lengths = math.hypot(*ground[:2]), math.hypot(*ground[2:])
    if own is not None and all(
        abs(one / length - 1) <= 0.01 for one, length in zip(own, lengths, strict=True)
    ):
        return own
    return lengths


def _measured(
    geometry: Geometry, size: tuple[int, int], step: float
) -> tuple[tuple[float, float, float, float] | None, tuple[float, float] | None]:
    """Return `ground_matrix`, and the lengths of the same sides on the map of a projected system.

    Args:
        geometry: Where the image lies.
        size: Width and height of the image.
        step: Pixels on each side of the centre over which is measured.
    """
    pyproj = need("geo", "pyproj", geometry.crs[:60])
    middle = np.array([size[0] / 2, size[1] / 2])
    placed_42 = geometry.to_map(middle + np.array([[-step, 0], [step, 0], [0, -step], [0, step]]))
    try:
        crs = pyproj.CRS.from_user_input(geometry.crs)
        unit, geod = metres_of_unit(geometry.crs), crs.get_geod()
        sides_22 = (placed_42[1::2] - placed_42[::2]) * (unit or math.nan) / (2 * step)
        if geod is None or crs.geodetic_crs is None:
            found = [float(value) for value in sides_22.ravel()]
        else:
            lonlat_42 = reproject(placed_42, geometry.crs, crs.geodetic_crs.to_wkt())
            found = []
            for k in (0, 2):
                # Azimuths count from north, clockwise: their sine is east, their cosine north.
                azimuth, _, length = geod.inv(*lonlat_42[k], *lonlat_42[k + 1])
                angle = math.radians(azimuth)
                found += [length * math.sin(angle) / (2 * step), length * math.cos(angle) / (2 * step)]
    except pyproj.exceptions.ProjError as error:
        raise _immeasurable(geometry, str(error)) from error
    ground = (found[0], found[1], found[2], found[3]) if np.isfinite(found).all() else None
    if not crs.is_projected:
        return ground, None
    across, down = np.linalg.norm(sides_22, axis=1)
    return ground, (float(across), float(down))


def _immeasurable(geometry: Geometry, why: str) -> DataError:
    what = f"is a coordinate system that can't be measured in metres ({why})"
    return DataError(what, where=geometry.crs[:60], fix="give the file a known one (gdal_edit -a_srs)")


def geometry_of(address: str | Path) -> Geometry | None:
    """Return where an image, or the part of it that the address names, lies; None where its file doesn't say it.

    Raises:
        DataError: The file can't be read.
    """
    if not may_be_placed(address):
        return None
    file, part = split_address(address)
    try:
        changed = Path(file).stat().st_mtime_ns
    except OSError:
        changed = 0  # behind a URL, or missing: opening it tells
    # The window comes last, so that all windows of a file share what is known of it.
    window, whole = part.window, replace(part, window=None)
    found = _geometry(str(address) if whole == part else part_address(file, whole), changed)
    return found if found is None or window is None else found.of_window(window)


def is_map(address: str | Path, channels: Channels | None) -> bool:
    """Return whether an image is a map, which knows where it holds nothing: a raster with a place, or one of bands.

    Args:
        address: Address of the image.
        channels: What a model sees of it; None: pictures.

    Raises:
        DataError: It can't be opened as what its name says.
    """
    if channels is not None or str(address).startswith(SCENE_PREFIX):
        return channels is not None
    return not is_picture_file(address) or geometry_of(address) is not None


@lru_cache(maxsize=1 << 16)
def _geometry(address: str, changed: int) -> Geometry | None:
    # `changed` is in the key alone: a file that was written anew is read again.
    with open_pixels(address) as pixels:
        return pixels.geometry


def file_tags(path: str | Path) -> dict[str, str]:
    """Return the tags of a GeoTIFF that aren't part of the format; none where rasterio can't read them."""
    if Path(path).suffix.lower() not in (".tif", ".tiff") or raster_driver(str(path)) != "GTiff":
        return {}
    try:
        rasterio = need("geo", "rasterio", str(path))
    except DataError:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with rasterio.open(str(path), driver="GTiff") as file:
                return {str(key): str(value) for key, value in file.tags().items()}
    except rasterio.errors.RasterioError:
        return {}
