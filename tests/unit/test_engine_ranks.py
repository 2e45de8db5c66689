"""What the loop does among several ranks, with stand-ins for the others (real ones: tests/parity)."""

from __future__ import annotations

import contextlib
import json
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from torch import nn

from tests.engine_toys import ToyObjective, ToySource
from tests.unit.engine_runs import Recorder, StopAfter, make_trainer, rows
from vitp.core import distributed
from vitp.core.distributed import RankReport
from vitp.core.errors import ConfigError, DamagedError, VitpError
from vitp.core.tensors import load_tensors
from vitp.engine import checkpoint, loop
from vitp.engine.config import LogSettings
from vitp.engine.evidence import VisionEvidence, linear_cka
from vitp.engine.exchange import StepExchange
from vitp.engine.gradients import Gradients
from vitp.engine.hooks import Hook
from vitp.engine.logging import RunLog
from vitp.engine.saving import Saver
from vitp.engine.stopping import Interrupted
from vitp.engine.trackers import Trackers
from vitp.objectives.base import ParameterGroup

CPU = torch.device("cpu")


def beside(monkeypatch: pytest.MonkeyPatch, **other: Any) -> None:
    """Let another rank answer before this one whenever reports are gathered."""

    def both(_: StepExchange, own: RankReport) -> list[RankReport]:
        return [replace(own, **{"counts": {}, "work": {}, "stop": None, "error": None, **other}), own]

    monkeypatch.setattr(StepExchange, "__call__", both)


def test_a_signal_to_any_rank_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside(monkeypatch)
    with pytest.raises(Interrupted, match="interrupted by SIGTERM after step 2"):
        make_trainer(tmp_path / "own", hooks=(StopAfter(2, signal.SIGTERM),))[0].train()
    beside(monkeypatch, stop=signal.SIGINT)
    with pytest.raises(Interrupted, match="interrupted by SIGINT after step 0"):
        make_trainer(tmp_path / "other")[0].train()


def test_an_error_of_another_rank_is_raised_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside(monkeypatch, error=VitpError("their disk is full"))
    with pytest.raises(VitpError, match="their disk is full"):
        make_trainer(tmp_path / "theirs")[0].train()
    with pytest.raises(VitpError, match=r"image_7\.png: is truncated"):
        make_trainer(tmp_path / "ours", source=ToySource(bad_step=0))[0].train()


@pytest.mark.parametrize("saved", [True, False])
def test_a_checkpoint_is_finished_when_all_ranks_have_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: bool
) -> None:
    beside(monkeypatch, saved=saved)
    finished: list[int] = []
    trainer, _ = make_trainer(tmp_path, steps=3, save_every=None)
    monkeypatch.setattr(Saver, "pending", property(lambda self: trainer.step < 3))
    monkeypatch.setattr(Saver, "finish", lambda self: finished.append(trainer.step))
    trainer.train()
    assert [step for step in finished if step < 3] == ([0, 1, 2] if saved else [])


def test_gradients_meet_with_the_last_batch_of_a_step(tmp_path: Path) -> None:
    synced: list[bool] = []
    trainer, _ = make_trainer(tmp_path, steps=2, micro_batches=3)
    plain = trainer.forward_backward
    trainer.forward_backward = lambda *a, sync: synced.append(sync) or plain(*a, sync=sync)  # type: ignore[method-assign]
    trainer.train()
    assert synced == [False, False, True] * 2


@pytest.mark.parametrize(
    ("sharded", "sync", "touched"), [(False, True, 1), (False, False, 0), (True, True, 0)]
)
def test_ddp_hears_of_every_parameter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: bool, sync: bool, touched: int
) -> None:
    trainer, _ = make_trainer(tmp_path)
    seen: list[int] = []
    monkeypatch.setattr(distributed, "touch", lambda loss, parameters: seen.append(len(parameters)) or loss)
    trainer.world, trainer.sharded, trainer._model = 2, sharded, trainer.objective
    batch = trainer.source(0, 0, 0, 1)
    trainer.forward_backward(batch, {"answer": 2.0, "size": 4.0}, sync=sync)
    assert seen == [len(trainer.gradients.parameters)] * touched
    # Each rank's gradient is averaged with the others', so it counts for as many as there are.
    twice = [p.grad.clone() for p in trainer.gradients.parameters]
    trainer.optimizer.zero_grad()
    trainer.world = 1
    trainer.forward_backward(batch, {"answer": 2.0, "size": 4.0}, sync=sync)
    for parameter, both in zip(trainer.gradients.parameters, twice, strict=True):
        torch.testing.assert_close(2 * parameter.grad, both)


