"""Feature pyramids: images → maps of one width at falling resolution, for every head that needs more than one map.

Shapes: B images, H × W pixels, D backbone width, C pyramid channels, h × w cells.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vitp.core.errors import ConfigError
from vitp.models.backbone import Backbone
from vitp.models.convolution import ChannelNorm, NormKind, make_norm

PyramidKind = Literal["adapter", "simple", "cnn"]
STRIDES = (4, 8, 16, 32)


def pad_to_multiple(image_BCHW: Tensor, multiple: int) -> Tensor:
    """Return the images with zeros at the bottom and the right, so that both sides are multiples."""
    height, width = image_BCHW.shape[-2:]
    missing = (0, -width % multiple, 0, -height % multiple)
    return F.pad(image_BCHW, missing) if any(missing) else image_BCHW


class Pyramid(nn.Module, ABC):
    """A backbone with what makes a feature pyramid of it.

    Attributes:
        backbone: The pretrained part.
        channels: Channels of every map.
        strides: Pixels a cell of each map, finest first.
    """

    backbone: Backbone
    channels: int
    strides: tuple[int, ...]

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """Return one map (B, C, ⌈H / stride⌉, ⌈W / stride⌉) for each stride, finest first.

        Args:
            image_BCHW: Normalised float images of any size (see `Backbone.normalize`). Sides that are no
                multiple of the coarsest stride are padded with zeros, the mean colour.
        """
        height, width = image_BCHW.shape[-2:]
        maps = self.features(pad_to_multiple(image_BCHW, self.strides[-1]))
        return [
            level[..., : math.ceil(height / stride), : math.ceil(width / stride)]
            for level, stride in zip(maps, self.strides, strict=True)
        ]

    @abstractmethod
    def features(self, image_BCHW: Tensor) -> list[Tensor]:
        """Return the maps of images whose sides are multiples of the coarsest stride."""

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass where the backbone can: less memory, more time."""
        set_checkpointing = getattr(self.backbone, "set_gradient_checkpointing", None)
        if set_checkpointing is not None:
            set_checkpointing(enabled)


def to_stride(map_BChw: Tensor, old: int, new: int, size: Sequence[int]) -> Tensor:
    """Return a map of stride `old` as one of stride `new`, bilinearly, cut to `size` cells.

    Both share the upper left corner of the image, whatever lies beyond the other end.
    """
    if old == new and tuple(map_BChw.shape[-2:]) == tuple(size):
        return map_BChw
    if old != new:
        map_BChw = F.interpolate(map_BChw, scale_factor=old / new, mode="bilinear", align_corners=False)
    return map_BChw[..., : size[0], : size[1]]


class SimpleFeaturePyramid(Pyramid):
    """The simple feature pyramid of ViTDet (arXiv 2203.16527): all maps are made from the ViT's last one.

    Deconvolutions double the last map's resolution, max pooling halves it, and two convolutions bring each map
    to `channels`. The strides are 4, 8, 16 and 32 for every patch size: patches of 8 need one doubling and two
    halvings, and where the patch size is no power of two (14), the last map is resampled to the nearest stride
    that is (16).

    Args:
        backbone: Any backbone; its last layer is read.
        channels: Channels of the maps.
        norm: `layer` (over the channels of a cell, as published) or a `NormKind`.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        channels: int = 256,
        norm: NormKind | Literal["layer"] = "layer",
    ) -> None:
        super().__init__()
        self.backbone, self.channels, self.strides = backbone, channels, STRIDES
        self.old_stride = backbone.strides[-1]
        nearest = 2 ** round(math.log2(self.old_stride))
        self.base_stride = min(max(nearest, STRIDES[0]), STRIDES[-1])
        width = backbone.channels[-1]
        self.stages = nn.ModuleList(self._stage(width, stride, norm) for stride in STRIDES)

    def _stage(self, width: int, stride: int, norm: NormKind | Literal["layer"]) -> nn.Sequential:
        layers: list[nn.Module] = []
        # Negative where the map is coarser to be: then it is halved as often.
        doublings = int(math.log2(self.base_stride / stride))
        for number in range(doublings):
            layers.append(nn.ConvTranspose2d(width, width // 2, 2, stride=2))
            width //= 2
            # As in ViTDet norm and GELU stand between two deconvolutions, and not behind the last one.
            if number < doublings - 1:
                layers += [_norm(norm, width), nn.GELU()]
        if doublings < 0:
            layers.append(nn.MaxPool2d(2**-doublings))
        for kernel in (1, 3):
            layers += [
                nn.Conv2d(width, self.channels, kernel, padding=kernel // 2, bias=False),
                _norm(norm, self.channels),
            ]
            width = self.channels
        return nn.Sequential(*layers)

    def features(self, image_BCHW: Tensor) -> list[Tensor]:
        """Return the maps. See `Pyramid.features`."""
        height, width = image_BCHW.shape[-2:]
        (last_BDhw,) = self.backbone.forward_features(pad_to_multiple(image_BCHW, self.old_stride))
        cells = (height // self.base_stride, width // self.base_stride)
        last_BDhw = to_stride(last_BDhw, self.old_stride, self.base_stride, cells)
        return [stage(last_BDhw) for stage in self.stages]


def _norm(kind: NormKind | Literal["layer"], channels: int) -> nn.Module:
    return ChannelNorm(channels, eps=1e-6) if kind == "layer" else make_norm(kind, channels)


class CNNPyramid(Pyramid):
    """The four stages of a hierarchical network (ResNet, ConvNeXt, Swin), each brought to one width.

    A feature pyramid network is left to the head that needs one: UperNet and the detectors have their own.

    Args:
        backbone: One with layers of stride 4, 8, 16 and 32 (see `vitp.models.timm_backbone`).
        channels: Channels of the maps.
        norm: See `NormKind`.

    Raises:
        ConfigError: A stride is missing.
    """

    def __init__(self, backbone: Backbone, *, channels: int = 256, norm: NormKind = "group") -> None:
        super().__init__()
        # Of several layers with one stride the deepest is taken: it replaces the earlier ones in the dictionary.
        last_of_stride = {stride: number for number, stride in enumerate(backbone.strides)}
        missing = [stride for stride in STRIDES if stride not in last_of_stride]
        if missing:
            raise ConfigError(
                f"{type(backbone).__name__} has no layer of stride {missing[0]}",
                where="pyramid",
                fix="choose the adapter or the simple pyramid for a plain ViT",
            )
        self.backbone, self.channels, self.strides = backbone, channels, STRIDES
        self.layers = tuple(last_of_stride[stride] for stride in STRIDES)
        self.laterals = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(backbone.channels[layer], channels, 1, bias=False), make_norm(norm, channels)
            )
            for layer in self.layers
        )

    def features(self, image_BCHW: Tensor) -> list[Tensor]:
        """Return the maps. See `Pyramid.features`."""
        maps = self.backbone.forward_features(image_BCHW, self.layers)
        return [lateral(level) for lateral, level in zip(self.laterals, maps, strict=True)]
