"""Oriented boxes from oriented proposals: the second stage of Oriented R-CNN (Xie et al., ICCV 2021).

Shapes: B images, N proposals of an image, R regions of the whole batch, C classes, K = C + 1 with the background
first, D channels, P × P cells of a region; 5: a rotated box (see `vitp.models.rotated.boxes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from vitp.core.config import Positive, SettingsModel
from vitp.models.heads.fpn import with_image_index
from vitp.models.heads.oriented_targets import OrientedTruth, match_proposals
from vitp.models.heads.rpn import MIN_SIDE
from vitp.models.heads.sampling import BatchSampler
from vitp.models.rotated.coders import EdgeSwapCoder
from vitp.models.rotated.nms import rotated_nms
from vitp.models.rotated.roi_align import MultiScaleRotatedRoIAlign


class OrientedBoxSettings(SettingsModel):
    """Second stage; the defaults are the paper's."""

    pool_size: int = Field(7, gt=0, le=256)
    """Cells on a side of a pooled region."""
    sampling: int = Field(2, gt=0, le=64)
    """Sampling points of a cell in each direction."""
    canonical_size: float = Field(224.0, gt=0, le=100_000)
    """Side in pixels of the regions that are pooled at stride 16."""
    hidden: int = Field(1024, gt=0, le=65_536)
    """Width of the two hidden layers."""
    iou: float = Field(0.5, gt=0, le=1)
    """A proposal holds an object from this rotated overlap (IoU) on."""
    samples: int = Field(512, gt=0, le=1_000_000)
    """Proposals of an image in the loss."""
    positive_share: float = Field(0.25, gt=0, le=1)
    """Largest share of these proposals that hold objects."""
    scales: tuple[Positive, Positive, Positive, Positive, Positive] = (0.1, 0.1, 0.2, 0.2, 0.1)
    """Divisors of dx, dy, dw, dh and da (radians) in the targets of the network."""
    smooth_l1_beta: float = Field(1.0, gt=0, le=1000)
    """Difference at which the box loss turns from square to linear."""
    score_threshold: float = Field(0.05, ge=0, lt=1)
    """Smallest score of a box at test."""
    nms_iou: float = Field(0.1, ge=0, le=1)
    """Rotated overlap (IoU) within a class above which the weaker of two boxes is dropped."""
    detections: int = Field(2000, gt=0, le=1_000_000)
    """Most boxes of an image at test."""


@dataclass(frozen=True)
class OrientedFound:
    """Objects found in one image, best first.

    Attributes:
        boxes_N5: Rotated boxes in pixels.
        scores_N: On 0..1.
        labels_N: 1 … C.
    """

    boxes_N5: Tensor
    scores_N: Tensor
    labels_N: Tensor


