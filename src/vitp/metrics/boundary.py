"""Boundary IoU (Cheng et al. 2021): the overlap of what lies near to the outlines of two masks.

Shapes: H × W pixels, C classes.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from vitp.metrics.classification import ratio
from vitp.metrics.results import Scores, with_columns
from vitp.metrics.statistics import known_mean
from vitp.records.labels import IGNORE

REACH = 0.02
"""Width of the boundary, as a share of the image's diagonal."""


def boundary_of(mask_HW: np.ndarray, distance: int) -> np.ndarray:
    """Return (H, W) bool: the pixels of a mask that lie within a distance of what isn't the mask.

    Distances are those of a king's steps, and beyond the image is no mask, as in the reference (erosion by a square of
    3, as often as the distance says).
    """
    mask_HW = np.asarray(mask_HW, bool)
    inner_HW: np.ndarray = ndimage.minimum_filter(
        mask_HW.astype(np.uint8), size=2 * distance + 1, mode="constant", cval=0
    )
    outline_HW: np.ndarray = mask_HW & (inner_HW == 0)
    return outline_HW


def boundary_width(height: int, width: int) -> int:
    """Return the width of the boundary in images of a size, in pixels."""
    return max(1, round(REACH * math.hypot(height, width)))


class BoundaryCounts:
    """The pixels of boundaries, added up over images.

    Args:
        classes: C.

    Attributes:
        shared_C, either_C: Pixels in both boundaries, and in either.
        there_C: bool: whether the labels hold the class.
    """

    def __init__(self, classes: int) -> None:
        self.shared_C, self.either_C = np.zeros((2, classes), np.int64)
        self.there_C = np.zeros(classes, bool)

    def add_map(self, guess_HW: np.ndarray, truth_HW: np.ndarray) -> None:
        """Add two class maps; pixels that the truth ignores count for nothing, and there is no outline towards them."""
        distance = boundary_width(*truth_HW.shape)
        unknown_HW = truth_HW == IGNORE
        for k in range(len(self.there_C)):
            ours_HW, theirs_HW = (
                boundary_of((map_HW == k) | unknown_HW, distance) & ~unknown_HW
                for map_HW in (guess_HW, truth_HW)
            )
            self.shared_C[k] += (ours_HW & theirs_HW).sum()
            self.either_C[k] += (ours_HW | theirs_HW).sum()
            self.there_C[k] |= bool((truth_HW == k).any())

    def added_to(self, scores: Scores) -> Scores:
        """Return scores with `boundary_iou` of each class that the labels hold, and their mean."""
        iou_C = np.where(self.there_C, ratio(self.shared_C, self.either_C), np.nan)
        return with_columns(scores, {"boundary_iou": known_mean(iou_C)}, {"boundary_iou": iou_C})
