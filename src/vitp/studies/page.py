"""One HTML page about a study: the answer first, then the numbers, what they cost and how they came about."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vitp.metrics.statistics import mean_std, repeats_needed
from vitp.report.charts import Bar, BarChart, LineChart, Series
from vitp.report.page import Page
from vitp.report.sections import Block, Cell, Code, Column, KeyValue, Section, Table, Text
from vitp.report.sections import Measure as Mean
from vitp.report.svg import number
from vitp.studies.cost import duration, operations
from vitp.studies.grid import Store, Study, machine
from vitp.studies.plots import curves
from vitp.studies.results import (
    CORRUPTED,
    LOWER_IS_BETTER,
    Measure,
    Reading,
    Row,
    Spent,
    compared,
    groups_of,
    label,
    measures_of,
    paired,
    read_claim,
    repeats,
    several_sets,
    spent,
)
from vitp.studies.scales import Scale

UNPROVEN = (
    "**This is a first look and proves nothing**: one pretraining seed, settings that were not tuned, short runs. Take "
    "away `--quick` for an answer."
)


DIFFERENCES_NOTE = (
    "Paired over pretraining seeds and draws of labels; the bootstrap resamples both. p: paired t-test, two-sided, of the "
    "seeds' means, and of the draws' means where there are several draws, the larger of the two. *better* and *worse* ask "
    "for an interval without zero and p < 0.05; among so many comparisons one in twenty of equal methods gets there. "
    "Repeats to see it: pretraining seeds, and as many draws where there are several, with which each test would find a "
    "difference of this size and spread four times in five; an order of magnitude. What was "
    "not pretrained here stands against every seed, and decides nothing where it was evaluated fewer than three times."
)


MOST_REPEATS = 100
"""Pretraining seeds beyond which it doesn't matter how many more a comparison would need."""


@dataclass(frozen=True)
class Report:
    """What the page is made of.

    Attributes:
        study: The cells.
        store: Their results.
        scale: Its sizes.
        rows: All numbers.
        command: How to make it again.
        left: Cells that have not been run.
        since: Failures from before are open again.
    """

    study: Study
    store: Store
    scale: Scale
    rows: Sequence[Row]
    command: str
    left: int = 0
    since: float = 0.0


def page_of(report: Report) -> Page:
    """Return the page: `write` makes it a file, `page_markdown` text."""
    study, scale = report.study, report.scale
    sections = [_answer(report)]
    if study.x_label:
        sections.append(_curves(report))
    sections += [_group(report, group) for group in groups_of(report.rows)]
    sections += [part for part in (_cost(report), _information(report), _tuning(report)) if part is not None]
    failed = _failed(report)
    if failed is not None:
        sections.insert(1, failed)
    sections.append(_how(report))
    title = study.title + (" (first look)" if scale.quick else "")
    finetunings = [row.draw + 1 for row in report.rows if not row.task.startswith("frozen")]
    facts = [
        ("scale", scale.name),
        ("pretraining seeds", str(scale.seeds)),
        ("finetunings of each", str(max(finetunings, default=0))),
        ("made", time.strftime("%Y-%m-%d")),
    ]
    return Page(title, sections, study.question, facts)


def _answer(report: Report) -> Section:
    blocks: list[Block] = []
    if report.scale.quick:
        blocks.append(Text(UNPROVEN, "bad"))
    elif report.scale.seeds < 3:
        blocks.append(
            Text("Fewer than three pretraining seeds decide nothing: every verdict is open.", "note")
        )
    if report.left:
        blocks.append(Text(f"{report.left} cells have not been run yet; run the command again.", "note"))
    readings = [read_claim(report.rows, claim) for claim in report.study.claims]
    if readings:
        blocks.append(_claims(readings))
    return Section(
        "The answer",
        blocks or [Text("The tables below hold the numbers; the paper makes no claim that they test.")],
        "What the paper says, and what these runs say. A claim *agrees* when at least one measure is better and none worse.",
    )


def _claims(readings: Sequence[Reading]) -> Table:
    def names(measures: Sequence[Measure]) -> str:
        return "; ".join(map(label, measures)) or "–"

    rows: list[list[Cell]] = [
        [
            reading.claim.text,
            reading.answer,
            names(reading.better),
            names(reading.worse),
            len(reading.undecided),
        ]
        for reading in readings
    ]
    return Table(["claim", "here", "better on", "worse on", Column("no evidence", digits=0)], rows)


def _curves(report: Report) -> Section:
    charts: list[Block] = []
    for measure in measures_of(report.rows):
        lines = curves(report.study, report.rows, measure)
        series = [Series(name, xs, means, error=stds) for name, (xs, means, stds) in lines.items() if xs]
        if series:
            charts.append(LineChart(label(measure), series, x_label=report.study.x_label, y_label="%"))
    return Section("Curves", charts, "Mean over all runs; error bars are one standard deviation.")


