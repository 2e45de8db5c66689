from __future__ import annotations

import errno
import io
import itertools
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file

from tests.engine_toys import ToyBatch, ToyObjective, ToySource
from vitp.engine import checkpoint
from vitp.engine.config import OptimConfig, TrainConfig
from vitp.engine.evidence import linear_cka, weight_change
from vitp.engine.hooks import Hook, StepMetrics
from vitp.engine.layers import layers_of
from vitp.engine.loading import StepLoader, to_device
from vitp.engine.logging import Meter, MetricsFile
from vitp.engine.loop import Trainer
from vitp.engine.optim import build_optimizer, lr_factor
from vitp.engine.stopping import Interrupted
from vitp.errors import CheckpointError, ConfigError, DataError, VitpError


def make_trainer(
    run_dir: Path,
    objective: ToyObjective | None = None,
    source: ToySource | None = None,
    *,
    hooks: tuple[Hook, ...] = (),
    resume: bool = False,
    optim: dict[str, Any] | None = None,
    **train: Any,
) -> tuple[Trainer, io.StringIO]:
    text = io.StringIO()
    settings = {
        "steps": 6,
        "num_workers": 0,
        "tensorboard": False,
        "deterministic": True,
        "device": "cpu",
    } | train
    trainer = Trainer(
        objective or ToyObjective(),
        source or ToySource(micro_batches=settings.get("micro_batches", 1)),
        OptimConfig(**({"lr": 1e-2, "warmup_ratio": 0.2} | (optim or {}))),
        TrainConfig(**settings),
        run_dir,
        hooks=hooks,
        console=Console(file=text, width=160),
        resume=resume,
    )
    return trainer, text


class Recorder(Hook):
    def __init__(self) -> None:
        self.metrics: list[StepMetrics] = []
        self.ended = 0

    def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
        assert step == metrics.step == trainer.step
        self.metrics.append(metrics)

    def on_end(self, trainer: Trainer) -> None:
        self.ended += 1


class StopAfter(Hook):
    def __init__(self, step: int, signum: int, times: int = 1) -> None:
        self.step, self.signum, self.times = step, signum, times

    def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
        if step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.signum)


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


# Schedule and optimizer.


def test_schedule_has_the_cosine_values() -> None:
    config = OptimConfig(warmup_steps=4, min_lr_ratio=0.1)
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
        OptimConfig(schedule="step", milestones=(0.9, 0.5))


@given(
    st.integers(1, 500), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["cosine", "linear", "constant"])
)
@settings(max_examples=60, deadline=None)
def test_schedule_stays_on_its_range_and_falls_after_the_warmup(
    steps: int, warmup: float, floor: float, schedule: Any
) -> None:
    config = OptimConfig(warmup_ratio=warmup, min_lr_ratio=floor, schedule=schedule)
    factors = [lr_factor(step, steps, config) for step in range(steps)]
    assert all(0 <= factor <= 1 + 1e-12 for factor in factors)
    peak = max(config.warmup(steps) - 1, 0)
    assert all(a <= b for a, b in itertools.pairwise(factors[: peak + 1]))
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(factors[peak:]))


def test_optimizer_groups_carry_scale_and_decay() -> None:
    objective = ToyObjective()
    config = OptimConfig(lr=1e-3, weight_decay=0.05, lr_scale={"head": 3.0}, layer_decay=0.5)
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


# Accumulation and weights.


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


# Resume.


