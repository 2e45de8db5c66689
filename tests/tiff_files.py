"""TIFF files of any layout, written by hand after the format's definition (TIFF 6.0), to test what reads them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

GEO = {33550: (12, (1.0, 1.0, 0.0))}
"""Pixel scale: the tag of a file that is placed on the ground."""

_SIZES = {2: 1, 3: 2, 4: 4, 12: 8}


def write_tiff(path: Path, values_HWN: np.ndarray, **options: Any) -> Path:
    """Write one page; see `page` for the options."""
    return write_pages(path, [page(values_HWN, **options)], order=options.get("order", "<"))


def page(
    values_HWN: np.ndarray,
    *,
    order: str = "<",
    photometric: int | None = None,
    extra: tuple[int, ...] = (),
    planar: bool = False,
    rows: int | None = None,
    tile: tuple[int, int] | None = None,
    deflate: bool = False,
    predictor: bool = False,
    nodata: str | None = None,
    tags: dict[int, tuple[int, Any]] | None = None,
) -> tuple[dict[int, tuple[int, Any]], list[bytes]]:
    """Return the tags (number → type and values) and segments of a page.

    Args:
        values_HWN: (H, W) or (H, W, N).
        order: Byte order.
        photometric: By default RGB for three bands and more, else grey.
        extra: What the bands beyond the colours are.
        planar: Each band for itself.
        rows: Of a strip; None: one strip.
        tile: Height and width of tiles instead of strips.
        deflate: Compressed.
        predictor: Horizontal differences.
        nodata: GDAL's tag.
        tags: Further ones.
    """
    values_HWN = values_HWN.reshape(*values_HWN.shape[:2], -1)
    height, width, bands = values_HWN.shape
    kind = {"u": 1, "i": 2, "f": 3}[values_HWN.dtype.kind]
    high, wide = tile or (rows or height, width)
    segments = []
    for plane in np.split(values_HWN, bands, axis=2) if planar else [values_HWN]:
        for part in _parts(plane, high, wide, tile is not None):
            stored = np.diff(part, axis=1, prepend=part[:, :1] * 0) if predictor else part
            data = stored.astype(part.dtype.newbyteorder(order)).tobytes()
            segments.append(zlib.compress(data) if deflate else data)
    if photometric is None:
        photometric = 2 if bands >= 3 else 1
    found: dict[int, tuple[int, Any]] = {
        256: (4, (width,)),
        257: (4, (height,)),
        258: (3, (values_HWN.dtype.itemsize * 8,) * bands),
        259: (3, (8 if deflate else 1,)),
        262: (3, (photometric,)),
        277: (3, (bands,)),
        284: (3, (2 if planar else 1,)),
        317: (3, (2 if predictor else 1,)),
        339: (3, (kind,) * bands),
    }
    found |= {322: (4, (wide,)), 323: (4, (high,))} if tile else {278: (4, (high,))}
    if extra:
        found[338] = (3, extra)
    if nodata is not None:
        found[42113] = (2, nodata.encode() + b"\0")
    found |= tags or {}
    where, lengths = (324, 325) if tile else (273, 279)
    return found | {where: (4, (0,) * len(segments)), lengths: (4, tuple(map(len, segments)))}, segments


def _parts(plane_HWN: np.ndarray, high: int, wide: int, full: bool) -> Iterator[np.ndarray]:
    """Yield strips or tiles in their order; tiles are as large beyond the edge of the image."""
    for top in range(0, plane_HWN.shape[0], high):
        for left in range(0, plane_HWN.shape[1], wide):
            part = plane_HWN[top : top + high, left : left + wide]
            if full:
                part = np.pad(part, ((0, high - part.shape[0]), (0, wide - part.shape[1]), (0, 0)))
            yield part


def write_pages(
    path: Path, pages: list[tuple[dict[int, tuple[int, Any]], list[bytes]]], *, order: str = "<"
) -> Path:
    """Write a file of pages one after the other."""
    data = bytearray((b"II*\0" if order == "<" else b"MM\0*") + b"\0\0\0\0")
    link = 4
    for tags, segments in pages:
        places = []
        for segment in segments:
            places.append(len(data))
            data += segment + b"\0" * (len(segment) % 2)
        tags = tags | {tag: (4, tuple(places)) for tag in (273, 324) if tag in tags}
        rows = []
        for tag, (type_, values) in sorted(tags.items()):
            codes = {3: "H", 4: "I", 12: "d"}
            raw = values if type_ == 2 else struct.pack(f"{order}{len(values)}{codes[type_]}", *values)
            if len(raw) > 4:
                place = struct.pack(order + "I", len(data))
                data += raw + b"\0" * (len(raw) % 2)
                raw = place
            rows.append(struct.pack(order + "HHI", tag, type_, len(values)) + raw.ljust(4, b"\0"))
        data[link : link + 4] = struct.pack(order + "I", len(data))
        data += struct.pack(order + "H", len(rows)) + b"".join(rows)
        link = len(data)
        data += b"\0\0\0\0"
    path.write_bytes(bytes(data))
    return path
