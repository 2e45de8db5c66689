"""Random choices of the generator.

Each costs one `rng.random()`: a scene takes hundreds of them, and `rng.uniform`, `choice` and `integers` are several
times slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Option = TypeVar("Option")


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Return a number between low and high."""
    return low + (high - low) * float(rng.random())


def pick(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    """Return one of the options, each as likely as the others."""
    return options[int(rng.random() * len(options))]


def whole(rng: np.random.Generator, low: int, high: int) -> int:
    """Return a whole number from low to high, both included."""
    return low + int(rng.random() * (high - low + 1))
