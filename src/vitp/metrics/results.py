"""Predictions of a model, targets of an image, and scores.

Shapes: N objects, H × W pixels, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from vitp.core.tensors import TensorFields


@dataclass(frozen=True)
class Target(TensorFields):
    """What is known of one image. What a task doesn't need, or nobody labelled, is None.

    Attributes:
        boxes_N4: float32 x1, y1, x2, y2 in pixels of the (augmented) input, right and bottom exclusive.
        quads_N8: float32 four corners x1, y1, …, x4, y4, clockwise in the image.
        labels_N: int64, 0 … C − 1; there is no background class.
        difficult_N: bool; such objects are left out of training and ignored by the metrics.
        masks_NHW: uint8 instance masks, 0 or 1.
        semantic_HW: uint8 class of each pixel, 255 = ignore; of pairs 1 where something changed.
        classes_C: float32 multi-hot (multi-label, −1 where unknown) or one-hot (single label).
        ignored_M4: float32 boxes of places that are neither objects nor background.
        ignored_M8: Their corners, where objects have quads.
        ignored_MHW: Their uint8 masks, where objects have masks.
    """

    boxes_N4: Tensor | None = None
    quads_N8: Tensor | None = None
    labels_N: Tensor | None = None
    difficult_N: Tensor | None = None
    masks_NHW: Tensor | None = None
    semantic_HW: Tensor | None = None
    classes_C: Tensor | None = None
    ignored_M4: Tensor | None = None
    ignored_M8: Tensor | None = None
    ignored_MHW: Tensor | None = None


def difficult_of(target: Target) -> np.ndarray:
    """Return (N,) bool: which of a target's objects are difficult."""
    assert target.labels_N is not None
    if target.difficult_N is None:
        return np.zeros(len(target.labels_N), bool)
    return np.asarray(target.difficult_N.cpu().numpy())


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image: CPU tensors in pixels of the image that was given; unused fields are None.

    Attributes:
        boxes_N4: float32 x1, y1, x2, y2.
        quads_N8: float32 corners, clockwise.
        scores_N: float32 on 0..1, falling.
        labels_N: int64, 0 … C − 1.
        masks_NHW: bool.
        semantic_HW: uint8; of pairs 1 where something changed.
        probabilities_C: float32 on 0..1.
    """

    boxes_N4: Tensor | None = None
    quads_N8: Tensor | None = None
    scores_N: Tensor | None = None
    labels_N: Tensor | None = None
    masks_NHW: Tensor | None = None
    semantic_HW: Tensor | None = None
    probabilities_C: Tensor | None = None


@dataclass(frozen=True)
class Scores:
    """Numbers of one evaluation.

    Attributes:
        headline: Name of the value that models are chosen by; larger is better.
        values: Name → value on 0..1 (unless the name says otherwise); NaN where nothing could be counted.
        per_class: Class → name → value.
        images: Number of images.
    """

    headline: str
    values: Mapping[str, float]
    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    images: int = 0

    def __post_init__(self) -> None:
        if self.headline not in self.values:
            raise ValueError(f"the headline {self.headline!r} is none of {sorted(self.values)}")

    @property
    def score(self) -> float:
        """The headline's value."""
        return self.values[self.headline]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; NaN, which JSON lacks, becomes None."""
        return {
            "headline": self.headline,
            "values": {name: _finite(value) for name, value in self.values.items()},
            "per_class": {
                name: {key: _finite(value) for key, value in row.items()}
                for name, row in self.per_class.items()
            },
            "images": self.images,
        }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
