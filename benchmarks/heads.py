"""Heads at one budget: each head of a task is finetuned on the same crops of real images with the same steps.

Every cell (set, task, head, seed) is one row of `benchmarks/results/heads.json`, written when it has finished; cells
that are there are left alone, and one that was interrupted goes on from its last checkpoint. The row has the scores on
the test crops, parameters, FLOPs of one image, and CPU or GPU seconds of a training step and of a prediction.

    VITP_DATA=path/to/data python benchmarks/heads.py --out runs/heads                     # all cells
    VITP_DATA=path/to/data python benchmarks/heads.py --out runs/heads --only eomt --seeds 0 --seconds 170
    python benchmarks/heads.py --table                                                     # of what is there

Hardware and time: one CPU core, some minutes a cell. `--seconds` ends it after the step that is at work then; run it
again to go on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from common import RESULTS
from vitp.core.config import make_config
from vitp.core.distributed import resolve_device
from vitp.core.files import write_json
from vitp.core.reading import parse_json, read_text
from vitp.engine.stopping import Interrupted
from vitp.metrics.statistics import mean_std
from vitp.planning.bench.benchmark import circumstances_of
from vitp.planning.finetune import image_flops
from vitp.recipes.micro import SMALL_DETECTOR, SMALL_ORIENTED
from vitp.recipes.real_images import RealSet, compile_sets
from vitp.runs.finetune import SCORES_FILE, FinetuneConfig, FinetuneRun, build_run, run_finetune
from vitp.runs.folder import started

SIMPLE = {"kind": "simple", "options": {"channels": 64}}
STEPS, BATCH = 300, 8

SETS = {
    "dsb2018": RealSet("dsb2018", "coco", 128, 1.0, {"semantic": "both", "licence": "CC0"}, objects=False),
    "hit_uav": RealSet(
        "hit_uav", "dota", 128, 1.0, {"classes": "Person,Car,Bicycle,OtherVehicle", "licence": "CC BY 4.0"}
    ),
}
"""Sets and their crops, by the name of their folder in `VITP_DATA`."""

TEST_EVERY = {"dsb2018": 1, "hit_uav": 5}
"""Every so manieth test image is scored, with all its crops: hit_uav's 6,000 crops would take longer than training."""


@dataclass(frozen=True)
class Arm:
    """One head of a task on a set.

    Attributes:
        data: The set.
        task: Of `vitp finetune`.
        head: How rows call it; the first arm of a set and task is the one that others are compared with.
        settings: Of the head.
        neck: Between backbone and head.
        scores: Which of the scores a row has; the first one is the table's.
    """

    data: str
    task: str
    head: str
    settings: dict[str, Any]
    scores: tuple[str, ...]
    neck: dict[str, Any] = field(default_factory=dict)


_MASKS = ("mask_AP50", "mask_AP", "AP50", "pq", "boundary_AP")
_PIXELS = ("miou", "boundary_iou", "macro_f1")
_BOXES, _ORIENTED = ("AP50", "AP", "AP75"), ("AP50", "AP", "AP75")
_CASCADE = {**SMALL_DETECTOR, "box": {**SMALL_DETECTOR["box"], "kind": "cascade"}}
_DETR = {"kind": "detr", "width": 64, "heads": 4, "hidden": 256, "finest": 4, "queries": 60}
ARMS = (
    Arm("dsb2018", "segmentation", "UperNet", {"kind": "upernet", "width": 64}, _PIXELS, SIMPLE),
    Arm("dsb2018", "segmentation", "EoMT", {"kind": "eomt", "queries": 100}, _PIXELS),
    Arm(
        "dsb2018",
        "instance",
        "Mask R-CNN",
        {
            **SMALL_DETECTOR,
            "box": {**SMALL_DETECTOR["box"], "detections": 100},
            "mask": {"pool_size": 7, "layers": 2, "width": 64},
        },
        _MASKS,
        SIMPLE,
    ),
    Arm("dsb2018", "instance", "EoMT", {"kind": "eomt", "queries": 100}, _MASKS),
    Arm("hit_uav", "detection", "Cascade R-CNN", _CASCADE, _BOXES, SIMPLE),
    Arm("hit_uav", "detection", "DETR", _DETR, _BOXES, SIMPLE),
    Arm("hit_uav", "oriented", "Oriented R-CNN", SMALL_ORIENTED, _ORIENTED, SIMPLE),
    Arm("hit_uav", "oriented", "DETR", _DETR, _ORIENTED, SIMPLE),
)


