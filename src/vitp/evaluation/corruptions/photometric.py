"""Light: brighter and flatter.

Shapes: H × W pixels, C = 3 channels.
"""

from __future__ import annotations

import numpy as np

from vitp.evaluation.corruptions.levels import as_bytes, level

CONTRAST = (1.0, 0.8, 0.6, 0.4, 0.2)
BRIGHTNESS = (0.0, 0.1, 0.2, 0.3, 0.4)
"""Added on 0..1. As published, the first severity leaves the image as it is."""


def brightness_contrast(image_HWC: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return contrast · x + brightness: less contrast around a rising level; black and white are lost last.

    Args:
        image_HWC: uint8 RGB.
        severity: 1 to 5.
        rng: Not used: there is nothing random in it.
    """
    gain, offset = level(CONTRAST, severity), level(BRIGHTNESS, severity)
    return as_bytes(image_HWC * gain + 255 * offset)
