"""Polygons as files: GeoPackage, GeoParquet and GeoJSON, written part by part.

Shapes: P polygons.
"""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from vitp.core.extras import need
from vitp.core.leftovers import temporary_folder
from vitp.inference.degrees import POLYGONS, in_degrees
from vitp.inference.outputs import PIXEL_SUFFIX
from vitp.io.ground import metres_of_unit
from vitp.io.open_pixels import Geometry
from vitp.io.slides import SlidePlace
from vitp.io.vectors import is_plain

VectorKind = Literal["gpkg", "parquet", "geojson", "none"]

_BATCH = 5000
"""Polygons that are written at once."""
_SUFFIXES = {"gpkg": ".gpkg", "parquet": ".parquet", "geojson": ".geojson"}
_LAYER = "predictions"
_DEGREES = 8
"""Decimals of longitude and latitude: about a millimetre."""


def vector_path(
    folder: Path, name: str, kind: VectorKind, geometry: Geometry | None, slide: SlidePlace | None = None
) -> Path:
    """Return the file of a raster's polygons; those of a raster without a place are in pixels."""
    if slide is not None:
        return folder / f"{name}.geojson"
    return folder / f"{name}{PIXEL_SUFFIX if geometry is None else _SUFFIXES[kind]}"


class VectorFile:
    """A file of polygons with class, score and area in m²; use it in a `with` statement.

    GeoPackage and GeoParquet are in the raster's reference system, GeoJSON in longitude and latitude; of a slide it is
    in pixels of its finest level, as QuPath reads it. The same polygons are the same file, whenever it is written.

    Args:
        path: See `vector_path`; what is there is replaced.
        kind: Kind of file.
        geometry: Where the pixels lie; None: GeoJSON in pixels, without areas.
        scored: Whether polygons have scores.
        multi: Whether an object may be of several polygons.
        slide: Where the pixels lie on a slide; None: it is none.
        colours: Colours of the classes, for a slide.

    Raises:
        DataError: A package of the extra `geo` isn't installed.
    """

    def __init__(
        self,
        path: Path,
        kind: VectorKind,
        geometry: Geometry | None,
        *,
        scored: bool,
        multi: bool,
        slide: SlidePlace | None = None,
        colours: Mapping[str, tuple[int, int, int]] | None = None,
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._geometry, self._scored, self._slide = geometry, scored, slide
        self._waiting: list[tuple[np.ndarray, list[str], np.ndarray | None]] = []
        self._count = 0
        shape = "MultiPolygon" if multi else "Polygon"
        if slide is not None:
            self._sink: _Sink = _QuPathJson(path, slide, shape, colours or {}, detections=scored)
        else:
            self._sink = (_PixelJson if geometry is None else _SINKS[kind])(path, geometry, shape)

    def add(self, polygons_P: np.ndarray, classes: Sequence[str], scores_P: np.ndarray | None = None) -> None:
        """Add polygons in pixels of the image, with their classes and, where they are scored, scores."""
        self._waiting.append((polygons_P, list(classes), scores_P))
        self._count += len(polygons_P)
        if self._count >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        """Write what waits. A file without polygons is written once, when it is closed."""
        polygons_P = np.concatenate([polygons for polygons, _, _ in self._waiting])
        fields: dict[str, np.ndarray] = {
            "class": np.array([name for _, classes, _ in self._waiting for name in classes], object)
        }
        if self._scored:
            scores = [scores for _, _, scores in self._waiting if scores is not None]
            fields["score"] = np.concatenate(scores).astype(np.float64).round(5)
        self._waiting, self._count = [], 0
        if self._geometry is not None and len(polygons_P):
            polygons_P = placed(polygons_P, self._geometry)
            fields["area_m2"] = square_metres(polygons_P, self._geometry.crs)
        if self._slide is not None and (each := self._slide.square_micrometres) is not None:
            fields["area_um2"] = need("geo", "shapely", POLYGONS).area(polygons_P) * each
        self._sink.write(polygons_P, fields)

    def __enter__(self) -> VectorFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and (self._count or self._sink.empty):
            self._waiting = self._waiting or [(np.zeros(0, object), [], np.zeros(0))]
            self._flush()
        self._sink.close()


def placed(polygons_P: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Return polygons in pixels as polygons on the map."""
    shapely = need("geo", "shapely", POLYGONS)

    on_map: np.ndarray = shapely.transform(polygons_P, geometry.to_map)
    return on_map


def square_metres(polygons_P: np.ndarray, crs: str) -> np.ndarray:
    """Return (P,) areas of shapely polygons in a reference system: on the plane of a projected one, else geodesic."""
    shapely = need("geo", "shapely", POLYGONS)

    unit = metres_of_unit(crs)
    if unit is not None:
        planar_P: np.ndarray = shapely.area(polygons_P) * unit**2
        return planar_P
    geod = need("geo", "pyproj", crs).CRS(crs).get_geod()
    # Of a polygon whose rings turn the wrong way the area would be negative.
    return np.array([abs(geod.geometry_area_perimeter(one)[0]) for one in shapely.normalize(polygons_P)])


class _Sink(ABC):
    """What a kind of file does with some polygons on the map.

    Args:
        path: New file.
        geometry: Where pixels lie.
        shape: "Polygon" or "MultiPolygon".
    """

    def __init__(self, path: Path, geometry: Geometry | None, shape: str) -> None:
        self.path, self.shape, self.empty = path, shape, True
        self.crs = "" if geometry is None else geometry.crs

    def write(self, polygons_P: np.ndarray, fields: dict[str, np.ndarray]) -> None:
        """Write polygons; the first call may have none."""
        shapely = need("geo", "shapely", POLYGONS)

        if self.shape == "MultiPolygon" and len(polygons_P):
            single_P = shapely.get_type_id(polygons_P) == shapely.GeometryType.POLYGON
            # A layer of multipolygons takes no polygons beside them.
            polygons_P = np.array(
                [
                    shapely.MultiPolygon([one]) if s else one
                    for one, s in zip(polygons_P, single_P, strict=True)
                ],
                object,
            )
        self.put(polygons_P, fields)
        self.empty = False

    @abstractmethod
    def put(self, polygons_P: np.ndarray, fields: dict[str, np.ndarray]) -> None:
        """Write polygons that `write` has brought into one type."""

    def close(self) -> None:  # noqa: B027 - some kinds are finished with each write
        """Finish the file."""


class _GeoPackage(_Sink):
    def __init__(self, path: Path, geometry: Geometry | None, shape: str) -> None:
        super().__init__(path, geometry, shape)
        self._opened = ExitStack()
        self._file = path
        if not is_plain(path):  # under a plain name until it is finished
            self._file = self._opened.enter_context(temporary_folder("polygons")) / f"{_LAYER}.gpkg"

    def close(self) -> None:
        with self._opened:
            if self._file != self.path and self._file.exists():
                shutil.move(self._file, self.path)

    def put(self, polygons_P: np.ndarray, fields: dict[str, np.ndarray]) -> None:
        pyogrio = need("geo", "pyogrio", str(self.path))
        shapely = need("geo", "shapely", POLYGONS)

        # A file without polygons has the columns of one with some.
        fields = fields if len(polygons_P) else {**fields, "area_m2": np.zeros(0)}
        # GeoPackages note when they were changed; equal predictions are to be equal files.
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "1970-01-01T00:00:00.000Z"})
        try:
            pyogrio.raw.write(
                str(self._file),
                np.array(shapely.to_wkb(polygons_P), object).reshape(-1),
                list(fields.values()),
                list(fields),
                layer=_LAYER,
                driver="GPKG",
                geometry_type=self.shape,
                crs=self.crs,
                append=not self.empty,
            )
        finally:
            pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})


class _GeoParquet(_Sink):
    _writer: Any = None

    def put(self, polygons_P: np.ndarray, fields: dict[str, np.ndarray]) -> None:
        pyarrow = need("geo", "pyarrow", str(self.path))
        parquet = need("geo", "pyarrow.parquet", str(self.path))
        shapely = need("geo", "shapely", POLYGONS)

        fields = fields if len(polygons_P) else {**fields, "area_m2": np.zeros(0)}
        columns = {"geometry": pyarrow.array(list(shapely.to_wkb(polygons_P)), pyarrow.binary())}
        for name, values in fields.items():
            kind = pyarrow.string() if name == "class" else pyarrow.float64()
            columns[name] = pyarrow.array(list(values), kind)
        table = pyarrow.table(columns)
        if self._writer is None:
            crs = json.loads(need("geo", "pyproj", str(self.path)).CRS(self.crs).to_json())
            column = {"encoding": "WKB", "geometry_types": [self.shape], "crs": crs}
            head = {"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": column}}
            self._schema = table.schema.with_metadata({"geo": json.dumps(head)})
            self._writer = parquet.ParquetWriter(self.path, self._schema)
        self._writer.write_table(table.cast(self._schema))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _GeoJson(_Sink):
    """RFC 7946: longitude and latitude, cut at the 180th meridian, outer rings counter-clockwise."""

    head: ClassVar[dict[str, Any]] = {"type": "FeatureCollection"}
    decimals = _DEGREES

    def put(self, polygons_P: np.ndarray, fields: dict[str, np.ndarray]) -> None:
        shapely = need("geo", "shapely", POLYGONS)
        orient = need("geo", "shapely.geometry.polygon", POLYGONS).orient

        polygons_P = self.moved(polygons_P)
        with self.path.open("a", encoding="utf-8") as file:
            if self.empty:
                head = json.dumps(self.head, ensure_ascii=False)
                file.write(f'{head[:-1]}, "features": [')
            # RFC 7946 wants outer rings anticlockwise; `to_geojson` leaves them as they are.
            for number, polygon in enumerate(polygons_P):
                if polygon.geom_type == "Polygon":
                    turned = orient(polygon)
                else:
                    turned = shapely.MultiPolygon([orient(part) for part in polygon.geoms])
                geometry = _rounded(json.loads(shapely.to_geojson(turned)), self.decimals)
                values = self.properties({key: _plain(value[number]) for key, value in fields.items()})
                row = {"type": "Feature", "properties": values, "geometry": geometry}
                file.write(
                    f"{'' if self.empty and not number else ','}\n{json.dumps(row, ensure_ascii=False)}"
                )

    def properties(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the properties of a feature."""
        return fields

    def moved(self, polygons_P: np.ndarray) -> np.ndarray:
        """Return polygons of the map in longitude and latitude."""
        return in_degrees(polygons_P, self.crs)

    def close(self) -> None:
        if self.path.exists():
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n]}\n")


