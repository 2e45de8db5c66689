"""The pages of a TIFF file by their tags, read without decoding anything."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO

import numpy as np


class Tag(IntEnum):
    """The tags that are read."""

    SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT = 254, 255, 256, 257
    BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 258, 259, 262, 266
    STRIP_OFFSETS, ORIENTATION, BANDS, ROWS_PER_STRIP, STRIP_BYTES = 273, 274, 277, 278, 279
    PLANAR, FAX3_OPTIONS, FAX4_OPTIONS, PREDICTOR, COLOUR_MAP = 284, 292, 293, 317, 320
    TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325
    EXTRA, FORMAT, JPEG_TABLES = 338, 339, 347
    YCBCR_COEFFICIENTS, YCBCR_SUBSAMPLING, YCBCR_POSITIONING, REFERENCE_BLACK_WHITE = 529, 530, 531, 532
    GDAL_METADATA, GDAL_NODATA = 42112, 42113


_GEO = frozenset({33550, 33922, 34264, 34735, Tag.GDAL_METADATA, Tag.GDAL_NODATA})
"""Pixel scale, tie points, transformation, keys of the projection, and what GDAL adds."""
_READ = frozenset(map(int, Tag))
TYPES = {
    1: "u1",
    2: "S1",
    3: "u2",
    4: "u4",
    5: "u4",
    6: "i1",
    7: "u1",
    8: "i2",
    9: "i4",
    10: "i4",
    11: "f4",
    12: "f8",
    13: "u4",
    16: "u8",
    17: "i8",
    18: "u8",
}
_RATIONALS = (5, 10)
"""Types of which a value is two numbers, above and below the line."""
_MOST_PAGES = 10_000
_MOST_BYTES = 1 << 25
"""Of the values of all tags that are read: offsets and lengths of two million segments."""

_KINDS = {0: "u", 1: "u", 2: "i", 3: "f", 4: "u", 6: "c"}


class TiffError(ValueError):
    """The file isn't laid out as a TIFF must be."""


@dataclass(frozen=True)
class Entry:
    """Values of a tag: type as the format numbers them, number of values, bytes as they stand in the file."""

    type: int
    count: int
    data: bytes


