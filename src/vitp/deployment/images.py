"""The images that a graph is compared and calibrated on, and the size that it is made for.

Shapes: H × W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitp.core.config import CONFIG_FILE, load_config
from vitp.core.errors import ConfigError, VitpError
from vitp.core.tensors import present
from vitp.data.splits import subset
from vitp.records.labels import LabelledSet
from vitp.runs.finetune import FinetuneConfig, run_splits
from vitp.runtime.graph_model import GraphModel
from vitp.tasks.base import LabelKind, TaskModel, TestSettings
from vitp.tasks.data import label_reader, labelled_only, open_labelled

MOST_COMPARED, MOST_CALIBRATED = 100, 64
"""Images that are scored, and that tell the range of values for 8 bits; always the same ones of a set."""


@dataclass(frozen=True)
class KnownImages:
    """Labelled images of an export.

    Attributes:
        data: Name of the set.
        split: Which of its images are scored.
        compared: Images to be scored.
        available: Number of images of the split.
        calibration: Training images; None: there are none.
        said: What is to be said of them.
    """

    data: str
    split: str
    compared: LabelledSet
    available: int
    calibration: LabelledSet | None
    said: str


def known_images(
    source: str | Path, model: TaskModel, check: str | Path | None, most: int
) -> KnownImages | str:
    """Return the images of a set, or where none is named those of the run; or why there are none.

    Args:
        source: Run or model folder.
        model: Its model.
        check: Labelled set: its val images are scored, else test, else all.
        most: Images that are scored, at most.

    Raises:
        VitpError: The named set can't be used.
    """
    kind = type(model).labels(model.description["head"])
    if check is not None:
        labelled = open_labelled(check)
        splits = {name: labelled.split(name) for name in ("train", "val", "test")}
        return _chosen(splits, labelled, kind, most)
    config_file = Path(source) / CONFIG_FILE
    if not config_file.is_file():
        return f"{source} doesn't say what it was trained on"
    try:
        config = load_config(FinetuneConfig, config_file)
        data = config.data
        labelled = open_labelled(data.root, data.format, **data.options)
        return _chosen(run_splits(labelled, config, kind), labelled, kind, most)
    except VitpError as error:
        return f"the data of the run can't be used ({error.where}: {error.what})"


def _chosen(
    splits: Mapping[str, LabelledSet], labelled: LabelledSet, kind: LabelKind, most: int
) -> KnownImages:
    # Validation images first, as test images are for the model's own scores.
    split = next((name for name in ("val", "test") if len(splits[name])), "all")
    of_split = labelled_only(labelled if split == "all" else splits[split], kind)
    compared = subset(of_split, most)
    train = splits["train"]
    calibration = subset(labelled_only(train, kind), MOST_CALIBRATED) if len(train) else None
    part = f"{len(compared)} of " if len(compared) < len(of_split) else ""
    which = "all" if split == "all" else f"the {split}"
    said = f"compared on {part}{len(of_split)} images of {labelled.name} ({which} images)"
    return KnownImages(labelled.name, split, compared, len(of_split), calibration, said)


def graph_size(
    wanted: str | int | None, model: TaskModel, settings: TestSettings, images: LabelledSet | None
) -> tuple[tuple[int, int], str]:
    """Return height and width of a graph's images, and in words where they come from.

    Args:
        wanted: A side, or "HEIGHTxWIDTH"; None: what the model sees.
        model: Model that the graph is of.
        settings: How the model is applied.
        images: Labelled images, whose sizes tell what the model sees where its settings don't.

    Raises:
        ConfigError: It is no size, or nothing tells it.
    """
    if wanted is not None:
        return _parsed(str(wanted)), "as asked for"
    resize = settings.resize or model.input_size
    if settings.window is not None and model.name != "classification":
        return (settings.window, settings.window), "the window that the model looks through"
    if resize.mode == "fixed" and resize.size is not None:
        return (resize.size, resize.size), "what the model resizes images to"
    if images is None:
        raise ConfigError(
            "the model sees images of any size, and a graph takes one",
            where="--size",
            fix="name its side in pixels, or HEIGHTxWIDTH",
        )
    seen = {resize.of(item.height, item.width) for item in images.items}
    if len(seen) == 1:
        return seen.pop(), "what the model sees of every image that it is compared on"
    side = max(max(pair) for pair in seen)
    return (side, side), "the longest side of what the model sees; smaller images are padded with black"


def _parsed(text: str) -> tuple[int, int]:
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) not in (1, 2) or not all(part.strip().isdigit() for part in parts):
        raise ConfigError(
            f'"{text}" is no size', where="--size", fix="write a side in pixels, or HEIGHTxWIDTH"
        )
    sides = [int(part) for part in parts]
    if not all(8 <= side <= 8192 for side in sides):
        raise ConfigError(f'"{text}" is no size', where="--size", fix="give sides from 8 to 8192 pixels")
    return sides[0], sides[-1]


def inputs_of(
    graph: GraphModel, model: TaskModel, images: LabelledSet, settings: TestSettings, most: int
) -> Iterator[np.ndarray]:
    """Yield what a graph sees of some images, batch by batch.

    Args:
        graph: Whose contract says how images are cut.
        model: Model whose bands are read.
        images: Labelled ones; labels aren't used.
        settings: How bands are read.
        most: Images.
    """
    kind = type(model).labels(model.description["head"])
    reader = label_reader(model, images, kind, settings)
    for item in subset(images, most).items:
        sample = reader.sample(item)
        later = present(sample.later_CHW).numpy() if graph.contract.pairs else None
        yield from graph.inputs(sample.image_CHW.numpy(), later)
