"""Cross-validation: a finetuning run for each fold, and what they score together.

OUT/fold-0/ …        a run folder each, as `vitp.runs.finetune` leaves it
OUT/folds.json       the scores of each fold, their means and standard deviations
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vitp.core import distributed
from vitp.core.errors import ConfigError
from vitp.core.files import or_null, write_json
from vitp.core.reading import read_json
from vitp.core.words import decimals
from vitp.metrics.statistics import mean_std
from vitp.runs.finetune import SCORES_FILE, FinetuneConfig, run_finetune
from vitp.runs.folder import settings_that_differ, started

FOLDS_FILE = "folds.json"
_COUNTS = ("images", "cases")
"""Values that count what was tested."""
_IN_UNITS = ("pixels", "_mm", "_ml", "_mm2")
"""Ends of the names of values that aren't shares."""


@dataclass(frozen=True)
class FoldScores:
    """The scores of all folds.

    Attributes:
        headline: Name of the value that models are chosen by.
        values: Name → value of each fold; NaN where nothing could be counted.
        per_class: Class → name → value of each fold.
        images: Test images of each fold.
    """

    headline: str
    values: Mapping[str, Sequence[float]]
    per_class: Mapping[str, Mapping[str, Sequence[float]]]
    images: Sequence[int]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the head and the rows of a table: each fold, then mean ± standard deviation, in percent.

        Counts are summed.
        """
        names = list(self.values)
        rows = [
            [f"fold {fold}", f"{count:,}", *(_shown(name, [self.values[name][fold]]) for name in names)]
            for fold, count in enumerate(self.images)
        ]
        means = ["mean ± sd", f"{sum(self.images):,}", *(_shown(name, self.values[name]) for name in names)]
        classes = [
            [name, "", *(_shown(key, row[key]) if key in row else "" for key in names)]
            for name, row in self.per_class.items()
            if any(key in row for key in names)
        ]
        return ["", "images", *names], [*rows, means, *classes]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; NaN becomes None."""

        def told(values: Sequence[float]) -> dict[str, Any]:
            mean, sd = mean_std(values)
            return {"mean": or_null(mean), "sd": or_null(sd), "folds": [or_null(value) for value in values]}

        return {
            "headline": self.headline,
            "folds": len(self.images),
            "images": list(self.images),
            "values": {name: told(values) for name, values in self.values.items()},
            "per_class": {
                name: {key: told(values) for key, values in row.items()}
                for name, row in self.per_class.items()
            },
        }


def run_folds(
    config: FinetuneConfig, out: str | Path, *, resume: bool = False, console: Console | None = None
) -> FoldScores:
    """Make the run of each fold, one after the other, and write what they score together.

    Args:
        config: With `data.folds`.
        out: New folder, or with `resume` the folder of a cross-validation that was interrupted: folds that are complete
            stay as they are.
        resume: Continue there.
        console: Where progress is printed; standard output by default.

    Raises:
        VitpError: As `run_finetune`; or `out` holds something else.
    """
    out, count = Path(out), config.data.folds
    if count is None:
        raise ConfigError("isn't given", where="data.folds", fix="say how many, as in --folds 5")
    if started(out):
        fix = "choose another folder with --out"
        raise ConfigError("holds a run of its own", where=str(out), fix=fix)
    found = []
    for fold in range(count):
        folder = out / f"fold-{fold}"
        own = config.model_copy(update={"data": config.data.model_copy(update={"fold": fold})})
        if resume and (folder / SCORES_FILE).is_file():
            if changed := settings_that_differ(folder, own):
                fix = "resume with the run's own configuration, or choose another folder"
                what = f"differs from the run that is to be resumed: {', '.join(changed[:5])}"
                raise ConfigError(what, where=str(folder), fix=fix)
        else:
            run_finetune(own, folder, resume=resume and started(folder), console=console)
        if distributed.rank() == 0:
            found.append(read_json(folder / SCORES_FILE))
    scores = _together(distributed.gather(found)[0])
    if distributed.rank() == 0:
        write_json(out / FOLDS_FILE, {"task": config.task, **scores.to_json()})
    return scores


def _together(files: Sequence[Mapping[str, Any]]) -> FoldScores:
    names = dict.fromkeys(name for file in files for name in file["values"])
    classes = dict.fromkeys(name for file in files for name in file["per_class"])
    keys = dict.fromkeys(key for file in files for row in file["per_class"].values() for key in row)
    return FoldScores(
        headline=files[0]["headline"],
        values={name: [_number(file["values"].get(name)) for file in files] for name in names},
        per_class={
            name: {key: [_number(file["per_class"].get(name, {}).get(key)) for file in files] for key in keys}
            for name in classes
        },
        images=[int(file["images"]) for file in files],
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _shown(name: str, values: Sequence[float]) -> str:
    """Return a value, or mean ± standard deviation of several, in percent unless its name says otherwise.

    Of counts it is the sum: no image is tested in two folds.
    """
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "–"
    if name in _COUNTS:
        return f"{sum(known):,.0f}"
    mean, sd = mean_std(values)
    factor = 1 if name.endswith(_IN_UNITS) else 100
    return decimals(factor * mean, 1) + (f" ± {factor * sd:.1f}" if len(values) > 1 else "")
