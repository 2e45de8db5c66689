"""ViT-Adapter (arXiv 2205.08534): a plain ViT and a small convolutional branch that talk to each other.

The spatial prior module sees the image in detail, at 1/4 to 1/32. Before each part of the ViT's blocks an injector
lets the patches look into that detail, after it an extractor lets the detail look into the patches. The ViT keeps
its own grid: deformable attention works on places in the image, so patches of 8, 14 or 16 px need no change.

Shapes: B images, H × W pixels, D width, N patches, S cells of the maps at 1/8, 1/16 and 1/32 one after the other,
h × w cells of a map.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitp.core.errors import ConfigError, did_you_mean
from vitp.models.backbone import Backbone
from vitp.models.convolution import ConvNorm, NormKind, make_norm
from vitp.models.deformable import MultiScaleDeformableAttention, cell_centers
from vitp.models.plain_vit import PlainViT, TokenGrid
from vitp.models.pyramid import (
    STRIDES,
    CNNPyramid,
    Pyramid,
    PyramidKind,
    SimpleFeaturePyramid,
    pad_to_multiple,
    to_stride,
)

LOOKED_AT = STRIDES[1:]
"""Strides of the maps that take part in the interactions; the finest is too large and joins at the end."""
PAPER_INTERACTIONS = {24: (range(8), range(8, 12), range(12, 16), range(16, 24))}
"""Depth → parts of the blocks in the ViTP paper's downstream runs."""


def interactions(depth: int, count: int = 4) -> tuple[range, ...]:
    """Return the parts that `depth` blocks are cut into, one for each interaction.

    24 blocks are cut as in the ViTP paper (0–7, 8–11, 12–15, 16–23), others into parts that
    differ by one block at most. There are never more parts than blocks.
    """
    if count == 4 and depth in PAPER_INTERACTIONS:
        return PAPER_INTERACTIONS[depth]
    count = max(1, min(count, depth))
    ends = [math.ceil(depth * part / count) for part in range(count + 1)]
    return tuple(range(first, last) for first, last in itertools.pairwise(ends))


