"""What probes are fitted on and scored on: splits that leave the test images alone, and their features.

Shapes: N images, V views, h × w patches, P fitted patches, D width, C classes, K object classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vitp.core.errors import ConfigError
from vitp.data.splits import splits_of, subset
from vitp.evaluation.features import Features, extract
from vitp.models.vision import VisionTower
from vitp.records.labels import IGNORE, LabelledSet

TASKS = ("scene kNN", "scene linear", "patches linear", "presence linear")
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
