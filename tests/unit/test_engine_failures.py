"""What goes wrong in a run, and what is left of it."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.engine_toys import ToyBatch, ToyObjective, ToySource
from tests.unit.engine_runs import StopAfter, make_trainer
from vitp.core.errors import DataError, VitpError
from vitp.engine import checkpoint
from vitp.engine.hooks import Hook, StepMetrics
from vitp.engine.loop import Trainer
from vitp.engine.stopping import Interrupted


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
