"""Tables of scores for segmentation and change detection, and surface distances.

Shapes: N images, C classes, H × W pixels. Rows of a confusion matrix are the truth, columns the prediction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from vitp.metrics.classification import (
    accuracy,
    f1_per_class,
    iou_per_class,
    macro_f1,
    mean_dice,
    mean_iou,
    ratio,
)
from vitp.metrics.results import Scores
from vitp.metrics.statistics import known_mean
from vitp.records.labels import IGNORE


def mean_accuracy(confusion_CC: np.ndarray) -> float:
    """Return the mean recall over the classes that occur in the truth (mAcc); NaN without any."""
    return known_mean(recall_per_class(confusion_CC))


def recall_per_class(confusion_CC: np.ndarray) -> np.ndarray:
    """Return (C,) share of each class's pixels that were found; NaN for classes that the truth lacks."""
    return ratio(np.diag(confusion_CC), confusion_CC.sum(1))


def precision_per_class(confusion_CC: np.ndarray) -> np.ndarray:
    """Return (C,) share of the pixels given to each class that are of it; NaN for classes never predicted."""
    return ratio(np.diag(confusion_CC), confusion_CC.sum(0))


def segmentation_scores(
    confusion_NCC: np.ndarray, classes: Sequence[str], *, hd95_NC: np.ndarray | None = None
) -> Scores:
    """Return mIoU (the headline), mean accuracy, pixel accuracy, macro-F1, mean Dice and, where given, HD95.

    mIoU, accuracies and F1 count all pixels of all images together; Dice and HD95 are means over images first,
    as is usual in medicine. Means go over the classes that the truth holds.

    Args:
        confusion_NCC: Counts of each image.
        classes: Names.
        hd95_NC: Surface distances of each image, see `surface_distance`.
    """
    confusion_CC = confusion_NCC.sum(0)
    iou_C, f1_C = iou_per_class(confusion_CC), f1_per_class(confusion_CC)
    recall_C, precision_C = recall_per_class(confusion_CC), precision_per_class(confusion_CC)
    values = {
        "miou": mean_iou(confusion_CC),
        "mean_accuracy": mean_accuracy(confusion_CC),
        "pixel_accuracy": accuracy(confusion_CC),
        "macro_f1": macro_f1(confusion_CC),
        "mean_dice": mean_dice(confusion_NCC),
    }
    there_C = confusion_CC.sum(1) > 0
    rows = {
        name: {
            "iou": float(iou_C[k]) if there_C[k] else math.nan,
            "f1": float(f1_C[k]) if there_C[k] else math.nan,
            "precision": float(precision_C[k]),
            "recall": float(recall_C[k]),
        }
        for k, name in enumerate(classes)
    }
    if hd95_NC is not None:
        hd95_C = [known_mean(hd95_NC[:, k]) for k in range(len(classes))]
        values["hd95_pixels"] = known_mean(np.array(hd95_C))
        for name, distance in zip(classes, hd95_C, strict=True):
            rows[name]["hd95_pixels"] = distance
    return Scores("miou", values, rows, images=len(confusion_NCC))


def change_scores(confusion_CC: np.ndarray, *, images: int) -> Scores:
    """Return F1 (the headline), IoU, precision and recall of the change class, and the accuracy of all pixels.

    Args:
        confusion_CC: (2, 2) counts over all pairs; class 1 is change.
        images: Number of pairs.
    """
    unchanged, changed = (
        {
            "f1": float(f1_per_class(confusion_CC)[k]),
            "iou": float(iou_per_class(confusion_CC)[k]),
            "precision": float(precision_per_class(confusion_CC)[k]),
            "recall": float(recall_per_class(confusion_CC)[k]),
        }
        for k in (0, 1)
    )
    values = {**changed, "pixel_accuracy": accuracy(confusion_CC)}
    return Scores("f1", values, {"unchanged": unchanged, "changed": changed}, images=images)