class OrientedBoxHead(nn.Module):
    """Oriented proposals → classes, and one move a proposal whatever its class.

    Args:
        strides: Strides of the levels that regions are read from, finest first.
        channels: D, of the levels.
        classes: C.
        settings: See `OrientedBoxSettings`.
    """

    def __init__(
        self, strides: Sequence[int], channels: int, classes: int, settings: OrientedBoxSettings
    ) -> None:
        super().__init__()
        self.settings = settings
        self.pool = MultiScaleRotatedRoIAlign(
            strides, settings.pool_size, settings.sampling, settings.canonical_size
        )
        self.layers = TwoMLPHead(channels * settings.pool_size**2, settings.hidden)
        self.score = nn.Linear(settings.hidden, classes + 1)
        self.move = nn.Linear(settings.hidden, 5)
        # As Fast R-CNN starts: nearly uniform scores, boxes that stay where the proposals are.
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.normal_(self.move.weight, std=0.001)
        nn.init.zeros_(self.score.bias)
        nn.init.zeros_(self.move.bias)
        self.coder = EdgeSwapCoder(settings.scales)
        self.sampler = BatchSampler(settings.samples, settings.positive_share)

    def forward(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], truths: Sequence[OrientedTruth]
    ) -> dict[str, Tensor]:
        """Return `class` and `box`: sums over images of the mean losses over each image's sampled proposals.

        As in Fast R-CNN the box loss is divided by all samples, not by those that hold objects.

        Args:
            maps: Levels, finest first; more than there are strides are left alone.
            proposals: (N, 5) of each image.
            truths: What to learn.
        """
        samples = [self._match(boxes_N5, truth) for boxes_N5, truth in zip(proposals, truths, strict=True)]
        drawn = self.sampler.draw([labels_N for _, labels_N, _ in samples])
        boxes = [boxes_N5[rows] for (boxes_N5, _, _), rows in zip(samples, drawn.rows, strict=True)]
        labels = [labels_N[rows] for (_, labels_N, _), rows in zip(samples, drawn.rows, strict=True)]
        weight_R, positive_weights = drawn.weights()
        logits_RK, moves_R5 = self._outputs(maps, boxes)
        class_loss = (F.cross_entropy(logits_RK, torch.cat(labels), reduction="none") * weight_R).sum()
        # An empty start, so that a batch without any object has something to concatenate.
        wanted, kept, start = [moves_R5.new_zeros(0, 5)], [], 0
        for (boxes_N5, _, matched_N), rows, own, truth in zip(
            samples, drawn.rows, drawn.positives, truths, strict=True
        ):
            if len(truth.boxes_N5):
                wanted.append(self.coder.encode(boxes_N5[own], truth.boxes_N5[matched_N[own]]))
            kept.append(start + torch.searchsorted(rows, own))
            start += len(rows)
        box_R5 = F.smooth_l1_loss(
            moves_R5[torch.cat(kept)],
            torch.cat(wanted),
            beta=self.settings.smooth_l1_beta,
            reduction="none",
        )
        return {"class": class_loss, "box": (box_R5.sum(1) * positive_weights).sum()}

    def _match(self, proposals_N5: Tensor, truth: OrientedTruth) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes to learn from (proposals and the objects' own), their labels and their objects' indices."""
        boxes_N5 = torch.cat([proposals_N5, truth.boxes_N5.to(proposals_N5.dtype)])
        return boxes_N5, *match_proposals(boxes_N5, truth, self.settings.iou)

    def _outputs(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits (R, K) and moves (R, 5), in float32: boxes are decoded from them."""
        hidden_RD = self.layers(self.pool(maps[: len(self.pool.strides)], with_image_index(boxes)))
        return self.score(hidden_RD).float(), self.move(hidden_RD).float()

    @torch.no_grad()
    def detect(self, maps: Sequence[Tensor], proposals: Sequence[Tensor]) -> list[OrientedFound]:
        """Return the objects of each image.

        Args:
            maps: Levels, finest first.
            proposals: (N, 5) of each image.
        """
        logits_RK, moves_R5 = self._outputs(maps, proposals)
        moved_R5 = self.coder.decode(torch.cat(list(proposals)), moves_R5)
        return self._keep(moved_R5, logits_RK.softmax(-1), [len(boxes_N5) for boxes_N5 in proposals])

    def _keep(self, boxes_R5: Tensor, scores_RK: Tensor, lengths: Sequence[int]) -> list[OrientedFound]:
        """Return what stays of each image's rows, by one suppression of them all."""
        scores_RC = scores_RK[:, 1:]
        real_R1 = (boxes_R5[:, 2:4] >= MIN_SIDE).all(1, keepdim=True)
        row, column = torch.where((scores_RC > self.settings.score_threshold) & real_R1)
        boxes_N5, scores_N, labels_N = boxes_R5[row], scores_RC[row, column], column + 1
        ends = torch.tensor(lengths).cumsum(0).to(row.device, non_blocking=True)
        image_N = torch.searchsorted(ends, row, right=True)
        # Images side by side, as classes are: none suppresses another's.
        kept = rotated_nms(boxes_N5, scores_N, self.settings.nms_iou, labels_N + image_N * scores_RK.shape[1])
        # What stays comes by falling score over all images; a stable sort keeps that order within each.
        kept = kept[image_N[kept].argsort(stable=True)]
        numbers = torch.arange(1, len(lengths) + 1, device=row.device)
        reached: list[int] = torch.searchsorted(image_N[kept], numbers).tolist()
        parts = [
            kept[start:end][: self.settings.detections]
            for start, end in zip([0, *reached], reached, strict=False)
        ]
        return [OrientedFound(boxes_N5[part], scores_N[part], labels_N[part]) for part in parts]
