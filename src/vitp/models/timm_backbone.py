"""Backbones of timm to compare with: hierarchical networks (ResNet, ConvNeXt, Swin) and ViTs of other pretraining.

Heads get them as any other backbone, through `build_pyramid`: "adapter" or "simple" around a plain ViT, which is a
`VisionTower` (DINO, DINOv2, DINOv3, CLIP's and MAE's ViTs), "cnn" around a hierarchical one.

Shapes: B images, H × W pixels, D channels, h × w cells.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import timm
import torch
from pydantic import Field
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitp.core.config import SettingsModel
from vitp.core.errors import ConfigError
from vitp.models.arguments import check_architecture, check_timm_arguments, lacks_memory
from vitp.models.backbone import Backbone
from vitp.models.vision import (
    Deviations,
    Means,
    VisionSettings,
    VisionTower,
    check_plain,
    input_argument,
    per_channel,
)
from vitp.records.channels import Channels

CLASSIFIERS = ("head.", "head_dist.", "fc.", "classifier.", "fc_norm.", "attn_pool.", "conv_head.", "bn2.")
"""How the names of what follows the last feature map begin in timm's models."""


class TimmSettings(SettingsModel):
    """A model as timm knows it."""

    architecture: str
    """Name of the model in timm, with or without the tag of its weights (`resnet50.a1_in1k`)."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `timm.create_model`."""
    image_size: int | None = Field(None, ge=8, le=65_536)
    """Side in pixels that the model is meant for; none: what timm says."""
    mean: Means | None = None
    """Mean of values on 0..1: of red, green and blue, or one a channel; none: what timm says."""
    std: Deviations | None = None
    """Deviation of values on 0..1: of red, green and blue, or one a channel; none: what timm says."""
    channels: Channels | None = None
    """Bands that the model sees, and which of their values become 0 and 255; none: RGB pictures."""
    weights_of: str = Field("", max_length=200)
    """Published weights that it goes back to; "": none that are known."""
    licence: str = Field("", max_length=200)
    """Licence of those weights, as their publisher states it; "": none is stated."""


class TimmStages(Backbone):
    """The stages of a hierarchical network. Its layers are timm's feature levels, the finest first.

    The last layer's features have passed the final norm, where the architecture has one over maps (Swin).

    Raises:
        ConfigError: timm has no such model, or it has no stages.
    """

    def __init__(self, config: TimmSettings, model: Any) -> None:
        super().__init__()
        self.config = config
        self.model = model
        levels = list(getattr(model, "feature_info", ()))
        if not hasattr(model, "forward_intermediates") or len(levels) < 2:
            raise ConfigError(
                f"{config.architecture} gives no feature maps",
                where="backbone",
                fix="choose another architecture",
            )
        self.num_layers = len(levels)
        self.channels = tuple(int(level["num_chs"]) for level in levels)
        self.strides = tuple(int(level["reduction"]) for level in levels)
        size = config.image_size or model.pretrained_cfg["input_size"][-1]
        self.image_size = (size, size)
        self.in_channels = config.channels
        self.mean, self.std = _normalisation(config, model)
        # What comes after the last feature map would never get a gradient.
        model.prune_intermediate_layers(self.num_layers - 1, prune_norm=False, prune_head=True)

    def forward_features(self, image_BCHW: Tensor, layers: Sequence[int] = (-1,)) -> list[Tensor]:
        """Return feature maps (B, D, h, w) of the asked layers. See `Backbone.forward_features`."""
        wanted = [layer % self.num_layers for layer in layers]
        unique = sorted(set(wanted))
        maps = self.model.forward_intermediates(
            image_BCHW, indices=unique, output_fmt="NCHW", intermediates_only=True
        )
        by_layer = dict(zip(unique, maps, strict=True))
        last = self.num_layers - 1
        # timm applies this norm behind the last stage, after what it gives as that stage's features.
        norm = getattr(self.model, "norm", None)
        if last in by_layer and isinstance(norm, nn.LayerNorm):
            by_layer[last] = norm(by_layer[last].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return [by_layer[layer] for layer in wanted]

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass: less memory, more time."""
        self.model.set_grad_checkpointing(enabled)


def timm_backbone(config: TimmSettings | str, *, drop_path: float = 0.0) -> Backbone:
    """Return a timm model as a backbone: a `VisionTower` where it is a plain ViT, else `TimmStages`.

    Args:
        config: The model, or its name.
        drop_path: Stochastic depth rate, where the architecture has it.

    Raises:
        ConfigError: timm has no such model, refuses an argument, or it gives no feature maps.
    """
    config = TimmSettings(architecture=config) if isinstance(config, str) else config
    model = _create(config, drop_path)
    if not isinstance(model, VisionTransformer | Eva):
        return TimmStages(config, model)
    return VisionTower(_tower_settings(config, model), drop_path=drop_path)


def plain_settings(config: TimmSettings) -> VisionSettings | None:
    """Return the same model as a vision tower's settings, without making its weights; None: it is no plain ViT.

    Raises:
        ConfigError: timm has no such model, or refuses an argument.
    """
    with torch.device("meta"):
        model = _create(config, 0.0)
    return _tower_settings(config, model) if isinstance(model, VisionTransformer | Eva) else None


def _tower_settings(config: TimmSettings, model: Any) -> VisionSettings:
    check_plain(model, config.architecture)
    mean, std = _normalisation(config, model)
    return VisionSettings(
        architecture=config.architecture,
        arguments=config.arguments,
        image_size=int(model.patch_embed.img_size[0]),
        mean=mean,
        std=std,
        channels=config.channels,
        weights_of=config.weights_of,
        licence=config.licence,
    )


def _create(config: TimmSettings, drop_path: float) -> nn.Module:
    name = config.architecture
    check_architecture(name, where="backbone")
    check_timm_arguments(config.arguments, where="backbone.arguments")
    arguments: dict[str, Any] = {
        "num_classes": 0,
        **_size_arguments(name, config.image_size),
        **input_argument(config.arguments, config.channels, where="backbone"),
    }
    if drop_path:
        arguments["drop_path_rate"] = drop_path
    try:
        return timm.create_model(name, **(arguments | config.arguments))
    except Exception as error:  # whatever sizes that don't go together make timm and torch raise
        if lacks_memory(error):
            raise
        raise ConfigError(f"timm refuses an argument ({error})", where="backbone.arguments") from error


def _module_of(name: str) -> Any:
    """Return the Python module of timm that defines the architecture."""
    return inspect.getmodule(timm.model_entrypoint(name.split(".")[0]))


def _size_arguments(name: str, image_size: int | None) -> dict[str, Any]:
    """Return what makes the model take images of any size."""
    # Only these families of timm have such an argument; convolutions take any size as they are.
    family = _module_of(name).__name__.rsplit(".", 1)[-1]
    size = {} if image_size is None else {"img_size": image_size}
    if family in ("vision_transformer", "deit", "eva"):
        return {"dynamic_img_size": True, "global_pool": "", **size}
    if family in ("swin_transformer", "swin_transformer_v2"):
        return {"strict_img_size": False, **size}
    return {}


def _normalisation(config: TimmSettings, model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    known = model.pretrained_cfg
    mean, std = config.mean or tuple(known["mean"]), config.std or tuple(known["std"])
    return per_channel(mean, config.channels), per_channel(std, config.channels)