def hd95(guess_HW: np.ndarray, truth_HW: np.ndarray, spacing: Sequence[float] | None = None) -> float:
    """Return the 95th percentile of the distances between the surfaces of two masks; see `border_distances`.

    It is taken of each direction, and the larger of the two counts. (MedPy takes one percentile of both directions
    together, which is smaller where one direction has few large distances.)

    Args:
        guess_HW: Mask of any number of dimensions.
        truth_HW: Mask of the same shape.
        spacing: Size of a pixel along each axis; None: 1, so that the distance is in pixels.

    Returns:
        0 for equal masks; NaN when both are empty (there is nothing to compare); the diagonal of the image, the
        largest distance there can be, when one is empty and the other isn't.
    """
    guess, truth = np.asarray(guess_HW, bool), np.asarray(truth_HW, bool)
    steps = np.ones(guess.ndim) if spacing is None else np.asarray(spacing, float)
    return hd95_of(
        border_distances(guess, truth, steps), float(np.linalg.norm(np.array(guess.shape) * steps))
    )


def hd95_of(distances: tuple[np.ndarray, np.ndarray], diagonal: float) -> float:
    """Return what `hd95` does, of the distances between two surfaces and the image's diagonal."""
    to_truth, to_guess = distances
    if not len(to_truth) or not len(to_guess):
        return diagonal if len(to_truth) or len(to_guess) else math.nan
    return float(max(np.percentile(to_truth, 95), np.percentile(to_guess, 95)))


def surface_dice(distances: tuple[np.ndarray, np.ndarray], tolerance: float) -> float:
    """Return which share of both surfaces lies within a tolerance of the other; NaN when both masks are empty.

    Each border pixel counts once, whatever area it has (Nikolov et al., J. Med. Internet Res. 2021, weigh by area).

    Args:
        distances: As `border_distances` returns them.
        tolerance: In the same unit. What exceeds it by less than a hundred-thousandth of it plus a millionth is within.
    """
    count = sum(map(len, distances))
    # Spacings of headers are float32: neighbours 2 mm apart lie 2.00000002 mm apart, and rounding mustn't decide.
    most = tolerance * (1 + 1e-5) + 1e-6
    near = sum(int((each <= most).sum()) for each in distances)
    return near / count if count else math.nan


def border_distances(
    guess: np.ndarray, truth: np.ndarray, steps: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return how far each border pixel of one mask is from the nearest one of the other, in both directions.

    A mask's border pixels are those with a 4-neighbour (in volumes: a face neighbour) outside of it or of the image.

    Args:
        guess, truth: Masks of one shape and any number of dimensions.
        steps: Size of a pixel along each axis.

    Returns:
        The distances of `guess` to `truth`, and of `truth` to `guess`; infinite where the other is empty.
    """
    ours_N, theirs_M = (_border(mask) * np.asarray(steps, float) for mask in (guess, truth))
    # Trees of the border alone: distance maps of a whole volume would take several GB.
    ours, theirs = cKDTree(ours_N), cKDTree(theirs_M)
    to_truth_N = theirs.query(ours_N)[0] if len(theirs_M) else np.full(len(ours_N), math.inf)
    to_guess_M = ours.query(theirs_M)[0] if len(ours_N) else np.full(len(theirs_M), math.inf)
    return to_truth_N, to_guess_M


def _border(mask: np.ndarray) -> np.ndarray:
    """Return the places of the border pixels of a mask, a row each."""
    corner, inner = np.zeros(mask.ndim, np.int64), mask
    for axis in range(mask.ndim):  # what lies around the mask costs time alone
        filled = np.flatnonzero(mask.any(tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(filled):
            return np.zeros((0, mask.ndim))
        corner[axis] = filled[0]
        inner = inner.take(range(filled[0], filled[-1] + 1), axis)
    # A border pixel is one that erosion takes away.
    return np.argwhere(inner & ~ndimage.binary_erosion(inner)) + corner


def surface_distance(guess_HW: np.ndarray, truth_HW: np.ndarray, classes: int) -> np.ndarray:
    """Return (C,) `hd95` of each class of two class maps; pixels that the truth ignores belong to no class."""
    known_HW = truth_HW != IGNORE
    return np.array([hd95((guess_HW == k) & known_HW, truth_HW == k) for k in range(classes)])
