"""Losses and sampling for rare classes, each against a reference that is written from the paper's formula."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitp.core.config import make_config
from vitp.core.errors import ConfigError
from vitp.data.batches import ShuffledImages, repeat_factors
from vitp.metrics.results import Target
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel
from vitp.runs.balance import balanced_classes
from vitp.runs.finetune_settings import FinetuneConfig
from vitp.tasks.base import TaskBatch
from vitp.tasks.classification import ClassificationModel, ClassificationSettings
from vitp.tasks.losses import balanced_weights, binary_focal, dice_loss, focal_factor, tversky_loss


def same(ours: Tensor, theirs: Tensor, logits: Tensor) -> None:
    """Values and gradients agree."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(one, logits, retain_graph=True)[0] for one in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_is_the_papers(gamma: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 5, 6, requires_grad=True)
    target = torch.randint(0, 4, (3, 5, 6))
    ours = (
        nn.functional.cross_entropy(logits, target, reduction="none") * focal_factor(logits, target, gamma)
    ).sum()
    p = torch.softmax(logits, 1)
    theirs = logits.new_zeros(())
    for b, y, x in np.ndindex(3, 5, 6):
        own = p[b, target[b, y, x], y, x]
        theirs = theirs - (1 - own) ** gamma * own.log()
    same(ours, theirs, logits)


def test_focal_loss_of_what_is_certain_has_a_finite_gradient() -> None:
    logits = torch.tensor([[80.0, 0.0], [0.0, 80.0]], requires_grad=True)
    target = torch.tensor([0, 0])
    loss = nn.functional.cross_entropy(logits, target, reduction="none") * focal_factor(logits, target, 0.5)
    loss.sum().backward()
    assert (
        logits.grad is not None
        and torch.isfinite(logits.grad).all()
        and float(loss[0].detach()) < 1e-5 < 79 < float(loss[1].detach())
    )
    assert torch.equal(focal_factor(logits, torch.tensor([255, 1]), 0.0), torch.ones(2))


def test_binary_focal_loss_is_the_papers() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    target = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]])
    p = torch.sigmoid(logits)
    p_t = torch.where(target > 0, p, 1 - p)
    same(binary_focal(logits, target, 2.0).sum(), (-((1 - p_t) ** 2) * p_t.log()).sum(), logits)
    plain = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    torch.testing.assert_close(binary_focal(logits, target, 0.0), plain)


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.7), (1.0, 1.0), (0.0, 0.5)])
def test_tversky_loss_is_the_papers(alpha: float, beta: float) -> None:
    torch.manual_seed(2)
    logits = torch.randn(3, 3, 4, 5, requires_grad=True)
    target = torch.randint(0, 3, (3, 4, 5))
    target[0, 0] = 255
    target[1][target[1] == 2] = 0  # an image without class 2
    target[2] = 255  # one without a label
    p, theirs = torch.softmax(logits, 1), logits.new_zeros(())
    for b in range(2):
        known = target[b] != 255
        indices = []
        for k in sorted(set(target[b][known].tolist())):
            truth, guess = (target[b] == k)[known].float(), p[b, k][known]
            tp, fp, fn = (guess * truth).sum(), (guess * (1 - truth)).sum(), ((1 - guess) * truth).sum()
            indices.append(tp / (tp + alpha * fp + beta * fn))
        theirs = theirs + 1 - torch.stack(indices).mean()
    same(tversky_loss(logits, target, alpha, beta), theirs, logits)


def test_tversky_of_equal_halves_is_dice() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    target = torch.randint(0, 3, (2, 4, 4))
    same(tversky_loss(logits, target, 0.5, 0.5), dice_loss(logits, target), logits)


def test_weights_by_the_effective_number_of_samples() -> None:
    weights = balanced_weights([1000, 10, 1], 0.99)
    effective = [sum(0.99**n for n in range(count)) for count in (1000, 10, 1)]
    assert sum(weights) == pytest.approx(3)
    assert [weights[2] / one for one in weights] == pytest.approx([one / effective[2] for one in effective])
    assert balanced_weights([5, 3], 0.0) == [1.0, 1.0]
    assert balanced_weights([5, 0], 0.9)[1] == balanced_weights([5, 1], 0.9)[1]


class Tower(nn.Module):
    """Hands pixels on as one map, which is all that the head's losses need."""

    channels, strides = (2,), (1,)

    def normalize(self, images: Tensor) -> Tensor:
        return images.float() / 255

    def forward_features(self, images: Tensor) -> list[Tensor]:
        return [images]


def model(**settings: Any) -> ClassificationModel:
    torch.manual_seed(0)
    return ClassificationModel(Tower(), ("a", "b"), ClassificationSettings(**settings))  # type: ignore[arg-type]


