"""Detectors with a fixed number of proposals and detections: what `RCNN` and Oriented R-CNN find, as rows of one table.

A row is a proposal with what the last stage makes of it. Rows that stand for nothing, where fewer proposals were left,
have scores of 0. What overlaps stays in the table, for the suppression of rows is cheap outside of a graph.

Shapes: B images, N proposals, C classes, R rows, K candidates, M detections, P × P cells of a mask, D channels; 4: x1,
y1, x2, y2; 5: a rotated box (see `vitp.models.rotated.boxes`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from vitp.models.heads.cascade import BoxStage, CascadeHead
from vitp.models.heads.mask import MaskHead
from vitp.models.heads.oriented_roi import OrientedBoxHead
from vitp.models.heads.oriented_rpn import OrientedProposalNetwork
from vitp.models.heads.rcnn import RCNN
from vitp.models.heads.rpn import MIN_SIDE, ProposalNetwork
from vitp.models.rotated.boxes import hulls_of
from vitp.models.static.atlas import StaticRegionPool, StaticRotatedPool
from vitp.models.static.suppression import gathered_rows, kept_boxes, kept_of_levels

NOTHING = -1e4
"""Score of a place of the table that is empty: below all logits, and a number that half precision holds."""

MASK_CANDIDATES = 2000
"""Boxes of one class that enter the suppression before masks are made."""

Sizes = Sequence[tuple[int, int]]


def _clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    x, y = boxes[..., 0::2].clamp(0, size[1]), boxes[..., 1::2].clamp(0, size[0])
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def _best(scores_BN: Tensor, count: int, *tables: Tensor) -> tuple[Tensor, ...]:
    """Return the highest scores (B, count) and the rows of tables (B, N, …) that they belong to."""
    best_BM, index_BM = scores_BN.topk(min(count, scores_BN.shape[1]), dim=1)
    return best_BM, *(gathered_rows(table, index_BM) for table in tables)


def _add_anchors(
    module: nn.Module, generator: AnchorGenerator, maps: Sequence[Tensor], size: tuple[int, int]
) -> None:
    """Give a module the anchors of each level: images have one size here, so they are constants of the graph."""
    anchors_A4 = generator(ImageList(maps[0], [size]), list(maps))[0]
    per_cell = generator.num_anchors_per_location()
    counts = [map_BDhw[0, 0].numel() * count for map_BDhw, count in zip(maps, per_cell, strict=True)]
    for level, anchors in enumerate(anchors_A4.split(counts)):
        module.register_buffer(f"anchors_{level}", anchors.clone(), persistent=False)


def _proposed(
    scores: list[Tensor], kept: list[Tensor], boxes: list[Tensor], count: int
) -> tuple[Tensor, Tensor]:
    """Return the best boxes of all levels that the suppression kept, and (B, N) float32: 1 where there is one."""
    kept_BA = torch.cat(kept, 1)
    score_BA = torch.cat(scores, 1) * kept_BA + NOTHING * (1 - kept_BA)
    best_BN, boxes_BND = _best(score_BA, count, torch.cat(boxes, 1))
    return boxes_BND, (best_BN > NOTHING / 2).float()


class StaticProposals(nn.Module):
    """`ProposalNetwork` with a fixed number of proposals.

    Args:
        network: The one whose proposals are wanted.
        maps: Maps of any image of the size, which tell the sizes of the levels.
        size: Height and width of the images.
        count: Proposals; None: as many as the network keeps at test.
    """

    def __init__(
        self, network: ProposalNetwork, maps: Sequence[Tensor], size: tuple[int, int], count: int | None
    ) -> None:
        super().__init__()
        self.network, self.size = network, size
        _add_anchors(self, network.anchor_generator, maps, size)
        before, after = network.pre_nms_top_n(), network.post_nms_top_n()
        self.before, self.count = before if count is None else min(before, count), count or after

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return (B, N, 4) proposals and (B, N) float32: 1 where there is one."""
        logits, moves = self.network.head(list(maps))
        scores, boxes, valid = [], [], []
        for level, (logit, move) in enumerate(zip(logits, moves, strict=True)):
            logit_BA = logit.permute(0, 2, 3, 1).flatten(1)
            move_BA4 = move.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
            anchors_BA4 = getattr(self, f"anchors_{level}").expand_as(move_BA4)
            logit_BK, move_BK4, anchors_BK4 = _best(logit_BA, self.before, move_BA4, anchors_BA4)
            boxes_BK4 = self.network.box_coder.decode_single(
                move_BK4.flatten(0, 1), anchors_BK4.flatten(0, 1)
            ).view(move_BK4.shape)
            boxes_BK4 = _clipped(boxes_BK4, self.size)
            sides_BK2 = boxes_BK4[..., 2:] - boxes_BK4[..., :2]
            valid_BK = (sides_BK2 >= self.network.min_size).all(-1).float()
            scores.append(logit_BK.sigmoid())
            boxes.append(boxes_BK4)
            valid.append(valid_BK)
        kept = kept_of_levels(boxes, valid, self.network.nms_thresh)
        return _proposed(scores, kept, boxes, self.count)


