"""Whole slides behind the contract of pixels: `slide.svs#mpp=0.5&window=0,0,512,512`.

A slide's own pixels are those of its finest level. With `mpp` its pixels have so many micrometres: they are those of
the level that has this resolution, or else means over areas of the next finer one, counted from the slide's corner, so
that a place has the same value in whatever window it is read.

Shapes: C bands, H × W pixels.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from vitp.core.errors import DataError
from vitp.io.acquisition import Acquisition
from vitp.io.contract import Band, Pixels
from vitp.io.parts import FilePart, Window, split_address
from vitp.io.slide_dicom import open_dicom_slide
from vitp.io.slide_levels import SlideGrid
from vitp.io.slide_source import SlideSource, reading_slide
from vitp.io.slide_tiff import open_tiff_slide, tiff_slide_kind
from vitp.io.slide_zarr import open_zarr_slide, zarr_attributes
from vitp.io.storage import is_member, is_remote
from vitp.io.tiff_tags import TiffError, is_tiff, read_pages
from vitp.io.volume_kinds import is_dicom_slide

SLIDE_SUFFIXES = frozenset({".svs", ".ndpi", ".scn"})
"""Suffixes of files that hold slides and nothing else."""
_OPEN = 4
"""Slides that a thread keeps open."""
_FINEST = 0.01
"""Smallest step in pixels of the slide: finer ones make up pixels, thousands for each that there is."""
_SAME = 0.5
"""Pixels by which a level's grid may be off at the far end of the slide and still be the one that was asked for."""
_PLACED = frozenset({33550, 33922, 34264, 34735})
"""Tags of a TIFF that lies on the ground: scale, tie points, transformation, keys of its projection."""
_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_kept = threading.local()


def slide_kind(address: str | Path) -> str | None:
    """Return which kind of slide an address names, by the file's content; None: it is none.

    A TIFF whose header doesn't say that it is a slide is one where micrometres a pixel are asked or stated of it.

    Raises:
        DataError: As `split_address`.
    """
    base, part = split_address(address)
    if is_remote(base) or is_member(base):
        return None
    path = Path(base)
    if path.is_dir():
        return "dicom" if is_dicom_slide(path) else "zarr" if zarr_attributes(path) is not None else None
    kind = tiff_slide_kind(base)
    if kind is None and path.suffix.lower() not in _PICTURES and is_dicom_slide(path):
        return "dicom"
    asked = part.mpp is not None or part.own_mpp is not None
    return "plain" if kind is None and asked and _is_plain(path) else kind


