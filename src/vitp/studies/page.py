"""One HTML page about a study: the answer first, then the numbers, what they cost and how they came about."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from vitp.metrics.statistics import mean_std
from vitp.report.page import (
    Block,
    Code,
    Column,
    HtmlPage,
    KeyValue,
    MeanStd,
    Section,
    Table,
    TableCell,
    Text,
)
from vitp.report.text import format_number
from vitp.studies.cost import duration, operations
from vitp.studies.effort import EFFORT_COLUMNS, EFFORT_NOTE, comparison_cells, undecided_claims
from vitp.studies.grid import Store, Study, machine
from vitp.studies.plots import bars, curves
from vitp.studies.results import (
    CORRUPTED,
    LOWER_IS_BETTER,
    Measure,
    Row,
    groups_of,
    is_pretrained,
    label,
    measures_of,
    read_claim,
    repeats,
    several_sets,
    spent,
)
from vitp.studies.scales import Scale

_UNPROVEN = (
    "**This is a first look and proves nothing**: one pretraining seed, settings that were not tuned, short runs. Take "
    "away `--quick` for an answer."
)
_ANSWER_LEAD = "What the paper says, and what these runs say. A claim *agrees* when at least one measure is better and none worse."
_LEVEL_LEAD = " It is *level* when no measure is better or worse, and each finetuned task is shown to differ by less than {} in percent."
_DIFFERENCES_NOTE = (
    "Paired over pretraining seeds and draws of labels; the bootstrap resamples both. p: paired t-test, two-sided, of the "
    "seeds' means, and of the draws' means where there are several draws, the larger of the two. *better* and *worse* ask "
    "for an interval without zero and p < 0.05; among so many comparisons one in twenty of equal methods gets there. "
    "*level* asks that all 90 % intervals (bootstrap and both t) lie within the margin, which stands among the sizes below: "
    "two one-sided tests at 5 %. "
    "What was not pretrained here stands against every seed, and decides nothing where it was evaluated fewer than three "
    f"times. {EFFORT_NOTE}"
)


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


def page_of(report: Report) -> HtmlPage:
    """Return the page: `write` makes it a file, `markdown` text."""
    study, scale = report.study, report.scale
    sections = [_answer(report), *_failed(report)]
    if study.x_label:
        charts = [curves(study, report.rows, measure) for measure in measures_of(report.rows)]
        lead = "Mean over all runs, each of which is a dot; error bars are one standard deviation."
        sections.append(Section("Curves", [one for one in charts if any(line.x for line in one.lines)], lead))
    sections += [_group(report, group) for group in groups_of(report.rows)]
    sections += [*_cost(report), *_information(study), *_tuning(report), _how(report)]
    title = study.title + (" (first look)" if scale.quick else "")
    finetunings = [row.draw + 1 for row in report.rows if not row.task.startswith("frozen")]
    facts = [
        ("scale", scale.name),
        ("pretraining seeds", str(scale.seeds)),
        ("finetunings of each", str(max(finetunings, default=0))),
        ("made", _days(report)),
    ]
    return HtmlPage(title, sections, study.question, facts)


def _section(
    title: str,
    columns: Sequence[Column | str],
    rows: Sequence[Sequence[TableCell]],
    lead: str = "",
    note: str = "",
) -> list[Section]:
    """Return a section with a table, or none where the table has no rows."""
    return [Section(title, [Table(columns, rows, note=note)], lead)] if rows else []


def _answer(report: Report) -> Section:
    blocks: list[Block] = []
    if report.scale.quick:
        blocks.append(Text(_UNPROVEN, "bad"))
    elif report.scale.seeds < 3:
        blocks.append(
            Text("Fewer than three pretraining seeds decide nothing: every verdict is open.", "note")
        )
    if report.left:
        blocks.append(Text(f"{report.left} cells have not been run yet; run the command again.", "note"))
    rows: list[list[TableCell]] = []
    margin = report.scale.margin
    readings = [read_claim(report.rows, claim, margin) for claim in report.study.claims]
    for found in readings:
        by_verdict = (found.better, found.worse, found.level)
        named = ["; ".join(map(label, measures)) or "–" for measures in by_verdict]
        rows.append([found.claim.text, found.answer, *named, len(found.undecided)])
    if rows:
        columns: list[Column | str] = [
            "claim",
            "here",
            "better on",
            "worse on",
            "level on",
            Column("no evidence", digits=0),
        ]
        blocks += [Table(columns, rows), *undecided_claims(report.rows, readings, margin)]
    return Section(
        "The answer",
        blocks or [Text("The tables below hold the numbers; the paper makes no claim that they test.")],
        _ANSWER_LEAD + (_LEVEL_LEAD.format(f"{100 * margin:g}") if margin else ""),
    )


def _group(report: Report, group: str) -> Section:
    rows = [row for row in report.rows if row.group == group]
    measures = measures_of(rows)
    arms = list(dict.fromkeys(row.arm for row in rows))
    blocks: list[Block] = [_means(rows, group, arms, measures, report.study.ours)]
    blocks += _differences(report, rows, group, arms, measures)
    blocks += _corruptions(rows, group, arms)
    blocks += [bars(rows, group, measure, report.study.ours) for measure in measures]
    return Section(group[0].upper() + group[1:], blocks)


def _corruptions(rows: Sequence[Row], group: str, arms: Sequence[str]) -> list[Block]:
    """Return a table for each set and task that was tested on corrupted images: a row a corruption, a column an arm."""
    single = [measure for measure in measures_of(rows, main=False) if measure[1].endswith(CORRUPTED)]
    sets = several_sets(single)
    tables: list[Block] = []
    for set_, task in dict.fromkeys((measure[0], measure[1]) for measure in single):
        table: list[list[TableCell]] = []
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
    counts = {arm: _repeats_of(rows, group, arm, measures) for arm in arms}
    # The start as it is has one seed by nature, and stands against all of the others.
    uneven = len({counts[arm] for arm in arms if is_pretrained(rows, group, arm)}) > 1
    columns: list[Column | str] = ["arm", *(["seeds × draws"] if uneven else [])]
    sets = several_sets(measures)
    for measure in measures:
        best: Literal["max", "min"] = "min" if measure[2] in LOWER_IS_BETTER else "max"
        columns.append(Column(label(measure, with_set=sets), None if uneven else best, 1))
    columns += [
        Column("images", digits=0),
        Column("operations", written=operations),
        Column("time", written=duration),
    ]
    table: list[list[TableCell]] = []
    for arm in arms:
        cells: list[TableCell] = [arm, *([counts[arm]] if uneven else [])]
        for measure in measures:
            values = [100 * value for value in repeats(rows, group, arm, measure).values()]
            mean, std = mean_std(values)
            cells.append(MeanStd(mean, std if len(values) > 1 else None, len(values)) if values else None)
        table.append(cells + _budget([row for row in rows if row.arm == arm]))
    note = (
        "Percent: mean ± standard deviation over pretraining seeds × draws of labels. Images, operations and time are those "
        "of one pretraining run (forward and backward; alignment included; time on the machine below, other work on it "
        "included)."
    )
    if uneven:
        note += (
            " Means of arms with other seeds or draws can't be compared; the differences below are paired."
        )
    return Table(columns, table, note=note, highlight=[arms.index(ours)] if ours in arms else [])


def _repeats_of(rows: Sequence[Row], group: str, arm: str, measures: Sequence[Measure]) -> str:
    """Return the seeds of an arm and the draws of each, by the first measure that it has."""
    for measure in measures:
        if found := repeats(rows, group, arm, measure):
            seeds = len({seed for seed, _ in found})
            return f"{seeds} × {len(found) // seeds}"
    return "0"


def _budget(rows: Sequence[Row]) -> list[TableCell]:
    """Return images, operations and time of one pretraining run, where there was one."""
    known = list({row.seed: row for row in rows if row.images is not None}.values())
    if not any(row.images for row in known):
        return [None, None, None]
    by_name = ([getattr(row, name) for row in known] for name in ("images", "flops", "seconds"))
    return [mean_std([float(v) for v in values if v is not None])[0] for values in by_name]


def _differences(
    report: Report, rows: Sequence[Row], group: str, arms: Sequence[str], measures: Sequence[Measure]
) -> list[Block]:
    """Return a table of the study's arm minus each other, and of each arm that a claim sets against a third."""
    study, margin = report.study, report.scale.margin
    pairs = {study.ours: [arm for arm in arms if arm != study.ours]} if study.ours in arms else {}
    known = {frozenset((ours, theirs)) for ours, others in pairs.items() for theirs in others}
    for claim in study.claims:
        pair = frozenset((claim.ours, claim.theirs))
        if claim.group == group and pair <= set(arms) and pair not in known:
            known.add(pair)
            pairs.setdefault(claim.ours, []).append(claim.theirs)
    tables = [_minus(rows, group, ours, others, measures, margin) for ours, others in pairs.items()]
    shown = [table for table in tables if table.rows]
    return [*shown[:-1], *(replace(table, note=_DIFFERENCES_NOTE) for table in shown[-1:])]


