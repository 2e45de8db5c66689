"""One model, four sets of names. All functions are pure, and none changes a number.

Ours is what a `VisionLanguageModel` is made of: `vision.model.` + timm's names, `projector.`, `language.` + the
names of transformers' causal language models. Beside it:

    original   vision_model.encoder.layers.0.attn.qkv      mlp1.0        language_model.model.layers.0 …
    hf         vision_tower.encoder.layer.0.attention.q_proj  multi_modal_projector.layer_norm  language_model.model …
    timm       blocks.0.attn.qkv                           the vision tower alone

The original layout fuses queries, keys and values as timm does; `hf` keeps them apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vitp.core.errors import CheckpointError

Layout = Literal["vitp", "original", "hf", "timm"]

VISION, PROJECTOR, LANGUAGE = "vision.model.", "projector.", "language."

ORIGINAL_VISION, ORIGINAL_PROJECTOR, ORIGINAL_LANGUAGE = "vision_model.", "mlp1.", "language_model."
HF_VISION, HF_PROJECTOR, HF_LANGUAGE = "vision_tower.", "multi_modal_projector.", "language_model."

DERIVED = re.compile(r"(\.rotary_emb\.inv_freq|\.position_ids|\.masked_bias|relative_position_index)$")
"""Values that some releases saved although the architecture computes them."""

_EMBEDDINGS_ORIGINAL = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding": "pos_embed",
    "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
    "embeddings.patch_embedding.bias": "patch_embed.proj.bias",
}
_EMBEDDINGS_HF = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_LINEAR_PARTS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "norm1", "norm2")
_BLOCK_ORIGINAL = {
    f"{part}.{kind}": f"{part}.{kind}" for part in _LINEAR_PARTS for kind in ("weight", "bias")
} | {
    "ls1": "ls1.gamma",
    "ls2": "ls2.gamma",
}
_PARTS_HF = {
    "attention.projection_layer": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
_BLOCK_HF = {
    f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in _PARTS_HF.items() for kind in ("weight", "bias")
} | {"lambda_1": "ls1.gamma", "lambda_2": "ls2.gamma"}
_PROJECTOR_HF = {"layer_norm": "0", "linear_1": "1", "linear_2": "3"}

_QKV_HF = re.compile(r"encoder\.layer\.(\d+)\.attention\.([qkv])_proj\.(weight|bias)")


@dataclass
class Renamed:
    """Weights under other names.

    Attributes:
        weights: New name → tensor.
        unexpected: Names of the source that stand for nothing in the architecture.
        ignored: Names of the source that the architecture computes by itself.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def put(self, name: str, tensor: Tensor, source: str) -> None:
        """Add a tensor; the same one under two names of the source is fine, two different ones are not."""
        if name in self.weights and not torch.equal(self.weights[name], tensor):
            raise CheckpointError(f"holds two different tensors for {name}, one of them {source}")
        self.weights[name] = tensor


def _rename(weights: Mapping[str, Tensor], rule: Callable[[str], str | None]) -> Renamed:
    renamed = Renamed()
    for name, tensor in weights.items():
        new = rule(name)
        if new is not None:
            renamed.put(new, tensor, name)
        elif DERIVED.search(name):
            renamed.ignored.append(name)
        else:
            renamed.unexpected.append(name)
    return renamed


# The original layout


def from_original(weights: Mapping[str, Tensor]) -> Renamed:
    """Return InternVL's original names as ours; an InternViT without the prefix `vision_model.` is understood, too."""
    return _rename(weights, _from_original)


def _from_original(name: str) -> str | None:
    if name.startswith(ORIGINAL_PROJECTOR):
        return PROJECTOR + name.removeprefix(ORIGINAL_PROJECTOR)
    if name.startswith(ORIGINAL_LANGUAGE):
        return None if DERIVED.search(name) else LANGUAGE + name.removeprefix(ORIGINAL_LANGUAGE)
    timm_name = _vision_from_original(name.removeprefix(ORIGINAL_VISION))
    return None if timm_name is None else VISION + timm_name


def _vision_from_original(name: str) -> str | None:
    if name in _EMBEDDINGS_ORIGINAL:
        return _EMBEDDINGS_ORIGINAL[name]
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name)
    if match is None or match[2] not in _BLOCK_ORIGINAL:
        return None
    return f"blocks.{match[1]}.{_BLOCK_ORIGINAL[match[2]]}"


def to_original(weights: Mapping[str, Tensor]) -> Renamed:
    """Return our names as InternVL's original ones. What that layout has no place for is `unexpected`."""
    return _rename(weights, _to_original)


def _to_original(name: str) -> str | None:
    if name.startswith(PROJECTOR):
        return ORIGINAL_PROJECTOR + name.removeprefix(PROJECTOR)
    if name.startswith(LANGUAGE):
        return ORIGINAL_LANGUAGE + name.removeprefix(LANGUAGE)
    theirs = _vision_name(name, _EMBEDDINGS_ORIGINAL, _BLOCK_ORIGINAL, "encoder.layers")
    return None if theirs is None else ORIGINAL_VISION + theirs


