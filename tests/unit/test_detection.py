"""Detection and instance models: their losses, what they find, and that they learn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from torch import Tensor, nn
from torchvision.ops import box_iou

from vitp.core.errors import ConfigError
from vitp.data.augment import AugmentSettings
from vitp.engine.config import OptimSettings, TrainSettings
from vitp.engine.loop import Trainer
from vitp.metrics.detection import detection_scores, found_objects, true_objects
from vitp.metrics.results import Target
from vitp.models.adapter import build_pyramid
from vitp.models.heads.cascade import BoxSettings
from vitp.models.heads.mask import MaskSettings
from vitp.models.heads.rcnn import RCNN, DetectorSettings
from vitp.models.heads.rpn import ProposalSettings
from vitp.models.timm_backbone import timm_backbone
from vitp.models.vision import VisionSettings, VisionTower
from vitp.scenes import scene_set
from vitp.tasks.base import InputSize, TaskBatch, pad_images
from vitp.tasks.batches import LabelledSamples, task_batches
from vitp.tasks.data import LabelReader
from vitp.tasks.detection import DetectionModel, image_truths, learnable
from vitp.tasks.instance import InstanceModel

CLASSES = ("ship", "dock", "tank")


def _settings(kind: str = "faster", **proposals: object) -> DetectorSettings:
    return DetectorSettings(
        width=16,
        proposals=ProposalSettings(
            **{"anchor_scales": (2.0,), "samples": 32, "keep_before": (60, 60), "keep": (40, 30), **proposals}  # type: ignore[arg-type]
        ),
        box=BoxSettings(kind=kind, hidden=16, samples=32),  # type: ignore[arg-type]
        mask=MaskSettings(layers=1, width=8),
    )


def _tower(size: int = 64, width: int = 16, depth: int = 2, patch: int = 8) -> VisionTower:
    arguments = {"embed_dim": width, "depth": depth, "num_heads": 2, "patch_size": patch}
    return VisionTower(VisionSettings(arguments=arguments, image_size=size))


def _model(
    kind: str = "faster", masks: bool = False, chosen: DetectorSettings | None = None
) -> DetectionModel:
    torch.manual_seed(0)
    pyramid = build_pyramid(_tower(), "simple", channels=16)
    return (InstanceModel if masks else DetectionModel)(pyramid, CLASSES, chosen or _settings(kind))


def _target(*boxes: tuple[float, ...], size: tuple[int, int] = (64, 64), masks: bool = True) -> Target:
    drawn = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(drawn, boxes, strict=True):
        mask[round(y1) : round(y2), round(x1) : round(x2)] = 1
    return Target(
        boxes_N4=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels_N=torch.arange(len(boxes)) % len(CLASSES),
        difficult_N=torch.zeros(len(boxes), dtype=torch.bool),
        masks_NHW=drawn if masks else None,
    )


def _batch(*targets: Target, sizes: tuple[tuple[int, int], ...] | None = None) -> TaskBatch:
    generator = torch.Generator().manual_seed(1)
    images = [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
        for size in sizes or ((64, 64),) * len(targets)
    ]
    padded, sizes_B2 = pad_images(images)
    return TaskBatch(padded, None, sizes_B2, targets, tuple(f"image {i}" for i in range(len(targets))))


def _total(model: DetectionModel, batch: TaskBatch) -> Tensor:
    losses, counts = model(batch), model.loss_counts(batch)
    assert losses.keys() == counts.keys()
    return sum((loss / (counts[name] or 1) for name, loss in losses.items()), torch.zeros(()))


ONE, TWO = (4.0, 6.0, 20.0, 30.0), (33.0, 30.0, 60.0, 58.0)


@pytest.mark.parametrize("kind", ["faster", "cascade"])
@pytest.mark.parametrize("masks", [False, True])
def test_losses_and_gradients_are_finite(kind: str, masks: bool) -> None:
    """With objects, without any, and both in one batch; every parameter learns where there are objects."""
    model = _model(kind, masks)
    for targets in ((_target(ONE, TWO),), (_target(),), (_target(), _target(ONE))):
        model.zero_grad()
        _total(model, _batch(*targets)).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        if len(targets[0].labels_N) and kind == "faster":  # type: ignore[arg-type]
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.head.parameters())


def test_an_image_without_objects_has_no_box_or_mask_loss() -> None:
    model, batch = _model("cascade", masks=True), _batch(_target())
    losses = model(batch)
    for name in ("proposal_box", "box_1", "box_2", "box_3", "mask"):
        assert losses[name].item() == 0.0, name
    assert losses["objectness"].item() > 0.1 and losses["class_1"].item() > 0.1
    assert model.loss_counts(batch)["mask"] == 0.0


def test_counts_are_images_and_those_with_masks() -> None:
    model = _model(masks=True)
    counts = model.loss_counts(_batch(_target(ONE), _target(), _target(ONE, TWO)))
    assert counts == {"objectness": 3, "proposal_box": 3, "class": 3, "box": 3, "mask": 2}


@pytest.mark.parametrize("kind", ["faster", "cascade"])
def test_a_batch_can_be_cut(kind: str) -> None:
    """Sums over a batch are the sums over its images: nothing is normalised across them."""
    chosen = _settings(kind, samples=100_000, positive_share=1.0)  # everything is drawn: no chance left
    chosen.box = chosen.box.model_copy(update={"samples": 100_000, "positive_share": 1.0})
    model = _model(masks=True, chosen=chosen)
    with torch.no_grad():
        whole = model(_batch(_target(ONE), _target(ONE, TWO)))
        images = _batch(_target(ONE), _target(ONE, TWO))
        parts = [
            model(
                replace(
                    images,
                    images_BCHW=images.images_BCHW[i : i + 1],
                    sizes_B2=images.sizes_B2[i : i + 1],
                    targets=images.targets[i : i + 1],
                )
            )
            for i in range(2)
        ]
    for name, loss in whole.items():
        assert loss.item() == pytest.approx(sum(part[name].item() for part in parts), rel=1e-4), name


def test_difficult_and_tiny_objects_are_looked_away_from() -> None:
    target = _target(ONE, TWO, (10.0, 10.0, 10.2, 30.0))
    target = replace(target, difficult_N=torch.tensor([False, True, False]))
    truth = image_truths([target], [(64, 64)], with_masks=True)[0]
    assert truth.boxes_N4.tolist() == [list(ONE)]
    assert truth.labels_N.tolist() == [1]
    assert truth.ignored_M4[0].tolist() == list(TWO) and len(truth.ignored_M4) == 2
    assert truth.masks_NHW is not None and truth.masks_NHW.shape == (1, 64, 64)
    assert learnable(replace(target, difficult_N=None), with_masks=False).tolist() == [True, True, False]
    unseen = replace(_target(ONE, TWO), masks_NHW=torch.zeros(2, 64, 64, dtype=torch.uint8))
    assert not learnable(unseen, with_masks=True).any()
    assert learnable(unseen, with_masks=False).all()


@pytest.mark.parametrize("masks", [False, True])
def test_predictions(masks: bool) -> None:
    chosen = _settings("cascade")
    chosen.box = chosen.box.model_copy(update={"score_threshold": 0.1, "detections": 7})
    model = _model(masks=masks, chosen=chosen).train()
    generator = torch.Generator().manual_seed(3)
    sizes = ((64, 64), (50, 70), (64, 64))
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    together = model.predict(images)
    assert model.training
    for image, size, prediction in zip(images, sizes, together, strict=True):
        (alone,) = model.predict([image])
        boxes, scores, labels = prediction.boxes_N4, prediction.scores_N, prediction.labels_N
        assert boxes is not None and scores is not None and labels is not None and alone.boxes_N4 is not None
        assert 1 <= len(boxes) <= 7
        torch.testing.assert_close(boxes, alone.boxes_N4, rtol=1e-4, atol=1e-3)
        assert (scores.diff() <= 0).all() and ((scores > 0.1) & (scores <= 1)).all()
        assert labels.dtype == torch.int64 and ((labels >= 0) & (labels < len(CLASSES))).all()
        assert (boxes >= 0).all() and (boxes[:, 2::2] <= size[1]).all() and (boxes[:, 3] <= size[0]).all()
        if masks:
            assert prediction.masks_NHW is not None and prediction.masks_NHW.dtype == torch.bool
            assert prediction.masks_NHW.shape == (len(boxes), *size)
    assert model.predict([]) == []


def test_detections_of_one_class_do_not_overlap() -> None:
    chosen = _settings("cascade")
    chosen.box = chosen.box.model_copy(update={"score_threshold": 0.01, "nms_iou": 0.3})
    model = _model(chosen=chosen)
    (prediction,) = model.predict([torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)])
    assert prediction.boxes_N4 is not None and prediction.labels_N is not None
    overlap = box_iou(prediction.boxes_N4, prediction.boxes_N4).fill_diagonal_(0)
    same = prediction.labels_N[:, None] == prediction.labels_N[None]
    assert overlap[same].max() <= 0.3 + 1e-4


def test_bfloat16_does_not_round_boxes() -> None:
    model, batch = _model("cascade", masks=True), _batch(_target(ONE, TWO))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch)
        maps = model.levels(batch.images_BCHW)
        model.eval()
        proposals, _ = model.head.proposals.propose(maps, [(64, 64)])
    assert all(torch.isfinite(loss) and loss.dtype == torch.float32 for loss in losses.values())
    assert proposals[0].dtype == torch.float32
    assert (proposals[0] != proposals[0].bfloat16().float()).float().mean() > 0.3
    exact = model.train()(batch)
    for name in ("objectness", "class_1"):
        assert losses[name].item() == pytest.approx(exact[name].item(), rel=0.05)


def test_quads_serve_where_there_are_no_boxes() -> None:
    quads = torch.tensor([[10.0, 2.0, 18.0, 10.0, 10.0, 18.0, 2.0, 10.0]])
    truth = image_truths([Target(quads_N8=quads, labels_N=torch.tensor([1]))], [(64, 64)], with_masks=False)[
        0
    ]
    assert truth.boxes_N4.tolist() == [[2.0, 2.0, 18.0, 18.0]] and truth.labels_N.tolist() == [2]


def test_missing_labels_are_user_errors() -> None:
    with pytest.raises(ConfigError, match="no boxes"):
        image_truths([Target(labels_N=torch.zeros(0, dtype=torch.int64))], [(8, 8)], with_masks=False)[0]
    with pytest.raises(ConfigError, match="no instance masks"):
        _model(masks=True).loss_counts(_batch(_target(ONE, masks=False)))


def test_settings_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValidationError, match="anchor_size"):
        DetectorSettings.model_validate({"proposals": {"anchor_size": 8}})
    stages = [{"iou": 0.4}, {"iou": 0.55, "loss_weight": 0.3}]
    chosen = DetectorSettings.model_validate({"box": {"stages": stages, "hidden": 8}, "width": 8})
    head = RCNN((4, 8, 16), 8, 2, chosen)
    assert head.loss_names() == ["objectness", "proposal_box", "class_1", "box_1", "class_2", "box_2"]
    assert head.boxes.loss_weights()["box_2"] == 0.3


@pytest.mark.parametrize("masks", [False, True])
def test_parts_hold_every_parameter_once(masks: bool) -> None:
    model = _model(masks=masks)
    groups = model.parameter_groups()
    assert [group.name for group in groups] == ["vision tower", "neck", "head"]
    listed = [id(p) for group in groups for p in group.parameters.values()]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())


def test_over_a_convolutional_network() -> None:
    torch.manual_seed(0)
    pyramid = build_pyramid(timm_backbone("resnet18"), "cnn", channels=16)
    model = InstanceModel(pyramid, CLASSES, _settings("cascade"))
    _total(model, _batch(_target(ONE, TWO), _target())).backward()
    gradients = [p.grad for p in model.backbone.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    (prediction,) = model.predict([torch.randint(0, 256, (3, 70, 50), dtype=torch.uint8)])
    assert prediction.masks_NHW is not None and prediction.masks_NHW.shape[1:] == (70, 50)


# Learning.


def _fit(model: DetectionModel, reader: LabelReader, steps: int) -> dict[str, float]:
    """Return the scores on four scenes after so many steps on them."""
    samples = [reader.sample(item) for item in reader.labelled.items]
    batch = LabelledSamples(reader, InputSize(), AugmentSettings.none()).pad(
        samples, [str(i) for i in range(len(samples))]
    )
    counts = model.loss_counts(batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20) * (1 - step / steps) ** 0.5
        total = sum(
            (model.loss_weights.get(name, 1.0) * loss / counts[name] for name, loss in model(batch).items()),
            torch.zeros(()),
        )
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    truths = [true_objects(target) for target in batch.targets]
    found = [found_objects(p) for p in model.predict([sample.image_CHW for sample in samples])]
    scores = detection_scores(truths, found, model.classes, masks=model.with_masks)
    return dict(scores.values)


def _learner(kind: str, masks: bool, count: int = 4) -> tuple[DetectionModel, LabelReader]:
    torch.manual_seed(0)
    reader = LabelReader(
        scene_set("general", seed=3, count=count, size=96), "instances" if masks else "objects"
    )
    chosen = DetectorSettings(
        width=32,
        proposals=ProposalSettings(
            anchor_scales=(1.5, 3.0), samples=64, keep_before=(200, 200), keep=(200, 100)
        ),
        box=BoxSettings(kind=kind, hidden=128, samples=64),  # type: ignore[arg-type]
        mask=MaskSettings(layers=2, width=32),
    )
    pyramid = build_pyramid(_tower(96, 64, 3), "simple", channels=32)
    return (InstanceModel if masks else DetectionModel)(pyramid, reader.classes, chosen), reader


def test_the_engine_trains_a_cascade(tmp_path: Path) -> None:
    """Two micro-batches a step, their counts added up; the logged total weights the stages."""
    reader = LabelReader(scene_set("general", seed=3, count=4, size=64), "instances")
    torch.manual_seed(0)
    model = InstanceModel(
        build_pyramid(_tower(), "simple", channels=16), reader.classes, _settings("cascade")
    )
    model.description = {"head": {}}
    source = task_batches(reader, 4, 0, micro_batches=2)
    train = TrainSettings(steps=2, micro_batches=2, device="cpu", num_workers=0, log_every=1, threads=1)
    Trainer(
        model, source, OptimSettings(lr=1e-3, warmup_ratio=0.0), train, tmp_path, console=Console(quiet=True)
    ).train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = next(row for row in rows if "losses" in row)
    stages = {
        f"{name}_{n}": weight for n, weight in ((1, 1.0), (2, 0.5), (3, 0.25)) for name in ("class", "box")
    }
    weighted = sum(stages.get(name, 1.0) * loss for name, loss in losses["losses"].items())
    assert losses["losses"].keys() == {"objectness", "proposal_box", "mask", *stages}
    assert losses["loss"] == pytest.approx(weighted, rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a minute or two of computing, which a loaded machine stretches
@pytest.mark.parametrize(("kind", "masks"), [("faster", False), ("cascade", True)])
def test_four_scenes_are_learned(kind: str, masks: bool) -> None:
    values = _fit(*_learner(kind, masks), steps=170)
    assert values["AP50"] > 0.9
    assert values["VOC12"] > 0.9
    if masks:
        assert values["mask_AP50"] > 0.9
