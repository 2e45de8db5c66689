"""In which order images are labelled: those that a model is least sure of first, near duplicates last."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vitp.core.errors import DataError
from vitp.data.image_hash import HASH_DISTANCE, ImagePrint, alike_pairs, as_compared, image_print, in_threads
from vitp.metrics.results import Prediction
from vitp.tasks.base import TaskModel
from vitp.tasks.classification import ClassificationModel

MEASURES = {
    "classification": "entropy of the class probabilities, of its largest value",
    "multi-label": "of the class that is nearest to one half: 1 - |2p - 1|",
    "segmentation": "one less the mean probability of the class that each pixel gets",
    "change": "one less the mean probability of the class that each pixel gets",
    "detection": "of the box whose score is nearest to one half: 1 - |2s - 1|, weak boxes included",
    "instance": "of the object whose score is nearest to one half: 1 - |2s - 1|, weak objects included",
    "panoptic": "of the segment whose score is nearest to one half: 1 - |2s - 1|",
    "oriented": "of the box whose score is nearest to one half: 1 - |2s - 1|, weak boxes included",
}
"""What uncertainty is, on 0 to 1, for each task."""


def uncertainty(prediction: Prediction, *, multi_label: bool = False) -> float:
    """Return how unsure a model is of an image, on 0..1; see `MEASURES`.

    Args:
        prediction: All that was found, also what is too weak to be shown; of a class map with its certainty.
        multi_label: The probabilities of classes are each on its own.
    """
    if prediction.certainty_HW is not None:
        return 1 - float(prediction.certainty_HW.double().mean()) / 255
    values = prediction.scores_N if prediction.probabilities_C is None else prediction.probabilities_C
    if values is None or not values.numel():
        return 0.0
    if prediction.probabilities_C is not None and not multi_label:
        # Of one class the entropy is 0, as is the logarithm of 1.
        entropy = torch.special.entr(values.double()).sum() / math.log(max(len(values), 2))
        return float(entropy)
    return float((1 - (2 * values - 1).abs()).max())


def may_be_several(model: TaskModel) -> bool:
    """Return whether a model gives an image several classes."""
    return isinstance(model, ClassificationModel) and model.settings.multi_label


@dataclass(frozen=True)
class Place:
    """Where an image stands in the order.

    Attributes:
        number: Number of the image in what was given.
        duplicate_of: Number of the image that it repeats, which stands before it; None: of none.
    """

    number: int
    duplicate_of: int | None


def annotation_order(images: Sequence[Sequence[str]], doubts: Sequence[float]) -> list[Place]:
    """Return images, the most uncertain first; those that show the same picture as an earlier one come at the end.

    Args:
        images: Paths of each: one, or both dates.
        doubts: The uncertainty of each.
    """
    order = sorted(range(len(images)), key=lambda number: -doubts[number])
    near = _near(images)
    first: list[Place] = []
    last: list[Place] = []
    for rank, number in enumerate(order):
        earlier = next((other for other in order[:rank] if other in near[number]), None)
        (first if earlier is None else last).append(Place(number, earlier))
    return [*first, *last]


def _near(images: Sequence[Sequence[str]]) -> dict[int, set[int]]:
    """Return the images that show the same picture as each, at all dates."""
    dates: list[list[set[int]]] = [[] for _ in images]
    for date in range(max((len(paths) for paths in images), default=0)):
        having = [number for number, paths in enumerate(images) if len(paths) > date]
        prints = in_threads(_print_of, [images[number][date] for number in having])
        known = [
            (number, found) for number, (_, found) in zip(having, prints, strict=True) if found is not None
        ]
        alike: dict[int, set[int]] = defaultdict(set)
        numbers, kept = [number for number, _ in known], [found for _, found in known]
        for i, j in alike_pairs(kept, kept, HASH_DISTANCE):
            if i != j:
                alike[numbers[i]].add(numbers[j])
        for number in having:
            dates[number].append(alike[number])
    return {number: set.intersection(*own) if own else set() for number, own in enumerate(dates)}


def _print_of(address: str) -> ImagePrint | None:
    try:
        image, digest, _ = as_compared(address)
    except DataError:  # it was read a moment ago; what can't be compared is no duplicate
        return None
    return image_print(image, digest)
