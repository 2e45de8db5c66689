"""AdamW over the objective's parts, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from vitp.core.errors import ConfigError, did_you_mean
from vitp.engine.config import OptimSettings
from vitp.engine.sharding import shard_group
from vitp.objectives.base import Objective, ParameterGroup


@dataclass(frozen=True)
class Part:
    """One row of the table of trainable parts.

    Attributes:
        name: As the objective names it.
        parameters: Number of values.
        trainable: Number of values that require a gradient.
        lr: Peak learning rate.
        weight_decay: On parameters of two and more dimensions.
    """

    name: str
    parameters: int
    trainable: int
    lr: float
    weight_decay: float


def lr_factor(step: int, steps: int, config: OptimSettings) -> float:
    """Return what the peak learning rate is multiplied by in optimizer step `step` (from 0) of `steps`."""
    warmup = config.warmup(steps)
    rising = config.warmup_start + (1 - config.warmup_start) * ((step + 1) / warmup) if step < warmup else 1.0
    if config.decay_from == "start":
        return rising * _falling(step, 0, steps, config)
    return rising if step < warmup else _falling(step, warmup, steps, config)


def _falling(step: int, begin: int, steps: int, config: OptimSettings) -> float:
    """What the schedule multiplies the rate by, when it falls from step `begin` on."""
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "step":
        return config.gamma ** sum(step >= round(share * steps) for share in config.milestones)
    progress = min(1.0, (step - begin) / max(1, steps - begin))
    falling = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * falling


def changed_rate(
    before: Mapping[str, Any], steps_before: int, config: OptimSettings, steps: int, done: int
) -> str | None:
    """Return in words that steps done had other learning rates than they would have in a run of another length.

    Args:
        before: The settings that the steps were made with, as JSON.
        steps_before: Length that the run had then.
        config: Settings now.
        steps: Length now.
        done: Steps done.

    Returns:
        None where all rates are the same.
    """
    try:
        old = OptimSettings.model_validate(before)
    except ValidationError:  # of another version
        old = config
    differing = sum(
        old.lr * lr_factor(step, steps_before, old) != config.lr * lr_factor(step, steps, config)
        for step in range(done)
    )
    if not differing:
        return None
    last = old.lr * lr_factor(max(0, done - 1), steps_before, old)
    following = config.lr * lr_factor(done, steps, config)
    return (
        f"{differing} of the {done} steps done had other learning rates than in a run of {steps} steps from the "
        f"start: the schedule was laid over {steps_before}; the rate goes from {last:.3g} to {following:.3g}"
    )


def check_groups(objective: Objective, groups: Sequence[ParameterGroup], config: OptimSettings) -> None:
    """Raise unless the groups hold every parameter exactly once and `config.lr_scale` names known parts.

    Raises:
        ConfigError: With the names that are missing, double or unknown.
    """
    seen: dict[int, str] = {}
    for group in groups:
        for name, parameter in group.parameters.items():
            if id(parameter) in seen:
                raise ConfigError(f"parameter {name} is in two parts, as {seen[id(parameter)]}, too")
            seen[id(parameter)] = name
    missing = [name for name, parameter in objective.named_parameters() if id(parameter) not in seen]
    if missing:
        raise ConfigError(
            f"{len(missing)} parameters are in no part: {', '.join(missing[:5])}", where="parameter_groups"
        )
    known = {group.name for group in groups}
    for part in config.lr_scale:
        if part not in known:
            hint = did_you_mean(part, known) or f"the parts are {', '.join(sorted(known))}"
            raise ConfigError(f'unknown part "{part}"', where="optim.lr_scale", fix=hint)


def describe_parts(groups: Sequence[ParameterGroup], config: OptimSettings) -> list[Part]:
    """Return one row for each part name; groups of the same name are added up (their rate is the largest)."""
    parts: dict[str, Part] = {}
    for group in groups:
        old = parts.get(group.name, Part(group.name, 0, 0, 0.0, 0.0))
        values = list(group.parameters.values())
        trainable = sum(p.numel() for p in values if p.requires_grad)
        lr = config.lr * group.lr_scale * config.lr_scale.get(group.name, 1.0) if trainable else 0.0
        parts[group.name] = Part(
            group.name,
            old.parameters + sum(p.numel() for p in values),
            old.trainable + trainable,
            max(old.lr, lr),
            max(old.weight_decay, config.weight_decay if trainable else 0.0),
        )
    return list(parts.values())


def check_trainable(parts: Sequence[Part], must_train: Sequence[str]) -> None:
    """Raise unless something trains and each part that is meant to train does.

    Raises:
        ConfigError: With the part that is frozen or unknown.
    """
    by_name = {part.name: part for part in parts}
    for name in must_train:
        if name not in by_name:
            hint = did_you_mean(name, by_name) or f"the parts are {', '.join(by_name)}"
            raise ConfigError(f'unknown part "{name}"', where="train.must_train", fix=hint)
        if by_name[name].trainable == 0:
            raise ConfigError(f'part "{name}" is meant to train but is frozen', fix="unfreeze it")
    if not any(part.trainable for part in parts):
        raise ConfigError("nothing is trainable", fix="unfreeze a part")


def build_optimizer(
    objective: Objective, groups: Sequence[ParameterGroup], config: OptimSettings
) -> tuple[torch.optim.AdamW, list[list[str]]]:
    """Return AdamW and, parallel to its parameter groups, the names of their parameters.

    Each optimizer group carries its `scale`, the factor on the run's learning rate. Layer decay applies to
    the vision tower. Frozen parameters are left out.

    Raises:
        ConfigError: Layer decay is asked for, and the vision tower has no layers.
    """
    full_names = {id(parameter): name for name, parameter in objective.named_parameters()}
    scales: dict[int, float] = {}
    if config.layer_decay is not None:
        distances = objective.layer_distances()
        if not any(distances.values()):
            raise ConfigError(
                f"{type(objective.vision_tower).__name__} has no layers that could learn at falling rates",
                where="optim.layer_decay",
                fix="leave it out",
            )
        scales = {
            id(parameter): config.layer_decay ** distances[name]
            for name, parameter in objective.vision_tower.named_parameters()
        }

    buckets: dict[tuple[str, float, float, bool], dict[str, nn.Parameter]] = {}
    for group in groups:
        for parameter in group.parameters.values():
            if not parameter.requires_grad:
                continue
            scale = group.lr_scale * config.lr_scale.get(group.name, 1.0) * scales.get(id(parameter), 1.0)
            # Norms, biases and scales have one dimension, and don't decay, as is usual for ViTs.
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            # What is shared out among processes, and what each has whole, aren't computed together.
            key = (group.name, scale, decay, shard_group(parameter) is None)
            buckets.setdefault(key, {})[full_names[id(parameter)]] = parameter
    optimizer = torch.optim.AdamW(
        [
            {"params": list(bucket.values()), "scale": scale, "weight_decay": decay}
            for (_, scale, decay, _), bucket in buckets.items()
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        # Took a step of a micro model on CPU from 20 ms to 3 ms.
        fused=all(p.device.type in ("cpu", "cuda") for bucket in buckets.values() for p in bucket.values()),
    )
    return optimizer, [list(bucket) for bucket in buckets.values()]


def set_lr(optimizer: torch.optim.Optimizer, config: OptimSettings, factor: float) -> float:
    """Set every group's rate to `lr × factor × its scale`; return the rate of scale 1."""
    for group in optimizer.param_groups:
        group["lr"] = config.lr * factor * group["scale"]
    return config.lr * factor
