"""EoMT (arXiv 2503.19108): a plain ViT as its own mask decoder; queries run through its last blocks beside the patches.

Each query ends as one mask and its class, or as "no object". While training, a query attends in each of these blocks
only to the patches of the mask that it would give so far; this masking is annealed away block by block, so that the
model in use is the plain ViT with some more tokens.

Shapes: B images, Q queries, C classes, N patches on a grid of p × q, L tokens, D width, h × w cells of a mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from transformers.models.eomt.modeling_eomt import EomtMaskHead, EomtScaleBlock

from vitp.core.config import SettingsModel
from vitp.models.plain_vit import PlainViT, TokenGrid

MASK_STRIDE = 4
"""Pixels of a mask's cell, as near as doublings of a patch come to it."""

ANNEALING_POWER = 0.9
"""By which the share of masked queries of a block falls, as published."""


class MaskQuerySettings(SettingsModel):
    """EoMT: queries among the tokens of the last blocks of a plain ViT; there is no neck and no further decoder."""

    kind: Literal["eomt"] = "eomt"
    """Chooses this head."""
    queries: int = Field(100, ge=1, le=10_000)
    """Masks that an image gets at most. Where it isn't given and objects are learned, 1.5 times as many as the fullest
    training image holds, but at least 100."""
    blocks: int | None = Field(None, ge=1, le=1000)
    """Last blocks that the queries run through; none: a quarter of the tower's, from 2 to 4."""
    masked: bool = True
    """Masked attention in training, annealed away over the run."""
    class_loss: float = Field(2.0, ge=0, le=1e6)
    """Weight of the cross-entropy of classes."""
    mask_loss: float = Field(5.0, ge=0, le=1e6)
    """Weight of the binary cross-entropy at points of masks."""
    dice_loss: float = Field(5.0, ge=0, le=1e6)
    """Weight of the Dice loss at the same points."""
    no_object: float = Field(0.1, gt=0, le=1)
    """Weight of "no object" in the cross-entropy."""
    points: int | None = Field(None, ge=16, le=1_000_000)
    """Points of a mask that losses and matching look at; none: an eighth of the pixels, from 1024 to the published
    12544."""
    oversample: float = Field(3.0, ge=1, le=100)
    """Points that are drawn for each one that stays, the most uncertain of them."""
    uncertain: float = Field(0.75, ge=0, le=1)
    """Share of the points that are such; the others lie anywhere."""
    detections: int = Field(100, ge=1, le=100_000)
    """Objects of an image, or window, at most (instance segmentation)."""

    def points_of(self, height: int, width: int) -> int:
        """Return how many points are looked at in images of a size."""
        # 12,544 = 112² points, as Mask2Former has.
        return self.points or min(12_544, max(1024, height * width // 8))


@dataclass(frozen=True)
class MaskOutputs:
    """What the queries say after a block.

    Attributes:
        class_BQC: (B, Q, C + 1) logits; the last is "no object".
        mask_BQhw: Logits.
    """

    class_BQC: Tensor
    mask_BQhw: Tensor


class MaskQueries(nn.Module):
    """Queries, and what makes classes and masks of their tokens and of the patches'.

    Args:
        tower: Whose blocks are used; it isn't kept.
        classes: C.
        settings: See `MaskQuerySettings`.

    Attributes:
        blocks: How many of the tower's last blocks the queries run through.
    """

    def __init__(self, tower: PlainViT, classes: int, settings: MaskQuerySettings) -> None:
        super().__init__()
        depth, width = tower.num_layers, tower.width
        self.blocks = min(settings.blocks or max(2, min(4, depth // 4)), depth)
        self.queries = nn.Parameter(torch.randn(settings.queries, width))
        doublings = max(0, round(math.log2(tower.patch_size / MASK_STRIDE)))
        # transformers' layers read no other names of the configuration that they expect.
        sizes: Any = SimpleNamespace(hidden_size=width, hidden_act="gelu", num_upscale_blocks=doublings)
        self.upscale, self.to_mask = EomtScaleBlock(sizes), EomtMaskHead(sizes)
        self.to_class = nn.Linear(width, classes + 1)

    def forward(
        self, tower: PlainViT, image_BCHW: Tensor, masked: Sequence[float] | None = None
    ) -> list[MaskOutputs]:
        """Return what the queries say: at the end, and while training before each of their blocks, too.

        Args:
            tower: Runs the blocks.
            image_BCHW: Normalised; sides are multiples of the patch size.
            masked: Share of the queries whose attention is masked in each block, while training; None: not training.
        """
        first = tower.num_layers - self.blocks
        tokens = tower.run_blocks(tower.embed_tokens(image_BCHW), 0, first - 1)
        tokens = tokens.with_queries(self.queries)
        found: list[MaskOutputs] = []
        for number in range(first, tower.num_layers):
            seen_B1LL = None
            if masked is not None:
                found.append(self._read(tower, tokens))
                seen_B1LL = self._seen(found[-1].mask_BQhw, tokens, masked[number - first])
            tokens = tower.run_blocks(tokens, number, number, seen_B1LL)
        return [*found, self._read(tower, tokens)]

    def _read(self, tower: PlainViT, tokens: TokenGrid) -> MaskOutputs:
        done = tower.finish_tokens(tokens)
        # Queries stand right before the patches; how many prefix tokens there are depends on the tower.
        last = done.tokens_BLD.shape[1] - done.grid[0] * done.grid[1]
        queries_BQD = done.tokens_BLD[:, last - len(self.queries) : last]
        cells_BDhw = self.upscale(done.map_BDhw)
        mask_BQhw = torch.einsum("bqd,bdhw->bqhw", self.to_mask(queries_BQD), cells_BDhw)
        return MaskOutputs(self.to_class(queries_BQD).float(), mask_BQhw.float())

    @torch.no_grad()
    def _seen(self, mask_BQhw: Tensor, tokens: TokenGrid, share: float) -> Tensor | None:
        """Return (B, 1, L, L) bool: what each token attends to; None: everything."""
        if share <= 0:
            return None
        count, queries, (rows, columns) = tokens.tokens_BLD.shape[1], len(self.queries), tokens.grid
        first = count - rows * columns
        inside_BQN = (
            F.interpolate(mask_BQhw, (rows, columns), mode="bilinear", align_corners=False).flatten(2) > 0
        )
        if share < 1:
            # Annealing frees whole queries: each of them is masked with the probability `share`.
            free_BQ = torch.rand(inside_BQN.shape[:2], device=inside_BQN.device) > share
            inside_BQN = inside_BQN | free_BQ[..., None]
        seen_BLL = inside_BQN.new_ones(len(inside_BQN), count, count)
        # Queries always see each other and the prefix, so even one with an empty mask has something to attend to.
        seen_BLL[:, first - queries : first, first:] = inside_BQN
        return seen_BLL[:, None]


def masked_shares(progress: float, blocks: int) -> list[float]:
    """Return the share of masked queries in each block, after a part of the run.

    Of blocks + 2 equal parts of the run the first masks all; block i is annealed in part i + 1; the last has no masks.

    Args:
        progress: Share of the run that is done, from 0 to 1.
        blocks: Number of blocks that queries run through.
    """
    parts = [progress * (blocks + 2) - (number + 1) for number in range(blocks)]
    return [(1 - min(max(part, 0.0), 1.0)) ** ANNEALING_POWER for part in parts]
