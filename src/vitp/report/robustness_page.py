"""One self-contained page of a robustness test: what is lost, under what, and how the images looked.

Shapes: H × W pixels.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw

from vitp.core.files import write_text
from vitp.data.ignored import rings_of
from vitp.data.image_sample import ImageSample
from vitp.data.nodata import held_by, held_change, held_classes
from vitp.data.seen import SeenBands
from vitp.evaluation.corruptions.catalogue import CORRUPTIONS, EXTRAS, Corruption
from vitp.evaluation.corruptions.sets import corrupt_sample, load_pixels
from vitp.evaluation.robustness_result import RobustnessResult, comparable
from vitp.io.colours import CLASS_COLOURS
from vitp.records.channels import Channels
from vitp.records.labels import BACKGROUND, IGNORE, LabelledImage, LabelledSet
from vitp.report.charts import Bar, BarChart, Curve, HeatMap, LineChart
from vitp.report.page import (
    Block,
    Card,
    Column,
    Figure,
    Headline,
    HtmlPage,
    ImageGrid,
    KeyValue,
    Section,
    Table,
    TableCell,
)
from vitp.report.text import format_number
from vitp.tasks.base import LabelKind

_SIDE = 320
"""Pixels of the longer side of an example, so that lines stay thin on small images."""

_COUNTED, _UNCOUNTED = (255, 159, 28), (150, 150, 150)


def _words(name: str) -> str:
    return name.replace("_", " ")


def write_robustness_page(
    results: Sequence[RobustnessResult],
    path: str | Path,
    *,
    metric: str | None = None,
    examples: Sequence[Figure] = (),
) -> Path:
    """Write the page of one model, or of several side by side, and return its path.

    Args:
        results: All of one task, on the same corrupted images.
        path: The page.
        metric: Which score is shown; None: the headline.
        examples: Pictures of the corruptions; see `example_figures`.

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
    models = "one model" if len(results) == 1 else f"{len(results)} models"
    subtitle = (
        f"{models} on clean images and under {len(first.cells)} corruptions; nothing was trained or chosen on corrupted "
        "images."
    )
    return HtmlPage("Robustness", sections, subtitle, facts).write(path)


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
    first = results[0]
    head: Block = _models(results, metric)
    if len(results) == 1:
        average, drop = first.average(metric), first.drop(metric)
        worst = _by_loss(first, metric)[0]
        delta = f"−{_percent(drop)} against clean" if drop > 0 else "no loss"
        better = None if math.isnan(drop) else drop <= 0
        cards = [
            Card(_percent(first.value(metric)), "clean"),
            Card(_percent(average), "mean over corruptions and severities", delta, better),
            Card(_percent(first.by_corruption(metric)[worst]), f"worst: {_words(worst)}"),
        ]
        head = Headline(cards)
    lines = []
    for result in results:
        found = result.by_severity(metric)
        values = [100 * value for value in (result.value(metric), *found.values())]
        lines.append(Curve(result.name, [0, *found], values))
    curve = LineChart(
        title="Mean over corruptions by severity",
        lines=lines,
        x_label="severity (0: clean)",
        y_label="%",
        wide=True,
    )
    lead = (
        "The average is the mean over corruptions of the mean over severities; the drop is clean minus average. "
        "All scores in percent."
    )
    return Section("Summary", [head, curve], lead)


def _by_loss(result: RobustnessResult, metric: str | None) -> list[str]:
    """Return the corruptions, the one that costs most first and those that could not be counted last."""
    found = result.by_corruption(metric)
    return sorted(found, key=lambda name: found[name] if math.isfinite(found[name]) else math.inf)


def _models(results: Sequence[RobustnessResult], metric: str | None) -> Table:
    columns = [
        Column("model"),
        Column("clean", "max", 1),
        Column("average", "max", 1),
        Column("drop", "min", 1),
        Column("drop, % of clean", "min", 1),
        Column("worst corruption"),
    ]
    rows: list[list[TableCell]] = []
    for result in results:
        worst = _by_loss(result, metric)[0]
        clean, drop = result.value(metric), result.drop(metric)
        scores = [clean, result.average(metric), drop, drop / clean if clean else math.nan]
        shown = f"{_words(worst)} ({_percent(result.by_corruption(metric)[worst])})"
        rows.append([result.name, *map(_cell, scores), shown])
    note = (
        "One run each: a difference between models is no evidence until several seeds show it. A small drop from a "
        "low clean score is no robustness."
    )
    return Table(columns, rows, note=note)


def _corruptions(results: Sequence[RobustnessResult], metric: str | None) -> Section:
    several = len(results) > 1
    columns = [Column("corruption"), Column("severities")]
    columns += [Column(result.name if several else "mean", digits=1) for result in results]
    columns += [Column(f"drop, {result.name}" if several else "drop", digits=1) for result in results]
    means = [result.by_corruption(metric) for result in results]
    drops = {
        name: [result.value(metric) - found[name] for result, found in zip(results, means, strict=True)]
        for name in results[0].cells
    }
    rows: list[list[TableCell]] = []
    for name in results[0].cells:
        cells = [_cell(value) for value in (*(found[name] for found in means), *drops[name])]
        rows.append([_words(name), {**CORRUPTIONS, **EXTRAS}[name].words, *cells])
    bars = [
        Bar(f"{_words(name)}, {result.name}" if several else _words(name), 100 * drop, colour=place)
        for name in _by_loss(results[0], metric)
        for place, (result, drop) in enumerate(zip(results, drops[name], strict=True))
        if math.isfinite(drop)
    ]
    chart = BarChart(title="Loss against clean", bars=bars, digits=1, x_label="points", wide=True)
    return Section("By corruption", [Table(columns, rows, note="Means over the severities."), chart])


