"""Average precision of detections that are ranked by their score, as the kits of Pascal VOC and DOTA compute it.

Shapes: N detections and M objects of an image, C classes, D detections of one class in all images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitp.metrics.results import Scores
from vitp.metrics.statistics import known_mean


@dataclass(frozen=True)
class ImageMatches:
    """The detections of one image against its objects.

    Attributes:
        true_labels_M, found_labels_N: 0 … C − 1.
        difficult_M: Bool: counts neither as found nor as missed.
        scores_N: Larger is surer.
        inside_N: Bool: half of the detection or more lies in an ignored place.
        overlaps: Returns the overlaps (N', M') of some detections with some objects, given as bool masks.
    """

    true_labels_M: np.ndarray
    difficult_M: np.ndarray
    found_labels_N: np.ndarray
    scores_N: np.ndarray
    inside_N: np.ndarray
    overlaps: Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Ranking:
    """All detections of one class, surest first; those of equal score keep the order of images.

    Attributes:
        object_D: The object that each overlaps most, numbered over all images; -1: there is none in its image.
        overlap_D: How far it overlaps that object.
        difficult_D: Whether that object is difficult.
        inside_D: Whether half of the detection or more lies in an ignored place.
        to_find: Objects that aren't difficult.
    """

    object_D: np.ndarray
    overlap_D: np.ndarray
    difficult_D: np.ndarray
    inside_D: np.ndarray
    to_find: int

    def average_precision(self, near_D: np.ndarray, *, eleven_points: bool) -> float:
        """Return average precision; NaN where there is nothing to find.

        Args:
            near_D: Whether each detection overlaps its object enough.
            eleven_points: See `precision_area`.
        """
        if not self.to_find:
            return float("nan")
        # A detection of a difficult object counts for nothing.
        counts_D = ~(near_D & self.difficult_D)
        object_D = np.where(near_D, self.object_D, -1)[counts_D]
        right_D = np.zeros(len(object_D), bool)
        # The surest detection of an object comes first and is the right one.
        objects, firsts = np.unique(object_D, return_index=True)
        right_D[firsts[objects >= 0]] = True  # later ones are duplicates
        # Nor does a wrong one count that lies in an ignored place.
        right_D = right_D[right_D | ~self.inside_D[counts_D]]
        return precision_area(right_D, self.to_find, eleven_points)


def rankings(images: Iterable[ImageMatches], classes: int) -> list[Ranking]:
    """Return the ranking of each class over all images."""
    empty = (np.zeros(0), np.zeros(0, int), np.zeros(0), np.zeros(0, bool), np.zeros(0, bool))
    columns: list[list[tuple[np.ndarray, ...]]] = [[empty] for _ in range(classes)]
    objects, to_find = np.zeros(classes, int), np.zeros(classes, int)
    for image in images:
        for number in np.union1d(image.true_labels_M, image.found_labels_N).astype(int):
            own_M, found_N = image.true_labels_M == number, image.found_labels_N == number
            difficult_M = np.asarray(image.difficult_M, bool)[own_M]
            object_N = np.full(int(found_N.sum()), -1)
            overlap_N, difficult_N = np.zeros(len(object_N)), np.zeros(len(object_N), bool)
            if len(difficult_M) and len(object_N):
                overlap_NM = image.overlaps(found_N, own_M)
                # As in the kits the object that it overlaps most, even one already found; COCO would try the next one.
                place_N = overlap_NM.argmax(1)
                overlap_N = overlap_NM[np.arange(len(place_N)), place_N]
                # Objects are numbered on over the images, so that each is one in the ranking of all.
                object_N, difficult_N = place_N + objects[number], difficult_M[place_N]
            scores_N = np.asarray(image.scores_N, float)[found_N]
            columns[number].append((scores_N, object_N, overlap_N, difficult_N, image.inside_N[found_N]))
            objects[number] += len(difficult_M)
            to_find[number] += int((~difficult_M).sum())
    return [_ranked(rows, int(count)) for rows, count in zip(columns, to_find, strict=True)]


def _ranked(rows: Sequence[tuple[np.ndarray, ...]], to_find: int) -> Ranking:
    scores_D, *columns = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    order = np.argsort(-scores_D, kind="stable")
    object_D, overlap_D, difficult_D, inside_D = (column_D[order] for column_D in columns)
    return Ranking(object_D, overlap_D, difficult_D, inside_D, to_find)


def precision_area(right_D: np.ndarray, to_find: int, eleven_points: bool) -> float:
    """Return the average precision of detections of one class, surest first.

    Args:
        right_D: Whether each is right.
        to_find: Objects of the class.
        eleven_points: As Pascal VOC 2007, the mean precision at 11 points of recall; else, as VOC 2012, the area
            under the precision that never rises.
    """
    hits_D = np.cumsum(right_D)
    precision_D = hits_D / np.arange(1, len(right_D) + 1)
    # The precision at a recall is the best one at that recall or beyond.
    envelope_D = np.maximum.accumulate(precision_D[::-1])[::-1]
    if eleven_points:
        # In whole numbers: 3 of 10 is a recall of 0.3, though 3 * 0.1 is a little more.
        at = np.searchsorted(10 * hits_D, to_find * np.arange(11), side="left")
        return float(np.append(envelope_D, 0.0)[at].mean())
    return float(envelope_D[right_D].sum() / to_find)


def scores_of_classes(
    headline: str,
    columns: Mapping[str, np.ndarray],
    classes: Sequence[str],
    images: int,
    values: Mapping[str, float] | None = None,
) -> Scores:
    """Return the scores of which each class has one a column; classes without objects to find are NaN.

    Args:
        headline: Name of the value that models are chosen by.
        columns: Name → (C,) values.
        classes: Names.
        images: Number of images.
        values: Values over all classes; None: the means of the columns over the classes.
    """
    per_class = {
        name: {column: float(value_C[number]) for column, value_C in columns.items()}
        for number, name in enumerate(classes)
    }
    if values is None:
        values = {name: known_mean(value_C) for name, value_C in columns.items()}
    return Scores(headline, values, per_class, images)
