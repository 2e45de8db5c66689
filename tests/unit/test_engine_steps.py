"""One optimizer step: schedule, groups, accumulation, loss weights, precision."""

from __future__ import annotations

import hashlib
import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.engine_toys import ToyObjective, ToySource
from tests.unit.engine_runs import Recorder, make_trainer, rows
from vitp.core.errors import ConfigError
from vitp.engine import checkpoint
from vitp.engine.config import OptimSettings
from vitp.engine.numerics import seed_step
from vitp.engine.optim import build_optimizer, lr_factor


def test_schedule_has_the_cosine_values() -> None:
    config = OptimSettings(warmup_steps=4, min_lr_ratio=0.1)
    assert [lr_factor(step, 12, config) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert lr_factor(4, 12, config) == 1.0
    assert lr_factor(8, 12, config) == pytest.approx(0.1 + 0.9 * 0.5)
    assert lr_factor(12, 12, config) == pytest.approx(0.1)
    assert lr_factor(6, 12, config.model_copy(update={"schedule": "linear"})) == pytest.approx(
        0.1 + 0.9 * 0.75
    )
    assert lr_factor(11, 12, config.model_copy(update={"schedule": "constant"})) == 1.0
    stepped = config.model_copy(update={"schedule": "step"})
    assert [lr_factor(step, 12, stepped) for step in (7, 8, 10, 11)] == pytest.approx([1.0, 0.1, 0.1, 0.01])
    with pytest.raises(ValueError, match="milestones must rise"):
        OptimSettings(schedule="step", milestones=(0.9, 0.5))


@given(
    st.integers(1, 500), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["cosine", "linear", "constant"])
)
@settings(max_examples=60, deadline=None)
def test_schedule_stays_on_its_range_and_falls_after_the_warmup(
    steps: int, warmup: float, floor: float, schedule: Any
) -> None:
    config = OptimSettings(warmup_ratio=warmup, min_lr_ratio=floor, schedule=schedule)
    factors = [lr_factor(step, steps, config) for step in range(steps)]
    assert all(0 <= factor <= 1 + 1e-12 for factor in factors)
    peak = max(config.warmup(steps) - 1, 0)
    assert all(a <= b for a, b in itertools.pairwise(factors[: peak + 1]))
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(factors[peak:]))


def test_random_numbers_are_a_function_of_seed_step_and_rank() -> None:
    """Without the step every step would drop the same units; without the rank, every rank."""

    def drawn(seed: int, step: int, rank: int) -> tuple[float, ...]:
        seed_step(seed, step, rank)
        return (random.random(), float(np.random.random()), float(torch.rand(())))  # noqa: NPY002

    first = drawn(0, 0, 0)
    assert drawn(0, 0, 0) == first
    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 10, 0), (0, 1, 10), (0, 11, 0), (1, 1, 1)]
    for column in zip(*(drawn(*place) for place in places), strict=True):
        assert len(set(column)) == len(places)
    # The numbers that runs so far had: a run that is resumed must go on with them.
    seed_step(7, 3, 1)
    value = int.from_bytes(hashlib.blake2b(b"7:3:1", digest_size=8).digest(), "little")
    assert random.random() == random.Random(value).random()
    assert np.random.random() == np.random.RandomState(value % 2**32).random_sample()  # noqa: NPY002
    assert torch.equal(torch.rand(4), torch.rand(4, generator=torch.Generator().manual_seed(value >> 1)))


def test_each_step_and_each_micro_batch_drops_other_units(tmp_path: Path) -> None:
    masks: list[list[bool]] = []

    class Watched(torch.nn.Dropout):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            masks.append((torch.nn.functional.dropout(torch.ones(64), 0.5) == 0).tolist())
            return super().forward(input)

    objective = ToyObjective(dropout=0.5)
    objective.tower.dropout = Watched(0.5)
    make_trainer(tmp_path, objective, steps=3, micro_batches=2)[0].train()
    assert len(masks) >= 6 and len({tuple(mask) for mask in masks}) == len(masks)


def test_optimizer_groups_carry_scale_and_decay() -> None:
    objective = ToyObjective()
    config = OptimSettings(lr=1e-3, weight_decay=0.05, lr_scale={"head": 3.0}, layer_decay=0.5)
    optimizer, names = build_optimizer(objective, objective.parameter_groups(), config)
    found = {
        name: (group["scale"], group["weight_decay"])
        for group, group_names in zip(optimizer.param_groups, names, strict=True)
        for name in group_names
    }
    assert set(found) == {name for name, _ in objective.named_parameters()}
    assert found["head.weight"] == (6.0, 0.05)
    assert found["head.bias"] == (6.0, 0.0)
    assert found["tower.blocks.2.weight"] == (0.5, 0.05)
    assert found["tower.blocks.0.bias"] == (0.125, 0.0)
    assert found["tower.patch_embed.weight"] == (0.0625, 0.05)


