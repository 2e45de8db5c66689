"""Task models as graphs of fixed shapes: one tensor of pictures in, tables and maps out.

| task | outputs |
|---|---|
| classification | `probabilities` (B, C): softmax, or with several labels an image sigmoid |
| segmentation, change | `probabilities` (B, K, H, W): softmax |
| detection | `detections` (B, 4 + C, R): centre x and y, width, height, scores |
| instance | `detections` (B, 4 + C, M), and `masks` (B, M, P, P) of their classes on 0..1 |
| instance, head eomt; panoptic | `classes` (B, Q, C): softmax, and `masks` (B, Q, h, w): logits, of whole patches |
| oriented | `detections` (B, 4 + C + 1, N): centre x and y, longer and shorter side, scores, angle |

A detection transformer has the tables of detection or oriented, with a row for each query and nothing to suppress.

The input is `image`, float32 on 0..1 (8-bit values / 255); the normalisation is part of the graph. Both dates of change
are one image of twice the channels. Scores of detections come before the suppression of overlapping rows; masks of
queries need none.

Shapes: B images, H × W pixels, C classes, K classes of pixels, R, N, M rows, Q queries, h × w cells.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vitp.models.plain_vit import PlainViT
from vitp.models.pyramid import pad_to_multiple
from vitp.models.static.detectors import StaticOriented, StaticRCNN
from vitp.models.static.positions import fix_positions
from vitp.tasks.base import TaskModel
from vitp.tasks.classification import ClassificationModel
from vitp.tasks.dense import DenseModel
from vitp.tasks.detection import DetectionModel
from vitp.tasks.detr import DETRModel
from vitp.tasks.eomt import QueryInstances
from vitp.tasks.oriented import OrientedRCNN
from vitp.tasks.panoptic import QueryPanoptic


class TaskGraph(nn.Module):
    """A task model for images of one size; see the top of this file.

    Args:
        model: A copy of it is kept, on the CPU in float32.
        size: Height and width of the images.
        proposals: Of detectors: regions that the last stage looks at, or queries; None: as many as the model keeps at
            test.

    Attributes:
        outputs: Names of what `forward` returns.
        channels: Channels of the input.
    """

    def __init__(self, model: TaskModel, size: tuple[int, int], proposals: int | None = None) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        self.size, self.pairs = size, model.name == "change"
        self.channels = model.backbone.num_channels * (2 if self.pairs else 1)
        self.table: nn.Module | None = None
        self.proposals = proposals
        blank_1CHW = torch.zeros(1, self.channels, *size)
        backbone = self.model.backbone
        with torch.no_grad():
            if isinstance(backbone, PlainViT):
                fix_positions(backbone, lambda: self(blank_1CHW))
            if isinstance(self.model, DetectionModel):
                self.table = StaticRCNN(self.model.head, self.model.levels(blank_1CHW), size, proposals)
            elif isinstance(self.model, OrientedRCNN):
                heads = self.model.proposals, self.model.boxes
                self.table = StaticOriented(*heads, self.model.levels(blank_1CHW), size, proposals)
        self.outputs: tuple[str, ...] = ("probabilities",)
        if isinstance(self.model, QueryInstances | QueryPanoptic):
            self.outputs = ("classes", "masks")
        elif isinstance(self.model, DETRModel):
            self.outputs = ("detections",)
        elif self.table is not None:
            self.outputs = ("detections", "masks") if model.name == "instance" else ("detections",)
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs; see the top of this file.

        Args:
            image: (B, channels, H, W) float32 on 0..1.
        """
        model = self.model
        if isinstance(model, ClassificationModel):
            normalised_BCHW = model.tower.normalize(image)
            padded_BCHW = pad_to_multiple(normalised_BCHW, model.tower.strides[-1])
            (map_BDhw,) = model.tower.forward_features(padded_BCHW)
            # All cells count: padding is narrower than a cell, so each holds a part of the image.
            logits_BK = model.head(map_BDhw.mean((2, 3))).float()
            return (logits_BK.sigmoid() if model.settings.multi_label else logits_BK.softmax(1),)
        if isinstance(model, DenseModel):
            dates = image.chunk(2, dim=1) if self.pairs else (image, None)
            return (model.shares(dates[0], dates[1]),)
        if isinstance(model, QueryInstances | QueryPanoptic):
            found = model.outputs(image)[-1]
            return found.class_BQC.softmax(2)[..., :-1], found.mask_BQhw
        if isinstance(model, DETRModel):
            return (model.head.rows(model.levels(image), self.size, self.proposals),)
        assert isinstance(model, DetectionModel | OrientedRCNN)
        maps = model.levels(image)
        outputs: tuple[Tensor, ...] = tuple(maps) if self.table is None else self.table(maps)
        return outputs
