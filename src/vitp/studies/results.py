"""The results of a study: one row a number, comparisons of arms, and what their pretraining cost."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from vitp.evaluation.probe_table import MAIN_PROBES
from vitp.metrics.statistics import PairedDifference, Repeats, paired_repeats
from vitp.studies.grid import Claim, Store, Study, StudyCell, ordered

Measure = tuple[str, str, str]
"""Set, task, metric."""
CORRUPTED = ", corrupted"
"""What the name of a task ends with where its test images were corrupted."""
LOWER_IS_BETTER = ("drop",)


@dataclass(frozen=True)
class Row:
    """One number of one evaluation, or one evaluation that failed.

    Attributes:
        study, scale: Whose.
        group: Arms are compared within it.
        arm: What is compared.
        x: Its number, in studies of one number.
        init: What pretraining began with.
        set, task, metric: What was measured.
        main: Whether it is the measure that its task is judged by.
        seed: Of pretraining.
        draw: Of the labels and the head.
        value: The number; None when the cell failed or nothing could be counted.
        images, flops, seconds: Of the pretraining run, alignment included.
        evaluation_seconds: Of this number: a finetuning, with its test on corrupted images; a draw's share of a probe.
        status: "done", "failed" or "open".
        message: Why it failed.
        cell: Hash of the evaluation.
    """

    study: str
    scale: str
    group: str
    arm: str
    x: float | None
    init: str
    set: str
    task: str
    metric: str
    main: bool
    seed: int
    draw: int
    value: float | None
    images: int | None
    flops: float | None
    seconds: float | None
    evaluation_seconds: float | None
    status: str
    message: str
    cell: str

    @property
    def measure(self) -> Measure:
        """Set, task and metric."""
        return (self.set, self.task, self.metric)


def rows_of(study: Study, store: Store, scale: str, since: float = 0.0) -> list[Row]:
    """Return all numbers of a study, those that are missing included.

    Args:
        study: The cells.
        store: Where the results are.
        scale: Name of the scale.
        since: Failures from before this time are open again.
    """
    found: list[Row] = []
    for cell in study.cells:
        if "group" in cell.facts:
            found += _rows(study, store, cell, scale, since)
    return found


def _rows(study: Study, store: Store, cell: StudyCell, scale: str, since: float) -> Iterable[Row]:
    facts, result = cell.facts, store.known(cell)
    failure = store.failure(cell, since) if result is None else None
    source = study[cell.needs["model"]] if "model" in cell.needs else cell
    run = store.known(study[source.needs["backbone"]])
    common: dict[str, Any] = {
        "study": study.name,
        "scale": scale,
        **{name: facts[name] for name in ("group", "arm", "seed")},
        "x": facts.get("x"),
        "init": facts.get("init", ""),
        "set": facts.get("set", ""),
        "images": None if run is None else run["values"]["images"],
        "flops": None if run is None else run["values"]["flops"],
        "seconds": None if run is None else run["cost"]["seconds"],
        "evaluation_seconds": _evaluation_seconds(store, [cell] if source is cell else [cell, source]),
        "message": failure.message if failure else "",
        "status": "done" if result is not None else "failed" if failure else "open",
        "cell": store.keys[cell.name],
    }
    of_task = int(facts.get("draw") or 0)
    if result is None:
        task = str(facts.get("task", "frozen features"))
        yield Row(task=task, metric="", main=True, draw=of_task, value=None, **common)
    elif cell.kind == "probe":
        for row in result["values"]["rows"]:
            main = (row["task"], row["metric"]) in MAIN_PROBES
            shown: dict[str, Any] = {
                "task": f"frozen: {row['task']}",
                "metric": row["metric"],
                "main": main,
                **common,
            }
            spent_seconds = shown.pop("evaluation_seconds")
            # One cell makes all draws of a probe, so each row has its part of the time.
            share = None if spent_seconds is None else spent_seconds / len(row["values"])
            for draw, value in enumerate(row["values"]):
                yield Row(draw=draw, value=value, evaluation_seconds=share, **shown)
    else:
        corrupted = CORRUPTED if cell.kind == "robustness" else ""
        for metric, value in result["values"]["values"].items():
            yield Row(
                task=f"{facts['task']}{corrupted}",
                metric=metric,
                main=metric == facts["score"] or (bool(corrupted) and metric == "drop"),
                draw=of_task,
                value=value,
                **common,
            )


def _evaluation_seconds(store: Store, cells: Sequence[StudyCell]) -> float | None:
    costs = [found["cost"].get("seconds") for cell in cells if (found := store.known(cell)) is not None]
    return sum(costs) if len(costs) == len(cells) and None not in costs else None


def to_csv(rows: Sequence[Row]) -> str:
    """Return the rows as comma-separated values with a head."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if value is None else value for name, value in asdict(row).items()})
    return file.getvalue()


