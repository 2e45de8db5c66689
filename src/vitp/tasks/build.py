"""Backbone + neck + head → the model of a task, and the table of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor

from vitp.checkpoints.bands import wanted_channels
from vitp.checkpoints.loading import load_backbone, open_timm
from vitp.core.config import SettingsModel, make_config
from vitp.core.errors import ConfigError, did_you_mean
from vitp.models.adapter import build_pyramid
from vitp.models.adapting import AnyAdapt, adapt_tower
from vitp.models.backbone import Backbone
from vitp.models.inflation import with_channels
from vitp.models.positions import PositionMethod
from vitp.models.pyramid import Pyramid, pad_to_multiple
from vitp.models.resample import KernelMethod, resized_tower
from vitp.models.timm_backbone import TimmSettings, TimmStages, timm_backbone
from vitp.models.vision import VisionSettings, VisionTower
from vitp.records.channels import Channels
from vitp.tasks.base import TaskModel
from vitp.tasks.change import ChangeModel
from vitp.tasks.classification import ClassificationModel
from vitp.tasks.detection import DetectionModel
from vitp.tasks.detr import DETRDetection, OrientedDETR
from vitp.tasks.eomt import QueryInstances, QuerySegmentation
from vitp.tasks.instance import InstanceModel
from vitp.tasks.oriented import OrientedRCNN
from vitp.tasks.panoptic import QueryPanoptic
from vitp.tasks.semantic import SegmentationModel

TIMM_PREFIX = "timm:"


class BackboneSettings(SettingsModel):
    """Where the backbone comes from."""

    init: str = "starter"
    """"starter" (comes with the package), the folder of an export, a run or a model, "timm:NAME" (any
    architecture of timm), or "random" (see `vision`)."""
    weights: str | None = None
    """File of weights for "timm:NAME"; none: random ones."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `timm.create_model` for "timm:NAME"."""
    vision: VisionSettings | None = None
    """Sizes of the tower for "random"; none: the starter's."""
    channels: Channels | None = None
    """Bands that the backbone is to see; trained weights are carried over by their names. none: its own, and where
    it was trained on RGB pictures, those of the data."""
    image_size: int | None = Field(None, ge=8, le=65_536)
    """Side of the images for which positions are resampled; none: the backbone's own."""
    patch_size: int | None = Field(None, ge=2, le=1024)
    """Pixels of a patch, resampled where the ViT was trained with others (the paper: 14 → 16)."""
    patch_kernel: KernelMethod = "bicubic"
    """How the patch kernel is resampled."""
    positions: PositionMethod | None = None
    """How positions are resampled to `image_size`, and to other sizes later: "bicubic" as published, or
    "antialiased" as timm does. none: as the backbone's folder says; weights in InternVL's layouts
    "bicubic"."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth rate of the last block."""
    freeze: bool = False
    """Train neck and head only."""
    adapt: AnyAdapt = None
    """Train few parameters of the backbone in place of all: `lora`, `prompts`, `adapters` or `gates`."""
    gradient_checkpointing: bool = False
    """Recompute activations: less memory, more time."""


class NeckSettings(SettingsModel):
    """What lies between backbone and head."""

    kind: Literal["auto", "adapter", "simple", "cnn", "none"] = "auto"
    """`adapter` (ViT-Adapter, the paper's; plain ViTs), `simple` (feature pyramid from the last map; any
    ViT), `cnn` (the stages of a hierarchical network), `none` (the last map alone: a probe), `auto`:
    `cnn` for hierarchical networks and `simple` for ViTs, with channels that suit the backbone's width."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the neck: `ViTAdapter`, `SimpleFeaturePyramid` or `CNNPyramid`."""


