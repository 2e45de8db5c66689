"""Configurations of published models as ours and back: InternVL's vision towers, and their language models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models.eva import Eva
from torch import Tensor
from transformers import AutoConfig

from vitp.core.errors import CheckpointError
from vitp.core.reading import read_json
from vitp.models.inflation import unnamed_channels, with_channels
from vitp.models.language import LanguageSettings
from vitp.models.vision import IMAGENET_MEAN, IMAGENET_STD, VisionSettings, VisionTower

_INTERNVIT_SIZES: dict[str, Any] = {
    "embed_dim": 1024,
    "depth": 24,
    "num_heads": 16,
    "patch_size": 14,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "final_norm": False,
}

_HEAD_WIDTH = 64
"""Channels of an attention head, of every published InternViT without query and key norms, and of most plain ViTs."""

_WIDER_HEADS = {1280: 16, 1408: 16, 1664: 16}
"""Width → heads of ViT-H, ViT-g and ViT-G as published (MAE, I-JEPA), whose heads are wider."""

RGB = tuple[float, float, float]


def _internvit(
    *,
    width: int,
    layers: int,
    heads: int,
    mlp: int,
    patch: int,
    image: int,
    qkv_bias: bool,
    final_norm: bool,
    mean: RGB = IMAGENET_MEAN,
    std: RGB = IMAGENET_STD,
) -> VisionSettings:
    """Return an InternViT of these sizes; its positions follow other image sizes as in InternVL's own code."""
    sizes = {
        "embed_dim": width,
        "depth": layers,
        "num_heads": heads,
        "patch_size": patch,
        # timm rounds the product down.
        "mlp_ratio": mlp / width if int(width * (mlp / width)) == mlp else (mlp + 0.5) / width,
        "qkv_bias": qkv_bias,
        "final_norm": final_norm,
    }
    return VisionSettings(
        architecture="vit_intern300m_patch14_448",
        arguments={key: value for key, value in sizes.items() if value != _INTERNVIT_SIZES[key]},
        image_size=image,
        mean=mean,
        std=std,
        positions="bicubic",
    )


def from_original_config(values: Mapping[str, Any], *, where: str, mean: RGB, std: RGB) -> VisionSettings:
    """Return InternVL's `vision_config` (model type `intern_vit_6b`, whatever the size) as ours.

    Raises:
        CheckpointError: The tower is of another kind.
    """
    if values.get("qk_normalization", True) or values.get("norm_type", "rms_norm") != "layer_norm":
        raise _six_billion(where)
    return _intern_config(values, where, values.get("qkv_bias", False), mean, std, final_norm=False)


def from_hf_config(values: Mapping[str, Any], *, where: str, mean: RGB, std: RGB) -> VisionSettings:
    """Return transformers' `InternVLVisionConfig` as ours.

    Raises:
        CheckpointError: The tower is of another kind.
    """
    if values.get("use_qk_norm", False) or values.get("norm_type", "layer_norm") != "layer_norm":
        raise _six_billion(where)
    if not values.get("use_absolute_position_embeddings", True) or values.get("use_mask_token", False):
        raise CheckpointError("has a vision tower without positions or with a mask token", where=where)
    # That configuration says by `use_mean_pooling` whether there is a final norm; nothing is pooled.
    final_norm = not values.get("use_mean_pooling", True)
    bias = values.get("attention_bias", False)
    return _intern_config(values, where, bias, mean, std, final_norm=final_norm)


def _intern_config(
    values: Mapping[str, Any], where: str, qkv_bias: bool, mean: RGB, std: RGB, *, final_norm: bool
) -> VisionSettings:
    if values.get("hidden_act", "gelu") != "gelu" or values.get("num_channels", 3) != 3:
        raise CheckpointError("has a vision tower with another activation or other channels", where=where)
    if values.get("layer_norm_eps", 1e-6) != 1e-6:
        raise CheckpointError(
            f"has norms with epsilon {values['layer_norm_eps']}, timm's InternViT has 1e-06", where=where
        )
    try:
        return _internvit(
            width=int(values["hidden_size"]),
            layers=int(values["num_hidden_layers"]),
            heads=int(values["num_attention_heads"]),
            mlp=int(values["intermediate_size"]),
            patch=_side(values["patch_size"]),
            image=_side(values["image_size"]),
            qkv_bias=bool(qkv_bias),
            final_norm=final_norm,
            mean=mean,
            std=std,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"states no whole vision tower ({error})", where=where) from error


