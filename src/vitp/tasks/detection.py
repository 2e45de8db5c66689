"""Object detection: a pyramid over the backbone, a feature pyramid network, Faster or Cascade R-CNN.

Shapes: B images, N objects of an image, H × W pixels, h × w cells, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from vitp.core.config import SettingsModel
from vitp.core.errors import ConfigError
from vitp.core.tensors import present
from vitp.metrics.detection import detection_scores, found_objects, true_objects
from vitp.metrics.panoptic import PanopticCounts, object_maps
from vitp.metrics.results import Prediction, Scores, Target, difficult_of
from vitp.models.heads.cascade import Found
from vitp.models.heads.fpn import DetectionNeck
from vitp.models.heads.rcnn import RCNN, DetectorSettings
from vitp.models.heads.rpn import ImageTruth
from vitp.models.heads.sampling import true_rows
from vitp.models.pyramid import Pyramid
from vitp.records.labels import LabelledSet
from vitp.tasks.base import LabelKind, TaskBatch, TaskModel, TestSettings
from vitp.tasks.data import label_reader
from vitp.tasks.predict import predictions_of

FOUND = ("boxes_N4", "scores_N", "labels_N")
SHORTEST_SIDE = 0.5
"""Objects with a shorter side, in pixels, teach nothing: what is left of them at an edge is noise."""


class DetectionModel(TaskModel):
    """A two-stage detector.

    Losses: `objectness`, `proposal_box`, `class` and `box`; a cascade has `class_1`, `box_1`, … and weights each
    stage's. All are normalised per image, so their counts are numbers of images.

    Args:
        pyramid: Backbone with maps at four strides.
        classes: Names of the object classes.
        settings: Head; None: Cascade R-CNN.
    """

    name: ClassVar[str] = "detection"
    kind: ClassVar[LabelKind] = "objects"
    head_settings: ClassVar[type[SettingsModel]] = DetectorSettings
    needs: ClassVar[Literal["backbone", "maps", "levels"]] = "levels"
    with_masks: ClassVar[bool] = False

    def __init__(
        self, pyramid: Pyramid, classes: Sequence[str], settings: DetectorSettings | None = None
    ) -> None:
        super().__init__(classes)
        settings = settings or DetectorSettings()
        self.pyramid = pyramid
        channels = (pyramid.channels,) * len(pyramid.strides)
        self.neck = DetectionNeck(channels, pyramid.strides, settings.width)
        self.head = RCNN(
            self.neck.strides, settings.width, len(self.classes), settings, masks=self.with_masks
        )
        self.loss_weights: Mapping[str, float] = self.head.boxes.loss_weights()

    def levels(self, images_BCHW: Tensor) -> list[Tensor]:
        """Return the levels' maps of uint8 images, finest first."""
        levels: list[Tensor] = self.neck(self.pyramid(self.backbone.normalize(images_BCHW)))
        return levels

    def forward(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Return name → summed loss. See `TaskModel.forward`."""
        truths = image_truths(batch.targets, batch.sizes, with_masks=self.with_masks)
        losses: dict[str, Tensor] = self.head(self.levels(batch.images_BCHW), truths)
        return losses

    def loss_counts(self, batch: TaskBatch) -> dict[str, float]:
        """Return name → number of images; of `mask` those with an object, as the others have no such loss."""
        counts = dict.fromkeys(self.head.loss_names(), float(len(batch)))
        if self.with_masks:
            counts["mask"] = float(
                sum(bool(learnable(target, with_masks=True).any()) for target in batch.targets)
            )
        return counts

    def predict_batch(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> list[Prediction]:
        """Return boxes, scores and labels of each image; see `TaskModel.predict_batch`."""
        size = (int(images_BCHW.shape[-2]), int(images_BCHW.shape[-1]))
        found, masks = self.head.detect(self.levels(images_BCHW.to(self.device)), [size] * len(images_BCHW))
        tables = zip(*(on_host([getattr(one, name) for one in found]) for name in FOUND), strict=True)
        return [
            self._prediction(Found(*parts), None if masks is None else masks[at], size)
            for at, parts in enumerate(tables)
        ]

    def evaluate(self, labelled: LabelledSet, settings: TestSettings) -> Scores:
        """Return COCO's average precisions; see `evaluate_objects`."""
        return evaluate_objects(self, labelled, settings, masks=self.with_masks)

    def _prediction(self, found: Found, masks_NMM: Tensor | None, size: tuple[int, int]) -> Prediction:
        return Prediction(
            # 0 is the background to the head.
            boxes_N4=found.boxes_N4.float(),
            scores_N=found.scores_N.float(),
            labels_N=found.labels_N - 1,
        )


def on_host(parts: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return rows of several images on the host, by one copy."""
    rows: Sequence[Tensor] = torch.cat(list(parts)).cpu().split([len(part) for part in parts])
    return rows


def evaluate_objects(
    model: TaskModel, labelled: LabelledSet, settings: TestSettings, *, masks: bool
) -> Scores:
    """Return COCO's average precisions of a model that finds boxes; see `TaskModel.evaluate`.

    Args:
        model: The model.
        labelled: Set with labels of its kind.
        settings: How it is applied.
        masks: Whether masks are scored, too.
    """
    reader = label_reader(model, labelled, model.kind, settings)
    truths, found = [], []
    quality = PanopticCounts(len(model.classes)) if masks and "panoptic" in settings.measures else None
    for _, sample, prediction in predictions_of(model, reader, settings):
        target = reader.target(sample)
        truths.append(true_objects(target))
        found.append(found_objects(prediction))
        if quality is not None:
            quality.add(*_panoptic_maps(prediction, target, len(model.classes), settings.score_threshold))
    boundary = "boundary" in settings.measures
    scores = detection_scores(truths, found, model.classes, masks=masks, boundary=boundary)
    return scores if quality is None else quality.added_to(scores)


def _panoptic_maps(
    prediction: Prediction, target: Target, classes: int, least_score: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return what was found and what is there as panoptic maps; what is difficult or ignored is unknown."""
    masks_NHW, difficult_N = present(target.masks_NHW).numpy() > 0, difficult_of(target)
    unknown_HW = masks_NHW[difficult_N].any(0)
    if target.ignored_MHW is not None:
        unknown_HW = unknown_HW | (target.ignored_MHW.numpy() > 0).any(0)
    return object_maps(
        present(prediction.masks_NHW).numpy(),
        present(prediction.scores_N).numpy(),
        present(prediction.labels_N).numpy(),
        masks_NHW[~difficult_N],
        present(target.labels_N).numpy()[~difficult_N],
        unknown_HW,
        classes,
        least_score,
    )


def target_boxes(target: Target) -> Tensor:
    """Return (N, 4) boxes: those given, or the hulls of the quads.

    Raises:
        ConfigError: The target has neither, or no labels.
    """
    if target.labels_N is None or (target.boxes_N4 is None and target.quads_N8 is None):
        raise ConfigError(
            "an image has no boxes", where="detection", fix="train on a set whose objects are labelled"
        )
    if target.boxes_N4 is not None:
        return target.boxes_N4.float()
    assert target.quads_N8 is not None
    corners_N42 = target.quads_N8.float().view(-1, 4, 2)
    return torch.cat([corners_N42.amin(1), corners_N42.amax(1)], dim=1)


def learnable(target: Target, *, with_masks: bool) -> Tensor:
    """Return (N,) bool: the objects that are learned from; the others are too small, difficult or unseen."""
    boxes_N4 = target_boxes(target)
    learn_N = ((boxes_N4[:, 2:] - boxes_N4[:, :2]) >= SHORTEST_SIDE).all(1)
    if target.difficult_N is not None:
        learn_N &= ~target.difficult_N
    if with_masks:
        if target.masks_NHW is None:
            raise ConfigError(
                "an image has no instance masks",
                where="instance",
                fix="train on a set with outlines or instance masks, or choose detection",
            )
        learn_N &= target.masks_NHW.flatten(1).any(1).bool()
    return learn_N


def image_truths(
    targets: Sequence[Target], sizes: Sequence[tuple[int, int]], *, with_masks: bool
) -> list[ImageTruth]:
    """Return what the head learns from each image; the device is asked once for all.

    Args:
        targets: Boxes or quads, labels and, if asked for, masks.
        sizes: Height and width without padding.
        with_masks: Whether masks are learned.

    Raises:
        ConfigError: Boxes, labels or masks are missing.
    """
    boxes = [target_boxes(target) for target in targets]
    learn = [learnable(target, with_masks=with_masks) for target in targets]
    rows = true_rows([*learn, *(~learn_N for learn_N in learn)])
    parts = zip(targets, sizes, boxes, rows[: len(targets)], rows[len(targets) :], strict=True)
    return [
        ImageTruth(
            boxes_N4=boxes_N4[learned],
            labels_N=present(target.labels_N)[learned] + 1,
            # An object that isn't learned is no background, either.
            ignored_M4=torch.cat(
                [boxes_N4[others], *([] if target.ignored_M4 is None else [target.ignored_M4])]
            ),
            size=size,
            masks_NHW=target.masks_NHW[learned] if with_masks and target.masks_NHW is not None else None,
        )
        for target, size, boxes_N4, learned, others in parts
    ]