class SpatialPrior(nn.Module):
    """Convolutions that turn the image into maps at 1/4, 1/8, 1/16 and 1/32, (B, D, h, w) each.

    Args:
        width: Channels of the maps (D).
        inner: Channels of the stem; the stages have 2, 4 and 4 times as many.
        norm: See `NormKind`.
        channels: Channels of the images.
    """

    def __init__(self, width: int, inner: int = 64, *, norm: NormKind = "group", channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNorm(channels, inner, 3, stride=2, norm=norm),
            ConvNorm(inner, inner, 3, norm=norm),
            ConvNorm(inner, inner, 3, norm=norm),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        widths = (inner, 2 * inner, 4 * inner, 4 * inner)
        self.stages = nn.ModuleList(
            ConvNorm(before, after, 3, stride=2, norm=norm) for before, after in itertools.pairwise(widths)
        )
        self.project = nn.ModuleList(nn.Conv2d(each, width, 1) for each in widths)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """Return the four maps, finest first, of images whose sides are multiples of 32."""
        maps = [self.stem(image_BCHW)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return [project(level) for project, level in zip(self.project, maps, strict=True)]


class ConvFFN(nn.Module):
    """Feed-forward layer with a depth-wise 3×3 convolution inside, the same for all maps: (B, S, D) → (B, S, D)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.activation = nn.GELU()
        self.reduce = nn.Linear(hidden, width)

    def forward(self, cells_BSD: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Return the changed cells of maps of the given heights and widths."""
        maps = split_maps(self.expand(cells_BSD), shapes)
        mixed_BSE = join_maps([self.depthwise(level) for level in maps])
        changed_BSD: Tensor = self.reduce(self.activation(mixed_BSE))
        return changed_BSD


def split_maps(cells_BSD: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Return the maps (B, D, h, w) that lie one after the other in `cells_BSD`."""
    levels = cells_BSD.split([height * width for height, width in shapes], dim=1)
    # Rows and columns first, then channels to the front: OpenVINO loses the order of three axes that become four.
    return [
        level.unflatten(1, shape).permute(0, 3, 1, 2) for level, shape in zip(levels, shapes, strict=True)
    ]


def join_maps(maps: Sequence[Tensor]) -> Tensor:
    """Return the cells (B, S, D) of maps (B, D, h, w), map after map, row by row."""
    return torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2)


class Injector(nn.Module):
    """Patches look at the spatial prior's maps. γ starts at 0: at first the ViT is left as it was pretrained."""

    def __init__(self, width: int, **attention: Any) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width, eps=1e-6)
        self.value_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = MultiScaleDeformableAttention(width, levels=len(LOOKED_AT), **attention)
        # Nothing is added at first: the ViT begins as it was pretrained.
        self.gamma = nn.Parameter(torch.zeros(width))

    def forward(
        self,
        patches_BND: Tensor,
        places_N2: Tensor,
        cells_BSD: Tensor,
        shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Return the changed patches."""
        found = self.attention(
            self.query_norm(patches_BND), places_N2, self.value_norm(cells_BSD), list(shapes)
        )
        changed_BND: Tensor = patches_BND + self.gamma * found
        return changed_BND


class Extractor(nn.Module):
    """The spatial prior's maps look at the patches; a `ConvFFN` follows."""

    def __init__(self, width: int, hidden: int, drop_path: float, **attention: Any) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width, eps=1e-6)
        self.value_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = MultiScaleDeformableAttention(width, levels=1, **attention)
        self.ffn_norm = nn.LayerNorm(width, eps=1e-6)
        self.ffn = ConvFFN(width, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        cells_BSD: Tensor,
        places_S2: Tensor,
        shapes: Sequence[tuple[int, int]],
        patches_BND: Tensor,
        grid: tuple[int, int],
    ) -> Tensor:
        """Return the changed cells."""
        cells_BSD = cells_BSD + self.attention(
            self.query_norm(cells_BSD), places_S2, self.value_norm(patches_BND), [grid]
        )
        changed_BSD: Tensor = cells_BSD + self.drop_path(self.ffn(self.ffn_norm(cells_BSD), shapes))
        return changed_BSD


class ViTAdapter(Pyramid):
    """A plain ViT as a feature pyramid of strides 4, 8, 16 and 32, as wide as the ViT.

    To each of the four maps the ViT's own features are added, after the first interaction to the finest, after the
    last to the coarsest. The last ones have passed the ViT's final norm, where it has one.

    Args:
        backbone: The ViT.
        parts: Number of interactions (see `interactions`), or the first and last block of each part.
        heads: Heads of the deformable attention; None: as many as the ViT has.
        points: Points that a query looks at, for each head and map.
        value_ratio: Channels of the attention's values as a share of the width.
        ffn_ratio: Channels inside of the feed-forward layers as a share of the width.
        prior_width: Channels of the spatial prior's stem.
        extra_extractors: Further extractors after the last interaction.
        drop_path: Stochastic depth rate of the feed-forward layers.
        norm: Norm of the convolutions and of the four maps; published: `sync`.

    Raises:
        ConfigError: The backbone is no plain ViT, the parts aren't its blocks in order, or the channels can't be
            shared among the heads.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        parts: int | Sequence[tuple[int, int]] = 4,
        heads: int | None = None,
        points: int = 4,
        value_ratio: float = 0.25,
        ffn_ratio: float = 0.25,
        prior_width: int = 64,
        extra_extractors: int = 2,
        drop_path: float = 0.1,
        norm: NormKind = "group",
    ) -> None:
        super().__init__()
        if not isinstance(backbone, PlainViT):
            raise ConfigError(
                f"{type(backbone).__name__} is no plain ViT",
                where="adapter",
                fix='choose the "cnn" pyramid for a hierarchical network, else "simple"',
            )
        self.backbone: PlainViT = backbone
        self.parts = _checked_parts(parts, backbone.num_layers)
        width = backbone.width
        self.channels, self.strides = width, STRIDES
        self.recompute = False
        self.prior = SpatialPrior(width, prior_width, norm=norm, channels=backbone.num_channels)
        self.level_embedding = nn.Parameter(torch.randn(len(LOOKED_AT), width))
        attention = {"heads": heads or backbone.heads, "points": points, "value_ratio": value_ratio}
        hidden = max(1, round(width * ffn_ratio))
        self.injectors = nn.ModuleList(Injector(width, **attention) for _ in self.parts)
        # The extra ones follow the last part's own.
        self.extractors = nn.ModuleList(
            Extractor(width, hidden, drop_path, **attention)
            for _ in range(len(self.parts) + extra_extractors)
        )
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.norms = nn.ModuleList(make_norm(norm, width) for _ in STRIDES)
        self._initialize()

    def _initialize(self) -> None:
        for name, module in self.named_modules():
            if name.startswith("backbone"):
                continue
            if isinstance(module, nn.Linear):
                # As the published adapter starts, apart from the layers that `reset_parameters` sets below.
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                # Kaiming's start by fan-out; in a grouped convolution an input reaches only 1 / groups of the outputs.
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 * module.groups / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # After the loop, which has overwritten the star of points that deformable attention starts from.
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.reset_parameters()

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute injectors, blocks and extractors in the backward pass: less memory, more time."""
        super().set_gradient_checkpointing(enabled)
        self.recompute = enabled

    def features(self, image_BCHW: Tensor) -> list[Tensor]:
        """Return the maps. See `Pyramid.features`."""
        finest_BDhw, *maps = self.prior(image_BCHW)
        shapes = [(level.shape[-2], level.shape[-1]) for level in maps]
        vit_image_BCHW = pad_to_multiple(image_BCHW, self.backbone.patch_size)
        tokens = self.backbone.embed_tokens(vit_image_BCHW)
        cells_BSD = join_maps(
            [
                level + embedding[:, None, None]
                for level, embedding in zip(maps, self.level_embedding, strict=True)
            ]
        )
        # Both branches start at the same corner, but may end at different padding: places are pixels, divided
        # by the size of what is looked at.
        device = image_BCHW.device
        frame, vit_frame = _sides(image_BCHW), _sides(vit_image_BCHW)
        places_N2 = cell_centers(tokens.grid, self.backbone.patch_size, frame, device)
        places_S2 = torch.cat(
            [
                cell_centers(shape, stride, vit_frame, device)
                for shape, stride in zip(shapes, LOOKED_AT, strict=True)
            ]
        )
        cells_BSD, vit_maps = self._interact(tokens, cells_BSD, places_N2, places_S2, shapes)
        maps = split_maps(cells_BSD, shapes)
        return self._outputs([finest_BDhw + self.up(maps[0]), *maps], vit_maps)

    def _interact(
        self,
        tokens: TokenGrid,
        cells_BSD: Tensor,
        places_N2: Tensor,
        places_S2: Tensor,
        shapes: Sequence[tuple[int, int]],
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the cells after all interactions, and the ViT's map after each."""
        vit_maps = []
        last = len(self.parts) - 1
        for number, part in enumerate(self.parts):
            patches_BND = self._run(self.injectors[number], tokens.patches_BND, places_N2, cells_BSD, shapes)
            tokens = self.backbone.run_blocks(tokens.with_patches(patches_BND), part[0], part[-1])
            extractors = self.extractors[number:] if number == last else self.extractors[number : number + 1]
            for extractor in extractors:
                cells_BSD = self._run(
                    extractor, cells_BSD, places_S2, shapes, tokens.patches_BND, tokens.grid
                )
            done = self.backbone.finish_tokens(tokens) if number == last else tokens
            vit_maps.append(done.map_BDhw)
        return cells_BSD, vit_maps

    def _run(self, module: Callable[..., Tensor], *arguments: Any) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            # The reentrant kind gives no gradient at all where none of the arguments needs one.
            return checkpoint(module, *arguments, use_reentrant=False)
        return module(*arguments)

    def _outputs(self, maps: Sequence[Tensor], vit_maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps with the ViT's features added, normalised."""
        outputs = []
        for number, (level, stride, norm) in enumerate(zip(maps, STRIDES, self.norms, strict=True)):
            # With fewer than four interactions some serve more than one map.
            vit_map = vit_maps[number * len(vit_maps) // len(STRIDES)]
            vit_map = to_stride(vit_map, self.backbone.patch_size, stride, level.shape[-2:])
            outputs.append(norm(level + vit_map))
        return outputs


def _sides(image_BCHW: Tensor) -> tuple[int, int]:
    return image_BCHW.shape[-2], image_BCHW.shape[-1]


def _checked_parts(parts: int | Sequence[tuple[int, int]], depth: int) -> tuple[range, ...]:
    if isinstance(parts, int):
        if parts < 1:
            raise ConfigError(
                f"there can't be {parts} interactions", where="neck.options.parts", fix="give 1 or more"
            )
        return interactions(depth, parts)
    ranges = tuple(range(first, last + 1) for first, last in parts)
    if [block for part in ranges for block in part] != list(range(depth)) or not all(ranges):
        raise ConfigError(
            f"{[tuple(part) for part in parts]} aren't the blocks 0 to {depth - 1} in order",
            where="neck.options.parts",
            fix="give the first and the last block of each part",
        )
    return ranges


def build_pyramid(backbone: Backbone, kind: PyramidKind, **settings: Any) -> Pyramid:
    """Return a pyramid around a backbone.

    Args:
        backbone: The pretrained part; it becomes part of the pyramid.
        kind: `adapter` (ViT-Adapter, of a plain ViT), `simple` (of any backbone's last map) or `cnn` (the
            stages of a hierarchical network).
        settings: Arguments of `ViTAdapter`, `SimpleFeaturePyramid` or `CNNPyramid`.

    Raises:
        ConfigError: There is no such kind, a setting is unknown, or the backbone doesn't fit the kind.
    """
    kinds: dict[str, type[Pyramid]] = {
        "adapter": ViTAdapter,
        "simple": SimpleFeaturePyramid,
        "cnn": CNNPyramid,
    }
    if kind not in kinds:
        raise ConfigError(
            f'there is no pyramid "{kind}"',
            where="neck.kind",
            fix=did_you_mean(kind, kinds) or f"choose {', '.join(kinds)}",
        )
    known = inspect.signature(kinds[kind]).parameters
    for name in settings:
        if name not in known:
            own = [other for other in known if other != "backbone"]
            raise ConfigError(
                f'the {kind} pyramid has no setting "{name}"',
                where="neck",
                fix=did_you_mean(name, own) or f"the settings are {', '.join(own)}",
            )
    return kinds[kind](backbone, **settings)