def _six_billion(where: str) -> CheckpointError:
    return CheckpointError(
        "has InternViT-6B, whose queries and keys are normalised over all heads at once; timm has no such ViT",
        where=where,
        fix="use a size with InternViT-300M: InternVL2.5 up to 8B, InternVL3 up to 14B",
    )


def _side(value: Any) -> int:
    """Return the side of a square that is stated as one number or as two equal ones."""
    sides = list(value) if isinstance(value, list | tuple) else [value]
    if len(set(sides)) != 1:
        raise ValueError(f"{sides} is no square")
    return int(sides[0])


def sizes_of(tower: VisionTower, *, where: str) -> dict[str, Any]:
    """Return the sizes of a tower in the terms of both InternVL layouts.

    Raises:
        CheckpointError: The tower has parts that InternVL's ViT hasn't: registers, query norms, other activations,
            other than three channels.
    """
    model: Any = tower.model
    block = model.blocks[0]
    if tower.num_channels != 3:
        raise CheckpointError(
            f"sees {tower.num_channels} channels, and InternVL's layouts have places for three",
            where=where,
            fix="write it as timm, which takes any number",
        )
    if isinstance(model, Eva):  # whose blocks are other ones altogether: nothing else is asked of them
        raise _unlike("learned positions and no rotary ones", tower, where)
    wanted = {
        "learned positions": model.pos_embed is not None,
        "a [CLS] token with a position and no registers": model.num_prefix_tokens == 1
        and model.cls_token is not None
        and not model.no_embed_class,
        "no norm before the blocks": not any(True for _ in model.norm_pre.parameters()),
        "no norms of queries and keys": not any(True for _ in block.attn.q_norm.parameters()),
        "layer norms with epsilon 1e-06": getattr(block.norm1, "eps", None) == 1e-6
        and "LayerNorm" in type(block.norm1).__name__,
        "GELU": type(block.mlp.act).__name__ == "GELU"
        and getattr(block.mlp.act, "approximate", "none") == "none",
        "biases in every linear layer": block.mlp.fc1.bias is not None and block.attn.proj.bias is not None,
    }
    if lacking := [text for text, fits in wanted.items() if not fits]:
        raise _unlike(lacking[0], tower, where)
    return {
        "width": tower.width,
        "layers": tower.num_layers,
        "heads": block.attn.num_heads,
        "mlp": block.mlp.fc1.out_features,
        "patch": tower.patch_size,
        "image": tower.image_size[0],
        "qkv_bias": block.attn.qkv.bias is not None,
        "final_norm": any(True for _ in model.norm.parameters()),
    }


def _unlike(part: str, tower: VisionTower, where: str) -> CheckpointError:
    return CheckpointError(
        f"InternVL's ViT has {part}, unlike this one ({tower.config.architecture})",
        where=where,
        fix="export it as timm, which has every ViT",
    )


