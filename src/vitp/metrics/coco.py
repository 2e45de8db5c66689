"""Average precision as COCO defines it, of boxes and of masks, through faster-coco-eval (or pycocotools).

Shapes: N objects of an image, H × W pixels, C classes; T overlaps, R recall points, A ranges of area.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from vitp.core.errors import ConfigError
from vitp.models.heads.rpn import INSIDE

Rle = Mapping[str, Any]
"""One mask as COCO's tools compress it: `size` (height, width) and `counts`."""

AREAS: dict[str, tuple[float, float]] = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
"""COCO's ranges of area in square pixels."""


@dataclass(frozen=True)
class TrueObjects:
    """The labelled objects of one image.

    Attributes:
        boxes_N4: x1, y1, x2, y2 in pixels, right and bottom exclusive.
        labels_N: 0 … C − 1.
        difficult_N: Bool: counts neither as found nor as missed.
        masks: One an object, or None where there are none.
        ignored_M4: Boxes of places where a detection of any class counts for nothing.
        ignored_masks: Their masks, where objects have masks.
        areas_N: Square pixels, where they are known by more than boxes and masks.
    """

    boxes_N4: np.ndarray
    labels_N: np.ndarray
    difficult_N: np.ndarray
    masks: Sequence[Rle] | None = None
    ignored_M4: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    ignored_masks: Sequence[Rle] | None = None
    areas_N: np.ndarray | None = None


@dataclass(frozen=True)
class FoundObjects:
    """The objects that a model found in one image, in any order.

    Attributes:
        boxes_N4: x1, y1, x2, y2 in pixels.
        scores_N: Larger is surer.
        labels_N: 0 … C − 1.
        masks: One an object, or None where there are none.
    """

    boxes_N4: np.ndarray
    scores_N: np.ndarray
    labels_N: np.ndarray
    masks: Sequence[Rle] | None = None


@dataclass(frozen=True)
class CocoScores:
    """Average precision on 0..1; NaN where there is no object to find.

    Attributes:
        values: `AP` (mean over overlaps 0.50 … 0.95 and classes), `AP50`, `AP75`, `AP_small`, `AP_medium`,
            `AP_large`, and `AR`, the mean of the largest recall.
        class_ap, class_ap50: (C,) of each class.
    """

    values: dict[str, float]
    class_ap: np.ndarray
    class_ap50: np.ndarray


def _tools() -> tuple[Any, Any, Any]:
    """Return the classes `COCO` and `COCOeval`, and the functions on masks, of what is installed.

    Raises:
        ConfigError: Neither library is.
    """
    # They are imported when needed: both load compiled code that pretraining has no use for.
    try:
        from faster_coco_eval import COCO, COCOeval_faster, mask
    except ImportError:
        try:
            from pycocotools import mask
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
        except ImportError as error:
            raise ConfigError(
                "COCO average precision needs a library that is not installed",
                where="faster-coco-eval",
                fix="pip install faster-coco-eval",
            ) from error
        return COCO, COCOeval, mask
    return COCO, COCOeval_faster, mask


def encode_masks(masks_NHW: np.ndarray) -> list[Rle]:
    """Return bool or 0/1 masks compressed: whole sets of full-size masks don't fit into memory.

    Raises:
        ConfigError: No COCO library is installed.
    """
    _, _, tools = _tools()
    # The encoder runs down the columns, and wants them to lie so in memory.
    columns_HWN = np.asfortranarray(np.moveaxis(np.asarray(masks_NHW, np.uint8), 0, -1))
    return list(tools.encode(columns_HWN)) if columns_HWN.shape[-1] else []


