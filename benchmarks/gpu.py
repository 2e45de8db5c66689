"""The parts of `benchmarks/gpu.sh`, each in a process and a share of the time of its own, and the page of what they found.

A part that fails or runs out of time is said so on the page; the others go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from vitp.core.distributed import resolve_device
from vitp.core.files import write_json, write_text
from vitp.planning.bench.benchmark import circumstances_of
from vitp.planning.bench.synthetic import MODEL_SIZES

ROOT = Path(__file__).parent.parent
CHECKS = ("packed", "attention", "bf16", "compile", "recompute")
SHARES = {"checks": 0.3, "step": 0.42, "finetune": 0.16, "predict": 0.12}
"""Part → its share of the seconds."""
COLUMNS = {
    "samples_per_s": "samples/s",
    "images_per_s": "images/s",
    "step_s": "step, s",
    "tokens_per_s": "tokens/s",
    "mfu": "mfu",
    "memory_gb": "memory, GB",
    "tile_packing": "tiles used",
    "data_wait": "data wait",
    "compiled": "compiled",
}
"""Figures of a measurement that the page shows → their heads; the files of the parts hold all."""
CIRCUMSTANCES = ("benchmark", "date", "commit", "vitp", "torch", "hardware", "command", "size")
"""Of a part's file: the page says them once."""


@dataclass(frozen=True)
class Done:
    """How a part ended.

    Attributes:
        said: "done", or what went wrong.
        seconds: It took.
        found: What it wrote.
    """

    said: str
    seconds: float
    found: dict[str, Any]


def run_part(command: list[str], out: Path, limit: float) -> Done:
    """Run a command that writes `out`; its output goes beside it."""
    began, said = time.monotonic(), "done"
    with out.with_suffix(".log").open("w") as log:
        try:
            code = subprocess.run(
                command, stdout=log, stderr=log, timeout=limit, cwd=ROOT, check=False
            ).returncode
            said = "done" if code == 0 else f"ended with {code}; see {out.with_suffix('.log').name}"
        except subprocess.TimeoutExpired:
            said = f"stopped after {limit:.0f} s"
    found = json.loads(out.read_text()) if out.is_file() else {}
    return Done(said, round(time.monotonic() - began, 1), found)


def check_config(folder: Path, size: str, device: str) -> None:
    """Write `run.yaml`, the configuration of a run of this size over generated scenes."""
    vitp, model = [sys.executable, "-m", "vitp"], MODEL_SIZES[size].config
    side = model.vision.image_size
    port, compiled = folder / "port", folder / "compiled"
    make = [
        "data",
        "scenes",
        "port",
        "--layout",
        "masks",
        "--count",
        "12",
        "--size",
        str(side),
        "--out",
        str(port),
    ]
    pack = ["data", "compile", str(port), "--out", str(compiled), "--format", "masks", "-o", "instances=true"]
    for words in (make, pack):
        subprocess.run([*vitp, *words], check=True, capture_output=True, cwd=ROOT)
    values = {
        "model": {"init": "scratch", "scratch": model.model_dump(mode="json"), "vocabulary": 2000},
        "data": {"mixture": [str(compiled)], "global_batch": 4, "sequence": {"max_turns": 3}},
        "train": {"steps": 4, "device": device, "num_workers": 0},
    }
    write_text(folder / "run.yaml", yaml.safe_dump(values))


def commands(folder: Path, wanted: argparse.Namespace) -> dict[str, list[str]]:
    """Return part → its command, without the file that it is to write."""
    python, bench = sys.executable, str(ROOT / "benchmarks")
    where = ["--size", wanted.size, "--device", wanted.device]
    on_gpu = resolve_device(wanted.device).type == "cuda"
    batch = [*wanted.tasks, "--batch", "16" if on_gpu else "2", "--steps", "5" if on_gpu else "1"]
    limit = str(SHARES["step"] * wanted.seconds * 0.85)
    only = [word for name in CHECKS for word in ("--only", name)]
    made = {
        "checks": [
            python,
            "-m",
            "vitp",
            "check",
            str(folder / "run.yaml"),
            "--records",
            "4",
            *only,
            "--json",
        ],
        "step": [python, f"{bench}/gpu_step.py", *where, "--seconds", limit, "--out"],
        "finetune": [
            python,
            f"{bench}/finetune_step.py",
            *where,
            *batch,
            *(["--compile"] if on_gpu else []),
            "--out",
        ],
        "predict": [python, f"{bench}/predict.py", *where, *batch, "--out"],
    }
    if "checks" in wanted.parts:
        check_config(folder, wanted.size, wanted.device)
    return {part: made[part] for part in wanted.parts}