def assert_same_checkpoint(one: Path, other: Path) -> None:
    for file in ("model.safetensors", "optimizer.safetensors"):
        a, b = load_file(one / file), load_file(other / file)
        assert a.keys() == b.keys()
        assert a
        for name in a:
            assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_is_bit_identical_with_dropout(tmp_path: Path, num_workers: int) -> None:
    common: dict[str, Any] = {"num_workers": num_workers, "micro_batches": 2, "log_every": 1}
    straight = Recorder()
    make_trainer(tmp_path / "straight", ToyObjective(dropout=0.3), hooks=(straight,), **common)[0].train()

    first = (StopAfter(3, signal.SIGTERM),)
    with pytest.raises(Interrupted) as stopped:
        make_trainer(tmp_path / "halves", ToyObjective(dropout=0.3), hooks=first, **common)[0].train()
    assert stopped.value.exit_code == 143
    assert stopped.value.checkpoint.name == "step_00000003"
    # Another initialisation: all that matters must come from the checkpoint.
    torch.rand(17)
    second = Recorder()
    resumed, text = make_trainer(
        tmp_path / "halves", ToyObjective(seed=9, dropout=0.3), hooks=(second,), resume=True, **common
    )
    resumed.train()
    assert "resumed" in text.getvalue()
    assert "changed" not in text.getvalue()
    assert_same_checkpoint(
        checkpoint.folder(tmp_path / "straight", 6), checkpoint.folder(tmp_path / "halves", 6)
    )
    assert [m.loss for m in straight.metrics[3:]] == [m.loss for m in second.metrics]
    assert [row["step"] for row in rows(tmp_path / "halves")] == [1, 2, 3, 4, 5, 6]
    a, b = (json.loads((tmp_path / run / "evidence.json").read_text()) for run in ("straight", "halves"))
    assert a == b


def test_a_hook_that_draws_random_numbers_changes_nothing(tmp_path: Path) -> None:
    class Noisy(Hook):
        def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
            trainer.objective.eval()
            torch.rand(step)

    for name, hooks in (("quiet", ()), ("noisy", (Noisy(),))):
        make_trainer(tmp_path / name, ToyObjective(dropout=0.3), hooks=hooks)[0].train()
    assert_same_checkpoint(checkpoint.folder(tmp_path / "quiet", 6), checkpoint.folder(tmp_path / "noisy", 6))


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    make_trainer(tmp_path)[0].train()
    before = load_file(checkpoint.folder(tmp_path, 6) / "model.safetensors")
    result = make_trainer(tmp_path, ToyObjective(seed=3), resume=True)[0].train()
    assert result.step == 6
    assert math.isnan(result.loss)
    after = load_file(result.checkpoint / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_is_not_overwritten_and_may_begin_with_resume(tmp_path: Path) -> None:
    _, text = (made := make_trainer(tmp_path, resume=True, steps=2))
    made[0].train()
    assert "nothing to resume" in text.getvalue()
    with pytest.raises(VitpError, match="already holds a run"):
        make_trainer(tmp_path)[0].train()
    with pytest.raises(ConfigError, match="has 2 steps behind it"):
        make_trainer(tmp_path, resume=True, steps=1)[0].train()
    _, text = (made := make_trainer(tmp_path, resume=True, steps=4))
    made[0].train()
    assert "changed since the last checkpoint: train.steps 2 → 4" in text.getvalue()


def test_resume_refuses_other_data_and_other_architecture(tmp_path: Path) -> None:
    make_trainer(tmp_path, steps=2)[0].train()
    with pytest.raises(CheckpointError, match="other batches"):
        make_trainer(tmp_path, source=ToySource(name="other"), resume=True)[0].train()
    other = ToyObjective()
    other.tower.blocks[1] = torch.nn.Linear(16, 16, bias=False)
    other.head = torch.nn.Linear(16, 7)
    before = {name: p.clone() for name, p in other.state_dict().items()}
    with pytest.raises(CheckpointError) as raised:
        make_trainer(tmp_path, other, resume=True)[0].train()
    assert "tower.blocks.1.bias was trained and is not now" in str(raised.value)
    assert "head.weight was (5, 16) and is (7, 16)" in str(raised.value)
    assert all(torch.equal(before[name], p) for name, p in other.state_dict().items())
    frozen = ToyObjective()
    frozen.head.requires_grad_(False)
    with pytest.raises(CheckpointError, match=r"head\.weight was trained and is not now"):
        make_trainer(tmp_path, frozen, resume=True)[0].train()


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_one_error(tmp_path: Path, file: str) -> None:
    make_trainer(tmp_path, steps=2)[0].train()
    path = checkpoint.folder(tmp_path, 2) / file
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="remove this checkpoint"):
        make_trainer(tmp_path, resume=True)[0].train()


