"""Images, masks and tables for tests of folder layouts."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 40


def photo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(str(path).encode()))
    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
    return path


def mask(path: Path, *values: int) -> Path:
    """Write a mask of 0 with a block of 10 × 12 pixels of each value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask_HW = np.zeros((SIDE, SIDE), np.uint8)
    for number, value in enumerate(values or (255,)):
        mask_HW[1 + 13 * number : 13 + 13 * number, 5:15] = value
    Image.fromarray(mask_HW).save(path)
    return path
