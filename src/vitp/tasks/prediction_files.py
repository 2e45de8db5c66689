"""`vitp predict`: image files in, files of predictions out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vitp.data.formats.common import list_images
from vitp.data.images import image_size, load_image, load_planes
from vitp.data.pixels import LARGE_PIXELS
from vitp.errors import ConfigError, DataError
from vitp.tasks.base import TaskModel, TestSettings
from vitp.tasks.outputs import Named, surest, unique_names, write_image, write_summary
from vitp.tasks.predict import predict_images


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return image files as they are and the images of folders sorted by name.

    Raises:
        DataError: A path doesn't exist, or a folder holds no image.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError("doesn't exist", where=str(path), fix="check the path")
        inside = list_images(path) if path.is_dir() else [path]
        if not inside:
            raise DataError("holds no images", where=str(path), fix="name a folder of images")
        files += inside
    return files


def predict_files(
    model: TaskModel,
    images: Sequence[Path],
    out: Path,
    settings: TestSettings,
    *,
    later: Sequence[Path] | None = None,
) -> int:
    """Write the predictions of images (see `vitp.tasks.outputs` for the files) and return how many there are.

    Args:
        model: Any task's.
        images: Files, or folders of them.
        out: New or empty folder, or one that is written over.
        settings: How the model is applied; objects below `score_threshold` are left out.
        later: For change, the later dates.

    Raises:
        ConfigError: Change without later dates, or another task with them.
        DataError: An image can't be used.
    """
    files = image_files(images)
    second = None if later is None else image_files(later)
    _check_pairs(model.name, files, second)
    names = unique_names(files)
    found: list[Named] = []
    # One image at a time: large ones fill memory, and their windows fill batches anyway.
    for index, (path, name) in enumerate(zip(files, names, strict=True)):
        enough = _enough(model, settings, path)
        image_CHW = read_image(path, enough)
        later_CHW = None if second is None else [read_image(second[index])]
        (prediction,) = predict_images(model, [image_CHW], settings, later_CHW)
        width, height = image_size(path)
        named = Named(name, str(path), (height, width), surest(prediction, settings.score_threshold))
        shown = load_image(path if second is None else second[index], enough=enough and _shown_size)
        write_image(out, model.name, named, model.classes, shown)
        # Of the summary's needs, class maps are none.
        found.append(replace(named, prediction=replace(named.prediction, semantic_HW=None)))
    write_summary(out, model.name, found, model.classes)
    return len(files)


_SHOWN_SIDE = 1024
"""Of the picture of a large image that is seen as a whole, at least."""


def _shown_size(width: int, height: int) -> tuple[int, int]:
    return min(width, _SHOWN_SIDE), min(height, _SHOWN_SIDE)


def _enough(
    model: TaskModel, settings: TestSettings, path: Path
) -> Callable[[int, int], tuple[int, int]] | None:
    """Return which size of a large image suffices, None where each pixel has its place in what is written."""
    width, height = image_size(path)
    if model.name != "classification" or width * height <= LARGE_PIXELS:
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
