"""Images for tests of corruptions."""

from __future__ import annotations

import numpy as np

from vitp.evaluation.corruptions.appearance import fractal_noise
from vitp.evaluation.corruptions.catalogue import CORRUPTIONS, EXTRAS

EVERY = {**CORRUPTIONS, **EXTRAS}


def natural(side: int = 128) -> np.ndarray:
    """An image with large and small structures, in colour, not saturated."""
    rng = np.random.default_rng(0)
    coarse, fine = (fractal_noise((side, side), rng, coarsest=scale) for scale in (40.0, 8.0))
    grey = 120 + 28 * coarse + 10 * fine
    return np.stack([grey, 0.9 * grey + 10, 0.8 * grey + 25], -1).clip(0, 255).round().astype(np.uint8)
