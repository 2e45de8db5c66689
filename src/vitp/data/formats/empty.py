"""Fewer training images that hold no object: questions about them are answered without looking."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from vitp.core.errors import ConfigError
from vitp.records.labels import LabelledImage, LabelledSet


def limit_empty(labelled: LabelledSet, share: float, seed: int) -> LabelledSet:
    """Return the set with so few empty training images that they are at most a share of the training images.

    Other splits keep all of theirs: they are to be as the data is.

    Args:
        labelled: The set.
        share: Share of the training images, 0 (none) to 1 (all may stay).
        seed: Which ones stay follows from it.

    Raises:
        ConfigError: The share is out of range.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"is {share}", where="empty", fix="choose a share from 0 to 1")
    if share == 1:
        return labelled
    items = list(labelled.items)
    training = [index for index, item in enumerate(items) if item.split == "train"]
    empty = [index for index in training if is_empty(items[index])]
    full = len(training) - len(empty)
    most = math.floor(full * share / (1 - share) + 1e-9)
    order = np.random.default_rng([seed, len(empty)]).permutation(len(empty))
    left_out = {empty[number] for number in order[most:]}
    return replace(labelled, items=[item for index, item in enumerate(items) if index not in left_out])


def is_empty(item: LabelledImage) -> bool:
    """Return whether an image is known to hold no object: labelled, without any (even difficult) or ignored place."""
    return item.objects is not None and not item.objects and not item.ignored
