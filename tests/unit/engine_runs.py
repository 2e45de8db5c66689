"""Toy runs for the tests of the engine."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file

from tests.engine_toys import ToyObjective, ToySource
from vitp.engine.config import OptimSettings, TrainSettings
from vitp.engine.hooks import Hook, StepMetrics
from vitp.engine.loop import Trainer
from vitp.engine.trackers import Trackers


def make_trainer(
    run_dir: Path,
    objective: ToyObjective | None = None,
    source: ToySource | None = None,
    *,
    hooks: tuple[Hook, ...] = (),
    resume: bool = False,
    optim: dict[str, Any] | None = None,
    trackers: Trackers | None = None,
    **train: Any,
) -> tuple[Trainer, io.StringIO]:
    text = io.StringIO()
    settings = {
        "steps": 6,
        "num_workers": 0,
        "deterministic": True,
        "device": "cpu",
    } | train
    trainer = Trainer(
        objective or ToyObjective(),
        source or ToySource(micro_batches=settings.get("micro_batches", 1)),
        OptimSettings(**({"lr": 1e-2, "warmup_ratio": 0.2} | (optim or {}))),
        TrainSettings(**settings),
        run_dir,
        hooks=hooks,
        console=Console(file=text, width=160),
        resume=resume,
        trackers=trackers,
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


def assert_same_checkpoint(one: Path, other: Path) -> None:
    for file in ("model.safetensors", "optimizer.safetensors"):
        a, b = load_file(one / file), load_file(other / file)
        assert a.keys() == b.keys()
        assert a
        for name in a:
            assert torch.equal(a[name], b[name]), name
