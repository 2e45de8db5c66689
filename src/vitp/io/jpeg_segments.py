"""JPEG files without what was written about them: the pixels' own segments are copied as they are."""

from __future__ import annotations

from pathlib import Path

_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_ABOUT = frozenset([*range(0xE1, 0xEE), 0xEF, 0xFE])
"""EXIF, profiles, makers' notes and comments; APP0 and APP14 say how colours are coded."""

_ORIENTATION = 0x0112


def write_bare_jpeg(source: Path, target: Path, orientation: int) -> bool:
    """Write a JPEG file without comments, EXIF and profiles; which way up it is stays.

    Args:
        source: A JPEG file.
        target: New file.
        orientation: Orientation of EXIF, 1 to 8.

    Returns:
        Whether it could be done: where segments can't be told apart nothing is written.
    """
    data = source.read_bytes()
    kept = _kept(data)
    if kept is None:
        return False
    about = b"" if orientation == 1 else _only_orientation(orientation)
    target.write_bytes(b"\xff\xd8" + about + b"".join(kept))
    return True


def _only_orientation(orientation: int) -> bytes:
    # The smallest EXIF: a TIFF of one directory with one entry, a short number at the left of its four bytes.
    tiff = b"MM\0*" + (8).to_bytes(4, "big") + (1).to_bytes(2, "big")
    tiff += _ORIENTATION.to_bytes(2, "big") + (3).to_bytes(2, "big") + (1).to_bytes(4, "big")
    tiff += orientation.to_bytes(2, "big") + b"\0\0" + bytes(4)
    body = b"Exif\0\0" + tiff
    return b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body


def _kept(data: bytes) -> list[bytes] | None:
    """Return the segments and scans that make the picture, the end included; None: they can't be told apart."""
    if data[:2] != bytes([0xFF, _START]):
        return None
    kept, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind == 0xFF:  # a marker may be padded
            at += 1
            continue
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if kind not in _ABOUT:
            kept.append(data[at : at + length])
        at += length
        if kind == _SCAN:
            end = _end_of_scan(data, at)
            if end is None:
                return None
            kept.append(data[at:end])
            at = end
            if data[at + 1] == _END:  # what follows the picture isn't it
                return [*kept, bytes([0xFF, _END])]
    return None


def _end_of_scan(data: bytes, at: int) -> int | None:
    """Return where the next marker begins: in a scan 0xFF is followed by 0 or the number of a restart."""
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        if data[at + 1] not in (0x00, 0xFF, *range(0xD0, 0xD8)):
            return at
        at += 1
    return None
