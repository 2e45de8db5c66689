"""Vision towers in transformers' folders: DINOv2 (with registers or without), DINOv3, SigLIP and SigLIP 2.

Their names become timm's, or those of the publication that timm converts by itself (DINOv2). The sizes come from
`config.json`, as arguments of timm's architecture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vitp.checkpoints.layouts import Renamed
from vitp.core.errors import CheckpointError

_WIDTHS = {384: "small", 768: "base", 1024: "large", 1280: "huge_plus", 4096: "7b"}
"""Width → what timm calls a DINOv3 of it; others are described by their sizes alone."""

_SIGLIP_MEAN = (0.5, 0.5, 0.5)
"""Mean and deviation of SigLIP; the other families have ImageNet's, which timm knows."""

_BLOCK = r"(?:.*\.)?layers?\.(\d+)\."

_DINO_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.w12",
    "mlp.weights_out": "mlp.w3",
}
_DINO_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.patch_embeddings": "patch_embed.proj",
    "layernorm": "norm",
    "norm": "norm",
}
_SIGLIP_BLOCK = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_SIGLIP_OUTSIDE = {
    "embeddings.patch_embedding": "patch_embed.proj",
    "embeddings.position_embedding": "pos_embed",
    "post_layernorm": "norm",
}
_QKV = re.compile(r"(?:attention\.attention|attention|self_attn)\.(q|k|v)(?:uery|ey|alue|_proj)$")

_FAMILIES = {
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2",
    "dinov3_vit": "dinov3",
    "siglip": "siglip",
    "siglip_vision_model": "siglip",
}


def is_transformers_vit(config: Mapping[str, Any], *, where: str) -> bool:
    """Return whether a `config.json` is that of a ViT that `transformers_vit` reads.

    Raises:
        CheckpointError: It is one of a family that vitp can't run, and why.
    """
    kind = str(config.get("model_type", ""))
    if kind in ("siglip2", "siglip2_vision_model"):
        raise CheckpointError(
            "is SigLIP 2 in its NaFlex form, which takes patches with their places instead of images",
            where=where,
            fix="take a SigLIP 2 of a fixed size, such as google/siglip2-base-patch16-224",
        )
    if kind == "dinov3_convnext":
        raise CheckpointError(
            "is a ConvNeXt, whose grid changes from stage to stage: vision towers are plain ViTs",
            where=where,
            fix='take a DINOv3 ViT, or finetune timm\'s copy of it: backbone.init "timm:convnext_tiny"',
        )
    return kind in _FAMILIES


