"""Feature pyramid network over any pyramid's maps, and regions cut out of its levels.

Shapes: B images, C channels, H × W pixels, h × w cells, N boxes of an image, R boxes of the whole batch,
P × P cells of a region.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from vitp.models.heads.sampling import true_rows

CANONICAL_LEVEL = 4
"""log2 of the stride that a region of the canonical size is read from (FPN paper, equation 1)."""


class DetectionNeck(nn.Module):
    """Feature pyramid network (Lin et al., CVPR 2017) with one more, subsampled level for large anchors.

    Args:
        channels: Channels of each of the maps, finest first.
        strides: Strides of each of the maps in pixels.
        width: Channels of all levels that come out.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int = 256) -> None:
        super().__init__()
        self.width = width
        self.strides = (*strides, 2 * strides[-1])
        self.fpn = FeaturePyramidNetwork(list(channels), width, extra_blocks=LastLevelMaxPool())

    def forward(self, maps_BChw: Sequence[Tensor]) -> list[Tensor]:
        """Return one float32 map a level, finest first: one more than came in.

        float32 under autocast, too: regions are interpolated at coordinates of the maps' number type.
        """
        named = OrderedDict((str(level), map_BChw) for level, map_BChw in enumerate(maps_BChw))
        return [map_BChw.float() for map_BChw in self.fpn(named).values()]


class RegionPool(nn.Module):
    """RoIAlign (He et al., ICCV 2017) on the pyramid level that suits a region's size.

    torchvision's `MultiScaleRoIAlign` guesses the strides from the first batch that it sees and reads half a
    cell beside the region; here strides are given, and regions are read where they are.

    Args:
        strides: Strides of the levels to read from, finest first.
        size: P, cells on a side of what comes out.
        sampling: Points a cell and direction.
        canonical_size: Side of the square, in pixels, that is read at stride 16; smaller ones are read at finer
            strides.
        aligned: False reads half a cell beside the region, as torchvision's detectors do.
    """

    def __init__(
        self,
        strides: Sequence[int],
        size: int,
        *,
        sampling: int = 2,
        canonical_size: float = 224.0,
        aligned: bool = True,
    ) -> None:
        super().__init__()
        self.strides, self.size, self.sampling = tuple(strides), size, sampling
        self.canonical_size, self.aligned = canonical_size, aligned

    def levels(self, boxes_R4: Tensor) -> Tensor:
        """Return (R,) int64: the index of the level that each box is read from."""
        side_R = ((boxes_R4[:, 2] - boxes_R4[:, 0]) * (boxes_R4[:, 3] - boxes_R4[:, 1])).clamp(min=0).sqrt()
        # The small number keeps a box of exactly a power of two from falling by rounding.
        wanted_R = torch.floor(CANONICAL_LEVEL + torch.log2(side_R / self.canonical_size) + 1e-6)
        finest = round(math.log2(self.strides[0]))
        return (wanted_R.clamp(finest, finest + len(self.strides) - 1) - finest).long()

    def forward(self, maps_BChw: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Return (R, C, P, P).

        Args:
            maps_BChw: Levels, finest first; more than there are strides are left alone.
            boxes: (N, 4) of each image, in pixels.
        """
        rois_R5 = with_image_index(boxes)
        levels_R = self.levels(rois_R5[:, 1:])
        channels = maps_BChw[0].shape[1]
        regions_RCPP = maps_BChw[0].new_zeros((len(rois_R5), channels, self.size, self.size))
        rows = true_rows([levels_R == level for level in range(len(self.strides))])
        for level, (stride, here) in enumerate(zip(self.strides, rows, strict=True)):
            read = roi_align(
                maps_BChw[level],
                rois_R5[here],
                (self.size, self.size),
                1.0 / stride,
                self.sampling,
                self.aligned,
            )
            regions_RCPP[here] = read
        return regions_RCPP


def with_image_index(boxes: Sequence[Tensor]) -> Tensor:
    """Return (R, 1 + D): index of the image, and the D numbers of the box."""
    index_R1 = torch.cat([torch.full_like(boxes_ND[:, :1], i) for i, boxes_ND in enumerate(boxes)])
    return torch.cat([index_R1, torch.cat(list(boxes))], dim=1)
