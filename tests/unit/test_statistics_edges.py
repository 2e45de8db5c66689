"""Means, intervals and verdicts against loops that compute the same the long way."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from vitp.core.errors import ConfigError
from vitp.evaluation.outcomes import difference_table
from vitp.metrics.power import repeats_needed, spread_of_repeats
from vitp.metrics.statistics import (
    PairedDifference,
    difference_of_draws,
    mean_std,
    paired_bootstrap,
    paired_repeats,
)

OURS = [0.61, 0.66, 0.70, 0.64, 0.69]
THEIRS = [0.58, 0.60, 0.69, 0.61, 0.62]


def test_mean_and_spread() -> None:
    mean, std = mean_std([1.0, float("nan"), 3.0, 5.0])
    assert (mean, std) == (3.0, 2.0)
    assert mean_std([7.0]) == (7.0, 0.0)
    assert mean_std(np.array([2.0, 4.0])) == (3.0, pytest.approx(math.sqrt(2)))
    assert all(math.isnan(value) for value in mean_std([float("nan")]))


def test_the_bootstrap_of_pairs_is_its_loop() -> None:
    found = paired_bootstrap(OURS, THEIRS, draws=2000, seed=3, confidence=0.9)
    difference = np.array(OURS) - np.array(THEIRS)
    rng = np.random.default_rng(3)
    means = [difference[row].mean() for row in rng.integers(0, 5, (2000, 5))]
    low, high = np.quantile(means, [0.05, 0.95])
    assert (found.mean, found.low, found.high) == pytest.approx((0.04, low, high))
    assert found.n == 5 and found.verdict == "better"
    assert found.p == pytest.approx(stats.ttest_rel(OURS, THEIRS).pvalue)
    turned = paired_bootstrap(OURS, THEIRS, draws=2000, seed=3, confidence=0.9, higher_is_better=False)
    assert turned.verdict == "worse"
    assert paired_bootstrap(THEIRS, OURS, draws=500).verdict == "worse"
    assert paired_bootstrap(THEIRS, OURS, draws=500, higher_is_better=False).verdict == "better"
    assert str(found).startswith(f"+0.040 [{low:+.3f}, {high:+.3f}], n = 5: better")
    same = paired_bootstrap(OURS, [value + 1e-5 for value in OURS])
    assert str(same).startswith("0.000 [0.000, 0.000], n = 5: ")
    table = difference_table({("patches", "mIoU"): same}, "one")
    assert [next(iter(column.cells)) for column in table.columns[2:4]] == ["0.0", "0.0 … 0.0"]
    default = paired_bootstrap(OURS, THEIRS)
    again = paired_bootstrap(OURS, THEIRS, confidence=0.95, draws=10_000, seed=0)
    assert default == again


def test_few_pairs_and_equal_ones_decide_nothing() -> None:
    assert paired_bootstrap([1.0, 2.0], [0.5, 1.4]).verdict == "no evidence"
    assert paired_bootstrap([1.0], [0.5]).p is None
    same = paired_bootstrap(OURS, OURS)
    assert (same.mean, same.low, same.high, same.verdict, same.p) == (0.0, 0.0, 0.0, "no evidence", 1.0)
    # The same difference each time is as sure as it gets.
    steady = paired_bootstrap([1.5, 2.5, 3.5], [1.0, 2.0, 3.0])
    assert (steady.p, steady.verdict, steady.low, steady.high) == (0.0, "better", 0.5, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fallen = paired_bootstrap([1.0, 2.0, 3.0], [1.5, 2.5, 3.5])
    assert (fallen.p, fallen.verdict) == (0.0, "worse")
    # All of one sign, but the t-test isn't sure: three pairs are few.
    loose = paired_bootstrap([1.0, 1.0, 1.0], [0.9, 0.5, 0.99])
    assert loose.low > 0 and loose.verdict == "no evidence"
    assert loose.p == pytest.approx(stats.ttest_rel([1.0, 1.0, 1.0], [0.9, 0.5, 0.99]).pvalue)
    for pair in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(ConfigError, match=f"{len(pair[0])} and {len(pair[1])} scores can't be paired"):
            paired_bootstrap(*pair)


def test_verdicts_of_draws() -> None:
    draws = np.arange(101.0) / 100 + 0.1
    found = difference_of_draws(0.6, np.append(draws, np.nan), 3, confidence=0.8)
    assert (found.low, found.high) == pytest.approx((0.2, 1.0))
    assert found == PairedDifference(0.6, found.low, found.high, 3, "better")
    assert difference_of_draws(0.6, draws, 2).verdict == "no evidence"
    assert difference_of_draws(0.6, draws, 2, least=2).verdict == "better"
    assert difference_of_draws(-0.6, -draws, 3).verdict == "worse"
    assert difference_of_draws(0.6, draws, 3, higher_is_better=False).verdict == "worse"
    assert difference_of_draws(0.0, draws - 0.6, 9).verdict == "no evidence"
    for edge in (np.zeros(5), np.linspace(0, 1, 5), np.linspace(-1, 0, 5)):
        assert difference_of_draws(0.0, edge, 9, confidence=1.0).verdict == "no evidence"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert difference_of_draws(0.0, np.full(3, np.nan), 9).verdict == "no evidence"


def grid(seeds: int, draws: int, seed: int, shift: float = 0.3) -> tuple[dict, dict]:
    rng = np.random.default_rng(seed)
    keys = [(s, d) for s in range(seeds) for d in range(draws)]
    ours = {key: float(rng.normal(shift, 0.1)) for key in keys}
    theirs = {key: float(rng.normal(0.0, 0.1)) for key in keys}
    return ours, theirs


def test_the_bootstrap_of_seeds_and_draws_is_its_loop() -> None:
    ours, theirs = grid(4, 3, 1)
    del ours[1, 2]
    theirs[9, 9] = 1.0  # nobody's pair
    ours[2, 0] = float("nan")
    found = paired_repeats(ours, theirs, draws=400, seed=5, confidence=0.9)
    table = {key: ours[key] - theirs[key] for key in ours if key in theirs and not math.isnan(ours[key])}
    rng = np.random.default_rng(5)
    of_seeds, of_draws = rng.multinomial(4, [0.25] * 4, 400), rng.multinomial(3, [1 / 3] * 3, 400)
    means = []
    for times_s, times_d in zip(of_seeds, of_draws, strict=True):
        rows = [(table[s, d], times_s[s] * times_d[d]) for s, d in table]
        weight = sum(w for _, w in rows)
        if weight:
            means.append(sum(v * w for v, w in rows) / weight)
    low, high = np.quantile(means, [0.05, 0.95])
    assert found.mean == pytest.approx(np.mean(list(table.values())))
    assert (found.low, found.high) == pytest.approx((low, high))
    by_seed = [np.mean([v for (s, _), v in table.items() if s == k]) for k in range(4)]
    by_draw = [np.mean([v for (_, d), v in table.items() if d == k]) for k in range(3)]
    assert found.p == pytest.approx(max(stats.ttest_1samp(x, 0).pvalue for x in (by_seed, by_draw)))
    assert (found.n, found.verdict) == (4, "better")
    one = paired_repeats(*grid(4, 1, 2), draws=200)
    alone = paired_bootstrap(*(list(part.values()) for part in grid(4, 1, 2)), draws=200)
    assert one.p == pytest.approx(alone.p) and one.mean == pytest.approx(alone.mean)
    with pytest.raises(ConfigError, match="no seed in common"):
        paired_repeats({(0, 0): 1.0}, {(1, 0): 1.0})
    defaults = paired_repeats(*grid(4, 3, 1))
    assert defaults == paired_repeats(*grid(4, 3, 1), confidence=0.95, draws=10_000, seed=0)
    assert paired_repeats(*grid(4, 3, 1), higher_is_better=False).verdict == "worse"


def needed(variance: float, mean: float, power: float, confidence: float) -> int:
    for n in range(3, 1001):
        critical = stats.t.ppf(1 - (1 - confidence) / 2, n - 1)
        if stats.nct.sf(critical, n - 1, min(30.0, abs(mean) * math.sqrt(n / variance))) >= power:
            return n
    raise AssertionError("more than 1000")


def test_repeats_needed_with_one_draw_a_seed() -> None:
    ours, theirs = grid(5, 1, 4, shift=0.1)
    difference = np.array([ours[key] - theirs[key] for key in ours])
    variance, mean = float(difference.var(ddof=1)), float(difference.mean())
    spread = spread_of_repeats(ours, theirs)
    assert spread is not None and (spread.of_seeds, spread.mean) == pytest.approx((variance, mean))
    for power, confidence in ((0.8, 0.95), (0.99, 0.99)):
        wanted = max(5, needed(variance, mean, power, confidence))
        assert repeats_needed(spread, power=power, confidence=confidence) == (wanted, 1)
    # Effects at which one degree of freedom more or less would give another number.
    for effect, wanted in ((3.24, 4), (2.12, 5), (1.68, 6), (0.52, 32)):
        three = {(0, 0): effect - 1, (1, 0): effect, (2, 0): effect + 1}
        found = spread_of_repeats(three, dict.fromkeys(three, 0.0))
        assert found is not None and repeats_needed(found) == (wanted, 1)
        assert wanted == needed(1.0, effect, 0.8, 0.95)
    opposite = spread_of_repeats({(0, 0): 1.0, (1, 0): 2.0}, {(0, 0): 2.0, (1, 0): 1.0})
    assert opposite is not None and repeats_needed(opposite) is None
    assert spread_of_repeats({}, {}) is None


def test_spreads_of_seeds_and_draws_by_hand() -> None:
    for seed, (seeds, draws) in enumerate([(4, 3)] * 8 + [(2, 2)] * 4):
        ours, theirs = grid(seeds, draws, seed, shift=0.06)
        table = np.array([[ours[s, d] - theirs[s, d] for d in range(draws)] for s in range(seeds)])
        rows, columns, mean = table.mean(1), table.mean(0), table.mean()
        squares = [
            (table[s, d] - rows[s] - columns[d] + mean) ** 2 for s in range(seeds) for d in range(draws)
        ]
        rest = sum(squares) / ((seeds - 1) * (draws - 1))
        of_seeds = max(0.0, rows.var(ddof=1) - rest / draws)
        of_draws = max(0.0, columns.var(ddof=1) - rest / seeds)
        found = spread_of_repeats(ours, theirs)
        assert found is not None
        assert (found.of_seeds, found.of_draws, found.rest) == pytest.approx((of_seeds, of_draws, rest))
