"""Region proposal network: torchvision's, with anchors at known strides and with ignored objects.

Shapes: B images, A anchors of an image, N objects, M ignored objects, H × W pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import batched_nms, box_area, box_iou, clip_boxes_to_image

from vitp.core.config import Count, Positive, SettingsModel
from vitp.models.heads.sampling import BatchMatcher, BatchSampler, DrawnRows, counts_of

SMOOTH_L1_BETA = 1 / 9
"""Of the losses of proposed boxes."""

MIN_SIDE = 1e-2
"""Pixels; boxes with a shorter side are none."""
INSIDE = 0.5
"""Share of its own area from which on a box lies in an ignored place."""

OVERLAPS = 2**24
"""Overlaps kept in memory at once: 260,000 anchors and a thousand objects would need a gigabyte."""


@dataclass(frozen=True)
class ImageTruth:
    """What a detector learns from one image.

    Attributes:
        boxes_N4: float32 x1, y1, x2, y2 in pixels, none empty.
        labels_N: int64, 1 … C; 0 is the background.
        ignored_M4: Boxes of objects and places that count neither as objects nor as background.
        size: Height and width of the image without padding.
        masks_NHW: uint8, or None where only boxes are learned.
    """

    boxes_N4: Tensor
    labels_N: Tensor
    ignored_M4: Tensor
    size: tuple[int, int]
    masks_NHW: Tensor | None = None


class ProposalSettings(SettingsModel):
    """Region proposals; the defaults are those of Faster R-CNN with FPN."""

    anchor_scales: tuple[Positive, ...] = Field((8.0,), min_length=1)
    """Side of the square anchor in strides: 8 gives 32 … 512 px. For objects of 4–40 px take 2."""
    anchor_ratios: tuple[Positive, ...] = Field((0.5, 1.0, 2.0), min_length=1)
    """Height / width of the anchors."""
    positive_iou: float = Field(0.7, gt=0, le=1)
    """An anchor is an object from this overlap (IoU) on."""
    negative_iou: float = Field(0.3, ge=0, le=1)
    """An anchor is background below this overlap (IoU)."""
    samples: int = Field(256, gt=0, le=1_000_000)
    """Anchors of an image in the loss."""
    positive_share: float = Field(0.5, gt=0, le=1)
    """Largest share of these anchors that are objects."""
    keep_before: tuple[Count, Count] = (2000, 1000)
    """Best anchors of a level that enter the suppression, in training and at test."""
    keep: tuple[Count, Count] = (2000, 1000)
    """Proposals of an image that are kept, in training and at test."""
    nms_iou: float = Field(0.7, gt=0, le=1)
    """Overlap (IoU) within a level above which the weaker of two proposals is dropped."""


class StrideAnchors(AnchorGenerator):  # type: ignore[misc]  # torchvision has no types
    """Anchors at given strides in float32.

    torchvision's generator derives strides from the sizes of image and map, which is wrong where a map is
    rounded up, and takes the map's number type, in which coordinates are off by pixels under bfloat16.
    """

    def __init__(self, strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float]) -> None:
        sizes: Any = tuple(tuple(stride * scale for scale in scales) for stride in strides)
        super().__init__(sizes, (tuple(ratios),) * len(strides))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return (A, 4) anchors for each image."""
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        grids = [list(feature_map.shape[-2:]) for feature_map in feature_maps]
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        anchors_A4 = torch.cat(self.grid_anchors(grids, strides))
        return [anchors_A4] * len(image_list.image_sizes)


