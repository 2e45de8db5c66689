"""Our training step against the published one on the same weights and records: samples a second, and memory.

Two kinds of records at two sizes. A sample is a record: an image with its questions. All steps drop 75 % of the image
tokens, all make a fused AdamW step at the end. They are timed in turns, so that what else the machine does hits all.
The published step comes twice (`published_step.py`): with unpadded attention, which is what the published code
computes, and with attention over padded rows. Beside the measured ratios stand those of floating-point operations, at
the measured size and at full scale.

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
from published_flops import flop_ratios
from published_step import BASELINES, PublishedObjective, check_equal
from vitp.data.chat import ChatTokenizer
from vitp.data.packing import PackedBatch
from vitp.models.compute import ComputeSettings, configure
from vitp.planning.bench.measure import StepRunner, StepSettings
from vitp.planning.bench.synthetic import (
    MODEL_SIZES,
    ModelSize,
    SyntheticSource,
    Workload,
    make_chat,
    make_objective,
)

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
    """One of the steps, and what was measured of it."""

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


def batches_of(
    size: ModelSize, records: int, kind: Mapping[str, object], chat: ChatTokenizer | None = None
) -> tuple[PackedBatch, PackedBatch]:
    """Return the same records packed with shared prefixes, and as one conversation a row."""
    chat = chat or make_chat(size)
    ours, published = (
        SyntheticSource(
            chat,
            size.config.vision.image_size,
            Workload(records=records, independent=mine, together=mine, **kind),  # type: ignore[arg-type]
        )
        for mine in (True, False)
    )
    return ours(0, 0, 0, 1), published(0, 0, 0, 1)


def compare(name: str, kind: str, records: int, repeats: int = REPEATS) -> dict[str, object]:
    """Return the figures of one size and one kind of records."""
    size, recompute = MODEL_SIZES[name], RECOMPUTE[kind]
    mine = make_objective(size)
    theirs = {one: PublishedObjective(make_objective(size), size.padded_length, one) for one in BASELINES}
    configure(mine.vlm, ComputeSettings(recompute=recompute))
    packed, apart = batches_of(size, records, KINDS[kind], mine.chat)
    differences = {one: check_equal(mine, objective, apart) for one, objective in theirs.items()}
    contestants = {"ours": Contestant(StepRunner(mine, SETTINGS), packed)}
    contestants |= {
        one: Contestant(StepRunner(objective, SETTINGS), apart) for one, objective in theirs.items()
    }
    for contestant in contestants.values():
        contestant.step()
    for _ in range(repeats):
        for contestant in contestants.values():
            contestant.timed_step()
    memory = {one: made.runner.peak_memory([made.batch]) / 2**20 for one, made in contestants.items()}
    seconds = {one: statistics.median(made.wall) for one, made in contestants.items()}
    cpu = {one: statistics.median(made.cpu) for one, made in contestants.items()}
    del contestants, mine, theirs
    gc.collect()
    return {
        "repeats": repeats,
        "records": records,
        "recompute_ours": recompute,
        "tokens_ours": packed.tokens,
        "tokens_published": records * size.padded_length,
        "samples_per_s": {one: round(records / s, 3) for one, s in seconds.items()},
        "times_faster": {one: round(seconds[one] / seconds["ours"], 2) for one in BASELINES},
        "times_less_cpu": {one: round(cpu[one] / cpu["ours"], 2) for one in BASELINES},
        "times_fewer_flops": flop_ratios(size, packed, apart, recompute),
        "times_fewer_flops_full_scale": full_scale_ratios(kind, records),
        "step_memory_mb": {one: round(m) for one, m in memory.items()},
        "memory_share": {one: round(memory["ours"] / max(memory[one], 1e-9), 3) for one in BASELINES},
        "loss_difference": {one: float(f"{value:.2g}") for one, value in differences.items()},
    }


def full_scale_ratios(kind: str, records: int) -> dict[str, float]:
    """Return the ratio of FLOPs for the same kind of records at full scale, which no machine has to run."""
    size = MODEL_SIZES["full"]
    return flop_ratios(size, *batches_of(size, records, KINDS[kind]), RECOMPUTE[kind])


def main() -> None:
    torch.set_num_threads(2)
    wanted = sys.argv[1:]
    count = next((int(word) for word in wanted if word.isdigit()), None)
    for name in [size for size in RECORDS if size in wanted] or RECORDS:
        for kind in [kind for kind in KINDS if kind in wanted] or KINDS:
            save(f"train_step_{name}_{kind}", compare(name, kind, count or RECORDS[name]))


if __name__ == "__main__":
    main()
