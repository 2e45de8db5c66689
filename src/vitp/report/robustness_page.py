"""One self-contained page of a robustness test: what is lost, under what, and how the images looked."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from vitp.core.files import write_text
from vitp.evaluation.corruptions.catalogue import CORRUPTIONS, EXTRAS
from vitp.evaluation.robustness_result import RobustnessResult, comparable
from vitp.report import (
    Bar,
    BarChart,
    Card,
    Column,
    Figure,
    Headline,
    ImageGrid,
    KeyValue,
    LineChart,
    Page,
    Section,
    Series,
    Table,
)
from vitp.report.heat_map import HeatMap
from vitp.report.sections import Block, Cell
from vitp.report.svg import number

PERCENT = 100.0
_KNOWN = {**CORRUPTIONS, **EXTRAS}


def words(name: str) -> str:
    """Return the name of a corruption as it is read."""
    return name.replace("_", " ")


def write_robustness_page(
    results: Sequence[RobustnessResult],
    path: str | Path,
    *,
    metric: str | None = None,
    examples: Sequence[Figure] = (),
    title: str = "Robustness",
) -> Path:
    """Write the page of one model, or of several side by side, and return its path.

    Args:
        results: All of one task, on the same corrupted images.
        path: The page.
        metric: Which score is shown; None: the headline.
        examples: Pictures of the corruptions; see `vitp.report.robustness_examples`.
        title: Heading.

    Raises:
        ConfigError: The results can't be compared.
        VitpError: The page can't be written.
    """
    shown = metric or results[0].clean.headline
    first = results[0]
    facts = [
        ("task", first.task),
        ("data", first.data),
        ("images", f"{first.clean.images:,}"),
        ("score", shown),
        ("severities", ", ".join(map(str, first.severities))),
        ("seed", str(first.seed)),
    ]
    sections = robustness_sections(results, metric=metric, examples=examples)
    return Page(title, sections, _subtitle(results), facts).write(path)


def _subtitle(results: Sequence[RobustnessResult]) -> str:
    count = len(results[0].cells)
    models = "one model" if len(results) == 1 else f"{len(results)} models"
    return f"{models} on clean images and under {count} corruptions; nothing was trained or chosen on corrupted images."


def robustness_sections(
    results: Sequence[RobustnessResult], *, metric: str | None = None, examples: Sequence[Figure] = ()
) -> list[Section]:
    """Return the sections, for a page of one's own; see `write_robustness_page`.

    Raises:
        ConfigError: The results can't be compared.
    """
    comparable(results)
    sections = [_summary(results, metric), _corruptions(results, metric), _heat_maps(results, metric)]
    if examples:
        note = (
            "Geometric corruptions move the labels too; the labels are drawn where there are boxes or masks."
        )
        sections.append(Section("How it looks", [ImageGrid(examples, width=150, note=note)]))
    facts: list[Block] = [KeyValue(dict(result.facts), title=result.name) for result in results]
    sections.append(Section("Settings", facts, "What the scores depend on."))
    return sections


def _summary(results: Sequence[RobustnessResult], metric: str | None) -> Section:
    first, blocks = results[0], list[Block]()
    if len(results) == 1:
        by_corruption = first.by_corruption(metric)
        worst = min(by_corruption, key=lambda name: _or(by_corruption[name], math.inf))
        cards = [
            Card(_percent(first.value(metric)), "clean"),
            Card(
                _percent(first.average(metric)),
                "mean over corruptions and severities",
                delta=f"−{_percent(first.drop(metric))} against clean"
                if first.drop(metric) > 0
                else "no loss",
                better=None if math.isnan(first.drop(metric)) else first.drop(metric) <= 0,
            ),
            Card(_percent(by_corruption[worst]), f"worst: {words(worst)}"),
        ]
        blocks.append(Headline(cards))
    else:
        blocks.append(_models(results, metric))
    blocks.append(_by_severity(results, metric))
    lead = (
        "The average is the mean over corruptions of the mean over severities; the drop is clean minus average. "
        "All scores in percent."
    )
    return Section("Summary", blocks, lead)


def _models(results: Sequence[RobustnessResult], metric: str | None) -> Table:
    columns = [
        Column("model"),
        Column("clean", "max", 1),
        Column("average", "max", 1),
        Column("drop", "min", 1),
        Column("drop, % of clean", "min", 1),
        Column("worst corruption"),
    ]
    rows: list[list[Cell]] = []
    for result in results:
        by_corruption = result.by_corruption(metric)
        worst = min(by_corruption, key=lambda name: _or(by_corruption[name], math.inf))
        clean = result.value(metric)
        rows.append(
            [
                result.name,
                _cell(clean),
                _cell(result.average(metric)),
                _cell(result.drop(metric)),
                _cell(result.drop(metric) / clean) if clean else None,
                f"{words(worst)} ({_percent(by_corruption[worst])})",
            ]
        )
    note = (
        "One run each: a difference between models is no evidence until several seeds show it. A small drop from a "
        "low clean score is no robustness."
    )
    return Table(columns, rows, note=note)


def _by_severity(results: Sequence[RobustnessResult], metric: str | None) -> LineChart:
    series = []
    for result in results:
        found = result.by_severity(metric)
        values = [result.value(metric), *found.values()]
        series.append(Series(result.name, [0, *found], [value * PERCENT for value in values]))
    return LineChart(
        "Mean over corruptions by severity",
        series,
        x_label="severity (0: clean)",
        y_label="%",
        wide=True,
    )


def _corruptions(results: Sequence[RobustnessResult], metric: str | None) -> Section:
    several = len(results) > 1
    columns = [Column("corruption"), Column("severities")]
    columns += [Column(result.name if several else "mean", digits=1) for result in results]
    columns += [Column(f"drop, {result.name}" if several else "drop", digits=1) for result in results]
    means = [result.by_corruption(metric) for result in results]
    rows: list[list[Cell]] = []
    for name in results[0].cells:
        scores: list[Cell] = [_cell(found[name]) for found in means]
        drops: list[Cell] = [
            _cell(result.value(metric) - found[name]) for result, found in zip(results, means, strict=True)
        ]
        rows.append([words(name), _KNOWN[name].words, *scores, *drops])
    bars = [
        Bar(f"{words(name)}, {result.name}" if several else words(name), drop * PERCENT, colour=place)
        for name in _by_loss(results[0], metric)
        for place, result in enumerate(results)
        if math.isfinite(drop := result.value(metric) - result.by_corruption(metric)[name])
    ]
    chart = BarChart("Loss against clean", bars, digits=1, x_label="points", wide=True)
    return Section("By corruption", [Table(columns, rows, note="Means over the severities."), chart])


def _by_loss(result: RobustnessResult, metric: str | None) -> list[str]:
    found = result.by_corruption(metric)
    return sorted(found, key=lambda name: _or(found[name], math.inf))


def _heat_maps(results: Sequence[RobustnessResult], metric: str | None) -> Section:
    losses = [
        result.value(metric) - result.cell(name, severity, metric)
        for result in results
        for name, row in result.cells.items()
        for severity in row
    ]
    largest = max([loss for loss in losses if math.isfinite(loss) and loss > 0], default=0.1) * PERCENT
    maps: list[Block] = []
    for result in results:
        severities = result.severities
        means = result.by_corruption(metric)
        values = [
            [
                *(_cell_or_nan(result, name, severity, metric) * PERCENT for severity in severities),
                means[name] * PERCENT,
            ]
            for name in result.cells
        ]
        maps.append(
            HeatMap(
                f"{result.name}, clean {_percent(result.value(metric))}",
                [words(name) for name in result.cells],
                [*(f"severity {severity}" for severity in severities), "mean"],
                values,
                reference=result.value(metric) * PERCENT,
                largest=largest,
            )
        )
    lead = f"Darker cells lost more, up to {number(largest, 1)} points; blue ones gained."
    return Section("Heat map", maps, lead)


def _cell_or_nan(result: RobustnessResult, name: str, severity: int, metric: str | None) -> float:
    return result.cell(name, severity, metric) if severity in result.cells[name] else math.nan


def _cell(value: float) -> float | None:
    return value * PERCENT if math.isfinite(value) else None


def _percent(value: float) -> str:
    return number(value * PERCENT, 1)


def _or(value: float, other: float) -> float:
    return value if math.isfinite(value) else other


def write_table(results: Sequence[RobustnessResult], path: str | Path) -> None:
    """Write all scores as a tidy CSV: model, task, data, corruption ("clean"), severity (0), score, value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "task", "data", "corruption", "severity", "score", "value"])
    for result in results:
        cells = [("clean", 0, result.clean)]
        cells += [
            (name, level, scores) for name, row in result.cells.items() for level, scores in row.items()
        ]
        for name, severity, scores in cells:
            for score, value in scores.values.items():
                shown = f"{value:.6g}" if math.isfinite(value) else ""
                writer.writerow([result.name, result.task, result.data, name, severity, score, shown])
    write_text(path, text.getvalue())
