"""Losses and features of the classification, segmentation and change models against slow, plain computations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitp.core.errors import ConfigError
from vitp.metrics.results import Target
from vitp.models.vision import VisionSettings, VisionTower
from vitp.records.labels import IGNORE
from vitp.tasks.base import TaskBatch, TaskModel, pad_images
from vitp.tasks.build import BackboneSettings, NeckSettings, build_model, open_backbone, task_of
from vitp.tasks.change import fuse
from vitp.tasks.classification import ClassificationModel, ClassificationSettings
from vitp.tasks.dense import DenseModel, dice_loss

ARGUMENTS = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
VISION = VisionSettings(arguments=ARGUMENTS, image_size=32)
CLASSES = ("water", "land", "ship")


def model_of(task: str, head: dict | None = None, neck: dict | None = None, classes: Any = CLASSES) -> Any:
    backbone = open_backbone(BackboneSettings(init="random", vision=VISION))
    small = {"options": {"channels": 16}} if task != "classification" else {}
    return build_model(task, backbone, classes, NeckSettings.model_validate(neck or small), head)


def image(seed: int, height: int = 32, width: int = 32) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))


def dense_batch(samples: range, *, pairs: bool = False) -> TaskBatch:
    images, targets = [], []
    for number in samples:
        side = 32 if number % 2 else 24
        images.append(image(number, side, 32))
        semantic_HW = torch.from_numpy(
            np.random.default_rng(number).integers(0, 2 if pairs else 3, (side, 32))
        )
        semantic_HW[: number + 1] = IGNORE
        targets.append(Target(semantic_HW=semantic_HW.to(torch.uint8)))
    # Padded alike however the batch is cut, as a source with a fixed size does.
    images_BCHW = torch.stack([F.pad(each, (0, 0, 0, 32 - each.shape[1])) for each in images])
    sizes_B2 = torch.tensor([each.shape[1:] for each in images])
    later = images_BCHW.flip(-1) if pairs else None
    return TaskBatch(images_BCHW, later, sizes_B2, tuple(targets), tuple(str(n) for n in samples))


HEADS: dict[str, tuple[str, dict]] = {
    "upernet": ("segmentation", {"width": 16, "dice": 0.5}),
    "fpn": ("segmentation", {"kind": "fpn", "width": 16, "class_weights": [1.0, 0.5, 2.0]}),
    "linear": ("segmentation", {"kind": "linear", "auxiliary": 0, "label_smoothing": 0.1}),
    "concatenate": ("change", {"width": 16}),
    "difference": ("change", {"width": 16, "fusion": "difference"}),
    "both": ("change", {"width": 16, "fusion": "both", "dice": 1.0}),
}


@pytest.mark.parametrize("case", HEADS)
def test_losses_are_sums_over_the_images(case: str) -> None:
    task, head = HEADS[case]
    model = model_of(task, head).eval()
    pairs = task == "change"
    whole = dense_batch(range(4), pairs=pairs)
    losses, counts = model(whole), model.loss_counts(whole)
    assert losses.keys() == counts.keys()
    parts = [dense_batch(part, pairs=pairs) for part in (range(1), range(1, 4))]
    for name, loss in losses.items():
        assert sum(model(part)[name].item() for part in parts) == pytest.approx(loss.item(), rel=1e-4)
        assert sum(model.loss_counts(part)[name] for part in parts) == pytest.approx(counts[name])
    mean = losses["pixels"].item() / counts["pixels"]
    assert mean == pytest.approx(math.log(len(model.classes)), rel=0.35)


def test_cross_entropy_is_torch_s() -> None:
    head = {"kind": "fpn", "width": 16, "class_weights": [1.0, 0.5, 2.0], "label_smoothing": 0.0}
    model: DenseModel = model_of("segmentation", head).eval()
    batch = dense_batch(range(1, 2))
    probability_BKHW = model.probabilities(batch.images_BCHW)
    expected = F.nll_loss(
        probability_BKHW.log(),
        batch.targets[0].semantic_HW[None].long(),  # type: ignore[index]
        weight=torch.tensor([1.0, 0.5, 2.0]),
        ignore_index=IGNORE,
    )
    mean = model(batch)["pixels"].item() / model.loss_counts(batch)["pixels"]
    assert mean == pytest.approx(expected.item(), rel=1e-5)


def test_padding_does_not_count() -> None:
    model = model_of("segmentation", HEADS["fpn"][1]).eval()
    counts = model.loss_counts(dense_batch(range(1)))
    weights = torch.tensor([1.0, 0.5, 2.0])
    semantic_HW = dense_batch(range(1)).targets[0].semantic_HW
    assert semantic_HW is not None and semantic_HW.shape == (24, 32)
    known = semantic_HW[semantic_HW != IGNORE].long()
    assert counts["pixels"] == pytest.approx(float(weights[known].sum()))


def test_dice_is_what_its_formula_says() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(2, 3, 6, 5)))
    target = torch.from_numpy(rng.integers(0, 2, (2, 6, 5)))
    target[0, 0] = IGNORE
    expected = 0.0
    for b in range(2):
        probability = logits[b].softmax(0)
        dices = []
        for k in range(3):
            known = target[b] != IGNORE
            truth = (target[b] == k) & known
            if truth.any():
                shared = (probability[k] * truth).sum()
                dices.append(2 * shared / ((probability[k] * known).sum() + truth.sum()))
        expected += 1 - float(sum(dices)) / len(dices)
    assert dice_loss(logits, target).item() == pytest.approx(expected, rel=1e-6)
    perfect = 100 * F.one_hot(target.clamp(max=2), 3).permute(0, 3, 1, 2).double()
    assert dice_loss(perfect, target).item() == pytest.approx(0, abs=1e-6)
    nothing = dice_loss(logits.requires_grad_(), torch.full((2, 6, 5), IGNORE))
    nothing.backward()
    assert nothing.item() == 0 and bool(torch.isfinite(logits.grad).all())  # type: ignore[arg-type]


def test_fusions() -> None:
    before, after = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    assert torch.equal(fuse(before, after, "concatenate"), torch.cat([before, after], 1))
    assert torch.equal(fuse(before, after, "difference"), (before - after).abs())
    assert fuse(before, after, "both").shape == (2, 12, 3, 3)


def test_both_dates_go_through_the_same_backbone() -> None:
    model = model_of("change", {"width": 16, "fusion": "difference"}).eval()
    one = image(0)[None]
    levels = model.maps(one, one)
    assert all(float(level.detach().abs().max()) < 1e-5 for level in levels)
    with pytest.raises(ConfigError, match="needs two dates"):
        model.maps(one, None)
    assert model.classes == ("unchanged", "changed")


def class_batch(samples: range, classes: int, *, many: bool = False, side: int = 32) -> TaskBatch:
    images_BCHW, sizes_B2 = pad_images([image(n, side, 32) for n in samples])
    rng = [np.random.default_rng(n) for n in samples]
    targets = []
    for generator in rng:
        if many:
            row = torch.from_numpy((generator.random(classes) < 0.5).astype(np.float32))
        else:
            row = F.one_hot(torch.tensor(int(generator.integers(classes))), classes).float()
        targets.append(Target(classes_C=row))
    return TaskBatch(images_BCHW, None, sizes_B2, tuple(targets), tuple(str(n) for n in samples))


@pytest.mark.parametrize("many", [False, True])
def test_classification_losses(many: bool) -> None:
    model = model_of("classification", {"multi_label": many}).eval()
    whole = class_batch(range(4), 3, many=many)
    logits_BK = model.logits(whole.images_BCHW, whole.sizes_B2)
    target_BK = torch.stack([target.classes_C for target in whole.targets])  # type: ignore[misc]
    expected = (
        F.binary_cross_entropy_with_logits(logits_BK, target_BK)
        if many
        else F.cross_entropy(logits_BK, target_BK.argmax(1))
    )
    mean = model(whole)["class"].item() / model.loss_counts(whole)["class"]
    assert mean == pytest.approx(expected.item(), rel=1e-5)
    parts = [class_batch(part, 3, many=many) for part in (range(1), range(1, 4))]
    assert sum(model(part)["class"].item() for part in parts) == pytest.approx(
        model(whole)["class"].item(), rel=1e-5
    )
    (prediction,) = model.predict([image(0)])
    assert prediction.probabilities_C is not None
    assert many or float(prediction.probabilities_C.sum()) == pytest.approx(1)


def test_padding_does_not_enter_the_pooled_features() -> None:
    """A convolutional backbone sees nothing of far padding, so the pooled features must not, either."""
    model: ClassificationModel = model_of("classification").eval()
    seen = model.tower.forward_features

    def local(image_BCHW: Tensor, layers: Any = (-1,)) -> list[Tensor]:
        patches = F.avg_pool2d(image_BCHW, 8)
        return [patches.repeat(1, 11, 1, 1)[:, :32]]

    model.tower.forward_features = local  # type: ignore[assignment, method-assign]
    try:
        alone, sizes = pad_images([image(0, 24, 32)])
        together, both = pad_images([image(0, 24, 32), image(1, 64, 56)])
        logits = model.logits(alone, sizes)
        assert torch.allclose(model.logits(together, both)[0], logits[0], atol=1e-5)
    finally:
        model.tower.forward_features = seen  # type: ignore[method-assign]


def test_one_class_needs_multi_label() -> None:
    tower = VisionTower(VISION)
    with pytest.raises(ConfigError, match="one class"):
        ClassificationModel(tower, ("ship",))
    assert ClassificationModel(tower, ("ship",), ClassificationSettings(multi_label=True)).classes == (
        "ship",
    )
    with pytest.raises(ConfigError, match="no classes"):
        ClassificationModel(tower, ())


@pytest.mark.parametrize("case", HEADS)
def test_every_parameter_is_in_one_part_and_learns(case: str) -> None:
    task, head = HEADS[case]
    model: TaskModel = model_of(task, {**head, "dropout": 0.0})
    groups = model.parameter_groups()
    assert [group.name for group in groups] == ["vision tower", "neck", "head"]
    held = [id(p) for group in groups for p in group.parameters.values()]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    losses = model(dense_batch(range(2), pairs=task == "change"))
    sum(losses.values()).backward()  # type: ignore[union-attr]
    without = [name for name, p in model.named_parameters() if p.grad is None]
    # The plain tower's class token attends, but the last block's own output of it is not read by any head.
    if case == "linear":
        without = [name for name in without if "pyramid.stages" not in name]
    assert without == []


def test_a_frozen_backbone_stays_in_eval_mode() -> None:
    backbone = open_backbone(BackboneSettings(init="random", vision=VISION, freeze=True, drop_path=0.5))
    model = build_model("classification", backbone, CLASSES).train()
    assert model.training and not model.backbone.training
    first, second = (model(class_batch(range(2), 3))["class"] for _ in range(2))
    assert first.item() == second.item()


@pytest.mark.parametrize(
    ("task", "head", "neck", "message"),
    [
        ("segmentation", {"widht": 3}, {}, 'unknown key .widht.*did you mean "width"'),
        ("segmentation", {"class_weights": [1.0]}, {}, "1 class weights for 3 classes"),
        ("segmentation", {}, {"kind": "none", "options": {"channels": 3}}, "a neck of the kind none takes no options"),
        ("segmentation", {}, {"kind": "simple", "options": {"chanels": 3}}, 'did you mean "channels"'),
        ("detection", {}, {"kind": "none"}, "detectors need maps"),
        ("classification", {}, {"kind": "simple"}, "classification has no neck"),
        ("segmentaton", {}, {}, 'unknown task .*did you mean "segmentation"'),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(task: str, head: dict, neck: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_of(task, head, neck or None)


@pytest.mark.parametrize(
    ("task", "kind", "said"),
    [
        ("detection", "eomt", "kinds of detection are detr, or none"),
        ("change", "eomt", "kinds of change are upernet, fpn, linear"),
        ("segmentation", "eomtt", 'did you mean "eomt"'),
        ("oriented", "ditr", 'did you mean "detr"'),
    ],
)
def test_a_head_that_a_task_has_not_is_refused_with_those_it_has(task: str, kind: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^head\.kind: {task} has no head '{kind}'; .*{said}"):
        task_of(task, {"kind": kind})
