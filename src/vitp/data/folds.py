"""Cross-validation: the images of a set in k parts, of which each is the test once.

Images of one group (a patient, a place, a video) are in one fold. Where the publisher made as many folds, these count.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from vitp.core.errors import ConfigError
from vitp.records.labels import LabelledImage, LabelledSet


def folds_of(items: Sequence[LabelledImage], count: int) -> list[int]:
    """Return the fold of each image, from 0: a function of the images alone.

    Groups are spread so that folds have about as many images, and about as many of each class that is known without
    opening a mask: the largest groups first, each to where it evens out most.

    Raises:
        ConfigError: There are fewer groups than folds.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        members[f"group {item.group}" if item.group else f"image {item.id}"].append(number)
    if len(members) < count:
        what = (
            f"{len(members)} {'group' if len(members) == 1 else 'groups'} can't be spread over {count} folds"
        )
        raise ConfigError(what, where="data.folds", fix="choose fewer folds, or take more patients")
    held = {name: Counter(key for n in own for key in _classes(items[n])) for name, own in members.items()}
    totals = sum(held.values(), Counter())

    def order(name: str) -> tuple[int, bytes]:
        return -len(members[name]), hashlib.sha256(name.encode(errors="surrogatepass")).digest()

    folds: list[Counter[str]] = [Counter() for _ in range(count)]
    groups = [0] * count
    found = [0] * len(items)
    for place, name in enumerate(sorted(members, key=order)):
        left = len(members) - place
        # No fold may stay empty: the last groups go to those that have none.
        empty = [fold for fold in range(count) if not groups[fold]]
        allowed = empty if left <= len(empty) else range(count)
        own = held[name]

        def unevenness(fold: int, own: Counter[str] = own) -> tuple[float, int]:
            cost = sum((2 * folds[fold][key] + n) * n / totals[key] ** 2 for key, n in own.items())
            return round(cost, 12), groups[fold]

        best = min(allowed, key=unevenness)
        folds[best] += own
        groups[best] += 1
        for number in members[name]:
            found[number] = best
    return found


def _classes(item: LabelledImage) -> list[str]:
    """Return what an image counts for: itself, and each class of it that is known at once."""
    objects = {label.category for label in item.objects or ()}
    scenes = set(item.tags or ()) | ({item.scene} if item.scene is not None else set())
    return ["", *(f"object {name}" for name in objects), *(f"scene {name}" for name in scenes)]


def as_fold(labelled: LabelledSet, count: int, fold: int) -> tuple[LabelledSet, str]:
    """Return a set in which one fold is the split `test` and the others are `train`, and a line that says it.

    Images of the set's own `test` are in no fold: they are looked at once, when everything is decided.

    Raises:
        ConfigError: There is no such fold, or there are too few groups.
    """
    if not 0 <= fold < count:
        what = f"there is no fold {fold} of {count}"
        raise ConfigError(what, where="data.fold", fix=f"folds count from 0 to {count - 1}")
    pool = [item for item in labelled.items if item.split != "test"]
    apart = len(labelled.items) - len(pool)
    own = {item.fold for item in pool}
    published = own == set(range(count))
    told = [item.fold or 0 for item in pool] if published else folds_of(pool, count)
    items = [
        replace(item, split="test" if number == fold else "train")
        for item, number in zip(pool, told, strict=True)
    ]
    held = [item for item in items if item.split == "test"]
    line = f"fold {fold} of 0–{count - 1}: tested on {len(held):,} of {len(items):,} images"
    if any(item.group for item in items):
        mine, all_ = (len({item.group or item.id for item in some}) for some in (held, items))
        line += f", {mine:,} of {all_:,} groups"
    line += " (folds as published)" if published else ""
    if own - {None} and not published:
        line += f"; the set has {len(own - {None})} folds of its own, which aren't used"
    if apart:
        line += f"; {apart:,} images of the set's own test split are in no fold"
    return replace(labelled, items=items), line
