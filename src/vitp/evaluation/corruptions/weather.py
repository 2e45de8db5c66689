"""Air between the ground and the sensor: haze and clouds.

Shapes: H × W pixels, C = 3 channels.
"""

from __future__ import annotations

import cv2
import numpy as np

from vitp.evaluation.corruptions.levels import as_bytes, level, scaled

HAZE = (0.2, 0.3, 0.4, 0.5, 0.6)
"""Share of the light that the air adds, and takes from the ground's."""

CLOUD_COVER = (0.10, 0.15, 0.20, 0.25, 0.30)
"""Share of the image under clouds."""

CLOUD_SIZE = 200.0
"""Distance of the coarsest structures in pixels, at an image side of 800."""

CLOUD_EDGE = 5.0
"""Standard deviation of the edge's blur in pixels, at an image side of 800."""

CLOUD_WHITE = 0.9


def fractal_noise(
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    coarsest: float,
    octaves: int = 6,
    persistence: float = 0.5,
) -> np.ndarray:
    """Return (H, W) float32 noise of zero mean and unit deviation: smooth random fields of halving size, summed.

    The field is a function of the random numbers and of the place in the scene: an image of twice the size, with
    `coarsest` twice as far, gets the same field, finer.

    Args:
        size: Height and width.
        rng: Decides.
        coarsest: Distance in pixels of the points that the first field goes through.
        octaves: Number of fields.
        persistence: Height of a field, relative to that of the one before.
    """
    height, width = size
    total_HW = np.zeros(size, np.float32)
    for octave in range(octaves):
        step = coarsest / 2**octave
        # Cubic interpolation needs a node before and two after the places that it is asked for.
        nodes = (int(np.ceil(height / step)) + 4, int(np.ceil(width / step)) + 4)
        field = rng.standard_normal(nodes, dtype=np.float32)
        columns_HW, rows_HW = np.meshgrid(
            (np.arange(width, dtype=np.float32) + 0.5) / step + 1,
            (np.arange(height, dtype=np.float32) + 0.5) / step + 1,
        )
        total_HW += persistence**octave * cv2.remap(field, columns_HW, rows_HW, cv2.INTER_CUBIC)
    return (total_HW - total_HW.mean()) / max(float(total_HW.std()), 1e-6)


def haze(image_HWC: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return (1 − a) · x + a · white, an even veil over all of the image.

    Args:
        image_HWC: uint8 RGB.
        severity: 1 to 5.
        rng: Not used: there is nothing random in it.
    """
    share = level(HAZE, severity)
    return as_bytes(image_HWC * (1 - share) + 255 * share)


def cloud_opacity(size: tuple[int, int], severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return (H, W) float32 on 0..1: where clouds hide the ground.

    The highest 10, 15, 20, 25 or 30 % of a fractal field are cloud, so that clouds grow with the severity and
    never move; their edges are blurred.

    Args:
        size: Height and width.
        severity: 1 to 5.
        rng: Decides where they are.
    """
    height_HW = fractal_noise(size, rng, coarsest=max(scaled(CLOUD_SIZE, size), 4.0))
    covered_HW = height_HW > np.quantile(height_HW, 1 - level(CLOUD_COVER, severity))
    edge = max(scaled(CLOUD_EDGE, size), 0.5)
    return cv2.GaussianBlur(covered_HW.astype(np.float32), (0, 0), edge, borderType=cv2.BORDER_REFLECT)


def cloud(image_HWC: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the image under thick, evenly light grey clouds (see `cloud_opacity`).

    Labels stay: objects under a cloud are still to be found.

    Args:
        image_HWC: uint8 RGB.
        severity: 1 to 5.
        rng: Decides where they are.
    """
    opacity_HW1 = cloud_opacity((image_HWC.shape[0], image_HWC.shape[1]), severity, rng)[..., None]
    return as_bytes(image_HWC * (1 - opacity_HW1) + 255 * CLOUD_WHITE * opacity_HW1)
