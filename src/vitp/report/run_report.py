"""`vitp report`: asks a run's model some questions, looks at its attention, and writes the page of the run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitp.checkpoints.loading import load_vlm, vlm_folder
from vitp.core.config import CONFIG_FILE, load_config
from vitp.core.errors import ConfigError
from vitp.core.files import write_json
from vitp.core.words import decimals
from vitp.data.formats.vitp_labels import channels_from_json, read_compiled
from vitp.data.seen import lone_image
from vitp.evaluation.answers import Answered, ask_all, questions_of
from vitp.inference.ask import Assistant
from vitp.models.vision import VisionTower
from vitp.objectives.vitp import open_entries, open_mixture
from vitp.records.channels import Channels
from vitp.records.instructions import InstructionRecord
from vitp.report.answered import AnsweredCards
from vitp.report.attention import AttentionExplorer, attention_explorer
from vitp.report.charts import Bar, BarChart, Curve, LineChart
from vitp.report.page import (
    Block,
    Card,
    Code,
    Column,
    Headline,
    HtmlPage,
    KeyValue,
    Section,
    Table,
    TableCell,
    Text,
)
from vitp.report.run_folder import RUN_FILES, RunFolder, StepRow, read_run
from vitp.report.text import format_number
from vitp.runs.check.run import is_finetuned
from vitp.runs.pretrain import PretrainConfig

EXPLORED_IMAGES = 4
"""Images whose attention the reader can explore."""

_MOST_SAMPLES = 24
"""Samples on a page: enough to browse, few enough to keep it light."""

Points = list[tuple[int, float]]
"""(step, value)."""


def report_run(
    run: str | Path,
    out: str | Path | None = None,
    *,
    samples: int = 12,
    lead_sections: Sequence[Section] = (),
    towers: Mapping[str, VisionTower] | None = None,
    title: str | None = None,
) -> Path:
    """Ask the model of a finished run, write the page of the run and return its path.

    The questions come from held-out images when the run learned from a compiled folder, else from its mixture.

    Args:
        run: Folder of a finished run.
        out: The page; None takes `report.html` in the run's folder.
        samples: Questions that the model answers.
        lead_sections: Shown first.
        towers: Name → tower whose attention is shown; None: the run's, before and after.
        title: Heading; None takes the folder's name.

    Raises:
        VitpError: The folder holds no finished run, or its data is gone.
    """
    run = Path(run)
    # Says first when the run has no model.
    vlm_folder(run)
    if is_finetuned(run):
        fix = "vitp eval scores its model; the runs of `vitp pretrain` have pages"
        raise ConfigError("is a finetuned run, whose model answers no questions", where=str(run), fix=fix)
    if not (run / CONFIG_FILE).is_file():
        fix = "name a folder that `vitp pretrain` wrote"
        raise ConfigError(f"is no run folder: it has no {CONFIG_FILE}", where=str(run), fix=fix)
    config = load_config(PretrainConfig, run / CONFIG_FILE)
    if not config.objective.has_language_model:
        fix = "vitp probe and vitp features look at its backbone"
        what = f"is a run of {config.objective.name}, whose model answers no questions"
        raise ConfigError(what, where=str(run), fix=fix)
    loaded = load_vlm(run)
    answered: list[Answered] = []
    for record, task, tiles in _questions(config, samples):
        assistant = Assistant(loaded.vlm, loaded.chat, max_tiles=tiles or config.data.sequence.max_tiles)
        answered += ask_all(assistant, [(record, task)])
    write_json(run / "samples.json", [one.to_json() for one in answered])
    if towers is None:
        towers = {"after the run": loaded.vlm.vision}
        if config.model.init != "scratch":
            before = load_vlm(config.model.init, channels=loaded.vlm.vision.in_channels)
            towers = {"before the run": before.vlm.vision, **towers}
    paths = list(dict.fromkeys(one.image for one in answered))[:EXPLORED_IMAGES]
    channels = loaded.vlm.vision.in_channels
    images = {f"image {number}": lone_image(path, channels) for number, path in enumerate(paths, 1)}
    explorer = attention_explorer(towers, images, title="Self-attention of a patch") if images else None
    return write_run_report(run, out, attention=explorer, lead_sections=lead_sections, title=title)


def _questions(config: PretrainConfig, count: int) -> Iterator[tuple[InstructionRecord, str, int | None]]:
    """Yield questions, their tasks, and the most tiles of their set where the mixture says so."""
    for name in config.data.mixture:
        folder = Path(name) if Path(name).is_dir() else Path(name).parent
        if (folder / "labels" / "set.json").is_file():
            labelled = read_compiled(folder)
            for split in ("val", "test", "train"):
                held_out = labelled.split(split)
                if len(held_out):
                    tiles = open_entries(Path(name))[0].max_tiles
                    for record, task in questions_of(held_out, count):
                        yield record, task, tiles
                    return
    mixture = open_mixture(config.data, config.seed)
    with_images = (sample for n in range(len(mixture)) if (sample := mixture[n]).record.images)
    for sample, _ in zip(with_images, range(count), strict=False):
        yield sample.record.with_turns(sample.record.turns[:1]), "", sample.max_tiles


def write_run_report(
    run_dir: str | Path,
    out: str | Path | None = None,
    *,
    lead_sections: Sequence[Section] = (),
    attention: AttentionExplorer | None = None,
    title: str | None = None,
) -> Path:
    """Write what the folder of a run holds as one self-contained HTML page and return its path.

    Args:
        run_dir: Folder of the run. What it lacks is absent from the page, and a line says so.
        out: The page; None takes `report.html` in the run's folder.
        lead_sections: Shown first of all: the answer that the page is read for.
        attention: Attention maps to explore.
        title: Heading; None takes the folder's name.

    Raises:
        DataError: The folder is no run's, or a file in it is malformed; names the file and the line.
    """
    run = read_run(run_dir)
    probes = _probe_curves(run.probes)
    sections = [*lead_sections, _overview(run, probes)]
    if run.steps:
        sections.append(_training(run.steps))
    if run.evidence is not None:
        sections.append(_learned(run.evidence))
    if probes:
        sections.append(_probes(run.probes, probes))
    if run.samples:
        sections.append(_answers(run))
    if attention is not None:
        sections.append(Section("Attention", [attention], "What each patch looks at, layer by layer."))
    sections.append(_provenance(run))
    name = run.path.resolve().name
    page = HtmlPage(
        title=title or name,
        subtitle="Visual instruction pretraining: what the run did, and what the vision transformer learned.",
        sections=sections,
        facts=[("run", name), *_facts(run.steps)],
    )
    return page.write(run.path / "report.html" if out is None else out)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _points(rows: Sequence[StepRow], key: str, inner: str | None = None) -> Points:
    """Return (step, value) where a row has a finite number under `key`, or there under the name `inner`."""
    points = []
    for row in rows:
        value = row.get(key)
        if inner is not None:
            value = value.get(inner) if isinstance(value, Mapping) else None
        if _finite(value):
            points.append((row["step"], float(value or 0)))
    return points


def _line(name: str, points: Points, smooth: float = 0.0) -> Curve:
    steps, values = [step for step, _ in points], [value for _, value in points]
    if smooth and values:
        return Curve(name, steps, smoothed(values, smooth), values)
    return Curve(name, steps, values)


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Return the mean of `values` around each place, weighted by `weight ** distance` to both sides.

    Looking to both sides, the curve does not lag behind a falling loss as a running mean does.
    """
    # Beyond this distance a neighbour's weight is below the rounding of the mean.
    reach = min(len(values) - 1, math.ceil(math.log(1e-12) / math.log(weight)))
    kernel = weight ** np.abs(np.arange(-reach, reach + 1.0))
    window = slice(reach, reach + len(values))
    total, weights = (np.convolve(one, kernel)[window] for one in (values, np.ones(len(values))))
    return [float(mean) for mean in total / weights]


