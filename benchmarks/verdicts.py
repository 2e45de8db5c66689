"""How often the studies' verdicts are wrong, and how often they see a difference that is there.

Two methods' scores over pretraining seeds and draws of labels are drawn from normal distributions: the difference of a
seed, that of a draw (the same in each seed), and the rest. `wrong` is the share of runs of equal methods in which
`paired_repeats` says better or worse; `interval_alone` what the bootstrap interval without the t-tests would say, and
`interval_and_seeds` the interval with the t-test of the seeds' means but not that of the draws'. `seen` is the share of
runs that say *better* where the true difference is so many times the spread of the seeds' differences. `level` is how
often equal methods are called level, and methods whose true difference is the margin: that is wrong.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import ttest_1samp

from common import save
from vitp.metrics.statistics import paired_repeats

RUNS, RESAMPLES = 2000, 2000
DESIGNS = ((3, 1), (3, 3), (3, 8), (5, 3), (8, 3))
SPREADS = {
    "seeds only": (1.0, 0.0, 0.0),
    "rest only": (0.0, 0.0, 1.0),
    "seeds and rest": (1.0, 0.0, 1.0),
    "all three": (1.0, 1.0, 1.0),
    "draws most": (0.5, 2.0, 1.0),
}
"""Name → standard deviations of a seed's difference, a draw's, and the rest."""
SHIFTS = (1.0, 2.0, 4.0)
MARGIN = 4.0
"""Of `level`, in the same unit."""


def differences(rng: np.random.Generator, design: tuple[int, int], spread: tuple[float, ...]) -> np.ndarray:
    """Return differences (seeds, draws); with one draw a seed it is another one in each."""
    seeds, draws = design
    of_seed, of_draw, rest = spread
    shared = (1, draws) if draws > 1 else (seeds, 1)
    return (
        of_seed * rng.normal(size=(seeds, 1))
        + of_draw * rng.normal(size=shared)
        + rest * rng.normal(size=(seeds, draws))
    )


def shares(
    rng: np.random.Generator, design: tuple[int, int], spread: tuple[float, ...], shift: float
) -> dict[str, float]:
    """Return how often each rule says that the methods differ, and the whole rule in the right direction."""
    said = {"verdict": 0, "better": 0, "interval_alone": 0, "interval_and_seeds": 0}
    for run in range(RUNS):
        found_SD = differences(rng, design, spread) + shift
        ours = {(s, d): float(value) for (s, d), value in np.ndenumerate(found_SD)}
        result = paired_repeats(ours, dict.fromkeys(ours, 0.0), draws=RESAMPLES, seed=run)
        outside = not result.low <= 0 <= result.high
        said["verdict"] += result.verdict != "no evidence"
        said["better"] += result.verdict == "better"
        said["interval_alone"] += outside
        said["interval_and_seeds"] += outside and bool(ttest_1samp(found_SD.mean(1), 0.0).pvalue < 0.05)
    return {name: round(count / RUNS, 3) for name, count in said.items()}


def called_level(
    rng: np.random.Generator, design: tuple[int, int], spread: tuple[float, ...], shift: float
) -> float:
    """Return how often methods that differ by `shift` are called level."""
    said = 0
    for run in range(RUNS):
        found_SD = differences(rng, design, spread) + shift
        ours = {(s, d): float(value) for (s, d), value in np.ndenumerate(found_SD)}
        result = paired_repeats(ours, dict.fromkeys(ours, 0.0), draws=RESAMPLES, seed=run, margin=MARGIN)
        said += result.verdict == "level"
    return round(said / RUNS, 3)


def main() -> None:
    rng = np.random.default_rng(0)
    wrong, seen = {}, {}
    for design in DESIGNS:
        name = f"{design[0]} seeds, {design[1]} draws"
        wrong[name] = {}
        for spread_name, spread in SPREADS.items():
            found = shares(rng, design, spread, 0.0)
            found.pop("better")
            wrong[name][spread_name] = found
        seen[name] = {
            f"{shift:g} times": shares(rng, design, SPREADS["seeds only"], shift)["better"]
            for shift in SHIFTS
        }
    level = {
        f"{design[0]} seeds, {design[1]} draws": {
            spread_name: {
                "equal": called_level(rng, design, spread, 0.0),
                "wrong": called_level(rng, design, spread, MARGIN),
            }
            for spread_name, spread in SPREADS.items()
        }
        for design in DESIGNS
    }
    facts = {"seed": 0, "runs": RUNS, "resamples": RESAMPLES, "margin": MARGIN}
    save("verdicts", {**facts, "wrong": wrong, "seen": seen, "level": level})


if __name__ == "__main__":
    main()
