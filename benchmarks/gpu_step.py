"""The whole step at full scale on one GPU: utilisation, the gain over the published step, memory, largest micro-batch.

InternViT-300M at 448 px and Qwen2.5-0.5B, random weights, bf16, 75 % of the image tokens dropped, 1 to 7 tiles a record.
Without a GPU the same runs at small shapes in fp32; the result then says that the GPU's figures are missing.

    python benchmarks/gpu_step.py
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

from common import save
from published_step import PublishedObjective
from vitp.models.compute import ComputeSettings, configure
from vitp.objectives.vitp import ViTPObjective
from vitp.planning.bench.measure import Measurement, StepSettings, measure_steps
from vitp.planning.bench.synthetic import MODEL_SIZES, ModelSize, SyntheticSource, Workload, make_objective

ON_GPU = torch.cuda.is_available()
SIZE = "full" if ON_GPU else "micro"
RECORDS = (4, 8, 16, 32, 64) if ON_GPU else (4,)
PUBLISHED_RECORDS = 4
STEPS = StepSettings(steps=10 if ON_GPU else 1, warmup=3 if ON_GPU else 1, num_workers=8 if ON_GPU else 0)


def source_of(size: ModelSize, objective: ViTPObjective, records: int, *, packed: bool) -> SyntheticSource:
    """Return batches of the mixture of tile numbers."""
    work = Workload(records=records, independent=packed, together=packed)
    return SyntheticSource(objective.chat, size.config.vision.image_size, work, max_length=size.padded_length)


def ours(size: ModelSize, records: int) -> Measurement:
    """Measure our step: ViT compiled over a static number of tiles, no recomputation."""
    objective = make_objective(size)
    compute = ComputeSettings(compile="vision" if ON_GPU else "none", tile_multiple=8 if ON_GPU else 1)
    configure(objective.vlm, compute)
    return measure_steps(objective, source_of(size, objective, records, packed=True), STEPS)


def published(size: ModelSize, records: int) -> Measurement:
    """Measure the published step."""
    objective = PublishedObjective(make_objective(size), size.padded_length)
    return measure_steps(objective, source_of(size, objective, records, packed=False), STEPS)


def fitting(run: Callable[[], Measurement]) -> Measurement | None:
    """Return what was measured, or None where memory did not suffice."""
    try:
        return run()
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        gc.collect()
        if ON_GPU:
            torch.cuda.empty_cache()


def main() -> None:
    size = MODEL_SIZES[SIZE]
    figures: dict[str, Any] = {"size": SIZE}
    if not ON_GPU:
        figures["note"] = "no GPU here: small shapes in fp32; the figures of a GPU are missing"
    best: Measurement | None = None
    for records in RECORDS:
        found = fitting(lambda records=records: ours(size, records))  # type: ignore[misc]
        if found is None:
            break
        figures[f"ours_{records}_records"] = found.figures()
        figures["largest_micro_batch"] = records
        if best is None or found.samples_per_s > best.samples_per_s:
            best = found
    baseline = fitting(lambda: published(size, PUBLISHED_RECORDS))
    if baseline is not None:
        figures[f"published_{PUBLISHED_RECORDS}_records"] = baseline.figures()
        if best is not None:
            figures["times_faster"] = round(best.samples_per_s / baseline.samples_per_s, 2)
    save("gpu_step", figures)


if __name__ == "__main__":
    main()
