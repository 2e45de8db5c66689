"""Rare classes: how often their images come, and what they weigh in the loss."""

from __future__ import annotations

from collections.abc import Sequence

from vitp.core.errors import ConfigError
from vitp.data.batches import repeat_factors
from vitp.records.labels import LabelledImage, LabelledSet
from vitp.runs.finetune_settings import FinetuneConfig
from vitp.tasks.base import LabelKind
from vitp.tasks.losses import balanced_weights


def balanced_classes(
    config: FinetuneConfig, kind: LabelKind, train: LabelledSet, classes: Sequence[str]
) -> tuple[list[float] | None, FinetuneConfig, list[str]]:
    """Return how often each image comes, the configuration with the weights of the classes, and what is to be said.

    Raises:
        ConfigError: Only masks say which classes an image holds, or weights are given twice.
    """
    threshold, balance = config.data.repeat_threshold, config.head.get("class_balance") or 0.0
    if threshold is None and not balance:
        return None, config, []
    held = [found for item in train.items if (found := classes_in(item, kind)) is not None]
    if threshold is not None and len(held) < len(train):
        fix = "leave it out, or weigh the classes with head.class_weights, head.focal or head.tversky"
        raise ConfigError(
            "only masks say which classes an image holds", where="data.repeat_threshold", fix=fix
        )
    said, repeats = [], None
    if threshold is not None:
        repeats = repeat_factors(held, threshold)
        often = sum(one > 1 for one in repeats)
        said.append(
            f"{often:,} of {len(repeats):,} images come more often, up to {max(repeats):.1f} times an epoch"
        )
    if balance:
        if config.head.get("class_weights") is not None:
            fix = "leave one of them out"
            raise ConfigError("weighs the classes a second time", where="head.class_balance", fix=fix)
        counts = [float(sum(name in found for found in held)) for name in classes]
        weights = [round(weight, 6) for weight in balanced_weights(counts, float(balance))]
        head = {**config.head, "class_weights": weights}
        config = config.model_copy(update={"head": head})
        shown = ", ".join(
            f"{name} {weight:.2f}" for name, weight in list(zip(classes, weights, strict=True))[:8]
        )
        said.append(f"weights of the classes: {shown}{', …' if len(classes) > 8 else ''}")
    return repeats, config, said


def classes_in(item: LabelledImage, kind: LabelKind) -> frozenset[str] | None:
    """Return the classes that a training image is known to hold, None where only its mask says.

    Difficult objects don't count: a model doesn't learn from them.
    """
    if kind in ("semantic", "change", "panoptic"):
        return None
    if kind == "scene":
        return frozenset() if item.scene is None else frozenset({item.scene})
    if kind == "presence" and item.objects is None:
        return frozenset(item.tags or ())
    return frozenset(label.category for label in item.objects or () if not label.difficult)
