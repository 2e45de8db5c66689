"""Scores of detectors: COCO's average precision of boxes and masks, and Pascal VOC's.

Shapes: I images, N, M objects, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitp.core.errors import ConfigError
from vitp.metrics.coco import FoundObjects, TrueObjects, coco_scores, encode_masks
from vitp.metrics.ranking import ImageMatches, rankings, scores_of_classes
from vitp.metrics.results import Prediction, Scores, Target, difficult_of
from vitp.metrics.statistics import known_mean
from vitp.models.heads.rpn import INSIDE


def pairwise_iou(a_N4: np.ndarray, b_M4: np.ndarray) -> np.ndarray:
    """Return (N, M) intersection over union; 0 where both boxes are empty."""
    shared_NM = _shared(a_N4, b_M4)
    union_NM = _area(a_N4)[:, None] + _area(b_M4)[None] - shared_NM
    return np.asarray(np.divide(shared_NM, union_NM, out=np.zeros_like(shared_NM), where=union_NM > 0))


def largest_share_inside(boxes_N4: np.ndarray, places_M4: np.ndarray) -> np.ndarray:
    """Return (N,) the largest share of each box's own area that lies in one of the places; 0 without area."""
    shared_N, area_N = _shared(boxes_N4, places_M4).max(1, initial=0.0), _area(boxes_N4)
    return np.asarray(np.divide(shared_N, area_N, out=np.zeros_like(shared_N), where=area_N > 0))


def _shared(a_N4: np.ndarray, b_M4: np.ndarray) -> np.ndarray:
    a_N14, b_1M4 = a_N4[:, None].astype(np.float64), b_M4[None].astype(np.float64)
    sides = np.minimum(a_N14[..., 2:], b_1M4[..., 2:]) - np.maximum(a_N14[..., :2], b_1M4[..., :2])
    return np.asarray(sides.clip(min=0).prod(-1))


def _area(boxes: np.ndarray) -> np.ndarray:
    boxes = boxes.astype(np.float64)
    return np.asarray((boxes[..., 2:] - boxes[..., :2]).clip(min=0).prod(-1))


def voc_average_precision(
    truths: Sequence[TrueObjects],
    found: Sequence[FoundObjects],
    classes: int,
    *,
    iou: float = 0.5,
    eleven_points: bool = False,
) -> np.ndarray:
    """Return (C,) average precision as Pascal VOC's development kit computes it; NaN without objects to find.

    Over all images, surest first, each detection belongs to the object that it overlaps most. It is right if
    the overlap is at least `iou` and no surer detection was right about that object; it counts for nothing if
    the object is difficult. Detections of equal score keep the order of images. Unlike the kit's, boxes exclude
    their right and bottom edge, so no pixel is added to their sides. A detection that isn't right counts for nothing,
    too, if half of it or more lies in an ignored place.

    Args:
        truths: One an image.
        found: One an image, in the same order.
        classes: C.
        iou: From which overlap on an object is found.
        eleven_points: As until 2009, the mean precision at 11 points of recall; else, as since 2010, the area
            under the precision that never rises.
    """
    images = [_matches(truth, detections) for truth, detections in zip(truths, found, strict=True)]
    return np.array(
        [
            # VOC's kit takes a match at the limit itself, DOTA's only beyond it.
            ranking.average_precision(ranking.overlap_D >= iou, eleven_points=eleven_points)
            for ranking in rankings(images, classes)
        ]
    )


def _matches(truth: TrueObjects, found: FoundObjects) -> ImageMatches:
    return ImageMatches(
        truth.labels_N,
        truth.difficult_N,
        found.labels_N,
        found.scores_N,
        largest_share_inside(found.boxes_N4, truth.ignored_M4) >= INSIDE,
        lambda found_N, own_M: pairwise_iou(found.boxes_N4[found_N], truth.boxes_N4[own_M]),
    )


def true_objects(target: Target) -> TrueObjects:
    """Return a target's objects for scoring."""
    if target.boxes_N4 is None or target.labels_N is None:
        raise ConfigError(
            "an image has no boxes to compare with", fix="choose a set whose objects are labelled"
        )
    labels_N = target.labels_N.cpu().numpy()
    masks = None if target.masks_NHW is None else encode_masks(target.masks_NHW.cpu().numpy())
    return TrueObjects(
        target.boxes_N4.cpu().numpy(),
        labels_N,
        difficult_of(target),
        masks,
        np.zeros((0, 4)) if target.ignored_M4 is None else target.ignored_M4.cpu().numpy(),
        None if target.ignored_MHW is None else encode_masks(target.ignored_MHW.cpu().numpy()),
        None if target.areas_N is None else target.areas_N.cpu().numpy(),
    )


def found_objects(prediction: Prediction) -> FoundObjects:
    """Return a prediction's objects for scoring."""
    if prediction.boxes_N4 is None or prediction.scores_N is None or prediction.labels_N is None:
        raise ValueError("the prediction has no boxes")
    masks = None if prediction.masks_NHW is None else encode_masks(prediction.masks_NHW.numpy())
    return FoundObjects(
        prediction.boxes_N4.numpy(), prediction.scores_N.numpy(), prediction.labels_N.numpy(), masks
    )


def detection_scores(
    truths: Sequence[TrueObjects],
    found: Sequence[FoundObjects],
    classes: Sequence[str],
    *,
    masks: bool = False,
    max_detections: int = 100,
    boundary: bool = False,
) -> Scores:
    """Return COCO's and VOC's scores of boxes, and with `masks` COCO's of masks.

    Values: `AP`, `AP50`, `AP75`, `AP_small`, `AP_medium`, `AP_large`, `AR` of boxes, the same after `mask_`, and
    `VOC07`, `VOC12`: mean average precision at overlap 0.5 by 11 points and by area. The headline is `AP`, of
    instances `mask_AP`.

    Args:
        truths: One an image.
        found: One an image, in the same order.
        classes: Names.
        masks: Whether to score masks, too.
        max_detections: See `coco_scores`.
        boundary: Whether to add `boundary_AP` and the like of masks.
    """
    boxes = coco_scores(truths, found, len(classes), max_detections=max_detections)
    columns, values = {"AP": boxes.class_ap, "AP50": boxes.class_ap50}, dict(boxes.values)
    for name, eleven_points in (("VOC07", True), ("VOC12", False)):
        columns[name] = voc_average_precision(truths, found, len(classes), eleven_points=eleven_points)
        values[name] = known_mean(columns[name])
    if masks:
        of_masks = coco_scores(truths, found, len(classes), kind="mask", max_detections=max_detections)
        columns |= {"mask_AP": of_masks.class_ap, "mask_AP50": of_masks.class_ap50}
        values |= {f"mask_{name}": value for name, value in of_masks.values.items()}
    if masks and boundary:
        near = coco_scores(
            truths, found, len(classes), kind="mask", max_detections=max_detections, boundary=True
        )
        columns |= {"boundary_AP": near.class_ap, "boundary_AP50": near.class_ap50}
        values |= {f"boundary_{name}": value for name, value in near.values.items()}
    return scores_of_classes("mask_AP" if masks else "AP", columns, classes, len(truths), values)
