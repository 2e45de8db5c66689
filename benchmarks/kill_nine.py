"""Kill -9 at random moments: a run that is killed and resumed again and again ends with the bits of one that is not.

    python benchmarks/kill_nine.py --kills 20 --seed 0
    python benchmarks/kill_nine.py --kills 20 --seed 0 --command finetune

A small model is trained by `vitp pretrain`, or by `vitp finetune segmentation` with the best weights of its validations,
on generated scenes, on the CPU in deterministic mode. Its process gets
SIGKILL after a random time, while a checkpoint is being written, while an old one is being removed, or while the
finished model is being written. After every kill each visible checkpoint is read in full and the disk use is compared
with the retention rule; at the end the weights and the optimizer's moments are compared bit for bit. Exits with 1 when
anything is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = (
    "1"  # OpenMP's threads don't survive a fork: a child would wait for them for ever
)

import torch
import yaml

from common import save
from vitp.cli import run as run_cli
from vitp.core.tensors import load_tensors
from vitp.engine import checkpoint

KEEP_LAST = 2
MODES = ("any", "any", "writing", "removing", "model")
"""Moments of a kill; those within a save are short, and asked for on purpose."""


@dataclass(frozen=True)
class Kill:
    """One SIGKILL.

    Attributes:
        mode: What was waited for.
        step: Newest whole checkpoint afterwards, 0 before the first.
        leftovers: Hidden files and folders that it left.
        checkpoint_bytes: Of all checkpoints, whole or not.
    """

    mode: str
    step: int
    leftovers: int
    checkpoint_bytes: int


def configuration(data: Path, steps: int) -> dict[str, Any]:
    """Return a run of a model of 70,000 parameters with drop path, VRL and a data worker."""
    vision = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
    language = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }
    scratch = {
        "vision": {"arguments": vision, "image_size": 32},
        "language": {"model_type": "qwen2", "arguments": language},
        "shuffle": 1,
        "template": "micro",
    }
    return {
        "model": {"init": "scratch", "vocabulary": 400, "drop_path": 0.1, "scratch": scratch},
        "data": {
            "mixture": [str(data)],
            "global_batch": 4,
            "sequence": {"max_length": 512, "max_tiles": 1, "max_turns": 3},
        },
        "objective": {"name": "vitp", "vrl": {"ratio": 0.75}},
        "optim": {"lr": 3e-3, "warmup_ratio": 0.1},
        "train": {
            "steps": steps,
            "save_every": 3,
            "keep_last": KEEP_LAST,
            "log_every": 1,
            "num_workers": 1,
            "tensorboard": False,
            "threads": 1,
            "device": "cpu",
            "deterministic": True,
        },
    }


def finetuning(data: Path, steps: int) -> dict[str, Any]:
    """Return a segmenter of a small random ViT that is validated often, and ends with its best weights."""
    vision = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
    return {
        "task": "segmentation",
        "backbone": {"init": "random", "vision": {"arguments": vision, "image_size": 48}},
        "neck": {"options": {"channels": 32}},
        "head": {"width": 32},
        "data": {"root": str(data), "resize": {"mode": "fixed", "size": 48}, "global_batch": 4},
        "train": {
            "steps": steps,
            "save_every": 3,
            "val_every": 2,
            "choose": "best",
            "keep_last": KEEP_LAST,
            "log_every": 1,
            "num_workers": 1,
            "threads": 1,
            "device": "cpu",
            "deterministic": True,
        },
    }


CONFIGURATIONS = {"pretrain": configuration, "finetune": finetuning}
COMMANDS = {"pretrain": ("pretrain",), "finetune": ("finetune", "segmentation")}


def start(log: Path, *arguments: object) -> int:
    """Run `vitp` in a process of its own and return its id; a fork saves the seconds of the imports."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = run_cli([str(argument) for argument in arguments])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait(process: int, until: Callable[[], bool] = lambda: False) -> int | None:
    """Return the exit code of a process, None when something else happened first."""
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if until():
            return None
        time.sleep(0.0003)


def done(log: Path, *arguments: object) -> None:
    """Run `vitp` and insist that it succeeds."""
    code = wait(start(log, *arguments))
    if code != 0:
        raise SystemExit(f"vitp {' '.join(map(str, arguments))} exited with {code}:\n{log.read_text()}")


def hidden(folder: Path, end: str) -> list[str]:
    """Return the names of hidden entries with an end; none where there is no folder."""
    with contextlib.suppress(OSError):
        names = [path.name for path in folder.iterdir()]
        return [name for name in names if name.startswith(".") and name.endswith(end)]
    return []


