"""What detectors decide for all images at once is, bit for bit, what a loop over the images decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import batched_nms, remove_small_boxes

from tests.fake_cuda import Watch
from tests.unit.test_task_graphs import made
from vitp.metrics.results import Target
from vitp.models.heads.cascade import BoxSettings, CascadeHead
from vitp.models.heads.oriented_roi import OrientedBoxHead, OrientedBoxSettings
from vitp.models.heads.oriented_rpn import OrientedProposalNetwork, OrientedProposalSettings
from vitp.models.heads.rpn import MIN_SIDE, ProposalNetwork, ProposalSettings, sampled_losses
from vitp.models.heads.sampling import BatchMatcher, BatchSampler, DrawnRows, counts_of, true_rows
from vitp.models.rotated.boxes import hulls_of
from vitp.models.rotated.nms import rotated_nms
from vitp.models.rotated.roi_align import rotated_roi_align
from vitp.tasks.base import TaskBatch

LENGTHS = ((40, 0, 25, 1), (0, 0), (60,), (0, 30))
SIZES = [(64, 80), (60, 60), (64, 64)]


IN_TRAINING = 12
"""Decisions of a training step of instances, for all images at once, that the host waits for: which rows. A second wait
for each tells how many of each image. They are: truths, proposals, anchors and the masks' levels, and of each of three
stages: regions, levels, and of all but the last boxes that stay."""


def some_targets(count: int) -> TaskBatch:
    """Images with three objects each, of which one is difficult."""
    first_N2 = torch.randint(0, 25, (3, 2)).float()
    boxes_N4 = torch.cat([first_N2, first_N2 + torch.randint(6, 20, (3, 2))], 1)
    masks_NHW = torch.zeros(3, 48, 64, dtype=torch.uint8)
    for mask_HW, (x1, y1, x2, y2) in zip(masks_NHW, boxes_N4.int().tolist(), strict=True):
        mask_HW[y1:y2, x1:x2] = 1
    target = Target(
        boxes_N4=boxes_N4,
        labels_N=torch.arange(3),
        difficult_N=torch.tensor([False, True, False]),
        masks_NHW=masks_NHW,
        ignored_M4=torch.tensor([[30.0, 30.0, 50.0, 45.0]]),
    )
    images = torch.randint(0, 256, (count, 3, 48, 64), dtype=torch.uint8)
    names = tuple(str(number) for number in range(count))
    return TaskBatch(images, None, torch.tensor([[48, 64]] * count), (target,) * count, names)


def some_boxes(count: int, *, sides: int = 4) -> Tensor:
    """Boxes on whole pixels, so that overlaps and places are often equal; every seventh is empty."""
    first = torch.randint(0, 30, (count, 2)).float()
    boxes = torch.cat([first, first + torch.randint(1, 20, (count, 2))], 1)
    boxes[::7, 2:] = boxes[::7, :2]
    if sides == 4:
        return boxes
    angles = torch.randint(-3, 3, (count, 1)) * 0.4
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2], angles], 1)


def some_scores(count: int, classes: int) -> Tensor:
    """Few different values: ties everywhere."""
    return torch.randint(0, 6, (count, classes + 1)) / 8


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("own", [False, True])
def test_boxes_that_stay_are_the_loops(lengths: Sequence[int], classes: int, own: bool) -> None:
    torch.manual_seed(len(lengths) + classes)
    head = CascadeHead((4, 8), 8, classes, BoxSettings(kind="faster", detections=12, hidden=8))
    boxes_R = some_boxes(sum(lengths))
    if own:  # each class has boxes of its own
        boxes_R = torch.stack([boxes_R + shift for shift in range(classes + 1)], 1)
    scores_RK = some_scores(sum(lengths), classes)
    found = head._keep(boxes_R, scores_RK, lengths)
    assert len(found) == len(lengths)
    parts = zip(found, boxes_R.split(lengths), scores_RK[:, 1:].split(lengths), strict=True)
    for one, boxes_N, scores_NC in parts:
        boxes_NC4 = boxes_N[:, 1:] if own else boxes_N[:, None].expand(-1, classes, 4)
        row, column = torch.where(scores_NC > head.settings.score_threshold)
        boxes, scores, labels = boxes_NC4[row, column], scores_NC[row, column], column + 1
        real = remove_small_boxes(boxes, MIN_SIDE)
        boxes, scores, labels = boxes[real], scores[real], labels[real]
        kept = batched_nms(boxes, scores, labels, head.settings.nms_iou)[:12]
        assert torch.equal(one.boxes_N4, boxes[kept])
        assert torch.equal(one.scores_N, scores[kept])
        assert torch.equal(one.labels_N, labels[kept])


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("classes", [1, 3])
def test_rotated_boxes_that_stay_are_the_loops(lengths: Sequence[int], classes: int) -> None:
    torch.manual_seed(len(lengths) + classes)
    head = OrientedBoxHead((4, 8), 8, classes, OrientedBoxSettings(detections=12, hidden=8))
    boxes_R5, scores_RK = some_boxes(sum(lengths), sides=5), some_scores(sum(lengths), classes)
    found = head._keep(boxes_R5, scores_RK, lengths)
    assert len(found) == len(lengths)
    parts = zip(found, boxes_R5.split(lengths), scores_RK[:, 1:].split(lengths), strict=True)
    for one, boxes_N5, scores_NC in parts:
        real_N1 = (boxes_N5[:, 2:4] >= MIN_SIDE).all(1, keepdim=True)
        row, column = torch.where((scores_NC > head.settings.score_threshold) & real_N1)
        boxes, scores, labels = boxes_N5[row], scores_NC[row, column], column + 1
        kept = rotated_nms(boxes, scores, head.settings.nms_iou, labels)[:12]
        assert torch.equal(one.boxes_N5, boxes[kept])
        assert torch.equal(one.scores_N, scores[kept])
        assert torch.equal(one.labels_N, labels[kept])


@pytest.mark.parametrize("training", [True, False])
def test_proposals_are_torchvisions(training: bool) -> None:
    torch.manual_seed(0)
    settings = ProposalSettings(keep=(20, 9), keep_before=(30, 12), anchor_scales=(2.0,))
    network = ProposalNetwork((4, 8), 8, settings).train(training)
    per_level = [120, 40]
    proposals = torch.stack([some_boxes(160) * 2 - 8 for _ in SIZES])
    logits = torch.randint(-4, 4, (3 * 160, 1)).float()
    given = network.filter_proposals(proposals, logits, SIZES, per_level)
    wanted = RegionProposalNetwork.filter_proposals(network, proposals, logits, SIZES, per_level)
    for ours, theirs in zip(given, wanted, strict=True):
        assert [len(one) for one in ours] == [len(one) for one in theirs]
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_oriented_proposals_are_the_loops(training: bool) -> None:
    torch.manual_seed(0)
    settings = OrientedProposalSettings(keep=(20, 9), keep_before=(30, 12), anchor_scales=(2.0,))
    network = OrientedProposalNetwork((4, 8), 8, settings).train(training)
    mode, per_level = int(not training), [120, 40]
    anchors_A4 = some_boxes(160) * 2
    logit_BA = torch.randint(-4, 4, (3, 160)).float()
    move_BA6 = torch.randn(3, 160, 6)
    given = network._propose(logit_BA, move_BA6, anchors_A4, per_level, SIZES)
    for proposals_N5, logit_A, move_A6, (height, width) in zip(given, logit_BA, move_BA6, SIZES, strict=True):
        best = [
            start + part.topk(min(settings.keep_before[mode], len(part))).indices
            for start, part in zip((0, 120), logit_A.split(per_level), strict=True)
        ]
        level_N = torch.cat([torch.full_like(one, level) for level, one in enumerate(best)])
        best_N = torch.cat(best)
        boxes_N5 = network.coder.decode(anchors_A4[best_N], move_A6[best_N])
        cx, cy = boxes_N5[:, 0], boxes_N5[:, 1]
        inside = (cx >= 0) & (cx < width) & (cy >= 0) & (cy < height)
        real = torch.nonzero((boxes_N5[:, 3] >= MIN_SIDE) & inside)[:, 0]
        kept = batched_nms(hulls_of(boxes_N5)[real], logit_A[best_N][real], level_N[real], settings.nms_iou)
        assert torch.equal(proposals_N5, boxes_N5[real[kept[: settings.keep[mode]]]])


def test_regions_are_read_from_their_images() -> None:
    torch.manual_seed(0)
    maps, order = torch.randn(3, 4, 16, 16), torch.tensor([2, 0, 2, 2, 0])  # none of the second image
    rois = torch.cat([order[:, None], some_boxes(5, sides=5)], 1)
    together = rotated_roi_align(maps, rois, 7, 0.25)
    for roi, wanted in zip(rois, together, strict=True):
        alone = rotated_roi_align(
            maps[int(roi[0])][None], torch.cat([torch.zeros(1), roi[1:]])[None], 7, 0.25
        )
        assert torch.allclose(alone[0], wanted, atol=1e-6)


def test_rows_are_counted_by_their_tables() -> None:
    assert counts_of(torch.tensor([0, 1, 7, 8]), [2, 5, 0, 3]) == [2, 0, 0, 2]
    assert counts_of(torch.tensor([], dtype=torch.int64), [0, 0]) == [0, 0]


@pytest.mark.parametrize("task", ["detection", "oriented"])
def test_more_images_are_no_more_questions_to_the_device(task: str) -> None:
    """But for the suppression itself, which torchvision has for one image alone."""
    model, waits = made(task), []
    for count in (1, 4):
        images = torch.randint(0, 256, (count, 3, 48, 64), dtype=torch.uint8)
        with torch.no_grad(), Watch("cpu") as seen:
            model.predict_batch(images, None)
        waits.append(sum(wait not in ("_local_scalar_dense", "nms") for wait in seen.waits))
    assert waits[0] == waits[1] > 0, waits


def test_more_images_are_no_more_questions_in_training() -> None:
    """But for the suppression, and the masks that are cut; the backward pass asks nothing."""
    model = made("instance").train()
    for count in (1, 3):
        torch.manual_seed(0)
        with Watch("cpu") as seen:
            losses = model(some_targets(count))
        asked = Counter(seen.waits)
        assert asked == {"nonzero": IN_TRAINING, "nms": count, "_unique2": count}, asked
        with Watch("cpu") as seen:
            torch.stack(list(losses.values())).sum().backward()
        assert seen.waits == []


@pytest.mark.parametrize(("samples", "share"), [(16, 0.5), (400, 0.25), (3, 0.0)])
def test_what_is_drawn_is_torchvisions(samples: int, share: float) -> None:
    torch.manual_seed(samples)
    kinds = [torch.randint(-1, 3, (n,)) for n in (40, 1, 300)] + [torch.zeros(5), torch.full((4,), -1)]
    torch.manual_seed(1)
    drawn, after = BatchSampler(samples, share).draw(kinds), torch.rand(1)
    torch.manual_seed(1)
    positive, negative = BalancedPositiveNegativeSampler(samples, share)(kinds)
    assert torch.equal(torch.rand(1), after), "the random numbers of what comes next are the same"
    for rows, own, p, n in zip(drawn.rows, drawn.positives, positive, negative, strict=True):
        assert torch.equal(rows, torch.where((p | n).bool())[0])
        assert torch.equal(own, torch.where(p.bool())[0])


def test_matches_are_torchvisions() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        overlaps_NA = torch.randint(0, 8, (4, 60)) / 8  # ties
        arguments = (0.7, 0.3, True)
        assert torch.equal(BatchMatcher(*arguments)(overlaps_NA), Matcher(*arguments)(overlaps_NA))


def test_losses_of_sampled_anchors_are_those_of_masks() -> None:
    torch.manual_seed(0)
    kinds = [torch.randint(-1, 2, (50,)) for _ in range(3)]
    kinds[1].fill_(-1)  # nothing to learn from
    drawn = BatchSampler(16, 0.5).draw(kinds)
    logit_BA, label_BA, move_BA4 = torch.randn(3, 50), torch.stack(kinds), torch.randn(3, 50, 4)
    wanted_R4 = torch.randn(sum(map(len, drawn.positives)), 4)
    given = sampled_losses(logit_BA, label_BA, move_BA4, wanted_R4, drawn)
    chosen_BA, positive_BA = (torch.zeros(3, 50, dtype=torch.bool) for _ in range(2))
    for image in range(3):
        chosen_BA[image, drawn.rows[image]] = positive_BA[image, drawn.positives[image]] = True
    weight_BA = chosen_BA / chosen_BA.sum(1, keepdim=True).clamp(min=1)
    objectness = torch.nn.functional.binary_cross_entropy_with_logits(
        logit_BA[chosen_BA], label_BA[chosen_BA].float(), weight_BA[chosen_BA], reduction="sum"
    )
    box_R4 = torch.nn.functional.smooth_l1_loss(
        move_BA4[positive_BA], wanted_R4, beta=1 / 9, reduction="none"
    )
    assert torch.equal(given[0], objectness)
    assert torch.equal(given[1], (box_R4.sum(1) * weight_BA[positive_BA]).sum())


def test_rows_of_several_tables_are_those_of_each() -> None:
    torch.manual_seed(0)
    tables = [torch.rand(n) > 0.5 for n in (30, 0, 1, 12)] + [torch.zeros(4, dtype=torch.bool)]
    for rows, table_A in zip(true_rows(tables), tables, strict=True):
        assert torch.equal(rows, torch.where(table_A)[0])
    assert DrawnRows([torch.arange(4)], [torch.arange(2)]).weights()[1].tolist() == [0.25, 0.25]
