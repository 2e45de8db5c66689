"""Sensitivity, specificity and area under the curve of classes of images, with intervals.

Shapes: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from vitp.metrics.intervals import Interval, area_under_curve, group_numbers, rate_interval
from vitp.metrics.results import Scores
from vitp.metrics.statistics import known_mean

RATES = ("sensitivity", "specificity", "auc")
"""Names of the values."""


def with_rates(
    scores: Scores,
    classes: Sequence[str],
    probability_NK: np.ndarray,
    guess_NK: np.ndarray,
    label_NK: np.ndarray,
    groups: Sequence[Hashable],
) -> Scores:
    """Return scores with sensitivity, specificity and area under the ROC curve of each class, and their means.

    A class is told from all others. Each has a 95 % interval, which counts images of one group (of a patient, for one)
    as what they are: alike; see `vitp.metrics.intervals`.

    Args:
        scores: Scores to which they are added.
        classes: K names.
        probability_NK: Larger is surer.
        guess_NK: Bool: what is taken as a yes.
        label_NK: 1 yes, 0 no, −1 unknown: such entries count for nothing.
        groups: Whose image each is.
    """
    rows: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, Interval]] = {}
    group_N = group_numbers(groups)
    for k, name in enumerate(classes):
        found: dict[str, float] = {}
        ends: dict[str, Interval] = {}
        for key, wanted in (("sensitivity", 1), ("specificity", 0)):
            of_N = label_NK[:, k] == wanted
            right_N = guess_NK[of_N, k] == bool(wanted)
            found[key] = float(right_N.mean()) if len(right_N) else math.nan
            ends[key] = rate_interval(right_N, group_numbers(group_N[of_N].tolist()))
        known_N = label_NK[:, k] >= 0
        found["auc"], ends["auc"] = area_under_curve(
            probability_NK[known_N, k], label_NK[known_N, k] == 1, group_N[known_N]
        )
        rows[name] = {**scores.per_class.get(name, {}), **found}
        intervals[name] = {**scores.class_intervals.get(name, {}), **ends}
    means = {key: known_mean([row[key] for row in rows.values()]) for key in RATES}
    return replace(scores, values={**scores.values, **means}, per_class=rows, class_intervals=intervals)
