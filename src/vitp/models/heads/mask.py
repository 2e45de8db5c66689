"""Mask head of Mask R-CNN (He et al., ICCV 2017), and masks between regions and images.

Shapes: B images, N boxes of an image, R boxes of the whole batch, D channels, C classes, H × W pixels,
P × P cells of a region, M × M cells of a mask (M = 2P).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import roi_align

from vitp.core.config import SettingsModel
from vitp.models.heads.fpn import RegionPool
from vitp.models.heads.rpn import ImageTruth


class MaskSettings(SettingsModel):
    """Mask head; the defaults are those of Mask R-CNN with FPN."""

    pool_size: int = Field(14, gt=0, le=256)
    """Cells on a side of a pooled region; masks have twice as many."""
    layers: int = Field(4, ge=1, le=1024)
    """Number of 3×3 convolutions."""
    width: int = Field(256, gt=0, le=65_536)
    """Channels of the convolutions."""


class MaskHead(nn.Module):
    """Region → one mask for each class.

    Args:
        pool: Cuts regions of P × P cells.
        channels: D, of the levels.
        classes: C, without background.
        settings: Depth and width.
    """

    def __init__(self, pool: RegionPool, channels: int, classes: int, settings: MaskSettings) -> None:
        super().__init__()
        self.pool = pool
        self.layers = MaskRCNNHeads(channels, [settings.width] * settings.layers, 1)
        self.predictor = MaskRCNNPredictor(settings.width, settings.width, classes)

    def forward(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Return logits (R, C, M, M) in float32."""
        logits_NKhw: Tensor = self.predictor(self.layers(self.pool(maps, boxes))).float()
        return logits_NKhw

    def loss(
        self,
        maps: Sequence[Tensor],
        boxes: Sequence[Tensor],
        matched: Sequence[Tensor],
        truths: Sequence[ImageTruth],
    ) -> Tensor:
        """Return the sum over images of the mean binary cross-entropy over their regions' cells.

        Args:
            maps: Levels, finest first.
            boxes: (N, 4) regions of each image that hold an object.
            matched: (N,) index of that object in the image's truth.
            truths: True objects with masks.
        """
        logits_RCMM = self(maps, boxes)
        labels_R = torch.cat([t.labels_N[m] for t, m in zip(truths, matched, strict=True)])
        wanted_RMM = torch.cat(
            [
                cut_masks(_masks_of(truth), boxes_N4, matched_N, logits_RCMM.shape[-1])
                for truth, boxes_N4, matched_N in zip(truths, boxes, matched, strict=True)
            ]
        )
        # Classes count from 1, and nothing (0) has no mask.
        chosen_RMM = logits_RCMM[torch.arange(len(labels_R), device=labels_R.device), labels_R - 1]
        loss_R = F.binary_cross_entropy_with_logits(chosen_RMM, wanted_RMM, reduction="none").mean((1, 2))
        # An empty batch keeps its graph, so that the head's parameters get a gradient of 0 rather than none.
        return torch.stack([part.sum() / max(len(part), 1) for part in loss_R.split(_lengths(boxes))]).sum()

    def probabilities(
        self, maps: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return (N, M, M) for each image: the mask of each box's class on 0..1.

        Args:
            maps: Levels, finest first.
            boxes: (N, 4) of each image.
            labels: (N,) 1 … C of each image.
        """
        logits_RCMM = self(maps, boxes)
        labels_R = torch.cat(list(labels))
        chosen_RMM = logits_RCMM[torch.arange(len(labels_R), device=labels_R.device), labels_R - 1]
        return list(chosen_RMM.sigmoid().split(_lengths(boxes)))


def _lengths(boxes: Sequence[Tensor]) -> list[int]:
    return [len(boxes_N4) for boxes_N4 in boxes]


def _masks_of(truth: ImageTruth) -> Tensor:
    if truth.masks_NHW is None:
        raise ValueError("the mask loss needs masks")
    return truth.masks_NHW


def cut_masks(masks_NHW: Tensor, boxes_R4: Tensor, matched_R: Tensor, size: int) -> Tensor:
    """Return (R, size, size) float32: the part of mask `matched_R[r]` that lies in box r, on 0..1."""
    if not len(boxes_R4):
        return boxes_R4.new_zeros((0, size, size))
    # Only the masks that are matched become floats, of four times the memory.
    used, index_R = matched_R.unique(return_inverse=True)
    rois_R5 = torch.cat([index_R[:, None].to(boxes_R4), boxes_R4], dim=1)
    masks_N1HW = masks_NHW[used][:, None].to(boxes_R4.dtype)
    # -1 lets torchvision take as many samples a cell as it has pixels: a mask is averaged, not sampled.
    cut_NHW: Tensor = roi_align(masks_N1HW, rois_R5, (size, size), 1.0, -1, True)[:, 0]
    return cut_NHW


def paste_masks(probabilities_NMM: Tensor, boxes_N4: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (N, H, W) bool: each mask stretched over its box and cut at one half.

    Each pixel whose centre lies in the box reads the mask where the centre is, without rounding the box to
    whole pixels: at objects of ten pixels a rounded box costs a fifth of the IoU.
    """
    height, width = size
    pasted_NHW = torch.zeros((len(boxes_N4), height, width), dtype=torch.bool, device=boxes_N4.device)
    for index, (x1, y1, x2, y2) in enumerate(boxes_N4.tolist()):
        left, right = _inside(x1, x2, width)
        top, bottom = _inside(y1, y2, height)
        if left >= right or top >= bottom:
            continue
        x_W = torch.arange(left, right, device=boxes_N4.device) + 0.5
        y_H = torch.arange(top, bottom, device=boxes_N4.device) + 0.5
        grid_y, grid_x = torch.meshgrid(
            2 * (y_H - y1) / (y2 - y1) - 1, 2 * (x_W - x1) / (x2 - x1) - 1, indexing="ij"
        )
        # Between the centre of the outermost cells and the edge of the box the border's probability goes on.
        part_11HW = F.grid_sample(
            probabilities_NMM[index][None, None].float(),
            torch.stack([grid_x, grid_y], dim=-1)[None],
            padding_mode="border",
            align_corners=False,
        )
        pasted_NHW[index, top:bottom, left:right] = part_11HW[0, 0] >= 0.5
    return pasted_NHW


def _inside(start: float, end: float, length: int) -> tuple[int, int]:
    """Return the range of pixels whose centres lie from `start` (inclusive) to `end` (exclusive)."""
    return max(math.ceil(start - 0.5), 0), min(math.ceil(end - 0.5), length)
