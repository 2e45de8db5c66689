"""Means, spreads and honest verdicts over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vitp.errors import ConfigError

Verdict = Literal["better", "worse", "no evidence"]


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation (n − 1; 0 for one value); NaN values are left out."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if not known.size:
        return float("nan"), float("nan")
    return float(known.mean()), float(known.std(ddof=1)) if known.size > 1 else 0.0


@dataclass(frozen=True)
class PairedDifference:
    """How two methods differ over the same seeds.

    Attributes:
        mean: Mean of `ours − theirs`.
        low, high: Bootstrap interval of that mean.
        n: Number of pairs.
        verdict: `better` when the whole interval lies above zero, `worse` when below.
    """

    mean: float
    low: float
    high: float
    n: int
    verdict: Verdict

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}], n = {self.n}: {self.verdict}"


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

    A resample of n pairs can't reach beyond the n differences themselves, so the interval is too narrow for
    few pairs: with fewer than three the verdict is always `no evidence`, and three to five agreeing seeds say
    "in these runs", not more.

    Args:
        ours, theirs: One score a seed, in the same order of seeds.
        confidence: Share of the resampled means inside the interval.
        draws: Number of resamples.
        seed: Of the resampling.
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
    tail = (1 - confidence) / 2
    low, high = (float(value) for value in np.quantile(means, [tail, 1 - tail]))
    return PairedDifference(
        float(difference.mean()),
        low,
        high,
        len(difference),
        _verdict(low, high, len(difference), higher_is_better),
    )


def _verdict(low: float, high: float, n: int, higher_is_better: bool) -> Verdict:
    if n < 3 or low <= 0 <= high or np.isnan(low):
        return "no evidence"
    return "better" if (low > 0) == higher_is_better else "worse"
