"""`open_pixels`: one contract for whatever holds pixels, in the file's own values.

| kind | behind it |
|---|---|
| pictures (PNG, JPEG, WebP, …) | `vitp.io.image_file` |
| GeoTIFF, COG, JPEG 2000, VRT, ENVI, netCDF, folders of one file a band | `vitp.io.rasters` (extra `geo`) |

An address may end with `#window=x1,y1,x2,y2`: then only these pixels are the image.

Shapes: C bands, H × W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

Window = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels; x2 and y2 exclusive."""


@dataclass(frozen=True)
class Band:
    """One band of a file.

    Attributes:
        name: As the file has it, else its number from 1; unique within the file.
        wavelength: Centre in nanometres, where known.
        polarisation: Of radar (VV, VH, …), where known.
    """

    name: str
    wavelength: float | None = None
    polarisation: str | None = None


@dataclass(frozen=True)
class Geometry:
    """Where pixels lie on the ground.

    Attributes:
        crs: Coordinate reference system as "EPSG:32633" or WKT.
        transform: a, b, c, d, e, f of x = a · column + b · row + c, y = d · column + e · row + f; columns and rows in
            edge coordinates: pixel (i, j) covers i … i + 1 and j … j + 1.
    """

    crs: str
    transform: tuple[float, float, float, float, float, float]

    def to_map(self, points_N2: np.ndarray) -> np.ndarray:
        """Return (N, 2) map coordinates of points x, y in pixels."""
        a, b, c, d, e, f = self.transform
        placed_N2: np.ndarray = points_N2 @ np.array([[a, d], [b, e]]) + np.array([c, f])
        return placed_N2

    def to_pixels(self, points_N2: np.ndarray) -> np.ndarray:
        """Return (N, 2) points x, y in pixels of map coordinates."""
        a, b, c, d, e, f = self.transform
        placed_N2: np.ndarray = (points_N2 - np.array([c, f])) @ np.linalg.inv(np.array([[a, d], [b, e]]))
        return placed_N2

    def of_window(self, window: Window) -> Geometry:
        """Return the geometry of a part of the image."""
        a, b, c, d, e, f = self.transform
        x, y = window[:2]
        return Geometry(self.crs, (a, b, a * x + b * y + c, d, e, d * x + e * y + f))


class Pixels(ABC):
    """An open file of pixels; close it, or use it in a `with` statement.

    Attributes:
        where: Address, for messages.
        size: Width and height.
        bands: In the order of the file.
        dtype: Of the values that `read` returns.
        nodata: Value that marks pixels that hold nothing; None: there is none, or a mask marks them.
        geometry: None: the file doesn't say where it lies.
        levels: Levels that `read` takes: 0 … levels − 1; each halves width and height (rounded up).
    """

    where: str
    size: tuple[int, int]
    bands: tuple[Band, ...]
    dtype: np.dtype
    nodata: float | None
    geometry: Geometry | None
    levels: int

    @abstractmethod
    def read(
        self, window: Window | None = None, bands: Sequence[str] | None = None, level: int = 0
    ) -> np.ndarray:
        """Return (C, H, W) values of the file's own type.

        Args:
            window: In pixels of level 0; None: all of it.
            bands: Names, in the wanted order; None: all.
            level: 0: each pixel; n: reduced 2ⁿ times, from the file's pyramid where it has one.

        Raises:
            DataError: A band or window isn't there, or the file is damaged.
        """

    @abstractmethod
    def valid(self, window: Window | None = None, level: int = 0) -> np.ndarray:
        """Return (H, W) bool: which pixels hold something (nodata, mask, alpha; NaN holds nothing)."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the bands."""
        return tuple(band.name for band in self.bands)

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_pixels(address: str) -> Pixels:
    """Open whatever holds pixels."""
    from vitp.io.opening import opened

    return opened(str(address))
