"""A model applied to images of any size: resized as in training, through windows, merged, in pixels of the image.

Shapes: B images, H × W pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from vitp.core.errors import ConfigError
from vitp.core.tensors import present
from vitp.data.image_sample import ImageSample
from vitp.io.ground import is_map
from vitp.io.open_pixels import open_seen
from vitp.metrics.results import Prediction
from vitp.models.backbone import frozen
from vitp.models.rotated.boxes import hulls_of_quads
from vitp.records.labels import LabelledImage
from vitp.tasks.base import TaskModel, TestSettings, WholeImageModel, check_whole
from vitp.tasks.data import LabelReader
from vitp.tasks.dense import DenseModel
from vitp.tasks.ground import Ground, RasterGround
from vitp.tasks.merging import ViewObjects, merge
from vitp.tasks.seen import scored_settings
from vitp.tasks.views import View, views_of
from vitp.tasks.windows import Unit, batches, class_map, seen_views


def predict_images(
    model: TaskModel,
    images: Sequence[Tensor],
    settings: TestSettings | None = None,
    later: Sequence[Tensor] | None = None,
    *,
    origin: tuple[int, int] = (0, 0),
    certainty: bool = False,
) -> list[Prediction]:
    """Return what a model says of each image, in pixels of that image.

    Args:
        model: Any task's.
        images: uint8 RGB (3, H, W) each, of any sizes.
        settings: Resizing, windows, scales, mirroring; None: as in training, the whole image at once.
        later: Second dates of pairs, each of the size of its first.
        origin: x and y in pixels of the images from which windows are counted.
        certainty: Whether `certainty_HW` of class maps is wanted.

    Raises:
        ConfigError: A model of pairs got single images or dates of different sizes.
        VitpError: Instance masks of a very large image don't fit into memory.
    """
    settings = settings or TestSettings()
    if model.name == "change":
        _check_pairs(images, later)
    resize = settings.resize or model.input_size
    if model.name == "classification":
        # A class is one of the whole image, which no window shows.
        settings = settings.model_copy(update={"window": None})
    if isinstance(model, WholeImageModel):
        check_whole(settings)
    patch = model.patch(settings)
    views = [
        views_of(image.shape[-2], image.shape[-1], settings, resize, origin=origin, patch=patch)
        for image in images
    ]
    if isinstance(model, DenseModel):
        return _class_maps(model, images, later, views, settings.batch_size, certainty=certainty)
    if isinstance(model, WholeImageModel):
        return _segments(model, images, views)
    looks = [(index, view) for index, of_image in enumerate(views) for view in of_image]
    found: list[list[tuple[Prediction, View]]] = [[] for _ in images]
    for start in range(0, len(looks), settings.batch_size):
        part = looks[start : start + settings.batch_size]
        for (index, view), prediction in zip(
            part, model.predict([view.of(images[index]) for index, view in part]), strict=True
        ):
            found[index].append((prediction, view))
    if model.name == "classification":
        parts = [torch.stack([present(one.probabilities_C) for one, _ in of_image]) for of_image in found]
        return [Prediction(probabilities_C=part.mean(0)) for part in parts]
    return [
        merge(of_image, (int(image.shape[-2]), int(image.shape[-1])))
        for of_image, image in zip(found, images, strict=True)
    ]


def _check_pairs(images: Sequence[Tensor], later: Sequence[Tensor] | None) -> None:
    if later is None or len(later) != len(images):
        raise ConfigError("needs two dates of each place", where="change", fix="give pairs of images")
    for before, after in zip(images, later, strict=True):
        if before.shape != after.shape:
            raise ConfigError(
                f"the dates are {before.shape[-1]}×{before.shape[-2]} and {after.shape[-1]}×{after.shape[-2]} px",
                where="change",
                fix="cut both dates to the same size",
            )


def _class_maps(
    model: DenseModel,
    images: Sequence[Tensor],
    later: Sequence[Tensor] | None,
    views: Sequence[Sequence[View]],
    batch_size: int,
    *,
    certainty: bool,
) -> list[Prediction]:
    """Return class maps: images that are seen as a whole share batches, others go view by view."""
    whole: dict[tuple[int, int], list[int]] = {}
    found: dict[int, Prediction] = {}
    for index, image in enumerate(images):
        if len(views[index]) == 1:
            whole.setdefault(views[index][0].size, []).append(index)
        else:
            second = None if later is None else later[index]
            arguments = (model.probabilities, image, second, views[index], batch_size, model.device)
            strip = class_map(*arguments, shares=certainty)
            found[index] = Prediction(
                semantic_HW=strip.classes_RW, certainty_HW=_certainty(strip.shares_KRW) if certainty else None
            )
    for indices in whole.values():
        for start in range(0, len(indices), batch_size):
            part = indices[start : start + batch_size]
            seen = torch.stack([views[index][0].of(images[index]) for index in part])
            second = None if later is None else torch.stack([views[i][0].of(later[i]) for i in part])
            for index, probability_Khw in zip(part, model.probabilities(seen, second), strict=True):
                found[index] = _map_at(probability_Khw, images[index].shape[-2:], certainty=certainty)
    return [found[index] for index in range(len(images))]


def _segments(
    model: WholeImageModel, images: Sequence[Tensor], views: Sequence[Sequence[View]]
) -> list[Prediction]:
    """Return the segments of each image, which is seen as a whole."""
    found = []
    for image, of_image in zip(images, views, strict=True):
        with frozen(model):
            found += model.segments(of_image[0].of(image)[None], [(image.shape[-2], image.shape[-1])])
    return found


def _map_at(probability_Khw: Tensor, size: Sequence[int], *, certainty: bool) -> Prediction:
    if tuple(probability_Khw.shape[-2:]) != tuple(size):
        probability_Khw = F.interpolate(
            probability_Khw[None], size=tuple(size), mode="bilinear", align_corners=False
        )[0]
    classes_HW = probability_Khw.argmax(0).to(torch.uint8).cpu()
    return Prediction(semantic_HW=classes_HW, certainty_HW=_certainty(probability_Khw) if certainty else None)


def _certainty(probability_KHW: Tensor | None) -> Tensor:
    return (present(probability_KHW).amax(0) * 255).round().to(torch.uint8).cpu()


def classify(model: TaskModel, ground: Ground, settings: TestSettings) -> Prediction:
    """Return the class of an image as a whole, the mean over scales and mirrors."""
    whole = settings.model_copy(update={"window": None})
    views = views_of(*ground.size, whole, settings.resize or model.input_size)
    found = [
        prediction
        for batch in batches(views, settings.batch_size)
        for prediction in model.predict([view.of(ground) for view in batch])
    ]
    return Prediction(probabilities_C=torch.stack([present(each.probabilities_C) for each in found]).mean(0))


def unit_objects(model: TaskModel, ground: Ground, unit: Unit, batch_size: int) -> ViewObjects | None:
    """Return all objects that a unit of views shows, not merged; None: no view holds anything.

    Those whose centre lies where the image holds nothing are marked.

    Args:
        model: Model of detection, instance segmentation or oriented detection.
        ground: The image.
        unit: Views.
        batch_size: Views at once.
    """
    found = [
        ViewObjects.of(prediction, view)
        for batch in batches(seen_views([ground], unit.views), batch_size)
        for prediction, view in zip(model.predict([view.of(ground) for view in batch]), batch, strict=True)
    ]
    if not found:
        return None
    joined = ViewObjects.joined(found)
    return replace(joined, nowhere_N=_nowhere(joined.hulls_N4, ground))


def _nowhere(hulls_N4: Tensor, ground: Ground) -> Tensor:
    """Return (N,) bool: whose centre lies on nodata; one beyond the border is judged by the nearest pixel."""
    if not len(hulls_N4):
        return torch.zeros(0, dtype=torch.bool)
    height, width = ground.size
    hulls_N4 = hulls_N4.double()
    centres_N2 = ((hulls_N4[:, :2] + hulls_N4[:, 2:]) / 2).floor().long()
    x_N, y_N = centres_N2[:, 0].clamp(0, width - 1), centres_N2[:, 1].clamp(0, height - 1)
    left, top = int(x_N.min()), int(y_N.min())
    valid_hw = ground.valid((left, top, int(x_N.max()) + 1, int(y_N.max()) + 1))
    if valid_hw is None:
        return torch.zeros(len(hulls_N4), dtype=torch.bool)
    return ~torch.from_numpy(valid_hw)[y_N - top, x_N - left]


@contextlib.contextmanager
def ground_of(item: LabelledImage, reader: LabelReader) -> Iterator[Ground | None]:
    """Yield an image of a set as a raster that knows where it holds nothing; None: it is a picture and always does."""
    channels = reader.seen.channels
    if not is_map(item.image, channels):
        yield None
        return
    with open_seen(item.image, channels) as pixels:
        yield RasterGround(pixels, channels, missing_bands=reader.seen.missing_bands)


def _somewhere(prediction: Prediction, item: LabelledImage, reader: LabelReader) -> Prediction:
    """Return the objects whose centre lies where the image holds something, as `vitp predict` does of rasters."""
    if prediction.scores_N is None or not len(prediction.scores_N):
        return prediction
    with ground_of(item, reader) as ground:
        if ground is None:
            return prediction
        quads_N8 = prediction.quads_N8
        hulls_N4 = present(prediction.boxes_N4) if quads_N8 is None else hulls_of_quads(quads_N8)
        kept_N = ~_nowhere(hulls_N4, ground)
    fields = ("boxes_N4", "quads_N8", "scores_N", "labels_N", "masks_NHW")
    values = {name: getattr(prediction, name) for name in fields}
    return replace(prediction, **{name: value[kept_N] for name, value in values.items() if value is not None})


def predictions_of(
    model: TaskModel, reader: LabelReader, settings: TestSettings
) -> Iterator[tuple[LabelledImage, ImageSample, Prediction]]:
    """Yield each image of a set with its labels and what the model says of it, in pixels of the image.

    Args:
        model: Any task's.
        reader: The images and how their labels are read.
        settings: How the model is applied.

    Raises:
        ConfigError: There are no images.
        DataError: An image or label can't be used.
    """
    if not len(reader.labelled):
        raise ConfigError("has no images", where=reader.labelled.name, fix="choose another split")
    items = iter(reader.labelled.items)
    seen = settings.resize or model.input_size
    while part := list(islice(items, settings.batch_size)):
        samples = [reader.sample(item, seen, max(settings.scales)) for item in part]
        predict = model.stand_in or partial(predict_images, model)
        ways = [scored_settings(model, settings, (item.height, item.width)) for item in part]
        found: list[Prediction] = []
        # One after the other where they aren't all seen in one way.
        alike = [samples] if all(way is settings for way in ways) else [[sample] for sample in samples]
        for some, way in zip(alike, ways, strict=False):
            later = [sample.later_CHW for sample in some if sample.later_CHW is not None]
            found += predict([sample.image_CHW for sample in some], way, later or None)
        whole = isinstance(model, WholeImageModel)  # stuff may lie around what isn't known
        seen_at = (
            each if whole else _somewhere(each, item, reader) for each, item in zip(found, part, strict=True)
        )
        yield from zip(part, samples, seen_at, strict=True)
