"""What it would take to decide a comparison: seeds, draws and hours, from what the finished cells found and cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from vitp.metrics.power import repeats_needed, smallest_seen, spread_of_repeats
from vitp.report.page import Column, Table, TableCell, Text
from vitp.report.text import format_number
from vitp.studies.cost import duration
from vitp.studies.results import (
    ClaimReading,
    Measure,
    Row,
    compared,
    is_pretrained,
    label,
    paired,
    repeats,
)

MOST = 1000
"""Seeds, and draws of each, that are tried."""
_DAY = 86_400.0
_LEAST = "3 seeds or more: fewer say nothing of chance"

EFFORT_NOTE = (
    "Seen today: the smallest true difference that the finished seeds and draws would find four times in five. To "
    "decide: pretraining seeds, and draws of labels of each where the seeds share several, with which a difference of the "
    "measured size and spread would be found, or called level, four times in five (all t-tests of that verdict), at the "
    "least cost. "
    "Further time: what of that isn't there yet, one process after the other, at the mean cost of the finished cells "
    "(pretraining and evaluations of both arms; tuning is done). Each comparison by itself, at 5 %. Sizes and spreads "
    "are those of a handful of runs, so this is an order of magnitude, and the largest of many differences looks "
    "larger than it is."
)


@dataclass(frozen=True)
class Effort:
    """What a comparison can see, and what it would take to decide on the difference that was measured.

    Attributes:
        difference: Measured; mean over all pairs.
        seen: The smallest that today's repeats would find; None for fewer than three seeds.
        needed: (seeds, draws of each; 1 where each seed has its own); None: more than `MOST`, or there is one seed.
        seconds: Further time that takes, or the least that more than `MOST` take; None where it isn't known.
        seeds, draws: That both have today.
    """

    difference: float
    seen: float | None
    needed: tuple[int, int] | None
    seconds: float | None
    seeds: int
    draws: int

    @property
    def repeats(self) -> str:
        """The repeats as people read them."""
        if self.seeds < 2:
            return _LEAST
        shared = self.draws > 1
        if self.needed is None:
            return f"> {MOST} seeds" + (" or draws" if shared else "")
        return f"{self.needed[0]} seeds" + (f" × {self.needed[1]} draws" if shared else "")

    @property
    def time(self) -> str | None:
        """The further time as people read it."""
        if self.seconds is None:
            return None
        more = "" if self.needed or self.seeds < 2 else "> "
        day = ", more than a day of this machine" if self.seconds > _DAY else ""
        return f"{more}{duration(self.seconds)}{day}"


def effort_of(
    rows: Sequence[Row], group: str, ours: str, theirs: str, measure: Measure, margin: float = 0.0
) -> Effort | None:
    """Return what deciding between two arms in a measure would take; None where they have no pair.

    Args:
        rows: Of the study, as far as its cells are done.
        group: Within which the arms are compared.
        ours, theirs: The arms.
        measure: Set, task and metric.
        margin: Differences below it are of no interest.
    """
    mine, others, _ = paired(rows, group, ours, theirs, measure)
    common = mine.keys() & others.keys()
    if not common:
        return None
    arms = [_ArmCost.of(rows, group, arm, measure) for arm in (ours, theirs)]
    draws = len({draw for _, draw in common})
    shared, spread = draws > 1, spread_of_repeats(mine, others)

    def cost(seeds: int, draws: int) -> float:
        return sum(arm.further(seeds, draws, shared) for arm in arms)

    known = all(arm.known for arm in arms)
    if spread is None:  # one seed: what the fewest that decide would take
        mean = fmean(mine[key] - others[key] for key in common)
        return Effort(mean, None, None, cost(3, draws) if known else None, 1, draws)
    # What was evaluated fewer than three times decides nothing.
    least = 3 if any(arm.alike for arm in arms) else 2
    needed = repeats_needed(spread, cost=cost, least_draws=least, most=MOST, margin=margin)
    # These very repeats have just decided nothing, less lucky than most: one seed more.
    if needed == (spread.seeds, spread.draws):
        needed = (spread.seeds + 1, spread.draws)
    seconds = None
    if known and needed:
        seconds = cost(*needed)
    elif known:
        beyond = [(MOST + 1, draws), *([(spread.seeds, MOST + 1)] if shared else [])]
        seconds = min(cost(*pair) for pair in beyond)
    return Effort(spread.mean, smallest_seen(spread), needed, seconds, spread.seeds, draws)


@dataclass(frozen=True)
class _ArmCost:
    """What repeats of an arm cost: means of those that are done.

    Attributes:
        run, evaluation: Seconds of a pretraining run and of one evaluation; None where unknown.
        runs, evaluations: How many are done.
        alike: Whether all seeds are the same backbone, which was evaluated once for all of them.
    """

    run: float | None
    evaluation: float | None
    runs: int
    evaluations: int
    alike: bool

    @classmethod
    def of(cls, rows: Iterable[Row], group: str, arm: str, measure: Measure) -> _ArmCost:
        mine = [row for row in rows if row.group == group and row.arm == arm]
        trained = is_pretrained(mine, group, arm)
        runs = {row.seed: row.seconds for row in mine if row.seconds is not None} if trained else {}
        spent = [row.evaluation_seconds for row in mine if row.measure == measure and row.value is not None]
        evaluations = [one for one in spent if one is not None]
        alike = not trained and len({seed for seed, _ in repeats(mine, group, arm, measure)}) == 1
        run = fmean(runs.values()) if runs else None if trained else 0.0
        return cls(run, fmean(evaluations) if evaluations else None, len(runs), len(spent), alike)

    @property
    def known(self) -> bool:
        return self.run is not None and self.evaluation is not None

    def further(self, seeds: int, draws: int, shared: bool) -> float:
        """Return the seconds of what (seeds, draws) need beyond what is done; unknown costs count as one each."""
        evaluations = draws if self.alike and shared else seeds * draws
        run, evaluation = (1.0 if one is None else one for one in (self.run, self.evaluation))
        return run * max(0, seeds - self.runs) + evaluation * max(0, evaluations - self.evaluations)


def undecided_claims(
    rows: Sequence[Row], readings: Sequence[ClaimReading], margin: float = 0.0
) -> list[Text | Table]:
    """Return a sentence and a table on what each claim that nothing decides would take, by its nearest measure."""
    table: list[list[TableCell]] = []
    within = unknown = 0
    for reading in readings:
        if reading.answer != "cannot tell":
            continue
        claim, efforts = reading.claim, _ways_to_decide(rows, reading, margin)
        unknown += not any(effort.seeds > 1 for _, effort in efforts)
        if not efforts:
            table.append([claim.text, None, None, None, "no seed of both arms is there yet", None])
            continue
        measure, effort = min(efforts, key=_order)
        within += bool(effort.needed) and effort.seconds is not None and effort.seconds <= _DAY
        table.append([claim.text, label(measure), 100 * effort.difference, *effort_cells(effort)])
    if not table:
        return []
    columns: list[Column | str] = [
        "undecided claim",
        "nearest measure",
        Column("difference", digits=1, signed=True),
        *EFFORT_COLUMNS,
    ]
    said = (
        f"Undecided are {len(table)} of {len(readings)} claims; {within} of them would be decided within a day of this machine each, if "
        "the difference of the measure that is nearest to a verdict is as large as it looks"
        + (f"; {unknown} have too few seeds to tell." if unknown else ".")
    )
    return [Text(said), Table(columns, table, note=EFFORT_NOTE)]


def _ways_to_decide(
    rows: Sequence[Row], reading: ClaimReading, margin: float
) -> list[tuple[Measure, Effort]]:
    """Return what it takes that one measure shows a difference, for each; and that the last finetuned task is level."""
    claim = reading.claim

    def of(measures: Iterable[Measure], margin: float) -> list[tuple[Measure, Effort]]:
        found = (
            (one, effort_of(rows, claim.group, claim.ours, claim.theirs, one, margin)) for one in measures
        )
        return [(measure, effort) for measure, effort in found if effort is not None]

    waited_for = of(reading.deciding, margin)
    return of(reading.undecided, 0.0) + ([max(waited_for, key=_order)] if waited_for else [])


def _order(way: tuple[Measure, Effort]) -> tuple[bool, float, float]:
    """Sort what can be decided first, by time, then by how far the difference is from what can be seen."""
    effort = way[1]
    seconds = float("inf") if effort.seconds is None else effort.seconds
    return effort.needed is None, seconds, -abs(effort.difference)


EFFORT_COLUMNS: tuple[str, ...] = ("seen today", "to decide", "further time")


def effort_cells(effort: Effort | None) -> list[TableCell]:
    """Return the cells of `EFFORT_COLUMNS`."""
    if effort is None:
        return [None, None, None]
    return [_seen(effort), effort.repeats, effort.time]


def _seen(effort: Effort) -> str | None:
    if effort.seen is None:
        return None
    shared = f" × {effort.draws} draws" if effort.draws > 1 else ""
    return f"{format_number(100 * effort.seen, 1)} ({effort.seeds} seeds{shared})"


def comparison_cells(
    rows: Sequence[Row], group: str, ours: str, theirs: str, measure: Measure, margin: float = 0.0
) -> list[TableCell] | None:
    """Return the cells of a comparison: difference, interval, seeds, p, verdict, and `EFFORT_COLUMNS`.

    What it would take to decide is left out where the verdict does.
    """
    found = compared(rows, group, ours, theirs, measure, margin)
    if found is None:
        return None
    low, high = (format_number(100 * value, 1, signed=True) for value in (found.low, found.high))
    interval = f"{low} to {high}" if found.n > 1 else None  # one seed has none
    effort = effort_of(rows, group, ours, theirs, measure, margin)
    seen, *needed = effort_cells(effort)
    if found.verdict != "no evidence":
        needed = [None, None]
    return [100 * found.mean, interval, found.n, found.p, found.verdict, seen, *needed]
