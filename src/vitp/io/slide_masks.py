"""Masks of slides on another grid: a mask at 4 µm a pixel for a slide at 0.25, say.

Shapes: H × W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from vitp.core.errors import DataError
from vitp.io.images import image_size, load_label_pixels
from vitp.io.open_pixels import is_picture_file, open_pixels
from vitp.io.parts import Window
from vitp.io.slides import slide_kind, slide_place

_PROPORTION = 0.02
"""By how much the proportions of a mask and its slide may differ, as rests of pixels make them."""


@dataclass(frozen=True)
class SlideScale:
    """The pixels of a slide, on which a mask of another resolution is seen.

    Attributes:
        size: Width and height of the slide.
        steps: Pixels of the mask along x and y that one of the slide covers.
    """

    size: tuple[int, int]
    steps: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"steps": list(self.steps), "size": list(self.size)}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """Return what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: The values aren't of that form.
        """
        x, y = (float(value) for value in row["steps"])
        width, height = (int(value) for value in row["size"])
        if not (x > 0 and y > 0 and width > 0 and height > 0):
            raise ValueError("a mask has no pixels")
        return cls((width, height), (x, y))

    def resized(self, size: tuple[int, int], factors: tuple[float, float]) -> SlideScale:
        """Return it for the slide at another resolution, `factors` of whose pixels are one of these."""
        return SlideScale(size, (self.steps[0] / factors[0], self.steps[1] / factors[1]))


def scale_of_mask(slide: str | Path, size: tuple[int, int], mask: str | Path) -> SlideScale | None:
    """Return how a mask's pixels lie on a slide's; None: the image is no slide, or the two have the same pixels.

    The resolutions tell it where both files say them, else the sizes, which must have the same proportions then.

    Args:
        slide: Address.
        size: Its width and height.
        mask: Path.

    Raises:
        DataError: The mask can't be one of the whole slide.
    """
    if slide_kind(slide) is None:
        return None
    other = image_size(mask)
    if other == size:
        return None
    own, its = slide_place(slide), slide_place(mask)
    steps = (other[0] / size[0], other[1] / size[1])
    # A mask's sides are rounded to whole pixels.
    slack = _PROPORTION + 1 / other[0] + 1 / other[1]
    if abs(steps[0] / steps[1] - 1) > slack:
        raise DataError(
            f"is {other[0]}×{other[1]} but its slide {size[0]}×{size[1]}, which aren't the same proportions",
            where=str(mask),
            fix="write a mask of the whole slide, at any resolution",
        )
    if own is not None and its is not None and own.mpp is not None and its.mpp is not None:
        told = (own.mpp[0] / its.mpp[0], own.mpp[1] / its.mpp[1])
        if all(abs(one / step - 1) <= slack for one, step in zip(told, steps, strict=True)):
            steps = told
    return SlideScale(size, steps)


def scaled_labels(path: str, onto: SlideScale, window: Window | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a mask on the pixels of a slide, each that of the pixel in which its centre lies.

    Args:
        path: Path of the mask.
        onto: The pixels of the slide.
        window: The part of them that is wanted; None: all.

    Returns:
        Values, (H, W) or (H, W, 3) for colours, and (H, W) bool: which pixels the mask covers.

    Raises:
        DataError: The mask can't be read.
    """
    x1, y1, x2, y2 = window or (0, 0, *onto.size)
    width, height = image_size(path)
    columns, rows = (
        ((np.arange(begin, end) + 0.5) * step).astype(np.int64)
        for begin, end, step in ((x1, x2, onto.steps[0]), (y1, y2, onto.steps[1]))
    )
    inside_HW = (rows < height)[:, None] & (columns < width)[None]
    columns, rows = columns.clip(0, width - 1), rows.clip(0, height - 1)
    left, top = int(columns[0]), int(rows[0])
    part = _values(path, (left, top, int(columns[-1]) + 1, int(rows[-1]) + 1))
    return part[rows - top][:, columns - left], inside_HW


def _values(path: str, window: Window) -> np.ndarray:
    """Return a part of a mask; of pyramids and rasters only that is read."""
    x1, y1, x2, y2 = window
    if is_picture_file(path):
        return load_label_pixels(path)[y1:y2, x1:x2]
    with open_pixels(path) as pixels:
        values_CHW = pixels.read(window)
    return values_CHW[0] if len(values_CHW) == 1 else values_CHW[:3].transpose(1, 2, 0)
