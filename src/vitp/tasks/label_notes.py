"""Notes about labels that a run can't learn from or can't score, made before it starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from vitp.core.errors import DataError
from vitp.data.nodata import held_by, held_change, held_classes, nodata_note
from vitp.io.parts import split_address
from vitp.records.labels import LabelledSet
from vitp.tasks.base import LabelKind
from vitp.tasks.data import CHANGE_CLASSES, LabelReader, lacks_outline

MOST_MASKS = 500
"""Masks that are read at most to find the classes that none of them holds."""

MOST_NAMES = 8
"""Classes that a line names at most."""

_SLICEWISE = (
    "objects of volumes are found and scored slice by slice (AP), and not joined across slices, so there are no scores "
    "by case in mm and ml; class maps have them (vitp finetune segmentation)"
)
_HOLDERS = {"semantic": "a labelled pixel", "change": "a changed pixel", "scene": "a class"}


def _are_slices(part: LabelledSet, kind: LabelKind) -> bool:
    """Return whether objects are learned or scored on slices of volumes; the first image tells."""
    if kind not in ("objects", "instances", "oriented", "panoptic"):
        return False
    return any(split_address(item.image)[1].slice is not None for item in part.items[:1])


def label_notes(
    splits: Mapping[str, LabelledSet],
    kind: LabelKind,
    classes: Sequence[str],
    *,
    learned: str | None = "train",
) -> list[str]:
    """Return lines on classes that the training images lack, and on other images that nothing can be scored on.

    Items of a lazy set are made when they are touched, so such a split isn't looked at.

    Args:
        splits: Name → images.
        kind: Kind of labels that is learned.
        classes: Names.
        learned: Name of the split that is learned from; None: none is.

    Raises:
        DataError: The training images hold nothing to learn: no clear object, no labelled or changed pixel.
    """
    notes = [_SLICEWISE] if any(_are_slices(part, kind) for part in splits.values()) else []
    for name, part in splits.items():
        if not isinstance(part.items, list | tuple) or not len(part):
            continue
        held, all_seen = _classes_held(part, kind, classes)
        boxes = sum(lacks_outline(label, kind) for item in part.items for label in item.objects or ())
        if kind == "change":
            # Ground that stays the same is nothing that could be learned.
            held.pop(CHANGE_CLASSES[0], None)
        if not held and all_seen:
            holder = _HOLDERS.get(kind, "an object with an outline" if boxes else "an object")
            what = f"none of the {len(part)} {name} images holds {holder}"
            if name == learned:
                raise DataError(
                    f"{what}: there is nothing to learn",
                    where=part.name,
                    fix="choose the task detection, or read masks with the option instances=true"
                    if boxes
                    else "check the labels and how they are read (vitp data compile tells), or choose other images",
                )
            notes.append(f"{what}: they can't be scored")
        if boxes:
            notes.append(f"{name}: objects with a box and no outline, neither learned nor counted: {boxes:,}")
        if kind == "change" and name == learned and any(item.transition is not None for item in part.items):
            notes.append(
                "where something changed is learned, not what became what; visual instructions teach that (vitp pretrain)"
            )
        missing = [one for one in classes if one not in held]
        if name == learned and kind != "change" and missing and all_seen:
            more = len(missing) - MOST_NAMES
            names = ", ".join(missing[:MOST_NAMES]) + (f" and {more} more classes" if more > 0 else "")
            notes.append(f"no training image holds {names}: the model can't learn that")
    return notes


def _classes_held(part: LabelledSet, kind: LabelKind, classes: Sequence[str]) -> tuple[Counter[str], bool]:
    """Return the classes that images hold, and whether all images that could hold another one were looked at."""
    if kind == "scene":
        return Counter(item.scene for item in part.items if item.scene is not None), True
    if kind == "presence" and any(item.tags is not None for item in part.items):
        return Counter(name for item in part.items for name in item.tags or ()), True
    if kind == "panoptic":  # what is stuff stands in masks alone
        things, all_things = _classes_held(part, "instances", classes)
        pixels, all_pixels = _classes_held(part, "semantic", classes)
        stuff = {name: count for name, count in pixels.items() if name not in part.object_classes}
        return things + Counter(stuff), all_things and all_pixels
    if kind not in ("semantic", "change"):
        labels = (label for item in part.items for label in item.objects or ())
        clear = (label for label in labels if not label.difficult and not lacks_outline(label, kind))
        return Counter(label.category for label in clear), True
    names = CHANGE_CLASSES if kind == "change" else part.semantic_classes
    held: Counter[str] = Counter()
    for item in part.items[:MOST_MASKS]:
        mask_HW = None
        if kind == "change" and item.change is not None:
            mask_HW = held_change(item, held_by(item, part.channels))
        elif kind == "semantic" and item.semantic is not None:
            mask_HW = held_classes(item, held_by(item, part.channels))
        values = [] if mask_HW is None else np.unique(mask_HW).tolist()
        held.update(names[value] for value in values if value < len(names))
        if all(name in held for name in classes):
            return held, True
    return held, len(part) <= MOST_MASKS


def left_out_notes(splits: Mapping[str, LabelledSet], findings: Sequence[str]) -> list[str]:
    """Return the findings of each split that the whole set doesn't have: how many images lack the labels."""
    return [f"{name}: {line}" for name, part in splits.items() for line in part.findings[len(findings) :]]


def nodata_notes(reader: LabelReader, what: str) -> list[str]:
    """Return a line on how much of images with the class of each pixel holds nothing; see `vitp.data.nodata`.

    Args:
        reader: The images and how they are read.
        what: What the images are called: "training".
    """
    return nodata_note(reader.labelled, reader.seen, what) if reader.is_pixelwise else []
