"""DropPos (Wang et al., 2023): the tower sees some patches, most without their positions, and says where they lie.

Each visible patch without a position is one of N cells; the loss is −Σ_j q_ij log p_ij with targets
q_ij ∝ exp(−d_ij² / σ²), d the distance of two cells and σ falling to 0 (one-hot) over the run.

Shapes: B images, N patches, K visible patches, P prefix tokens, D width of the tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vitp.core.errors import ConfigError
from vitp.data.augment import ViewSettings
from vitp.models.plain_vit import TokenGrid
from vitp.models.vision import VisionTower
from vitp.models.vrl import surviving_tokens
from vitp.objectives.image_base import (
    ImageObjective,
    backward_factor,
    folders_of,
    image_parts,
    mixture_of,
    seeded_tower,
    seen_by,
    tower_flops,
)
from vitp.objectives.image_rows import ImageSamples, view_generator
from vitp.objectives.masked_image import MaskedBatch, MaskedImageSettings, MaskedViews
from vitp.objectives.settings import ObjectiveParts, ObjectiveSettings, RunSettings


class DroppedPositionSettings(ObjectiveSettings):
    """Positions of patches as the target."""

    name: Literal["droppos"] = "droppos"
    """Positions of patches as the target."""
    ratio: float = Field(0.75, gt=0, lt=1)
    """Share of the patches that the tower doesn't see."""
    positions: float = Field(0.75, gt=0, le=1)
    """Share of the visible patches whose position is to be found."""
    smoothing: float = Field(1.0, ge=0, le=100)
    """Width σ of the softened target at the start, in cells; it falls to 0 along a line."""
    decoder_layers: int = Field(2, ge=0, le=1024)
    """Blocks between the tower and the answers."""
    views: ViewSettings = Field(
        default_factory=lambda: ViewSettings(crop=(0.4, 1.0), rotate90=False, colour=0, hue=0, grey=0, blur=0)
    )
    """How the images change."""

    def build(self, run: RunSettings, *, steps: int, micro_batches: int) -> ObjectiveParts:
        """Return the objective over all images, both dates of a pair."""
        tower, images = seeded_tower(run), mixture_of(run, folders_of(run, both_dates=True))
        config = MaskedImageSettings(ratio=self.ratio, views=self.views)
        collate = PlacedViews(tower.image_size[0], tower.grid**2, config, seen_by(tower, run), self.positions)
        objective = DroppedPositionObjective(tower, self, steps=steps)
        return image_parts(run, objective, images, collate, micro_batches)


@dataclass(frozen=True)
class PlacedBatch(MaskedBatch):
    """Images, which of their patches the tower sees, and which of these have lost their position.

    Attributes:
        lost_BK: True where the position is to be found.
        step: Optimizer step, which the smoothing follows.
    """

    lost_BK: Tensor
    step: int


@dataclass(frozen=True)
class PlacedViews(MaskedViews):
    """Makes a `PlacedBatch`; `positions` is the share of the visible patches that lose theirs."""

    positions: float = 0.75

    def __call__(self, samples: ImageSamples, step: int) -> PlacedBatch:
        """Return the batch of some images."""
        masked = super().__call__(samples, step)
        lost_BK = torch.ones(masked.keep_BK.shape, dtype=torch.bool)
        for row, sample in enumerate(samples):
            # A stream beside the one that decides the view and its mask.
            rng = view_generator(sample).spawn(1)[0]
            lost_BK[row, torch.from_numpy(surviving_tokens(lost_BK.shape[1], self.positions, rng))] = False
        return PlacedBatch(masked.tiles_BCHW, masked.keep_BK, masked.record_names, lost_BK, step)

    def describe(self) -> Mapping[str, Any]:
        """Return what decides the batch."""
        return {**super().describe(), "positions": self.positions}


def smoothed_places(grid: int, sigma: float) -> Tensor:
    """Return the targets (N, N): row i is q_i, one-hot where σ is 0."""
    cells = torch.cartesian_prod(torch.arange(grid), torch.arange(grid)).float()
    if sigma == 0:
        return torch.eye(len(cells))
    return (-torch.cdist(cells, cells).square() / sigma**2).softmax(-1)


