"""Runs toy trainings on each of several ranks; started by `test_engine_parity` with torchrun's environment."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.engine_toys import ToyBatch, ToyObjective, ToySource
from vitp.core import distributed
from vitp.core.errors import VitpError
from vitp.engine import scaling
from vitp.engine.config import OptimSettings, TrainSettings
from vitp.engine.hooks import Hook, StepMetrics
from vitp.engine.loop import Trainer
from vitp.engine.stopping import Interrupted

STEPS = 8


class Record(Hook):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.samples: list[float] = []

    def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
        self.losses.append(metrics.loss)
        self.norms.append(metrics.grad_norm)
        self.samples.append(metrics.work["samples"])


class StopRank1(Hook):
    def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
        if trainer.rank == 1 and step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


class BadOnRank1(ToySource):
    def __call__(self, step: int, micro: int, rank: int, world: int) -> ToyBatch:
        source = ToySource(self.rows, self.micro_batches, bad_step=2 if rank == 1 else None)
        return source(step, micro, rank, world)


def run(folder: Path, name: str, source: ToySource, hook: Hook | None = None, **more: Any) -> dict[str, Any]:
    """Train and return what this rank saw."""
    record = Record()
    seed = 0 if more.pop("same_weights", True) else distributed.rank()
    resume = more.pop("resume", False)
    objective = ToyObjective(seed=seed, dropout=more.pop("dropout", 0.0))
    trainer = Trainer(
        objective,
        source,
        OptimSettings(lr=1e-2, weight_decay=0.1),
        TrainSettings(
            steps=STEPS,
            micro_batches=source.micro_batches,
            num_workers=0,
            device="cpu",
            deterministic=True,
            **more,
        ),
        folder / name,
        hooks=[record, *([hook] if hook else [])],
        console=Console(quiet=True),
        resume=resume,
    )
    error = None
    try:
        trainer.train()
    except (VitpError, Interrupted) as caught:
        error = f"{type(caught).__name__}: {caught}"
    weights = {n: p.detach().flatten().tolist() for n, p in objective.named_parameters()}
    return {
        "losses": record.losses,
        "norms": record.norms,
        "samples": record.samples,
        "error": error,
        "weights": weights,
    }


def main(folder: Path) -> None:
    """Run every scenario; each rank writes its results."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    scaling.START = 2.0**10  # at more the toy itself overflows
    results = {
        "plain": run(folder, "plain", ToySource(rows=24, micro_batches=2 // world), same_weights=False),
        "accumulated": run(folder, "accumulated", ToySource(rows=24, micro_batches=4 // world)),
        "half text": run(folder, "half_text", ToySource(rows=24, micro_batches=4 // world, half_text=True)),
        "nan": run(folder, "nan", ToySource(rows=24, micro_batches=4 // world, nan_step=4)),
        "dropout": run(folder, "dropout", ToySource(rows=24, micro_batches=2), dropout=0.3),
        "fp16": run(
            folder, "fp16", ToySource(rows=24, micro_batches=4 // world, nan_step=4), precision="fp16"
        ),
    }
    if world > 1:
        results["bad data"] = run(folder, "bad", BadOnRank1(rows=24))
        results["stopped"] = run(
            folder, "stopped", ToySource(rows=24, micro_batches=2), StopRank1(), dropout=0.3
        )
        results["resumed"] = run(
            folder, "stopped", ToySource(rows=24, micro_batches=2), dropout=0.3, resume=True
        )
    rank = distributed.rank()
    (folder / f"rank{rank}.json").write_text(json.dumps(results))
    distributed.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
