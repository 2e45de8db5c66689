"""Masked image modelling (MAE, He et al., 2022): the encoder sees a few patches, a light decoder paints the others.

With `hide: replace` it restores a corrupted image instead, as SiT does (Atito et al., 2021): the encoder sees all
places, some of them with the pixels of others. SiT's second term is contrast beside it.

Shapes: B images, H × W pixels, N patches of P × P pixels, K visible patches, D width of the tower, W of the decoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vitp.core.tensors import TensorFields
from vitp.data.augment import ViewSettings
from vitp.data.seen import PICTURES, SeenBands
from vitp.models.flops import TransformerShape, forward_flops
from vitp.models.vision import VisionTower
from vitp.models.vrl import surviving_tokens
from vitp.objectives.image_base import (
    ImageObjective,
    backward_factor,
    folders_of,
    image_parts,
    linear_flops,
    mixture_of,
    seeded_tower,
    seen_by,
    tower_flops,
)
from vitp.objectives.image_rows import (
    ImageCollate,
    ImageSamples,
    names_of,
    stacked,
    view_generator,
    view_maker,
)
from vitp.objectives.settings import ObjectiveParts, ObjectiveSettings, RunSettings


class MaskedImageSettings(ObjectiveSettings):
    """Masked image modelling. The paper's decoder is 512 wide and 8 blocks deep, for a ViT-B or larger."""

    former_keys: ClassVar[Mapping[str, str]] = {"mae": ""}

    name: Literal["mae"] = "mae"
    """Masked image modelling."""
    ratio: float = Field(0.75, gt=0, lt=1)
    """Share of the patches that are masked."""
    decoder_width: int | None = Field(None, ge=16, le=65_536)
    """Width of the decoder; none: half of the tower's, but at least 64."""
    decoder_layers: int = Field(2, ge=1, le=1024)
    """Blocks of the decoder."""
    hide: Literal["drop", "replace"] = "drop"
    """Masked patches are left out, or the tower sees other patches of the image in their places and computes all."""
    normalize: bool = True
    """The targets are the pixels of each patch minus their mean, over their deviation."""
    views: ViewSettings = Field(default_factory=lambda: ViewSettings.geometric((0.4, 1.0)))
    """How the images change."""

    def build(self, run: RunSettings, *, steps: int, micro_batches: int) -> ObjectiveParts:
        """Return the objective over all images, both dates of a pair."""
        tower, images = seeded_tower(run), mixture_of(run, folders_of(run, both_dates=True))
        collate = MaskedViews(tower.image_size[0], tower.grid**2, self, seen_by(tower, run))
        return image_parts(run, MaskedImageObjective(tower, self), images, collate, micro_batches)


@dataclass(frozen=True)
class MaskedBatch(TensorFields):
    """Images, and which of their patches the encoder sees.

    Attributes:
        tiles_BCHW: uint8.
        keep_BK: Indices of the visible patches, ascending, int64.
        record_names: Ids of the images, for messages.
    """

    tiles_BCHW: Tensor
    keep_BK: Tensor
    record_names: tuple[str, ...]


@dataclass(frozen=True)
class MaskedViews(ImageCollate[MaskedBatch]):
    """Makes a `MaskedBatch`.

    Attributes:
        size: Side of the views in pixels.
        patches: Patches of a view (N).
        config: Views and ratio.
        seen: How images are read.
    """

    size: int
    patches: int
    config: MaskedImageSettings
    seen: SeenBands = PICTURES

    def __call__(self, samples: ImageSamples, step: int) -> MaskedBatch:
        """Return the batch of some images."""
        views, kept = [], []
        for sample in samples:
            rng = view_generator(sample)
            views.append(view_maker(sample, self.seen)(self.size, self.config.views, rng)[0])
            kept.append(torch.from_numpy(surviving_tokens(self.patches, self.config.ratio, rng)))
        return MaskedBatch(stacked(views), torch.stack(kept), names_of(samples))

    def describe(self) -> Mapping[str, Any]:
        """Return what decides the batch."""
        return {
            "size": self.size,
            "patches": self.patches,
            "ratio": self.config.ratio,
            "views": self.config.views.model_dump(mode="json"),
        }


