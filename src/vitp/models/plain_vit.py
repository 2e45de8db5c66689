"""The base of timm's plain Vision Transformers: tokens on one grid, and blocks that can be run in parts.

Shapes: B images, H × W pixels, P prefix tokens ([CLS], registers), N patch tokens on a grid of h × w, L = P + N,
D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.pos_embed_sincos import apply_keep_indices_nlc
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vitp.models.backbone import Backbone


@dataclass(frozen=True)
class TokenGrid:
    """Tokens between two blocks.

    Attributes:
        tokens_BLD: Prefix tokens, then patches row by row.
        grid: Rows and columns of patches.
        rotary: Rotary positions that the blocks need, where the architecture has them.
    """

    tokens_BLD: Tensor
    grid: tuple[int, int]
    rotary: Any = None

    @property
    def patches_BND(self) -> Tensor:
        """The patch tokens."""
        return self.tokens_BLD[:, self.tokens_BLD.shape[1] - self.grid[0] * self.grid[1] :]

    @property
    def map_BDhw(self) -> Tensor:
        """The patch tokens as a map."""
        map_BDhw: Tensor = self.patches_BND.unflatten(1, self.grid).permute(0, 3, 1, 2)
        return map_BDhw

    def with_tokens(self, tokens_BLD: Tensor) -> TokenGrid:
        """Return the same grid with other tokens."""
        return TokenGrid(tokens_BLD, self.grid, self.rotary)

    def visible(self, keep_BK: Tensor) -> TokenGrid:
        """Return the prefix and some of the patch tokens, with the rotary positions of these.

        Args:
            keep_BK: Which patches of each image, int64.
        """
        patches_BND = self.patches_BND
        index_BKD = keep_BK[..., None].expand(-1, -1, patches_BND.shape[-1])
        kept = [self.tokens_BLD[:, : self.tokens_BLD.shape[1] - patches_BND.shape[1]]]
        tokens_BLD = torch.cat([*kept, patches_BND.gather(1, index_BKD)], dim=1)
        if self.rotary is None:
            return self.with_tokens(tokens_BLD)
        rotary = apply_keep_indices_nlc(tokens_BLD, self.rotary, keep_BK)
        # Blocks multiply with queries (B, heads, K, d): mixed positions have their block in front, others one for all.
        rotary = rotary.transpose(0, 1) if self.rotary.ndim == 4 else rotary[:, None]
        return TokenGrid(tokens_BLD, self.grid, rotary)

    def with_queries(self, queries_QD: Tensor) -> TokenGrid:
        """Return the tokens with queries, the same for each image, between prefix and patches; nothing turns them."""
        patches_BND, rotary = self.patches_BND, self.rotary
        prefix_BPD = self.tokens_BLD[:, : self.tokens_BLD.shape[1] - patches_BND.shape[1]]
        # An exporter takes `len` for a number of its own, and the batch is to have any.
        queries_BQD = queries_QD.to(patches_BND.dtype).expand(patches_BND.shape[0], -1, -1)
        if rotary is not None:
            # Sines and cosines of no angle: blocks turn all that follows their prefix.
            sine, cosine = rotary[..., :1, :].chunk(2, dim=-1)
            still = torch.cat([torch.zeros_like(sine), torch.ones_like(cosine)], dim=-1)
            rotary = torch.cat([still.expand(*rotary.shape[:-2], len(queries_QD), -1), rotary], dim=-2)
        return TokenGrid(torch.cat([prefix_BPD, queries_BQD, patches_BND], dim=1), self.grid, rotary)

    def with_patches(self, patches_BND: Tensor) -> TokenGrid:
        """Return the same grid and prefix with other patch tokens."""
        prefix = self.tokens_BLD[:, : self.tokens_BLD.shape[1] - patches_BND.shape[1]]
        return self.with_tokens(torch.cat([prefix, patches_BND], dim=1) if prefix.shape[1] else patches_BND)


class PlainViT(Backbone):
    """A timm model with a patch embedding, a list `blocks` and a final `norm` (`VisionTransformer` or `Eva`).

    `embed_tokens`, `run_blocks` over all blocks and `finish_tokens` together are the plain forward pass, bit for
    bit; adapters put their own layers in between.

    Attributes:
        model: The timm model.
        width: Channels of a token.
        patch_size: Side of a patch in pixels.
    """

    model: Any
    width: int
    patch_size: int

    @property
    def heads(self) -> int:
        """Attention heads of a block."""
        heads: int = self.model.blocks[0].attn.num_heads
        return heads

    @property
    def prompts(self) -> int:
        """Learned tokens that stand in front of an image's own within each block."""
        return 0

    def embed_tokens(self, image_BCHW: Tensor) -> TokenGrid:
        """Return the tokens that the first block gets. Sides must be multiples of the patch size."""
        model = self.model
        # The first steps of timm's `forward_features`, which goes on to the end and has no name for them alone.
        patches_BhwD = model.patch_embed(image_BCHW)
        embedded = model._pos_embed(patches_BhwD)
        if isinstance(embedded, tuple):  # `Eva`: tokens and rotary positions, patch dropout included
            tokens_BLD, rotary = embedded
        else:
            tokens_BLD, rotary = model.patch_drop(embedded), None
        grid = (image_BCHW.shape[-2] // self.patch_size, image_BCHW.shape[-1] // self.patch_size)
        return TokenGrid(model.norm_pre(tokens_BLD), grid, rotary)

    def run_blocks(
        self, tokens: TokenGrid, first: int, last: int, seen_B1LL: Tensor | None = None
    ) -> TokenGrid:
        """Return the tokens after blocks `first` to `last`, both included.

        Args:
            tokens: Before them.
            first, last: Numbers of blocks.
            seen_B1LL: bool: which tokens (columns) each one attends to; None: all.
        """
        tokens_BLD = tokens.tokens_BLD
        recompute = self.model.grad_checkpointing and torch.is_grad_enabled()
        for number in range(first, last + 1):
            block, arguments = self.model.blocks[number], self.rotary_arguments(tokens, number)
            if seen_B1LL is not None:
                arguments["attn_mask"] = seen_B1LL
            if recompute:
                tokens_BLD = checkpoint(block, tokens_BLD, use_reentrant=False, **arguments)
            else:
                tokens_BLD = block(tokens_BLD, **arguments)
        return tokens.with_tokens(tokens_BLD)

    def rotary_arguments(self, tokens: TokenGrid, number: int) -> dict[str, Any]:
        """Return the rotary positions that a block gets beside its tokens; nothing where it needs none."""
        if tokens.rotary is None:
            return {}
        # Mixed rotary positions differ from block to block.
        return {"rope": tokens.rotary[number] if getattr(self.model, "rope_mixed", False) else tokens.rotary}

    def finish_tokens(self, tokens: TokenGrid) -> TokenGrid:
        """Return the tokens after the final norm (which some architectures don't have)."""
        return tokens.with_tokens(self.model.norm(tokens.tokens_BLD))

    def forward_features(self, image_BCHW: Tensor, layers: Sequence[int] = (-1,)) -> list[Tensor]:
        """Return feature maps (B, D, h, w) of the asked layers. See `Backbone.forward_features`."""
        wanted = [layer % self.num_layers for layer in layers]
        unique = sorted(set(wanted))
        found: Any = self.model.forward_intermediates(image_BCHW, indices=unique, output_fmt="NCHW")
        final_BND, maps = found
        by_layer: dict[int, Tensor] = dict(zip(unique, maps, strict=True))
        last = self.num_layers - 1
        if last in by_layer:
            # The intermediates come without the final norm, the projector's input has it.
            shape = by_layer[last].shape
            patches_BND = final_BND[:, final_BND.shape[1] - shape[2] * shape[3] :]
            by_layer[last] = patches_BND.transpose(1, 2).reshape(shape)
        return [by_layer[layer] for layer in wanted]

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute the blocks' activations in the backward pass: less memory, about a third more time."""
        self.model.set_grad_checkpointing(enabled)
