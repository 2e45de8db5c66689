"""Oriented region proposals: the first stage of Oriented R-CNN (Xie et al., ICCV 2021).

Shapes: B images, h × w cells of a level, A anchors of an image (all levels), a anchors of a cell, N proposals;
4: x1, y1, x2, y2; 5: a rotated box (see `vitp.models.rotated.boxes`); 6: midpoint offsets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms

from vitp.core.config import Count
from vitp.models.heads.oriented_targets import OrientedTruth, match_anchors
from vitp.models.heads.rpn import MIN_SIDE, ProposalSettings, StrideAnchors, near, outside, sampled_losses
from vitp.models.heads.sampling import BatchSampler, counts_of
from vitp.models.rotated.boxes import hulls_of
from vitp.models.rotated.coders import MidpointOffsetCoder


class OrientedProposalSettings(ProposalSettings):
    """Oriented region proposals; see `ProposalSettings`. The defaults are the paper's."""

    lowest_iou: float = Field(0.3, ge=0, le=1)
    """An object's best anchors count as its own from this overlap on; 0 gives every object one."""
    keep_before: tuple[Count, Count] = (2000, 2000)
    """Best anchors of a level that enter the suppression, in training and at test."""
    keep: tuple[Count, Count] = (2000, 2000)
    """Proposals of an image that are kept, in training and at test."""
    nms_iou: float = Field(default=0.8, gt=0, le=1)
    """Overlap (IoU) within a level above which the weaker of two proposals is dropped."""


