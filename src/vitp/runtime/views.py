"""Where windows lie that cover an image, and how much each of their pixels counts.

Shapes: H × W pixels of the image, h × w pixels of a window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

WEIGHT_FLOOR = 1e-3
"""Least weight of a pixel at a window's edge, so that a place that one window alone sees still counts."""

_ALIKE = 1.5
"""Times that an image may be longer than all of training and still be seen as they were."""
SQUEEZED = 4
"""Times that an image may be larger than what a model sees that doesn't know its training images' size."""

SeenWindow = tuple[int, int, int, int]


def window_starts(length: int, side: int, step: int, origin: int = 0) -> list[int]:
    """Return where windows begin that cover a length, `step` apart.

    Both ends have a window of full size. Between them windows begin at multiples of `step` from `origin`: two cuts of
    one mosaic whose origins are the same place see the same windows inside.
    """
    if length <= side:
        return [0]
    inner = range(origin % step, length - side, step)
    return sorted({0, *inner, length - side})


def window_layout(
    size: tuple[int, int],
    seen: tuple[int, int],
    sides: tuple[int, int],
    overlap: float,
) -> list[tuple[SeenWindow, tuple[int, int]]]:
    """Return windows over an image, row by row: x1, y1, x2, y2 in its pixels, and the height and width that each gets.

    Args:
        size: Height and width of the image.
        seen: Height and width that the image gets as a whole.
        sides: Height and width of a window.
        overlap: Share of a window that the next one sees again.
    """
    steps = [side - int(overlap * side) for side in sides]
    ys, xs = (window_starts(*axis) for axis in zip(seen, sides, steps, strict=True))
    return [window_at((x, y), sides, size, seen) for y in ys for x in xs]


def window_at(
    at: tuple[int, int], sides: tuple[int, int], size: tuple[int, int], seen: tuple[int, int]
) -> tuple[SeenWindow, tuple[int, int]]:
    """Return where the window lies in its image that begins at x and y of what is seen, and its height and width there.

    Args:
        at: x and y.
        sides, size, seen: As in `window_layout`.
    """
    (x, y), (height, width), (rows, columns) = at, size, seen
    y2, x2 = min(y + sides[0], rows), min(x + sides[1], columns)
    # Rounded outwards: neighbours may share a pixel of the image, but none lies between two of them.
    window = (
        x * width // columns,
        y * height // rows,
        min(math.ceil(x2 * width / columns), width),
        min(math.ceil(y2 * height / rows), height),
    )
    return window, (y2 - y, x2 - x)


def seen_size(mode: str, side: int | None, height: int, width: int) -> tuple[int, int]:
    """Return the height and width that an image gets.

    Args:
        mode: `fixed`: a square of `side`; `short` or `long`: that side becomes `side`; `none`: as it is.
        side: Pixels; None with `none` alone.
        height, width: Height and width of the image.
    """
    if mode == "none" or side is None:
        return height, width
    if mode == "fixed":
        return side, side
    own = min(height, width) if mode == "short" else max(height, width)
    return max(1, round(height * side / own)), max(1, round(width * side / own))


def seen_in_parts(
    mode: str, side: int, window: int | None, trained: Mapping[str, Any] | None
) -> tuple[float, float] | None:
    """Return which images are never squeezed into one look but seen through windows, and by what those are multiplied.

    Args:
        mode: What size images get in training; see `seen_size`.
        side: That size in pixels, or the backbone's.
        window: Side of the windows that the model is tested with; None: it sees whole images.
        trained: `longest` side of the training images, and the `scale` at which they were seen; None: unknown.

    Returns:
        The longer side above which that is so, and the factor; None: all images are seen as in training.
    """
    if trained is not None:
        if mode == "none" and window is not None:
            return None
        return _ALIKE * float(trained["longest"]), float(trained["scale"])
    if window is None:
        return float(SQUEEZED * side), 1.0
    # Windows that are no smaller than all that is left of a squeezed image would do nothing.
    return (0.0, 1.0) if mode != "none" and window >= side else None


def window_weights(window: SeenWindow, size: tuple[int, int]) -> np.ndarray:
    """Return (h, w) float32 weights of a window's pixels: less towards its edges, but for those of the image."""
    x1, y1, x2, y2 = window
    rows = _tapered(y2 - y1, y1 == 0, y2 == size[0])
    weights: np.ndarray = rows[:, None] * _tapered(x2 - x1, x1 == 0, x2 == size[1])
    return weights


def _tapered(length: int, begins: bool, ends: bool) -> np.ndarray:
    wave: np.ndarray = np.sin(np.pi * (np.arange(length, dtype=np.float32) + 0.5) / length) ** 2
    wave = np.maximum(wave, WEIGHT_FLOOR).astype(np.float32)
    half = length // 2
    if begins:
        wave[: length - half] = 1
    if ends:
        wave[half:] = 1
    return wave
