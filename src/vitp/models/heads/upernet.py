"""UperNet (arXiv 1807.10221) and the FCN head beside it: pyramid → class of each cell.

The last map is pooled to 1, 2, 3 and 6 cells a side, which tells every cell what the whole image shows; then it
flows down the pyramid, and all levels are read together.

Shapes: B images, C channels, h × w cells of a level (level 0 is the finest), K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitp.core.errors import ConfigError
from vitp.models.convolution import ConvNorm, NormKind

POOLS = (1, 2, 3, 6)
"""Cells on a side that the last map is pooled to, as published."""


def resize_map(map_BChw: Tensor, size: Sequence[int]) -> Tensor:
    """Return the map at another size, bilinearly; pixels, not corners, are aligned."""
    if tuple(map_BChw.shape[-2:]) == tuple(size):
        return map_BChw
    return F.interpolate(map_BChw, size=tuple(size), mode="bilinear", align_corners=False)


class PyramidPooling(nn.Module):
    """Pyramid pooling module: the map beside averages of its halves, thirds and sixths, mixed by a convolution.

    Args:
        channels: Channels of the map.
        width: Channels of the result.
        norm: See `NormKind`.
    """

    def __init__(self, channels: int, width: int, *, norm: NormKind = "group") -> None:
        super().__init__()
        self.branches = nn.ModuleList(ConvNorm(channels, width, 1, norm=norm) for _ in POOLS)
        self.bottleneck = ConvNorm(channels + len(POOLS) * width, width, 3, norm=norm)

    def forward(self, map_BChw: Tensor) -> Tensor:
        """Return (B, width, h, w)."""
        pooled = [
            resize_map(branch(F.adaptive_avg_pool2d(map_BChw, pool)), map_BChw.shape[-2:])
            for branch, pool in zip(self.branches, POOLS, strict=True)
        ]
        map_BDhw: Tensor = self.bottleneck(torch.cat([map_BChw, *pooled], dim=1))
        return map_BDhw


class UperNet(nn.Module):
    """Pyramid pooling on the coarsest map, a feature pyramid, and a classifier on all levels together.

    Args:
        channels: Channels of the maps, finest first.
        width: Channels of the decoder (512 in the paper's segmentation runs, 1024 for LEVIR-CD).
        classes: Number of classes.
        norm: See `NormKind`.
        dropout: Share of the channels that is left out before the classifier while training.

    Raises:
        ConfigError: There are no maps.
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        classes: int,
        *,
        norm: NormKind = "group",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not channels:
            raise ConfigError("UperNet needs at least one map", where="channels")
        *finer, coarsest = channels
        self.pooling = PyramidPooling(coarsest, width, norm=norm)
        self.laterals = nn.ModuleList(ConvNorm(each, width, 1, norm=norm) for each in finer)
        self.smoothers = nn.ModuleList(ConvNorm(width, width, 3, norm=norm) for _ in finer)
        self.fuse = ConvNorm(len(channels) * width, width, 3, norm=norm)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = _classifier(width, classes)

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the fused features (B, width, h, w) at the finest level's size."""
        levels = [lateral(level) for lateral, level in zip(self.laterals, maps[:-1], strict=True)]
        levels.append(self.pooling(maps[-1]))
        # From the coarsest on: each level gets the sum of all coarser ones.
        for number in range(len(levels) - 1, 0, -1):
            finer = levels[number - 1]
            levels[number - 1] = finer + resize_map(levels[number], finer.shape[-2:])
        size = levels[0].shape[-2:]
        # The coarsest level comes smoothed from the pooling.
        smooth = [smoother(level) for smoother, level in zip(self.smoothers, levels[:-1], strict=True)]
        fused_BDhw: Tensor = self.fuse(
            torch.cat([resize_map(level, size) for level in (*smooth, levels[-1])], dim=1)
        )
        return fused_BDhw

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K, h, w) at the finest map's size.

        Args:
            maps: One map for each entry of `channels`, finest first.
        """
        logits_BKhw: Tensor = self.classify(self.dropout(self.features(maps)))
        return logits_BKhw


class FCNHead(nn.Module):
    """A 3×3 convolution and a classifier on one map: the auxiliary head of the published segmentation runs.

    Args:
        channels: Channels of the map.
        width: Channels of the convolution.
        classes: Number of classes.
        norm: See `NormKind`.
        dropout: Share of the channels that is left out before the classifier while training.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        classes: int,
        *,
        norm: NormKind = "group",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(ConvNorm(channels, width, 3, norm=norm))
        self.dropout = nn.Dropout2d(dropout)
        self.classify = _classifier(width, classes)

    def forward(self, map_BChw: Tensor) -> Tensor:
        """Return logits (B, K, h, w)."""
        logits_BKhw: Tensor = self.classify(self.dropout(self.convolutions(map_BChw)))
        return logits_BKhw


def _classifier(width: int, classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(width, classes, 1)
    # Small logits: the first loss is log K whatever the decoder says.
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
