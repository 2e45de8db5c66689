"""Paired comparisons over seeds and draws: intervals, exact tests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from vitp.core.errors import ConfigError
from vitp.metrics.statistics import paired_bootstrap, paired_repeats


def test_repeats_without_draws_are_the_plain_bootstrap() -> None:
    ours = {(seed, 0): value for seed, value in enumerate((0.5, 0.64, 0.57, 0.65))}
    theirs = {(seed, 0): value for seed, value in enumerate((0.4, 0.58, 0.5, 0.57))}
    two_levels = paired_repeats(ours, theirs)
    plain = paired_bootstrap(list(ours.values()), list(theirs.values()))
    assert two_levels.mean == pytest.approx(plain.mean)
    assert (two_levels.low, two_levels.high) == pytest.approx((plain.low, plain.high), abs=2e-3)
    assert two_levels.verdict == plain.verdict == "better" and two_levels.n == 4


def test_many_draws_of_few_seeds_are_not_many_seeds() -> None:
    ours = {(seed, draw): 1.0 for seed in range(2) for draw in range(50)}
    theirs = dict.fromkeys(ours, 0.0)
    assert paired_repeats(ours, theirs).verdict == "no evidence"
    # Seeds that disagree widen the interval however many draws each has.
    spread = {(seed, draw): float(seed) for seed in range(4) for draw in range(50)}
    difference = paired_repeats(spread, dict.fromkeys(spread, 1.4))
    assert difference.verdict == "no evidence" and difference.high - difference.low > 1.5


def test_only_common_seeds_and_draws_are_paired() -> None:
    ours = {(0, 0): 1.0, (0, 1): 2.0, (1, 0): 3.0, (2, 0): float("nan")}
    theirs = {(0, 0): 0.0, (1, 0): 1.0, (2, 0): 0.0, (5, 5): 9.0}
    difference = paired_repeats(ours, theirs)
    assert difference.n == 2 and difference.mean == pytest.approx(1.5)
    with pytest.raises(ConfigError, match="no seed in common"):
        paired_repeats({(0, 0): 1.0}, {(1, 0): 1.0})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-1000, 1000).map(lambda n: n / 1000), min_size=2, max_size=8))
def test_p_is_that_of_the_paired_t_test(differences: list[float]) -> None:
    ours = {(seed, draw): value for seed, value in enumerate(differences) for draw in range(2)}
    found = paired_repeats(ours, dict.fromkeys(ours, 0.0), draws=50)
    assert found.p == paired_bootstrap(differences, [0.0] * len(differences), draws=50).p
    assert found.p is not None
    if np.std(differences) > 1e-6:
        assert found.p == pytest.approx(ttest_1samp(differences, 0.0).pvalue)
    assert found.verdict == "no evidence" or found.p < 0.05


@pytest.mark.parametrize("spread", [(1.0, 0.0, 1.0), (1.0, 1.0, 1.0), (0.0, 2.0, 1.0)])
def test_equal_methods_with_draws_are_told_apart_in_at_most_one_of_twenty(spread: tuple[float, ...]) -> None:
    """Whichever of seeds, draws and the rest the chance lies in."""
    rng = np.random.default_rng(1)
    said = 0
    for _ in range(400):
        shapes = ((3, 1), (1, 3), (3, 3))
        table = sum(std * rng.normal(size=shape) for std, shape in zip(spread, shapes, strict=True))
        ours = {(seed, draw): float(value) for (seed, draw), value in np.ndenumerate(table)}
        said += paired_repeats(ours, dict.fromkeys(ours, 0.0), draws=200).verdict != "no evidence"
    assert said / 400 < 0.085


def test_equal_methods_are_told_apart_in_one_of_twenty_comparisons() -> None:
    """Three seeds agree in sign in one of four comparisons; that alone is no evidence."""
    rng = np.random.default_rng(0)
    compared = [paired_bootstrap(rng.normal(size=3), np.zeros(3), draws=300) for _ in range(400)]
    outside = np.mean([one.low > 0 or one.high < 0 for one in compared])
    assert outside > 0.15
    assert 0.01 < np.mean([one.verdict != "no evidence" for one in compared]) < 0.09


def test_chance_of_draws_that_all_seeds_share_is_in_the_interval() -> None:
    """Nine scores whose difference hangs on the draw alone tell as little as three."""
    by_draw = (1.0, 0.0, 0.2)
    ours = {(seed, draw): by_draw[draw] for seed in range(3) for draw in range(3)}
    crossed = paired_repeats(ours, dict.fromkeys(ours, 0.0))
    alone = paired_bootstrap(list(by_draw), [0.0] * 3)
    assert (crossed.mean, crossed.n) == (pytest.approx(0.4), 3)
    assert (crossed.low, crossed.high) == pytest.approx((alone.low, alone.high), abs=0.02)
    assert crossed.verdict == "no evidence"


@pytest.mark.parametrize("spread", [(1.0, 0.0, 0.0), (1.0, 0.0, 1.0), (1.0, 1.0, 1.0), (0.0, 2.0, 1.0)])
@pytest.mark.parametrize("shape", [(3, 3), (8, 8)])
def test_a_difference_as_large_as_the_margin_is_called_level_in_at_most_one_of_twenty(
    spread: tuple[float, ...], shape: tuple[int, int]
) -> None:
    rng, margin = np.random.default_rng(2), 6.0
    said = {0.0: 0, margin: 0, 3 * margin: 0}
    for _ in range(200):
        shapes = ((shape[0], 1), (1, shape[1]), shape)
        table = sum(std * rng.normal(size=part) for std, part in zip(spread, shapes, strict=True))
        for true in said:
            ours = {(seed, draw): float(value) + true for (seed, draw), value in np.ndenumerate(table)}
            found = paired_repeats(ours, dict.fromkeys(ours, 0.0), draws=200, margin=margin)
            said[true] += found.verdict == "level"
    assert said[margin] / 200 < 0.085 and said[3 * margin] == 0 and said[0.0] > 100


def test_level_is_that_of_two_one_sided_tests() -> None:
    """The verdict turns where both t-tests against the margin do, as the bootstrap of so few is narrower."""
    values = [0.4, -0.3, 0.1, -0.1]
    ours = {(seed, 0): value for seed, value in enumerate(values)}
    nothing = dict.fromkeys(ours, 0.0)
    passed = {}
    for margin in (0.2, 0.35, 0.36, 0.37, 0.38, 0.39, 0.5):
        sides = ((margin, "less"), (-margin, "greater"))
        passed[margin] = all(
            ttest_1samp(values, mean, alternative=side).pvalue < 0.05 for mean, side in sides
        )
        assert (paired_repeats(ours, nothing, margin=margin).verdict == "level") == passed[margin]
    assert True in passed.values() and False in passed.values()
    assert paired_repeats(ours, nothing).verdict == "no evidence"


def test_what_is_shown_or_rests_on_two_seeds_is_not_level() -> None:
    small = {(seed, 0): 0.01 + 1e-4 * seed for seed in range(4)}
    assert paired_repeats(small, dict.fromkeys(small, 0.0), margin=1.0).verdict == "better"
    two = {(seed, draw): 1e-3 * (-1) ** draw for seed in range(2) for draw in range(4)}
    assert paired_repeats(two, dict.fromkeys(two, 0.0), margin=1.0).verdict == "no evidence"


def test_p_is_the_larger_of_seeds_and_draws() -> None:
    table_SD = np.array([[1.0, 0.2, 0.1], [1.1, 0.3, 0.1], [0.9, 0.2, 0.3]])
    ours = {(seed, draw): float(value) for (seed, draw), value in np.ndenumerate(table_SD)}
    nothing = dict.fromkeys(ours, 0.0)
    of_seeds, of_draws = (ttest_1samp(table_SD.mean(axis), 0.0).pvalue for axis in (1, 0))
    assert of_seeds < 0.01 < 0.05 < of_draws
    found = paired_repeats(ours, nothing)
    assert found.p == pytest.approx(of_draws)
    # Each seed says the same, but on other labels there may be nothing to see.
    assert found.low > 0 and found.verdict == "no evidence"
    turned = {(draw, seed): value for (seed, draw), value in ours.items()}
    assert paired_repeats(turned, nothing).p == pytest.approx(of_draws)


def test_seeds_and_draws_are_weighted_by_how_often_both_were_drawn() -> None:
    """Against a bootstrap written out, with a score that is missing."""
    rng = np.random.default_rng(5)
    ours = {(seed, draw): float(rng.normal(0.1, 1)) for seed in range(4) for draw in range(3)}
    del ours[2, 1]
    means = []
    for _ in range(4000):
        seeds, draws = rng.integers(0, 4, 4), rng.integers(0, 3, 3)
        drawn = [ours[s, d] for s in seeds for d in draws if (s, d) in ours]
        means += [np.mean(drawn)] if drawn else []
    found = paired_repeats(ours, dict.fromkeys(ours, 0.0))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.08)
