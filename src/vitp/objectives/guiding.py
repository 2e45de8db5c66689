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
from vitp.data.asked_places import asked_place
from vitp.data.mixture import Mixture
from vitp.data.packing import AskedPlaces, PackedBatch
from vitp.models.vlm import VisionLanguageModel
from vitp.models.watching import LayerWatch, attention_layers
from vitp.records.instructions import InstructionRecord

GUIDE_LOSS = "guide"

_LOOKED_AT = 4096
"""Records that are looked at for a question about a place; of larger mixtures the first of the run."""


class GuideSettings(SettingsModel):
    """Attention that is told where to look."""

    weight: float = Field(0.0, ge=0, le=1e6)
    """Weight of this loss in the total loss; 0: nobody is told."""
    layer: int | None = Field(None, ge=0, le=10_000)
    """Layer of the language model, from 0; none: the middle one."""
    heads: int = Field(2, ge=1, le=10_000)
    """Heads of the layer that are told, the first ones; the others stay free."""


def places_warning(mixture: Mixture[InstructionRecord], most_turns: int | None) -> list[str]:
    """Return a line where none of the records that are looked at asks about a place: the loss would be 0.

    Args:
        mixture: What is learned.
        most_turns: Most questions of a record; None: all.

    Raises:
        ConfigError: No record of the mixture does.
    """
    count = sum(len(entry.records) for entry in mixture.entries)
    if count <= _LOOKED_AT:
        records = (entry.records[number] for entry in mixture.entries for number in range(len(entry.records)))
    else:
        records = (mixture[position].record for position in range(_LOOKED_AT))
    if any(_asks_about_a_place(record, most_turns) for record in records):
        return []
    what = "names a place in a single image (a box, a point or a cell of a grid), so that the loss guide is 0"
    if count <= _LOOKED_AT:
        raise ConfigError(
            f"no question of the {count:,} records {what} throughout",
            where="objective.guide.weight",
            fix="leave it at 0, or compile data with such questions (--task cell=1)",
        )
    return [f"objective.guide.weight: no question of the first {_LOOKED_AT:,} records {what} there"]


def _asks_about_a_place(record: InstructionRecord, most_turns: int | None) -> bool:
    turns = record.turns[:most_turns]
    return len(record.images) == 1 and any(asked_place(turn.question) is not None for turn in turns)


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
