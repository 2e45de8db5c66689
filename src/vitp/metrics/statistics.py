"""Means, spreads and honest verdicts over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.stats import t

from vitp.core.errors import ConfigError
from vitp.core.words import decimals

Verdict = Literal["better", "worse", "level", "no evidence"]


def mean_std(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Return mean and sample standard deviation (n − 1; 0 for one value); NaN values are left out."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if not known.size:
        return float("nan"), float("nan")
    return float(known.mean()), float(known.std(ddof=1)) if known.size > 1 else 0.0


def known_mean(values: Sequence[float] | np.ndarray) -> float:
    """Return the mean of the values that aren't NaN; NaN without any."""
    return mean_std(values)[0]


@dataclass(frozen=True)
class PairedDifference:
    """How two methods differ over the same seeds.

    Attributes:
        mean: Mean of `ours − theirs`.
        low, high: Bootstrap interval of that mean.
        n: Number of pairs.
        verdict: `better` when the whole interval lies above zero, `worse` when below, and nothing else speaks against
            it; `level` when it is neither and shown to be smaller than the margin that was asked for.
        p: Of the paired t-test, two-sided, the larger where there are two; None where none was made.
    """

    mean: float
    low: float
    high: float
    n: int
    verdict: Verdict
    p: float | None = None

    def __str__(self) -> str:
        mean, low, high = (decimals(one, 3, signed=True) for one in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}], n = {self.n}: {self.verdict}"


def paired_bootstrap(
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    confidence: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
    higher_is_better: bool = True,
) -> PairedDifference:
    """Return the difference of two methods run on the same seeds, with its percentile bootstrap interval.

    A resample of n pairs can't reach beyond the n differences themselves, so the interval is too narrow for few
    pairs: three equal methods' differences agree in sign, and leave zero outside, in one case of four. So the verdict
    also asks for p < 1 − `confidence` in the paired t-test, and with fewer than three pairs it is always `no evidence`.

    Args:
        ours, theirs: One score a seed, in the same order of seeds.
        confidence: Share of the resampled means inside the interval.
        draws: Number of resamples.
        seed: Seed of the resampling.
        higher_is_better: False for errors and losses: the verdict turns round.

    Raises:
        ConfigError: The two differ in number, or there are none.
    """
    if len(ours) != len(theirs) or not len(ours):
        raise ConfigError(
            f"{len(ours)} and {len(theirs)} scores can't be paired", fix="run both methods on the same seeds"
        )
    difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    rng = np.random.default_rng(seed)
    means = difference[rng.integers(0, len(difference), (draws, len(difference)))].mean(1)
    found = difference_of_draws(
        float(difference.mean()),
        means,
        len(difference),
        confidence=confidence,
        higher_is_better=higher_is_better,
    )
    return _with_t_tests(found, [difference], confidence)


def difference_of_draws(
    mean: float,
    draws_B: np.ndarray,
    n: int,
    *,
    confidence: float = 0.95,
    higher_is_better: bool = True,
    least: int = 3,
) -> PairedDifference:
    """Return the verdict on a difference from its bootstrap draws; draws that are NaN are left out.

    Args:
        mean: The difference itself.
        draws_B: The difference in each resample.
        n: Units that were resampled.
        confidence: Share of the draws inside the interval.
        higher_is_better: False for errors and losses.
        least: Units below which the verdict is always `no evidence`.
    """
    tail = (1 - confidence) / 2
    low, high = (float(value) for value in np.nanquantile(draws_B, [tail, 1 - tail]))
    verdict: Verdict = "no evidence"
    if n >= least and not (low <= 0 <= high or np.isnan(low)):
        verdict = "better" if (low > 0) == higher_is_better else "worse"
    return PairedDifference(mean, low, high, n, verdict)


Repeats = Mapping[tuple[int, int], float]
"""(pretraining seed, draw of labels) → score."""


