"""Peak memory of a pretraining step, from shapes: weights, AdamW, gradients, and what autograd keeps.

What autograd keeps was counted operation by operation in timm's blocks and transformers' Qwen2 layers; the tests hold
the sum to what torch's profiler reports. Not counted: the CUDA context (about 0.5 GiB), memory that the allocator holds
without using it, and the buckets of data parallel training.

Shapes: D width, M hidden channels of an MLP, A channels of all heads, K of the key-value heads, H width of the language
model, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from vitp.models.flops import TransformerShape
from vitp.models.vlm import MOST_LOGITS
from vitp.planning.model import ModelShape

_FLOAT32, _BFLOAT16 = 4, 2
_ADAMW = 2 * _FLOAT32
"""Bytes a parameter: two moments."""

GIB = 2**30


@dataclass(frozen=True)
class BatchLoad:
    """Sizes of one micro-batch.

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
        gradients: Gradients that exist at that moment.
        average: The moving average of the weights (`train.ema`), where there is one.
    """

    weights: int
    optimizer: int
    copies: int
    vision: int
    language: int
    logits: int
    gradients: int
    average: int = 0

    @property
    def total(self) -> int:
        """Of all."""
        return sum(vars(self).values())


def block_bytes(shape: TransformerShape, *, bf16: bool, layer_scale: bool) -> int:
    """Return the bytes a token that autograd keeps of one block of a timm ViT.

    Two inputs of norms (the residual stream, fp32), what the norms give to the linear layers, q, k and v, the
    attention's result, both sides of the activation, and the inputs of the layer scales.
    """
    small = _BFLOAT16 if bf16 else _FLOAT32
    inner = shape.heads * shape.head_channels
    hidden = (4 if shape.gated_mlp else 2) * shape.mlp_width
    values = 2 * shape.width + 4 * inner + hidden + 2 * shape.width * layer_scale
    return 2 * shape.width * _FLOAT32 + values * small + _statistics(shape)


def layer_bytes(shape: TransformerShape, work: BatchLoad, *, bf16: bool) -> int:
    """Return the bytes that autograd keeps of one layer of a Qwen2-like language model.

    Its norms keep their input and what it is before it is scaled, in fp32. Autocast makes a copy for each linear layer
    (q, k, v; gate, up). In half precision attention reads keys and values as they are; in fp32 they are repeated for
    all query heads, and the results are kept once as the kernel and once as the next layer wants them.
    """
    small = _BFLOAT16 if bf16 else _FLOAT32
    inner = shape.heads * shape.head_channels
    inputs = (5 if bf16 else 2) * shape.width
    hidden = (4 if shape.gated_mlp else 2) * shape.mlp_width
    queries, keys = (2 * inner, 2 * shape.kv_heads * shape.head_channels) if bf16 else (3 * inner, 2 * inner)
    values = work.tokens * (inputs + queries + hidden) + work.keys * keys
    return work.tokens * (4 * shape.width * _FLOAT32 + _statistics(shape)) + values * small


def _statistics(shape: TransformerShape) -> int:
    """Return what norms and attention keep beside their tensors: two numbers a norm, one a head."""
    return _FLOAT32 * (4 + shape.heads)


@dataclass(frozen=True)
class Activations:
    """Bytes that a part keeps for its backward pass, and those that one of its blocks needs beside in its turn.

    Attributes:
        kept: Bytes that are kept from the forward pass on.
        working: Gradients inside of one block; with recomputed activations these as well.
    """

    kept: int
    working: int


def vision_activations(model: ModelShape, work: BatchLoad, *, bf16: bool, checkpointing: bool) -> Activations:
    """Return the activations of the vision tower and the projector."""
    small = _BFLOAT16 if bf16 else _FLOAT32
    shape = model.vision
    tokens = work.tiles * (model.patches + model.prefix)
    block = tokens * block_bytes(shape, bf16=bf16, layer_scale=model.layer_scale)
    inputs = tokens * shape.width * _FLOAT32
    image = work.tiles * model.channels * model.tile**2 * small
    folded = shape.width * model.shuffle**2
    projector = work.image_tokens * (folded * (_FLOAT32 + small) + 2 * model.language.width * small)
    gradients = tokens * 2 * (shape.width + shape.mlp_width) * small
    kept = image + inputs + projector + shape.layers * (inputs if checkpointing else block)
    return Activations(kept, gradients + block * checkpointing)


def language_activations(
    model: ModelShape, work: BatchLoad, *, bf16: bool, checkpointing: bool
) -> Activations:
    """Return the activations of the language model without its logits."""
    small = _BFLOAT16 if bf16 else _FLOAT32
    shape = model.language
    layer = layer_bytes(shape, work, bf16=bf16)
    inputs = work.tokens * shape.width * _FLOAT32
    rotary = 2 * work.tokens * shape.head_channels * _FLOAT32
    gradients = work.tokens * (2 * shape.width + 3 * shape.mlp_width) * small
    kept = rotary + 2 * inputs + shape.layers * (inputs if checkpointing else layer)
    return Activations(kept, gradients + layer * checkpointing)


def logit_bytes(model: ModelShape, supervised: int, *, bf16: bool) -> int:
    """Return what the loss holds at once when the backward pass begins."""
    # Log-probabilities, their gradient and the logits' gradient; under autocast the logits in bf16 as well.
    row = model.language.vocabulary * (3 * _FLOAT32 + _BFLOAT16 * bf16)
    return supervised * row


def step_memory(
    model: ModelShape,
    work: BatchLoad,
    *,
    bf16: bool,
    checkpointing: bool,
    accumulates: bool,
    ema: bool = False,
) -> Memory:
    """Return the memory at the worst moment of a step.

    Args:
        model: Shapes; all parts are trained.
        work: The largest micro-batch.
        bf16: Computed under bf16 autocast.
        checkpointing: Activations are computed a second time.
        accumulates: Gradients of earlier micro-batches are there from the start.
        ema: There is a moving average of the weights.
    """
    parameters = model.total_parameters
    vision = vision_activations(model, work, bf16=bf16, checkpointing=checkpointing)
    language = language_activations(model, work, bf16=bf16, checkpointing=checkpointing)
    at_once = min(work.supervised, max(1, MOST_LOGITS // model.language.vocabulary))
    logits = logit_bytes(model, at_once, bf16=bf16)
    everything = parameters * _FLOAT32
    head = model.language.vocabulary * model.language.width * _FLOAT32
    reached = (model.parameters["language"] + model.parameters["projector"]) * _FLOAT32
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
        weights=parameters * _FLOAT32,
        optimizer=parameters * _ADAMW,
        copies=parameters * _BFLOAT16 if bf16 else 0,
        vision=worst[0],
        language=worst[1],
        logits=worst[2],
        gradients=worst[3],
        average=everything if ema else 0,
    )
