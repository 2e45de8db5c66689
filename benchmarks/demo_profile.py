"""Where the time of `vitp demo` goes: shares of the wall clock by stage and by part of a step.

    python benchmarks/demo_profile.py                       # about an eighth of all that the demo does
    python benchmarks/demo_profile.py --whole               # the demo as it is

Parts are timed where they are called, each without the parts within it. What a worker does beside the run shows as
the run's wait for data alone.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common import save
from vitp.data.batches import SampledBatches
from vitp.engine.loading import StepLoader
from vitp.engine.loop import Trainer
from vitp.evaluation import probes
from vitp.objectives.vitp import ViTPObjective
from vitp.recipes import demo
from vitp.recipes.micro import DemoPlan
from vitp.tasks.dense import DecodedModel
from vitp.tasks.semantic import SegmentationModel

STAGES = ("_make_data", "_pretrain", "_export", "_probe", "_finetune", "write_demo_page", "_write_samples")


class Clock:
    """Seconds by stage and part, each without what is timed within it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._within: list[list[float]] = []
        self._stage = "rest"

    def timed(self, owner: Any, name: str, part: str, *, stage: bool = False) -> None:
        """Time an attribute of a module or class from now on."""
        wrapped: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(wrapped)
        def call(*args: Any, **kwargs: Any) -> Any:
            before = self._stage
            if stage:
                self._stage = part
            key = f"{self._stage}: {'rest' if stage else part}"
            began, inner = time.perf_counter(), [0.0]
            self._within.append(inner)
            try:
                return wrapped(*args, **kwargs)
            finally:
                took = time.perf_counter() - began
                self._within.pop()
                self.seconds[key] += took - inner[0]
                self.calls[key] += 1
                if self._within:
                    self._within[-1][0] += took
                self._stage = before

        setattr(owner, name, call)


def watched() -> Clock:
    """Return a clock on the parts of the demo; this process is for nothing else any more."""
    clock = Clock()
    for name in STAGES:
        clock.timed(demo, name, name.strip("_").replace("_", " "), stage=True)
    parts = [
        (StepLoader, "next_step", "data wait"),
        (SampledBatches, "__call__", "collate"),
        (ViTPObjective, "forward", "forward"),
        (DecodedModel, "forward", "forward"),
        (torch.Tensor, "backward", "backward"),
        (Trainer, "_apply", "optimizer"),
        (Trainer, "save", "checkpoints"),
        (Trainer, "_begin", "begin"),
        (Trainer, "_finish", "end"),
        (SegmentationModel, "evaluate", "test: rest"),
        (DecodedModel, "shares", "test: forward"),
        (demo, "probe_data", "images and features"),
        (probes, "_fit", "heads"),
    ]
    for owner, name, part in parts:
        clock.timed(owner, name, part)
    return clock


def shortened(plan: DemoPlan) -> DemoPlan:
    """Return a plan of about an eighth of everything: images, steps, finetunings."""
    budget = replace(plan.budget, align_steps=plan.budget.align_steps // 8, steps=plan.budget.steps // 8)
    steps = plan.finetune_steps // 3
    smaller = replace(plan, images=plan.images // 8, budget=budget, finetune_steps=steps)
    return replace(smaller, probe_labels=100, probe_seeds=(0,), finetune_seeds=(0,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--whole", action="store_true", help="The demo as it is.")
    parser.add_argument("--out", type=Path, default=None, help="File; by default results/demo_profile.json.")
    wanted = parser.parse_args()
    plan = DemoPlan() if wanted.whole else shortened(DemoPlan())
    clock = watched()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        demo.run_demo(Path(folder) / "demo", plan)
        whole = time.perf_counter() - began
    rows = sorted(clock.seconds.items(), key=lambda row: -row[1])
    found = {
        name: {
            "seconds": round(seconds, 1),
            "share": float(f"{seconds / whole:.3f}"),
            "calls": clock.calls[name],
        }
        for name, seconds in rows
        if seconds / whole >= 0.002
    }
    save("demo_profile", {"whole": wanted.whole, "seconds": round(whole, 1), "parts": found}, out=wanted.out)


if __name__ == "__main__":
    main()
