"""Vision towers of published models: their configurations as ours and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vitp.core.errors import CheckpointError
from vitp.core.reading import parse_json, read_text
from vitp.models.vision import IMAGENET_MEAN, IMAGENET_STD, VisionConfig, VisionTower

INTERNVIT = "vit_intern300m_patch14_448"
"""timm's name of InternViT; its sizes can be changed by arguments."""

HEAD_WIDTH = 64
"""Channels of an attention head, of every published InternViT without query and key norms."""

_INTERNVIT_SIZES: dict[str, Any] = {
    "embed_dim": 1024,
    "depth": 24,
    "num_heads": 16,
    "patch_size": 14,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "final_norm": False,
}

RGB = tuple[float, float, float]


def internvit(
    *,
    width: int,
    layers: int,
    heads: int,
    mlp: int,
    patch: int,
    image: int,
    qkv_bias: bool = True,
    final_norm: bool = False,
    mean: RGB = IMAGENET_MEAN,
    std: RGB = IMAGENET_STD,
) -> VisionConfig:
    """Return an InternViT of these sizes; those of the 300 M one need no arguments.

    Its positions follow other image sizes as in InternVL's own code.
    """
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
    arguments = {key: value for key, value in sizes.items() if value != _INTERNVIT_SIZES[key]}
    return VisionConfig(
        architecture=INTERNVIT,
        arguments=arguments,
        image_size=image,
        mean=mean,
        std=std,
        positions="bicubic",
    )


def from_original_config(values: Mapping[str, Any], *, where: str, mean: RGB, std: RGB) -> VisionConfig:
    """Return InternVL's `vision_config` (model type `intern_vit_6b`, whatever the size) as ours.

    Raises:
        CheckpointError: The tower is of another kind.
    """
    if values.get("qk_normalization", True) or values.get("norm_type", "rms_norm") != "layer_norm":
        raise _six_billion(where)
    return _intern_config(values, where, values.get("qkv_bias", False), mean, std, final_norm=False)


def from_hf_config(values: Mapping[str, Any], *, where: str, mean: RGB, std: RGB) -> VisionConfig:
    """Return transformers' `InternVLVisionConfig` as ours.

    Raises:
        CheckpointError: The tower is of another kind.
    """
    if values.get("use_qk_norm", False) or values.get("norm_type", "layer_norm") != "layer_norm":
        raise _six_billion(where)
    if not values.get("use_absolute_position_embeddings", True) or values.get("use_mask_token", False):
        raise CheckpointError("has a vision tower without positions or with a mask token", where=where)
    final_norm = not values.get("use_mean_pooling", True)
    return _intern_config(
        values, where, values.get("attention_bias", False), mean, std, final_norm=final_norm
    )


