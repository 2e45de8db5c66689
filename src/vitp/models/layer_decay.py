"""The distance of each parameter from the top of a backbone, for layer-wise learning-rate decay.

The rate of a parameter is multiplied by `decay ** distance`. As BEiT and MAE finetune a ViT of L blocks: what lies
above the blocks (a final norm) has distance 0, block i of 0 … L − 1 has L − i, and the embeddings below the blocks
have L + 1. Adapters, necks and heads aren't part of the backbone and learn at the full rate. Convolutional and
windowed networks count by stage: the last one has distance 1, the stem one more than there are stages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

_PLAIN_VIT: Mapping[str, Any] = {
    "stem": r"^(?:patch_embed|pos_embed|cls_token|class_token|reg_token|register|norm_pre)",
    "blocks": r"^(?:blocks|layers)\.(\d+)",
}
_ATTACHED = (99999,)
"""timm's mark of what shares the last block's group; here it lies above the blocks, as the publications have it."""


def layer_distances(backbone: nn.Module) -> dict[str, int]:
    """Return parameter name → layers between it and the top of the backbone.

    timm's models tell their own layers (`group_matcher`); other modules are read as a plain ViT with `blocks`.

    Args:
        backbone: A timm model, a module that holds one as `model`, or any module.
    """
    names = [name for name, _ in backbone.named_parameters()]
    inner: Any = getattr(backbone, "model", None)
    prefix = "model." if hasattr(inner, "group_matcher") else ""
    model: Any = inner if prefix else backbone
    matcher = model.group_matcher(coarse=True) if hasattr(model, "group_matcher") else _PLAIN_VIT
    return _distances(names, prefix, matcher if isinstance(matcher, Mapping) else _PLAIN_VIT)


def _distances(names: Iterable[str], prefix: str, matcher: Mapping[str, Any]) -> dict[str, int]:
    """Return name → distance. Layers are numbered in the order of the groups and of the numbers in the names."""
    patterns = list(_patterns(matcher))
    layers: dict[str, tuple[int, ...] | None] = {}
    for name in names:
        short = name.removeprefix(prefix)
        found = ((order, match) for order, pattern in patterns if (match := pattern.match(short)))
        order, match = next(found, (0, None))
        layers[name] = match and (order, *(int(number) for number in match.groups() if number is not None))
    below = sorted({layer for layer in layers.values() if layer is not None})
    return {name: len(below) - below.index(layer) if layer else 0 for name, layer in layers.items()}


def _patterns(matcher: Mapping[str, Any]) -> Iterable[tuple[int, re.Pattern[str]]]:
    for order, entry in enumerate(matcher.values()):
        for pattern, suffix in [(entry, None)] if isinstance(entry, str) else entry or ():
            if suffix != _ATTACHED:
                yield order, re.compile(pattern)
