"""PNG files a band of rows at a time, so that a large one is never held as a whole.

The compressed stream is one for the whole image, and each row is written as differences to the one above. A band is
therefore made a small PNG of its own: the last row of the band before, as it is, then its own rows as they stand in the
file. Pillow decodes that.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

from vitp.io.image_kinds import strict_pillow
from vitp.io.pixels import row_bands

_MAGIC = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Kind of colours → channels: grey, RGB, palette, grey with alpha, RGB with alpha."""


def can_be_cut(file: BinaryIO) -> bool:
    """Return whether `png_bands` reads a PNG file: 8 bits a channel, its rows in order."""
    file.seek(0)
    head = file.read(33)
    # Behind the signature: length, name, two sizes, then depth, colour, compression, filter, interlacing.
    return len(head) == 33 and head[24] == 8 and head[25] in _CHANNELS and head[28] == 0


def png_bands(file: BinaryIO) -> Iterator[tuple[int, Image.Image]]:
    """Yield a PNG file from top to bottom as (first row, image of full width) in Pillow's mode for it.

    Raises:
        OSError: It is damaged.
    """
    file.seek(len(_MAGIC))
    width, height, _, kind = struct.unpack(">IIBB", _chunk(file)[1][:10])
    row_bytes = width * _CHANNELS[kind]
    meaning = b""  # palette and transparent colour
    while True:
        begin = file.tell()
        name, data = _chunk(file)
        if name == b"IDAT":
            break
        if name in (b"PLTE", b"tRNS"):
            meaning += _packed(name, data)
    file.seek(begin)
    rows = _Rows(file)
    above: bytes | None = None
    for top, bottom in row_bands(width, height):
        filtered = rows.read((bottom - top) * (row_bytes + 1))
        count = bottom - top + (above is not None)
        head = _packed(b"IHDR", struct.pack(">IIBBBBB", width, count, 8, kind, 0, 0, 0))
        # Without compression: it is decoded again at once.
        body = zlib.compress((b"" if above is None else b"\0" + above) + filtered, 0)
        small = b"".join([_MAGIC, head, meaning, _packed(b"IDAT", body), _packed(b"IEND", b"")])
        with strict_pillow(), Image.open(io.BytesIO(small), formats=("PNG",)) as image:
            image.load()
        band = image if above is None else image.crop((0, 1, width, count))
        above = np.asarray(image.crop((0, count - 1, width, count))).tobytes()
        yield top, band


def _chunk(file: BinaryIO) -> tuple[bytes, bytes]:
    head = file.read(8)
    if len(head) < 8:
        raise OSError("it ends before its last row")
    (length,) = struct.unpack(">I", head[:4])
    data = file.read(min(length, 1 << 31))
    check = file.read(4)
    if len(data) < length or len(check) < 4:
        raise OSError("it ends before its last row")
    if zlib.crc32(data, zlib.crc32(head[4:])) != struct.unpack(">I", check)[0]:
        raise OSError(f"the checksum of its part {head[4:].decode('latin-1')} is wrong")
    return head[4:], data


def _packed(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))


class _Rows:
    """The decompressed stream of a PNG file that stands at its first IDAT chunk."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.stream = zlib.decompressobj()
        self.waiting = b""

    def read(self, count: int) -> bytes:
        """Return the next bytes, exactly as many."""
        parts, missing = [], count
        while missing:
            data = self.stream.decompress(self.waiting, missing) if self.waiting else b""
            self.waiting = self.stream.unconsumed_tail
            if data:
                parts.append(data)
                missing -= len(data)
            elif self.stream.eof:
                raise OSError("it ends before its last row")
            elif not self.waiting:
                name, self.waiting = _chunk(self.file)
                if name != b"IDAT":
                    raise OSError("it ends before its last row")
        return b"".join(parts)
