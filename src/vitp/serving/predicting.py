"""Predictions for clients, by what `vitp predict` predicts with: pictures together, rasters window by window."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch

from vitp.core.errors import DataError, VitpError
from vitp.core.tensors import present
from vitp.deployment.comparison import as_prediction
from vitp.inference.inputs import InputFile, sources_of
from vitp.inference.maps import SHARE_SCALE, RasterPrediction
from vitp.inference.outputs import surest
from vitp.inference.pictures import SeenPicture, classified_raster, read_picture
from vitp.inference.prediction_files import seen_mpp
from vitp.inference.raster_files import MapOptions, RasterWork
from vitp.inference.vectors import vector_path
from vitp.io.ground import is_map
from vitp.io.images import image_size, load_planes
from vitp.metrics.results import Prediction
from vitp.records.channels import band_step
from vitp.serving.answers import COG, GEOJSON, PNG, Answer, drawn_png, json_values, mask_png
from vitp.serving.models import ServedModel
from vitp.serving.refusal import Refusal, refusal_of
from vitp.serving.store import ImageStore, StoredImage
from vitp.tasks.base import READ_BY_WINDOWS, TaskModel, WholeImageModel
from vitp.tasks.dense import DenseModel
from vitp.tasks.merging import ViewObjects
from vitp.tasks.predict import predict_images

Form = Literal["json", "geojson", "png", "cog"]

Made = TypeVar("Made")

_MOST_PROBABILITIES = 1 << 29
"""Probabilities of a raster that are kept, a byte each, to say how sure a model is."""
_ROWS = 256
_READERS = 2
"""Pictures that are decoded at once."""
_NO_PLACE = "the image doesn't say where it lies on the ground"


@dataclass(frozen=True)
class Asked:
    """One request for a prediction.

    Attributes:
        model: Model that is asked.
        dates: The image, and its later date.
        threshold: Least score of objects; None: as the model says.
        form: Form of the answer.
        certainty: Whether JSON says how sure the model is of each pixel of a class map; graphs don't know.
    """

    model: ServedModel
    dates: tuple[StoredImage, ...]
    threshold: float | None
    form: Form
    certainty: bool = False

    @property
    def names(self) -> dict[str, str]:
        """Address → what a sentence calls it."""
        words = ("the image",) if len(self.dates) == 1 else ("the earlier image", "the later image")
        return {date.address: word for date, word in zip(self.dates, words, strict=True)}

    @property
    def least_score(self) -> float:
        """Objects with a lower score are left out."""
        return self.model.least_score if self.threshold is None else self.threshold


def check_asked(asked: Asked, store: ImageStore) -> None:
    """Do nothing where a request can be answered, as far as that is known before anything is decoded.

    Raises:
        Refusal: It can't.
    """
    model, task = asked.model, asked.model.task_name
    if model.images != len(asked.dates):
        if model.images == 2:
            raise Refusal(
                422,
                f"{model.name} compares two dates: give the later one as after_file, after_image or after_path",
            )
        raise Refusal(422, f"{model.name} takes one image: leave after_file, after_image and after_path out")
    for date in asked.dates:
        store.check_pixels(date)
        bands = (
            () if model.channels is None or model.settings.missing_bands == "zero" else model.channels.bands
        )
        beside = [band for band in bands if band_step(band)[1] and band not in date.bands]
        if beside:
            raise Refusal(
                422,
                f"the image is one slice, and {model.name} sees the slices beside it, too ({', '.join(beside)}): "
                "vitp predict reads the whole series",
            )
    if asked.form in ("geojson", "cog"):
        if task == "classification":
            raise Refusal(422, f"a class of the whole image has no place in {asked.form}; use format=json")
        if asked.form == "cog" and task not in ("segmentation", "change"):
            raise Refusal(422, f"cog is a map of classes, and {model.name} finds objects; use format=geojson")
        if not asked.dates[0].placed:
            raise Refusal(422, f"{_NO_PLACE}; use format=json or format=png, which are in its pixels")
        if model.graph is not None:
            raise Refusal(
                422,
                f"{model.name} is an exported graph, which answers in json and png; serve the run itself for {asked.form}",
            )


@dataclass(frozen=True)
class _SeenByGraph:
    """What an exported graph sees: (C, H, W) uint8 of each date."""

    dates: tuple[np.ndarray, ...]


_Seen = SeenPicture | InputFile | _SeenByGraph


class Predictor:
    """Answers requests; its methods are called in the threads of the models.

    Args:
        folder: Folder for parts of rasters.
        most_pixels: Most pixels of a slide at the resolution at which it is seen.
    """

    def __init__(self, folder: Path, most_pixels: int) -> None:
        self._folder, self._most_pixels = folder, most_pixels
        self._readers = ThreadPoolExecutor(_READERS, "vitp-read")

    def close(self) -> None:
        """End the threads that read."""
        self._readers.shutdown(wait=False, cancel_futures=True)

    def answers(self, asked: Sequence[Asked]) -> list[Answer | Exception]:
        """Return an answer, or what is wrong, for each of some requests of one model."""
        started = time.perf_counter()
        found = self._answers(asked)
        seconds = round(time.perf_counter() - started, 4)
        for number, each in enumerate(found):
            if isinstance(each, Answer) and isinstance(each.content, dict):
                each.content["seconds"] = seconds
            elif isinstance(each, VitpError | MemoryError | torch.OutOfMemoryError):
                found[number] = refusal_of(each, asked[number].names)
        return found

    def _answers(self, asked: Sequence[Asked]) -> list[Answer | Exception]:
        found: dict[int, Answer | Exception] = {}
        pictures: dict[str, list[tuple[int, SeenPicture]]] = {}
        looks = self._readers.map(lambda one: _attempted(lambda: self._seen(one)), asked)
        for number, (one, seen) in enumerate(zip(asked, looks, strict=True)):
            if isinstance(seen, Exception):
                found[number] = seen
            elif isinstance(seen, SeenPicture):
                pictures.setdefault(seen.settings.model_dump_json(), []).append((number, seen))
            else:
                found[number] = _attempted(partial(self._alone, one, seen))
        for group in pictures.values():
            certainty = any(asked[number].certainty for number, _ in group)
            task = present(asked[0].model.task)
            predictions = _predicted(task, [seen for _, seen in group], certainty=certainty)
            for (number, picture), prediction in zip(group, predictions, strict=True):
                found[number] = (
                    prediction
                    if isinstance(prediction, Exception)
                    else _formed(asked[number], picture.size, prediction, picture.planes_CHW.numpy())
                )
        return [found[number] for number in range(len(asked))]

    def _seen(self, asked: Asked) -> _Seen:
        """Return what a model sees of the images of a request; of a raster its address."""
        model, (first, *later) = asked.model, [date.address for date in asked.dates]
        if model.graph is not None:
            channels = model.channels
            return _SeenByGraph(tuple(load_planes(date, channels=channels) for date in (first, *later)))
        task, settings = present(model.task), model.settings
        if not is_map(first, model.channels):
            return read_picture(task, (first, *later), settings)
        if isinstance(task, WholeImageModel):
            raise Refusal(422, f"{model.name} {READ_BY_WINDOWS}; send a picture")
        mpp = seen_mpp(task, MapOptions())
        missing = settings.missing_bands
        (source,) = sources_of([first], later or None, task.name, model.channels, missing, mpp)
        if source.reason is not None:
            raise DataError(source.reason)
        width, height = image_size(source.image)
        if width * height > self._most_pixels:
            raise Refusal(
                413,
                f"the image has {width}×{height} pixels at the resolution at which it is seen; send a part of it",
            )
        return source

    def _alone(self, asked: Asked, seen: InputFile | _SeenByGraph) -> Answer:
        if isinstance(seen, _SeenByGraph):
            graph = present(asked.model.graph)
            prediction = as_prediction(graph.predict(*seen.dates))
            channels = asked.model.channels
            shown = seen.dates[-1] if channels is None else seen.dates[-1][list(channels.shown)]
            return _formed(asked, (shown.shape[1], shown.shape[2]), prediction, shown)
        task = present(asked.model.task)
        if task.name == "classification":
            found, size, image = classified_raster(task, seen.image, asked.model.settings)
            return _formed(asked, size, found, np.asarray(image).transpose(2, 0, 1))
        with tempfile.TemporaryDirectory(prefix="raster-", dir=self._folder) as folder:
            return _RasterAnswer(asked, task, seen, Path(folder)).answered()


def _attempted(function: Callable[[], Made]) -> Made | Exception:
    """Return what a function returns, or what it raises."""
    try:
        return function()
    except Exception as error:
        return error


def _predicted(
    task: TaskModel, seen: Sequence[SeenPicture], *, certainty: bool
) -> Sequence[Prediction | Exception]:
    """Return what a model says of pictures that are seen by the same settings, all in one."""
    later = [one.later_CHW for one in seen if one.later_CHW is not None]
    try:
        return predict_images(
            task, [one.planes_CHW for one in seen], seen[0].settings, later or None, certainty=certainty
        )
    except Exception as error:
        if len(seen) == 1:
            return [error]
        # The others are not to suffer for the one that can't be used.
        return [each for one in seen for each in _predicted(task, [one], certainty=certainty)]


def _formed(asked: Asked, size: tuple[int, int], prediction: Prediction, shown_CHW: np.ndarray) -> Answer:
    """Return what was found in a picture in the form that was asked for.

    Args:
        asked: The request.
        size: Height and width of the image.
        prediction: In its pixels.
        shown_CHW: What is drawn over, uint8 RGB.
    """
    model = asked.model
    prediction = surest(prediction, asked.least_score)
    if not asked.certainty:  # another request of the batch may have asked for it
        prediction = replace(prediction, certainty_HW=None)
    if asked.form == "json":
        return Answer(
            {"model": model.name, **json_values(str(model.task_name), model.classes, size, prediction)}
        )
    if prediction.semantic_HW is not None:
        return Answer(mask_png(prediction.semantic_HW.numpy()), PNG)
    return Answer(drawn_png(shown_CHW, prediction, model.classes), PNG)


class _RasterAnswer(RasterWork):
    """A raster that is predicted as `vitp predict` does, into the one file that was asked for.

    Args:
        asked: The request.
        task: Its model.
        source: Its raster.
        folder: Folder for parts and files.
    """

    def __init__(self, asked: Asked, task: TaskModel, source: InputFile, folder: Path) -> None:
        settings = asked.model.settings.model_copy(update={"score_threshold": asked.least_score})
        values = len(task.classes) * asked.dates[0].pixels
        certainty = asked.certainty and isinstance(task, DenseModel) and values <= _MOST_PROBABILITIES
        options = MapOptions(vector="geojson", probabilities=certainty)
        super().__init__(task, source, settings, options, folder / "part", folder / "out", lambda note: None)
        self.asked = asked
        self.answer: Answer | None = None

    def answered(self) -> Answer:
        """Return the answer.

        Raises:
            DataError: The raster can't be read.
        """
        reason = self.run(self.asked.model.task_sha256)
        if reason is not None:
            raise DataError(reason)
        return present(self.answer)

    def _facts(self, prediction: RasterPrediction) -> dict[str, str]:
        names = ("vitp_source", "vitp_later")  # names of files are none of the client's business
        return {key: value for key, value in super()._facts(prediction).items() if key not in names}

    def _write(self, prediction: RasterPrediction, model_sha256: str) -> None:
        """Make the answer."""
        model, form = self.asked.model, self.asked.form
        if form == "cog":
            tags = self._tags(prediction, model_sha256)
            self.answer = Answer(self._write_classes(prediction, tags).read_bytes(), COG)
            return
        if form == "geojson":
            self._write_vectors(prediction, lambda objects: None)
            geometry = prediction.dates[0].pixels.geometry
            path = vector_path(self.out / "vectors", self.source.name, "geojson", geometry, self.slide)
            self.answer = Answer(path.read_bytes(), GEOJSON)
            return
        if isinstance(self.model, DenseModel):
            classes_HW = prediction.class_rows(0, prediction.size[0])
            certainty_HW = _certainty_of(prediction) if prediction.shares else None
            seen = Prediction(semantic_HW=torch.from_numpy(classes_HW), certainty_HW=certainty_HW)
            self.answer = _formed(self.asked, prediction.size, seen, np.zeros((3, 1, 1), np.uint8))
            return
        found = list(prediction.objects())
        if form == "png":
            self._write_picture(prediction, [replace(one, masks=None) for one in found])
            path = self.out / "pictures" / f"{self.source.name}.png"
            self.answer = Answer(path.read_bytes(), PNG)
            return
        joined = ViewObjects.joined(found) if found else None
        values = json_values(self.model.name, model.classes, prediction.size, joined)
        self.answer = Answer({"model": model.name, **values})


def _certainty_of(prediction: RasterPrediction) -> torch.Tensor:
    """Return (H, W) uint8, 255 × the largest probability of each pixel."""
    height = prediction.size[0]
    parts = [prediction.share_rows(top, min(top + _ROWS, height)).max(0) for top in range(0, height, _ROWS)]
    return torch.from_numpy(
        (np.concatenate(parts) * (255 / SHARE_SCALE)).round().clip(0, 255).astype(np.uint8)
    )
