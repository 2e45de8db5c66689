"""What every file of pixels offers: size, bands, place on the ground, and windows of its own values.

Shapes: C bands, H × W pixels.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from vitp.core.errors import DataError
from vitp.io.acquisition import Acquisition
from vitp.io.parts import FilePart, Window, check_window
from vitp.io.value_math import averaged, between, percentile_range
from vitp.records.channels import UNMOVED, Channels, Moved, band_key

LARGEST_READ_BYTES = 4_000_000_000
"""Of the values that one call returns."""
_NUMBERED = re.compile(r"\D\d|\d\D")
_STRIP_PIXELS = 1 << 22
"""Of all bands, that are averaged at a time."""


@dataclass(frozen=True)
class Band:
    """One band of a file.

    Attributes:
        name: As the file has it, else its number from 1; unique within the file.
        wavelength: Centre in nanometres, where known.
        polarisation: Polarisation of radar (VV, VH, …), where known.
        scale: The quantity is value · scale + offset, as the file says. `read` returns the values, not the quantity.
        offset: See `scale`.
        unit: Unit of the quantity, as the file names it.
        nodata: Value that marks pixels that hold nothing in this band.
    """

    name: str
    wavelength: float | None = None
    polarisation: str | None = None
    scale: float = 1.0
    offset: float = 0.0
    unit: str | None = None
    nodata: float | None = None


@dataclass(frozen=True)
class Geometry:
    """Where pixels lie on the ground.

    Attributes:
        crs: Coordinate reference system as "EPSG:32633" or WKT.
        transform: a, b, c, d, e, f of x = a · column + b · row + c, y = d · column + e · row + f; columns and
            rows in edge coordinates: pixel (i, j) covers i … i + 1 and j … j + 1.
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
    """An open file of pixels; close it, or use it in a `with` statement. For one thread at a time.

    Attributes:
        where: Address, for messages.
        size: Width and height.
        bands: In the order of the file.
        dtype: Type of the values that `read` returns.
        nodata: Value that marks pixels that hold nothing; None: there is none, a mask marks them, or bands have
            several (see `Band.nodata`).
        geometry: None: the file doesn't say where it lies.
        levels: Levels that `read` takes: 0 … levels − 1; each halves width and height (rounded up).
        is_picture: Whether it is an 8-bit picture, grey or RGB, which `vitp.io.images.load_image` returns as it
            stands.
        palette_V3: Colours, (256, 3) uint8, that the values of a single band stand for; None: they have none.
        notes: What a user should know of how the file was understood, each a sentence without its full stop.
        spacing: Millimetres of a pixel along x and along y, of medical images and slides. None: not known.
        acquisition: How a medical image was taken; None: the file doesn't say, or is none.
        says_shown: Whether the file says how its values are shown; see `shown`.
    """

    where: str
    size: tuple[int, int]
    bands: tuple[Band, ...]
    dtype: np.dtype[Any]
    nodata: float | None
    geometry: Geometry | None
    is_picture: bool = False
    palette_V3: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    spacing: tuple[float, float] | None = None
    acquisition: Acquisition | None = None
    says_shown: bool = False
    _factors: tuple[int, ...] = (1,)
    """Powers of two for which the file has a pyramid, 1 among them."""

    @property
    def levels(self) -> int:
        """Levels that `read` takes; the last one is a single pixel."""
        return max(1, int(max(self.size) - 1).bit_length() + 1)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the bands."""
        return tuple(band.name for band in self.bands)

    def numbers(self, bands: Sequence[str] | None) -> list[int]:
        """Return the places, from 0, of bands; None: of all.

        A name counts as the file has it; else in any case, and B4 for B04. A number counts from 1 where no band's
        name has numbers of its own.

        Raises:
            DataError: The file lacks some.
        """
        if bands is None:
            return list(range(len(self.bands)))
        names, keys = self.names, [band_key(name) for name in self.names]
        found = []
        for band in bands:
            if band in names:
                found.append(names.index(band))
            elif keys.count(band_key(band)) == 1:
                found.append(keys.index(band_key(band)))
            # Beside names such as B02 a mere number would have two readings.
            elif band.isdecimal() and 1 <= int(band) <= len(names) and not any(map(_NUMBERED.search, names)):
                found.append(int(band) - 1)
            else:
                raise DataError(
                    f"has no band {band!r}; it has {', '.join(names)}",
                    where=self.where,
                    fix="name one of these",
                )
        return found

    def read(
        self, window: Window | None = None, bands: Sequence[str] | None = None, level: int = 0
    ) -> np.ndarray:
        """Return (C, H, W) values of the file's own type, without any scaling.

        Args:
            window: In pixels of level 0; None: all of it.
            bands: Names, in the wanted order; None: all.
            level: 0: each pixel; n: squares of 2ⁿ × 2ⁿ pixels, counted from the window's corner and cut at its
                end, are averaged into one; those that hold nothing don't count. The file's own pyramid is used
                where it fits these squares; then values are as its writer reduced them. Numbers of classes are
                read at level 0.

        Raises:
            DataError: A band or window isn't there, or the file is damaged.
        """
        return self.read_valid(window, bands, level)[0]

    def valid(self, window: Window | None = None, level: int = 0) -> np.ndarray:
        """Return (H, W) bool: which pixels hold something in any band.

        Nodata, masks and transparency tell; NaN and infinity hold nothing. At a level: whether any of a square's
        pixels does.
        """
        wanted = self._checked(window, (), level)[0]
        if self._all_valid:
            return np.ones(_shape(wanted, 1 << level), bool)
        valid_CHW = self.read_valid(window, None, level)[1]
        held_HW: np.ndarray = np.any(valid_CHW, axis=0)
        return held_HW

    def read_valid(
        self, window: Window | None = None, bands: Sequence[str] | None = None, level: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what `read` does, and (C, H, W) bool: which of these values count, band by band."""
        (x1, y1, x2, y2), numbers, have = self._checked(window, bands, level)
        if level == 0:
            return self._stored((x1, y1, x2, y2), numbers, 1)
        rest = (1 << level) // have
        height, width = _shape((x1, y1, x2, y2), 1 << level)
        values_CHW = np.empty((len(numbers), height, width), self.dtype)
        valid_CHW = np.empty(values_CHW.shape, bool)
        left, top, right, bottom = x1 // have, y1 // have, -(-x2 // have), -(-y2 // have)
        # Strips of whole squares: no square is averaged in two parts, and never all is held at full size.
        rows = max(1, _STRIP_PIXELS // (max(1, len(numbers)) * (right - left) * rest))
        for row in range(0, height, rows):
            first, last = top + row * rest, min(top + (row + rows) * rest, bottom)
            values, valid = self._stored((left, first, right, last), numbers, have)
            count = -(-(last - first) // rest)
            values_CHW[:, row : row + count], valid_CHW[:, row : row + count] = averaged(values, valid, rest)
        return values_CHW, valid_CHW

    def read_quantity(
        self, window: Window | None = None, bands: Sequence[str] | None = None, level: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the values that channels count in, (C, H, W), and which of them count, as `read_valid` does.

        Of volumes that is the quantity, value · scale + offset (Hounsfield units, for one), because one series may
        have another scale in each of its files. Of all others it is the file's own values.
        """
        return self.read_valid(window, bands, level)

    def seen(
        self,
        channels: Channels,
        bands: Sequence[str],
        window: Window | None = None,
        level: int = 0,
        moved: Moved = UNMOVED,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what a tower sees, (C, H, W) uint8, and which pixels count, band by band. Those that don't are 0.

        Args:
            channels: How the values of each band are scaled.
            bands: What this file calls the band of each channel.
            window, level: As `read` has them.
            moved: As `Channels.scale` has it.
        """
        values_CHW, valid_CHW = self.read_quantity(window, bands, level)
        seen_CHW = channels.scale(values_CHW, of=self, bands=bands, moved=moved)
        seen_CHW[~valid_CHW] = 0
        return seen_CHW, valid_CHW

    def percentiles(self, band: str, low: float, high: float) -> tuple[float, float]:
        """Return two percentiles of the valid values other than 0 of a band, of the whole volume.

        Of an image that is no slice of a volume they are its own; 8-bit images are seen as they stand: 0 and 255.
        """
        if self.dtype == np.uint8:
            return 0.0, 255.0
        values_CHW, valid_CHW = self.read_quantity(None, [band], self._small_level)
        return percentile_range(values_CHW[valid_CHW & (values_CHW != 0)], low, high)

    def shown(self, values_HW: np.ndarray, band: str) -> np.ndarray:
        """Return quantities of a band, of any part of the image, as the file says that they are shown, 0 to 255.

        Files that don't say so show their lowest value as black and their highest as white; those of 8 bits are shown
        as they stand.
        """
        if self.dtype == np.uint8:
            return values_HW
        values_CHW, valid_CHW = self.read_quantity(None, [band], self._small_level)
        low, high = percentile_range(values_CHW[valid_CHW], 0, 100)
        return between(values_HW, low, high)

    @property
    def _small_level(self) -> int:
        """The level at which the whole image may be read to be measured."""
        level = 0
        while (self.size[0] >> level) * (self.size[1] >> level) > _STRIP_PIXELS:
            level += 1
        return level

    def _checked(
        self, window: Window | None, bands: Sequence[str] | None, level: int
    ) -> tuple[Window, list[int], int]:
        """Check window, bands and level; return the window, the bands' places and the reduction to read."""
        numbers = self.numbers(bands)
        wanted = window if window is not None else (0, 0, *self.size)
        check_window(wanted, self.size, self.where)
        if not 0 <= level < self.levels:
            what = f"has no level {level}; it has 0 to {self.levels - 1}"
            raise DataError(what, where=self.where, fix="name one of these")
        height, width = _shape(wanted, 1 << level)
        bytes_ = height * width * max(1, len(numbers)) * self.dtype.itemsize
        if bytes_ > LARGEST_READ_BYTES:
            what = (
                f"is too large to be read at once: {width}×{height} px of {len(numbers)} bands take "
                f"{bytes_ / 1e9:.1f} GB, the limit is {LARGEST_READ_BYTES / 1e9:g} GB"
            )
            raise DataError(what, where=self.where, fix="read windows of it (FILE#window=x1,y1,x2,y2)")
        x1, y1, x2, y2 = wanted
        # A reduced image serves where the window ends on its pixels, or with the file.
        fitting = [
            factor
            for factor in self._factors
            if factor <= 1 << level
            and not (x1 % factor or y1 % factor)
            and (x2 % factor == 0 or x2 == self.size[0])
            and (y2 % factor == 0 or y2 == self.size[1])
        ]
        return wanted, numbers, max(fitting, default=1)

    @property
    def all_valid(self) -> bool:
        """Whether it is known beforehand that every pixel holds something."""
        return self._all_valid

    @property
    def _all_valid(self) -> bool:
        """Whether nothing can mark pixels that hold nothing."""
        return False

    @abstractmethod
    def _stored(self, window: Window, numbers: list[int], factor: int) -> tuple[np.ndarray, np.ndarray]:
        """Return values and whether they count, (C, H, W) each, of a window in pixels of one of `_factors`."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _shape(window: Window, factor: int) -> tuple[int, int]:
    x1, y1, x2, y2 = window
    return -(-(y2 - y1) // factor), -(-(x2 - x1) // factor)


class PartPixels(Pixels):
    """A window and some bands of an open file as an image of its own."""

    def __init__(self, whole: Pixels, part: FilePart, where: str) -> None:
        self._whole, self.where = whole, where
        try:
            chosen = whole.numbers(part.bands)
            self._corner = (0, 0)
            self.size, self.geometry = whole.size, whole.geometry
            if part.window is not None:
                check_window(part.window, whole.size, where)
                x1, y1, x2, y2 = part.window
                self.size, self._corner = (x2 - x1, y2 - y1), (x1, y1)
                self.geometry = None if whole.geometry is None else whole.geometry.of_window(part.window)
        except BaseException:
            whole.close()
            raise
        self._chosen = chosen
        self.bands = tuple(whole.bands[number] for number in chosen)
        self.dtype, self.nodata, self.notes = whole.dtype, whole.nodata, whole.notes
        self.palette_V3 = whole.palette_V3
        self.spacing, self.acquisition = whole.spacing, whole.acquisition
        self.says_shown = whole.says_shown
        self.is_picture = whole.is_picture
        if part.bands is not None:
            self.is_picture = whole.dtype == np.uint8 and len(chosen) in (1, 3)
        # A reduction serves where the window's edges are edges of its pixels too, or the end of the image.
        x, y = self._corner
        wide, high = (corner + length for corner, length in zip(self._corner, self.size, strict=True))
        self._factors = tuple(
            factor
            for factor in whole._factors
            if not (x % factor or y % factor)
            and (wide % factor == 0 or wide == whole.size[0])
            and (high % factor == 0 or high == whole.size[1])
        )

    @property
    def _all_valid(self) -> bool:
        return self._whole._all_valid

    def _stored(self, window: Window, numbers: list[int], factor: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = (corner // factor for corner in self._corner)
        x1, y1, x2, y2 = window
        moved = (x1 + x, y1 + y, x2 + x, y2 + y)
        return self._whole._stored(moved, [self._chosen[number] for number in numbers], factor)

    def read_quantity(
        self, window: Window | None = None, bands: Sequence[str] | None = None, level: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the values that channels count in, and which of them count."""
        (x1, y1, x2, y2), numbers, _ = self._checked(window, bands, level)
        x, y = self._corner
        names = [self._whole.names[self._chosen[number]] for number in numbers]
        return self._whole.read_quantity((x1 + x, y1 + y, x2 + x, y2 + y), names, level)

    def percentiles(self, band: str, low: float, high: float) -> tuple[float, float]:
        """Return two percentiles of the whole, not of the part."""
        return self._whole.percentiles(self._own_name(band), low, high)

    def shown(self, values_HW: np.ndarray, band: str) -> np.ndarray:
        """Return values as the file says that the whole is shown."""
        return self._whole.shown(values_HW, self._own_name(band))

    def _own_name(self, band: str) -> str:
        return self._whole.names[self._chosen[self.numbers([band])[0]]]

    def close(self) -> None:
        """Close the file."""
        self._whole.close()
