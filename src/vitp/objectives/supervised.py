"""Supervised pretraining: the class of the image, and the object classes in it.

Shapes: B images, D width of the tower, S scene classes, K object classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vitp.core.errors import ConfigError
from vitp.core.tensors import TensorFields
from vitp.data.augment import ViewSettings
from vitp.data.ignored import UNLABELLED, presence_of
from vitp.data.mixture import Sample
from vitp.data.seen import PICTURES, SeenBands
from vitp.models.vision import VisionTower
from vitp.objectives.dense import LinearHead, presence_loss
from vitp.objectives.image_base import (
    ImageObjective,
    folders_of,
    image_parts,
    mixture_of,
    seeded_tower,
    seen_by,
)
from vitp.objectives.image_rows import (
    ImageCollate,
    ImageRows,
    ImageSamples,
    names_of,
    stacked,
    view_generator,
    view_maker,
)
from vitp.objectives.settings import ObjectiveParts, ObjectiveSettings, RunSettings
from vitp.records.labels import LabelledImage


class SupervisedSettings(ObjectiveSettings):
    """Classification."""

    former_keys: ClassVar[Mapping[str, str]] = {"supervised": ""}

    name: Literal["supervised"] = "supervised"
    """Classification of the image."""
    labels: Literal["scene", "presence", "both"] = "both"
    """Which labels are learned: the scene class, which object classes are there, or both where they exist."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the scene's target that is spread evenly over the classes."""
    views: ViewSettings = Field(
        default_factory=lambda: ViewSettings(crop=(0.5, 1.0), colour=0.2, hue=0, grey=0, blur=0)
    )
    """How the images change. An object counts as present when its centre is in the crop."""

    def build(self, run: RunSettings, *, steps: int, micro_batches: int) -> ObjectiveParts:
        """Return the objective over the images with such labels."""
        tower, rows = seeded_tower(run), folders_of(run)
        classes = ClassNames.of(rows, self.labels)
        rows = [one.having(classes.labelled, "class labels") for one in rows]
        known = tuple(one.labelled.object_classes for one in rows)
        collate = LabelledViews(tower.image_size[0], self.views, classes, known, seen_by(tower, run))
        objective = SupervisedObjective(tower, classes, label_smoothing=self.label_smoothing)
        return image_parts(run, objective, mixture_of(run, rows), collate, micro_batches)


@dataclass(frozen=True)
class ClassNames:
    """The classes of all sets of a mixture; sets share a class when they call it the same."""

    scenes: tuple[str, ...]
    objects: tuple[str, ...]

    @classmethod
    def of(cls, sets: Sequence[ImageRows], labels: str = "both") -> ClassNames:
        """Return the classes that are to be learned.

        Raises:
            ConfigError: The sets have fewer than two scene classes and no object class.
        """
        scenes = dict.fromkeys(name for one in sets for name in one.labelled.scene_classes)
        objects = dict.fromkeys(name for one in sets for name in one.labelled.object_classes)
        names = cls(
            # One class alone can't be told from anything.
            tuple(scenes) if labels != "presence" and len(scenes) > 1 else (),
            tuple(objects) if labels != "scene" else (),
        )
        if not names.scenes and not names.objects:
            raise ConfigError(
                "the sets have no such classes to learn", where="objective.labels", fix="choose other labels"
            )
        return names

    def labelled(self, item: LabelledImage) -> bool:
        """Return whether an image has a label of these classes."""
        return bool((self.scenes and item.scene is not None) or (self.objects and item.objects is not None))


@dataclass(frozen=True)
class ClassBatch(TensorFields):
    """Images with their classes.

    Attributes:
        tiles_BCHW: uint8.
        scene_B: Scene class, int64; −1 where unknown.
        presence_BK: 1 where an object class is in the view, 0 where it isn't, −1 where unknown; int8.
        record_names: Ids of the images, for messages.
    """

    tiles_BCHW: Tensor
    scene_B: Tensor
    presence_BK: Tensor
    record_names: tuple[str, ...]


