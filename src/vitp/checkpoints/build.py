"""Models of checkpoints: built at their sizes, filled name by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vitp.checkpoints import layouts
from vitp.checkpoints.checkpoint import Checkpoint
from vitp.checkpoints.report import WeightsReport, apply_weights
from vitp.core.errors import CheckpointError
from vitp.data.chat import ChatTokenizer
from vitp.models.foreign import described_by
from vitp.models.resample import KERNEL, POSITIONS, fit_weights
from vitp.models.vision import VisionTower
from vitp.models.vlm import VisionLanguageModel


def build_tower(
    checkpoint: Checkpoint, *, drop_path: float = 0.0, strict: bool = True
) -> tuple[VisionTower, WeightsReport]:
    """Return the vision tower of a checkpoint in float32 and eval mode, with the report.

    Position table and patch kernel are resampled when the tower is wanted at another size.

    Raises:
        CheckpointError: Names or shapes don't fit (with `strict`).
    """
    with described_by(checkpoint.source):
        tower = VisionTower(checkpoint.vision, drop_path=drop_path)
    weights = layouts.part_of(checkpoint.weights, "vision.")
    fitted, resampled = _fit(weights, tower)
    report = apply_weights(
        tower,
        fitted,
        source=checkpoint.source,
        layout=checkpoint.layout,
        resampled={**checkpoint.resampled, **resampled},
        unexpected=checkpoint.unexpected,
        ignored=checkpoint.ignored,
        notes=checkpoint.notes,
        strict=strict,
    )
    return tower.eval(), report


def build_vlm(
    checkpoint: Checkpoint, *, drop_path: float = 0.0, strict: bool = True
) -> tuple[VisionLanguageModel, WeightsReport]:
    """Return the vision-language model of a checkpoint in float32 and eval mode, with the report.

    Raises:
        CheckpointError: It is a vision tower alone, or names or shapes don't fit (with `strict`).
    """
    if checkpoint.vlm is None or checkpoint.vocabulary is None:
        raise CheckpointError(
            "holds a vision tower without a language model",
            where=checkpoint.source,
            fix="load it with `vitp.load_backbone`, or put it into a model with `vitp swap`",
        )
    config = checkpoint.vlm.model_copy(update={"drop_path": drop_path})
    with described_by(checkpoint.source):
        vlm = VisionLanguageModel(config, vocabulary=checkpoint.vocabulary)
    vision, resampled = _fit(layouts.part_of(checkpoint.weights, "vision."), vlm.vision)
    weights = {name: t for name, t in checkpoint.weights.items() if not name.startswith("vision.")}
    weights |= {f"vision.{name}": tensor for name, tensor in vision.items()}
    report = apply_weights(
        vlm,
        weights,
        source=checkpoint.source,
        layout=checkpoint.layout,
        resampled={f"vision.{n}": change for n, change in {**checkpoint.resampled, **resampled}.items()},
        unexpected=checkpoint.unexpected,
        ignored=checkpoint.ignored,
        notes=checkpoint.notes,
        strict=strict,
    )
    return vlm.eval(), report


def _fit(weights: Mapping[str, Tensor], tower: VisionTower) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights at the tower's patch and image size, and what changed. What fits stays bit for bit."""
    own = tower.state_dict()
    odd = {
        name: weights[name].float()
        for name in (KERNEL, POSITIONS)
        if name in weights and name in own and weights[name].shape != own[name].shape
    }
    if not odd:
        return dict(weights), {}
    fitted = {**weights, **fit_weights(odd, tower)}
    changed = {
        name: f"{tuple(weights[name].shape)} → {tuple(fitted[name].shape)}"
        for name in odd
        if fitted[name].shape != weights[name].shape
    }
    return fitted, changed


def grow_embeddings(vlm: VisionLanguageModel, chat: ChatTokenizer) -> int:
    """Give the language model a row for each token of its tokenizer; return how many were added.

    New rows get the mean of the others: a random row would stand out among trained ones. Rows beyond the
    tokenizer's length stay, published models have some.
    """
    rows = int(vlm.language.get_input_embeddings().weight.shape[0])
    if len(chat) <= rows:
        return 0
    vlm.language.resize_token_embeddings(len(chat), mean_resizing=False)
    with torch.no_grad():
        tables = {vlm.language.get_input_embeddings().weight, vlm.language.get_output_embeddings().weight}
        for table in tables:
            table[rows:] = table[:rows].mean(dim=0)
    return len(chat) - rows
