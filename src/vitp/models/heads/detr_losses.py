"""What a detection transformer learns: one query for each object, all others nothing.

Shapes: B images, R images of all layers one after the other, Q queries, T noised ones, L layers, N objects of an
image, C classes, P pairs; K numbers of a box (see `vitp.models.heads.detr_boxes`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vitp.models.heads.detr import DETR, Noised
from vitp.models.heads.detr_boxes import Stage, Truth

DETR_LOSSES = ("class", "box", "overlap")
"""Of layers and of the chosen cells; noised queries have the same with `noised_` before them."""

GAMMA = 1.5
"""Power of the overlap that is the goal of a class, and of the probability that what is nothing is weighted by."""

MATCH_ALPHA, MATCH_GAMMA = 0.25, 2.0
"""Of focal loss, in the assignment."""

FLIPPED = 0.25
"""Share of noised objects with a class drawn at random."""

NOTHING, NO_QUERY = -1, -2
"""Whose a noised query is: nobody's; there is none, a batch is filled up."""

WantedBoxes = list[tuple[Tensor, Tensor]]
"""(N, K) boxes and (N,) labels from 0 of each image."""


def detr_losses(head: DETR, maps: Sequence[Tensor], truths: Sequence[Truth]) -> dict[str, Tensor]:
    """Return name → loss, summed over objects, layers and images.

    Class: matchability-aware loss (DEIM, arXiv 2412.04234), whose goal is a power of the overlap of the query's box
    with its object: other than varifocal loss it teaches as much where that is small. Box: differences of centre and
    sides. Overlap: 1 - GIoU, or the distance of oriented boxes.

    Args:
        head: The detector.
        maps: Maps of the pyramid, finest first.
        truths: What to learn, one for each image.
    """
    sizes = [truth.size for truth in truths]
    wanted: WantedBoxes = [
        (head.geometry.wanted(truth, float(max(truth.size))), truth.labels_N - 1) for truth in truths
    ]
    noised, owner_BT = noised_objects(head, wanted)
    stages = head(maps, sizes, noised)
    own = owner_BT.shape[1]
    # Layers stand beside each other as images do: one set of operators serves all.
    found = _joined([stages[0], *(_part(stage, slice(own, None)) for stage in stages[1:])])
    matched_RQ = matched_queries(head, found, wanted)
    weight_RQ = (~_hidden(head, found, matched_RQ, truths)).float()
    losses = _sums(head, found, matched_RQ, weight_RQ, wanted)
    if noised is None:
        return losses | {f"noised_{name}": maps[0].new_zeros(()) for name in DETR_LOSSES}
    beside = _joined([_part(stage, slice(own)) for stage in stages[1:]])
    # One stage fewer than above: noised queries aren't among the chosen cells, only in the layers.
    owner_RT = owner_BT.repeat(len(stages) - 1, 1)
    more = _sums(head, beside, owner_RT, (owner_RT > NO_QUERY).float(), wanted)
    # All groups hold the same objects again, so together they weigh what one group does.
    return losses | {f"noised_{name}": loss * noised.group / own for name, loss in more.items()}


def _part(stage: Stage, queries: slice) -> Stage:
    return Stage(stage.logits_BQC[:, queries], stage.boxes_BQK[:, queries])


def _joined(stages: Sequence[Stage]) -> Stage:
    """Return the images of the first stage, those of the second, … as one batch of R images."""
    return Stage(
        torch.cat([stage.logits_BQC for stage in stages]), torch.cat([stage.boxes_BQK for stage in stages])
    )


def _sums(
    head: DETR, stage: Stage, matched_RQ: Tensor, weight_RQ: Tensor, wanted: WantedBoxes
) -> dict[str, Tensor]:
    """Return the losses of queries; `matched_RQ` is the object of each, negative for none."""
    image, query = torch.where(matched_RQ >= 0)
    first_B = torch.tensor([0, *(len(labels_N) for _, labels_N in wanted)], device=image.device).cumsum(0)
    # Rows are layer after layer with all images in each, so the image is the row modulo the batch.
    object_P = first_B[image % len(wanted)] + matched_RQ[image, query]
    truth_PK = torch.cat([boxes_NK for boxes_NK, _ in wanted])[object_P]
    labels_P = torch.cat([labels_N for _, labels_N in wanted])[object_P]
    boxes_PK = stage.boxes_BQK[image, query]
    apart_P, beyond_P = head.geometry.differences(boxes_PK, truth_PK)
    goal_RQC = torch.zeros_like(stage.logits_BQC)
    overlap_P = head.geometry.overlap(boxes_PK.detach(), truth_PK).to(goal_RQC.dtype)
    goal_RQC[image, query, labels_P] = overlap_P**GAMMA
    there_RQC = torch.zeros_like(goal_RQC, dtype=torch.bool)
    there_RQC[image, query, labels_P] = True
    # It weighs the loss and must not become a way to lower it: no gradient flows here.
    guess_RQC = stage.logits_BQC.detach().sigmoid()
    weight_RQC = torch.where(there_RQC, 1.0, guess_RQC**GAMMA) * weight_RQ[..., None]
    class_loss = F.binary_cross_entropy_with_logits(stage.logits_BQC, goal_RQC, weight_RQC, reduction="sum")
    return dict(zip(DETR_LOSSES, (class_loss, apart_P.sum(), beyond_P.sum()), strict=True))


