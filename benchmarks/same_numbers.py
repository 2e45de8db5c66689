"""Do the numbers move? Fixed runs of every objective and every task, to be compared between two commits bit for bit.

    python benchmarks/same_numbers.py make before.json       # in the checkout of the one commit
    python benchmarks/same_numbers.py make after.json        # in that of the other, on the same machine
    python benchmarks/same_numbers.py compare before.json after.json

Everything goes through the command line: generated port scenes, 50 steps of each objective at micro size on one thread,
30 steps of each task, the probes of a short ViTP run. `compare` lists what differs, with the first step that does and
the largest difference, and exits with 1. A refactoring moves nothing; where a change is meant to, say which and by how
much. Numbers of another processor or another release of torch differ by themselves.

    python benchmarks/same_numbers.py make before.json vitp dense      # only the runs whose names hold one of the words
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import yaml

from task_runs import LAYOUTS
from vitp.cli import run as run_cli

SIZE = 48
STEPS = 50
TASK_STEPS = 30
OBJECTIVES = ("vitp", "mae", "clip", "siglip", "simclr", "dino", "supervised", "dense")
VISION = {
    "arguments": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8},
    "image_size": SIZE,
}
LANGUAGE = {
    "model_type": "qwen2",
    "arguments": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
}
SCRATCH = {"vision": VISION, "language": LANGUAGE, "shuffle": 1, "template": "micro"}
TRAIN = {
    "steps": STEPS,
    "num_workers": 0,
    "log_every": 1,
    "save_every": None,
    "tensorboard": False,
    "threads": 1,
}
OPTIM = {"lr": 3e-3, "warmup_ratio": 0.1}
NOT_NUMBERS = ("seconds", "elapsed", "time", "memory", "per_s", "wait", "peak")
"""Words in the names of logged values that tell of the machine."""


def vitp(*arguments: object) -> None:
    """Run a command; stop with what it said when it fails."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = run_cli([str(argument) for argument in arguments])
    if code != 0:
        raise SystemExit(f"vitp {' '.join(map(str, arguments))}\nexit code {code}\n{said.getvalue()}")


def compiled(folder: Path) -> Path:
    """Return the instructions of 60 generated scenes."""
    out = folder / "compiled"
    if not out.exists():
        vitp(
            "data",
            "scenes",
            "port",
            "--layout",
            "masks",
            "--count",
            60,
            "--size",
            SIZE,
            "--out",
            folder / "port",
        )
        vitp("data", "compile", folder / "port", "--out", out, "--format", "masks", "-o", "instances=true")
    return out


def curve(run: Path) -> list[dict[str, Any]]:
    """Return the logged rows of a run without what tells of the machine."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if not any(word in k for word in NOT_NUMBERS)} for row in rows]


def pretraining(folder: Path, objective: str) -> Path:
    """Run an objective for 50 steps; return the run's folder."""
    out = folder / f"pretrain-{objective}"
    model: dict[str, Any] = {"drop_path": 0.1}
    data: dict[str, Any] = {"mixture": [str(compiled(folder))], "global_batch": 4}
    values: dict[str, Any] = {"model": model, "data": data, "optim": OPTIM, "train": TRAIN}
    if objective == "vitp":
        model |= {"init": "scratch", "vocabulary": 400, "scratch": SCRATCH}
        data["sequence"] = {"max_length": 512, "max_tiles": 1, "max_turns": 3}
        values["vrl"] = {"ratio": 0.75}
    else:
        model |= {"init": "random", "vision": VISION}
        values |= {"objective": objective}
        values["image_text"] = {"text_width": 32, "text_layers": 1, "text_heads": 2, "dimension": 16}
    path = folder / f"{objective}.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    vitp("pretrain", path, "--out", out)
    return out


def of_objective(folder: Path, objective: str) -> Any:
    """Return the curve of an objective's run."""
    return curve(pretraining(folder, objective))


