"""From labelled sets to the images and labels of a task; `vitp.tasks.batches` makes batches of them.

Shapes: N objects, C classes, H × W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitp.core.errors import ConfigError, DataError, did_you_mean
from vitp.data.formats import read_labels
from vitp.data.ignored import UNLABELLED, read_mask, rings_of
from vitp.data.image_sample import ImageSample
from vitp.data.nodata import where_held
from vitp.data.seen import PICTURES, SeenBands
from vitp.data.splits import draw_images, label_count, splits_of
from vitp.io.images import image_size
from vitp.io.pixels import LARGE_PIXELS
from vitp.metrics.results import Target
from vitp.records.geometry import area, as_points
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet, ObjectLabel
from vitp.records.regions import rasterise
from vitp.tasks.base import InputSize, LabelKind, TaskModel, TestSettings

CHANGE_CLASSES = ("unchanged", "changed")
# `vitp data compile … -o` is a command of its own and stays as it is.
_OPTION = re.compile(r"(?<!compile )-o ('?)(\w)")
OUTSIDE_TOLERANCE = 1.0
"""Pixels that a box may reach over the border: annotation tools round."""


def open_labelled(path: str | Path, format: str = "auto", **options: Any) -> LabelledSet:
    """Return the labels of a compiled folder, or of a folder in any format that `vitp data compile` reads.

    Args:
        path: Folder (or COCO file; or the domain of generated scenes with `format="scenes"`).
        format: A key of `vitp.data.formats.LABEL_FORMATS`, or "auto".
        **options: Of the format.

    Raises:
        ConfigError: There is no such format or option.
        DataError: The labels can't be read.
    """
    return read_labels(format, path, **options)


def open_configured(path: str | Path, format: str, options: Mapping[str, Any]) -> LabelledSet:
    """Return the labels that a configuration names; messages name its settings, not the options of other commands.

    Raises:
        ConfigError, DataError: As `open_labelled`.
    """
    try:
        return open_labelled(path, format, **options)
    except (ConfigError, DataError) as error:
        what, where, fix = (
            text and _OPTION.sub(r"-s \1data.options.\2", text.replace("--format ", "-s data.format="))
            for text in (error.what, error.where, error.fix)
        )
        raise type(error)(what or "", where=where, fix=fix) from error


def classes_of(labelled: LabelledSet, kind: LabelKind) -> tuple[str, ...]:
    """Return the names of the classes that a kind of labels tells apart.

    Raises:
        DataError: The set has no such labels.
    """
    if kind == "change":
        return CHANGE_CLASSES
    if kind == "panoptic" and labelled.semantic_classes and labelled.object_classes:
        own = labelled.semantic_classes
        return (*own, *(name for name in labelled.object_classes if name not in own))
    by_kind = {"scene": labelled.scene_classes, "semantic": labelled.semantic_classes}
    classes = () if kind == "panoptic" else by_kind.get(kind, labelled.object_classes)
    if kind == "presence":
        classes = classes or labelled.scene_classes
    if not classes:
        fix = "choose a set or a task that fits"
        if labelled.change_classes:
            fix = (
                "its masks say what became what between two dates: vitp finetune change learns where something changed, "
                "and visual instructions (vitp pretrain) what became what"
            )
        raise DataError(f"has no {_LABEL_NAMES[kind]}", where=labelled.name, fix=fix)
    return classes


_LABEL_NAMES: dict[str, str] = {
    "scene": "classes of whole images",
    "presence": "objects",
    "objects": "objects",
    "instances": "objects with outlines",
    "oriented": "objects",
    "semantic": "masks",
    "panoptic": "objects with outlines beside masks of classes",
    "change": "pairs with change masks",
}


def is_labelled(item: LabelledImage, kind: LabelKind) -> bool:
    """Return whether an image has labels of a kind (an empty list of objects is a label, too)."""
    if kind == "scene":
        return item.scene is not None
    if kind == "semantic":
        return item.semantic is not None
    if kind == "panoptic":
        return item.semantic is not None and item.objects is not None
    if kind == "change":
        return item.second_image is not None and item.change is not None
    return item.objects is not None or (kind == "presence" and item.tags is not None)


def lacks_outline(label: ObjectLabel, kind: LabelKind) -> bool:
    """Return whether a clear object has a box alone, where outlines are learned."""
    return kind in ("instances", "panoptic") and not label.polygons and not label.difficult


def labelled_only(labelled: LabelledSet, kind: LabelKind) -> LabelledSet:
    """Return the images that have labels of a kind; how many were left out is a finding.

    Items of a lazy set are made when they are touched, so only its first one is looked at.

    Raises:
        DataError: No image has such labels.
    """
    classes_of(labelled, kind)
    lazy = not isinstance(labelled.items, list | tuple)
    probe = [labelled.items[0]] if lazy and len(labelled) else list(labelled.items)
    kept = [item for item in probe if is_labelled(item, kind)]
    if not kept:
        raise DataError(
            f"none of its {len(labelled)} images has {_LABEL_NAMES[kind]}",
            where=labelled.name,
            fix="images with several classes need -s head.multi_label=true"
            if kind == "scene" and any(item.tags is not None for item in probe)
            else "check the labels' folder, or choose a task that fits",
        )
    if lazy or len(kept) == len(probe):
        return labelled
    finding = f"{len(probe) - len(kept)} of {len(probe)} images have no {_LABEL_NAMES[kind]}; left out"
    return replace(labelled, items=kept, findings=(*labelled.findings, finding))


def task_splits(labelled: LabelledSet | Mapping[str, LabelledSet], kind: LabelKind) -> dict[str, LabelledSet]:
    """Return the train, val and test images that have the labels; without val a fifth of train is held out.

    Raises:
        ConfigError: There are no train or no test images.
        DataError: A split has no labels of the kind.
    """
    try:
        splits = splits_of(labelled)
    except ConfigError as error:
        name = labelled.name if isinstance(labelled, LabelledSet) else "data"
        raise ConfigError(error.what, where=name, fix=error.fix) from None
    return {name: labelled_only(part, kind) for name, part in splits.items()}


def draw_labels(train: LabelledSet, labels: int | float | None, seed: int) -> LabelledSet:
    """Return a number or share of the training images: a function of the set and the seed alone.

    Raises:
        ConfigError: There are not as many.
    """
    if labels is None:
        return train
    try:
        count = label_count(len(train), labels)
    except ConfigError as error:
        raise ConfigError(error.what, where="data.labels", fix=error.fix) from None
    scenes = {name: number for number, name in enumerate(train.scene_classes)}
    items = [train.items[index] for index in range(len(train))]
    scene_N = torch.tensor([scenes.get(item.scene or "", -1) for item in items])
    return replace(train, items=[items[index] for index in draw_images(scene_N, count, seed).tolist()])


@dataclass(frozen=True)
class LabelReader:
    """Reads the images of a set with the labels of one kind, in the numbers of a model's classes.

    Attributes:
        labelled: The set.
        kind: Kind of labels that is read.
        classes: Classes of the model; the set's by default. Every class of the set must be among them.
        seen: What of the images' bands is seen.

    Raises:
        DataError: The set has other classes.
    """

    labelled: LabelledSet
    kind: LabelKind
    classes: tuple[str, ...] = ()
    seen: SeenBands = PICTURES
    _semantic_V: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        own = classes_of(self.labelled, self.kind)
        if not self.classes:
            object.__setattr__(self, "classes", own)
        for name in own:
            if name not in self.classes:
                raise DataError(
                    f'has the class "{name}", the model has {", ".join(self.classes)}',
                    where=self.labelled.name,
                    # "foreground" is like "background", and not meant.
                    fix=did_you_mean(name, self.classes, likeness=0.8)
                    or "evaluate on the classes it was trained for",
                )
        table_V = np.full(256, IGNORE, np.uint8)
        if self.is_pixelwise:
            table_V[: len(own)] = [self.classes.index(name) for name in own]
        object.__setattr__(self, "_semantic_V", table_V)

    @property
    def is_pixelwise(self) -> bool:
        """Whether the labels say something of each pixel."""
        return self.kind in ("semantic", "change", "panoptic")

    def sample(self, item: LabelledImage, seen: InputSize | None = None, largest: float = 1.0) -> ImageSample:
        """Return an image with its labels.

        Args:
            item: One of the set.
            seen: What size the image gets later. A large one whose labels are of the whole image then comes smaller
                at once, see `vitp.io.images.load_image`.
            largest: Factor on that size.

        Raises:
            DataError: A file is missing or damaged, or a label doesn't fit its image or the classes.
        """
        # Only labels of the whole image allow fewer pixels; all others have places in it.
        large = (
            self.kind == "scene" or (self.kind == "presence" and item.objects is None)
        ) and item.width * item.height > LARGE_PIXELS
        enough = seen.enough(largest) if large and seen is not None else None
        held_HW: np.ndarray | None = None
        if self.is_pixelwise:
            image_CHW, held_HW = self.seen.held(item.image)
            held_HW = held_HW if item.held is None else item.held()
        else:
            image_CHW = self.seen.planes(item.image, enough)
        # An image that was read smaller doesn't tell its size any more; the file does.
        size = (image_CHW.shape[1], image_CHW.shape[2]) if enough is None else image_size(item.image)[::-1]
        if size != (item.height, item.width):
            raise DataError(
                f"is {size[1]}×{size[0]} px, its labels say {item.width}×{item.height}",
                where=item.image,
                fix="compile the labels again",
            )
        sample = ImageSample(torch.from_numpy(image_CHW))
        if self.kind in ("semantic", "panoptic"):
            mask_HW = where_held(self._semantic_V[read_mask(item, self.labelled, size)], held_HW)
            sample = replace(sample, semantic_HW=torch.from_numpy(mask_HW))
        if self.kind == "semantic":
            return sample
        if self.kind == "change":
            return self._pair(sample, item, held_HW)
        if self.kind == "scene":
            assert item.scene is not None
            return replace(sample, classes_K=self._present((item.scene,), item))
        if self.kind == "presence" and item.objects is None:
            return replace(sample, classes_K=self._present(item.tags or (), item, item.unknown))
        objects = tuple(self._checked(item, label) for label in item.objects or ())
        return replace(sample, objects=objects, ignored=item.ignored)

    def _pair(self, sample: ImageSample, item: LabelledImage, held_HW: np.ndarray | None) -> ImageSample:
        assert item.second_image is not None and item.change is not None
        later_CHW, later_held_HW = self.seen.held(item.second_image)
        change_HW = item.change()
        for what, shape in (("later date", later_CHW.shape[1:]), ("change mask", change_HW.shape)):
            if tuple(shape) != sample.size:
                raise DataError(
                    f"its {what} is {shape[1]}×{shape[0]} px, its first date {sample.size[1]}×{sample.size[0]}",
                    where=f"image {item.id}",
                    fix="cut both dates and the mask to the same size",
                )
        return replace(
            sample,
            later_CHW=torch.from_numpy(later_CHW),
            semantic_HW=torch.from_numpy(where_held(change_HW.astype(np.uint8), held_HW, later_held_HW)),
        )

    def _number(self, name: str, item: LabelledImage) -> int:
        if name not in self.classes:
            raise DataError(
                f'class "{name}" is not in the list of classes ({", ".join(self.classes)})',
                where=f"image {item.id}",
                fix=did_you_mean(name, self.classes) or "mend the label or compile the set again",
            )
        return self.classes.index(name)

    def _present(self, names: Sequence[str], item: LabelledImage, unknown: Sequence[str] = ()) -> Tensor:
        present_K = torch.zeros(len(self.classes))
        present_K[[self._number(name, item) for name in unknown]] = float(UNLABELLED)
        # Last: a class that is named is there, be it among the unknown ones or not.
        present_K[[self._number(name, item) for name in names]] = 1.0
        return present_K

    def _checked(self, item: LabelledImage, label: ObjectLabel) -> ObjectLabel:
        self._number(label.category, item)
        x1, y1, x2, y2 = label.box
        slack = OUTSIDE_TOLERANCE
        inside = x1 >= -slack and y1 >= -slack and x2 <= item.width + slack and y2 <= item.height + slack
        if not (inside and x1 < x2 and y1 < y2):
            raise DataError(
                f"the box ({x1:g}, {y1:g}, {x2:g}, {y2:g}) of a {label.category} "
                + ("has no area" if inside else f"lies outside the image of {item.width}×{item.height} px"),
                where=f"image {item.id}",
                fix="mend the label or compile the set again",
            )
        if lacks_outline(label, self.kind):
            # Where it lies within its box nobody knows: neither learned nor background.
            return replace(label, difficult=True)
        return label

    def target(self, sample: ImageSample) -> Target:
        """Return what a model is told of a sample, after augmentation."""
        if self.kind in ("semantic", "change"):
            return Target(semantic_HW=sample.semantic_HW)
        if self.kind == "scene" or sample.classes_K is not None:
            return Target(classes_C=sample.classes_K)
        labels = [label for label in sample.objects or () if _has_area(label, sample.size)]
        ignored = [label for label in sample.ignored if _has_area(label, sample.size)]
        numbers_N = torch.tensor([self.classes.index(o.category) for o in labels], dtype=torch.int64)
        difficult_N = torch.tensor([label.difficult for label in labels], dtype=torch.bool)
        if self.kind == "presence":
            # In an ignored place there may be objects of any class, so none is known to be absent.
            classes_C = torch.full((len(self.classes),), float(UNLABELLED if ignored else 0))
            # In this order: a clear object of a class says more than a difficult one beside it.
            classes_C[numbers_N[difficult_N]] = UNLABELLED
            classes_C[numbers_N[~difficult_N]] = 1.0
            return Target(classes_C=classes_C)
        target = Target(
            boxes_N4=_boxes(labels, sample.size),
            labels_N=numbers_N,
            difficult_N=difficult_N,
            ignored_M4=_boxes(ignored, sample.size),
        )
        if self.kind == "oriented":
            return replace(target, quads_N8=_quads(labels), ignored_M8=_quads(ignored))
        if self.kind in ("instances", "panoptic"):
            return replace(
                target,
                masks_NHW=_masks(labels, sample.size),
                ignored_MHW=_masks(ignored, sample.size),
                semantic_HW=sample.semantic_HW,
            )
        return replace(target, areas_N=_areas(labels, sample.size))


def _boxes(labels: Sequence[ObjectLabel], size: tuple[int, int]) -> Tensor:
    height, width = size
    boxes_N4 = _numbers([label.box for label in labels], 4)
    return torch.minimum(boxes_N4.clamp(min=0), torch.tensor([width, height, width, height]).float())


def _areas(labels: Sequence[ObjectLabel], size: tuple[int, int]) -> Tensor:
    """Return (N,) areas as COCO means them: those of the outlines, which are smaller than the boxes around them."""
    areas = [
        sum(area(as_points(ring)) for ring in label.polygons) - sum(area(as_points(h)) for h in label.holes)
        if label.polygons
        else (x2 - x1) * (y2 - y1)
        for label, (x1, y1, x2, y2) in zip(labels, _boxes(labels, size).tolist(), strict=True)
    ]
    return torch.tensor(areas, dtype=torch.float32)


def _quads(labels: Sequence[ObjectLabel]) -> Tensor:
    return _numbers([label.quad or rings_of(replace(label, polygons=()))[0] for label in labels], 8)


def _masks(labels: Sequence[ObjectLabel], size: tuple[int, int]) -> Tensor:
    masks = [rasterise(rings_of(label), size, label.holes) for label in labels]
    return torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *size), np.uint8))


def _has_area(label: ObjectLabel, size: tuple[int, int]) -> bool:
    x1, y1, x2, y2 = label.box
    return min(x2, size[1]) - max(x1, 0) > 0 and min(y2, size[0]) - max(y1, 0) > 0


def _numbers(rows: Sequence[Sequence[float]], columns: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, columns)


def label_reader(
    model: TaskModel, labelled: LabelledSet, kind: LabelKind, settings: TestSettings
) -> LabelReader:
    """Return how the labels of a set are read for a model: in its classes, and by its bands.

    Raises:
        ConfigError, DataError: The set has other classes, or lacks bands of the model.
    """
    seen = SeenBands.by(model.backbone.in_channels, labelled, missing_bands=settings.missing_bands)
    return LabelReader(labelled, kind, model.classes, seen)
