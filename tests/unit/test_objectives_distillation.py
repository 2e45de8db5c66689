"""Self-distillation: loss by hand, the teacher's average, centres, masks, and no gradient where none belongs."""

from __future__ import annotations

import math

import pytest
import torch

from tests.objective_toys import DINO, IBOT, PATCH, SIZE, distillation
from vitp.core.errors import ConfigError
from vitp.objectives.distillation import CropBatch, Crops, DistillationObjective


def batch(step: int = 0, images: int = 3, locals_: int = 2, masked: int = 0) -> CropBatch:
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    mask = torch.zeros(2, images, 16, dtype=torch.bool)
    mask[..., :masked] = True
    return CropBatch(
        random(2, images, 3, SIZE, SIZE),
        random(locals_, images, 3, SIZE // 2, SIZE // 2),
        mask,
        step,
        tuple(str(number) for number in range(images)),
    )


def outputs(objective: DistillationObjective, made: CropBatch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The teacher's logits of the two global views, and the student's of all four views, each (B, K)."""
    tower, teacher = objective.tower, objective.teacher
    with torch.no_grad():
        taught = torch.stack(
            [
                teacher.head(teacher.tower.forward_tokens(tower.normalize(view)).mean(1))
                for view in made.global_GBCHW
            ]
        )
    views = [*made.global_GBCHW, *made.local_VBChw]
    return taught, [objective.head(objective.pooled(view)) for view in views]


def test_the_loss_is_the_mean_cross_entropy_over_pairs_of_views() -> None:
    objective, made = distillation().eval(), batch()
    with torch.no_grad():
        objective.view_centre_K.copy_(torch.linspace(-0.1, 0.1, 24))
        objective.teacher.head.prototypes_KE.add_(0.05)
    taught, student = outputs(objective, made)
    targets = ((taught - objective.view_centre_K) / 0.04).softmax(-1)
    total, pairs = 0.0, 0
    for a in range(2):
        for b in range(4):
            if a != b:
                log_q = (student[b] / 0.1).log_softmax(-1)
                total += -(targets[a] * log_q).sum().item()
                pairs += 1
    assert pairs == 6
    assert objective(made)["views"].item() == pytest.approx(total / pairs, rel=1e-5)
    assert objective.loss_counts(made) == {"views": 3}


def test_without_local_views_the_two_global_ones_teach_each_other() -> None:
    objective, made = distillation().eval(), batch(locals_=0)
    taught, student = outputs(objective, made)
    targets = (taught / 0.04).softmax(-1)
    expected = -sum((targets[a] * (student[1 - a] / 0.1).log_softmax(-1)).sum().item() for a in range(2)) / 2
    assert objective(made)["views"].item() == pytest.approx(expected, rel=1e-5)


def test_masked_patches_are_compared_with_what_the_teacher_sees() -> None:
    objective, made = distillation(IBOT).eval(), batch(masked=5)
    losses, counts = objective(made), objective.loss_counts(made)
    assert counts == {"views": 3, "patches": 30}
    with torch.no_grad():
        views = made.global_GBCHW.flatten(0, 1)
        taught = objective.teacher.head(
            objective.teacher.tower.forward_tokens(objective.tower.normalize(views))[:, :5]
        )
        hidden = objective._tokens(views, made.mask_GBN.flatten(0, 1))[:, :5]
        log_q = (objective.head(hidden) / 0.1).log_softmax(-1)
        expected = -((taught / 0.04).softmax(-1) * log_q).sum().item()
    assert losses["patches"].item() == pytest.approx(expected, rel=1e-5)


def test_the_student_does_not_see_masked_patches() -> None:
    objective, made = distillation(IBOT).eval(), batch(masked=4)
    views = made.global_GBCHW.flatten(0, 1)
    changed = views.clone()
    changed[..., :PATCH, :] = 0  # the first row of four patches, which are the masked ones
    mask = made.mask_GBN.flatten(0, 1)
    assert torch.equal(objective._tokens(views, mask), objective._tokens(changed, mask))
    shown = torch.zeros_like(mask)
    assert torch.equal(
        objective._tokens(views, shown), objective.tower.forward_tokens(objective.tower.normalize(views))
    )


def test_no_gradient_reaches_the_teacher() -> None:
    objective = distillation(IBOT).train()
    made = batch(masked=5)
    sum(objective(made).values()).backward()
    assert all(p.grad is None and not p.requires_grad for p in objective.teacher.parameters())
    assert not objective.teacher.training and not objective.teacher.tower.training
    missing = [n for n, p in objective.named_parameters() if not n.startswith("teacher.") and p.grad is None]
    assert missing == []


def test_the_teacher_is_the_running_average_of_the_student() -> None:
    objective = distillation().train()
    name = "blocks.0.attn.qkv.weight"
    start = objective.tower.model.get_parameter(name).detach().clone()
    objective(batch(step=0))
    assert torch.equal(objective.teacher.tower.model.get_parameter(name), start)
    with torch.no_grad():
        objective.tower.model.get_parameter(name).add_(1.0)
    objective(batch(step=1))
    m = 1 - (1 - 0.9) * (math.cos(math.pi * 1 / 10) + 1) / 2
    expected = m * start + (1 - m) * (start + 1.0)
    assert torch.allclose(objective.teacher.tower.model.get_parameter(name), expected, atol=1e-6)
    objective(batch(step=1))  # a second micro-batch of the same step
    assert torch.allclose(objective.teacher.tower.model.get_parameter(name), expected, atol=1e-6)


def test_schedules() -> None:
    objective = distillation(DINO.model_copy(update={"teacher_warmup": 0.5}))
    assert objective.momentum_at(0) == pytest.approx(0.9) and objective.momentum_at(10) == pytest.approx(1)
    temperatures = [objective.temperature_at(step) for step in (0, 1, 5, 9)]
    assert temperatures == pytest.approx([0.04, 0.046, 0.07, 0.07])


def test_the_centre_follows_the_teacher() -> None:
    objective = distillation().train()
    made = batch()
    taught, _ = outputs(objective, made)
    objective(made)
    assert torch.allclose(objective.view_centre_K, 0.1 * taught.flatten(0, 1).mean(0), atol=1e-6)
    before = objective.view_centre_K.clone()
    objective.eval()(made)
    assert torch.equal(objective.view_centre_K, before)


def test_a_local_view_is_half_a_tile_unless_said() -> None:
    assert Crops(SIZE, PATCH, DINO).local_size == 16
    assert Crops(96, 16, DINO).local_size == 48
    with pytest.raises(ConfigError, match="choose a multiple of 8"):
        _ = Crops(SIZE, PATCH, DINO.model_copy(update={"local_size": 20})).local_size