def _is_plain(path: Path) -> bool:
    """Return whether a file is a TIFF without a place on the ground."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return is_tiff(file.read(16)) and not read_pages(file)[0].tags & _PLACED
    except (OSError, TiffError):
        return False


def is_slide_folder(folder: Path) -> bool:
    """Return whether a folder is one slide: an OME-Zarr, or the files of a DICOM slide."""
    return zarr_attributes(folder) is not None or is_dicom_slide(folder)


class SlidePixels(Pixels):
    """A slide, open for reading; see `Pixels`.

    Args:
        address: Address of the file itself.
        kind: What `slide_kind` says.
        part: Resolution, image, plane and time; its window and bands are left to the caller.
        where: Address, for messages.

    Raises:
        DataError: The extra `medical` isn't installed, the file can't be read, or doesn't say how large its pixels are
            although a resolution is asked for, or says it although the address states it.
    """

    nodata = None
    geometry = None

    def __init__(self, address: str, kind: str, part: FilePart, where: str) -> None:
        self.where = where
        self._source = _with_stated(_opened(address, kind, part, where), part.own_mpp, where)
        self._grids: dict[int, SlideGrid] = {}
        source, mpp = self._source, part.mpp
        own = source.levels[0].size
        if mpp is None:
            self._steps = (1.0, 1.0)
            self.spacing = None if source.mpp is None else (source.mpp[0] / 1000, source.mpp[1] / 1000)
        else:
            if source.mpp is None:
                raise DataError(
                    f"is {source.kind} that doesn't say how many micrometres its pixels have, so mpp={mpp:g} can't be "
                    "read of it",
                    where=where,
                    fix="leave mpp out to read its own pixels, or state how many they have (own_mpp=… after the #)",
                )
            self._steps = (mpp / source.mpp[0], mpp / source.mpp[1])
            if min(self._steps) < _FINEST:
                what = f"has {source.mpp[0]:.4g} µm a pixel, and can't be read at {mpp:g} µm"
                raise DataError(what, where=where, fix="ask for a resolution near its own, or a coarser one")
            self.spacing = (mpp / 1000, mpp / 1000)
        self.size = self._size_at(own, self._steps)
        self.bands = tuple(Band(name) for name in source.names)
        self.dtype = source.dtype
        self.is_picture = self.dtype == np.uint8 and len(self.bands) in (1, 3)
        self.acquisition = Acquisition(modality="SM")
        self.notes = (*source.notes, *self._said(mpp))

    @property
    def steps(self) -> tuple[float, float]:
        """Pixels of the finest level along x and y that a pixel covers."""
        return self._steps

    def _size_at(self, own: tuple[int, int], steps: tuple[float, float]) -> tuple[int, int]:
        for level, factors in zip(self._source.levels, self._source.factors, strict=True):
            if _is_same(steps, factors, level.size):
                return level.size
        return max(1, round(own[0] / steps[0])), max(1, round(own[1] / steps[1]))

    def _said(self, mpp: float | None) -> tuple[str, ...]:
        grid = self._grid(1)
        if mpp is None or grid.steps is None or self._source.mpp is None:
            return ()
        place = self._source.levels.index(grid.level)
        finer = self._source.mpp[0] * self._source.factors[place][0]
        if finer > mpp:
            return (f"is read at {mpp:g} µm a pixel, finer than its own {finer:.4g} µm, which adds nothing",)
        return (f"is read at {mpp:g} µm a pixel, averaged from its level of {finer:.4g} µm",)

    def _grid(self, factor: int) -> SlideGrid:
        """Return the pixels of the slide at a reduction of the resolution that it is read at."""
        if factor not in self._grids:
            wanted = (self._steps[0] * factor, self._steps[1] * factor)
            size = (-(-self.size[0] // factor), -(-self.size[1] // factor))
            levels = list(zip(self._source.levels, self._source.factors, strict=True))
            same = [level for level, own in levels if _is_same(wanted, own, level.size)]
            if same:
                self._grids[factor] = SlideGrid(same[0], size, None)
            else:
                # Means of finer pixels are true; coarser ones lack what is to be shown.
                finer = [(level, own) for level, own in levels if own[0] <= wanted[0] and own[1] <= wanted[1]]
                level, own = max(finer or levels[:1], key=lambda one: one[1])
                self._grids[factor] = SlideGrid(level, size, (wanted[0] / own[0], wanted[1] / own[1]))
        return self._grids[factor]

    @cached_property
    def _factors(self) -> tuple[int, ...]:  # type: ignore[override]
        """Reductions for which a coarser level of the file serves than for the one before."""
        found, factor = [1], 2
        while factor <= max(self.size):
            if self._grid(factor).level is not self._grid(found[-1]).level:
                found.append(factor)
            factor *= 2
        return tuple(found)

    @property
    def _all_valid(self) -> bool:
        return self._source.all_valid

    def _stored(self, window: Window, numbers: list[int], factor: int) -> tuple[np.ndarray, np.ndarray]:
        planes = [self._source.planes[number] for number in numbers]
        with reading_slide(self.where):
            values_Chw, valid_hw = self._grid(factor).window(window, planes)
        valid_Chw = np.ones(values_Chw.shape, bool)
        if valid_hw is not None:
            valid_Chw &= valid_hw
        if self.dtype.kind == "f":
            valid_Chw &= np.isfinite(values_Chw)
        return values_Chw, valid_Chw

    def close(self) -> None:
        """Let go of the slide; its file stays open for whoever reads it next."""


@dataclass(frozen=True)
class SlidePlace:
    """Where the pixels of a part of a slide lie on its finest level, in whose pixels other programs count.

    Attributes:
        corner: x and y of the part's corner.
        scale: Pixels of the finest level along x and y that a pixel covers.
        mpp: Micrometres of a pixel along x and y; None: not known.
    """

    corner: tuple[float, float]
    scale: tuple[float, float]
    mpp: tuple[float, float] | None

    @property
    def square_micrometres(self) -> float | None:
        """Of a pixel; None: not known."""
        return None if self.mpp is None else self.mpp[0] * self.mpp[1]

    def to_finest(self, points_N2: np.ndarray) -> np.ndarray:
        """Return (N, 2) points x, y of the part in pixels of the finest level."""
        moved_N2: np.ndarray = points_N2 * self.scale + self.corner
        return moved_N2


def slide_place(address: str | Path) -> SlidePlace | None:
    """Return where a slide, or the part of it that an address names, lies; None: it isn't a slide.

    Raises:
        DataError: It can't be read.
    """
    kind = slide_kind(address)
    if kind is None:
        return None
    base, part = split_address(address)
    with SlidePixels(base, kind, part, str(address)) as pixels:
        scale, spacing = pixels.steps, pixels.spacing
    x, y = (0, 0) if part.window is None else part.window[:2]
    mpp = None if spacing is None else (spacing[0] * 1000, spacing[1] * 1000)
    return SlidePlace((x * scale[0], y * scale[1]), scale, mpp)


def says_micrometres(address: str | Path) -> bool:
    """Return whether the file of a slide says how many micrometres its pixels have.

    Raises:
        DataError: It can't be read, or isn't a slide.
    """
    kind = slide_kind(address)
    if kind is None:
        raise DataError("isn't a slide", where=str(address), fix="name a slide")
    base, part = split_address(address)
    return _opened(base, kind, part, str(address)).mpp is not None


def _with_stated(source: SlideSource, own_mpp: float | None, where: str) -> SlideSource:
    """Return an open slide with the resolution of its own pixels that an address states."""
    if own_mpp is None:
        return source
    if source.mpp is not None:
        what = f"says {source.mpp[0]:.4g} µm a pixel itself, and its address states own_mpp={own_mpp:g}"
        raise DataError(what, where=where, fix="leave own_mpp out of the address")
    return replace(source, mpp=(own_mpp, own_mpp))


def _is_same(wanted: tuple[float, float], own: tuple[float, float], size: tuple[int, int]) -> bool:
    return all(
        abs(step / factor - 1) * length < _SAME
        for step, factor, length in zip(wanted, own, size, strict=True)
    )


def _opened(address: str, kind: str, part: FilePart, where: str) -> SlideSource:
    """Return an open slide, of those that the thread has open where the file hasn't changed."""
    try:
        path = Path(address)
        head = next((path / name for name in ("zarr.json", ".zattrs") if (path / name).is_file()), path)
        stat = (head if kind == "zarr" else path).stat()
    except OSError as error:
        raise DataError("image is missing", where=where, fix="check the path and the root folder") from error
    key = (str(path.absolute()), stat.st_size, stat.st_mtime_ns, part.series, part.slice, part.page, kind)
    sources: OrderedDict[tuple[object, ...], SlideSource] = _kept.__dict__.setdefault("slides", OrderedDict())
    if key in sources:
        sources.move_to_end(key)
        return sources[key]
    if kind == "zarr":
        opened = open_zarr_slide(address, part, where)
    elif kind == "dicom":
        opened = open_dicom_slide(address, where)
    else:
        opened = open_tiff_slide(address, kind, part, where)
    sources[key] = opened
    while len(sources) > _OPEN:
        sources.popitem(last=False)
    return opened