@torch.no_grad()
def matched_queries(head: DETR, stage: Stage, wanted: WantedBoxes) -> Tensor:
    """Return (R, Q) int64: the object that each query is to become, -1 for none.

    Each object has one query: those are chosen that cost least together (Hungarian method).

    Args:
        head: The detector.
        stage: R images: those of `wanted`, as often as there are layers.
        wanted: The objects.
    """
    settings = head.settings
    matched_LBQ = torch.full(stage.boxes_BQK.shape[:2], -1).unflatten(0, (-1, len(wanted)))
    logits_LBQC, boxes_LBQK = (
        part.unflatten(0, (-1, len(wanted))) for part in (stage.logits_BQC, stage.boxes_BQK)
    )
    for image, (truth_NK, labels_N) in enumerate(wanted):
        if not len(truth_NK):
            continue
        guess_LQN = logits_LBQC[:, image][..., labels_N].sigmoid()
        # The cost of a class is focal loss: what saying it would cost, less what not saying it would.
        hit = MATCH_ALPHA * (1 - guess_LQN) ** MATCH_GAMMA * -(guess_LQN + 1e-8).log()
        miss = (1 - MATCH_ALPHA) * guess_LQN**MATCH_GAMMA * -(1 - guess_LQN + 1e-8).log()
        apart_LQN, beyond_LQN = head.geometry.differences(boxes_LBQK[:, image][:, :, None], truth_NK)
        cost_LQN = settings.class_cost * (hit - miss)
        cost_LQN = cost_LQN + settings.box_weight * apart_LQN + settings.overlap_weight * beyond_LQN
        # A loss that isn't finite is the engine's to report; the assignment alone can't take one.
        # All layers of an image in one copy, as each makes the host wait for the device.
        for layer, cost_QN in enumerate(cost_LQN.nan_to_num(1e6, 1e6, -1e6).cpu().numpy()):
            query, number = linear_sum_assignment(cost_QN)
            matched_LBQ[layer, image, query] = torch.from_numpy(number)
    matched_MQ: Tensor = matched_LBQ.flatten(0, 1).to(stage.boxes_BQK.device)
    return matched_MQ


@torch.no_grad()
def _hidden(head: DETR, stage: Stage, matched_RQ: Tensor, truths: Sequence[Truth]) -> Tensor:
    """Return (R, Q) bool: which queries without an object lie where nobody knows."""
    hidden_RQ = torch.zeros_like(matched_RQ, dtype=torch.bool)
    unit_B = torch.tensor([float(max(truth.size)) for truth in truths], device=matched_RQ.device)
    found_RQK = head.geometry.pixels(stage.boxes_BQK, unit_B.repeat(len(matched_RQ) // len(truths)))
    for row, (hidden_Q, found_QK) in enumerate(zip(hidden_RQ, found_RQK, strict=True)):
        # Stage follows stage, each with all images, so images come again in turn.
        hidden_Q |= head.geometry.hidden(found_QK, truths[row % len(truths)])
    return hidden_RQ & (matched_RQ < 0)


@torch.no_grad()
def noised_objects(head: DETR, wanted: WantedBoxes) -> tuple[Noised | None, Tensor]:
    """Return queries that are noised objects, and whose they are: (B, T), else `NOTHING` or `NO_QUERY`.

    As in DINO (arXiv 2203.03605) each object is there in several groups, which don't see each other, and in each group
    twice: a little beside its place, where it is to be found, and far beside, where there is nothing to be found.
    """
    most, total = max(len(labels_N) for _, labels_N in wanted), head.settings.noised
    device = head.labels.weight.device
    if not most or not total:
        return None, torch.zeros(len(wanted), 0, dtype=torch.int64, device=device)
    # The image with the most objects decides, so that all images have as many queries.
    groups = max(1, total // (2 * most))
    of_group = torch.arange(2 * most, device=device)
    classes = head.labels.num_embeddings
    labels, boxes, owners = [], [], []
    for truth_NK, labels_N in wanted:
        place = (of_group % most).repeat(groups)
        there = place < len(labels_N)
        far = (of_group >= most).repeat(groups)
        at = torch.where(there, place, 0)
        if len(labels_N):
            own, own_boxes = labels_N[at], head.geometry.noised(truth_NK[at], far.float())
        else:
            # An image without objects fills its slots with anything; `NO_QUERY` keeps them out of all losses.
            own, own_boxes = torch.zeros_like(at), truth_NK.new_full((len(at), truth_NK.shape[-1]), 0.5)
        drawn = torch.randint(0, classes, own.shape, device=device)
        labels.append(torch.where(torch.rand(own.shape, device=device) < FLIPPED, drawn, own))
        boxes.append(own_boxes)
        owners.append(torch.where(there, torch.where(far, NOTHING, at), NO_QUERY))
    owner_BT = torch.stack(owners)
    return Noised(torch.stack(labels), torch.stack(boxes), owner_BT > NO_QUERY, 2 * most), owner_BT
