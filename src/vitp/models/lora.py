"""Low-rank adaptation of a vision tower (ExPLoRA): continue pretraining with a fraction of the trainable weights.

ExPLoRA (Khanna et al., 2024) unfreezes one or two blocks of a pretrained ViT and all its norms, and lets the attention
of the other blocks change by low-rank updates only. The updates are merged when the tower is saved, so that nobody who
loads it can tell how it was trained.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vitp.core.errors import ConfigError
from vitp.core.extras import need
from vitp.models.adapt import AdaptSettings
from vitp.models.vision import VisionTower


class VisionLoRASettings(AdaptSettings):
    """Low-rank updates, and a few whole blocks."""

    kind: Literal["lora"] = "lora"
    """Low-rank updates of some layers, with a few whole blocks (ExPLoRA); merged into the tower when it is saved."""

    rank: int = Field(8, ge=1, le=65_536)
    """Rank of the updates."""
    alpha: int = Field(16, gt=0, le=65_536)
    """The updates are scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the input of the updates."""
    targets: tuple[str, ...] = ("attn.qkv",)
    """Linear layers of a block that get an update. `attn.qkv` also stands for three layers that are kept apart; keys
    are adapted, too."""
    unfrozen_blocks: int = Field(1, ge=0, le=1024)
    """Blocks that are trained whole, counted from the last."""
    norms: bool = True
    """Also train all norm layers."""


def add_lora(tower: VisionTower, config: VisionLoRASettings) -> None:
    """Freeze a tower but for low-rank updates, its last blocks and its norms, in place.

    The updates start at zero: the tower computes what it did before.

    Raises:
        ConfigError: peft is not installed, a target is no linear layer, or there are fewer blocks.
    """
    peft = need("lora", "peft", "model.adapt", ConfigError)
    adapted = tower.num_layers - config.unfrozen_blocks
    if adapted < 0:
        raise ConfigError(
            f"the tower has {tower.num_layers} blocks, {config.unfrozen_blocks} can't be unfrozen",
            where="model.adapt.unfrozen_blocks",
            fix=f"use 0 to {tower.num_layers}",
        )
    names = [
        name
        for block in range(adapted)
        for target in config.targets
        for name in _linear_layers(tower, block, target)
    ]
    for parameter in tower.parameters():
        parameter.requires_grad_(False)
    if names:
        settings = peft.LoraConfig(
            r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=names
        )
        for block in tower.model.blocks[:adapted]:
            # EVA's attention adds its biases in one call with the bare weight, which would pass the update by.
            if getattr(block.attn, "q_bias", None) is not None:
                block.attn.qkv_bias_separate = True
        peft.inject_adapter_in_model(settings, tower.model)
    _unfreeze(tower, adapted, norms=config.norms)


def _linear_layers(tower: VisionTower, block: int, target: str) -> list[str]:
    """Return the names of the linear layers that a target of the settings stands for in one block.

    Raises:
        ConfigError: There is none.
    """
    modules = dict(tower.model.blocks[block].named_modules())
    parts = [target]
    if target == "attn.qkv" and modules.get(target) is None:  # kept apart, as in EVA-02's larger models
        parts = [f"attn.{part}_proj" for part in "qkv"]
    if not all(isinstance(modules.get(part), nn.Linear) for part in parts):
        linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
        raise ConfigError(
            f"blocks.{block}.{target} is no linear layer of the tower",
            where="model.adapt.targets",
            fix=f"use one of {', '.join(linear)}",
        )
    return [f"blocks.{block}.{part}" for part in parts]


def _unfreeze(tower: VisionTower, first: int, *, norms: bool) -> None:
    for name, parameter in tower.model.named_parameters():
        parts = name.split(".")
        whole = parts[0] == "blocks" and int(parts[1]) >= first
        is_norm = any(part.startswith("norm") for part in parts)
        parameter.requires_grad_(whole or "lora_" in name or (norms and is_norm))


@contextlib.contextmanager
def plain_layers(module: nn.Module) -> Iterator[None]:
    """Within this context every adapted layer is a plain linear one with the update merged into its weight.

    For saving: names and shapes are those of the unadapted module. Afterwards the layers are as they were, to the bit.
    """
    adapted = {
        name: layer
        for name, layer in module.named_modules()
        if hasattr(layer, "get_delta_weight") and hasattr(layer, "base_layer")
    }
    try:
        for name, layer in adapted.items():
            _replace(module, name, _merged(layer))
        yield
    finally:
        for name, layer in adapted.items():
            _replace(module, name, layer)


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, layer)


@torch.no_grad()
def _merged(layer: Any) -> nn.Linear:
    base = layer.base_layer
    weight: Tensor = base.weight.detach().clone()
    for adapter in layer.active_adapters:
        weight += layer.get_delta_weight(adapter).to(weight.dtype)
    merged = nn.Linear(
        base.in_features,
        base.out_features,
        bias=base.bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    merged.weight.copy_(weight)
    if base.bias is not None:
        merged.bias.copy_(base.bias)
    return merged.requires_grad_(False)
