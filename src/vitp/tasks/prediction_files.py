"""`vitp predict`: image files in, files of predictions out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitp.data.formats.common import list_images
from vitp.data.images import load_image
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
        image_CHW = read_image(path)
        later_CHW = None if second is None else [read_image(second[index])]
        (prediction,) = predict_images(model, [image_CHW], settings, later_CHW)
        size = (int(image_CHW.shape[-2]), int(image_CHW.shape[-1]))
        named = Named(name, str(path), size, surest(prediction, settings.score_threshold))
        shown = load_image(path if second is None else second[index])
        write_image(out, model.name, named, model.classes, shown)
        # Of the summary's needs, class maps are none.
        found.append(replace(named, prediction=replace(named.prediction, semantic_HW=None)))
    write_summary(out, model.name, found, model.classes)
    return len(files)


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


def read_image(path: Path) -> Tensor:
    """Return an image file as uint8 RGB (3, H, W).

    Raises:
        DataError: It is missing or damaged.
    """
    return torch.from_numpy(np.array(load_image(path))).permute(2, 0, 1).contiguous()