def _group(report: Report, group: str) -> Section:
    rows = [row for row in report.rows if row.group == group]
    measures = measures_of(rows)
    arms = list(dict.fromkeys(row.arm for row in rows))
    blocks: list[Block] = [_means(rows, group, arms, measures, report.study.ours)]
    blocks += _differences(report.study, rows, group, arms, measures)
    blocks += _corruptions(rows, group, arms)
    blocks += [_bars(rows, group, arms, measure, report.study.ours) for measure in measures]
    return Section(group[0].upper() + group[1:], blocks)


def _corruptions(rows: Sequence[Row], group: str, arms: Sequence[str]) -> list[Block]:
    """Return a table for each set and task that was tested on corrupted images: a row a corruption, a column an arm."""
    single = [measure for measure in measures_of(rows, main=False) if measure[1].endswith(CORRUPTED)]
    sets = several_sets(single)
    tables: list[Block] = []
    for set_, task in dict.fromkeys((measure[0], measure[1]) for measure in single):
        table: list[list[Cell]] = []
        for measure in (one for one in single if one[:2] == (set_, task)):
            if measure[2] in ("average", "drop"):
                continue
            scores = [list(repeats(rows, group, arm, measure).values()) for arm in arms]
            means = [100 * mean_std(values)[0] if values else None for values in scores]
            table.append([measure[2].replace("_", " "), *means])
        note = "Percent, mean over severities and runs."
        columns: list[Column | str] = [f"{set_}: {task}" if sets else task]
        tables.append(Table(columns + [Column(arm, digits=1) for arm in arms], table, note=note))
    return tables


def _means(
    rows: Sequence[Row], group: str, arms: Sequence[str], measures: Sequence[Measure], ours: str
) -> Table:
    columns: list[Column | str] = ["arm"]
    sets = several_sets(measures)
    columns += [
        Column(label(m, with_set=sets), "min" if m[2] in LOWER_IS_BETTER else "max", 1) for m in measures
    ]
    columns += ["images", "operations", "time"]
    table: list[list[Cell]] = []
    for arm in arms:
        cells: list[Cell] = [arm]
        for measure in measures:
            values = [100 * value for value in repeats(rows, group, arm, measure).values()]
            mean, std = mean_std(values)
            cells.append(Mean(mean, std if len(values) > 1 else None, len(values)) if values else None)
        table.append(cells + _budget([row for row in rows if row.arm == arm]))
    note = (
        "Percent: mean ± standard deviation over pretraining seeds × draws of labels. Images, operations and time are those "
        "of one pretraining run (forward and backward; alignment included; time on the machine below, other work on it "
        "included)."
    )
    return Table(columns, table, note=note, highlight=[arms.index(ours)] if ours in arms else [])


def _budget(rows: Sequence[Row]) -> list[Cell]:
    known = {row.seed: row for row in rows if row.images is not None}.values()
    if not known or not any(row.images for row in known):
        return ["–", "–", "–"]
    images, flops, seconds = (
        mean_std([float(value) for row in known if (value := getattr(row, name)) is not None])[0]
        for name in ("images", "flops", "seconds")
    )
    return [f"{images:,.0f}", operations(flops), duration(seconds)]


def _differences(
    study: Study, rows: Sequence[Row], group: str, arms: Sequence[str], measures: Sequence[Measure]
) -> list[Block]:
    """Return a table of the study's arm minus each other, and one for each other arm that a claim sets against a third."""
    pairs = {study.ours: [arm for arm in arms if arm != study.ours]} if study.ours in arms else {}
    known = {frozenset((ours, theirs)) for ours, others in pairs.items() for theirs in others}
    for claim in study.claims:
        pair = frozenset((claim.ours, claim.theirs))
        if claim.group == group and pair <= set(arms) and pair not in known:
            known.add(pair)
            pairs.setdefault(claim.ours, []).append(claim.theirs)
    tables = [_minus(rows, group, ours, others, measures) for ours, others in pairs.items()]
    shown = [table for table in tables if table.rows]
    return [*shown[:-1], *(replace(table, note=DIFFERENCES_NOTE) for table in shown[-1:])]


def _minus(
    rows: Sequence[Row], group: str, ours: str, others: Sequence[str], measures: Sequence[Measure]
) -> Table:
    sets = several_sets(measures)
    table: list[list[Cell]] = []
    for measure in measures:
        for arm in others:
            found = compared(rows, group, ours, arm, measure)
            if found is None:
                continue
            # One seed has no interval.
            interval = f"{_signed(found.low)} to {_signed(found.high)}" if found.n > 1 else None
            needed = _needed(rows, group, ours, arm, measure)
            table.append(
                [
                    label(measure, with_set=sets),
                    arm,
                    100 * found.mean,
                    interval,
                    found.n,
                    found.p,
                    found.verdict,
                    needed,
                ]
            )
    columns: list[Column | str] = [
        "measure",
        f"{ours} minus",
        Column("difference", digits=1, signed=True),
        "95 % interval",
        Column("seeds", digits=0),
        Column("p", digits=3),
        "verdict",
        "repeats to see it",
    ]
    return Table(columns, table)


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(100 * value, 1)


