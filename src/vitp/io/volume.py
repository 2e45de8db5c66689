"""What every volume offers: its grid, and slices of its own values; see `vitp.io.volumes` for how one is opened.

Shapes: C bands, N slices of H × W pixels, I × J × K voxels; a slab is one layer of voxels along an axis, with the other
two axes in their order and the bands last.
"""

from __future__ import annotations

import contextlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.io.acquisition import Acquisition
from vitp.io.contract import LARGEST_READ_BYTES, Band, Pixels
from vitp.io.parts import Window
from vitp.io.value_math import averaged, between, percentile_range
from vitp.io.volume_grid import VolumeGrid
from vitp.records.channels import at_step, band_step

_MOST_VOXELS = 1 << 24
"""Of a volume, that are measured; of larger ones slices at even steps."""
_MOST_MEASURED = 100_000
_OFF_GRID = 0.1
"""Share of the step that images may lie beside their places on the grid: headers round them."""
_measured: dict[tuple[object, ...], tuple[float, float]] = {}
"""Percentiles of volumes, by what they are of."""


@dataclass(frozen=True)
class Layer:
    """What is stored of a slice.

    Attributes:
        values_CHW: Stored values.
        valid_CHW: Whether each of them counts.
        scale_CHW, offset_CHW: The quantity is value · scale + offset; H and W are 1 where they don't differ.
        mapped_CHW: The quantity, where it isn't proportional to the value; None: it is.
    """

    values_CHW: np.ndarray
    valid_CHW: np.ndarray
    scale_CHW: np.ndarray
    offset_CHW: np.ndarray
    mapped_CHW: np.ndarray | None = None

    @staticmethod
    def joined(layers: Sequence[Layer]) -> Layer:
        """Return several as the bands of one."""
        if len(layers) == 1:
            return layers[0]
        flat = all(layer.scale_CHW.shape[1:] == (1, 1) == layer.offset_CHW.shape[1:] for layer in layers)
        shape = (1, 1) if flat else layers[0].values_CHW.shape[1:]

        def wide(parts: Iterable[np.ndarray]) -> np.ndarray:
            return np.concatenate([np.broadcast_to(part, (len(part), *shape)) for part in parts])

        return Layer(
            np.concatenate([layer.values_CHW for layer in layers]),
            np.concatenate([layer.valid_CHW for layer in layers]),
            wide(layer.scale_CHW for layer in layers),
            wide(layer.offset_CHW for layer in layers),
            np.concatenate([layer.quantity(list(range(len(layer.values_CHW)))) for layer in layers])
            if any(layer.mapped_CHW is not None for layer in layers)
            else None,
        )

    def quantity(self, numbers: list[int]) -> np.ndarray:
        """Return the quantity of some bands, (C, H, W): the values as they are where nothing scales them."""
        if self.mapped_CHW is not None:
            mapped_CHW: np.ndarray = self.mapped_CHW[numbers]
            return mapped_CHW
        values_CHW, scale_CHW, offset_CHW = (
            part[numbers] for part in (self.values_CHW, self.scale_CHW, self.offset_CHW)
        )
        if np.all(scale_CHW == 1) and np.all(offset_CHW == 0):
            return np.asarray(values_CHW)
        short = values_CHW.dtype.kind in "iu" and values_CHW.dtype.itemsize <= 2
        if short and _is_whole(scale_CHW) and _is_whole(offset_CHW):
            # Hounsfield units stay whole numbers, so that they are seen alike whatever a file stores them as.
            whole_CHW = values_CHW.astype(np.int32) * scale_CHW.astype(np.int32) + offset_CHW.astype(np.int32)
            fits = whole_CHW.min() >= -(1 << 15) and whole_CHW.max() < 1 << 15
            return np.asarray(whole_CHW.astype(np.int16) if fits else whole_CHW)
        # float32 holds every value of 16 bits, so that nothing but the product is rounded.
        kind = np.float32 if values_CHW.dtype.itemsize <= 2 else np.float64
        return np.asarray(values_CHW.astype(kind) * scale_CHW.astype(kind) + offset_CHW.astype(kind))