@dataclass(frozen=True)
class LabelledViews(ImageCollate[ClassBatch]):
    """Makes a `ClassBatch`.

    Attributes:
        size: Side of the views in pixels.
        views: How the images change.
        classes: What is learned.
        known: Object classes of each set: an image can't lack a class that nobody labelled in its set.
        seen: How images are read.
    """

    size: int
    views: ViewSettings
    classes: ClassNames
    known: tuple[tuple[str, ...], ...]
    seen: SeenBands = PICTURES

    def __call__(self, samples: ImageSamples, step: int) -> ClassBatch:
        """Return the batch of some images."""
        made, presences, scenes = [], [], []
        place = {name: index for index, name in enumerate(self.classes.scenes)}
        for sample in samples:
            view, window = view_maker(sample, self.seen)(self.size, self.views, view_generator(sample))
            made.append(view)
            scenes.append(place.get(sample.record.scene or "", UNLABELLED))
            presences.append(self._presence(sample, window))
        return ClassBatch(
            stacked(made),
            torch.tensor(scenes, dtype=torch.int64),
            torch.from_numpy(np.stack(presences)),
            names_of(samples),
        )

    def _presence(self, sample: Sample[LabelledImage], window: tuple[float, ...]) -> np.ndarray:
        item = sample.record
        presence_K = presence_of(item.objects, self.classes.objects, window, item.ignored)
        known = self.known[sample.entry]
        foreign = [number for number, name in enumerate(self.classes.objects) if name not in known]
        # Nobody looked for these in that set, so it doesn't say that they are absent.
        presence_K[foreign] = UNLABELLED
        return presence_K

    def describe(self) -> Mapping[str, Any]:
        """Return what decides the batch."""
        return {
            "size": self.size,
            "views": self.views.model_dump(mode="json"),
            "classes": [self.classes.scenes, self.classes.objects],
        }


class SupervisedObjective(ImageObjective):
    """Classification of the mean patch token.

    `scene`: cross-entropy over the scene classes, mean over the images that have one. `presence`: binary
    cross-entropy for each object class, mean over the entries that are known.

    Args:
        tower: The vision tower.
        classes: What is learned.
        label_smoothing: See `SupervisedSettings`.
    """

    def __init__(self, tower: VisionTower, classes: ClassNames, *, label_smoothing: float = 0.0) -> None:
        super().__init__(tower)
        self.classes, self.label_smoothing = classes, label_smoothing
        self.scene_head = LinearHead(tower.width, len(classes.scenes)) if classes.scenes else None
        self.presence_head = LinearHead(tower.width, len(classes.objects)) if classes.objects else None

    def forward(self, batch: ClassBatch) -> dict[str, Tensor]:
        """Return name → sum over the known labels."""
        features_BD = self.pooled(batch.tiles_BCHW)
        losses = {}
        if self.scene_head is not None:
            losses["scene"] = F.cross_entropy(
                self.scene_head(features_BD).float(),
                batch.scene_B,
                ignore_index=UNLABELLED,
                reduction="sum",
                label_smoothing=self.label_smoothing,
            )
        if self.presence_head is not None:
            losses["presence"] = presence_loss(self.presence_head(features_BD), batch.presence_BK)
        return losses

    def loss_counts(self, batch: ClassBatch) -> dict[str, float]:
        """Return name → number of known labels."""
        counts = {}
        if self.scene_head is not None:
            counts["scene"] = float((batch.scene_B != UNLABELLED).sum())
        if self.presence_head is not None:
            counts["presence"] = float((batch.presence_BK != UNLABELLED).sum())
        return counts

    def work(self, batch: ClassBatch) -> dict[str, float]:
        """Return images and the FLOPs of forward and backward pass."""
        return self.work_of(len(batch.tiles_BCHW), heads=[self.scene_head, self.presence_head])