def test_tied_weights_survive(tmp_path: Path) -> None:
    class Tied(ToyObjective):
        def __init__(self, seed: int = 0) -> None:
            super().__init__(seed)
            self.tower.blocks[2].weight = self.tower.blocks[0].weight

    straight = make_trainer(tmp_path / "a", Tied())[0]
    straight.train()
    make_trainer(tmp_path / "b", Tied(), steps=3, optim={"schedule": "constant", "warmup_steps": 0})[
        0
    ].train()
    resumed = make_trainer(tmp_path / "b", Tied(seed=5), steps=3, resume=True)[0]
    resumed.train()
    saved = load_file(checkpoint.folder(tmp_path / "b", 3) / "model.safetensors")
    assert "tower.blocks.2.weight" not in saved
    assert torch.equal(resumed.objective.tower.blocks[2].weight, saved["tower.blocks.0.weight"])


# What goes wrong.


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, saves = checkpoint.save_tensors, []

    def full(path: Path, *rest: Any) -> None:
        saves.append(path)
        if len(saves) == 4:  # the second checkpoint's optimizer
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, *rest)

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    with pytest.raises(VitpError, match="the disk is full"):
        make_trainer(tmp_path, save_every=2)[0].train()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]
    assert make_trainer(tmp_path, resume=True)[0].train().step == 6


def test_nan_stops_before_the_step_and_names_the_records(tmp_path: Path) -> None:
    before: dict[int, dict[str, torch.Tensor]] = {}

    class Keep(Hook):
        def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
            before[step] = {name: p.clone() for name, p in trainer.objective.state_dict().items()}

    source = ToySource(micro_batches=2, nan_step=3)
    trainer, _ = make_trainer(tmp_path, source=source, micro_batches=2, hooks=(Keep(),))
    with pytest.raises(VitpError) as raised:
        trainer.train()
    message = str(raised.value)
    assert "the loss answer is nan, size is nan in step 4" in message
    assert "toy.jsonl:36" in message
    assert "toy.jsonl:42" not in message, "the second micro-batch is innocent"
    now = trainer.objective.state_dict()
    assert all(torch.equal(before[3][name], now[name]) for name in now)
    saved = load_file(checkpoint.folder(tmp_path, 3) / "model.safetensors")
    assert all(torch.equal(saved[name], now[name]) for name in saved)
    healthy, _ = make_trainer(tmp_path, source=ToySource(micro_batches=2), micro_batches=2, resume=True)
    assert healthy.train().step == 6


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_data_error_arrives_as_it_was_raised(tmp_path: Path, num_workers: int) -> None:
    trainer, _ = make_trainer(tmp_path, source=ToySource(bad_step=2), num_workers=num_workers)
    with pytest.raises(DataError) as raised:
        trainer.train()
    assert str(raised.value) == "image_7.png: is truncated; replace it"
    assert trainer.step == 2


def test_other_errors_keep_their_traceback_and_dead_workers_are_named(tmp_path: Path) -> None:
    class Broken(ToySource):
        def __call__(self, *place: int) -> ToyBatch:
            raise ZeroDivisionError("a bug")

    class Killed(ToySource):
        def __call__(self, *place: int) -> ToyBatch:
            os._exit(9)

    with pytest.raises(ZeroDivisionError, match="a bug"):
        make_trainer(tmp_path / "a", source=Broken())[0].train()
    with pytest.raises(RuntimeError, match=r"step 0, micro-batch 0\n(.|\n)*ZeroDivisionError: a bug"):
        make_trainer(tmp_path / "c", source=Broken(), num_workers=1)[0].train()
    with pytest.raises(DataError, match="lower num_workers"):
        make_trainer(tmp_path / "b", source=Killed(), num_workers=1)[0].train()


def test_signals_finish_the_step_and_restore_handlers(tmp_path: Path) -> None:
    previous = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    trainer, _ = make_trainer(tmp_path, hooks=(StopAfter(2, signal.SIGINT),))
    with pytest.raises(Interrupted) as stopped:
        trainer.train()
    assert stopped.value.exit_code == 130
    assert "after step 2" in str(stopped.value)
    assert "resume" in str(stopped.value)
    assert trainer.step == 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == previous


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "a", hooks=(StopAfter(2, signal.SIGINT, times=2),))[0].train()
    with pytest.raises(SystemExit) as stopped:
        make_trainer(tmp_path / "b", hooks=(StopAfter(2, signal.SIGTERM, times=2),))[0].train()
    assert stopped.value.code == 143
    assert checkpoint.latest(tmp_path / "a") is None