def measures_of(rows: Iterable[Row], *, main: bool = True) -> list[Measure]:
    """Return the measures that have a number, each once, finetuned tasks before frozen features."""
    found = dict.fromkeys(row.measure for row in rows if row.value is not None and (row.main or not main))
    return sorted(found, key=lambda measure: (measure[0], measure[1].startswith("frozen")))


def groups_of(rows: Iterable[Row]) -> list[str]:
    """Return the groups, each once, in the order of the study."""
    return list(dict.fromkeys(row.group for row in rows))


def repeats(rows: Iterable[Row], group: str, arm: str, measure: Measure) -> dict[tuple[int, int], float]:
    """Return (pretraining seed, draw) → value of one arm."""
    return {
        (row.seed, row.draw): row.value
        for row in rows
        if row.group == group and row.arm == arm and row.measure == measure and row.value is not None
    }


def compared(
    rows: Sequence[Row], group: str, ours: str, theirs: str, measure: Measure, margin: float = 0.0
) -> PairedDifference | None:
    """Return how two arms differ in a measure, or None where they have nothing in common.

    A backbone that was not pretrained here (the start as it is) and so has one seed stands against every seed of the
    other. Where it was evaluated fewer than three times, its own spread is unknown and the verdict `no evidence`.
    """
    mine, others, known = paired(rows, group, ours, theirs, measure)
    if not mine.keys() & others.keys():
        return None
    higher = measure[2] not in LOWER_IS_BETTER
    difference = paired_repeats(mine, others, higher_is_better=higher, margin=margin)
    return difference if known else replace(difference, verdict="no evidence")


def paired(
    rows: Sequence[Row], group: str, ours: str, theirs: str, measure: Measure
) -> tuple[Repeats, Repeats, bool]:
    """Return (pretraining seed, draw) → value of two arms in pairs, and whether their spread is known."""
    mine, others = (repeats(rows, group, arm, measure) for arm in (ours, theirs))
    known = True
    if not is_pretrained(rows, group, theirs):
        known, others = len(others) >= 3, _spread(others, mine)
    if not is_pretrained(rows, group, ours):
        known, mine = known and len(mine) >= 3, _spread(mine, others)
    return mine, others, known


def is_pretrained(rows: Sequence[Row], group: str, arm: str) -> bool:
    """Return whether an arm was pretrained here, and so has seeds that differ."""
    return any(row.images for row in rows if row.group == group and row.arm == arm)


def _spread(
    values: Mapping[tuple[int, int], float], other: Mapping[tuple[int, int], float]
) -> dict[tuple[int, int], float]:
    seeds = {seed for seed, _ in values}
    if len(seeds) != 1:
        return dict(values)
    # Its draws are the same backbone's for each seed of the other arm, so they stand against all of them.
    return {
        (seed, draw): value for seed in {s for s, _ in other} or seeds for (_, draw), value in values.items()
    }


