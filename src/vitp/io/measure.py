"""Which values of a band are dark and bright: percentiles over the valid pixels of many files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from vitp.core.errors import DataError
from vitp.io.open_pixels import open_pixels
from vitp.records.channels import Channel, Channels

_MOST_FILES = 256
_VALUES = 4_000_000
"""Values of each band that are held in all."""


def measure_channels(
    addresses: Sequence[str],
    bands: Sequence[str],
    *,
    transform: Literal["linear", "db"] = "linear",
    percentiles: tuple[float, float] = (2.0, 98.0),
    seed: int = 0,
) -> Channels:
    """Return channels whose range is that of the bands' valid values over a random choice of files.

    Raises:
        DataError: There is no valid value.
    """
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.permutation(len(addresses))[:_MOST_FILES].tolist())
    most = max(1, _VALUES // max(1, len(chosen)))
    found: list[list[np.ndarray]] = [[] for _ in bands]
    for number in chosen:
        with open_pixels(addresses[number]) as pixels:
            values_CHW, valid_HW = pixels.read(bands=bands), pixels.valid()
        for values_HW, own in zip(values_CHW, found, strict=True):
            values_N = values_HW[valid_HW].astype(np.float64)
            if transform == "db":
                values_N = 10 * np.log10(values_N, out=np.full_like(values_N, np.nan), where=values_N > 0)
            values_N = values_N[np.isfinite(values_N)]
            own.append(rng.choice(values_N, most, replace=False) if len(values_N) > most else values_N)
    channels = []
    for band, own in zip(bands, found, strict=True):
        values_N = np.concatenate(own) if own else np.empty(0)
        if not len(values_N):
            raise DataError(
                "has no valid value in any file",
                where=f"band {band}",
                fix="check the files, or give its range",
            )
        low, high = (float(value) for value in np.percentile(values_N, percentiles))
        channels.append(
            Channel(band=band, low=low, high=high if high > low else low + 1, transform=transform)
        )
    return Channels(channels=tuple(channels))