def test_the_weights_are_brought_together_only_where_somebody_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rare(Hook):
        every = 3

    trainer, _ = make_trainer(tmp_path, hooks=(Rare(),), steps=8, check_at=4)
    brought: list[int] = []
    monkeypatch.setattr(trainer, "_whole", lambda: brought.append(trainer.step) or contextlib.nullcontext())
    trainer.train()
    assert brought == [0, 3, 4, 6, 8, 8]
    assert Hook.every == 1  # a hook that doesn't say looks at every step


def test_other_ranks_say_and_remove_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, text = make_trainer(tmp_path)
    trainer.log_scalars(1, {"a": 1.0})
    trainer.say("nothing")
    trainer._report(SimpleNamespace())  # type: ignore[arg-type]
    assert text.getvalue() == "" and not (tmp_path / "metrics.jsonl").exists()
    leftover = tmp_path / "checkpoints" / ".step_00000004.x.tmp"
    leftover.mkdir(parents=True)
    trainer.rank = 1
    trainer._load_or_start()
    assert leftover.is_dir()
    trainer.rank = 0
    trainer._load_or_start()
    assert not leftover.exists()


def test_other_ranks_train_without_a_word(tmp_path: Path) -> None:
    trainer, text = make_trainer(tmp_path, steps=2)
    trainer.rank = 1
    result = trainer.train()
    assert result.step == 2 and text.getvalue() == ""
    assert not (tmp_path / "metrics.jsonl").exists() and not (tmp_path / "evidence.json").exists()


def test_a_run_that_is_not_resumed_is_left_as_it_is(tmp_path: Path) -> None:
    make_trainer(tmp_path, steps=1)[0].train()
    leftover = tmp_path / "checkpoints" / ".step_00000004.x.tmp"
    leftover.mkdir()
    with pytest.raises(VitpError, match="already holds a run"):
        make_trainer(tmp_path, steps=1)[0].train()
    assert leftover.is_dir()
    trainer, text = make_trainer(tmp_path, steps=1, resume=True)
    trainer.train()
    trainer.say("one [line]")
    assert not leftover.exists() and "one [line]" in text.getvalue()


def test_time_counts_from_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.time, "perf_counter", lambda: 5.0)
    result = make_trainer(tmp_path, steps=2, log_every=1)[0].train()
    assert [one["elapsed_s"] for one in rows(tmp_path)] == [0.0, 0.0] and result.elapsed_s == 0.0


def test_a_run_is_known_by_its_rank_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Linear(1, 1)
    assert distributed.broadcast_state(module) is None
    assert torch.equal(distributed.sum_tensor(torch.ones(2)), torch.ones(2))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 2)
    monkeypatch.setattr(dist, "get_world_size", lambda: 5)
    assert (distributed.rank(), distributed.world_size()) == (2, 5)


def test_the_newest_checkpoint_stays_though_later_ones_are_there(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint.folder(tmp_path, step).mkdir(parents=True)
    checkpoint.prune(tmp_path, 1, checkpoint.folder(tmp_path, 2))
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step_00000002", "step_00000004"]
    assert checkpoint.latest(tmp_path) == checkpoint.folder(tmp_path, 4)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_state_that_is_no_state(tmp_path: Path) -> None:
    # What stands in the files of earlier runs.
    assert (checkpoint.FORMAT, checkpoint.SHARDED_FORMAT) == (1, 2)
    for text, message in (
        ("[1]", "holds no state of a run"),
        ("{", "can't be read"),
        ("{}", "can't be read"),
    ):
        (tmp_path / "state.json").write_text(text)
        with pytest.raises(DamagedError, match=message):
            checkpoint.read_state(tmp_path)


def test_features_and_sums_are_in_full_precision(tmp_path: Path) -> None:
    evidence = VisionEvidence(nn.Linear(2, 2), tmp_path)
    evidence.features = lambda: torch.randn(4, 3).bfloat16()
    evidence.begin()
    assert load_tensors(tmp_path / "start_features.safetensors")["features"].dtype is torch.float32
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator) * 1e-2 + 50
    y = x @ torch.randn(3, 4, generator=generator)
    a, b = (part.double() - part.double().mean(0) for part in (x, y))
    wanted = (a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm())
    assert linear_cka(x, y) == pytest.approx(float(wanted), abs=1e-12)
    double = nn.Linear(2, 1).double()
    gradients = Gradients([ParameterGroup("a", dict(double.named_parameters()))], double)
    gradients.complete()
    assert gradients.norms().dtype is torch.float32


