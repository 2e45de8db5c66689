"""Temporary: replaced by the real `open_pixels`."""

from __future__ import annotations

from typing import Any

from vitp.core.errors import DataError
from vitp.io.image_file import open_image
from vitp.io.parts import split_address
from vitp.io.rasters import RasterPixels


class _Part(RasterPixels):
    def __init__(self, address: str) -> None:
        base, part = split_address(address)
        super().__init__(base)
        self.where = address
        self._window = part.window
        if part.window is not None:
            x1, y1, x2, y2 = part.window
            self.size = (x2 - x1, y2 - y1)

    def _moved(self, window: Any) -> Any:
        if self._window is None:
            return window
        x1, y1, x2, y2 = window or (0, 0, *self.size)
        x, y = self._window[:2]
        return x1 + x, y1 + y, x2 + x, y2 + y

    def read(self, window: Any = None, bands: Any = None, level: int = 0) -> Any:
        return super().read(self._moved(window), bands, level)

    def valid(self, window: Any = None, level: int = 0) -> Any:
        return super().valid(self._moved(window), level)


def opened(address: str) -> RasterPixels:
    base, _ = split_address(address)
    picture = False
    try:
        with open_image(base) as file:
            picture = not file.is_wide
    except DataError:
        pass
    pixels = _Part(address)
    pixels.is_picture = picture  # type: ignore[attr-defined]
    if picture and len(pixels.bands) in (3, 4):
        from vitp.io.open_pixels import Band

        pixels.bands = tuple(Band(name) for name in ("red", "green", "blue", "alpha")[: len(pixels.bands)])
    return pixels
