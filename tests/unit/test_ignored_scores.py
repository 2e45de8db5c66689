"""Scores: detections in ignored places count for nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ignored_places import at, one_image, ring, target_of
from vitp.metrics import coco
from vitp.metrics.coco import FoundObjects, TrueObjects, coco_scores, encode_masks
from vitp.metrics.detection import detection_scores, true_objects, voc_average_precision
from vitp.metrics.oriented import FoundOriented, TrueOriented, oriented_average_precision, true_oriented

# Scores


def found(*boxes: tuple[float, ...], labels: list[int] | None = None, masks: bool = False) -> FoundObjects:
    scores = np.linspace(0.9, 0.1, len(boxes))
    rows = np.array(boxes, float).reshape(-1, 4)
    return FoundObjects(rows, scores, np.array(labels or [0] * len(boxes)), filled(rows) if masks else None)


def truth(
    *boxes: tuple[float, ...], ignored: tuple[tuple[float, ...], ...] = (), masks: bool = False
) -> TrueObjects:
    rows, places = (np.array(part, float).reshape(-1, 4) for part in (boxes, ignored))
    shapes = (filled(rows), filled(places)) if masks else (None, None)
    count = len(rows)
    return TrueObjects(rows, np.zeros(count, int), np.zeros(count, bool), shapes[0], places, shapes[1])


def filled(boxes_N4: np.ndarray, side: int = 64) -> list[coco.Rle]:
    masks = np.zeros((len(boxes_N4), side, side), np.uint8)
    for mask_HW, (x1, y1, x2, y2) in zip(masks, boxes_N4.astype(int), strict=True):
        mask_HW[y1:y2, x1:x2] = 1
    return encode_masks(masks)


A, PLACE = (0, 0, 10, 10), (20, 20, 60, 60)
HALF_IN, HALF_OUT = (10, 30, 30, 40), (9, 30, 29, 40)  # ten, nine of 20 columns in PLACE


@pytest.mark.parametrize("masks", [False, True])
def test_detections_in_ignored_places_count_for_nothing(masks: bool) -> None:
    names = ("one", "two")
    at_once = partial_scores(names, masks)
    # Of any class, at any overlap, though they are surer than the object that is found.
    wrong = found((30, 30, 40, 40), HALF_IN, A, labels=[0, 1, 0], masks=masks)
    for name, value in at_once(truth(A, ignored=(PLACE,), masks=masks), wrong).items():
        if not name.endswith(("_medium", "_large")):
            assert value == pytest.approx(1.0), name
    assert at_once(truth(A, masks=masks), wrong)["AP50"] == pytest.approx(0.5)
    outside = found(HALF_OUT, A, masks=masks)
    assert at_once(truth(A, ignored=(PLACE,), masks=masks), outside)["AP50"] == pytest.approx(0.5)
    # An object in the place is to be found, and found once; a duplicate there is no mistake.
    inner = (30, 30, 50, 50)
    hit = at_once(truth(inner, A, ignored=(PLACE,), masks=masks), found(inner, inner, A, masks=masks))
    assert hit["AP50"] == hit["VOC12"] == pytest.approx(1.0)
    missed = at_once(truth(inner, A, ignored=(PLACE,), masks=masks), found(A, masks=masks))
    assert missed["VOC12"] == pytest.approx(0.5)
    nothing = at_once(truth(ignored=(PLACE,), masks=masks), found(inner, masks=masks))
    assert np.isnan(nothing["AP50"]) and np.isnan(nothing["VOC12"])


def partial_scores(names: tuple[str, ...], masks: bool) -> Any:
    def score(one: TrueObjects, other: FoundObjects) -> dict[str, float]:
        return dict(detection_scores([one], [other], names, masks=masks).values)

    return score


def test_masks_decide_what_lies_in_an_ignored_place() -> None:
    """The boxes of an L and of what lies in its notch overlap, their masks don't."""
    notch = np.zeros((64, 64), np.uint8)
    notch[20:60, 20:60] = 1
    notch[20:40, 40:60] = 0
    ignored = {"ignored_M4": np.array([PLACE], float), "ignored_masks": encode_masks(notch[None])}
    one = replace(truth(A, masks=True), **ignored)
    inside = found((40, 20, 60, 40), A, masks=True)
    assert coco_scores([one], [inside], 1).values["AP50"] == pytest.approx(1.0)
    assert coco_scores([one], [inside], 1, kind="mask").values["AP50"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="masks of all ignored places"):
        coco_scores([replace(one, ignored_masks=None)], [inside], 1, kind="mask")


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_scores_without_places_are_those_without_what_lies_in_them(seed: int) -> None:
    """With objects apart from the places, the score is that of the detections outside, whatever is found inside."""
    rng = np.random.default_rng(seed)

    def boxes(count: int, low: int) -> np.ndarray:
        corner = rng.integers(low, low + 20, (count, 2))
        return np.concatenate([corner, corner + rng.integers(3, 9, (count, 2))], 1).astype(float)

    objects, inside = boxes(4, 0), boxes(6, 32)
    near_objects = objects + rng.integers(-2, 3, objects.shape) * [1, 1, 0, 0]
    all_found = np.concatenate([near_objects, boxes(3, 0), inside])
    kept = np.arange(len(all_found)) < 7
    scores, labels = rng.random(len(all_found)), rng.integers(0, 2, len(all_found))
    place = np.array([[31.0, 31, 64, 64]])
    true = TrueObjects(objects, rng.integers(0, 2, 4), np.zeros(4, bool), ignored_M4=place)
    whole = FoundObjects(all_found, scores, labels)
    part = FoundObjects(all_found[kept], scores[kept], labels[kept])
    bare = replace(true, ignored_M4=np.zeros((0, 4)))
    for name, value in coco_scores([true], [whole], 2).values.items():
        assert value == pytest.approx(coco_scores([bare], [part], 2).values[name], nan_ok=True), name
    np.testing.assert_allclose(
        voc_average_precision([true], [whole], 2), voc_average_precision([bare], [part], 2)
    )
    turned = TrueOriented(corners(objects), true.labels_N, true.difficult_N, corners(place))
    np.testing.assert_allclose(
        oriented_average_precision([turned], [FoundOriented(corners(all_found), scores, labels)], 2, overlaps=(0.5, 0.8)),
        oriented_average_precision(
            [replace(turned, ignored_M8=np.zeros((0, 8)))],
            [FoundOriented(corners(all_found[kept]), scores[kept], labels[kept])],
            2,
            overlaps=(0.5, 0.8),
        ),
    )  # fmt: skip


