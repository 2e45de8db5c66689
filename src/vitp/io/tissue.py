"""Where a slide has tissue, by one simple rule that is the same whenever it is asked.

The slide is looked at where its longer side has at most 2048 pixels.

1. Of three bands of 8 bits (a stained slide in white light) the saturation counts: (largest − smallest) / largest
   of red, green and blue. Of all others (fluorescence) it is the mean over the bands of the square root of each one's
   values, on 0 … its 99.5th percentile.
2. Otsu's threshold divides it. In white light it is held between 0.05 and 0.2, so that neither paper nor a slide that
   is full of tissue is divided by chance.
3. Specks of fewer than 4 pixels are removed, holes of fewer than 64 are filled, and one pixel is added around all.

Shapes: h × w pixels of what is looked at, N windows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import ndimage

from vitp.io.open_pixels import Pixels, open_pixels
from vitp.io.parts import FilePart, Window, part_address, split_address
from vitp.io.slides import slide_place

TISSUE_SIDE = 2048
"""Longer side of what is looked at, at most."""
_SPECK, _HOLE = 4, 64
_WHITE_LIGHT = (0.05, 0.2)
_BINS = 256


@dataclass(frozen=True)
class Tissue:
    """Where there is tissue.

    Attributes:
        mask_hw: bool, of the whole slide.
        steps: Pixels of the mask along x and y that a pixel of the image covers.
        corner: x and y in the mask of the image's corner.
    """

    mask_hw: np.ndarray
    steps: tuple[float, float]
    corner: tuple[float, float]

    def valid(self, window: Window) -> np.ndarray:
        """Return (H, W) bool of a window of the image: where there is tissue."""
        x1, y1, x2, y2 = window
        rows, columns = (
            self._places(np.arange(begin, end) + 0.5, axis) for axis, begin, end in ((1, y1, y2), (0, x1, x2))
        )
        inside_HW: np.ndarray = self.mask_hw[rows][:, columns]
        return inside_HW

    def _places(self, values: np.ndarray, axis: int) -> np.ndarray:
        """Return the pixels of the mask at places along x (0) or y (1) of the image."""
        places = (self.corner[axis] + values * self.steps[axis]).astype(np.int64)
        return places.clip(0, self.mask_hw.shape[1 - axis] - 1)

    def shares(self, windows_N4: np.ndarray) -> np.ndarray:
        """Return (N,) how much of windows of the image is tissue, 0–1, by the pixels of the mask that they touch."""
        left, top = (self._places(windows_N4[:, axis], axis) for axis in (0, 1))
        # A window that ends on the edge of a mask's pixel doesn't touch it.
        right, bottom = (self._places(windows_N4[:, 2 + axis] - 1e-6, axis) + 1 for axis in (0, 1))
        sums = self._sums
        held_N = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        shares_N: np.ndarray = held_N / np.maximum((right - left) * (bottom - top), 1)
        return shares_N

    @cached_property
    def _sums(self) -> np.ndarray:
        return np.pad(self.mask_hw.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))


def find_tissue(address: str) -> Tissue | None:
    """Return where a slide, or the part of it that an address names, has tissue; None: it isn't a slide.

    Raises:
        DataError: It can't be read.
    """
    place = slide_place(address)
    if place is None:
        return None
    base, part = split_address(address)
    whole = part_address(base, replace(part, window=None, bands=None, mpp=None))
    if part.mpp is not None and slide_place(whole) is None:
        # A plain pyramid is a slide where it is asked for as one.
        whole = part_address(whole, FilePart(mpp=part.mpp))
        place = replace(
            place, scale=(1.0, 1.0), corner=(0.0, 0.0) if part.window is None else part.window[:2]
        )
    with open_pixels(whole) as pixels:
        level = 0
        while max(pixels.size) >> level > TISSUE_SIDE:
            level += 1
        mask_hw = tissue_mask(pixels, level)
    factor = 1 << level
    return Tissue(
        mask_hw,
        (place.scale[0] / factor, place.scale[1] / factor),
        (place.corner[0] / factor, place.corner[1] / factor),
    )


def tissue_mask(pixels: Pixels, level: int) -> np.ndarray:
    """Return (h, w) bool: where a slide has tissue, at a level of it."""
    values_Chw, valid_Chw = pixels.read_valid(level=level)
    valid_hw = valid_Chw.all(0)
    if pixels.dtype == np.uint8 and len(values_Chw) == 3:
        # By colour, not by light: glass is as good as grey, and what is stained isn't.
        most_hw = values_Chw.max(0).astype(np.float64)
        shown_hw = (most_hw - values_Chw.min(0)) / np.maximum(most_hw, 1)
        low, high = _WHITE_LIGHT
        # Within bounds, for Otsu's threshold parts glass alone, or tissue alone, in two as well.
        threshold = min(max(_otsu(shown_hw[valid_hw]), low), high)
    else:
        shown_hw = np.zeros(values_Chw.shape[1:])
        for values_hw in values_Chw:
            # Not the largest value: a few bright specks would make all else dark.
            top = float(np.percentile(values_hw[valid_hw], 99.5)) if valid_hw.any() else 0.0
            if top > 0:
                shown_hw += np.sqrt((values_hw / top).clip(0, 1)) / len(values_Chw)
        threshold = _otsu(shown_hw[valid_hw])
    mask_hw = (shown_hw > threshold) & valid_hw
    mask_hw = _without_small(mask_hw, _SPECK)
    mask_hw = ~_without_small(~mask_hw, _HOLE)
    grown_hw: np.ndarray = ndimage.binary_dilation(mask_hw, np.ones((3, 3), bool))
    return grown_hw


def _without_small(mask_hw: np.ndarray, least: int) -> np.ndarray:
    """Return a mask without its regions of fewer pixels."""
    numbers_hw, count = ndimage.label(mask_hw)
    kept = np.bincount(numbers_hw.ravel(), minlength=count + 1) >= least
    kept[0] = False
    result: np.ndarray = kept[numbers_hw]
    return result


def _otsu(values: np.ndarray) -> float:
    """Return the threshold between 0 and 1 that divides values so that the two parts differ most."""
    counts, edges = np.histogram(values, _BINS, (0, 1))
    if not counts.sum():
        return 1.0
    shares = counts / counts.sum()
    middles = (edges[:-1] + edges[1:]) / 2
    below, sums = shares.cumsum(), (shares * middles).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] * below - sums) ** 2 / (below * (1 - below))
    return float(edges[1 + int(np.nanargmax(np.where(np.isfinite(between), between, -1)))])
