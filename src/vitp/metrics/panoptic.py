"""Panoptic quality (Kirillov et al. 2019), and one map of segments from masks that overlap.

A panoptic map has for each pixel the class of its segment and the number of the segment within the class: 0 for stuff,
whose pixels of one class are one segment.

Shapes: N images, C classes, M masks, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from vitp.metrics.classification import ratio
from vitp.metrics.results import Scores, with_columns
from vitp.metrics.statistics import known_mean
from vitp.records.labels import IGNORE

QUALITIES = ("pq", "sq", "rq")
"""Panoptic quality, and what it is the product of: how well matched segments overlap, and how many are matched."""

LEAST_IOU = 0.5
"""Overlap above which two segments of one class are the same: no other pair of theirs can have as much."""

OWN_SHARE = 0.8
"""Of a mask, what must be left of it where surer ones lie over it, as Mask2Former has it."""


@dataclass
class PanopticCounts:
    """What panoptic quality is made of, added up over images.

    Class C, one past the last, is what is known to be none of the classes, such as the background of objects: it isn't
    scored, but a segment that reaches into it is that much worse.

    Args:
        classes: C.

    Attributes:
        iou_C: Sum of the overlaps of matched segments.
        matched_C, false_C, missed_C: Segments that were found, that aren't there, and that weren't found.
    """

    classes: int
    iou_C: np.ndarray = field(init=False)
    matched_C: np.ndarray = field(init=False)
    false_C: np.ndarray = field(init=False)
    missed_C: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.iou_C = np.zeros(self.classes + 1)
        self.matched_C, self.false_C, self.missed_C = np.zeros((3, self.classes + 1), np.int64)

    def add(self, guess_2HW: np.ndarray, truth_2HW: np.ndarray) -> None:
        """Add an image.

        Pixels that the truth ignores are in no overlap and no union; a predicted segment that isn't matched and lies
        with more than half of its pixels in them is none that is wrong. In the prediction `IGNORE` is no segment.

        Args:
            guess_2HW: Class and number of the segment of each pixel.
            truth_2HW: The same of the labels; class `IGNORE` where they say nothing.
        """
        guess, guess_HW = _segments(guess_2HW)
        truth, truth_HW = _segments(truth_2HW)
        shared = np.zeros((len(guess) + 1, len(truth) + 1), np.int64)
        np.add.at(shared, (guess_HW.ravel(), truth_HW.ravel()), 1)  # the last row and column: of no segment
        inside_G = shared[:-1, :-1].sum(1)
        outside_G = shared[:-1, -1]
        union_GT = inside_G[:, None] + shared[:, :-1].sum(0)[None] - shared[:-1, :-1]
        iou_GT = shared[:-1, :-1] / np.maximum(union_GT, 1)
        same_GT = guess[:, None] == truth[None]
        matched_G, matched_T = np.nonzero((iou_GT > LEAST_IOU) & same_GT)
        np.add.at(self.iou_C, guess[matched_G], iou_GT[matched_G, matched_T])
        np.add.at(self.matched_C, guess[matched_G], 1)
        false_G = outside_G <= inside_G
        false_G[matched_G] = False
        missed_T = np.ones(len(truth), bool)
        missed_T[matched_T] = False
        np.add.at(self.false_C, guess[false_G], 1)
        np.add.at(self.missed_C, truth[missed_T], 1)

    def add_map(self, guess_HW: np.ndarray, truth_HW: np.ndarray) -> None:
        """Add an image of classes alone, each of which is one segment."""
        guess_2HW, truth_2HW = (np.stack([one, np.zeros_like(one)]) for one in (guess_HW, truth_HW))
        self.add(guess_2HW, truth_2HW)

    @property
    def rows_C3(self) -> np.ndarray:
        """PQ, SQ and RQ of each class: NaN where neither labels nor predictions have a segment."""
        found_C = self.matched_C + 0.5 * self.false_C + 0.5 * self.missed_C
        pq_C, rq_C = ratio(self.iou_C, found_C), ratio(self.matched_C, found_C)
        sq_C = np.where(found_C > 0, self.iou_C / np.maximum(self.matched_C, 1), np.nan)
        return np.stack([pq_C, sq_C, rq_C], axis=1)[: self.classes]

    def added_to(self, scores: Scores) -> Scores:
        """Return scores with `pq`, `sq` and `rq` of each class, and their means over the classes with a segment."""
        rows_C3 = self.rows_C3
        values = {name: known_mean(rows_C3[:, k]) for k, name in enumerate(QUALITIES)}
        columns = {name: rows_C3[:, k] for k, name in enumerate(QUALITIES)}
        return with_columns(scores, values, columns)


def panoptic_scores(
    counts: PanopticCounts, classes: Sequence[str], things: Collection[int], images: int
) -> Scores:
    """Return PQ, SQ and RQ of all classes, of things and of stuff, and of each class.

    Args:
        counts: Counts of all images.
        classes: Names.
        things: Classes whose segments are single objects.
        images: Number of images.
    """
    blank = Scores("pq", {"pq": np.nan}, {name: {} for name in classes}, images)
    thing_C = np.array([number in things for number in range(len(classes))])
    parts = {
        f"{name}_{part}": known_mean(counts.rows_C3[own_C, k])
        for part, own_C in (("things", thing_C), ("stuff", ~thing_C))
        if own_C.any()
        for k, name in enumerate(QUALITIES)
    }
    return with_columns(counts.added_to(blank), parts, {})


def _segments(map_2HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the class of each segment, and (H, W) its place in that list; one past the end where there is none."""
    # Class and instance in one number: one `unique` finds all segments.
    keys_HW = np.where(map_2HW[0] == IGNORE, -1, (map_2HW[0].astype(np.int64) << 32) + map_2HW[1])
    keys, place = np.unique(keys_HW, return_inverse=True)
    place_HW = place.reshape(keys_HW.shape)
    # Pixels without a label come first; their place moves past the end.
    if len(keys) and keys[0] == -1:
        return (keys[1:] >> 32), np.where(place_HW == 0, len(keys) - 1, place_HW - 1)
    return keys >> 32, place_HW


