"""Checkpoints in the layouts that others read: InternVL's original one and transformers'. Types of numbers stay.

config.json                 sizes, in the layout's own words; what it has no place for under the key "vitp"
model.safetensors           or shards with an index
preprocessor_config.json    mean, std and size of a tile
tokenizer files             copied as they are (whole models only)
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitp.checkpoints import layouts
from vitp.checkpoints.checkpoint import CONFIG, EXTRA, Checkpoint
from vitp.checkpoints.language_models import published_language_config
from vitp.checkpoints.layouts import Renamed
from vitp.checkpoints.open import read_tokenizer
from vitp.checkpoints.tensors import MAX_SHARD, write_tensors
from vitp.checkpoints.vit_configs import sizes_of, to_hf_config, to_original_config
from vitp.core.errors import CheckpointError
from vitp.core.files import write_json, write_text
from vitp.core.reading import parse_json, read_text
from vitp.data.chat import TEMPLATES
from vitp.data.tokenizer import IMAGE_CONTEXT, IMAGE_END, IMAGE_START
from vitp.models.vision import VisionTower

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)

_CODE = "OpenGVLab/InternVL2_5-1B--"
"""Where tool chains that run InternVL's own code find it on the hub; it isn't ours to copy."""

_HF_CHAT = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif part['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)


def write_original(folder: Path, checkpoint: Checkpoint, *, max_shard: int = MAX_SHARD) -> None:
    """Write a whole model or a vision tower as InternVL's own code reads it.

    The tower's names begin with `vision_model.`, as in the released ViTP backbones.

    Args:
        folder: An existing folder.
        checkpoint: What to write.
        max_shard: Bytes of a shard.

    Raises:
        CheckpointError: The model has parts that the layout has no place for.
    """
    sizes = sizes_of(_empty_tower(checkpoint), where=checkpoint.source)
    if sizes["final_norm"]:
        raise CheckpointError(
            "has a final norm, which InternVL's original layout has no place for",
            where=checkpoint.source,
            fix="write it as hf or timm",
        )
    renamed = layouts.to_original(_with_scales(checkpoint.weights))
    _require_all_named(renamed, checkpoint.source)
    dtype = _dtype_name(checkpoint.weights)
    vision = to_original_config(sizes, dtype=dtype)
    config = vision if checkpoint.vlm is None else _original_config(checkpoint, vision, dtype)
    write_json(folder / CONFIG, config | {EXTRA: _extra(checkpoint)})
    write_tensors(folder, renamed.weights, max_shard=max_shard)
    _write_companions(folder, checkpoint)


def _original_config(checkpoint: Checkpoint, vision: dict[str, Any], dtype: str) -> dict[str, Any]:
    vlm, vocabulary = checkpoint.vlm, checkpoint.vocabulary
    assert vlm is not None and vocabulary is not None
    language = published_language_config(vlm.language, vocabulary, dtype=dtype, where=checkpoint.source)
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {
            "AutoConfig": f"{_CODE}configuration_internvl_chat.InternVLChatConfig",
            "AutoModel": f"{_CODE}modeling_internvl_chat.InternVLChatModel",
            "AutoModelForCausalLM": f"{_CODE}modeling_internvl_chat.InternVLChatModel",
        },
        "model_type": "internvl_chat",
        "template": vlm.template,
        "downsample_ratio": 1 / vlm.shuffle,
        "ps_version": "v2",
        "select_layer": -1,
        "force_image_size": checkpoint.vision.image_size,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "pad2square": False,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "tie_word_embeddings": language["tie_word_embeddings"],
        "torch_dtype": dtype,
        "llm_config": language,
        "vision_config": vision,
    }


def write_hf(folder: Path, checkpoint: Checkpoint, *, max_shard: int = MAX_SHARD) -> None:
    """Write a whole model as `InternVLForConditionalGeneration`, or a vision tower as `InternVLVisionModel`.

    Args:
        folder: An existing folder.
        checkpoint: What to write.
        max_shard: Bytes of a shard.

    Raises:
        CheckpointError: The model has parts that the layout has no place for.
    """
    sizes = sizes_of(_empty_tower(checkpoint), where=checkpoint.source)
    renamed = layouts.to_hf(checkpoint.weights)
    _require_all_named(renamed, checkpoint.source)
    dtype = _dtype_name(checkpoint.weights)
    vision = to_hf_config(sizes, dtype=dtype)
    if checkpoint.vlm is None:
        config = vision
        weights = {name.removeprefix(layouts.HF_VISION): t for name, t in renamed.weights.items()}
    else:
        config = _hf_config(checkpoint, vision, dtype, folder)
        weights = renamed.weights
    write_json(folder / CONFIG, config | {EXTRA: _extra(checkpoint)})
    write_tensors(folder, weights, max_shard=max_shard)
    _write_companions(folder, checkpoint)
    if checkpoint.vlm is not None:
        _write_processor(folder, checkpoint)


def _hf_config(checkpoint: Checkpoint, vision: dict[str, Any], dtype: str, folder: Path) -> dict[str, Any]:
    vlm, vocabulary = checkpoint.vlm, checkpoint.vocabulary
    assert vlm is not None and vocabulary is not None
    language = published_language_config(vlm.language, vocabulary, dtype=dtype, where=checkpoint.source)
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "downsample_ratio": 1 / vlm.shuffle,
        "image_seq_length": _tokens_per_tile(checkpoint),
        "image_token_id": image_token_id(checkpoint),
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": language["tie_word_embeddings"],
        "torch_dtype": dtype,
        "text_config": language,
        "vision_config": vision,
    }


def image_token_id(checkpoint: Checkpoint) -> int:
    """Return the id of the image placeholder in the model's tokenizer.

    Raises:
        CheckpointError: The tokenizer has none.
    """
    return _token_id(checkpoint, IMAGE_CONTEXT)


def _token_id(checkpoint: Checkpoint, token: str) -> int:
    assert checkpoint.tokenizer is not None
    vocabulary = read_tokenizer(checkpoint.tokenizer).get_vocab()
    if token not in vocabulary:
        raise CheckpointError(
            f"has a tokenizer without {token}",
            where=str(checkpoint.tokenizer),
            fix="load the model and save it with vitp first, which adds image tokens",
        )
    return int(vocabulary[token])


def _tokens_per_tile(checkpoint: Checkpoint) -> int:
    assert checkpoint.vlm is not None
    tower = _empty_tower(checkpoint)
    return (tower.grid // checkpoint.vlm.shuffle) ** 2


def _empty_tower(checkpoint: Checkpoint) -> VisionTower:
    with torch.device("meta"):
        return VisionTower(checkpoint.vision)


def _with_scales(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with layer scales of one where a tower has none: x · 1 is x."""
    scaled = dict(weights)
    for name, norm in weights.items():
        if name.startswith(layouts.VISION + "blocks.") and name.endswith(".norm1.weight"):
            block = name.removesuffix("norm1.weight")
            for scale in ("ls1.gamma", "ls2.gamma"):
                scaled.setdefault(block + scale, torch.ones_like(norm))
    return scaled


