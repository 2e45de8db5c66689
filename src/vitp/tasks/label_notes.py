"""What the labels of a run can't teach or can't score, known before it starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vitp.core.errors import DataError
from vitp.data.ignored import known_semantic
from vitp.records.labels import LabelledImage, LabelledSet
from vitp.tasks.base import LabelKind
from vitp.tasks.data import CHANGE_CLASSES

MOST_MASKS = 500
"""Masks that are read at most to find the classes that none of them holds."""

MOST_NAMES = 8
"""Classes that a line names at most."""

_HOLDERS = {"semantic": "a labelled pixel", "change": "a changed pixel", "scene": "a class"}


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
        kind: Which labels are learned.
        classes: Names.
        learned: Name of the split that is learned from; None: none is.

    Raises:
        DataError: The training images hold nothing to learn: no clear object, no labelled or changed pixel.
    """
    notes = []
    for name, part in splits.items():
        if not isinstance(part.items, list | tuple) or not len(part):
            continue
        held, all_seen = _classes_held(part, kind, classes)
        if kind == "change":
            held.pop(CHANGE_CLASSES[0], None)
        if not held and all_seen:
            what = f"none of the {len(part)} {name} images holds {_HOLDERS.get(kind, 'an object')}"
            if name == learned:
                raise DataError(
                    f"{what}: there is nothing to learn",
                    where=part.name,
                    fix="check the labels and how they are read (vitp data compile tells), or choose other images",
                )
            notes.append(f"{what}: they can't be scored")
        missing = [one for one in classes if one not in held]
        if name == learned and kind != "change" and missing and all_seen:
            notes.append(f"no training image holds {_listed(missing)}: the model can't learn that")
    return notes


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more classes" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _classes_held(part: LabelledSet, kind: LabelKind, classes: Sequence[str]) -> tuple[Counter[str], bool]:
    """Return the classes that images hold, and whether all images that could hold another one were looked at."""
    if kind not in ("semantic", "change"):
        return Counter(name for item in part.items for name in _named(item, kind)), True
    names = CHANGE_CLASSES if kind == "change" else part.semantic_classes
    held: Counter[str] = Counter()
    for item in part.items[:MOST_MASKS]:
        held.update(names[value] for value in _values(item, kind) if value < len(names))
        if all(name in held for name in classes):
            return held, True
    return held, len(part) <= MOST_MASKS


def _named(item: LabelledImage, kind: LabelKind) -> Iterable[str]:
    if kind == "scene":
        return () if item.scene is None else (item.scene,)
    return (label.category for label in item.objects or () if not label.difficult)


def _values(item: LabelledImage, kind: LabelKind) -> list[int]:
    if kind == "change":
        return [] if item.change is None else np.unique(item.change().astype(np.uint8)).tolist()
    return [] if item.semantic is None else np.unique(known_semantic(item)).tolist()


def left_out_notes(splits: Mapping[str, LabelledSet], findings: Sequence[str]) -> list[str]:
    """Return the findings of each split that the whole set doesn't have: how many images lack the labels."""
    return [f"{name}: {line}" for name, part in splits.items() for line in part.findings[len(findings) :]]
