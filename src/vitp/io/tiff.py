"""The pixels of a TIFF page, a few rows of its segments (strips or tiles) at a time.

Pillow reads the kinds of TIFF that pictures come in. Measurements come in more: several bands, signed and floating
samples, masks, images that don't fit into memory. They go through Pillow's decoders all the same: as small TIFF files
of some of the segments, in which each byte of a sample passes for a grey pixel.

Shapes: H × W pixels, N bands.
"""

from __future__ import annotations

import io
import math
import os
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
from PIL import Image

from vitp.core.errors import DataError
from vitp.io.image_kinds import strict_pillow
from vitp.io.tiff_tags import TYPES, Entry, Page, Tag, TiffError

_BAND_PIXELS = 1 << 22
"""Pixels that are decoded at a time, as long as a row of segments has no more."""
_DEFLATE, _JPEG, _PACK_BITS = frozenset({8, 32946}), 7, 32773
"""Numbers of the compressions."""
_SETTLED_S = 2.0
"""Seconds after which a file's time of change tells apart what was written before and after."""


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
    tiled = Tag.TILE_OFFSETS in page.entries
    if tiled:
        wide, high = page.number(Tag.TILE_WIDTH, 0), page.number(Tag.TILE_HEIGHT, 0)
        offsets, lengths = page.numbers(Tag.TILE_OFFSETS), page.numbers(Tag.TILE_BYTES)
    else:
        # One strip for all rows is written as 2³² − 1 rows.
        wide, high = width, min(page.number(Tag.ROWS_PER_STRIP, height), height)
        offsets, lengths = page.numbers(Tag.STRIP_OFFSETS), page.numbers(Tag.STRIP_BYTES)
    if min(wide, high) < 1:
        raise TiffError("its segments have no size")
    across, down = math.ceil(width / wide), math.ceil(height / high)
    planes = page.bands if page.is_planar else 1
    if not len(offsets) == len(lengths) == across * down * planes:
        raise TiffError(f"it has {len(offsets)} segments, {across * down * planes} are needed")
    grid = _Grid(wide, high, across, down, offsets, lengths, tiled)
    plain = page.compression == 1 and not tiled and planes == 1 and page.bits % 8 == 0
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
    return 0 in page.numbers(Tag.TILE_BYTES) or 0 in page.numbers(Tag.STRIP_BYTES)


def segment_bytes(page: Page) -> int:
    """Return how large the samples of a row of segments are, which is what is decoded at a time at least.

    Raises:
        TiffError: The segments aren't as they must be.
    """
    grid = _grid(page)
    inner = 1 if page.is_planar else page.bands
    return grid.across * grid.width * grid.height * inner * page.bits // 8


def is_cut(page: Page) -> bool:
    """Return whether `picture_bands` needs only a small part of a page at a time.

    Raises:
        TiffError: Its segments aren't as they must be.
    """
    grid = _grid(page)
    return page.bits == 8 and grid.across * grid.width * grid.height <= 4 * _BAND_PIXELS


def cropped(page: Page, window: tuple[int, int, int, int]) -> tuple[Page, tuple[int, int, int, int]]:
    """Return a page of only those segments that a window x1, y1, x2, y2 touches, and the window in it.

    Raises:
        TiffError: Its segments aren't as they must be.
    """
    grid = _grid(page)
    x1, y1, x2, y2 = window
    numbers, (left, top, right, bottom) = _touched(page, grid, window)
    x, y = left * grid.width, top * grid.height
    where, lengths = (Tag.STRIP_OFFSETS, Tag.STRIP_BYTES)
    if grid.tiled:
        where, lengths = (Tag.TILE_OFFSETS, Tag.TILE_BYTES)
    entries = page.entries | {
        Tag.WIDTH: _entry(page, 4, min(right * grid.width, page.size[0]) - x),
        Tag.HEIGHT: _entry(page, 4, min(bottom * grid.height, page.size[1]) - y),
        # 64 bits wide, as places may lie beyond 4 GB.
        where: _entry(page, 16, *(grid.offsets[number] for number in numbers)),
        lengths: _entry(page, 16, *(grid.lengths[number] for number in numbers)),
    }
    if not grid.tiled:
        entries[Tag.ROWS_PER_STRIP] = _entry(page, 4, grid.height)
    return replace(page, entries=entries), (x1 - x, y1 - y, x2 - x, y2 - y)