def _require_all_named(renamed: Renamed, source: str) -> None:
    if renamed.unexpected:
        raise CheckpointError(
            f"has {len(renamed.unexpected)} tensors that the layout has no names for, the first is "
            f"{renamed.unexpected[0]}",
            where=source,
            fix="write it as timm (the vision tower) or vitp",
        )


def _dtype_name(weights: Mapping[str, Tensor]) -> str:
    kinds = {str(t.dtype).removeprefix("torch.") for t in weights.values() if t.is_floating_point()}
    return kinds.pop() if len(kinds) == 1 else "float32"


def _extra(checkpoint: Checkpoint) -> dict[str, Any]:
    return {} if checkpoint.vlm is None else {"template": checkpoint.vlm.template}


def _write_companions(folder: Path, checkpoint: Checkpoint) -> None:
    size = checkpoint.vision.image_size
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "crop_to_patches": False,
            "min_patches": 1,
            "max_patches": 12,
            "do_convert_rgb": True,
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "rescale_factor": 1 / 255,
            "resample": 3,
            "size": {"height": size, "width": size},
            "image_mean": list(checkpoint.vision.mean),
            "image_std": list(checkpoint.vision.std),
        },
    )
    if checkpoint.tokenizer is None or checkpoint.vlm is None:
        return
    for name in TOKENIZER_FILES:
        if (checkpoint.tokenizer / name).is_file():
            shutil.copyfile(checkpoint.tokenizer / name, folder / name)
    if not (folder / "generation_config.json").is_file():
        # Without it transformers wouldn't know where an answer ends.
        stop = TEMPLATES[checkpoint.vlm.template].stop
        write_json(folder / "generation_config.json", {"eos_token_id": _token_id(checkpoint, stop)})


def _write_processor(folder: Path, checkpoint: Checkpoint) -> None:
    """What transformers' `InternVLProcessor` needs beside the tokenizer: names of the image tokens, chat template."""
    path = folder / "tokenizer_config.json"
    values = parse_json(read_text(path)) if path.is_file() else {}
    named = {
        "start_image_token": IMAGE_START,
        "end_image_token": IMAGE_END,
        "context_image_token": IMAGE_CONTEXT,
        "video_token": "<video>",
    }
    values |= {key: value for key, value in named.items() if key not in values}
    write_json(path, values)
    write_json(
        folder / "processor_config.json",
        {"processor_class": "InternVLProcessor", "image_seq_length": _tokens_per_tile(checkpoint)},
    )
    if not (folder / "chat_template.jinja").is_file():
        write_text(folder / "chat_template.jinja", _HF_CHAT)
