"""`vitp predict`: image files in, files of predictions out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vitp.core.errors import ConfigError, DataError
from vitp.core.files import atomic_dir, write_json
from vitp.core.targets import check_folder
from vitp.core.version import __version__
from vitp.data.formats.walk import list_images
from vitp.data.seen import lone_image
from vitp.inference.outputs import Named, surest, unique_names, write_image, write_summary
from vitp.io.images import image_size, is_scene, load_image, load_planes
from vitp.io.parts import base_address
from vitp.io.pixels import LARGE_PIXELS
from vitp.records.channels import Channels
from vitp.tasks.base import TaskModel, TestSettings
from vitp.tasks.predict import predict_images

PREDICTIONS_FILE = "vitp_predictions.json"
"""Which file names stand for which image, and what was left out; tells that a folder is ours to replace."""

_FORMAT = "vitp-predictions-1"
_READERS = 4
"""Images that are looked at together before the first is predicted; each is in memory as a whole."""


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return image files as they are and the images of folders sorted by name.

    Raises:
        DataError: A path doesn't exist, or a folder holds no image.
    """
    files: list[Path] = []
    for path in paths:
        if not Path(base_address(path)).exists():
            raise DataError("doesn't exist", where=str(path), fix="check the path")
        inside = list_images(path) if path.is_dir() else [path]
        if not inside:
            raise DataError("holds no images", where=str(path), fix="name a folder of images")
        files += inside
    return files


def load_named_images(
    sources: Sequence[str], most: int, channels: Channels | None = None
) -> dict[str, Image.Image]:
    """Return name → image of files, folders of them and `scene:` addresses; at most so many, names made unique.

    Args:
        sources: Files, folders, addresses.
        most: Images at most.
        channels: What is shown of the files' bands; see `lone_image`.

    Raises:
        DataError: A path doesn't exist, a folder holds no image, or one can't be read.
    """
    addresses: list[str] = []
    for source in sources:
        addresses += [source] if is_scene(source) else [str(path) for path in image_files([Path(source)])]
    addresses = addresses[:most]
    names = unique_names([one.replace("/", "-") if is_scene(one) else one for one in addresses])
    return {name: lone_image(address, channels) for name, address in zip(names, addresses, strict=True)}


@dataclass(frozen=True)
class Unusable:
    """An input without predictions.

    Attributes:
        image: Path as the user gave it.
        reason: In one sentence.
    """

    image: str
    reason: str


def predict_files(
    model: TaskModel,
    images: Sequence[Path],
    out: Path,
    settings: TestSettings,
    *,
    later: Sequence[Path] | None = None,
    overwrite: bool = False,
    tell: Callable[[Unusable], None] = lambda _: None,
) -> tuple[int, list[Unusable]]:
    """Write the predictions of images into a folder that appears when it is whole (files: `vitp.inference.outputs`).

    All images are read before the first is predicted, so that those which can't be used are known and left out.

    Args:
        model: Any task's.
        images: Files, or folders of them.
        out: New or empty folder, or one of earlier predictions.
        settings: How the model is applied; objects below `score_threshold` are left out.
        later: For change, the later dates.
        overwrite: Replace earlier predictions.
        tell: Called with each input that can't be used, once it is known.

    Returns:
        How many images were predicted, and the inputs that were left out.

    Raises:
        ConfigError: Change without later dates, or another task with them.
        DataError: No image can be used.
        VitpError: `out` holds something else, or can't be written.
    """
    check_folder(out, is_predictions, what="predictions", overwrite=overwrite)
    files, second = image_files(images), None if later is None else image_files(later)
    _check_pairs(model.name, files, second)
    dates = list(zip(files, strict=True) if second is None else zip(files, second, strict=True))
    reasons = _unusable(dates)
    unusable = [Unusable(str(path), why) for path, why in zip(files, reasons, strict=True) if why is not None]
    for one in unusable:
        tell(one)
    if len(unusable) == len(files):
        raise _nothing_usable(unusable)
    names = unique_names(files)
    with atomic_dir(out) as folder:
        found: list[Named] = []
        # One image at a time: large ones fill memory, and their windows fill batches anyway.
        for index in (index for index, why in enumerate(reasons) if why is None):
            try:
                named, shown = _predict(model, dates[index], names[index], settings)
            except DataError as error:  # of this image alone: the others are done
                unusable.append(Unusable(str(files[index]), f"{error.where}: {error.what}"))
                tell(unusable[-1])
                continue
            write_image(folder, model.name, named, model.classes, shown)
            # The summary doesn't need class maps, which are large.
            found.append(replace(named, prediction=replace(named.prediction, semantic_HW=None)))
        if not found:
            raise _nothing_usable(unusable)
        write_summary(folder, model.name, found, model.classes)
        write_json(folder / PREDICTIONS_FILE, _description(model, found, unusable))
    return len(found), unusable


