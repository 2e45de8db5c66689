"""The shared base of segmentation and change detection: the class of each pixel from the maps of a pyramid.

Shapes: B images, K classes, H × W pixels, h × w cells of the finest map, C channels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vitp.core.config import SettingsModel, Weight
from vitp.core.errors import ConfigError
from vitp.metrics.results import Prediction
from vitp.models.backbone import frozen
from vitp.models.convolution import ConvNorm, NormKind
from vitp.models.heads.upernet import FCNHead, UperNet, resize_map
from vitp.records.labels import IGNORE
from vitp.tasks.base import TaskBatch, TaskModel, TestSettings
from vitp.tasks.losses import dice_loss, focal_factor, tversky_loss

MOST_CLASSES = IGNORE
"""Class maps are 8-bit, and 255 means "ignore"."""


class DecoderSettings(SettingsModel):
    """Decoder and losses."""

    kind: Literal["upernet", "fpn", "linear"] = "upernet"
    """`upernet` (the paper's), `fpn` (adds up the levels: light), `linear` (one 1 × 1 convolution on the
    coarsest map: a probe). Of segmentation also `eomt`, which has keys of its own."""
    width: int = Field(128, ge=8, le=65_536)
    """Channels of the decoder; the paper has 512, and 1024 for LEVIR-CD."""
    auxiliary: float = Field(0.4, ge=0, le=1e6)
    """Weight of a small head on the second coarsest map while training; 0: none."""
    dice: float = Field(0.0, ge=0, le=1e6)
    """Weight of a soft Dice loss beside the cross-entropy; 0: none."""
    tversky: float = Field(0.0, ge=0, le=1e6)
    """Weight of a Tversky loss beside the cross-entropy, for small objects; 0: none."""
    tversky_alpha: float = Field(0.3, ge=0, le=1)
    """What a false pixel counts in it; ½ and ½ make it the Dice loss."""
    tversky_beta: float = Field(0.7, ge=0, le=1)
    """What a missed pixel counts in it."""
    focal: float = Field(0.0, ge=0, le=10)
    """Exponent γ of focal loss, such as 2: pixels that are right already count (1 − p)^γ in the cross-entropy; 0: all
    count alike."""
    class_weights: list[Weight] | None = None
    """One positive weight for each class in the cross-entropy; none: all 1."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over the classes."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the channels that is left out before the classifier while training."""
    norm: NormKind = "group"
    """Normalisation: by `group`s of channels, over the `batch`, or over the batches of all ranks (`sync`,
    as published)."""


class LightDecoder(nn.Module):
    """Adds up all levels at the finest size, one 3 × 3 convolution, a classifier (as semantic FPN, with less).

    Args:
        channels: Channels of the maps, finest first.
        width: Channels of the decoder.
        classes: K.
        norm: See `vitp.models.convolution`.
        dropout: Share of the channels that is left out before the classifier while training.
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        classes: int,
        *,
        norm: NormKind = "group",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(ConvNorm(each, width, 1, norm=norm) for each in channels)
        self.fuse = ConvNorm(width, width, 3, norm=norm)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K, h, w) at the finest map's size."""
        size = maps[0].shape[-2:]
        levels = [
            resize_map(lateral(level), size) for lateral, level in zip(self.laterals, maps, strict=True)
        ]
        logits_BKhw: Tensor = self.classify(self.dropout(self.fuse(torch.stack(levels).sum(0))))
        return logits_BKhw


class LinearDecoder(nn.Module):
    """One 1 × 1 convolution on the coarsest map, its channels normalised: what the features alone can tell."""

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels[-1])
        self.classify = nn.Conv2d(channels[-1], classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K, h, w) at the coarsest map's size."""
        logits_BKhw: Tensor = self.classify(self.norm(maps[-1]))
        return logits_BKhw


def check_pixel_classes(count: int) -> None:
    """Do nothing where so many classes can be those of pixels.

    Raises:
        ConfigError: They can't.
    """
    if not 2 <= count <= MOST_CLASSES:
        raise ConfigError(
            f"{count} classes can't be told apart pixel by pixel",
            where="classes",
            fix=f"give 2 to {MOST_CLASSES}",
        )


def build_decoder(channels: Sequence[int], classes: int, settings: DecoderSettings) -> nn.Module:
    """Return the decoder that the settings name: maps (finest first) → logits."""
    if settings.kind == "linear":
        return LinearDecoder(channels, classes)
    kind = UperNet if settings.kind == "upernet" else LightDecoder
    return kind(channels, settings.width, classes, norm=settings.norm, dropout=settings.dropout)


