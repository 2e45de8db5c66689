"""Metrics against calculations by hand and against torchmetrics; verdicts over seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import (
    binary_average_precision,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_jaccard_index,
)

from vitp.core.errors import ConfigError
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
from vitp.metrics.statistics import mean_std, paired_bootstrap


def test_confusion_and_scores_by_hand() -> None:
    target = torch.tensor([[0, 0, 1], [1, 255, 2]])
    prediction = torch.tensor([[0, 1, 1], [1, 0, 0]])
    found = confusion_matrix(prediction, target, 4)
    assert found.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    iou = iou_per_class(found)
    assert iou[:3] == pytest.approx([1 / 3, 2 / 3, 0]) and math.isnan(iou[3])
    assert f1_per_class(found)[:3] == pytest.approx([1 / 2, 4 / 5, 0])
    assert mean_iou(found) == pytest.approx(1 / 3)
    assert macro_f1(found) == pytest.approx(1.3 / 3)
    assert accuracy(found) == pytest.approx(3 / 5)


@given(st.integers(0, 10_000), st.integers(2, 6))
@settings(max_examples=25, deadline=None)
def test_scores_agree_with_torchmetrics(seed: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    target = torch.cat([torch.arange(classes), torch.randint(0, classes, (60,), generator=generator)])
    prediction = torch.randint(0, classes, (60 + classes,), generator=generator)
    found = confusion_matrix(prediction, target, classes)
    assert np.array_equal(found, multiclass_confusion_matrix(prediction, target, classes).numpy())
    assert mean_iou(found) == pytest.approx(
        float(multiclass_jaccard_index(prediction, target, classes)), abs=1e-6
    )
    assert macro_f1(found) == pytest.approx(float(multiclass_f1_score(prediction, target, classes)), abs=1e-6)


def test_a_stray_prediction_of_an_absent_class_is_no_class_more() -> None:
    found = np.array([[8, 1, 1], [0, 10, 0], [0, 0, 0]])
    assert mean_iou(found) == pytest.approx((8 / 10 + 10 / 11) / 2)
    assert macro_f1(found) == pytest.approx((16 / 18 + 20 / 21) / 2)


def test_values_that_are_no_class_are_refused() -> None:
    with pytest.raises(ValueError, match="not in 0"):
        confusion_matrix(torch.tensor([0, 3]), torch.tensor([0, 1]), 3)
    with pytest.raises(ValueError, match="differ in shape"):
        confusion_matrix(torch.tensor([0]), torch.tensor([0, 1]), 3)


def test_nothing_counted_is_nan_not_zero() -> None:
    empty = confusion_matrix(torch.zeros(3), torch.full((3,), 255), 2)
    assert math.isnan(mean_iou(empty)) and math.isnan(accuracy(empty)) and math.isnan(macro_f1(empty))


def test_mean_dice_is_per_image() -> None:
    # Image 1: class 1 has 2 hits of 2 true and 4 predicted pixels: 4 / 6. Image 2 has no class 1: left out.
    first = np.array([[6, 2], [0, 2]])
    second = np.array([[10, 0], [0, 0]])
    dice_background = (12 / 14 + 1) / 2
    assert mean_dice(np.stack([first, second])) == pytest.approx((dice_background + 4 / 6) / 2)


def test_average_precision_by_hand_and_with_ties() -> None:
    assert average_precision(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 0, 1, 0])) == pytest.approx(
        (1 + 2 / 3) / 2
    )
    # One score for all says nothing: precision is the share of positives, in whatever order they come.
    assert average_precision(np.ones(4), np.array([1, 0, 0, 0])) == pytest.approx(1 / 4)
    assert average_precision(np.ones(4), np.array([0, 0, 0, 1])) == pytest.approx(1 / 4)
    assert math.isnan(average_precision(np.ones(2), np.zeros(2)))


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=40))
@settings(max_examples=50, deadline=None)
def test_average_precision_agrees_with_torchmetrics(pairs: list[tuple[int, bool]]) -> None:
    scores = np.array([score / 8 for score, _ in pairs])
    labels = np.array([label for _, label in pairs])
    if labels.any():
        expected = binary_average_precision(torch.from_numpy(scores), torch.from_numpy(labels).long())
        assert average_precision(scores, labels) == pytest.approx(float(expected), abs=1e-5)


def test_mean_average_precision_leaves_unknown_out() -> None:
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.8, 0.5], [0.8, 0.3, 0.5]])
    labels = np.array([[1, 0, 0], [0, -1, 0], [-1, 1, 0]])
    # Label 0: 1.0 of the two known; label 1: 1.0; label 2 never occurs.
    assert mean_average_precision(scores, labels) == pytest.approx(1.0)


def test_mean_std() -> None:
    assert mean_std([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_std([5.0]) == (5.0, 0.0)
    assert mean_std([1.0, float("nan"), 3.0]) == (2.0, pytest.approx(math.sqrt(2)))
    assert all(math.isnan(value) for value in mean_std([]))


def test_verdicts() -> None:
    better = paired_bootstrap([0.5, 0.6, 0.7], [0.4, 0.5, 0.55])
    assert better.verdict == "better" and better.mean == pytest.approx(0.35 / 3) and better.n == 3
    assert 0.1 - 1e-9 <= better.low <= better.mean <= better.high <= 0.15 + 1e-9
    assert paired_bootstrap([0.4, 0.5, 0.55], [0.5, 0.6, 0.7]).verdict == "worse"
    assert paired_bootstrap([0.4, 0.5, 0.55], [0.5, 0.6, 0.7], higher_is_better=False).verdict == "better"
    assert paired_bootstrap([0.4, 0.7, 0.5], [0.5, 0.6, 0.5]).verdict == "no evidence"
    assert paired_bootstrap([0.9, 0.9], [0.1, 0.1]).verdict == "no evidence"
    assert paired_bootstrap([0.5, 0.6], [0.5, 0.6]).verdict == "no evidence"
    with pytest.raises(ConfigError, match="can't be paired"):
        paired_bootstrap([0.1], [0.1, 0.2])


def test_bootstrap_is_seeded_and_covers_the_normal_interval() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0.1, 1.0, 400), rng.normal(0.0, 1.0, 400)
    found = paired_bootstrap(ours, theirs, seed=3)
    assert found == paired_bootstrap(ours, theirs, seed=3)
    half = 1.96 * (ours - theirs).std(ddof=1) / 20
    assert found.high - found.low == pytest.approx(2 * half, rel=0.05)
