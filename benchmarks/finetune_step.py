"""A finetuning step of each task: samples a second and memory, eager and compiled.

    python benchmarks/finetune_step.py --size micro
    python benchmarks/finetune_step.py --size full --batch 16 --compile       # a GPU

Models of random weights on generated scenes, with augmentation off the clock: batches are made before.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from task_runs import LAYOUTS, Figures, save_figures, task_parser, task_run
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


def figures(wanted: argparse.Namespace, folder: Path) -> Figures:
    """Yield the name and the figures of each task."""
    for task in wanted.tasks or LAYOUTS:
        yield task, measure(task, wanted, folder, {})
        if wanted.compile:
            yield f"{task}, compiled", measure(task, wanted, folder, {"compile": "vision"})


if __name__ == "__main__":
    parser = task_parser(__doc__, "finetune_step")
    parser.add_argument("--compile", action="store_true", help="Measure a compiled backbone, too.")
    save_figures("finetune_step", parser.parse_args(), figures)
