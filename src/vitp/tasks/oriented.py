"""Oriented detection: a pyramid over the backbone, a feature pyramid network, Oriented R-CNN.

Shapes: B images, N objects of an image, H × W pixels, C classes; 5: a rotated box (see
`vitp.models.rotated.boxes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from vitp.core.config import SettingsModel
from vitp.core.errors import ConfigError
from vitp.core.tensors import present
from vitp.metrics.oriented import found_oriented, oriented_scores, true_oriented
from vitp.metrics.results import Prediction, Scores, Target
from vitp.models.heads.fpn import DetectionNeck
from vitp.models.heads.oriented_roi import OrientedBoxHead, OrientedBoxSettings, OrientedFound
from vitp.models.heads.oriented_rpn import OrientedProposalNetwork, OrientedProposalSettings
from vitp.models.heads.oriented_targets import OrientedTruth
from vitp.models.heads.sampling import true_rows
from vitp.models.pyramid import Pyramid, pad_to_multiple
from vitp.models.rotated.boxes import boxes_of_hulls, boxes_of_quads, hulls_of, quads_of
from vitp.records.labels import LabelledSet
from vitp.tasks.base import LabelKind, TaskBatch, TaskModel, TestSettings
from vitp.tasks.data import label_reader
from vitp.tasks.detection import SHORTEST_SIDE, on_host
from vitp.tasks.predict import predictions_of

LOSSES = ("objectness", "proposal_box", "class", "box")


class OrientedRCNNSettings(SettingsModel):
    """Oriented R-CNN; the defaults are the paper's, for images of about 1000 px."""

    width: int = Field(256, gt=0, le=65_536)
    """Channels of the pyramid's levels."""
    proposals: OrientedProposalSettings = Field(default_factory=OrientedProposalSettings)
    """Anchors and region proposals."""
    box: OrientedBoxSettings = Field(default_factory=OrientedBoxSettings)
    """Second stage: boxes of the proposals."""


