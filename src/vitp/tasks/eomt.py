"""Segmentation by mask queries (EoMT): classes of pixels, and instances without the suppression of overlapping ones.

Shapes: B images, Q queries, C classes, N objects, H × W pixels, h × w cells of a mask.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import masks_to_boxes

from vitp.core.config import SettingsModel
from vitp.core.errors import ConfigError
from vitp.metrics.results import Prediction, Scores, Target
from vitp.models.backbone import Backbone
from vitp.models.heads.mask_losses import MaskTruth, mask_loss_counts, mask_losses
from vitp.models.heads.mask_queries import MaskOutputs, MaskQueries, MaskQuerySettings, masked_shares
from vitp.models.heads.upernet import resize_map
from vitp.models.plain_vit import PlainViT
from vitp.models.pyramid import pad_to_multiple
from vitp.records.labels import IGNORE, LabelledSet
from vitp.tasks.base import LabelKind, TaskBatch, TaskModel, TestSettings
from vitp.tasks.dense import DenseModel, check_pixel_classes
from vitp.tasks.detection import evaluate_objects, learnable
from vitp.tasks.semantic import evaluate_pixels

_FAINT = 0.01
"""Vote that is shared by all classes of a pixel, beside those of the queries, which come to about 1."""

_QUERIES_AT_ONCE = 32
"""Whose masks are enlarged together."""


class QueryModel(TaskModel):
    """A plain ViT with mask queries among its tokens; see `MaskQueries`.

    Losses, each summed over the outputs after every block of the queries: `class` (cross-entropy, mean over queries,
    "no object" weighted less), `mask` (binary cross-entropy at points) and `dice`, both means over the true masks.

    Args:
        backbone: A plain ViT.
        classes: Names of the classes.
        settings: Queries and losses.

    Raises:
        ConfigError: The backbone is no plain ViT.
    """

    head_settings: ClassVar[type[SettingsModel]] = MaskQuerySettings
    needs: ClassVar[Literal["backbone", "maps", "levels"]] = "backbone"
    scheduled = ("the share of masked queries",)

    def __init__(
        self, backbone: Backbone, classes: Sequence[str], settings: MaskQuerySettings | None = None
    ) -> None:
        super().__init__(classes)
        if not isinstance(backbone, PlainViT):
            raise ConfigError(
                f"eomt lets queries run through the blocks of a plain ViT, and a {type(backbone).__name__} has none",
                where="head.kind",
                fix="choose another head, or a plain ViT as backbone",
            )
        self.settings = settings or MaskQuerySettings()
        self.tower = backbone
        self.head = MaskQueries(backbone, len(self.classes), self.settings)
        weights = self.settings
        self.loss_weights: Mapping[str, float] = {
            "class": weights.class_loss,
            "mask": weights.mask_loss,
            "dice": weights.dice_loss,
        }

    @property
    def backbone(self) -> Backbone:
        """The plain ViT."""
        return self.tower

    def outputs(self, images_BCHW: Tensor, masked: Sequence[float] | None = None) -> list[MaskOutputs]:
        """Return what the queries say of images, the last at the end; masks reach as far as whole patches do.

        Args:
            images_BCHW: uint8, or float on 0..1.
            masked: See `MaskQueries.forward`.
        """
        padded_BCHW = pad_to_multiple(self.tower.normalize(images_BCHW), self.tower.patch_size)
        found: list[MaskOutputs] = self.head(self.tower, padded_BCHW, masked)
        return found

    def forward(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Return name → summed loss. See `TaskModel.forward`."""
        shares = [0.0] * self.head.blocks
        if self.settings.masked:
            shares = masked_shares(batch.step / self.steps if self.steps else 0.0, self.head.blocks)
        found = self.outputs(batch.images_BCHW, shares)
        patch = self.tower.patch_size
        height, width = (-(-side // patch) * patch for side in batch.images_BCHW.shape[-2:])
        truths = [_padded(self.truth(target), height, width) for target in batch.targets]
        with torch.autocast(batch.images_BCHW.device.type, enabled=False):
            return mask_losses(found, truths, self.settings)

    def loss_counts(self, batch: TaskBatch) -> dict[str, float]:
        """Return name → weights of queries, and numbers of masks."""
        return mask_loss_counts([self.count(target) for target in batch.targets], self.settings)

    @abstractmethod
    def truth(self, target: Target) -> MaskTruth:
        """Return the masks that are learned from one image."""

    @abstractmethod
    def count(self, target: Target) -> int:
        """Return how many they are."""


def _padded(truth: MaskTruth, height: int, width: int) -> MaskTruth:
    by = (0, width - truth.known_HW.shape[1], 0, height - truth.known_HW.shape[0])
    return MaskTruth(truth.labels_N, F.pad(truth.masks_NHW, by), F.pad(truth.known_HW, by))


class QuerySegmentation(QueryModel, DenseModel):
    """Semantic segmentation by mask queries: each class of an image is one mask; see `QueryModel`."""

    name: ClassVar[str] = "segmentation"
    kind: ClassVar[LabelKind] = "semantic"

    def __init__(
        self, backbone: Backbone, classes: Sequence[str], settings: MaskQuerySettings | None = None
    ) -> None:
        check_pixel_classes(len(classes))
        super().__init__(backbone, classes, settings)

    def truth(self, target: Target) -> MaskTruth:
        """Return a mask for each class that the image holds."""
        semantic_HW = _semantic(target)
        labels_N = semantic_HW.unique()
        labels_N = labels_N[labels_N != IGNORE]
        masks_NHW = semantic_HW == labels_N[:, None, None]
        return MaskTruth(labels_N.long(), masks_NHW.to(torch.uint8), semantic_HW != IGNORE)

    def count(self, target: Target) -> int:
        """Return how many classes the image holds."""
        return int((torch.bincount(_semantic(target).flatten(), minlength=IGNORE + 1)[:IGNORE] > 0).sum())

    def shares(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> Tensor:
        """Return (B, K, H, W): how much each class's masks say of a pixel, as shares; see `DenseModel.shares`."""
        found = self.outputs(images_BCHW)[-1]
        class_BQK = found.class_BQC.softmax(2)[..., :-1]
        height, width = images_BCHW.shape[-2:]
        padded, votes_BKHW = _whole_patches(images_BCHW, self.tower.patch_size), None
        # All queries at the size of the images would take gigabytes.
        parts = class_BQK.split(_QUERIES_AT_ONCE, 1), found.mask_BQhw.split(_QUERIES_AT_ONCE, 1)
        for class_BSK, mask_BShw in zip(*parts, strict=True):
            mask_BSHW = resize_map(mask_BShw, padded)[..., :height, :width].sigmoid()
            votes = torch.einsum("bsk,bshw->bkhw", class_BSK, mask_BSHW)
            votes_BKHW = votes if votes_BKHW is None else votes_BKHW + votes
        assert votes_BKHW is not None
        # Where no query says anything all classes are as likely: a ratio of next to nothing would be noise.
        votes_BKHW = votes_BKHW + _FAINT / votes_BKHW.shape[1]
        shares_BKHW: Tensor = votes_BKHW / votes_BKHW.sum(1, keepdim=True)
        return shares_BKHW

    def evaluate(self, labelled: LabelledSet, settings: TestSettings) -> Scores:
        """Return mIoU and the like; see `evaluate_pixels`."""
        return evaluate_pixels(self, labelled, settings)


def _semantic(target: Target) -> Tensor:
    if target.semantic_HW is None:
        raise ConfigError("an image has no mask", where="segmentation", fix="train on a set with masks")
    return target.semantic_HW


def _whole_patches(images_BCHW: Tensor, patch: int) -> tuple[int, int]:
    height, width = (int(side) for side in images_BCHW.shape[-2:])
    return -(-height // patch) * patch, -(-width // patch) * patch


class QueryInstances(QueryModel):
    """Instance segmentation by mask queries: each object is one mask; see `QueryModel`."""

    name: ClassVar[str] = "instance"
    kind: ClassVar[LabelKind] = "instances"

    def truth(self, target: Target) -> MaskTruth:
        """Return the masks of the objects that are learned; those of the others aren't known to be background."""
        learn_N = learnable(target, with_masks=True)
        assert target.masks_NHW is not None and target.labels_N is not None
        unknown_MHW = target.masks_NHW[~learn_N]
        if target.ignored_MHW is not None:
            unknown_MHW = torch.cat([unknown_MHW, target.ignored_MHW])
        masks_NHW = target.masks_NHW[learn_N]
        # An object that lies in such a place is known.
        known_HW = ~(unknown_MHW > 0).any(0) | (masks_NHW > 0).any(0)
        return MaskTruth(target.labels_N[learn_N], masks_NHW, known_HW)

    def count(self, target: Target) -> int:
        """Return how many objects are learned."""
        return int(learnable(target, with_masks=True).sum())

    def predict_batch(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> list[Prediction]:
        """Return masks, their boxes, scores and labels of each image; see `TaskModel.predict_batch`."""
        found = self.outputs(images_BCHW.to(self.device))[-1]
        height, width = (int(side) for side in images_BCHW.shape[-2:])
        padded = _whole_patches(images_BCHW, self.tower.patch_size)
        return [
            _objects(class_QC, mask_Qhw, padded, (height, width), self.settings.detections)
            for class_QC, mask_Qhw in zip(found.class_BQC, found.mask_BQhw, strict=True)
        ]

    def evaluate(self, labelled: LabelledSet, settings: TestSettings) -> Scores:
        """Return COCO's average precisions; see `evaluate_objects`."""
        return evaluate_objects(self, labelled, settings, masks=True)


def _objects(
    class_QC: Tensor, mask_Qhw: Tensor, padded: tuple[int, int], size: tuple[int, int], most: int
) -> Prediction:
    """Return the objects of one image: the surest classes of queries, times how sure their masks are within."""
    score_QK = class_QC.softmax(1)[:, :-1]
    order_N = score_QK.flatten().argsort(descending=True, stable=True)[:most]
    query_N, label_N = order_N // score_QK.shape[1], order_N % score_QK.shape[1]
    logits_NHW = resize_map(mask_Qhw[query_N][None], padded)[0][:, : size[0], : size[1]]
    masks_NHW = logits_NHW > 0
    area_N = masks_NHW.flatten(1).sum(1)
    within_N = (logits_NHW.sigmoid() * masks_NHW).flatten(1).sum(1) / area_N.clamp(min=1)
    score_N = score_QK.flatten()[order_N] * within_N
    kept_N = score_N.argsort(descending=True, stable=True)
    kept_N = kept_N[area_N[kept_N] > 0]
    masks_NHW = masks_NHW[kept_N].cpu()
    boxes_N4 = masks_to_boxes(masks_NHW) if len(masks_NHW) else torch.zeros(0, 4)
    return Prediction(
        boxes_N4=boxes_N4.float()
        + torch.tensor([0.0, 0.0, 1.0, 1.0]),  # torchvision's end with the last pixel
        scores_N=score_N[kept_N].float().cpu(),
        labels_N=label_N[kept_N].cpu(),
        masks_NHW=masks_NHW,
    )
