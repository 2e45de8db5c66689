"""Tiny random copies of published models: names, shapes and files as they are published, numbers of no meaning.

They are written out name by name here, and not by the code that is tested.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

Weights = dict[str, Tensor]

CHAT_MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
IMAGE_MARKS = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
VOCABULARY = 256 + len(CHAT_MARKS) + len(IMAGE_MARKS)
IMAGE_ID = 256 + len(CHAT_MARKS) + IMAGE_MARKS.index("<IMG_CONTEXT>")


@dataclass(frozen=True)
class Sizes:
    """Of a tiny InternVL; `TRUE_1B` has those of InternVL2.5-1B."""

    width: int = 32
    layers: int = 2
    heads: int = 2
    mlp: int = 64
    patch: int = 4
    image: int = 32
    language_width: int = 24
    language_layers: int = 2
    language_heads: int = 4
    kv_heads: int = 2
    language_mlp: int = 48
    vocabulary: int = VOCABULARY
    tied: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def grid(self) -> int:
        return self.image // self.patch


TRUE_1B = Sizes(
    width=1024, layers=24, heads=16, mlp=4096, patch=14, image=448, language_width=896, language_layers=24,
    language_heads=14, kv_heads=2, language_mlp=4864, vocabulary=151674, dtype=torch.bfloat16,
)  # fmt: skip


@dataclass
class Random:
    """Tensors that matter: norms near one, scales near a half, everything else small."""

    dtype: torch.dtype
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __call__(self, *shape: int, around: float = 0.0, spread: float = 0.1) -> Tensor:
        values = torch.empty(shape, dtype=torch.float32)
        # Uniform numbers cost a third of normal ones, which tells at a billion of them.
        values.uniform_(around - spread, around + spread, generator=self.generator)
        return values.to(self.dtype)


def vision_weights(sizes: Sizes, prefix: str = "vision_model.") -> Weights:
    """An InternViT under its published names."""
    make, width = Random(sizes.dtype), sizes.width
    weights = {
        "embeddings.class_embedding": make(1, 1, width),
        "embeddings.position_embedding": make(1, sizes.grid**2 + 1, width),
        "embeddings.patch_embedding.weight": make(width, 3, sizes.patch, sizes.patch),
        "embeddings.patch_embedding.bias": make(width),
    }
    for number in range(sizes.layers):
        layer = f"encoder.layers.{number}"
        weights |= {
            f"{layer}.ls1": make(width, around=0.5),
            f"{layer}.ls2": make(width, around=0.5),
            f"{layer}.attn.qkv.weight": make(3 * width, width),
            f"{layer}.attn.qkv.bias": make(3 * width),
            f"{layer}.attn.proj.weight": make(width, width),
            f"{layer}.attn.proj.bias": make(width),
            f"{layer}.mlp.fc1.weight": make(sizes.mlp, width),
            f"{layer}.mlp.fc1.bias": make(sizes.mlp),
            f"{layer}.mlp.fc2.weight": make(width, sizes.mlp),
            f"{layer}.mlp.fc2.bias": make(width),
            f"{layer}.norm1.weight": make(width, around=1.0),
            f"{layer}.norm1.bias": make(width),
            f"{layer}.norm2.weight": make(width, around=1.0),
            f"{layer}.norm2.bias": make(width),
        }
    return {prefix + name: tensor for name, tensor in weights.items()}


def language_weights(sizes: Sizes, prefix: str = "language_model.") -> Weights:
    """A Qwen2 under its published names."""
    make, width = Random(sizes.dtype), sizes.language_width
    keys = width // sizes.language_heads * sizes.kv_heads
    weights = {"model.embed_tokens.weight": make(sizes.vocabulary, width, spread=0.5)}
    for number in range(sizes.language_layers):
        layer = f"model.layers.{number}"
        weights |= {
            f"{layer}.self_attn.q_proj.weight": make(width, width),
            f"{layer}.self_attn.q_proj.bias": make(width),
            f"{layer}.self_attn.k_proj.weight": make(keys, width),
            f"{layer}.self_attn.k_proj.bias": make(keys),
            f"{layer}.self_attn.v_proj.weight": make(keys, width),
            f"{layer}.self_attn.v_proj.bias": make(keys),
            f"{layer}.self_attn.o_proj.weight": make(width, width),
            f"{layer}.mlp.gate_proj.weight": make(sizes.language_mlp, width),
            f"{layer}.mlp.up_proj.weight": make(sizes.language_mlp, width),
            f"{layer}.mlp.down_proj.weight": make(width, sizes.language_mlp),
            f"{layer}.input_layernorm.weight": make(width, around=1.0),
            f"{layer}.post_attention_layernorm.weight": make(width, around=1.0),
        }
    weights["model.norm.weight"] = make(width, around=1.0)
    if not sizes.tied:
        weights["lm_head.weight"] = make(sizes.vocabulary, width, spread=0.5)
    return {prefix + name: tensor for name, tensor in weights.items()}


def original_weights(sizes: Sizes) -> Weights:
    """A whole InternVL under its published names."""
    make, folded, width = Random(sizes.dtype), 4 * sizes.width, sizes.language_width
    projector = {
        "mlp1.0.weight": make(folded, around=1.0),
        "mlp1.0.bias": make(folded),
        "mlp1.1.weight": make(width, folded),
        "mlp1.1.bias": make(width),
        "mlp1.3.weight": make(width, width),
        "mlp1.3.bias": make(width),
    }
    return vision_weights(sizes) | language_weights(sizes) | projector


def hf_names(weights: Weights, sizes: Sizes) -> Weights:
    """The published conversion to transformers' names, written down a second time."""
    named: Weights = {}
    for name, tensor in weights.items():
        new = name.replace("vision_model.", "vision_tower.").replace("encoder.layers.", "encoder.layer.")
        for theirs, ours in (
            ("embeddings.class_embedding", "embeddings.cls_token"),
            ("embeddings.position_embedding", "embeddings.position_embeddings"),
            ("embeddings.patch_embedding", "embeddings.patch_embeddings.projection"),
            ("attn.proj", "attention.projection_layer"),
            (".ls1", ".lambda_1"),
            (".ls2", ".lambda_2"),
            (".norm1.", ".layernorm_before."),
            (".norm2.", ".layernorm_after."),
            ("mlp1.0", "multi_modal_projector.layer_norm"),
            ("mlp1.1", "multi_modal_projector.linear_1"),
            ("mlp1.3", "multi_modal_projector.linear_2"),
        ):
            if not new.startswith("language_model."):
                new = new.replace(theirs, ours)
        if ".attn.qkv." in new:
            width = sizes.width
            for number, part in enumerate(("q_proj", "k_proj", "v_proj")):
                key = new.replace("attn.qkv", f"attention.{part}")
                named[key] = tensor[number * width : (number + 1) * width].clone()
        else:
            named[new] = tensor
    return named


