"""Label rasters on the pixels of an image that has another reference system, resolution or extent.

Shapes: H × W pixels of the image.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.io.contract import Geometry
from vitp.io.ground import corners, geometry_of, may_be_placed, reproject
from vitp.io.parts import Window
from vitp.io.raster_sources import check_sources
from vitp.io.rasters import gdal, raster_driver

_SAME = 0.5
"""Pixels by which the corners of two grids may differ that are meant to be one."""

_LARGE = 4_000_000
"""Pixels of a label raster from which on only the part that is wanted is read."""

_TOLERANCE = 0.01
"""Pixels by which the reprojection may be off, which GDAL interpolates between exact points."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The pixels of an image on the ground: reference system, transform as `Geometry` has it, width and height."""

    crs: str
    transform: tuple[float, float, float, float, float, float]
    size: tuple[int, int]

    @classmethod
    def of(cls, geometry: Geometry, size: tuple[int, int]) -> Self:
        """Return the pixels of an image."""
        return cls(geometry.crs, geometry.transform, size)

    @property
    def geometry(self) -> Geometry:
        """Where the pixels lie."""
        return Geometry(self.crs, self.transform)

    def to_json(self) -> dict[str, Any]:
        """Return the grid as plain values."""
        return {"crs": self.crs, "transform": list(self.transform), "size": list(self.size)}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """Return what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: The values aren't of that form.
        """
        a, b, c, d, e, f = (float(value) for value in row["transform"])
        width, height = (int(value) for value in row["size"])
        if not isinstance(row["crs"], str):
            raise TypeError("crs is no text")
        return cls(row["crs"], (a, b, c, d, e, f), (width, height))


def same_pixels(one: Grid, other: Grid) -> bool:
    """Return whether two rasters have the same pixels on the ground, to half a pixel."""
    if one.size != other.size:
        return False
    expected = np.array([(0, 0), (one.size[0], 0), one.size, (0, one.size[1])], np.float64)
    placed = reproject(corners(other.geometry, other.size), other.crs, one.crs)
    return bool(
        np.isfinite(placed).all() and np.abs(one.geometry.to_pixels(placed) - expected).max() <= _SAME
    )


