"""What `vitp tune` shows: a table on the console, a page with charts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitp.core.reading import read_text
from vitp.core.words import decimals
from vitp.report.charts import Bar, BarChart, Curve, LineChart
from vitp.report.page import Block, Code, Column, HtmlPage, KeyValue, Section, Table, TableCell, Text
from vitp.studies.cost import duration
from vitp.studies.space import is_finetuning
from vitp.studies.tuning import BEST_FILE, TrialRow, Tuned, TuneOrder, short_value

PAGE_FILE = "report.html"


def ranked(tuned: Tuned) -> list[TrialRow]:
    """Return the trials, complete ones first, each kind by its score."""
    order = ("complete", "running", "pruned", "failed")
    return sorted(
        tuned.rows,
        key=lambda row: (order.index(row.state), -(row.score if row.score is not None else -1e9), row.number),
    )


def table_of_trials(tuned: Tuned, most: int = 10) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of a table for the console: the best trials."""
    keys = list(dict.fromkeys(key for row in tuned.rows for key in row.values))
    rows = []
    for row in ranked(tuned)[:most]:
        score = "–" if row.score is None else decimals(100 * row.score, 1)
        shown = [short_value(row.values.get(key)) for key in keys]
        rows.append([str(row.number), row.state, score, *shown])
    return ["trial", "state", "score", *keys], rows


def write_page(tuned: Tuned, order: TuneOrder) -> Path:
    """Write the page of a search beside it, and return its path."""
    best = tuned.best
    facts = [
        ("trials", str(len(tuned.rows))),
        ("best score", "–" if best is None or best.score is None else decimals(100 * best.score, 1)),
        ("seed", str(order.seed)),
    ]
    sections = [_best(tuned, order), *_charts(tuned), _trials(tuned), _ranges(order)]
    subtitle = f"Score: {tuned.measure}. The test images were never looked at."
    return HtmlPage("Tuning", sections, subtitle, facts).write(order.out / PAGE_FILE)


def _best(tuned: Tuned, order: TuneOrder) -> Section:
    if tuned.best is None:
        return Section("The best settings", [Text("No trial has come to its end yet.", "note")])
    command = f"vitp finetune {order.config.task}" if is_finetuning(order.config) else "vitp pretrain"
    note = (
        "One score of one seed each: settings that lie within the spread of repeats are equally good. Before a number is "
        "published, train the best settings with other seeds, and look at the test images then."
    )
    blocks: list[Block] = [
        KeyValue(dict(tuned.best.values)),
        Code(f"{command} {BEST_FILE} --out RUN"),
        Text(note, "note"),
        Code(read_text(order.out / BEST_FILE), title="All settings"),
    ]
    return Section("The best settings", blocks, f"Those of trial {tuned.best.number}.")


def _charts(tuned: Tuned) -> list[Section]:
    scored = [row for row in tuned.rows if row.state == "complete" and row.score is not None]
    if not scored:
        return []
    x, scores, best = [], [], []
    for row in scored:
        x.append(float(row.number))
        scores.append(100 * float(row.score or 0.0))
        best.append(max(scores))
    lines = [Curve("best so far", x, best), Curve("trial", x, scores)]
    blocks: list[Block] = [
        LineChart(title="Score by trial", lines=lines, x_label="trial", y_label="score (%)")
    ]
    if tuned.importance:
        bars = [Bar(name, 100 * share) for name, share in tuned.importance.items()]
        note = "Share of what sets the better trials apart (PED-ANOVA); rough with few trials."
        blocks.append(BarChart(title="What mattered", bars=bars, digits=0, unit=" %", note=note))
    return [Section("How the search went", blocks), *_by_key(scored)]


def _by_key(scored: Sequence[TrialRow]) -> list[Section]:
    """Return charts of the score over each key with numbers."""
    charts: list[Block] = []
    for key in scored[0].values:
        points = sorted(
            (float(row.values[key]), 100 * float(row.score or 0.0))
            for row in scored
            if isinstance(row.values.get(key), int | float)
        )
        if len({value for value, _ in points}) > 1:
            # Dots alone: a line between trials that differ in all else would say nothing.
            dots = Curve("trials", [points[0][0]], [points[0][1]], runs=points)
            charts.append(LineChart(title=key, lines=[dots], x_label=key, y_label="score (%)"))
    return [Section("Score by setting", charts)] if charts else []


def _trials(tuned: Tuned) -> Section:
    keys = list(dict.fromkeys(key for row in tuned.rows for key in row.values))
    rows: list[list[TableCell]] = []
    for row in ranked(tuned):
        score = None if row.score is None else 100 * row.score
        rows.append(
            [
                row.number,
                row.state,
                score,
                *(row.values.get(key) for key in keys),
                row.seconds,
                row.why or None,
            ]
        )
    columns: list[Column | str] = [Column("trial", digits=0), "state", Column("score (%)", "max", 1), *keys]
    columns += [Column("time", written=duration), "why it failed"]
    note = "Of a pruned trial the newest score; it did worse than the median of the others at that step."
    return Section("All trials", [Table(columns, rows, note=note)])


def _ranges(order: TuneOrder) -> Section:
    rows: list[list[TableCell]] = [[key, str(one)] for key, one in order.space.items()]
    return Section("What was varied", [Table(["key", "values"], rows)])
