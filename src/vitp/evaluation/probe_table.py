"""`ProbeTable`: scores of frozen features, mean and spread over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from rich.table import Table

from vitp.metrics.statistics import mean_std

MAIN_PROBES = (
    ("patches linear", "patch mIoU"),
    ("scene linear", "accuracy"),
    ("presence linear", "mAP"),
)
"""One measure of each kind of probe, on 0..1: what a rate is chosen by."""


@dataclass(frozen=True)
class ProbeRow:
    """One score.

    Attributes:
        task: `scene kNN`, `scene linear`, `patches linear`, `presence linear` or `points cosine`.
        metric: What is measured, on 0..1.
        values: One a seed, in the order of the seeds.
    """

    task: str
    metric: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return mean_std(self.values)[0]

    @property
    def std(self) -> float:
        """Sample standard deviation over seeds."""
        return mean_std(self.values)[1]

    @property
    def percent(self) -> str:
        """Mean ± standard deviation in percent, as they are read."""
        return f"{100 * self.mean:.1f} ± {100 * self.std:.1f}"

    @property
    def n(self) -> int:
        """Number of seeds."""
        return len(self.values)


@dataclass(frozen=True)
class ProbeTable:
    """Scores of one backbone on one set.

    Attributes:
        rows: The scores.
        note: How many labels they took, on what.
    """

    rows: tuple[ProbeRow, ...]
    note: str = ""

    def __getitem__(self, key: tuple[str, str]) -> ProbeRow:
        """Return the row of (task, metric)."""
        for row in self.rows:
            if (row.task, row.metric) == key:
                return row
        raise KeyError(key)

    @property
    def main(self) -> float:
        """The mean of the main measures, by which settings and the length of a run are chosen; NaN without any."""
        means = [row.mean for row in self.rows if (row.task, row.metric) in MAIN_PROBES]
        means = [mean for mean in means if math.isfinite(mean)]
        return sum(means) / len(means) if means else math.nan

    def scalars(self) -> dict[str, float]:
        """Return `task/metric` with underscores → mean, for curves."""
        return {f"{row.task}/{row.metric}".replace(" ", "_"): row.mean for row in self.rows}

    def to_json(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        names = ("task", "metric", "mean", "std", "n")
        rows = [{**{n: getattr(row, n) for n in names}, "values": list(row.values)} for row in self.rows]
        return {"note": self.note, "rows": rows}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ProbeTable:
        """Return the table that `to_json` made."""
        return TypeAdapter(cls).validate_python(value)

    @classmethod
    def joined(cls, tables: Sequence[ProbeTable]) -> ProbeTable:
        """Return one table whose rows hold the values of several tables with the same rows, in their order."""
        rows = tuple(
            ProbeRow(
                row.task, row.metric, tuple(v for table in tables for v in table[row.task, row.metric].values)
            )
            for row in tables[0].rows
        )
        return cls(rows, tables[0].note)

    def to_markdown(self) -> str:
        """Return a Markdown table."""
        lines = ["| task | metric | mean ± std | n |", "|---|---|---|---|"]
        lines += [f"| {row.task} | {row.metric} | {row.percent} | {row.n} |" for row in self.rows]
        return "\n".join(lines + ([f"\n{self.note}"] if self.note else [])) + "\n"

    def to_rich(self, title: str = "Probes of the frozen features") -> Table:
        """Return a table for the console."""
        table = Table(title=title, caption=self.note or None)
        for name in ("task", "metric"):
            table.add_column(name)
        for name in ("mean ± std", "n"):
            table.add_column(name, justify="right")
        for row in self.rows:
            table.add_row(row.task, row.metric, row.percent, str(row.n))
        return table

    def __str__(self) -> str:
        return json.dumps(self.to_json())


def collect(per_seed: Iterable[Mapping[tuple[str, str], float]], note: str) -> ProbeTable:
    """Return the table of the scores (task, metric) → value of each seed."""
    values: dict[tuple[str, str], list[float]] = {}
    for scores in per_seed:
        for key, value in scores.items():
            values.setdefault(key, []).append(value)
    return ProbeTable(tuple(ProbeRow(*key, tuple(found)) for key, found in values.items()), note)
