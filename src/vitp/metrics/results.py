"""Predictions of a model, targets of an image, and scores.

Shapes: N objects, H × W pixels, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from vitp.core.files import or_null
from vitp.core.tensors import TensorFields


@dataclass(frozen=True)
class Target(TensorFields):
    """What is known of one image. What a task doesn't need, or nobody labelled, is None.

    Attributes:
        boxes_N4: float32 x1, y1, x2, y2 in pixels of the (augmented) input, right and bottom exclusive.
        quads_N8: float32 four corners x1, y1, …, x4, y4, clockwise in the image.
        labels_N: int64, 0 … C − 1; there is no background class.
        difficult_N: bool; such objects are left out of training and ignored by the metrics.
        areas_N: float32 square pixels of the objects' outlines, of their boxes where a label has none.
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
    areas_N: Tensor | None = None
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
        certainty_HW: uint8, 255 × the probability of the class in `semantic_HW`, where it is wanted.
        probabilities_C: float32 on 0..1.
        things_N: bool; of panoptic segments: which are single objects, and not all that there is of a class.
        doubt: One number on 0..1: how unsure the model is of the image as a whole, where that was asked for.
    """

    boxes_N4: Tensor | None = None
    quads_N8: Tensor | None = None
    scores_N: Tensor | None = None
    labels_N: Tensor | None = None
    masks_NHW: Tensor | None = None
    semantic_HW: Tensor | None = None
    certainty_HW: Tensor | None = None
    probabilities_C: Tensor | None = None
    doubt: Tensor | None = None
    things_N: Tensor | None = None


@dataclass(frozen=True)
class CaseScore:
    """How one class was segmented in one case: a volume, or an image with a spacing.

    Attributes:
        case: Address of the volume or image.
        group: Group of the patient; the case itself where the set knows none.
        category: The class.
        slices: How many slices of the case were scored; 0: it is no volume.
        size: Voxels, or pixels, in the labels.
        found: Voxels, or pixels, in the prediction.
        voxel: Size of one, in `unit`.
        unit: `ml`, `mm2`, or `px` where the spacing isn't known.
        dice: NaN where neither labels nor prediction hold the class.
        surface: Surface Dice within the tolerance; NaN where `dice` is, or where it wasn't computed.
        hd95: In mm, or in px where the spacing isn't known; NaN where `surface` is.
    """

    case: str
    group: str
    category: str
    slices: int
    size: int
    found: int
    voxel: float
    unit: str
    dice: float
    surface: float
    hd95: float

    @property
    def error(self) -> float:
        """What was found less what is there, in `unit`."""
        return (self.found - self.size) * self.voxel


@dataclass(frozen=True)
class Scores:
    """Numbers of one evaluation.

    Attributes:
        headline: Name of the value that models are chosen by; larger is better.
        values: Name → value on 0..1 (unless the name says otherwise); NaN where nothing could be counted.
        per_class: Class → name → value.
        images: Number of images.
        value_intervals: Name → 95 % interval of a value, where one is known.
        class_intervals: Class → name → 95 % interval.
        cases: Cases of medical images: each class of each case.
    """

    headline: str
    values: Mapping[str, float]
    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    images: int = 0
    value_intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    class_intervals: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    cases: tuple[CaseScore, ...] = ()

    def __post_init__(self) -> None:
        if self.headline not in self.values:
            raise ValueError(f"the headline {self.headline!r} is none of {sorted(self.values)}")

    @property
    def score(self) -> float:
        """The headline's value."""
        return self.values[self.headline]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without the cases; NaN, which JSON lacks, becomes None."""
        intervals = {
            "intervals": _finite_ends(self.value_intervals),
            "per_class_intervals": {name: _finite_ends(row) for name, row in self.class_intervals.items()},
        }
        return {
            "headline": self.headline,
            "values": {name: or_null(value) for name, value in self.values.items()},
            "per_class": {
                name: {key: or_null(value) for key, value in row.items()}
                for name, row in self.per_class.items()
            },
            "images": self.images,
            **{name: value for name, value in intervals.items() if value},
        }


def with_columns(scores: Scores, values: Mapping[str, float], columns: Mapping[str, np.ndarray]) -> Scores:
    """Return scores with further values, and further columns in the order of their classes."""
    rows = {
        category: {**row, **{name: float(column[at]) for name, column in columns.items()}}
        for at, (category, row) in enumerate(scores.per_class.items())
    }
    return replace(scores, values={**scores.values, **values}, per_class=rows)


def _finite_ends(intervals: Mapping[str, tuple[float, float]]) -> dict[str, list[float | None]]:
    return {name: [or_null(low), or_null(high)] for name, (low, high) in intervals.items()}
