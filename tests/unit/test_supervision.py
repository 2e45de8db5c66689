"""Predictions as `supervision.Detections`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import supervision
import torch

from vitp import to_supervision
from vitp.core.errors import ConfigError
from vitp.metrics.results import Prediction

BOXES = Prediction(
    boxes_N4=torch.tensor([[1.0, 2.0, 5.0, 6.0], [0.0, 0.0, 3.0, 3.0]]),
    scores_N=torch.tensor([0.9, 0.2]),
    labels_N=torch.tensor([1, 0]),
)


def test_boxes_and_masks_are_detections() -> None:
    found = to_supervision(BOXES, ("sea", "ship"))
    assert isinstance(found, supervision.Detections)
    assert found.xyxy.tolist() == [[1, 2, 5, 6], [0, 0, 3, 3]]
    assert found.confidence.tolist() == pytest.approx([0.9, 0.2])
    assert found.class_id.tolist() == [1, 0]
    assert found["class_name"].tolist() == ["ship", "sea"]
    assert found.mask is None
    assert len(to_supervision(BOXES, ("sea", "ship"), threshold=0.5)) == 1
    masks = torch.zeros(2, 8, 9, dtype=torch.bool)
    masks[0, 2:6, 1:5] = True
    with_masks = to_supervision(Prediction(**{**vars(BOXES), "masks_NHW": masks}), ("sea", "ship"))
    assert np.array_equal(with_masks.mask, masks.numpy())
    assert len(with_masks[with_masks.class_id == 1]) == 1


def test_oriented_boxes_keep_their_corners() -> None:
    quads = torch.tensor([[4.0, 0, 8, 4, 4, 8, 0, 4]])
    scored = {"scores_N": torch.tensor([0.5]), "labels_N": torch.tensor([0])}
    found = to_supervision(Prediction(quads_N8=quads, **scored), ("ship",))
    assert found.xyxy.tolist() == [[0, 0, 8, 8]]
    assert found.data["xyxyxyxy"].tolist() == [[[4, 0], [8, 4], [4, 8], [0, 4]]]
    image = np.zeros((10, 10, 3), np.uint8)
    assert supervision.OrientedBoxAnnotator().annotate(image, found).any()


@pytest.mark.parametrize(
    "extra", [{}, {"masks_NHW": torch.zeros(0, 4, 4, dtype=torch.bool)}, {"quads": True}]
)
def test_nothing_found_is_an_empty_detection(extra: dict[str, Any]) -> None:
    quads = {"quads_N8": torch.zeros(0, 8)} if extra.pop("quads", False) else {}
    none = Prediction(
        boxes_N4=torch.zeros(0, 4), scores_N=torch.zeros(0), labels_N=torch.zeros(0).long(), **extra, **quads
    )
    found = to_supervision(none, ("ship",))
    assert (len(found), found.xyxy.shape) == (0, (0, 4))
    image = np.zeros((4, 4, 3), np.uint8)
    assert not supervision.BoxAnnotator().annotate(image, found).any()


def test_class_maps_are_one_row_a_class() -> None:
    semantic = torch.tensor([[0, 0, 255], [2, 2, 255]], dtype=torch.uint8)
    found = to_supervision(Prediction(semantic_HW=semantic), ("sea", "land", "ice"))
    assert found.class_id.tolist() == [0, 2]
    assert found["class_name"].tolist() == ["sea", "ice"]
    assert found.xyxy.tolist() == [[0, 0, 2, 1], [0, 1, 2, 2]]
    assert found.mask.sum((1, 2)).tolist() == [2, 2]
    changed = to_supervision(Prediction(semantic_HW=(semantic == 2).byte()), ("unchanged", "changed"))
    assert changed["class_name"].tolist() == ["changed"]
    nothing = to_supervision(Prediction(semantic_HW=semantic * 0), ("unchanged", "changed"))
    assert (len(nothing), nothing.mask.shape) == (0, (0, 2, 3))


def test_without_the_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="holds no objects and no class map"):
        to_supervision(Prediction(probabilities_C=torch.ones(2)), ("a", "b"))
    monkeypatch.setitem(__import__("sys").modules, "supervision", None)
    with pytest.raises(ConfigError, match=r"vitp\[supervision\]"):
        to_supervision(BOXES, ("sea", "ship"))