def thin_test(compiled: Path, every: int) -> None:
    """Keep every so manieth test image of a compiled set; all of them stay in `test-all.jsonl`."""
    rows, whole = compiled / "labels" / "test.jsonl", compiled / "labels" / "test-all.jsonl"
    if every == 1 or whole.is_file():
        return
    lines = read_text(rows).splitlines(keepends=True)
    images = [json.loads(line)["group"] for line in lines]
    kept = set(list(dict.fromkeys(images))[::every])
    rows.rename(whole)
    rows.write_text("".join(line for line, image in zip(lines, images, strict=True) if image in kept))


def config_of(arm: Arm, root: Path, seed: int, steps: int) -> FinetuneConfig:
    """Return the finetuning of an arm: the starter, everything trained, last weights."""
    values = {
        "task": arm.task,
        "seed": seed,
        "backbone": {"init": "starter"},
        "neck": arm.neck,
        "head": arm.settings,
        "data": {"root": str(root), "format": "vitp", "sizes": "fixed", "empty": 0.5, "global_batch": BATCH},
        "train": {
            "steps": steps,
            "val_every": 0,
            "save_every": 20,
            "keep_last": 1,
            "log_every": 50,
            "threads": 1,
        },
        "augment": {"flip": True, "rotate90": True},
        "optim": {"lr": 1e-3, "weight_decay": 0.05, "warmup_ratio": 0.1, "layer_decay": 0.75},
        "test": {"measures": ["boundary", "panoptic"]},
        "log": {"trackers": []},
    }
    return make_config(FinetuneConfig, values, where=f"{arm.data}, {arm.task}, {arm.head}")


def cost_of(run: FinetuneRun) -> dict[str, float]:
    """Return what an arm costs: parameters, FLOPs of an image, seconds of a step and of a predicted batch.

    On a CPU seconds are those of this process alone, whatever else the machine does.
    """
    model, place = run.model, resolve_device("auto")
    clock = time.process_time if place.type == "cpu" else _gpu_time
    batches = [run.source(step, 0, 0, 1).to(place) for step in range(4)]
    flops = image_flops(model, int(batches[0].images_BCHW.shape[-1]))
    model.to(place).train()

    def step(number: int) -> None:
        losses = model(batches[number])
        torch.stack(list(losses.values())).sum().backward()
        model.zero_grad(set_to_none=True)

    trained = _median([lambda number=number: step(number) for number in range(4)], clock)
    images = list(batches[0].images_BCHW.cpu())
    predicted = _median([lambda: model.predict(images)] * 4, clock)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gflop_an_image": round(flops / 1e9, 4),
        "seconds_a_step": round(trained, 4),
        "seconds_a_prediction": round(predicted / len(images), 5),
    }


def _gpu_time() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def _median(runs: Sequence[Callable[[], object]], clock: Callable[[], float]) -> float:
    times = []
    for run in runs:
        began = clock()
        run()
        times.append(clock() - began)
    return statistics.median(times[1:])  # the first one warms up


