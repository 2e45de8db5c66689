"""DICOM whole-slide images: a folder with a file a resolution, or one such file, read tile by tile through pydicom.

Labels, overviews and thumbnails among the files are left alone: a label shows whose slide it is.

Shapes: S samples, h × w pixels of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.io.dicom_frames import read_frame
from vitp.io.dicom_header import Header, header_numbers
from vitp.io.slide_levels import SlideBlock, SlideLevel
from vitp.io.slide_source import (
    COARSEST_MPP,
    LARGEST_BLOCK_BYTES,
    SlideSource,
    level_factors,
    reading_slide,
)
from vitp.io.storage import COPY_IT_AGAIN
from vitp.io.volume_kinds import is_dicom_file, is_dicom_slide

_TAGS = [
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "ImageType",
    "SeriesInstanceUID",
    "TotalPixelMatrixRows",
    "TotalPixelMatrixColumns",
    "NumberOfOpticalPaths",
    "TotalPixelMatrixFocalPlanes",
    "InConcatenationNumber",
    "ImagedVolumeWidth",
    "ImagedVolumeHeight",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
"""All that is read of a header."""
_OTHERS = frozenset(("LABEL", "OVERVIEW", "THUMBNAIL", "LOCALIZER"))


def open_dicom_slide(path: str, where: str) -> SlideSource:
    """Open the resolutions of a slide.

    Args:
        path: Path of a file, or of the folder of one slide.
        where: Address, for messages.

    Raises:
        DataError: It can't be read, or holds several slides, focal planes or optical paths.
    """
    with reading_slide(where):
        base = Path(path)
        files = [base] if base.is_file() else sorted(file for file in base.iterdir() if is_dicom_file(file))
        found = [_header(file, where) for file in files if is_dicom_slide(file)]
        volumes = [
            one for one in found if not _OTHERS & {str(w).upper() for w in one.data.get("ImageType") or ()}
        ]
        if not volumes:
            what = "holds labels or overviews of a slide, and none of its resolutions"
            raise DataError(what, where=where, fix="add the other files of the slide")
        if len({one.series for one in volumes}) > 1:
            what = f"holds files of {len({one.series for one in volumes})} slides"
            raise DataError(what, where=where, fix="give each slide a folder of its own")
        levels = [_level(one, where) for one in volumes]
        levels.sort(key=lambda level: level.size, reverse=True)
        first = max(volumes, key=lambda one: _matrix(one)[0])
        samples = levels[0].samples
        if any((level.samples, level.dtype) != (samples, levels[0].dtype) for level in levels):
            raise DataError("has resolutions of different kinds of pixels", where=where, fix=COPY_IT_AGAIN)
    return SlideSource(
        kind="a DICOM slide",
        levels=tuple(levels),
        factors=level_factors([level.size for level in levels]),
        planes=tuple((0, sample) for sample in range(samples)),
        names=("red", "green", "blue") if samples == 3 else ("1",),
        dtype=levels[0].dtype,
        mpp=_mpp(first),
        all_valid=False,
    )


def _header(path: Path, where: str) -> Header:
    pydicom = need("medical", "pydicom", where)
    data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
    return Header(path, data, str(data.file_meta.TransferSyntaxUID), "PixelData")


def _matrix(header: Header) -> tuple[int, int]:
    """Return width and height of all tiles together."""
    return int(header.number("TotalPixelMatrixColumns") or 0), int(header.number("TotalPixelMatrixRows") or 0)


def _level(header: Header, where: str) -> SlideLevel:
    size = _matrix(header)
    block = int(header.number("Columns") or 0), int(header.number("Rows") or 0)
    samples, bits = int(header.number("SamplesPerPixel") or 1), int(header.number("BitsAllocated") or 8)
    several = [
        noun
        for noun, name in (
            ("focal planes", "TotalPixelMatrixFocalPlanes"),
            ("optical paths", "NumberOfOpticalPaths"),
        )
        if (header.number(name) or 1) > 1
    ]
    if several or header.number("InConcatenationNumber"):
        what = (
            f"has several {several[0]}" if several else "has a resolution that is spread over several files"
        )
        raise DataError(what, where=where, fix="save one of them (or the whole) as a slide of its own")
    if min(*size, *block) < 1 or samples not in (1, 3) or bits not in (8, 16):
        what = f"says that it has {size[0]}×{size[1]} px in tiles of {block[0]}×{block[1]} px"
        raise DataError(what, where=where, fix=COPY_IT_AGAIN)
    if math.prod(block) * samples * bits // 8 > LARGEST_BLOCK_BYTES:
        raise DataError("is stored in tiles too large to be decoded", where=where, fix="write smaller tiles")
    across = -(-size[0] // block[0])
    places = _places(header, block)
    if places is None and header.frames < across * -(-size[1] // block[1]):
        what = f"holds {header.frames} tiles, fewer than its {size[0]}×{size[1]} px have"
        raise DataError(what, where=where, fix=COPY_IT_AGAIN)
    dtype = np.dtype(np.uint8 if bits == 8 else np.uint16)
    reader = _Tiles(header, block, across, size, places, where)
    return SlideLevel(size, block, samples, dtype, reader.read)


def _places(header: Header, block: tuple[int, int]) -> Mapping[tuple[int, int], int] | None:
    """Return column and row of a tile → its number, where each says where it lies; None: they lie row by row."""
    groups = header.data.get("PerFrameFunctionalGroupsSequence")
    if not groups or "PlanePositionSlideSequence" not in groups[0]:
        return None
    found = {}
    for number, group in enumerate(groups):
        place = group.PlanePositionSlideSequence[0]
        # DICOM counts from 1.
        x, y = (
            int(place.ColumnPositionInTotalImagePixelMatrix) - 1,
            int(place.RowPositionInTotalImagePixelMatrix) - 1,
        )
        if x % block[0] or y % block[1]:
            what = "has tiles that overlap or lie off their grid, which isn't read"
            raise DataError(what, where=str(header.path), fix="write it again with TILED_FULL")
        found[x // block[0], y // block[1]] = number
    return found


@dataclass(frozen=True)
class _Tiles:
    """The tiles of one file."""

    header: Header
    block: tuple[int, int]
    across: int
    size: tuple[int, int]
    places: Mapping[tuple[int, int], int] | None
    where: str

    def read(self, page: int, column: int, row: int) -> SlideBlock:
        """Return one tile, cut at the end of the level; one that isn't stored holds nothing."""
        number = row * self.across + column if self.places is None else self.places.get((column, row))
        wide = min(self.block[0], self.size[0] - column * self.block[0])
        high = min(self.block[1], self.size[1] - row * self.block[1])
        samples = int(self.header.number("SamplesPerPixel") or 1)
        if number is None:
            return np.zeros((samples, high, wide), np.uint8), np.zeros((high, wide), bool)
        values = read_frame(self.header, number)
        values_hwS = values[..., None] if values.ndim == 2 else values
        return np.ascontiguousarray(np.moveaxis(values_hwS[:high, :wide], 2, 0)), None


def _mpp(header: Header) -> tuple[float, float] | None:
    """Return micrometres a pixel along x and y; None: they aren't told."""
    shared = header.data.get("SharedFunctionalGroupsSequence") or [{}]
    measures = (shared[0].get("PixelMeasuresSequence") or [{}])[0]
    spacing = header_numbers(measures, "PixelSpacing")  # of rows, of columns
    if len(spacing) != 2:
        lengths = header.number("ImagedVolumeWidth") or 0, header.number("ImagedVolumeHeight") or 0
        size = _matrix(header)
        spacing = (lengths[1] / size[1], lengths[0] / size[0])
    x, y = spacing[1] * 1000, spacing[0] * 1000
    return (x, y) if min(x, y) > 0 and max(x, y) <= COARSEST_MPP else None