def _minus(
    rows: Sequence[Row],
    group: str,
    ours: str,
    others: Sequence[str],
    measures: Sequence[Measure],
    margin: float,
) -> Table:
    sets = several_sets(measures)
    table: list[list[TableCell]] = []
    for measure in measures:
        for arm in others:
            cells = comparison_cells(rows, group, ours, arm, measure, margin)
            if cells is not None:
                table.append([label(measure, with_set=sets), arm, *cells])
    columns: list[Column | str] = [
        "measure",
        f"{ours} minus",
        Column("difference", digits=1, signed=True),
        "95 % interval",
        Column("seeds", digits=0),
        Column("p", digits=3),
        "verdict",
        *EFFORT_COLUMNS,
    ]
    return Table(columns, table)


def _cost(report: Report) -> list[Section]:
    rows: list[list[TableCell]] = []
    for one in spent(report.study, report.store):
        speed = one.images / one.seconds if one.seconds and one.images else None
        run: list[TableCell] = [
            one.arm,
            one.init,
            one.budget,
            one.runs,
            one.images,
            one.tokens or None,
            one.flops or None,
        ]
        energy = "not readable" if one.joules is None else f"{one.joules / 3600:.1f} Wh"
        rows.append([*run, one.seconds, speed, one.processor_seconds, one.memory, energy])
    columns: list[Column | str] = [
        *(
            "arm",
            "from",
            "equal",
            Column("runs", digits=0),
            Column("images", digits=0),
            Column("tokens", digits=0),
        ),
        Column("operations", written=operations),
        Column("time", written=duration),
        Column("images a second", digits=1),
        Column("processor time", written=duration),
        Column("memory", written=lambda size: f"{size / 2**30:.1f} GiB"),
        "energy",
    ]
    note = (
        "Means of one run, interrupted attempts included. Operations: matrix products of the model, forward and backward. "
        "Tokens: those that a language model computed. Energy: of the whole machine while the run was on, where the system "
        "lets it be read."
    )
    return _section("Cost", columns, rows, note=note)


