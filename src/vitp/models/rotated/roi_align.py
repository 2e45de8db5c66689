"""RoIAlign for rotated regions, through `grid_sample`: differentiable in the features, on any device.

Shapes: B images, C channels, H × W cells, K regions, h × w output cells, s samples a cell and direction;
6: index of the image, then a rotated box in pixels (see `vitp.models.rotated.boxes`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLED_VALUES = 2**26
"""Values sampled in one go, before they are averaged: bounds the memory (256 MB in single precision)."""


def rotated_roi_align(
    features_BCHW: Tensor,
    rois_K6: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int = 2,
) -> Tensor:
    """Return the features of each region, (K, C, h, w), the region's long edge along w.

    At angle 0 it equals `torchvision.ops.roi_align(aligned=True)`: the centre of the first cell is at half a
    cell, samples more than one cell outside the map are 0, others outside take the border's value.

    Args:
        features_BCHW: Feature maps.
        rois_K6: Regions.
        output_size: Cells of the result.
        spatial_scale: Cells a pixel, 1 / stride.
        sampling_ratio: Samples in each direction of an output cell, averaged.
    """
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    channels = features_BCHW.shape[1]
    # Half precision has too few digits for positions and sums; autocast would do the same on a GPU.
    features = features_BCHW if features_BCHW.dtype == torch.float64 else features_BCHW.float()
    at_once = max(1, SAMPLED_VALUES // max(1, channels * height * width * sampling_ratio**2))
    image_K, numbers = rois_K6[:, 0].long(), torch.arange(len(features), device=rois_K6.device)
    counts: list[int] = (image_K == numbers[:, None]).sum(1).tolist()
    parts, places = [], []
    for image, own in enumerate(image_K.argsort(stable=True).split(counts)):
        for some in own.split(at_once) if len(own) else ():
            points = sample_points(rois_K6[some, 1:], (height, width), sampling_ratio)
            sampled = _bilinear(features[image : image + 1], points.to(features) * spatial_scale - 0.5)
            parts.append(F.avg_pool2d(sampled, sampling_ratio).transpose(0, 1))
            places.append(some)
    if not parts:
        # Tied to the features, so that a step without regions still has a gradient (of zero) for them.
        return features.new_zeros(len(rois_K6), channels, height, width) + features.sum() * 0
    pooled = torch.cat(parts)[torch.cat(places).argsort()]
    return pooled.to(features_BCHW.dtype)


def sample_points(boxes_K5: Tensor, output_size: tuple[int, int], samples: int) -> Tensor:
    """Return where each region is sampled, (K, h·s, w·s, 2): x, y in pixels."""
    cx, cy, w, h, angle = boxes_K5[:, :, None, None].unbind(1)
    rows, columns = output_size[0] * samples, output_size[1] * samples
    across = (torch.arange(rows, device=boxes_K5.device, dtype=boxes_K5.dtype) + 0.5) / rows - 0.5
    along = (torch.arange(columns, device=boxes_K5.device, dtype=boxes_K5.dtype) + 0.5) / columns - 0.5
    u, v = along[None, None, :] * w, across[None, :, None] * h
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([cx + cos * u - sin * v, cy + sin * u + cos * v], -1)


def _bilinear(features_1CHW: Tensor, cells_Khw2: Tensor) -> Tensor:
    """Return the features at positions in cells (0 is the centre of the first one), (C, K, h, w)."""
    height, width = features_1CHW.shape[2:]
    last = cells_Khw2.new_tensor((width - 1, height - 1))
    # Positions count from the centre of the first cell to that of the last, which is align_corners=True.
    grid = cells_Khw2 * (2 / last.clamp(min=1)) - 1
    regions, rows, columns = grid.shape[:3]
    # All regions below each other in one grid: with one batch item each, the map would be needed once a region.
    sampled = F.grid_sample(
        features_1CHW,
        grid.reshape(1, regions * rows, columns, 2),
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    outside = ((cells_Khw2 < -1) | (cells_Khw2 > last + 1)).any(-1)
    values = sampled[0].view(-1, regions, rows, columns)
    return values.masked_fill(outside[None], 0)


class MultiScaleRotatedRoIAlign(nn.Module):
    """Rotated RoIAlign on the pyramid level that fits a region's size.

    A region of `canonical_size`² pixels goes to the level of stride 2^`canonical_level`, half the side one level
    finer, and so on, as in the feature pyramid network paper (equation 1) and `torchvision.ops.MultiScaleRoIAlign`.

    Args:
        strides: Pixels a cell of each level, powers of two, each twice the one before.
        output_size: Cells of the result.
        sampling_ratio: Samples in each direction of an output cell.
        canonical_size: Pixels.
        canonical_level: log2 of a stride.
    """

    def __init__(
        self,
        strides: Sequence[int],
        output_size: int = 7,
        sampling_ratio: int = 2,
        canonical_size: float = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        self.strides, self.output_size, self.sampling_ratio = tuple(strides), output_size, sampling_ratio
        self.canonical_size, self.canonical_level = canonical_size, canonical_level
        self.finest_level = round(math.log2(strides[0]))

    def level_of(self, boxes_K5: Tensor) -> Tensor:
        """Return the index, (K,), of the map that serves each box."""
        side = (boxes_K5[:, 2] * boxes_K5[:, 3]).clamp(min=1e-6).sqrt()
        # As torchvision does: rounding puts no box of a level's very size one level lower.
        level = torch.floor(self.canonical_level + torch.log2(side / self.canonical_size) + 1e-6)
        return (level - self.finest_level).clamp(0, len(self.strides) - 1).long()

    def forward(self, maps: Sequence[Tensor], rois_K6: Tensor) -> Tensor:
        """Return the features of each region, (K, C, h, w).

        Args:
            maps: One for each stride, finest first.
            rois_K6: Regions.
        """
        level_K = self.level_of(rois_K6[:, 1:])
        parts, places = [], []
        for level, (features, stride) in enumerate(zip(maps, self.strides, strict=True)):
            own = torch.nonzero(level_K == level)[:, 0]
            parts.append(
                rotated_roi_align(features, rois_K6[own], self.output_size, 1 / stride, self.sampling_ratio)
            )
            places.append(own)
        return torch.cat(parts)[torch.cat(places).argsort()]
