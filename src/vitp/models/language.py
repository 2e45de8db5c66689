"""The language model: any Hugging Face causal LM, or a small one made from a configuration."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]

from vitp.core.config import SettingsModel
from vitp.core.errors import ConfigError, did_you_mean
from vitp.core.extras import need
from vitp.models.arguments import check_language_arguments, lacks_memory
from vitp.models.attention_layouts import PackedAttention

PACKED = "vitp_packed"
"""Name of our attention among those of transformers."""


class LoRASettings(SettingsModel):
    """Low-rank adaptation of the language model's linear layers; all else of it is frozen."""

    rank: int = Field(default=16, ge=1, le=65_536)
    """Rank of the updates."""
    alpha: int = Field(default=32, gt=0, le=65_536)
    """The updates are scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of the updates."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of the linear layers that get an update."""


class LanguageSettings(SettingsModel):
    """Which causal language model.

    `model_type` and `arguments` are those of the Hugging Face configuration ("qwen2", …). `vocab_size` is
    set from the tokenizer.
    """

    model_type: str = "qwen2"
    """Architecture, by the name that transformers has for it ("qwen2", …)."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the Hugging Face configuration. `vocab_size` is set from the tokenizer."""
    lora: LoRASettings | None = None
    """Train low-rank updates only; none: all weights."""


def micro_qwen2(
    *, width: int = 192, layers: int = 3, heads: int = 6, kv_heads: int = 2, mlp: int = 512
) -> LanguageSettings:
    """Return a Qwen2 of a few million parameters at most, embeddings tied."""
    return LanguageSettings(
        model_type="qwen2",
        arguments={
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": mlp,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
        },
    )


QWEN2_VOCABULARY = 151_936
"""Rows of the embedding of Qwen2.5-0.5B, padding included."""


def qwen2_half_billion(*, tied: bool = True) -> LanguageSettings:
    """Return Qwen2.5-0.5B (InternVL2.5-1B has it with an output layer of its own: `tied=False`)."""
    return LanguageSettings(
        model_type="qwen2",
        arguments={
            "hidden_size": 896,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "rope_theta": 1_000_000.0,
            "tie_word_embeddings": tied,
        },
    )


def build_language_model(config: LanguageSettings, *, vocabulary: int) -> PreTrainedModel:
    """Return the model with random weights in float32.

    Attention is torch's SDPA, except where `forward` is given `packed=` (see `takes_packed_attention`).

    Raises:
        ConfigError: transformers knows no such model type, refuses an argument, or the model takes no
            explicit attention masks.
    """
    if config.model_type not in CONFIG_MAPPING_NAMES:
        raise ConfigError(
            f"transformers knows no model type {config.model_type!r}",
            where="language.model_type",
            fix=did_you_mean(config.model_type, CONFIG_MAPPING_NAMES),
        )
    check_language_arguments(config.model_type, config.arguments, where="language.arguments")
    # An architecture's defaults (Llama: 1 and 2) would name any two tokens of this vocabulary.
    arguments = {**config.arguments, "vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": None}
    try:
        hf_config = AutoConfig.for_model(config.model_type, **arguments)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(hf_config, attn_implementation="sdpa")
    except Exception as error:  # whatever sizes that don't go together make transformers and torch raise
        if lacks_memory(error):
            raise
        raise ConfigError(
            f"transformers can't make a {config.model_type} ({error})", where="language.arguments"
        ) from error
    # Whatever type a configuration names: weights are kept in float32, and autocast computes in less.
    model = model.float()
    # Older architectures compute attention themselves and take no other; they stay with masks over whole rows.
    if model.is_backend_compatible():
        model.set_attn_implementation(PACKED)
    if config.lora is not None:
        _add_lora(model, config.lora)
    return model


def recompute_layers(model: PreTrainedModel, options: dict[str, Any] | None) -> None:
    """Make the backward pass recompute the layers' activations.

    Args:
        model: The language model.
        options: Options of torch's checkpoint, beside `use_reentrant`; None: keep the activations.
    """
    # The second names are those of transformers before 5.2x; the first ones replace them.
    enable, disable = (
        getattr(model, f"activation_checkpointing_{way}", None)
        or getattr(model, f"gradient_checkpointing_{way}")
        for way in ("enable", "disable")
    )
    if options is not None:
        # The reentrant kind passes no gradient on where no input needs one, as behind a frozen vision tower.
        enable({"use_reentrant": False, **options})
    elif any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        disable()


def takes_packed_attention(model: PreTrainedModel) -> bool:
    """Return whether the model's `forward` takes `packed=`: the attention of a packed batch."""
    packed: bool = model.config._attn_implementation == PACKED
    return packed


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed: PackedAttention | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as the batch's layout says; without one, as transformers' own SDPA does."""
    if packed is None:
        if attention_mask is not None and attention_mask.numel() == 1 and key.shape[-2] > 1:
            # The placeholder that stands for a layout: without the layout every token would see every other.
            raise ConfigError(
                f"{type(module).__name__} does not hand packed attention on",
                where="language.model_type",
                fix="set compute.attention to dense",
            )
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if kwargs.get("softcap") is not None:
        raise ConfigError(
            "caps attention scores, which packed attention does not", where="language.model_type"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _outside_of_graphs(packed, query, key, value, scale, dropout), None


@torch.compiler.disable(reason="torch.compiler.disable is meant: packed rows differ")  # type: ignore[untyped-decorator]
def _outside_of_graphs(
    packed: PackedAttention, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float
) -> Tensor:
    """Attend eagerly within a compiled layer: lengths and places are of the batch, and would each make a graph."""
    return packed(query, key, value, scale, dropout)


ALL_ATTENTION_FUNCTIONS.register(PACKED, _packed_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED, sdpa_mask)


def _add_lora(model: PreTrainedModel, config: LoRASettings) -> None:
    peft = need("lora", "peft", "language.lora", ConfigError)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    lora = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
    )
    try:
        # Not `get_peft_model`, which wraps the model: class and methods stay transformers' own.
        peft.inject_adapter_in_model(lora, model)
    except ValueError as error:
        raise ConfigError(f"LoRA finds no layer to adapt ({error})", where="language.lora.targets") from error
