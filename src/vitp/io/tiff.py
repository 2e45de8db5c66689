"""The pixels of a TIFF page, a few rows of its segments (strips or tiles) at a time.

Pillow reads the kinds of TIFF that pictures come in. Measurements come in more: several bands, signed and floating
samples, masks, images that don't fit into memory. They go through Pillow's decoders all the same: as small TIFF files of
some of the segments, in which each byte of a sample passes for a grey pixel.

Shapes: H × W pixels, N bands.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
from PIL import Image

from vitp.io.pillow import strict_pillow
from vitp.io.tiff_tags import (
    BANDS,
    BITS,
    COMPRESSION,
    FILL_ORDER,
    GDAL_METADATA,
    GDAL_NODATA,
    HEIGHT,
    OLD_SUBFILE,
    ORIENTATION,
    PHOTOMETRIC,
    PLANAR,
    PREDICTOR,
    ROWS_PER_STRIP,
    STRIP_BYTES,
    STRIP_OFFSETS,
    SUBFILE,
    TILE_BYTES,
    TILE_HEIGHT,
    TILE_OFFSETS,
    TILE_WIDTH,
    TYPES,
    WIDTH,
    Entry,
    Page,
    TiffError,
)

_BAND_PIXELS = 1 << 22
"""Pixels that are decoded at a time, as long as a row of segments has no more."""


@dataclass(frozen=True)
class _Grid:
    """How a page is cut into segments: their size, how many there are, where they lie in the file."""

    width: int
    height: int
    across: int
    down: int
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    tiled: bool


def _grid(page: Page) -> _Grid:
    width, height = page.size
    if min(width, height) < 1:
        raise TiffError(f"it is {width}×{height} px")
    tiled = TILE_OFFSETS in page.entries
    if tiled:
        wide, high = page.number(TILE_WIDTH, 0), page.number(TILE_HEIGHT, 0)
        offsets, lengths = page.numbers(TILE_OFFSETS), page.numbers(TILE_BYTES)
    else:
        wide, high = width, min(page.number(ROWS_PER_STRIP, height), height)
        offsets, lengths = page.numbers(STRIP_OFFSETS), page.numbers(STRIP_BYTES)
    if min(wide, high) < 1:
        raise TiffError("its segments have no size")
    across, down = math.ceil(width / wide), math.ceil(height / high)
    planes = page.bands if page.number(PLANAR, 1) == 2 else 1
    if not len(offsets) == len(lengths) == across * down * planes:
        raise TiffError(f"it has {len(offsets)} segments, {across * down * planes} are needed")
    grid = _Grid(wide, high, across, down, offsets, lengths, tiled)
    plain = page.number(COMPRESSION, 1) == 1 and not tiled and planes == 1 and page.bits % 8 == 0
    return _finer(page, grid) if plain and wide * high > _BAND_PIXELS else grid


def _finer(page: Page, grid: _Grid) -> _Grid:
    """Return a page of one long strip that isn't compressed as if it were cut into shorter ones."""
    bytes_ = page.size[0] * page.bands * page.bits // 8
    rows = max(1, _BAND_PIXELS // grid.width)
    offsets, lengths = [], []
    for number, start in enumerate(grid.offsets):
        high = min(grid.height, page.size[1] - number * grid.height)
        if grid.lengths[number] < high * bytes_:
            raise TiffError("it ends before its last pixel")
        if number + 1 < grid.down and high % rows:
            return grid  # strips of equal height only
        for first in range(0, high, rows):
            offsets.append(start + first * bytes_)
            lengths.append(min(rows, high - first) * bytes_)
    return replace(grid, height=rows, down=len(offsets), offsets=tuple(offsets), lengths=tuple(lengths))


def is_sparse(page: Page) -> bool:
    """Return whether some of a page's pixels were never written: GDAL leaves out blocks of nodata when told so."""
    return 0 in page.numbers(TILE_BYTES) or 0 in page.numbers(STRIP_BYTES)


def segment_bytes(page: Page) -> int:
    """Return how large the samples of a row of segments are, which is what is decoded at a time at least.

    Raises:
        TiffError: The segments aren't as they must be.
    """
    grid = _grid(page)
    inner = 1 if page.number(PLANAR, 1) == 2 else page.bands
    return grid.across * grid.width * grid.height * inner * page.bits // 8


def is_cut(page: Page) -> bool:
    """Return whether `picture_bands` needs only a small part of a page at a time.

    Raises:
        TiffError: Its segments aren't as they must be.
    """
    grid = _grid(page)
    return page.bits == 8 and grid.across * grid.width * grid.height <= 4 * _BAND_PIXELS


def picture_bands(file: BinaryIO, page: Page) -> Iterator[tuple[int, Image.Image]]:
    """Yield the page from top to bottom as (first row, image of full width) in one of Pillow's modes, not turned.

    Raises:
        TiffError: Segments are missing.
        OSError: They are damaged, or Pillow can't decode them.
    """
    grid = _grid(page)
    separate = page.number(PLANAR, 1) == 2
    planes = range(page.bands) if separate else range(1)
    rows = max(1, _BAND_PIXELS // (grid.across * grid.width * grid.height))
    for first in range(0, grid.down, rows):
        last = min(first + rows, grid.down)
        numbers = [
            (plane * grid.down + row) * grid.across + column
            for plane in planes
            for row in range(first, last)
            for column in range(grid.across)
        ]
        top = first * grid.height
        height = min(last * grid.height, page.size[1]) - top
        entries = {
            tag: page.entries[tag] for tag in page.entries if tag not in (SUBFILE, OLD_SUBFILE, ORIENTATION)
        }
        entries |= {HEIGHT: _entry(page, 4, height)}
        if page.photometric == 4:  # Pillow knows no pages of masks
            entries |= {PHOTOMETRIC: _entry(page, 3, 1)}
        if not grid.tiled:
            entries |= {ROWS_PER_STRIP: _entry(page, 4, grid.height)}
        yield top, _decoded(page, entries, _segments(file, grid, numbers), grid.tiled)


def sample_bands(file: BinaryIO, page: Page) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the page from top to bottom as (first row, values (h, W, N)) of the file's own type, not turned.

    Raises:
        TiffError: Segments are missing, or samples aren't whole bytes.
        OSError: They are damaged, or Pillow can't decode them.
    """
    if page.bits % 8 or page.kind == "?":
        raise TiffError(f"samples of {page.bits} bits can't be read")
    grid = _grid(page)
    dtype = np.dtype(f"{page.order}{page.kind}{page.bits // 8}")
    separate = page.number(PLANAR, 1) == 2
    inner = 1 if separate else page.bands
    rows = max(1, _BAND_PIXELS // (grid.across * grid.width * grid.height))
    for first in range(0, grid.down, rows):
        last = min(first + rows, grid.down)
        top = first * grid.height
        height = min(last * grid.height, page.size[1]) - top
        planes = []
        for plane in range(page.bands if separate else 1):
            start = plane * grid.down * grid.across
            numbers = range(start + first * grid.across, start + last * grid.across)
            data_HB = _raw_bytes(page, grid, _segments(file, grid, numbers), height, inner * dtype.itemsize)
            planes.append(_undone(page, grid, data_HB, dtype, inner)[:, : page.size[0]])
        yield top, np.concatenate(planes, axis=2) if len(planes) > 1 else planes[0]


def _raw_bytes(page: Page, grid: _Grid, segments: list[bytes], height: int, bytes_: int) -> np.ndarray:
    """Return the decompressed rows (H, bytes), as if each byte were a grey pixel; the predictor is still applied."""
    wide = grid.across * grid.width * bytes_
    entries = {
        WIDTH: _entry(page, 4, wide),
        HEIGHT: _entry(page, 4, height),
        BITS: _entry(page, 3, 8),
        PHOTOMETRIC: _entry(page, 3, 1),
        BANDS: _entry(page, 3, 1),
    }
    if grid.tiled:
        entries |= {
            TILE_WIDTH: _entry(page, 4, grid.width * bytes_),
            TILE_HEIGHT: _entry(page, 4, grid.height),
        }
    else:
        entries |= {ROWS_PER_STRIP: _entry(page, 4, grid.height)}
    entries |= {tag: page.entries[tag] for tag in (COMPRESSION, FILL_ORDER) if tag in page.entries}
    return np.asarray(_decoded(page, entries, segments, grid.tiled))


def _undone(page: Page, grid: _Grid, data_HB: np.ndarray, dtype: np.dtype, inner: int) -> np.ndarray:
    """Return the values (H, W, N) of rows of bytes: differences are summed up again, tile by tile."""
    predictor = page.number(PREDICTOR, 1)
    native = dtype.newbyteorder("=")
    shape = (len(data_HB), grid.across, grid.width, inner)
    if predictor == 3:
        # Differences of bytes, of which the most significant of all samples come first.
        parts = data_HB.reshape(len(data_HB), grid.across, -1, inner)
        parts = np.cumsum(parts, axis=2, dtype=np.uint8)
        parts = parts.reshape(len(data_HB), grid.across, dtype.itemsize, grid.width * inner)
        values = np.ascontiguousarray(parts.swapaxes(2, 3)).view(dtype.newbyteorder(">"))
        values_HAWN = values.reshape(shape).astype(native)
    else:
        values_HAWN = np.ascontiguousarray(data_HB).view(dtype).reshape(shape).astype(native)
        if predictor == 2:
            whole = values_HAWN.view(f"u{dtype.itemsize}")
            values_HAWN = np.cumsum(whole, axis=2, dtype=whole.dtype).view(native)
    return values_HAWN.reshape(len(data_HB), grid.across * grid.width, inner)


def _segments(file: BinaryIO, grid: _Grid, numbers: list[int] | range) -> list[bytes]:
    found = []
    for number in numbers:
        if not grid.lengths[number]:
            raise TiffError("some of its segments are left out (a sparse file)")
        if grid.lengths[number] > 1 << 31:
            raise TiffError("a segment is larger than 2 GB")
        file.seek(grid.offsets[number])
        data = file.read(grid.lengths[number])
        if len(data) < grid.lengths[number]:
            raise TiffError("it ends before its last pixel")
        found.append(data)
    return found


def _entry(page: Page, type_: int, *values: int) -> Entry:
    return Entry(type_, len(values), np.array(values, page.order + TYPES[type_]).tobytes())


def _decoded(page: Page, entries: dict[int, Entry], segments: list[bytes], tiled: bool) -> Image.Image:
    """Return the image of a TIFF file that has these tags and segments."""
    for tag in (STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES, GDAL_METADATA, GDAL_NODATA):
        entries.pop(tag, None)
    where, lengths = (TILE_OFFSETS, TILE_BYTES) if tiled else (STRIP_OFFSETS, STRIP_BYTES)
    entries[lengths] = _entry(page, 4, *(len(data) for data in segments))
    entries[where] = _entry(page, 4, *(0 for _ in segments))
    rows = sorted(entries)
    after = 8 + 2 + 12 * len(rows) + 4
    places = {}
    for tag in rows:
        if len(entries[tag].data) > 4:
            places[tag] = after
            after += len(entries[tag].data) + len(entries[tag].data) % 2
    offsets = np.cumsum([after, *(len(data) for data in segments)])[:-1]
    entries[where] = _entry(page, 4, *offsets.tolist())
    mark = b"II*\0" if page.order == "<" else b"MM\0*"
    head = [mark, struct.pack(page.order + "IH", 8, len(rows))]
    for tag in rows:
        entry = entries[tag]
        value = struct.pack(page.order + "I", places[tag]) if tag in places else entry.data.ljust(4, b"\0")
        head.append(struct.pack(page.order + "HHI", tag, entry.type, entry.count) + value)
    head.append(b"\0\0\0\0")
    for tag in places:
        data = entries[tag].data
        head.append(data + b"\0" * (len(data) % 2))
    with strict_pillow(), Image.open(io.BytesIO(b"".join([*head, *segments])), formats=("TIFF",)) as image:
        image.load()
        return image