def panoptic_map(
    masks_MHW: np.ndarray,
    scores_M: np.ndarray,
    labels_M: np.ndarray,
    *,
    size: tuple[int, int],
    stuff: Sequence[int] = (),
    least_score: float = 0.5,
    least_share: float = OWN_SHARE,
) -> np.ndarray:
    """Return masks that may overlap as one panoptic map: each pixel belongs to the surest mask that holds it.

    A mask of which less than a share is left is dropped, and so is one with a lower score than `least_score`.

    Args:
        masks_MHW: bool.
        scores_M: Larger is surer.
        labels_M: 0 … C − 1.
        size: Height and width, where there are no masks.
        stuff: Classes whose masks are one segment.
        least_score, least_share: See above.

    Returns:
        (2, H, W) int64: class (`IGNORE` where no mask is) and number of the segment, from 1 in each class of things.
    """
    found_2HW = np.zeros((2, *size), np.int64)
    found_2HW[0] = IGNORE
    numbers: dict[int, int] = {}
    for mask in np.argsort(-np.asarray(scores_M), kind="stable"):
        label = int(labels_M[mask])
        own_HW = masks_MHW[mask] & (found_2HW[0] == IGNORE)
        area = int(masks_MHW[mask].sum())
        if scores_M[mask] < least_score or not area or own_HW.sum() < least_share * area:
            continue
        numbers[label] = 0 if label in stuff else numbers.get(label, 0) + 1
        found_2HW[:, own_HW] = np.array([[label], [numbers[label]]])
    return found_2HW


def object_maps(
    found_MHW: np.ndarray,
    scores_M: np.ndarray,
    labels_M: np.ndarray,
    truth_NHW: np.ndarray,
    truth_N: np.ndarray,
    unknown_HW: np.ndarray,
    classes: int,
    least_score: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the panoptic maps of what was found and of what is there, where only objects are labelled.

    Args:
        found_MHW, scores_M, labels_M: Masks that were found.
        truth_NHW, truth_N: Masks and classes of the objects.
        unknown_HW: Where something else may be; objects lie over it.
        classes: C, which the background gets as its class.
        least_score: Least score of what was found.
    """
    size = (unknown_HW.shape[0], unknown_HW.shape[1])
    guess_2HW = panoptic_map(found_MHW, scores_M, labels_M, size=size, least_score=least_score)
    # Where objects overlap, the smaller one lies above.
    order_N = -truth_NHW.sum((1, 2))
    truth_2HW = panoptic_map(truth_NHW, order_N, truth_N, size=size, least_score=-np.inf, least_share=0.0)
    background_HW = (truth_2HW[0] == IGNORE) & ~unknown_HW
    truth_2HW[0, background_HW] = classes
    return guess_2HW, truth_2HW