def vision_config(sizes: Sizes) -> dict[str, Any]:
    return {
        "architectures": ["InternVisionModel"],
        "attention_dropout": 0.0,
        "drop_path_rate": 0.1,
        "dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": sizes.width,
        "image_size": sizes.image,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": sizes.mlp,
        "layer_norm_eps": 1e-06,
        "model_type": "intern_vit_6b",
        "norm_type": "layer_norm",
        "num_attention_heads": sizes.heads,
        "num_channels": 3,
        "num_hidden_layers": sizes.layers,
        "output_attentions": False,
        "patch_size": sizes.patch,
        "qk_normalization": False,
        "qkv_bias": True,
        "return_dict": True,
        "torch_dtype": "bfloat16",
        "use_bfloat16": True,
        "use_flash_attn": True,
    }


def language_config(sizes: Sizes) -> dict[str, Any]:
    """As in the published files: with settings of generation among the sizes."""
    return {
        "_name_or_path": "Qwen/Qwen2.5-0.5B-Instruct",
        "add_cross_attention": False,
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "do_sample": False,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "hidden_size": sizes.language_width,
        "initializer_range": 0.02,
        "intermediate_size": sizes.language_mlp,
        "max_length": 20,
        "max_position_embeddings": 32768,
        "max_window_layers": 21,
        "model_type": "qwen2",
        "num_attention_heads": sizes.language_heads,
        "num_beams": 1,
        "num_hidden_layers": sizes.language_layers,
        "num_key_value_heads": sizes.kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "temperature": 1.0,
        "tie_word_embeddings": sizes.tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": sizes.vocabulary,
    }


