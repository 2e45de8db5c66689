"""Scores of detectors: COCO's average precision of boxes and masks, and Pascal VOC's.

Shapes: I images, N, M objects, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitp.core.errors import ConfigError
from vitp.metrics.coco import INSIDE, FoundObjects, TrueObjects, coco_scores, encode_masks
from vitp.metrics.results import Prediction, Scores, Target


def box_iou(a_N4: np.ndarray, b_M4: np.ndarray) -> np.ndarray:
    """Return (N, M) intersection over union; 0 where both boxes are empty."""
    a_N14, b_1M4 = a_N4[:, None].astype(np.float64), b_M4[None].astype(np.float64)
    sides = np.minimum(a_N14[..., 2:], b_1M4[..., 2:]) - np.maximum(a_N14[..., :2], b_1M4[..., :2])
    shared_NM = sides.clip(min=0).prod(-1)
    union_NM = _area(a_N14) + _area(b_1M4) - shared_NM
    return np.divide(shared_NM, union_NM, out=np.zeros_like(shared_NM), where=union_NM > 0)


def shares_inside(boxes_N4: np.ndarray, places_M4: np.ndarray) -> np.ndarray:
    """Return (N,) the largest share of each box's own area that lies in one of the places; 0 without area."""
    boxes_N14, places_1M4 = boxes_N4[:, None].astype(np.float64), places_M4[None].astype(np.float64)
    sides = np.minimum(boxes_N14[..., 2:], places_1M4[..., 2:]) - np.maximum(
        boxes_N14[..., :2], places_1M4[..., :2]
    )
    shared_N = sides.clip(min=0).prod(-1).max(1, initial=0.0)
    area_N = _area(boxes_N4.astype(np.float64))
    return np.divide(shared_N, area_N, out=np.zeros_like(shared_N), where=area_N > 0)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2:] - boxes[..., :2]).clip(min=0).prod(-1)


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
    return np.array(
        [_class_precision(truths, found, number, iou, eleven_points) for number in range(classes)]
    )


def _class_precision(
    truths: Sequence[TrueObjects],
    found: Sequence[FoundObjects],
    number: int,
    iou: float,
    eleven_points: bool,
) -> float:
    scores, objects, difficult, inside = [], [], [], []
    first = to_find = 0  # objects are numbered over all images
    for truth, detections in zip(truths, found, strict=True):
        own_M, found_N = truth.labels_N == number, detections.labels_N == number
        difficult_M = np.asarray(truth.difficult_N, bool)[own_M]
        best_N, hit_N = _best_object(detections.boxes_N4[found_N], truth.boxes_N4[own_M], iou)
        scores.append(np.asarray(detections.scores_N, np.float64)[found_N])
        objects.append(np.where(hit_N, best_N + first, -1))
        difficult.append(difficult_M[best_N] & hit_N if len(difficult_M) else hit_N)
        inside.append(shares_inside(detections.boxes_N4[found_N], truth.ignored_M4) >= INSIDE)
        first += len(difficult_M)
        to_find += int((~difficult_M).sum())
    if not to_find:
        return float("nan")
    order = np.argsort(-np.concatenate(scores), kind="stable")
    kept = ~np.concatenate(difficult)[order]
    object_D = np.concatenate(objects)[order][kept]
    right_D = np.zeros(len(object_D), bool)
    found_objects, firsts = np.unique(object_D, return_index=True)
    right_D[firsts[found_objects >= 0]] = True
    counts_D = right_D | ~np.concatenate(inside)[order][kept]
    return precision_area(right_D[counts_D], to_find, eleven_points)


def _best_object(boxes_N4: np.ndarray, truth_M4: np.ndarray, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) the index of the object that each box overlaps most, and whether it does so enough."""
    if not len(truth_M4) or not len(boxes_N4):
        return np.zeros(len(boxes_N4), np.int64), np.zeros(len(boxes_N4), bool)
    iou_NM = box_iou(boxes_N4, truth_M4)
    best_N = iou_NM.argmax(1)
    return best_N, iou_NM[np.arange(len(best_N)), best_N] >= iou


def precision_area(right_D: np.ndarray, to_find: int, eleven_points: bool) -> float:
    """Return the average precision of detections of one class, surest first.

    Args:
        right_D: Whether each is right.
        to_find: Objects of the class.
        eleven_points: As Pascal VOC 2007, the mean at 11 points of recall; else the area, as VOC 2012.
    """
    hits_D = np.cumsum(right_D)
    precision_D = hits_D / np.arange(1, len(right_D) + 1)
    # The precision at a recall is the best one at that recall or beyond.
    envelope_D = np.maximum.accumulate(precision_D[::-1])[::-1]
    if eleven_points:
        # In whole numbers: 3 of 10 is a recall of 0.3, though 3 * 0.1 is a little more.
        at = np.searchsorted(10 * hits_D, to_find * np.arange(11), side="left")
        return float(np.append(envelope_D, 0.0)[at].mean())
    return float(envelope_D[right_D].sum() / to_find)


def true_objects(target: Target) -> TrueObjects:
    """Return a target's objects for scoring."""
    if target.boxes_N4 is None or target.labels_N is None:
        raise ConfigError(
            "an image has no boxes to compare with", fix="choose a set whose objects are labelled"
        )
    labels_N = target.labels_N.cpu().numpy()
    difficult_N = (
        np.zeros(len(labels_N), bool) if target.difficult_N is None else target.difficult_N.cpu().numpy()
    )
    masks = None if target.masks_NHW is None else encode_masks(target.masks_NHW.cpu().numpy())
    return TrueObjects(
        target.boxes_N4.cpu().numpy(),
        labels_N,
        difficult_N,
        masks,
        np.zeros((0, 4)) if target.ignored_M4 is None else target.ignored_M4.cpu().numpy(),
        None if target.ignored_MHW is None else encode_masks(target.ignored_MHW.cpu().numpy()),
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
    """
    boxes = coco_scores(truths, found, len(classes), max_detections=max_detections)
    columns = {"AP": boxes.class_ap, "AP50": boxes.class_ap50}
    values = dict(boxes.values)
    for name, eleven_points in (("VOC07", True), ("VOC12", False)):
        columns[name] = voc_average_precision(truths, found, len(classes), eleven_points=eleven_points)
        known = columns[name][~np.isnan(columns[name])]
        values[name] = float(known.mean()) if known.size else float("nan")
    if masks:
        of_masks = coco_scores(truths, found, len(classes), kind="mask", max_detections=max_detections)
        columns |= {"mask_AP": of_masks.class_ap, "mask_AP50": of_masks.class_ap50}
        values |= {f"mask_{name}": value for name, value in of_masks.values.items()}
    per_class = {
        name: {column: float(value_C[number]) for column, value_C in columns.items()}
        for number, name in enumerate(classes)
    }
    return Scores("mask_AP" if masks else "AP", values, per_class, len(truths))
