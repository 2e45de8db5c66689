"""Scores of detectors on cases whose value is known by hand."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from vitp.core.errors import ConfigError
from vitp.metrics.coco import FoundObjects, TrueObjects, coco_scores, encode_masks
from vitp.metrics.detection import (
    detection_scores,
    found_objects,
    pairwise_iou,
    true_objects,
    voc_average_precision,
)
from vitp.metrics.results import Prediction, Target
from vitp.records.rle import decode

A, B, C = (0, 0, 10, 10), (20, 20, 40, 40), (50, 0, 60, 30)


def _truth(
    *boxes: tuple[int, ...], labels: list[int] | None = None, difficult: list[bool] | None = None
) -> TrueObjects:
    return TrueObjects(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels or [0] * len(boxes), int),
        np.array(difficult or [False] * len(boxes), bool),
    )


def _found(
    *boxes: tuple[int, ...], scores: list[float] | None = None, labels: list[int] | None = None
) -> FoundObjects:
    return FoundObjects(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores or [1.0 - 0.1 * i for i in range(len(boxes))], float),
        np.array(labels or [0] * len(boxes), int),
    )


def _voc(truths: list[TrueObjects], found: list[FoundObjects], **options: object) -> float:
    return float(voc_average_precision(truths, found, 1, **options)[0])  # type: ignore[arg-type]


def test_right_wrong_right() -> None:
    truths, found = [_truth(A, B)], [_found(A, C, B)]
    # Recall 1/2 at precision 1, recall 1 at precision 2/3.
    assert _voc(truths, found) == pytest.approx((1 + 2 / 3) / 2)
    assert _voc(truths, found, eleven_points=True) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    # COCO reads the precision at 101 recalls: 51 up to 0.5, 50 above.
    coco = coco_scores(truths, found, 1)
    assert coco.values["AP50"] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert coco.values["AR"] == pytest.approx(1.0)


def test_everything_found() -> None:
    truths, found = [_truth(A, B), _truth(C)], [_found(B, A), _found(C)]
    scores = detection_scores(truths, found, ("car",))
    for name in ("AP", "AP50", "AP75", "AP_small", "AR", "VOC07", "VOC12"):
        assert scores.values[name] == pytest.approx(1.0), name
    assert np.isnan(scores.values["AP_large"])  # there is no large object
    assert scores.per_class["car"]["AP50"] == pytest.approx(1.0)
    assert (scores.headline, scores.images) == ("AP", 2)


def test_nothing_found() -> None:
    scores = detection_scores([_truth(A, B)], [_found()], ("car",))
    assert {scores.values[name] for name in ("AP", "AP50", "AR", "VOC07", "VOC12")} == {0.0}


def test_nothing_to_find() -> None:
    scores = detection_scores([_truth(), _truth()], [_found(A), _found()], ("car",))
    assert all(np.isnan(value) for value in scores.values.values())
    assert scores.to_json()["values"]["AP"] is None


def test_a_set_without_images() -> None:
    assert np.isnan(_voc([], []))
    assert np.isnan(coco_scores([], [], 1).values["AP"])


def test_a_class_without_objects_is_left_out_of_the_mean() -> None:
    scores = detection_scores([_truth(A)], [_found(A, B, labels=[0, 1])], ("car", "bus"))
    assert scores.values["AP50"] == scores.values["VOC12"] == pytest.approx(1.0)
    assert np.isnan(scores.per_class["bus"]["AP50"]) and np.isnan(scores.per_class["bus"]["VOC12"])


def test_the_wrong_class_is_wrong() -> None:
    scores = detection_scores([_truth(A, B, labels=[0, 1])], [_found(A, B, labels=[1, 1])], ("car", "bus"))
    assert scores.per_class["car"]["VOC12"] == 0.0
    assert scores.per_class["bus"]["VOC12"] == pytest.approx(0.5)  # the stray one is the surer


def test_the_second_of_two_detections_is_wrong() -> None:
    truths = [_truth(A, B)]
    twice_first = [_found(A, A, B, scores=[0.9, 0.8, 0.7])]
    assert _voc(truths, twice_first) == pytest.approx((1 + 2 / 3) / 2)
    assert coco_scores(truths, twice_first, 1).values["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    twice_last = [_found(A, B, A, scores=[0.9, 0.8, 0.7])]
    assert _voc(truths, twice_last) == pytest.approx(1.0)


def test_a_detection_belongs_to_the_object_it_overlaps_most() -> None:
    # Both detections overlap A most: VOC calls the second one wrong although B' is free and overlaps by 0.5.
    near = (0, 0, 10, 15)
    truths = [_truth(A, near)]
    found = [_found(A, (0, 0, 10, 11))]
    assert pairwise_iou(np.array([(0, 0, 10, 11)]), np.array([A, near]))[0] == pytest.approx(
        [10 / 11, 11 / 15]
    )
    assert _voc(truths, found) == pytest.approx(0.5)
    # COCO gives it the free one.
    assert coco_scores(truths, found, 1).values["AP50"] == pytest.approx(1.0)


def test_difficult_objects_count_for_nothing() -> None:
    truths = [_truth(A, B, difficult=[False, True])]
    for found in ([_found(B, A)], [_found(B, B, A)], [_found(A)]):
        assert _voc(truths, found) == pytest.approx(1.0)
        assert coco_scores(truths, found, 1).values["AP50"] == pytest.approx(1.0)
    only = [_truth(B, difficult=[True])]
    assert np.isnan(_voc(only, [_found(B)]))
    assert np.isnan(coco_scores(only, [_found(B)], 1).values["AP50"])


def test_overlap_of_exactly_the_threshold_counts() -> None:
    assert _voc([_truth((0, 0, 10, 10))], [_found((0, 0, 10, 5))], iou=0.5) == pytest.approx(1.0)
    assert _voc([_truth((0, 0, 10, 10))], [_found((0, 0, 10, 5))], iou=0.51) == 0.0


def test_equal_scores_keep_their_order() -> None:
    truths = [_truth(A), _truth(B)]
    assert _voc(truths, [_found(A, scores=[0.5]), _found(C, scores=[0.5])]) == pytest.approx(0.5)
    assert _voc(truths, [_found(C, scores=[0.5]), _found(B, scores=[0.5])]) == pytest.approx(0.25)


def test_eleven_points_in_whole_numbers() -> None:
    # 3 of 10 is a recall of 0.3, which is less than 3 * 0.1 in floating point.
    boxes = [(20 * i, 0, 20 * i + 10, 10) for i in range(10)]
    assert _voc([_truth(*boxes)], [_found(*boxes[:3])], eleven_points=True) == pytest.approx(4 / 11)


def test_empty_boxes_have_no_overlap() -> None:
    empty = np.array([(5, 5, 5, 5)])
    assert pairwise_iou(empty, empty)[0, 0] == 0.0
    assert pairwise_iou(np.zeros((0, 4)), empty).shape == (0, 1)


def test_boxes_apart_do_not_overlap() -> None:
    """Apart in x and in y, two negative sides must not become a positive area."""
    boxes = np.array([(0, 0, 10, 10), (20, 20, 30, 30), (20, 0, 30, 10), (0, 20, 10, 30), (10, 10, 20, 20)])
    assert pairwise_iou(boxes, boxes).tolist() == np.eye(5).tolist()
    # Boxes that were given the wrong way round have no area, and are found nowhere.
    turned = np.array([(10, 10, 0, 0), (10, 0, 0, 10)])
    assert pairwise_iou(turned, boxes).tolist() == np.zeros((2, 5)).tolist()
    assert pairwise_iou(turned, turned).tolist() == np.zeros((2, 2)).tolist()
    assert _voc([_truth((0, 0, 10, 10))], [_found((20, 20, 30, 30))]) == 0.0


def test_max_detections() -> None:
    truths, found = [_truth(A, B, C)], [_found(A, B, C)]
    assert coco_scores(truths, found, 1, max_detections=2).values["AR"] == pytest.approx(2 / 3)


def test_areas() -> None:
    big, middle = (0, 0, 100, 100), (200, 200, 240, 240)
    values = coco_scores([_truth(A, big, middle)], [_found(A, big)], 1).values
    assert [values[f"AP_{name}"] for name in ("small", "medium", "large")] == pytest.approx([1.0, 0.0, 1.0])


def _with_masks(shape: tuple[int, int] = (20, 20)) -> tuple[Target, Prediction]:
    masks = torch.zeros(2, *shape, dtype=torch.uint8)
    masks[0, :10, :10], masks[1, 10:20, 10:20] = 1, 1
    masks[0].fill_diagonal_(0)
    boxes = torch.tensor([[0.0, 0, 10, 10], [10, 10, 20, 20]])
    target = Target(boxes_N4=boxes, labels_N=torch.tensor([0, 1]), masks_NHW=masks)
    half = masks.bool().clone()
    half[1, :, 14:] = False  # 40 of 100 pixels: too little
    prediction = Prediction(
        boxes_N4=boxes, labels_N=torch.tensor([0, 1]), scores_N=torch.tensor([0.9, 0.8]), masks_NHW=half
    )
    return target, prediction


def test_masks_are_scored_on_their_own() -> None:
    target, prediction = _with_masks()
    scores = detection_scores([true_objects(target)], [found_objects(prediction)], ("a", "b"), masks=True)
    assert scores.headline == "mask_AP"
    assert scores.values["AP50"] == pytest.approx(1.0)
    assert scores.values["mask_AP50"] == pytest.approx(0.5)
    assert scores.per_class["a"]["mask_AP"] == pytest.approx(1.0)
    assert scores.per_class["b"]["mask_AP50"] == 0.0


def test_masks_of_images_without_objects() -> None:
    target, prediction = _with_masks()
    nothing = Prediction(
        boxes_N4=torch.zeros(0, 4),
        labels_N=torch.zeros(0, dtype=torch.int64),
        scores_N=torch.zeros(0),
        masks_NHW=torch.zeros(0, 30, 10, dtype=torch.bool),
    )
    empty = Target(
        boxes_N4=torch.zeros(0, 4),
        labels_N=torch.zeros(0, dtype=torch.int64),
        masks_NHW=torch.zeros(0, 30, 10, dtype=torch.uint8),
    )
    truths = [true_objects(target), true_objects(empty)]
    scores = detection_scores(truths, [found_objects(nothing)] * 2, ("a", "b"), masks=True)
    assert scores.values["mask_AP"] == 0.0
    scores = detection_scores(
        truths, [found_objects(prediction), found_objects(nothing)], ("a", "b"), masks=True
    )
    assert scores.values["mask_AP50"] == pytest.approx(0.5)


def test_masks_that_are_missing() -> None:
    with pytest.raises(ValueError, match="needs the masks"):
        coco_scores([_truth(A)], [_found(A)], 1, kind="mask")


def test_compressed_masks_hold_the_same_pixels() -> None:
    masks = np.random.default_rng(0).random((3, 7, 11)) < 0.4
    for mask, rle in zip(masks, encode_masks(masks), strict=True):
        counts = rle["counts"]
        text = counts.decode() if isinstance(counts, bytes) else counts
        assert np.array_equal(decode(text, *rle["size"]), mask)
    assert encode_masks(np.zeros((0, 7, 11), bool)) == []


def test_no_library_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("faster_coco_eval", "pycocotools", "pycocotools.coco", "pycocotools.cocoeval"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match="pip install faster-coco-eval"):
        coco_scores([_truth(A)], [_found(A)], 1)


def test_pycocotools_serves_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    target, prediction = _with_masks()
    scores = detection_scores([true_objects(target)], [found_objects(prediction)], ("a", "b"), masks=True)
    assert scores.values["mask_AP50"] == pytest.approx(0.5)
    assert capsys.readouterr().out == ""


def test_targets_and_predictions_without_boxes() -> None:
    with pytest.raises(ConfigError, match="no boxes"):
        true_objects(Target())
    with pytest.raises(ValueError, match="no boxes"):
        found_objects(Prediction())
