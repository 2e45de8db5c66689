"""Tiles of large images, 256 pixels a side, from the pixels that a tile needs; level 0 is the full resolution.

Shapes: C bands, H × W pixels.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from functools import cached_property

import numpy as np
from PIL import Image

from vitp.io.contract import Pixels
from vitp.io.open_pixels import open_pixels
from vitp.records.channels import BLUE, GREEN, RED
from vitp.serving.answers import png_bytes
from vitp.serving.refusal import Refusal
from vitp.serving.store import StoredImage

TILE = 256
_OPEN = 3
"""Images that are kept open: a picture is decoded as a whole for its first tile."""
_MEASURED = 1 << 20
"""Pixels of which an image is measured to be shown."""


class ShownImage:
    """An open image, its values as 8-bit RGB that is the same in every tile.

    Args:
        pixels: Pixels of the image.
    """

    def __init__(self, pixels: Pixels) -> None:
        self.pixels, self.lock = pixels, threading.Lock()

    def tile(self, level: int, column: int, row: int) -> bytes:
        """Return a tile as PNG; what lies beyond the image, or holds nothing, is transparent.

        Raises:
            Refusal: There is no such tile.
        """
        width, height = self.pixels.size
        step = TILE << level if 0 <= level < self.pixels.levels else 0
        x, y = column * step, row * step
        if not (step and 0 <= x < width and 0 <= y < height):
            raise Refusal(404, "the image has no such tile")
        window = (x, y, min(x + step, width), min(y + step, height))
        with self.lock:
            values_CHW, valid_CHW = self.pixels.read_quantity(window, self._bands, level)
            rgb_HWC = self._rgb(values_CHW)
        valid_HW = valid_CHW.any(0)
        rgba_HWC = np.zeros((TILE, TILE, 4), np.uint8)
        shown = rgba_HWC[: valid_HW.shape[0], : valid_HW.shape[1]]
        shown[..., :3], shown[..., 3] = rgb_HWC, np.where(valid_HW, 255, 0)
        return png_bytes(Image.fromarray(rgba_HWC))

    def small(self) -> bytes:
        """Return the whole image as PNG, at most a tile wide and high."""
        width, height = self.pixels.size
        level = 0
        while max(width, height) > TILE << level:
            level += 1
        tile = Image.open(io.BytesIO(self.tile(level, 0, 0)))
        return png_bytes(tile.crop((0, 0, max(1, width >> level), max(1, height >> level))))

    @cached_property
    def _bands(self) -> tuple[str, ...]:
        names = self.pixels.names
        lower = [name.casefold() for name in names]
        if {RED, GREEN, BLUE} <= set(lower):
            return tuple(names[lower.index(colour)] for colour in (RED, GREEN, BLUE))
        return names[:3] if len(names) >= 3 else names[:1]

    @cached_property
    def _ranges(self) -> list[tuple[float, float]]:
        """Values that are black and white, of each band: the 2nd and 98th percentile of the whole."""
        level = 0
        while (self.pixels.size[0] >> level) * (self.pixels.size[1] >> level) > _MEASURED:
            level += 1
        values_CHW, valid_CHW = self.pixels.read_quantity(None, self._bands, level)
        ranges = []
        for values_HW, valid_HW in zip(values_CHW, valid_CHW, strict=True):
            known = values_HW[valid_HW & np.isfinite(values_HW)]
            low, high = np.percentile(known, (2, 98)) if known.size else (0.0, 1.0)
            ranges.append((float(low), float(high) if high > low else float(low) + 1))
        return ranges

    def _rgb(self, values_CHW: np.ndarray) -> np.ndarray:
        """Return (H, W, 3) uint8."""
        pixels = self.pixels
        if pixels.palette_V3 is not None and len(values_CHW) == 1:
            coloured_HWC: np.ndarray = pixels.palette_V3[values_CHW[0]]
            return coloured_HWC
        if pixels.says_shown:
            pairs = zip(values_CHW, self._bands, strict=True)
            shown_CHW = np.stack([np.nan_to_num(pixels.shown(one_HW, band)) for one_HW, band in pairs])
        elif pixels.dtype == np.uint8:
            shown_CHW = values_CHW
        else:
            low, high = np.array(self._ranges).T[:, :, None, None]
            shown_CHW = np.nan_to_num((values_CHW - low) * (255 / (high - low)))
        rgb_CHW = np.rint(np.clip(shown_CHW, 0, 255)).astype(np.uint8)
        return np.broadcast_to(rgb_CHW, (3, *rgb_CHW.shape[1:])).transpose(1, 2, 0)


class OpenImages:
    """The images whose tiles were asked for last."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, ShownImage] = OrderedDict()
        self._lock = threading.Lock()

    def shown(self, image: StoredImage) -> ShownImage:
        """Return an open image.

        Raises:
            DataError: It can't be read.
        """
        with self._lock:
            if image.address not in self._open:
                self._open[image.address] = ShownImage(open_pixels(image.address))
            self._open.move_to_end(image.address)
            while len(self._open) > _OPEN:
                self._open.popitem(last=False)  # closed when nobody reads it any more
            return self._open[image.address]
