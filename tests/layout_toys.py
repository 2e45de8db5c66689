"""Images, masks and tables for tests of folder layouts."""

from __future__ import annotations

import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from vitp.records.labels import LabelledImage, LabelledSet

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


def text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def noise(path: Path, seed: int, mode: str = "RGB") -> Path:
    """Write a picture full of values, as photographs are; of one channel for "L"."""
    shape = (SIDE, SIDE, 3) if mode == "RGB" else (SIDE, SIDE)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(path)
    return path


def drawn(found: LabelledSet) -> dict[str, int]:
    return dict(Counter(label.category for item in found.items for label in item.objects or ()))


def by_name(found: LabelledSet) -> dict[str, LabelledImage]:
    return {item.id: item for item in found.items}
