"""A trained ViT at another patch size and another image size.

Shapes: D width, P patch side, h × w cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor

from vitp.core.errors import ConfigError
from vitp.models.positions import PositionMethod, resample_positions
from vitp.models.vision import VisionTower

KernelMethod = Literal["bicubic", "pseudo_inverse"]
"""How patch kernels change size.

`bicubic` interpolates the kernel, as the ViTP paper does; responses grow with the area of the patch (14 → 16:
by 1.31). `pseudo_inverse` (FlexiViT, arXiv 2212.08013, eq. 5) keeps the response to an image that is resized
along with the patch: exactly when the patch grows, as nearly as possible when it shrinks.
"""

KERNEL = "model.patch_embed.proj.weight"
POSITIONS = "model.pos_embed"


def resample_kernel(kernel_D3PP: Tensor, patch_size: int, method: KernelMethod = "bicubic") -> Tensor:
    """Return the patch kernel for patches of another size.

    Raises:
        ConfigError: There is no such method.
    """
    size = (patch_size, patch_size)
    if tuple(kernel_D3PP.shape[-2:]) == size:
        return kernel_D3PP
    if method == "bicubic":
        resized = F.interpolate(kernel_D3PP.float(), size=size, mode="bicubic", align_corners=False)
        return resized.to(kernel_D3PP.dtype)
    if method == "pseudo_inverse":
        resized_D3QQ: Tensor = resample_patch_embed(kernel_D3PP, list(size))
        return resized_D3QQ
    raise ConfigError(
        f'there is no method "{method}"', where="patch kernel", fix="choose bicubic or pseudo_inverse"
    )


def fit_weights(
    weights: Mapping[str, Tensor],
    tower: VisionTower,
    *,
    method: KernelMethod = "bicubic",
) -> dict[str, Tensor]:
    """Return a vision tower's weights with patch kernel and position table resampled to fit `tower`.

    Positions are resampled in the tower's own way (`VisionSettings.positions`). All else is passed on as it is:
    loading them strictly tells what else doesn't fit.

    Args:
        weights: State of a `VisionTower` of the same architecture.
        tower: The tower that is to get them.
        method: See `KernelMethod`.
    """
    fitted = dict(weights)
    if KERNEL in fitted:
        fitted[KERNEL] = resample_kernel(fitted[KERNEL], tower.patch_size, method)
    if POSITIONS in fitted:
        model = tower.model
        prefix = 0 if model.no_embed_class else model.num_prefix_tokens
        grid = tuple(model.patch_embed.grid_size)
        fitted[POSITIONS] = resample_positions(
            fitted[POSITIONS],
            (grid[0], grid[1]),
            prefix=prefix,
            method=tower.config.positions,
        )
    return fitted


def resized_tower(
    tower: VisionTower,
    *,
    patch_size: int | None = None,
    image_size: int | None = None,
    drop_path: float = 0.0,
    method: KernelMethod = "bicubic",
    positions: PositionMethod | None = None,
) -> VisionTower:
    """Return a copy of the tower for other patches, another image size or another drop path rate.

    Any image whose sides are multiples of the patch size can be given to any tower; the image size decides
    what the position table is kept for, and what the tower is asked for where nothing else is said.

    Args:
        tower: The trained tower; it isn't changed.
        patch_size: None: as before.
        image_size: None: as before, rounded to whole patches.
        drop_path: Stochastic depth rate of the last block.
        method: See `KernelMethod`.
        positions: How positions are resampled, now and by the copy; None: as before.

    Raises:
        ConfigError: The patches don't cut the image evenly.
    """
    patch = patch_size or tower.patch_size
    size = image_size or max(1, round(tower.image_size[0] / patch)) * patch
    arguments: dict[str, Any] = {**tower.config.arguments}
    if patch != tower.patch_size:
        arguments["patch_size"] = patch
    update = {"arguments": arguments, "image_size": size, "positions": positions or tower.config.positions}
    config = tower.config.model_copy(update=update)
    resized = VisionTower(config, drop_path=drop_path)
    resized.load_state_dict(fit_weights(tower.state_dict(), resized, method=method), strict=True)
    device = next(tower.parameters()).device
    return resized.to(device).train(tower.training)