class StaticRCNN(nn.Module):
    """`RCNN` as a table of rows, and where it has a mask head, the masks of the best of them.

    Args:
        head: The one whose detections are wanted.
        maps: Maps of any image of the size.
        size: Height and width of the images.
        count: Proposals; None: as many as the head keeps at test.
    """

    def __init__(
        self, head: RCNN, maps: Sequence[Tensor], size: tuple[int, int], count: int | None = None
    ) -> None:
        super().__init__()
        self.size = size
        self.proposals = StaticProposals(head.proposals, maps, size, count)
        self.boxes: CascadeHead = head.boxes
        sizes = [(level.shape[-2], level.shape[-1]) for level in maps]
        self.pool = StaticRegionPool(self.boxes.pool, sizes[: len(self.boxes.pool.strides)])
        self.masks: MaskHead | None = head.masks
        self.mask_pool: StaticRegionPool | None = None
        if self.masks is not None:
            pool = self.masks.pool
            self.mask_pool = StaticRegionPool(pool, sizes[: len(pool.strides)])

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return (B, 4 + C, R): centre x and y, width, height, scores; with a mask head the best M rows after the
        suppression, and (B, M, P, P) the masks of their classes on 0..1."""
        boxes_BN4, valid_BN = self.proposals(maps)
        boxes, scores_BNC = self._stages(maps, boxes_BN4)
        scores_BNC = scores_BNC * valid_BN[..., None]
        classes = scores_BNC.shape[2]
        if boxes.ndim == 4:  # each class has boxes of its own: a row for each
            one_CC = torch.eye(classes, device=scores_BNC.device)
            scores_BNC = (scores_BNC[:, :, :, None] * one_CC).flatten(1, 2)
            boxes = boxes.flatten(1, 2)
        if self.masks is None:
            return (_table(boxes, scores_BNC),)
        return self._with_masks(maps, boxes, scores_BNC)

    def _stages(self, maps: Sequence[Tensor], boxes_BN4: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (B, N, 4) or (B, N, C, 4), and scores (B, N, C)."""
        count, boxes = boxes_BN4.shape[1], boxes_BN4
        scores_RK: Tensor | None = None
        for stage in self.boxes.stages:
            assert isinstance(stage, BoxStage)
            logits_RK, moves = stage(self.pool(maps, boxes))
            share_RK = logits_RK.softmax(-1) / len(self.boxes.stages)
            scores_RK = share_RK if scores_RK is None else scores_RK + share_RK
            moved_R = stage.coder.decode_single(moves.flatten(1), boxes.flatten(0, 1))
            shape = (4,) if stage.class_agnostic else (stage.classes + 1, 4)
            boxes = _clipped(moved_R.view(-1, count, *shape), self.size)
        assert scores_RK is not None
        scores_BNC = scores_RK.view(-1, count, scores_RK.shape[-1])[..., 1:]
        return boxes if boxes.ndim == 3 else boxes[:, :, 1:], scores_BNC

    def _with_masks(
        self, maps: Sequence[Tensor], boxes_BR4: Tensor, scores_BRC: Tensor
    ) -> tuple[Tensor, Tensor]:
        assert self.masks is not None
        assert self.mask_pool is not None
        settings, classes = self.boxes.settings, scores_BRC.shape[2]
        row_BRC4 = boxes_BR4[:, :, None].expand(-1, -1, classes, -1).flatten(1, 2)
        label_C1 = torch.arange(classes, device=boxes_BR4.device, dtype=torch.float32)[:, None]
        label_BR1 = label_C1.expand(scores_BRC.shape[1], -1, 1).flatten(0, 1).expand_as(row_BRC4[..., :1])
        sides_BR2 = row_BRC4[..., 2:] - row_BRC4[..., :2]
        real_BR = (sides_BR2 >= MIN_SIDE).all(-1).float()
        score_BR = scores_BRC.flatten(1) * real_BR
        score_BK, boxes_BK4, label_BK1 = _best(score_BR, MASK_CANDIDATES, row_BRC4, label_BR1)
        valid_BK = (score_BK > settings.score_threshold).float()
        kept_BK = kept_boxes(boxes_BK4, valid_BK, settings.nms_iou, label_BK1[..., 0])
        best_BM, boxes_BM4, label_BM1 = _best(score_BK * kept_BK, settings.detections, boxes_BK4, label_BK1)
        one_BMC = (label_BM1 == label_C1[:, 0]).float()
        logits_RCPP = self.masks.predictor(self.masks.layers(self.mask_pool(maps, boxes_BM4)))
        own_RPP = (logits_RCPP * one_BMC.flatten(0, 1)[..., None, None]).sum(1)
        masks_BMPP = own_RPP.sigmoid().unflatten(0, (-1, best_BM.shape[1]))
        return _table(boxes_BM4, best_BM[..., None] * one_BMC), masks_BMPP


