"""Floating-point operations of transformers, from their shapes: what a step costs, whatever machine does it.

A multiply-add counts two. Counted are the matrix products, which are all but everything; norms, activations,
softmax and rotary positions are not. Tokens that attention may not see count nothing, and neither do activations
that are computed a second time to save memory: these are the FLOPs of the model, the ones in "model FLOPs
utilisation".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from vitp.core.errors import ConfigError

if TYPE_CHECKING:
    from vitp.models.plain_vit import PlainViT


@dataclass(frozen=True)
class TransformerShape:
    """What decides the cost of a transformer.

    Attributes:
        layers: Blocks.
        width: Channels of a token.
        mlp_width: Hidden channels of a block's MLP.
        heads: Query heads.
        kv_heads: Key and value heads; fewer than `heads` with grouped queries.
        gated_mlp: Whether the MLP has a gate beside its first layer (SwiGLU).
        vocabulary: Rows of the output layer; 0: none.
        head_width: Channels of a head; None: `width / heads`.
    """

    layers: int
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    gated_mlp: bool
    vocabulary: int
    head_width: int | None = None

    @property
    def head_channels(self) -> int:
        """Channels of a head."""
        return self.width // self.heads if self.head_width is None else self.head_width


def vision_shape(tower: PlainViT) -> TransformerShape:
    """Return the shape of any plain Vision Transformer of timm.

    Raises:
        ConfigError: Its blocks are no attention and one MLP after it.
    """
    block: Any = tower.model.blocks[0]
    if not all(
        hasattr(getattr(block, part, None), mark) for part, mark in (("attn", "num_heads"), ("mlp", "fc2"))
    ):
        raise ConfigError(
            f"its blocks ({type(block).__name__}) are no attention with one MLP after it, so vitp can't train it further",
            where="vision.architecture",
            fix="choose a ViT with plain blocks, such as vit_base_patch16_224",
        )
    mlp_width, gated = _mlp(block.mlp)
    heads = int(block.attn.num_heads)
    return TransformerShape(
        layers=len(tower.model.blocks),
        width=tower.width,
        mlp_width=mlp_width,
        heads=heads,
        kv_heads=int(getattr(block.attn, "num_kv_heads", heads)),
        gated_mlp=gated,
        vocabulary=0,
        head_width=int(block.attn.head_dim),
    )


def language_shape(model: nn.Module) -> TransformerShape:
    """Return the shape of a causal language model of transformers, as its configuration says it."""
    config: Any = model.config
    heads, width = int(config.num_attention_heads), int(config.hidden_size)
    # GPT-2 has `n_inner`, where None stands for four widths.
    mlp_width = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
    return TransformerShape(
        layers=int(config.num_hidden_layers),
        width=width,
        mlp_width=int(mlp_width),
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        gated_mlp=any(name.endswith("gate_proj") for name, _ in model.named_modules()),
        vocabulary=int(config.vocab_size),
        head_width=getattr(config, "head_dim", None),
    )


def forward_flops(shape: TransformerShape, tokens: int, context: float, logits: int = 0) -> float:
    """Return the FLOPs of one forward pass.

    Args:
        shape: The transformer.
        tokens: Tokens that pass through all blocks, over the whole batch.
        context: Mean number of keys that a query sees, itself included.
        logits: Tokens whose logits are made.
    """
    queries, keys = shape.heads * shape.head_channels, shape.kv_heads * shape.head_channels
    # Queries and output are as wide as all heads, keys and values only as the key heads.
    projections = 2.0 * shape.width * (2 * queries + 2 * keys)
    # Two products of a multiply-add each: queries by keys, then weights by values.
    attention = 4.0 * context * queries
    # A gated MLP has a second matrix on the way in.
    mlp = 2.0 * shape.width * shape.mlp_width * (3 if shape.gated_mlp else 2)
    return (
        tokens * shape.layers * (projections + attention + mlp)
        + logits * 2.0 * shape.width * shape.vocabulary
    )


def patch_embed_flops(width: int, patch_size: int, patches: int, channels: int = 3) -> float:
    """Return the FLOPs of turning `patches` squares of `patch_size` pixels into tokens of `width` channels."""
    return 2.0 * channels * patch_size**2 * width * patches


def training_flops(forward: float, *, recompute: bool = False) -> float:
    """Return the FLOPs of forward and backward pass: three times the forward pass.

    Args:
        forward: Of the forward pass.
        recompute: Count the second forward pass of full activation checkpointing, too. That is what the hardware
            does, not what the model needs.
    """
    return forward * (4.0 if recompute else 3.0)


def vision_flops(tower: PlainViT, tiles: int) -> float:
    """Return the forward FLOPs of a ViT over some images of its own size; every token sees its whole image."""
    height, width = tower.image_size
    patches = (height // tower.patch_size) * (width // tower.patch_size)
    tokens = patches + int(tower.model.num_prefix_tokens)
    blocks = forward_flops(vision_shape(tower), tiles * tokens, tokens)
    return blocks + patch_embed_flops(tower.width, tower.patch_size, tiles * patches, tower.num_channels)


def _mlp(mlp: Any) -> tuple[int, bool]:
    """Return hidden width and whether a timm MLP is gated."""
    hidden = int(mlp.fc2.in_features)
    first = getattr(mlp, "fc1", None)
    # The layer behind tells the width. A gate has a layer of its own, or shares one twice as wide with the values.
    return hidden, first is None or int(first.out_features) == 2 * hidden
