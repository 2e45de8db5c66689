"""Rasters through rasterio: GeoTIFF, COG, JPEG 2000, VRT and whatever else its GDAL reads.

Shapes: C bands, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.io.open_pixels import Band, Geometry, Pixels, Window


def need_rasterio(where: str) -> Any:
    """Return the module rasterio.

    Raises:
        DataError: It isn't installed.
    """
    try:
        import rasterio
    except ImportError as error:
        raise DataError(
            "needs rasterio to be read", where=where, fix="install it with `pip install 'vitp[geo]'`"
        ) from error
    return rasterio


class RasterPixels(Pixels):
    """A raster, open for reading; see `Pixels`.

    Raises:
        DataError: rasterio isn't installed or can't read the file.
    """

    def __init__(self, address: str) -> None:
        rasterio = need_rasterio(address)
        try:
            self._file = rasterio.open(address)
        except rasterio.errors.RasterioIOError as error:
            raise DataError(
                f"can't be read ({error})", where=address, fix="check the path, or copy it again"
            ) from error
        self.where = address
        self.size = (self._file.width, self._file.height)
        names = [text or str(number) for number, text in enumerate(self._file.descriptions, 1)]
        if len(set(names)) < len(names):
            names = [str(number) for number in range(1, len(names) + 1)]
        self.bands = tuple(Band(name) for name in names)
        self.dtype = np.result_type(*self._file.dtypes)
        self.nodata = self._file.nodata
        self.geometry = None
        if self._file.crs is not None:
            self.geometry = Geometry(self._file.crs.to_string(), tuple(self._file.transform)[:6])
        self.levels = max(1, int(max(self.size)).bit_length())

    def read(
        self, window: Window | None = None, bands: Sequence[str] | None = None, level: int = 0
    ) -> np.ndarray:
        """Return (C, H, W) values; see `Pixels.read`."""
        x1, y1, x2, y2 = window or (0, 0, *self.size)
        numbers = [self.names.index(band) + 1 for band in bands] if bands is not None else None
        shape = (-(-(y2 - y1) >> level), -(-(x2 - x1) >> level))
        count = len(numbers) if numbers is not None else len(self.bands)
        values_CHW: np.ndarray = self._file.read(
            numbers, window=((y1, y2), (x1, x2)), out_shape=(count, *shape)
        )
        return values_CHW

    def valid(self, window: Window | None = None, level: int = 0) -> np.ndarray:
        """Return (H, W) bool; see `Pixels.valid`."""
        x1, y1, x2, y2 = window or (0, 0, *self.size)
        shape = (-(-(y2 - y1) >> level), -(-(x2 - x1) >> level))
        mask_HW: np.ndarray = self._file.dataset_mask(window=((y1, y2), (x1, x2)), out_shape=shape) > 0
        return mask_HW

    def close(self) -> None:
        """Close the file."""
        self._file.close()
