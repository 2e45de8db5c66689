"""SimCLR (Chen et al., 2020): two views of an image are to be alike, and unlike all other images of the step.

Shapes: B images, E width of the compared vectors, D width of the tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vitp.core.tensors import TensorFields
from vitp.data.augment import ViewSettings
from vitp.data.seen import PICTURES, SeenBands
from vitp.models.vision import VisionTower
from vitp.objectives.gathering import check_others, first_row, gather_rows, similarities
from vitp.objectives.image_base import (
    ImageObjective,
    folders_of,
    image_parts,
    mixture_of,
    seeded_tower,
    seen_by,
    told_apart,
)
from vitp.objectives.image_rows import (
    ImageCollate,
    ImageSamples,
    names_of,
    stacked,
    view_generator,
    view_maker,
)
from vitp.objectives.settings import ObjectiveParts, ObjectiveSettings, RunSettings


class SimCLRSettings(ObjectiveSettings):
    """Contrast of two views of an image."""

    former_keys: ClassVar[Mapping[str, str]] = {"simclr": ""}

    name: Literal["simclr"] = "simclr"
    """Contrast of two views of an image."""
    temperature: float = Field(0.1, gt=0, le=1000)
    """Divides the similarities."""
    hidden: int | None = Field(None, ge=8, le=65_536)
    """Width of the projection head's hidden layer; none: the tower's."""
    dimension: int = Field(128, ge=2, le=65_536)
    """Width of the compared vectors."""
    views: ViewSettings = Field(default_factory=lambda: ViewSettings(crop=(0.2, 1.0)))
    """How the two views of an image differ."""

    def build(self, run: RunSettings, *, steps: int, micro_batches: int) -> ObjectiveParts:
        """Return the objective over all images, both dates of a pair."""
        rows = told_apart(folders_of(run, both_dates=True))
        tower, images = seeded_tower(run), mixture_of(run, rows)
        collate = TwoViews(tower.image_size[0], self.views, seen_by(tower, run))
        return image_parts(run, SimCLRObjective(tower, self), images, collate, micro_batches)


@dataclass(frozen=True)
class TwoViewBatch(TensorFields):
    """Two views of each image.

    Attributes:
        views_2BCHW: uint8.
        record_names: Ids of the images, for messages.
    """

    views_2BCHW: Tensor
    record_names: tuple[str, ...]

    @property
    def tiles_BCHW(self) -> Tensor:
        """The first view of each image."""
        return self.views_2BCHW[0]


@dataclass(frozen=True)
class TwoViews(ImageCollate[TwoViewBatch]):
    """Makes a `TwoViewBatch` of views of `size` pixels."""

    size: int
    views: ViewSettings
    seen: SeenBands = PICTURES

    def __call__(self, samples: ImageSamples, step: int) -> TwoViewBatch:
        """Return the batch of some images."""
        first, second = [], []
        for sample in samples:
            view, rng = view_maker(sample, self.seen), view_generator(sample)
            first.append(view(self.size, self.views, rng)[0])
            second.append(view(self.size, self.views, rng)[0])
        views_2BCHW = torch.stack([stacked(first), stacked(second)])
        return TwoViewBatch(views_2BCHW, names_of(samples))

    def describe(self) -> Mapping[str, Any]:
        """Return what decides the batch."""
        return {"size": self.size, "views": self.views.model_dump(mode="json")}


def projection_head(width: int, hidden: int, dimension: int) -> nn.Sequential:
    """Return the head in front of a contrastive loss.

    Layer norm where the publication has batch norm: images stay independent of each other, so that micro-batches
    and ranks don't change the features.
    """
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, dimension)
    )


def nt_xent(first_BE: Tensor, second_BE: Tensor, temperature: float) -> Tensor:
    """Return the summed normalised-temperature cross-entropy of this rank's images.

    Each view is to find its partner among all views of all ranks but itself; an image's loss is the mean of its two
    views' losses.

    Args:
        first_BE: Unit vectors of the first views.
        second_BE: Of the second views.
        temperature: Divides the similarities.

    Raises:
        ConfigError: There is no other image.
    """
    own = torch.cat([first_BE, second_BE])
    rows, images = len(own), len(first_BE)
    own_index = first_row(rows) + torch.arange(rows, device=own.device)
    # All first views stand before all second ones, so a view's partner is half of this rank's rows away.
    partner = first_row(rows) + (torch.arange(rows, device=own.device) + images) % rows
    logits = similarities(own, gather_rows(own)) / temperature
    check_others(logits.shape[1] // 2, "images")
    logits = logits.scatter(1, own_index[:, None], float("-inf"))
    return F.cross_entropy(logits, partner, reduction="sum") / 2


class SimCLRObjective(ImageObjective):
    """Contrast of two views of each image against all other images of the micro-batch on all ranks.

    Args:
        tower: The vision tower.
        config: Head and temperature.
    """

    def __init__(self, tower: VisionTower, config: SimCLRSettings) -> None:
        super().__init__(tower)
        self.config = config
        self.project = projection_head(tower.width, config.hidden or tower.width, config.dimension)

    def forward(self, batch: TwoViewBatch) -> dict[str, Tensor]:
        """Return {"contrast": sum over the images}."""
        vectors = F.normalize(self.project(self.pooled(batch.views_2BCHW.flatten(0, 1))).float(), dim=-1)
        first_BE, second_BE = vectors.chunk(2)
        return {"contrast": nt_xent(first_BE, second_BE, self.config.temperature)}

    def loss_counts(self, batch: TwoViewBatch) -> dict[str, float]:
        """Return {"contrast": number of images}."""
        return {"contrast": float(len(batch.tiles_BCHW))}

    def work(self, batch: TwoViewBatch) -> dict[str, float]:
        """Return images, views and the FLOPs of forward and backward pass."""
        return self.work_of(len(batch.tiles_BCHW), views=2, heads=[self.project])
