"""Panoptic segmentation by mask queries (EoMT): each pixel is of one object, of one class of stuff, or unknown.

Shapes: B images, Q queries, C classes, N objects, S segments, H × W pixels, h × w cells of a mask.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from vitp.core.config import SettingsModel
from vitp.core.errors import ConfigError, DataError, did_you_mean
from vitp.core.tensors import present
from vitp.metrics.panoptic import OWN_SHARE, PanopticCounts, panoptic_scores
from vitp.metrics.results import Prediction, Scores, Target, difficult_of
from vitp.models.backbone import Backbone
from vitp.models.heads.mask_losses import MaskTruth
from vitp.models.heads.mask_queries import MaskOutputs, MaskQuerySettings
from vitp.models.heads.upernet import resize_map
from vitp.records.labels import IGNORE, LabelledSet
from vitp.runtime.segments import boxes_around, merged_segments, thing_numbers
from vitp.tasks.base import LabelKind, TestSettings, WholeImageModel
from vitp.tasks.data import label_reader
from vitp.tasks.dense import check_pixel_classes
from vitp.tasks.eomt import QueryModel
from vitp.tasks.predict import predictions_of


class PanopticSettings(MaskQuerySettings):
    """EoMT, whose queries are merged into one map of segments."""

    things: tuple[str, ...] | None = None
    """Classes whose segments are single objects; the others are stuff, of which an image has one segment a class.
    Finetuning takes those of which the set has objects, unless they are given."""
    least_score: float = Field(0.8, ge=0, le=1)
    """Probability of a query's class below which it is no segment."""
    least_share: float = Field(OWN_SHARE, ge=0, le=1)
    """Share of a query's mask that surer ones must leave to it."""


