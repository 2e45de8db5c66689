"""What everybody can say of an image without drawing: its cheap labels, made of a set with expensive ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from vitp.core.errors import DataError
from vitp.data.synthesis.classes import class_pixels
from vitp.records.channels import Channels
from vitp.records.labels import BACKGROUND, IGNORE, NOT_LABELLED, LabelledImage, LabelledSet, ObjectLabel

CHEAP_QUESTIONS: dict[str, float] = {
    "caption": 0.25,
    "scene": 1.0,
    "scene_options": 1.0,
    "tags": 1.0,
    "presence": 1.0,
    "count": 1.0,
    "count_compare": 1.0,
}
"""Question task → weight, as among all questions: those that cheap labels answer."""


def cheap_labels(labelled: LabelledSet) -> LabelledSet:
    """Return the set with what can be said of whole images: class, tags, captions, which objects there are, how many.

    Masks, outlines and corners are gone, and every object lies all over its image: nothing that learns from the set
    can know where it is. Of a set with masks alone, the classes in an image's mask are its objects, one of each, so
    that its counts say nothing more than presence. Where part of a mask isn't labelled, no class is absent.
    Pairs of dates are left out.

    Raises:
        DataError: The set has neither objects nor masks.
    """
    masks = not labelled.object_classes
    classes = labelled.object_classes or tuple(n for n in labelled.semantic_classes if n != BACKGROUND)
    if not classes:
        raise DataError(
            "has neither boxes nor masks", where=labelled.name, fix="choose a set with such labels"
        )
    names = labelled.semantic_classes
    items = [
        _of_mask(item, names, labelled.channels) if masks else _of_objects(item)
        for item in (labelled.items[index] for index in range(len(labelled)))
        if item.second_image is None
    ]
    return replace(labelled, items=items, object_classes=classes, semantic_classes=(), change_classes=())


def _everywhere(item: LabelledImage, category: str, *, difficult: bool = False) -> ObjectLabel:
    return ObjectLabel(category, (0.0, 0.0, float(item.width), float(item.height)), difficult=difficult)


def _of_objects(item: LabelledImage) -> LabelledImage:
    def spread(labels: tuple[ObjectLabel, ...]) -> Iterator[ObjectLabel]:
        return (_everywhere(item, label.category, difficult=label.difficult) for label in labels)

    objects = None if item.objects is None else tuple(spread(item.objects))
    return replace(item, objects=objects, ignored=tuple(spread(item.ignored)), semantic=None)


def _of_mask(item: LabelledImage, names: tuple[str, ...], channels: Channels | None) -> LabelledImage:
    if (pixels := class_pixels(item, channels)) is None:
        return replace(item, objects=None, ignored=())
    there = np.flatnonzero(pixels).tolist()
    found = [names[value] for value in there if value < len(names) and names[value] != BACKGROUND]
    ignored = (_everywhere(item, NOT_LABELLED),) if IGNORE in there else ()
    objects = tuple(_everywhere(item, name) for name in found)
    return replace(item, objects=objects, ignored=ignored, semantic=None)