class _PixelJson(_GeoJson):
    """The same in pixels of the image, y down."""

    head: ClassVar[dict[str, Any]] = {
        "type": "FeatureCollection",
        "coordinates": "pixels of the image, x to the right, y down",
    }
    decimals = 2

    def moved(self, polygons_P: np.ndarray) -> np.ndarray:
        """Return the polygons as they are."""
        return polygons_P


class _QuPathJson(_PixelJson):
    """What QuPath imports: objects in pixels of the finest level, with a classification and measurements."""

    head: ClassVar[dict[str, Any]] = {"type": "FeatureCollection"}

    def __init__(
        self,
        path: Path,
        slide: SlidePlace,
        shape: str,
        colours: Mapping[str, tuple[int, int, int]],
        *,
        detections: bool,
    ) -> None:
        super().__init__(path, None, shape)
        self._slide, self._colours = slide, colours
        self._kind = "detection" if detections else "annotation"

    def moved(self, polygons_P: np.ndarray) -> np.ndarray:
        """Return polygons of the part in pixels of the finest level."""
        finest: np.ndarray = need("geo", "shapely", POLYGONS).transform(polygons_P, self._slide.to_finest)
        return finest

    def properties(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the properties of an object of QuPath."""
        name = fields["class"]
        told = {"score": "Score", "area_um2": "Area µm^2"}
        return {
            "objectType": self._kind,
            "classification": {"name": name, "color": list(self._colours.get(name, (128, 128, 128)))},
            "isLocked": False,
            "measurements": {word: round(fields[key], 5) for key, word in told.items() if key in fields},
        }


_SINKS: dict[str, type[_Sink]] = {"gpkg": _GeoPackage, "parquet": _GeoParquet, "geojson": _GeoJson}


def _rounded(geometry: dict[str, Any], decimals: int) -> dict[str, Any]:
    def walk(values: Any) -> Any:
        return [walk(one) for one in values] if isinstance(values, list) else round(values, decimals)

    return {**geometry, "coordinates": walk(geometry["coordinates"])}


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else float(value)
