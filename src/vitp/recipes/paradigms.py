"""Every paradigm of the paper's figure 2 on the same folders, from the same ViT, under one budget, at micro scale.

Command: `vitp pretrain --objective mae --data DATA --out RUN` for one; `vitp study paradigms` compares them all.
Hardware and time: two CPU cores; about as long as a ViTP run over as many images, self-distillation about four times.

A budget gives each run equally many images. Their cost differs: `flops_per_image` tells it of any of the runs, and a
budget of `images = flops / flops_per_image` makes the costs equal instead. Batches and learning rates below are where
to begin a sweep, not the result of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp.checkpoints.loading import load_backbone, load_vlm, vlm_folder
from vitp.core.config import load_config, make_config
from vitp.core.errors import ConfigError, did_you_mean
from vitp.core.files import to_json
from vitp.objectives import SETTINGS, Default
from vitp.objectives.joint import JointSettings
from vitp.objectives.preserving import preserving
from vitp.recipes.micro import Budget, continued_from_starter
from vitp.runs.pretrain import PretrainConfig, build

Folders = Sequence[Path]


@dataclass(frozen=True)
class ParadigmBudget:
    """Limits of a run.

    Attributes:
        images: Images seen, repeats counted; however many views a paradigm makes of each.
        batch: Images a step; None: the paradigm's own.
        lr: Peak learning rate; None: the paradigm's own.
        rates: Sampling rate of each folder.
        workers: Processes that prepare batches.
        align_share: Share of `images` that ViTP spends on its first phase, with the ViT frozen.
        vrl_ratio: Image tokens that ViTP drops.
        like: Model that lends its sizes (and tokenizer) to a run from scratch.
    """

    images: int
    batch: int | None = None
    lr: float | None = None
    rates: tuple[float, ...] | None = None
    workers: int = 1
    align_share: float = 0.2
    vrl_ratio: float = 0.75
    like: str = "starter"


@dataclass(frozen=True)
class Paradigm:
    """A way of pretraining.

    Attributes:
        title: Title in tables.
        labels: Which label information it uses.
        batch: Images a step where a budget says nothing.
        lr: Peak learning rate where a budget says nothing.
        make: (folders, init, budget, seed) → configuration; `init` is "starter", "random", or a folder with a backbone
            (ViTP: with a vision-language model).
    """

    title: str
    labels: str
    batch: int
    lr: float
    make: Callable[[Folders, str, ParadigmBudget, int], PretrainConfig]


def _vitp(folders: Folders, init: str, budget: ParadigmBudget, seed: int) -> PretrainConfig:
    own = PARADIGMS["vitp"]
    batch = budget.batch or own.batch
    steps = max(2, round(budget.images / batch))
    # Beside a random ViT there is nothing that the language model could learn to read first.
    align = 0 if init == "random" else min(round(budget.align_share * steps), steps - 1)
    config = continued_from_starter(
        folders,
        Budget(align, steps - align, batch=batch, lr=budget.lr or own.lr, vrl_ratio=budget.vrl_ratio),
        seed,
        rates=budget.rates,
    )
    train = config.train.model_copy(update={"num_workers": budget.workers})
    start: dict[str, Any] = {"init": init}
    if init == "random":
        like, folder = load_vlm(budget.like), str(vlm_folder(budget.like))
        start = {"init": "scratch", "scratch": like.vlm.config, "tokenizer": folder}
    return config.model_copy(update={"train": train, "model": config.model.model_copy(update=start)})


def _image_paradigm(
    name: str, objective: str | None = None, **settings: Any
) -> Callable[[Folders, str, ParadigmBudget, int], PretrainConfig]:
    """Return what makes the configuration of the paradigm `name`, whose objective has the same name unless said."""

    def make(folders: Folders, init: str, budget: ParadigmBudget, seed: int) -> PretrainConfig:
        own = PARADIGMS[name]
        batch = budget.batch or own.batch
        steps = max(1, round(budget.images / batch))
        start: dict[str, Any] = {"init": init}
        if init == "random":
            start["vision"] = load_backbone(budget.like).config.model_dump()
        return make_config(
            PretrainConfig,
            {
                "objective": {"name": objective or name, **settings},
                "seed": seed,
                "model": {**start, "drop_path": 0.0},
                "data": {
                    "mixture": [str(folder) for folder in folders],
                    "rates": None if budget.rates is None else list(budget.rates),
                    "global_batch": batch,
                },
                "optim": {"lr": budget.lr or own.lr, "warmup_ratio": 0.1, "min_lr_ratio": 0.02},
                "train": {
                    "steps": steps,
                    "num_workers": budget.workers,
                    "seed": seed,
                    "log_every": 20,
                    "save_every": max(1, steps // 3),
                    "must_train": ["vision tower"],
                },
            },
            where=f"micro run of {name}",
        )

    return make


_MICRO_TEXT: dict[str, Any] = {"text_width": 192, "text_layers": 3, "text_heads": 6}
_MICRO_DINO: dict[str, Any] = {"prototypes": 512, "hidden": 256, "bottleneck": 64, "momentum": 0.99}
_CAPTIONS = "captions; where none is given, composed from scene class, object counts and land cover"

PARADIGMS: dict[str, Paradigm] = {
    "vitp": Paradigm(
        "ViTP",
        "instructions made of all labels: captions, classes, boxes, masks (a grid of cell classes)",
        8,
        3e-4,
        _vitp,
    ),
    "mae": Paradigm("masked image modelling (MAE)", "none", 16, 3e-4, _image_paradigm("mae")),
    "simclr": Paradigm("SimCLR", "none", 32, 3e-4, _image_paradigm("simclr")),
    "dino": Paradigm("self-distillation (DINO)", "none", 16, 2e-4, _image_paradigm("dino", **_MICRO_DINO)),
    "ibot": Paradigm(
        "self-distillation with masked patches (iBOT)",
        "none",
        16,
        2e-4,
        _image_paradigm("ibot", "dino", **_MICRO_DINO, mask=0.5),
    ),
    "droppos": Paradigm("positions of patches (DropPos)", "none", 16, 3e-4, _image_paradigm("droppos")),
    "distil": Paradigm("distillation from teachers", "none", 16, 3e-4, _image_paradigm("distil")),
    "clip": Paradigm(
        "image-text contrast (CLIP)", _CAPTIONS, 32, 3e-4, _image_paradigm("clip", **_MICRO_TEXT)
    ),
    "siglip": Paradigm(
        "image-text contrast (SigLIP)", _CAPTIONS, 32, 3e-4, _image_paradigm("siglip", **_MICRO_TEXT)
    ),
    "regionclip": Paradigm(
        "region-text contrast (RegionCLIP)",
        "classes and boxes of objects",
        16,
        3e-4,
        _image_paradigm("regionclip", text_width=96, text_heads=4, dimension=64),
    ),
    "supervised": Paradigm(
        "supervised classification",
        "scene class, and which object classes are in the image",
        16,
        3e-4,
        _image_paradigm("supervised"),
    ),
    "dense": Paradigm("supervised segmentation", "masks", 16, 3e-4, _image_paradigm("dense")),
}
"""Name → paradigm, in the order of tables."""


PUBLISHED_STEPS = 8000
STARTER_STEPS = 1000
"""Steps in which the starter is continued where nobody says how many: minutes on two cores."""


def starter_config(
    mixture: Sequence[str | Path],
    *,
    objective: str = Default().name,
    steps: int = STARTER_STEPS,
    overrides: Sequence[str] = (),
) -> PretrainConfig:
    """Return the run with which a paradigm continues the starter on data of its user.

    Batches and rates are those of the micro recipes: the published ones are for a ViT of a hundred times the size.

    Args:
        mixture: Compiled folders; for ViTP mixture files and JSON Lines, too.
        objective: A key of `PARADIGMS` that is an objective.
        steps: Optimizer steps; ViTP takes a fifth of them, at most 160, with the ViT frozen before.
        overrides: `key.key=value` over the settings.

    Raises:
        ConfigError: There is no such objective, or an override is wrong.
    """
    if objective not in PARADIGMS:
        hint = did_you_mean(objective, PARADIGMS) or f"objectives are: {', '.join(PARADIGMS)}"
        raise ConfigError(f"unknown objective {objective!r}", where="objective", fix=hint)
    config: PretrainConfig
    if objective == "vitp":
        config = continued_from_starter([Path()], Budget(min(160, steps // 5), steps), 0)
    else:
        batch = PARADIGMS[objective].batch
        config = PARADIGMS[objective].make([Path()], "starter", ParadigmBudget(images=steps * batch), 0)
    data = {"global_batch": config.data.global_batch, "mixture": [str(entry) for entry in mixture]}
    values = {**config.model_dump(mode="json"), "data": data}
    return make_config(type(config), values, overrides, where="settings")


def pretrain_settings(config: Path | None, objective: str | None, overrides: Sequence[str]) -> PretrainConfig:
    """Return the settings of `vitp pretrain`.

    Without a configuration they are those of the micro recipes where the run starts from the starter, else the
    paper's.

    Args:
        config: YAML file of the run.
        objective: Instead of the file's; "NAME=WEIGHT,NAME=WEIGHT" for several at once.
        overrides: `key.key=value` over the settings.

    Raises:
        ConfigError: There is no such objective, or a setting is wrong.
    """
    if objective is not None and "=" in objective:
        pairs = [part.split("=", 1) if "=" in part else (part, "1") for part in objective.split(",")]
        names = [name.strip() for name, _ in pairs]
        if twice := [name for place, name in enumerate(names) if name in names[:place]]:
            fix = "name each objective once"
            raise ConfigError(f"{twice[0]} stands there twice", where="--objective", fix=fix)
        weights = ", ".join(f"{name.strip()}: {weight}" for name, weight in pairs)
        overrides = [f"objectives={{{weights}}}", *overrides]
    elif objective is not None:
        if objective not in SETTINGS:
            hint = did_you_mean(objective, SETTINGS) or f"objectives are: {', '.join(SETTINGS)}"
            raise ConfigError(f"unknown objective {objective!r}", where="--objective", fix=hint)
        overrides = [f"objective={objective}", *overrides]
    if config is not None:
        return load_config(PretrainConfig, config, overrides)
    words = [f"train.steps={PUBLISHED_STEPS}", *overrides]
    settings = make_config(PretrainConfig, {}, words, where="command line")
    if settings.model.init != "starter":
        return settings
    steps = settings.train.steps if settings.train.steps != PUBLISHED_STEPS else STARTER_STEPS
    first = settings.objective
    if isinstance(first, JointSettings):  # batches and rates are those of its first
        joint = _joint_of_recipes(first, steps)
        first = next(iter(first.active.values()), Default())
        kept = (word for word in overrides if word.strip().partition(".")[0].partition("=")[0] not in _WHAT)
        overrides = [f"objective={to_json(joint)}", *kept]
    return starter_config(settings.data.mixture, objective=first.name, steps=steps, overrides=overrides)


_WHAT = ("objective", "objectives")
"""Keys of what is learned."""


def _joint_of_recipes(joint: JointSettings, steps: int) -> dict[str, Any]:
    """Return the section of several objectives, each with its recipe's settings where its user gave none."""
    values = joint.model_dump(mode="json")
    for name, given in joint.settings.items():
        recipe = starter_config([Path()], objective=name, steps=steps).objective.model_dump(mode="json")
        values["settings"][name] = _laid_over(recipe, given.model_dump(mode="json", exclude_unset=True))
    return values


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = _laid_over(found[key], value) if both else value
    return found


def flops_per_image(config: PretrainConfig, *, steps: int = 3) -> float:
    """Return the training FLOPs an image of a run, as the mean over its first batches.

    ViTP's first phase counts as it is: with the ViT frozen an image costs less.

    Args:
        config: The run.
        steps: Batches that are looked at; records differ in length.

    Raises:
        VitpError: The run can't be built.
    """
    # Phases that don't look at images cost little beside the others.
    phases = [phase for phase in config.objective.phases() if phase.part is None]
    full = _flops(config, steps)
    total = config.train.steps + sum(phase.steps for phase in phases)
    for phase in phases:
        share = phase.steps / total
        full = share * _flops(phase.prepare(config), steps) + (1 - share) * full
    return full


def _flops(config: PretrainConfig, steps: int) -> float:
    """Return the FLOPs an image of a run's first batches, its phases left out."""
    run = build(config.model_copy(update={"objective": config.objective.alone()}))
    objective = preserving(run.objective, config.model.preserve)
    batches = [run.source(step, 0, 0, 1) for step in range(steps)]
    images = sum(objective.work(batch)["samples"] for batch in batches)
    return sum(objective.step_flops(batch) for batch in batches) / images
