"""The bootstrap over test images: would other test images say the same?

A score over a few dozen test images depends on which ones they are. The bootstrap draws groups of test images with
replacement (images of one group, such as crops of one photograph, stay together) and scores two backbones on the
same draws. So outcomes hold what each group of images adds to a score.

Shapes: G groups of images, N images, C classes, K labels, B draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from vitp.core.errors import ConfigError
from vitp.core.words import decimals
from vitp.evaluation.probe_table import ProbeTable, collect
from vitp.metrics.classification import mean_average_precision
from vitp.metrics.statistics import PairedDifference, difference_of_draws

LEAST_GROUPS = 10
"""With fewer groups a bootstrap over them is too narrow to decide anything."""


@dataclass(frozen=True)
class Counted:
    """A score of confusion counts, to which every group adds its own.

    Attributes:
        counts_GCC: Confusion matrix of each group.
        metric: (C, C) counts → score.
    """

    counts_GCC: np.ndarray
    metric: Callable[[np.ndarray], float]

    @property
    def groups(self) -> int:
        """Number of groups, G."""
        return len(self.counts_GCC)

    def value(self) -> float:
        """Return the score of all test images."""
        return self.metric(self.counts_GCC.sum(0))

    def values(self, weight_BG: np.ndarray) -> np.ndarray:
        """Return (B,) scores, group g taken `weight_BG[b, g]` times."""
        drawn_BCC = np.einsum("bg,gcd->bcd", weight_BG, self.counts_GCC)
        return np.array([self.metric(drawn_CC) for drawn_CC in drawn_BCC])


@dataclass(frozen=True)
class Ranked:
    """Mean average precision of images ranked for K labels.

    Attributes:
        score_NK: What they are ranked by.
        label_NK: 1 yes, 0 no, −1 unknown.
        group_N: Group of each image, 0 … G − 1.
    """

    score_NK: np.ndarray
    label_NK: np.ndarray
    group_N: np.ndarray

    @property
    def groups(self) -> int:
        """Number of groups, G."""
        return int(self.group_N.max()) + 1

    def value(self) -> float:
        """Return the score of all test images."""
        return mean_average_precision(self.score_NK, self.label_NK)

    def values(self, weight_BG: np.ndarray) -> np.ndarray:
        """Return (B,) scores, group g taken `weight_BG[b, g]` times."""
        numbers = np.arange(len(self.group_N))
        drawn = (np.repeat(numbers, weight_G[self.group_N]) for weight_G in weight_BG)
        return np.array([mean_average_precision(self.score_NK[rows], self.label_NK[rows]) for rows in drawn])


Outcomes = Mapping[tuple[str, str], Counted | Ranked]
"""(task, metric) → outcome on the test images."""


def table_of(per_seed: Iterable[Outcomes], note: str) -> ProbeTable:
    """Return the scores of each seed's outcomes."""
    return collect([{key: one.value() for key, one in found.items()} for found in per_seed], note)


def over_images(
    ours: Sequence[Sequence[Outcomes]],
    theirs: Sequence[Sequence[Outcomes]],
    *,
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> dict[tuple[str, str], PairedDifference]:
    """Return how far a difference could go with other test images (and other pretraining seeds) of the same kind.

    Args:
        ours: Outcomes by pretraining seed and, within each, draw of labels.
        theirs: The same; one pretraining seed serves all of `ours`.
        confidence: Share of the differences inside the interval.
        draws: Number of draws, B.
        seed: Seed of the draws.

    Returns:
        (task, metric) → mean difference and interval; `n` counts groups of test images. A draw takes groups with
        replacement and, where there are several, pretraining seeds. With fewer than `LEAST_GROUPS` groups the
        verdict is "no evidence".

    Raises:
        ConfigError: The two were not scored on the same groups, or differ in seeds.
    """
    theirs = list(theirs) * (len(ours) if len(theirs) == 1 else 1)
    if len(ours) != len(theirs) or any(len(a) != len(b) for a, b in zip(ours, theirs, strict=True)):
        raise ConfigError(
            "the outcomes can't be paired", where="bootstrap", fix="use the same seeds for both"
        )
    found = {}
    for key in ours[0][0]:
        groups = {one[key].groups for side in (ours, theirs) for by_draw in side for one in by_draw}
        if len(groups) != 1:
            raise ConfigError("the backbones were scored on different images", where=" ".join(key))
        count = groups.pop()
        # The same seed for each score: all of them see the same draws of images.
        rng = np.random.default_rng([seed, count])
        weight_BG = rng.multinomial(count, np.full(count, 1 / count), size=draws)
        # The first row of each is the score of the images as they are.
        rows = np.concatenate([np.ones((1, count), np.int64), weight_BG])
        difference_SB = np.stack(
            [
                np.mean(
                    [a[key].values(rows) - b[key].values(rows) for a, b in zip(*pair, strict=True)], axis=0
                )
                for pair in zip(ours, theirs, strict=True)
            ]
        )
        # For each draw of images, pretraining seeds are drawn with replacement, too.
        picks_BS = rng.integers(0, len(difference_SB), (draws, len(difference_SB)))
        with_seeds_B = difference_SB[:, 1:][picks_BS, np.arange(draws)[:, None]].mean(1)
        found[key] = difference_of_draws(
            float(difference_SB[:, 0].mean()), with_seeds_B, count, confidence=confidence, least=LEAST_GROUPS
        )
    return found


def difference_table(
    differences: Mapping[tuple[str, str], PairedDifference], title: str, *, confidence: float = 0.95
) -> Table:
    """Return a table for the console, in percent."""
    groups = max(one.n for one in differences.values())
    note = f"bootstrap over {groups} test images; images that were cut from one count as one"
    if groups < LEAST_GROUPS:
        note += f"; fewer than {LEAST_GROUPS} decide nothing"
    table = Table(title=title, caption=note)
    for name in ("task", "metric"):
        table.add_column(name)
    for name in ("difference", f"{confidence:.0%} interval"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for (task, metric), one in differences.items():
        table.add_row(task, metric, decimals(100 * one.mean, 1, signed=True), interval(one), one.verdict)
    return table


def differences_json(differences: Mapping[tuple[str, str], PairedDifference]) -> list[dict[str, Any]]:
    """Return plain values that JSON can hold."""
    return [{"task": task, "metric": metric, **asdict(one)} for (task, metric), one in differences.items()]


def interval(one: PairedDifference) -> str:
    """Return the bounds of a difference in percent."""
    return " … ".join(decimals(100 * bound, 1, signed=True) for bound in (one.low, one.high))
