"""Semantic segmentation: the class of each pixel.

Shapes: B images, K classes, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from torch import Tensor

from vitp.metrics.cases import CaseScorer, has_cases, with_cases
from vitp.metrics.classification import confusion_matrix
from vitp.metrics.results import Scores
from vitp.metrics.segmentation import segmentation_scores, surface_distance
from vitp.models.pyramid import Pyramid
from vitp.records.labels import LabelledSet
from vitp.tasks.base import LabelKind, TestSettings
from vitp.tasks.data import label_reader
from vitp.tasks.dense import DecoderSettings, DenseModel
from vitp.tasks.predict import predictions_of


class SegmentationModel(DenseModel):
    """Semantic segmentation; see `DenseModel`.

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
        """Return mIoU and the like over all pixels, and scores by case where images have a spacing."""
        reader = label_reader(self, labelled, "semantic", settings)
        confusions, distances, cases = [], [], None
        if settings.surface is not False and has_cases(labelled.items):
            cases = CaseScorer(labelled.items, self.classes, settings.tolerance)
            reader = replace(reader, labelled=replace(labelled, items=cases.in_order()))
        for item, sample, prediction in predictions_of(self, reader, settings):
            assert prediction.semantic_HW is not None and sample.semantic_HW is not None
            guess_HW, truth_HW = prediction.semantic_HW, sample.semantic_HW
            confusions.append(confusion_matrix(guess_HW.long(), truth_HW.long(), len(self.classes)))
            if cases is not None:
                cases.add(item, guess_HW.numpy(), truth_HW.numpy())
            elif settings.surface:
                distances.append(surface_distance(guess_HW.numpy(), truth_HW.numpy(), len(self.classes)))
        hd95_NC = np.stack(distances) if distances else None
        scores = segmentation_scores(np.stack(confusions), self.classes, hd95_NC=hd95_NC)
        return scores if cases is None else with_cases(scores, cases.scores, self.classes)
