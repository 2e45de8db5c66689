"""Matrix products in fp8 (torchao): an option for GPUs that compute them twice as fast as those in bf16.

Inputs, weights and gradients of a product are scaled to the range of fp8 as a whole, each time anew. The weights
themselves, their gradients, the optimizer's moments and all files stay what they are without it.
"""

from __future__ import annotations

import torch
from torch import nn

from vitp.core.errors import ConfigError
from vitp.core.extras import need
from vitp.models.vlm import VisionLanguageModel

WHERE = "compute.fp8"
CAPABILITY = (8, 9)
"""Of the oldest NVIDIA GPUs that have such products (Ada); H100 has 9.0."""
SIDES = 16
"""Products take matrices whose sides are multiples of this."""


def use_float8(vlm: VisionLanguageModel, *, emulate: bool = False) -> None:
    """Let the linear layers of the ViT's blocks and of the language model's layers compute in fp8, in place.

    Layers with a side that is no multiple of 16 stay as they are.

    Args:
        vlm: The model.
        emulate: Compute in fp32 with numbers that are rounded as fp8 would, on any device.

    Raises:
        ConfigError: torchao is missing, the GPU is too old or there is none, or no layer fits.
    """
    if not emulate:
        check_capability()
    float8 = need("fp8", "torchao.float8", WHERE, ConfigError)
    # The tokens of a batch, along which gradients of weights are summed, are filled up to a multiple, too.
    config = float8.Float8LinearConfig(emulate=emulate, pad_inner_dim=True)
    for part in _parts(vlm):
        float8.convert_to_float8_training(
            part, config=config, module_filter_fn=lambda layer, _: type(layer) is nn.Linear and fits(layer)
        )
    if not any(is_float8(layer) for layer in _layers(vlm)):
        raise ConfigError(
            f"no linear layer has sides that are multiples of {SIDES}", where=WHERE, fix="leave it out"
        )


def check_capability() -> None:
    """Do nothing where the GPU has matrix products in fp8.

    Raises:
        ConfigError: It hasn't, or there is none.
    """
    least = ".".join(map(str, CAPABILITY))
    what = f"needs an NVIDIA GPU of compute capability {least} or newer"
    if not torch.cuda.is_available():
        raise ConfigError(f"{what}, and there is no GPU", where=WHERE, fix="leave it out")
    if (own := torch.cuda.get_device_capability()) < CAPABILITY:
        raise ConfigError(f"{what}, and this one has {own[0]}.{own[1]}", where=WHERE, fix="leave it out")


def fits(layer: nn.Linear) -> bool:
    """Return whether the sides of a layer's weights suit products in fp8."""
    return layer.in_features % SIDES == 0 and layer.out_features % SIDES == 0


def is_float8(layer: nn.Module) -> bool:
    """Return whether a layer computes in fp8."""
    return type(layer).__name__ == "Float8Linear"


def float8_line(vlm: VisionLanguageModel) -> str | None:
    """Return what is to be said of a model's layers in fp8; None where there are none."""
    layers = _layers(vlm)
    changed = sum(map(is_float8, layers))
    if not changed:
        return None
    left = len(layers) - changed
    rest = f"; {left} stay as they are, as a side is no multiple of {SIDES}" if left else ""
    return f"fp8: {changed} of {len(layers)} linear layers of ViT and language model{rest}"


def _parts(vlm: VisionLanguageModel) -> list[nn.Module]:
    return [vlm.vision.model.blocks, vlm.language.get_decoder().layers]


def _layers(vlm: VisionLanguageModel) -> list[nn.Linear]:
    return [layer for part in _parts(vlm) for layer in part.modules() if isinstance(layer, nn.Linear)]
