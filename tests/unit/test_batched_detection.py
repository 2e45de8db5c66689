"""What detectors decide for all images at once is, bit for bit, what a loop over the images decides."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import batched_nms, remove_small_boxes

from tests.fake_cuda import Watch
from tests.unit.test_task_graphs import made
from vitp.models.heads.cascade import BoxSettings, CascadeHead
from vitp.models.heads.oriented_roi import OrientedBoxHead, OrientedBoxSettings
from vitp.models.heads.oriented_rpn import OrientedProposalNetwork, OrientedProposalSettings
from vitp.models.heads.rpn import MIN_SIDE, ProposalNetwork, ProposalSettings, counts_of
from vitp.models.rotated.boxes import hulls_of
from vitp.models.rotated.nms import rotated_nms
from vitp.models.rotated.roi_align import rotated_roi_align

LENGTHS = ((40, 0, 25, 1), (0, 0), (60,), (0, 30))
SIZES = [(64, 80), (60, 60), (64, 64)]


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
        waits.append(sum(wait != "_local_scalar_dense" for wait in seen.waits))
    assert waits[0] == waits[1] > 0, waits