def page(head: dict[str, Any], parts: dict[str, Done]) -> str:
    """Return all figures as Markdown."""
    lines = [f"# {head['hardware']}", ""]
    lines += [f"{head['date']}, commit {head['commit']}, torch {head['torch']}, size {head['size']}.", ""]
    if not head["gpu"]:
        lines += ["**No GPU: these are no figures of one.** The program has run from end to end.", ""]
    lines += ["| part | how it ended | seconds |", "|---|---|---|"]
    lines += [f"| {name} | {done.said} | {done.seconds} |" for name, done in parts.items()]
    for name, done in parts.items():
        lines += ["", f"## {name}", "", *_tables(done.found)]
    return "\n".join(lines) + "\n"


def _tables(found: Any) -> list[str]:
    """Return checks as a table, measurements as one, and what else was found as lines."""
    if isinstance(found, list):
        lines = ["| check | finding |", "|---|---|"]
        return lines + [f"| {row['check']} | {_finding(row)} |" for row in found]
    rows = {
        name: value for name, value in found.items() if isinstance(value, dict) and COLUMNS.keys() & value
    }
    columns = [column for column in COLUMNS if any(column in row for row in rows.values())]
    lines = []
    if rows:
        lines += ["| | " + " | ".join(COLUMNS[column] for column in columns) + " |"]
        lines += ["|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(str(row.get(column, "")) for column in columns) + " |"
        for name, row in rows.items()
    ]
    said = [
        f"- {name.replace('_', ' ')}: {_words(value)}"
        for name, value in found.items()
        if name not in rows and name not in CIRCUMSTANCES
    ]
    return [*lines, "", *said] if lines else said


def _words(value: Any) -> str:
    return (
        ", ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, dict) else str(value)
    )


def _finding(row: dict[str, Any]) -> str:
    if row["skipped"]:
        return f"skipped: {row['skipped']}"
    said = "; ".join(f"{one['what']} {one['value']:.3g}" for one in row["differences"])
    return said if row["ok"] else f"**differs**: {said}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--size", default="full" if torch.cuda.is_available() else "micro", choices=MODEL_SIZES
    )
    parser.add_argument("--seconds", type=float, default=465.0, help="In all.")
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--parts", nargs="+", default=list(SHARES), choices=SHARES, help="These alone.")
    parser.add_argument(
        "--tasks", nargs="+", default=[], help="Of finetuning and prediction; all by default."
    )
    wanted = parser.parse_args()
    wanted.out = wanted.out.resolve()
    wanted.out.mkdir(parents=True, exist_ok=True)
    device = resolve_device(wanted.device)
    head = circumstances_of("gpu", "benchmarks/gpu.sh " + " ".join(sys.argv[1:]), device, ROOT)
    head |= {"size": wanted.size, "gpu": device.type == "cuda"}
    parts: dict[str, Done] = {}
    with tempfile.TemporaryDirectory() as name:
        end = time.monotonic() + wanted.seconds
        made = commands(Path(name), wanted)
        for part, command in made.items():
            out = wanted.out / f"{part}.json"
            out.unlink(missing_ok=True)
            # What earlier parts left over is for those behind.
            left = {one: SHARES[one] for one in list(made)[list(made).index(part) :]}
            limit = max(1.0, (end - time.monotonic()) * SHARES[part] / sum(left.values()))
            parts[part] = run_part([*command, str(out)], out, limit)
            print(f"{part}: {parts[part].said} ({parts[part].seconds} s)", flush=True)
    whole = {**head, "parts": {name: vars(done) for name, done in parts.items()}}
    write_json(wanted.out / "gpu.json", whole)
    write_text(wanted.out / "page.md", page(head, parts))
    print(f"wrote {wanted.out / 'page.md'}")
    sys.exit(any(done.said != "done" for done in parts.values()))


if __name__ == "__main__":
    main()