def of_probes(folder: Path) -> Any:
    """Return the probes of a ViTP run."""
    out = folder / "pretrain-vitp"
    if not out.exists():
        pretraining(folder, "vitp")
    vitp("probe", out, compiled(folder), "--compare", "random", "--seeds", 2, "--out", folder / "probes.json")
    tables = json.loads((folder / "probes.json").read_text(encoding="utf-8"))
    return {Path(name).name: table for name, table in tables.items()}  # the folder is another one each time


def of_task(folder: Path, task: str) -> Any:
    """Return the curve and the scores of a finetuning of 30 steps."""
    labels, out = folder / LAYOUTS[task], folder / f"finetune-{task}"
    if not labels.exists():
        vitp(
            "data",
            "scenes",
            "port",
            "--layout",
            LAYOUTS[task],
            "--count",
            40,
            "--size",
            SIZE,
            "--out",
            labels,
        )
    settings = [
        *(
            "train.batch_size=4",
            "train.threads=1",
            "train.log_every=1",
            "train.val_every=15",
            "train.save_every=null",
        ),
        *("data.resize.mode=fixed", f"data.resize.size={SIZE}", f"backbone.vision={json.dumps(VISION)}"),
    ]
    if task != "classification":
        settings += ["neck.options.channels=32", "head.width=32"]
    if task in ("detection", "instance", "oriented"):
        settings += ["head.proposals.keep=[40,40]", "head.proposals.anchor_scales=[2]"]
        settings += ["head.box.hidden=32", "head.box.samples=32", "head.box.detections=20"]
    changes = [word for setting in settings for word in ("-s", setting)]
    start = ("finetune", task, "--data", labels, "--backbone", "random", "--steps", TASK_STEPS, "--out", out)
    vitp(*start, *changes)
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    return {"curve": curve(out), "scores": scores}


RUNS: dict[str, Callable[[Path], Any]] = {
    **{f"objective {name}": (lambda folder, name=name: of_objective(folder, name)) for name in OBJECTIVES},
    **{f"task {name}": (lambda folder, name=name: of_task(folder, name)) for name in LAYOUTS},
    "probes": of_probes,
}


def make(out: Path, words: list[str]) -> None:
    """Write the numbers of all runs, or of those whose names hold one of the words."""
    found: dict[str, Any] = {"torch": torch.__version__}
    with tempfile.TemporaryDirectory() as name:
        for run, numbers in RUNS.items():
            if words and not any(word in run for word in words):
                continue
            print(run, flush=True)
            found[run] = numbers(Path(name))
            out.write_text(json.dumps(found, indent=1), encoding="utf-8")


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Return every value of nested JSON with its place."""
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from leaves(part, f"{place}[{number}]")
    else:
        yield place, value


def same(a: Any, b: Any) -> bool:
    """Return whether two values are equal; NaN equals NaN."""
    both_nan = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
    return bool(a == b) or both_nan


def compare(before: Path, after: Path) -> int:
    """Print what differs; return how many runs do."""
    old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (before, after))
    moved = 0
    for run in dict.fromkeys((*old, *new)):
        if run not in old or run not in new:
            print(f"{run}: only {'before' if run in old else 'after'}")
            moved += 1
            continue
        a, b = dict(leaves(old[run])), dict(leaves(new[run]))
        differing = [place for place in a.keys() | b.keys() if not same(a.get(place), b.get(place))]
        if not differing:
            print(f"{run}: {len(a)} values, all equal")
            continue
        moved += 1
        gaps = [
            abs(a[p] - b[p])
            for p in differing
            if isinstance(a.get(p), int | float) and isinstance(b.get(p), int | float)
        ]
        first = next(place for place in (*a, *b) if place in set(differing))
        print(
            f"{run}: {len(differing)} of {len(a)} values differ, first {first} ({a.get(first)} → {b.get(first)}), "
            f"largest difference {max(gaps, default=math.nan):.3g}"
        )
    return moved


def main() -> None:
    """Do what the first word says."""
    match sys.argv[1:]:
        case ["make", out, *words]:
            make(Path(out), words)
        case ["compare", before, after]:
            sys.exit(min(compare(Path(before), Path(after)), 1))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