def test_uncounted_losses_are_refused(tmp_path: Path) -> None:
    class Forgetful(ToyObjective):
        def loss_counts(self, batch: ToyBatch) -> dict[str, float]:
            return {"answer": 1.0}

    with pytest.raises(ValueError, match="size"):
        make_trainer(tmp_path, Forgetful())[0].train()


# Evidence.


def test_linear_cka_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    for n, p, q in ((40, 7, 11), (9, 30, 20)):
        X = torch.randn(n, p, generator=generator, dtype=torch.float64)
        Y = X @ torch.randn(p, q, generator=generator, dtype=torch.float64) + torch.randn(
            n, q, generator=generator
        )
        H = torch.eye(n, dtype=torch.float64) - 1 / n
        K, L = H @ (X @ X.T) @ H, H @ (Y @ Y.T) @ H
        expected = torch.trace(K @ L) / torch.sqrt(torch.trace(K @ K) * torch.trace(L @ L))
        assert linear_cka(X, Y) == pytest.approx(expected.item(), abs=1e-12)
        rotation = torch.linalg.qr(torch.randn(p, p, generator=generator, dtype=torch.float64)).Q
        assert linear_cka(X, 3 * X @ rotation + 5) == pytest.approx(1, abs=1e-12)
    assert math.isnan(linear_cka(torch.ones(4, 2), torch.randn(4, 2)))
    with pytest.raises(ValueError):
        linear_cka(torch.ones(4, 2), torch.ones(3, 2))


def test_weight_change_by_layer() -> None:
    tower = ToyObjective().tower
    start = {name: p.detach().clone() for name, p in tower.named_parameters()}
    with torch.no_grad():
        tower.blocks[1].weight.mul_(1.5)
        tower.blocks[1].bias.mul_(1.5)
    change = weight_change(tower, start)
    layers = {row["layer"]: row["change"] for row in change["layers"]}
    assert layers.keys() == {"patch_embed", "pos_embed", "blocks.0", "blocks.1", "blocks.2"}
    assert layers["blocks.1"] == pytest.approx(0.5, rel=1e-6)
    assert layers["blocks.0"] == 0
    moved = sum((p - start[n]).square().sum().item() for n, p in tower.named_parameters())
    norm = sum(p.square().sum().item() for p in start.values())
    assert change["overall"] == pytest.approx(math.sqrt(moved / norm), rel=1e-5)


def test_layer_names_leave_wrappers_out() -> None:
    names = ["vit.patch_embed.proj.weight", "vit.pos_embed", "vit.blocks.0.attn.qkv.bias", "vit.norm.weight"]
    assert list(layers_of(names).values()) == ["patch_embed", "pos_embed", "blocks.0", "norm"]
    names = ["m.embeddings.class_embedding", "m.embeddings.patch_embedding.weight", "m.encoder.layers.11.ls1"]
    assert list(layers_of(names).values()) == [
        "embeddings.class_embedding",
        "embeddings.patch_embedding",
        "encoder.layers.11",
    ]
    assert list(layers_of(["blocks.0.a.weight", "blocks.1.a.weight"]).values()) == ["blocks.0", "blocks.1"]


def test_evidence_of_a_run(tmp_path: Path) -> None:
    probe = torch.randn(20, 8, generator=torch.Generator().manual_seed(4))

    class Features(Hook):
        def on_start(self, trainer: Trainer) -> None:
            trainer.evidence.features = lambda: trainer.objective.vision_tower(probe)

    start = ToyObjective()
    recorder = Recorder()
    trainer, text = make_trainer(tmp_path, ToyObjective(), hooks=(Features(), recorder), steps=30)
    result = trainer.train()
    evidence = json.loads((tmp_path / "evidence.json").read_text())
    assert evidence == result.evidence
    with torch.no_grad():
        expected = linear_cka(start.tower(probe), trainer.objective.tower(probe))
    assert evidence["cka"] == pytest.approx(expected, abs=1e-6)
    assert 0.1 < evidence["cka"] < 0.9999
    assert evidence["relative_change"] > 1e-3
    shares = [m.vision_share for m in recorder.metrics]
    assert evidence["gradient_share"] == pytest.approx(sum(shares) / 30)
    assert shares[0] == pytest.approx(recorder.metrics[0].grad_share["vision tower"])
    assert "weights moved by" in text.getvalue()


