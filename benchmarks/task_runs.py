"""Runs of all tasks on generated scenes, at any size: what the benchmarks of finetuning and prediction measure."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from common import save
from vitp.cli import run as run_cli
from vitp.core.distributed import resolve_device
from vitp.models.vision import VisionSettings
from vitp.runs.finetune import FinetuneConfig, FinetuneRun, build_run

LAYOUTS = {
    "classification": "folders",
    "segmentation": "masks",
    "change": "pairs",
    "detection": "coco",
    "instance": "coco",
    "oriented": "dota",
}
"""Task → layout of the scenes that it learns from."""

VISION = {
    "micro": VisionSettings(
        arguments={"embed_dim": 192, "depth": 6, "num_heads": 3, "patch_size": 8}, image_size=96
    ),
    "small": VisionSettings(
        arguments={"embed_dim": 384, "depth": 12, "num_heads": 6, "patch_size": 16}, image_size=224
    ),
    "full": VisionSettings(
        architecture="vit_intern300m_patch14_448", arguments={"patch_size": 16}, image_size=512
    ),
}
WIDTH = {"micro": 32, "small": 64, "full": 256}
"""Channels of necks and heads."""

Figures = Iterator[tuple[str, dict[str, Any]]]
"""Names and figures, as they are found."""


def scenes(folder: Path, task: str, side: int, count: int = 12) -> Path:
    """Return labelled port scenes of a task's layout.

    Raises:
        SystemExit: The command that makes them fails.
    """
    out = folder / LAYOUTS[task]
    if not out.exists():
        words = [
            "data",
            "scenes",
            "port",
            "--layout",
            LAYOUTS[task],
            "--count",
            count,
            "--size",
            side,
            "--out",
            out,
        ]
        if run_cli([str(word) for word in words]) != 0:
            raise SystemExit(f"no scenes for {task}")
    return out


def task_run(
    task: str, size: str, folder: Path, batch: int, compute: dict[str, Any] | None = None
) -> FinetuneRun:
    """Return model and batches of a task with random weights."""
    vision = VISION[size]
    side = vision.image_size
    values: dict[str, Any] = {
        "task": task,
        "backbone": {"init": "random", "vision": vision.model_dump()},
        "data": {
            "root": str(scenes(folder, task, side)),
            "resize": {"mode": "fixed", "size": side},
            "global_batch": batch,
        },
        "train": {"steps": 100},
        "compute": compute or {},
    }
    if task != "classification":
        values |= {"neck": {"options": {"channels": WIDTH[size]}}, "head": {"width": WIDTH[size]}}
    return build_run(FinetuneConfig.model_validate(values))


def task_parser(doc: str | None, name: str) -> argparse.ArgumentParser:
    """Return the options of a benchmark over tasks."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("tasks", nargs="*", help="Of these tasks only.")
    parser.add_argument("--size", default="full" if torch.cuda.is_available() else "micro", choices=VISION)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None, help=f"File; by default results/{name}.json.")
    return parser


def save_figures(
    name: str, wanted: argparse.Namespace, figures: Callable[[argparse.Namespace, Path], Figures]
) -> None:
    """Measure all that is wanted, with a folder for generated scenes, and save it."""
    device = str(resolve_device(wanted.device))
    with tempfile.TemporaryDirectory() as folder:
        found = dict(figures(wanted, Path(folder)))
    save(name, {"size": wanted.size, "batch": wanted.batch, "device": device, **found}, out=wanted.out)
