"""The list of arguments that a configuration may hand on to timm and transformers.

A `config.json` may come from anybody, and both libraries take much more than sizes: where to load weights from, which
file to read, which code to import. So architectures must be known by name, arguments must be on a list, and
their values are plain and bounded.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import timm
from transformers import CONFIG_MAPPING, PreTrainedConfig

from vitp.core.errors import ConfigError, did_you_mean

LARGEST_SIZE = 1 << 20
"""Of a whole number: a width, a count, a side."""

LARGEST_NUMBER = 1e9
"""Of any other number, such as the base of rotary positions."""

MOST_LAYERS = 1024

MOST_PARAMETERS = 2e11
"""Of a transformer, as depth and width tell: a mistake in a width must not fill the memory."""

_LONGEST_WORD = 64
_WORD = re.compile(r"[A-Za-z0-9_. -]*")

TIMM_ARGUMENTS = frozenset(
    """
    patch_size embed_dim depth num_heads mlp_ratio qkv_bias qk_norm proj_bias init_values class_token
    pos_embed no_embed_class reg_tokens pre_norm final_norm fc_norm pool_include_prefix dynamic_img_pad
    scale_attn_norm scale_mlp_norm drop_rate pos_drop_rate patch_drop_rate proj_drop_rate attn_drop_rate
    drop_path_rate weight_init fix_init norm_layer act_layer img_size dynamic_img_size global_pool
    num_classes in_chans num_kv_heads qkv_fused swiglu_mlp swiglu_align_to scale_mlp scale_attn_inner
    attn_type attn_only_layer_scale num_reg_tokens use_abs_pos_emb use_rot_pos_emb rope_type
    rope_grid_offset rope_grid_indexing rope_temperature rope_rotate_half rope_shift_coords
    rope_jitter_coords rope_rescale_coords rope_mrope_section use_post_norm use_pre_transformer_norm
    use_post_transformer_norm use_fc_norm ref_feat_shape layers cardinality base_width stem_width stem_type
    avg_down output_stride depths dims kernel_sizes ls_init_value conv_mlp conv_bias use_grn head_norm_first
    norm_eps window_size patch_norm ape strict_img_size always_partition pretrained_window_sizes
    """.split()  # noqa: SIM905 - a list of words is easier to read
)
"""Arguments of `timm.create_model` that say what is built: sizes, switches and rates of ViTs, ResNets, ConvNeXts and
Swins. None of them loads anything."""

_LANGUAGE_ARGUMENTS = frozenset(
    """
    hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    vocab_size max_position_embeddings rms_norm_eps layer_norm_eps layer_norm_epsilon hidden_act
    activation_function attention_bias mlp_bias attention_dropout hidden_dropout tie_word_embeddings
    use_sliding_window sliding_window max_window_layers layer_types rope_theta rope_scaling rope_parameters
    initializer_range use_cache pad_token_id bos_token_id eos_token_id
    """.split()  # noqa: SIM905 - a list of words is easier to read
)
"""Arguments of language models, beside those that a model's own configuration class adds."""

_DEPTHS = ("depth", "num_hidden_layers", "n_layer", "num_layers")
_WIDTHS = ("embed_dim", "hidden_size", "n_embd", "d_model")


def check_architecture(name: str, *, where: str) -> None:
    """Raise unless timm has an architecture of this name.

    Args:
        name: With or without the tag of a training. One such as `hf-hub:…` would load a model from elsewhere.
        where: The setting or file, for the message.

    Raises:
        ConfigError: It has none.
    """
    base = name.split(".")[0]
    if ":" in name or "/" in name or not timm.is_model(base):
        hint = None if ":" in name else did_you_mean(base[:100], timm.list_models())
        raise ConfigError(
            f'timm has no model "{name[:100]}"', where=where, fix=hint or "see timm.list_models()"
        )


def check_timm_arguments(arguments: Mapping[str, Any], *, where: str) -> None:
    """Raise unless these arguments of `timm.create_model` are on the list, plain and within bounds.

    Raises:
        ConfigError: One is not.
    """
    _check(arguments, TIMM_ARGUMENTS, "timm", where)


def check_language_arguments(model_type: str, arguments: Mapping[str, Any], *, where: str) -> None:
    """Raise unless these arguments of a language model's configuration are known, plain and within bounds.

    Raises:
        ConfigError: One is neither on the list nor a size that this kind of model has, or its value isn't plain.
    """
    known = _LANGUAGE_ARGUMENTS
    if not known.issuperset(arguments):
        known = known | _own_arguments(model_type)
    _check(arguments, known, "the language model", where)


def _check(arguments: Mapping[str, Any], known: frozenset[str], whose: str, where: str) -> None:
    for name, value in arguments.items():
        if name not in known:
            raise ConfigError(
                f"{str(name)[:60]!r} is no argument that {whose} may be given",
                where=where,
                fix=did_you_mean(str(name)[:60], known) or "remove it",
            )
        if (wrong := _wrong(name, value, 0)) is not None:
            raise ConfigError(wrong, where=where, fix="give a plain value of the usual size")
    depth, width = (
        next((arguments[key] for key in keys if key in arguments), 0) for keys in (_DEPTHS, _WIDTHS)
    )
    if not (isinstance(depth, int) and isinstance(width, int)):
        return
    # A block has about 12 · width² weights: 4 in its attention, 8 in an MLP four times as wide.
    if depth > MOST_LAYERS or 12 * depth * width**2 > MOST_PARAMETERS:
        raise ConfigError(
            f"{depth:,} layers of width {width:,} are too many", where=where, fix="check the sizes"
        )


def _own_arguments(model_type: str) -> frozenset[str]:
    """Return what a model's configuration class takes beyond what every configuration of transformers does."""
    if model_type not in CONFIG_MAPPING:
        return frozenset()
    own, every = (
        set(inspect.signature(kind.__init__).parameters)
        for kind in (CONFIG_MAPPING[model_type], PreTrainedConfig)
    )
    return frozenset(own - every - {"kwargs", "args"})


def _wrong(name: str, value: Any, level: int) -> str | None:
    """Return what is wrong with a value; None when it is plain and within bounds."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int):
        most = LARGEST_NUMBER if name in _LARGE else LARGEST_SIZE
        return None if -most <= value <= most else f"{name} is out of bounds"
    if isinstance(value, float):
        return None if abs(value) <= LARGEST_NUMBER else f"{name} is out of bounds"  # NaN is not, either
    if isinstance(value, str):
        plain = len(value) <= _LONGEST_WORD and _WORD.fullmatch(value) is not None
        return None if plain else f"{name} is no plain word"
    if level > 1 or not isinstance(value, (list, tuple, Mapping)) or len(value) > MOST_LAYERS:
        return f"{name} is no plain value"
    parts = value.items() if isinstance(value, Mapping) else ((None, part) for part in value)
    found = (_wrong(name if key is None else str(key), part, level + 1) for key, part in parts)
    return next((wrong for wrong in found if wrong is not None), None)


_LARGE = ("rope_theta", "max_position_embeddings", "original_max_position_embeddings")


def lacks_memory(error: Exception) -> bool:
    """Return whether a library couldn't build a model for want of memory, which is no fault of the configuration.

    torch reports that as a plain RuntimeError that names its allocator.
    """
    return isinstance(error, MemoryError) or "alloc" in str(error)
