"""Ways to compute a model: attention kernel, recomputed activations, compilation, static shapes.

None of them changes what it computes.

Every setting gives the same loss and gradients up to rounding (`vitp check RUN` measures that), so none of them
belongs to the model's own configuration.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from vitp.core.config import SettingsModel
from vitp.models import language
from vitp.models.attention_layouts import AttentionKind
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
    """Tiles of a batch are padded to a multiple of this, so that a compiled ViT sees few shapes."""
    static_rows: bool = False
    """Keep the padding of the language model's rows, so that a compiled language model sees few shapes."""


def configure(vlm: VisionLanguageModel, config: ComputeSettings) -> None:
    """Set a model up, in place. State, names and results stay what they are."""
    vlm.attention = config.attention
    vlm.static_rows, vlm.tile_multiple = config.static_rows, config.tile_multiple
    set_recompute(vlm, config.recompute)
    if config.compile != "none":
        # Block by block: all blocks share one compiled graph, so that it is made in a fraction of the time.
        for block in vlm.vision.model.blocks:
            block.compile(dynamic=None if config.tile_multiple == 1 else False)
    if config.compile == "all":
        for layer in vlm.language.get_decoder().layers:
            layer.compile(dynamic=None if not config.static_rows else False)


def set_recompute(vlm: VisionLanguageModel, mode: Literal["none", "selective", "full"]) -> None:
    """Choose which activations of ViT and language model the backward pass makes again."""
    vlm.set_gradient_checkpointing(mode != "none")
    if mode == "selective":
        contexts = selective_contexts()
        vlm.vision.recompute_contexts = contexts
        language.recompute_layers(vlm.language, {"context_fn": contexts})


def selective_contexts() -> Callable[[], Any]:
    """Return torch's checkpoint contexts that keep the results of matrix products and attention."""
    return functools.partial(create_selective_checkpoint_contexts, _keep_products)


def _keep_products(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    if operation in _products():
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


@functools.cache
def _products() -> frozenset[Any]:
    aten = torch.ops.aten
    kept = {aten.mm.default, aten.addmm.default, aten.bmm.default}
    for name in (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    ):
        if hasattr(aten, name):
            kept.add(getattr(aten, name).default)
    if hasattr(torch.ops, "torch_attn") and hasattr(torch.ops.torch_attn, "_varlen_attn"):
        kept.add(torch.ops.torch_attn._varlen_attn.default)
    return frozenset(kept)


def bf16_speed(device: torch.device, *, side: int = 384, repeats: int = 3) -> float:
    """Return how many times as fast as fp32 a matrix product in bf16 is on a device.

    CPUs without bf16 units emulate it, some of them thirty times slower: measure before asking for it.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        a @ b
        _wait(device)
        began = time.perf_counter()
        for _ in range(repeats):
            a @ b
        _wait(device)
        seconds[dtype] = time.perf_counter() - began
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