@dataclass(frozen=True)
class ClaimReading:
    """What the numbers say about a claim.

    Attributes:
        claim: The claim.
        answer: "agrees", "does not agree", "mixed", "level" or "cannot tell".
        better, worse, level, undecided: Measures by verdict.
    """

    claim: Claim
    answer: str
    better: tuple[Measure, ...] = ()
    worse: tuple[Measure, ...] = ()
    level: tuple[Measure, ...] = ()
    undecided: tuple[Measure, ...] = ()

    @property
    def deciding(self) -> tuple[Measure, ...]:
        """Undecided measures that the answer waits for: finetuned tasks on clean images; all where there are none."""
        known = (*self.better, *self.worse, *self.level, *self.undecided)
        return (
            tuple(one for one in self.undecided if is_finetuned_task(one))
            if any(map(is_finetuned_task, known))
            else self.undecided
        )


def is_finetuned_task(measure: Measure) -> bool:
    """Return whether a measure is of a finetuned task on clean images, which the paper's claims are about."""
    return not measure[1].startswith("frozen") and not measure[1].endswith(CORRUPTED)


def read_claim(rows: Sequence[Row], claim: Claim, margin: float = 0.0) -> ClaimReading:
    """Return what the main measures say about a claim.

    Any measure may show a difference. The claim is level where none shows one and all finetuned tasks are level.
    """
    verdicts: dict[str, list[Measure]] = {"better": [], "worse": [], "level": [], "no evidence": []}
    for measure in measures_of(rows):
        if claim.lower != (measure[2] in LOWER_IS_BETTER) or claim.metric not in ("", measure[2]):
            continue
        difference = compared(rows, claim.group, claim.ours, claim.theirs, measure, margin)
        if difference is not None:
            verdicts[difference.verdict].append(measure)
    better, worse, level, undecided = map(tuple, verdicts.values())
    reading = ClaimReading(claim, "cannot tell", better, worse, level, undecided)
    if better and worse:
        return replace(reading, answer="mixed")
    if better or worse:
        return replace(reading, answer="agrees" if better else "does not agree")
    return replace(reading, answer="level") if level and not reading.deciding else reading


def metric_name(metric: str) -> str:
    """Return a metric as people write it."""
    return {"miou": "mIoU", "map": "mAP"}.get(metric, metric)


def label(measure: Measure, *, with_set: bool = True) -> str:
    """Return a measure as people read it."""
    set_, task, metric = measure
    name = metric_name(metric)
    shown = f"{name}, frozen" if task.startswith("frozen: ") else f"{task} {name}"
    known = {"frozen: scene linear": "scene ", "frozen: presence linear": "presence "}
    shown = known.get(task, "") + shown
    return f"{set_}: {shown}" if with_set else shown


def several_sets(measures: Iterable[Measure]) -> bool:
    """Return whether labels must name the set."""
    return len({measure[0] for measure in measures}) > 1


@dataclass(frozen=True)
class Spent:
    """What the pretraining runs of an arm cost, on average over the seeds that finished.

    Attributes:
        arm, init, budget: Which runs.
        runs: How many.
        images, tokens, flops: Of a run.
        seconds, processor_seconds, memory, joules: Of a run, over all its attempts; None where unknown.
    """

    arm: str
    init: str
    budget: str
    runs: int
    images: float
    tokens: float
    flops: float
    seconds: float | None
    processor_seconds: float | None
    memory: float | None
    joules: float | None


def spent(study: Study, store: Store) -> list[Spent]:
    """Return the cost of each arm's pretraining, tuning runs left out."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for cell in ordered(study.cells):
        result = store.known(cell) if cell.name.startswith("pretrain/") else None
        if result is not None:
            facts = cell.facts
            key = (str(facts["arm"]), str(facts["init"]), str(facts["budget"]))
            found.setdefault(key, []).append(result)

    def mean(results: Sequence[Mapping[str, Any]], part: str, name: str) -> float | None:
        values = [result[part][name] for result in results if result[part].get(name) is not None]
        return sum(values) / len(values) if values else None

    return [
        Spent(
            *key,
            len(results),
            *(mean(results, "values", name) or 0.0 for name in ("images", "tokens", "flops")),
            *(mean(results, "cost", name) for name in ("seconds", "processor_seconds", "memory", "joules")),
        )
        for key, results in found.items()
    ]
