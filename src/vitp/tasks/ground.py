"""What windows look at: an image in memory, or an open raster of which only the windows are ever read.

Shapes: C channels, H × W pixels of the image, h × w pixels of a window.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from vitp.core.errors import DataError
from vitp.data.image_sample import resized
from vitp.io.images import MissingBands
from vitp.io.open_pixels import Pixels, Window
from vitp.io.tissue import Tissue
from vitp.records.channels import BLUE, GREEN, RED, Channels

_VALUES_AT_ONCE = 1 << 23
"""Of a raster that are read to see where it holds something."""
_ROWS_AT_ONCE = 512
"""That are looked at for anything at all."""

MOST_OF_A_WINDOW = 1 << 26
"""Pixels that one window of a raster may have in memory; larger ones are read from the pyramid."""


class Ground(ABC):
    """An image that is read window by window.

    Attributes:
        size: Height and width.
    """

    size: tuple[int, int]

    @abstractmethod
    def planes(self, window: Window, size: tuple[int, int]) -> Tensor:
        """Return what a tower sees of a window at `size` (height, width): uint8 (C, *size)."""

    @abstractmethod
    def valid(self, window: Window) -> np.ndarray | None:
        """Return (h, w) bool: which pixels of a window hold something; None: all do."""

    def is_empty(self) -> bool:
        """Return whether nothing is held anywhere; of most images the first rows tell."""
        height, width = self.size
        for top in range(0, height, _ROWS_AT_ONCE):
            valid_hw = self.valid((0, top, width, min(top + _ROWS_AT_ONCE, height)))
            if valid_hw is None or valid_hw.any():
                return False
        return True

    def holds(self, windows_N4: np.ndarray) -> np.ndarray | None:
        """Return (N,) bool: which windows hold something, where that is known without `valid`; None: it isn't."""
        return None


class ImageGround(Ground):
    """An image in memory.

    Args:
        image_CHW: uint8.
    """

    def __init__(self, image_CHW: Tensor) -> None:
        self.size = (int(image_CHW.shape[-2]), int(image_CHW.shape[-1]))
        self._image_CHW = image_CHW

    def planes(self, window: Window, size: tuple[int, int]) -> Tensor:
        """Return a window; see `Ground.planes`."""
        x1, y1, x2, y2 = window
        part_CHW = self._image_CHW[:, y1:y2, x1:x2]
        return part_CHW if tuple(part_CHW.shape[-2:]) == size else resized(part_CHW, size)

    def valid(self, window: Window) -> np.ndarray | None:
        """Return None: every pixel of a picture holds something."""
        return None


class RasterGround(Ground):
    """An open raster; nothing of it is kept.

    Args:
        pixels: The raster.
        channels: What the model sees of its bands; None: a model of pictures.
        bands: Which bands stand for red, green and blue in a picture; None: found out.
        missing_bands: `zero`: channels whose band the raster lacks are 0.
        tissue: Where a slide has tissue: the rest counts as holding nothing.

    Raises:
        DataError: It lacks a band, or isn't what a model of pictures can see.
    """

    def __init__(
        self,
        pixels: Pixels,
        channels: Channels | None,
        bands: tuple[str | None, ...] | None = None,
        missing_bands: MissingBands = "error",
        tissue: Tissue | None = None,
    ) -> None:
        self.tissue = tissue
        self.size = (pixels.size[1], pixels.size[0])
        self.pixels, self.channels = pixels, channels
        if channels is None:
            self.bands: tuple[str | None, ...] = bands or _picture_bands(pixels)
            return
        self.bands = channels.named_in(pixels.names)
        if missing_bands == "error" or not any(self.bands):
            channels.check_bands(pixels.names, where=pixels.where)

    def planes(self, window: Window, size: tuple[int, int]) -> Tensor:
        """Return a window; see `Ground.planes`. What is seen at half the size or less comes from the pyramid."""
        x1, y1, x2, y2 = window
        level = 0
        # Coarser while twice the pixels that are wanted are left, or while more would be read than memory is meant for.
        while level + 1 < self.pixels.levels and (
            ((y2 - y1) >> (level + 1) >= 2 * size[0] and (x2 - x1) >> (level + 1) >= 2 * size[1])
            or ((y2 - y1) >> level) * ((x2 - x1) >> level) > MOST_OF_A_WINDOW
        ):
            level += 1
        values_CHW, valid_CHW = self.values(window, level)
        seen_CHW = values_CHW
        if self.channels is not None:
            # Channels without a band count nowhere, so the scale of any band will do for them.
            names = [band or self.pixels.names[0] for band in self.bands]
            seen_CHW = self.channels.scale(values_CHW, of=self.pixels, bands=names)
        planes_CHW = torch.from_numpy(np.where(valid_CHW, seen_CHW, np.uint8(0)))
        return planes_CHW if tuple(planes_CHW.shape[-2:]) == size else resized(planes_CHW, size)

    def values(self, window: Window, level: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return (C, h, w) values of the file, channel by channel, and which of them count."""
        own = tuple(dict.fromkeys(band for band in self.bands if band is not None))
        values_CHW, valid_CHW = self.pixels.read_quantity(window, own, level)
        # In place of a band that is missing stands any other one, which counts nowhere.
        order = [0 if band is None else own.index(band) for band in self.bands]
        known_C = np.array([band is not None for band in self.bands])
        return values_CHW[order], valid_CHW[order] & known_C[:, None, None]

    def valid(self, window: Window) -> np.ndarray | None:
        """Return which pixels of a window hold something in a band that is seen, or where there is tissue."""
        if self.tissue is not None:
            return self.tissue.valid(window)
        if self.pixels.all_valid:
            return None
        x1, y1, x2, y2 = window
        # In strips: all bands of a wide window at once might fill the memory.
        columns = max(64, _VALUES_AT_ONCE // (len(self.bands) * (y2 - y1)))
        parts = [self.values((x, y1, min(x + columns, x2), y2))[1].any(0) for x in range(x1, x2, columns)]
        return np.concatenate(parts, axis=1)

    def holds(self, windows_N4: np.ndarray) -> np.ndarray | None:
        """Return which windows have tissue."""
        return None if self.tissue is None else self.tissue.shares(windows_N4) > 0


def _picture_bands(pixels: Pixels) -> tuple[str, ...]:
    """Return the bands that stand for red, green and blue in a raster that a model of pictures can see."""
    names = pixels.names
    if pixels.dtype == np.uint8:
        lower = [name.lower() for name in names]
        if {RED, GREEN, BLUE} <= set(lower):
            return tuple(names[lower.index(colour)] for colour in (RED, GREEN, BLUE))
        if pixels.is_picture:
            return names if len(names) == 3 else names * 3
    raise DataError(
        f"has {len(names)} band{'s' if len(names) > 1 else ''} ({', '.join(names)}) of {pixels.dtype}, and the "
        "model sees 8-bit RGB",
        where=pixels.where,
        fix="finetune a model of these bands (vitp data compile … -o bands=…), or name an 8-bit RGB raster",
    )
