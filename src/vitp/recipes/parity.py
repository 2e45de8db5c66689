"""Facts of a run, read from the code that trains it: learning rates, parameter groups, order of changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch

from vitp.core.errors import ConfigError
from vitp.data.benchmarks.catalogue import BENCHMARKS
from vitp.data.chat import ChatTokenizer
from vitp.engine.config import OptimSettings
from vitp.engine.layers import layers_of
from vitp.engine.optim import build_optimizer, lr_factor
from vitp.models.vision import VisionSettings, VisionTower
from vitp.models.vlm import VisionLanguageModel
from vitp.objectives.base import Objective
from vitp.objectives.vitp import ViTPObjective
from vitp.planning.model import INTERNVL_1B, INTERNVL_VOCABULARY
from vitp.recipes.catalogue import PretrainRecipe, Recipe
from vitp.recipes.paper.tables_downstream import ADAPTER, PUBLISHED_ORDER
from vitp.runs.finetune import FinetuneConfig
from vitp.tasks.base import TaskModel
from vitp.tasks.build import build_model

_VIT_L = "vit_intern300m_patch14_448"
"""timm's name of the paper's ViT."""


@dataclass(frozen=True)
class GroupRow:
    """Parameters that learn alike.

    Attributes:
        part: As the objective names it.
        layer: Layer of the vision tower; empty elsewhere.
        lr_scale: Factor on the run's learning rate.
        weight_decay: Weight decay of these parameters.
        tensors, parameters: Number of tensors and of parameters.
    """

    part: str
    layer: str
    lr_scale: float
    weight_decay: float
    tensors: int
    parameters: int


def schedule_rows(optim: OptimSettings, steps: int) -> list[tuple[int, float]]:
    """Return (step, learning rate) at the start, through the warm-up, around milestones, at quarters and at the end."""
    warmup = optim.warmup(steps)
    wanted = {0, warmup // 2, warmup, steps // 4, steps // 2, 3 * steps // 4, steps - 1}
    if optim.schedule == "step":
        places = [round(share * steps) for share in optim.milestones]
        wanted |= {place - 1 for place in places} | set(places)
    return [(step, optim.lr * lr_factor(step, steps, optim)) for step in sorted(wanted) if 0 <= step < steps]


def group_rows(objective: Objective, optim: OptimSettings) -> list[GroupRow]:
    """Return the groups of the optimizer that would train the objective, top of the network last."""
    groups = objective.parameter_groups()
    optimizer, names = build_optimizer(objective, groups, optim)
    part_of = {id(parameter): group.name for group in groups for parameter in group.parameters.values()}
    tower = {id(parameter): name for name, parameter in objective.vision_tower.named_parameters()}
    layers = layers_of(tower.values())
    rows: dict[tuple[str, str, float, float], list[int]] = {}
    for group, _ in zip(optimizer.param_groups, names, strict=True):
        for parameter in group["params"]:
            layer = layers[tower[id(parameter)]] if id(parameter) in tower else ""
            key = (part_of[id(parameter)], layer, group["scale"], group["weight_decay"])
            rows.setdefault(key, []).append(parameter.numel())
    made = [GroupRow(*key, len(sizes), sum(sizes)) for key, sizes in rows.items()]
    return sorted(made, key=lambda row: (row.part != "vision tower", row.lr_scale, row.layer))


def augmentation_order(config: FinetuneConfig) -> list[tuple[str, str]]:
    """Return (change, how) in the order in which `vitp.data.augment.augment` makes them."""
    augment, data = config.augment, config.data
    crop = augment.crop if data.crop is None else data.crop
    turned = f"by up to ±{augment.rotate:g}°, {augment.rotate_probability:.0%} of the images"
    low, high = augment.scale
    resize = data.resize.mode if data.resize is not None else "fixed"
    size = data.resize.size if data.resize is not None else None
    mirrored = "left-right" if augment.flip == "horizontal" else "left-right and top-bottom"
    share = f", at most {augment.max_class_share:.0%} of one class" if augment.max_class_share < 1 else ""
    steps = [
        ("resize", f"{resize} {size or ''}".strip(), resize != "none"),
        ("scale", f"{low:g} to {high:g}", low < high),
        ("rotate", turned, augment.rotate > 0),
        ("crop", f"{crop} px{share}", crop is not None),
        ("flip", f"{mirrored}, each with probability ½", bool(augment.flip)),
        ("rotate90", "by a random multiple of 90°", augment.rotate90),
        ("photometric", f"strength {augment.photometric:g}", augment.photometric > 0),
        (
            "swap dates",
            f"probability {augment.swap_dates:g}",
            augment.swap_dates > 0 and config.task == "change",
        ),
    ]
    return [(name, how) for name, how, happens in steps if happens]


def full_size_model(config: FinetuneConfig, classes: Sequence[str]) -> TaskModel:
    """Return the model of a recipe around the paper's ViT-L with random weights.

    Make it under `torch.device("meta")` or a `FakeTensorMode` where only names and shapes are wanted.
    """
    size = config.backbone.image_size or 448
    vision = VisionSettings(
        architecture=_VIT_L,
        arguments={"patch_size": config.backbone.patch_size or ADAPTER.patch_size},
        image_size=size,
        channels=config.backbone.channels,
    )
    return build_model(config.task, VisionTower(vision), classes, config.neck, config.head)


@dataclass(frozen=True)
class Parity:
    """Facts of a recipe's run.

    Attributes:
        steps: Optimizer steps.
        schedule: (step, learning rate) at key steps.
        groups: Parameter groups.
        changes: (change, how) in order; empty for pretraining, whose images aren't changed.
        published_order: The order of changes in the published configuration.
    """

    steps: int
    schedule: list[tuple[int, float]]
    groups: list[GroupRow]
    changes: list[tuple[str, str]]
    published_order: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def parity_of(recipe: Recipe, *, images: int | None = None) -> Parity:
    """Return what a recipe's run will do, without weights or data.

    Args:
        recipe: One of the catalogue.
        images: Training images, for lengths in epochs; None: as published.

    Raises:
        ConfigError: The length can't be known.
    """
    if isinstance(recipe, PretrainRecipe):
        config = recipe.make()
        steps, optim = config.train.steps, config.optim
        with torch.device("meta"):
            vlm = VisionLanguageModel(INTERNVL_1B, vocabulary=INTERNVL_VOCABULARY)
        # Only its parameters are looked at; a tokenizer would have to be on disk.
        objective = ViTPObjective(vlm, cast(ChatTokenizer, None))
        return Parity(steps, schedule_rows(optim, steps), group_rows(objective, optim), [], ())
    task = recipe.make()
    count = images
    if count is None and task.train.epochs is not None:
        count = published_images(recipe.name)
    if task.train.epochs is not None and count is None:
        raise ConfigError(
            f"{task.train.epochs:g} epochs of crops whose number is not published",
            where=f"recipe {recipe.name}",
            fix="count the prepared training crops and give their number with --images",
        )
    steps = task.train.of(count or 0, task.data.global_batch).steps
    with torch.device("meta"):
        model = full_size_model(task, placeholder_classes(recipe.facts.classes))
    return Parity(
        steps,
        schedule_rows(task.optim, steps),
        group_rows(model, task.optim),
        augmentation_order(task),
        PUBLISHED_ORDER[task.task] if recipe.facts.published else (),
    )


def published_images(name: str) -> int | None:
    """Return how many images the paper's run of a set learns from; None where it learns from crops or slices."""
    facts = BENCHMARKS[name]
    if facts.crop is not None or facts.volumes:
        return None
    return sum(facts.counts[split] for split in facts.train_on)


def placeholder_classes(count: int) -> list[str]:
    """Return names for classes of which only the number matters."""
    return [f"class {number}" for number in range(count)]
