"""Guided attention: a question about a place is answered from the image tokens of that place.

A small language model finds the place it is asked about late or never, and one that doesn't look there sends the ViT
no gradient about places. Beside the answers' loss, some heads of one layer are told where to look: from the token that
foretells the answer's first one, −log of the share of their attention to the image that lies inside the place. The idea
is that of supervised attention for questions about images (Qiao et al. 2018, HAN; Selvaraju et al. 2019, HINT), with
the places that the questions name themselves instead of what people looked at.

Shapes: P questions about places, K image tokens, A heads.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from vitp.core.config import SettingsModel
from vitp.core.errors import ConfigError
from vitp.core.tensors import present
from vitp.data.packing import AskedPlaces, PackedBatch
from vitp.models.vlm import VisionLanguageModel
from vitp.models.watching import LayerWatch, attention_layers

GUIDE_LOSS = "guide"


class GuideSettings(SettingsModel):
    """Attention that is told where to look."""

    weight: float = Field(0.0, ge=0, le=1e6)
    """Weight of this loss in the total loss; 0: nobody is told."""
    layer: int | None = Field(None, ge=0, le=10_000)
    """Layer of the language model, from 0; none: the middle one."""
    heads: int = Field(2, ge=1, le=10_000)
    """Heads of the layer that are told, the first ones; the others stay free."""


class AttentionGuide:
    """The loss of guided attention.

    Args:
        vlm: The model.
        settings: Weight above 0, layer, heads.

    Raises:
        ConfigError: The language model has no such layer or heads, or keeps queries and keys together.
    """

    def __init__(self, vlm: VisionLanguageModel, settings: GuideSettings) -> None:
        layers = attention_layers(vlm.language)
        number = len(layers) // 2 if settings.layer is None else settings.layer
        heads = int(vlm.language.config.num_attention_heads)
        for key, value, most in (("layer", number, len(layers) - 1), ("heads", settings.heads, heads)):
            if value > most:
                raise ConfigError(
                    f"{value} is more than the language model has",
                    where=f"objective.guide.{key}",
                    fix=f"choose {most} or less",
                )
        self._layer, self._heads = layers[number], settings.heads

    def watch(self) -> LayerWatch:
        """Return what a forward pass is to fill."""
        return LayerWatch(self._layer)

    def loss(self, watch: LayerWatch, places: AskedPlaces) -> Tensor:
        """Return Σ over questions of −log of the share of the image's attention inside the place, mean over heads."""
        scores_APK = watch.image_scores(places.query_P, self._heads)
        never = torch.finfo(scores_APK.dtype).min
        shares = [
            torch.where(mask_PK, scores_APK, never).logsumexp(-1)
            for mask_PK in (places.own_PK, places.inside_PK)
        ]
        return (shares[0] - shares[1]).mean(0).sum()


def asked(batch: PackedBatch) -> AskedPlaces:
    """Return the places of a batch whose source was told to say them."""
    return present(batch.places)
