"""The vision-language model that ViTP trains end to end.

Shapes: T tiles, n image tokens a tile, K surviving image tokens, B rows, L tokens a row, S supervised
tokens, H width of the language model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from vitp.core.config import SettingsModel
from vitp.core.errors import ConfigError, DataError
from vitp.models.attention_layouts import (
    AttentionKind,
    DenseAttention,
    PackedAttention,
    attention_of,
    packed_attention_mask,
    prepare,
)
from vitp.models.language import (
    LanguageSettings,
    build_language_model,
    recompute_layers,
    takes_packed_attention,
)
from vitp.models.packed_layout import PackedLayout
from vitp.models.projector import Projector, pixel_shuffle
from vitp.models.reducing import reduce_tokens
from vitp.models.vision import VisionSettings, VisionTower
from vitp.models.watching import LayerWatch

__all__ = ["PARTS", "VLMSettings", "VisionLanguageModel", "packed_attention_mask"]

MOST_LOGITS = 2**26
"""Logits in memory at once: 256 MB in fp32, and the same again for their gradient."""

PARTS = ("vision", "projector", "language")
"""The three parts of the model, as configuration and console name them."""


class VLMSettings(SettingsModel):
    """The three parts and how they meet."""

    vision: VisionSettings = Field(default_factory=VisionSettings)
    """Vision tower."""
    language: LanguageSettings = Field(default_factory=LanguageSettings)
    """Language model."""
    shuffle: int = Field(2, ge=1, le=64)
    """Side of the square of patches that is folded into one token of the language model."""
    template: str = "internvl2_5"
    """Chat template."""
    drop_path: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Stochastic depth of the vision tower's last block; earlier blocks get less, linearly."""

    @property
    def language_width(self) -> int:
        """Width of the language model (H)."""
        width = self.language.arguments.get("hidden_size")
        if width is None:
            raise ConfigError("doesn't say hidden_size", where="language.arguments", fix="set it")
        return int(width)