def coco_scores(
    truths: Sequence[TrueObjects],
    found: Sequence[FoundObjects],
    classes: int,
    *,
    kind: Literal["box", "mask"] = "box",
    max_detections: int = 100,
    boundary: bool = False,
) -> CocoScores:
    """Return COCO's average precision.

    Difficult objects are COCO's crowds: they are not to be found, and what lies in one counts for nothing. An
    object's area, which decides over small, medium and large, is that of its mask where there is one, else the one
    that is given, else its box's. What was found and is no object counts where its own box (or mask) belongs.

    A detection of which half or more lies in an ignored place counts for nothing, whatever its class, unless it finds
    an object: at overlap 0.5 to the letter; at stricter ones it is wrong if it overlaps an object by 0.5 or more, but
    not enough, and lies in the place by less than that overlap.

    Args:
        truths: One an image.
        found: One an image, in the same order.
        classes: C.
        kind: What overlaps are measured of.
        max_detections: Best ones of each image and class that count; COCO's is 100.
        boundary: Masks overlap only as much as their boundaries do, too (Boundary IoU, Cheng et al. 2021).

    Raises:
        ConfigError: No COCO library is installed, or boundaries are asked of one that doesn't know them.
        ValueError: Masks are asked for, and there are none.
    """
    images: list[TrueObjects | FoundObjects] = [*truths, *found]
    if kind == "mask" and any(image.masks is None for image in images):
        raise ValueError("average precision of masks needs the masks of all images")
    if kind == "mask" and any(len(one.ignored_M4) != len(one.ignored_masks or ()) for one in truths):
        raise ValueError("average precision of masks needs the masks of all ignored places")
    make, evaluator, tools = _tools()
    found = [_counting(*pair, kind, tools) for pair in zip(truths, found, strict=True)]
    true_rows = [*_truth_rows(truths, tools), *_ignored_rows(truths, found, kind)]
    # pycocotools prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        truth_set = _data_set(make, true_rows, len(truths), classes)
        found_set = _data_set(make, _found_rows(found, kind, tools), len(truths), classes)
        evaluation = evaluator(truth_set, found_set, **_overlaps(kind, boundary, evaluator))
        evaluation.params.imgIds = list(range(1, len(truths) + 1))
        evaluation.params.catIds = list(range(1, classes + 1))
        evaluation.params.maxDets = [max_detections]
        evaluation.params.areaRng = [list(area) for area in AREAS.values()]
        evaluation.params.areaRngLbl = list(AREAS)
        evaluation.evaluate()
        evaluation.accumulate()
    # Not its `summarize`, which prints, and takes three numbers of detections for granted.
    precision_TRCA = np.asarray(evaluation.eval["precision"])[..., 0]
    recall_TCA = np.asarray(evaluation.eval["recall"])[..., 0]
    return _summary(precision_TRCA, recall_TCA, np.asarray(evaluation.params.iouThrs))


def _overlaps(kind: Literal["box", "mask"], boundary: bool, evaluator: Any) -> dict[str, Any]:
    """Return what tells an evaluator which overlaps are meant."""
    if not boundary:
        return {"iouType": "segm" if kind == "mask" else "bbox"}
    if evaluator.__name__ != "COCOeval_faster":
        raise ConfigError(
            "boundary AP needs a library that is not installed",
            where="faster-coco-eval",
            fix="pip install faster-coco-eval",
        )
    return {"iouType": "boundary", "boundary_cpu_count": 1}


def _summary(precision_TRCA: np.ndarray, recall_TCA: np.ndarray, iou_T: np.ndarray) -> CocoScores:
    at50, at75 = (int(np.argmin(np.abs(iou_T - iou))) for iou in (0.5, 0.75))
    values = {
        "AP": _mean(precision_TRCA[..., 0]),
        "AP50": _mean(precision_TRCA[at50, ..., 0]),
        "AP75": _mean(precision_TRCA[at75, ..., 0]),
    }
    values |= {f"AP_{name}": _mean(precision_TRCA[..., at]) for at, name in enumerate(AREAS) if name != "all"}
    values["AR"] = _mean(recall_TCA[..., 0])
    classes = range(precision_TRCA.shape[2])
    return CocoScores(
        values,
        np.array([_mean(precision_TRCA[:, :, number, 0]) for number in classes]),
        np.array([_mean(precision_TRCA[at50, :, number, 0]) for number in classes]),
    )


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]  # -1: nothing to find
    return float(known.mean()) if known.size else float("nan")


def _data_set(make: Any, rows: list[dict[str, Any]], images: int, classes: int) -> Any:
    # Numbers start at 1: to the evaluators a match with annotation 0 is no match.
    sizes = {row["image_id"]: row["segmentation"]["size"] for row in rows if "segmentation" in row}
    data_set = make()
    data_set.dataset = {
        "images": [
            {"id": i, "height": int(sizes.get(i, (0, 0))[0]), "width": int(sizes.get(i, (0, 0))[1])}
            for i in range(1, images + 1)
        ],
        "categories": [{"id": number + 1, "name": str(number)} for number in range(classes)],
        "annotations": [{"id": number, **row} for number, row in enumerate(rows, 1)],
    }
    data_set.createIndex()
    return data_set


