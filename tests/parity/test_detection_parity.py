"""The detection heads against torchvision's detectors."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign, batched_nms, clip_boxes_to_image

from vitp.models.heads.cascade import CASCADE_STAGES, BoxSettings, BoxStage, CascadeHead
from vitp.models.heads.fpn import RegionPool
from vitp.models.heads.mask import MaskHead, MaskSettings
from vitp.models.heads.rpn import ImageTruth, ProposalNetwork, ProposalSettings

STRIDES = (4, 8, 16, 32, 64)

SIZES = [(128, 128), (128, 96)]


CLASSES = 3

WIDTH = 8


def _levels(seed: int = 0, images: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, WIDTH, 128 // s, 128 // s, generator=generator) for s in STRIDES]


def _named(maps: list[Tensor]) -> OrderedDict[str, Tensor]:
    return OrderedDict((str(i), m) for i, m in enumerate(maps))


def _random_boxes(count: int, generator: torch.Generator, side: float = 40.0) -> Tensor:
    corner = torch.rand(count, 2, generator=generator) * 50
    return torch.cat([corner, corner + 4 + torch.rand(count, 2, generator=generator) * side], 1)


def _truths(masks: bool = False) -> list[ImageTruth]:
    generator = torch.Generator().manual_seed(5)
    truths = []
    for size, count in zip(SIZES, (3, 5), strict=True):
        boxes = _random_boxes(count, generator)
        drawn = torch.zeros(count, *size, dtype=torch.uint8)
        for mask, box in zip(drawn, boxes.round().int().tolist(), strict=True):
            mask[box[1] : box[3], box[0] : box[2]] = 1
        labels = torch.randint(1, CLASSES + 1, (count,), generator=generator)
        truths.append(ImageTruth(boxes, labels, torch.zeros(0, 4), size, drawn if masks else None))
    return truths


def _targets(truths: list[ImageTruth]) -> list[dict[str, Tensor]]:
    return [{"boxes": t.boxes_N4, "labels": t.labels_N} for t in truths]


def _proposals() -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    proposals = []
    for truth in _truths():
        shift = 2 * torch.randn(truth.boxes_N4.shape, generator=generator)
        boxes = torch.cat([_random_boxes(60, generator), truth.boxes_N4 + shift])
        proposals.append(clip_boxes_to_image(boxes, truth.size))
    return proposals


def test_proposals_and_losses_are_torchvisions() -> None:
    torch.manual_seed(0)
    own = ProposalNetwork(STRIDES, WIDTH, ProposalSettings(anchor_scales=(4.0,), keep=(50, 40), samples=32))
    anchors = AnchorGenerator(tuple((4 * s,) for s in STRIDES), ((0.5, 1.0, 2.0),) * 5)
    keep = {"training": 2000, "testing": 1000}
    after = {"training": 50, "testing": 40}
    theirs = RegionProposalNetwork(anchors, RPNHead(WIDTH, 3), 0.7, 0.3, 32, 0.5, keep, after, 0.7)
    theirs.load_state_dict(own.state_dict())
    maps, truths = _levels(), _truths()
    sizes = [(128, 128), (128, 128)]  # without padding: torchvision learns from padding, too
    truths = [ImageTruth(t.boxes_N4, t.labels_N, t.ignored_M4, (128, 128)) for t in truths]
    images = ImageList(torch.zeros(2, 3, 128, 128), sizes)
    torch.manual_seed(1)
    boxes, losses = own.propose(maps, sizes, truths)
    torch.manual_seed(1)
    wanted, wanted_losses = theirs(images, _named(maps), _targets(truths))
    for ours, other in zip(boxes, wanted, strict=True):
        assert torch.equal(ours, other)
    assert losses["objectness"].item() == pytest.approx(2 * wanted_losses["loss_objectness"].item(), rel=1e-6)
    assert losses["proposal_box"].item() == pytest.approx(
        2 * wanted_losses["loss_rpn_box_reg"].item(), rel=1e-6
    )
    gradient = torch.autograd.grad(losses["objectness"] + losses["proposal_box"], list(own.parameters()))
    wanted_gradient = torch.autograd.grad(
        2 * (wanted_losses["loss_objectness"] + wanted_losses["loss_rpn_box_reg"]), list(theirs.parameters())
    )
    for ours, other in zip(gradient, wanted_gradient, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-6)


def test_region_pool_is_torchvisions_where_not_aligned() -> None:
    maps, boxes = _levels(), _proposals()
    own = RegionPool(STRIDES[:4], 7, canonical_size=40.0, aligned=False)
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2, canonical_scale=40)
    assert len(own.levels(torch.cat(boxes)).unique()) >= 3
    assert torch.equal(own(maps, boxes), theirs(_named(maps), boxes, SIZES))


def _torchvision_heads(stage: BoxStage, iou: float, weights: tuple[float, ...], **keep: float) -> RoIHeads:
    """torchvision's head with a stage's weights; a move that serves all classes is repeated for each."""
    box_head, predictor = TwoMLPHead(WIDTH * 49, 16), FastRCNNPredictor(16, CLASSES + 1)
    box_head.load_state_dict(stage.layers.state_dict())
    repeat = CLASSES + 1 if stage.class_agnostic else 1
    with torch.no_grad():
        predictor.cls_score.load_state_dict(stage.score.state_dict())
        predictor.bbox_pred.weight.copy_(stage.move.weight.repeat(repeat, 1))
        predictor.bbox_pred.bias.copy_(stage.move.bias.repeat(repeat))
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    return RoIHeads(
        pool,
        box_head,
        predictor,
        iou,
        iou,
        int(keep.get("samples", 64)),
        0.25,
        weights,
        keep.get("score", 0.05),
        0.5,
        100,
    )


def _own_head(kind: str, samples: int = 64, score: float = 0.05) -> CascadeHead:
    torch.manual_seed(2)
    head = CascadeHead(
        STRIDES[:4],
        WIDTH,
        CLASSES,
        BoxSettings(
            kind=kind,  # type: ignore[arg-type]
            hidden=16,
            aligned=False,
            smooth_l1_beta=1 / 9,
            samples=samples,
            score_threshold=score,
        ),
    )
    for stage in head.stages:  # untrained moves are too small to tell anything
        nn.init.normal_(stage.move.weight, std=0.3)
        nn.init.normal_(stage.score.weight, std=2.0)
    return head


def test_one_stage_is_faster_rcnn() -> None:
    head = _own_head("faster")
    theirs = _torchvision_heads(head.stages[0], 0.5, (10.0, 10.0, 5.0, 5.0))
    maps, truths, proposals = _levels(), _truths(), _proposals()
    torch.manual_seed(3)
    losses, samples = head(maps, proposals, truths)
    torch.manual_seed(3)
    _, wanted = theirs(_named(maps), [p.clone() for p in proposals], SIZES, _targets(truths))
    assert {len(labels) for labels in samples.labels} == {64}
    assert sum(len(boxes) for boxes in samples.positives()[0]) > 8
    # torchvision's is the mean over the batch, ours the sum of images' means.
    assert losses["class"].item() == pytest.approx(2 * wanted["loss_classifier"].item(), rel=1e-6)
    assert losses["box"].item() == pytest.approx(2 * wanted["loss_box_reg"].item(), rel=1e-5)
    gradient = torch.autograd.grad(losses["class"] + losses["box"], list(head.parameters()))
    both = 2 * (wanted["loss_classifier"] + wanted["loss_box_reg"])
    for ours, other in zip(gradient, torch.autograd.grad(both, list(theirs.parameters())), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-6)


def test_one_stage_finds_what_faster_rcnn_finds() -> None:
    head = _own_head("faster", score=0.3).eval()
    theirs = _torchvision_heads(head.stages[0], 0.5, (10.0, 10.0, 5.0, 5.0), score=0.3).eval()
    maps, proposals = _levels(), _proposals()
    with torch.no_grad():
        found = head.detect(maps, proposals, SIZES)
        wanted, _ = theirs(_named(maps), proposals, SIZES)
    assert all(len(f.scores_N) > 5 for f in found)
    for ours, other in zip(found, wanted, strict=True):
        assert torch.equal(ours.labels_N, other["labels"])
        torch.testing.assert_close(ours.boxes_N4, other["boxes"], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(ours.scores_N, other["scores"], rtol=1e-5, atol=1e-6)


def test_cascade_stage_by_stage() -> None:
    """Each stage is torchvision's head on the boxes that torchvision's coder moved before."""
    head = _own_head("cascade")
    maps, truths = _levels(), _truths()
    torch.manual_seed(4)
    losses, _ = head(maps, _proposals(), truths)
    assert list(losses) == ["class_1", "box_1", "class_2", "box_2", "class_3", "box_3"]
    stages = [
        _torchvision_heads(stage, of.iou, of.box_weights)
        for stage, of in zip(head.stages, CASCADE_STAGES, strict=True)
    ]
    torch.manual_seed(4)
    boxes = _proposals()
    for number, (theirs, of) in enumerate(zip(stages, CASCADE_STAGES, strict=True), 1):
        count = [len(b) for b in boxes]
        drawn = theirs.assign_targets_to_proposals(
            theirs.add_gt_proposals(boxes, [t.boxes_N4 for t in truths]),
            [t.boxes_N4 for t in truths],
            [t.labels_N for t in truths],
        )[1]
        state = torch.get_rng_state()
        kept = theirs.subsample(drawn)
        torch.set_rng_state(state)
        chosen, _, labels, wanted_moves = theirs.select_training_samples(boxes, _targets(truths))
        hidden = theirs.box_head(theirs.box_roi_pool(_named(maps), chosen, SIZES))
        logits, moves = theirs.box_predictor(hidden)
        per_image = zip(
            logits.split([len(x) for x in labels]),
            moves.split([len(x) for x in labels]),
            labels,
            wanted_moves,
            strict=True,
        )
        class_loss, box_loss = (
            sum(part)
            for part in zip(*(fastrcnn_loss(a, b, [c], [d]) for a, b, c, d in per_image), strict=True)
        )
        assert losses[f"class_{number}"].item() == pytest.approx(class_loss.item(), rel=1e-5)
        assert losses[f"box_{number}"].item() == pytest.approx(box_loss.item(), rel=1e-4)
        moved = (
            BoxCoder(of.box_weights)
            .decode(moves[:, :4].detach(), chosen)[:, 0]
            .split([len(c) for c in chosen])
        )
        boxes = []
        for box, size, index, proposals in zip(moved, SIZES, kept, count, strict=True):
            box = clip_boxes_to_image(box, size)[index < proposals]
            boxes.append(box[((box[:, 2:] - box[:, :2]) >= 1e-2).all(1)])


def test_cascade_weights_its_stages() -> None:
    weights = _own_head("cascade").loss_weights()
    assert [weights[f"box_{n}"] for n in (1, 2, 3)] == [1.0, 0.5, 0.25]
    assert [weights[f"class_{n}"] for n in (1, 2, 3)] == [1.0, 0.5, 0.25]


def test_cascade_averages_its_stages_scores() -> None:
    head = _own_head("cascade", score=0.2).eval()
    maps, proposals = _levels(), _proposals()
    with torch.no_grad():
        found = head.detect(maps, proposals, SIZES)
        for image, size in enumerate(SIZES):
            boxes, scores = proposals[image], []
            for stage, of in zip(head.stages, CASCADE_STAGES, strict=True):
                theirs = _torchvision_heads(stage, of.iou, of.box_weights)
                alone = [level[image : image + 1] for level in maps]
                logits, moves = theirs.box_predictor(
                    theirs.box_head(theirs.box_roi_pool(_named(alone), [boxes], [size]))
                )
                scores.append(logits.softmax(-1))
                boxes = clip_boxes_to_image(theirs.box_coder.decode_single(moves[:, :4], boxes), size)
            mean = torch.stack(scores).mean(0)[:, 1:]
            row, column = torch.where(mean > 0.2)
            kept = batched_nms(boxes[row], mean[row, column], column, 0.5)[:100]
            torch.testing.assert_close(found[image].scores_N, mean[row, column][kept])
            torch.testing.assert_close(found[image].boxes_N4, boxes[row][kept], rtol=1e-4, atol=1e-3)
            assert torch.equal(found[image].labels_N, column[kept] + 1)


def test_mask_loss_is_torchvisions_up_to_half_a_pixel() -> None:
    torch.manual_seed(6)
    head = MaskHead(
        RegionPool(STRIDES[:4], 14, aligned=False), WIDTH, CLASSES, MaskSettings(width=8, layers=2)
    )
    truth = _truths(masks=True)[0]
    maps = [level[:1] for level in _levels()]
    boxes, matched = [truth.boxes_N4 + 1.3], [torch.arange(3)]
    loss = head.loss(maps, boxes, matched, [truth])
    assert truth.masks_NHW is not None
    logits = torch.cat(
        [torch.zeros(3, 1, 28, 28), head(maps, boxes)], 1
    )  # torchvision has a background's mask
    # torchvision reads the mask half a pixel to the right and below: shifting the boxes makes up for that.
    wanted = maskrcnn_loss(logits, [boxes[0] - 0.5], [truth.masks_NHW], [truth.labels_N], matched)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