def patchify(image_BCHW: Tensor, patch: int) -> Tensor:
    """Return the pixels of each patch, (B, N, P · P · C), patches row by row."""
    batch, channels, height, width = image_BCHW.shape
    x = image_BCHW.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def sincos_positions(grid: int, width: int) -> Tensor:
    """Return fixed positions (N, W) of a square grid: sines and cosines of row and column.

    Args:
        grid: Cells on a side.
        width: W, a multiple of 4.
    """
    frequency_F = 10_000.0 ** (-torch.arange(width // 4) / (width // 4))
    cells = torch.arange(grid).float()
    row_N, column_N = cells.repeat_interleave(grid), cells.repeat(grid)
    angles = [place_N[:, None] * frequency_F for place_N in (column_N, row_N)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)


class PixelDecoder(nn.Module):
    """Visible tokens → the pixels of all patches.

    Args:
        tower: Vision tower whose tokens are decoded.
        width: W.
        layers: Blocks.
    """

    def __init__(self, tower: VisionTower, width: int, layers: int) -> None:
        super().__init__()
        self.patches, self.prefix = tower.grid**2, int(tower.model.num_prefix_tokens)
        # 32 channels a head, as in the paper's decoder of 16 heads and a width of 512.
        self.width, self.heads = width, max(1, width // 32)
        self.embed = nn.Linear(tower.width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.positions_ND: Tensor
        self.register_buffer("positions_ND", sincos_positions(tower.grid, width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, self.heads, qkv_bias=True) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, tower.num_channels * tower.patch_size**2)

    def forward(self, tokens_BLD: Tensor, keep_BK: Tensor) -> Tensor:
        """Return predictions (B, N, P · P · C).

        Args:
            tokens_BLD: The tower's output: prefix tokens, then the K visible patches.
            keep_BK: Which patches these are.
        """
        x_BLW = self.embed(tokens_BLD)
        prefix_BW, visible_BKW = x_BLW[:, : self.prefix], x_BLW[:, self.prefix :]
        all_BNW = self.mask_token.to(x_BLW.dtype).expand(len(x_BLW), self.patches, -1)
        all_BNW = all_BNW.scatter(1, keep_BK[..., None].expand_as(visible_BKW), visible_BKW)
        x_BLW = torch.cat([prefix_BW, all_BNW + self.positions_ND.to(x_BLW.dtype)], dim=1)
        for block in self.blocks:
            x_BLW = block(x_BLW)
        pixels_BNX: Tensor = self.predict(self.norm(x_BLW[:, self.prefix :]))
        return pixels_BNX

    def flops(self, images: int, visible: int) -> float:
        """Return the forward FLOPs for images of which `visible` patches come from the tower."""
        tokens = self.patches + self.prefix
        shape = TransformerShape(
            len(self.blocks),
            self.width,
            4 * self.width,
            self.heads,
            self.heads,
            gated_mlp=False,
            vocabulary=0,
        )
        return (
            forward_flops(shape, images * tokens, tokens)
            + linear_flops(self.embed, images * (visible + self.prefix))
            + linear_flops(self.predict, images * self.patches)
        )


class MaskedImageObjective(ImageObjective):
    """Mean squared error of the pixels of the masked patches (MAE, section 3).

    The tower computes its prefix tokens and the visible patches only, which is where the method saves its compute.

    Args:
        tower: The vision tower, images at its own size.
        config: Ratio is the source's affair; the decoder and the targets are taken from here.
    """

    def __init__(self, tower: VisionTower, config: MaskedImageSettings) -> None:
        super().__init__(tower)
        self.config = config
        width = config.decoder_width or max(64, tower.width // 2)
        self.decoder = PixelDecoder(tower, 32 * math.ceil(width / 32), config.decoder_layers)

    def forward(self, batch: MaskedBatch) -> dict[str, Tensor]:
        """Return {"pixels": sum over the masked patches of the mean squared error of their pixels}."""
        image_BCHW = self.tower.normalize(batch.tiles_BCHW)
        keep_BK = self._seen(batch)
        corrupted_BCHW = (
            image_BCHW if self.config.hide == "drop" else self.corrupted(image_BCHW, batch.keep_BK)
        )
        predicted_BNX = self.decoder(self.encode(corrupted_BCHW, keep_BK), keep_BK).float()
        error_BN = (predicted_BNX - self.targets(image_BCHW)).square().mean(-1)
        # A product with a mask would keep the visible patches' gradient at zero as well, but nan · 0 is nan.
        return {"pixels": error_BN.scatter(1, batch.keep_BK, 0.0).sum()}

    def encode(self, image_BCHW: Tensor, keep_BK: Tensor) -> Tensor:
        """Return the tower's tokens (B, prefix + K, D) of the visible patches."""
        visible = self.tower.embed_tokens(image_BCHW).visible(keep_BK)
        visible = self.tower.run_blocks(visible, 0, self.tower.num_layers - 1)
        return self.tower.finish_tokens(visible).tokens_BLD

    def _seen(self, batch: MaskedBatch) -> Tensor:
        """Return the patches that the tower computes."""
        if self.config.hide == "drop":
            return batch.keep_BK
        places_N = torch.arange(self.tower.grid**2, device=batch.keep_BK.device)
        return places_N.expand(len(batch.keep_BK), -1)

    def corrupted(self, image_BCHW: Tensor, keep_BK: Tensor) -> Tensor:
        """Return the images with visible patches in the places of the masked ones, each in turn."""
        side, patch = self.tower.grid, self.tower.patch_size
        masked_BN = torch.ones(len(keep_BK), side**2, dtype=torch.bool, device=keep_BK.device)
        masked_BN = masked_BN.scatter(1, keep_BK, False)
        # The n-th masked patch gets the pixels of the n-th visible one, from the first on again where these run out.
        turn_BN = (masked_BN.cumsum(1) - 1).clamp(min=0) % keep_BK.shape[1]
        own_N = torch.arange(side**2, device=keep_BK.device)
        source_BN = torch.where(masked_BN, keep_BK.gather(1, turn_BN), own_N)
        x_BNX = patchify(image_BCHW, patch)
        x_BNX = x_BNX.gather(1, source_BN[..., None].expand_as(x_BNX))
        x = x_BNX.reshape(len(x_BNX), side, side, patch, patch, -1)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(image_BCHW.shape)

    def targets(self, image_BCHW: Tensor) -> Tensor:
        """Return what is to be predicted, (B, N, P · P · C)."""
        pixels_BNX = patchify(image_BCHW, self.tower.patch_size)
        if not self.config.normalize:
            return pixels_BNX
        mean, var = pixels_BNX.mean(-1, keepdim=True), pixels_BNX.var(-1, keepdim=True)
        return (pixels_BNX - mean) / (var + 1e-6).sqrt()

    def loss_counts(self, batch: MaskedBatch) -> dict[str, float]:
        """Return {"pixels": number of masked patches}."""
        images, kept = batch.keep_BK.shape
        return {"pixels": float(images * (self.tower.grid**2 - kept))}

    def work(self, batch: MaskedBatch) -> dict[str, float]:
        """Return images, and the FLOPs of forward and backward pass."""
        images, kept = self._seen(batch).shape
        encoder = tower_flops(self.tower, images, kept, embedded=self.tower.grid**2)
        flops = backward_factor(self.tower) * encoder + 3 * self.decoder.flops(images, kept)
        return {"samples": float(images), "tiles": float(images), "flops": flops}
