"""A resumed run is the run that was not interrupted."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.engine_toys import ToyObjective, ToySource
from tests.unit.engine_runs import Recorder, StopAfter, assert_same_checkpoint, make_trainer, rows
from vitp.core.errors import CheckpointError, ConfigError, VitpError
from vitp.engine import checkpoint
from vitp.engine.hooks import Hook, StepMetrics
from vitp.engine.loop import Trainer
from vitp.engine.stopping import Interrupted


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
    with pytest.raises(CheckpointError, match="the only checkpoint is damaged"):
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