def _table(boxes_BR4: Tensor, scores_BRC: Tensor) -> Tensor:
    centre_BR2 = (boxes_BR4[..., :2] + boxes_BR4[..., 2:]) / 2
    sides_BR2 = boxes_BR4[..., 2:] - boxes_BR4[..., :2]
    return torch.cat([centre_BR2, sides_BR2, scores_BRC], dim=-1).transpose(1, 2)


class StaticOriented(nn.Module):
    """Oriented R-CNN's two stages as a table of rows.

    Args:
        proposals: First stage.
        boxes: Second stage.
        maps: Maps of any image of the size.
        size: Height and width of the images.
        count: Proposals; None: as many as the first stage keeps at test.
    """

    def __init__(
        self,
        proposals: OrientedProposalNetwork,
        boxes: OrientedBoxHead,
        maps: Sequence[Tensor],
        size: tuple[int, int],
        count: int | None = None,
    ) -> None:
        super().__init__()
        self.proposals, self.boxes, self.size = proposals, boxes, size
        _add_anchors(self, proposals.anchors, maps, size)
        before, after = proposals.settings.keep_before[1], proposals.settings.keep[1]
        self.before, self.count = before if count is None else min(before, count), count or after
        sizes = [(level.shape[-2], level.shape[-1]) for level in maps]
        self.pool = StaticRotatedPool(boxes.pool, sizes[: len(boxes.pool.strides)])

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return (B, 4 + C + 1, N): centre x and y, the longer and the shorter side, scores, angle in radians."""
        boxes_BN5, valid_BN = self._propose(maps)
        hidden_RD = self.boxes.layers(self.pool(maps[: len(self.boxes.pool.strides)], boxes_BN5))
        logits_RK, moves_R5 = self.boxes.score(hidden_RD).float(), self.boxes.move(hidden_RD).float()
        moved_BN5 = self.boxes.coder.decode(boxes_BN5.flatten(0, 1), moves_R5).view(boxes_BN5.shape)
        scores_BNK = logits_RK.softmax(-1).unflatten(0, (-1, boxes_BN5.shape[1]))
        scores_BNC = scores_BNK[..., 1:] * valid_BN[..., None]
        return (torch.cat([moved_BN5[..., :4], scores_BNC, moved_BN5[..., 4:]], dim=-1).transpose(1, 2),)

    def _propose(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        network, (height, width) = self.proposals, self.size
        scores, boxes, valid = [], [], []
        for level, map_BDhw in enumerate(maps):
            shared_BDhw = F.relu(network.shared(map_BDhw))
            logit_BA = network.score(shared_BDhw).permute(0, 2, 3, 1).flatten(1)
            move_BA6 = network.move(shared_BDhw).unflatten(1, (-1, 6)).permute(0, 3, 4, 1, 2).flatten(1, 3)
            anchors_BA4 = getattr(self, f"anchors_{level}").expand(move_BA6.shape[0], -1, -1)
            logit_BK, move_BK6, anchors_BK4 = _best(logit_BA, self.before, move_BA6, anchors_BA4)
            boxes_BK5 = network.coder.decode(anchors_BK4, move_BK6)
            cx, cy, shorter = boxes_BK5[..., 0], boxes_BK5[..., 1], boxes_BK5[..., 3]
            inside = (cx >= 0) & (cx < width) & (cy >= 0) & (cy < height)
            valid_BK = (inside & (shorter >= MIN_SIDE)).float()
            scores.append(logit_BK)
            boxes.append(boxes_BK5)
            valid.append(valid_BK)
        hulls = [hulls_of(level) for level in boxes]
        kept = kept_of_levels(hulls, valid, network.settings.nms_iou)
        return _proposed(scores, kept, boxes, self.count)
