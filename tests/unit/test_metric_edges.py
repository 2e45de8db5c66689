"""Scores of classification, segmentation and detection at their corners, from numbers that are counted by hand."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from vitp.core.errors import ConfigError
from vitp.metrics import coco
from vitp.metrics.classification import (
    accuracy,
    average_precision,
    confusion_matrix,
    f1_per_class,
    iou_per_class,
    macro_f1,
    mean_average_precision,
    mean_dice,
    mean_iou,
)
from vitp.metrics.coco import FoundObjects, TrueObjects, coco_scores, encode_masks
from vitp.metrics.detection import (
    detection_scores,
    found_objects,
    largest_share_inside,
    pairwise_iou,
    true_objects,
    voc_average_precision,
)
from vitp.metrics.oriented import (
    FoundOriented,
    TrueOriented,
    found_oriented,
    oriented_average_precision,
    oriented_scores,
    true_oriented,
)
from vitp.metrics.ranking import precision_area
from vitp.metrics.results import Prediction, Target
from vitp.metrics.segmentation import (
    change_scores,
    hd95,
    mean_accuracy,
    precision_per_class,
    recall_per_class,
    segmentation_scores,
    surface_distance,
)

NAN = math.nan
# Rows are the truth. Class 2 is predicted but never true, class 3 occurs nowhere.
COUNTS = np.array([[4, 1, 1, 0], [2, 5, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_counts_of_pixels() -> None:
    truth = torch.tensor([[0, 0, 1], [2, 255, 1]])
    guess = torch.tensor([[0, 1, 1], [0, 9, 2]])
    assert confusion_matrix(guess, truth, 3).tolist() == [[1, 1, 0], [0, 1, 1], [1, 0, 0]]
    assert confusion_matrix(guess.clamp(max=2), truth.clamp(max=2), 3, ignore=0)[2].tolist() == [1, 0, 1]
    for wrong_guess, wrong_truth in ((3, 0), (0, 3), (-1, 0)):
        with pytest.raises(ValueError, match=r"a value is not in 0 … 2"):
            confusion_matrix(torch.tensor([wrong_guess]), torch.tensor([wrong_truth]), 3)
    with pytest.raises(ValueError, match="differ in shape"):
        confusion_matrix(torch.zeros(2), torch.zeros(3), 3)
    assert confusion_matrix(torch.zeros(2), torch.full((2,), 255), 3).sum() == 0
    assert confusion_matrix(torch.tensor([2]), torch.tensor([2]), 3)[2, 2] == 1


def test_means_over_the_classes_of_the_truth() -> None:
    np.testing.assert_allclose(iou_per_class(COUNTS), [4 / 8, 5 / 8, 0, NAN])
    np.testing.assert_allclose(f1_per_class(COUNTS), [8 / 12, 10 / 13, 0, NAN])
    np.testing.assert_allclose(recall_per_class(COUNTS), [4 / 6, 5 / 7, NAN, NAN])
    np.testing.assert_allclose(precision_per_class(COUNTS), [4 / 6, 5 / 6, 0, NAN])
    assert mean_iou(COUNTS) == pytest.approx(9 / 16)
    assert macro_f1(COUNTS) == pytest.approx((8 / 12 + 10 / 13) / 2)
    assert mean_accuracy(COUNTS) == pytest.approx((4 / 6 + 5 / 7) / 2)
    assert accuracy(COUNTS) == pytest.approx(9 / 13)
    for score in (mean_iou, macro_f1, mean_accuracy, accuracy):
        assert math.isnan(score(np.zeros((3, 3), int)))


def test_dice_is_a_mean_over_images_then_classes() -> None:
    other = np.array([[0, 0, 0, 0], [1, 3, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]])
    images = np.stack([COUNTS, other])
    first, second, third = (8 / 12 + 0) / 2, (10 / 13 + 6 / 7) / 2, (0 + 1) / 2
    assert mean_dice(images) == pytest.approx((first + second + third) / 3)


def test_the_tables_of_segmentation_and_change() -> None:
    scores = segmentation_scores(COUNTS[None], list("abcd"), hd95_NC=np.array([[1.0, 2.0, NAN, NAN]]))
    assert scores.images == 1 and scores.headline == "miou"
    assert scores.values == pytest.approx(
        {
            "miou": 9 / 16,
            "mean_accuracy": (4 / 6 + 5 / 7) / 2,
            "pixel_accuracy": 9 / 13,
            "macro_f1": (8 / 12 + 10 / 13) / 2,
            "mean_dice": (8 / 12 + 10 / 13 + 0) / 3,
            "hd95_pixels": 1.5,
        }
    )
    assert scores.per_class["b"] == pytest.approx(
        {"iou": 5 / 8, "f1": 10 / 13, "precision": 5 / 6, "recall": 5 / 7, "hd95_pixels": 2.0}
    )
    unseen = scores.per_class["c"]
    assert math.isnan(unseen["iou"]) and math.isnan(unseen["f1"]) and unseen["precision"] == 0.0
    assert "hd95_pixels" not in segmentation_scores(COUNTS[None], list("abcd")).values
    change = change_scores(np.array([[80, 5], [3, 12]]), images=4)
    assert change.headline == "f1" and change.images == 4
    wanted = {"f1": 24 / 32, "iou": 12 / 20, "precision": 12 / 17, "recall": 12 / 15}
    assert change.per_class["changed"] == pytest.approx(wanted)
    assert change.values == pytest.approx({**wanted, "pixel_accuracy": 92 / 100})
    assert change.per_class["unchanged"] == pytest.approx(
        {"f1": 160 / 168, "iou": 80 / 88, "precision": 80 / 83, "recall": 80 / 85}
    )


def test_surfaces() -> None:
    empty, point, far = (np.zeros((10, 10), bool) for _ in range(3))
    point[2, 2] = far[2, 7] = True
    assert hd95(point, far) == 5.0 and hd95(point, far, (3.0, 2.0)) == 10.0
    assert hd95(point.T, far.T, (3.0, 2.0)) == 15.0
    assert hd95(empty, point) == hd95(point, empty) == pytest.approx(math.sqrt(200))
    assert hd95(empty, point, (3.0, 4.0)) == pytest.approx(50.0)
    assert math.isnan(hd95(empty, empty)) and hd95(far, far) == 0.0
    # Filled squares: only borders count. Grown by one pixel, 200 border pixels are 1 away, the 4 corners √2.
    small, large = np.zeros((60, 60), bool), np.zeros((60, 60), bool)
    small[5:55, 5:55], large[4:56, 4:56] = True, True
    assert hd95(small, large) == hd95(large, small) == 1.0
    ring = small.copy()
    ring[7:53, 7:53] = False
    assert hd95(ring, small) == 1.0  # the inner of its two layers of pixels is a border, too
    # The larger direction, and the 95th percentile of it: 40 pixels on the truth, one of the guess is 9 off.
    line, spur = np.zeros((20, 40), bool), np.zeros((20, 40), bool)
    line[10] = spur[10] = True
    spur[1:10, 3] = True
    distances = np.concatenate([np.zeros(40), np.arange(1, 10)])
    assert hd95(spur, line) == hd95(line, spur) == pytest.approx(np.percentile(distances, 95))
    truth = np.array([[0, 0, 255], [1, 1, 255]])
    guess = np.array([[0, 0, 1], [1, 1, 0]])
    np.testing.assert_allclose(surface_distance(guess, truth, 3), [0.0, 0.0, NAN])


def test_rankings() -> None:
    scores, positive = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 0, 1, 0])
    assert average_precision(scores, positive) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.ones(4), positive) == 0.5
    assert average_precision(np.array([0.5, 0.9, 0.5]), np.array([1, 1, 0])) == pytest.approx(
        0.5 + 0.5 * 2 / 3
    )
    assert math.isnan(average_precision(scores, np.zeros(4)))
    labels = np.array([[1, 0, -1], [0, 0, 1], [1, 0, 1], [0, 0, 0]])
    table = np.stack([scores, scores, scores], 1)
    first, last = (1 + 2 / 3) / 2, 1.0
    assert mean_average_precision(table, labels) == pytest.approx((first + last) / 2)


# Objects.


A, B = (0, 0, 10, 10), (20, 0, 30, 10)


def true(*boxes: tuple, labels: list[int] | None = None, difficult: list[bool] | None = None) -> TrueObjects:
    count = len(boxes)
    return TrueObjects(
        np.array(boxes, float).reshape(-1, 4),
        np.array(labels or [0] * count),
        np.array(difficult or [False] * count),
    )


def seen(*boxes: tuple, labels: list[int] | None = None, scores: list[float] | None = None) -> FoundObjects:
    count = len(boxes)
    return FoundObjects(
        np.array(boxes, float).reshape(-1, 4),
        np.array(scores if scores is not None else [0.9 - 0.1 * i for i in range(count)]),
        np.array(labels or [0] * count),
    )


def test_overlaps_of_whole_number_boxes() -> None:
    boxes = np.array([A, (5, 0, 15, 10), (0, 9, 10, 19), (10, 0, 20, 10), (2, 3, 4, 7)], dtype=np.uint8)
    wanted = [1, 50 / 150, 10 / 190, 0, 8 / 100]
    assert pairwise_iou(boxes[:1], boxes)[0] == pytest.approx(wanted)
    thin = np.array([(0, 0, 0.5, 4), (0, 0, 4, 0.25), (0, 0, 0.5, 2)])
    assert pairwise_iou(thin[:1], thin)[0] == pytest.approx([1.0, 0.125 / 2.875, 0.5])
    assert pairwise_iou(boxes, boxes[:1])[:, 0] == pytest.approx(wanted)


def test_classes_and_images_are_kept_apart() -> None:
    truths = [true(A, B, labels=[0, 1]), true(A, B, labels=[1, 2])]
    found = [
        seen(A, B, labels=[1, 0], scores=[0.95, 0.9]),
        seen(A, B, A, labels=[1, 2, 0], scores=[0.8, 0.7, 0.1]),
    ]
    # Class 0 is only found wrongly, class 1 second (the first is wrong), class 2 rightly, class 3 isn't there.
    values = voc_average_precision(truths, found, 4)
    np.testing.assert_allclose(values, [0.0, 0.25, 1.0, NAN])
    scores = coco_scores(truths, found, 4)
    np.testing.assert_allclose(scores.class_ap50, [0.0, 0.5 * 51 / 101, 1.0, NAN], atol=1e-9)
    np.testing.assert_allclose(scores.class_ap, scores.class_ap50)
    assert scores.values["AP50"] == pytest.approx((0 + 0.5 * 51 / 101 + 1) / 3)
    assert scores.values["AR"] == pytest.approx((0 + 0.5 + 1) / 3)
    table = detection_scores(truths, found, list("abcd"))
    assert table.headline == "AP" and table.images == 2
    assert table.values["VOC12"] == pytest.approx((0 + 0.25 + 1) / 3)
    assert table.values["VOC07"] == pytest.approx((0 + 0.5 * 6 / 11 + 1) / 3)
    assert table.per_class["b"]["VOC12"] == pytest.approx(0.25)
    assert math.isnan(table.per_class["d"]["AP"])
    nothing = detection_scores([true()], [seen(A)], ["a"])
    assert math.isnan(nothing.values["VOC07"]) and math.isnan(nothing.values["AP"])


def test_overlaps_from_half_to_nearly_all() -> None:
    # 0.72 of the object: right at 0.50 … 0.70, wrong from 0.75 on.
    scores = coco_scores([true((0, 0, 100, 100))], [seen((0, 0, 100, 72))], 1)
    assert scores.values["AP50"] == pytest.approx(1.0) and scores.values["AP75"] == pytest.approx(0.0)
    assert scores.values["AP"] == pytest.approx(0.5) and scores.class_ap == pytest.approx([0.5])
    assert scores.values["AP_large"] == pytest.approx(0.5)
    assert math.isnan(scores.values["AP_small"]) and math.isnan(scores.values["AP_medium"])
    assert scores.values["AR"] == pytest.approx(0.5)


def test_precision_by_area_and_by_points() -> None:
    right = np.array([True, False, True, False, False])
    assert precision_area(right, 4, False) == pytest.approx((1 + 2 / 3) / 4)
    # Recall 0 … 0.2 has precision 1, 0.3 … 0.5 has 2/3.
    assert precision_area(right, 4, True) == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)
    assert precision_area(np.zeros(0, bool), 4, True) == precision_area(np.zeros(0, bool), 4, False) == 0.0


def test_masks_decide_areas_and_overlaps() -> None:
    mask, half = np.zeros((120, 130), bool), np.zeros((120, 130), bool)
    mask[:40, :40], half[:40, :24] = True, True
    box = (0.0, 0.0, 120.0, 120.0)
    truth = TrueObjects(np.array([box]), np.array([0]), np.array([False]), encode_masks(mask[None]))
    found = FoundObjects(np.array([box]), np.array([0.5]), np.array([0]), encode_masks(half[None]))
    masks = coco_scores([truth], [found], 1, kind="mask").values
    # 960 of 1,600 pixels: 0.6; the mask is of medium size, the box large.
    assert masks["AP50"] == pytest.approx(1.0) and masks["AP"] == pytest.approx(0.3)
    assert masks["AP_medium"] == pytest.approx(0.3) and math.isnan(masks["AP_large"])
    boxes = coco_scores([truth], [found], 1).values
    assert boxes["AP"] == pytest.approx(1.0) and boxes["AP_medium"] == pytest.approx(1.0)
    both = detection_scores([truth], [found], ["a"], masks=True)
    assert both.headline == "mask_AP" and both.values["mask_AP"] == pytest.approx(0.3)
    assert both.per_class["a"]["mask_AP50"] == pytest.approx(1.0) and both.values["AP"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="needs the masks of all images"):
        coco_scores([truth], [seen(A)], 1, kind="mask")
    assert encode_masks(np.zeros((0, 5, 4))) == []
    assert [rle["size"] for rle in encode_masks(np.zeros((2, 5, 4)))] == [[5, 4], [5, 4]]
    crowd = TrueObjects(truth.boxes_N4, truth.labels_N, np.array([True]), truth.masks)
    assert math.isnan(coco_scores([crowd], [found], 1, kind="mask").values["AP"])


def test_without_the_library_the_other_one_or_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = coco_scores([true(A, B)], [seen(A)], 1)
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert coco._tools()[1].__name__ == "COCOeval"
    slow = coco_scores([true(A, B)], [seen(A)], 1)
    assert slow.values == pytest.approx(fast.values, nan_ok=True)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ConfigError, match="a library that is not installed"):
        coco_scores([true(A)], [seen(A)], 1)


def test_targets_and_predictions_become_objects() -> None:
    boxes, labels = torch.tensor([[0.0, 0.0, 4.0, 2.0]]), torch.tensor([1])
    plain = true_objects(Target(boxes_N4=boxes, labels_N=labels))
    assert plain.difficult_N.tolist() == [False] and plain.masks is None
    masks = torch.zeros(1, 3, 5, dtype=torch.bool)
    full = true_objects(
        Target(boxes_N4=boxes, labels_N=labels, difficult_N=torch.tensor([True]), masks_NHW=masks)
    )
    assert full.difficult_N.tolist() == [True] and full.masks is not None and len(full.masks) == 1
    for target in (Target(labels_N=labels), Target(boxes_N4=boxes)):
        with pytest.raises(ConfigError, match="no boxes to compare with"):
            true_objects(target)
    scores = torch.tensor([0.5])
    got = found_objects(Prediction(boxes_N4=boxes, labels_N=labels, scores_N=scores))
    assert got.scores_N.tolist() == [0.5] and got.masks is None
    for prediction in (Prediction(labels_N=labels, scores_N=scores), Prediction()):
        with pytest.raises(ValueError, match="no boxes"):
            found_objects(prediction)


# Oriented objects.


def quad(x1: float, y1: float, x2: float, y2: float) -> list[float]:
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def test_oriented_classes_images_and_limits() -> None:
    truths = [
        TrueOriented(np.array([quad(*A), quad(*B)]), np.array([0, 1]), np.array([False, False])),
        TrueOriented(np.array([quad(*A)]), np.array([1]), np.array([False])),
        TrueOriented(np.array([quad(*A)]), np.array([0]), np.array([True])),
    ]
    found = [
        FoundOriented(np.array([quad(*A), quad(*A)]), np.array([0.9, 0.8]), np.array([0, 0])),
        FoundOriented(np.array([quad(0, 0, 10, 7.2)]), np.array([0.7]), np.array([1])),
        FoundOriented(np.array([quad(*A), quad(*A)]), np.array([0.95, 0.94]), np.array([0, 0])),
    ]
    # Class 0: its one object is found first, then once too often; the difficult one counts for nothing.
    at50, at75 = oriented_average_precision(truths, found, 3, overlaps=(0.5, 0.75))
    np.testing.assert_allclose(at50, [1.0, 0.5, NAN])
    np.testing.assert_allclose(at75, [1.0, 0.0, NAN])
    by_points = oriented_average_precision(truths, found, 3, eleven_points=True)
    np.testing.assert_allclose(by_points, [[1.0, 6 / 11, NAN]])
    table = oriented_scores(truths, found, list("abc"))
    assert table.headline == "AP50" and table.images == 3
    assert table.values == pytest.approx(
        {"AP": (1 + 0.25) / 2, "AP50": 0.75, "AP75": 0.5, "AP50_07": (1 + 6 / 11) / 2}
    )
    assert table.per_class["b"] == pytest.approx({"AP": 0.25, "AP50": 0.5, "AP75": 0.0, "AP50_07": 6 / 11})
    assert math.isnan(oriented_scores([], [], ["a"]).values["AP50"])
    # Exactly the limit isn't enough: it has to be more.
    half = [FoundOriented(np.array([quad(0, 0, 10, 5)]), np.array([0.5]), np.array([0]))]
    assert oriented_average_precision(truths[:1], half, 2).tolist() == [[0.0, 0.0]]
    assert oriented_average_precision(truths[:1], half, 2, overlaps=(0.49,)).tolist() == [[1.0, 0.0]]


def test_targets_and_predictions_become_oriented_objects() -> None:
    boxes, labels = torch.tensor([[1.0, 2.0, 5.0, 4.0]]), torch.tensor([2])
    given = true_oriented(Target(boxes_N4=boxes, labels_N=labels))
    assert given.quads_N8.tolist() == [[1, 2, 5, 2, 5, 4, 1, 4]] and given.difficult_N.tolist() == [False]
    quads = torch.arange(8.0)[None]
    given = true_oriented(
        Target(boxes_N4=boxes, quads_N8=quads, labels_N=labels, difficult_N=torch.tensor([True]))
    )
    assert given.quads_N8.tolist() == quads.tolist() and given.difficult_N.tolist() == [True]
    for target in (Target(labels_N=labels), Target(quads_N8=quads)):
        with pytest.raises(ConfigError, match="no oriented boxes to compare with"):
            true_oriented(target)
    for prediction in (Prediction(), Prediction(labels_N=labels, scores_N=torch.ones(1))):
        with pytest.raises(ValueError, match="no oriented boxes"):
            found_oriented(prediction)
    got = found_oriented(Prediction(quads_N8=quads, labels_N=labels, scores_N=torch.tensor([0.25])))
    assert (got.quads_N8.tolist(), got.scores_N.tolist(), got.labels_N.tolist()) == (
        quads.tolist(),
        [0.25],
        [2],
    )


def test_shares_of_boxes_in_places() -> None:
    places = np.array([(0, 0, 10, 10), (20, 5, 40, 10)])
    boxes = np.array(
        [(0, 0, 4, 2), (8, 8, 12, 12), (15, 0, 25, 10), (50, 50, 60, 60), (20, 20, 20, 30), (9, 0, 21, 20)]
    )
    # Apart in x and in y is apart; the largest share counts, not their sum.
    assert largest_share_inside(boxes, places).tolist() == [1.0, 4 / 16, 25 / 100, 0.0, 0.0, 10 / 240]
    assert largest_share_inside(boxes, places[:0]).tolist() == [0.0] * 6
    assert largest_share_inside(boxes[:0], places).shape == (0,)
    assert largest_share_inside(np.array([(4, 6, 0, 0)]), places).tolist() == [0.0]


def test_what_lies_in_ignored_places_counts_for_nothing() -> None:
    place = (20.0, 0.0, 40.0, 10.0)
    for in_place, counted in (((30, 0, 40, 10), False), ((15, 0, 25, 10), False), ((14, 0, 24, 10), True)):
        truth = replace(true(A), ignored_M4=np.array([place]))
        found = seen(in_place, A, scores=[0.9, 0.8])
        wanted = 0.5 if counted else 1.0
        assert voc_average_precision([truth], [found], 1).tolist() == [wanted]
        scores = coco_scores([truth], [found], 1).values
        # At every overlap, the highest included.
        assert scores["AP50"] == pytest.approx(wanted) and scores["AP"] == pytest.approx(wanted)
        oriented = TrueOriented(
            np.array([quad(*A)]), np.array([0]), np.array([False]), np.array([quad(*place)])
        )
        quads = FoundOriented(np.array([quad(*in_place), quad(*A)]), np.array([0.9, 0.8]), np.array([0, 0]))
        assert oriented_average_precision([oriented], [quads], 1).tolist() == [[wanted]]
    # An object that is found counts though it lies in a place; of another class it counts for nothing.
    inside = replace(true((30, 0, 40, 10)), ignored_M4=np.array([place]))
    assert coco_scores([inside], [seen((30, 0, 40, 10))], 1).values["AP50"] == pytest.approx(1.0)
    other = replace(true(A, labels=[1]), ignored_M4=np.array([place]))
    found = seen((30, 0, 40, 10), A, labels=[0, 1])
    assert coco_scores([other], [found], 2).class_ap50 == pytest.approx([NAN, 1.0], nan_ok=True)


def test_at_most_a_hundred_detections_of_an_image_count() -> None:
    wrong, right = np.array([[50.0, 50, 60, 60]]), np.array([A], float)
    for count, wanted in ((99, True), (100, False)):
        boxes, scores = np.concatenate([wrong.repeat(count, 0), right]), [0.9] * count + [0.1]
        found = FoundObjects(boxes, np.array(scores), np.zeros(count + 1, int))
        values = detection_scores([true(A)], [found], ["a"]).values
        assert values["AR"] == pytest.approx(float(wanted)) and (values["AP"] > 0) is wanted
        assert coco_scores([true(A)], [found], 1).values["AR"] == pytest.approx(float(wanted))


def test_boxes_have_their_own_area_though_there_are_masks() -> None:
    large, small = np.zeros((120, 240), bool), np.zeros((120, 240), bool)
    large[:110, :110], small[:5, 120:125] = True, True
    box, other = (0.0, 0.0, 110.0, 110.0), (120.0, 0.0, 230.0, 110.0)
    truth = TrueObjects(np.array([box]), np.array([0]), np.array([False]), encode_masks(large[None]))
    found = FoundObjects(
        np.array([other, box]), np.array([0.9, 0.8]), np.array([0, 0]), encode_masks(np.stack([small, large]))
    )
    # The wrong one is large as a box, and small as a mask.
    assert coco_scores([truth], [found], 1).values["AP_large"] == pytest.approx(0.5)
    assert coco_scores([truth], [found], 1, kind="mask").values["AP_large"] == pytest.approx(1.0)


def test_masks_of_ignored_places_must_be_there() -> None:
    mask = np.zeros((1, 12, 50), bool)
    mask[0, :10, 20:40] = True
    masks = encode_masks(mask)
    own = np.zeros((1, 12, 50), bool)
    own[0, :10, :10] = True
    plain = TrueObjects(np.array([A], float), np.array([0]), np.array([False]), encode_masks(own))
    place = replace(plain, ignored_M4=np.array([(20, 0, 40, 10)]), ignored_masks=masks)
    lacking = replace(place, ignored_masks=None)
    both = np.concatenate([own, mask])
    found = FoundObjects(
        np.array([A, (20, 0, 40, 10)], float), np.array([0.8, 0.9]), np.array([0, 0]), encode_masks(both)
    )
    assert coco_scores([place], [found], 1, kind="mask").values["AP50"] == pytest.approx(1.0)
    assert coco_scores([plain], [found], 1, kind="mask").values["AP50"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="masks of all ignored places"):
        coco_scores([place, lacking], [found, found], 1, kind="mask")
    assert coco_scores([place, lacking], [found, found], 1).values["AP50"] == pytest.approx(1.0)


def test_targets_say_which_places_are_ignored() -> None:
    boxes, labels = torch.tensor([[1.0, 2.0, 5.0, 4.0]]), torch.tensor([0])
    places = torch.tensor([[10.0, 20.0, 30.0, 40.0]])
    assert true_objects(Target(boxes_N4=boxes, labels_N=labels)).ignored_M4.shape == (0, 4)
    given = true_objects(Target(boxes_N4=boxes, labels_N=labels, ignored_M4=places))
    assert given.ignored_M4.tolist() == places.tolist() and given.ignored_masks is None
    assert true_oriented(Target(boxes_N4=boxes, labels_N=labels)).ignored_M8.shape == (0, 8)
    turned = true_oriented(Target(boxes_N4=boxes, labels_N=labels, ignored_M4=places))
    assert turned.ignored_M8.tolist() == [[10, 20, 30, 20, 30, 40, 10, 40]]
    own = torch.arange(8.0)[None]
    both = true_oriented(Target(boxes_N4=boxes, labels_N=labels, ignored_M4=places, ignored_M8=own))
    assert both.ignored_M8.tolist() == own.tolist()
