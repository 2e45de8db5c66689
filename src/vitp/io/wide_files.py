"""PNG and netpbm files of more than 8 bits, which Pillow cuts or rescales.

Shapes: H × W pixels, N bands.
"""

from __future__ import annotations

import re
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image

from vitp.io.pixels import row_bands

_WIDE_PNG = ("RGB;16B", "RGBA;16B", "LA;16B")


def is_wide_png(image: Image.Image) -> bool:
    """Return whether an opened image is a PNG of 16 bits in several channels, of which Pillow keeps the high bytes."""
    return image.format == "PNG" and any(tile[3] in _WIDE_PNG for tile in getattr(image, "tile", ()))


def png_values(file: BinaryIO, decoded: Image.Image) -> np.ndarray:
    """Return the values (H, W, N) uint16 of a PNG of 16 bits: RGB, RGBA or LA.

    Args:
        file: The file.
        decoded: What Pillow made of it: it notices damage, and its high bytes must be these.

    Raises:
        ValueError: The two decoders disagree.
    """
    file.seek(0)
    found = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16 or found.ndim != 3 or found.shape[1::-1] != decoded.size:
        raise ValueError("its 16-bit channels can't be decoded")
    bands = len(decoded.getbands())
    # OpenCV has blue first, and repeats grey as three colours.
    order = {2: [0, -1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[bands]
    if found.shape[2] < bands:
        raise ValueError("its 16-bit channels can't be decoded")
    values_HWN: np.ndarray = found[..., order]
    # Pillow has read the upper bytes: a second opinion on the order of bands and bytes.
    for top, bottom in row_bands(*decoded.size):
        high_HWN = np.asarray(decoded.crop((0, top, decoded.width, bottom)))
        if not np.array_equal(values_HWN[top:bottom] // 256, high_HWN):
            raise ValueError("two decoders read different values")
    return values_HWN


def netpbm_maximum(file: BinaryIO) -> int | None:
    """Return the largest value that a netpbm file (P2, P3, P5, P6) says it has; None: it is none of them."""
    found = _netpbm_head(file)
    return None if found is None else found[3]


def _netpbm_head(file: BinaryIO) -> tuple[bytes, int, int, int, int] | None:
    """Return kind, width, height, largest value and where the pixels begin."""
    file.seek(0)
    head = file.read(1 << 16)
    gap = rb"(?:\s|#[^\n]*\n)+"
    found = re.match(rb"(P[2356])" + gap + rb"(\d{1,9})" + gap + rb"(\d{1,9})" + gap + rb"(\d{1,5})\s", head)
    if found is None:
        return None
    return found[1], int(found[2]), int(found[3]), int(found[4]), found.end()


def netpbm_values(file: BinaryIO) -> np.ndarray:
    """Return the values (H, W, N) of a grey or RGB netpbm file as they stand there, uint8 or uint16.

    Raises:
        ValueError: It ends too early, or holds what isn't a number.
    """
    head = _netpbm_head(file)
    if head is None:
        raise ValueError("its head can't be read")
    kind, width, height, maximum, start = head
    bands = 3 if kind in (b"P3", b"P6") else 1
    dtype = np.dtype(np.uint8 if maximum < 256 else ">u2")
    file.seek(start)
    if kind in (b"P5", b"P6"):
        data = file.read(width * height * bands * dtype.itemsize)
        # Whole values alone: that the file is too short is said below.
        values = np.frombuffer(data[: len(data) - len(data) % dtype.itemsize], dtype)
    else:
        words = re.sub(rb"#[^\n]*", b"", file.read()).split()
        values = np.array([int(word) for word in words[: width * height * bands]], np.int64)
    if len(values) < width * height * bands:
        raise ValueError("it ends before its last pixel")
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= maximum:
        raise ValueError(f"it holds values above {maximum}, the largest that it says it has")
    return values.astype(dtype.newbyteorder("=")).reshape(height, width, bands)
