"""What a layer of the language model reads, and where its attention goes from chosen tokens to image tokens.

Shapes: B rows, L tokens a row, H width, P chosen tokens, K image tokens, A heads, d width of a head.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from vitp.core.errors import ConfigError
from vitp.core.tensors import present


def attention_layers(language: PreTrainedModel) -> list[nn.Module]:
    """Return the decoder's layers, whose `self_attn` has queries and keys apart from each other.

    Raises:
        ConfigError: The language model is built in another way.
    """
    layers = list(getattr(language.get_decoder(), "layers", ()))
    parts = ("q_proj", "k_proj", "head_dim")
    if not layers or not all(hasattr(getattr(layers[0], "self_attn", None), part) for part in parts):
        raise ConfigError(
            f"{type(language).__name__} doesn't keep queries and keys apart",
            where="model.init",
            fix="choose a language model of the Qwen or Llama kind",
        )
    return layers


@dataclass
class LayerWatch:
    """What one layer reads in a forward pass of `VisionLanguageModel`, which fills the fields.

    Attributes:
        layer: A decoder layer of its language model.
        image_index_K, target_index_S: As in `vitp.data.packing.PackedBatch`, among the tokens that are computed.
    """

    layer: nn.Module
    image_index_K: Tensor | None = None
    target_index_S: Tensor | None = None
    _hidden_BLH: Tensor | None = field(default=None, repr=False)
    _rotary: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within the context a forward pass of the language model leaves what the layer reads here."""

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._hidden_BLH = args[0] if args else kwargs["hidden_states"]
            self._rotary = kwargs["position_embeddings"]

        handle = self.layer.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def image_scores(self, query_P: Tensor, heads: int) -> Tensor:
        """Return (A, P, K): the attention scores, before the softmax, of tokens for the image tokens.

        Args:
            query_P: Numbers among the tokens that predict supervised ones (S).
            heads: The first so many heads.
        """
        layer: Any = self.layer
        attention = layer.self_attn
        hidden_BLH = present(self._hidden_BLH)
        read_NH = layer.input_layernorm(hidden_BLH.flatten(0, 1))
        cos_Nd, sin_Nd = (
            part.expand(len(hidden_BLH), -1, -1).flatten(0, 1) for part in present(self._rotary)
        )
        # transformers keeps the rotation beside each kind of attention: halves here, pairs there.
        rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb

        def turned(project: Any, norm: Any, places: Tensor) -> Tensor:
            parts_NAd = project(read_NH[places]).unflatten(-1, (-1, attention.head_dim))
            parts_1ANd = (parts_NAd if norm is None else norm(parts_NAd)).transpose(0, 1)[None]
            rotated: Tensor = rotate(parts_1ANd, parts_1ANd, cos_Nd[places][None], sin_Nd[places][None])[0][0]
            return rotated

        queries_APd = turned(
            attention.q_proj, getattr(attention, "q_norm", None), present(self.target_index_S)[query_P]
        )
        keys_GKd = turned(attention.k_proj, getattr(attention, "k_norm", None), present(self.image_index_K))
        # Several heads of queries share one of keys.
        keys_AKd = keys_GKd.repeat_interleave(len(queries_APd) // len(keys_GKd), 0)
        scores_APK: Tensor = queries_APd[:heads] @ keys_AKd[:heads].transpose(1, 2) * attention.scaling
        return scores_APK.float()
