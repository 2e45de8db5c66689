"""Self-attention maps that the reader explores: click a patch, see what it attends to.

Shapes: h × w patches, N = h·w.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import matplotlib as mpl
import numpy as np
from PIL import Image

from vitp.core.errors import VitpError
from vitp.data.augment import resize_image
from vitp.evaluation.attention import grid_of, patch_attention
from vitp.models.plain_vit import PlainViT
from vitp.report.pictures import PictureSource, data_address, open_picture


@dataclass(frozen=True)
class BackboneAttention:
    """Attention of one backbone on the explorer's images.

    Attributes:
        name: Name of the backbone.
        layers: Number of each layer that is given, counted from 0.
        grid: Rows and columns of patches; N = rows × columns.
        maps: One array an image, (layers, N, N) already averaged over heads or (layers, heads, N, N), values
            ≥ 0: row q holds how much query patch q attends to each patch.
    """

    name: str
    layers: Sequence[int]
    grid: tuple[int, int]
    maps: Sequence[np.ndarray]

    def __post_init__(self) -> None:
        count = self.grid[0] * self.grid[1]
        for number, attention in enumerate(self.maps):
            shape = attention.shape
            if attention.ndim not in (3, 4) or shape[0] != len(self.layers) or shape[-2:] != (count, count):
                raise VitpError(
                    f"attention of image {number} has shape {shape}",
                    where=f"backbone {self.name}",
                    fix=f"give ({len(self.layers)}, [heads,] {count}, {count}) for a grid of {self.grid}",
                )
            if not np.isfinite(attention).all() or (attention < 0).any():
                raise VitpError(
                    f"attention of image {number} is negative or not finite", where=f"backbone {self.name}"
                )

    @property
    def heads(self) -> int:
        """Number of heads that can be shown one by one: those all images have, 0 for means only."""
        return min((m.shape[1] if m.ndim == 4 else 0 for m in self.maps), default=0)

    @property
    def cost(self) -> int:
        """Bytes that the maps take on the page."""
        # A plane is one byte a weight and four a row, in base64; beside single heads stands their mean.
        patches = self.grid[0] * self.grid[1]
        planes = sum(len(m) * (1 if m.ndim == 3 else m.shape[1] + 1) for m in self.maps)
        return int(planes * patches * (patches + 4) * 4 / 3)


def quantise(attention: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (…, N, N) attention as uint8 of each row's largest value, and these (…, N) float32 values.

    `uint8 / 255 × largest`, which the page's script computes, differs from the input by
    at most `largest / 510` (and float32 rounding).
    """
    largest = attention.max(axis=-1).astype(np.float32)
    scale = np.where(largest > 0, largest, 1.0)
    return np.rint(attention / scale[..., None] * 255).clip(0, 255).astype(np.uint8), largest