def _needed(rows: Sequence[Row], group: str, ours: str, theirs: str, measure: Measure) -> str | None:
    """Return how many repeats would show a difference like this one."""
    mine, others, _ = paired(rows, group, ours, theirs, measure)
    if len({seed for seed, _ in mine.keys() & others.keys()}) < 2:
        return None
    needed = repeats_needed(mine, others, most=MOST_REPEATS)
    return f"> {MOST_REPEATS}" if needed is None else str(needed)


def _bars(rows: Sequence[Row], group: str, arms: Sequence[str], measure: Measure, ours: str) -> BarChart:
    bars = []
    for arm in arms:
        values = [100 * value for value in repeats(rows, group, arm, measure).values()]
        if values:
            mean, std = mean_std(values)
            several = len(values) > 1
            colour = 0 if arm == ours else 1
            bars.append(Bar(arm, mean, std if several else None, values if several else (), colour))
    return BarChart(label(measure), bars, digits=1, x_label="%")


def _cost(report: Report) -> Section | None:
    found = spent(report.study, report.store)
    if not found:
        return None
    rows: list[list[Cell]] = [_cost_row(one) for one in found]
    columns: list[Column | str] = [
        "arm",
        "from",
        "equal",
        Column("runs", digits=0),
        "images",
        "tokens",
        "operations",
        "time",
        Column("images a second", digits=1),
        "processor time",
        "memory",
        "energy",
    ]
    note = (
        "Means of one run, interrupted attempts included. Operations: matrix products of the model, forward and backward. "
        "Tokens: those that a language model computed. Energy: of the whole machine while the run was on, where the system "
        "lets it be read."
    )
    return Section("Cost", [Table(columns, rows, note=note)])


def _cost_row(one: Spent) -> list[Cell]:
    return [
        one.arm,
        one.init,
        one.budget,
        one.runs,
        f"{one.images:,.0f}",
        f"{one.tokens:,.0f}" if one.tokens else "–",
        operations(one.flops) if one.flops else "–",
        "–" if one.seconds is None else duration(one.seconds),
        one.images / one.seconds if one.seconds and one.images else None,
        "–" if one.processor_seconds is None else duration(one.processor_seconds),
        "–" if one.memory is None else f"{one.memory / 2**30:.1f} GiB",
        "not readable" if one.joules is None else f"{one.joules / 3600:.1f} Wh",
    ]


def _information(report: Report) -> Section | None:
    information = report.study.information
    if not information:
        return None
    rows: list[list[Cell]] = [[arm, text] for arm, text in information.items()]
    return Section(
        "Label information",
        [Table(["arm", "what its pretraining was told"], rows)],
        "Paradigms that are told more should do better; the table says how much more.",
    )


def _tuning(report: Report) -> Section | None:
    rows: list[list[Cell]] = []
    for cell in report.study.cells:
        result = report.store.result(cell) if cell.kind == "choose" else None
        if result is None:
            continue
        tried = "; ".join(
            f"{row['value']:g}: {'failed' if row['score'] is None else number(100 * row['score'], 1)}"
            for row in result["values"]["tried"]
        )
        facts = cell.facts
        what = f"{facts['tunes']}" + (f", {facts['set']}" if "set" in facts else "")
        rows.append([str(facts["arm"]), str(facts["init"]), what, tried, f"{result['values']['chosen']:g}"])
    if not rows:
        return None
    return Section(
        "Tuning",
        [Table(["arm", "from", "setting", "tried: score on validation images (%)", "chosen"], rows)],
        "The same number of values for each arm, on a seed of its own, never on test images.",
    )


def _failed(report: Report) -> Section | None:
    rows: list[list[Cell]] = []
    for cell in report.study.cells:
        failure = report.store.failure(cell, report.since)
        if failure is not None:
            rows.append([cell.name, failure.kind, failure.message])
    if not rows:
        return None
    lead = "They are missing in the tables. Run the command again to try them anew."
    return Section("Failed cells", [Table(["cell", "how", "why"], rows)], lead)


def _how(report: Report) -> Section:
    notes = "\n".join(f"- {note}" for note in report.study.notes)
    blocks: list[Block] = [Text(notes)] if notes else []
    blocks += [
        Code(report.command),
        KeyValue({name: value for name, value in machine().items() if name != "host"}),
        KeyValue(report.scale.model_dump(mode="json"), title="All sizes"),
    ]
    return Section("How it was done", blocks)
