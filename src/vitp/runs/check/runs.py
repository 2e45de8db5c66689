"""Checks on short runs of a run's own configuration: resumed against uninterrupted, several ranks against one.

Each is a handful of steps in a temporary folder, through the same code as `vitp pretrain`.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from vitp.core.config import save_config
from vitp.core.reading import lines_of, read_text
from vitp.core.tensors import load_tensors
from vitp.engine import checkpoint
from vitp.engine.config import LogSettings
from vitp.runs.check.findings import CheckFinding, Difference, compare_curves, compare_tensors
from vitp.runs.pretrain import PretrainConfig, run_pretraining

_STEPS = 4
RANK_TOLERANCE = 1e-5
"""Relative, of the loss curve in fp32: sums over ranks are rounded in another order."""

WEIGHT_TOLERANCE = 1e-4
"""Relative, of the weights after these steps, where sums are rounded in another order."""


def short_run(config: PretrainConfig, *, batch: int, device: str) -> PretrainConfig:
    """Return a few deterministic steps of a run: its data, its model, its objective, nothing random but the batches.

    Args:
        config: The run's.
        batch: Records a step.
        device: Where to train.
    """
    train = config.train.model_copy(
        update={
            "steps": _STEPS,
            "micro_batches": 1,
            "precision": "fp32",
            "num_workers": 0,
            "save_every": None,
            "keep_last": 2,
            "log_every": 1,
            "patience": None,
            "must_train": (),
            "device": device,
            "deterministic": device == "cpu",
        }
    )
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"drop_path": 0.0}),
            "data": config.data.model_copy(update={"global_batch": batch}),
            "objective": config.objective.alone(),
            "optim": config.optim.model_copy(update={"warmup_steps": 0, "schedule": "constant"}),
            "probe": config.probe.model_copy(update={"data": None}),
            "train": train,
            "log": LogSettings(trackers=()),
        }
    )


def resumed_equals_uninterrupted(config: PretrainConfig, folder: Path) -> CheckFinding:
    """Half of the steps, then the rest from the checkpoint, against all of them at once: bit for bit on a CPU."""
    half = config.model_copy(update={"train": config.train.model_copy(update={"save_every": _STEPS // 2})})
    whole = _train(half, folder / "whole")
    _cut_off(folder / "whole", folder / "resumed", _STEPS // 2)
    resumed = _train(half, folder / "resumed", resume=True)
    exact = config.train.deterministic
    tolerance = 0.0 if exact else WEIGHT_TOLERANCE
    note = "bit for bit" if exact else "not deterministic on this device"
    return CheckFinding(f"resumed ≡ uninterrupted ({note})", compare_tensors(resumed, whole, tolerance))


def ranks_equal_one(config: PretrainConfig, folder: Path, ranks: int) -> CheckFinding:
    """The same steps on several processes, each with its share of the records."""
    name = f"{ranks} ranks ≡ 1 rank"
    if config.train.device != "cpu" and torch.cuda.device_count() < ranks:
        return CheckFinding(name, skipped=f"there are {torch.cuda.device_count()} GPUs")
    one = _train(config, folder / "one")
    file = folder / "ranks.yaml"
    save_config(config, file)
    several = folder / "several"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)),
            *("-m", "vitp", "pretrain", str(file), "--out", str(several)),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        reason = lines[0] if lines else f"torchrun ended with {done.returncode}"
        return CheckFinding(name, (Difference(reason, float("inf"), 0.0),))
    return CheckFinding(
        name,
        (
            *compare_curves(_curve(several), _curve(folder / "one"), RANK_TOLERANCE),
            *compare_tensors(_weights(several), one, WEIGHT_TOLERANCE),
        ),
    )


def _train(config: PretrainConfig, run_dir: Path, *, resume: bool = False) -> Mapping[str, Tensor]:
    run_pretraining(config, run_dir, resume=resume, console=Console(file=io.StringIO()))
    return _weights(run_dir)


def _cut_off(whole: Path, cut: Path, step: int) -> None:
    """Make the folder that a run leaves which was killed right after the checkpoint of a step."""
    ignore = shutil.ignore_patterns("model", checkpoint.folder(whole, _STEPS).name)
    shutil.copytree(whole, cut, ignore=ignore)
    if checkpoint.latest(cut) != checkpoint.folder(cut, step):
        raise RuntimeError(f"{cut} has no checkpoint of step {step}")


def _weights(run_dir: Path) -> dict[str, Tensor]:
    return load_tensors(run_dir / "model" / "model.safetensors")


def _curve(run_dir: Path) -> list[float]:
    rows = lines_of(read_text(run_dir / "metrics.jsonl"))
    return [row["loss"] for row in map(json.loads, rows) if "loss" in row]
