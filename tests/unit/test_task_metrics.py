"""Scores of segmentation, change and classification against brute force and torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional import classification as reference

from vitp.metrics.classification import confusion_matrix
from vitp.metrics.results import Scores
from vitp.metrics.segmentation import (
    change_scores,
    hd95,
    mean_accuracy,
    precision_per_class,
    recall_per_class,
    segmentation_scores,
    surface_distance,
)
from vitp.records.labels import IGNORE
from vitp.tasks.classification import multi_label_scores, single_label_scores


def test_a_confusion_matrix_made_by_hand() -> None:
    #                    predicted: a   b   c
    confusion_CC = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    scores = segmentation_scores(confusion_CC[None], ["a", "b", "c"])
    assert scores.headline == "miou"
    assert scores.values["miou"] == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert scores.values["mean_accuracy"] == pytest.approx((6 / 8 + 3 / 4) / 2)
    assert scores.values["pixel_accuracy"] == pytest.approx(9 / 12)
    assert scores.values["macro_f1"] == pytest.approx((12 / 15 + 6 / 9) / 2)
    assert scores.values["mean_dice"] == pytest.approx((12 / 15 + 6 / 9) / 2)
    assert scores.per_class["a"] == pytest.approx(
        {"iou": 6 / 9, "f1": 12 / 15, "precision": 6 / 7, "recall": 6 / 8}
    )
    assert math.isnan(scores.per_class["c"]["iou"])
    assert scores.to_json()["per_class"]["c"]["iou"] is None


def test_dice_is_a_mean_over_images_and_iou_over_pixels() -> None:
    one, two = np.array([[1, 0], [0, 1]]), np.array([[0, 98], [0, 2]])
    scores = segmentation_scores(np.stack([one, two]), ["a", "b"])
    assert scores.values["mean_dice"] == pytest.approx(((1 + 0) / 2 + (1 + 4 / 102) / 2) / 2)
    assert scores.values["miou"] == pytest.approx((1 / 99 + 3 / 101) / 2)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_segmentation_agrees_with_torchmetrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = torch.from_numpy(rng.integers(0, 3, 200))
    guess = torch.where(
        torch.from_numpy(rng.random(200) < 0.5), truth, torch.from_numpy(rng.integers(0, 3, 200))
    )
    truth[:10] = IGNORE
    confusion_CC = confusion_matrix(guess, truth, 3)
    options = {"num_classes": 3, "ignore_index": IGNORE, "average": "none"}
    expected_iou = reference.multiclass_jaccard_index(guess, truth, **options)
    scores = segmentation_scores(confusion_CC[None], ["a", "b", "c"])
    assert [scores.per_class[name]["iou"] for name in "abc"] == pytest.approx(expected_iou.tolist(), abs=1e-6)
    assert recall_per_class(confusion_CC) == pytest.approx(
        reference.multiclass_recall(guess, truth, **options).numpy(), abs=1e-6
    )
    assert precision_per_class(confusion_CC) == pytest.approx(
        reference.multiclass_precision(guess, truth, **options).numpy(), abs=1e-6
    )
    assert mean_accuracy(confusion_CC) == pytest.approx(float(recall_per_class(confusion_CC).mean()))


def test_change_scores_look_at_the_change_class() -> None:
    #                      predicted: unchanged, changed
    scores = change_scores(np.array([[80, 5], [3, 12]]), images=4)
    precision, recall = 12 / 17, 12 / 15
    assert scores.headline == "f1" and scores.images == 4
    assert scores.values == pytest.approx(
        {
            "f1": 2 * precision * recall / (precision + recall),
            "iou": 12 / 20,
            "precision": precision,
            "recall": recall,
            "pixel_accuracy": 92 / 100,
        }
    )
    assert scores.per_class["unchanged"]["iou"] == pytest.approx(80 / 88)
    nothing_found = change_scores(np.array([[10, 0], [5, 0]]), images=1)
    assert nothing_found.score == 0 and math.isnan(nothing_found.values["precision"])
    assert math.isnan(change_scores(np.array([[10, 0], [0, 0]]), images=1).score)


def brute_hd95(guess: np.ndarray, truth: np.ndarray, spacing: tuple[float, float]) -> float:
    """All pairs of border pixels, border pixels by looking at four neighbours."""

    def border(mask: np.ndarray) -> np.ndarray:
        points = []
        for row, column in zip(*np.nonzero(mask), strict=True):
            around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
            inside = [
                0 <= r < mask.shape[0] and 0 <= c < mask.shape[1] and bool(mask[r, c]) for r, c in around
            ]
            if not all(inside):
                points.append((row * spacing[0], column * spacing[1]))
        return np.array(points)

    a, b = border(guess), border(truth)
    distances = np.linalg.norm(a[:, None] - b[None], axis=2)
    return max(np.percentile(distances.min(1), 95), np.percentile(distances.min(0), 95))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_hd95_agrees_with_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    guess, truth = (rng.random((9, 12)) < rng.uniform(0.1, 0.9) for _ in range(2))
    guess[4, 5] = truth[3, 3] = True
    spacing = (1.0, 1.0) if seed % 2 else (2.5, 0.5)
    assert hd95(guess, truth, spacing) == pytest.approx(brute_hd95(guess, truth, spacing))


def test_hd95_of_empty_and_equal_masks() -> None:
    empty, full = np.zeros((3, 4), bool), np.ones((3, 4), bool)
    assert math.isnan(hd95(empty, empty))
    assert hd95(full, full) == 0
    assert hd95(empty, full) == hd95(full, empty) == pytest.approx(5.0)
    assert hd95(empty, full, (2.0, 2.0)) == pytest.approx(10.0)
    volume = np.zeros((5, 5, 5), bool)
    volume[2, 2, 2] = True
    assert hd95(volume, np.roll(volume, 2, axis=0)) == pytest.approx(2.0)


def test_surface_distances_leave_ignored_pixels_out() -> None:
    truth = np.zeros((6, 6), np.uint8)
    truth[2:4, 2:4] = 1
    guess = truth.copy()
    guess[0] = 1
    away = surface_distance(guess, truth, 3)
    assert away[1] > 1 and math.isnan(away[2])
    truth[0] = IGNORE
    assert surface_distance(guess, truth, 3)[1] == 0
    scores = segmentation_scores(
        confusion_matrix(torch.from_numpy(guess), torch.from_numpy(truth), 3)[None],
        ["a", "b", "c"],
        hd95_NC=surface_distance(guess, truth, 3)[None],
    )
    assert scores.values["hd95_pixels"] == 0 and math.isnan(scores.per_class["c"]["hd95_pixels"])


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_classification_agrees_with_torchmetrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probability_NK = torch.from_numpy(rng.random((40, 7)))
    truth_N = torch.from_numpy(rng.integers(0, 7, 40))
    truth_N[:7] = torch.arange(7)
    scores = single_label_scores(probability_NK, truth_N, [str(k) for k in range(7)])
    options = {"num_classes": 7}
    assert scores.values["accuracy"] == pytest.approx(
        float(reference.multiclass_accuracy(probability_NK, truth_N, average="micro", **options))
    )
    assert scores.values["macro_f1"] == pytest.approx(
        float(reference.multiclass_f1_score(probability_NK, truth_N, average="macro", **options)), abs=1e-6
    )
    assert scores.values["accuracy_top5"] == pytest.approx(
        float(reference.multiclass_accuracy(probability_NK, truth_N, average="micro", top_k=5, **options))
    )
    labels_NK = rng.random((40, 7)) < 0.3
    labels_NK[0] = True
    many = multi_label_scores(probability_NK.numpy(), labels_NK.astype(float), [str(k) for k in range(7)])
    known = torch.from_numpy(labels_NK).long()
    expected = reference.multilabel_average_precision(probability_NK, known, num_labels=7, average="macro")
    assert many.values["map"] == pytest.approx(float(expected), abs=1e-6)
    f1 = reference.multilabel_f1_score(probability_NK, known, num_labels=7, average="macro")
    assert many.values["macro_f1"] == pytest.approx(float(f1), abs=1e-6)


def test_the_headline_must_be_there() -> None:
    with pytest.raises(ValueError, match="headline"):
        Scores("miou", {"f1": 1.0})
