"""The report of one run: `write_run_report`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from vitp.core.config import CONFIG_FILE
from vitp.report.attention import AttentionExplorer
from vitp.report.charts import Bar, BarChart, LineChart, Series
from vitp.report.page import Page
from vitp.report.run_folder import PARTS, Row, RunFolder, read_run
from vitp.report.samples import Sample, Samples
from vitp.report.sections import Block, Card, Cell, Code, Column, Headline, KeyValue, Section, Table, Text
from vitp.report.svg import number

MOST_SAMPLES = 24
"""Samples on a page: enough to browse, few enough to keep it light."""


def write_run_report(
    run_dir: str | Path,
    out: str | Path | None = None,
    *,
    lead_sections: Sequence[Section] = (),
    extra_sections: Sequence[Section] = (),
    attention: AttentionExplorer | None = None,
    title: str | None = None,
) -> Path:
    """Write the report of a run as one self-contained HTML page and return its path.

    Args:
        run_dir: Folder of the run. What it lacks is absent from the page, and a line says so.
        out: The page; None takes `report.html` in the run's folder.
        lead_sections: Shown first of all: the answer that the page is read for.
        extra_sections: Shown after the run's own sections, before the configuration: comparisons and the like.
        attention: Attention maps to explore.
        title: Heading; None takes the folder's name.

    Raises:
        DataError: The folder is no run's, or a file in it is malformed; names the file and the line.
    """
    run = read_run(run_dir)
    sections = [*lead_sections, _overview(run)]
    if run.steps:
        sections.append(_training(run.steps))
    if run.evidence is not None:
        sections.append(_learned(run.evidence))
    if _probe_curves(run.probes):
        sections.append(_probes(run.probes))
    if run.samples:
        sections.append(_answers(run))
    if attention is not None:
        lead = "What each patch looks at, layer by layer."
        sections.append(Section("Attention", [attention], lead))
    sections += extra_sections
    sections.append(_provenance(run))
    page = Page(
        title=title or run.path.resolve().name,
        subtitle="Visual instruction pretraining: what the run did, and what the vision transformer learned.",
        sections=sections,
        facts=_facts(run),
    )
    return page.write(run.path / "report.html" if out is None else out)


def _finite(rows: Sequence[Row], key: str) -> list[tuple[int, float]]:
    """Return (step, value) where a row has a finite number; `a.b` looks into a mapping."""
    outer, _, inner = key.partition(".")
    points = []
    for row in rows:
        value = row.get(outer)
        if inner:
            value = value.get(inner) if isinstance(value, Mapping) else None
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            points.append((row["step"], float(value)))
    return points


def _series(name: str, points: Sequence[tuple[int, float]], *, smooth: float = 0.0) -> Series:
    return Series(name, [x for x, _ in points], [y for _, y in points], smooth=smooth)


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    facts = [("run", run.path.resolve().name)]
    if run.steps:
        facts.append(("steps", number(run.steps[-1]["step"])))
        elapsed = _finite(run.steps, "elapsed_s")
        if elapsed:
            facts.append(("time", _duration(elapsed[-1][1])))
        memory = _finite(run.steps, "memory_gb")
        if memory:
            facts.append(("memory", f"{max(y for _, y in memory):.1f} GiB"))
    return facts


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02.0f} s" if minutes else f"{timedelta(seconds=seconds).seconds} s"


def _edges(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Return the mean of the first and of the last twentieth: single steps are noisy."""
    count = max(1, len(points) // 20)
    first, last = points[:count], points[-count:]
    return sum(y for _, y in first) / count, sum(y for _, y in last) / count


def _overview(run: RunFolder) -> Section:
    cards = []
    losses = _finite(run.steps, "loss")
    if losses:
        start, end = _edges(losses)
        cards.append(
            Card(number(end, 3), "training loss at the end", f"from {number(start, 3)}", end < start)
        )
    if run.evidence is not None:
        change = float(run.evidence["relative_change"])
        share = run.evidence.get("gradient_share")
        delta = f"{_percent(share)} of the squared gradient norm" if isinstance(share, (int, float)) else ""
        cards.append(Card(_percent(change), "change of the vision tower's weights", delta))
    scores = [(name, points) for name, points in _probe_curves(run.probes).items() if "cka" not in name]
    for name, points in scores[:2]:  # CKA measures change, not quality
        gain = points[-1][1] - points[0][1]
        delta = f"{gain:+.3f} since step {points[0][0]:,}" if len(points) > 1 else ""
        cards.append(Card(number(points[-1][1], 3), _spoken(name), delta, None if not delta else gain > 0))
    rates = _finite(run.steps, "samples_per_s")
    if rates:
        middle = sorted(y for _, y in rates)[len(rates) // 2]
        cards.append(Card(number(middle, 0 if middle >= 100 else 1), "samples a second (median)"))
    blocks: list[Block] = [Headline(cards)] if cards else []
    if run.missing:
        lines = [f"- `{name}`: {PARTS[name]}" for name in run.missing]
        blocks.append(Text("Not in this run's folder, so not on this page:\n\n" + "\n".join(lines), "note"))
    return Section("Overview", blocks)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _training(rows: Sequence[Row]) -> Section:
    losses = _finite(rows, "loss")
    smooth = 0.9 if len(losses) > 40 else 0.0
    note = "Pale: as logged. Strong: mean over neighbours." if smooth else ""
    charts: list[Block] = [
        LineChart("Loss", [_series("loss", losses, smooth=smooth)], wide=True, note=note),
    ]
    named = _named(rows, "losses", smooth)
    if len(named) > 1:
        charts.append(
            LineChart("Losses by name", named, wide=True, note="Means over their terms, without weights.")
        )
    rates = {name: _finite(rows, f"{name}_per_s") for name in ("samples", "tokens", "tiles")}
    if rates["tiles"] == rates["samples"]:
        del rates["tiles"]  # one tile a sample: the same curve
    for name, points in rates.items():
        if points:
            series = [_series(name, points, smooth=smooth)]
            charts.append(LineChart(f"Throughput: {name} a second", series, from_zero=True))
    for key, head in (("lr", "Learning rate"), ("grad_norm", "Gradient norm before clipping")):
        points = _finite(rows, key)
        if points:
            smoothing = smooth if key == "grad_norm" else 0.0
            charts.append(LineChart(head, [_series(key, points, smooth=smoothing)], from_zero=key == "lr"))
    shares = _named(rows, "grad_share", smooth)
    if shares:
        title = "Share of the squared gradient norm, by part"
        charts.append(LineChart(title, shares, from_zero=True))
    feeding = [
        _series(name, points, smooth=smooth)
        for name, key in (("packing efficiency", "packing"), ("waiting for data", "data_wait"))
        if (points := _finite(rows, key))
    ]
    if feeding:
        charts.append(LineChart("Feeding the model", feeding, from_zero=True, note="Shares on 0..1."))
    return Section("Training", charts)


def _named(rows: Sequence[Row], key: str, smooth: float) -> list[Series]:
    """Return one line for each name in the mappings that rows hold under `key`."""
    names = dict.fromkeys(name for row in rows if isinstance(row.get(key), Mapping) for name in row[key])
    return [
        _series(name, points, smooth=smooth) for name in names if (points := _finite(rows, f"{key}.{name}"))
    ]


def _learned(evidence: Mapping[str, Any]) -> Section:
    change = float(evidence["relative_change"])
    layers = evidence["layers"]
    meant = evidence.get("meant_to_train", True)
    sentences = [
        f"Over {number(evidence['step'])} steps" if isinstance(evidence.get("step"), int) else "Over the run",
        f"the vision tower's weights moved by **{_percent(change)}** of their norm.",
    ]
    share, cka = evidence.get("gradient_share"), evidence.get("cka")
    if isinstance(share, (int, float)):
        sentences.append(f"It received **{_percent(share)}** of the squared gradient norm on average.")
    if isinstance(cka, (int, float)):
        sentences.append(
            f"Its features kept a linear CKA of **{cka:.3f}** with those at the start (1 = the same representation)."
        )
    if not meant:
        sentences.append("It was frozen on purpose.")
    tone = "note" if not meant else "good" if change > 0 else "bad"
    bars = [Bar(row["layer"], 100 * float(row["change"]), colour=0) for row in layers]
    chart = BarChart(
        "Relative change of the weights, layer by layer",
        bars,
        digits=2,
        unit=" %",
        wide=True,
        note="‖w − w₀‖ / ‖w₀‖ since the start of the run; a layer that started at zero shows its norm.",
    )
    lead = "Pretraining is for the vision tower, so its weights are watched."
    return Section("The ViT learned", [Text(" ".join(sentences), tone), chart], lead)  # type: ignore[arg-type]


_NOT_PROBES = {"step", "elapsed_s", "seconds", "epoch"}


def _probe_curves(rows: Sequence[Row]) -> dict[str, list[tuple[int, float]]]:
    """Return probe name → (step, score). Nested mappings join their names by `/`."""
    curves: dict[str, list[tuple[int, float]]] = {}

    def add(step: int, name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for inner, nested in value.items():
                add(step, f"{name}/{inner}" if name else str(inner), nested)
            return
        number_like = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name not in _NOT_PROBES and number_like and math.isfinite(value):
            curves.setdefault(name, []).append((step, float(value)))

    for row in rows:
        add(row["step"], "", row)
    return curves


def _spoken(name: str) -> str:
    parts = name.split("/")
    if parts[0] in ("probe", "probes") and len(parts) > 1:
        parts = parts[1:]
    return " · ".join(part.replace("_", " ") for part in parts)


def _probes(rows: Sequence[Row]) -> Section:
    curves = _probe_curves(rows)
    groups: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for name, points in curves.items():
        task, _, metric = name.rpartition("/")
        groups.setdefault(task, {})[metric] = points
    charts: list[Block] = []
    lone = {
        metric: points
        for task, found in groups.items()
        if task in ("", "probe")
        for metric, points in found.items()
    }
    for task, found in groups.items():
        if task in ("", "probe"):
            continue
        series = [_series(metric.replace("_", " "), points) for metric, points in found.items()]
        charts.append(LineChart(_spoken(task), series))
    charts += [
        LineChart(metric.replace("_", " "), [_series(metric, points)]) for metric, points in lone.items()
    ]
    cells: list[list[Cell]] = [
        [_spoken(name), points[0][1], points[-1][1], points[-1][1] - points[0][1]]
        for name, points in curves.items()
    ]
    first, last = min(r["step"] for r in rows), max(r["step"] for r in rows)
    columns: list[Column | str] = [
        "probe",
        Column(f"step {first:,}", digits=3),
        Column(f"step {last:,}", digits=3),
        Column("change", digits=3, signed=True),
    ]
    lead = "Frozen features of the vision tower, measured while it trains."
    return Section("Probes", [Table(columns, cells), *charts], lead)


def _answers(run: RunFolder) -> Section:
    scored: dict[str, list[float]] = {}
    for sample in run.samples:
        if sample.score is not None:
            scored.setdefault(sample.task or "all", []).append(sample.score)
    blocks: list[Block] = []
    if scored:
        bars = [Bar(task, 100 * sum(s) / len(s), colour=0) for task, s in scored.items()]
        counts = ", ".join(f"{task} {len(s)}" for task, s in scored.items())
        title = "Mean score by task"
        blocks.append(BarChart(title, bars, digits=1, unit=" %", wide=True, note=f"Samples: {counts}."))
    shown = _spread_over_tasks(run.samples, MOST_SAMPLES)
    note = (
        f"{len(shown)} of {len(run.samples)} samples, evenly over tasks."
        if len(shown) < len(run.samples)
        else ""
    )
    blocks.append(Samples(shown, note=note, base=run.path))
    return Section(
        "What the model answers",
        blocks,
        "Dashed: where the labels say it is. Solid: what the model answered.",
    )


def _spread_over_tasks(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Return at most `count` samples, as many of each task as of the others where there are enough."""
    by_task: dict[str, list[Sample]] = {}
    for sample in samples:
        by_task.setdefault(sample.task, []).append(sample)
    chosen: list[Sample] = []
    rounds = max((len(found) for found in by_task.values()), default=0)
    for turn in range(rounds):
        chosen += [found[turn] for found in by_task.values() if turn < len(found)]
    return chosen[:count]


def _provenance(run: RunFolder) -> Section:
    blocks: list[Block] = []
    plain = {key: value for key, value in run.config.items() if not isinstance(value, (dict, list))}
    if plain:
        blocks.append(KeyValue(plain))
    if run.config_text is not None:
        blocks.append(Code(run.config_text.strip(), CONFIG_FILE))
    else:
        blocks.append(Text("This run's folder has no `config.yaml`."))
    return Section("Configuration", blocks)