class _Float32Head(RPNHead):  # type: ignore[misc]  # torchvision has no types
    """Boxes are decoded from these outputs: bfloat16 would round their corners to whole pixels."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [logit.float() for logit in logits], [delta.float() for delta in deltas]


class ProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]  # torchvision has no types
    """Anchors on every level → boxes that may hold an object.

    Beside torchvision's it looks away from ignored objects and from padding, and takes the mean loss over each
    image's anchors rather than over the batch's, so that a batch can be cut.

    Args:
        strides: Strides of the levels, finest first.
        width: Channels of the levels.
        settings: Anchors, matching, sampling, suppression.
    """

    def __init__(self, strides: Sequence[int], width: int, settings: ProposalSettings) -> None:
        anchors = StrideAnchors(strides, settings.anchor_scales, settings.anchor_ratios)
        super().__init__(
            anchors,
            _Float32Head(width, anchors.num_anchors_per_location()[0]),
            settings.positive_iou,
            settings.negative_iou,
            settings.samples,
            settings.positive_share,
            dict(zip(("training", "testing"), settings.keep_before, strict=True)),
            dict(zip(("training", "testing"), settings.keep, strict=True)),
            settings.nms_iou,
        )
        self.proposal_matcher = BatchMatcher(
            settings.positive_iou, settings.negative_iou, allow_low_quality_matches=True
        )
        self.fg_bg_sampler = BatchSampler(settings.samples, settings.positive_share)

    def propose(
        self,
        maps_BChw: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        truths: Sequence[ImageTruth] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return (N, 4) proposals for each image, best first, and in training `objectness` and `proposal_box`.

        The losses are sums over images of the mean over the image's sampled anchors.

        Args:
            maps_BChw: Levels, finest first.
            sizes: Height and width of each image without padding; proposals are clipped to it.
            truths: What to learn, in training.
        """
        levels = OrderedDict((str(level), map_BChw) for level, map_BChw in enumerate(maps_BChw))
        images = ImageList(maps_BChw[0], list(sizes))
        targets: Any = truths and [
            {"boxes": truth.boxes_N4, "ignored": truth.ignored_M4, "size": truth.size} for truth in truths
        ]
        boxes, losses = self(images, levels, targets)
        names = {"loss_objectness": "objectness", "loss_rpn_box_reg": "proposal_box"}
        return boxes, {names[name]: loss for name, loss in losses.items()}

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Any]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return each anchor's label (1 object, 0 background, -1 neither) and the box that it is matched to."""
        labels, matched = super().assign_targets_to_anchors(anchors, targets)
        for label_A, anchors_A4, target in zip(labels, anchors, targets, strict=True):
            skip_A = outside(anchors_A4, target["size"]) | near(
                anchors_A4, target["ignored"], self.proposal_matcher.low_threshold, target["size"]
            )
            label_A.masked_fill_(skip_A & (label_A == 0), -1.0)
        return labels, matched

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the boxes of each image that stay, best first, and their scores: torchvision's, bit for bit.

        What is decided for all images at once asks the device once; only the suppression itself is an image's own.
        """
        logit_BA = objectness.detach().reshape(len(proposals), -1)
        best_BN = self._get_top_n_idx(logit_BA, num_anchors_per_level)
        numbers = [torch.full((n,), level) for level, n in enumerate(num_anchors_per_level)]
        level_BN = torch.cat(numbers).to(best_BN.device, non_blocking=True)[best_BN]
        score_BN = logit_BA.gather(1, best_BN).sigmoid()
        boxes_BN4 = proposals.gather(1, best_BN[..., None].expand(-1, -1, 4))
        boxes_BN4 = torch.stack(
            [clip_boxes_to_image(part, size) for part, size in zip(boxes_BN4, image_shapes, strict=True)]
        )
        kept_BN = real_boxes(boxes_BN4, self.min_size) & (score_BN >= self.score_thresh)
        rows = torch.nonzero(kept_BN.flatten())[:, 0]
        counts = counts_of(rows, [kept_BN.shape[1]] * len(kept_BN))
        parts = [of.flatten(0, 1)[rows].split(counts) for of in (boxes_BN4, score_BN, level_BN)]
        boxes, scores = [], []
        for boxes_N4, scores_N, levels_N in zip(*parts, strict=True):
            kept = batched_nms(boxes_N4, scores_N, levels_N, self.nms_thresh)[: self.post_nms_top_n()]
            boxes.append(boxes_N4[kept])
            scores.append(scores_N[kept])
        return boxes, scores

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: Any,
    ) -> tuple[Tensor, Tensor]:
        """Return sums over images of the mean losses over each image's sampled anchors."""
        label_BA = torch.stack(labels)
        drawn = self.fg_bg_sampler.draw(labels)
        return sampled_losses(
            objectness.view(label_BA.shape),
            label_BA,
            pred_bbox_deltas.view(*label_BA.shape, 4),
            torch.cat([of[rows] for of, rows in zip(regression_targets, drawn.positives, strict=True)]),
            drawn,
        )


