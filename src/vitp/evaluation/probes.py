"""Probes: what a frozen vision tower knows, by classifiers on its features.

Every choice (strength of regularisation) is made on the validation split; test images are only scored. Which
labels a seed draws depends on the set and the seed alone, so two backbones are compared on the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from vitp.evaluation.fitted_probes import fit_probes
from vitp.evaluation.outcomes import Outcomes, table_of
from vitp.evaluation.probe_data import ProbeData, probe_data
from vitp.evaluation.probe_table import ProbeTable
from vitp.models.vision import VisionTower
from vitp.records.labels import LabelledSet


def run_probes(
    tower: VisionTower,
    labelled_set: LabelledSet | Mapping[str, LabelledSet],
    *,
    tasks: Sequence[str] | Literal["auto"] = "auto",
    seeds: Sequence[int] = (0, 1, 2),
    labels_per_seed: int | float | None = None,
    view: Literal["whole", "tiles"] = "whole",
    max_images: int | Mapping[str, int] = 2000,
    device: torch.device | str | None = None,
) -> ProbeTable:
    """Return the scores of a frozen tower on a set: mean and spread over seeds.

    Args:
        tower: The vision tower. It is moved to `device` and left in its mode.
        labelled_set: See `probe_data`.
        tasks: Names from `TASKS`; `auto`: all that the labels allow.
        seeds: Each draws its own training images and patches.
        labels_per_seed: Training images of a seed: a number, a share (0..1), or None for all of them.
        view: See `features.extract`.
        max_images: Images of a split (or of each one by name) at most.
        device: None: where the tower is.

    Raises:
        ConfigError: A split is empty, or the labels don't allow a task.
    """
    if device is not None:
        tower.to(device)
    data = probe_data(tower, labelled_set, view=view, max_images=max_images)
    return probe_features(data, tasks=tasks, seeds=seeds, labels_per_seed=labels_per_seed)


def probe_features(
    data: ProbeData,
    *,
    tasks: Sequence[str] | Literal["auto"] = "auto",
    seeds: Sequence[int] = (0, 1, 2),
    labels_per_seed: int | float | None = None,
) -> ProbeTable:
    """Return the scores of features already made; see `run_probes`."""
    return probe_outcomes(data, tasks=tasks, seeds=seeds, labels_per_seed=labels_per_seed, grouped=False)[0]


def probe_outcomes(
    data: ProbeData,
    *,
    tasks: Sequence[str] | Literal["auto"] = "auto",
    seeds: Sequence[int] = (0, 1, 2),
    labels_per_seed: int | float | None = None,
    grouped: bool = True,
) -> tuple[ProbeTable, list[Outcomes]]:
    """Return the scores of features already made, and what each group of test images added to those of each seed.

    With the latter `vitp.evaluation.outcomes.over_images` tells whether a difference between two backbones is more
    than the choice of the test images.
    """
    fitted = fit_probes(data, tasks=tasks, seeds=seeds, labels_per_seed=labels_per_seed)
    note = f"{fitted.labels} train, {len(data.val)} val and {len(data.test)} test images; % over {len(seeds)} seeds"
    per_seed = fitted.outcomes(data.test, grouped=grouped)
    return table_of(per_seed, note), per_seed
