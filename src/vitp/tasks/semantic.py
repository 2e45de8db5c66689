"""Semantic segmentation: the class of each pixel.

Shapes: B images, K classes, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from torch import Tensor

from vitp.metrics.classification import confusion_matrix
from vitp.metrics.results import Scores
from vitp.metrics.segmentation import segmentation_scores, surface_distance
from vitp.models.backbone import Backbone
from vitp.models.pyramid import Pyramid
from vitp.records.labels import LabelledSet
from vitp.tasks.base import TestSettings
from vitp.tasks.data import LabelReader
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

    def __init__(
        self, pyramid: Pyramid, classes: Sequence[str], settings: DecoderSettings | None = None
    ) -> None:
        channels = (pyramid.channels,) * len(pyramid.strides)
        super().__init__(classes, channels, settings or DecoderSettings())
        self.pyramid = pyramid

    @property
    def backbone(self) -> Backbone:
        """The pyramid's backbone."""
        return self.pyramid.backbone

    def maps(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> list[Tensor]:
        """Return the pyramid's maps of uint8 images."""
        return self.pyramid(self.backbone.normalize(images_BCHW))


def evaluate(model: SegmentationModel, labelled: LabelledSet, settings: TestSettings) -> Scores:
    """Return the scores of a model on labelled images, pixel by pixel at the size of each image.

    Raises:
        DataError: A label doesn't fit its image or the model's classes.
    """
    reader = LabelReader(labelled, "semantic", model.classes)
    confusions, distances = [], []
    for _, sample, prediction in predictions_of(model, reader, settings):
        assert prediction.semantic_HW is not None and sample.semantic_HW is not None
        confusions.append(
            confusion_matrix(prediction.semantic_HW.long(), sample.semantic_HW.long(), len(model.classes))
        )
        if settings.surface:
            guess_HW, truth_HW = prediction.semantic_HW.numpy(), sample.semantic_HW.numpy()
            distances.append(surface_distance(guess_HW, truth_HW, len(model.classes)))
    return segmentation_scores(
        np.stack(confusions), model.classes, hd95_NC=np.stack(distances) if distances else None
    )
