"""Weights under timm's names, or under those of a publication that timm knows how to convert.

DINO, DINOv2, MAE, AugReg, SigLIP, CLIP, …: the architecture is timm's name of it. Rotary ViTs (DINOv3, EVA-02) come
as a `RotaryTower`, which heads take, but a vision-language model doesn't.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vitp.checkpoints import layouts
from vitp.checkpoints.checkpoint import Checkpoint, Hints
from vitp.checkpoints.report import WeightsReport, apply_weights
from vitp.checkpoints.state_dicts import FoundBackbone, find_backbone, plain_vit_of
from vitp.checkpoints.tensors import TORCH_SUFFIXES, read_tensors, read_torch, weights_file
from vitp.core.errors import CheckpointError
from vitp.models.foreign import described_by
from vitp.models.plain_vit import PlainViT
from vitp.models.timm_backbone import CLASSIFIERS, RotaryTower, TimmConfig, timm_backbone
from vitp.models.vision import VisionTower

_OWN_ARGUMENTS = ("num_classes", "global_pool", "img_size", "dynamic_img_size", "fc_norm", "pretrained")
"""Arguments of `timm.create_model` that a backbone sets by itself."""


@dataclass(frozen=True)
class _Converted:
    """A file's tensors as timm's model of that architecture has them.

    Attributes:
        model: The architecture without numbers.
        weights: timm's name → tensor, position table and kernel at the model's sizes.
        resampled: Name → change of shape.
        ignored: Names that were left out.
    """

    model: PlainViT
    weights: dict[str, Tensor]
    resampled: dict[str, str]
    ignored: tuple[str, ...]


def read_timm_folder(folder: Path, source: str, config: Mapping[str, Any], hints: Hints) -> Checkpoint:
    """Return the tower of a folder as the hub's timm repositories are: weights and `config.json`.

    Raises:
        CheckpointError: Weights are missing or of another architecture, or it is no plain ViT.
    """
    return _checkpoint(weights_file(folder), source, timm_config_of(config, hints))


def timm_config_of(config: Mapping[str, Any], hints: Hints) -> TimmConfig:
    """Return the model that a `config.json` of timm and the hints describe."""
    published = config.get("pretrained_cfg") or {}
    arguments = {**(config.get("model_args") or {}), **hints.arguments}
    size = arguments.get("img_size") or (published.get("input_size") or [None])[-1]
    if isinstance(size, list | tuple):
        size = size[0]
    return TimmConfig(
        architecture=hints.architecture or config["architecture"],
        arguments={key: value for key, value in arguments.items() if key not in _OWN_ARGUMENTS},
        image_size=size,
        mean=published.get("mean"),
        std=published.get("std"),
    )


def read_weights_file(path: Path, source: str, hints: Hints) -> Checkpoint:
    """Return the tower of one weights file.

    Without an architecture only files of pretraining runs (DINO, iBOT, DINOv2, MAE) are read: they are
    normalised as ImageNet is. Of other files nothing tells the normalisation.

    Raises:
        CheckpointError: The architecture has to be said, or the weights are of another one.
    """
    if hints.architecture is not None:
        return _checkpoint(path, source, timm_config_of({}, hints))
    state = _read(path)
    found = find_backbone(state, where=str(path))
    if found is None or not _of_a_run(found):
        raise CheckpointError(
            "doesn't tell its architecture and normalisation",
            where=source,
            fix="say timm's name of it: architecture=…, or --architecture",
        )
    vision = plain_vit_of(found.weights, heads=hints.heads, where=str(path))
    config = TimmConfig(
        architecture=vision.architecture, arguments=vision.arguments, image_size=vision.image_size,
        mean=vision.mean, std=vision.std,
    )  # fmt: skip
    checkpoint = _checkpoint(path, source, config, state)
    note = f"found at {found.place}; sizes told by the shapes, normalisation taken to be ImageNet's"
    return replace(checkpoint, notes=(*checkpoint.notes, note))


def _of_a_run(found: FoundBackbone) -> bool:
    """Whether something beside the weights says that they come from self-supervised pretraining."""
    marks = ("decoder", "mask_token", "register_tokens", "teacher", "student", "dino_head", "ibot_head")
    names = (*found.weights, *found.ignored, found.place)
    return any(mark in name for name in names for mark in marks)


def load_timm_vit(
    path: Path, source: str, hints: Hints, *, drop_path: float = 0.0, strict: bool = True
) -> tuple[PlainViT, WeightsReport]:
    """Return any plain ViT of timm, rotary ones included, filled from a file or folder.

    Args:
        path: A weights file, or a folder with one; its `config.json`, when it is timm's, says the rest.
        source: As the user named it, for messages.
        hints: The architecture, and what else the file doesn't say.
        drop_path: Stochastic depth rate.
        strict: Refuse anything missing, unexpected or of another shape.

    Raises:
        CheckpointError: Weights are missing or of another architecture, or it is no plain ViT.
    """
    from vitp.checkpoints.checkpoint import read_config

    config = read_config(path) if path.is_dir() else {}
    with described_by(path):
        timm_config = timm_config_of(config if "architecture" in config else {}, hints)
    if hints.image_size is not None:
        timm_config = timm_config.model_copy(update={"image_size": hints.image_size})
    converted = _convert(weights_file(path) if path.is_dir() else path, timm_config)
    backbone = timm_backbone(timm_config, drop_path=drop_path)
    assert isinstance(backbone, VisionTower | RotaryTower)
    report = apply_weights(
        backbone.model,
        converted.weights,
        source=source,
        layout="timm",
        resampled=converted.resampled,
        ignored=converted.ignored,
        strict=strict,
    )
    backbone.eval()
    return backbone, report


def _checkpoint(
    path: Path, source: str, config: TimmConfig, state: Mapping[str, Any] | None = None
) -> Checkpoint:
    converted = _convert(path, config, state)
    if not isinstance(converted.model, VisionTower):
        raise CheckpointError(
            f"is a {config.architecture}, whose positions are rotary: vision-language models and exports "
            "take ViTs with learned positions",
            where=source,
            fix=f'finetune it with backbone.init "timm:{config.architecture}" and backbone.weights',
        )
    return Checkpoint(
        source,
        "timm",
        converted.model.config,
        layouts.from_timm(converted.weights),
        ignored=converted.ignored,
        resampled={f"model.{name}": change for name, change in converted.resampled.items()},
    )


def _read(path: Path) -> Mapping[str, Any]:
    return read_torch(path) if path.suffix in TORCH_SUFFIXES else read_tensors(path)


def _convert(path: Path, config: TimmConfig, state: Mapping[str, Any] | None = None) -> _Converted:
    state = _read(path) if state is None else state
    with torch.device("meta"):
        backbone = timm_backbone(config)
    if not isinstance(backbone, PlainViT):
        raise CheckpointError(
            f"{config.architecture} is no plain Vision Transformer",
            where=str(path),
            fix=f'finetune it with backbone.init "timm:{config.architecture}" and backbone.weights',
        )
    found = find_backbone(state, where=str(path))
    before = dict(state) if found is None else found.weights
    after = _through_timm(before, backbone.model, config.architecture, path)
    kept = {name: t for name, t in after.items() if not name.startswith(CLASSIFIERS)}
    own = backbone.model.state_dict()
    dropped = [name for name in after if name not in kept and name not in own]
    kept |= {name: t for name, t in after.items() if name not in kept and name in own}
    resampled = {
        name: f"{tuple(before[name].shape)} → {tuple(tensor.shape)}"
        for name, tensor in kept.items()
        if name in ("pos_embed", "patch_embed.proj.weight")
        and isinstance(before.get(name), Tensor)
        and before[name].numel() != tensor.numel()
        and "register_tokens" not in before
    }
    return _Converted(backbone, kept, resampled, (*(found.ignored if found else ()), *dropped))


def _through_timm(weights: Mapping[str, Any], model: nn.Module, name: str, path: Path) -> dict[str, Tensor]:
    """What timm's own conversion for the architecture makes of a publication's names."""
    module = inspect.getmodule(timm.model_entrypoint(name.split(".")[0]))
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return dict(weights)
    try:
        return dict(convert(dict(weights), model))
    except (
        KeyError,
        RuntimeError,
        ValueError,
        AttributeError,
        TypeError,
        AssertionError,
        IndexError,
    ) as error:
        raise CheckpointError(
            f"holds no weights of {name} (timm's conversion fails: {error})",
            where=str(path),
            fix="name the architecture that they are of",
        ) from error