class DroppedPositionObjective(ImageObjective):
    """Cross-entropy of the positions of visible patches that have lost theirs.

    Args:
        tower: The vision tower, with a table of positions.
        config: Smoothing and decoder; shares are the source's affair.
        steps: Optimizer steps of the run, over which σ falls.

    Raises:
        ConfigError: The tower adds no positions to its patches (rotary ones turn queries and keys in each block).
    """

    scheduled = ("the smoothing of the positions",)

    def __init__(self, tower: VisionTower, config: DroppedPositionSettings, *, steps: int) -> None:
        super().__init__(tower)
        if getattr(tower.model, "pos_embed", None) is None or getattr(tower.model, "rope", None) is not None:
            raise ConfigError(
                f"{tower.config.architecture} has no table of positions that patches could lose",
                where="objective",
                fix="choose a ViT with learned positions, or another objective",
            )
        self.config, self.steps = config, steps
        self.place_token = nn.Parameter(torch.zeros(tower.width))
        self.decoder = nn.Sequential(
            *(Block(tower.width, tower.heads, qkv_bias=True) for _ in range(config.decoder_layers)),
            nn.LayerNorm(tower.width),
            nn.Linear(tower.width, tower.grid**2),
        )

    def sigma_at(self, step: int) -> float:
        """Return σ."""
        return self.config.smoothing * max(0.0, 1 - step / self.steps)

    def answers(self, batch: PlacedBatch) -> Tensor:
        """Return logits (B, K, N) of the position of each visible patch."""
        model, image_BCHW = self.tower.model, self.tower.normalize(batch.tiles_BCHW)
        patches = model.patch_embed(image_BCHW)
        bare_BND = patches.flatten(1, -2)
        embedded_BLD, prefix = model._pos_embed(patches), int(model.num_prefix_tokens)
        lost_BN = torch.zeros(bare_BND.shape[:2], dtype=torch.bool, device=bare_BND.device)
        lost_BN = lost_BN.scatter(1, batch.keep_BK, batch.lost_BK)[..., None]
        without_BND = (bare_BND + self.place_token).to(embedded_BLD.dtype)
        patches_BND = torch.where(lost_BN, without_BND, embedded_BLD[:, prefix:])
        tokens_BLD = model.norm_pre(torch.cat([embedded_BLD[:, :prefix], patches_BND], dim=1))
        tokens = TokenGrid(tokens_BLD, (self.tower.grid, self.tower.grid)).visible(batch.keep_BK)
        tokens = self.tower.finish_tokens(self.tower.run_blocks(tokens, 0, self.tower.num_layers - 1))
        logits_BKN: Tensor = self.decoder(tokens.tokens_BLD)[:, prefix:]
        return logits_BKN

    def forward(self, batch: PlacedBatch) -> dict[str, Tensor]:
        """Return {"positions": sum over the visible patches without a position}."""
        logits_MN = self.answers(batch)[batch.lost_BK].float()
        targets_NN = smoothed_places(self.tower.grid, self.sigma_at(batch.step)).to(logits_MN.device)
        return {
            "positions": F.cross_entropy(logits_MN, targets_NN[batch.keep_BK[batch.lost_BK]], reduction="sum")
        }

    def loss_counts(self, batch: PlacedBatch) -> dict[str, float]:
        """Return {"positions": number of visible patches without a position}."""
        return {"positions": float(batch.lost_BK.sum())}

    def work(self, batch: PlacedBatch) -> dict[str, float]:
        """Return images, and the FLOPs of forward and backward pass; a block of the decoder costs one of the tower."""
        images, kept = batch.keep_BK.shape
        tower = tower_flops(self.tower, images, kept, embedded=self.tower.grid**2)
        # The decoder always trains, also where the tower is frozen: a backward pass costs two forward ones.
        decoder = 3 * tower * self.config.decoder_layers / self.tower.num_layers
        return {
            "samples": float(images),
            "tiles": float(images),
            "flops": backward_factor(self.tower) * tower + decoder,
        }
