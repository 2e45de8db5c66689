"""The scores of one model on clean and on corrupted images, and what may stand side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vitp.core.errors import ConfigError, DataError
from vitp.core.files import or_null
from vitp.metrics.results import Scores

_FORMAT = "vitp-robustness-1"

Cells = Mapping[str, Mapping[int, Scores]]


@dataclass(frozen=True)
class RobustnessResult:
    """Scores of one model on clean and on corrupted images.

    Attributes:
        name: Name of the model.
        task: Name of the task, or "probes".
        data: Name of the labelled set.
        clean: Scores on the clean images.
        cells: Corruption → severity → scores.
        seed: Seed of the corruptions.
        facts: What the scores depend on, as JSON values: two results can be compared cell by cell, and one can be
            continued, where they agree.
    """

    name: str
    task: str
    data: str
    clean: Scores
    cells: Cells
    seed: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)

    def value(self, metric: str | None = None) -> float:
        """Return a clean score; None: the headline."""
        return self.clean.values[metric or self.clean.headline]

    def cell(self, corruption: str, severity: int, metric: str | None = None) -> float:
        """Return the score under one corruption; None: the headline."""
        return self.cells[corruption][severity].values[metric or self.clean.headline]

    def by_corruption(self, metric: str | None = None) -> dict[str, float]:
        """Return corruption → mean over its severities."""
        return {
            name: _mean(self.cell(name, severity, metric) for severity in row)
            for name, row in self.cells.items()
        }

    def by_severity(self, metric: str | None = None) -> dict[int, float]:
        """Return severity → mean over the corruptions."""
        return {
            severity: _mean(
                self.cell(name, severity, metric) for name, row in self.cells.items() if severity in row
            )
            for severity in self.severities
        }

    def average(self, metric: str | None = None) -> float:
        """Return the mean over corruptions and severities; NaN where nothing could be counted."""
        return _mean(self.by_corruption(metric).values())

    def drop(self, metric: str | None = None) -> float:
        """Return clean minus average."""
        return self.value(metric) - self.average(metric)

    @cached_property
    def severities(self) -> tuple[int, ...]:
        """All severities that were measured."""
        return tuple(sorted({severity for row in self.cells.values() for severity in row}))

    def to_json(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        headline = self.clean.headline
        means = self.by_corruption()
        return {
            "format": _FORMAT,
            "name": self.name,
            "task": self.task,
            "data": self.data,
            "seed": self.seed,
            "headline": headline,
            "clean": or_null(self.value()),
            "average": or_null(self.average()),
            "drop": or_null(self.drop()),
            "clean_scores": self.clean.to_json(),
            "corruptions": {
                name: {
                    "mean": or_null(means[name]),
                    "drop": or_null(self.value() - means[name]),
                    "severities": {str(severity): scores.to_json() for severity, scores in row.items()},
                }
                for name, row in self.cells.items()
            },
            "facts": dict(self.facts),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RobustnessResult:
        """Return the result that `to_json` made.

        Raises:
            DataError: The values are not such a result.
        """
        try:
            if value["format"] != _FORMAT:
                raise KeyError(value["format"])
            cells = {
                name: {int(severity): _scores(scores) for severity, scores in row["severities"].items()}
                for name, row in value["corruptions"].items()
            }
            return cls(
                value["name"],
                value["task"],
                value["data"],
                _scores(value["clean_scores"]),
                cells,
                value["seed"],
                value["facts"],
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"is no result of a robustness test ({error})", where="robustness") from error


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _scores(value: Mapping[str, Any]) -> Scores:
    def numbers(row: Mapping[str, float | None]) -> dict[str, float]:
        return {name: math.nan if number is None else number for name, number in row.items()}

    per_class = {name: numbers(row) for name, row in value["per_class"].items()}
    return Scores(value["headline"], numbers(value["values"]), per_class, value["images"])


def comparable(results: Sequence[RobustnessResult]) -> None:
    """Check that results can stand side by side: one task, one set, one seed, the same corruptions.

    Raises:
        ConfigError: They can't.
    """

    def test_of(result: RobustnessResult) -> dict[str, Any]:
        cells = {name: sorted(row) for name, row in result.cells.items()}
        same = {key: result.facts.get(key) for key in ("set", "images", "image_names", "seed")}
        return {"task": result.task, "measure": result.clean.headline, "corruptions": cells, **same}

    if not results:
        raise ConfigError("there are no results", where="robustness")
    first = test_of(results[0])
    for other in results[1:]:
        differing = [key for key, value in test_of(other).items() if value != first[key]]
        if differing:
            what = f"{results[0].name} and {other.name} differ in {', '.join(differing)}"
            raise ConfigError(what, where="robustness", fix="compare models of one task on the same images")