class VisionLanguageModel(nn.Module):
    """Vision tower → pixel shuffle → projector → causal language model.

    Args:
        config: Sizes of the parts.
        vocabulary: Tokens of the language model, image tokens included.

    Attributes:
        attention: How packed rows are attended, see `vitp.models.attention_layouts`. All ways give the same numbers.
        static_rows: Keep the rows' padding in the language model, so that shapes don't change between batches.
        tile_multiple: Tiles of a batch are padded to a multiple of this, for the same reason.
        token_multiple: Tokens of a batch's single row are, where its layout is made (`layout_of`).
        least_tiles: A compiled vision tower gets at least so many.
        reduce: What becomes of tokens that don't survive: "drop", "pool" or "merge"; see `vitp.models.reducing`.
    """

    attention: AttentionKind = "auto"
    static_rows = False
    tile_multiple = 1
    token_multiple = 1
    least_tiles = 1
    reduce = "drop"

    def __init__(self, config: VLMSettings, *, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision, drop_path=config.drop_path)
        if self.vision.grid % config.shuffle:
            raise ConfigError(
                f"a grid of {self.vision.grid} patches can't be folded by {config.shuffle}",
                where="model.scratch.shuffle",
                fix="choose a divisor",
            )
        self.tokens_per_tile = (self.vision.grid // config.shuffle) ** 2
        self.projector = Projector(self.vision.width, config.language_width, config.shuffle)
        self.language: Any = build_language_model(config.language, vocabulary=vocabulary)

    def encode_tiles(self, tiles_TCHW: Tensor, keep_K: Tensor | None = None) -> Tensor:
        """Return the image tokens (T, n, H) of uint8 tiles.

        Args:
            tiles_TCHW: Of the batch.
            keep_K: Image tokens that are wanted, numbered over all tiles; the result is (K, H) then, and the projector
                computes no others.
        """
        tiles = len(tiles_TCHW)
        # Blank tiles keep the shapes few that a compiled tower is compiled for; what comes of them is cut off below.
        if blank := self.tile_slots(tiles) - tiles:
            shape = (blank, *tiles_TCHW.shape[1:])
            tiles_TCHW = torch.cat([tiles_TCHW, tiles_TCHW.new_zeros(shape)])
        patches_TND = self.vision.forward_tokens(self.vision.normalize(tiles_TCHW))[:tiles]
        folded_TnF = pixel_shuffle(patches_TND, self.config.shuffle)
        if keep_K is not None:
            folded_TnF = reduce_tokens(folded_TnF, keep_K, self.reduce)
        projected: Tensor = self.projector(folded_TnF)
        return projected

    def tile_slots(self, tiles: int) -> int:
        """Return how many tiles the vision tower computes for a batch of so many, blank ones included."""
        return -(-max(tiles, self.least_tiles) // self.tile_multiple) * self.tile_multiple

    def embed(
        self,
        tiles_TCHW: Tensor,
        keep_K: Tensor,
        image_index_K: Tensor,
        ids_BL: Tensor,
        names: Sequence[str] = (),
    ) -> Tensor:
        """Return the language model's input (B, L, H): text embeddings, image tokens in their places.

        Raises:
            DataError: Placeholders and surviving image features differ in number.
        """
        if keep_K.numel() != image_index_K.numel():
            raise DataError(
                f"{image_index_K.numel()} image placeholders but {keep_K.numel()} image features",
                where=", ".join(names) or "batch",
            )
        text_BLH = self.language.get_input_embeddings()(ids_BL)
        if len(tiles_TCHW) == 0:
            # The vision tower must take part, or data parallel ranks would wait for its gradients.
            shape = (1, self.vision.num_channels, *self.vision.image_size)
            blank = torch.zeros(shape, dtype=torch.uint8, device=ids_BL.device)
            unchanged_BLH: Tensor = text_BLH + 0.0 * self.encode_tiles(blank).sum()
            return unchanged_BLH
        image_KH = self.encode_tiles(tiles_TCHW, keep_K)
        rows, length, width = text_BLH.shape
        flat = text_BLH.reshape(rows * length, width)
        filled_BLH: Tensor = flat.index_copy(0, image_index_K, image_KH.to(flat.dtype)).view(
            rows, length, width
        )
        return filled_BLH

    def forward(
        self,
        *,
        tiles_TCHW: Tensor,
        keep_K: Tensor,
        image_index_K: Tensor,
        ids_BL: Tensor,
        positions_BL: Tensor,
        segments_BL: Tensor,
        branches_BL: Tensor,
        target_index_S: Tensor,
        names: Sequence[str] = (),
        layout: PackedLayout | None = None,
        watch: LayerWatch | None = None,
    ) -> Tensor:
        """Return the last hidden states (S, H) at the tokens that predict supervised ones.

        The language model computes L tokens a row: dropped image tokens are not among them. See
        `vitp.data.packing.PackedBatch` for the arguments.

        Args:
            tiles_TCHW, keep_K, image_index_K, ids_BL, positions_BL, segments_BL, branches_BL, target_index_S, names:
                Of the batch.
            layout: Made with the batch on the host; without it, it is made here, for which the device is waited for.
            watch: To be filled with what one layer of the language model reads.
        """
        how = self._attention_settings(segments_BL.device)
        attend = None if layout is None else attention_of(layout, segments_BL.device, **how)
        if layout is not None and attend is not None:
            ids_BL, positions_BL = layout.ids_BN, layout.positions_BN
            image_index_K, target_index_S = layout.image_index_K, layout.target_index_S
        else:
            made = prepare(segments_BL, branches_BL, static=self.static_rows, **how)
            attend = made.attend
            if made.members_N is not None:
                # One row without padding: whatever names a place by its number gets the new one.
                # Padding keeps 0 here, which no index asks for.
                place = torch.zeros(ids_BL.numel(), dtype=torch.long, device=ids_BL.device)
                place[made.members_N] = torch.arange(len(made.members_N), device=ids_BL.device)
                image_index_K, target_index_S = place[image_index_K], place[target_index_S]
                ids_BL, positions_BL = (x.flatten()[made.members_N][None] for x in (ids_BL, positions_BL))
        inputs_BLH = self.embed(tiles_TCHW, keep_K, image_index_K, ids_BL, names)
        with nullcontext() if watch is None else watch.on():
            hidden_BLH = self.language.get_decoder()(
                inputs_embeds=inputs_BLH,
                position_ids=positions_BL,
                use_cache=False,
                **self._attention_arguments(attend, ids_BL.device),
            ).last_hidden_state
        if watch is not None:
            watch.image_index_K, watch.target_index_S = image_index_K, target_index_S
        # Before the output layer: logits of 4,096 tokens and 151,936 words would take 2.5 GB.
        kept_SH: Tensor = hidden_BLH.flatten(0, 1).index_select(0, target_index_S)
        return kept_SH

    def _attention_settings(self, device: torch.device) -> dict[str, Any]:
        """Return kind, precision and dropout of the attention over packed rows."""
        weight = self.language.get_input_embeddings().weight
        autocast = torch.is_autocast_enabled(device.type)
        return {
            "kind": self.attention if takes_packed_attention(self.language) else "dense",
            "dtype": torch.get_autocast_dtype(device.type) if autocast else weight.dtype,
            "dropout": getattr(self.language.config, "attention_dropout", 0.0) if self.training else 0.0,
        }

    @staticmethod
    def _attention_arguments(attend: PackedAttention, device: torch.device) -> dict[str, Any]:
        if isinstance(attend, DenseAttention):
            return {"attention_mask": attend.mask_B1LL}
        # A mask of four dimensions is taken as it is: transformers makes none of its own.
        placeholder = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
        return {"attention_mask": placeholder, "packed": attend}

    def logits(self, hidden_SH: Tensor) -> Tensor:
        """Return the logits (S, V) of hidden states."""
        logits_SV: Tensor = self.language.get_output_embeddings()(hidden_SH)
        return logits_SV

    @torch.no_grad()
    def generate(self, tiles_TCHW: Tensor, ids_N: Tensor, image_index_K: Tensor, **options: Any) -> Tensor:
        """Return the token ids that answer a prompt, (new tokens,).

        Args:
            tiles_TCHW: uint8 tiles of the prompt's images; all image tokens are used.
            ids_N: The prompt.
            image_index_K: Places of the image tokens in it.
            options: Options of transformers' `generate`: `max_new_tokens`, `streamer`, `do_sample`, ….
        """
        keep_K = torch.arange(len(tiles_TCHW) * self.tokens_per_tile, device=ids_N.device)
        inputs = self.embed(tiles_TCHW, keep_K, image_index_K, ids_N[None])
        mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=ids_N.device)
        # Of embeddings `generate` knows no ids, so it returns those of the answer alone.
        ids_L: Tensor = self.language.generate(inputs_embeds=inputs, attention_mask=mask, **options)[0]
        return ids_L

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations of ViT and language model in the backward pass."""
        self.vision.set_gradient_checkpointing(enabled)
        recompute_layers(self.language, {} if enabled else None)
