"""Label rasters on the pixels of an image that has another reference system, resolution or extent.

Shapes: H × W pixels of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from vitp.core.errors import DataError
from vitp.io.ground import corners, need_geo, reproject
from vitp.io.open_pixels import Geometry, Window

_SAME = 0.5
"""Pixels by which the corners of two grids may differ that are meant to be one."""

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
        path: Of the raster.
        onto: The pixels of the image.
        window: The part of them that is wanted; None: all.

    Returns:
        Values, (H, W) or (H, W, 3) for colours, and (H, W) bool: which pixels the raster covers.

    Raises:
        DataError: The raster can't be read, or the two can't be brought together.
    """
    where = str(path)
    rasterio, vrt = need_geo("rasterio", where), need_geo("rasterio.vrt", where)
    x1, y1, x2, y2 = window or (0, 0, *onto.size)
    a, b, c, d, e, f = onto.transform
    try:
        with (
            rasterio.open(where) as file,
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
                add_alpha=file.count not in (2, 4),
            ) as warped,
        ):
            values_CHW = warped.read(window=((y1, y2), (x1, x2)))
    except (rasterio.errors.RasterioError, rasterio.errors.CRSError) as error:
        fix = "check the file and its coordinate reference system"
        raise DataError(f"can't be brought onto its image ({error})", where=where, fix=fix) from error
    inside_HW = values_CHW[-1] > 0
    if len(values_CHW) > 2:
        return np.ascontiguousarray(values_CHW[:3].transpose(1, 2, 0)), inside_HW
    return values_CHW[0], inside_HW
