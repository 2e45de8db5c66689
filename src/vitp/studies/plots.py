"""Plots of a study as files: means with error bars, and each run as a dot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitp.core.files import atomic_path
from vitp.metrics.statistics import mean_std
from vitp.studies.grid import Study
from vitp.studies.results import Measure, Row, groups_of, label, measures_of, metric_name, repeats

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#555555", "#A0A000")
"""Okabe and Ito's, safe for colour-blind readers."""


def write_plots(study: Study, rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write one PNG for each main measure (and group, where arms are names); return their paths."""
    from matplotlib.figure import Figure

    written = []
    for measure in measures_of(rows):
        for group in [""] if study.x_label else groups_of(rows):
            figure = Figure(figsize=(6.4, 4.0), layout="constrained")
            axes = figure.add_subplot()
            drawn = (
                _curve(axes, study, rows, measure)
                if study.x_label
                else _dots(axes, study, rows, group, measure)
            )
            if not drawn:
                continue
            axes.set_title(label(measure) + (f"\n{group}" if group else ""), fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
            path = folder / f"{_slug('-'.join((group, *measure)))}.png"
            with atomic_path(path) as temporary:
                figure.savefig(temporary, dpi=150, format="png")
            written.append(path)
    return written


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


Points = tuple[list[float], list[float], list[float]]


def curves(study: Study, rows: Sequence[Row], measure: Measure) -> dict[str, Points]:
    """Return line → x, means and standard deviations (percent) of a study of one number; see `runs_by_line`."""
    found: dict[str, Points] = {}
    for name, runs in runs_by_line(study, rows, measure).items():
        stats = [mean_std(values) for values in runs.values()]
        found[name] = (list(runs), [m for m, _ in stats], [s for _, s in stats])
    return found


def runs_by_line(study: Study, rows: Sequence[Row], measure: Measure) -> dict[str, dict[float, list[float]]]:
    """Return line → x → value of each run (percent), x rising.

    Where an arm was run at several numbers each arm is a line; otherwise the arms are the points of one.
    """
    placed = [row for row in rows if row.measure == measure and row.value is not None and row.x is not None]
    by_arm = {
        arm: {row.x for row in placed if row.arm == arm} for arm in dict.fromkeys(r.arm for r in placed)
    }
    several = any(len(xs) > 1 for xs in by_arm.values())
    found: dict[str, dict[float, list[float]]] = {}
    for name in by_arm if several else [study.ours]:
        line: dict[float, list[float]] = {}
        for row in sorted(placed, key=lambda row: row.x or 0.0):
            if (row.arm == name or not several) and row.x is not None and row.value is not None:
                line.setdefault(row.x, []).append(100 * row.value)
        found[name if several else label(measure)] = line
    return found


def _curve(axes: Any, study: Study, rows: Sequence[Row], measure: Measure) -> bool:
    lines = runs_by_line(study, rows, measure)
    for number, (name, runs) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        stats = [mean_std(values) for values in runs.values()]
        means, stds = [mean for mean, _ in stats], [std for _, std in stats]
        axes.errorbar(list(runs), means, yerr=stds, marker="o", capsize=3, label=name, color=colour)
        for x, values in runs.items():
            axes.plot([x] * len(values), values, ".", color=colour, alpha=0.35)
    axes.set_xlabel(study.x_label)
    axes.set_ylabel(f"{metric_name(measure[2])} (%)")
    if len(lines) > 1:
        axes.legend(fontsize=8, frameon=False)
    return any(lines.values())


def _dots(axes: Any, study: Study, rows: Sequence[Row], group: str, measure: Measure) -> bool:
    mine = [row for row in rows if row.group == group]
    arms = [arm for arm in dict.fromkeys(row.arm for row in mine) if repeats(mine, group, arm, measure)]
    for place, arm in enumerate(reversed(arms)):
        values = [100 * value for value in repeats(mine, group, arm, measure).values()]
        mean, std = mean_std(values)
        colour = COLOURS[0] if arm == study.ours else COLOURS[6]
        axes.plot(values, [place] * len(values), ".", color=colour, alpha=0.35)
        axes.errorbar(mean, place, xerr=std, fmt="o", capsize=3, color=colour)
    axes.set_yticks(range(len(arms)), list(reversed(arms)))
    axes.set_xlabel(f"{metric_name(measure[2])} (%), mean ± standard deviation")
    return bool(arms)
