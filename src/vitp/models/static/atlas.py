"""Regions of a fixed number from a pyramid's levels, each read once from the level that suits it.

The levels lie one below the other in one map, the atlas, each with a rim of one cell that repeats its border. A region
is read where its level lies, so that no region is computed on levels that it isn't meant for, and nothing has to be
sorted by level.

Shapes: B images, N regions of an image, D channels, h × w cells of a level, P × P cells of a region, s samples a cell
and direction; 4: x1, y1, x2, y2; 5: a rotated box (see `vitp.models.rotated.boxes`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from vitp.models.heads.fpn import RegionPool
from vitp.models.rotated.roi_align import MultiScaleRotatedRoIAlign, sample_points

_SAMPLES_AT_ONCE = 1 << 17
"""Places of rotated regions that are read by one operator, before they are averaged; bounds the memory."""


class Atlas(nn.Module):
    """Levels of known sizes as one map.

    Args:
        sizes: Height and width of each level, finest first.
        strides: Pixels a cell of each level.
    """

    top_L: Tensor
    size_L2: Tensor
    stride_L: Tensor

    def __init__(self, sizes: Sequence[tuple[int, int]], strides: Sequence[int]) -> None:
        super().__init__()
        self.width = 2 + max(width for _, width in sizes)
        self.height = sum(2 + height for height, _ in sizes)
        tops = [sum(2 + height for height, _ in sizes[:level]) for level in range(len(sizes))]
        self.register_buffer("top_L", torch.tensor(tops, dtype=torch.float32) + 1, persistent=False)
        sides = torch.tensor([(width, height) for height, width in sizes], dtype=torch.float32)
        self.register_buffer("size_L2", sides, persistent=False)
        self.register_buffer("stride_L", torch.tensor(strides, dtype=torch.float32), persistent=False)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the atlas (B, D, height, width) of the levels' maps."""
        rimmed = [F.pad(level, (1, 1, 1, 1), mode="replicate") for level in maps]
        return torch.cat([F.pad(level, (0, self.width - level.shape[-1])) for level in rimmed], dim=2)


def _flat(values: Tensor) -> Tensor:
    return values.flatten(0, 1)


class StaticRegionPool(nn.Module):
    """`RegionPool` for a fixed number of regions an image.

    The same but for regions smaller than a cell at the right or lower border with `aligned=False`: those are
    blown up to a cell, which lies partly outside of their level.

    Args:
        pool: The one whose results are wanted.
        sizes: Height and width of each of the levels that it reads.
    """

    def __init__(self, pool: RegionPool, sizes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.pool, self.atlas = pool, Atlas(sizes, pool.strides)

    def forward(self, maps: Sequence[Tensor], boxes_BN4: Tensor) -> Tensor:
        """Return (B·N, D, P, P); boxes lie in the image."""
        atlas, pool = self.atlas, self.pool
        level_R = pool.levels(_flat(boxes_BN4))
        cells_R4 = _flat(boxes_BN4) / atlas.stride_L[level_R][:, None]
        top_R = atlas.top_L[level_R]
        # The atlas has a rim of one cell to the left, and each level its own top.
        shift_R4 = torch.stack([torch.ones_like(top_R), top_R, torch.ones_like(top_R), top_R], dim=1)
        # The numbers of the images as a running sum: a graph that takes any number of images has no `arange` for them.
        image_R1 = (torch.ones_like(boxes_BN4[:, :1, :1]).cumsum(0) - 1).expand(-1, boxes_BN4.shape[1], 1)
        rois_R5 = torch.cat([_flat(image_R1), cells_R4 + shift_R4], dim=1)
        shape = (pool.size, pool.size)
        pooled_RDPP: Tensor = roi_align(atlas(maps), rois_R5, shape, 1.0, pool.sampling, pool.aligned)
        return pooled_RDPP


class StaticRotatedPool(nn.Module):
    """`MultiScaleRotatedRoIAlign` for a fixed number of regions an image.

    Args:
        pool: The one whose results are wanted.
        sizes: Height and width of each of the levels that it reads.
    """

    def __init__(self, pool: MultiScaleRotatedRoIAlign, sizes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.pool, self.atlas = pool, Atlas(sizes, pool.strides)

    def forward(self, maps: Sequence[Tensor], boxes_BN5: Tensor) -> Tensor:
        """Return (B·N, D, P, P)."""
        size, samples = self.pool.output_size, self.pool.sampling_ratio
        atlas_BDHW = self.atlas(maps)
        at_once = max(1, _SAMPLES_AT_ONCE // (size * samples) ** 2)
        parts = [self._read(atlas_BDHW, boxes) for boxes in boxes_BN5.split(at_once, dim=1)]
        pooled_BNDPP = torch.cat(parts, dim=1)
        return _flat(pooled_BNDPP)

    def _read(self, atlas_BDHW: Tensor, boxes_BN5: Tensor) -> Tensor:
        atlas, size, samples = self.atlas, self.pool.output_size, self.pool.sampling_ratio
        boxes_R5 = _flat(boxes_BN5)
        level_R = self.pool.level_of(boxes_R5)
        points_Rhw2 = sample_points(boxes_R5, (size, size), samples)
        cells_Rhw2 = points_Rhw2 / atlas.stride_L[level_R][:, None, None, None] - 0.5
        last_R112 = atlas.size_L2[level_R][:, None, None] - 1
        inside_Rhw = ((cells_Rhw2 >= -1) & (cells_Rhw2 <= last_R112 + 1)).all(-1).float()
        # Kept within its level, so that what lies above or below in the atlas doesn't show through.
        at_Rhw2 = torch.minimum(cells_Rhw2.clamp(min=0), last_R112)
        x_Rhw = at_Rhw2[..., 0] + 1
        y_Rhw = at_Rhw2[..., 1] + atlas.top_L[level_R][:, None, None]
        grid_Rhw2 = torch.stack([x_Rhw * (2 / (atlas.width - 1)), y_Rhw * (2 / (atlas.height - 1))], -1) - 1
        regions, side = boxes_BN5.shape[1], size * samples
        grid_Bhw2 = grid_Rhw2.view(-1, regions * side, side, 2)
        read_BDhw = F.grid_sample(
            atlas_BDHW, grid_Bhw2, mode="bilinear", padding_mode="border", align_corners=True
        )
        read_BDhw = read_BDhw * inside_Rhw.view(-1, 1, regions * side, side)
        pooled_BDhw = F.avg_pool2d(read_BDhw, samples)
        parts_BNDPP: Tensor = pooled_BDhw.unflatten(2, (regions, size)).transpose(1, 2)
        return parts_BNDPP
