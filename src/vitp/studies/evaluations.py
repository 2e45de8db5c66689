"""The work of evaluation cells: frozen probes, finetunings on few or all labels, robustness of what was finetuned."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitp.studies.pretraining import RUN
from vitp.studies.process import Context, resumable
from vitp.studies.sources import folder_of

FINETUNED = f"{RUN}/model"
TASK_NAMES = {"presence": "classification"}
"""Downstream tasks of a study that `vitp finetune` calls otherwise."""


def probe(context: Context) -> Mapping[str, Any]:
    """Probe a frozen backbone. With `development` the validation images stand for the test images.

    Settings: `labels`, `draws`, `images`, `development`. Needs: `data`, `backbone`.
    """
    from vitp.checkpoints.loading import load_backbone
    from vitp.data.splits import development_splits, label_count, splits_of
    from vitp.evaluation.probes import run_probes
    from vitp.tasks.data import open_labelled

    settings = context.cell.settings
    labelled = open_labelled(folder_of(context.inputs["data"]), "vitp")
    splits = development_splits(labelled) if settings["development"] else splits_of(labelled)
    there = min(len(splits["train"]), settings["images"])
    labels = settings["labels"]
    table = run_probes(
        load_backbone(context.inputs["backbone"].folder / RUN),
        splits,
        seeds=tuple(range(settings["draws"])),
        labels_per_seed=min(label_count(there, None), labels) if isinstance(labels, int) else labels,
        max_images=settings["images"],
        device=_device(),
    )
    return table.to_json()


def _device() -> str:
    from vitp.core.distributed import resolve_device

    return str(resolve_device("auto"))


def finetune_config(
    context: Context, root: Path, backbone: str, lr: float, labels: int | float | None
) -> Any:
    """Return the configuration of a finetuning cell around a backbone."""
    from vitp.core.config import make_config
    from vitp.runs.finetune import FinetuneConfig

    settings = context.cell.settings
    values = {
        "task": TASK_NAMES.get(settings["task"], settings["task"]),
        "seed": settings["seed"],
        "backbone": {"init": backbone},
        "neck": settings["neck"],
        "head": settings["head"],
        "data": {
            "root": str(root),
            "format": "vitp",
            "labels": labels,
            "global_batch": settings["batch_size"],
            # What is tried to choose a setting never sees a test image.
            "splits": {"test": "val"} if settings["development"] else {},
        },
        "optim": {
            "lr": lr,
            "weight_decay": 0.05,
            "warmup_ratio": 0.1,
            "layer_decay": settings["layer_decay"],
        },
        "train": {
            "steps": settings["steps"],
            "val_every": 0,
            "log_every": 50,
            "save_every": max(1, settings["steps"] // 2),
            "keep_last": 1,
            "num_workers": int(context.cell.places.get("workers", "0")),
            "threads": int(context.cell.places["threads"]) if context.cell.places.get("threads") else None,
        },
    }
    return make_config(FinetuneConfig, values, where=context.cell.name)


def finetune(context: Context) -> Mapping[str, Any]:
    """Finetune a backbone; return the scores on test images, or with `development` the one on validation images.

    Settings: `task`, `steps`, `batch_size`, `labels`, `lr`, `layer_decay`, `head`, `neck`, `seed`,
    `development`. Needs: `data`, `backbone`; `lr` (a choice of the rate).
    """
    from vitp.runs.finetune import run_finetune

    settings, inputs = context.cell.settings, context.inputs
    root = folder_of(inputs["data"])
    lr = inputs["lr"].values["chosen"] if "lr" in inputs else settings["lr"]
    labels = _labels_there(root, settings)
    run = context.folder / RUN
    config = finetune_config(context, root, str(inputs["backbone"].folder / RUN), lr, labels)
    result = run_finetune(config, run, resume=resumable(context, run, config))
    _clean(run, keep_model=FINETUNED in context.cell.keep)
    if settings["development"]:
        return {"lr": lr, "labels": labels, "validation": _finite(result.scores.score)}
    values = {name: _finite(value) for name, value in result.scores.values.items()}
    return {"lr": lr, "labels": labels, "values": values, "images": result.scores.images}


def _labels_there(root: Path, settings: Mapping[str, Any]) -> int | float | None:
    """Return the wanted number of labels, or all where there are fewer."""
    labels = settings["labels"]
    if not isinstance(labels, int):
        return labels
    from vitp.tasks.build import task_of
    from vitp.tasks.data import open_labelled, task_splits

    task = task_of(TASK_NAMES.get(settings["task"], settings["task"]))
    there = len(task_splits(open_labelled(root, "vitp"), task.labels(settings["head"]))["train"])
    return labels if labels < there else None


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _clean(run: Path, *, keep_model: bool) -> None:
    """Remove what nobody will read: hundreds of runs would fill the disk."""
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    if not keep_model:
        shutil.rmtree(run / "model", ignore_errors=True)


def robustness(context: Context) -> Mapping[str, Any]:
    """Score a finetuned model on corrupted test images; return clean, average, drop and each corruption's mean.

    Settings: `score`, `severities`, `max_images`, `seed`. Needs: `data`, `model`.
    """
    from vitp.evaluation.robustness import robustness_of_task
    from vitp.tasks.build import task_of
    from vitp.tasks.data import open_labelled, task_splits
    from vitp.tasks.model_folder import load_task

    settings = context.cell.settings
    model = load_task(context.inputs["model"].folder / RUN).to(_device())
    labelled = open_labelled(folder_of(context.inputs["data"]), "vitp")
    kind = task_of(model.name).labels(model.description["head"])
    result = robustness_of_task(
        model,
        task_splits(labelled, kind)["test"],
        severities=tuple(settings["severities"]),
        seed=settings["seed"],
        max_images=settings["max_images"],
    )
    score = settings["score"]
    values = {
        "clean": result.value(metric=score),
        "average": result.average(metric=score),
        "drop": result.drop(metric=score),
        **result.by_corruption(metric=score),
    }
    return {"values": {name: _finite(value) for name, value in values.items()}}