def cell(arm: Arm, out: Path, seed: int, steps: int, console: Console) -> dict[str, Any]:
    """Return the row of a cell, finetuned from where it stands."""
    name = f"{arm.data}-{arm.task}-{arm.head.replace(' ', '-')}-{seed}" + (
        f"-{steps}" if steps != STEPS else ""
    )
    run, config = out / name, config_of(arm, out / "data" / arm.data, seed, steps)
    if not (run / SCORES_FILE).is_file():
        run_finetune(config, run, resume=started(run), console=Console(quiet=True))
    values = parse_json(read_text(run / SCORES_FILE))["values"]
    torch.manual_seed(seed)
    row = {
        "set": arm.data,
        "task": arm.task,
        "head": arm.head,
        "seed": seed,
        "steps": steps,
        "batch": BATCH,
        "scores": {score: values[score] for score in arm.scores},
        "cost": cost_of(build_run(config)),
        **circumstances_of("heads", "python benchmarks/heads.py", resolve_device("auto"), RESULTS.parent),
    }
    console.print(f"{name}: {json.dumps(row['scores'])} {json.dumps(row['cost'])}")
    return row


def same_cell(row: dict[str, Any], arm: Arm, seed: int, steps: int) -> bool:
    """Return whether a row is that of a cell."""
    return (row["set"], row["task"], row["head"], row["seed"], row["steps"]) == (
        *(arm.data, arm.task, arm.head),
        *(seed, steps),
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as Markdown: mean ± sample standard deviation over seeds, seconds as ratios to the first arm."""
    lines = [
        "| set, task: score | steps | head | score | seeds | parameters | GFLOPs | step, ratio | prediction, ratio |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    first: dict[tuple[str, str, int], dict[str, float]] = {}
    budgets = sorted({row["steps"] for row in rows})
    for arm, steps in ((arm, steps) for arm in ARMS for steps in budgets):
        own = [row for row in rows if same_cell(row, arm, row["seed"], steps)]
        if not own:
            continue
        mean, std = mean_std([100 * row["scores"][arm.scores[0]] for row in own])
        cost = {name: statistics.median(row["cost"][name] for row in own) for name in own[0]["cost"]}
        base = first.setdefault((arm.data, arm.task, steps), cost)
        ratios = [cost[name] / base[name] for name in ("seconds_a_step", "seconds_a_prediction")]
        spread = f" ± {std:.1f}" if len(own) > 1 else ""
        lines.append(
            f"| {arm.data}, {arm.task}: {arm.scores[0]} | {steps} | {arm.head} | {mean:.1f}{spread} | {len(own)} "
            f"| {cost['parameters'] / 1e6:.2f} M | {cost['gflop_an_image']:.2f} | {ratios[0]:.2f} | {ratios[1]:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the cells that aren't there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/heads"), help="folder of runs and crops")
    parser.add_argument("--results", type=Path, default=RESULTS / "heads.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[], help="heads, tasks or sets")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seconds", type=float, default=None, help="stop after so long")
    parser.add_argument("--table", action="store_true", help="print the table of the rows that are there")
    options = parser.parse_args()
    rows = parse_json(read_text(options.results))["rows"] if options.results.is_file() else []
    if options.table:
        print(table(rows))
        return
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())  # the engine has its own while it trains
    if options.seconds is not None:
        stop = threading.Timer(options.seconds, os.kill, (os.getpid(), signal.SIGTERM))
        stop.daemon = True
        stop.start()
    console, wanted = Console(highlight=False), {word.lower() for word in options.only}
    chosen = [
        arm for arm in ARMS if not wanted or wanted & {arm.data.lower(), arm.task.lower(), arm.head.lower()}
    ]
    compile_sets(options.out, [SETS[name] for name in dict.fromkeys(arm.data for arm in chosen)], console)
    for name in {arm.data for arm in chosen}:
        thin_test(options.out / "data" / name, TEST_EVERY[name])
    for seed in options.seeds:
        for arm in chosen:
            if any(same_cell(row, arm, seed, options.steps) for row in rows):
                continue
            try:
                rows.append(cell(arm, options.out, seed, options.steps, console))
            except Interrupted as stopped:
                console.print(f"stopped: {stopped}")
                sys.exit(0)
            write_json(options.results, {"benchmark": "heads", "rows": rows})
            if over.is_set():
                sys.exit(0)
    print(table(rows))


if __name__ == "__main__":
    main()
