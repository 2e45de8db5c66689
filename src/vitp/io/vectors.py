"""Vector files (GeoPackage, Shapefile, GeoJSON, GeoParquet, …) through pyogrio: geometries and their columns.

Shapes: N features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.io.ground import check_crs, need_geo

VECTOR_SUFFIXES = frozenset({".gpkg", ".shp", ".geojson", ".fgb", ".parquet", ".geoparquet"})
"""Suffixes of vector files; GeoJSON may end with .json, too (`is_geojson`)."""

_BEGINS = {
    ".gpkg": b"SQLite format 3\0",
    ".shp": b"\x00\x00\x27\x0a",
    ".fgb": b"fgb",
    ".parquet": b"PAR1",
    ".geoparquet": b"PAR1",
    ".geojson": b"{",
    ".json": b"{",
}
"""How files begin. GDAL goes by the content: a file of another kind might name other files, or connections."""

_PARQUET = (".parquet", ".geoparquet")
_HEAD = 4096


@dataclass(frozen=True)
class VectorLayer:
    """The features of one layer.

    Attributes:
        path: Of the file.
        layer: Name of the layer.
        crs: Coordinate reference system, or None where the file doesn't say it.
        shapes_N: shapely geometries in two dimensions; None where a feature has none.
        columns: Name → values of each feature, N each.
    """

    path: Path
    layer: str
    crs: str | None
    shapes_N: np.ndarray
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.shapes_N)


def is_vector(path: Path) -> bool:
    """Return whether a file is a vector file by its name, or for .json by how it begins."""
    suffix = path.suffix.lower()
    return suffix in VECTOR_SUFFIXES or (suffix == ".json" and is_geojson(path))


def is_geojson(path: Path) -> bool:
    """Return whether a JSON file begins like a collection of GeoJSON features."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return b'"FeatureCollection"' in head and b'"images"' not in head


def vector_layers(path: Path) -> list[str]:
    """Return the names of a file's layers that hold geometries.

    Raises:
        DataError: The file can't be read.
    """
    pyogrio = _pyogrio(path)
    try:
        found = pyogrio.list_layers(path)
    except pyogrio.errors.DataSourceError as error:
        raise _unreadable(path, error) from error
    return [str(name) for name, kind in found if kind is not None]


def read_features(path: Path, layer: str, crs: str | None = None) -> VectorLayer:
    """Read one layer.

    Args:
        path: Of the file.
        layer: Its name.
        crs: What the coordinates are in, whatever the file says.

    Raises:
        DataError: The file can't be read, or is GeoJSON whose coordinates can't be what GeoJSON's must be.
    """
    pyogrio, shapely = _pyogrio(path), need_geo("shapely", str(path))
    try:
        meta, _, geometries, values = pyogrio.raw.read(path, layer=layer, force_2d=True)
        shapes_N = shapely.from_wkb(geometries)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, shapely.GEOSException) as error:
        raise _unreadable(path, error) from error
    columns = dict(zip((str(name) for name in meta["fields"]), values, strict=True))
    found = VectorLayer(path, layer, meta["crs"] or None, shapes_N, columns)
    if crs is not None:
        return VectorLayer(path, layer, check_crs(crs, "labels_crs"), shapes_N, columns)
    if path.suffix.lower() in (".geojson", ".json"):
        _check_degrees(found, shapely)
    return found


def _check_degrees(found: VectorLayer, shapely: Any) -> None:
    """Refuse GeoJSON in pixels or metres that doesn't say so: without `crs` it is in longitude and latitude."""
    if found.crs not in ("EPSG:4326", "OGC:CRS84") or not len(found):
        return
    bounds = shapely.total_bounds(found.shapes_N)
    if np.isfinite(bounds).all() and (np.abs(bounds) > (180.01, 90.01, 180.01, 90.01)).any():
        raise DataError(
            f"is GeoJSON, but its coordinates ({', '.join(f'{value:g}' for value in bounds)}) are no longitudes and "
            "latitudes",
            where=str(found.path),
            fix="say what they are in with -o labels_crs=EPSG:…; coordinates in pixels have no place on the ground",
        )


def _pyogrio(path: Path) -> Any:
    """Return pyogrio when its GDAL reads files of this kind."""
    pyogrio = need_geo("pyogrio", str(path))
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(_BEGINS[path.suffix.lower()].lstrip()):
        what = f"isn't what a name with {path.suffix} says"
        raise DataError(what, where=str(path), fix="save it again, or name it after what it is")
    if path.suffix.lower() in _PARQUET and "Parquet" not in pyogrio.list_drivers():
        version = ".".join(map(str, pyogrio.__gdal_version__))
        raise DataError(
            f"is GeoParquet, which this installation can't read: GDAL {version} of pyogrio {pyogrio.__version__} has "
            "no driver Parquet",
            where=str(path),
            fix=f"convert it (ogr2ogr {path.stem}.gpkg {path.name}), or install a pyogrio that has the driver",
        )
    return pyogrio


def _unreadable(path: Path, error: Exception) -> DataError:
    what = f"can't be read as a vector file ({' '.join(str(error).split())[:200]})"
    return DataError(
        what, where=str(path), fix="check the file; of a Shapefile .shx and .dbf must lie beside .shp"
    )