def paired_repeats(
    ours: Repeats,
    theirs: Repeats,
    *,
    confidence: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
    higher_is_better: bool = True,
    margin: float = 0.0,
) -> PairedDifference:
    """Return the difference of two methods over pretraining seeds and, within each, draws of labels.

    Scores are paired where both methods have the same seed and draw. Every seed has the same draws, so the bootstrap
    resamples both at once: seeds with replacement, draws with replacement, and the mean over all that meet (the
    pigeonhole bootstrap, Owen, Ann. Appl. Stat. 2007). As in `paired_bootstrap` that interval is too narrow for few
    repeats. So the verdict also asks for p < 1 − `confidence` in two paired t-tests, of the seeds' means and, where
    there are several draws, of the draws' means (Clark, J. Verbal Learn. Verbal Behav. 1973): a difference has to hold
    for other seeds and for other labels. `p` is the larger of the two, `n` counts seeds, and fewer than three decide
    nothing.

    That nothing was shown doesn't say that there is nothing. What does is an equivalence test: two one-sided tests at
    1 − `confidence` each (Schuirmann, J. Pharmacokinet. Biopharm. 1987), which pass where the 2 · `confidence` − 1
    interval lies within the margin. Here that holds for the bootstrap and the intervals of both t-tests.

    Args:
        ours, theirs: (pretraining seed, draw) → score.
        confidence, draws, seed, higher_is_better: As in `paired_bootstrap`.
        margin: Differences below it are of no interest: the verdict is `level` where the true one is smaller, of
            either sign, and not `better` or `worse`. 0: no such verdict.

    Raises:
        ConfigError: The two have no seed and draw in common.
    """
    found_SD = differences_of_repeats(ours, theirs)
    if not found_SD.size:
        raise ConfigError("the scores have no seed in common", fix="run both methods on the same seeds")
    rng = np.random.default_rng(seed)
    seeds, columns = found_SD.shape
    times_BS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws)
    times_BD = rng.multinomial(columns, np.full(columns, 1 / columns), draws)
    known_SD = ~np.isnan(found_SD)
    total_B = np.einsum("bs,bd,sd->b", times_BS, times_BD, np.where(known_SD, found_SD, 0.0), optimize=True)
    count_B = np.einsum("bs,bd,sd->b", times_BS, times_BD, known_SD.astype(np.float64), optimize=True)
    # A resample of scores that were never run has no mean; it is left out.
    means_B = np.divide(total_B, count_B, out=np.full(draws, np.nan), where=count_B > 0)
    mean = float(found_SD[known_SD].mean())
    found = difference_of_draws(
        mean, means_B, seeds, confidence=confidence, higher_is_better=higher_is_better
    )
    means = [np.nanmean(found_SD, 1)] + ([np.nanmean(found_SD, 0)] if columns > 1 else [])
    found = _with_t_tests(found, means, confidence)
    if found.verdict != "no evidence" or seeds < 3 or not margin:
        return found
    return replace(
        found, verdict="level" if _is_within(margin, means_B, means, confidence) else "no evidence"
    )


def _with_t_tests(
    found: PairedDifference, samples: Sequence[np.ndarray], confidence: float
) -> PairedDifference:
    """Return the difference with the largest p of its samples; the verdict falls where that is too large."""
    p = max((p for p in map(_p_of_t_test, samples) if p is not None), default=None)
    if p is None:
        return found
    return replace(found, p=p, verdict=found.verdict if p < 1 - confidence else "no evidence")


def _p_of_t_test(differences_N: np.ndarray) -> float | None:
    """Return the two-sided p of a mean of zero; None for fewer than two values."""
    known_N = differences_N[~np.isnan(differences_N)]
    if len(known_N) < 2:
        return None
    std = float(known_N.std(ddof=1))
    if std > 1e-12 * np.abs(known_N).max():
        return float(2 * t.sf(abs(known_N.mean()) / std * np.sqrt(len(known_N)), len(known_N) - 1))
    return 0.0 if known_N.any() else 1.0  # the same difference each time


def _is_within(margin: float, draws_B: np.ndarray, samples: Sequence[np.ndarray], confidence: float) -> bool:
    """Return whether a bootstrap's and all samples' means are smaller than a margin by two one-sided tests each."""
    farthest = float(np.abs(np.nanquantile(draws_B, [1 - confidence, confidence])).max())
    for differences_N in samples:
        known_N = differences_N[~np.isnan(differences_N)]
        if len(known_N) < 2:  # one value spreads by nobody knows how much
            return False
        mean, std = mean_std(known_N)
        half = float(t.ppf(confidence, len(known_N) - 1)) * std / len(known_N) ** 0.5
        farthest = max(farthest, abs(mean) + half)
    return farthest < margin


def differences_of_repeats(ours: Repeats, theirs: Repeats) -> np.ndarray:
    """Return the differences (seeds, draws) of all that both have; NaN where a draw of a seed is missing."""
    found = {key: ours[key] - theirs[key] for key in sorted(ours.keys() & theirs.keys())}
    found = {key: value for key, value in found.items() if not np.isnan(value)}
    seeds, draws = (sorted({key[part] for key in found}) for part in (0, 1))
    return np.array([[found.get((seed, draw), np.nan) for draw in draws] for seed in seeds], np.float64)
