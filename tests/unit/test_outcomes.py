"""The bootstrap over test images: scores of draws against scores of repeated images, intervals against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitp.core.errors import ConfigError
from vitp.evaluation.outcomes import LEAST_GROUPS, Counted, Outcomes, Ranked, over_images
from vitp.metrics.classification import accuracy, mean_average_precision, mean_iou

KEY = ("probe", "score")


@given(st.integers(0, 10_000))
def test_a_draw_scores_as_its_images_laid_side_by_side(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, images, labels = 5, 30, 3
    weights = rng.integers(0, 4, (2, groups))
    weights[:, 0] += 1
    counts = rng.integers(0, 9, (groups, 4, 4))
    expected = [mean_iou(np.repeat(counts, row, axis=0).sum(0)) for row in weights]
    np.testing.assert_allclose(Counted(counts, mean_iou).values(weights), expected)
    score, label = rng.normal(size=(images, labels)), rng.integers(-1, 2, (images, labels))
    group = np.concatenate([np.arange(groups), rng.integers(0, groups, images - groups)])
    expected = []
    for row in weights:
        rows = [n for n in range(images) for _ in range(row[group[n]])]
        expected.append(mean_average_precision(score[rows], label[rows]))
    np.testing.assert_allclose(Ranked(score, label, group).values(weights), expected)
    assert Ranked(score, label, group).value() == mean_average_precision(score, label)


def right_or_wrong(right_G: np.ndarray) -> Outcomes:
    """Outcomes of one image a group."""
    counts = np.zeros((len(right_G), 2, 2), np.int64)
    counts[:, 0, 0], counts[:, 0, 1] = right_G, ~right_G
    return {KEY: Counted(counts, accuracy)}


def test_the_same_backbone_does_not_differ() -> None:
    one = right_or_wrong(np.arange(40) % 3 > 0)
    found = over_images([[one, one]], [[one, one]])[KEY]
    assert (found.mean, found.low, found.high, found.n) == (0, 0, 0, 40)
    assert found.verdict == "no evidence"


def test_few_images_decide_nothing() -> None:
    right, wrong = np.ones(LEAST_GROUPS, bool), np.zeros(LEAST_GROUPS, bool)
    assert over_images([[right_or_wrong(right)]], [[right_or_wrong(wrong)]])[KEY].verdict == "better"
    found = over_images([[right_or_wrong(right[1:])]], [[right_or_wrong(wrong[1:])]])[KEY]
    assert found.mean == 1 and found.verdict == "no evidence"


def test_intervals_hold_the_true_difference() -> None:
    rng, truth, held = np.random.default_rng(0), 0.1, 0
    for trial in range(200):
        hard = rng.random(80)  # an image is hard for both: why they are compared on the same draws
        ours, theirs = hard > 0.3, hard > 0.4
        found = over_images([[right_or_wrong(ours)]], [[right_or_wrong(theirs)]], draws=300, seed=trial)[KEY]
        held += found.low <= truth <= found.high
    assert 0.9 <= held / 200 <= 0.99


def test_pretraining_seeds_are_drawn_too() -> None:
    images = np.zeros(30, bool)
    seeds = [[right_or_wrong(images | good)] for good in (True, False, True)]
    found = over_images(seeds, [[right_or_wrong(images)]])[KEY]
    assert found.mean == pytest.approx(2 / 3) and found.low == 0 and found.high == 1


def test_different_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="scored on different images"):
        over_images([[right_or_wrong(np.ones(12, bool))]], [[right_or_wrong(np.ones(13, bool))]])
    one = right_or_wrong(np.ones(12, bool))
    with pytest.raises(ConfigError, match="can't be paired"):
        over_images([[one, one]], [[one]])
