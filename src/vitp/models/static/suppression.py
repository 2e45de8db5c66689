"""Greedy non-maximum suppression of a fixed number of boxes, as a fixed number of matrix products.

Greedy suppression says: a box stays when no box that stays, and is surer, overlaps it too much. Begin with all boxes
and apply this sentence to all of them at once, again and again: after t rounds all boxes are decided whose chain of
"it would go, if that one didn't go because of …" is no longer than t. So few rounds give what the loop over boxes
gives, with shapes that are known beforehand.

Shapes: B images, N boxes by falling score; 4: x1, y1, x2, y2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = 24
"""Chains of overlapping boxes that are decided as by the loop; those of region proposals have about six links."""


def box_overlaps(boxes_BN4: Tensor) -> Tensor:
    """Return (B, N, N) the IoU of all pairs of boxes; 0 for boxes without area."""
    low_BNN2 = torch.maximum(boxes_BN4[:, :, None, :2], boxes_BN4[:, None, :, :2])
    high_BNN2 = torch.minimum(boxes_BN4[:, :, None, 2:], boxes_BN4[:, None, :, 2:])
    sides_BNN2 = (high_BNN2 - low_BNN2).clamp(min=0)
    shared_BNN = sides_BNN2[..., 0] * sides_BNN2[..., 1]
    area_BN = (boxes_BN4[..., 2] - boxes_BN4[..., 0]) * (boxes_BN4[..., 3] - boxes_BN4[..., 1])
    whole_BNN = area_BN[:, :, None] + area_BN[:, None, :] - shared_BNN
    # Empty slots are boxes without area, whose overlap would be 0 / 0.
    return shared_BNN / whole_BNN.clamp(min=1e-9)


def kept_boxes(boxes_BN4: Tensor, valid_BN: Tensor, iou: float, labels_BN: Tensor | None = None) -> Tensor:
    """Return (B, N) float32: 1 for boxes that stay, 0 for others.

    Args:
        boxes_BN4: By falling score.
        valid_BN: float32: 0 for boxes that neither stay nor suppress others.
        iou: Overlap above which the weaker of two boxes goes.
        labels_BN: Boxes of different labels leave each other alone.
    """
    count = boxes_BN4.shape[1]
    # 1 at (i, j) where i < j: boxes come by falling score, so box i is surer than box j.
    surer_NN = torch.ones(count, count, device=boxes_BN4.device).triu(1)
    above_BNN = (box_overlaps(boxes_BN4) > iou).float() * surer_NN
    if labels_BN is not None:
        above_BNN = above_BNN * (labels_BN[:, :, None] == labels_BN[:, None, :]).float()
    kept_BN = valid_BN
    for _ in range(ROUNDS):
        # How many boxes that are surer, and stay as far as is known, lie over each one.
        over_BN = torch.matmul(kept_BN[:, None], above_BNN)[:, 0]
        kept_BN = valid_BN * (over_BN < 0.5).float()
    return kept_BN


def gathered_rows(values_BNK: Tensor, index_BM: Tensor) -> Tensor:
    """Return (B, M, K): the rows with the given numbers."""
    return values_BNK.gather(1, index_BM[..., None].expand(-1, -1, values_BNK.shape[-1]))


def kept_of_levels(boxes: Sequence[Tensor], valid: Sequence[Tensor], iou: float) -> list[Tensor]:
    """Return for each level (B, N) float32: 1 for boxes that stay among those of their level; see `kept_boxes`.

    Args:
        boxes: (B, N, 4) of each level, by falling score; N may differ.
        valid: (B, N) of each level.
        iou: Overlap above which the weaker of two boxes goes.
    """
    counts = [level.shape[1] for level in boxes]
    most = max(counts)
    # Levels beside each other as images are: one set of operators serves all.
    boxes_LN4 = torch.cat([F.pad(level, (0, 0, 0, most - level.shape[1])) for level in boxes])
    valid_LN = torch.cat([F.pad(level, (0, most - level.shape[1])) for level in valid])
    kept = kept_boxes(boxes_LN4, valid_LN, iou).unflatten(0, (len(counts), -1)).unbind()
    return [level_BN[:, :count] for level_BN, count in zip(kept, counts, strict=True)]
