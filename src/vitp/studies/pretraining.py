"""The work of pretraining cells: one run of any paradigm, and the choice between runs of several rates."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitp.core.errors import ConfigError
from vitp.core.reading import parse_json, read_text
from vitp.studies.budget import StepWork, count_steps, seconds_a_step
from vitp.studies.process import Context, Input, resumable
from vitp.studies.sources import folder_of

RUN = "run"
MODEL = f"{RUN}/model"
NONE = "none"
"""The paradigm of a backbone that is left as it is."""


def pretrain(context: Context) -> Mapping[str, Any]:
    """Train one backbone into `run/`; return what it saw and what it cost.

    Settings: `paradigm`, `init` ("start" or "scratch"), `start` (what that is), `images`, `batch` (none: the paradigm's own
    times `batch_factor`), `lr`, `align_share`, `rates`, `seed`, `changes` (`key.key=value` over the run's configuration),
    `language` (sizes of a new language model).
    Needs: `data…`; `lr` (a choice of the rate); `equal` (a run whose floating-point operations are matched).
    """
    settings = context.cell.settings
    if settings["paradigm"] == NONE:
        return _untrained(context)
    from vitp.runs.pretrain import run_pretraining

    lr = settings.get("lr")
    if "lr" in context.inputs:
        lr = context.inputs["lr"].values["chosen"]
    images = int(settings["images"])
    if "equal" in context.inputs:
        images = _equal_images(context, lr)
    config = run_config(context, images, lr)
    run = context.folder / RUN
    result = run_pretraining(config, run, resume=resumable(context, run, config))
    phases = [(steps, _count(phase)) for steps, phase in phases_of(config)]
    (run / "start_vision.safetensors").unlink(missing_ok=True)
    for leftover in (*(run / name for name in ("checkpoints", "align", "prior")), context.folder / "start"):
        shutil.rmtree(leftover, ignore_errors=True)
    return {"lr": config.optim.lr, "loss": result.loss, **_spent(config, phases), "evidence": _moved(run)}


def run_config(context: Context, images: int, lr: float | None) -> Any:
    """Return the configuration of the run: a `PretrainConfig`."""
    from vitp.core.config import make_config
    from vitp.recipes.paradigms import PARADIGMS, ParadigmBudget

    settings = context.cell.settings
    paradigm = PARADIGMS[settings["paradigm"]]
    folders = _folders(context.inputs)
    budget = ParadigmBudget(
        images=images,
        batch=settings.get("batch") or paradigm.batch * settings.get("batch_factor", 1),
        lr=lr,
        rates=tuple(settings["rates"]) if len(folders) > 1 else None,
        workers=int(context.cell.places.get("workers", "1")),
        align_share=settings.get("align_share", 0.0),
        like=_start(context),
    )
    init = "random" if settings["init"] == "scratch" else _start(context)
    if settings.get("language"):
        init = str(_with_new_language_model(context, init))
    config = paradigm.make(folders, init, budget, int(settings["seed"]))
    changes = list(settings.get("changes") or [])
    threads = context.cell.places.get("threads")
    if threads:
        changes.append(f"train.threads={threads}")
    changes.append("train.tensorboard=false")
    return make_config(type(config), config.model_dump(mode="json"), changes, where=context.cell.name)


def _start(context: Context) -> str:
    return context.cell.places.get("start", "starter")


def _folders(inputs: Mapping[str, Input]) -> list[Path]:
    return [folder_of(inputs[role]) for role in sorted(inputs) if role.startswith("data")]


def _with_new_language_model(context: Context, init: str) -> Path:
    """Return the folder of a model with the ViT of `init` and a random language model of other sizes."""
    import torch

    from vitp.checkpoints.loading import load_vlm
    from vitp.checkpoints.writing import save_vlm
    from vitp.models.language import micro_qwen2
    from vitp.models.vlm import VisionLanguageModel

    folder = context.folder / "start"
    if folder.is_dir():
        return folder
    before = load_vlm(init)
    language = micro_qwen2(**context.cell.settings["language"])
    config = before.vlm.config.model_copy(update={"language": language})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(context.cell.settings["seed"]))
        vlm = VisionLanguageModel(config, vocabulary=before.vlm.language.config.vocab_size)
    vlm.vision.load_state_dict(before.vlm.vision.state_dict())
    save_vlm(folder, vlm, before.chat)
    return folder


def _untrained(context: Context) -> dict[str, Any]:
    """Write the ViT as it is: the starter's, or one with random weights."""
    from vitp.checkpoints.description import Provenance
    from vitp.checkpoints.export import write_backbone
    from vitp.checkpoints.loading import load_backbone, random_backbone
    from vitp.core.files import atomic_dir

    settings = context.cell.settings
    start = load_backbone(_start(context))
    if settings["init"] == "scratch":
        tower, source = random_backbone(start, int(settings["seed"])), "random weights"
    else:
        tower, source = start, "the start"
    with atomic_dir(context.folder / MODEL) as temporary:
        write_backbone(temporary, tower, Provenance(source=source), name="model")
    return {"lr": None, "loss": None, "images": 0, "tokens": 0, "flops": 0.0, "steps": 0, "evidence": {}}


def _equal_images(context: Context, lr: float | None) -> int:
    """Return how many images take as many floating-point operations as the run that is matched took."""
    from vitp.recipes.paradigms import flops_per_image

    target = float(context.inputs["equal"].values["flops"])
    # An image costs the same in a run of any length.
    config = run_config(context, int(context.cell.settings["images"]), lr)
    cost = flops_per_image(config)
    if not cost > 0:
        raise ConfigError("an image has no floating-point operations", where=context.cell.name)
    return max(_global_batch(config), round(target / cost))


def _global_batch(config: Any) -> int:
    return int(config.data.global_batch)


def phases_of(config: Any) -> list[tuple[int, Any]]:
    """Return (steps, configuration) of the phases of a run that look at images, and of the run proper."""
    phases = [
        (phase.steps, phase.prepare(config)) for phase in config.objective.phases() if phase.part is None
    ]
    return [*phases, (config.train.steps, config)]


def _count(config: Any) -> StepWork:
    from vitp.runs.pretrain import build

    run = build(config)
    return count_steps(run.objective, run.source)


def measured_phase(config: Any) -> tuple[StepWork, float]:
    """Return the work of a step and its seconds, of a run that need not have begun."""
    from vitp.runs.pretrain import build

    run = build(config)
    seconds = seconds_a_step(run.objective, run.source, device=config.train.device)
    run.objective.to("cpu")
    return count_steps(run.objective, run.source), seconds


def _spent(config: Any, phases: Sequence[tuple[int, StepWork]]) -> dict[str, Any]:
    return {
        "steps": sum(steps for steps, _ in phases),
        "images": sum(steps * _global_batch(config) for steps, _ in phases),
        "tokens": sum(steps * work.tokens for steps, work in phases),
        "flops": sum(steps * work.flops for steps, work in phases),
        "phases": [{"steps": steps, "step_flops": work.flops} for steps, work in phases],
    }


def _moved(run: Path) -> dict[str, Any]:
    """Return how far the vision tower moved."""
    file = run / "evidence.json"
    if not file.is_file():
        return {}
    found = parse_json(read_text(file))
    return {name: found[name] for name in ("relative_change", "gradient_share", "cka") if name in found}


def choose(context: Context) -> Mapping[str, Any]:
    """Return the value whose run scored best on validation images.

    Settings: `values` (role → value that was tried), `measure` ("probes" or "validation"). Needs: one run for each role;
    those that failed count as tried and lost.
    """
    tried = []
    for role, value in context.cell.settings["values"].items():
        needed = context.inputs.get(role)
        score = None if needed is None else development_score(needed.values)
        tried.append({"value": value, "score": score})
    known = [row for row in tried if row["score"] is not None]
    if not known:
        raise ConfigError("no run has a score on validation images", where=context.cell.name)
    best = max(known, key=lambda row: row["score"])
    return {"chosen": best["value"], "tried": tried}


def development_score(values: Mapping[str, Any]) -> float | None:
    """Return the number that settings are chosen by: of a finetuning, or the mean of a probing's main measures."""
    if "validation" in values:
        score = values["validation"]
        return None if score is None or not math.isfinite(score) else float(score)
    means = [row["mean"] for row in values["rows"] if (row["task"], row["metric"]) in MAIN_PROBES]
    means = [mean for mean in means if math.isfinite(mean)]
    return sum(means) / len(means) if means else None


MAIN_PROBES = (
    ("patches linear", "patch mIoU"),
    ("scene linear", "accuracy"),
    ("presence linear", "mAP"),
)
"""One measure of each kind of probe, on 0..1: what a rate is chosen by."""
