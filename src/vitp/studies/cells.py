"""Work of the cells: pretraining runs, choices between them, probes, finetunings, robustness tests, and timing."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from vitp.checkpoints.description import Provenance
from vitp.checkpoints.export import write_backbone
from vitp.checkpoints.gguf import dequantised, packaged_digest, packaged_language
from vitp.checkpoints.loading import load_backbone, load_vlm, random_backbone
from vitp.checkpoints.swap import swap_language
from vitp.checkpoints.writing import save_vlm
from vitp.core.config import make_config
from vitp.core.distributed import resolve_device
from vitp.core.errors import ConfigError
from vitp.core.files import atomic_dir, or_null
from vitp.core.reading import read_json
from vitp.data.splits import development_splits, label_count, splits_of, subset
from vitp.evaluation.probe_table import MAIN_PROBES
from vitp.evaluation.probes import run_probes
from vitp.evaluation.robustness import robustness_of_task
from vitp.models.language import micro_qwen2
from vitp.models.vlm import VisionLanguageModel
from vitp.recipes.paradigms import PARADIGMS, ParadigmBudget, flops_per_image
from vitp.runs.finetune import FinetuneConfig, build_run, run_finetune
from vitp.runs.pretrain import PretrainConfig, build, run_pretraining
from vitp.studies.cost import STARTUP, TIMING, count_steps, seconds_a_step
from vitp.studies.process import Context, Work, resumable
from vitp.studies.sources import folder_of, provide_data
from vitp.tasks.build import task_of
from vitp.tasks.data import open_labelled, task_splits
from vitp.tasks.model_folder import load_task, stated_settings

RUN = "run"
MODEL_OF_RUN = f"{RUN}/model"
NOT_PRETRAINED = "none"
"""The paradigm of a backbone that is left as it is."""
TRAINED = "trained"
"""Weights of a packaged language model, beside "random"."""

_TASK_NAMES = {"presence": "classification"}
"""Downstream tasks of a study that `vitp finetune` calls otherwise."""
_OPTIMIZER = 1.2
"""A step with optimizer and logging over one without: rough, and better too high than too low."""


def pretrain_backbone(context: Context) -> Mapping[str, Any]:
    """Train one backbone into `run/`; return what it saw and what it cost.

    Settings: `paradigm`, `init` ("start" or "scratch"), `start` (what that is), `images`, `batch` (none: the
    paradigm's own times `batch_factor`), `lr`, `align_share`, `rates`, `seed`, `changes` (`key.key=value` over the
    run's configuration), `language` (sizes of a new language model, or which of a package, layers and weights).
    Needs: `data…`; `lr` (a choice of the rate); `equal` (a run whose floating-point operations are matched).
    """
    settings, inputs = context.cell.settings, context.inputs
    if settings["paradigm"] == NOT_PRETRAINED:
        return _write_untrained(context)
    lr = inputs["lr"].values["chosen"] if "lr" in inputs else settings.get("lr")
    images = int(settings["images"])
    if "equal" in inputs:
        # An image costs the same in a run of any length.
        config = run_config(context, images, lr)
        cost = flops_per_image(config)
        if not cost > 0:
            raise ConfigError("an image has no floating-point operations", where=context.cell.name)
        # A run has one step at the least, however dear its images are.
        images = max(int(config.data.global_batch), round(float(inputs["equal"].values["flops"]) / cost))
    config = run_config(context, images, lr)
    run = context.folder / RUN
    result = run_pretraining(config, run, resume=resumable(context, run, config))
    phases = []
    for steps, phase in phases_of(config):
        built = build(phase)
        phases.append((steps, count_steps(built.objective, built.source)))
    (run / "start_vision.safetensors").unlink(missing_ok=True)
    for leftover in (*(run / name for name in ("checkpoints", "align", "prior")), context.folder / "start"):
        shutil.rmtree(leftover, ignore_errors=True)
    if "packaged" in (settings.get("language") or {}):  # half a gigabyte of it is not asked for again
        _keep_backbone(context)
    evidence = run / "evidence.json"
    moved = read_json(evidence) if evidence.is_file() else {}
    return {
        "lr": config.optim.lr,
        "loss": result.loss,
        "steps": sum(steps for steps, _ in phases),
        "images": sum(steps * int(config.data.global_batch) for steps, _ in phases),
        "tokens": sum(steps * work.tokens for steps, work in phases),
        "flops": sum(steps * work.flops for steps, work in phases),
        "phases": [{"steps": steps, "step_flops": work.flops} for steps, work in phases],
        "evidence": {n: moved[n] for n in ("relative_change", "gradient_share", "cka") if n in moved},
    }


def run_config(context: Context, images: int, lr: float | None) -> PretrainConfig:
    """Return the configuration of a pretraining cell's run.

    Args:
        context: Of the cell.
        images: Images seen.
        lr: Peak learning rate; None: the paradigm's own.
    """
    settings, places = context.cell.settings, context.cell.places
    paradigm, start = PARADIGMS[settings["paradigm"]], places.get("start", "starter")
    folders = [folder_of(context.inputs[role]) for role in sorted(context.inputs) if role.startswith("data")]
    budget = ParadigmBudget(
        images=images,
        batch=settings.get("batch") or paradigm.batch * settings.get("batch_factor", 1),
        lr=lr,
        rates=tuple(settings["rates"]) if len(folders) > 1 else None,
        workers=int(places.get("workers", "1")),
        align_share=settings.get("align_share", 0.0),
        like=start,
    )
    init = "random" if settings["init"] == "scratch" else start
    if settings.get("language"):
        init = str(_with_new_language_model(context, init))
    config = paradigm.make(folders, init, budget, int(settings["seed"]))
    changes = list(settings.get("changes") or [])
    if places.get("threads"):
        changes.append(f"train.threads={places['threads']}")
    changes.append("log.trackers=[]")
    return make_config(type(config), config.model_dump(mode="json"), changes, where=context.cell.name)


def _with_new_language_model(context: Context, init: str) -> Path:
    """Return the folder of a model with the ViT of `init` and another language model.

    That is a random one of other sizes, or the first layers of a package's, with its weights or random ones.
    """
    folder, sizes = context.folder / "start", context.cell.settings["language"]
    # An interrupted attempt has made it already.
    if folder.is_dir():
        return folder
    before = load_vlm(init)
    if "packaged" in sizes:
        source = packaged_language(sizes["packaged"])
        if packaged_digest(source) != sizes["file"]:
            what = "is another release than the one that this cell is of"
            raise ConfigError(what, where=source.package, fix="plan the study anew")
        trained, seed = sizes["weights"] == TRAINED, int(context.cell.settings["seed"])
        swapped = swap_language(
            before, dequantised(source), layers=sizes["layers"], trained=trained, seed=seed
        )
        save_vlm(folder, swapped.vlm, swapped.chat)
        return folder
    language = micro_qwen2(**sizes)
    config = before.vlm.config.model_copy(update={"language": language})
    # Layers draw their weights from PyTorch's global numbers, which are put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(context.cell.settings["seed"]))
        vlm = VisionLanguageModel(config, vocabulary=before.vlm.language.config.vocab_size)
    vlm.vision.load_state_dict(before.vlm.vision.state_dict())
    save_vlm(folder, vlm, before.chat)
    return folder


def _keep_backbone(context: Context) -> None:
    """Leave the ViT alone of a run's model."""
    tower = load_backbone(context.folder / RUN)
    with atomic_dir(context.folder / MODEL_OF_RUN) as temporary:
        write_backbone(temporary, tower, Provenance(source=context.cell.name), name="model")


def _write_untrained(context: Context) -> dict[str, Any]:
    """Write the ViT as it is: the start's, or one with random weights."""
    settings = context.cell.settings
    tower, source = load_backbone(context.cell.places.get("start", "starter")), "the start"
    if settings["init"] == "scratch":
        tower, source = random_backbone(tower, int(settings["seed"])), "random weights"
    with atomic_dir(context.folder / MODEL_OF_RUN) as temporary:
        write_backbone(temporary, tower, Provenance(source=source), name="model")
    return {"lr": None, "loss": None, "images": 0, "tokens": 0, "flops": 0.0, "steps": 0, "evidence": {}}


def phases_of(config: Any) -> list[tuple[int, Any]]:
    """Return (steps, configuration) of the phases of a run that look at images, and of the run proper."""
    phases = [
        (phase.steps, phase.prepare(config)) for phase in config.objective.phases() if phase.part is None
    ]
    return [*phases, (config.train.steps, config)]


def choose_value(context: Context) -> Mapping[str, Any]:
    """Return the value whose run scored best on validation images.

    Settings: `values` (role → value that was tried), `measure` ("probes" or "validation"). Needs: one run for each
    role; those that failed count as tried and lost.
    """
    tried = []
    for role, value in context.cell.settings["values"].items():
        needed = context.inputs.get(role)
        score = None if needed is None else development_score(needed.values)
        tried.append(
            {"value": value, "score": score, **({} if needed is None else _resampled(needed.values))}
        )
    known = [row for row in tried if row["score"] is not None]
    if not known:
        raise ConfigError("no run has a score on validation images", where=context.cell.name)
    best, *others = sorted(known, key=lambda row: -row["score"])
    found = {"chosen": best["value"], "tried": tried}
    return found | (_lead(best, others[0]) if others else {})


def _resampled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `without` (the score without each fifth of the validation images), or `draws` (that of each draw)."""
    if "validation" in values:
        return {"without": values["without"]} if values.get("without") else {}
    rows = [
        row["values"]
        for row in values["rows"]
        if (row["task"], row["metric"]) in MAIN_PROBES
        if "values" in row
    ]
    rows = [row for row in rows if all(map(math.isfinite, row))]
    return {"draws": [fmean(draw) for draw in zip(*rows, strict=True)]} if rows and len(rows[0]) > 1 else {}


def _lead(best: Mapping[str, Any], next_best: Mapping[str, Any]) -> dict[str, float]:
    """Return by how much a value is ahead of the next one, and the standard error of that where it is known.

    Of fifths that are left out in turn it is the jackknife's, of draws that of their mean.
    """
    found = {"lead": best["score"] - next_best["score"]}
    for name in ("without", "draws"):
        if name in best and name in next_best and len(best[name]) == len(next_best[name]):
            parts = [one - other for one, other in zip(best[name], next_best[name], strict=True)]
            n, mean = len(parts), fmean(parts)
            squares = sum((part - mean) ** 2 for part in parts)
            # Variance of the jackknife: squares · (n − 1) / n; of a mean of draws: squares / (n − 1) / n.
            found["error"] = math.sqrt(squares * (n - 1) / n if name == "without" else squares / (n - 1) / n)
    return found


def development_score(values: Mapping[str, Any]) -> float | None:
    """Return the number that settings are chosen by: of a finetuning, or the mean of a probing's main measures."""
    if "validation" in values:
        return or_null(values["validation"])
    means = [row["mean"] for row in values["rows"] if (row["task"], row["metric"]) in MAIN_PROBES]
    means = [mean for mean in means if math.isfinite(mean)]
    return sum(means) / len(means) if means else None


def probe_backbone(context: Context) -> Mapping[str, Any]:
    """Probe a frozen backbone. With `development` the validation images stand for the test images.

    Settings: `labels`, `draws`, `images`, `development`. Needs: `data`, `backbone`.
    """
    settings = context.cell.settings
    labelled = open_labelled(folder_of(context.inputs["data"]), "vitp")
    splits = development_splits(labelled) if settings["development"] else splits_of(labelled)
    there = min(len(splits["train"]), settings["images"])
    labels = settings["labels"]
    table = run_probes(
        load_backbone(context.inputs["backbone"].folder / RUN, data=labelled.channels),
        splits,
        seeds=tuple(range(settings["draws"])),
        labels_per_seed=min(label_count(there, None), labels) if isinstance(labels, int) else labels,
        max_images=settings["images"],
        device=str(resolve_device("auto")),
    )
    return table.to_json()


def cell_finetune_config(
    context: Context, root: Path, backbone: str, lr: float, labels: int | float | None
) -> FinetuneConfig:
    """Return the configuration of a finetuning cell around a backbone."""
    settings, places = context.cell.settings, context.cell.places
    values = {
        "task": _TASK_NAMES.get(settings["task"], settings["task"]),
        "seed": settings["seed"],
        "backbone": {"init": backbone},
        "neck": settings["neck"],
        "head": settings["head"],
        "data": {
            "root": str(root),
            "format": "vitp",
            "sizes": "fixed",
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
            "num_workers": int(places.get("workers", "0")),
            "threads": int(places["threads"]) if places.get("threads") else None,
        },
    }
    return make_config(FinetuneConfig, values, where=context.cell.name)


def finetune_backbone(context: Context) -> Mapping[str, Any]:
    """Finetune a backbone; return the scores on test images, or with `development` the one on validation images.

    Settings: `task`, `steps`, `batch_size`, `labels`, `lr`, `layer_decay`, `head`, `neck`, `seed`,
    `development`. Needs: `data`, `backbone`; `lr` (a choice of the rate).
    """
    settings, inputs = context.cell.settings, context.inputs
    root = folder_of(inputs["data"])
    lr = inputs["lr"].values["chosen"] if "lr" in inputs else settings["lr"]
    labels: int | float | None = settings["labels"]
    if isinstance(labels, int):
        # Where there are fewer labels than wanted, all are taken.
        task = task_of(_TASK_NAMES.get(settings["task"], settings["task"]))
        there = len(task_splits(open_labelled(root, "vitp"), task.labels(settings["head"]))["train"])
        labels = labels if labels < there else None
    run = context.folder / RUN
    config = cell_finetune_config(context, root, str(inputs["backbone"].folder / RUN), lr, labels)
    result = run_finetune(config, run, resume=resumable(context, run, config))
    without = _scores_without_fifths(run, root) if settings["development"] else []
    # Hundreds of runs would fill the disk with what nobody will read.
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    if MODEL_OF_RUN not in context.cell.keep:
        shutil.rmtree(run / "model", ignore_errors=True)
    if settings["development"]:
        return {"lr": lr, "labels": labels, "validation": or_null(result.scores.score), "without": without}
    values = {name: or_null(value) for name, value in result.scores.values.items()}
    return {"lr": lr, "labels": labels, "values": values, "images": result.scores.images}


_FIFTHS = 5


def _scores_without_fifths(run: Path, root: Path) -> list[float]:
    """Return a model's score on the validation images without each fifth of them; none where they are few."""
    model = load_task(run).to(str(resolve_device("auto")))
    images = task_splits(open_labelled(root, "vitp"), task_of(model.name).labels(model.description["head"]))[
        "val"
    ]
    count, found = len(images), []
    for part in range(_FIFTHS if count >= 2 * _FIFTHS else 0):
        left = [images.items[index] for index in range(count) if index % _FIFTHS != part]
        found.append(model.evaluate(replace(images, items=left), stated_settings(model.description)).score)
    return found if all(map(math.isfinite, found)) else []


def score_robustness(context: Context) -> Mapping[str, Any]:
    """Score a finetuned model on corrupted test images; return clean, average, drop and each corruption's mean.

    Settings: `score`, `severities`, `max_images`, `seed`. Needs: `data`, `model`.
    """
    settings = context.cell.settings
    model = load_task(context.inputs["model"].folder / RUN).to(str(resolve_device("auto")))
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
    return {"values": {name: or_null(value) for name, value in values.items()}}


def measure_pace(context: Context) -> Mapping[str, Any]:
    """Return seconds (and floating-point operations) a unit of the work that the settings describe."""
    measures = {"pretrain": _pretraining_pace, "finetune": _finetuning_pace}
    return measures.get(context.cell.settings["times"], _probing_pace)(context)


def _pretraining_pace(context: Context) -> dict[str, float]:
    config = run_config(context, int(context.cell.settings["images"]), context.cell.settings.get("lr"))
    images = seconds = flops = 0.0
    for steps, phase in phases_of(config):
        run = build(phase)
        of_step = seconds_a_step(run.objective, run.source, device=phase.train.device)
        # Its memory on a GPU is free for the next phase.
        run.objective.to("cpu")
        images += steps * config.data.global_batch
        seconds += steps * of_step
        flops += steps * count_steps(run.objective, run.source).flops
    shutil.rmtree(context.folder / "start", ignore_errors=True)
    return {"seconds": _OPTIMIZER * seconds / images, "fixed": STARTUP, "flops": flops / images}


def _finetuning_pace(context: Context) -> dict[str, float]:
    backbone = context.cell.places.get("start", "starter")
    config = cell_finetune_config(context, folder_of(context.inputs["data"]), backbone, 1e-4, None)
    run = build_run(config)
    of_step = seconds_a_step(run.model, run.source, device=config.train.device)
    few = subset(run.splits["val"], 16)
    began = time.monotonic()
    run.model.eval().evaluate(few, run.test)
    an_image = (time.monotonic() - began) / len(few)
    fixed = STARTUP + an_image * len(run.splits["test"])
    return {"seconds": _OPTIMIZER * of_step, "fixed": fixed, "flops": 0.0}


def _probing_pace(context: Context) -> dict[str, float]:
    settings = context.cell.settings
    labelled = open_labelled(folder_of(context.inputs["data"]), "vitp")
    tower = load_backbone(context.cell.places.get("start", "starter"), data=labelled.channels)
    most = min(64, settings["images"])
    began = time.monotonic()
    run_probes(tower, labelled, seeds=(0,), max_images=most)
    # Features cost by the image, fits by the draw; the small run says little about how the two share.
    spent = time.monotonic() - began
    seconds = spent * max(1.0, settings["images"] / most) * 0.4 * settings["draws"]
    return {"seconds": seconds, "fixed": 1.0, "flops": 0.0}


WORK: dict[str, Work] = {
    "data": provide_data,
    "pretrain": pretrain_backbone,
    "choose": choose_value,
    "probe": probe_backbone,
    "finetune": finetune_backbone,
    "robustness": score_robustness,
    TIMING: measure_pace,
}
"""Kind of cell → function that does its work."""

VERSIONS: dict[str, int] = dict.fromkeys(WORK, 1)
"""Raise a number when equal settings give another result than before: cells of that kind are done again."""
