"""Blur of the optics and of the platform's motion, in pixels.

Shapes: H × W pixels, C = 3 channels.
"""

from __future__ import annotations

import cv2
import numpy as np

from vitp.evaluation.corruptions.levels import level

KERNEL_SIDE = (3, 5, 7, 9, 11)
"""Side of the Gaussian kernel in pixels."""

MOTION_LENGTH = (2, 4, 6, 8, 10)
"""Pixels that the scene moves while it is exposed."""


def gaussian_deviation(side: int) -> float:
    """Return the standard deviation in pixels that OpenCV gives a Gaussian kernel of `side` pixels."""
    return 0.3 * ((side - 1) / 2 - 1) + 0.8


def gaussian_blur(image_HWC: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the image out of focus: a Gaussian of 0.8, 1.1, 1.4, 1.7 or 2.0 px standard deviation.

    Args:
        image_HWC: uint8 RGB.
        severity: 1 to 5.
        rng: Not used: there is nothing random in it.
    """
    side = level(KERNEL_SIDE, severity)
    return cv2.GaussianBlur(image_HWC, (side, side), gaussian_deviation(side), borderType=cv2.BORDER_REFLECT)


def motion_blur(image_HWC: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the image smeared along its rows, the direction of flight: a mean over 2, 4, 6, 8 or 10 px.

    Args:
        image_HWC: uint8 RGB.
        severity: 1 to 5.
        rng: Not used: there is nothing random in it.
    """
    length = level(MOTION_LENGTH, severity)
    # Not `cv2.blur`: OpenCV 5.0 gives wrong values for a box of 2 × 1.
    kernel = np.full((1, length), 1 / length, np.float32)
    return cv2.filter2D(image_HWC, -1, kernel, borderType=cv2.BORDER_REFLECT)