class QueryPanoptic(QueryModel, WholeImageModel):
    """Panoptic segmentation by mask queries: each object, and each class of stuff, is one mask; see `QueryModel`."""

    name: ClassVar[str] = "panoptic"
    kind: ClassVar[LabelKind] = "panoptic"
    head_settings: ClassVar[type[SettingsModel]] = PanopticSettings

    def __init__(
        self, backbone: Backbone, classes: Sequence[str], settings: PanopticSettings | None = None
    ) -> None:
        check_pixel_classes(len(classes))
        settings = settings or PanopticSettings()
        if settings.things is None:
            what = "isn't known: which classes are single objects"
            raise ConfigError(what, where="head.things", fix="name them; the others are stuff")
        for name in settings.things:
            if name not in classes:
                fix = did_you_mean(name, list(classes)) or f"classes are {', '.join(list(classes)[:8])}"
                raise ConfigError(f'there is no class "{name}"', where="head.things", fix=fix)
        super().__init__(backbone, classes, settings)
        self.merging = settings

    @property
    def things(self) -> tuple[str, ...]:
        """Classes whose segments are single objects."""
        return present(self.merging.things)

    @cached_property
    def thing_numbers(self) -> frozenset[int]:
        """Their numbers."""
        return thing_numbers(self.classes, self.things)

    def truth(self, target: Target) -> MaskTruth:
        """Return the masks of the objects and of the classes of stuff; the other pixels aren't known."""
        labels_S, masks_SHW = true_segments(target, self.thing_numbers)
        return MaskTruth(labels_S, masks_SHW.to(torch.uint8), masks_SHW.any(0))

    def count(self, target: Target) -> int:
        """Return how many they are."""
        return len(true_segments(target, self.thing_numbers)[0])

    def predict_batch(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> list[Prediction]:
        """Return the segments of each image; see `TaskModel.predict_batch`."""
        height, width = (int(side) for side in images_BCHW.shape[-2:])
        return self.segments(images_BCHW, [(height, width)] * len(images_BCHW))

    def segments(self, images_BCHW: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Prediction]:
        """Return the segments of each image; see `WholeImageModel.segments`."""
        found = self.outputs(images_BCHW.to(self.device))[-1]
        seen = (int(images_BCHW.shape[-2]), int(images_BCHW.shape[-1]))
        return [self._merged(found, place, seen, size) for place, size in enumerate(sizes)]

    def _merged(
        self, found: MaskOutputs, place: int, seen: tuple[int, int], size: tuple[int, int]
    ) -> Prediction:
        mask_Qhw, patch = found.mask_BQhw[place], self.tower.patch_size
        # The tower pads images to whole patches; the padding is cut off again before masks get the image's size.
        padded = (-(-seen[0] // patch) * patch, -(-seen[1] // patch) * patch)

        def mask_of(query: int) -> np.ndarray:
            logits_hw = resize_map(mask_Qhw[None, query : query + 1], padded)[..., : seen[0], : seen[1]]
            mask_HW: np.ndarray = resize_map(logits_hw.sigmoid(), size)[0, 0].cpu().numpy()
            return mask_HW

        merged = merged_segments(
            found.class_BQC[place].softmax(1)[:, :-1].cpu().numpy(),
            mask_of,
            size,
            things=self.thing_numbers,
            least_score=self.merging.least_score,
            least_share=self.merging.least_share,
        )
        labels_S = torch.from_numpy(merged.labels_S)
        return Prediction(
            boxes_N4=torch.from_numpy(boxes_around(merged.masks_SHW)),
            scores_N=torch.from_numpy(merged.scores_S),
            labels_N=labels_S,
            masks_NHW=torch.from_numpy(merged.masks_SHW),
            things_N=torch.tensor([label in self.thing_numbers for label in labels_S.tolist()]).bool(),
        )

    def evaluate(self, labelled: LabelledSet, settings: TestSettings) -> Scores:
        """Return panoptic quality, of things and of stuff apart, too.

        Raises:
            DataError: The set counts a class as stuff that is one of things to the model.
        """
        check_things(self.things, labelled)
        reader = label_reader(self, labelled, self.kind, settings)
        counts, images = PanopticCounts(len(self.classes)), 0
        for _, sample, prediction in predictions_of(self, reader, settings):
            target = reader.target(sample)
            labels_S, masks_SHW = true_segments(target, self.thing_numbers)
            truth_2HW = segment_map(labels_S, masks_SHW, self.thing_numbers)
            # As `vitp predict` writes them, whatever `least_score` lets through.
            kept_S = present(prediction.scores_N) >= settings.score_threshold
            labels_S, masks_SHW = present(prediction.labels_N)[kept_S], present(prediction.masks_NHW)[kept_S]
            guess_2HW = segment_map(labels_S, masks_SHW, self.thing_numbers)
            counts.add(guess_2HW, truth_2HW)
            images += 1
        return panoptic_scores(counts, self.classes, self.thing_numbers, images)


def check_things(things: Collection[str], labelled: LabelledSet) -> None:
    """Do nothing where a set tells the objects of each class of things apart.

    Raises:
        DataError: It doesn't.
    """
    for name in things:
        if name in labelled.semantic_classes and name not in labelled.object_classes:
            raise DataError(
                f'"{name}" is stuff in it, and the model finds single objects of this class',
                where=labelled.name,
                fix="choose a set with its objects, or train with head.things of this set",
            )


def true_segments(target: Target, things: Collection[int]) -> tuple[Tensor, Tensor]:
    """Return (S,) classes and (S, H, W) bool masks of what is labelled in an image; no two masks share a pixel.

    Where objects overlap, the smaller one lies above, and all of them above stuff. Of no segment, and so unknown, are
    pixels without a class, those of difficult objects and ignored places, and those of things that no object holds.

    Raises:
        ConfigError: The target lacks the objects' masks or the classes of pixels.
    """
    if target.semantic_HW is None or target.masks_NHW is None or target.labels_N is None:
        raise ConfigError(
            "an image lacks objects or the class of each pixel",
            where="panoptic",
            fix="train on a set that has both",
        )
    masks_NHW = target.masks_NHW > 0
    owner_HW = torch.full_like(target.semantic_HW, -1, dtype=torch.int64)
    # Largest first, so that smaller ones are written over them.
    for number in masks_NHW.flatten(1).sum(1).argsort(descending=True, stable=True).tolist():
        owner_HW[masks_NHW[number]] = number
    free_HW = owner_HW < 0
    if target.ignored_MHW is not None:
        free_HW &= ~(target.ignored_MHW > 0).any(0)
    semantic_HW = torch.where(free_HW, target.semantic_HW.long(), IGNORE)
    labels, masks = [], []
    difficult_N = difficult_of(target)
    for number, label in enumerate(target.labels_N.tolist()):
        own_HW = owner_HW == number
        if difficult_N[number] or not own_HW.any():
            continue
        if label not in things:  # of stuff, where the model takes it so
            semantic_HW[own_HW] = label
            continue
        labels.append(label)
        masks.append(own_HW)
    for label in semantic_HW.unique().tolist():
        if label != IGNORE and label not in things:
            labels.append(label)
            masks.append(semantic_HW == label)
    stacked = torch.stack(masks) if masks else torch.zeros((0, *owner_HW.shape), dtype=torch.bool)
    return torch.tensor(labels, dtype=torch.int64, device=owner_HW.device), stacked.to(owner_HW.device)


def segment_map(labels_S: Tensor, masks_SHW: Tensor, things: Collection[int]) -> np.ndarray:
    """Return segments that share no pixel as a panoptic map; see `vitp.metrics.panoptic`."""
    map_2HW = np.zeros((2, *masks_SHW.shape[-2:]), np.int64)
    map_2HW[0] = IGNORE
    for number, (label, mask_HW) in enumerate(
        zip(labels_S.tolist(), masks_SHW.cpu().numpy(), strict=True), 1
    ):
        map_2HW[:, mask_HW] = np.array([[label], [number if label in things else 0]])
    return map_2HW
