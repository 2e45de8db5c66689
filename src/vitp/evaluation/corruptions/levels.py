"""What a severity is, and lengths that are the same part of a scene in images of every size.

Shapes: H × W pixels.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from vitp.core.errors import ConfigError

SEVERITIES = (1, 2, 3, 4, 5)
"""From hardly visible to hard."""

REFERENCE_SIDE = 800
"""Side in pixels of the images that the published levels were chosen for (DIOR's)."""

Level = TypeVar("Level")


def level(levels: tuple[Level, Level, Level, Level, Level], severity: int) -> Level:
    """Return what a severity means for one corruption.

    Raises:
        ConfigError: The severity is not one of 1 to 5.
    """
    if severity not in SEVERITIES:
        raise ConfigError(f"there is no severity {severity}", where="severities", fix="choose 1 to 5")
    return levels[severity - 1]


def scaled(length: float, size: tuple[int, int]) -> float:
    """Return a length that is given for an image of 800 px in pixels of an image of height and width `size`.

    What lies in the scene (clouds, gaps, shifts) grows with the image. What the sensor does (noise, blur,
    compression) doesn't: it happens pixel by pixel.
    """
    return length * max(size) / REFERENCE_SIDE


def as_bytes(values_HWC: np.ndarray) -> np.ndarray:
    """Return values on 0..255 rounded and cut off as uint8."""
    return np.rint(values_HWC).clip(0, 255).astype(np.uint8)