def _facts(steps: Sequence[StepRow]) -> list[tuple[str, str]]:
    facts = [("steps", format_number(steps[-1]["step"]))] if steps else []
    elapsed, memory = _points(steps, "elapsed_s"), _points(steps, "memory_gb")
    if elapsed:
        minutes, seconds = divmod(round(elapsed[-1][1]), 60)
        hours, minutes = divmod(minutes, 60)
        shown = f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
        facts.append(("time", f"{hours} h {minutes:02} min" if hours else shown))
    if memory:
        facts.append(("memory", f"{max(y for _, y in memory):.1f} GiB"))
    return facts


def _overview(run: RunFolder, probes: Mapping[str, Points]) -> Section:
    cards = []
    losses = [loss for _, loss in _points(run.steps, "loss")]
    if losses:
        # Single steps are noisy, so these are means over the first and over the last twentieth.
        count = max(1, len(losses) // 20)
        start, end = sum(losses[:count]) / count, sum(losses[-count:]) / count
        delta = f"from {format_number(start, 3)}"
        cards.append(Card(format_number(end, 3), "training loss at the end", delta, end < start))
    if run.evidence is not None:
        share = run.evidence.get("gradient_share")
        delta = f"{_percent(share)} of the squared gradient norm" if isinstance(share, (int, float)) else ""
        change = _percent(run.evidence["relative_change"])
        cards.append(Card(change, "change of the vision tower's weights", delta))
    for name in [name for name in probes if "cka" not in name][:2]:  # CKA measures change, not quality
        (step, first), (_, last) = probes[name][0], probes[name][-1]
        moved = decimals(last - first, 3, signed=True)
        delta = f"{moved} since step {step:,}" if len(probes[name]) > 1 else ""
        cards.append(Card(format_number(last, 3), _spoken(name), delta, last > first if delta else None))
    rates = sorted(rate for _, rate in _points(run.steps, "samples_per_s"))
    if rates:
        middle = rates[len(rates) // 2]
        cards.append(Card(format_number(middle, 0 if middle >= 100 else 1), "samples a second (median)"))
    blocks: list[Block] = [Headline(cards)] if cards else []
    if run.missing:
        lines = "\n".join(f"- `{name}`: {RUN_FILES[name]}" for name in run.missing)
        blocks.append(Text(f"Not in this run's folder, so not on this page:\n\n{lines}", "note"))
    return Section("Overview", blocks)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _training(rows: Sequence[StepRow]) -> Section:
    losses = _points(rows, "loss")
    smooth = 0.9 if len(losses) > 40 else 0.0

    def named(key: str) -> list[Curve]:
        """Return one line for each name in the mappings that rows hold under `key`."""
        names = dict.fromkeys(name for row in rows if isinstance(row.get(key), Mapping) for name in row[key])
        return [_line(name, points, smooth) for name in names if (points := _points(rows, key, name))]

    rates = {f"{name} a second": _points(rows, f"{name}_per_s") for name in ("samples", "tokens", "tiles")}
    if rates["tiles a second"] == rates["samples a second"]:
        del rates["tiles a second"]  # one tile a sample: the same curve
    feeding = {"packing efficiency": _points(rows, "packing"), "waiting for data": _points(rows, "data_wait")}
    lines = [
        (
            "Loss",
            [_line("loss", losses, smooth)],
            "Pale: as logged. Strong: mean over neighbours." if smooth else "",
        ),
        ("Losses by name", named("losses"), "Means over their terms, without weights."),
        *((f"Throughput: {name}", [_line(name, points, smooth)], "") for name, points in rates.items()),
        ("Learning rate", [_line("lr", _points(rows, "lr"))], ""),
        ("Gradient norm before clipping", [_line("grad_norm", _points(rows, "grad_norm"), smooth)], ""),
        ("Share of the squared gradient norm, by part", named("grad_share"), ""),
        (
            "Feeding the model",
            [_line(name, found, smooth) for name, found in feeding.items()],
            "Shares on 0..1.",
        ),
    ]
    charts: list[Block] = []
    for title, found, note in lines:
        known = [line for line in found if len(line.x)]
        of_loss = title.startswith("Loss")
        if known and not (title == "Losses by name" and len(known) < 2):
            zero = not of_loss and not title.startswith("Gradient norm")
            charts.append(LineChart(title=title, lines=known, from_zero=zero, wide=of_loss, note=note))
    return Section("Training", charts)


def _learned(evidence: Mapping[str, Any]) -> Section:
    change, meant = float(evidence["relative_change"]), evidence.get("meant_to_train", True)
    step, share, cka = (evidence.get(name) for name in ("step", "gradient_share", "cka"))
    sentences = [
        f"Over {format_number(step)} steps" if isinstance(step, int) else "Over the run",
        f"the vision tower's weights moved by **{_percent(change)}** of their norm.",
    ]
    if isinstance(share, (int, float)):
        sentences.append(f"It received **{_percent(share)}** of the squared gradient norm on average.")
    if isinstance(cka, (int, float)):
        sentences.append(
            f"Its features kept a linear CKA of **{cka:.3f}** with those at the start (1 = the same representation)."
        )
    if not meant:
        sentences.append("It was frozen on purpose.")
    chart = BarChart(
        title="Relative change of the weights, layer by layer",
        bars=[Bar(row["layer"], 100 * float(row["change"])) for row in evidence["layers"]],
        digits=2,
        unit=" %",
        wide=True,
        note="‖w − w₀‖ / ‖w₀‖ since the start of the run; a layer that started at zero shows its norm.",
    )
    text = Text(" ".join(sentences), "note" if not meant else "good" if change > 0 else "bad")
    lead = "Pretraining is for the vision tower, so its weights are watched."
    return Section("The ViT learned", [text, chart], lead)


def _probe_curves(rows: Sequence[StepRow]) -> dict[str, Points]:
    """Return probe name → (step, score). Nested mappings join their names by `/`."""
    curves: dict[str, Points] = {}

    def add(step: int, name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for inner, nested in value.items():
                add(step, f"{name}/{inner}" if name else str(inner), nested)
        elif name not in ("step", "elapsed_s", "seconds", "epoch") and _finite(value):
            curves.setdefault(name, []).append((step, float(value)))

    for row in rows:
        add(row["step"], "", row)
    return curves


def _spoken(name: str) -> str:
    parts = name.split("/")
    if parts[0] in ("probe", "probes") and len(parts) > 1:
        parts = parts[1:]
    return " · ".join(part.replace("_", " ") for part in parts)


def _probes(rows: Sequence[StepRow], curves: Mapping[str, Points]) -> Section:
    tasks: dict[str, list[Curve]] = {}
    for name, points in curves.items():
        task, _, metric = name.rpartition("/")
        shown = metric.replace("_", " ")
        # A measure of no task has a chart of its own.
        tasks.setdefault(shown if task in ("", "probe") else _spoken(task), []).append(_line(shown, points))
    cells: list[list[TableCell]] = [
        [_spoken(name), points[0][1], points[-1][1], points[-1][1] - points[0][1]]
        for name, points in curves.items()
    ]
    first, last = min(r["step"] for r in rows), max(r["step"] for r in rows)
    columns = [
        Column("probe"),
        Column(f"step {first:,}", digits=3),
        Column(f"step {last:,}", digits=3),
        Column("change", digits=3, signed=True),
    ]
    charts = [LineChart(title=task, lines=lines) for task, lines in tasks.items()]
    lead = "Frozen features of the vision tower, measured while it trains."
    return Section("Probes", [Table(columns, cells), *charts], lead)


def _channels(run: RunFolder) -> Channels | None:
    """Return what the run's tower sees of its images' bands, as its configuration says."""
    model = run.config.get("model")
    value = model.get("channels") if isinstance(model, Mapping) else None
    return None if value is None else channels_from_json(value, run.path / CONFIG_FILE)


def _answers(run: RunFolder) -> Section:
    by_task: dict[str, list[Answered]] = {}
    for sample in run.samples:
        by_task.setdefault(sample.task, []).append(sample)
    scores = {
        task or "all": [s.score for s in found if s.score is not None] for task, found in by_task.items()
    }
    scores = {task: found for task, found in scores.items() if found}
    blocks: list[Block] = []
    if scores:
        chart = BarChart(
            title="Mean score by task",
            bars=[Bar(task, 100 * sum(found) / len(found)) for task, found in scores.items()],
            digits=1,
            unit=" %",
            wide=True,
            note=f"Samples: {', '.join(f'{task} {len(found)}' for task, found in scores.items())}.",
        )
        blocks.append(chart)
    # As many of each task as of the others, where there are enough.
    rounds = range(max(map(len, by_task.values())))
    shown = [found[turn] for turn in rounds for found in by_task.values() if turn < len(found)][
        :_MOST_SAMPLES
    ]
    few = len(shown) < len(run.samples)
    note = f"{len(shown)} of {len(run.samples)} samples, evenly over tasks." if few else ""
    blocks.append(AnsweredCards(shown, note=note, base=run.path, channels=_channels(run)))
    lead = "Dashed: where the labels say it is. Solid: what the model answered."
    return Section("What the model answers", blocks, lead)


def _provenance(run: RunFolder) -> Section:
    plain = {key: value for key, value in run.config.items() if not isinstance(value, (dict, list))}
    blocks: list[Block] = [KeyValue(plain)] if plain else []
    if run.config_text is not None:
        blocks.append(Code(run.config_text.strip(), CONFIG_FILE))
    else:
        blocks.append(Text("This run's folder has no `config.yaml`."))
    return Section("Configuration", blocks)
