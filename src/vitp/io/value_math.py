"""Arithmetic of pixels' values: means of squares, ranges, proportions.

Shapes: C bands, H × W pixels.
"""

from __future__ import annotations

import numpy as np


def averaged(values_CHW: np.ndarray, valid_CHW: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of the valid values of squares, and which squares have any; of the others the first value."""
    if factor == 1:
        return values_CHW, valid_CHW
    tops, lefts = (np.arange(0, size, factor) for size in values_CHW.shape[1:])

    def summed(parts_CHW: np.ndarray) -> np.ndarray:
        # `reduceat` takes the smaller squares at the end as well, which a reshape could not.
        sums: np.ndarray = np.add.reduceat(np.add.reduceat(parts_CHW, tops, axis=1), lefts, axis=2)
        return sums

    count_CHW = summed(valid_CHW.astype(np.int64))
    total_CHW = summed(np.where(valid_CHW, values_CHW, 0).astype(np.float64))
    mean_CHW = total_CHW / np.maximum(count_CHW, 1)
    if values_CHW.dtype.kind in "iu":
        mean_CHW = np.rint(mean_CHW)
    held_CHW = count_CHW > 0
    first_CHW = values_CHW[:, ::factor, ::factor]
    return np.where(held_CHW, mean_CHW.astype(values_CHW.dtype), first_CHW), held_CHW


def percentile_range(values: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Return two percentiles of values as a range that rises; 0 and 1 where there are none."""
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    first, last = (float(one) for one in np.percentile(values, (low, high)))
    return (first, last) if first < last else (first, first + 1)


def between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return values in proportion: `low` becomes 0 and `high` 255. Others are clipped."""
    with np.errstate(invalid="ignore", over="ignore"):
        scaled: np.ndarray = (values.astype(np.float64) - low) * (255 / (high - low))
    return scaled.clip(0, 255)