def _description(model: TaskModel, found: Sequence[Named], unusable: Sequence[Unusable]) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "vitp_version": __version__,
        "task": model.name,
        "classes": list(model.classes),
        "images": [{"image": named.image, "name": named.name} for named in found],
        "unusable": [asdict(one) for one in unusable],
    }


def is_predictions(folder: Path) -> bool:
    """Return whether a folder holds what `predict_files` wrote."""
    try:
        value = json.loads((folder / PREDICTIONS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("format") == _FORMAT


def _unusable(dates: Sequence[Sequence[Path]]) -> list[str | None]:
    """Return for each image, or pair of dates, why it can't be used; None where it can."""

    def look(paths: Sequence[Path]) -> str | None:
        try:
            for path in paths:
                load_image(path, enough=_shown_size)  # decodes the whole file: a head alone says little
            sizes = [image_size(path) for path in paths]
        except DataError as error:
            return f"{error.where}: {error.what}" if len(paths) > 1 else error.what
        if len(set(sizes)) > 1:
            (width, height), (later_width, later_height) = sizes
            return f"its dates are {width}×{height} and {later_width}×{later_height} px"
        return None

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(look, dates))


def _predict(
    model: TaskModel, dates: Sequence[Path], name: str, settings: TestSettings
) -> tuple[Named, Image.Image]:
    """Return the prediction of an image, or pair of dates, and the image to draw it over."""
    width, height = image_size(dates[0])
    enough = _enough(model, settings, width * height)
    later_CHW = [read_image(path) for path in dates[1:]] or None
    (prediction,) = predict_images(model, [read_image(dates[0], enough)], settings, later_CHW)
    named = Named(name, str(dates[0]), (height, width), surest(prediction, settings.score_threshold))
    return named, load_image(dates[-1], enough=enough and _shown_size)


def _nothing_usable(unusable: Sequence[Unusable]) -> DataError:
    first = unusable[0]
    return DataError(
        f"none of the {len(unusable)} images can be used; the first: {first.reason}",
        where=first.image,
        fix="name other images",
    )


_SHOWN_SIDE = 1024
"""Of the picture of a large image that is seen as a whole, at least."""


def _shown_size(width: int, height: int) -> tuple[int, int]:
    return min(width, _SHOWN_SIDE), min(height, _SHOWN_SIDE)


def _enough(
    model: TaskModel, settings: TestSettings, pixels: int
) -> Callable[[int, int], tuple[int, int]] | None:
    """Return which size of a large image suffices; None where each pixel has its place in what is written."""
    if model.name != "classification" or pixels <= LARGE_PIXELS:
        return None
    return (settings.resize or model.input_size).enough(max(settings.scales))


def _check_pairs(task: str, files: Sequence[Path], later: Sequence[Path] | None) -> None:
    if task != "change":
        if later is not None:
            raise ConfigError(f"{task} takes no later dates", where="--later", fix="leave it out")
        return
    if later is None or len(later) != len(files):
        given = 0 if later is None else len(later)
        raise ConfigError(
            f"{len(files)} images but {given} later dates",
            where="--later",
            fix="give one later date for each image",
        )


def read_image(path: Path, enough: Callable[[int, int], tuple[int, int]] | None = None) -> Tensor:
    """Return an image file as uint8 RGB (3, H, W), large ones at a size that is enough.

    Raises:
        DataError: It is missing or damaged.
    """
    return torch.from_numpy(load_planes(path, enough=enough))
