"""Several backbones under one downstream test: table, bars with their seeds, and what may be concluded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from vitp.core.errors import ConfigError, did_you_mean
from vitp.evaluation.probe_table import ProbeRow
from vitp.metrics.statistics import PairedDifference, paired_bootstrap
from vitp.report.charts import Bar, BarChart
from vitp.report.page import Block, Column, MeanStd, Section, Table, TableCell, Text
from vitp.report.text import format_number

_Key = tuple[str, str]
"""(task, metric)."""


def comparison_section(
    results: Mapping[str, Iterable[ProbeRow]],
    *,
    ours: str,
    title: str = "Comparison",
    lead: str = "",
    percent: bool = True,
    lower_is_better: Iterable[tuple[str, str]] = (),
    draws_per_seed: int = 1,
) -> Section:
    """Return a section that compares backbones on the same tasks.

    The verdict is a paired bootstrap and t-test over seeds (`vitp.metrics.statistics.paired_bootstrap`), so the values
    of all backbones must be in the same order of seeds. A measure that a backbone lacks is left blank.

    Args:
        results: Name of the backbone (or of its initialisation) → its scores.
        ours: The backbone that is compared with each of the others.
        title: Title of the section.
        lead: One or two sentences on data, budget and protocol.
        percent: Scores lie on 0..1 and are shown times 100.
        lower_is_better: (task, metric) of errors and losses.
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
    places = {name: place for place, name in enumerate([ours, *(name for name in scores if name != ours)])}
    blocks: list[Block] = [_table(scores, keys, ours, lower, scale, draws_per_seed)]
    for key in keys:
        bars = [_bar(name, found[key], scale, places[name]) for name, found in scores.items() if key in found]
        blocks.append(BarChart(title=_label(key), bars=bars, digits=1, x_label="%" if percent else ""))
    differences = _differences(scores, keys, ours, lower, draws_per_seed)
    if differences:
        blocks.insert(0, _verdict(differences, ours))
        blocks.append(_difference_table(differences, ours, scale))
    return Section(title, blocks, lead)


_Scores = Mapping[str, Mapping[_Key, ProbeRow]]
_Differences = list[tuple[_Key, str, PairedDifference]]


def _label(key: _Key) -> str:
    return f"{key[0]} · {key[1]}"


def _bar(name: str, row: ProbeRow, scale: float, colour: int) -> Bar:
    if row.n < 2:
        return Bar(name, row.mean * scale, colour=colour)
    return Bar(name, row.mean * scale, row.std * scale, [value * scale for value in row.values], colour)


def _table(
    scores: _Scores, keys: Sequence[_Key], ours: str, lower: set[_Key], scale: float, draws: int
) -> Table:
    columns = [Column("backbone"), *(Column(_label(k), "min" if k in lower else "max", 1) for k in keys)]
    rows: list[list[TableCell]] = []
    for name, found in scores.items():
        cells: list[TableCell] = [name]
        for row in map(found.get, keys):
            std = None if row is None or row.n < 2 else row.std * scale
            cells.append(None if row is None else MeanStd(row.mean * scale, std, row.n))
        rows.append(cells)
    runs = sorted({row.n for found in scores.values() for row in found.values()})
    counts = f"{runs[0]}" if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
    seeds = f"{counts} seed{'s' if runs[-1] > 1 else ''}"
    over = seeds if draws == 1 else f"{counts} values, {draws} draws a seed"
    note = f"Mean ± standard deviation over {over}; the best mean of a column is coloured."
    return Table(columns, rows, note=note, highlight=[list(scores).index(ours)])


def _differences(
    scores: _Scores, keys: Sequence[_Key], ours: str, lower: set[_Key], draws: int
) -> _Differences:
    def of_seeds(row: ProbeRow) -> list[float]:
        return [fmean(row.values[start : start + draws]) for start in range(0, row.n, draws)]

    found: _Differences = []
    for key in keys:
        mine = scores[ours].get(key)
        for name, rows in scores.items():
            theirs = rows.get(key)
            if name != ours and mine is not None and theirs is not None and mine.n == theirs.n > 0:
                pair = of_seeds(mine), of_seeds(theirs)
                found.append((key, name, paired_bootstrap(*pair, higher_is_better=key not in lower)))
    return found


def _verdict(differences: _Differences, ours: str) -> Text:
    """Say in words against which backbone the compared one wins, loses or can't be told apart."""
    lines = []
    for name in dict.fromkeys(name for _, name, _ in differences):
        of_name = [(key, one.verdict) for key, other, one in differences if other == name]
        parts = []
        for verdict, words in (
            ("better", "better on"),
            ("worse", "worse on"),
            ("no evidence", "undecided on"),
        ):
            found = [_label(key) for key, one in of_name if one == verdict]
            if found:
                which = "" if len(found) == len(of_name) > 1 else f" ({', '.join(found)})"
                parts.append(f"{words} {len(found)} of {len(of_name)}{which}")
        lines.append(f"- **{ours}** against **{name}**: {', '.join(parts)}.")
    verdicts = {one.verdict for _, _, one in differences}
    return Text(
        "\n".join(lines),
        "good" if verdicts == {"better"} else "bad" if verdicts == {"worse"} else "note",
    )


def _difference_table(differences: _Differences, ours: str, scale: float) -> Table:
    rows: list[list[TableCell]] = []
    before = ""
    for key, name, one in differences:
        low, high = (format_number(value * scale, 1, signed=True) for value in (one.low, one.high))
        # The name of a measure stands in the first of its rows only.
        measure = "" if _label(key) == before else _label(key)
        before = _label(key)
        rows.append([measure, name, one.mean * scale, f"{low} to {high}", one.n, one.verdict])
    columns: list[Column | str] = [
        "measure",
        f"{ours} minus",
        Column("difference", digits=1, signed=True),
        "95 % interval",
        "pairs",
        "verdict",
    ]
    note = (
        "Paired over seeds, percentile bootstrap; *better* and *worse* also ask for p < 0.05 in a paired t-test. Fewer than "
        "three pairs never decide; three to five that agree speak for these runs, not for all."
    )
    return Table(columns, rows, note=note)
