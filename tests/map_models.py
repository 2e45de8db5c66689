"""Rasters for tests: written by rasterio, in three reference systems, and models whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import rasterio
import torch
from rasterio import Affine
from torch import Tensor, nn

from vitp.metrics.results import Prediction, Scores
from vitp.models.backbone import Backbone
from vitp.records.channels import Channel, Channels
from vitp.records.labels import LabelledSet
from vitp.tasks.base import TaskBatch, TaskModel, TestSettings
from vitp.tasks.dense import DecodedModel, DecoderSettings

PLACES = {
    "utm": ("EPSG:32633", Affine(10, 0, 500_000, 0, -10, 5_200_000)),
    "rotated": (
        "EPSG:32633",
        Affine(9.2, 3.9, 500_000, 3.9, -9.2, 5_200_000),
    ),
    "degrees": ("EPSG:4326", Affine(1e-4, 0, 11.5, 0, -1e-4, 48.2)),
    "polar": ("EPSG:3413", Affine(25, 0, -300_000, 0, -25, -1_200_000)),
}
"""Name → reference system and transform."""


def write_raster(
    path: Path,
    values_CHW: np.ndarray,
    place: str | None = "utm",
    *,
    nodata: float | None = None,
    names: Sequence[str] = (),
    transform: Affine | None = None,
    tile: int = 32,
    compress: str | None = None,
) -> Path:
    """Write a tiled GeoTIFF of any bands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    crs, own = PLACES[place] if place else (None, None)
    profile = {"driver": "GTiff", "dtype": values_CHW.dtype, "nodata": nodata, "crs": crs}
    profile |= {"compress": compress} if compress else {}
    if transform or own:
        profile["transform"] = transform or own
    count, height, width = values_CHW.shape
    with rasterio.open(
        path,
        "w",
        count=count,
        height=height,
        width=width,
        tiled=True,
        blockxsize=tile,
        blockysize=tile,
        **profile,
    ) as file:
        file.write(values_CHW)
        for number, name in enumerate(names, 1):
            file.set_band_description(number, name)
    return path


def channels_of(*bands: str, high: float = 1000.0) -> Channels:
    """Return channels of bands, all scaled alike."""
    return Channels(channels=tuple(Channel(band=band, low=0, high=high) for band in bands))


class PlainBackbone(Backbone):
    """Nothing but what a model asks for."""

    image_size, mean, std = (32, 32), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    num_layers, channels, strides = 1, (3,), (1,)

    def forward_features(self, image_BCHW: Tensor, layers: Sequence[int] = (-1,)) -> list[Tensor]:
        return [image_BCHW]


class BrightestBand(DecodedModel):
    """Classifies each pixel by its largest value, and counts the windows that it has seen."""

    name: ClassVar[str] = "segmentation"

    def __init__(
        self, classes: Sequence[str] = ("background", "water", "wood"), channels: Channels | None = None
    ):
        super().__init__(classes, (len(classes),), DecoderSettings(kind="linear", auxiliary=0))
        self.decoder = nn.Identity()
        self.plain = PlainBackbone()
        self.plain.in_channels = channels
        self.unused = nn.Parameter(torch.zeros(1))
        self.seen: list[int] = []

    @property
    def backbone(self) -> Backbone:
        return self.plain

    def maps(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> list[Tensor]:
        self.seen.append(len(images_BCHW))
        return images_BCHW.float() / 16  # type: ignore[return-value]

    def evaluate(self, labelled: LabelledSet, settings: TestSettings) -> Scores:
        raise NotImplementedError


class Brighter(BrightestBand):
    """Says "changed" where the first band has become brighter by more than 100."""

    name: ClassVar[str] = "change"

    def __init__(self, channels: Channels | None = None):
        super().__init__(("unchanged", "changed"), channels)

    def maps(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> list[Tensor]:
        assert later_BCHW is not None
        more_BHW = later_BCHW[:, 0].float() - images_BCHW[:, 0].float() - 100
        return torch.stack([-more_BHW, more_BHW], 1)  # type: ignore[return-value]


class BrightObjects(TaskModel):
    """Finds the connected bright regions of the first band as boxes, quads or masks; their score is the brightness."""

    def __init__(self, task: str = "detection", channels: Channels | None = None):
        super().__init__(("ship", "car"))
        self.name = task  # type: ignore[misc]
        self.plain = PlainBackbone()
        self.plain.in_channels = channels
        self.unused = nn.Parameter(torch.zeros(1))

    @property
    def backbone(self) -> Backbone:
        return self.plain

    def forward(self, batch: TaskBatch) -> dict[str, Tensor]:
        raise NotImplementedError

    def loss_counts(self, batch: TaskBatch) -> dict[str, float]:
        raise NotImplementedError

    def evaluate(self, labelled: LabelledSet, settings: TestSettings) -> Scores:
        raise NotImplementedError

    def predict_batch(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> list[Prediction]:
        return [self._found(image[0].numpy()) for image in images_BCHW]

    def _found(self, image_HW: np.ndarray) -> Prediction:
        from scipy import ndimage

        numbers_HW, count = ndimage.label(image_HW > 100)
        masks = [numbers_HW == number for number in range(1, count + 1)]
        boxes = []
        for rows, columns in ndimage.find_objects(numbers_HW):
            boxes.append([columns.start, rows.start, columns.stop, rows.stop])
        boxes_N4 = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        values = [float(image_HW[mask].max()) for mask in masks]
        x1, y1, x2, y2 = boxes_N4.T
        return Prediction(
            boxes_N4=boxes_N4,
            quads_N8=torch.stack([x1, y1, x2, y1, x2, y2, x1, y2], 1) if self.name == "oriented" else None,
            scores_N=torch.tensor(values) / 255,
            labels_N=torch.tensor([int(value > 180) for value in values], dtype=torch.int64),
            masks_NHW=torch.from_numpy(np.array(masks).reshape(-1, *image_HW.shape))
            if self.name == "instance"
            else None,
        )