class DenseModel(TaskModel):
    """Images → class of each pixel."""

    @abstractmethod
    def shares(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> Tensor:
        """Return (B, K, H, W) probabilities of the classes, which add up to 1.

        Args:
            images_BCHW: uint8, or float on 0..1, of one size.
            later_BCHW: The second dates of pairs.
        """

    def patch(self, settings: TestSettings) -> int:
        """Return the stride of the backbone's last map where windows are staggered; see `TaskModel.patch`."""
        return self.backbone.strides[-1] if settings.stagger else 0

    def probabilities(self, images_BCHW: Tensor, later_BCHW: Tensor | None = None) -> Tensor:
        """Return (B, K, H, W) probabilities, on the model's device, of uint8 images of one size."""
        with frozen(self):
            later = None if later_BCHW is None else later_BCHW.to(self.device)
            return self.shares(images_BCHW.to(self.device), later)

    def predict_batch(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> list[Prediction]:
        """Return the class of each pixel; see `TaskModel.predict_batch`."""
        classes_BHW = self.probabilities(images_BCHW, later_BCHW).argmax(1).to(torch.uint8).cpu()
        return [Prediction(semantic_HW=classes_HW.clone()) for classes_HW in classes_BHW]


class DecodedModel(DenseModel):
    """Maps of a pyramid → class of each pixel.

    Losses: `pixels` (cross-entropy, mean over labelled pixels, weighted by class), `dice` (1 − soft Dice, mean
    over the classes of an image, then over images), `tversky` (likewise) and `auxiliary` (cross-entropy of the
    auxiliary head).

    Args:
        classes: Names, in the order of the map's values.
        channels: Channels of the maps that the decoder sees, finest first.
        settings: Decoder and losses.

    Raises:
        ConfigError: The class weights don't fit the classes.
    """

    head_settings: ClassVar[type[SettingsModel]] = DecoderSettings

    def __init__(self, classes: Sequence[str], channels: Sequence[int], settings: DecoderSettings) -> None:
        super().__init__(classes)
        count, weights = len(self.classes), settings.class_weights
        check_pixel_classes(count)
        if weights is not None and (len(weights) != count or min(weights) <= 0):
            raise ConfigError(
                f"{len(weights)} class weights for {count} classes",
                where="head.class_weights",
                fix="give one positive weight for each class",
            )
        self.settings = settings
        self.decoder = build_decoder(channels, count, settings)
        # The last map but one, as in the published runs.
        self.auxiliary_level = max(len(channels) - 2, 0)
        self.auxiliary: FCNHead | None = None
        if settings.auxiliary > 0:
            self.auxiliary = FCNHead(
                channels[self.auxiliary_level],
                max(settings.width // 2, 8),
                count,
                norm=settings.norm,
                dropout=settings.dropout,
            )
        self.loss_weights = {"pixels": 1.0, "dice": settings.dice, "auxiliary": settings.auxiliary}
        if settings.tversky > 0:
            self.loss_weights["tversky"] = settings.tversky
        weights_K = torch.tensor(weights or [1.0] * count)
        # Counting happens on the CPU before a batch moves, the loss where the model is.
        self._counting_weights = weights_K
        self.class_weights: Tensor
        self.register_buffer("class_weights", weights_K, persistent=False)

    @abstractmethod
    def maps(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> list[Tensor]:
        """Return what the decoder sees of uint8 images, finest first."""

    def forward(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Return name → summed loss. See `TaskModel.forward`."""
        maps = self.maps(batch.images_BCHW, batch.later_BCHW)
        size = batch.images_BCHW.shape[-2:]
        target_BHW = stack_targets(batch, size)
        logits_BKHW = resize_map(self.decoder(maps).float(), size)
        losses = {"pixels": self._cross_entropy(logits_BKHW, target_BHW)}
        if self.settings.dice > 0:
            losses["dice"] = dice_loss(logits_BKHW, target_BHW)
        if self.settings.tversky > 0:
            alpha, beta = self.settings.tversky_alpha, self.settings.tversky_beta
            losses["tversky"] = tversky_loss(logits_BKHW, target_BHW, alpha, beta)
        if self.auxiliary is not None:
            auxiliary_BKHW = resize_map(self.auxiliary(maps[self.auxiliary_level]).float(), size)
            losses["auxiliary"] = self._cross_entropy(auxiliary_BKHW, target_BHW)
        return losses

    def _cross_entropy(self, logits_BKHW: Tensor, target_BHW: Tensor) -> Tensor:
        loss_BHW = F.cross_entropy(
            logits_BKHW,
            target_BHW,
            ignore_index=IGNORE,
            reduction="none",
            label_smoothing=self.settings.label_smoothing,
        )
        if self.settings.focal > 0:
            loss_BHW = loss_BHW * focal_factor(logits_BKHW, target_BHW, self.settings.focal)
        # Ignored pixels have a loss of 0; the clamp only keeps their 255 within the table.
        return (loss_BHW * self.class_weights[target_BHW.clamp(max=len(self.classes) - 1)]).sum()

    def loss_counts(self, batch: TaskBatch) -> dict[str, float]:
        """Return name → (weighted) labelled pixels, or images with a labelled pixel."""
        pixels_BK = torch.stack([self._count(target.semantic_HW) for target in batch.targets])
        weighted = float((pixels_BK * self._counting_weights).sum())
        counts = {"pixels": weighted}
        if self.settings.dice > 0:
            counts["dice"] = float((pixels_BK.sum(1) > 0).sum())
        if self.settings.tversky > 0:
            counts["tversky"] = float((pixels_BK.sum(1) > 0).sum())
        if self.auxiliary is not None:
            counts["auxiliary"] = weighted
        return counts

    def _count(self, semantic_HW: Tensor | None) -> Tensor:
        """Return (K,) labelled pixels of each class."""
        assert semantic_HW is not None
        return torch.bincount(semantic_HW.flatten(), minlength=IGNORE + 1)[: len(self.classes)].cpu()

    def shares(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> Tensor:
        """Return softmax probabilities; see `DenseModel.shares`."""
        logits_BKhw = self.decoder(self.maps(images_BCHW, later_BCHW)).float()
        return resize_map(logits_BKhw, images_BCHW.shape[-2:]).softmax(1)


def stack_targets(batch: TaskBatch, size: Sequence[int]) -> Tensor:
    """Return (B, H, W) int64 classes of a batch; what was padded is ignored."""
    padded = []
    for target, name in zip(batch.targets, batch.record_names, strict=True):
        if target.semantic_HW is None:
            raise ConfigError("has no mask", where=f"image {name}", fix="train on a set with masks")
        height, width = target.semantic_HW.shape
        padded.append(F.pad(target.semantic_HW, (0, size[1] - width, 0, size[0] - height), value=IGNORE))
    return torch.stack(padded).long()
