"""Supervised pretraining by the class of each pixel, over several folders whose classes are joined by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from vitp.core.errors import ConfigError
from vitp.data.augment import MaskAugmentation
from vitp.data.mixture import Mixture
from vitp.data.permutation import Permutation
from vitp.objectives.dense import DenseBatch, DenseObjective, dense_batches
from vitp.objectives.image_base import (
    backward_factor,
    folders_of,
    mixture_of,
    save_tower,
    seeded_tower,
    tower_flops,
)
from vitp.objectives.image_rows import ImageRows
from vitp.objectives.settings import ObjectiveParts, ObjectiveSettings, RunSettings
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet


class DenseSettings(ObjectiveSettings):
    """The class of each pixel, from a linear layer on the patch tokens (see `vitp.objectives.dense`)."""

    former_keys: ClassVar[Mapping[str, str]] = {"dense": ""}

    name: Literal["dense"] = "dense"
    """The class of each pixel."""
    presence: bool = False
    """Learn which object classes are in the image, too."""
    head: Literal["linear", "conv"] = "linear"
    """On patch tokens, or a light decoder."""
    crop: float = Field(0.6, gt=0, le=1)
    """Smallest share of the short side that a square crop keeps."""
    photometric: float = Field(0.2, ge=0, le=1)
    """Strength of brightness, contrast and channel changes."""

    def build(self, run: RunSettings, *, steps: int, micro_batches: int) -> ObjectiveParts:
        """Return the objective over the images with masks."""
        tower = seeded_tower(run)
        rows = [one.having(lambda item: item.semantic is not None, "masks") for one in folders_of(run)]
        images = mixture_of(run, rows)
        merged = merged_set(rows, images)
        source = dense_batches(
            merged,
            run.data.global_batch,
            run.seed,
            size=tower.image_size[0],
            micro_batches=micro_batches,
            augment=MaskAugmentation(crop=self.crop, photometric=self.photometric),
            presence=self.presence,
        )
        objective = DensePretraining(
            tower,
            merged.semantic_classes,
            head=self.head,
            presence_classes=merged.object_classes if self.presence else (),
        )
        return ObjectiveParts(objective, source, images.describe())


class DensePretraining(DenseObjective):
    """`DenseObjective` as pretraining: only the tower is saved, as an export, and its cost is counted."""

    def work(self, batch: DenseBatch) -> dict[str, float]:
        """Return images and the FLOPs of the tower's forward and backward pass; the heads' are left out."""
        flops = tower_flops(self.tower, len(batch.tiles_BCHW), self.tower.grid**2)
        return {**super().work(batch), "flops": backward_factor(self.tower) * flops}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tower as an export."""
        save_tower(Path(folder), self.tower)


@dataclass(frozen=True)
class RenamedMask:
    """A mask whose class numbers are those of another list of classes. A class of its own, so that workers get it.

    Attributes:
        mask: Reads the mask.
        numbers: New number of each class.
    """

    mask: Any
    numbers: tuple[int, ...]

    def __call__(self) -> np.ndarray:
        """Return the mask (H, W) uint8."""
        table = np.full(256, IGNORE, np.uint8)
        table[: len(self.numbers)] = self.numbers
        return table[self.mask()]


def merged_set(sets: Sequence[ImageRows], mixture: Mixture[LabelledImage]) -> LabelledSet:
    """Return one epoch of a mixture as one labelled set, classes joined by name.

    Args:
        sets: Of the mixture.
        mixture: Says how often an image comes, and in which order.

    Raises:
        ConfigError: There are fewer than two semantic classes.
    """
    labelled = [one.labelled for one in sets]
    semantic = tuple(dict.fromkeys(name for one in labelled for name in one.semantic_classes))
    if len(semantic) < 2:
        raise ConfigError(
            f"{len(semantic)} semantic classes can't be told apart",
            where="data.mixture",
            fix="use sets with masks",
        )
    items: list[LabelledImage] = []
    for one, entry in zip(labelled, mixture.entries, strict=True):
        numbers = tuple(semantic.index(name) for name in one.semantic_classes)
        order = Permutation(len(one), mixture.seed, one.name)
        for number in range(entry.per_epoch):
            item = one.items[order[number % len(one)]]
            mask = None if item.semantic is None else RenamedMask(item.semantic, numbers)
            items.append(replace(item, id=f"{one.name}/{item.id}", semantic=mask))
    return LabelledSet(
        name="+".join(one.name for one in labelled),
        items=items,
        object_classes=tuple(dict.fromkeys(name for one in labelled for name in one.object_classes)),
        semantic_classes=semantic,
    )