class LastMap(Pyramid):
    """No pyramid: the backbone's last map at its own stride."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels, self.strides = backbone.channels[-1], (backbone.strides[-1],)

    def features(self, image_BCHW: Tensor) -> list[Tensor]:
        """Return the last map."""
        return self.backbone.forward_features(pad_to_multiple(image_BCHW, self.strides[0]))


def open_backbone(settings: BackboneSettings, seed: int = 0, *, data: Channels | None = None) -> Backbone:
    """Return the backbone that the settings name, with its weights.

    Args:
        settings: See `BackboneSettings`.
        seed: Seed of random weights.
        data: Bands of the data that it is to be trained on: a backbone of RGB pictures is made for them, one with
            bands of its own keeps these.

    Raises:
        ConfigError: The settings contradict each other, or timm has no such model.
        CheckpointError: No backbone is there, or a file is broken.
        DataError: The data lack bands of the backbone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = _open(settings, data)
    if settings.adapt is not None:
        if settings.freeze or not isinstance(backbone, VisionTower):
            raise ConfigError(
                "trains a part of the backbone, which freeze doesn't"
                if settings.freeze
                else "is for plain ViTs",
                where="backbone.adapt",
                fix="leave one of them out" if settings.freeze else "leave it out, or take a ViT",
            )
        adapt_tower(backbone, settings.adapt, seed)
    if settings.gradient_checkpointing:
        set_checkpointing = getattr(backbone, "set_gradient_checkpointing", None)
        if set_checkpointing is None:
            raise ConfigError("this backbone can't", where="backbone.gradient_checkpointing")
        set_checkpointing(True)
    # What trains of an adapted backbone is decided already.
    return backbone if settings.adapt is not None else backbone.requires_grad_(not settings.freeze)


def _open(settings: BackboneSettings, data: Channels | None) -> Backbone:
    name, channels = settings.init, settings.channels
    if name.startswith(TIMM_PREFIX):
        config = TimmSettings(
            architecture=name.removeprefix(TIMM_PREFIX),
            arguments=settings.arguments,
            image_size=settings.image_size,
            channels=channels or data,
        )
        if settings.positions == "bicubic":
            raise ConfigError(
                "timm resamples the positions of its models in its own way",
                where="backbone.positions",
                fix='leave it out, or at "antialiased"',
            )
        if settings.patch_size is not None:
            raise ConfigError(
                "patches of timm models aren't resampled here",
                where="backbone.patch_size",
                fix="give patch_size among backbone.arguments; timm resamples the weights",
            )
        if settings.weights is None:
            return timm_backbone(config, drop_path=settings.drop_path)
        return open_timm(config, Path(settings.weights), drop_path=settings.drop_path)[0]
    if settings.arguments or settings.weights:
        raise ConfigError(
            f'"{name}" takes neither arguments nor weights', where="backbone", fix='use init "timm:NAME"'
        )
    if name == "random":
        vision = settings.vision or load_backbone("starter").config
        wanted = wanted_channels(vision.channels, channels, data, where="backbone.vision")
        tower = VisionTower(with_channels(vision, wanted))
    elif settings.vision is not None:
        raise ConfigError(f'"{name}" has its own architecture', where="backbone.vision", fix='use "random"')
    else:
        tower = load_backbone(name, channels=channels, data=data)
    return resized_tower(
        tower,
        patch_size=settings.patch_size,
        image_size=settings.image_size,
        drop_path=settings.drop_path,
        method=settings.patch_kernel,
        positions=settings.positions,
    )


def describe_backbone(backbone: Backbone) -> dict[str, Any]:
    """Return as JSON what `empty_backbone` makes the same architecture from."""
    if isinstance(backbone, VisionTower):
        return {"kind": "vision", "config": backbone.config.model_dump(mode="json")}
    if isinstance(backbone, TimmStages):
        known = {"mean": list(backbone.mean), "std": list(backbone.std), "image_size": backbone.image_size[0]}
        return {"kind": "timm", "config": {**backbone.config.model_dump(mode="json"), **known}}
    raise ConfigError(f"a {type(backbone).__name__} can't be written down", where="backbone")


def empty_backbone(description: Mapping[str, Any]) -> Backbone:
    """Return a backbone of the described architecture, to be filled with weights.

    Raises:
        ConfigError: The description can't be understood.
    """
    if description["kind"] == "vision":
        return VisionTower(make_config(VisionSettings, dict(description["config"]), where="backbone"))
    if description["kind"] == "timm":
        return timm_backbone(make_config(TimmSettings, dict(description["config"]), where="backbone"))
    raise ConfigError(f'unknown kind "{description["kind"]}"', where="backbone")


