"""Training, validation and test images of a labelled set, and random choices among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vitp.core.errors import ConfigError
from vitp.records.labels import SPLITS, LabelledImage, LabelledSet


def subset(images: LabelledSet, count: int) -> LabelledSet:
    """Return `count` random images of a set, always the same ones, or all when there are no more."""
    if len(images) <= count:
        return images
    chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:count])
    return replace(images, items=[images.items[int(index)] for index in chosen])


def splits_of(labelled_set: LabelledSet | Mapping[str, LabelledSet]) -> dict[str, LabelledSet]:
    """Return train, val and test; without val images a fifth of the training groups is held out for it.

    Raises:
        ConfigError: There are no train or no test images.
    """
    if isinstance(labelled_set, LabelledSet):
        items: dict[str, list[LabelledImage]] = {name: [] for name in SPLITS}
        for index in range(len(labelled_set)):
            item = labelled_set.items[index]
            if item.split in items:
                items[item.split].append(item)
        found = {name: replace(labelled_set, items=items[name]) for name in SPLITS}
    else:
        found = {name: labelled_set[name] for name in SPLITS if name in labelled_set}
    for name in ("train", "test"):
        if name not in found or not len(found[name]):
            fix = "compile the set with -o splits=drawn, or with -o split_file=FILE that names some"
            raise ConfigError(f"there are no {name} images", where="probes", fix=fix)
    if "val" not in found or not len(found["val"]):
        found["train"], found["val"] = _hold_out(found["train"])
    return {name: found[name] for name in SPLITS}


def development_splits(labelled_set: LabelledSet | Mapping[str, LabelledSet]) -> dict[str, LabelledSet]:
    """Return splits for scores that settings may be chosen by: the test images are left alone.

    `test` holds the validation images; what the probes choose for themselves, they choose on a fifth of the
    training groups.

    Raises:
        ConfigError: There are no train or no test images.
    """
    splits = splits_of(labelled_set)
    train, held = _hold_out(splits["train"])
    return {"train": train, "val": held, "test": splits["val"]}


def _hold_out(train: LabelledSet) -> tuple[LabelledSet, LabelledSet]:
    """Split a fifth of the groups off; images of one group stay together."""
    items = [train.items[index] for index in range(len(train))]
    groups = sorted({item.group or item.id for item in items})
    if len(groups) < 2:
        what = "there are no val images, and one group of train images can't be split"
        raise ConfigError(what, where="probes", fix="label some as val")
    order = np.random.default_rng(0).permutation(len(groups))
    held = {groups[index] for index in order[: max(1, round(0.2 * len(groups)))]}
    return (
        replace(train, items=[item for item in items if (item.group or item.id) not in held]),
        replace(train, items=[item for item in items if (item.group or item.id) in held]),
    )


def label_count(available: int, labels: int | float | None) -> int:
    """Return how many images `labels` (a number, a share, None for all) means.

    Raises:
        ConfigError: There are not as many, or fewer than two.
    """
    count = (
        available if labels is None else round(labels * available) if isinstance(labels, float) else labels
    )
    if not 2 <= count <= available:
        what = f"{labels} labels asked for, {available} train images there"
        raise ConfigError(what, where="--labels", fix="choose 2 or more")
    return count


def draw_images(scene_N: Tensor, count: int, seed: int) -> Tensor:
    """Return `count` random image numbers, in turn from each scene class where there are some; sorted."""
    order = np.random.default_rng([seed, len(scene_N)]).permutation(len(scene_N))
    rank = np.zeros(len(scene_N), int)
    seen: dict[int, int] = {}
    for index in order:
        scene = int(scene_N[index])
        rank[index] = seen[scene] = seen.get(scene, -1) + 1
    if bool((scene_N >= 0).any()):
        order = order[np.argsort(rank[order], kind="stable")]
    return torch.from_numpy(np.sort(order[:count]))