def test_a_step_equals_plain_adamw(tmp_path: Path) -> None:
    recorder = Recorder()
    trainer, _ = make_trainer(
        tmp_path / "run", hooks=(recorder,), steps=3, optim={"clip_norm": 0.5, "weight_decay": 0.1}
    )
    trainer.train()

    reference = ToyObjective()
    source = ToySource()
    decay = [p for p in reference.parameters() if p.ndim > 1]
    plain = [p for p in reference.parameters() if p.ndim <= 1]
    heads = {id(p) for m in (reference.head, reference.size_head) for p in m.parameters()}
    optimizer = torch.optim.AdamW(
        [{"params": [p], "weight_decay": 0.1} for p in decay]
        + [{"params": [p], "weight_decay": 0.0} for p in plain]
    )
    for step, factor in enumerate([1.0, 1.0, 0.5]):  # one step of warm-up, then a cosine over two
        batch = source(step, 0, 0, 1)
        sums, counts = reference(batch), reference.loss_counts(batch)
        loss = sums["answer"] / counts["answer"] + 0.5 * sums["size"] / counts["size"]
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * factor * (2.0 if id(group["params"][0]) in heads else 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert recorder.metrics[step].loss == pytest.approx(loss.item(), rel=1e-6)
        assert recorder.metrics[step].grad_norm == pytest.approx(norm.item(), rel=1e-6)
        assert recorder.metrics[step].lr == pytest.approx(1e-2 * factor)
    for (name, a), b in zip(trainer.objective.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=name)


def test_unknown_names_are_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='did you mean "head"'):
        make_trainer(tmp_path, optim={"lr_scale": {"haed": 2.0}})
    with pytest.raises(ConfigError, match='did you mean "vision tower"'):
        make_trainer(tmp_path, must_train=("vision towr",))
    with pytest.raises(ConfigError, match='did you mean "answer"'):
        make_trainer(tmp_path, loss_weights={"anwser": 2.0})[0].train()


def test_parts_must_be_trainable_and_complete(tmp_path: Path) -> None:
    objective = ToyObjective()
    objective.tower.requires_grad_(False)
    with pytest.raises(ConfigError, match='"vision tower" is meant to train but is frozen'):
        make_trainer(tmp_path, objective, must_train=("vision tower",))
    objective.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing is trainable"):
        make_trainer(tmp_path, objective)
    objective = ToyObjective()
    objective.stray = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"2 parameters are in no part: stray\.weight"):
        make_trainer(tmp_path, objective)


def test_micro_batches_do_not_change_the_weights(tmp_path: Path) -> None:
    states = []
    for micro_batches in (1, 4):
        trainer, _ = make_trainer(tmp_path / str(micro_batches), micro_batches=micro_batches)
        trainer.train()
        states.append(trainer.objective.state_dict())
    for name, one in states[0].items():
        assert (one - states[1][name]).norm() <= 1e-6 * one.norm(), name


def test_neutral_loss_weights_change_nothing_and_others_do(tmp_path: Path) -> None:
    def weights(folder: str, **train: Any) -> torch.Tensor:
        trainer, _ = make_trainer(tmp_path / folder, **train)
        trainer.train()
        return torch.cat([p.detach().flatten() for p in trainer.objective.parameters()])

    plain = weights("plain")
    assert torch.equal(plain, weights("same", loss_weights={"size": 0.5, "answer": 1.0}))
    assert not torch.equal(plain, weights("other", loss_weights={"size": 2.0}))


def test_training_lowers_the_loss_and_leaves_its_files(tmp_path: Path) -> None:
    recorder = Recorder()
    run_dir = tmp_path / "run"
    trainer, text = make_trainer(run_dir, hooks=(recorder,), steps=60, save_every=20, log_every=10)
    result = trainer.train()
    losses = [m.loss for m in recorder.metrics]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert result.step == 60
    assert result.loss == losses[-1]
    assert recorder.ended == 1
    assert [path.name for path in checkpoint.checkpoints(run_dir)] == ["step_00000040", "step_00000060"]
    assert (
        load_file(run_dir / "model" / "weights.safetensors").keys() == trainer.objective.state_dict().keys()
    )
    logged = rows(run_dir)
    assert [row["step"] for row in logged] == [10, 20, 30, 40, 50, 60]
    assert logged[2]["loss"] == losses[29]
    assert logged[2]["loss_mean"] == pytest.approx(sum(losses[20:30]) / 10)
    assert logged[0]["packing"] == 0.75
    assert logged[0]["tokens_per_s"] == pytest.approx(3 * logged[0]["samples_per_s"])
    assert sum(logged[0]["grad_share"].values()) == pytest.approx(1)
    assert 0 <= logged[0]["data_wait"] <= 1
    assert "vision tower" in text.getvalue()
    assert "step 60/60" in text.getvalue()


def test_bf16_runs_close_to_fp32(tmp_path: Path) -> None:
    ends = []
    for precision in ("fp32", "bf16"):
        recorder = Recorder()
        trainer, _ = make_trainer(tmp_path / precision, precision=precision, steps=5, hooks=(recorder,))
        trainer.train()
        assert all(p.dtype == torch.float32 for p in trainer.objective.parameters())
        ends.append([m.loss for m in recorder.metrics])
    assert ends[0] != ends[1]
    assert ends[1] == pytest.approx(ends[0], rel=0.05)
