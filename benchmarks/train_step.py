"""Our training step against the published one on the same weights and records: samples a second, and memory.

Two kinds of records at two sizes. A sample is a record: an image with its questions. Both steps drop 75 % of the image
tokens, both make a fused AdamW step at the end. They are timed in turns, so that what else the machine does hits both.

    python benchmarks/train_step.py micro one_tile_six_questions 4

Without arguments all sizes and kinds are measured; a number is that of the records a step.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from common import save
from published_step import PublishedObjective, check_equal
from vitp.data.packing import PackedBatch
from vitp.models.compute import ComputeSettings, configure
from vitp.objectives.vitp import ViTPObjective
from vitp.planning.bench.measure import StepRunner, StepSettings
from vitp.planning.bench.synthetic import MODEL_SIZES, ModelSize, SyntheticSource, Workload, make_objective

KINDS = {
    "one_tile_six_questions": {"tiles": ((1, 1.0),), "questions": 6},
    "five_tiles_one_question": {"tiles": ((5, 1.0),), "questions": 1},
}
RECOMPUTE: dict[str, Literal["none", "selective", "full"]] = {
    "one_tile_six_questions": "none",
    "five_tiles_one_question": "full",
}
"""Of our step; the published one recomputes all. With five tiles a record the ViT's activations are most of the memory."""

RECORDS = {"micro": 4, "small": 2}
REPEATS = 2
SETTINGS = StepSettings(precision="fp32", device="cpu")


@dataclass
class Contestant:
    """One of the two steps, and what was measured of it."""

    runner: StepRunner
    batch: PackedBatch

    def __post_init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def step(self) -> None:
        """Make a step."""
        self.runner.step([self.batch])

    def timed_step(self) -> None:
        """Make a step and keep its time by the clock and of the processor."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.step()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


def batches(
    objective: ViTPObjective, size: ModelSize, records: int, kind: Mapping[str, object]
) -> tuple[PackedBatch, PackedBatch]:
    """Return the same records packed with shared prefixes, and as one conversation a row."""
    tile = size.config.vision.image_size
    ours, published = (
        SyntheticSource(
            objective.chat, tile, Workload(records=records, independent=mine, together=mine, **kind)
        )  # type: ignore[arg-type]
        for mine in (True, False)
    )
    return ours(0, 0, 0, 1), published(0, 0, 0, 1)


def compare(name: str, kind: str, records: int) -> dict[str, object]:
    """Return the figures of one size and one kind of records."""
    size = MODEL_SIZES[name]
    mine, theirs = make_objective(size), PublishedObjective(make_objective(size), size.padded_length)
    configure(mine.vlm, ComputeSettings(recompute=RECOMPUTE[kind]))
    packed, apart = batches(mine, size, records, KINDS[kind])
    difference = check_equal(mine, theirs, apart)
    ours = Contestant(StepRunner(mine, SETTINGS), packed)
    published = Contestant(StepRunner(theirs, SETTINGS), apart)
    for contestant in (ours, published):
        contestant.step()
    for _ in range(REPEATS):
        ours.timed_step()
        published.timed_step()
    memory = [one.runner.peak_memory([one.batch]) / 2**20 for one in (ours, published)]
    seconds = [statistics.median(contestant.wall) for contestant in (ours, published)]
    cpu = [statistics.median(contestant.cpu) for contestant in (ours, published)]
    del ours, published, mine, theirs
    gc.collect()
    return {
        "records": records,
        "recompute_ours": RECOMPUTE[kind],
        "tokens_ours": packed.tokens,
        "tokens_published": records * size.padded_length,
        "samples_per_s": [round(records / s, 3) for s in seconds],
        "times_faster": round(seconds[1] / seconds[0], 2),
        "times_less_cpu": round(cpu[1] / cpu[0], 2),
        "step_memory_mb": [round(m) for m in memory],
        "memory_share": round(memory[0] / max(memory[1], 1e-9), 3),
        "loss_difference": float(f"{difference:.2g}"),
    }


def main() -> None:
    torch.set_num_threads(2)
    wanted = sys.argv[1:]
    count = next((int(word) for word in wanted if word.isdigit()), None)
    for name in [size for size in RECORDS if size in wanted] or RECORDS:
        for kind in [kind for kind in KINDS if kind in wanted] or KINDS:
            figures: dict[str, object] = {"order": ["ours", "published"], "repeats": REPEATS}
            save(f"train_step_{name}_{kind}", figures | compare(name, kind, count or RECORDS[name]))


if __name__ == "__main__":
    main()
