"""Language models of published vision-language models: their configurations as ours and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig

from vitp.core.errors import CheckpointError
from vitp.models.language import LanguageConfig

ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
"""Model type → class, of the language models whose names are transformers' own in every layout."""

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "attention_bias",
    "mlp_bias",
    "attention_dropout",
    "tie_word_embeddings",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
)
"""What decides what such a model computes; all else in its configuration is about generating or loading."""

_WINDOW = ("sliding_window", "max_window_layers")

_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def language_config(values: Mapping[str, Any], *, where: str, tied: bool | None = None) -> LanguageConfig:
    """Return a published configuration (`llm_config`, `text_config`) as ours.

    Args:
        values: Of the file.
        where: The file, for messages.
        tied: Whether input and output embeddings are one tensor, as the weights tell; None: as the values say.

    Raises:
        CheckpointError: The language model is of another kind, or a size is missing.
    """
    model_type = _model_type(values, where)
    if missing := [key for key in _REQUIRED if values.get(key) is None]:
        raise CheckpointError(f"says no {missing[0]} of the language model", where=where)
    arguments = {key: values[key] for key in _SIZES if values.get(key) is not None}
    if not arguments.get("use_sliding_window", False):
        # The published files state a window that isn't used; transformers takes None for that.
        for key in (*_WINDOW, "use_sliding_window"):
            arguments.pop(key, None)
    arguments["tie_word_embeddings"] = (
        bool(values.get("tie_word_embeddings", False)) if tied is None else tied
    )
    arguments["rope_parameters"] = _rope(values)
    return LanguageConfig(model_type=model_type, arguments=arguments)


def _model_type(values: Mapping[str, Any], where: str) -> str:
    named = (values.get("architectures") or [""])[0]
    by_class = {architecture: model_type for model_type, architecture in ARCHITECTURES.items()}
    model_type = values.get("model_type") or by_class.get(named, "")
    if model_type in ARCHITECTURES:
        return str(model_type)
    raise CheckpointError(
        f"has the language model {named or model_type or 'none'}, which vitp can't run",
        where=where,
        fix="use a size whose language model is Qwen2 or Qwen2.5: InternVL2.5 1B or 4B, InternVL3 1B, 2B, 8B or 14B; "
        "its vision tower alone can be read with `vitp.load_backbone`",
    )


def _rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary positions in the form of transformers 5; older files state base and scaling apart."""
    if given := values.get("rope_parameters"):
        return dict(given)
    scaling = dict(values.get("rope_scaling") or {})
    kind = scaling.pop("type", None)
    parameters: dict[str, Any] = {"rope_type": scaling.pop("rope_type", None) or kind or "default", **scaling}
    return parameters | {"rope_theta": float(values.get("rope_theta", 10000.0))}


def published_language_config(
    language: LanguageConfig, vocabulary: int, *, dtype: str, where: str
) -> dict[str, Any]:
    """Return our configuration as published files state it, readable by old and new releases of transformers.

    Raises:
        CheckpointError: The language model is of a kind that the layout doesn't have.
    """
    if language.model_type not in ARCHITECTURES:
        raise CheckpointError(
            f"InternVL's layouts have no language model of type {language.model_type}",
            where=where,
            fix=f"they take {', '.join(ARCHITECTURES)}",
        )
    if language.lora is not None:
        raise CheckpointError(
            "has LoRA layers, which InternVL's layouts have no names for",
            where=where,
            fix="merge them into the language model first",
        )
    # Made by transformers, so that sizes which our configuration leaves at their defaults are stated, too.
    config = AutoConfig.for_model(language.model_type, **{**language.arguments, "vocab_size": vocabulary})
    sizes = {key: getattr(config, key) for key in _SIZES if getattr(config, key, None) is not None}
    if not sizes.get("use_sliding_window", False):
        sizes = {key: value for key, value in sizes.items() if key not in _WINDOW}
    rope = dict(config.rope_parameters)
    theta = rope.pop("rope_theta")
    return {
        "architectures": [ARCHITECTURES[language.model_type]],
        "model_type": language.model_type,
        **sizes,
        "rope_theta": theta,
        "rope_scaling": None if rope.get("rope_type", "default") == "default" else rope,
        "vocab_size": vocabulary,
        "torch_dtype": dtype,
    }
