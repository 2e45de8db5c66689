"""The classes of two sets as one list: the old ones first, joined by name; what has two readings is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from vitp.core.errors import DataError
from vitp.data.formats.pixel_masks import remapped
from vitp.records.labels import LabelledSet

_LISTS = {
    "object_classes": ("objects", "later_objects"),
    "scene_classes": ("tags",),
    "semantic_classes": ("semantic",),
    "change_classes": ("transition",),
}
"""Lists of classes, and the labels that are complete lists of what there is of them."""


def joined_classes(old: LabelledSet, new: LabelledSet, *, complete: bool) -> dict[str, Any]:
    """Return all lists of classes, the old ones first.

    Raises:
        DataError: Two names are alike, or a class is known to one set alone.
    """
    joined: dict[str, Any] = {}
    for key, kinds in _LISTS.items():
        first, second = getattr(old, key), getattr(new, key)
        for name in second:
            twin = next((o for o in first if o != name and _plain(o) == _plain(name)), None)
            if twin is not None:
                raise DataError(
                    f'the class "{name}" may be the old set\'s "{twin}", or another one',
                    where=new.name,
                    fix="write both alike in the labels, or call one of them otherwise, and compile again",
                )
        both = all(
            any(getattr(item, kind) is not None for item in one.items for kind in kinds) for one in (old, new)
        )
        lone = [
            (one.name, [name for name in own if name not in other])
            for one, own, other in ((old, first, second), (new, second, first))
        ]
        if both and not complete and any(names for _, names in lone):
            told = " and ".join(f"{', '.join(names)} only in {name}" for name, names in lone if names)
            raise DataError(
                f"{key.replace('_', ' ')}: {told}; nobody may have looked for them in the other set, or there are none",
                where=new.name,
                fix="--complete says that all were looked for in both; or compile with -o classes=… in both",
            )
        joined[key] = (*first, *(name for name in second if name not in first))
    return joined


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", name).casefold()


def with_classes(new: LabelledSet, joined: dict[str, Any]) -> LabelledSet:
    """Return a set whose masks count the classes as the joined lists do."""
    items = list(new.items)
    for kind, key in (("semantic", "semantic_classes"), ("transition", "change_classes")):
        numbers = {own: joined[key].index(name) for own, name in enumerate(getattr(new, key))}
        if all(own == number for own, number in numbers.items()):
            continue
        for place, item in enumerate(items):
            if getattr(item, kind) is not None:
                changed: dict[str, Any] = {kind: remapped(getattr(item, kind), numbers, item.id)}
                items[place] = replace(item, **changed)
    return replace(new, items=items, **joined)
