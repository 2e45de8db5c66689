"""State dicts of pretraining runs (DINO, iBOT, MAE, MoCo, …): the vision transformer that lies inside of them.

They hold more than a backbone, under names with a prefix: optimizer, teacher and student, decoder, heads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vitp.core.errors import CheckpointError
from vitp.models.vision import VisionConfig

CONTAINERS = ("teacher", "model_ema", "state_dict", "model", "module", "student", "encoder", "target_encoder")
"""Entries under which files keep their weights, the better ones first: a teacher is what DINO is used as."""

_MARK = "patch_embed.proj.weight"
"""A name that every ViT of timm's family has: what stands in front of it is the prefix of all."""

_PRETRAINING_ONLY = re.compile(
    r"^(decoder|mask_token$|dino_head|ibot_head|projector|predictor|projection_head)"
)


@dataclass(frozen=True)
class FoundBackbone:
    """A ViT inside of a file.

    Attributes:
        weights: Its tensors without prefix.
        place: Where they were, such as `teacher · backbone.`.
        ignored: Names in the same entry that don't belong to it.
    """

    weights: dict[str, Tensor]
    place: str
    ignored: tuple[str, ...]


def find_backbone(state: Mapping[str, Any], *, where: str) -> FoundBackbone | None:
    """Return the ViT in the state of a run, or None when the names are not of timm's family.

    Args:
        state: What the file holds, nested or flat.
        where: The file, for messages.

    Raises:
        CheckpointError: There are several, and none of them is a teacher.
    """
    entry, tensors = _container(state)
    if tensors is None:
        raise CheckpointError(
            "holds no named tensors",
            where=where,
            fix=f"weights are looked for at the top and under {', '.join(CONTAINERS)}",
        )
    prefixes = sorted({name.removesuffix(_MARK) for name in tensors if name.endswith(_MARK)})
    if not prefixes:
        return None
    prefix = prefixes[0] if len(prefixes) == 1 else _teacher(prefixes, where)
    inside = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    weights = {
        name: t for name, t in inside.items() if not _PRETRAINING_ONLY.match(name) or _needed(name, inside)
    }
    ignored = [name for name in tensors if not name.startswith(prefix)]
    ignored += [prefix + name for name in inside if name not in weights]
    place = " · ".join(part for part in (entry, prefix) if part) or "top"
    return FoundBackbone(weights, place, tuple(ignored))


def _needed(name: str, inside: Mapping[str, Tensor]) -> bool:
    # timm knows DINOv2's files by their mask token, and converts register tokens and gated MLPs only then.
    return name == "mask_token" and not any(other.startswith("decoder") for other in inside)


def _container(state: Mapping[str, Any]) -> tuple[str, Mapping[str, Tensor] | None]:
    """The innermost entry that holds tensors by name, and its path."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if len(tensors) > 1:
        return "", tensors
    for entry in CONTAINERS:
        if isinstance(inner := state.get(entry), Mapping):
            path, found = _container(inner)
            if found is not None:
                return ".".join(part for part in (entry, path) if part), found
    return "", None


def _teacher(prefixes: list[str], where: str) -> str:
    teachers = [p for p in prefixes if "teacher" in p or "ema" in p or "target" in p]
    if len(teachers) == 1:
        return teachers[0]
    raise CheckpointError(
        f"holds {len(prefixes)} vision transformers ({', '.join(p or 'top' for p in prefixes)})",
        where=where,
        fix="save the state dict of one of them",
    )


def plain_vit_of(weights: Mapping[str, Tensor], *, heads: int | None, where: str) -> VisionConfig:
    """Return the sizes of a plain ViT (timm's names) from its tensors.

    Only for pretraining runs whose normalisation is ImageNet's and whose norms have epsilon 1e-6, as those of
    DINO, iBOT, DINOv2 and MAE: shapes don't tell these two.

    Raises:
        CheckpointError: Tensors are missing, or the number of heads can't be told.
    """
    try:
        kernel = weights[_MARK]
        mlp = weights["blocks.0.mlp.fc1.weight"].shape[0]
        table = weights["pos_embed"]
    except KeyError as error:
        raise CheckpointError(
            f"is no plain ViT with learned positions ({error} is missing)",
            where=where,
            fix="name its timm architecture",
        ) from error
    width, patch = int(kernel.shape[0]), int(kernel.shape[-1])
    if heads is None and width % 64:
        raise CheckpointError(
            f"is {width} channels wide, and its number of attention heads can't be told from that",
            where=where,
            fix="say it: heads=…, or --heads",
        )
    depth = max(int(m[1]) for name in weights if (m := re.match(r"blocks\.(\d+)\.", name))) + 1
    registers = next((weights[n].shape[1] for n in ("reg_token", "register_tokens") if n in weights), 0)
    cells = table.shape[1] - ("cls_token" in weights and "reg_token" not in weights)
    arguments: dict[str, Any] = {
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads or width // 64,
        "patch_size": patch,
        "mlp_ratio": mlp / width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
        "class_token": "cls_token" in weights,
    }
    if registers:
        arguments |= {"reg_tokens": int(registers), "no_embed_class": True}
    if "blocks.0.ls1.gamma" in weights:
        arguments["init_values"] = 1e-5
    if "norm.weight" not in weights:
        arguments["final_norm"] = False
    return VisionConfig(
        architecture="vit_base_patch16_224", arguments=arguments, image_size=round(cells**0.5) * patch
    )
