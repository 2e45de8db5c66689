"""Runs sharded toy trainings on each of several ranks; started by `test_sharding_parity` with torchrun's environment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from tests.engine_toys import ToyObjective, ToySource
from tests.parity.engine_ranks import Record
from vitp.core import distributed
from vitp.core.errors import VitpError
from vitp.engine import checkpoint, scaling
from vitp.engine.config import OptimSettings, TrainSettings
from vitp.engine.hooks import Hook, StepMetrics
from vitp.engine.loop import Trainer
from vitp.engine.stopping import Interrupted

STEPS = 8


class Stop(Hook):
    """The last rank gets a signal after step 3."""

    every = None

    def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
        if trainer.rank == trainer.world - 1 and step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


class Look(Hook):
    """Notes a weight of the plain model on rank 0, every second step."""

    every = 2

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
        if trainer.is_main and step % 2 == 0:
            with torch.no_grad():
                self.seen[step] = float(trainer.objective.vision_tower(torch.ones(1, 8)).sum())


class Judged(Hook):
    """Scores on rank 0 alone: better until step 4, worse from then on."""

    every = 2

    def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
        if trainer.is_main and step % 2 == 0:
            self.score = (step, -abs(step - 4.0))


AVERAGED = {"ema": 0.9, "patience": 1, "save_every": 3}
"""A run that ends after step 6 with the averaged weights of step 4."""


class Features(Hook):
    """Gives the run features of fixed inputs, as probes do: on rank 0 alone."""

    every = 0

    def on_start(self, trainer: Trainer) -> None:
        def features() -> Tensor:
            return trainer.objective.vision_tower(torch.eye(8))

        if trainer.is_main:
            trainer.evidence.features = features


def run(folder: Path, name: str, *hooks: Hook, resume: bool = False, **train: Any) -> dict[str, Any]:
    """Train and return what this rank saw."""
    record, look = Record(), Look()
    record.every = None
    pieces = 4 // int(os.environ.get("WORLD_SIZE", "1"))
    trainer = Trainer(
        # Other weights on each rank: those of the first must win.
        ToyObjective(seed=0 if not resume and distributed.rank() == 0 else 1 + distributed.rank()),
        ToySource(rows=24, micro_batches=pieces, nan_step=train.pop("nan_step", None)),
        OptimSettings(lr=1e-2, weight_decay=0.1, clip_norm=2.0),
        TrainSettings(
            **{
                "steps": STEPS,
                "micro_batches": pieces,
                "num_workers": 0,
                "device": "cpu",
                "deterministic": True,
                **train,
            }
        ),
        folder / name,
        hooks=[record, look, Features(), *hooks],
        console=Console(quiet=True),
        resume=resume,
    )
    error = None
    try:
        trainer.train()
    except (VitpError, Interrupted) as caught:
        error = f"{type(caught).__name__}: {caught}"
    return {"losses": record.losses, "norms": record.norms, "seen": look.seen, "error": error}


def main(folder: Path, task: str) -> None:
    """Run the scenarios of a task; each rank writes its results."""
    results: dict[str, Any] = {}
    if task == "four":
        results["fsdp"] = run(folder, "fsdp", parallel="fsdp", save_every=3)
        results["hybrid"] = run(folder, "hybrid", parallel="hybrid", shard_size=2)
        results["ddp"] = run(folder, "ddp", save_every=3)
        results["bf16"] = run(folder, "bf16", parallel="fsdp", precision="bf16")
        results["bf16_hybrid"] = run(folder, "bf16_hybrid", parallel="hybrid", shard_size=2, precision="bf16")
        for parallel in ("ddp", "fsdp"):
            name = f"averaged_{parallel}"
            results[name] = run(folder, name, Judged(), parallel=parallel, **AVERAGED)
        results["averaged_stopped"] = run(
            folder, "averaged_stopped", Judged(), Stop(), parallel="fsdp", **AVERAGED
        )
        results["nan"] = run(folder, "nan", parallel="fsdp", nan_step=4)
        scaling.START = 2.0**10  # at more the toy itself overflows
        for parallel in ("ddp", "fsdp"):
            name = f"fp16_{parallel}"
            results[name] = run(folder, name, parallel=parallel, nan_step=4, precision="fp16")
        results["groups"] = refused(folder)
        later = {"parallel": "fsdp", "save_every": 2, "async_save": True}
        results["async"] = run(folder, "async", **later)
        results["stopped"] = run(folder, "stopped", Stop(), **later)
    else:
        for name, parallel in (("to_ddp", "ddp"), ("to_fsdp", "fsdp"), ("to_hybrid", "hybrid")):
            results[name] = run(folder, name, parallel=parallel, resume=True)
        results["bf16_two"] = run(folder, "bf16_two", parallel="fsdp", precision="bf16")
        for name, parallel in (("damaged_ddp", "ddp"), ("damaged_fsdp", "fsdp")):
            results[name] = run(folder, name, parallel=parallel, resume=True)
        results["averaged_stopped"] = run(
            folder, "averaged_stopped", Judged(), parallel="ddp", resume=True, **AVERAGED
        )
        results["from_ddp"] = run(folder, "from_ddp", parallel="fsdp", resume=True)
    (folder / f"{task}{distributed.rank()}.json").write_text(json.dumps(results))
    distributed.shutdown()


def refused(folder: Path) -> str:
    """Return what is said of groups that don't divide the ranks."""
    try:
        run(folder, "refused", parallel="hybrid", shard_size=3)
    except VitpError as error:
        return str(error)
    return ""


def flip(file: Path) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def prepare_two(folder: Path) -> None:
    """Copy what four ranks have left, for two ranks to go on from."""
    for name in ("to_ddp", "to_fsdp", "to_hybrid", "to_one"):
        shutil.copytree(folder / "stopped", folder / name)
    for name in ("damaged_ddp", "damaged_fsdp", "damaged_one"):
        shutil.copytree(folder / "stopped", folder / name)
        flip(checkpoint.folder(folder / name, 3) / "shards" / "__1_0.distcp")
    shutil.copytree(folder / "ddp", folder / "from_ddp")
    last = checkpoint.folder(folder / "from_ddp", STEPS)
    shutil.rmtree(last)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
