"""Semantic segmentation: the class of each pixel.

Shapes: B images, K classes, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from torch import Tensor

from vitp.metrics.boundary import BoundaryCounts
from vitp.metrics.cases import CaseScorer, has_cases, with_cases
from vitp.metrics.classification import confusion_matrix
from vitp.metrics.panoptic import PanopticCounts
from vitp.metrics.results import Scores
from vitp.metrics.segmentation import segmentation_scores, surface_distance
from vitp.models.pyramid import Pyramid
from vitp.records.labels import LabelledSet
from vitp.tasks.base import LabelKind, TestSettings
from vitp.tasks.data import label_reader
from vitp.tasks.dense import DecodedModel, DecoderSettings, DenseModel
from vitp.tasks.predict import predictions_of

MAP_MEASURES: dict[str, type[BoundaryCounts] | type[PanopticCounts]] = {
    "boundary": BoundaryCounts,
    "panoptic": PanopticCounts,
}
"""What `TestSettings.measures` adds of class maps."""


class SegmentationModel(DecodedModel):
    """Semantic segmentation; see `DecodedModel`.

    Args:
        pyramid: Backbone with maps.
        classes: Names, in the order of the mask's values.
        settings: Decoder and losses; None: UperNet.
    """

    name: ClassVar[str] = "segmentation"
    kind: ClassVar[LabelKind] = "semantic"

    def __init__(
        self, pyramid: Pyramid, classes: Sequence[str], settings: DecoderSettings | None = None
    ) -> None:
        channels = (pyramid.channels,) * len(pyramid.strides)
        super().__init__(classes, channels, settings or DecoderSettings())
        self.pyramid = pyramid

    def maps(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> list[Tensor]:
        """Return the pyramid's maps of uint8 images."""
        maps: list[Tensor] = self.pyramid(self.backbone.normalize(images_BCHW))
        return maps

    def evaluate(self, labelled: LabelledSet, settings: TestSettings) -> Scores:
        """Return mIoU and the like; see `evaluate_pixels`."""
        return evaluate_pixels(self, labelled, settings)


def evaluate_pixels(model: DenseModel, labelled: LabelledSet, settings: TestSettings) -> Scores:
    """Return mIoU and the like over all pixels, and scores by case where images have a spacing.

    Args:
        model: Model of semantic segmentation.
        labelled: Set with masks.
        settings: How the model is applied.
    """
    reader = label_reader(model, labelled, "semantic", settings)
    confusions, distances, cases = [], [], None
    added = [MAP_MEASURES[name](len(model.classes)) for name in settings.measures]
    if settings.surface is not False and has_cases(labelled.items):
        cases = CaseScorer(labelled.items, model.classes, settings.tolerance)
        # Slices of one volume after the other, so that no two volumes are in memory.
        reader = replace(reader, labelled=replace(labelled, items=cases.in_order()))
    for item, sample, prediction in predictions_of(model, reader, settings):
        assert prediction.semantic_HW is not None and sample.semantic_HW is not None
        guess_HW, truth_HW = prediction.semantic_HW, sample.semantic_HW
        confusions.append(confusion_matrix(guess_HW.long(), truth_HW.long(), len(model.classes)))
        for measure in added:
            measure.add_map(guess_HW.numpy(), truth_HW.numpy())
        if cases is not None:
            cases.add(item, guess_HW.numpy(), truth_HW.numpy())
        elif settings.surface:
            distances.append(surface_distance(guess_HW.numpy(), truth_HW.numpy(), len(model.classes)))
    hd95_NC = np.stack(distances) if distances else None
    scores = segmentation_scores(np.stack(confusions), model.classes, hd95_NC=hd95_NC)
    for measure in added:
        scores = measure.added_to(scores)
    return scores if cases is None else with_cases(scores, cases.scores, model.classes)