def _is_whole(values: np.ndarray) -> bool:
    """Return whether values are whole numbers, small enough that their products with 16 bits have 32."""
    return bool(np.all(values == np.rint(values)) and np.abs(values).max() < 1 << 14)


class Volume(ABC):
    """An open volume. Its slices may be read by several threads.

    Attributes:
        where: Address, for messages.
        grid: Where its voxels lie.
        bands: Bands of each voxel.
        dtype: Type of the values that are read.
        nodata: Value that marks voxels that hold nothing; None: there is none.
        acquisition: How it was taken; None: the file doesn't say.
        notes: How it was understood, each a sentence without its full stop.
        findings: What is wrong with it, each a sentence without its full stop.
        source: Files that it is made of, in the order of its slices where each has a file of its own.
        palette_V3: Colours, (256, 3) uint8, that the values of a single band stand for.
        is_picture: Whether its slices are pictures of 8 bits, which are shown as they stand.
        says_shown: Whether the file says how its values are shown.
        off_grid: Millimetres that images of a series lie at most beside their places on `grid`, whose step is even.
        missing: About how many images a series lacks between its first and its last one.
        unread: Names of files among those of a series that aren't DICOM, or no longer.
    """

    nodata: float | None = None
    acquisition: Acquisition | None = None
    palette_V3: np.ndarray | None = None
    is_picture = False
    says_shown = False
    off_grid = 0.0
    missing = 0
    unread: tuple[str, ...] = ()

    def __init__(self, where: str, grid: VolumeGrid, bands: Sequence[Band], dtype: Any) -> None:
        self.where, self.grid = where, grid
        self.bands, self.dtype = tuple(bands), np.dtype(dtype).newbyteorder("=")
        self.notes: tuple[str, ...] = ()
        self.findings: tuple[str, ...] = ()
        self.source: tuple[Path, ...] = ()
        self._voxels: np.ndarray | None = None
        self._process, self._lock = os.getpid(), threading.RLock()
        # In floats: the product of forged sizes would wrap around.
        voxels = int(np.prod(grid.shape, dtype=np.float64))
        if voxels > 1 << 40 or min(grid.shape) < 1:
            size = "×".join(map(str, grid.shape))
            fix = "copy it again from its source or remove it"
            raise DataError(f"says that it holds {size} voxels", where=where, fix=fix)

    @property
    def held_bytes(self) -> int:
        """Bytes of voxels that are held to be read again."""
        return 0 if self._voxels is None else int(self._voxels.nbytes)

    def release(self) -> None:
        """Forget voxels that are held only to be read again."""
        self._voxels = None

    def check_even(self) -> None:
        """Do nothing where the images lie on the grid, so that places of labels and sizes in millilitres are true.

        Raises:
            DataError: One lies more than a tenth of the step beside its place.
        """
        spacing = self.grid.spacing
        if spacing is None or self.off_grid <= _OFF_GRID * spacing[2]:
            return
        damaged = f"; {', '.join(self.unread[:3])} can't be read as DICOM" if self.unread else ""
        lacks = f" (misses about {self.missing}{damaged})" if self.missing else ""
        what = f"has slices that lie up to {self.off_grid:.2g} mm off an even grid{lacks}"
        fix = "single slices, which are pictures, can be named: #slice=0"
        raise DataError(f"{what}: complete the series, or resample it", where=self.where, fix=fix)

    def check_whole(self) -> None:
        """Do nothing where all voxels are there: of a compressed file its end tells, so that it is read once.

        Raises:
            DataError: The file is damaged, or cut off.
        """
        with self._locked():
            self._slab(2, self.grid.shape[2] - 1)

    def slice(self, number: int | None = None, plane: str | None = None, around: int | None = None) -> Pixels:
        """Return one slice as an image.

        Args:
            number: From 0 along the plane; None: the only one.
            plane: One of `vitp.io.parts.PLANES`; None: `VolumeGrid.plane`.
            around: Slices on either side that are further bands: `1@-1`, `1`, `1@+1`. At the ends the outermost slice
                is repeated.

        Raises:
            DataError: There is no such slice; or there are several, and none is chosen.
        """
        count = self.grid.slices_shape(plane)[0]
        chosen = plane or self.grid.plane
        if number is None and count > 1:
            what = f"is a volume of {count} {chosen} slices, of which one has to be chosen"
            fix = f"name one: #slice=0 … #slice={count - 1}, or open all with vitp.open_volume"
            raise DataError(what, where=self.where, fix=fix)
        number = number or 0
        if number >= count:
            what = f"has no slice {number}; it has {count} {chosen} slices, counted from 0"
            raise DataError(what, where=self.where, fix=f"name one of 0 to {count - 1}")
        return SlicePixels(self, number, chosen, around or 0)

    def read_slice(
        self, number: int, plane: str | None = None, bands: Sequence[str] | None = None
    ) -> np.ndarray:
        """Return (C, H, W) values of a slice as the file stores them; see `slice`."""
        return self.slice(number, plane).read(bands=bands)

    @abstractmethod
    def _slab(self, axis: int, index: int) -> np.ndarray:
        """Return the stored values (A, B, C) of one layer of voxels."""

    def _scales(self, axis: int, index: int) -> tuple[Any, Any]:
        """Return scale and offset of the values of a layer, as `_slab` has them."""
        return (
            np.array([band.scale for band in self.bands]),
            np.array([band.offset for band in self.bands]),
        )

    def _held(self, slab_ABC: np.ndarray, axis: int, index: int) -> np.ndarray:
        """Return which values of a layer count."""
        floating = slab_ABC.dtype.kind == "f"
        valid_ABC: np.ndarray = np.isfinite(slab_ABC) if floating else np.ones(slab_ABC.shape, bool)
        if self.nodata is not None:
            valid_ABC &= slab_ABC != self.nodata
        return valid_ABC

    def layer(self, number: int, plane: str) -> Layer:
        """Return what is stored of a slice, and what its values mean."""
        axis, index = self.grid.layer(number, plane)
        _, height, width = self.grid.slices_shape(plane)
        if height * width * len(self.bands) * self.dtype.itemsize > LARGEST_READ_BYTES:
            what = f"is too large to be read at once: {width}×{height} px of {len(self.bands)} bands"
            raise DataError(what, where=self.where, fix="save fewer of its volumes as a file of their own")
        with self._locked():
            slab_ABC = self._slab(axis, index)
            valid_ABC = self._held(slab_ABC, axis, index)
        values_CHW, valid_CHW = self._turned(slab_ABC, plane), self._turned(valid_ABC, plane)
        scale, offset = (
            self._turned(np.broadcast_to(part, slab_ABC.shape), plane)
            if np.ndim(part) == 3
            else np.asarray(part)[:, None, None]
            for part in self._scales(axis, index)
        )
        return Layer(values_CHW.astype(self.dtype, copy=False), valid_CHW, scale, offset)

    def _turned(self, slab_ABC: np.ndarray, plane: str) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(self.grid.as_slice(slab_ABC, plane), 2, 0))

    def slice_bands(self, number: int, plane: str) -> tuple[Band, ...]:
        """Return the bands of one slice, which may have a scale of its own."""
        scale, offset = self._scales(*self.grid.layer(number, plane))
        if np.ndim(scale) == 3 or np.ndim(offset) == 3:
            return self.bands  # it differs within the slice, as `read_quantity` knows
        return tuple(
            replace(band, scale=float(scale[place]), offset=float(offset[place]))
            for place, band in enumerate(self.bands)
        )

    def percentiles(self, band: str, low: float, high: float) -> tuple[float, float]:
        """Return two percentiles of a band's quantity over all voxels that count and aren't 0.

        Of volumes of more than 16 million voxels slices at even steps stand for all, so that time and memory are
        bounded. What was measured is kept for the process, though the volume be forgotten.
        """
        key = (*self._stamp, band, low, high)
        if key not in _measured:
            while len(_measured) >= _MOST_MEASURED:
                _measured.pop(next(iter(_measured)), None)
            _measured[key] = percentile_range(self._sample(band), low, high)
        return _measured[key]

    def _sample(self, band: str) -> np.ndarray:
        """Return the values, without 0, of a band in enough slices to measure it."""
        count, height, width = self.grid.slices_shape("stored")
        wanted = max(1, min(count, _MOST_VOXELS // (height * width)))
        place = [one.name for one in self.bands].index(band)
        parts = []
        for number in np.unique(np.linspace(0, count - 1, wanted).round().astype(int)):
            layer = self.layer(int(number), "stored")
            values_HW = layer.quantity([place])[0]
            parts.append(values_HW[layer.valid_CHW[place] & (values_HW != 0)])
        return np.concatenate(parts)

    @property
    def _stamp(self) -> tuple[object, ...]:
        """What stays the same as long as the volume's values do."""
        found: list[object] = [self.where]
        for path in self.source[:1]:
            with contextlib.suppress(OSError):
                stat = path.stat()
                found += [str(path.absolute()), stat.st_size, stat.st_mtime_ns]
        return tuple(found)

    def shown(self, values_HW: np.ndarray, band: str, number: int, plane: str) -> np.ndarray:
        """Return quantities of a slice as the file says that they are shown, 0 (black) to 255 (white).

        Files that don't say so show the lowest value of the volume as black and the highest as white.
        """
        return between(values_HW, *self.percentiles(band, 0, 100))

    def _locked(self) -> threading.RLock:
        """Return the lock of this process: one that was held while a process forked is never released."""
        if self._process != os.getpid():
            self._process, self._lock, self._voxels = os.getpid(), threading.RLock(), None
            self._after_fork()
        return self._lock

    def _after_fork(self) -> None:  # noqa: B027
        """Open files again: their place is shared with the other process."""


class SlicePixels(Pixels):
    """One slice of a volume as an image, with its neighbours as further bands; see `Volume.slice`."""

    nodata: float | None
    geometry = None

    def __init__(self, volume: Volume, number: int, plane: str, around: int) -> None:
        self.volume, self.number, self.plane = volume, number, plane
        self.where = (
            volume.where if volume.grid.slices_shape(plane)[0] == 1 else f"{volume.where}#slice={number}"
        )
        count, height, width = volume.grid.slices_shape(plane)
        self.size, self.dtype, self.nodata = (width, height), volume.dtype, volume.nodata
        self._around = around
        steps = range(-around, around + 1)
        self._numbers = [min(max(number + step, 0), count - 1) for step in steps]
        self.bands = tuple(
            replace(band, name=at_step(band.name, step))
            for step, place in zip(steps, self._numbers, strict=True)
            for band in volume.slice_bands(place, plane)
        )
        self.palette_V3 = volume.palette_V3 if around == 0 else None
        self.is_picture = volume.is_picture and around == 0
        self.notes, self.acquisition = volume.notes, volume.acquisition
        self.says_shown = volume.says_shown
        spacing = volume.grid.slice_spacing(plane)
        self.spacing = None if spacing is None else (spacing[2], spacing[1])
        self._read: Layer | None = None

    def _layers(self) -> Layer:
        """Return the slice with its neighbours."""
        if self._read is None:
            layers = {
                number: self.volume.layer(number, self.plane) for number in dict.fromkeys(self._numbers)
            }
            self._read = Layer.joined([layers[number] for number in self._numbers])
        return self._read

    def _stored(self, window: Window, numbers: list[int], factor: int) -> tuple[np.ndarray, np.ndarray]:
        layers = self._layers()
        x1, y1, x2, y2 = window
        return layers.values_CHW[numbers, y1:y2, x1:x2], layers.valid_CHW[numbers, y1:y2, x1:x2]

    def read_quantity(
        self, window: Window | None = None, bands: Sequence[str] | None = None, level: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return value · scale + offset, and which of these count; the values themselves where nothing scales them."""
        (x1, y1, x2, y2), numbers, _ = self._checked(window, bands, level)
        layers = self._layers()
        values_CHW = layers.quantity(numbers)[:, y1:y2, x1:x2]
        return averaged(values_CHW, layers.valid_CHW[numbers, y1:y2, x1:x2], 1 << level)

    def percentiles(self, band: str, low: float, high: float) -> tuple[float, float]:
        """Return two percentiles of the whole volume."""
        return self.volume.percentiles(band_step(band)[0], low, high)

    def shown(self, values_HW: np.ndarray, band: str) -> np.ndarray:
        """Return quantities as the file says that they are shown."""
        name, step = band_step(band)
        return self.volume.shown(values_HW, name, self._numbers[self._around + step], self.plane)

    def close(self) -> None:
        """Forget what was read; the volume stays open for others."""
        self._read = None


class JoinedVolume(Volume):
    """Several volumes on one grid as the bands of one.

    Raises:
        DataError: Their grids differ.
    """

    def __init__(self, where: str, parts: Sequence[tuple[str, Volume]]) -> None:
        first = parts[0][1]
        for _, volume in parts[1:]:
            same = volume.grid.same_as(first.grid)
            if not same:
                what = f"lies on another grid than {first.where}, so that they are no bands of one volume"
                raise DataError(what, where=volume.where, fix="resample one onto the other's grid")
        names = [
            word if len(volume.bands) == 1 else f"{word}:{band.name}"
            for word, volume in parts
            for band in volume.bands
        ]
        bands = [band for _, volume in parts for band in volume.bands]
        super().__init__(
            where,
            first.grid,
            [replace(band, name=name) for name, band in zip(names, bands, strict=True)],
            np.result_type(*(volume.dtype for _, volume in parts)),
        )
        self._parts = tuple(volume for _, volume in parts)
        self.nodata = first.nodata if len({volume.nodata for volume in self._parts}) == 1 else None
        self.acquisition = first.acquisition
        self.notes = tuple(dict.fromkeys(note for volume in self._parts for note in volume.notes))
        self.findings = tuple(dict.fromkeys(line for volume in self._parts for line in volume.findings))
        self.source = tuple(path for volume in self._parts for path in volume.source)
        self.off_grid = max(volume.off_grid for volume in self._parts)
        self.missing = max(volume.missing for volume in self._parts)

    def percentiles(self, band: str, low: float, high: float) -> tuple[float, float]:
        """Return two percentiles of a band over the file that holds it."""
        volume, own = self._owner(band)
        return volume.percentiles(own, low, high)

    def shown(self, values_HW: np.ndarray, band: str, number: int, plane: str) -> np.ndarray:
        """Return quantities as the file that holds the band says that they are shown."""
        volume, own = self._owner(band)
        return volume.shown(values_HW, own, number, plane)

    def _owner(self, band: str) -> tuple[Volume, str]:
        place = [one.name for one in self.bands].index(band)
        for volume in self._parts:
            if place < len(volume.bands):
                return volume, volume.bands[place].name
            place -= len(volume.bands)
        raise AssertionError(band)

    def layer(self, number: int, plane: str) -> Layer:
        """Return what is stored of a slice in all files."""
        return Layer.joined([volume.layer(number, plane) for volume in self._parts])

    def slice_bands(self, number: int, plane: str) -> tuple[Band, ...]:
        """Return the bands of one slice."""
        own = [band for volume in self._parts for band in volume.slice_bands(number, plane)]
        return tuple(replace(band, name=mine.name) for band, mine in zip(own, self.bands, strict=True))

    def check_whole(self) -> None:
        """Do nothing where all voxels of all files are there."""
        for volume in self._parts:
            volume.check_whole()

    def _slab(self, axis: int, index: int) -> np.ndarray:
        return np.concatenate([volume._slab(axis, index) for volume in self._parts], axis=2)
