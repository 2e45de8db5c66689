"""Detection and oriented detection by a transformer: `head.kind: detr` (see `vitp.models.heads.detr`).

Shapes: B images, N objects of an image, H × W pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vitp.core.config import SettingsModel
from vitp.metrics.results import Prediction, Scores, Target
from vitp.models.heads.detr import DETR, DETRSettings
from vitp.models.heads.detr_boxes import OrientedBoxes, QueryBoxes, Truth, UprightBoxes
from vitp.models.heads.detr_losses import DETR_LOSSES, detr_losses
from vitp.models.heads.oriented_roi import OrientedFound
from vitp.models.pyramid import Pyramid, pad_to_multiple
from vitp.records.labels import LabelledSet
from vitp.tasks.base import LabelKind, TaskBatch, TaskModel, TestSettings
from vitp.tasks.detection import evaluate_objects, image_truths
from vitp.tasks.oriented import evaluate_oriented, oriented_truths, prediction_of


class DETRModel(TaskModel):
    """A detection transformer around any backbone: on a pyramid, or on the last map alone (`neck.kind: none`).

    Losses: `class`, `box` and `overlap`, and the same of noised objects; all are counted in objects, and an image
    without one counts as one in `class`.

    Args:
        pyramid: Backbone with maps at one stride or several.
        classes: Names of the object classes.
        settings: Head; None: the defaults.
    """

    head_settings: ClassVar[type[SettingsModel]] = DETRSettings
    needs: ClassVar[Literal["backbone", "maps", "levels"]] = "maps"
    geometry: ClassVar[type[QueryBoxes]]

    def __init__(
        self, pyramid: Pyramid, classes: Sequence[str], settings: DETRSettings | None = None
    ) -> None:
        super().__init__(classes)
        settings = settings or DETRSettings()
        self.pyramid = pyramid
        self.head = DETR(pyramid.channels, pyramid.strides, len(self.classes), self.geometry(), settings)
        weights = dict(zip(DETR_LOSSES, (1.0, settings.box_weight, settings.overlap_weight), strict=True))
        self.loss_weights = {
            start + name: weight for start in ("", "noised_") for name, weight in weights.items()
        }

    def levels(self, images_BCHW: Tensor) -> list[Tensor]:
        """Return the levels' maps of uint8 images, finest first."""
        padded_BCHW = pad_to_multiple(images_BCHW, self.pyramid.strides[-1])
        levels: list[Tensor] = self.pyramid(self.backbone.normalize(padded_BCHW))
        return levels

    def forward(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Return name → summed loss. See `TaskModel.forward`."""
        truths = self.truths(batch.targets, batch.sizes)
        return detr_losses(self.head, self.levels(batch.images_BCHW), truths)

    def loss_counts(self, batch: TaskBatch) -> dict[str, float]:
        """Return name → number of objects that are learned."""
        truths = self.truths(batch.targets, batch.sizes)
        objects = [len(truth.labels_N) for truth in truths]
        counts = dict.fromkeys(self.loss_weights, float(sum(objects)))
        # An image without objects teaches that there is nothing, and counts as one.
        return counts | {"class": float(sum(max(count, 1) for count in objects))}

    def predict_batch(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> list[Prediction]:
        """Return what was found in each image; see `TaskModel.predict_batch`."""
        size = (int(images_BCHW.shape[-2]), int(images_BCHW.shape[-1]))
        boxes_BQK, scores_BQC = self.head.table(self.levels(images_BCHW.to(self.device)), size)
        return [
            self._prediction(boxes_QK, scores_QC, size)
            for boxes_QK, scores_QC in zip(boxes_BQK, scores_BQC, strict=True)
        ]

    @abstractmethod
    def truths(self, targets: Sequence[Target], sizes: Sequence[tuple[int, int]]) -> Sequence[Truth]:
        """Return what is learned of each image."""

    @abstractmethod
    def _prediction(self, boxes_QK: Tensor, scores_QC: Tensor, size: tuple[int, int]) -> Prediction:
        """Return the objects of one image."""


class DETRDetection(DETRModel):
    """Upright boxes."""

    name: ClassVar[str] = "detection"
    kind: ClassVar[LabelKind] = "objects"
    geometry: ClassVar[type[QueryBoxes]] = UprightBoxes

    def truths(self, targets: Sequence[Target], sizes: Sequence[tuple[int, int]]) -> Sequence[Truth]:
        """See `image_truths`."""
        return image_truths(targets, sizes, with_masks=False)

    def _prediction(self, boxes_QK: Tensor, scores_QC: Tensor, size: tuple[int, int]) -> Prediction:
        limits_4 = torch.tensor([size[1], size[0]] * 2, device=boxes_QK.device)
        boxes_QK = boxes_QK.clamp(min=0).minimum(limits_4)
        boxes_N4, scores_N, labels_N = self.head.kept(boxes_QK, scores_QC, boxes_QK[:, 2:] - boxes_QK[:, :2])
        return Prediction(boxes_N4=boxes_N4.cpu(), scores_N=scores_N.cpu(), labels_N=labels_N.cpu() - 1)

    def evaluate(self, labelled: LabelledSet, settings: TestSettings) -> Scores:
        """Return COCO's average precisions; see `evaluate_objects`."""
        return evaluate_objects(self, labelled, settings, masks=False)


class OrientedDETR(DETRModel):
    """Boxes at any angle."""

    name: ClassVar[str] = "oriented"
    kind: ClassVar[LabelKind] = "oriented"
    geometry: ClassVar[type[QueryBoxes]] = OrientedBoxes

    def truths(self, targets: Sequence[Target], sizes: Sequence[tuple[int, int]]) -> Sequence[Truth]:
        """See `oriented_truths`."""
        return oriented_truths(targets, sizes)

    def _prediction(self, boxes_QK: Tensor, scores_QC: Tensor, size: tuple[int, int]) -> Prediction:
        return prediction_of(OrientedFound(*self.head.kept(boxes_QK, scores_QC, boxes_QK[:, 2:4])))

    def evaluate(self, labelled: LabelledSet, settings: TestSettings) -> Scores:
        """Return average precisions of rotated boxes; see `TaskModel.evaluate`."""
        return evaluate_oriented(self, labelled, settings)
