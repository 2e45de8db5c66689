"""Scores of classification and segmentation, from confusion counts and rankings.

Shapes: N images, C classes, K labels. Rows of a confusion matrix are the truth, columns the prediction.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vitp.metrics.statistics import known_mean
from vitp.records.labels import IGNORE


def confusion_matrix(prediction: Tensor, target: Tensor, classes: int, *, ignore: int = IGNORE) -> np.ndarray:
    """Return (C, C) counts.

    Args:
        prediction: Integer classes 0 … C − 1 of any shape.
        target: Integer classes of the same shape; `ignore` counts for nothing.
        classes: C.
        ignore: Value of the target that is left out.

    Raises:
        ValueError: The shapes differ or a value is no class.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape"
        )
    known = target != ignore
    truth, guess = target[known].long(), prediction[known].long()
    if truth.numel() and (max(int(truth.max()), int(guess.max())) >= classes or int(guess.min()) < 0):
        raise ValueError(f"a value is not in 0 … {classes - 1}")
    return torch.bincount(truth * classes + guess, minlength=classes**2).view(classes, classes).cpu().numpy()


def iou_per_class(confusion_CC: np.ndarray) -> np.ndarray:
    """Return (C,) intersection over union; NaN for classes that neither truth nor prediction holds."""
    hit_C = np.diag(confusion_CC).astype(np.float64)
    union_C = confusion_CC.sum(0) + confusion_CC.sum(1) - hit_C
    return ratio(hit_C, union_C)


def f1_per_class(confusion_CC: np.ndarray) -> np.ndarray:
    """Return (C,) F1 (the same as Dice over all pixels); NaN for classes that occur nowhere."""
    return ratio(2 * np.diag(confusion_CC).astype(np.float64), confusion_CC.sum(0) + confusion_CC.sum(1))


def mean_iou(confusion_CC: np.ndarray) -> float:
    """Return the mean IoU over the classes that occur in the truth.

    A class that the truth lacks is left out even where it is predicted (some libraries count it as 0): else
    one stray pixel would decide over which classes a backbone's mean goes. The error itself still counts, for
    the class that was missed there.
    """
    return known_mean(iou_per_class(confusion_CC)[confusion_CC.sum(1) > 0])


def macro_f1(confusion_CC: np.ndarray) -> float:
    """Return the mean F1 over the classes that occur in the truth; see `mean_iou`."""
    return known_mean(f1_per_class(confusion_CC)[confusion_CC.sum(1) > 0])


def accuracy(confusion_CC: np.ndarray) -> float:
    """Return the share of right predictions; NaN when nothing was counted."""
    total = confusion_CC.sum()
    return float(np.trace(confusion_CC) / total) if total else float("nan")


def mean_dice(confusion_NCC: np.ndarray) -> float:
    """Return Dice as medical segmentation means it: per image and class, then over images, then classes.

    Images that neither truth nor prediction has a class in don't count for it.
    """
    hit_NC = np.diagonal(confusion_NCC, axis1=1, axis2=2).astype(np.float64)
    dice_NC = ratio(2 * hit_NC, confusion_NCC.sum(1) + confusion_NCC.sum(2))
    return known_mean(np.array([known_mean(dice_N) for dice_N in dice_NC.T]))


def average_precision(score_N: np.ndarray, positive_N: np.ndarray) -> float:
    """Return the area under the precision-recall steps, Σ (Rₙ − Rₙ₋₁)·Pₙ; NaN without a positive.

    Equal scores form one step: their order can't be known, so it must not count.
    """
    positive_N = np.asarray(positive_N, bool)
    if not positive_N.any():
        return float("nan")
    score_N = np.asarray(score_N, np.float64)
    order = np.argsort(-score_N, kind="stable")
    hits = np.cumsum(positive_N[order])
    ends = np.append(np.flatnonzero(np.diff(score_N[order])), len(order) - 1)
    precision, recall = hits[ends] / (ends + 1), hits[ends] / hits[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def mean_average_precision(score_NK: np.ndarray, label_NK: np.ndarray) -> float:
    """Return average precision macro over the labels that occur; label 1 yes, 0 no, -1 unknown (left out)."""
    known_NK = label_NK >= 0
    return known_mean(
        np.array(
            [
                average_precision(score_NK[known_NK[:, k], k], label_NK[known_NK[:, k], k] == 1)
                for k in range(label_NK.shape[1])
            ]
        )
    )


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole; NaN where the whole is 0."""
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0))
