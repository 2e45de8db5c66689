"""Rasters of blocks for tests of maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch

from tests.map_models import BrightestBand, channels_of
from vitp.tasks.base import TestSettings

BANDS = ("B2", "B3", "B8")
WINDOWS = TestSettings(window=32, overlap=0.25, batch_size=3)


def blocks(height: int, width: int, seed: int = 0, *, empty: int = 0) -> np.ndarray:
    """Return three uint16 bands of squares of ten pixels, the first rows empty (0)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(1, 1000, (3, -(-height // 10), -(-width // 10)))
    values = np.kron(coarse, np.ones((1, 10, 10)))[:, :height, :width].astype(np.uint16)
    values[:, :empty] = 0
    return values


def expected_classes(values: np.ndarray) -> np.ndarray:
    classes = channels_of(*BANDS).scale(values).argmax(0)
    return np.where((values == 0).all(0), 255, classes)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        band: np.ndarray = file.read(1)
    return band


class Context(BrightestBand):
    """A model whose answer depends on where in its window a pixel lies."""

    def maps(self, images_BCHW: Any, later_BCHW: Any) -> Any:
        towards = torch.linspace(0, 3, images_BCHW.shape[-1])
        return images_BCHW.float() / 64 + towards * torch.tensor([1.0, -1.0, 0.5])[:, None, None]


def scene(height: int, width: int, count: int, seed: int = 0) -> np.ndarray:
    """Return three uint8 bands, dark but for bright rectangles that don't touch each other."""
    rng = np.random.default_rng(seed)
    values = np.full((3, height, width), 5, np.uint8)
    for _ in range(count):
        h, w = rng.integers(3, 14, 2)
        y, x = rng.integers(0, height - h), rng.integers(0, width - w)
        if values[0, max(y - 1, 0) : y + h + 1, max(x - 1, 0) : x + w + 1].max() == 5:
            values[:, y : y + h, x : x + w] = rng.choice([140, 160, 200, 240])
    return values
