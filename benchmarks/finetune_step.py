"""A finetuning step of each task: samples a second and memory, eager and compiled.

    python benchmarks/finetune_step.py --size micro
    python benchmarks/finetune_step.py --size full --batch 16 --compile       # a GPU

Models of random weights on generated scenes, with augmentation off the clock: batches are made before.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from common import save
from task_runs import LAYOUTS, VISION, task_run
from vitp.core.distributed import resolve_device
from vitp.models.compilation import compile_report, forget_graphs
from vitp.planning.bench.measure import StepRunner, StepSettings, synchronize


def measure(task: str, wanted: argparse.Namespace, folder: Path, compute: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a task."""
    forget_graphs()
    run = task_run(task, wanted.size, folder, wanted.batch, compute)
    runner = StepRunner(run.model, StepSettings(device=wanted.device))
    batches = [run.source(step, 0, 0, 1) for step in range(2 + wanted.steps)]
    for batch in batches[:2]:
        runner.step([batch])
    times = []
    for batch in batches[2:]:
        synchronize(runner.device)
        began = time.perf_counter()
        runner.step([batch])
        synchronize(runner.device)
        times.append(time.perf_counter() - began)
    seconds = statistics.median(times)
    found = {
        "samples_per_s": float(f"{wanted.batch / seconds:.4g}"),
        "step_s": float(f"{seconds:.4g}"),
        "memory_gb": float(f"{runner.peak_memory([batches[0]]) / 2**30:.3g}"),
    }
    if compute:
        found["compiled"] = str(compile_report())
    del run, runner, batches
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", help="Of these tasks only.")
    parser.add_argument("--size", default="full" if torch.cuda.is_available() else "micro", choices=VISION)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="Measure a compiled backbone, too.")
    parser.add_argument("--out", type=Path, default=None, help="File; by default results/finetune_step.json.")
    wanted = parser.parse_args()
    figures: dict[str, Any] = {
        "size": wanted.size,
        "batch": wanted.batch,
        "device": str(resolve_device(wanted.device)),
    }
    with tempfile.TemporaryDirectory() as name:
        for task in wanted.tasks or LAYOUTS:
            figures[task] = measure(task, wanted, Path(name), {})
            if wanted.compile:
                figures[f"{task}, compiled"] = measure(task, wanted, Path(name), {"compile": "vision"})
    save("finetune_step", figures, out=wanted.out)


if __name__ == "__main__":
    main()
