"""Trains the objectives that look at other ranks' samples; started by `test_contrast_parity` on each rank."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.objective_toys import CASES
from vitp.core import distributed
from vitp.engine.config import OptimSettings, TrainSettings
from vitp.engine.hooks import Hook, StepMetrics
from vitp.engine.loop import Trainer

STEPS = 3
GATHERING = ("simclr", "clip", "siglip", "ibot", "dino of today", "distil")


class Record(Hook):
    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []
        self.norms: list[float] = []

    def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
        self.losses.append(metrics.losses)
        self.norms.append(metrics.grad_norm)


def run(folder: Path, data: Path, name: str) -> dict[str, Any]:
    """Train a toy and return what this rank saw."""
    objective, record = CASES[name].make(), Record()
    trainer = Trainer(
        objective,
        CASES[name].source(data),
        OptimSettings(lr=1e-3, warmup_ratio=0, schedule="constant"),
        TrainSettings(steps=STEPS, num_workers=0, device="cpu", threads=1),
        folder / name,
        hooks=[record],
        console=Console(quiet=True),
    )
    trainer.train()
    centre = getattr(objective, "view_centre_K", None)
    return {
        "losses": record.losses,
        "norms": record.norms,
        "centre": [] if centre is None else centre.tolist(),
    }


def main(folder: Path, data: Path) -> None:
    """Run every objective; each rank writes its results."""
    distributed.initialize(distributed.resolve_device("cpu"))
    results = {name: run(folder, data, name) for name in GATHERING}
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(results))
    distributed.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
