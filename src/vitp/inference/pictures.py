"""Pictures, and rasters that are one image as a whole: read as a model sees them, and predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from vitp.core.errors import DataError
from vitp.inference.inputs import SHOWN_SIDE, open_ground
from vitp.inference.raster_files import ground_picture
from vitp.io.images import image_size, load_planes
from vitp.io.pixels import LARGE_PIXELS
from vitp.metrics.results import Prediction
from vitp.tasks.base import TaskModel, TestSettings, WholeImageModel
from vitp.tasks.predict import classify
from vitp.tasks.seen import seen_settings


@dataclass(frozen=True)
class SeenPicture:
    """A picture that was read, and how it is seen.

    Attributes:
        planes_CHW: uint8.
        later_CHW: The later date of a pair.
        size: Height and width of the image; larger than `planes_CHW` where those suffice.
        settings: How the model is applied to it.
        note: What is to be said of that.
        reduced: Whether no more was read of a large image than is seen.
    """

    planes_CHW: Tensor
    later_CHW: Tensor | None
    size: tuple[int, int]
    settings: TestSettings
    note: str | None
    reduced: bool


def read_picture(model: TaskModel, dates: Sequence[str], settings: TestSettings) -> SeenPicture:
    """Return a picture as `predict_images` takes it.

    Args:
        model: Any task's.
        dates: Address of the image, and of its later date.
        settings: How the model is applied.

    Raises:
        DataError: A file can't be read.
    """
    width, height = image_size(dates[0])
    enough, note = None, None
    if isinstance(model, WholeImageModel):
        if seen_settings(model, settings, (height, width), None)[2] is not None:
            note = "larger than the images of training, and seen as a whole: what is small in it may be lost"
    elif model.name != "classification":
        settings, factor, note = seen_settings(model, settings, (height, width), None)
        settings = settings.model_copy(update={"scales": tuple(scale * factor for scale in settings.scales)})
    elif width * height > LARGE_PIXELS:
        # Elsewhere each pixel has its place in what is written.
        enough = (settings.resize or model.input_size).enough(max(settings.scales))
    later = [torch.from_numpy(load_planes(path)) for path in dates[1:]]
    image = torch.from_numpy(load_planes(dates[0], enough=enough))
    later_CHW = later[0] if later else None
    return SeenPicture(image, later_CHW, (height, width), settings, note, enough is not None)


def classified_raster(
    model: TaskModel, address: str, settings: TestSettings
) -> tuple[Prediction, tuple[int, int], Image.Image]:
    """Return the class of a raster, read at the size that is seen, the raster's height and width, and a picture of it.

    Raises:
        DataError: It can't be read, lacks bands or holds nothing.
    """
    channels, missing = model.backbone.in_channels, settings.missing_bands
    with open_ground(address, channels, missing_bands=missing) as ground:
        if ground.is_empty():
            what = "holds nothing: all of its pixels are nodata, and so of no class"
            raise DataError(what, where=address, fix="leave it out, or check its nodata value")
        return classify(model, ground, settings), ground.size, ground_picture(ground, SHOWN_SIDE**2)