def test_a_tower_that_does_not_learn_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(VitpError, match="no gradient has reached the vision tower in 5 steps"):
        make_trainer(tmp_path / "a", ToyObjective(detached=True), steps=40, optim={"warmup_steps": 0})[
            0
        ].train()

    class Stuck(ToyObjective):
        """Its weights are put back after each step, as a copy in bf16 that rounds the step away would be."""

    objective = Stuck()
    start = {name: p.detach().clone() for name, p in objective.tower.named_parameters()}

    class PutBack(Hook):
        def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
            objective.tower.load_state_dict(start)

    with pytest.raises(VitpError, match="after 3 steps the vision tower has not changed"):
        make_trainer(tmp_path / "b", objective, hooks=(PutBack(),), steps=40, check_at=3)[0].train()
    frozen = ToyObjective()
    frozen.tower.requires_grad_(False)
    result = make_trainer(tmp_path / "c", frozen)[0].train()
    assert result.evidence["relative_change"] == 0
    assert result.evidence["meant_to_train"] is False


# Loading and logging.


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_keeps_the_order_of_steps(num_workers: int) -> None:
    class Places(ToySource):
        def __call__(self, *place: int) -> Any:
            assert num_workers == 0 or torch.get_num_threads() == 1
            return place

    loader = StepLoader(Places(), 2, 6, 3, rank=1, world=4, num_workers=num_workers)
    found = [loader.next_step() for _ in range(4)]
    loader.close()
    assert found == [[(step, micro, 1, 4) for micro in range(3)] for step in range(2, 6)]
    assert loader.wait_s > 0


def test_to_device_keeps_the_structure() -> None:
    batch = ToySource()(0, 0, 0, 1)
    nested = {"a": [batch, (torch.ones(2), "text", 3)], "b": None}
    moved = to_device(nested, torch.device("meta"))
    assert moved["a"][0].x.device.type == "meta"
    assert moved["a"][0].record_names == batch.record_names
    assert moved["a"][1][0].device.type == "meta"
    assert moved["a"][1][1:] == ("text", 3)
    assert batch.x.device.type == "cpu"


def test_metrics_of_later_steps_are_dropped_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n{"step": 20, "a": 1}\n{"step": 20, "probe": 2}\n{"step": 30}\n{"step": 4')
    MetricsFile(path, 20).write({"step": 30, "loss": 0.5})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20, 20, 30]
    MetricsFile(path, 0)
    assert path.read_text() == ""


def test_meter_gives_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 104.0, 106.0])
    monkeypatch.setattr("vitp.engine.logging.time.perf_counter", lambda: next(clock))
    meter = Meter()
    meter.add({"samples": 6, "tokens": 30, "capacity": 40})
    meter.add({"samples": 2, "tokens": 30, "capacity": 40})
    assert meter.read(1.0) == {"samples_per_s": 2.0, "tokens_per_s": 15.0, "packing": 0.75, "data_wait": 0.25}
    assert meter.read(2.0) == {"data_wait": 0.5}


def test_hooks_log_scalars_and_tensorboard_has_them(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Probe(Hook):
        def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
            if step == 2:
                trainer.log_scalars(step, {"probe/accuracy": 0.25})

    make_trainer(tmp_path, hooks=(Probe(),), steps=3, log_every=1, tensorboard=True)[0].train()
    assert {"step": 2, "probe/accuracy": 0.25} in rows(tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Scalars("probe/accuracy")[0].value == 0.25
    losses = [row["loss"] for row in rows(tmp_path) if "loss" in row]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses, rel=1e-6)
    assert (
        "grad_share/vision tower" in events.Tags()["scalars"]
        or "grad_share/vision_tower" in events.Tags()["scalars"]
    )
