"""How an image looks at a small size to the questions that its pixels alone answer (`pretext_tasks`).

Shapes: C channels, H × W pixels of the small image, h × w of a part of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitp.core.errors import DataError
from vitp.data.augment import resize_image
from vitp.data.seen import SeenBands
from vitp.io.images import where_valid
from vitp.io.parts import FilePart
from vitp.records.channels import Channels
from vitp.records.labels import LabelledImage

_LOOKED_AT = 96
"""Pixels of the longer side at which images are compared with themselves."""

_SMALLEST = 32
"""Pixels of the shorter side below which nothing is asked."""

LEAST_HELD = 0.5
"""Share of an image, or of a part that is asked about, that must hold something."""

_STRUCTURE = 0.03
"""Deviation of values on 0..1 from which on a part of an image shows something."""


@dataclass(frozen=True)
class SmallImage:
    """An image as its questions see it.

    Attributes:
        small_HWC: Values on 0..1, the longer side `_LOOKED_AT` pixels at most.
        size: Width and height of the file's image.
        coloured: Whether its channels are red, green and blue.
        held_HW: bool, which of these pixels hold something; their values are means of what holds something alone.
    """

    small_HWC: np.ndarray
    size: tuple[int, int]
    coloured: bool
    held_HW: np.ndarray

    @property
    def grey_HW(self) -> np.ndarray:
        """Mean of the channels."""
        grey_HW: np.ndarray = self.small_HWC.mean(2)
        return grey_HW

    def part(self, box: tuple[float, float, float, float]) -> SmallPart:
        """Return what lies in a box whose corners are shares of the sides."""
        height, width = self.small_HWC.shape[:2]
        x1, y1, x2, y2 = (round(v * side) for v, side in zip(box, (width, height) * 2, strict=True))
        inside = (slice(y1, max(y2, y1 + 1)), slice(x1, max(x2, x1 + 1)))
        return SmallPart(self.small_HWC[inside], self.held_HW[inside])

    @property
    def whole(self) -> SmallPart:
        """All of it."""
        return SmallPart(self.small_HWC, self.held_HW)

    def window(self, box: tuple[float, float, float, float]) -> FilePart:
        """Return the same box as a window of the file."""
        x1, y1, x2, y2 = (round(v * side) for v, side in zip(box, self.size * 2, strict=True))
        return FilePart(window=(x1, y1, x2, y2))


@dataclass(frozen=True)
class SmallPart:
    """A part of a small image: (h, w, C) values on 0..1, and (h, w) bool which of them hold something."""

    values_hwC: np.ndarray
    held_hw: np.ndarray

    @property
    def is_held(self) -> bool:
        """Whether enough of it holds something to be asked about."""
        return float(self.held_hw.mean()) >= LEAST_HELD

    @property
    def shows(self) -> bool:
        """Whether it shows something."""
        return self.is_held and float(self.values_hwC[self.held_hw].std()) > _STRUCTURE


def look_at(item: LabelledImage, channels: Channels | None) -> SmallImage | None:
    """Return an image at a small size; None where it is too small, can't be read or holds mostly nothing."""
    if min(item.width, item.height) < _SMALLEST:
        return None
    seen = SeenBands(channels)

    def enough(width: int, height: int) -> tuple[int, int]:
        scale = min(1.0, 4 * _LOOKED_AT / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))

    try:
        pixels_HWC = np.asarray(seen.load(item.image, enough))
        held_HW = where_valid(item.image, channels, pictures=True) if item.held is None else item.held()
    except DataError:
        return None
    scale = min(1.0, _LOOKED_AT / max(pixels_HWC.shape[:2]))
    height, width = (max(8, round(n * scale)) for n in pixels_HWC.shape[:2])
    values_HWC = pixels_HWC.astype(np.float32).reshape(*pixels_HWC.shape[:2], -1) / 255
    size = (item.width, item.height)
    if held_HW is None:
        small_HWC = resize_image(values_HWC, (height, width))
        return SmallImage(small_HWC, size, seen.is_rgb, np.ones((height, width), bool))
    known_HW1 = resize_image(held_HW.astype(np.float32)[..., None], values_HWC.shape[:2])
    share_HW1 = resize_image(known_HW1, (height, width))
    small_HWC = resize_image(values_HWC * known_HW1, (height, width)) / np.maximum(share_HW1, 1e-6)
    look = SmallImage(small_HWC, size, seen.is_rgb, share_HW1[..., 0] >= 0.5)
    return look if look.whole.is_held else None
