"""Models of slices whose answers are known, and predictions of volumes with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.map_models import BrightestBand
from vitp.inference.prediction_files import predict_files
from vitp.inference.raster_files import MapOptions
from vitp.records.channels import Channel, Channels
from vitp.scenes.volumes import TrunkVolume, make_volume
from vitp.tasks.base import TestSettings

HU = Channels(channels=(Channel(band="1", low=-1000, high=1000),))

WHOLE = TestSettings()


class HighValues(BrightestBand):
    """Says `high` where the first channel is above 139 (90 HU), `low` elsewhere; knows no place and no neighbours."""

    def __init__(
        self,
        channels: Channels | None = HU,
        plane: str | None = None,
        classes: Sequence[str] = ("background", "liver"),
    ):
        super().__init__(classes, channels)
        if plane is not None:
            self.description = {"trained": {"plane": plane, "scale": 1.0, "longest": 4096}}

    def maps(self, images_BCHW: Tensor, later_BCHW: Tensor | None) -> list[Tensor]:
        self.seen.append(len(images_BCHW))
        more_BHW = images_BCHW[:, 0].float() - 139.5
        return torch.stack([-more_BHW, more_BHW], 1)  # type: ignore[return-value]


def is_high(voxels: np.ndarray) -> np.ndarray:
    """Return what `HighValues` says of voxels in HU."""
    return np.rint((voxels.astype(np.float32) + 1000) * (255 / 2000)).clip(0, 255) > 139.5


def volume(
    orientation: str = "LPS", seed: int = 3, size: tuple[int, int, int] = (13, 11, 5), **more: Any
) -> TrunkVolume:
    return make_volume(seed, size=size, orientation=orientation, lesions=1, **more)


def predicted(
    model: Any, inputs: list[Path | str], out: Path, settings: TestSettings = WHOLE, **options: Any
) -> list[str]:
    said: list[str] = []
    predict_files(
        model,
        inputs,
        out,
        settings,
        options=MapOptions(**options),
        say=said.append,
        tell=lambda one: said.append(one.reason),
    )
    return said


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