def transformers_vit(config: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return what describes a ViT of transformers in the terms of `TimmSettings`.

    Args:
        config: Content of its `config.json`.
        where: The file, for messages.

    Raises:
        CheckpointError: A size is missing, or is one that timm's model of this family doesn't have.
    """
    family = _FAMILIES[str(config["model_type"])]
    values = config.get("vision_config", config) if family == "siglip" else config
    try:
        found = _SETTINGS[family](values)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"states no whole vision tower ({error})", where=where) from error
    epsilon = {"dinov3": 1e-5}.get(family, 1e-6)
    if values.get("layer_norm_eps", epsilon) != epsilon:
        raise CheckpointError(
            f"has norms with epsilon {values['layer_norm_eps']}, timm's {found['architecture']} has {epsilon:g}",
            where=where,
        )
    return found


def _sizes(values: Mapping[str, Any], **defaults: int) -> tuple[dict[str, Any], int]:
    """Return the sizes that all families state alike, and the side of their images; `defaults` where none is stated."""

    def stated(key: str) -> Any:
        value = values.get(key, defaults[key])
        sides = list(value) if isinstance(value, list | tuple) else [value]
        if len(set(sides)) != 1:
            raise ValueError(f"{key} {sides} is no square")
        return int(sides[0])

    arguments = {
        "embed_dim": stated("hidden_size"),
        "depth": stated("num_hidden_layers"),
        "num_heads": stated("num_attention_heads"),
        "patch_size": stated("patch_size"),
    }
    if stated("num_channels") != 3:
        arguments["in_chans"] = stated("num_channels")
    return arguments, stated("image_size")


_COMMON = {"num_channels": 3, "image_size": 224}
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}


def _activation(values: Mapping[str, Any], usual: str) -> dict[str, str]:
    known = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu"}
    name = values.get("hidden_act", usual)
    if name not in known:
        raise ValueError(f"the activation {name} is none of {', '.join(known)}")
    return {} if name == "gelu" else {"act_layer": known[name]}


def _dinov2(values: Mapping[str, Any]) -> dict[str, Any]:
    registers = int(values.get("num_register_tokens", 4)) if "registers" in values["model_type"] else 0
    patch = 16 if registers else 14  # transformers' defaults, which its files leave out
    arguments, size = _sizes(values, **_COMMON, **_BASE, patch_size=patch)
    arguments |= {"qkv_bias": bool(values.get("qkv_bias", True)), **_activation(values, "gelu")}
    ratio = float(values.get("mlp_ratio", 4))
    name = "vit_base_patch14_dinov2"
    if values.get("use_swiglu_ffn", False):
        # transformers takes two thirds of the width, in steps of eight; timm is told the width before the gate.
        width = arguments["embed_dim"]
        hidden = (int(int(width * ratio) * 2 / 3) + 7) // 8 * 8
        name, ratio = "vit_giant_patch14_dinov2", 2 * hidden / width
        arguments.pop("act_layer", None)
    if registers:
        name = name.replace("_dinov2", "_reg4_dinov2")
        arguments["reg_tokens"] = registers
    return {"architecture": name, "arguments": arguments | {"mlp_ratio": ratio}, "image_size": size}


def _dinov3(values: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "patch_size": 16}
    arguments, size = _sizes(values, **_COMMON, **defaults)
    gated = bool(values.get("use_gated_mlp", False))
    acts = _activation(values, "silu" if gated else "gelu")
    if acts != ({"act_layer": "silu"} if gated else {}):
        raise ValueError(f"timm's DINOv3 has no {values['hidden_act']} in its MLPs")
    for key, wanted in {"key_bias": False, "proj_bias": True, "mlp_bias": True}.items():
        if values.get(key, wanted) != wanted:
            raise ValueError(f"{key} is {values[key]}, timm's DINOv3 has {wanted}")
    width = arguments["embed_dim"]
    name = _WIDTHS.get(width, "small")
    # In timm's names "plus" stands for a gated MLP; the huge one is only there with it.
    if name in ("small", "huge_plus"):
        name = name.removesuffix("_plus") + ("_plus" if gated or name == "huge_plus" else "")
    arguments |= {
        "mlp_ratio": int(values.get("intermediate_size", 1536)) / width,
        "num_reg_tokens": int(values.get("num_register_tokens", 0)),
        "rope_temperature": float(values.get("rope_theta", 100.0)),
        "qkv_bias": bool(values.get("query_bias", True)),
        "swiglu_mlp": gated,
        "swiglu_align_to": 8 if gated else 0,
    }
    if arguments["qkv_bias"] != bool(values.get("value_bias", True)):
        raise ValueError("only one of queries and values has a bias")
    return {"architecture": f"vit_{name}_patch16_dinov3", "arguments": arguments, "image_size": size}


def _siglip(values: Mapping[str, Any]) -> dict[str, Any]:
    arguments, size = _sizes(values, **_COMMON, **_BASE, patch_size=16)
    arguments["mlp_ratio"] = int(values.get("intermediate_size", 3072)) / arguments["embed_dim"]
    arguments |= _activation(values, "gelu_pytorch_tanh")
    return {
        "architecture": "vit_base_patch16_siglip_224",
        "arguments": arguments,
        "image_size": size,
        "mean": _SIGLIP_MEAN,
        "std": _SIGLIP_MEAN,
    }


_SETTINGS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "dinov2": _dinov2,
    "dinov3": _dinov3,
    "siglip": _siglip,
}


def transformers_names(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> Renamed:
    """Return a ViT's tensors under timm's names (DINOv2: those of its publication, which timm converts).

    Args:
        weights: transformers' name → tensor. Text towers and pooling heads beside it are left out.
        config: Content of `config.json`.
    """
    family = _FAMILIES[str(config["model_type"])]
    renamed, apart = Renamed(), {}
    for name, tensor in weights.items():
        if not _of_the_tower(name, family) or tensor.numel() == 0:
            renamed.ignored.append(name)
        elif (new := _new_name(name, family, bool(config.get("use_gated_mlp")))) is None:
            renamed.unexpected.append(name)
        elif new[1]:
            apart[new] = tensor
        else:
            # timm's table of positions has a dimension for the batch in front.
            renamed.put(
                new[0], tensor[None] if family == "siglip" and new[0] == "pos_embed" else tensor, name
            )
    for whole in sorted({whole for whole, _ in apart}):
        parts = [apart[key] for key in sorted(apart) if key[0] == whole]
        renamed.put(whole, torch.cat(parts), f"the parts of {whole}")
    if family == "dinov2" and (first := renamed.weights.get("cls_token")) is not None:
        # timm knows DINOv2's files by this name; some have none.
        renamed.weights.setdefault("mask_token", torch.zeros_like(first[0]))
    return renamed


def _of_the_tower(name: str, family: str) -> bool:
    if name.startswith(("text_model.", "logit_", "classifier.", "rope_embeddings.")):
        return False
    return not (
        name.removeprefix("vision_model.").startswith("head.")
        or (family == "dinov3" and name.endswith("mask_token"))
    )


def _new_name(name: str, family: str, gated: bool) -> tuple[str, str] | None:
    """Return the new name and, where it is a part of that tensor, which one (in the order of the alphabet)."""
    if family == "dinov3" and name.endswith("register_tokens"):
        return "reg_token", ""
    if name.endswith("register_tokens"):
        return "register_tokens", ""
    if found := re.match(rf"{_BLOCK}layer_scale([12])\.lambda1$", name):
        scale = f"gamma_{found[2]}" if family == "dinov3" else f"ls{found[2]}.gamma"
        return f"blocks.{found[1]}.{scale}", ""
    stem, _, kind = name.rpartition(".")
    if found := re.match(_BLOCK, name):
        return _name_in_block(f"blocks.{found[1]}.", stem[found.end() :], kind, family, gated)
    table = _SIGLIP_OUTSIDE if family == "siglip" else _DINO_OUTSIDE
    short = re.sub(r"^(vision_model|dinov2|dinov2_with_registers|dinov3_vit)\.", "", name)
    if (new := table.get(short) or table.get(short.rpartition(".")[0])) is None:
        return None
    return (new, "") if short in table or new == "pos_embed" else (f"{new}.{kind}", "")


def _name_in_block(block: str, part: str, kind: str, family: str, gated: bool) -> tuple[str, str] | None:
    if qkv := _QKV.match(part):
        if family == "dinov3" and kind == "bias":  # keys have none
            return f"{block}attn.{qkv[1]}_bias", ""
        return f"{block}attn.qkv.{kind}", qkv[1].translate(_ORDER)
    if family == "siglip":
        new = _SIGLIP_BLOCK.get(part)
    elif family == "dinov3":
        new = (_DINO_BLOCK | (_GATED if gated else _PLAIN)).get(part)
    elif part in ("mlp.gate_proj", "mlp.up_proj"):
        return f"{block}mlp.w12.{kind}", part  # the gate comes first
    else:
        new = (_DINO_BLOCK | {"mlp.down_proj": "mlp.w3"}).get(part)
    return None if new is None else (f"{block}{new}.{kind}", "")


_GATED = {"mlp.gate_proj": "mlp.fc1_g", "mlp.up_proj": "mlp.fc1_x", "mlp.down_proj": "mlp.fc2"}
_PLAIN = {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}
_ORDER = str.maketrans("qkv", "012")