def real_boxes(boxes: Tensor, side: float = MIN_SIDE) -> Tensor:
    """Return (…) bool: which boxes (…, 4) have no shorter side than that."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= side).all(-1)


def sampled_losses(
    logit_BA: Tensor, label_BA: Tensor, move_BAK: Tensor, wanted_RK: Tensor, drawn: DrawnRows
) -> tuple[Tensor, Tensor]:
    """Return the losses of objectness and of boxes: sums over images of the mean over the image's sampled anchors.

    Args:
        logit_BA: Whether there is an object.
        label_BA: 1 for an object, 0 for background.
        move_BAK: Coded boxes, K numbers each.
        wanted_RK: Their targets at the R sampled anchors that are objects.
        drawn: The sampled anchors.
    """
    anchors = logit_BA.shape[1]
    chosen, positive = (
        torch.cat([rows + image * anchors for image, rows in enumerate(part)])
        for part in (drawn.rows, drawn.positives)
    )
    weights, positive_weights = drawn.weights()
    objectness = F.binary_cross_entropy_with_logits(
        logit_BA.flatten()[chosen], label_BA.flatten()[chosen].float(), weights, reduction="sum"
    )
    move_RK = move_BAK.flatten(0, 1)[positive]
    box_RK = F.smooth_l1_loss(move_RK, wanted_RK, beta=SMOOTH_L1_BETA, reduction="none")
    return objectness, (box_RK.sum(1) * positive_weights).sum()


def near(boxes_A4: Tensor, ignored_M4: Tensor, iou: float, size: tuple[int, int] | None = None) -> Tensor:
    """Return (A,) bool: which boxes an ignored place keeps from being background.

    Those that overlap it by `iou`, as they would an object, and those that lie in it by half of their own area: a crowd
    is far larger than the objects in it.

    Args:
        boxes_A4: Anchors or proposals.
        ignored_M4: Places.
        iou: On 0..1.
        size: Height and width of the image, where boxes may leave it: what is outside is no part of their area.
    """
    if not len(ignored_M4) or not len(boxes_A4):
        return torch.zeros(len(boxes_A4), dtype=torch.bool, device=boxes_A4.device)
    ignored_M4 = ignored_M4.to(boxes_A4.dtype)
    seen_A4 = boxes_A4
    if size is not None:
        seen_A4 = clip_boxes_to_image(boxes_A4, size)
    step = max(1, OVERLAPS // len(ignored_M4))
    return torch.cat(
        [
            # Anchors reach beyond the image: of them the part within it is asked how far it is hidden.
            ((box_iou(part_P4, ignored_M4) >= iou) | (shares_inside(seen_P4, ignored_M4) >= INSIDE)).any(1)
            for part_P4, seen_P4 in zip(boxes_A4.split(step), seen_A4.split(step), strict=True)
        ]
    )


def shares_inside(boxes_A4: Tensor, places_M4: Tensor) -> Tensor:
    """Return (A, M) the share of each box's own area that lies in each place; 0 for boxes without area."""
    first_AM2 = torch.maximum(boxes_A4[:, None, :2], places_M4[None, :, :2])
    last_AM2 = torch.minimum(boxes_A4[:, None, 2:], places_M4[None, :, 2:])
    shares_AM: Tensor = (last_AM2 - first_AM2).clamp(min=0).prod(-1) / box_area(boxes_A4)[:, None].clamp(
        min=1e-6
    )
    return shares_AM


def outside(boxes_A4: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (A,) bool: which boxes have their centre in the padding."""
    centre_x, centre_y = (boxes_A4[:, 0] + boxes_A4[:, 2]) / 2, (boxes_A4[:, 1] + boxes_A4[:, 3]) / 2
    return (centre_y >= size[0]) | (centre_x >= size[1])
