"""Panoptic quality against the library, Boundary IoU against erosion, and maps of segments."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from torchmetrics.detection import PanopticQuality

from vitp.metrics.boundary import BoundaryCounts, boundary_of, boundary_width
from vitp.metrics.coco import FoundObjects, TrueObjects, coco_scores, encode_masks
from vitp.metrics.panoptic import PanopticCounts, object_maps, panoptic_map
from vitp.metrics.results import Scores
from vitp.records.labels import IGNORE


def blocks(rng: np.random.Generator, classes: int, size: int = 24) -> np.ndarray:
    """Return a map of rectangles with a class and a number each, over stuff of class 0."""
    found_2HW = np.zeros((2, size, size), np.int64)
    for number in range(1, 7):
        y, x = rng.integers(0, size - 6, 2)
        height, width = rng.integers(3, 12, 2)
        found_2HW[:, y : y + height, x : x + width] = np.array([[[rng.integers(1, classes)]], [[number]]])
    return found_2HW


def empty(classes: int) -> Scores:
    return Scores("x", {"x": 0.0}, {str(k): {} for k in range(classes)})


def test_panoptic_quality_is_the_library_s() -> None:
    rng = np.random.default_rng(0)
    library = PanopticQuality(
        {1, 2, 3}, {0}, allow_unknown_preds_category=True, return_sq_and_rq=True, return_per_class=True
    )
    counts = PanopticCounts(4)
    for _ in range(6):
        truth_2HW = blocks(rng, 4)
        guess_2HW = np.roll(truth_2HW, rng.integers(-2, 3, 2), (1, 2))
        other = rng.integers(0, 2) * blocks(rng, 4)
        guess_2HW = np.where(other[1:] > 4, other + np.array([[[0]], [[10]]]), guess_2HW)
        truth_2HW[0, :3, :9] = IGNORE
        counts.add(guess_2HW, truth_2HW)
        library.update(
            *(torch.from_numpy(np.moveaxis(one, 0, -1).copy())[None] for one in (guess_2HW, truth_2HW))
        )
    wanted_C3 = library.compute()[[3, 0, 1, 2]].numpy()
    assert counts.rows_C3 == pytest.approx(wanted_C3, abs=1e-6)
    scores = counts.added_to(empty(4))
    assert scores.values["pq"] == pytest.approx(wanted_C3[:, 0].mean(), abs=1e-6)
    assert scores.per_class["2"]["rq"] == pytest.approx(wanted_C3[2, 2], abs=1e-6)


def test_a_right_map_has_all_and_nothing_is_left_out() -> None:
    truth_2HW = blocks(np.random.default_rng(1), 3)
    counts = PanopticCounts(3)
    counts.add(truth_2HW, truth_2HW)
    assert set(counts.added_to(empty(3)).values.values()) == {0.0, 1.0}  # "x" is 0
    nothing_2HW = np.zeros_like(truth_2HW)
    nothing_2HW[0] = IGNORE
    counts = PanopticCounts(3)
    counts.add(nothing_2HW, truth_2HW)
    assert counts.added_to(empty(3)).values["pq"] == 0.0 and counts.false_C.sum() == 0
    counts.add(truth_2HW, nothing_2HW)  # where nothing is known, nothing is wrong
    assert counts.false_C.sum() == 0
    assert math.isnan(PanopticCounts(2).added_to(empty(2)).values["pq"])


def test_masks_that_overlap_become_one_map() -> None:
    masks_MHW = np.zeros((4, 6, 8), bool)
    masks_MHW[0, :, :4], masks_MHW[1, :, 3:], masks_MHW[2, :2], masks_MHW[3, 5] = True, True, True, True
    scores, labels = np.array([0.6, 0.9, 0.8, 0.4]), np.array([1, 1, 0, 0])
    found_2HW = panoptic_map(masks_MHW, scores, labels, size=(6, 8), stuff=(0,))
    # The third has less than 80 % left, the fourth is unsure, and the first keeps 18 of 24 pixels: dropped as well.
    assert (found_2HW[0] == 1).sum() == 30 and (found_2HW[0] == IGNORE).sum() == 18
    found_2HW = panoptic_map(
        masks_MHW, scores, labels, size=(6, 8), stuff=(0,), least_share=0.3, least_score=0.0
    )
    assert found_2HW[:, 0, 7].tolist() == [1, 1] and found_2HW[:, 3, 0].tolist() == [1, 2]
    assert found_2HW[:, 0, 0].tolist() == [0, 0] and (found_2HW[0] == IGNORE).sum() == 0


def test_objects_over_the_background_and_over_what_is_unknown() -> None:
    truth_NHW = np.zeros((2, 8, 8), bool)
    truth_NHW[0, :4], truth_NHW[1, 1:3, 1:3] = True, True
    unknown_HW = np.zeros((8, 8), bool)
    unknown_HW[6:] = True
    found_MHW = np.concatenate([truth_NHW, np.zeros((2, 8, 8), bool)])
    found_MHW[0, 1:3, 1:3], found_MHW[2, 6:], found_MHW[3, 4:6] = False, True, True
    counts = PanopticCounts(1)
    maps = object_maps(
        found_MHW, np.full(4, 0.9), np.zeros(4, int), truth_NHW, np.zeros(2, int), unknown_HW, 1, 0.5
    )
    counts.add(*maps)
    # The small object lies above the large one; what was found in the unknown isn't wrong, in the background it is.
    assert (counts.matched_C[0], counts.false_C[0], counts.missed_C[0]) == (2, 1, 0)
    assert counts.rows_C3[0].tolist() == pytest.approx([0.8, 1.0, 0.8])


def test_an_image_without_objects_is_all_background() -> None:
    none_NHW, one_MHW = np.zeros((0, 4, 4), bool), np.ones((1, 4, 4), bool)
    no_N, unknown_HW = np.zeros(0), np.zeros((4, 4), bool)
    guess_2HW, truth_2HW = object_maps(
        none_NHW, no_N, no_N, none_NHW, no_N, unknown_HW, classes=1, least_score=0.5
    )
    assert (guess_2HW[0] == IGNORE).all() and (truth_2HW[0] == 1).all()
    alarm_2HW, _ = object_maps(one_MHW, np.ones(1), np.zeros(1, int), none_NHW, no_N, unknown_HW, 1, 0.5)
    counts = PanopticCounts(1)
    counts.add(alarm_2HW, truth_2HW)
    assert (counts.matched_C[0], counts.false_C[0], counts.missed_C[0]) == (0, 1, 0)


@pytest.mark.parametrize("seed", range(3))
def test_boundaries_are_what_erosion_takes_away(seed: int) -> None:
    rng = np.random.default_rng(seed)
    maps = [(cv2.blur(rng.random((70, 90)), (15, 15)) > 0.5).astype(np.uint8) for _ in range(2)]
    distance = boundary_width(70, 90)
    assert distance == max(1, round(0.02 * math.hypot(70, 90))) == 2
    outlines = []
    for mask_HW in maps:  # the reference: padded by one pixel of nothing, eroded so many times
        padded_HW = cv2.copyMakeBorder(mask_HW, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        eroded_HW = cv2.erode(padded_HW, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
        outlines.append((mask_HW - eroded_HW) > 0)
        assert np.array_equal(boundary_of(mask_HW, distance), outlines[-1])
    counts = BoundaryCounts(2)
    counts.add_map(*maps)
    wanted = (outlines[0] & outlines[1]).sum() / (outlines[0] | outlines[1]).sum()
    assert counts.added_to(empty(2)).per_class["1"]["boundary_iou"] == pytest.approx(wanted)


def test_there_is_no_boundary_towards_what_is_not_known() -> None:
    truth_HW = np.zeros((60, 60), np.uint8)
    truth_HW[20:, :30], truth_HW[40:] = 1, IGNORE
    other_HW = truth_HW.copy()
    other_HW[40:] = 1
    counts = BoundaryCounts(2)
    counts.add_map(other_HW, truth_HW)
    assert counts.added_to(empty(2)).values["boundary_iou"] == 1.0
    wide = boundary_width(60, 60)  # on three sides of class 1, but not towards the unknown
    assert counts.either_C[1] == wide * 30 + 2 * wide * (20 - wide)


def test_boundary_ap_is_stricter_than_that_of_masks() -> None:
    true_HW = np.zeros((100, 100), bool)
    true_HW[20:80, 20:80] = True
    found_HW = np.zeros((100, 100), bool)
    found_HW[26:86, 20:80] = True  # masks overlap by 0.82, their boundaries by less than a half
    truth = TrueObjects(
        np.array([[20.0, 20, 80, 80]]), np.array([0]), np.array([False]), encode_masks(true_HW[None])
    )
    found = FoundObjects(
        np.array([[20.0, 26, 80, 86]]), np.array([0.9]), np.array([0]), encode_masks(found_HW[None])
    )
    assert coco_scores([truth], [found], 1, kind="mask").values["AP50"] == pytest.approx(1.0)
    assert coco_scores([truth], [found], 1, kind="mask", boundary=True).values["AP50"] == 0.0
    outlines = [boundary_of(one, boundary_width(100, 100)) for one in (true_HW, found_HW)]
    assert (outlines[0] & outlines[1]).sum() / (outlines[0] | outlines[1]).sum() < 0.5