def moment(mode: str, run: Path, rng: random.Random, seconds: float) -> Callable[[], bool]:
    """Return what says that the time for a kill has come."""
    if mode == "any":
        deadline = time.monotonic() + rng.uniform(0, seconds)
        return lambda: time.monotonic() > deadline
    folder = run / "checkpoints"
    end = ".old" if mode == "removing" else ".tmp"
    if mode == "model":
        return lambda: any(name.startswith(".model") for name in hidden(run, ".tmp"))
    seen: set[str] = set()
    wanted = rng.randint(1, 3)

    def come() -> bool:
        seen.update(hidden(folder, end))
        return len(seen) >= wanted

    return come


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def look(run: Path, mode: str, problems: list[str]) -> Kill:
    """Read all that is visible after a kill."""
    step, one = 0, 0
    for path in checkpoint.checkpoints(run):
        try:
            state = checkpoint.read_state(path)
            for part in ("model", "optimizer"):
                load_tensors(path / f"{part}.safetensors")
            step, one = state.step, size_of(path)
            if path != checkpoint.folder(run, step):
                problems.append(f"{path.name} holds step {step}")
        except Exception as error:
            problems.append(f"{path.name} is not whole: {error}")
    total = size_of(run / "checkpoints") if (run / "checkpoints").is_dir() else 0
    # Those that are kept, one that is being written, one that is being removed.
    if one and total > (KEEP_LAST + 2) * one:
        problems.append(f"{total} bytes of checkpoints where one has {one}")
    leftovers = [path for path in run.rglob(".*") if path.parent in (run, run / "checkpoints")]
    return Kill(mode, step, len(leftovers), total)


def differences(run: Path, straight: Path, steps: int) -> list[str]:
    """Return what is not bit-identical at the end of two runs."""
    found = []
    files = [f"checkpoints/step_{steps:08d}/{part}.safetensors" for part in ("model", "optimizer")]
    for file in ("model/model.safetensors", *files):
        ours, theirs = load_tensors(run / file), load_tensors(straight / file)
        if ours.keys() != theirs.keys():
            found.append(f"{file} holds other tensors")
            continue
        found += [f"{file}: {name}" for name, t in ours.items() if not torch.equal(t, theirs[name])]
    curves = []
    for folder in (run, straight):
        rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        curves.append([(row["step"], row.get("loss")) for row in rows])
    if curves[0] != curves[1]:
        found.append("the loss curves differ")
    # What `vitp finetune` says of its run, the chosen step included.
    for name in ("validation.json", "scores.json"):
        texts = [
            (folder / name).read_text() if (folder / name).is_file() else "" for folder in (run, straight)
        ]
        if texts[0] != texts[1]:
            found.append(f"{name} differs")
    return found + [f"{path.name} is left" for path in run.rglob(".*")]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--command", choices=list(COMMANDS), default="pretrain")
    parser.add_argument("--json", type=Path, help="Where the figures go; benchmarks/results by default.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill_nine_") as name:
        figures = torment(Path(name), arguments.kills, arguments.seed, arguments.steps, arguments.command)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))
    else:
        save("kill_nine" if arguments.command == "pretrain" else "kill_nine_finetune", figures)
    return 1 if figures["problems"] else 0


def torment(folder: Path, kills: int, seed: int, steps: int, command: str) -> dict[str, Any]:
    """Kill until there were enough kills, and every run has ended after all."""
    rng, log = random.Random(seed), folder / "log.txt"
    scenes, data, config = folder / "scenes", folder / "data", folder / "run.yaml"
    done(log, "data", "scenes", "port", "--layout", "masks", "--count", 40, "--size", 48, "--out", scenes)
    done(log, "data", "compile", scenes, "--out", data, "--format", "auto")
    config.write_text(yaml.safe_dump(CONFIGURATIONS[command](data, steps)))
    began = time.monotonic()
    done(log, *COMMANDS[command], config, "--out", folder / "straight")
    seconds = time.monotonic() - began
    made: list[Kill] = []
    problems: list[str] = []
    runs = 0
    while len(made) < kills:
        run = folder / f"run{runs}"
        runs += 1
        problems += _one_run(run, (COMMANDS[command], config), log, made, kills, rng, seconds)
        problems += [f"run {runs}: {what}" for what in differences(run, folder / "straight", steps)]
    whole = size_of(checkpoint.folder(folder / "straight", steps))
    return {
        "kills": [asdict(kill) for kill in made],
        "runs": runs,
        "command": command,
        "steps": steps,
        "seed": seed,
        "keep_last": KEEP_LAST,
        "bytes_of_a_checkpoint": whole,
        "most_bytes_of_checkpoints": max(kill.checkpoint_bytes for kill in made),
        "bit_identical": not problems,
        "problems": problems,
    }


def _one_run(
    run: Path,
    job: tuple[tuple[str, ...], Path],
    log: Path,
    made: list[Kill],
    kills: int,
    rng: random.Random,
    seconds: float,
) -> list[str]:
    """Start a run again until it ends, killing it as long as kills are left; return what went wrong."""
    found: list[str] = []
    command, config = job
    while True:
        again = ("--resume",) if (run / "config.yaml").is_file() else (config,)
        process = start(log, *command, *again, "--out", run)
        if len(made) >= kills:
            code = wait(process)
        else:
            mode = rng.choice(MODES)
            code = wait(process, moment(mode, run, rng, seconds / 2))
            if code is None:
                time.sleep(rng.uniform(0, 0.004) if mode != "any" else 0)
                os.kill(process, signal.SIGKILL)
                code = wait(process)
                if code == -signal.SIGKILL:
                    made.append(look(run, mode, found))
                    print(f"kill {len(made)}: {made[-1]}", flush=True)
                    continue
        if code != 0:
            found.append(f"exited with {code}: {log.read_text()[-500:]}")
        return found


if __name__ == "__main__":
    sys.exit(main())
