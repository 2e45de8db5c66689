"""What a comparison over seeds and draws can see: power, smallest visible difference, repeats that are needed.

The model is that of the tests of `paired_repeats`: the difference of two methods is a mean, a chance of the seed, a
chance of the draw of labels that all seeds share, and a rest, all normal. In a balanced table the grand mean and the
variances of both tests are then independent, so that the chance that both tests pass together is one integral.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import gammainc, ndtr, ndtri, stdtrit

from vitp.metrics.statistics import Repeats, differences_of_repeats

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(128)
_FAR = 8.0
"""Standard deviations beyond which a normal distribution holds nothing."""


@dataclass(frozen=True)
class RepeatSpread:
    """How the differences of two methods spread, by the analysis of variance of two random factors.

    Attributes:
        mean: Of the differences.
        of_seeds, of_draws, rest: Variances; where each seed has one draw (its own) all is that of the seeds.
        seeds: Pretraining seeds that both methods have.
        draws: Draws of labels that the seeds share; 1: each seed has its own.
        pairs: Differences; seeds × draws where none is missing.
    """

    mean: float
    of_seeds: float
    of_draws: float
    rest: float
    seeds: int
    draws: int
    pairs: int

    @property
    def draws_a_seed(self) -> float:
        """Draws of a seed on average, at least two where seeds share draws."""
        return self.pairs / self.seeds if self.draws < 2 else max(2.0, self.pairs / self.seeds)


def spread_of_repeats(ours: Repeats, theirs: Repeats) -> RepeatSpread | None:
    """Return how the differences spread where both methods have a score; None for fewer than two seeds.

    Args:
        ours, theirs: (pretraining seed, draw) → score.
    """
    found_SD = differences_of_repeats(ours, theirs)
    if len(found_SD) < 2:
        return None
    seeds, draws = found_SD.shape
    pairs, mean = int((~np.isnan(found_SD)).sum()), float(np.nanmean(found_SD))
    rows_S = np.nanmean(found_SD, 1)
    if draws < 2:
        return RepeatSpread(mean, float(rows_S.var(ddof=1)), 0.0, 0.0, seeds, draws, pairs)
    columns_D = np.nanmean(found_SD, 0)
    rest_SD = found_SD - rows_S[:, None] - columns_D + mean
    # Degrees of freedom of a table of two factors; pairs that were never run leave fewer.
    rest = float(np.nansum(rest_SD**2)) / max(1, pairs - seeds - draws + 1)
    # A row's mean also spreads by the rest of its pairs, which is taken off; below 0 nothing of it is left.
    of_seeds = max(0.0, float(rows_S.var(ddof=1)) - rest * seeds / pairs)
    of_draws = max(0.0, float(columns_D.var(ddof=1)) - rest * draws / pairs)
    return RepeatSpread(mean, of_seeds, of_draws, rest, seeds, draws, pairs)


def power_of_repeats(
    spread: RepeatSpread, difference: float, seeds: float, draws: float, *, confidence: float = 0.95
) -> float:
    """Return the chance that a comparison finds a true difference, with its sign: all its t-tests pass.

    Args:
        spread: Taken as the truth; its mean doesn't count.
        difference: The true one.
        seeds: Pretraining seeds, at least two.
        draws: Of each seed, at least two; without effect where each seed has its own.
        confidence: Confidence of the two-sided tests.
    """
    difference, std = abs(difference), _std_of_mean(spread, seeds, draws)
    if std <= 1e-9 * difference or std == 0:  # chance plays no part
        return float(difference > 0)
    low = max(-_FAR, -difference / std)  # of the mean, in standard deviations: those with the right sign
    tail = 0.5 - confidence / 2
    return _all_pass(spread, seeds, draws, (low, _FAR), lambda z_N: difference + std * z_N, tail)


def power_of_level(
    spread: RepeatSpread,
    difference: float,
    seeds: float,
    draws: float,
    margin: float,
    *,
    confidence: float = 0.95,
) -> float:
    """Return the chance that a comparison is called level: all its intervals lie within the margin.

    Args:
        spread, seeds, draws: As in `power_of_repeats`.
        difference: The true one.
        margin: Largest difference that is of no interest.
        confidence: Of each one-sided test.
    """
    std = _std_of_mean(spread, seeds, draws)
    # The bootstrap's interval knows both factors at once, so it is what binds where there are many repeats.
    room = margin - float(ndtri(confidence)) * std
    if std <= 1e-9 * margin or room <= 0:
        return float(abs(difference) < room)
    low, high = (max(-_FAR, min(_FAR, (bound - difference) / std)) for bound in (-room, room))
    return _all_pass(
        spread, seeds, draws, (low, high), lambda z_N: margin - np.abs(difference + std * z_N), 1 - confidence
    )


def _std_of_mean(spread: RepeatSpread, seeds: float, draws: float) -> float:
    return float(np.sqrt(sum(_variances(spread, seeds, draws))))


def _variances(spread: RepeatSpread, seeds: float, draws: float) -> tuple[float, float, float]:
    """Return what seeds, draws and the rest add to the variance of the mean."""
    if spread.draws < 2:
        return spread.of_seeds / seeds, 0.0, spread.rest / seeds
    return spread.of_seeds / seeds, spread.of_draws / draws, spread.rest / (seeds * draws)


def _all_pass(
    spread: RepeatSpread,
    seeds: float,
    draws: float,
    z_range: tuple[float, float],
    distance: Callable[[np.ndarray], np.ndarray],
    tail: float,
) -> float:
    """Return the chance that each t-test's error is small enough for the distance that the mean leaves it.

    Args:
        spread, seeds, draws: As in `power_of_repeats`.
        z_range: Of the mean's deviation from the truth, in standard deviations.
        distance: Such deviations → distance of the mean from what it must differ from.
        tail: Chance that a test is passed by luck, on one side.
    """
    low, high = z_range
    of_seeds, of_draws, rest = _variances(spread, seeds, draws)
    errors = [(of_seeds + rest, seeds - 1)] + ([(of_draws + rest, draws - 1)] if spread.draws > 1 else [])
    half = (high - low) / 2
    z_N = low + half * (_NODES + 1)
    passed_N = half * _WEIGHTS * np.exp(-(z_N**2) / 2) / np.sqrt(2 * np.pi)
    for variance, freedom in errors:
        if variance > 0:
            critical = variance * stdtrit(freedom, 1 - tail) ** 2 / freedom
            # The test passes where its estimate of the variance is small enough; that estimate follows a chi-square
            # law.
            passed_N = passed_N * gammainc(freedom / 2, distance(z_N) ** 2 / critical / 2)
    # Rounding of the integral must not make it likelier than the mean's range alone.
    return float(min(passed_N.sum(), ndtr(high) - ndtr(low)))


def smallest_seen(spread: RepeatSpread, *, power: float = 0.8, confidence: float = 0.95) -> float | None:
    """Return the smallest true difference that as many repeats as there are would find with a chance of `power`.

    None for fewer than three seeds, which decide nothing.
    """
    if spread.seeds < 3:
        return None
    low, high = 0.0, float(np.sqrt(spread.of_seeds + spread.of_draws + spread.rest))

    def seen(difference: float) -> bool:
        found = power_of_repeats(spread, difference, spread.seeds, spread.draws_a_seed, confidence=confidence)
        return found >= power

    if high == 0:
        return 0.0
    # Doubled until it is enough, then narrowed down by halves.
    while not seen(high):
        low, high = high, 2 * high
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if seen(middle) else (middle, high)
    return high


def repeats_needed(
    spread: RepeatSpread,
    *,
    cost: Callable[[int, int], float] = lambda seeds, draws: float(seeds * draws),
    power: float = 0.8,
    confidence: float = 0.95,
    least_draws: int = 2,
    most: int = 1000,
    margin: float = 0.0,
) -> tuple[int, int] | None:
    """Return (seeds, draws) with which the comparison would decide on the difference of these runs at the least cost.

    It decides where it finds the difference or, with a margin, shows that it is smaller than that.

    Mean and spreads are taken as the truth; a handful of runs knows its spreads only roughly, so this is an order of
    magnitude and not a plan.

    Args:
        spread: Of the runs.
        cost: (seeds, draws of each) → cost; it grows with both.
        power: Chance that the tests of the one or the other verdict pass together.
        confidence: Confidence of the two-sided tests.
        least_draws: Fewest that decide, where seeds share draws.
        most: Largest number of seeds, and of draws, that is tried.
        margin: Largest difference that is of no interest; 0: nothing is called level.

    Returns:
        At least three seeds, and at least as many of both as there are; draws are 1 where each seed has its own. None
        when `most` of both are not enough.
    """
    if not spread.mean and not margin:
        return None
    shared = spread.draws > 1
    least = max(spread.draws, least_draws) if shared else 1
    tried = sorted({least, *np.geomspace(least, most, 25).round().astype(int).tolist()}) if shared else [1]
    found = []
    for draws in tried:

        def reached(seeds: int, draws: int = draws) -> bool:
            found = power_of_repeats(spread, spread.mean, seeds, draws, confidence=confidence)
            level = abs(spread.mean) < margin and power_of_level(
                spread, spread.mean, seeds, draws, margin, confidence=confidence
            )
            return max(found, level) >= power

        low, high = max(3, spread.seeds), most
        if low > most or not reached(most):
            continue
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if reached(middle) else (middle + 1, high)
        found.append((low, draws))
        if low == max(3, spread.seeds):
            break  # more draws only cost more
    return min(found, key=lambda pair: cost(*pair), default=None)
