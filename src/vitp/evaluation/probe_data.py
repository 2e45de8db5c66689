"""What probes are fitted on and scored on: splits that leave the test images alone, and their features.

Shapes: N images, V views, h × w patches, P fitted patches, D width, C classes, K object classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vitp.data.labels import IGNORE, LabelledSet
from vitp.errors import ConfigError
from vitp.evaluation.features import Features, extract
from vitp.models.vision import VisionTower

TASKS = ("scene kNN", "scene linear", "patches linear", "presence linear")
SPLITS = ("train", "val", "test")
MAX_PATCHES = 30_000
"""Patches that a dense probe is fitted on: more change little and take long."""


@dataclass(frozen=True)
class ProbeData:
    """Features of the three splits, with the tower's device to fit on."""

    train: Features
    val: Features
    test: Features
    device: torch.device

    def tasks(self) -> tuple[str, ...]:
        """Return the probes that the labels allow."""
        found = []
        if len(self.train.scene_N[self.train.scene_N >= 0].unique()) > 1 and bool(
            (self.test.scene_N >= 0).any()
        ):
            found += ["scene kNN", "scene linear"]
        if self.train.patch_labels_Vhw is not None and len(_classes_in(self.train.patch_labels_Vhw)) > 1:
            found.append("patches linear")
        if bool((self.train.presence_NK == 1).any()) and bool((self.test.presence_NK == 1).any()):
            found.append("presence linear")
        return tuple(found)


def _classes_in(labels: Tensor) -> Tensor:
    return labels[labels != IGNORE].unique()


def probe_data(
    tower: VisionTower,
    labelled_set: LabelledSet | Mapping[str, LabelledSet],
    *,
    view: Literal["whole", "tiles"] = "whole",
    batch_size: int = 32,
    max_images: int | Mapping[str, int] = 2000,
) -> ProbeData:
    """Run the tower over the splits of a set.

    Args:
        tower: The frozen vision tower.
        labelled_set: A set with `train` and `test` items (and `val`, else a fifth of the training groups is
            held out for it), or one set for each split.
        view: See `features.extract`.
        batch_size: Views a forward pass.
        max_images: Images of each split (or of each one by name) at most: a fixed random subset, the same
            for every backbone.

    Raises:
        ConfigError: A split has no images.
    """
    splits = splits_of(labelled_set)
    features = {}
    for name, images in splits.items():
        most = max_images if isinstance(max_images, int) else max_images[name]
        features[name] = extract(tower, subset(images, most), view=view, batch_size=batch_size)
    return ProbeData(**features, device=next(tower.parameters()).device)


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
        items: dict[str, list] = {name: [] for name in SPLITS}
        for index in range(len(labelled_set)):
            item = labelled_set.items[index]
            if item.split in items:
                items[item.split].append(item)
        found = {name: replace(labelled_set, items=items[name]) for name in SPLITS}
    else:
        found = {name: labelled_set[name] for name in SPLITS if name in labelled_set}
    for name in ("train", "test"):
        if name not in found or not len(found[name]):
            raise ConfigError(f"there are no {name} images", where="probes", fix=f"label some as {name}")
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


def _hold_out(train: LabelledSet, share: float = 0.2) -> tuple[LabelledSet, LabelledSet]:
    """Split a fifth of the groups off; images of one group stay together."""
    items = [train.items[index] for index in range(len(train))]
    groups = sorted({item.group or item.id for item in items})
    if len(groups) < 2:
        raise ConfigError(
            "there are no val images, and one group of train images can't be split",
            where="probes",
            fix="label some as val",
        )
    order = np.random.default_rng(0).permutation(len(groups))
    held = {groups[index] for index in order[: max(1, round(share * len(groups)))]}
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
        raise ConfigError(
            f"{labels} labels asked for, {available} train images there",
            where="--labels",
            fix="choose 2 or more",
        )
    return count


def draw(scene_N: Tensor, count: int, seed: int) -> Tensor:
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


def known_scenes(
    features: Features, device: torch.device, chosen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return pooled features and classes of the images whose scene is known."""
    known = features.scene_N >= 0
    if chosen is not None:
        known &= torch.isin(torch.arange(len(known)), chosen)
    return features.pooled_ND[known].to(device), features.scene_N[known].to(device)


def scene_class_count(data: ProbeData) -> int:
    """Return the number of scene classes over all splits."""
    return int(max(part.scene_N.max() for part in (data.train, data.val, data.test))) + 1


def labelled_patches(features: Features, views: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return features and classes of at most `MAX_PATCHES` labelled patches of the views."""
    assert features.patch_labels_Vhw is not None
    label_P = features.patch_labels_Vhw[views].flatten()
    known = (label_P != IGNORE).nonzero().flatten()
    if not len(known):
        raise ConfigError(
            "no patch is labelled", where="probes", fix="give masks with classes or a smaller min_share"
        )
    if len(known) > MAX_PATCHES:
        order = np.random.default_rng([seed, len(known)]).permutation(len(known))[:MAX_PATCHES]
        known = known[torch.from_numpy(np.sort(order))]
    _, rows, columns, width = features.patches_VhwD.shape
    cells = rows * columns
    flat = features.patches_VhwD.view(-1, width)
    return flat[views[known // cells] * cells + known % cells].float(), label_P[known]
