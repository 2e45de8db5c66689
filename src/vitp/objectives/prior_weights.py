"""Token weights after PRIOR (Chen et al., 2025): what can be said without the image teaches the ViT nothing.

A reference language model reads questions and answers without images. A token that it finds likely gets little weight
in ViTP's loss, one that only the image can tell gets all: w = (1 − p)^α with the reference's probability p. With α = 0
all weights are 1. The publication scales the weights to mean 1; here that is a setting (`normalise`), off as it was in
earlier versions, where the loss is smaller the more the reference knows.

Shapes: S supervised tokens, H width of the language model, B rows, L tokens a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vitp.checkpoints.writing import write_vlm
from vitp.core.config import SettingsModel
from vitp.data.chat import ChatTokenizer
from vitp.data.packing import PackedBatch
from vitp.models.attention_layouts import packed_attention_mask
from vitp.models.vlm import VisionLanguageModel
from vitp.objectives.base import Objective, ParameterGroup

_HIDDEN_SEGMENT = -2
"""Image tokens get a record number that no text token has, so that none sees them."""


class PriorSettings(SettingsModel):
    """Weighting of the answers' tokens."""

    alpha: float = Field(0.0, ge=0, le=1e6)
    """Exponent α of the weights (1 − p)^α; 0: all tokens weigh alike."""
    reference: str | None = None
    """Folder of a model whose language model has learned the answers without images; none: it is trained
    beforehand, in the run's own folder."""
    steps: int = Field(200, ge=1, le=100_000_000)
    """Optimizer steps of that training."""
    lr: float = Field(1e-3, gt=0, le=100)
    """Peak learning rate of that training."""
    normalise: bool = False
    """Scale the weights of each batch to mean 1, so that the loss keeps its size."""


def text_only_states(language: Any, batch: PackedBatch) -> Tensor:
    """Return the last hidden states (S, H) where supervised tokens are predicted; no token sees an image."""
    # Image tokens stay, hidden as another record: the texts keep the positions that the model reads them at.
    segments_BL = batch.segments_BL.flatten().index_fill(0, batch.image_index_K, _HIDDEN_SEGMENT)
    segments_BL = segments_BL.view_as(batch.segments_BL)
    hidden_BLH = language.get_decoder()(
        inputs_embeds=language.get_input_embeddings()(batch.ids_BL),
        attention_mask=packed_attention_mask(segments_BL, batch.branches_BL),
        position_ids=batch.positions_BL,
        use_cache=False,
    ).last_hidden_state
    states_SH: Tensor = hidden_BLH.flatten(0, 1)[batch.target_index_S]
    return states_SH


class TextReference(nn.Module):
    """A frozen language model that tells how likely each answer token is without the image.

    Args:
        language: With the tokenizer of the model that is trained.
        chunk: Supervised tokens whose logits are in memory at once.
    """

    def __init__(self, language: Any, *, chunk: int = 2048) -> None:
        super().__init__()
        self.language: Any = language.requires_grad_(False).eval()
        self.chunk = chunk

    def train(self, mode: bool = True) -> TextReference:
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def probabilities(self, batch: PackedBatch) -> Tensor:
        """Return the probability (S,) of each supervised token given the texts before it."""
        hidden_SH = text_only_states(self.language, batch)
        head = self.language.get_output_embeddings()
        # In parts: all logits at once would be S rows as long as the vocabulary.
        parts = [
            -F.cross_entropy(head(hidden).float(), target, reduction="none")
            for hidden, target in zip(
                hidden_SH.split(self.chunk), batch.target_ids_S.split(self.chunk), strict=True
            )
        ]
        return torch.cat(parts).exp()


class PriorWeights(nn.Module):
    """Weights of the supervised tokens.

    Args:
        reference: Tells the probabilities.
        alpha: Exponent above 0.
        normalise: Scale the weights of a batch to mean 1.
    """

    def __init__(self, reference: TextReference, alpha: float, *, normalise: bool = False) -> None:
        super().__init__()
        self.reference, self.alpha, self.normalise = reference, alpha, normalise

    def forward(self, batch: PackedBatch) -> Tensor:
        """Return w (S,) without gradient: on 0..1, or of mean 1."""
        # Rounding may bring a probability above 1.
        weights_S = (1 - self.reference.probabilities(batch)).clamp(min=0) ** self.alpha
        return weights_S / weights_S.mean().clamp(min=1e-12) if self.normalise else weights_S


class TextOnlyObjective(Objective):
    """Negative log-likelihood of the answers given the questions alone: what trains a `TextReference`.

    The vision tower and the projector take no part and are frozen.

    Args:
        vlm: The model whose language model is trained.
        chat: Its tokenizer, saved beside it.
    """

    def __init__(self, vlm: VisionLanguageModel, chat: ChatTokenizer) -> None:
        super().__init__()
        self.vlm, self.chat = vlm, chat
        vlm.vision.requires_grad_(False)
        vlm.projector.requires_grad_(False)

    @property
    def vision_tower(self) -> nn.Module:
        """The ViT, frozen."""
        return self.vlm.vision

    def forward(self, batch: PackedBatch) -> dict[str, Tensor]:
        """Return {"text": sum of the negative log-likelihoods}."""
        logits_SV = self.vlm.logits(text_only_states(self.vlm.language, batch))
        return {"text": F.cross_entropy(logits_SV.float(), batch.target_ids_S, reduction="sum")}

    def loss_counts(self, batch: PackedBatch) -> dict[str, float]:
        """Return {"text": number of supervised tokens}."""
        return {"text": float(batch.target_ids_S.numel())}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the three parts of the model; only the language model trains."""
        parts: Mapping[str, str] = {
            "vision": "vision tower",
            "projector": "projector",
            "language": "language model",
        }
        return [
            ParameterGroup(
                name, {f"vlm.{part}.{key}": p for key, p in getattr(self.vlm, part).named_parameters()}
            )
            for part, name in parts.items()
        ]

    def work(self, batch: PackedBatch) -> dict[str, float]:
        """Return records and tokens."""
        return {"samples": float(len(batch.record_names)), "tokens": float(batch.tokens)}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the whole model, which `vitp.load_vlm` reads."""
        write_vlm(Path(folder), self.vlm, self.chat)