def _heat_maps(results: Sequence[RobustnessResult], metric: str | None) -> Section:
    maps: list[HeatMap] = []
    for result in results:
        severities, means = result.severities, result.by_corruption(metric)
        values = [
            [
                *(100 * result.cell(name, s, metric) if s in row else math.nan for s in severities),
                100 * means[name],
            ]
            for name, row in result.cells.items()
        ]
        maps.append(
            HeatMap(
                title=f"{result.name}, clean {_percent(result.value(metric))}",
                rows=[_words(name) for name in result.cells],
                columns=[*(f"severity {severity}" for severity in severities), "mean"],
                values=values,
                reference=100 * result.value(metric),
            )
        )
    # One scale, so that the maps can be compared.
    largest = max(one.largest_loss for one in maps)
    lead = f"Darker cells lost more, up to {format_number(largest, 1)} points; blue ones gained."
    return Section("Heat map", [replace(one, largest=largest) for one in maps], lead)


def _cell(value: float) -> float | None:
    return 100 * value if math.isfinite(value) else None


def _percent(value: float) -> str:
    return format_number(100 * value, 1)


def write_robustness_table(results: Sequence[RobustnessResult], path: str | Path) -> None:
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


def example_figures(
    labelled: LabelledSet, kind: LabelKind | None, corruptions: Sequence[Corruption], severity: int, seed: int
) -> list[Figure]:
    """Return an image clean and under each corruption, with its objects' outlines or its mask.

    Args:
        labelled: Images of the test; of the first 16 the one with most objects is shown.
        kind: Which labels the task learns from; None: no task. Classes of whole images aren't drawn.
        corruptions: What happens.
        severity: 1 to 5.
        seed: Seed of the corruptions.
    """
    items = [labelled.items[index] for index in range(min(len(labelled), 16))]
    item = max(items, key=lambda each: len(each.objects or ()))
    sample, channels = _sample(item, kind, labelled.channels), labelled.channels
    classes = labelled.semantic_classes if kind in ("semantic", "panoptic") else ("unchanged", "changed")
    clean = "clean" if channels is None else f"clean; {', '.join(channels.bands[n] for n in channels.shown)}"
    figures = [Figure(labelled_picture(_composite(sample, channels), classes), clean)]
    for corruption in corruptions:
        changed = corrupt_sample(sample, corruption, severity, seed, item.id)
        picture = labelled_picture(_composite(changed, channels), classes)
        figures.append(Figure(picture, _words(corruption.name)))
    return figures


def _composite(sample: ImageSample, channels: Channels | None) -> ImageSample:
    """Return a sample with the channels that are shown as red, green and blue."""
    return sample if channels is None else replace(sample, image_CHW=sample.image_CHW[list(channels.shown)])


def _sample(item: LabelledImage, kind: LabelKind | None, channels: Channels | None) -> ImageSample:
    image_CHW = torch.from_numpy(np.array(load_pixels(item.image, SeenBands(channels)))).permute(2, 0, 1)
    image_CHW = image_CHW.contiguous()
    semantic_HW = None
    if kind in ("semantic", "panoptic") and item.semantic is not None:
        semantic_HW = torch.from_numpy(held_classes(item, held_by(item, channels)).copy())
    elif kind == "change" and item.change is not None:
        semantic_HW = torch.from_numpy(held_change(item, held_by(item, channels)))
    if kind not in ("objects", "instances", "oriented", "presence", "panoptic"):
        return ImageSample(image_CHW, semantic_HW=semantic_HW)
    return ImageSample(image_CHW, objects=item.objects, semantic_HW=semantic_HW, ignored=item.ignored)


def labelled_picture(sample: ImageSample, classes: Sequence[str]) -> Image.Image:
    """Return a sample's image, resized for the page, with its mask laid over it and its objects outlined.

    Difficult objects and ignored places, which count neither as found nor as missed, are outlined in grey.

    Args:
        sample: Image with labels.
        classes: Names of the mask's classes; "background" and "unchanged" are left as they are.
    """
    pixels_HWC = sample.image_CHW.permute(1, 2, 0).numpy().astype(np.float32)
    if sample.semantic_HW is not None:
        mask_HW = sample.semantic_HW.numpy()
        for number in np.unique(mask_HW[mask_HW != IGNORE]).tolist():
            if classes[number] not in (BACKGROUND, "unchanged"):
                colour = np.array(ImageColor.getrgb(CLASS_COLOURS[number % len(CLASS_COLOURS)]), np.float32)
                pixels_HWC[mask_HW == number] = 0.55 * pixels_HWC[mask_HW == number] + 0.45 * colour
    image = Image.fromarray(pixels_HWC.round().astype(np.uint8))
    scale = _SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(image)
    objects = sample.objects or ()
    uncounted = [*sample.ignored, *(label for label in objects if label.difficult)]
    coloured = [(label, _UNCOUNTED) for label in uncounted]
    coloured += [(label, _COUNTED) for label in objects if not label.difficult]
    for label, line in coloured:
        for ring in rings_of(label):
            points = [(x * scale, y * scale) for x, y in zip(ring[::2], ring[1::2], strict=True)]
            pen.line([*points, points[0]], fill=line, width=2)
    return image
