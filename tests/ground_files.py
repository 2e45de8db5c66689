"""Rasters and vector files on the ground, as tests write them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import rasterio
import shapely
from rasterio.transform import Affine

from vitp.io.contract import Geometry

UTM = Geometry("EPSG:32633", (0.5, 0.0, 500_000.0, 0.0, -0.5, 5_300_000.0))
DEGREES = Geometry("EPSG:4326", (1e-5, 0.0, 15.0, 0.0, -1e-5, 47.8))
POLAR = Geometry("EPSG:3031", (2.0, 0.0, 400_000.0, 0.0, -2.0, -1_500_000.0))
FEET = Geometry("EPSG:2263", (1.0, 0.0, 980_000.0, 0.0, -1.0, 200_000.0))


def turned(geometry: Geometry, degrees: float) -> Geometry:
    """Return a geometry whose pixels are turned about the corner of the image."""
    a, b, c, d, e, f = tuple(Affine(*geometry.transform) @ Affine.rotation(degrees))[:6]
    return Geometry(geometry.crs, (a, b, c, d, e, f))


def moved(geometry: Geometry, x: float, y: float) -> Geometry:
    """Return the geometry of an image whose corner lies at a pixel of another."""
    a, b, c, d, e, f = geometry.transform
    return Geometry(geometry.crs, (a, b, a * x + b * y + c, d, e, d * x + e * y + f))


def write_raster(
    path: Path,
    geometry: Geometry | None = UTM,
    size: tuple[int, int] = (200, 160),
    *,
    values_CHW: np.ndarray | None = None,
    seed: int | None = None,
    **options: Any,
) -> Path:
    """Write a GeoTIFF, of noise where no values are given."""
    width, height = size
    if values_CHW is None:
        number = zlib.crc32(str(path.name).encode()) if seed is None else seed
        values_CHW = np.random.default_rng(number).integers(1, 255, (3, height, width), dtype=np.uint8)
    place = {} if geometry is None else {"crs": geometry.crs, "transform": Affine(*geometry.transform)}
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values_CHW.shape
    profile = {"driver": "GTiff", "width": width, "height": height, "count": count, "dtype": values_CHW.dtype}
    with rasterio.open(path, "w", **profile, **place, **options) as file:
        file.write(values_CHW)
    return path


def on_ground(
    geometry: Geometry, pixels_N2: Sequence[Sequence[float]], *holes: Sequence[Sequence[float]]
) -> Any:
    """Return the shapely polygon of an outline in pixels."""
    outline, *cut = (geometry.to_map(np.asarray(ring, np.float64)) for ring in (pixels_N2, *holes))
    return shapely.Polygon(outline, cut)


def box_on_ground(geometry: Geometry, x1: float, y1: float, x2: float, y2: float) -> Any:
    """Return the shapely polygon of a box in pixels."""
    return on_ground(geometry, [(x1, y1), (x2, y1), (x2, y2), (x1, y2)])


_DRIVERS = {
    ".gpkg": "GPKG",
    ".shp": "ESRI Shapefile",
    ".geojson": "GeoJSON",
    ".json": "GeoJSON",
    ".fgb": "FlatGeobuf",
}


def write_vectors(
    path: Path,
    shapes: Sequence[Any],
    crs: str | None = "EPSG:32633",
    *,
    layer: str | None = None,
    geometry_type: str = "Unknown",
    append: bool = False,
    **columns: Sequence[Any],
) -> Path:
    """Write a vector file with columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = [
        np.array(column, object if any(isinstance(v, str) or v is None for v in column) else None)
        for column in columns.values()
    ]
    options = {} if path.suffix == ".geojson" or layer is None else {"layer": layer}
    pyogrio.raw.write(
        path,
        np.array(shapely.to_wkb(np.array(shapes, object)), object),
        values,
        list(columns),
        geometry_type=geometry_type,
        crs=crs,
        driver=_DRIVERS[path.suffix],
        append=append,
        **options,
    )
    return path