def _intern_config(
    values: Mapping[str, Any], where: str, qkv_bias: bool, mean: RGB, std: RGB, *, final_norm: bool
) -> VisionConfig:
    if values.get("hidden_act", "gelu") != "gelu" or values.get("num_channels", 3) != 3:
        raise CheckpointError("has a vision tower with another activation or other channels", where=where)
    if values.get("layer_norm_eps", 1e-6) != 1e-6:
        raise CheckpointError(
            f"has norms with epsilon {values['layer_norm_eps']}, timm's InternViT has 1e-06", where=where
        )
    try:
        return internvit(
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
    """Image and patch sizes are one number or two equal ones."""
    sides = list(value) if isinstance(value, list | tuple) else [value]
    if len(set(sides)) != 1:
        raise ValueError(f"{sides} is no square")
    return int(sides[0])


def sizes_of(tower: VisionTower, *, where: str) -> dict[str, Any]:
    """Return the sizes of a tower in the terms of both InternVL layouts.

    Raises:
        CheckpointError: The tower has parts that InternVL's ViT hasn't: registers, query norms, other activations.
    """
    model: Any = tower.model
    block = model.blocks[0]
    wanted = {
        "a [CLS] token with a position and no registers": model.num_prefix_tokens == 1
        and model.cls_token is not None
        and not model.no_embed_class,
        "learned positions": model.pos_embed is not None,
        "no norm before the blocks": not any(True for _ in model.norm_pre.parameters()),
        "no norms of queries and keys": not any(True for _ in block.attn.q_norm.parameters()),
        "layer norms with epsilon 1e-06": getattr(block.norm1, "eps", None) == 1e-6
        and "LayerNorm" in type(block.norm1).__name__,
        "GELU": type(block.mlp.act).__name__ == "GELU"
        and getattr(block.mlp.act, "approximate", "none") == "none",
        "biases in every linear layer": block.mlp.fc1.bias is not None and block.attn.proj.bias is not None,
    }
    if lacking := [text for text, fits in wanted.items() if not fits]:
        raise CheckpointError(
            f"InternVL's ViT has {lacking[0]}, unlike this one ({tower.config.architecture})",
            where=where,
            fix="export it as timm, which has every ViT",
        )
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


def to_original_config(sizes: Mapping[str, Any], *, dtype: str) -> dict[str, Any]:
    """Return the `vision_config` of InternVL's own code, which calls every size `intern_vit_6b`."""
    return {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "hidden_size": sizes["width"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": sizes["mlp"],
        "patch_size": sizes["patch"],
        "image_size": sizes["image"],
        "num_channels": 3,
        "hidden_act": "gelu",
        "norm_type": "layer_norm",
        "layer_norm_eps": 1e-6,
        "qkv_bias": sizes["qkv_bias"],
        "qk_normalization": False,
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "drop_path_rate": 0.0,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "use_flash_attn": True,
        "torch_dtype": dtype,
    }


def to_hf_config(sizes: Mapping[str, Any], *, dtype: str) -> dict[str, Any]:
    """Return transformers' `InternVLVisionConfig`.

    `use_mean_pooling` is how that configuration says whether there is a final norm; nothing is pooled.
    """
    return {
        "architectures": ["InternVLVisionModel"],
        "model_type": "internvl_vision",
        "hidden_size": sizes["width"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": sizes["mlp"],
        "patch_size": [sizes["patch"]] * 2,
        "image_size": [sizes["image"]] * 2,
        "num_channels": 3,
        "hidden_act": "gelu",
        "norm_type": "layer_norm",
        "layer_norm_eps": 1e-6,
        "attention_bias": sizes["qkv_bias"],
        "use_qk_norm": False,
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": not sizes["final_norm"],
        "layer_scale_init_value": 0.1,
        "torch_dtype": dtype,
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
        values = parse_json(read_text(path))
        mean, std = (tuple(float(v) for v in values[key]) for key in ("image_mean", "image_std"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"states no mean and std ({error})", where=str(path)) from error
    if len(mean) != 3 or len(std) != 3:
        raise CheckpointError("states no mean and std of three colours", where=str(path))
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def internvit_of_weights(
    weights: Mapping[str, Tensor], *, where: str, heads: int | None = None, image_size: int | None = None
) -> VisionConfig:
    """Return the sizes of an InternViT from its tensors (timm's names): backbones are published without a description.

    The number of heads leaves no trace in the shapes; all published ones are 64 channels wide.

    Args:
        weights: Name → tensor.
        where: The file, for messages.
        heads: Number of attention heads; None: heads of 64 channels.
        image_size: Side of an image in pixels; None: the one that the position table is for.

    Raises:
        CheckpointError: Tensors are missing, or the number of heads has to be said.
    """
    try:
        kernel, table = weights["patch_embed.proj.weight"], weights["pos_embed"]
        mlp = weights["blocks.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"holds no whole vision tower: {error} is missing", where=where) from error
    numbers = [int(m[1]) for name in weights if (m := re.match(r"blocks\.(\d+)\.", name))]
    width, patch = int(kernel.shape[0]), int(kernel.shape[-1])
    if heads is None and width % HEAD_WIDTH:
        raise CheckpointError(
            f"is {width} channels wide, and its number of attention heads can't be told from that",
            where=where,
            fix="say it: heads=…, or --heads",
        )
    grid = round((table.shape[1] - 1) ** 0.5)
    return internvit(
        width=width,
        layers=max(numbers) + 1,
        heads=heads or width // HEAD_WIDTH,
        mlp=int(mlp),
        patch=patch,
        image=image_size or grid * patch,
        qkv_bias="blocks.0.attn.qkv.bias" in weights,
        final_norm="norm.weight" in weights,
    )
