"""What a comparison over seeds and draws can see, against the noncentral t, published tables and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import nct, t, ttest_1samp

from vitp.metrics.power import (
    RepeatSpread,
    power_of_level,
    power_of_repeats,
    repeats_needed,
    smallest_seen,
    spread_of_repeats,
)
from vitp.metrics.statistics import paired_repeats


def alone(mean: float, seeds: int = 3) -> RepeatSpread:
    """Seeds with a draw of their own, whose differences have a variance of one."""
    return RepeatSpread(mean, 1.0, 0.0, 0.0, seeds, 1, seeds)


def crossed(mean: float, stds: tuple[float, float, float], seeds: int, draws: int) -> RepeatSpread:
    """All seeds share the draws."""
    return RepeatSpread(mean, *(std**2 for std in stds), seeds, draws, seeds * draws)


def tables(spread: RepeatSpread, count: int) -> np.ndarray:
    """Return simulated differences (count, seeds, draws)."""
    rng = np.random.default_rng(3)
    shapes = ((spread.seeds, 1), (1, spread.draws), (spread.seeds, spread.draws))
    variances = (spread.of_seeds, spread.of_draws, spread.rest)
    parts = (
        np.sqrt(variance) * rng.normal(size=(count, *shape))
        for variance, shape in zip(variances, shapes, strict=True)
    )
    return spread.mean + sum(parts)


@pytest.mark.parametrize("seeds", [2, 3, 5, 20, 100])
@pytest.mark.parametrize("effect", [0.1, 0.5, 1.0, 3.0])
def test_power_of_seeds_alone_is_that_of_the_noncentral_t(seeds: int, effect: float) -> None:
    critical = t.ppf(0.975, seeds - 1)
    expected = nct.sf(critical, seeds - 1, effect * np.sqrt(seeds))
    assert power_of_repeats(alone(0.0), -effect, seeds, 1) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(
    "spread",
    [
        crossed(4.0, (1, 1, 1), 3, 3),
        crossed(2.5, (1, 0.5, 1), 5, 3),
        crossed(1.5, (1, 0, 1), 4, 8),
        crossed(1.0, (0, 0, 1), 3, 3),
    ],
)
def test_power_of_seeds_and_draws_is_how_often_all_tests_pass(spread: RepeatSpread) -> None:
    found = tables(spread, 4000)
    passed = [ttest_1samp(found.mean(axis), 0.0, axis=1).pvalue < 0.05 for axis in (2, 1)]
    simulated = np.mean(passed[0] & passed[1] & (found.mean((1, 2)) > 0))
    expected = power_of_repeats(spread, spread.mean, spread.seeds, spread.draws)
    assert 0.05 < expected < 0.95 and expected == pytest.approx(simulated, abs=0.04)


def test_the_verdict_sees_what_the_power_says() -> None:
    """The interval of the verdict is hardly ever what decides."""
    spread = crossed(2.6, (1, 0.5, 1), 5, 3)
    said = 0
    for table in tables(spread, 150):
        ours = {(seed, draw): float(value) for (seed, draw), value in np.ndenumerate(table)}
        said += paired_repeats(ours, dict.fromkeys(ours, 0.0), draws=100).verdict == "better"
    assert said / 150 == pytest.approx(power_of_repeats(spread, spread.mean, 5, 3), abs=0.12)


@pytest.mark.parametrize(
    ("spread", "margin"),
    [
        (crossed(0.0, (1, 0, 0), 4, 1), 1.5),
        (crossed(0.8, (1, 0, 0), 6, 1), 1.8),
        (crossed(-0.5, (1, 0.5, 1), 5, 3), 2.5),
        (crossed(0.3, (1, 1, 1), 4, 8), 2.2),
    ],
)
def test_power_of_level_is_how_often_all_intervals_lie_within_the_margin(
    spread: RepeatSpread, margin: float
) -> None:
    found = tables(spread, 4000)
    passed = np.full(4000, True)
    for axis in (2, 1) if spread.draws > 1 else (2,):
        means = found.mean(axis)
        half = t.ppf(0.95, means.shape[1] - 1) * means.std(1, ddof=1) / np.sqrt(means.shape[1])
        passed &= np.abs(means.mean(1)) + half < margin
    expected = power_of_level(spread, spread.mean, spread.seeds, spread.draws, margin)
    assert 0.05 < expected < 0.95 and expected == pytest.approx(passed.mean(), abs=0.04)


def test_repeats_needed_with_a_margin_decide_either_way() -> None:
    # No difference: the margin alone decides, and a wider one takes fewer.
    wide, narrow = (repeats_needed(alone(0.0), margin=margin) for margin in (2.0, 0.5))
    assert wide is not None and narrow is not None and 3 <= wide[0] < narrow[0]
    for seeds, margin in ((wide[0], 2.0), (narrow[0], 0.5)):
        assert power_of_level(alone(0.0), 0.0, seeds, 1, margin) >= 0.8
        assert power_of_level(alone(0.0), 0.0, seeds - 1, 1, margin) < 0.8
    # A difference beyond it is to be found as before; of one at the margin neither is cheap.
    assert repeats_needed(alone(1.0), margin=0.5) == repeats_needed(alone(1.0)) == (10, 1)
    assert power_of_level(alone(1.0), 1.0, 1000, 1, 0.5) == 0.0
    sharp = RepeatSpread(0.1, 0.0, 0.0, 0.0, 3, 1, 3)
    assert power_of_level(sharp, 0.1, 3, 1, 0.2) == 1.0 and power_of_level(sharp, 0.3, 3, 1, 0.2) == 0.0


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_repeats_needed_are_those_of_published_tables(effect: float, pairs: int) -> None:
    """Paired t-test, two-sided 5 %, power 0.8, by size of effect (Cohen's d)."""
    assert repeats_needed(alone(effect)) == repeats_needed(alone(-effect)) == (pairs, 1)
    assert repeats_needed(alone(effect), most=pairs - 1) is None
    # The other way round: so many pairs see that effect, and next to none smaller.
    seen = smallest_seen(alone(0.0, seeds=pairs))
    assert seen is not None and 0.97 * effect < seen < 1.005 * effect


def test_repeats_needed_are_the_cheapest_that_reach_the_power() -> None:
    spread = crossed(0.7, (1, 0.5, 1), 3, 3)
    dear_seeds = repeats_needed(spread, cost=lambda seeds, draws: seeds * (100 + draws))
    dear_draws = repeats_needed(spread, cost=lambda seeds, draws: seeds * (1 + 100 * draws))
    assert dear_seeds is not None and dear_draws is not None
    assert dear_seeds[0] < dear_draws[0] and dear_seeds[1] > dear_draws[1]
    for seeds, draws in (dear_seeds, dear_draws):
        assert power_of_repeats(spread, spread.mean, seeds, draws) >= 0.8
        assert power_of_repeats(spread, spread.mean, seeds - 1, draws) < 0.8
    assert min(*dear_seeds, *dear_draws) >= 3


def test_repeats_needed_at_the_ends() -> None:
    assert repeats_needed(alone(0.0)) is None
    assert repeats_needed(RepeatSpread(1.0, 0.0, 0.0, 0.0, 2, 1, 2)) == (3, 1)  # fewer decide nothing
    assert repeats_needed(RepeatSpread(1.0, 1e-18, 0.0, 0.0, 2, 1, 2)) == (3, 1)
    assert repeats_needed(crossed(9.0, (1, 1, 1), 7, 4)) == (7, 4)  # those that are there
    assert repeats_needed(crossed(9.0, (0, 0, 0), 2, 2), least_draws=3) == (3, 3)
    assert smallest_seen(alone(0.0, seeds=2)) is None
    assert smallest_seen(RepeatSpread(1.0, 0.0, 0.0, 0.0, 3, 1, 3)) == 0.0


@settings(max_examples=6, deadline=None)
@given(st.floats(0.3, 1e3), st.floats(0, 2), st.floats(0.1, 2))
def test_a_larger_difference_needs_no_more_repeats(difference: float, of_draws: float, rest: float) -> None:
    def needed(difference: float) -> float:
        found = repeats_needed(crossed(difference, (1.0, of_draws, rest), 3, 3))
        return float("inf") if found is None else found[0] * found[1]

    assert needed(difference) >= needed(1.3 * difference) >= needed(3 * difference)


def test_spreads_are_told_apart() -> None:
    true = crossed(1.0, (1.0, 0.5, 0.8), 120, 120)
    table = tables(true, 1)[0]
    ours = {(seed, draw): float(value) for (seed, draw), value in np.ndenumerate(table)}
    del ours[3, 5]
    spread = spread_of_repeats(ours, dict.fromkeys(ours, 0.0))
    assert spread is not None
    assert (spread.seeds, spread.draws, spread.pairs) == (120, 120, 14_399)
    found = (spread.of_seeds, spread.of_draws, spread.rest)
    assert found == pytest.approx((1.0, 0.25, 0.64), rel=0.4)
    assert spread_of_repeats({(0, 0): 1.0, (0, 1): 2.0}, {(0, 0): 0.0, (0, 1): 0.0}) is None
    assert spread_of_repeats({(0, 0): 1.0}, {(1, 0): 0.0}) is None


def test_missing_repeats_see_less() -> None:
    rng = np.random.default_rng(2)
    ours = {(seed, draw): float(rng.normal()) for seed in range(6) for draw in range(4)}
    whole = spread_of_repeats(ours, dict.fromkeys(ours, 0.0))
    assert whole is not None and whole.draws_a_seed == 4
    part = RepeatSpread(**{**vars(whole), "pairs": 15})
    assert part.draws_a_seed == 2.5
    seen = [smallest_seen(one) for one in (whole, part)]
    assert seen[0] is not None and seen[1] is not None and seen[0] < seen[1]
