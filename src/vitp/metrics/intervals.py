"""Intervals of means, rates and areas under the curve, where several values may belong to one patient.

Shapes: N values, G groups (patients), M columns, B draws.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy.stats import norm, rankdata

Interval = tuple[float, float]
"""Lower and upper end; NaN where nothing can be said."""

NO_INTERVAL: Interval = (math.nan, math.nan)

_CONFIDENCE = 0.95
_AT_ONCE = 1 << 23
"""Numbers of a resampling that are in memory."""


def group_numbers(groups: Sequence[Hashable]) -> np.ndarray:
    """Return (N,) the number of each value's group, from 0."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], np.int64)


def resampled_means(values_NM: np.ndarray, group_N: np.ndarray, *, draws: int = 2000) -> np.ndarray:
    """Return (B, M): the means of columns in resamples of whole groups (the cluster bootstrap).

    NaN are left out; the mean of a resample without a value is NaN. All columns see the same resamples.

    Args:
        values_NM: A row a case.
        group_N: From 0; cases of one group are drawn together.
        draws: B.
    """
    groups, columns = int(group_N.max()) + 1, values_NM.shape[1]
    known_NM = ~np.isnan(values_NM)
    sums_GM, counts_GM = np.zeros((groups, columns)), np.zeros((groups, columns))
    np.add.at(sums_GM, group_N, np.where(known_NM, values_NM, 0.0))
    np.add.at(counts_GM, group_N, known_NM)
    rng = np.random.default_rng(0)
    means = []
    step = max(1, _AT_ONCE // groups)
    for first in range(0, draws, step):
        count = min(step, draws - first)
        # How often each group is drawn, not which are: two products then give the sums of all columns.
        times_BG = rng.multinomial(groups, np.full(groups, 1 / groups), count).astype(np.float64)
        total_BM, known_BM = times_BG @ sums_GM, times_BG @ counts_GM
        means.append(np.divide(total_BM, known_BM, out=np.full((count, columns), np.nan), where=known_BM > 0))
    return np.concatenate(means)


def interval_of_draws(draws_B: np.ndarray, groups: int) -> Interval:
    """Return the percentiles of draws, NaN left out; nothing is known of fewer than two groups."""
    known_B = draws_B[~np.isnan(draws_B)]
    if groups < 2 or not len(known_B):
        return NO_INTERVAL
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(known_B, [tail, 1 - tail])
    return float(low), float(high)


def wilson(hits: float, count: float) -> Interval:
    """Return Wilson's score interval of a rate (J. Am. Stat. Assoc. 1927); unknown without a trial."""
    if count <= 0:
        return NO_INTERVAL
    z, rate = float(norm.ppf(0.5 + _CONFIDENCE / 2)), hits / count
    middle = rate + z * z / (2 * count)
    half = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    whole = 1 + z * z / count
    # Rounding must not leave the rate itself outside.
    return max(0.0, min(rate, (middle - half) / whole)), min(1.0, max(rate, (middle + half) / whole))


def rate_interval(hit_N: np.ndarray, group_N: np.ndarray) -> Interval:
    """Return Wilson's interval of the mean of a bool, where values of one group are alike.

    With groups of several values the number of trials is divided by the design effect (Rao and Scott, Biometrics
    1992): the variance of the rate between groups over the one that single values would have, at least 1. A rate of 0
    or 1 has no spread to tell the effect from: then each group is one trial.

    Args:
        hit_N: Bool.
        group_N: Numbers of groups, from 0.
    """
    count = len(hit_N)
    sizes_G = np.bincount(group_N) if count else np.zeros(0, np.int64)
    sizes_G = sizes_G[sizes_G > 0]
    groups = len(sizes_G)
    if groups == count:
        return wilson(float(hit_N.sum()), count)
    rate = float(hit_N.mean())
    if rate in (0.0, 1.0):
        return wilson(rate * groups, groups)
    if groups < 2:
        return wilson(rate, 1)
    hits_G = np.bincount(group_N, weights=hit_N.astype(np.float64))[np.bincount(group_N) > 0]
    between = groups / (groups - 1) * float(((hits_G - rate * sizes_G) ** 2).sum()) / count**2
    effect = max(1.0, between / (rate * (1 - rate) / count))
    return wilson(rate * count / effect, count / effect)


def area_under_curve(
    score_N: np.ndarray,
    positive_N: np.ndarray,
    group_N: np.ndarray | None = None,
) -> tuple[float, Interval]:
    """Return the area under the ROC curve and its interval.

    It is the chance that a positive has a higher score than a negative; equal scores count half. The variance is
    Obuchowski's for groups (Biometrics 1997), which is DeLong's (Biometrics 1988) where each value is a group of its
    own; the interval is symmetric in the logit. An area of 0 or 1 has no spread: there it is Wilson's of so many
    trials as there are groups with a positive, or with a negative, whichever are fewer.

    Args:
        score_N: Larger is surer.
        positive_N: Bool.
        group_N: From 0; None: each value is its own.

    Returns:
        NaN, and an unknown interval, without a positive or without a negative. The interval alone is unknown where
        the positives or the negatives are of a single group.
    """
    score_N, positive_N = np.asarray(score_N, np.float64), np.asarray(positive_N, bool)
    group_N = np.arange(len(score_N)) if group_N is None else group_N
    ours, theirs = score_N[positive_N], score_N[~positive_N]
    m, n = len(ours), len(theirs)
    if not m or not n:
        return math.nan, NO_INTERVAL
    ranks_N = rankdata(np.concatenate([ours, theirs]))
    # Share of the other kind that each value is on the right side of.
    # A rank among all less the rank among one's own is the number of others below; equal ones count half.
    right_m = (ranks_N[:m] - rankdata(ours)) / n
    right_n = 1 - (ranks_N[m:] - rankdata(theirs)) / m
    area = float(right_m.mean())
    groups_m, groups_n = group_N[positive_N], group_N[~positive_N]
    several = min(len(np.unique(groups_m)), len(np.unique(groups_n)))
    if several < 2:
        return area, NO_INTERVAL
    if area in (0.0, 1.0):
        return area, wilson(area * several, several)
    spread = math.sqrt(_area_variance(area, (right_m, groups_m), (right_n, groups_n)))
    z, logit = float(norm.ppf(0.5 + _CONFIDENCE / 2)), math.log(area / (1 - area))
    half = z * spread / (area * (1 - area))
    # Beyond 700 `exp` would overflow.
    low, high = (1 / (1 + math.exp(-min(max(end, -700.0), 700.0))) for end in (logit - half, logit + half))
    return area, (low, high)


def _area_variance(
    area: float, positives: tuple[np.ndarray, np.ndarray], negatives: tuple[np.ndarray, np.ndarray]
) -> float:
    """Return Obuchowski's variance of an area: from the shares of positives and of negatives, and their groups."""
    groups = int(max(positives[1].max(), negatives[1].max())) + 1
    rests, counts = [], []
    for shares, numbers in (positives, negatives):
        rest_G = np.bincount(numbers, weights=shares - area, minlength=groups)
        with_any = np.bincount(numbers, minlength=groups) > 0
        rests.append(rest_G)
        counts.append((len(shares), int(with_any.sum()), with_any))
    (m, groups_m, any_m), (n, groups_n, any_n) = counts
    # Values of one group are summed before they are squared: that is how their likeness counts.
    own_m = groups_m / (groups_m - 1) * float((rests[0] ** 2).sum()) / m**2
    own_n = groups_n / (groups_n - 1) * float((rests[1] ** 2).sum()) / n**2
    total = int((any_m | any_n).sum())
    # Groups that hold positives and negatives tie the two sums together.
    shared = total / (total - 1) * float((rests[0] * rests[1]).sum()) / (m * n)
    return max(0.0, own_m + own_n + 2 * shared)