@dataclass(frozen=True)
class AttentionExplorer:
    """Pictures of which the reader clicks a patch to see the attention of that patch.

    When the maps would take more than `megabytes`, single heads are left out first, then layers (the first and
    the last stay), and a line on the page says so.

    Attributes:
        title: Above the explorer.
        images: The pictures, each whole as the backbone saw it.
        backbones: One or several, shown side by side. All need the same number of images and of layers.
        patch: Row and column (of the first backbone's grid) that is chosen at first; None takes the middle.
        image_names: Captions of the pictures.
        megabytes: Budget of the maps on the page.
        note: Small text below.
    """

    kind: ClassVar[str] = "attention"
    title: str
    images: Sequence[PictureSource]
    backbones: Sequence[BackboneAttention]
    patch: tuple[int, int] | None = None
    image_names: Sequence[str] = ()
    megabytes: float = 3.0
    note: str = ""

    def __post_init__(self) -> None:
        if not self.images or not self.backbones:
            raise VitpError("an attention explorer needs an image and a backbone", where=self.title)
        depths = {len(b.layers) for b in self.backbones}
        if len(depths) > 1 or any(len(b.maps) != len(self.images) for b in self.backbones):
            raise VitpError(
                "the backbones differ in their number of layers or images",
                where=self.title,
                fix="give each the same number of layers, and one map an image",
            )
        if self.patch is not None:
            (rows, columns), (row, column) = self.backbones[0].grid, self.patch
            if not (0 <= row < rows and 0 <= column < columns):
                raise VitpError(f"patch {self.patch} is outside the grid {(rows, columns)}", where=self.title)

    @cached_property
    def _fitted(self) -> tuple[list[BackboneAttention], list[str]]:
        """The backbones within the budget, and what was left out."""
        backbones, left_out = list(self.backbones), []
        budget = self.megabytes * 1e6
        if sum(b.cost for b in backbones) > budget and any(b.heads for b in backbones):
            backbones = [
                replace(b, maps=[m.mean(axis=1) if m.ndim == 4 else m for m in b.maps]) for b in backbones
            ]
            left_out.append("single heads")
        depth, cost = len(backbones[0].layers), sum(b.cost for b in backbones)
        if cost > budget and depth > 1:
            keep = max(1, int(depth * budget / cost))
            places = [round(i * (depth - 1) / (keep - 1)) for i in range(keep)] if keep > 1 else [depth - 1]
            backbones = [
                replace(b, layers=[b.layers[p] for p in places], maps=[m[places] for m in b.maps])
                for b in backbones
            ]
            left_out.append(f"{depth - len(places)} of {depth} layers")
        return backbones, left_out

    @property
    def left_out(self) -> str:
        """A sentence on what the budget left out, or nothing."""
        parts = self._fitted[1]
        return f"To keep this page small, {' and '.join(parts)} are left out." if parts else ""

    @property
    def pictures(self) -> list[dict[str, str]]:
        """Address and name of each picture."""
        return [
            {
                "address": data_address(open_picture(image), longest=448),
                "name": self.image_names[n] if n < len(self.image_names) else f"image {n + 1}",
            }
            for n, image in enumerate(self.images)
        ]

    @property
    def layer_count(self) -> int:
        """How many layers the page offers."""
        return len(self._fitted[0][0].layers)

    @property
    def head_count(self) -> int:
        """How many single heads the page offers: those all backbones have."""
        return min(b.heads for b in self._fitted[0])

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the page's script reads.

        Each backbone's `maps[image][layer]` is a list of planes: the mean over heads, then the single heads;
        a plane holds `q` (N × N uint8) and `m` (N float32, little-endian), both in base64.
        """
        backbones = self._fitted[0]
        rows, columns = backbones[0].grid
        patch = self.patch or (rows // 2, columns // 2)
        return {
            # Nine stops of inferno: even in lightness, readable for colour-blind people and in grey.
            "heat": [[round(255 * v) for v in mpl.colormaps["inferno"](stop / 8)[:3]] for stop in range(9)],
            "start": [(patch[1] + 0.5) / columns, (patch[0] + 0.5) / rows],
            "backbones": [
                {
                    "name": b.name,
                    "layers": list(b.layers),
                    "grid": list(b.grid),
                    "maps": [[_planes(layer) for layer in attention] for attention in b.maps],
                }
                for b in backbones
            ],
        }


def _planes(layer: np.ndarray) -> list[dict[str, str]]:
    """Return the planes of one layer, (N, N) or (heads, N, N), as the script wants them."""
    planes = layer[None] if layer.ndim == 2 else np.concatenate([layer.mean(axis=0, keepdims=True), layer])
    encoded = []
    for quantised, largest in map(quantise, planes):
        parts = {"q": quantised.tobytes(), "m": largest.astype("<f4").tobytes()}
        encoded.append({name: base64.b64encode(part).decode("ascii") for name, part in parts.items()})
    return encoded


def attention_explorer(
    towers: Mapping[str, PlainViT],
    images: Mapping[str, Image.Image],
    place: tuple[float, float] = (0.5, 0.5),
    *,
    title: str = "",
    heads: bool = False,
    megabytes: float = 3.0,
) -> AttentionExplorer:
    """Return the explorer of the self-attention of several ViTs; of deeper ones as many layers as the shallowest has.

    Args:
        towers: Name → tower; their maps are shown side by side.
        images: Name → RGB image; squeezed to the towers' size.
        place: Place of the first query patch, as shares (row, column) of the image.
        title: Above the explorer.
        heads: Whether single heads can be chosen, too.
        megabytes: Budget of the maps on the page.
    """
    depth = min(tower.num_layers for tower in towers.values())
    maps = []
    for name, tower in towers.items():
        layers = np.linspace(0, tower.num_layers - 1, depth).round().astype(int).tolist()
        attention = [patch_attention(tower, image, layers, heads=heads) for image in images.values()]
        maps.append(BackboneAttention(name, layers, grid_of(tower), attention))
    first = next(iter(towers.values()))
    rows, columns = grid_of(first)
    return AttentionExplorer(
        title,
        [Image.fromarray(resize_image(np.asarray(image), first.image_size)) for image in images.values()],
        maps,
        patch=(int(place[0] * rows), int(place[1] * columns)),
        image_names=list(images),
        megabytes=megabytes,
    )
