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
from typing import Any, Literal

import torch
from torch import Tensor

from vitp.core.errors import CheckpointError

LayoutName = Literal["vitp", "original", "hf", "timm"]

TOWER = "vision."
"""Names of the vision tower with what was added to it (`vitp.models.adapt`); its timm model's are `VISION`."""

VISION, PROJECTOR, LANGUAGE = "vision.model.", "projector.", "language."

DERIVED = re.compile(r"(\.rotary_emb\.inv_freq|\.position_ids|\.masked_bias|relative_position_index)$")
"""Values that some releases saved although the architecture computes them."""


@dataclass(frozen=True)
class _Names:
    """How a layout names the parts of a model.

    Attributes:
        vision, projector, language: How the names of each part begin.
        blocks: How the names of the tower's blocks begin, before their number.
        outside: Name in the tower, outside of its blocks → timm's.
        block: Name in a block → timm's.
        layers: Layer of the projector → its number.
    """

    vision: str
    projector: str
    language: str
    blocks: str
    outside: Mapping[str, str]
    block: Mapping[str, str]
    layers: Mapping[str, str]


def _weights_and_biases(parts: Mapping[str, str]) -> dict[str, str]:
    return {
        f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in parts.items() for kind in ("weight", "bias")
    }


_ORIGINAL = _Names(
    vision="vision_model.",
    projector="mlp1.",
    language="language_model.",
    blocks="encoder.layers.",
    outside={
        "embeddings.class_embedding": "cls_token",
        "embeddings.position_embedding": "pos_embed",
        **_weights_and_biases({"embeddings.patch_embedding": "patch_embed.proj"}),
    },
    block={
        **_weights_and_biases(
            {part: part for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "norm1", "norm2")}
        ),
        "ls1": "ls1.gamma",
        "ls2": "ls2.gamma",
    },
    layers={number: number for number in "0123"},
)

_HF = _Names(
    vision="vision_tower.",
    projector="multi_modal_projector.",
    language="language_model.",
    blocks="encoder.layer.",
    outside={
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        **_weights_and_biases(
            {"embeddings.patch_embeddings.projection": "patch_embed.proj", "layernorm": "norm"}
        ),
    },
    block={
        **_weights_and_biases(
            {
                "attention.projection_layer": "attn.proj",
                "mlp.fc1": "mlp.fc1",
                "mlp.fc2": "mlp.fc2",
                "layernorm_before": "norm1",
                "layernorm_after": "norm2",
            }
        ),
        "lambda_1": "ls1.gamma",
        "lambda_2": "ls2.gamma",
    },
    layers={"layer_norm": "0", "linear_1": "1", "linear_2": "3"},
)

ORIGINAL_VISION, HF_VISION = _ORIGINAL.vision, _HF.vision

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


def _to_ours(name: str, names: _Names) -> str | None:
    """Return our name of a published one, with or without the prefix of its part; None where there is none."""
    # Some versions of transformers write `model.` in front of every name, others have the output table at the top.
    name = name.removeprefix("model.")
    if name.startswith(names.projector):
        layer, _, kind = name.removeprefix(names.projector).partition(".")
        return f"{PROJECTOR}{names.layers[layer]}.{kind}" if layer in names.layers else None
    if name.startswith("lm_head."):
        return LANGUAGE + name
    if name.startswith(names.language):
        inner = name.removeprefix(names.language)
        if DERIVED.search(inner):
            return None
        # Within the language model some versions leave `model.` out.
        return LANGUAGE + inner if inner.startswith(("model.", "lm_head.")) else f"{LANGUAGE}model.{inner}"
    name = name.removeprefix(names.vision)
    if name in names.outside:
        return VISION + names.outside[name]
    match = re.fullmatch(re.escape(names.blocks) + r"(\d+)\.(.+)", name)
    if match is None or match[2] not in names.block:
        return None
    return f"{VISION}blocks.{match[1]}.{names.block[match[2]]}"


def _to_theirs(name: str, names: _Names) -> str | None:
    """Return the published name of one of ours; None where the layout has no place for it."""
    outside, block, layers = (
        {ours: theirs for theirs, ours in table.items()}
        for table in (names.outside, names.block, names.layers)
    )
    if name.startswith(PROJECTOR):
        number, _, kind = name.removeprefix(PROJECTOR).partition(".")
        return f"{names.projector}{layers[number]}.{kind}" if number in layers else None
    if name.startswith(LANGUAGE):
        return names.language + name.removeprefix(LANGUAGE)
    if not name.startswith(VISION):
        return None
    name = name.removeprefix(VISION)
    if name in outside:
        return names.vision + outside[name]
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match is None or match[2] not in block:
        return None
    return f"{names.vision}{names.blocks}{match[1]}.{block[match[2]]}"


