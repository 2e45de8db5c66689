"""Writing models in our own layout, and in those that others read: InternVL's original one and transformers'.

config.json                 sizes, in the layout's own words; what it has no place for under the key "vitp"
model.safetensors           or shards with an index
preprocessor_config.json    mean, std and size of a tile (layouts of others)
tokenizer files             (whole models only)
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitp.checkpoints import layouts
from vitp.checkpoints.checkpoint import Checkpoint
from vitp.checkpoints.description import CONFIG, EXTRA, describe_vlm
from vitp.checkpoints.layouts import Renamed
from vitp.checkpoints.loading import read_tokenizer
from vitp.checkpoints.origin import told_origin
from vitp.checkpoints.published import published_language_config, sizes_of, to_hf_config, to_original_config
from vitp.checkpoints.tensors import MAX_SHARD, WEIGHTS, write_tensors
from vitp.core.errors import CheckpointError
from vitp.core.files import atomic_dir, write_json, write_text
from vitp.core.reading import read_json
from vitp.core.tensors import save_tensors, unique_state
from vitp.data.chat import TEMPLATES, ChatTokenizer
from vitp.data.tokenizer import IMAGE_CONTEXT, IMAGE_END, IMAGE_START
from vitp.models.vision import VisionTower
from vitp.models.vlm import VisionLanguageModel

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json"),
    *("special_tokens_map.json", "chat_template.jinja", "generation_config.json"),
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


def write_vlm(
    folder: Path, vlm: VisionLanguageModel, chat: ChatTokenizer, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write a model in our own layout into an existing or new folder. Tied weights are written once.

    Use `save_vlm` for a folder that appears only when it is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in unique_state(vlm).items()
    }
    save_tensors(folder / WEIGHTS, weights, {"format": "pt"})
    chat.tokenizer.save_pretrained(folder)
    write_json(folder / CONFIG, describe_vlm(vlm.config, vlm.language.config.vocab_size))


def save_vlm(
    folder: Path, vlm: VisionLanguageModel, chat: ChatTokenizer, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write the model into a folder that appears only when it is whole; an older one is replaced."""
    with atomic_dir(folder) as temporary:
        write_vlm(temporary, vlm, chat, dtype=dtype)


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
    renamed = layouts.to_original(layouts.with_scales(checkpoint.weights))
    _require_all_named(renamed, checkpoint.source)
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    vision = to_original_config(sizes, dtype=dtype)
    config = vision if checkpoint.vlm is None else _original_config(checkpoint, vision, dtype)
    _write(folder, checkpoint, config, renamed.weights, max_shard)


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
        # InternVL's code asks for all of these; those that this model doesn't decide are as in its releases.
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
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    vision = to_hf_config(sizes, dtype=dtype)
    if checkpoint.vlm is None:
        config = vision
        weights = {name.removeprefix(layouts.HF_VISION): t for name, t in renamed.weights.items()}
    else:
        config = _hf_config(checkpoint, vision, dtype)
        weights = renamed.weights
    _write(folder, checkpoint, config, weights, max_shard)
    if checkpoint.vlm is not None:
        _write_processor(folder, checkpoint)


def _hf_config(checkpoint: Checkpoint, vision: dict[str, Any], dtype: str) -> dict[str, Any]:
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


def _require_all_named(renamed: Renamed, source: str) -> None:
    if renamed.unexpected:
        raise CheckpointError(
            f"has {len(renamed.unexpected)} tensors that the layout has no names for, the first is "
            f"{renamed.unexpected[0]}",
            where=source,
            fix="write it as timm (the vision tower) or vitp",
        )


def _write(
    folder: Path,
    checkpoint: Checkpoint,
    config: dict[str, Any],
    weights: Mapping[str, Tensor],
    max_shard: int,
) -> None:
    """Write configuration, weights and the files beside them."""
    extra: dict[str, Any] = {} if checkpoint.vlm is None else {"template": checkpoint.vlm.template}
    vision = checkpoint.vision
    extra |= told_origin(vision)
    if vision.channels is not None:
        extra["channels"] = vision.channels.model_dump(mode="json")
    write_json(folder / CONFIG, config | {EXTRA: extra})
    write_tensors(folder, weights, max_shard=max_shard)
    size, (mean, std) = vision.image_size, vision.normalisation
    write_json(
        folder / "preprocessor_config.json",
        {
            # transformers' InternVL has this processor, of another model; 3 is Pillow's number of bicubic.
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
            "image_mean": list(mean),
            "image_std": list(std),
        },
    )
    if checkpoint.tokenizer is None or checkpoint.vlm is None:
        return
    for name in _TOKENIZER_FILES:
        if (checkpoint.tokenizer / name).is_file():
            shutil.copyfile(checkpoint.tokenizer / name, folder / name)
    if not (folder / "generation_config.json").is_file():
        # Without it transformers wouldn't know where an answer ends.
        stop = TEMPLATES[checkpoint.vlm.template].stop
        write_json(folder / "generation_config.json", {"eos_token_id": _token_id(checkpoint, stop)})


def _write_processor(folder: Path, checkpoint: Checkpoint) -> None:
    """Write what transformers' `InternVLProcessor` needs beside the tokenizer: image tokens, chat template."""
    path = folder / "tokenizer_config.json"
    values = read_json(path) if path.is_file() else {}
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
