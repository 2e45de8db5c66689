"""Greedy non-maximum suppression of rotated boxes.

Shapes: N boxes; 5: a rotated box (see `vitp.models.rotated.boxes`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vitp.models.rotated.boxes import hulls_of, in_double
from vitp.models.rotated.iou import paired_rotated_iou, pairs_at_once
from vitp.models.rotated.pairs import overlapping_pairs

BLOCK = 1024
"""Boxes decided together. What they suppress is dropped before the next block, so that memory stays bounded."""


@torch.no_grad()
def rotated_nms(
    boxes_N5: Tensor, scores_N: Tensor, iou_threshold: float, labels_N: Tensor | None = None
) -> Tensor:
    """Return the indices of the boxes that stay, by falling score; equal scores keep their order.

    A box goes when its IoU with a kept box of higher score is *greater* than the threshold.

    Args:
        boxes_N5: Rotated boxes.
        scores_N: Finite scores.
        iou_threshold: On 0..1.
        labels_N: Boxes of different labels leave each other alone.
    """
    order = scores_N.argsort(descending=True, stable=True)
    boxes = in_double(boxes_N5[order].detach())
    hulls = hulls_of(boxes)
    if labels_N is not None and len(boxes):
        # Labels side by side instead of on top of each other; exact overlaps are computed from the boxes themselves.
        span = float(hulls[:, 2].max() - hulls[:, 0].min()) + 1
        hulls[:, 0::2] += in_double(labels_N[order, None]) * span
    waiting = torch.arange(len(boxes), device=boxes.device)
    kept: list[Tensor] = []
    while len(waiting):
        block, waiting = waiting[:BLOCK], waiting[BLOCK:]
        block = block[_keep_in_block(boxes[block], hulls[block], iou_threshold)]
        kept.append(block)
        gone = torch.zeros(len(waiting), dtype=torch.bool, device=boxes.device)
        if len(waiting):
            for _, j in _close_pairs(
                boxes[block], boxes[waiting], hulls[block], hulls[waiting], iou_threshold
            ):
                gone[j] = True
        waiting = waiting[~gone]
    return order[torch.cat(kept).to(order.device)] if kept else order


def _close_pairs(
    first: Tensor,
    second: Tensor,
    first_hulls: Tensor,
    second_hulls: Tensor,
    threshold: float,
    *,
    own: bool = False,
) -> list[tuple[Tensor, Tensor]]:
    """Return the pairs with an IoU above the threshold; of a set with itself (`own`) only those with i < j."""
    found = []
    step = pairs_at_once(first)
    for i, j in overlapping_pairs(first_hulls, second_hulls):
        if own:
            later = i < j
            i, j = i[later], j[later]
        for part_i, part_j in zip(i.split(step), j.split(step), strict=True):
            close = paired_rotated_iou(first[part_i], second[part_j]) > threshold
            found.append((part_i[close], part_j[close]))
    return found


def _keep_in_block(boxes: Tensor, hulls: Tensor, threshold: float) -> Tensor:
    """Return the mask of the boxes that stay among themselves; they come by falling score."""
    pairs = _close_pairs(boxes, boxes, hulls, hulls, threshold, own=True)
    gone = np.zeros(len(boxes), dtype=bool)
    if pairs:
        i = torch.cat([pair[0] for pair in pairs]).cpu().numpy()
        j = torch.cat([pair[1] for pair in pairs]).cpu().numpy()
        order = np.argsort(i, kind="stable")
        i, j = i[order], j[order]
        starts = np.searchsorted(i, np.arange(len(boxes) + 1))
        # Each decision hangs on those before it, so the loop runs on the host, where a step launches nothing.
        for box in range(len(boxes)):
            if not gone[box]:
                gone[j[starts[box] : starts[box + 1]]] = True
    return torch.from_numpy(~gone).to(boxes.device)