def _information(study: Study) -> list[Section]:
    rows = list((study.information or {}).items())
    lead = "Paradigms that are told more should do better; the table says how much more."
    return _section("Label information", ["arm", "what its pretraining was told"], rows, lead)


def _tuning(report: Report) -> list[Section]:
    rows: list[list[TableCell]] = []
    for cell in report.study.cells:
        result = report.store.known(cell) if cell.kind == "choose" else None
        if result is None:
            continue
        tried = "; ".join(
            f"{row['value']:g}: {'failed' if row['score'] is None else format_number(100 * row['score'], 1)}"
            for row in result["values"]["tried"]
        )
        facts = cell.facts
        what = f"{facts['tunes']}" + (f", {facts['set']}" if "set" in facts else "")
        chosen = f"{result['values']['chosen']:g}"
        rows.append([str(facts["arm"]), str(facts["init"]), what, tried, chosen, _lead(result["values"])])
    tried = "tried: score on validation images (%)"
    columns = ["arm", "from", "setting", tried, "chosen", "ahead of the next by"]
    lead = (
        "The same number of values for each arm, on a seed of its own, never on test images. Behind ± the standard error of "
        "the lead, from the validation images (a fifth left out in turn) or from the draws of a probe's labels: a choice "
        "whose lead is within twice of it is chance, and may fall out otherwise on another machine."
    )
    return _section("Tuning", columns, rows, lead)


def _lead(choice: Mapping[str, Any]) -> str | None:
    if "lead" not in choice:
        return None
    error = f" ± {format_number(100 * choice['error'], 1)}" if "error" in choice else ""
    return format_number(100 * choice["lead"], 1) + error


def _failed(report: Report) -> list[Section]:
    failures = [(cell.name, report.store.failure(cell, report.since)) for cell in report.study.cells]
    rows = [(name, failure.kind, failure.message) for name, failure in failures if failure is not None]
    lead = "They are missing in the tables. Run the command again to try them anew."
    return _section("Failed cells", ["cell", "how", "why"], rows, lead)


def _results(report: Report) -> list[Mapping[str, Any]]:
    return [found for cell in report.study.cells if (found := report.store.known(cell)) is not None]


def _days(report: Report) -> str:
    """Return the day on which the cells were finished, or the first and the last one: rows may be of other days."""
    times = [found["when"] for found in _results(report)] or [time.time()]
    first, last = (time.strftime("%Y-%m-%d", time.localtime(when)) for when in (min(times), max(times)))
    return first if first == last else f"{first} to {last}"


def _machines(report: Report) -> dict[str, str]:
    """Return what the cells were made with, each with its number of cells where there are several."""
    machines = [found["machine"] for found in _results(report)] or [machine()]
    found = {}
    for name in (key for key in machines[0] if key != "host"):
        counts = Counter(str(one.get(name, "")) for one in machines).most_common()
        several = len(counts) > 1
        said = [f"{value} ({count} cell{'s' * (count > 1)})" if several else value for value, count in counts]
        found[name] = ", ".join(said)
    return found


def _how(report: Report) -> Section:
    notes = "\n".join(f"- {note}" for note in report.study.notes)
    blocks: list[Block] = [Text(notes)] if notes else []
    blocks += [
        Code(report.command),
        KeyValue(_machines(report)),
        KeyValue(report.scale.model_dump(mode="json"), title="All sizes"),
    ]
    return Section("How it was done", blocks)
