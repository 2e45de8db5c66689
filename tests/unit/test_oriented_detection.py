"""Oriented R-CNN: matching, losses that can be cut into micro-batches, prediction, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from vitp.core.errors import ConfigError
from vitp.data.augment import AugmentSettings
from vitp.engine.config import OptimSettings
from vitp.engine.optim import check_groups
from vitp.metrics.oriented import found_oriented, oriented_scores, true_oriented
from vitp.metrics.results import Target
from vitp.models.adapter import build_pyramid
from vitp.models.heads import oriented_targets
from vitp.models.heads.oriented_targets import OrientedTruth, match_anchors, match_proposals
from vitp.models.rotated.boxes import boxes_of_quads, hulls_of, quads_of
from vitp.models.vision import VisionSettings, VisionTower
from vitp.scenes import scene_set
from vitp.tasks.base import TaskBatch, pad_images
from vitp.tasks.batches import task_batches
from vitp.tasks.data import LabelReader
from vitp.tasks.oriented import LOSSES, OrientedRCNN, OrientedRCNNSettings, oriented_truths

ALL = 10**6


def micro_settings(samples: int = 96) -> OrientedRCNNSettings:
    """Anchors of 8 … 128 px; `ALL` samples take the chance out of the losses."""
    return OrientedRCNNSettings.model_validate(
        {
            "width": 32,
            "proposals": {
                "anchor_scales": [2.0],
                "keep_before": [200, 200],
                "keep": [200, 200],
                "lowest_iou": 0.0,
                "samples": samples,
            },
            "box": {"hidden": 128, "canonical_size": 56, "samples": samples, "positive_share": 0.5},
        }
    )


def micro_model(classes: tuple[str, ...] = ("plane", "ship"), samples: int = 96, width: int = 32):
    torch.manual_seed(0)
    arguments = {"embed_dim": width, "depth": 2, "num_heads": 2, "patch_size": 8}
    tower = VisionTower(VisionSettings(image_size=96, arguments=arguments))
    return OrientedRCNN(build_pyramid(tower, "simple", channels=32), classes, micro_settings(samples))


def target_of(boxes: list[tuple[float, ...]], labels: list[int], difficult: list[bool]) -> Target:
    return Target(
        quads_N8=quads_of(torch.tensor(boxes).view(-1, 5)),
        labels_N=torch.tensor(labels, dtype=torch.int64),
        difficult_N=torch.tensor(difficult, dtype=torch.bool),
    )


def batch_of(targets: list[Target], sizes: list[tuple[int, int]] | None = None) -> TaskBatch:
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        for size in sizes or [(64, 96)] * len(targets)
    ]
    images_BCHW, sizes_B2 = pad_images(images)
    names = tuple(str(number) for number in range(len(images)))
    return TaskBatch(images_BCHW, None, sizes_B2, tuple(targets), names)


TWO = target_of([(30, 30, 24, 10, 0.5), (70, 40, 16, 12, -0.9)], [0, 1], [False, False])
NONE = target_of([], [], [])


def random_hulls(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 60
    return torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 30], 1)


@pytest.mark.parametrize("at_once", [10, 2**24])
def test_anchors_match_as_torchvision_does(monkeypatch, at_once):
    monkeypatch.setattr(oriented_targets, "OVERLAPS", at_once)
    anchors, hulls = random_hulls(300, 0), random_hulls(7, 1)
    kind, matched = match_anchors(anchors, hulls, positive_iou=0.6, negative_iou=0.3, lowest_iou=0.0)
    reference = Matcher(0.6, 0.3, allow_low_quality_matches=True)(box_iou(hulls, anchors))
    assert torch.equal(kind, torch.where(reference >= 0, 1, torch.where(reference == -1, 0, -1)))
    overlap = box_iou(anchors, hulls)
    sure = overlap.amax(1) >= 0.6
    assert torch.equal(matched[sure], overlap.argmax(1)[sure])
    assert set(matched[kind == 1].tolist()) == set(range(7))  # every object has an anchor


def test_anchors_that_hardly_fit_are_nobodys():
    anchors = torch.tensor([[0.0, 0, 32, 32], [100, 100, 132, 132]])
    tiny = torch.tensor([[10.0, 10, 14, 14]])  # fills 1/64 of the first anchor
    for lowest, kinds in ((0.3, [0, 0]), (0.0, [1, 0])):
        kind, _ = match_anchors(anchors, tiny, positive_iou=0.7, negative_iou=0.3, lowest_iou=lowest)
        assert kind.tolist() == kinds


def test_proposals_match_by_rotated_overlap_and_look_away_from_difficult_objects():
    cross = (50.0, 50, 40, 8, 0.0)
    truth = OrientedTruth(
        boxes_N5=torch.tensor([cross]),
        labels_N=torch.tensor([3]),
        ignored_M5=torch.tensor([[150.0, 150, 40, 8, 0.7]]),
        size=(200, 200),
    )
    proposals = torch.tensor(
        [cross, (50.0, 50, 40, 8, -math.pi / 2), (150.0, 150, 40, 8, 0.7), (150.0, 150, 40, 8, -0.7)]
    )
    labels, matched = match_proposals(proposals, truth, 0.5)
    assert labels.tolist() == [3, 0, -1, 0]
    assert matched[0] == 0


def test_losses_are_sums_over_images():
    model = micro_model(samples=ALL).train()
    other = target_of([(40, 20, 30, 8, -1.5)], [1], [False])
    whole = batch_of([TWO, NONE, other])
    together = model(whole)
    assert set(together) == set(LOSSES) == set(model.loss_counts(whole))
    assert set(model.loss_counts(whole).values()) == {3.0}
    parts = [
        model(
            TaskBatch(
                whole.images_BCHW[k : k + 1],
                None,
                whole.sizes_B2[k : k + 1],
                whole.targets[k : k + 1],
                (str(k),),
            )
        )
        for k in range(3)
    ]
    for name, loss in together.items():
        expected = sum(float(part[name].detach()) for part in parts)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-4), name
    assert parts[1]["box"].item() == 0.0 and parts[1]["proposal_box"].item() == 0.0


@pytest.mark.parametrize("targets", [[TWO, NONE], [NONE, NONE]], ids=["objects", "nothing"])
def test_every_parameter_learns(targets):
    model = micro_model().train()
    loss = sum(model(batch_of(targets)).values())
    assert math.isfinite(loss.item())
    loss.backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    groups = model.parameter_groups()
    check_groups(model, groups, OptimSettings(lr=1e-3))
    assert [group.name for group in groups] == ["vision tower", "neck", "head"]


def test_difficult_objects_are_neither_learned_nor_background():
    easy = oriented_truths([TWO], [(64, 96)])[0]
    hard = oriented_truths([replace(TWO, difficult_N=torch.tensor([False, True]))], [(64, 96)])[0]
    assert (len(easy.boxes_N5), len(easy.ignored_M5)) == (2, 0)
    assert (len(hard.boxes_N5), len(hard.ignored_M5)) == (1, 1)
    assert hard.labels_N.tolist() == [1]
    network = micro_model().proposals
    anchors = torch.cat([hulls_of(hard.ignored_M5), torch.tensor([[0.0, 50, 8, 58], [200.0, 0, 208, 8]])])
    kinds, _ = network._match(anchors, hard)
    assert kinds.tolist() == [-1, 0, -1]  # on the difficult object; background; in the padding


def test_boxes_serve_where_there_are_no_quads():
    target = Target(boxes_N4=torch.tensor([[10.0, 20, 30, 60]]), labels_N=torch.tensor([0]))
    truth = oriented_truths([target], [(96, 96)])[0]
    assert truth.boxes_N5[0].tolist() == pytest.approx([20, 40, 40, 20, -math.pi / 2])
    with pytest.raises(ConfigError, match="no oriented boxes"):
        oriented_truths([Target(labels_N=torch.tensor([0]))], [(96, 96)])[0]


def test_prediction_does_not_depend_on_company():
    model = micro_model().eval()
    model.boxes.settings = model.boxes.settings.model_copy(update={"score_threshold": 0.0})
    images = [
        image[:, :height, :width]
        for image, (height, width) in zip(
            batch_of([NONE] * 3).images_BCHW, ((64, 96), (50, 61), (64, 96)), strict=True
        )
    ]
    together = model.predict(images)
    assert not any(parameter.grad is not None for parameter in model.parameters())
    for image, found in zip(images, together, strict=True):
        (alone,) = model.predict([image])
        # The first and the last image are one batch: sums in another order, nothing more.
        assert torch.allclose(alone.quads_N8, found.quads_N8, rtol=0, atol=1e-4)
        assert torch.allclose(alone.scores_N, found.scores_N, rtol=0, atol=1e-6)
        assert 0 < len(found.scores_N) <= 2000
        assert bool((found.scores_N.diff() <= 0).all())
        assert set(found.labels_N.tolist()) <= {0, 1}
        assert torch.allclose(hulls_of(boxes_of_quads(found.quads_N8)), found.boxes_N4, atol=1e-2)


def test_images_of_one_size_run_together():
    model = micro_model().eval()
    sizes = []
    model.pyramid.register_forward_hook(lambda module, args, maps: sizes.append(tuple(args[0].shape)))
    images = list(batch_of([NONE] * 3).images_BCHW)
    assert len(model.predict([*images, images[0][:, :50]])) == 4
    assert sizes == [(3, 3, 64, 96), (1, 3, 64, 96)]  # the second one is padded to the coarsest stride


def test_half_precision_gives_finite_losses_and_exact_boxes():
    model = micro_model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch_of([TWO, NONE]))
        assert all(math.isfinite(loss.item()) for loss in losses.values())
        sum(losses.values()).backward()
        (found,) = model.predict([batch_of([NONE]).images_BCHW[0]])
    assert found.quads_N8.dtype == torch.float32


def test_settings_are_the_papers():
    settings = OrientedRCNNSettings()
    assert settings.proposals.nms_iou == 0.8 and settings.proposals.keep == (2000, 2000)
    assert (settings.proposals.positive_iou, settings.proposals.negative_iou) == (0.7, 0.3)
    assert (settings.proposals.samples, settings.proposals.positive_share) == (256, 0.5)
    assert (settings.box.samples, settings.box.positive_share, settings.box.iou) == (512, 0.25, 0.5)
    assert (settings.box.score_threshold, settings.box.nms_iou) == (0.05, 0.1)
    with pytest.raises(ValueError, match="anchor_size"):
        OrientedRCNNSettings.model_validate({"proposals": {"anchor_size": 3}})


@pytest.mark.slow
def test_it_fits_a_few_scenes():
    """Four generated scenes with 45 objects of 2–29 px; no augmentation, 160 steps."""
    reader = LabelReader(scene_set("general", seed=3, count=4, size=96), "oriented")
    batch = task_batches(reader, 4, 0, augmentation=AugmentSettings.none())(0, 0, 0, 1)
    model = micro_model(reader.classes, width=64).train()
    steps, lr = 160, 2e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps + 1)
    for _ in range(steps):
        loss = sum(model(batch).values()) / len(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    found = [found_oriented(prediction) for prediction in model.predict(list(batch.images_BCHW))]
    scores = oriented_scores([true_oriented(target) for target in batch.targets], found, reader.classes)
    assert scores.score > 0.9
    assert scores.values["AP"] > 0.4