def from_original(weights: Mapping[str, Tensor]) -> Renamed:
    """Return InternVL's original names as ours; an InternViT without the prefix `vision_model.` is understood, too."""
    return _rename(weights, lambda name: _to_ours(name, _ORIGINAL))


def to_original(weights: Mapping[str, Tensor]) -> Renamed:
    """Return our names as InternVL's original ones. What that layout has no place for is `unexpected`."""
    return _rename(weights, lambda name: _to_theirs(name, _ORIGINAL))


def from_hf(weights: Mapping[str, Tensor]) -> Renamed:
    """Return the names of `InternVLForConditionalGeneration` or `InternVLVisionModel` as ours.

    Files written by any version of transformers are understood: with `model.` in front or without it, with the
    language model's head inside or beside of it. Queries, keys and values are joined; an incomplete triple stays
    `unexpected`.
    """
    triples: dict[str, dict[str, str]] = {}
    for name in weights:
        if match := _QKV_HF.fullmatch(name.removeprefix("model.").removeprefix(HF_VISION)):
            triples.setdefault(f"{VISION}blocks.{match[1]}.attn.qkv.{match[3]}", {})[match[2]] = name
    triples = {ours: names for ours, names in triples.items() if len(names) == 3}
    joined = {name for names in triples.values() for name in names.values()}
    rest = {name: tensor for name, tensor in weights.items() if name not in joined}
    renamed = _rename(rest, lambda name: _to_ours(name, _HF))
    for ours, names in triples.items():
        renamed.put(ours, torch.cat([weights[names[part]] for part in "qkv"], dim=0), ours)
    return renamed


def internvit_names(weights: Mapping[str, Tensor]) -> Renamed | None:
    """Return the file's names as ours, or None when they aren't an InternViT's."""
    if any(name.endswith("embeddings.class_embedding") for name in weights):
        return from_original(weights)
    if any(name.endswith("embeddings.cls_token") for name in weights) and any(
        name.endswith("lambda_1") for name in weights
    ):
        return from_hf(weights)
    return None


def to_hf(weights: Mapping[str, Tensor]) -> Renamed:
    """Return our names as transformers': those of the published `-hf` checkpoints, which every version reads.

    A tower without layer scale gets scales of one, because the architecture has them.
    """
    weights = with_scales(weights)
    fused = re.compile(re.escape(VISION) + r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)")
    renamed = _rename(
        {name: tensor for name, tensor in weights.items() if not fused.fullmatch(name)},
        lambda name: _to_theirs(name, _HF),
    )
    for name, tensor in weights.items():
        if match := fused.fullmatch(name):
            for part, piece in zip("qkv", tensor.chunk(3, dim=0), strict=True):
                key = f"{HF_VISION}encoder.layer.{match[1]}.attention.{part}_proj.{match[2]}"
                renamed.put(key, piece.contiguous(), name)
    return renamed


def with_scales(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under our names with layer scales of one where a tower has none: x · 1 is x."""
    scaled = dict(weights)
    for name, norm in weights.items():
        if name.startswith(VISION + "blocks.") and name.endswith(".norm1.weight"):
            for scale in ("ls1.gamma", "ls2.gamma"):
                scaled.setdefault(name.removesuffix("norm1.weight") + scale, torch.ones_like(norm))
    return scaled


def from_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return timm's names as ours."""
    return {VISION + name: tensor for name, tensor in weights.items()}


def added(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a tower holds beside its timm model (`vitp.models.adapt`), named as ours."""
    return {TOWER + name: tensor for name, tensor in weights.items() if name.startswith("adapt.")}


def part_of(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the weights whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}


def check_projector(config: Mapping[str, Any], where: str) -> None:
    """Do nothing where an InternVL's projector lies between tower and language model as vitp's does.

    Raises:
        CheckpointError: It folds patches in another order, takes another layer or has another activation.
    """
    if config["model_type"] == "internvl_chat":
        if (order := config.get("ps_version", "v1")) != "v2":
            raise CheckpointError(
                f"folds patches in the order {order} of InternVL's first releases",
                where=where,
                fix="use InternVL2.5 or InternVL3, which have v2",
            )
        if (layer := config.get("select_layer", -1)) != -1:
            raise CheckpointError(f"takes layer {layer} of the ViT, vitp takes the last", where=where)
        return
    for key, value in {
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
    }.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"says {key} {config[key]}, vitp has {value}", where=where)