@pytest.mark.parametrize(("step", "purge"), [(0, None), (4, 5)])
def test_curves_of_steps_that_are_made_again_are_purged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, purge: int | None
) -> None:
    import torch.utils.tensorboard as board

    opened: list[Any] = []
    monkeypatch.setattr(
        board, "SummaryWriter", lambda folder, purge_step: opened.append((folder, purge_step))
    )
    RunLog(tmp_path, step, 9, console=Console(quiet=True), trackers=Trackers(tmp_path, LogSettings(), {}))
    assert opened == [(str(tmp_path / "tensorboard"), purge)]


def test_work_of_all_ranks_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside(monkeypatch, work={"samples": 5.0}, counts={"answer": 3.0})
    recorder = Recorder()
    make_trainer(tmp_path, hooks=(recorder,), steps=1)[0].train()
    assert recorder.metrics[0].work == {"samples": 17.0, "tokens": 36.0, "capacity": 48.0, "tiles": 12.0}
    alone = Recorder()
    monkeypatch.undo()
    make_trainer(tmp_path / "alone", hooks=(alone,), steps=1)[0].train()
    supervised = float(ToySource()(0, 0, 0, 1).supervised.sum())
    losses, own = recorder.metrics[0].losses, alone.metrics[0].losses
    assert losses["answer"] == pytest.approx(own["answer"] * supervised / (supervised + 3))
    assert losses["size"] == pytest.approx(own["size"])
    assert (
        json.loads((tmp_path / "checkpoints/step_00000001/state.json").read_text())["counters"]["samples"]
        == 17.0
    )
    assert ToyObjective().loss_weights == {"size": 0.5}


def test_a_save_is_waited_for_unless_it_may_take_its_time(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, steps=1)
    trainer.train()
    waits: list[bool] = []
    trainer._saver.finish = lambda: waits.append(True)  # type: ignore[method-assign]
    assert trainer.save(wait=False) == checkpoint.folder(tmp_path, 1) and waits == []
    trainer.save()
    assert waits == [True]


def test_processes_and_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (distributed.rank(), distributed.world_size(), distributed.local_world_size()) == (0, 1, 1)
    distributed.initialize(CPU)
    assert not dist.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "1")
    distributed.initialize(CPU)
    assert not dist.is_initialized()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert distributed.local_world_size() == 4
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(ConfigError, match="environment variable WORLD_SIZE: 'many' is not a number"):
        distributed.initialize(CPU)


@pytest.mark.parametrize(
    ("attempt", "machines", "named"), [("0", "1", False), ("2", "1", True), ("2", "3", False)]
)
def test_restarted_processes_meet_under_another_name(
    monkeypatch: pytest.MonkeyPatch, attempt: str, machines: str, named: bool
) -> None:
    joined: list[Any] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
    monkeypatch.setenv("GROUP_WORLD_SIZE", machines)
    store = dist.HashStore()
    monkeypatch.setattr(distributed, "rendezvous", lambda url: iter([(store, 1, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **kw: joined.append((args, kw)))
    monkeypatch.setattr(distributed.atexit, "register", joined.append)
    distributed.initialize(CPU)
    (arguments, keywords), left = joined
    assert arguments == ("gloo",) and left is distributed.shutdown
    if named:
        assert (keywords["rank"], keywords["world_size"]) == (1, 2)
        keywords["store"].set("key", "value")
        assert store.get("restart2/key") == b"value"
    else:
        assert keywords == {}


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.resolve_device("cpu") == distributed.resolve_device("auto") == CPU
    with pytest.raises(ConfigError, match="CUDA is not available"):
        distributed.resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert distributed.resolve_device("cpu") == CPU
    assert distributed.resolve_device("auto") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.resolve_device("auto") == distributed.resolve_device("cuda") == torch.device("cuda", 1)
    assert distributed.resolve_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(ConfigError, match="there is no GPU 2, only 2"):
        distributed.resolve_device("cuda:2")
