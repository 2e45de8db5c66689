"""Faster, Cascade, Mask and Cascade Mask R-CNN on the levels of a feature pyramid.

Shapes: B images, N objects of an image, C classes, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from vitp.core.config import SettingsModel
from vitp.models.heads.cascade import BoxSettings, CascadeHead, Found
from vitp.models.heads.fpn import RegionPool
from vitp.models.heads.mask import MaskHead, MaskSettings
from vitp.models.heads.rpn import ImageTruth, ProposalNetwork, ProposalSettings


class DetectorSettings(SettingsModel):
    """A two-stage detector; the defaults are those of Cascade R-CNN with FPN for images of about 1000 px."""

    width: int = Field(256, gt=0, le=65_536)
    """Channels of the pyramid's levels."""
    proposals: ProposalSettings = Field(default_factory=ProposalSettings)
    """Anchors and region proposals."""
    box: BoxSettings = Field(default_factory=BoxSettings)
    """Box head: its stages, loss and boxes at test."""
    mask: MaskSettings = Field(default_factory=MaskSettings)
    """Mask head of instance segmentation."""


class RCNN(nn.Module):
    """Region proposals, box stages and, where asked for, one mask head.

    The mask head of a cascade learns from the last stage's regions and reads the final boxes: one head, not one
    a stage.

    Args:
        strides: Strides of the levels, finest first; the coarsest serves proposals only.
        channels: Channels of the levels.
        classes: C, without background.
        settings: See `DetectorSettings`.
        masks: Whether to have a mask head.
    """

    def __init__(
        self,
        strides: Sequence[int],
        channels: int,
        classes: int,
        settings: DetectorSettings,
        *,
        masks: bool = False,
    ) -> None:
        super().__init__()
        self.proposals = ProposalNetwork(strides, channels, settings.proposals)
        self.boxes = CascadeHead(strides[:-1], channels, classes, settings.box)
        self.masks: MaskHead | None = None
        if masks:
            pool = RegionPool(
                strides[:-1],
                settings.mask.pool_size,
                sampling=settings.box.sampling,
                canonical_size=settings.box.canonical_size,
                aligned=settings.box.aligned,
            )
            self.masks = MaskHead(pool, channels, classes, settings.mask)

    def forward(self, maps: Sequence[Tensor], truths: Sequence[ImageTruth]) -> dict[str, Tensor]:
        """Return name → loss, summed over images.

        `objectness`, `proposal_box`, `class` and `box` (of a cascade `class_1`, `box_1`, …), and `mask`.

        Args:
            maps: Levels, finest first.
            truths: One for each image.
        """
        proposals, losses = self.proposals.propose(maps, [truth.size for truth in truths], truths)
        box_losses, samples = self.boxes(maps, proposals, truths)
        losses |= box_losses
        if self.masks is not None:
            boxes, matched = samples.positives()
            losses["mask"] = self.masks.loss(maps, boxes, matched, truths)
        return losses

    def loss_names(self) -> list[str]:
        """Return the names that `forward` returns."""
        names = ["objectness", "proposal_box", *(name for pair in self.boxes.loss_names for name in pair)]
        return names if self.masks is None else [*names, "mask"]

    @torch.no_grad()
    def detect(
        self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> tuple[list[Found], list[Tensor] | None]:
        """Return the objects of each image and, with a mask head, their masks (N, M, M) in their boxes.

        Args:
            maps: Levels, finest first.
            sizes: Height and width of each image without padding.
        """
        proposals, _ = self.proposals.propose(maps, sizes)
        found = self.boxes.detect(maps, proposals, sizes)
        if self.masks is None:
            return found, None
        boxes, labels = [f.boxes_N4 for f in found], [f.labels_N for f in found]
        return found, self.masks.probabilities(maps, boxes, labels)
