"""How batches come in and measurements go out, and when the loop does what."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from rich.console import Console
from torch import Tensor

from tests.engine_toys import ToyObjective
from tests.unit.engine_runs import Recorder, make_trainer, rows
from vitp.engine import loading
from vitp.engine import logging as engine_logging
from vitp.engine.config import LogSettings
from vitp.engine.evidence import VisionEvidence
from vitp.engine.hooks import Hook, StepMetrics
from vitp.engine.loading import StepLoader, to_device
from vitp.engine.logging import Meter, RunLog, memory_gb
from vitp.engine.loop import Trainer
from vitp.engine.optim import Part
from vitp.engine.stopping import StopSignals
from vitp.engine.trackers import Tracker, Trackers

CPU = torch.device("cpu")


# Batches.


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    name: str


class Pair(NamedTuple):
    x: Tensor
    n: int


class Own:
    def to(self, device: torch.device) -> tuple[str, torch.device]:
        return ("moved", device)


def test_all_kinds_of_batches_move() -> None:
    meta, x = torch.device("meta"), torch.ones(2)
    for batch in (Frozen(x, "a"), Pair(x, 3), [x], (x,), {"x": x}, Own()):
        assert to_device(batch, CPU) is batch
    assert to_device(Own(), meta) == ("moved", meta)
    frozen, pair = to_device(Frozen(x, "a"), meta), to_device(Pair(x, 3), meta)
    assert isinstance(frozen, Frozen) and frozen.x.device == meta and frozen.name == "a"
    assert isinstance(pair, Pair) and pair.x.device == meta and pair.n == 3
    for batch in ([x, 1], (x, 1)):
        moved = to_device(batch, meta)
        assert type(moved) is type(batch) and moved[0].device == meta and moved[1] == 1
    assert to_device({"x": x, "y": None}, meta)["x"].device == meta
    assert to_device(Frozen, meta) is Frozen
    asked: list[bool] = []

    class Watched(Tensor):
        def to(self, device: Any, non_blocking: bool = False) -> Any:  # type: ignore[override]
            asked.append(non_blocking)
            return self

    for device in (meta, torch.device("cuda")):  # only CUDA orders a copy before what uses it
        to_device(torch.ones(1).as_subclass(Watched), device)
    assert asked == [False, True]


def test_workers_are_no_more_than_batches_and_end() -> None:
    class Places:
        def __call__(self, *place: int) -> Any:
            return place

        def fingerprint(self) -> str:
            return ""

    loader = StepLoader(Places(), 3, 5, 2, num_workers=9)
    assert loader._loader.num_workers == 4
    assert loader.next_step() == [(3, 0, 0, 1), (3, 1, 0, 1)]
    workers = list(loader._batches._workers)  # type: ignore[union-attr]
    loader.close()
    assert not any(worker.is_alive() for worker in workers)
    assert StepLoader(Places(), 3, 5, 2).wait_s == 0.0
    assert StepLoader(Places(), 5, 5, 2, num_workers=1)._loader.num_workers == 0


def test_workers_leave_signals_and_cores_to_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(loading.signal, "signal", lambda number, handler: told.append((number, handler)))
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(setNumThreads=lambda n: told.append(("cv2", n))))
    loading._start_worker(3)
    ignored = signal.SIG_IGN
    assert told == [(signal.SIGINT, ignored), (signal.SIGTERM, ignored), 1, ("cv2", 0)]
    monkeypatch.delitem(sys.modules, "cv2")
    loading._start_worker(3)


def test_time_spent_waiting_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Places:
        def __call__(self, *place: int) -> Any:
            return place

        def fingerprint(self) -> str:
            return ""

    loader = StepLoader(Places(), 0, 5, 1)
    clock = iter([10.0, 11.5, 20.0, 20.25])
    monkeypatch.setattr("vitp.engine.loading.time.perf_counter", lambda: next(clock))
    loader.next_step()
    assert loader.wait_s == 1.5
    loader.next_step()
    assert loader.wait_s == 1.75


# What is said.


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss_mean": 1.23456, "lr": 1e-4, "grad_norm": 2.345, "data_wait": 0.123, **more}


def test_rows_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    clock = iter([100.0, 130.0, 130.0])
    monkeypatch.setattr(engine_logging.time, "perf_counter", lambda: next(clock))
    log = RunLog(tmp_path, 4, 24, console=Console(file=text, width=300))
    log.start(4)
    log.advance(5)
    log.row(row(10, samples_per_s=99.94, tokens_per_s=100.0, tiles_per_s=12345.6, packing=0.987))
    log.scalars(10, {"probe": 0.5})
    log.row(row(24))
    log.say("[bold] is no markup")
    log.close()
    lines = text.getvalue().splitlines()
    # 6 steps in 30 s: 14 more take 70 s.
    assert lines[0] == (
        "step 10/24  loss 1.2346  lr 1.00e-04  grad 2.35  99.9 samples/s  100 tokens/s  12,346 tiles/s  packing 99%  "
        "data wait 12%  eta 0:01:10"
    )
    assert lines[1].endswith("data wait 12%  eta 0:00:00") and "samples" not in lines[1]
    assert lines[2] == "[bold] is no markup"
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        10,
        10,
        24,
    ]


def test_the_table_of_parts(tmp_path: Path) -> None:
    text = io.StringIO()
    log = RunLog(tmp_path, 0, 1, console=Console(file=text, width=120))
    log.table([Part("tower", 12345, 1000, 0.001, 0.05), Part("language", 77, 0, 0.0, 0.0)])
    lines = [line.replace("│", " ").split() for line in text.getvalue().splitlines()]
    assert ["tower", "12,345", "1,000", "0.001", "0.05"] in lines
    assert ["language", "77", "frozen", "–", "–"] in lines


def test_a_terminal_has_a_bar(tmp_path: Path) -> None:
    text = io.StringIO()
    log = RunLog(tmp_path, 2, 8, console=Console(file=text, width=120, force_terminal=True))
    log.start(2)
    assert log._progress is not None
    bar = log._progress.tasks[0]
    assert (bar.completed, bar.total) == (2, 8)
    log.advance(5)
    assert bar.completed == 5
    log.row(row(5))
    assert "loss 1.2346" in bar.fields["text"] and "step 5/8" not in text.getvalue()
    progress = log._progress
    log.close()
    assert progress.live.is_started is False and log._progress is None
    log.close()


def test_curves_of_nested_numbers(tmp_path: Path) -> None:
    class Board(Tracker):
        def __init__(self, *_: Any) -> None:
            self.seen: list[tuple[str, Any, int]] = []
            self.closed = 0

        def settings(self, values: Any) -> None: ...

        def scalars(self, step: int, values: Any) -> None:
            self.seen += [(name, value, step) for name, value in values.items()]

        def final(self, step: int, values: Any) -> None: ...

        def close(self, status: str) -> None:
            self.closed += 1

    board = Board()
    trackers = Trackers(tmp_path, LogSettings(trackers=()), {})
    trackers._open["board"] = board
    log = RunLog(tmp_path, 0, 9, console=Console(quiet=True), trackers=trackers)
    log.scalars(3, {"a": 1, "b": {"c": 2.5, "d": {"e": 3}}, "text": "no", "step": 3})  # type: ignore[dict-item]
    assert board.seen == [("a", 1, 3), ("b/c", 2.5, 3), ("b/d/e", 3, 3)]
    log.close()
    trackers.close()
    trackers.close()
    assert board.closed == 1


def test_shares_of_waiting_end_at_one_and_need_a_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 2.0, 3.0])
    monkeypatch.setattr(engine_logging.time, "perf_counter", lambda: next(clock))
    meter = Meter()
    meter.add({"tokens": 3, "capacity": 0})
    assert meter.read(5.0) == {"tokens_per_s": 1.5, "data_wait": 1.0}
    assert meter.read(5.0) == {"data_wait": 0.0}  # no time has gone by
    meter.add({"tiles": 4, "capacity": 8})
    assert meter.read(5.5) == {"tiles_per_s": 4.0, "packing": 0.0, "data_wait": 0.5}


def test_memory_is_in_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        ru_maxrss = 3 * 2**20

    monkeypatch.setattr(engine_logging.resource, "getrusage", lambda who: Usage())
    assert memory_gb(CPU) == 3.0
    monkeypatch.setattr(engine_logging.sys, "platform", "darwin")
    assert memory_gb(CPU) == 3 / 2**10
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 * 2**30)
    assert memory_gb(torch.device("cuda")) == 5.0


# Signals.


def test_signals_are_noted_once_and_only_in_the_process_that_asked() -> None:
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(SystemExit) as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.value.code == 143 and signals.received == signal.SIGTERM
    with StopSignals() as signals:
        signals._owner = -1
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received is None


# The loop.


class Looks(Hook):
    """Notes where it was called."""

    def __init__(self, every: int | None) -> None:
        self.every = every  # type: ignore[assignment]
        self.steps: list[int] = []

    def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
        self.steps.append(step)
        trainer.objective.eval()


def test_rows_average_what_was_not_logged(tmp_path: Path) -> None:
    recorder = Recorder()
    make_trainer(tmp_path, hooks=(recorder,), steps=7, log_every=3)[0].train()
    found = rows(tmp_path)
    losses = [metrics.loss for metrics in recorder.metrics]
    assert [one["step"] for one in found] == [3, 6, 7]
    parts = (losses[:3], losses[3:6], losses[6:])
    assert [one["loss_mean"] for one in found] == pytest.approx([sum(p) / len(p) for p in parts])
    assert [one["loss"] for one in found] == pytest.approx([losses[2], losses[5], losses[6]])
    assert all(b["elapsed_s"] > a["elapsed_s"] > 0 for a, b in itertools.pairwise(found))
    assert all("work" not in one and one["memory_gb"] > 0 for one in found)


def test_checkpoints_and_counters(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, steps=5, save_every=2, keep_last=9)
    result = trainer.train()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000002", "step_00000004", "step_00000005"]
    state = json.loads((tmp_path / "checkpoints/step_00000004/state.json").read_text())
    assert state["step"] == 4
    assert {k: v for k, v in state["counters"].items() if k != "seconds"} == {
        "samples": 48.0,
        "tokens": 144.0,
        "capacity": 192.0,
        "tiles": 48.0,
    }
    assert state["evidence"]["share_steps"] == 4
    assert result.step == 5 and result.elapsed_s >= state["counters"]["seconds"] > 0
    more, _ = make_trainer(tmp_path, steps=6, save_every=None, keep_last=9, resume=True)
    again = more.train()
    last = json.loads((tmp_path / "checkpoints/step_00000006/state.json").read_text())
    assert last["counters"]["samples"] == 72.0 and last["evidence"]["share_steps"] == 6
    assert again.elapsed_s > result.elapsed_s


def test_a_hook_that_leaves_the_model_in_eval_mode_does_no_harm(tmp_path: Path) -> None:
    plain, watched = ToyObjective(dropout=0.3), ToyObjective(dropout=0.3)
    make_trainer(tmp_path / "plain", plain, steps=4)[0].train()
    hook = Looks(2)
    make_trainer(tmp_path / "watched", watched, hooks=(hook,), steps=4)[0].train()
    assert hook.steps == [1, 2, 3, 4]
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("train", "optim", "steps"),
    [
        ({"steps": 9, "check_at": 4}, {}, [4]),
        ({"steps": 3, "check_at": 4}, {}, [3]),
        ({"steps": 12}, {"warmup_steps": 2}, [7]),
        ({"steps": 4}, {"warmup_steps": 2}, [4]),
        ({"steps": 53}, {"warmup_steps": 50}, [50]),
    ],
)
def test_the_tower_is_looked_at_soon_after_the_warmup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: dict, optim: dict, steps: list[int]
) -> None:
    seen: list[int] = []
    plain = VisionEvidence.check
    monkeypatch.setattr(VisionEvidence, "check", lambda self, step: seen.append(step) or plain(self, step))
    make_trainer(tmp_path, optim=optim, **train)[0].train()
    assert seen == [*steps, train["steps"]]
