"""The layer of a vision transformer that a parameter belongs to, found from its name."""

from __future__ import annotations

import re
from collections.abc import Iterable

_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers|layer|resblocks|stages)\.(\d+)(?:\.|$)")
_LEAF = ("weight", "bias", "gamma")


def _shared_prefix(names: list[str]) -> str:
    """Return the dotted path that all names start with, final dot included."""
    if not names:
        return ""
    split = [name.split(".")[:-1] for name in names]
    shared: list[str] = []
    for parts in zip(*split, strict=False):
        # A list of blocks alone ("blocks.0.…" only) must keep its name.
        if len(set(parts)) > 1 or parts[0].isdigit() or _BLOCK.search(f"{parts[0]}.0"):
            break
        shared.append(parts[0])
    return "".join(f"{part}." for part in shared)


def layers_of(names: Iterable[str]) -> dict[str, str]:
    """Return parameter name → layer: `blocks.3`, `patch_embed`, `pos_embed`, `norm`, …

    Wrappers that all names share (`vit.`, `model.`) are left out.
    """
    names = list(names)
    cut = len(_shared_prefix(names))
    layers = {}
    for name in names:
        short = name[cut:]
        if block := _BLOCK.search(short):
            layers[name] = short[: block.end(1)]
            continue
        parts = short.split(".")
        if len(parts) > 1 and parts[-1] in _LEAF:
            parts.pop()
        layers[name] = ".".join(parts[:2] if parts[0] in ("embeddings", "encoder") else parts[:1])
    return layers
