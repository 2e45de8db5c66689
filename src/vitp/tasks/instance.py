"""Instance segmentation: Mask R-CNN and Cascade Mask R-CNN.

Shapes: N objects of an image, M × M cells of a mask, H × W pixels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from vitp.metrics.results import Prediction
from vitp.models.heads.cascade import Found
from vitp.models.heads.mask import paste_masks
from vitp.tasks.base import LabelKind
from vitp.tasks.detection import DetectionModel


class InstanceModel(DetectionModel):
    """A detector with a mask head; see `DetectionModel` and `RCNN`.

    It has one more loss, `mask`: binary cross-entropy over the cells of regions that hold an object, averaged
    over an image's regions, then over the images with objects.
    """

    name: ClassVar[str] = "instance"
    kind: ClassVar[LabelKind] = "instances"
    with_masks: ClassVar[bool] = True

    def _prediction(self, found: Found, masks_NMM: Tensor | None, size: tuple[int, int]) -> Prediction:
        assert masks_NMM is not None
        masks_NHW = paste_masks(masks_NMM.cpu(), found.boxes_N4.float(), size)
        return replace(super()._prediction(found, None, size), masks_NHW=masks_NHW)