def _row(image: int, label: int, box_4: np.ndarray, mask: Rle | None) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(value) for value in box_4)
    row: dict[str, Any] = {
        "image_id": image + 1,
        "category_id": int(label) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
    }
    if mask is not None:
        row["segmentation"] = dict(mask)
    return row


def _truth_rows(truths: Sequence[TrueObjects], tools: Any) -> list[dict[str, Any]]:
    rows = []
    for image, truth in enumerate(truths):
        for at in range(len(truth.labels_N)):
            mask = None if truth.masks is None else truth.masks[at]
            row = _row(image, truth.labels_N[at], truth.boxes_N4[at], mask)
            row["iscrowd"] = int(truth.difficult_N[at])
            if mask is not None:
                row["area"] = float(tools.area(dict(mask)))
            elif truth.areas_N is not None:
                row["area"] = float(truth.areas_N[at])
            rows.append(row)
    return rows


def _ignored_rows(
    truths: Sequence[TrueObjects], found: Sequence[FoundObjects], kind: Literal["box", "mask"]
) -> list[dict[str, Any]]:
    """Return ignored places as crowds of each class that was found in their image."""
    rows = []
    for image, (truth, objects) in enumerate(zip(truths, found, strict=True)):
        for at, box_4 in enumerate(truth.ignored_M4):
            mask = None if kind == "box" else (truth.ignored_masks or ())[at]
            rows += [
                # To the evaluators a crowd is of one class, so each class that was found gets one.
                {**_row(image, label, box_4, mask), "iscrowd": 1}
                for label in np.unique(objects.labels_N)
            ]
    return rows


def _counting(
    truth: TrueObjects, found: FoundObjects, kind: Literal["box", "mask"], tools: Any
) -> FoundObjects:
    """Return the detections without those that lie in an ignored place and overlap no object of their class by half.

    To the evaluator a place is a crowd, which it ignores detections in only by the overlap that it looks at.
    """
    if not len(truth.ignored_M4) or not len(found.labels_N):
        return found
    shapes = _shapes(found.boxes_N4, found.masks, kind)
    places = _shapes(truth.ignored_M4, truth.ignored_masks, kind)
    # With crowds COCO's overlap is the share of the detection itself.
    inside_N = np.asarray(tools.iou(shapes, places, [1] * len(places))).max(1) >= INSIDE
    finds_N = np.zeros(len(inside_N), bool)
    if len(truth.labels_N):
        objects = _shapes(truth.boxes_N4, truth.masks, kind)
        overlap_NM = np.asarray(tools.iou(shapes, objects, [0] * len(objects)))
        own_NM = np.asarray(found.labels_N)[:, None] == np.asarray(truth.labels_N)[None]
        finds_N = ((overlap_NM >= INSIDE) & own_NM).any(1)
    kept_N = ~inside_N | finds_N
    return replace(
        found,
        boxes_N4=found.boxes_N4[kept_N],
        scores_N=np.asarray(found.scores_N)[kept_N],
        labels_N=np.asarray(found.labels_N)[kept_N],
        masks=None if found.masks is None else [found.masks[at] for at in np.flatnonzero(kept_N).tolist()],
    )


def _shapes(boxes_N4: np.ndarray, masks: Sequence[Rle] | None, kind: Literal["box", "mask"]) -> Any:
    """Return shapes as the functions on masks take them: compressed masks, or x, y, width, height."""
    if kind == "mask":
        return [dict(mask) for mask in masks or ()]
    boxes_N4 = np.asarray(boxes_N4, np.float64)
    return np.concatenate([boxes_N4[:, :2], boxes_N4[:, 2:] - boxes_N4[:, :2]], 1)


def _found_rows(found: Sequence[FoundObjects], kind: str, tools: Any) -> list[dict[str, Any]]:
    rows = []
    for image, objects in enumerate(found):
        for at in range(len(objects.labels_N)):
            mask = objects.masks[at] if kind == "mask" and objects.masks is not None else None
            row = _row(image, objects.labels_N[at], objects.boxes_N4[at], mask)
            row["score"] = float(objects.scores_N[at])
            if mask is not None:
                row["area"] = float(tools.area(dict(mask)))
            rows.append(row)
    return rows
