"""Charts of a study, for its page and as files: means with error bars, and each run as a dot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vitp.metrics.statistics import mean_std
from vitp.report.charts import Bar, BarChart, Chart, Curve, LineChart
from vitp.studies.grid import Study
from vitp.studies.results import Measure, Row, groups_of, label, measures_of, metric_name, repeats


def write_plots(study: Study, rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write one PNG for each main measure (and group, where arms are names); return their paths."""
    charts: dict[str, Chart] = {}
    if study.x_label:
        charts = {"-".join(("", *measure)): curves(study, rows, measure) for measure in measures_of(rows)}
    for group in () if study.x_label else groups_of(rows):
        of_group = [row for row in rows if row.group == group]
        # Not each measure was taken in each group: frozen features are probed, and others finetuned.
        for measure in measures_of(of_group):
            charts["-".join((group, *measure))] = bars(of_group, group, measure, study.ours, f", {group}")
    written = []
    for name, chart in charts.items():
        path = folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.png"
        chart.write_png(path)
        written.append(path)
    return written


def curves(study: Study, rows: Sequence[Row], measure: Measure) -> LineChart:
    """Return the chart of a measure (percent) in a study of one number.

    Where an arm was run at several numbers each arm is a line; otherwise the arms are the points of one.
    """
    placed = [
        (row.arm, row.x, 100 * row.value)
        for row in sorted(rows, key=lambda row: row.x or 0.0)
        if row.measure == measure and row.value is not None and row.x is not None
    ]
    arms = [row.arm for row in rows if row.arm in {arm for arm, _, _ in placed}]
    several = len({(arm, x) for arm, x, _ in placed}) > len(set(arms))
    lines = []
    for name in dict.fromkeys(arms) if several else [study.ours]:
        runs = [(x, value) for arm, x, value in placed if arm == name or not several]
        xs = list(dict.fromkeys(x for x, _ in runs))
        stats = [mean_std([value for at, value in runs if at == x]) for x in xs]
        means, stds = [mean for mean, _ in stats], [std for _, std in stats]
        lines.append(Curve(name if several else label(measure), xs, means, error=stds, runs=runs))
    y_label = f"{metric_name(measure[2])} (%)"
    return LineChart(title=label(measure), lines=lines, x_label=study.x_label, y_label=y_label)


def bars(rows: Sequence[Row], group: str, measure: Measure, ours: str, where: str = "") -> BarChart:
    """Return the chart of the arms of a group in a measure (percent).

    Args:
        rows: Of the group.
        group: The group.
        measure: Set, task and metric.
        ours: The arm that is set off from the others by its colour.
        where: Behind the title.
    """
    found = []
    for arm in dict.fromkeys(row.arm for row in rows):
        values = [100 * value for value in repeats(rows, group, arm, measure).values()]
        if values:
            mean, std = mean_std(values)
            colour = 0 if arm == ours else 1
            several = len(values) > 1
            found.append(Bar(arm, mean, std if several else None, values if several else (), colour))
    return BarChart(title=f"{label(measure)}{where}", bars=found, digits=1, x_label="%")
