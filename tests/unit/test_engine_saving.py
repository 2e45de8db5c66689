"""Checkpoints that are written while training goes on, and what a killed run leaves."""

from __future__ import annotations

import errno
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.engine_toys import ToyObjective
from tests.unit.engine_runs import Recorder, StopAfter, assert_same_checkpoint, make_trainer
from vitp.core import distributed
from vitp.core.errors import VitpError
from vitp.engine import checkpoint
from vitp.engine.checkpoint import changed_settings
from vitp.engine.config import TrainSettings
from vitp.engine.hooks import Hook, StepMetrics
from vitp.engine.loop import Trainer
from vitp.engine.sharding import is_wanted, repeated_blocks
from vitp.engine.stopping import Interrupted


def test_a_save_in_the_background_is_of_the_step_that_asked_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer is held up until two more steps have changed the weights."""
    make_trainer(tmp_path / "plain", save_every=2, keep_last=9)[0].train()
    real, go_on = checkpoint.save_tensors, threading.Event()

    def slow(path: Path, *rest: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            assert go_on.wait(20)
        real(path, *rest)

    seen: dict[int, list[str]] = {}

    class Watch(Hook):
        def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
            seen[step] = [path.name for path in checkpoint.checkpoints(trainer.run_dir)]
            if step == 4:
                go_on.set()

    monkeypatch.setattr(checkpoint, "save_tensors", slow)
    later, _ = make_trainer(tmp_path / "later", save_every=2, keep_last=9, async_save=True, hooks=(Watch(),))
    later.train()
    assert seen[3] == seen[4] == [], "the checkpoint of step 2 is not there before it is whole"
    for step in (2, 4, 6):
        assert_same_checkpoint(
            checkpoint.folder(tmp_path / "plain", step), checkpoint.folder(tmp_path / "later", step)
        )


def test_an_interrupted_run_that_saves_in_the_background_resumes_bit_for_bit(tmp_path: Path) -> None:
    make_trainer(tmp_path / "plain", ToyObjective(dropout=0.3))[0].train()
    common: dict[str, Any] = {"async_save": True, "save_every": 1}
    with pytest.raises(Interrupted) as stopped:
        make_trainer(
            tmp_path / "later", ToyObjective(dropout=0.3), hooks=(StopAfter(3, signal.SIGTERM),), **common
        )[0].train()
    assert stopped.value.checkpoint.is_dir()
    make_trainer(tmp_path / "later", ToyObjective(seed=4, dropout=0.3), resume=True, **common)[0].train()
    assert_same_checkpoint(checkpoint.folder(tmp_path / "plain", 6), checkpoint.folder(tmp_path / "later", 6))
    assert len(checkpoint.checkpoints(tmp_path / "later")) == 2


def test_a_full_disk_is_told_though_it_was_found_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint.save_tensors

    def full(path: Path, *rest: Any) -> None:
        if "step_00000004" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, *rest)

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    with pytest.raises(VitpError, match="the disk is full"):
        make_trainer(tmp_path, save_every=2, async_save=True, steps=8)[0].train()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]


def test_what_killed_runs_have_left_is_removed(tmp_path: Path) -> None:
    make_trainer(tmp_path, steps=2)[0].train()
    folder = tmp_path / "checkpoints"
    for name in (".step_00000004.x1.tmp", ".step_00000004.shards.tmp", ".step_00000001.old"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".start_vision.safetensors.q.tmp.safetensors").write_bytes(b"half")
    make_trainer(tmp_path, steps=3, resume=True)[0].train()
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000002", "step_00000003"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_new_run_clears_up_before_its_first_checkpoint_too(tmp_path: Path) -> None:
    (tmp_path / ".start_vision.safetensors.q.tmp.safetensors").write_bytes(b"half")
    make_trainer(tmp_path, steps=1)[0].train()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_restarts_are_told_by_those_who_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "config.yaml"
    for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    marker.write_text("seed: 0\n")
    assert not distributed.restarted(marker), "a first start never takes over what is there"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not distributed.restarted(marker)
    for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"):
        monkeypatch.setenv(name, "2")
        assert distributed.restarted(marker)
        assert not distributed.restarted(tmp_path / "other.yaml"), (
            "killed before the run began: it begins now"
        )
        monkeypatch.setenv(name, "0")


def test_one_process_has_nothing_to_shard(tmp_path: Path) -> None:
    recorders = [Recorder(), Recorder()]
    for parallel, recorder in zip(("ddp", "fsdp"), recorders, strict=True):
        make_trainer(tmp_path / parallel, hooks=(recorder,), parallel=parallel)[0].train()
    assert [m.loss for m in recorders[0].metrics] == [m.loss for m in recorders[1].metrics]
    assert not is_wanted(TrainSettings(steps=1, parallel="hybrid"))


def test_repeated_blocks_are_the_layers() -> None:
    objective = ToyObjective()
    assert repeated_blocks(objective) == list(objective.tower.blocks)
    mixed = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GELU(), torch.nn.Linear(2, 2))
    assert repeated_blocks(torch.nn.ModuleDict({"projector": mixed})) == []


def test_settings_that_a_version_did_not_know_are_no_change() -> None:
    before = {"train": {"steps": 4}, "world": 1}
    now = {"train": {"steps": 5, "parallel": "ddp"}, "world": 1}
    assert changed_settings(before, now) == ["changed since the last checkpoint: train.steps 4 → 5"]


def test_checkpoints_never_exceed_the_rule_while_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, most = checkpoint.save_tensors, []

    def counted(path: Path, *rest: Any) -> None:
        real(path, *rest)
        most.append(len(list((tmp_path / "checkpoints").iterdir())))

    monkeypatch.setattr(checkpoint, "save_tensors", counted)
    make_trainer(tmp_path, save_every=1, keep_last=2, steps=8)[0].train()
    assert max(most) == 3, "two whole ones and the one that is being written"
    names = [path.name for path in checkpoint.checkpoints(tmp_path)]
    assert names == ["step_00000007", "step_00000008"]
    assert load_file(checkpoint.folder(tmp_path, 8) / "model.safetensors")


def test_a_process_that_is_gone_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object) -> None:
        raise RuntimeError("Connection closed by peer [127.0.0.1]:4711\nand what gloo did before")

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "all_gather_object", closed)
    monkeypatch.setattr(distributed.dist, "all_reduce", closed)
    for call in (lambda: distributed.gather(1), lambda: distributed.sum_tensor(torch.ones(1))):
        with pytest.raises(VitpError, match=r"rank 0: lost touch with another process .*4711\); the output"):
            call()
