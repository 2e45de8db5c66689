"""Two steps of a recipe with a model of a few thousand parameters: does the configuration fit the data at all?

Everything is as in the real run (task, head, augmentation, schedule, mixture, dropping, packing), only small: a dry run
takes seconds on a CPU and finds a wrong folder, a class that is missing, or an image that can't be read, before GPUs
are rented.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vitp.core.config import make_config
from vitp.data.splits import subset
from vitp.engine.config import LogSettings
from vitp.metrics.results import Scores
from vitp.models.compute import ComputeSettings
from vitp.models.language import micro_qwen2
from vitp.models.vision import VisionSettings
from vitp.models.vlm import VLMSettings
from vitp.runs.assemble import train_parts
from vitp.runs.finetune import FinetuneConfig, build_run
from vitp.runs.pretrain import PretrainConfig, build
from vitp.tasks.base import InputSize

_SIDE = 64
"""Pixels of a downstream image: four patches of 16 px on a side."""
_TILE = 32
"""Pixels of a pretraining tile."""
_STEPS = 2
_BATCH = 4


@dataclass(frozen=True)
class DryRun:
    """Findings of a dry run.

    Attributes:
        loss: Loss of the last step.
        train, test: Records or images that the whole run would learn from and be tested on.
        scores: On a few test images, of a model that knows nothing; None for pretraining.
    """

    loss: float
    train: int
    test: int
    scores: Scores | None = None


def small_pretraining(config: PretrainConfig) -> PretrainConfig:
    """Return the run with a tiny model from scratch and two steps."""
    vlm = VLMSettings(
        vision=VisionSettings(
            arguments={"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}, image_size=_TILE
        ),
        language=micro_qwen2(width=32, layers=2, heads=4, kv_heads=2, mlp=64),
        shuffle=2,
        template="micro",
    )
    model = config.model.model_copy(
        update={"init": "scratch", "scratch": vlm, "vocabulary": 512, "tokenizer": None}
    )
    data = config.data.model_copy(update={"global_batch": _BATCH})
    return config.model_copy(
        update={
            "model": model,
            "data": data,
            "compute": ComputeSettings(),
            "train": _small(config.train),
            "optim": _brief(config.optim),
            "log": LogSettings(trackers=()),
        }
    )


def small_finetune(config: FinetuneConfig) -> FinetuneConfig:
    """Return the run with a tiny backbone, small images and two steps."""
    backbone = {
        **config.backbone.model_dump(),
        "init": "random",
        "vision": {
            "arguments": {"embed_dim": 32, "depth": 4, "num_heads": 2, "patch_size": 16},
            "image_size": _SIDE,
        },
        "image_size": _SIDE,
        "patch_size": None,
    }
    neck = {**config.neck.options, "parts": 4, "heads": 2, "prior_width": 8}
    resize = config.data.resize
    if resize is not None and resize.mode != "none":
        resize = resize.model_copy(update={"size": _SIDE})
    data = config.data.model_copy(
        update={
            "resize": resize,
            "crop": _SIDE if config.data.crop else None,
            "global_batch": _BATCH,
            "max_val_images": 2,
        }
    )
    test = config.test.model_copy(
        update={
            "resize": InputSize(mode="fixed", size=_SIDE),
            "window": None,
            "scales": (1.0,),
            "batch_size": 2,
        }
    )
    train = _small(config.train).model_copy(update={"epochs": None, "val_every": None})
    values = {
        **config.model_dump(),
        "backbone": backbone,
        "neck": {"kind": config.neck.kind, "options": neck},
        "head": _small_head(config),
        "data": data.model_dump(),
        "optim": _brief(config.optim).model_dump(),
        "train": train.model_dump(),
        "log": {"trackers": []},
        "test": test.model_dump(),
    }
    return make_config(FinetuneConfig, values, where="dry run")


def _small(train: Any) -> Any:
    return train.model_copy(
        update={
            "steps": _STEPS,
            "micro_batches": 1,
            "batch": "fixed",
            "num_workers": 0,
            "log_every": 1,
            "save_every": None,
            "patience": None,
        }
    )


def _brief(optim: Any) -> Any:
    """Two steps of a warm-up of hundreds would move nothing, and a tower that doesn't move stops a run."""
    return optim.model_copy(update={"lr": 1e-3, "warmup_steps": 0})


def _small_head(config: FinetuneConfig) -> dict[str, Any]:
    head: dict[str, Any] = {**config.head, "width": 16}
    if config.task in ("detection", "instance", "oriented"):
        head["box"] = {**head.get("box", {}), "hidden": 32, "samples": 32}
        head["proposals"] = {**head.get("proposals", {}), "keep_before": [60, 60], "keep": [60, 60]}
    if config.task == "instance":
        head["mask"] = {**head.get("mask", {}), "layers": 1, "width": 16}
    return head


def dry_run(config: PretrainConfig | FinetuneConfig, out: Path, console: Console | None = None) -> DryRun:
    """Make two steps, and score a few test images of a downstream run.

    Args:
        config: The real run.
        out: Folder for what the two steps leave; an earlier dry run is replaced.
        console: Where progress is printed.

    Raises:
        VitpError: What the real run would stop at.
    """
    shutil.rmtree(out, ignore_errors=True)
    return _DRY_RUNS[type(config)](config, out, console)


def _pretraining(config: PretrainConfig, out: Path, console: Console | None) -> DryRun:
    run = build(small_pretraining(config))
    result = train_parts(replace(run.parts(), sets=None), out, console=console)
    return DryRun(result.loss, sum(one["records"] for one in run.sets), 0)


def _finetuning(config: FinetuneConfig, out: Path, console: Console | None) -> DryRun:
    run = build_run(small_finetune(config))
    result = train_parts(run.parts(), out, console=console)
    test = run.splits["test"]
    scores = run.model.evaluate(subset(test, 2), run.test)
    return DryRun(result.loss, len(run.splits["train"]), len(test), scores)


_DRY_RUNS: dict[type, Callable[[Any, Path, Console | None], DryRun]] = {
    PretrainConfig: _pretraining,
    FinetuneConfig: _finetuning,
}
