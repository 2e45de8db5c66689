"""Ways to compute a model: attention kernel, recomputed activations, compilation, static shapes.

But for fp8 none of them changes what it computes: they give the same loss and gradients up to rounding, as
`vitp check RUN` measures. None of them belongs to the model's own configuration.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from vitp.core.config import SettingsModel
from vitp.core.errors import ConfigError
from vitp.models import language
from vitp.models.attention_layouts import AttentionKind
from vitp.models.compilation import Backend, compile_block
from vitp.models.float8 import use_float8
from vitp.models.vlm import VisionLanguageModel


class ComputeSettings(SettingsModel):
    """Settings of speed and memory."""

    attention: AttentionKind = "auto"
    """How packed rows are attended: `auto` takes the fastest way that the machine has; all give the same
    numbers."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations that the backward pass computes again. `none`; `selective`: all but the results of
    matrix products and attention, which costs little time; `full`: all but one of each block, which costs
    a third more time."""
    compile: Literal["none", "vision", "all"] = "none"
    """What torch.compile gets: nothing, the blocks of the ViT, or also the language model's layers."""
    tile_multiple: int = Field(1, ge=1, le=65_536)
    """Tiles of a batch are padded to a multiple of this. A compiled ViT takes any number of tiles in one graph;
    few numbers suit kernels that are chosen by size."""
    token_multiple: int = Field(1, ge=1, le=65_536)
    """Tokens of the language model's one row are padded to a multiple of this, for the same reason."""
    static_rows: bool = False
    """Keep the padding of the language model's rows, as they were packed."""
    fp8: bool = False
    """Compute the linear layers of ViT and language model in fp8 (torchao), on GPUs of compute capability 8.9 and
    newer. Unlike the settings before it, this changes what is computed, beyond rounding in bf16."""


class BackboneComputeSettings(SettingsModel):
    """Settings of speed of a finetuning, none of which changes a result beyond rounding."""

    compile: Literal["none", "vision"] = "none"
    """What torch.compile gets: nothing, or the blocks of a plain ViT. One graph takes images of all sizes."""
    channels_last: bool = False
    """Lay the kernels of convolutions out channel by channel last, which GPUs compute faster in half precision."""


def configure_backbone(
    model: nn.Module, tower: nn.Module, config: BackboneComputeSettings, *, backend: Backend = "inductor"
) -> None:
    """Set a finetuned model up, in place. State, names and results stay what they are.

    Args:
        model: Backbone, neck and head.
        tower: Its backbone.
        config: What is wanted.
        backend: Backend of torch.compile.

    Raises:
        ConfigError: The backbone has no blocks that could share a graph.
    """
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    if config.compile == "none":
        return
    blocks = getattr(getattr(tower, "model", None), "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise ConfigError(
            f"{type(tower).__name__} has no blocks that could be compiled",
            where="compute.compile",
            fix="leave it out",
        )
    for block in blocks:
        compile_block(block, batch_dim=None, backend=backend)


def configure(vlm: VisionLanguageModel, config: ComputeSettings, *, backend: Backend = "inductor") -> None:
    """Set a model up, in place. State, names and results stay what they are.

    Args:
        vlm: The model.
        config: What is wanted.
        backend: Backend of torch.compile, for tests that count graphs.
    """
    vlm.attention = config.attention
    vlm.static_rows, vlm.tile_multiple = config.static_rows, config.tile_multiple
    vlm.token_multiple = config.token_multiple
    if config.fp8:
        use_float8(vlm)
    compiled = config.compile != "none"
    # A compiler keeps matrix products and makes the rest of a block again by itself.
    set_recompute(vlm, config.recompute, compiled_vision=compiled, compiled_language=config.compile == "all")
    if compiled:
        # Block by block: all blocks share one compiled graph, so that it is made in a fraction of the time. torch makes
        # a graph of its own for a dimension of 1, hence two tiles at least.
        vlm.least_tiles = 2
        for block in vlm.vision.model.blocks:
            compile_block(block, batch_dim=0, backend=backend)
    if config.compile == "all":
        for layer in vlm.language.get_decoder().layers:
            compile_block(layer, batch_dim=None, backend=backend)


def set_recompute(
    vlm: VisionLanguageModel,
    mode: Literal["none", "selective", "full"],
    *,
    compiled_vision: bool = False,
    compiled_language: bool = False,
) -> None:
    """Choose which activations of ViT and language model the backward pass makes again.

    Args:
        vlm: The model.
        mode: As in `ComputeSettings.recompute`.
        compiled_vision, compiled_language: The part is compiled: `selective` is left to the compiler, which sees what
            is in a block, whereas torch's checkpoint does not.
    """
    vlm.set_gradient_checkpointing(mode == "full")
    if mode == "selective":
        contexts = functools.partial(create_selective_checkpoint_contexts, _keep_products)
        vlm.vision.recompute_contexts = None if compiled_vision else contexts
        if not compiled_language:
            language.recompute_layers(vlm.language, {"context_fn": contexts})


def _keep_products(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    if operation in _products():
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


@functools.cache
def _products() -> frozenset[Any]:
    aten = torch.ops.aten
    kept = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten._scaled_mm.default}
    for name in (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    ):
        # Which kernels there are depends on torch's version and build.
        if hasattr(aten, name):
            kept.add(getattr(aten, name).default)
    if hasattr(torch.ops, "torch_attn") and hasattr(torch.ops.torch_attn, "_varlen_attn"):
        kept.add(torch.ops.torch_attn._varlen_attn.default)
    return frozenset(kept)
