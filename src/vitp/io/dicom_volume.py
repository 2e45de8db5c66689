"""DICOM: a file of one image or of several, or the series in a folder, as a volume.

Images are sorted by where they lie along the normal of their plane, never by name or number. What doesn't fit together
is a finding, or refused.

Shapes: I × J × K voxels: I columns, J rows, K images; a slab is one layer of them, with the bands last.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.io.contract import Band
from vitp.io.dicom_frames import Frame, check_fragments, frames_of, palette_of, value_type
from vitp.io.dicom_header import Header, acquisition_of, read_header, word
from vitp.io.dicom_stack import Stack, stack_frames
from vitp.io.dicom_values import LookupTable, has_window, is_inverse, shown_values
from vitp.io.value_math import percentile_range
from vitp.io.volume import Layer, Volume
from vitp.io.volume_checks import LARGEST_HELD_BYTES, plane_taken
from vitp.io.volume_kinds import is_dicom_file

_MOST_NAMED = 12
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_NUMBER = re.compile(r"\d")
_UNITS = {"HU": "HU", "OD": "optical density", "GY": "Gy", "BQML": "Bq/ml"}


class DicomVolume(Volume):
    """Images of DICOM files in the order of their places; those at one place are bands."""

    def __init__(self, where: str, stack: Stack) -> None:
        first = stack.frames[0][0]
        samples = first.shape[2]
        kinds = [value_type(frame.header, where) for row in stack.frames for frame in row]
        count = len(stack.frames[0]) * samples
        names: Sequence[str] = [str(number + 1) for number in range(count)]
        if samples == 3 and count == 3:
            names = ("red", "green", "blue")
        self.frames = stack.frames
        self._scale_KT = np.array([[frame.scale for frame in row] for row in stack.frames])
        self._offset_KT = np.array([[frame.offset for frame in row] for row in stack.frames])
        unit = _unit(first)
        bands = [
            Band(name, scale=float(self._scale_KT[0, place // samples]),
                 offset=float(self._offset_KT[0, place // samples]), unit=unit)
            for place, name in enumerate(names)
        ]  # fmt: skip
        super().__init__(where, stack.grid, bands, np.result_type(*set(kinds)))
        self._samples = samples
        self._tables = [
            [LookupTable.of_frame(frame) for frame in row for _ in range(samples)] for row in stack.frames
        ]
        self._padding_KT2 = np.array([[_padding(frame) for frame in row] for row in stack.frames])
        low, high = self._padding_KT2[..., 0], self._padding_KT2[..., 1]
        same = not np.isnan(low).any() and (low == low[0, 0]).all() and (high == low).all()
        self.nodata = float(low[0, 0]) if same else None

    def _slab(self, axis: int, index: int) -> np.ndarray:
        if axis == 2:
            return self._images(index)
        # Another plane cuts every image: where they fit they are decoded once and kept.
        if self._voxels is None and self._bytes <= LARGEST_HELD_BYTES:
            self._voxels = np.stack([self._images(place) for place in range(self.grid.shape[2])], axis=2)
        if self._voxels is not None:
            return np.asarray(self._voxels.take(index, axis))
        return np.stack(
            [self._images(place).take(index, axis) for place in range(self.grid.shape[2])], axis=1
        )

    def check_whole(self) -> None:
        """Do nothing where the images of all files are there; none is decoded."""
        headers = {frame.header.path: frame.header for row in self.frames for frame in row}
        for header in headers.values():
            check_fragments(header)

    @property
    def _bytes(self) -> int:
        return math.prod(self.grid.shape) * len(self.bands) * int(self.dtype.itemsize)

    def _images(self, place: int) -> np.ndarray:
        """Return (I, J, C) of the images at one place."""
        read = [frame.read() for frame in self.frames[place]]
        flat = [values[..., None] if values.ndim == 2 else values for values in read]
        return np.concatenate(flat, axis=2).swapaxes(0, 1).astype(self.dtype, copy=False)

    def set_picture(self) -> None:
        """Say whether slices are pictures: colours, or grey that is shown as it stands."""
        colours = len(self.bands) == 3 == self._samples
        grey = all(self._stands(frame) and not is_inverse(frame) for row in self.frames for frame in row)
        self.is_picture = self.dtype == np.uint8 and (colours or (len(self.bands) == 1 and grey))
        self.says_shown = not self.is_picture and all(
            has_window(frame) or is_inverse(frame) for row in self.frames for frame in row
        )

    def layer(self, number: int, plane: str) -> Layer:
        """Return what is stored of a slice; a table of the header may say what its values mean."""
        layer = super().layer(number, plane)
        if all(table is None for row in self._tables for table in row):
            return layer
        axis, index = self.grid.layer(number, plane)
        if axis != 2 and any(row != self._tables[0] for row in self._tables):
            what = (
                "has a lookup table of its own in each image, so that its values mean something else in each"
            )
            raise DataError(what, where=self.where, fix="use plane=stored")
        mapped = [
            values_HW if table is None else table.of(values_HW)
            for table, values_HW in zip(
                self._tables[index if axis == 2 else 0], layer.values_CHW, strict=True
            )
        ]
        return replace(layer, mapped_CHW=np.stack([values_HW.astype(np.float64) for values_HW in mapped]))

    def shown(self, values_HW: np.ndarray, band: str, number: int, plane: str) -> np.ndarray:
        """Return quantities as the header of their image says that they are shown."""
        place = [one.name for one in self.bands].index(band)
        axis, index = self.grid.layer(number, plane)
        frame = self.frames[index if axis == 2 else 0][place // self._samples]
        if self._samples > 1:
            return values_HW if self.dtype == np.uint8 else super().shown(values_HW, band, number, plane)
        if self._stands(frame):
            return shown_values(frame, values_HW, 0, 255)
        lowest, highest = (0.0, 1.0) if has_window(frame) else self._ends(band, index if axis == 2 else None)
        return shown_values(frame, values_HW, lowest, highest)

    def _stands(self, frame: Frame) -> bool:
        """Return whether values of 8 bits without a window or a scale are shown as they stand."""
        plain = (frame.scale, frame.offset) == (1, 0) and self.dtype == np.uint8
        return plain and not has_window(frame) and all(table is None for row in self._tables for table in row)

    def _ends(self, band: str, index: int | None) -> tuple[float, float]:
        """Return the lowest and highest quantity of one image, or of all."""
        if index is None:
            return self.percentiles(band, 0, 100)
        place = [one.name for one in self.bands].index(band)
        layer = self.layer(index, "stored")
        return percentile_range(layer.quantity([place])[0][layer.valid_CHW[place]], 0, 100)

    def _scales(self, axis: int, index: int) -> tuple[Any, Any]:
        return self._by_frame(self._scale_KT, axis, index), self._by_frame(self._offset_KT, axis, index)

    def _by_frame(self, values_KT: np.ndarray, axis: int, index: int) -> np.ndarray:
        """Return a value that each image has, for the values of one layer: (C,), or to be broadcast to (A, B, C)."""
        values_KC = values_KT.repeat(self._samples, axis=1)
        if axis == 2:
            own_C: np.ndarray = values_KC[index]
            return own_C
        return values_KC[0] if (values_KC == values_KC[0]).all() else values_KC[None]

    def _held(self, slab_ABC: np.ndarray, axis: int, index: int) -> np.ndarray:
        valid_ABC = super()._held(slab_ABC, axis, index) if slab_ABC.dtype.kind == "f" else None
        if np.isnan(self._padding_KT2).all():
            return np.ones(slab_ABC.shape, bool) if valid_ABC is None else valid_ABC
        low, high = (self._by_frame(self._padding_KT2[..., end], axis, index) for end in (0, 1))
        held_ABC = ~((slab_ABC >= low) & (slab_ABC <= high))
        return held_ABC if valid_ABC is None else valid_ABC & held_ABC


def _unit(frame: Frame) -> str | None:
    """Return the unit of the quantity: Hounsfield units of CT, as the header names those of others."""
    named = word(frame.values, "RescaleType") or word(frame.header.data, "Units")
    if named in _UNITS:
        return _UNITS[str(named)]
    scaled = frame.values.get("RescaleSlope") is not None
    # CT is in Hounsfield units unless it says otherwise; US stands for unspecified.
    return "HU" if scaled and word(frame.header.data, "Modality") == "CT" and named in (None, "US") else None


def _padding(frame: Frame) -> tuple[float, float]:
    """Return the lowest and the highest value that mark pixels that hold nothing; NaN: none does."""
    value = frame.header.number("PixelPaddingValue")
    if value is None or frame.shape[2] != 1:
        return math.nan, math.nan
    limit = frame.header.number("PixelPaddingRangeLimit")
    ends = [_as_stored(one, frame) for one in (value, value if limit is None else limit)]
    # The limit may lie on either side of the value.
    return min(ends), max(ends)


def _as_stored(value: float, frame: Frame) -> float:
    """Return a number of the header as the pixels have it: some writers give it without its sign."""
    kind = value_type(frame.header, "")
    if kind.kind == "i" and value > np.iinfo(kind).max:
        return value - 2.0 ** (8 * kind.itemsize)
    if kind.kind == "u" and value < 0:
        return value + 2.0 ** (8 * kind.itemsize)
    return value


def open_dicom(base: str, series: str | None = None) -> Volume:
    """Open a DICOM file, or a series in a folder.

    Raises:
        DataError: As `vitp.io.volumes.open_volume`; or the folder holds several series, and none is chosen.
    """
    path = Path(base)
    if path.is_dir():
        headers, others, unread = _series(path, series, base)
    else:
        headers, others, unread = [read_header(path, base)], 0, []
        if series is not None and not headers[0].series.endswith(series):
            raise DataError(f"isn't of a series {series}", where=base, fix="leave #series= out")
    frames = [frame for header in headers for frame in frames_of(header, str(header.path))]
    stack = stack_frames(frames, base)
    volume = DicomVolume(base, stack)
    first = stack.frames[0][0].header
    notes = [f"{others} files of the folder are no DICOM images, and are left out"] if others else []
    if any(header.guessed for header in headers):
        notes.append("doesn't name its transfer syntax, which is guessed from its first elements")
    volume.notes = (*notes, *stack.notes)
    volume.unread = tuple(unread)
    volume.findings = (
        *(f"{name} can't be read as DICOM; left out" for name in unread[:_MOST_NAMED]),
        *stack.findings,
    )
    volume.off_grid, volume.missing = stack.off_grid, stack.missing
    volume.source = tuple(dict.fromkeys(row[0].header.path for row in stack.frames))
    volume.acquisition = acquisition_of(first, plane_taken(stack.grid))
    volume.set_picture()
    if (word(first.data, "PhotometricInterpretation") or "").upper() == "PALETTE COLOR":
        volume.palette_V3 = palette_of(first, volume.dtype)
    return volume


def _series(folder: Path, wanted: str | None, where: str) -> tuple[list[Header], int, list[str]]:
    """Return the headers of one series of a folder, how many other files there are, and which seem to be damaged."""
    found, others, unread = _headers(folder)
    if not found:
        raise DataError("holds no DICOM images", where=where, fix="name the folder of a series")
    return _chosen(found, wanted, where), others, unread


def _headers(folder: Path) -> tuple[dict[str, list[Header]], int, list[str]]:
    """Return the headers of each series of a folder, how many other files there are, and which seem to be damaged."""
    found: dict[str, list[Header]] = {}
    others = 0
    unread: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name.upper() == "DICOMDIR" or not path.is_file():
            continue
        if not is_dicom_file(path):
            # Texts and pictures may lie beside a series; what is called like its images is one that got lost.
            lost = path.suffix.lower() in _DICOM_SUFFIXES or (path.suffix == "" and _NUMBER.search(path.name))
            others, unread = (others, [*unread, path.name]) if lost else (others + 1, unread)
            continue
        try:
            header = read_header(path)
        except DataError as error:
            if "without pixels" not in str(error):
                raise
            # One whose class says that it had some, or that is cut off before it says its class, is damaged.
            lost = "Image Storage" in error.what or "(" not in error.what
            others, unread = (others, [*unread, path.name]) if lost else (others + 1, unread)
            continue
        found.setdefault(header.series, []).append(header)
    return found, others, unread


def series_word(folder: Path, uid: str) -> str:
    """Return what chooses the series of a UID among those of a folder; see `series_words`.

    Raises:
        DataError: A file can't be read.
    """
    return series_words({one: headers[0] for one, headers in _headers(folder)[0].items()})[uid]


def _chosen(found: dict[str, list[Header]], wanted: str | None, where: str) -> list[Header]:
    if wanted is None:
        if len(found) == 1:
            return next(iter(found.values()))
        what = f"holds {len(found)} series: {_listed(found)}"
        raise DataError(what, where=where, fix="choose one: FOLDER#series=NUMBER (or series-1, …)")
    words = series_words({uid: headers[0] for uid, headers in found.items()})
    numbered = [uid for uid, headers in found.items() if wanted in (words[uid], _number(headers[0]))]
    ending = [uid for uid in found if uid.endswith(wanted)]
    for uids in (numbered, ending):
        if len(uids) == 1:
            return found[uids[0]]
    several = len(numbered) > 1 or len(ending) > 1
    what = f"has {'several series' if several else 'no series'} {wanted}; it has {_listed(found)}"
    raise DataError(what, where=where, fix="name one as it is called here")


def _number(header: Header) -> str | None:
    number = header.number("SeriesNumber")
    return None if number is None else str(int(number))


def series_words(first: Mapping[str, Header]) -> dict[str, str]:
    """Return what chooses each series of a folder after `#series=`, and names no UID.

    It is the number of the series where no other one has it and it is above 0, else `series-1`, `series-2`, … in the
    order of the UIDs; numbers that another series is called by are left out.

    Args:
        first: UID → header of one image.
    """
    numbers = {uid: _number(header) for uid, header in first.items()}
    counts = Counter(numbers.values())
    own = {
        uid: number
        for uid, number in numbers.items()
        if number is not None and counts[number] == 1 and int(number) > 0
    }
    running = (str(number) for number in itertools.count(1) if str(number) not in own.values())
    return {uid: own[uid] if uid in own else f"series-{next(running)}" for uid in sorted(first)}


def _listed(found: dict[str, list[Header]]) -> str:
    """Return the series of a folder: what chooses each, modality, and how many images; no UID, which tells of whom."""
    words = series_words({uid: headers[0] for uid, headers in found.items()})
    lines = []
    for uid, headers in list(found.items())[:_MOST_NAMED]:
        images = sum(header.frames for header in headers)
        modality = word(headers[0].data, "Modality")
        kind = modality if modality and modality.isalnum() else "unknown modality"
        lines.append(f"{words[uid]} ({kind}, {images} image{'s' * (images != 1)})")
    rest = len(found) - len(lines)
    return ", ".join(lines) + (f" and {rest} more" if rest else "")