def original_config(sizes: Sizes) -> dict[str, Any]:
    return {
        "_commit_hash": None,
        "architectures": ["InternVLChatModel"],
        "auto_map": {
            "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
            "AutoModel": "modeling_internvl_chat.InternVLChatModel",
            "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
        },
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": sizes.image,
        "llm_config": language_config(sizes),
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "torch_dtype": "bfloat16",
        "transformers_version": None,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": vision_config(sizes),
    }


def hf_config(sizes: Sizes) -> dict[str, Any]:
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": 0.5,
        "image_seq_length": (sizes.grid // 2) ** 2,
        "image_token_id": IMAGE_ID,
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": {
            key: value
            for key, value in language_config(sizes).items()
            if key not in ("do_sample", "max_length", "num_beams", "temperature", "_name_or_path")
        },
        "tie_word_embeddings": sizes.tied,
        "torch_dtype": "bfloat16",
        "vision_config": {
            "architectures": ["InternVLVisionModel"],
            "attention_bias": True,
            "attention_dropout": 0.0,
            "dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "hidden_size": sizes.width,
            "image_size": [sizes.image, sizes.image],
            "intermediate_size": sizes.mlp,
            "layer_norm_eps": 1e-06,
            "layer_scale_init_value": 0.1,
            "model_type": "internvl_vision",
            "norm_type": "layer_norm",
            "num_attention_heads": sizes.heads,
            "num_channels": 3,
            "num_hidden_layers": sizes.layers,
            "patch_size": [sizes.patch, sizes.patch],
            "projection_dropout": 0.0,
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            "use_mean_pooling": True,
            "use_qk_norm": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def write_tokenizer(folder: Path, marks: tuple[str, ...] = (*CHAT_MARKS, *IMAGE_MARKS)) -> None:
    """A byte-level Qwen2 tokenizer in the files of the first releases: parts, and no tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    added = {mark: len(letters) + number for number, mark in enumerate(marks)}
    write(folder / "vocab.json", letters)
    (folder / "merges.txt").write_text("#version: 0.2\n")
    write(folder / "added_tokens.json", added)
    write(folder / "special_tokens_map.json", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    write(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(number): {"content": mark, "lstrip": False, "normalized": False, "rstrip": False,
                              "single_word": False, "special": True}
                for mark, number in added.items()
            },
            "additional_special_tokens": list(marks[1:]),
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 8192,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )  # fmt: skip


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2))


def change_json(path: Path, **changes: Any) -> None:
    write(path, json.loads(path.read_text()) | changes)


def original_folder(folder: Path, sizes: Sizes | None = None) -> Path:
    """What a download of an InternVL in the original layout holds (its code aside)."""
    sizes = sizes or Sizes()
    write_tokenizer(folder)
    write(folder / "config.json", original_config(sizes))
    write(folder / "preprocessor_config.json", {
        "crop_size": sizes.image, "do_center_crop": True, "do_normalize": True, "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225], "resample": 3, "size": sizes.image,
    })  # fmt: skip
    save_file(original_weights(sizes), folder / "model.safetensors", {"format": "pt"})
    return folder


def hf_folder(folder: Path, sizes: Sizes | None = None) -> Path:
    """The same model as `original_folder`, in transformers' layout."""
    sizes = sizes or Sizes()
    write_tokenizer(folder)
    write(folder / "config.json", hf_config(sizes))
    save_file(hf_names(original_weights(sizes), sizes), folder / "model.safetensors", {"format": "pt"})
    return folder


def released_backbone(path: Path, sizes: Sizes | None = None) -> Path:
    """A backbone as the ViTP authors released it: one file, no description."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(vision_weights(sizes or Sizes()), path, {"format": "pt"})
    return path
