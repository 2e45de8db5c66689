"""What the ranks tell each other before a step: numbers as one tensor, anything else when there is something."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from vitp.core import distributed
from vitp.core.distributed import RankReport

_HEAD = 3
"""Numbers in front of the counts: whether the rank has more to say, its signal (-1: none), whether it has saved."""


class StepExchange:
    """Gives every rank the reports of all, in the order of the ranks.

    Names of losses and of kinds of work are the same in all steps but for exceptions, so they are told once; from then
    on a step costs one small tensor over the host's network, with nothing pickled. A rank that has an error or a new
    name says so with its numbers, and all tell everything again.
    """

    def __init__(self) -> None:
        self._names: tuple[tuple[str, ...], tuple[str, ...]] | None = None

    def __call__(self, own: RankReport) -> list[RankReport]:
        """Return the reports of all ranks. A collective call."""
        if distributed.world_size() == 1:
            return [own]
        if self._names is not None:
            rows = distributed.gather_numbers(self._numbers(own))
            # One rank with more to tell is enough: all of them have to take part in the exchange below.
            if not any(row[0] for row in rows):
                return [self._report(row) for row in rows]
        reports = distributed.gather(own)
        self._names = (
            _union([report.counts for report in reports]),
            _union([report.work for report in reports]),
        )
        return reports

    def _numbers(self, own: RankReport) -> torch.Tensor:
        assert self._names is not None
        counts, work = self._names
        more = own.error is not None or not (
            own.counts.keys() <= set(counts) and own.work.keys() <= set(work)
        )
        head = [float(more), -1.0 if own.stop is None else float(own.stop), float(own.saved)]
        # A name that the rank lacks is no number.
        values = [own.counts.get(name, math.nan) for name in counts] + [
            own.work.get(name, math.nan) for name in work
        ]
        return torch.tensor([*head, *values], dtype=torch.float64)

    def _report(self, row: Sequence[float]) -> RankReport:
        assert self._names is not None
        counts, work = self._names
        _, stop, saved = row[:_HEAD]
        amounts = row[_HEAD:]
        return RankReport(
            {name: x for name, x in zip(counts, amounts, strict=False) if not math.isnan(x)},
            {name: x for name, x in zip(work, amounts[len(counts) :], strict=True) if not math.isnan(x)},
            None if stop < 0 else int(stop),
            None,
            bool(saved),
        )


def _union(dicts: Sequence[dict[str, float]]) -> tuple[str, ...]:
    """Return all names, in the order in which the ranks have them."""
    return tuple(dict.fromkeys(name for values in dicts for name in values))
