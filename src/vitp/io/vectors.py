"""Vector files (GeoPackage, Shapefile, GeoJSON, …) through pyogrio, GeoParquet through pyarrow.

Shapes: N features.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.core.reading import head_of, parse_json
from vitp.io.ground import LONGITUDE_LATITUDE, check_crs

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
        path: Path of the file.
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
    head = head_of(path, _HEAD)
    return b'"FeatureCollection"' in head and b'"images"' not in head


def vector_layers(path: Path) -> list[str]:
    """Return the names of a file's layers that hold geometries.

    Raises:
        DataError: The file can't be read.
    """
    if path.suffix.lower() in _PARQUET:
        _check_head(path)
        return [path.stem]
    pyogrio = _pyogrio(path)
    try:
        found = pyogrio.list_layers(path)
    except pyogrio.errors.DataSourceError as error:
        raise _unreadable(path, error) from error
    return [str(name) for name, kind in found if kind is not None]


def read_features(path: Path, layer: str, crs: str | None = None) -> VectorLayer:
    """Read one layer.

    Args:
        path: Path of the file.
        layer: Its name.
        crs: What the coordinates are in, whatever the file says.

    Raises:
        DataError: The file can't be read, or is GeoJSON whose coordinates can't be what GeoJSON's must be.
    """
    shapely = need("geo", "shapely", str(path))
    if path.suffix.lower() in _PARQUET:
        found = _read_geoparquet(path, shapely)
        return found if crs is None else replace(found, crs=check_crs(crs, "labels_crs"))
    pyogrio = _pyogrio(path)
    try:
        meta, _, geometries, values = pyogrio.raw.read(path, layer=layer, force_2d=True)
        shapes_N = shapely.from_wkb(geometries)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, shapely.GEOSException) as error:
        raise _unreadable(path, error) from error
    columns = dict(zip((str(name) for name in meta["fields"]), values, strict=True))
    found = VectorLayer(path, layer, meta["crs"] or None, shapes_N, columns)
    if crs is not None:
        return replace(found, crs=check_crs(crs, "labels_crs"))
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


def is_plain(path: Path) -> bool:
    """Return whether pyogrio takes a path as it is: it cuts off what follows ";", and "!" parts an archive to it."""
    return not re.search(r"[;!\t\r\n]|\?$", str(path))


def _pyogrio(path: Path) -> Any:
    """Return pyogrio when its GDAL reads files of this kind."""
    pyogrio = need("geo", "pyogrio", str(path))
    if not is_plain(path):
        what = (
            "has a ; or ! or a tab in its path, which the library that reads vectors takes for something else"
        )
        raise DataError(what, where=str(path), fix="rename the file or folder")
    _check_head(path)
    return pyogrio


def _check_head(path: Path) -> None:
    """Refuse files that begin otherwise than their name says."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise _unreadable(path, error) from error
    # Texts may begin with a mark of their byte order.
    if not head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(_BEGINS[path.suffix.lower()].lstrip()):
        what = f"isn't what a name with {path.suffix} says"
        raise DataError(what, where=str(path), fix="save it again, or name it after what it is")


def _read_geoparquet(path: Path, shapely: Any) -> VectorLayer:
    """Read the main geometries of a GeoParquet file; the wheels of pyogrio have no driver for it."""
    pyarrow = need("geo", "pyarrow", str(path))
    parquet = need("geo", "pyarrow.parquet", str(path))
    try:
        file = parquet.ParquetFile(path)
        about = parse_json((file.schema_arrow.metadata or {})[b"geo"].decode())
        main, columns = str(about["primary_column"]), dict(about["columns"])
        # GeoParquet without an entry means longitude and latitude; null means that nobody knows.
        encoding, crs = str(columns[main]["encoding"]), columns[main].get("crs", LONGITUDE_LATITUDE)
        wanted = [
            field.name
            for field in file.schema_arrow
            if field.name == main or (field.name not in columns and not pyarrow.types.is_nested(field.type))
        ]
        table = file.read(wanted)
    except KeyError as error:
        what = 'is a Parquet file that doesn\'t say where its geometries are (no metadata "geo")'
        raise DataError(what, where=str(path), fix="save it as GeoParquet, or as a GeoPackage") from error
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from error
    if encoding != "WKB":
        what = f'has geometries as "{encoding[:40]}", and only WKB is read'
        raise DataError(what, where=str(path), fix="write it with geometry_encoding=WKB, or as a GeoPackage")
    try:
        shapes_N = shapely.force_2d(shapely.from_wkb(np.array(table[main].to_pylist(), dtype=object)))
    except shapely.GEOSException as error:
        raise _unreadable(path, error) from error
    values = {name: _values(table[name], pyarrow) for name in wanted if name != main}
    return VectorLayer(path, path.stem, _crs_of_geoparquet(crs, path), shapes_N, values)


def _values(column: Any, pyarrow: Any) -> np.ndarray:
    """Return numbers as numbers, NaN where one is missing, and everything else as objects."""
    kind = column.type
    if pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind):
        numbers: np.ndarray = column.to_numpy()
        return numbers
    found = np.empty(len(column), dtype=object)
    found[:] = column.to_pylist()
    return found


def _crs_of_geoparquet(crs: Any, path: Path) -> str | None:
    """Return the system that PROJ's JSON, or a text, names; None: it is said to be unknown."""
    if not crs:
        return None
    pyproj = need("geo", "pyproj", str(path))
    try:
        known = pyproj.CRS.from_user_input(crs)
    except (pyproj.exceptions.CRSError, TypeError) as error:
        what = "names a coordinate reference system that can't be read"
        raise DataError(what, where=str(path), fix="name it with -o labels_crs=EPSG:…") from error
    authority = known.to_authority()
    return ":".join(authority) if authority else str(known.to_wkt())


def _unreadable(path: Path, error: Exception) -> DataError:
    what = f"can't be read as a vector file ({' '.join(str(error).split())[:200]})"
    return DataError(
        what, where=str(path), fix="check the file; of a Shapefile .shx and .dbf must lie beside .shp"
    )
