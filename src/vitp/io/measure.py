"""Which values of a set's bands become black and white: percentiles over many files, in bounded memory and time.

Shapes: C bands, H × W pixels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from vitp.core.errors import DataError
from vitp.io.contract import Pixels
from vitp.io.open_pixels import open_pixels
from vitp.io.parts import Window
from vitp.io.pixels import fill_value
from vitp.records.channels import Channel, Channels

_MOST_PIXELS = 1 << 22
"""Of all files together, that are read in full; of larger sets it is a sample of about so many."""
_MOST_FILES = 1024
_BLOCK = 256
"""Side of the squares that are sampled of large files."""


def measure_channels(
    addresses: Sequence[str],
    bands: Sequence[str] | None = None,
    *,
    transform: Literal["linear", "db"] = "linear",
    percentiles: tuple[float, float] = (2.0, 98.0),
    seed: int = 0,
    lost: Callable[[str, DataError], None] | None = None,
    fills: set[float] | None = None,
) -> Channels:
    """Return channels whose low and high values are percentiles of each band over the valid pixels of many files.

    Sets of up to four million pixels count in full. Of larger ones at most 1,024 files count, and of each as many
    squares of 256 × 256 pixels as make four million pixels together; which, the seed tells.

    Args:
        addresses: Addresses of the training split.
        bands: Names, in the wanted order; None: all of the first file's, a single one three times (grey, as RGB).
        transform: `db`: percentiles of 10 · log10 of the values above 0.
        percentiles: Which become 0 and 255.
        seed: Seed of the sample.
        lost: Takes the address of a file that can't be read, and why: the others count. None: it is an error.
        fills: Takes the values that mark missing pixels by custom (−9999, 65535) in files that name no value for them;
            they don't count.

    Raises:
        DataError: A file lacks a band, one (with `lost`: every one) can't be read, or a band holds no value in any.
    """
    if not addresses:
        raise DataError(
            "there are no images to measure the bands of", fix="name a training split with images"
        )
    # In an order of their own: what is drawn must not depend on how they were listed.
    chosen = sorted(dict.fromkeys(addresses))
    draw = random.Random(seed)
    if len(chosen) > _MOST_FILES:
        chosen = sorted(draw.sample(chosen, _MOST_FILES))
    with open_pixels(addresses[0]) as first:
        names = tuple(first.names[number] for number in first.numbers(bands))
    unique = tuple(dict.fromkeys(names))
    parts = _values(chosen, unique, draw, lost, set() if fills is None else fills)
    ranges = {
        name: _range(np.concatenate(part), name, transform, percentiles)
        for name, part in zip(unique, parts, strict=True)
    }
    if bands is None and len(names) == 1:
        names = names * 3
    return Channels(
        channels=tuple(
            Channel(band=name, low=ranges[name][0], high=ranges[name][1], transform=transform)
            for name in names
        )
    )


def _values(
    addresses: Sequence[str],
    unique: tuple[str, ...],
    draw: random.Random,
    lost: Callable[[str, DataError], None] | None,
    fills: set[float],
) -> list[list[np.ndarray]]:
    """Return the valid values of each band that count, file by file."""
    parts: list[list[np.ndarray]] = [[] for _ in unique]
    share = _MOST_PIXELS // len(addresses)
    unread: list[DataError] = []
    for address in addresses:
        with open_pixels(address) as pixels:
            check = Channels(channels=tuple(Channel(band=name) for name in unique))
            check.check_bands(pixels.names, where=pixels.where)
            windows = _windows(pixels, share, draw)
            try:
                read = [pixels.read_quantity(window, unique) for window in windows]
            except DataError as error:
                unread.append(error)
                if lost is None or len(unread) == len(addresses):
                    raise
                lost(address, error)
                continue
        for values_CHW, valid_CHW in read:
            for part, values_HW, valid_HW in zip(parts, values_CHW, valid_CHW, strict=True):
                chosen = values_HW[valid_HW]
                fill = (fill_value(chosen) or _highest_fill(chosen)) if pixels.nodata is None else None
                if fill is not None:
                    fills.add(fill)
                    chosen = chosen[chosen != fill]
                part.append(chosen)
    return parts


def _highest_fill(values: np.ndarray) -> float | None:
    """Return 65535 where values of 16 bits have it, and many others that are all below a half of it; else None.

    A bright place that saturates a sensor has neighbours that nearly do. Such pixels are white; in the percentiles they
    would make all others black.
    """
    highest = np.iinfo(np.uint16).max
    if values.dtype != np.uint16 or not values.size or values.max() < highest:
        return None
    others = values[values < highest]
    return float(highest) if others.size and others.min() < others.max() < highest // 2 else None


def _windows(pixels: Pixels, share: int, draw: random.Random) -> list[Window]:
    """Return the windows of a file that count: all of it, or squares by chance of about `share` pixels together."""
    width, height = pixels.size
    if width * height <= share:
        return [(0, 0, width, height)]
    across, down = -(-width // _BLOCK), -(-height // _BLOCK)
    count = min(across * down, max(1, share // _BLOCK**2))
    side = _BLOCK if share >= _BLOCK**2 else max(16, int(share**0.5))
    found = []
    for place in sorted(draw.sample(range(across * down), count)):
        x, y = place % across * _BLOCK, place // across * _BLOCK
        found.append((x, y, min(x + side, width), min(y + side, height)))
    return found


def _range(
    values: np.ndarray, name: str, transform: str, percentiles: tuple[float, float]
) -> tuple[float, float]:
    if transform == "db":
        if values.size and (values < 0).mean() > 0.9:
            what = f"most values of band {name} are below 0 ({values.min():.6g} to {values.max():.6g}): they look "
            fix = "leave transform out: values in dB are taken as they are"
            raise DataError(what + "like dB already", where="transform=db", fix=fix)
        values = 10 * np.log10(values[values > 0].astype(np.float64))
    if not values.size:
        what = f"band {name} holds no value in any image" + (" above 0" if transform == "db" else "")
        raise DataError(what, fix="leave the band out (-o bands=…), or check nodata and masks")
    low, high = (float(value) for value in np.percentile(values.astype(np.float64), percentiles))
    # A band of one value has to have a range all the same.
    return (low, high) if low < high else (low, low + 1)
