"""Several backbones under one downstream test: table, bars with their seeds, and what may be concluded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Protocol

from vitp.core.errors import ConfigError, did_you_mean
from vitp.metrics.statistics import PairedDifference, paired_bootstrap
from vitp.report.charts import Bar, BarChart
from vitp.report.sections import Block, Cell, Column, Measure, Section, Table, Text
from vitp.report.svg import number


class Score(Protocol):
    """One row of a probe or result table: a measure over seeds. `vitp.evaluation.probe_table.ProbeRow` is one."""

    @property
    def task(self) -> str:
        """What was solved."""

    @property
    def metric(self) -> str:
        """What is measured."""

    @property
    def values(self) -> Sequence[float]:
        """One a seed, in the same order of seeds for all backbones."""

    @property
    def mean(self) -> float:
        """Mean over seeds."""

    @property
    def std(self) -> float:
        """Sample standard deviation over seeds."""

    @property
    def n(self) -> int:
        """Number of seeds."""


Key = tuple[str, str]


def comparison_section(
    results: Mapping[str, Iterable[Score]],
    *,
    ours: str,
    title: str = "Comparison",
    lead: str = "",
    percent: bool = True,
    lower_is_better: Iterable[Key] = (),
    digits: int = 1,
    draws_per_seed: int = 1,
) -> Section:
    """Return a section that compares backbones on the same tasks.

    The verdict is a paired bootstrap and t-test over seeds (`vitp.metrics.statistics.paired_bootstrap`), so the values of
    all backbones must be in the same order of seeds. A measure that a backbone lacks is left blank.

    Args:
        results: Name of the backbone (or of its initialisation) → its scores.
        ours: The backbone that is compared with each of the others.
        title: Of the section.
        lead: One or two sentences on data, budget and protocol.
        percent: Scores lie on 0..1 and are shown times 100.
        lower_is_better: (task, metric) of errors and losses.
        digits: Decimals.
        draws_per_seed: The values of each pretraining seed come together, this many of them, one a draw of labels.
            Draws of one pretrained backbone aren't independent evidence: verdicts pair the means of these blocks.

    Raises:
        ConfigError: `ours` is not among the results, or there is no score at all.
    """
    if ours not in results:
        raise ConfigError(
            f'"{ours}" is not among the compared backbones', where=title, fix=did_you_mean(ours, results)
        )
    scale = 100.0 if percent else 1.0
    scores = {name: {(row.task, row.metric): row for row in rows} for name, rows in results.items()}
    keys = list(dict.fromkeys(key for rows in scores.values() for key in rows))
    if not keys:
        raise ConfigError(
            "no backbone has a score", where=title, fix="run the probes or the finetuning first"
        )
    lower = set(lower_is_better)
    blocks: list[Block] = [_table(scores, keys, ours, lower, scale, digits, draws_per_seed)]
    blocks += [_bars(scores, key, ours, scale, digits, percent=percent) for key in keys]
    differences = _differences(scores, keys, ours, lower, draws_per_seed)
    if differences:
        blocks.insert(0, _verdict(differences, ours))
        blocks.append(_difference_table(differences, ours, scale, digits))
    return Section(title, blocks, lead)


Scores = Mapping[str, Mapping[Key, Score]]


def _label(key: Key) -> str:
    return f"{key[0]} · {key[1]}"


def _table(
    scores: Scores, keys: Sequence[Key], ours: str, lower: set[Key], scale: float, digits: int, draws: int
) -> Table:
    columns = [Column("backbone"), *(Column(_label(k), "min" if k in lower else "max", digits) for k in keys)]
    rows: list[list[Cell]] = []
    for name, found in scores.items():
        cells: list[Cell] = [name]
        for key in keys:
            row = found.get(key)
            spread = None if row is None or row.n < 2 else row.std * scale
            cells.append(None if row is None else Measure(row.mean * scale, spread, row.n))
        rows.append(cells)
    runs = sorted({row.n for found in scores.values() for row in found.values()})
    counts = f"{runs[0]}" if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
    over = (
        f"{counts} seed{'s' if runs[-1] > 1 else ''}"
        if draws == 1
        else f"{counts} values, {draws} draws a seed"
    )
    note = f"Mean ± standard deviation over {over}; the best mean of a column is coloured."
    return Table(columns, rows, note=note, highlight=[list(scores).index(ours)])


def _bars(scores: Scores, key: Key, ours: str, scale: float, digits: int, *, percent: bool) -> BarChart:
    bars = []
    colours = {name: place for place, name in enumerate([ours, *(n for n in scores if n != ours)])}
    for name, found in scores.items():
        if key not in found:
            continue
        row = found[key]
        several = row.n > 1
        bars.append(
            Bar(
                name,
                row.mean * scale,
                error=row.std * scale if several else None,
                points=[value * scale for value in row.values] if several else (),
                colour=colours[name],
            )
        )
    return BarChart(_label(key), bars, digits=digits, x_label="%" if percent else "")


Differences = list[tuple[Key, str, PairedDifference]]


def _differences(scores: Scores, keys: Sequence[Key], ours: str, lower: set[Key], draws: int) -> Differences:
    found: Differences = []
    for key in keys:
        mine = scores[ours].get(key)
        for name, rows in scores.items():
            theirs = rows.get(key)
            if name == ours or mine is None or theirs is None or len(mine.values) != len(theirs.values):
                continue
            if not mine.values:
                continue
            difference = paired_bootstrap(
                _block_means(mine.values, draws),
                _block_means(theirs.values, draws),
                higher_is_better=key not in lower,
            )
            found.append((key, name, difference))
    return found


def _block_means(values: Sequence[float], size: int) -> list[float]:
    return [fmean(values[start : start + size]) for start in range(0, len(values), size)]


def _verdict(differences: Differences, ours: str) -> Text:
    """Say in words against which backbone the compared one wins, loses or can't be told apart."""
    lines, verdicts = [], []
    for name in dict.fromkeys(name for _, name, _ in differences):
        by_verdict: dict[str, list[str]] = {"better": [], "worse": [], "no evidence": []}
        for key, other, difference in differences:
            if other == name:
                by_verdict[difference.verdict].append(_label(key))
        total = sum(len(found) for found in by_verdict.values())
        parts = []
        for verdict, words in (
            ("better", "better on"),
            ("worse", "worse on"),
            ("no evidence", "undecided on"),
        ):
            found = by_verdict[verdict]
            if found:
                which = "" if len(found) == total and total > 1 else f" ({', '.join(found)})"
                parts.append(f"{words} {len(found)} of {total}{which}")
                verdicts.append(verdict)
        lines.append(f"- **{ours}** against **{name}**: {', '.join(parts)}.")
    tone = "good" if set(verdicts) == {"better"} else "bad" if set(verdicts) == {"worse"} else "note"
    return Text("\n".join(lines), tone)  # type: ignore[arg-type]


def _difference_table(differences: Differences, ours: str, scale: float, digits: int) -> Table:
    def signed(value: float) -> str:
        return ("+" if value > 0 else "") + number(value * scale, digits)

    labels = [_label(key) for key, _, _ in differences]
    rows: list[list[Cell]] = [
        [
            "" if labels[place - 1 : place] == [labels[place]] else labels[place],
            name,
            d.mean * scale,
            f"{signed(d.low)} to {signed(d.high)}",
            d.n,
            d.verdict,
        ]
        for place, (_, name, d) in enumerate(differences)
    ]
    columns: list[Column | str] = [
        "measure",
        f"{ours} minus",
        Column("difference", digits=digits, signed=True),
        "95 % interval",
        "pairs",
        "verdict",
    ]
    note = (
        "Paired over seeds, percentile bootstrap; *better* and *worse* also ask for p < 0.05 in a paired t-test. Fewer than "
        "three pairs never decide; three to five that agree speak for these runs, not for all."
    )
    return Table(columns, rows, note=note)
