"""Losses of sets of masks, as Mask2Former's (arXiv 2112.01527): each true mask is matched to one query.

Masks are compared at points: for the matching at random ones, for the losses mostly where a mask is unsure. Points of
which nobody knows what is there count for nothing.

Shapes: B images, Q queries, C classes, N true masks, R matched pairs, P points, H × W pixels, h × w cells of a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from transformers.models.eomt.modeling_eomt import (
    pair_wise_dice_loss,
    pair_wise_sigmoid_cross_entropy_loss,
    sample_point,
)

from vitp.models.heads.mask_queries import MaskOutputs, MaskQuerySettings

MASK_LOSSES = ("class", "mask", "dice")


@dataclass(frozen=True)
class MaskTruth:
    """The true masks of one image, padded as the image is.

    Attributes:
        labels_N: int64, 0 … C − 1.
        masks_NHW: uint8, 0 or 1.
        known_HW: bool: of which pixels it is known what they are.
    """

    labels_N: Tensor
    masks_NHW: Tensor
    known_HW: Tensor


def mask_losses(
    found: Sequence[MaskOutputs], truths: Sequence[MaskTruth], settings: MaskQuerySettings
) -> dict[str, Tensor]:
    """Return the sums over images, masks and outputs of `class`, `mask` and `dice`; see `mask_loss_counts`.

    Args:
        found: Of each block; each is matched for itself.
        truths: One an image.
        settings: Weights and points.
    """
    sums: dict[str, list[Tensor]] = {name: [] for name in MASK_LOSSES}
    for outputs in found:
        for class_QC, mask_Qhw, truth in zip(outputs.class_BQC, outputs.mask_BQhw, truths, strict=True):
            for name, loss in _image_losses(class_QC, mask_Qhw, truth, settings).items():
                sums[name].append(loss)
    return {name: torch.stack(parts).sum() for name, parts in sums.items()}


def mask_loss_counts(masks: Sequence[int], settings: MaskQuerySettings) -> dict[str, float]:
    """Return what the sums are divided by: the weights of all queries, and the number of matched masks.

    Args:
        masks: True masks of each image.
        settings: Weights.
    """
    matched = [min(count, settings.queries) for count in masks]
    free = sum(settings.queries - count for count in matched)
    return {
        "class": sum(matched) + settings.no_object * free,
        "mask": float(sum(matched)),
        "dice": float(sum(matched)),
    }


def _image_losses(
    class_QC: Tensor, mask_Qhw: Tensor, truth: MaskTruth, settings: MaskQuerySettings
) -> dict[str, Tensor]:
    height, width = truth.known_HW.shape
    points = settings.points_of(height, width)
    masks_N1HW, known_11HW = truth.masks_NHW[:, None].float(), truth.known_HW[None, None].float()
    # The matching compares each query with each true mask, so that all have to be read at the same places.
    places_1P2 = torch.rand(1, points, 2, device=mask_Qhw.device)
    with torch.no_grad():
        known_P = _at(known_11HW, places_1P2)[0] > 0.5
        guess_QP = _at(mask_Qhw[:, None], places_1P2)
        rows_R, columns_R = _matched(
            class_QC, guess_QP[:, known_P], _at(masks_N1HW, places_1P2)[:, known_P], truth.labels_N, settings
        )
        # A query that says what nobody knows is neither right nor wrong.
        inside_QP = guess_QP > 0
        unknown_Q = 2 * (inside_QP & ~known_P).sum(1) > inside_QP.sum(1)
    target_Q = torch.full_like(class_QC[:, 0], class_QC.shape[1] - 1, dtype=torch.int64)
    target_Q[rows_R] = truth.labels_N[columns_R]
    weight_Q = torch.full_like(class_QC[:, 0], settings.no_object).masked_fill(unknown_Q, 0.0)
    weight_Q[rows_R] = 1.0
    losses = {"class": (F.cross_entropy(class_QC, target_Q, reduction="none") * weight_Q).sum()}
    if not len(rows_R):
        # The graph stays whole: every rank has a gradient for every parameter.
        return losses | dict.fromkeys(("mask", "dice"), mask_Qhw.sum() * 0)
    guess_R1hw, true_R1HW = mask_Qhw[rows_R, None], masks_N1HW[columns_R]
    places_RP2 = _uncertain_places(guess_R1hw, points, settings)
    logits_RP, true_RP = _at(guess_R1hw, places_RP2), _at(true_R1HW, places_RP2)
    known_RP = _at(known_11HW.expand(len(rows_R), -1, -1, -1), places_RP2) > 0.5
    error_RP = F.binary_cross_entropy_with_logits(logits_RP, true_RP, reduction="none") * known_RP
    guess_RP, true_RP = logits_RP.sigmoid() * known_RP, true_RP * known_RP
    # 1 on both sides, as in Mask2Former: a mask that is empty at all points and is guessed so costs nothing.
    dice_R = 1 - (2 * (guess_RP * true_RP).sum(1) + 1) / (guess_RP.sum(1) + true_RP.sum(1) + 1)
    return losses | {"mask": (error_RP.sum(1) / known_RP.sum(1).clamp(min=1)).sum(), "dice": dice_R.sum()}


def _at(maps_N1hw: Tensor, places: Tensor) -> Tensor:
    """Return (N, P) values at places on 0..1, x first: (N, P, 2), or (1, P, 2) for all."""
    # At the rim a point lies beyond the last centre: the default padding would mix in zeros there.
    values_N1P: Tensor = sample_point(
        maps_N1hw, places.expand(len(maps_N1hw), -1, -1), align_corners=False, padding_mode="border"
    )
    return values_N1P[:, 0]


@torch.no_grad()
def _uncertain_places(logits_R1hw: Tensor, points: int, settings: MaskQuerySettings) -> Tensor:
    """Return (R, P, 2) places, a share of them where logits are near to 0, as in PointRend (arXiv 1912.08193)."""
    count, device = len(logits_R1hw), logits_R1hw.device
    drawn_RS2 = torch.rand(count, int(points * settings.oversample), 2, device=device)
    unsure = round(settings.uncertain * points)
    best_RU = (-_at(logits_R1hw, drawn_RS2).abs()).topk(unsure, dim=1).indices
    chosen_RU2 = drawn_RS2.gather(1, best_RU[..., None].expand(-1, -1, 2))
    return torch.cat([chosen_RU2, torch.rand(count, points - unsure, 2, device=device)], dim=1)


def _matched(
    class_QC: Tensor, guess_QP: Tensor, true_NP: Tensor, labels_N: Tensor, settings: MaskQuerySettings
) -> tuple[Tensor, Tensor]:
    """Return the numbers of queries and of true masks that belong together, at least cost."""
    # As in DETR the probability and not its logarithm, which has no bound.
    cost_QN = -settings.class_loss * class_QC.softmax(1)[:, labels_N]
    if guess_QP.shape[1]:
        cost_QN = cost_QN + settings.mask_loss * pair_wise_sigmoid_cross_entropy_loss(guess_QP, true_NP)
        cost_QN = cost_QN + settings.dice_loss * pair_wise_dice_loss(guess_QP, true_NP)
    # Logits that aren't finite: the loss tells, and the run stops there.
    rows_R, columns_R = linear_sum_assignment(
        torch.nan_to_num(cost_QN, nan=1e6, posinf=1e6, neginf=-1e6).cpu()
    )
    device = class_QC.device
    return torch.as_tensor(rows_R, device=device), torch.as_tensor(columns_R, device=device)