@dataclass(frozen=True)
class Page:
    """One image of a TIFF file, by its tags.

    Attributes:
        order: Byte order, as `struct` writes it.
        entries: Tag → values, of the tags that matter here.
        tags: All tags that the page has.
    """

    order: str
    entries: dict[int, Entry]
    tags: frozenset[int]

    def numbers(self, tag: int, *default: int) -> tuple[int, ...]:
        """Return the values of a tag."""
        entry = self.entries.get(tag)
        if entry is None or entry.type not in TYPES or entry.type == 2:
            return default
        values = np.frombuffer(entry.data, self.order + TYPES[entry.type])
        if values.dtype.kind == "f":
            return default
        return tuple(values.tolist()) or default

    def number(self, tag: int, default: int) -> int:
        """Return the first value of a tag."""
        return self.numbers(tag, default)[0]

    def text(self, tag: int) -> str:
        """Return the text of a tag, "" without it."""
        entry = self.entries.get(tag)
        return "" if entry is None else entry.data.rstrip(b"\0 ").decode("utf-8", "replace").strip()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as stored, before `orientation` turns them."""
        return self.number(Tag.WIDTH, 0), self.number(Tag.HEIGHT, 0)

    @property
    def bands(self) -> int:
        """Samples of a pixel."""
        return self.number(Tag.BANDS, 1)

    @property
    def bits(self) -> int:
        """Of a sample; the largest where bands differ."""
        return max(self.numbers(Tag.BITS, 1))

    @property
    def kind(self) -> str:
        """Of a sample, as NumPy calls it: u, i, f, c; "?" where bands differ or it is none of them."""
        kinds = {_KINDS.get(number, "?") for number in self.numbers(Tag.FORMAT, 1)}
        same = len(kinds) == 1 and len(set(self.numbers(Tag.BITS, 1))) == 1
        return kinds.pop() if same else "?"

    @property
    def is_planar(self) -> bool:
        """Whether each band has segments of its own."""
        return self.number(Tag.PLANAR, 1) == 2

    @property
    def compression(self) -> int:
        """Number of the compression: 1 none, 5 LZW, 8 deflate, …"""
        return self.number(Tag.COMPRESSION, 1)

    @property
    def photometric(self) -> int:
        """0 and 1 grey (0: white is zero), 2 RGB, 3 palette, 5 CMYK, 6 YCbCr, 8 CIELAB."""
        return self.number(Tag.PHOTOMETRIC, 1)

    @property
    def extra(self) -> tuple[int, ...]:
        """Of the bands beyond the colours: 0 nothing said, 1 alpha that the colours are multiplied by, 2 alpha."""
        return self.numbers(Tag.EXTRA)

    @property
    def orientation(self) -> int:
        """1–8 as in EXIF."""
        value = self.number(Tag.ORIENTATION, 1)
        return value if 1 <= value <= 8 else 1

    @property
    def is_measured(self) -> bool:
        """Whether it is placed on the ground or was written by GDAL."""
        return bool(self.tags & _GEO)

    @property
    def nodata(self) -> float | None:
        """The value of pixels that hold nothing."""
        try:
            return float(self.text(Tag.GDAL_NODATA)) if Tag.GDAL_NODATA in self.entries else None
        except ValueError:
            return None

    @property
    def is_reduced(self) -> bool:
        """Whether it repeats another page at a lower resolution, or is the mask of one."""
        # Bit 0 says reduced, bit 2 a mask; the older tag has a number for reduced.
        return bool(self.number(Tag.SUBFILE, 0) & 5) or self.number(Tag.OLD_SUBFILE, 1) == 2

    @property
    def is_mask(self) -> bool:
        """Whether it tells which pixels of the first page hold something."""
        return self.number(Tag.SUBFILE, 0) & 5 == 4


def is_tiff(head: bytes) -> bool:
    """Return whether a file that begins like this is a TIFF, of 32-bit or 64-bit offsets."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_pages(file: BinaryIO) -> list[Page]:
    """Return all pages of a TIFF file, the first one first.

    Raises:
        TiffError: The first page's tags can't be read. A later page that can't be isn't one.
    """
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    # 42: offsets of 32 bits, 43: of 64.
    big = struct.unpack(order + "H", head[2:4])[0] == 43
    try:
        (offset,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
    except struct.error as error:
        raise TiffError("it ends in its head") from error
    pages: list[Page] = []
    seen: set[int] = set()
    left = _MOST_BYTES
    # In a forged file a page may point back to one before it.
    while offset and offset not in seen and len(pages) < _MOST_PAGES:
        seen.add(offset)
        try:
            page, offset = _read_page(file, offset, order, big, left)
        except (struct.error, ValueError, OverflowError, OSError, MemoryError) as error:
            if pages:
                break
            raise TiffError(f"its tags can't be read: {error}") from error
        pages.append(page)
        left -= sum(len(entry.data) for entry in page.entries.values())
    if not pages:
        raise TiffError("it holds no image")
    return pages


def first_texts(file: BinaryIO, wanted: Sequence[int]) -> tuple[dict[int, str], frozenset[int], int]:
    """Return texts of the first page by tag, all tags that it has, and 1, or 2 where more pages follow.

    Raises:
        TiffError: Its tags can't be read.
    """
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    try:
        big = struct.unpack(order + "H", head[2:4])[0] == 43
        (offset,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
        page, following = _read_page(file, offset, order, big, _MOST_BYTES, frozenset(wanted))
    except (struct.error, ValueError, OverflowError, OSError, MemoryError) as error:
        raise TiffError(f"its tags can't be read: {error}") from error
    return {tag: page.text(tag) for tag in wanted}, page.tags, 2 if following else 1


def _read_page(
    file: BinaryIO, offset: int, order: str, big: bool, left: int, wanted: frozenset[int] = _READ
) -> tuple[Page, int]:
    file.seek(offset)
    counter, row, wide = (order + "Q", 20, "Q") if big else (order + "H", 12, "I")
    (count,) = struct.unpack(counter, file.read(struct.calcsize(counter)))
    if count > 4096:
        raise TiffError(f"{count} tags")
    table = file.read(count * row)
    (following,) = struct.unpack(order + wide, file.read(struct.calcsize(order + wide)))
    entries: dict[int, Entry] = {}
    tags = []
    for start in range(0, count * row, row):
        tag, type_, length = struct.unpack_from(order + "HH" + wide, table, start)
        tags.append(tag)
        if tag not in wanted or type_ not in TYPES:
            continue
        bytes_ = length * np.dtype(TYPES[type_]).itemsize * (2 if type_ in _RATIONALS else 1)
        # Values that fit stand where else their offset does.
        value = table[start + row - struct.calcsize(wide) : start + row]
        if bytes_ > len(value):
            left -= bytes_
            if left < 0:
                raise TiffError(f"tag {tag} has {length} values")
            file.seek(struct.unpack(order + wide, value)[0])
            value = file.read(bytes_)
            if len(value) < bytes_:
                raise TiffError(f"the values of tag {tag} lie outside the file")
        entries[tag] = Entry(type_, length, value[:bytes_])
    return Page(order, entries, frozenset(tags)), following
