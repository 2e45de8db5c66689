"""The assignment of anchors and proposals to oriented objects.

Shapes: A anchors or proposals, N objects, M objects to look away from; 4: x1, y1, x2, y2; 5: a rotated box (see
`vitp.models.rotated.boxes`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from vitp.models.heads.rpn import INSIDE, OVERLAPS
from vitp.models.rotated.iou import rotated_iou


@dataclass(frozen=True)
class OrientedTruth:
    """What an oriented detector learns from one image.

    Attributes:
        boxes_N5: float32 rotated boxes in pixels, none empty.
        labels_N: int64, 1 … C; 0 is the background.
        ignored_M5: Objects and places that count neither as objects nor as background.
        size: Height and width of the image without padding.
    """

    boxes_N5: Tensor
    labels_N: Tensor
    ignored_M5: Tensor
    size: tuple[int, int]


@torch.no_grad()
def match_anchors(
    anchors_A4: Tensor, hulls_N4: Tensor, *, positive_iou: float, negative_iou: float, lowest_iou: float
) -> tuple[Tensor, Tensor]:
    """Return each anchor's kind, (A,): 1 object, 0 background, -1 neither; and the index of its object, (A,).

    An anchor is an object's if it overlaps it by `positive_iou` or more, and background if it overlaps none by
    `negative_iou`. An object's best anchors are its own as well, if they overlap it by `lowest_iou` at least: few
    objects fit an anchor that well by chance.
    """
    kind_A = torch.zeros(len(anchors_A4), dtype=torch.int64, device=anchors_A4.device)
    matched_A = torch.zeros_like(kind_A)
    if not len(hulls_N4) or not len(anchors_A4):
        return kind_A, matched_A
    parts = anchors_A4.split(max(1, OVERLAPS // len(hulls_N4)))
    best_N = torch.zeros(len(hulls_N4), dtype=anchors_A4.dtype, device=anchors_A4.device)
    best, matched = [], []
    for part in parts:
        overlap_PN = box_iou(part, hulls_N4)
        best_P, matched_P = overlap_PN.max(1)
        best.append(best_P)
        matched.append(matched_P)
        best_N = torch.maximum(best_N, overlap_PN.amax(0))
    best_A, matched_A = torch.cat(best), torch.cat(matched)
    kind_A = torch.where(best_A < negative_iou, 0, -1)
    kind_A = torch.where(best_A >= positive_iou, 1, kind_A)
    # Without "> 0" an object that overlaps no anchor would make all of them its best.
    counts_N = (best_N >= lowest_iou) & (best_N > 0)
    start = 0
    for part in parts:  # a second time, as it is only now known how well each object's best anchor fits
        anchor, hull = torch.nonzero((box_iou(part, hulls_N4) == best_N) & counts_N, as_tuple=True)
        kind_A[start + anchor], matched_A[start + anchor] = 1, hull
        start += len(part)
    return kind_A, matched_A


@torch.no_grad()
def match_proposals(proposals_A5: Tensor, truth: OrientedTruth, iou: float) -> tuple[Tensor, Tensor]:
    """Return each proposal's label, (A,): 1 … C, 0 background, -1 nothing; and the index of its object, (A,).

    A proposal belongs to the object that it overlaps most, if by `iou` or more. One that overlaps an ignored place as
    far, or lies in it by half of its own area, is nothing.
    """
    labels_A = torch.zeros(len(proposals_A5), dtype=torch.int64, device=proposals_A5.device)
    matched_A = torch.zeros_like(labels_A)
    if len(truth.boxes_N5) and len(proposals_A5):
        best_A, matched_A = rotated_iou(proposals_A5, truth.boxes_N5).max(1)
        labels_A = torch.where(best_A >= iou, truth.labels_N[matched_A], labels_A)
    if len(truth.ignored_M5) and len(proposals_A5):
        hidden_A = rotated_iou(proposals_A5, truth.ignored_M5).amax(1) >= iou
        hidden_A |= rotated_iou(proposals_A5, truth.ignored_M5, "iof").amax(1) >= INSIDE
        labels_A = labels_A.masked_fill((labels_A == 0) & hidden_A, -1)
    return labels_A, matched_A
