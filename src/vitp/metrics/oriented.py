"""Scores of oriented detectors: average precision by rotated overlap, as DOTA's development kit computes it.

Shapes: I images, N, M objects, C classes, D detections of one class in all images, T overlaps;
8: corners x1, y1, …, x4, y4; 5: a rotated box (see `vitp.models.rotated.boxes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from vitp.core.errors import ConfigError
from vitp.metrics.ranking import ImageMatches, rankings, scores_of_classes
from vitp.metrics.results import Prediction, Scores, Target, difficult_of
from vitp.models.heads.rpn import INSIDE
from vitp.models.rotated.boxes import boxes_of_quads
from vitp.models.rotated.iou import rotated_iou

_OVERLAPS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""0.50, 0.55, …, 0.95, as COCO averages over."""


@dataclass(frozen=True)
class TrueOriented:
    """The labelled objects of one image.

    Attributes:
        quads_N8: Corners in pixels; what counts is the smallest rectangle around them.
        labels_N: 0 … C − 1.
        difficult_N: Bool: counts neither as found nor as missed.
        ignored_M8: Corners of places where a detection of any class counts for nothing.
    """

    quads_N8: np.ndarray
    labels_N: np.ndarray
    difficult_N: np.ndarray
    ignored_M8: np.ndarray = field(default_factory=lambda: np.zeros((0, 8)))


@dataclass(frozen=True)
class FoundOriented:
    """The objects that a model found in one image, in any order.

    Attributes:
        quads_N8: Corners in pixels.
        scores_N: Larger is surer.
        labels_N: 0 … C − 1.
    """

    quads_N8: np.ndarray
    scores_N: np.ndarray
    labels_N: np.ndarray


def oriented_average_precision(
    truths: Sequence[TrueOriented],
    found: Sequence[FoundOriented],
    classes: int,
    *,
    overlaps: Sequence[float] = (0.5,),
    eleven_points: bool = False,
) -> np.ndarray:
    """Return (T, C) average precision as DOTA's development kit computes it; NaN where there is nothing to find.

    Over all images, surest first, each detection belongs to the object of its class that it overlaps most. It is
    right if they overlap by *more* than the limit and no surer detection was right about that object; it counts
    for nothing if the object is difficult. Detections of equal score keep the order of images. A detection that isn't
    right counts for nothing, too, if half of it or more lies in an ignored place.

    Args:
        truths: One an image.
        found: One an image, in the same order.
        classes: C.
        overlaps: Limits.
        eleven_points: As Pascal VOC 2007, the mean precision at 11 points of recall (DOTA's and the published
            numbers); else, as VOC 2012, the area under the precision that never rises.
    """
    ranked = rankings(map(_matches, truths, found), classes)
    return np.array(
        [
            [one.average_precision(one.overlap_D > limit, eleven_points=eleven_points) for one in ranked]
            for limit in overlaps
        ]
    ).reshape(len(overlaps), classes)


def _matches(truth: TrueOriented, found: FoundOriented) -> ImageMatches:
    true_boxes, found_boxes = _boxes(truth.quads_N8), _boxes(found.quads_N8)
    inside_N = np.zeros(len(found_boxes), bool)
    if len(truth.ignored_M8):
        share_NM = rotated_iou(found_boxes, _boxes(truth.ignored_M8), "iof")
        inside_N = share_NM.amax(1).numpy() >= INSIDE

    def overlaps(found_N: np.ndarray, own_M: np.ndarray) -> np.ndarray:
        found_M5, own_N5 = found_boxes[torch.from_numpy(found_N)], true_boxes[torch.from_numpy(own_M)]
        return np.asarray(rotated_iou(found_M5, own_N5).numpy())

    return ImageMatches(truth.labels_N, truth.difficult_N, found.labels_N, found.scores_N, inside_N, overlaps)


def _boxes(quads_N8: np.ndarray) -> torch.Tensor:
    return boxes_of_quads(torch.from_numpy(np.asarray(quads_N8, np.float64).reshape(-1, 8)))


def true_oriented(target: Target) -> TrueOriented:
    """Return a target's objects for scoring: its quads, or else its boxes.

    Raises:
        ConfigError: The target has neither, or no labels.
    """
    if target.labels_N is None or (target.boxes_N4 is None and target.quads_N8 is None):
        raise ConfigError(
            "an image has no oriented boxes to compare with",
            fix="choose a set whose objects are labelled",
        )
    if target.quads_N8 is not None:
        quads_N8 = target.quads_N8
    else:
        assert target.boxes_N4 is not None
        x1, y1, x2, y2 = target.boxes_N4.unbind(1)
        quads_N8 = torch.stack([x1, y1, x2, y1, x2, y2, x1, y2], 1)
    ignored_M8 = np.zeros((0, 8))
    if target.ignored_M8 is not None:
        ignored_M8 = target.ignored_M8.cpu().numpy()
    elif target.ignored_M4 is not None:
        ignored_M8 = target.ignored_M4.cpu().numpy()[:, [0, 1, 2, 1, 2, 3, 0, 3]]
    labels_N = target.labels_N.cpu().numpy()
    return TrueOriented(quads_N8.cpu().numpy(), labels_N, difficult_of(target), ignored_M8)


def found_oriented(prediction: Prediction) -> FoundOriented:
    """Return a prediction's objects for scoring."""
    if prediction.quads_N8 is None or prediction.scores_N is None or prediction.labels_N is None:
        raise ValueError("the prediction has no oriented boxes")
    return FoundOriented(
        prediction.quads_N8.numpy(), prediction.scores_N.numpy(), prediction.labels_N.numpy()
    )


def oriented_scores(
    truths: Sequence[TrueOriented], found: Sequence[FoundOriented], classes: Sequence[str]
) -> Scores:
    """Return mean average precision and that of each class; classes without objects to find are left out.

    Values: `AP50`, `AP75` and `AP` (mean over 0.50, 0.55, …, 0.95) by area, and `AP50_07` by 11 points, which is
    what DOTA, DIOR-R and RSAR papers report. The headline is `AP50`.

    Args:
        truths: One an image.
        found: One an image, in the same order.
        classes: Names.
    """
    count = len(classes)
    by_area_TC = oriented_average_precision(truths, found, count, overlaps=_OVERLAPS)
    by_points_TC = oriented_average_precision(truths, found, count, eleven_points=True)
    columns = {
        "AP": by_area_TC.mean(0),
        "AP50": by_area_TC[0],
        "AP75": by_area_TC[_OVERLAPS.index(0.75)],
        "AP50_07": by_points_TC[0],
    }
    return scores_of_classes("AP50", columns, classes, len(truths))