def _stated_sizes(sizes: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    return {
        "hidden_size": sizes["width"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": sizes["mlp"],
        "num_channels": 3,
        "hidden_act": "gelu",
        "norm_type": "layer_norm",
        "layer_norm_eps": 1e-6,
        "torch_dtype": dtype,
    }


def to_original_config(sizes: Mapping[str, Any], *, dtype: str) -> dict[str, Any]:
    """Return the `vision_config` of InternVL's own code, which calls every size `intern_vit_6b`."""
    return {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        **_stated_sizes(sizes, dtype),
        "patch_size": sizes["patch"],
        "image_size": sizes["image"],
        "qkv_bias": sizes["qkv_bias"],
        "qk_normalization": False,
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "drop_path_rate": 0.0,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "use_flash_attn": True,
    }


def to_hf_config(sizes: Mapping[str, Any], *, dtype: str) -> dict[str, Any]:
    """Return transformers' `InternVLVisionConfig`."""
    return {
        "architectures": ["InternVLVisionModel"],
        "model_type": "internvl_vision",
        **_stated_sizes(sizes, dtype),
        "patch_size": [sizes["patch"]] * 2,
        "image_size": [sizes["image"]] * 2,
        "attention_bias": sizes["qkv_bias"],
        "use_qk_norm": False,
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": not sizes["final_norm"],  # with it transformers leaves the final norm out
        "layer_scale_init_value": 0.1,
    }


def normalisation(folder: Path) -> tuple[RGB, RGB]:
    """Return mean and std that a folder's `preprocessor_config.json` states; InternVL's own without that file.

    Raises:
        CheckpointError: The file is broken.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return IMAGENET_MEAN, IMAGENET_STD
    try:
        values = read_json(path)
        mean, std = (tuple(float(v) for v in values[key]) for key in ("image_mean", "image_std"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"states no mean and std ({error})", where=str(path)) from error
    if len(mean) != 3 or len(std) != 3:
        raise CheckpointError("states no mean and std of three colours", where=str(path))
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


_KERNEL, _TABLE, _MLP = "patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"


def _sizes_told(weights: Mapping[str, Tensor], heads: int | None, where: str) -> dict[str, int]:
    """Return width, layers, heads, mlp and patch as the shapes of a ViT's tensors (timm's names) tell them.

    The number of heads leaves no trace in the shapes.
    """
    width, patch = int(weights[_KERNEL].shape[0]), int(weights[_KERNEL].shape[-1])
    if heads is None and width % _HEAD_WIDTH:
        what = f"is {width} channels wide, and its number of attention heads can't be told from that"
        raise CheckpointError(what, where=where, fix="say it: heads=…, or --heads")
    return {
        "width": width,
        "layers": max(int(m[1]) for name in weights if (m := re.match(r"blocks\.(\d+)\.", name))) + 1,
        "heads": heads or _WIDER_HEADS.get(width, width // _HEAD_WIDTH),
        "mlp": int(weights[_MLP].shape[0]),
        "patch": patch,
    }


def internvit_of_weights(
    weights: Mapping[str, Tensor], *, where: str, heads: int | None = None
) -> VisionSettings:
    """Return the sizes of an InternViT from its tensors (timm's names): backbones are published without a description.

    Args:
        weights: Name → tensor.
        where: The file, for messages.
        heads: Number of attention heads; None: as published ViTs of its width have.

    Raises:
        CheckpointError: Tensors are missing, or the number of heads has to be said.
    """
    for name in (_KERNEL, _TABLE, _MLP):
        if name not in weights:
            raise CheckpointError(f"holds no whole vision tower: '{name}' is missing", where=where)
    sizes: dict[str, Any] = {**_sizes_told(weights, heads, where)}
    vision = _internvit(
        **sizes,
        image=round((weights[_TABLE].shape[1] - 1) ** 0.5) * sizes["patch"],
        qkv_bias="blocks.0.attn.qkv.bias" in weights,
        final_norm="norm.weight" in weights,
    )
    return with_channels(vision, unnamed_channels(int(weights[_KERNEL].shape[1])))


def plain_vit_of_weights(weights: Mapping[str, Tensor], *, heads: int | None, where: str) -> VisionSettings:
    """Return the sizes of a plain ViT (timm's names) from its tensors.

    Only for pretraining runs whose normalisation is ImageNet's and whose norms have epsilon 1e-6, as those of
    DINO, iBOT, DINOv2 and MAE: shapes don't tell these two.

    Raises:
        CheckpointError: Tensors are missing, or the number of heads can't be told.
    """
    for name in (_KERNEL, _MLP, _TABLE):
        if name not in weights:
            raise CheckpointError(
                f"is no plain ViT with learned positions ('{name}' is missing)",
                where=where,
                fix="name its timm architecture",
            )
    sizes = _sizes_told(weights, heads, where)
    registers = next((weights[n].shape[1] for n in ("reg_token", "register_tokens") if n in weights), 0)
    cells = weights[_TABLE].shape[1] - ("cls_token" in weights and "reg_token" not in weights)
    arguments: dict[str, Any] = {
        "embed_dim": sizes["width"],
        "depth": sizes["layers"],
        "num_heads": sizes["heads"],
        "patch_size": sizes["patch"],
        "mlp_ratio": sizes["mlp"] / sizes["width"],
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
        "class_token": "cls_token" in weights,
    }
    if registers:
        arguments |= {"reg_tokens": int(registers), "no_embed_class": True}
    if "blocks.0.ls1.gamma" in weights:
        arguments["init_values"] = 1e-5  # only that there is a scale: its values come with the weights
    if "norm.weight" not in weights:
        arguments["final_norm"] = False
    size = round(cells**0.5) * sizes["patch"]
    channels = unnamed_channels(int(weights[_KERNEL].shape[1]))
    return VisionSettings(
        architecture="vit_base_patch16_224", arguments=arguments, image_size=size, channels=channels
    )


_CLASSES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
"""Model type → class, of the language models whose names are transformers' own in every layout."""

_WINDOW = ("sliding_window", "max_window_layers")
_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

_LANGUAGE_SIZES = (
    *_REQUIRED,
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "hidden_act"),
    *("attention_bias", "mlp_bias", "attention_dropout", "tie_word_embeddings", "use_sliding_window"),
    *_WINDOW,
)
"""What decides what such a model computes; all else in its configuration is about generating or loading."""


def language_config(values: Mapping[str, Any], *, where: str, tied: bool | None = None) -> LanguageSettings:
    """Return a published configuration (`llm_config`, `text_config`) as ours.

    Args:
        values: Values of the file.
        where: The file, for messages.
        tied: Whether input and output embeddings are one tensor, as the weights tell; None: as the values say.

    Raises:
        CheckpointError: The language model is of another kind, or a size is missing.
    """
    model_type = _model_type(values, where)
    if missing := [key for key in _REQUIRED if values.get(key) is None]:
        raise CheckpointError(f"doesn't say {missing[0]} of the language model", where=where)
    arguments = {key: values[key] for key in _LANGUAGE_SIZES if values.get(key) is not None}
    if not arguments.get("use_sliding_window", False):
        # The published files state a window that isn't used; transformers takes None for that.
        for key in (*_WINDOW, "use_sliding_window"):
            arguments.pop(key, None)
    says_tied = bool(values.get("tie_word_embeddings", False))
    arguments["tie_word_embeddings"] = says_tied if tied is None else tied
    arguments["rope_parameters"] = _rope(values)
    return LanguageSettings(model_type=model_type, arguments=arguments)


def _model_type(values: Mapping[str, Any], where: str) -> str:
    named = (values.get("architectures") or [""])[0]
    by_class = {architecture: model_type for model_type, architecture in _CLASSES.items()}
    model_type = values.get("model_type") or by_class.get(named, "")
    if model_type in _CLASSES:
        return str(model_type)
    raise CheckpointError(
        f"has the language model {named or model_type or 'none'}, which vitp can't run",
        where=where,
        fix="use a size whose language model is Qwen2 or Qwen2.5: InternVL2.5 1B or 4B, InternVL3 1B, 2B, 8B or 14B; "
        "its vision tower alone can be read with `vitp.load_backbone`",
    )


def _rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return rotary positions in the form of transformers 5; older files state base and scaling apart."""
    if given := values.get("rope_parameters"):
        return dict(given)
    scaling = dict(values.get("rope_scaling") or {})
    kind = scaling.pop("type", None)
    parameters: dict[str, Any] = {"rope_type": scaling.pop("rope_type", None) or kind or "default", **scaling}
    return parameters | {"rope_theta": float(values.get("rope_theta", 10000.0))}


def published_language_config(
    language: LanguageSettings, vocabulary: int, *, dtype: str, where: str
) -> dict[str, Any]:
    """Return our configuration as published files state it, readable by old and new releases of transformers.

    Raises:
        CheckpointError: The language model is of a kind that the layout doesn't have.
    """
    if language.model_type not in _CLASSES:
        raise CheckpointError(
            f"InternVL's layouts have no language model of type {language.model_type}",
            where=where,
            fix=f"they take {', '.join(_CLASSES)}",
        )
    if language.lora is not None:
        raise CheckpointError(
            "has LoRA layers, which InternVL's layouts have no names for",
            where=where,
            fix="merge them into the language model first",
        )
    # Made by transformers, so that sizes which our configuration leaves at their defaults are stated, too.
    config = AutoConfig.for_model(language.model_type, **{**language.arguments, "vocab_size": vocabulary})
    sizes = {key: v for key in _LANGUAGE_SIZES if (v := getattr(config, key, None)) is not None}
    if not sizes.get("use_sliding_window", False):
        sizes = {key: value for key, value in sizes.items() if key not in _WINDOW}
    rope = dict(config.rope_parameters)
    theta = rope.pop("rope_theta")
    return {
        "architectures": [_CLASSES[language.model_type]],
        "model_type": language.model_type,
        **sizes,
        "rope_theta": theta,
        "rope_scaling": None if rope.get("rope_type", "default") == "default" else rope,
        "vocab_size": vocabulary,
        "torch_dtype": dtype,
    }
