"""Prediction of each task: images a second and memory, as `vitp predict` computes them once an image is read.

python benchmarks/predict.py --size micro
python benchmarks/predict.py --size full --batch 16        # a GPU: bf16
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from task_runs import LAYOUTS, VISION, Figures, save_figures, task_parser, task_run
from vitp.core.distributed import resolve_device
from vitp.engine.numerics import amp_dtype, autocast
from vitp.planning.bench.measure import peak_memory, synchronize
from vitp.tasks.predict import predict_images


def measure(task: str, wanted: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the figures of a task."""
    device = resolve_device(wanted.device)
    run = task_run(task, wanted.size, folder, wanted.batch)
    model, side = run.model.to(device).eval(), VISION[wanted.size].image_size
    generator = torch.Generator().manual_seed(0)
    images, later = (
        [
            torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator)
            for _ in range(wanted.batch)
        ]
        for _ in range(2)
    )
    test = run.test.model_copy(update={"batch_size": wanted.batch})

    def predict() -> None:
        with torch.no_grad(), autocast(device, amp_dtype("auto", device)):
            predict_images(model, images, test, later if task == "change" else None)
        synchronize(device)

    predict()
    times = []
    for _ in range(wanted.steps):
        began = time.perf_counter()
        predict()
        times.append(time.perf_counter() - began)
    memory = peak_memory(predict, device)
    gc.collect()
    with contextlib.suppress(RuntimeError):
        torch.cuda.empty_cache()
    return {
        "images_per_s": float(f"{wanted.batch / statistics.median(times):.4g}"),
        "memory_gb": float(f"{memory / 2**30:.3g}"),
    }


def figures(wanted: argparse.Namespace, folder: Path) -> Figures:
    """Yield the name and the figures of each task."""
    for task in wanted.tasks or LAYOUTS:
        yield task, measure(task, wanted, folder)


if __name__ == "__main__":
    save_figures("predict", task_parser(__doc__, "predict").parse_args(), figures)
