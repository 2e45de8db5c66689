"""What is lost between the sensor and the user: compression and missing lines.

Shapes: H × W pixels, C = 3 channels.
"""

from __future__ import annotations

import cv2
import numpy as np

from vitp.evaluation.corruptions.levels import level, scaled

JPEG_QUALITY = (30, 25, 20, 15, 10)

GAP_COUNT = (2, 3, 4, 5, 6)
"""Gaps on the length of the image's diagonal."""

GAP_WIDTH = (3, 4, 5, 6, 7)
"""Pixels at an image side of 800."""


def compression_artefacts(image_HWC: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the image after JPEG of quality 30, 25, 20, 15 or 10.

    Args:
        image_HWC: uint8 RGB.
        severity: 1 to 5.
        rng: Not used: there is nothing random in it.
    """
    quality = [cv2.IMWRITE_JPEG_QUALITY, level(JPEG_QUALITY, severity)]
    encoded = cv2.imencode(".jpg", cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR), quality)[1]
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def gap_mask(size: tuple[int, int], severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return (H, W) bool: parallel stripes across the whole image, as Landsat 7 lost them with its line corrector.

    Args:
        size: Height and width.
        severity: 1 to 5.
        rng: Draws their direction and where the first one lies.
    """
    angle, phase = rng.uniform(0, np.pi), rng.random()
    spacing = float(np.hypot(*size)) / level(GAP_COUNT, severity)
    rows_H1, columns_1W = np.arange(size[0])[:, None], np.arange(size[1])[None]
    across_HW = columns_1W * np.cos(angle) + rows_H1 * np.sin(angle) + phase * spacing
    return across_HW % spacing < scaled(level(GAP_WIDTH, severity), size)


def data_gaps(image_HWC: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the image with parallel stripes of zeros: 2 to 6 on the diagonal, 3 to 7 px wide at a side of 800.

    Labels stay: the objects are still there.

    Args:
        image_HWC: uint8 RGB.
        severity: 1 to 5.
        rng: See `gap_mask`.
    """
    missing_HW = gap_mask((image_HWC.shape[0], image_HWC.shape[1]), severity, rng)
    return np.where(missing_HW[..., None], 0, image_HWC).astype(np.uint8)