def _vision_name(name: str, embeddings: Mapping[str, str], block: Mapping[str, str], stem: str) -> str | None:
    """One of our vision names in a layout given by its two tables."""
    if not name.startswith(VISION):
        return None
    timm_name = name.removeprefix(VISION)
    for theirs, ours in embeddings.items():
        if ours == timm_name:
            return theirs
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", timm_name)
    if match is None:
        return None
    for theirs, ours in block.items():
        if ours == match[2]:
            return f"{stem}.{match[1]}.{theirs}"
    return None


# The layout of transformers


def from_hf(weights: Mapping[str, Tensor]) -> Renamed:
    """Return the names of `InternVLForConditionalGeneration` or `InternVLVisionModel` as ours.

    Files written by any version of transformers are understood: with `model.` in front or without it, with the
    language model's head inside or beside of it. Queries, keys and values are joined.
    """
    rest, joined = _join_qkv(weights)
    renamed = _rename(rest, _from_hf)
    for name, tensor in joined.items():
        renamed.put(name, tensor, name)
    return renamed


def _from_hf(name: str) -> str | None:
    name = name.removeprefix("model.")
    if name.startswith(HF_PROJECTOR):
        part, _, kind = name.removeprefix(HF_PROJECTOR).partition(".")
        return f"{PROJECTOR}{_PROJECTOR_HF[part]}.{kind}" if part in _PROJECTOR_HF else None
    if name.startswith("lm_head."):
        return LANGUAGE + name
    if name.startswith(HF_LANGUAGE):
        inner = name.removeprefix(HF_LANGUAGE)
        if DERIVED.search(inner):
            return None
        return LANGUAGE + inner if inner.startswith(("model.", "lm_head.")) else f"{LANGUAGE}model.{inner}"
    return _vision_from_hf(name.removeprefix(HF_VISION))


def _vision_from_hf(name: str) -> str | None:
    if name in _EMBEDDINGS_HF:
        return VISION + _EMBEDDINGS_HF[name]
    match = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", name)
    if match is None or match[2] not in _BLOCK_HF:
        return None
    return f"{VISION}blocks.{match[1]}.{_BLOCK_HF[match[2]]}"


def _join_qkv(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All other weights, and the joined ones under our names. An incomplete triple stays as it is."""
    triples: dict[str, dict[str, str]] = {}
    for name in weights:
        match = _QKV_HF.fullmatch(name.removeprefix("model.").removeprefix(HF_VISION))
        if match is not None:
            triples.setdefault(f"{VISION}blocks.{match[1]}.attn.qkv.{match[3]}", {})[match[2]] = name
    whole = {ours: names for ours, names in triples.items() if len(names) == 3}
    used = {name for names in whole.values() for name in names.values()}
    rest = {name: tensor for name, tensor in weights.items() if name not in used}
    return rest, {
        ours: torch.cat([weights[names[part]] for part in "qkv"], dim=0) for ours, names in whole.items()
    }


def to_hf(weights: Mapping[str, Tensor]) -> Renamed:
    """Return our names as transformers': those of the published `-hf` checkpoints, which every version reads.

    A tower without layer scale gets scales of one, because the architecture has them: x · 1 is x.
    """
    renamed = Renamed()
    for name, tensor in weights.items():
        match = re.fullmatch(re.escape(VISION) + r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", name)
        if match is not None:
            for part, piece in zip("qkv", tensor.chunk(3, dim=0), strict=True):
                key = f"{HF_VISION}encoder.layer.{match[1]}.attention.{part}_proj.{match[2]}"
                renamed.put(key, piece.contiguous(), name)
            continue
        new = _to_hf(name)
        if new is None:
            renamed.unexpected.append(name)
        else:
            renamed.put(new, tensor, name)
    for key, norm in list(renamed.weights.items()):
        if key.endswith(".layernorm_before.weight"):
            layer = key.removesuffix("layernorm_before.weight")
            for scale in ("lambda_1", "lambda_2"):
                renamed.weights.setdefault(layer + scale, torch.ones_like(norm))
    return renamed


def _to_hf(name: str) -> str | None:
    if name.startswith(PROJECTOR):
        number, _, kind = name.removeprefix(PROJECTOR).partition(".")
        for theirs, ours in _PROJECTOR_HF.items():
            if ours == number:
                return f"{HF_PROJECTOR}{theirs}.{kind}"
        return None
    if name.startswith(LANGUAGE):
        return HF_LANGUAGE + name.removeprefix(LANGUAGE)
    vision = _vision_name(name, _EMBEDDINGS_HF, _BLOCK_HF, "encoder.layer")
    return None if vision is None else HF_VISION + vision


# timm's layout


def from_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return timm's names as ours."""
    return {VISION + name: tensor for name, tensor in weights.items()}


def part_of(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the weights whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
