"""The cost of a step of a vision-language model on a packed batch, in floating-point operations."""

from __future__ import annotations

from torch import nn

from vitp.data.packing import PackedBatch
from vitp.models.flops import forward_flops, language_shape, vision_flops
from vitp.models.token_runs import token_runs
from vitp.models.vlm import VisionLanguageModel


def vlm_forward_flops(vlm: VisionLanguageModel, batch: PackedBatch) -> dict[str, float]:
    """Return the forward FLOPs of the three parts of a model for a batch: vision, projector, language."""
    runs = token_runs(batch.segments_BL.cpu().numpy(), batch.branches_BL.cpu().numpy())
    linear = [module for module in vlm.projector.modules() if isinstance(module, nn.Linear)]
    return {
        "vision": vision_flops(vlm.vision, len(batch.tiles_TCHW)),
        "projector": sum(2.0 * module.in_features * module.out_features for module in linear)
        * len(batch.keep_K),
        "language": forward_flops(
            language_shape(vlm.language), batch.tokens, runs.context, logits=len(batch.target_ids_S)
        ),
    }


def vlm_step_flops(vlm: VisionLanguageModel, batch: PackedBatch) -> float:
    """Return the FLOPs of forward and backward pass of a batch.

    A frozen part costs no gradients of its weights, and none at all where nothing in front of it is trained.
    """
    total, gradient_arrives = 0.0, False
    for part, forward in vlm_forward_flops(vlm, batch).items():
        trained = any(parameter.requires_grad for parameter in getattr(vlm, part).parameters())
        # Forward; the gradient of the weights; that of the inputs, where weights in or before this part are trained.
        total += forward * (1 + trained + (trained or gradient_arrives))
        gradient_arrives = gradient_arrives or trained
    return total