def build_neck(backbone: Backbone, settings: NeckSettings) -> Pyramid:
    """Return the pyramid that the settings name around a backbone.

    Raises:
        ConfigError: The kind doesn't fit the backbone, or an option is unknown.
    """
    if settings.kind == "none":
        if settings.options:
            raise ConfigError(
                "a neck of the kind none takes no options", where="neck.options", fix="remove them"
            )
        return LastMap(backbone)
    if settings.kind == "auto":
        kind: Literal["adapter", "simple", "cnn"] = "cnn" if len(set(backbone.strides)) > 1 else "simple"
        # 256, as published, from a width of 512 on; a ViT of 3 M parameters doesn't need a neck of 2 M.
        channels = min(256, max(32, backbone.channels[-1] // 2))
        return build_pyramid(backbone, kind, **{"channels": channels, **settings.options})
    return build_pyramid(backbone, settings.kind, **settings.options)


TASK_MODELS: dict[str, type[TaskModel]] = {
    model.name: model
    for model in (
        *(ClassificationModel, SegmentationModel, ChangeModel),
        *(DetectionModel, InstanceModel, OrientedRCNN, QueryPanoptic),
    )
}
"""Name → model of the task, which knows what it learns from and how it is scored."""


OTHER_HEADS: dict[tuple[str, str], type[TaskModel]] = {
    ("detection", "detr"): DETRDetection,
    ("oriented", "detr"): OrientedDETR,
    ("segmentation", "eomt"): QuerySegmentation,
    ("instance", "eomt"): QueryInstances,
}
"""Task and `kind` of its head → model, where that isn't the task's own of `TASK_MODELS`."""


def task_of(name: str, head: Mapping[str, Any] | None = None) -> type[TaskModel]:
    """Return the class of a task's models by the task's name and, where it has several, the `kind` of its head.

    Raises:
        ConfigError: There is none of that name, or none with such a head.
    """
    if name not in TASK_MODELS:
        hint = did_you_mean(name, TASK_MODELS) or f"tasks are {', '.join(TASK_MODELS)}"
        raise ConfigError(f"unknown task {name!r}", where="task", fix=hint)
    others = {kind: model for (task, kind), model in OTHER_HEADS.items() if task == name}
    kind = str((head or {}).get("kind", ""))
    field = TASK_MODELS[name].head_settings.model_fields.get("kind")
    own = get_args(field.annotation) if field else ()
    if kind in others:
        return others[kind]
    if kind and kind not in own and (others or own):
        hint = did_you_mean(kind, [*own, *others]) or f"kinds of {name} are {', '.join([*own, *others])}"
        raise ConfigError(
            f"{name} has no head {kind!r}",
            where="head.kind",
            fix=hint + ("" if own else ", or none: leave it out"),
        )
    return TASK_MODELS[name]


def _trunk(task: type[TaskModel], backbone: Backbone, neck: NeckSettings) -> Backbone | Pyramid:
    """Return what a task's head reads; see `TaskModel.needs`."""
    if task.needs == "backbone":
        if neck.kind not in ("auto", "none"):
            raise ConfigError(f"{task.name} has no neck", where="neck.kind", fix='leave it at "auto"')
        return backbone
    if task.needs == "levels" and neck.kind == "none":
        raise ConfigError(
            "detectors need maps of several strides", where="neck.kind", fix="choose adapter, simple or cnn"
        )
    return build_neck(backbone, neck)


def build_model(
    name: str,
    backbone: Backbone,
    classes: Sequence[str],
    neck: NeckSettings | None = None,
    head: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
) -> TaskModel:
    """Return a task's model around a backbone; neck and head are random, the same for the same seed.

    Raises:
        ConfigError: The settings don't fit the task or the backbone.
    """
    neck, head = neck or NeckSettings(), dict(head or {})
    task = task_of(name, head)
    # What happened before in this process must not decide the head.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = _trunk(task, backbone, neck)
        model: TaskModel = task(trunk, classes, make_config(task.head_settings, head, where="head"))  # type: ignore[call-arg, arg-type]
    model.description = {
        "backbone": describe_backbone(backbone),
        "neck": neck.model_dump(mode="json"),
        "head": head,
    }
    return model