class OrientedRCNN(TaskModel):
    """Oriented R-CNN (Xie et al., ICCV 2021), angles on [-π/2, π/2) with the long edge first ("le90").

    Losses: `objectness`, `proposal_box`, `class`, `box`, normalised per image: their counts are numbers of images.

    Args:
        pyramid: Backbone with maps at four strides.
        classes: Names of the object classes.
        settings: Head; None: the paper's.
    """

    name: ClassVar[str] = "oriented"
    kind: ClassVar[LabelKind] = "oriented"
    head_settings: ClassVar[type[SettingsModel]] = OrientedRCNNSettings
    needs: ClassVar[Literal["backbone", "maps", "levels"]] = "levels"

    def __init__(
        self, pyramid: Pyramid, classes: Sequence[str], settings: OrientedRCNNSettings | None = None
    ) -> None:
        super().__init__(classes)
        settings = settings or OrientedRCNNSettings()
        self.pyramid = pyramid
        self.neck = DetectionNeck((pyramid.channels,) * len(pyramid.strides), pyramid.strides, settings.width)
        self.proposals = OrientedProposalNetwork(self.neck.strides, settings.width, settings.proposals)
        self.boxes = OrientedBoxHead(self.neck.strides[:-1], settings.width, len(self.classes), settings.box)

    def levels(self, images_BCHW: Tensor) -> list[Tensor]:
        """Return the levels' maps of uint8 images, finest first."""
        padded_BCHW = pad_to_multiple(images_BCHW, self.pyramid.strides[-1])
        levels: list[Tensor] = self.neck(self.pyramid(self.backbone.normalize(padded_BCHW)))
        return levels

    def forward(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Return name → summed loss. See `TaskModel.forward`."""
        sizes = batch.sizes
        truths = oriented_truths(batch.targets, sizes)
        maps = self.levels(batch.images_BCHW)
        proposals, losses = self.proposals(maps, sizes, truths)
        return {**losses, **self.boxes(maps, proposals, truths)}

    def loss_counts(self, batch: TaskBatch) -> dict[str, float]:
        """Return name → number of images."""
        return dict.fromkeys(LOSSES, float(len(batch)))

    def predict_batch(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> list[Prediction]:
        """Return quads, the boxes around them, scores and labels of each image; see `TaskModel.predict_batch`."""
        size = (int(images_BCHW.shape[-2]), int(images_BCHW.shape[-1]))
        maps = self.levels(images_BCHW.to(self.device))
        proposals, _ = self.proposals(maps, [size] * len(images_BCHW))
        found = self.boxes.detect(maps, proposals)
        names = ("boxes_N5", "scores_N", "labels_N")
        tables = zip(*(on_host([getattr(one, name) for one in found]) for name in names), strict=True)
        return [prediction_of(OrientedFound(*parts)) for parts in tables]

    def evaluate(self, labelled: LabelledSet, settings: TestSettings) -> Scores:
        """Return average precisions of rotated boxes; see `TaskModel.evaluate`."""
        return evaluate_oriented(self, labelled, settings)


def evaluate_oriented(model: TaskModel, labelled: LabelledSet, settings: TestSettings) -> Scores:
    """Return average precisions of a model that finds rotated boxes; see `TaskModel.evaluate`."""
    reader = label_reader(model, labelled, "oriented", settings)
    truths, found = [], []
    for _, sample, prediction in predictions_of(model, reader, settings):
        truths.append(true_oriented(reader.target(sample)))
        found.append(found_oriented(prediction))
    return oriented_scores(truths, found, model.classes)


def prediction_of(found: OrientedFound) -> Prediction:
    """Return what was found in one image with labels from 0."""
    return Prediction(
        boxes_N4=hulls_of(found.boxes_N5).float(),
        quads_N8=quads_of(found.boxes_N5).float(),
        scores_N=found.scores_N.float(),
        labels_N=found.labels_N - 1,
    )


def oriented_boxes(target: Target) -> Tensor:
    """Return the (N, 5) rotated boxes of a target: the smallest ones around its quads, or its boxes.

    Raises:
        ConfigError: The target has neither, or no labels.
    """
    if target.labels_N is None or (target.boxes_N4 is None and target.quads_N8 is None):
        raise ConfigError(
            "an image has no oriented boxes",
            where="oriented",
            fix="train on a set whose objects are labelled",
        )
    if target.quads_N8 is not None:
        return boxes_of_quads(target.quads_N8.float())
    assert target.boxes_N4 is not None
    return boxes_of_hulls(target.boxes_N4.float())


def oriented_truths(targets: Sequence[Target], sizes: Sequence[tuple[int, int]]) -> list[OrientedTruth]:
    """Return what the heads learn from each image; difficult and tiny objects are ignored, as are ignored places.

    The device is asked once for all images.

    Args:
        targets: Quads or boxes, and labels.
        sizes: Height and width without padding.

    Raises:
        ConfigError: Boxes or labels are missing.
    """
    boxes = [oriented_boxes(target) for target in targets]
    learn = [(boxes_N5[:, 2:4] >= SHORTEST_SIDE).all(1) for boxes_N5 in boxes]
    learn = [
        learn_N if target.difficult_N is None else learn_N & ~target.difficult_N
        for learn_N, target in zip(learn, targets, strict=True)
    ]
    rows = true_rows([*learn, *(~learn_N for learn_N in learn)])
    truths = []
    for target, size, boxes_N5, learned, others in zip(
        targets, sizes, boxes, rows[: len(targets)], rows[len(targets) :], strict=True
    ):
        ignored = [boxes_N5[others]]
        if target.ignored_M8 is not None:
            ignored.append(boxes_of_quads(target.ignored_M8.float()))
        elif target.ignored_M4 is not None:
            ignored.append(boxes_of_hulls(target.ignored_M4.float()))
        labels_N = present(target.labels_N)[learned] + 1
        truths.append(OrientedTruth(boxes_N5[learned], labels_N, torch.cat(ignored), size))
    return truths
