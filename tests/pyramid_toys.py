"""Small backbones and adapters for tests of the downstream side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitp.models.adapter import ViTAdapter
from vitp.models.plain_vit import PlainViT
from vitp.models.timm_backbone import TimmSettings, TimmStages, timm_backbone
from vitp.models.vision import VisionSettings, VisionTower

SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 4, "num_heads": 4}
SWIN: dict[str, Any] = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4)}
SLIM: dict[str, dict[str, Any]] = {
    "adapter": {"prior_width": 8},
    "simple": {"channels": 24},
    "cnn": {"channels": 24},
}
"""Settings that make each kind of pyramid small."""
VITS = {
    "plain": ("vit_tiny_patch16_224", SMALL),
    "registers": ("vit_tiny_patch16_224", SMALL | {"reg_tokens": 3}),
    "InternViT": ("vit_intern300m_patch14_448", SMALL),
    "DINOv3": ("vit_small_patch16_dinov3", SMALL),
}


def tower_of(patch: int = 16, cells: int = 4, **arguments: Any) -> VisionTower:
    torch.manual_seed(0)
    return VisionTower(
        VisionSettings(arguments=SMALL | {"patch_size": patch} | arguments, image_size=patch * cells)
    )


def swin() -> TimmStages:
    torch.manual_seed(0)
    backbone = timm_backbone(TimmSettings(architecture="swin_tiny_patch4_window7_224", arguments=SWIN))
    assert isinstance(backbone, TimmStages)
    return backbone


def awake(pyramid: nn.Module) -> Any:
    """The pyramid with every parameter moved, so that γ = 0 and norms of one hide nothing."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in pyramid.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return pyramid


def images(batch: int, height: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def adapter_of(patch: int = 16, **changes: Any) -> ViTAdapter:
    tower = tower_of(patch)
    return ViTAdapter(tower, **({"prior_width": 8, "drop_path": 0.0} | changes))


def vit(name: str, image_size: int = 64) -> PlainViT:
    architecture, arguments = VITS[name]
    torch.manual_seed(0)
    config = TimmSettings(
        architecture=architecture, arguments=arguments | {"patch_size": 16}, image_size=image_size
    )
    backbone = timm_backbone(config)
    assert isinstance(backbone, PlainViT)
    return awake(backbone)
