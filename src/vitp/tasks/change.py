"""Change detection: what differs between two dates of one place.

Both dates go through the same backbone (Siamese); their maps are put together level by level and decoded as in
segmentation.

Shapes: B pairs, H × W pixels, C channels, h × w cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from vitp.core.config import SettingsModel
from vitp.core.errors import ConfigError
from vitp.metrics.classification import confusion_matrix
from vitp.metrics.results import Scores
from vitp.metrics.segmentation import change_scores
from vitp.models.pyramid import Pyramid
from vitp.records.labels import LabelledSet
from vitp.tasks.base import LabelKind, TestSettings
from vitp.tasks.data import CHANGE_CLASSES, label_reader
from vitp.tasks.dense import DecodedModel, DecoderSettings
from vitp.tasks.predict import predictions_of

Fusion = Literal["concatenate", "difference", "both"]


class ChangeSettings(DecoderSettings):
    """Decoder, losses and how the dates meet."""

    fusion: Fusion = "concatenate"
    """`concatenate` the channels of both dates (the paper's), the absolute `difference`, or `both`."""


def fuse(before_BChw: Tensor, after_BChw: Tensor, fusion: Fusion) -> Tensor:
    """Return the maps of two dates as one, with once, twice or three times their channels."""
    if fusion == "concatenate":
        return torch.cat([before_BChw, after_BChw], dim=1)
    difference_BChw = (after_BChw - before_BChw).abs()
    if fusion == "difference":
        return difference_BChw
    return torch.cat([before_BChw, after_BChw, difference_BChw], dim=1)


class ChangeModel(DecodedModel):
    """Change detection; see `DecodedModel`.

    Args:
        pyramid: Backbone with maps; both dates go through it.
        classes: Not asked for: a change map's are always "unchanged" and "changed".
        settings: Decoder, losses and fusion; None: UperNet on concatenated maps.
    """

    name: ClassVar[str] = "change"
    kind: ClassVar[LabelKind] = "change"
    head_settings: ClassVar[type[SettingsModel]] = ChangeSettings

    def __init__(
        self,
        pyramid: Pyramid,
        classes: Sequence[str] = CHANGE_CLASSES,
        settings: ChangeSettings | None = None,
    ) -> None:
        settings = settings or ChangeSettings()
        times = {"concatenate": 2, "difference": 1, "both": 3}[settings.fusion]
        super().__init__(CHANGE_CLASSES, (times * pyramid.channels,) * len(pyramid.strides), settings)
        self.pyramid, self.fusion = pyramid, settings.fusion

    def maps(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> list[Tensor]:
        """Return the fused maps of two dates.

        Raises:
            ConfigError: There is no second date.
        """
        if later_BCHW is None:
            raise ConfigError("needs two dates of each place", where="change", fix="give pairs of images")
        # One pass over both dates: twice the batch, once the overhead.
        dates_DCHW = torch.cat([images_BCHW, later_BCHW])
        levels = self.pyramid(self.backbone.normalize(dates_DCHW))
        dates = [level.unflatten(0, (2, -1)).unbind() for level in levels]
        return [fuse(before_BChw, after_BChw, self.fusion) for before_BChw, after_BChw in dates]

    def evaluate(self, labelled: LabelledSet, settings: TestSettings) -> Scores:
        """Return F1, IoU, precision and recall of the change class over all pixels; see `TaskModel.evaluate`."""
        reader = label_reader(self, labelled, "change", settings)
        confusion_CC = np.zeros((2, 2), np.int64)
        for _, sample, prediction in predictions_of(self, reader, settings):
            assert prediction.semantic_HW is not None and sample.semantic_HW is not None
            confusion_CC += confusion_matrix(prediction.semantic_HW.long(), sample.semantic_HW.long(), 2)
        return change_scores(confusion_CC, images=len(labelled))
