"""Peak memory of a pretraining step, from shapes: weights, AdamW, gradients, and what autograd keeps.

What autograd keeps was counted operation by operation in timm's blocks and transformers' Qwen2 layers; the tests hold
the sum to what torch's profiler reports. Not counted: the CUDA context (about 0.5 GiB), memory that the allocator holds
without using it, and the buckets of data parallel training.

Shapes: D width, M hidden channels of an MLP, A channels of all heads, K of the key-value heads, H width of the language
model, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vitp.models.flops import TransformerShape, language_shape, vision_shape
from vitp.models.vlm import VisionLanguageModel, VLMConfig
from vitp.objectives.vitp import LOGITS

FLOAT32, BFLOAT16 = 4, 2
ADAMW = 2 * FLOAT32
"""Bytes a parameter: two moments."""

GIB = 2**30


@dataclass(frozen=True)
class ModelShape:
    """A vision-language model as far as cost is concerned.

    Attributes:
        vision, language: The two transformers.
        tile: Side of a tile in pixels.
        patches: Patch tokens a tile.
        prefix: Tokens before the patches.
        patch_size: Side of a patch in pixels.
        shuffle: Side of the square of patches folded into an image token.
        layer_scale: Whether the ViT's blocks scale what they add.
        parameters: Part → number of parameters, embeddings counted once.
    """

    vision: TransformerShape
    language: TransformerShape
    tile: int
    patches: int
    prefix: int
    patch_size: int
    shuffle: int
    layer_scale: bool
    parameters: dict[str, int]

    @property
    def image_tokens(self) -> int:
        """Image tokens a tile."""
        return self.patches // self.shuffle**2

    @property
    def total_parameters(self) -> int:
        """Of all parts."""
        return sum(self.parameters.values())


def model_shape(config: VLMConfig, vocabulary: int) -> ModelShape:
    """Return the shape of a model without making its weights.

    Raises:
        ConfigError: The model can't be built.
    """
    with torch.device("meta"):
        vlm = VisionLanguageModel(config, vocabulary=vocabulary)
    return shape_of(vlm)


def shape_of(vlm: VisionLanguageModel) -> ModelShape:
    """Return the shape of a model."""
    tower: Any = vlm.vision
    return ModelShape(
        vision=vision_shape(tower),
        language=language_shape(vlm.language),
        tile=tower.image_size[0],
        patches=tower.grid**2,
        prefix=int(tower.model.num_prefix_tokens),
        patch_size=tower.patch_size,
        shuffle=vlm.config.shuffle,
        layer_scale=not isinstance(tower.model.blocks[0].ls1, torch.nn.Identity),
        parameters={
            name: sum(parameter.numel() for parameter in getattr(vlm, name).parameters())
            for name in ("vision", "projector", "language")
        },
    )


@dataclass(frozen=True)
class Workload:
    """What one micro-batch holds.

    Attributes:
        tiles: Tiles of all records.
        image_tokens: Image tokens that are left after dropping.
        tokens: Tokens that the language model computes.
        keys: Keys that attention reads; more than `tokens` where several questions share a prefix.
        supervised: Tokens whose logits are made.
    """

    tiles: int
    image_tokens: int
    tokens: int
    keys: int
    supervised: int


@dataclass(frozen=True)
class Memory:
    """Bytes at the worst moment of a step.

    Attributes:
        weights: Parameters in fp32.
        optimizer: AdamW's moments.
        copies: Weights in bf16, which autocast keeps for the length of a step.
        vision, language: What autograd keeps of the two parts.
        logits: Logits, their logarithms and gradients, all at once.
        gradients: That exist at that moment.
    """

    weights: int
    optimizer: int
    copies: int
    vision: int
    language: int
    logits: int
    gradients: int

    @property
    def total(self) -> int:
        """Of all."""
        return (
            self.weights
            + self.optimizer
            + self.copies
            + self.vision
            + self.language
            + self.logits
            + self.gradients
        )


def block_bytes(shape: TransformerShape, *, bf16: bool, layer_scale: bool) -> int:
    """Return the bytes a token that autograd keeps of one block of a timm ViT.

    Two inputs of norms (the residual stream, fp32), what the norms give to the linear layers, q, k and v, the
    attention's result, both sides of the activation, and the inputs of the layer scales.
    """
    small = BFLOAT16 if bf16 else FLOAT32
    inner = shape.heads * shape.head_channels
    hidden = (4 if shape.gated_mlp else 2) * shape.mlp_width
    values = 2 * shape.width + 4 * inner + hidden + 2 * shape.width * layer_scale
    return 2 * shape.width * FLOAT32 + values * small + _statistics(shape)


def layer_bytes(shape: TransformerShape, work: Workload, *, bf16: bool) -> int:
    """Return the bytes that autograd keeps of one layer of a Qwen2-like language model.

    Its norms keep their input and what it is before it is scaled, in fp32. Autocast makes a copy for each linear layer
    (q, k, v; gate, up). In half precision attention reads keys and values as they are; in fp32 they are repeated for
    all query heads, and the results are kept once as the kernel and once as the next layer wants them.
    """
    small = BFLOAT16 if bf16 else FLOAT32
    inner = shape.heads * shape.head_channels
    inputs = (5 if bf16 else 2) * shape.width
    hidden = (4 if shape.gated_mlp else 2) * shape.mlp_width
    queries, keys = (2 * inner, 2 * shape.kv_heads * shape.head_channels) if bf16 else (3 * inner, 2 * inner)
    values = work.tokens * (inputs + queries + hidden) + work.keys * keys
    return work.tokens * (4 * shape.width * FLOAT32 + _statistics(shape)) + values * small


def _statistics(shape: TransformerShape) -> int:
    """Return what norms and attention keep beside their tensors: two numbers a norm, one a head."""
    return FLOAT32 * (4 + shape.heads)


@dataclass(frozen=True)
class Activations:
    """What a part keeps for its backward pass, and what one of its blocks needs beside while its turn is.

    Attributes:
        kept: From the forward pass on.
        working: Gradients inside of one block; with recomputed activations these as well.
    """

    kept: int
    working: int


def vision_activations(model: ModelShape, work: Workload, *, bf16: bool, checkpointing: bool) -> Activations:
    """Return the activations of the vision tower and the projector."""
    small = BFLOAT16 if bf16 else FLOAT32
    shape = model.vision
    tokens = work.tiles * (model.patches + model.prefix)
    block = tokens * block_bytes(shape, bf16=bf16, layer_scale=model.layer_scale)
    inputs = tokens * shape.width * FLOAT32
    image = work.tiles * 3 * model.tile**2 * small
    folded = shape.width * model.shuffle**2
    projector = work.image_tokens * (folded * (FLOAT32 + small) + 2 * model.language.width * small)
    gradients = tokens * 2 * (shape.width + shape.mlp_width) * small
    kept = image + inputs + projector + shape.layers * (inputs if checkpointing else block)
    return Activations(kept, gradients + block * checkpointing)


def language_activations(
    model: ModelShape, work: Workload, *, bf16: bool, checkpointing: bool
) -> Activations:
    """Return the activations of the language model without its logits."""
    small = BFLOAT16 if bf16 else FLOAT32
    shape = model.language
    layer = layer_bytes(shape, work, bf16=bf16)
    inputs = work.tokens * shape.width * FLOAT32
    rotary = 2 * work.tokens * shape.head_channels * FLOAT32
    gradients = work.tokens * (2 * shape.width + 3 * shape.mlp_width) * small
    kept = rotary + 2 * inputs + shape.layers * (inputs if checkpointing else layer)
    return Activations(kept, gradients + layer * checkpointing)


def logit_bytes(model: ModelShape, supervised: int, *, bf16: bool) -> int:
    """Return what the loss holds at once when the backward pass begins."""
    # Log-probabilities, their gradient and the logits' gradient; under autocast the logits in bf16 as well.
    row = model.language.vocabulary * (3 * FLOAT32 + BFLOAT16 * bf16)
    return supervised * row


def step_memory(
    model: ModelShape,
    work: Workload,
    *,
    bf16: bool,
    checkpointing: bool,
    accumulates: bool,
) -> Memory:
    """Return the memory at the worst moment of a step.

    Args:
        model: Shapes; all parts are trained.
        work: The largest micro-batch.
        bf16: Computed under bf16 autocast.
        checkpointing: Activations are computed a second time.
        accumulates: Gradients of earlier micro-batches are there from the start.
    """
    parameters = model.total_parameters
    vision = vision_activations(model, work, bf16=bf16, checkpointing=checkpointing)
    language = language_activations(model, work, bf16=bf16, checkpointing=checkpointing)
    at_once = min(work.supervised, max(1, LOGITS // model.language.vocabulary))
    logits = logit_bytes(model, at_once, bf16=bf16)
    everything = parameters * FLOAT32
    head = model.language.vocabulary * model.language.width * FLOAT32
    reached = (model.parameters["language"] + model.parameters["projector"]) * FLOAT32
    if accumulates:
        head = reached = everything
    # Four moments can be the worst: at the loss, in the last layer, in the vision tower's last block, at the end.
    moments = [
        (vision.kept, language.kept, logits, head),
        (vision.kept, language.kept + language.working, 0, head),
        (vision.kept + vision.working, 0, 0, reached),
        (0, 0, 0, everything),
    ]
    worst = max(moments, key=sum)
    return Memory(
        weights=parameters * FLOAT32,
        optimizer=parameters * ADAMW,
        copies=parameters * BFLOAT16 if bf16 else 0,
        vision=worst[0],
        language=worst[1],
        logits=worst[2],
        gradients=worst[3],
    )
