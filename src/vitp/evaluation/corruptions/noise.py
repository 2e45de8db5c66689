"""Noise of every sensor.

The random numbers don't depend on the severity, so that a stronger noise is the same noise, only stronger.

Shapes: H × W pixels, C = 3 channels.
"""

from __future__ import annotations

import numpy as np

from vitp.evaluation.corruptions.levels import as_bytes, level

GAUSSIAN_DEVIATION = (0.04, 0.05, 0.06, 0.07, 0.08)
"""Standard deviation on 0..1."""

IMPULSE_SHARE = (0.005, 0.01, 0.02, 0.03, 0.05)
"""Share of the values that become 0 or 255."""


def gaussian_noise(image_HWC: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the image plus independent normal noise for each pixel and channel.

    Args:
        image_HWC: uint8 RGB.
        severity: 1 to 5.
        rng: Decides.
    """
    noise_HWC = rng.standard_normal(image_HWC.shape, dtype=np.float32)
    return as_bytes(image_HWC + 255 * level(GAUSSIAN_DEVIATION, severity) * noise_HWC)


def salt_and_pepper(image_HWC: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the image with single values of its channels dead (0) or saturated (255), as many of each.

    Args:
        image_HWC: uint8 RGB.
        severity: 1 to 5.
        rng: Decides; what is dead at one severity is dead at all higher ones.
    """
    chance_HWC = rng.random(image_HWC.shape, dtype=np.float32)
    half = level(IMPULSE_SHARE, severity) / 2
    return np.where(chance_HWC < half, 0, np.where(chance_HWC >= 1 - half, 255, image_HWC)).astype(np.uint8)