class OrientedProposalNetwork(nn.Module):
    """Axis-aligned anchors on every level → rotated boxes that may hold an object.

    Args:
        strides: Strides of the levels, finest first.
        width: Channels of the levels.
        settings: Anchors, matching, sampling, suppression.
    """

    def __init__(self, strides: Sequence[int], width: int, settings: OrientedProposalSettings) -> None:
        super().__init__()
        self.settings = settings
        self.anchors = StrideAnchors(strides, settings.anchor_scales, settings.anchor_ratios)
        count = self.anchors.num_anchors_per_location()[0]
        self.shared = nn.Conv2d(width, width, 3, padding=1)
        self.score = nn.Conv2d(width, count, 1)
        self.move = nn.Conv2d(width, 6 * count, 1)
        for layer in (self.shared, self.score, self.move):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        self.coder = MidpointOffsetCoder()
        self.sampler = BatchSampler(settings.samples, settings.positive_share)

    def forward(
        self,
        maps_BChw: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        truths: Sequence[OrientedTruth] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return (N, 5) proposals for each image, best first, and with truths `objectness` and `proposal_box`.

        The losses are sums over images of the mean over the image's sampled anchors.

        Args:
            maps_BChw: Levels, finest first.
            sizes: Height and width of each image without padding.
            truths: What to learn.
        """
        logits, moves = self._outputs(maps_BChw)
        anchors_A4 = self.anchors(ImageList(maps_BChw[0], list(sizes)), list(maps_BChw))[0]
        per_level = [logit.shape[1] for logit in logits]
        logit_BA, move_BA6 = torch.cat(logits, 1), torch.cat(moves, 1)
        proposals = self._propose(logit_BA.detach(), move_BA6.detach(), anchors_A4, per_level, sizes)
        losses = {} if truths is None else self._losses(logit_BA, move_BA6, anchors_A4, truths)
        return proposals, losses

    def _outputs(self, maps_BChw: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return logits (B, h·w·a) and moves (B, h·w·a, 6) of each level, in float32: boxes are decoded from them."""
        logits, moves = [], []
        for map_BChw in maps_BChw:
            shared_BChw = F.relu(self.shared(map_BChw))
            logits.append(self.score(shared_BChw).permute(0, 2, 3, 1).flatten(1).float())
            moves.append(
                self.move(shared_BChw).permute(0, 2, 3, 1).unflatten(3, (-1, 6)).flatten(1, 3).float()
            )
        return logits, moves

    @torch.no_grad()
    def _propose(
        self,
        logit_BA: Tensor,
        move_BA6: Tensor,
        anchors_A4: Tensor,
        per_level: Sequence[int],
        sizes: Sequence[tuple[int, int]],
    ) -> list[Tensor]:
        """Return the best boxes of each image, at most so many of each level, after suppression by their hulls.

        The device is asked once for all images, but for each suppression.
        """
        mode = 0 if self.training else 1
        best, levels = [], []
        first = 0
        for level, logit_BL in enumerate(logit_BA.split(list(per_level), 1)):
            count = min(self.settings.keep_before[mode], logit_BL.shape[1])
            best.append(first + logit_BL.topk(count).indices)
            levels.append(torch.full_like(best[-1], level))
            first += logit_BL.shape[1]
        best_BN = torch.cat(best, 1)
        move_BN6 = move_BA6.gather(1, best_BN[..., None].expand(-1, -1, 6))
        boxes_BN5 = self.coder.decode(anchors_A4[best_BN], move_BN6)
        size_B2 = torch.tensor(sizes).to(best_BN.device, non_blocking=True)
        rows = torch.nonzero(((boxes_BN5[..., 3] >= MIN_SIDE) & _inside(boxes_BN5, size_B2)).flatten())[:, 0]
        counts = counts_of(rows, [best_BN.shape[1]] * len(sizes))
        tables = (boxes_BN5, logit_BA.gather(1, best_BN), torch.cat(levels, 1))
        proposals = []
        for boxes_N5, logit_N, level_N in zip(
            *(table.flatten(0, 1)[rows].split(counts) for table in tables), strict=True
        ):
            # Hulls, as in the paper: a proposal need not be exact, and upright overlap is far cheaper.
            kept = batched_nms(hulls_of(boxes_N5), logit_N, level_N, self.settings.nms_iou)
            proposals.append(boxes_N5[kept[: self.settings.keep[mode]]])
        return proposals

    def _losses(
        self, logit_BA: Tensor, move_BA6: Tensor, anchors_A4: Tensor, truths: Sequence[OrientedTruth]
    ) -> dict[str, Tensor]:
        kinds, matched = zip(*(self._match(anchors_A4, truth) for truth in truths), strict=True)
        # An empty start, so that a batch without any object has something to concatenate.
        drawn, wanted = self.sampler.draw(kinds), [move_BA6.new_zeros(0, 6)]
        for truth, matched_A, own in zip(truths, matched, drawn.positives, strict=True):
            if len(truth.boxes_N5):
                wanted.append(self.coder.encode(anchors_A4[own], truth.boxes_N5[matched_A[own]]))
        objectness, box = sampled_losses(logit_BA, torch.stack(kinds), move_BA6, torch.cat(wanted), drawn)
        return {"objectness": objectness, "proposal_box": box}

    def _match(self, anchors_A4: Tensor, truth: OrientedTruth) -> tuple[Tensor, Tensor]:
        settings = self.settings
        kind_A, matched_A = match_anchors(
            anchors_A4,
            hulls_of(truth.boxes_N5),
            positive_iou=settings.positive_iou,
            negative_iou=settings.negative_iou,
            lowest_iou=settings.lowest_iou,
        )
        skip_A = outside(anchors_A4, truth.size)
        if len(truth.ignored_M5):
            ignored_M4 = hulls_of(truth.ignored_M5)
            skip_A = skip_A | near(anchors_A4, ignored_M4, settings.negative_iou, truth.size)
        # Only background is taken back: an anchor that fits an object well stays one.
        return kind_A.masked_fill(skip_A & (kind_A == 0), -1), matched_A


def _inside(boxes_BN5: Tensor, size_B2: Tensor) -> Tensor:
    """Return (B, N) bool: which boxes have their centre in their image, whose height and width are given."""
    cx, cy = boxes_BN5[..., 0], boxes_BN5[..., 1]
    return (cx >= 0) & (cx < size_B2[:, 1:]) & (cy >= 0) & (cy < size_B2[:, :1])