def batch(*rows: tuple[float, float]) -> TaskBatch:
    images = torch.randint(
        0, 255, (len(rows), 2, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    sizes = torch.tensor([[4, 4]] * len(rows))
    return TaskBatch(
        images, None, sizes, tuple(Target(classes_C=torch.tensor(row)) for row in rows), ("x",) * len(rows)
    )


def test_classes_weigh_in_the_mean_as_torch_weighs_them() -> None:
    one, made = batch((1.0, 0.0), (0.0, 1.0), (1.0, 0.0)), model(class_weights=[3.0, 0.5])
    mean = made(one)["class"] / made.loss_counts(one)["class"]
    logits = made.logits(one.images_BCHW, one.sizes_B2)
    wanted = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0]), weight=torch.tensor([3.0, 0.5]))
    torch.testing.assert_close(mean, wanted)
    many = model(class_weights=[3.0, 0.5], multi_label=True)
    unknown = torch.tensor([[1.0, 0.0], [1.0, 1.0]]) * torch.tensor([3.0, 0.5])
    from vitp.data.ignored import UNLABELLED

    rows = batch((1.0, float(UNLABELLED)), (0.0, 1.0))
    plain = nn.functional.binary_cross_entropy_with_logits(
        many.logits(rows.images_BCHW, rows.sizes_B2), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), reduction="none"
    )
    torch.testing.assert_close(many(rows)["class"], (plain * unknown).sum())
    assert many.loss_counts(rows)["class"] == float(unknown.sum())


def test_what_is_off_changes_no_bit() -> None:
    one = batch((1.0, 0.0), (0.0, 1.0))
    made = model(focal=0.0, class_balance=0.0)
    wanted = nn.functional.cross_entropy(
        made.logits(one.images_BCHW, one.sizes_B2), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), reduction="sum"
    )
    assert torch.equal(made(one)["class"], wanted) and "class_weights" not in made.state_dict()
    with pytest.raises(ConfigError, match="3 class weights for 2 classes"):
        model(class_weights=[1.0, 1.0, 1.0])


# Sampling.


def test_rare_classes_come_by_the_papers_factors() -> None:
    held = [frozenset({"car"})] * 90 + [frozenset({"car", "bus"})] * 8 + [frozenset({"tram"})] + [frozenset()]
    factors = repeat_factors(held, 0.16)
    assert factors[0] == 1.0 and factors[-1] == 1.0
    assert factors[90] == pytest.approx(math.sqrt(0.16 / 0.08)) and factors[98] == pytest.approx(
        math.sqrt(0.16 / 0.01)
    )
    assert repeat_factors(held, 0.001) == [1.0] * 100


def labelled(count: int) -> LabelledSet:
    items = [
        LabelledImage(
            id=str(n), image=f"{n}.png", width=8, height=8,
            objects=[ObjectLabel("tram" if n == 0 else "car", (1, 1, 5, 5))],
        )
        for n in range(count)
    ]  # fmt: skip
    return LabelledSet(name="set", items=items, object_classes=("car", "tram"))


def test_an_epoch_holds_each_image_as_often_as_it_should() -> None:
    factors = [4.3, 1.0, 1.5, 1.0, 1.2]
    order = ShuffledImages(labelled(5), 7, factors)
    assert len(order) == 9
    total: Counter[str] = Counter()
    for epoch in range(400):
        seen = Counter(order[epoch * 9 + offset].record.id for offset in range(9))
        for number, factor in enumerate(factors):
            assert math.floor(factor * 0.99) <= seen[str(number)] <= math.ceil(factor * 1.01)
        total += seen
    for number, factor in enumerate(factors):
        assert total[str(number)] / 400 == pytest.approx(factor, rel=0.06)
    # A pure function of position: any place can be looked at first, and a new order says the same.
    again = ShuffledImages(labelled(5), 7, factors)
    assert [again[p].record.id for p in (31, 4, 3000)] == [order[p].record.id for p in (31, 4, 3000)]
    assert [order[p].record.id for p in range(9)] != [order[p].record.id for p in range(9, 18)]
    assert order.facts()["repeats"] == factors and "repeats" not in ShuffledImages(labelled(5), 7).facts()
    plain, ones = ShuffledImages(labelled(5), 7), ShuffledImages(labelled(5), 7, [1.0] * 5)
    assert sorted(ones[p].record.id for p in range(5)) == sorted(plain[p].record.id for p in range(5))


def config(**values: Any) -> FinetuneConfig:
    return make_config(FinetuneConfig, {"task": "detection", "data": {"root": "x"}, **values})


def test_a_run_balances_what_its_labels_say() -> None:
    chosen = config(data={"root": "x", "repeat_threshold": 0.4})
    repeats, _, said = balanced_classes(chosen, "objects", labelled(10), ("car", "tram"))
    assert repeats == pytest.approx([2.0] + [1.0] * 9) and said == [
        "1 of 10 images come more often, up to 2.0 times an epoch"
    ]
    assert balanced_classes(config(), "objects", labelled(4), ("car", "tram")) == (None, config(), [])
    with pytest.raises(ConfigError, match="only masks say"):
        balanced_classes(chosen, "semantic", labelled(4), ("car", "tram"))
    weighed = config(task="classification", head={"class_balance": 0.9, "multi_label": True})
    _, filled, said = balanced_classes(weighed, "presence", labelled(10), ("car", "tram"))
    assert filled.head["class_weights"] == pytest.approx(balanced_weights([9, 1], 0.9), abs=1e-6)
    assert said == ["weights of the classes: car 0.28, tram 1.72"]
    twice = config(task="classification", head={"class_balance": 0.9, "class_weights": [1, 2]})
    with pytest.raises(ConfigError, match="a second time"):
        balanced_classes(twice, "presence", labelled(10), ("car", "tram"))
