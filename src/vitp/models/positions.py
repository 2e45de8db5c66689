"""Learned position tables at other sizes.

Shapes: B images, P prefix rows ([CLS], registers), N cells on a grid of h × w, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from vitp.core.errors import ConfigError

PositionMethod = Literal["antialiased", "bicubic"]
"""How a position table gets the grid of another image size.

`bicubic` is what the published code of InternVL and ViTP does: cubic convolution with coefficient −0.75,
each value from 4 × 4 neighbours, whatever the scale. `antialiased` is timm's way: coefficient −0.5, and a
kernel that widens when the grid shrinks. From 32 × 32 cells to 16 × 16 they are 15 % apart, so weights want
the one that they were trained with.
"""


def resample_positions(
    table_1ND: Tensor,
    grid: tuple[int, int],
    *,
    prefix: int = 0,
    old_grid: tuple[int, int] | None = None,
    method: PositionMethod = "antialiased",
) -> Tensor:
    """Return the position table of a grid of another size, interpolated in float32.

    Args:
        table_1ND: Learned positions: `prefix` rows that stay as they are, then the cells row by row.
        grid: Rows and columns that are wanted.
        prefix: Rows of [CLS] and registers in the table.
        old_grid: Rows and columns of the table; None: a square.
        method: See `PositionMethod`.

    Raises:
        ConfigError: The table doesn't hold the old grid, or there is no such method.
    """
    cells = table_1ND.shape[1] - prefix
    side = round(cells**0.5)
    old = old_grid or (side, side)
    if old[0] * old[1] != cells:
        raise ConfigError(
            f"{cells} positions are no grid of {old[0]} × {old[1]}",
            where="position table",
            fix="give its grid",
        )
    if method == "antialiased":
        resized_1ND: Tensor = resample_abs_pos_embed(
            table_1ND, list(grid), list(old), num_prefix_tokens=prefix
        )
        return resized_1ND
    if method != "bicubic":
        raise ConfigError(
            f'there is no method "{method}"', where="position table", fix="choose bicubic or antialiased"
        )
    if tuple(grid) == tuple(old):
        return table_1ND
    map_1Dhw = table_1ND[:, prefix:].float().transpose(1, 2).unflatten(2, old)
    resized_1Dhw = F.interpolate(map_1Dhw, size=tuple(grid), mode="bicubic", align_corners=False)
    cells_1ND = resized_1Dhw.flatten(2).transpose(1, 2).to(table_1ND.dtype)
    return torch.cat([table_1ND[:, :prefix], cells_1ND], dim=1)


class BicubicViT(VisionTransformer):
    """timm's Vision Transformer, whose positions follow the image's size as InternVL's code makes them do."""

    def _pos_embed(self, x: Tensor) -> Tensor:
        patches_BND = x.flatten(1, 2)
        own = (int(self.patch_embed.grid_size[0]), int(self.patch_embed.grid_size[1]))
        prefix = 0 if self.no_embed_class else self.num_prefix_tokens
        assert self.pos_embed is not None  # see `use_bicubic_positions`
        table_1ND = resample_positions(
            self.pos_embed, (x.shape[1], x.shape[2]), prefix=prefix, old_grid=own, method="bicubic"
        )
        first = [token for token in (self.cls_token, self.reg_token) if token is not None]
        before = [token.expand(x.shape[0], -1, -1) for token in first]
        if self.no_embed_class:
            tokens_BLD = torch.cat([*before, patches_BND + table_1ND], dim=1)
        else:
            tokens_BLD = torch.cat([*before, patches_BND], dim=1) + table_1ND
        placed_BLD: Tensor = self.pos_drop(tokens_BLD)
        return placed_BLD


def use_bicubic_positions(model: VisionTransformer) -> None:
    """Let a model that is made for images of any size resample its positions bicubically.

    Raises:
        ConfigError: Its positions aren't those of a plain Vision Transformer.
    """
    if type(model)._pos_embed is not VisionTransformer._pos_embed or model.pos_embed is None:
        raise ConfigError(
            f"a {type(model).__name__} has positions of its own kind",
            where="vision.positions",
            fix='leave it at "antialiased"',
        )
    # timm chooses the class; weights and layers are those of the plain one.
    model.__class__ = BicubicViT
