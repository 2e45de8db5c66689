"""The whole step on one device: utilisation, the gain over the published step, memory, largest micro-batch.

At full scale: InternViT-300M at 448 px and Qwen2.5-0.5B, random weights, bf16, 75 % of the image tokens dropped, 1 to 7
tiles a record, the default drop path. `--size micro` runs the same at small shapes, which a CPU can.

    python benchmarks/gpu_step.py --size full --seconds 200
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from common import save
from published_step import BASELINES, Baseline, PublishedObjective
from vitp.core.distributed import resolve_device
from vitp.models.compilation import compile_report, forget_graphs
from vitp.models.compute import ComputeSettings, configure
from vitp.models.vlm import VisionLanguageModel
from vitp.objectives.settings import ModelSettings
from vitp.objectives.vitp import ViTPObjective
from vitp.planning.bench.measure import Measurement, StepSettings, measure_steps
from vitp.planning.bench.synthetic import (
    MODEL_SIZES,
    ModelSize,
    SyntheticSource,
    Workload,
    make_chat,
)

PUBLISHED_RECORDS = 4
SETTINGS: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled vision": {"compile": "vision"},
    "compiled all": {"compile": "all", "token_multiple": 64},
    "eager, full recompute": {"recompute": "full"},
    "compiled all, full recompute": {"compile": "all", "token_multiple": 64, "recompute": "full"},
}
"""Of our step, in the order in which they are measured."""


def objective_of(size: ModelSize) -> ViTPObjective:
    """Return a model of random weights with the drop path that a run has by default."""
    torch.manual_seed(0)
    config = size.config.model_copy(update={"drop_path": ModelSettings().drop_path})
    return ViTPObjective(VisionLanguageModel(config, vocabulary=size.vocabulary), make_chat(size))


class Bench:
    """Measures settings until the time is over.

    Args:
        size: Of the model.
        device: "cpu", "cuda" or "auto".
        steps: Timed steps each.
        seconds: In all.
    """

    def __init__(self, size: ModelSize, device: str, steps: int, seconds: float) -> None:
        self.size, self.end = size, time.monotonic() + seconds
        on_gpu = resolve_device(device).type == "cuda"
        self.settings = StepSettings(
            steps=steps, warmup=3 if on_gpu else 1, num_workers=8 if on_gpu else 0, device=device
        )

    @property
    def has_time(self) -> bool:
        """Whether another measurement may begin."""
        return time.monotonic() < self.end

    def ours(self, records: int, compute: ComputeSettings) -> dict[str, Any]:
        """Measure our step."""
        forget_graphs()
        objective = objective_of(self.size)
        configure(objective.vlm, compute)
        found = self._measure(objective, records, packed=True, compute=compute)
        return found if compute.compile == "none" else {**found, "compiled": str(compile_report())}

    def published(self, baseline: Baseline) -> dict[str, Any]:
        """Measure the published step."""
        objective = PublishedObjective(objective_of(self.size), self.size.padded_length, baseline)
        return self._measure(objective, PUBLISHED_RECORDS, packed=False, compute=ComputeSettings())

    def _measure(
        self, objective: ViTPObjective, records: int, *, packed: bool, compute: ComputeSettings
    ) -> dict[str, Any]:
        work = Workload(records=records, independent=packed, together=packed)
        source = SyntheticSource(
            objective.chat,
            self.size.config.vision.image_size,
            work,
            max_length=self.size.padded_length,
            compute=compute,
        )
        found: Measurement = measure_steps(objective, source, self.settings)
        return found.figures()


def fitting(run: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """Return what was measured, or None where memory did not suffice."""
    try:
        return run()
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def record_counts(first: int, most: int) -> Iterator[int]:
    """Return 8, 16, 32, … as far as they are wanted."""
    while first <= most:
        yield first
        first *= 2


def measure_all(
    bench: Bench,
    first: int,
    most: int,
    settings: dict[str, dict[str, Any]],
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Return the figures of the baselines, and of settings with rising numbers of records.

    What is known so far goes to `keep` after each measurement: a run that is stopped has left that.
    """
    figures: dict[str, Any] = {}
    rates: dict[str, float] = {}
    for baseline in BASELINES:
        found = fitting(lambda baseline=baseline: bench.published(baseline))  # type: ignore[misc]
        if found is not None:
            figures[f"published, {baseline}, {PUBLISHED_RECORDS} records"] = found
            rates[baseline] = found["samples_per_s"]
            keep(figures)
    best, largest = 0.0, {}
    for name, values in settings.items():
        for records in record_counts(first, most):
            if not bench.has_time:
                figures["note"] = "the time was over before all settings were measured"
                break
            compute = ComputeSettings(**values)
            found = fitting(lambda r=records, c=compute: bench.ours(r, c))  # type: ignore[misc]
            if found is None:
                break
            figures[f"ours, {name}, {records} records"] = found
            keep(figures)
            largest[name], best = records, max(best, found["samples_per_s"])
    figures["largest_micro_batch"] = largest
    figures["times_faster"] = {one: round(best / rate, 2) for one, rate in rates.items()}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--size", default="full" if torch.cuda.is_available() else "micro", choices=MODEL_SIZES
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=240.0, help="No measurement begins later than this.")
    parser.add_argument("--steps", type=int, default=None, help="Timed steps of a measurement.")
    parser.add_argument("--out", type=Path, default=None, help="File; by default results/gpu_step.json.")
    wanted = parser.parse_args()
    on_gpu = resolve_device(wanted.device).type == "cuda"
    bench = Bench(
        MODEL_SIZES[wanted.size], wanted.device, wanted.steps or (8 if on_gpu else 1), wanted.seconds
    )
    figures: dict[str, Any] = {"size": wanted.size}
    if not on_gpu:
        figures["note"] = "no GPU here: the figures of a GPU are missing"

    def keep(so_far: dict[str, Any]) -> None:
        save("gpu_step", {**figures, **so_far}, quiet=True, out=wanted.out)

    # On a CPU, what a compiler generates is of no interest: one setting shows that it runs.
    settings = SETTINGS if on_gpu else {name: SETTINGS[name] for name in ("eager", "compiled vision")}
    figures |= measure_all(bench, *((8, 128) if on_gpu else (2, 2)), settings, keep)
    save("gpu_step", figures, out=wanted.out)


if __name__ == "__main__":
    main()