def _touched(
    page: Page, grid: _Grid, window: tuple[int, int, int, int]
) -> tuple[list[int], tuple[int, int, int, int]]:
    """Return the numbers of the segments that a window touches, and their first and last columns and rows."""
    x1, y1, x2, y2 = window
    left, top = x1 // grid.width, y1 // grid.height
    right, bottom = -(-x2 // grid.width), -(-y2 // grid.height)
    planes = page.bands if page.is_planar else 1
    chosen_PAD = np.arange(planes * grid.down * grid.across).reshape(planes, grid.down, grid.across)
    return chosen_PAD[:, top:bottom, left:right].reshape(-1).tolist(), (left, top, right, bottom)


def picture_bands(file: BinaryIO, page: Page) -> Iterator[tuple[int, Image.Image]]:
    """Yield the page from top to bottom as (first row, image of full width) in one of Pillow's modes, not turned.

    Raises:
        TiffError: Segments are missing.
        OSError: They are damaged, or Pillow can't decode them.
    """
    grid = _grid(page)
    # Pillow would turn each part by itself.
    shed = {Tag.SUBFILE, Tag.OLD_SUBFILE, Tag.ORIENTATION}
    entries = {tag: entry for tag, entry in page.entries.items() if tag not in shed}
    if page.photometric == 4:  # Pillow knows no pages of masks
        entries[Tag.PHOTOMETRIC] = _entry(page, 3, 1)
    for top, height, planes in _rows(file, page, grid):
        segments = [data for plane in planes for data in plane]
        yield top, _decoded(page, grid, entries | {Tag.HEIGHT: _entry(page, 4, height)}, segments)


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
    inner = 1 if page.is_planar else page.bands
    width = grid.width * inner * dtype.itemsize
    # As if each byte were a grey pixel. The predictor is left out, and undone afterwards.
    entries: dict[int, Entry] = {
        Tag.WIDTH: _entry(page, 4, grid.across * width),
        Tag.BITS: _entry(page, 3, 8),
        Tag.PHOTOMETRIC: _entry(page, 3, 1),
        Tag.BANDS: _entry(page, 3, 1),
        **{tag: page.entries[tag] for tag in (Tag.COMPRESSION, Tag.FILL_ORDER) if tag in page.entries},
    }
    if grid.tiled:
        entries |= {Tag.TILE_WIDTH: _entry(page, 4, width), Tag.TILE_HEIGHT: _entry(page, 4, grid.height)}
    for top, height, planes in _rows(file, page, grid):
        entries[Tag.HEIGHT] = _entry(page, 4, height)
        values = [
            _undone(page, grid, np.asarray(_decoded(page, grid, entries, segments)), dtype, inner)
            for segments in planes
        ]
        yield top, np.concatenate([part[:, : page.size[0]] for part in values], axis=2)


def _rows(file: BinaryIO, page: Page, grid: _Grid) -> Iterator[tuple[int, int, list[list[bytes]]]]:
    """Yield first row, number of rows and segments of each plane, for a few rows of segments at a time."""
    step = max(1, _BAND_PIXELS // (grid.across * grid.width * grid.height))
    for first in range(0, grid.down, step):
        last = min(first + step, grid.down)
        top = first * grid.height
        planes = []
        for plane in range(page.bands if page.is_planar else 1):
            begin = plane * grid.down
            planes.append(
                _segments(file, grid, range((begin + first) * grid.across, (begin + last) * grid.across))
            )
        yield top, min(last * grid.height, page.size[1]) - top, planes


def _undone(page: Page, grid: _Grid, data_HB: np.ndarray, dtype: np.dtype, inner: int) -> np.ndarray:
    """Return the values (H, W, N) of rows of bytes: differences are summed up again, tile by tile."""
    predictor = page.number(Tag.PREDICTOR, 1)
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
            # Unsigned, so that sums wrap around as the differences did.
            whole = values_HAWN.view(f"u{dtype.itemsize}")
            values_HAWN = np.cumsum(whole, axis=2, dtype=whole.dtype).view(native)
    return values_HAWN.reshape(len(data_HB), grid.across * grid.width, inner)


def _is_whole(data: bytes) -> bool:
    """Return whether a zlib stream ends, with the checksum of what it holds."""
    stream = zlib.decompressobj()
    try:
        while data and not stream.eof:
            stream.decompress(data, _BAND_PIXELS)
            data = stream.unconsumed_tail
    except zlib.error:
        return False
    return stream.eof


def _unpacks_to(data: bytes, expected: int) -> bool:
    """Return whether runs of PackBits end where a segment has all of its bytes."""
    length = at = 0
    while length < expected and at < len(data):
        count = data[at]
        if count < 128:
            at, length = at + 2 + count, length + 1 + count
        else:
            at, length = at + 1 + (count > 128), length + (257 - count) * (count > 128)
    # Bytes that only fill up, to an even length.
    return length == expected and at <= len(data) and not data[at:].strip(b"\0\x80")


def _is_sound(page: Page, grid: _Grid, number: int, data: bytes) -> bool:
    """Return whether a segment is what was written, as far as its compression tells."""
    if page.compression in _DEFLATE:
        return _is_whole(data)
    if page.compression == _JPEG:
        # Decoders make grey of what is missing.
        return data.rstrip(b"\0").endswith(b"\xff\xd9")
    row = number % (grid.across * grid.down) // grid.across
    low = page.size[1] - row * grid.height < grid.height and not grid.tiled
    if low or page.photometric == 6:
        return True  # some write the last strip as high as the others; YCbCr has fewer samples than pixels
    inner = 1 if page.is_planar else page.bands
    return _unpacks_to(data, grid.height * -(-grid.width * inner * page.bits // 8))


_sound: dict[tuple[int, ...], set[int]] = {}


def _known_sound(file: BinaryIO) -> set[int]:
    """Return the places of the segments of a file that this process has found to be sound, to add others to."""
    try:
        stat = os.fstat(file.fileno())
    except OSError:
        return set()
    if time.time() - stat.st_mtime < _SETTLED_S:
        return set()
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if key not in _sound and len(_sound) >= 4096:
        _sound.clear()
    return _sound.setdefault(key, set())


def check_segments(
    file: BinaryIO, pages: Sequence[Page], where: str, window: tuple[int, int, int, int] | None = None
) -> None:
    """Do nothing where the tiles or strips of a page are what was written, as far as their compression tells.

    libtiff, behind Pillow and GDAL, stops where a segment has all of its pixels, before the checksum of a deflated one:
    of bits that flipped, or of a tail that was lost, it may make other pixels without a word. JPEG has to end with its
    mark, and runs of PackBits with the segment. LZW and ZSTD, as they are written, have no checksum. A segment is
    looked at once in a process, as long as the file doesn't change.

    Args:
        file: The TIFF file.
        pages: The page that is read, and others: of those its masks count.
        where: Address of the file, for messages.
        window: x1, y1, x2, y2 in the page: the segments that it touches are looked at; None: all.

    Raises:
        DataError: One isn't; the message names it.
    """
    for place, page in enumerate(pages):
        checked = page.compression in {*_DEFLATE, _JPEG, _PACK_BITS} and page.number(Tag.FILL_ORDER, 1) == 1
        if not checked or (place and not page.is_mask):
            continue
        try:
            grid = _grid(page)
        except TiffError:
            continue  # its reader tells what is wrong, where anything is
        sound = _known_sound(file)
        numbers = range(len(grid.offsets)) if window is None else _touched(page, grid, window)[0]
        for number in numbers:
            offset, length = grid.offsets[number], grid.lengths[number]
            if not length or offset in sound:
                continue
            file.seek(offset)
            if not _is_sound(page, grid, number, file.read(length)):
                row, column = divmod(number % (grid.across * grid.down), grid.across)
                tile = f"the tile of column {column}, row {row}, from 0"
                what = tile if grid.tiled else f"the strip from row {row * grid.height} on"
                raise DataError(
                    f"is damaged: {what}, isn't what was written",
                    where=where,
                    fix="copy it again from its source or remove it",
                )
            sound.add(offset)


def _segments(file: BinaryIO, grid: _Grid, numbers: range) -> list[bytes]:
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


def _decoded(page: Page, grid: _Grid, entries: dict[int, Entry], segments: list[bytes]) -> Image.Image:
    """Return the image of a TIFF file that has these tags and segments."""
    strips, tiles = (Tag.STRIP_OFFSETS, Tag.STRIP_BYTES), (Tag.TILE_OFFSETS, Tag.TILE_BYTES)
    dropped = {*strips, *tiles, Tag.GDAL_METADATA, Tag.GDAL_NODATA}
    entries = {tag: entry for tag, entry in entries.items() if tag not in dropped}
    if not grid.tiled:
        entries[Tag.ROWS_PER_STRIP] = _entry(page, 4, grid.height)
    where, lengths = tiles if grid.tiled else strips
    entries[lengths] = _entry(page, 4, *(len(data) for data in segments))
    entries[where] = _entry(page, 4, *(0 for _ in segments))
    # Behind the head stand the table of tags, the values that don't fit into it, and the segments.
    after = 8 + 2 + 12 * len(entries) + 4
    places = {}
    for tag in sorted(entries):
        if len(entries[tag].data) > 4:
            places[tag] = after
            # Values begin at even places, as the format demands.
            after += len(entries[tag].data) + len(entries[tag].data) % 2
    offsets = np.cumsum([after, *(len(data) for data in segments)])[:-1]
    entries[where] = _entry(page, 4, *offsets.tolist())
    parts = [b"II*\0" if page.order == "<" else b"MM\0*", struct.pack(page.order + "IH", 8, len(entries))]
    for tag in sorted(entries):
        entry = entries[tag]
        value = struct.pack(page.order + "I", places[tag]) if tag in places else entry.data.ljust(4, b"\0")
        parts.append(struct.pack(page.order + "HHI", tag, entry.type, entry.count) + value)
    parts.append(b"\0\0\0\0")
    parts += [entries[tag].data + b"\0" * (len(entries[tag].data) % 2) for tag in places]
    with strict_pillow(), Image.open(io.BytesIO(b"".join([*parts, *segments])), formats=("TIFF",)) as image:
        image.load()
        return image