def warped_labels(
    path: str | Path, onto: Grid, window: Window | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a label raster on the pixels of an image, each that of the nearest pixel.

    Args:
        path: Path of the raster.
        onto: The pixels of the image.
        window: The part of them that is wanted; None: all.

    Returns:
        Values, (H, W) or (H, W, 3) for colours, and (H, W) bool: which pixels the raster covers.

    Raises:
        DataError: The raster can't be read, or the two can't be brought together.
    """
    where = str(path)
    rasterio, vrt = need("geo", "rasterio", where), need("geo", "rasterio.vrt", where)
    x1, y1, x2, y2 = window or (0, 0, *onto.size)
    a, b, c, d, e, f = onto.transform
    try:
        with (
            gdal(where),
            rasterio.open(where, driver=_driver(where)) as file,
            vrt.WarpedVRT(
                file,
                crs=onto.crs,
                transform=rasterio.Affine(a, b, c, d, e, f),
                width=onto.size[0],
                height=onto.size[1],
                resampling=rasterio.enums.Resampling.nearest,
                tolerance=_TOLERANCE,
                src_nodata=None,  # values of labels stand for themselves
                nodata=None,
                # It tells which pixels the raster covers; files of two and of four bands have one.
                add_alpha=file.count not in (2, 4),
            ) as warped,
        ):
            values_CHW = warped.read(window=((y1, y2), (x1, x2)))
            values_CHW[:-1] = _as_labels(file, values_CHW[:-1])
    except (rasterio.errors.RasterioError, rasterio.errors.CRSError) as error:
        fix = "check the file and its coordinate reference system"
        raise DataError(f"can't be brought onto its image ({error})", where=where, fix=fix) from error
    return _planes(values_CHW), values_CHW[-1] > 0


def _driver(where: str) -> str:
    """Return GDAL's name of the kind of a file; those that name other files may name files of this machine alone.

    Raises:
        DataError: It is none of the kinds that labels are read from.
    """
    driver = raster_driver(where)
    if driver == "VRT" and not check_sources(where, where):
        return driver
    if driver not in ("GTiff", "JP2OpenJPEG", "HFA"):
        raise DataError("is no GeoTIFF", where=where, fix="save the labels as a GeoTIFF (gdal_translate)")
    return driver


def label_window(path: str | Path, window: Window) -> np.ndarray | None:
    """Return a part of a large label raster as `load_label_pixels` has it, without reading the rest.

    None where that spares nothing or can't be done: for smaller files, those of other formats, and where rasterio isn't
    installed.

    Raises:
        DataError: The raster can't be read.
    """
    if Path(path).suffix.lower() not in (".tif", ".tiff"):
        return None
    try:
        rasterio = need("geo", "rasterio", str(path))
    except DataError:
        return None
    x1, y1, x2, y2 = window
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        try:
            with rasterio.open(str(path), driver=_driver(str(path))) as file:
                if file.width * file.height < _LARGE or file.count not in (1, 3, 4):
                    return None
                values_CHW = _as_labels(file, file.read(window=((y1, y2), (x1, x2))))
        except rasterio.errors.RasterioError as error:
            raise DataError(f"can't be read ({error})", where=str(path), fix="check the file") from error
    return _planes(values_CHW)


def _planes(values_CHW: np.ndarray) -> np.ndarray:
    """Return (H, W) values, or (H, W, 3) colours; transparency is left out."""
    if len(values_CHW) > 2:
        return np.ascontiguousarray(values_CHW[:3].transpose(1, 2, 0))
    return np.asarray(values_CHW[0])


def _as_labels(file: Any, values_CHW: np.ndarray) -> np.ndarray:
    """Return values of one bit as 0 and 255, black and white, as pictures have them; others as they are."""
    facts = file.tags(1, ns="IMAGE_STRUCTURE")
    if facts.get("NBITS") != "1":
        return values_CHW
    white = file.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
    return np.where((values_CHW > 0) != white, np.uint8(255), np.uint8(0))


def grid_of_image(
    image: str | Path,
    size: tuple[int, int],
    labels: str | Path,
    labels_size: tuple[int, int],
    *,
    whole: bool = False,
) -> Grid | None:
    """Return the pixels of an image whose label raster has others on the ground.

    None: the two have the same, or one doesn't say where it lies, or rasterio and pyproj aren't installed.

    Args:
        image: Path.
        size: Width and height.
        labels: Path of the label raster.
        labels_size: Its width and height.
        whole: It has to cover all of the image, as nothing can stand for what isn't known.

    Raises:
        DataError: The label raster doesn't lie where the image does, or not everywhere.
    """
    if not (may_be_placed(image) and may_be_placed(labels)):
        return None
    try:
        shapely = need("geo", "shapely", str(labels))
        own, other = geometry_of(image), geometry_of(labels)
    except DataError:
        return None
    if own is None or other is None:
        return None
    grid, beside = Grid.of(own, size), Grid.of(other, labels_size)
    if same_pixels(grid, beside):
        return None
    # With points between the corners: in another system straight borders are curves.
    outline = own.to_pixels(reproject(corners(other, labels_size, 8), other.crs, own.crs))
    area = 0.0
    if np.isfinite(outline).all():
        area = shapely.Polygon(outline).buffer(_SAME).intersection(shapely.box(0, 0, *size)).area
    if area < 1:
        raise DataError("doesn't lie where its image does", where=str(labels), fix="check the two files")
    if whole and area < (1 - 1e-6) * size[0] * size[1]:
        what = f"covers {100 * area / (size[0] * size[1]):.1f} % of its image"
        raise DataError(what, where=str(labels), fix="cut the image to what the mask covers")
    return grid