def corners(boxes_N4: np.ndarray) -> np.ndarray:
    return boxes_N4[:, [0, 1, 2, 1, 2, 3, 0, 3]]


def test_oriented_duplicates_in_a_place_are_no_mistakes_and_tilted_places_are_exact() -> None:
    diamond = np.array([[40.0, 20, 60, 40, 40, 60, 20, 40]])
    one = TrueOriented(corners(np.array([A], float)), np.zeros(1, int), np.zeros(1, bool), diamond)
    corner, middle = (21.0, 21, 27, 27), (36.0, 36, 44, 44)  # in the diamond's box, in the diamond
    for stray, wanted in ((corner, 0.5), (middle, 1.0)):
        boxes = np.array([stray, A], float)
        seen = FoundOriented(corners(boxes), np.array([0.9, 0.8]), np.zeros(2, int))
        assert oriented_average_precision([one], [seen], 1)[0, 0] == pytest.approx(wanted)
    over = replace(one, ignored_M8=corners(np.array([[0.0, 0, 20, 20]])))
    twice = FoundOriented(corners(np.array([A, A], float)), np.array([0.9, 0.8]), np.zeros(2, int))
    assert oriented_average_precision([over], [twice], 1)[0, 0] == pytest.approx(1.0)


def test_scoring_takes_places_from_targets(tmp_path: Path) -> None:
    labelled = one_image(tmp_path, at("car", 1, 1, 9, 9, polygons=(ring(1, 1, 9, 9),)))
    boxes = true_objects(target_of(labelled, "objects"))
    assert boxes.ignored_M4.tolist() == [[20, 4, 36, 28]] and boxes.ignored_masks is None
    masks = true_objects(target_of(labelled, "instances"))
    assert masks.ignored_masks is not None and len(masks.ignored_masks) == 1
    assert true_oriented(target_of(labelled, "oriented")).ignored_M8.tolist() == [list(ring(20, 4, 36, 28))]
    assert true_oriented(target_of(labelled, "objects")).ignored_M8.tolist() == [list(ring(20, 4, 36, 28))]
