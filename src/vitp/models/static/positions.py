"""Positions of a ViT for images of one size, resampled beforehand: as constants they need no operator of a graph.

Shapes: B images, P prefix tokens ([CLS], registers), N patch tokens on a grid of h × w, D width.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitp.models.plain_vit import PlainViT


def fix_positions(backbone: PlainViT, look: Callable[[], object]) -> None:
    """Let a ViT take images of one size alone, with the very positions that it gives those.

    Args:
        backbone: It is changed; make a copy first.
        look: Shows the ViT an image of the size, whatever lies between.
    """
    model: Any = backbone.model
    own, grids = model._pos_embed, []

    def looked(self: Any, patches_BhwD: Tensor) -> Any:
        grids.append(tuple(patches_BhwD.shape[1:3]))
        return own(patches_BhwD)

    # For one pass the model only tells which grid of patches it embeds.
    model._pos_embed = types.MethodType(looked, model)
    with torch.no_grad():
        look()
        # Patches of zeros leave the positions alone.
        probe: Any = own(torch.zeros(1, *grids[-1], backbone.width))
    tokens_1LD, rest = (probe[0], probe[1:]) if isinstance(probe, tuple) else (probe, None)
    prefix = tokens_1LD.shape[1] - grids[-1][0] * grids[-1][1]
    model.register_buffer("fixed_tokens", tokens_1LD.clone(), persistent=False)

    def placed(self: Any, patches_BhwD: Tensor) -> Any:
        tokens_BLD = patches_BhwD.flatten(1, 2) + self.fixed_tokens[:, prefix:]
        if prefix:
            first_BPD = self.fixed_tokens[:, :prefix].expand(tokens_BLD.shape[0], -1, -1)
            tokens_BLD = torch.cat([first_BPD, tokens_BLD], dim=1)
        return tokens_BLD if rest is None else (tokens_BLD, *rest)

    model._pos_embed = types.MethodType(placed, model)
