"""The loss of scores on corrupted images, of finetuned models and of probes on frozen backbones.

Nothing is trained or chosen on corrupted images. The same images are corrupted in the same way for every model: a
corruption is a function of (seed, name of the image), not of the order or the model.

The average is the mean over corruptions of the mean over severities; the drop is clean minus average (table 13 of
the paper).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitp.checkpoints.description import content_hash, tensor_digests
from vitp.core.errors import ConfigError
from vitp.core.leftovers import temporary_folder
from vitp.data.nodata import nodata_facts
from vitp.data.seen import PICTURES, SeenBands
from vitp.data.splits import splits_of, subset
from vitp.evaluation.corruptions.catalogue import SEVERITIES, checked_severities, corruptions_of
from vitp.evaluation.corruptions.sets import corrupted_set, load_pixels, wide_channels
from vitp.evaluation.features import extract, probe_data
from vitp.evaluation.probe_table import ProbeTable
from vitp.evaluation.probes import fit_probes
from vitp.evaluation.robustness_result import Cells, RobustnessResult
from vitp.metrics.results import Scores
from vitp.models.vision import VisionTower
from vitp.records.labels import LabelledSet
from vitp.tasks.base import TaskModel, TestSettings
from vitp.tasks.build import task_of
from vitp.tasks.data import labelled_only

PROBE_TASK = "probes"
CACHED_BYTES = 1 << 30
"""Decoded clean images that are kept in memory between corruptions."""

_READ_AT_ONCE = 64

PROBE_HEADLINES = (
    ("patches linear", "pixel mIoU"),
    ("patches linear", "patch mIoU"),
    ("scene linear", "accuracy"),
    ("presence linear", "mAP"),
)
"""Of the probes' scores, the one that stands for them: dense ones first."""


class PixelCache:
    """Reads images and keeps them decoded, the first ones that fit: each is needed once a corruption.

    Args:
        most: Most bytes of pixels that are kept.
        seen: What of the images' bands is seen.
    """

    def __init__(self, most: int = CACHED_BYTES, seen: SeenBands = PICTURES) -> None:
        self._free, self._seen = most, seen
        self._pixels: dict[str, np.ndarray] = {}

    def __call__(self, address: str) -> np.ndarray:
        """Return an image as (H, W, C) uint8."""
        if address in self._pixels:
            return self._pixels[address]
        image_HWC = load_pixels(address, self._seen)
        if image_HWC.nbytes <= self._free:
            self._free -= image_HWC.nbytes
            self._pixels[address] = image_HWC
        return image_HWC


OnCell = Callable[[RobustnessResult], None]
"""Gets the result so far after each cell: to print it, and to write it so that an interrupted test can go on."""


def measure(
    labelled: LabelledSet,
    score: Callable[[LabelledSet], Scores],
    start: RobustnessResult,
    *,
    severities: Sequence[int] = SEVERITIES,
    corruptions: Iterable[str] | None = None,
    known: RobustnessResult | None = None,
    on_cell: OnCell | None = None,
    keep: int = 2 * _READ_AT_ONCE,
    seen: SeenBands = PICTURES,
) -> RobustnessResult:
    """Score corrupted images, corruption by corruption.

    Args:
        labelled: The clean test images.
        score: Labelled images → scores.
        start: Name, task, seed, facts and clean scores.
        severities: Some of 1 to 5.
        corruptions: Names; None: the twelve.
        known: An earlier result with the same facts: its cells aren't measured again.
        on_cell: See `OnCell`; called once with the clean scores, too.
        keep: Corrupted files that are on the disk at once; at least as many as `score` reads at once.
        seen: What the model sees of the images' bands, which is what is corrupted.

    Raises:
        ConfigError: There is no such corruption or severity.
        VitpError: What scoring raises.
    """
    chosen, wanted = corruptions_of(corruptions), checked_severities(severities)
    if seen.channels is not None:
        wide_channels(seen.channels)  # refuses what no values can show, before anything is measured
    earlier: Cells = known.cells if known is not None and dict(known.facts) == dict(start.facts) else {}
    load, cells = PixelCache(seen=seen), {corruption.name: dict[int, Scores]() for corruption in chosen}
    # Told once without any cell: what can't stand beside earlier results is refused before hours of scoring.
    if on_cell is not None:
        on_cell(replace(start, cells={}))
    for corruption in chosen:
        for severity in wanted:
            found = earlier.get(corruption.name, {}).get(severity)
            if found is None:
                with temporary_folder("vitp-robustness") as folder:
                    corrupted = corrupted_set(
                        labelled,
                        corruption,
                        severity,
                        folder,
                        seed=start.seed,
                        keep=keep,
                        load=load,
                        channels=seen.channels,
                    )
                    found = score(corrupted)
            cells[corruption.name][severity] = found
            if on_cell is not None:
                done = {name: dict(row) for name, row in cells.items() if row}
                on_cell(replace(start, cells=done))
    return replace(start, cells=cells)


def robustness_of_task(
    model: TaskModel,
    labelled: LabelledSet,
    settings: TestSettings | None = None,
    *,
    name: str = "model",
    severities: Sequence[int] = SEVERITIES,
    corruptions: Iterable[str] | None = None,
    seed: int = 0,
    max_images: int | None = None,
    known: RobustnessResult | None = None,
    on_cell: OnCell | None = None,
) -> RobustnessResult:
    """Score a finetuned model on clean and on corrupted test images.

    Args:
        model: Model of any task, on the device that it is to run on.
        labelled: Labelled images that it has not learned from.
        settings: How it is applied; None: as its description says.
        name: Name of the model, for tables.
        severities, corruptions, known, on_cell: See `measure`.
        seed: Seed of the corruptions.
        max_images: Most images: a fixed random subset, the same for every model.

    Raises:
        ConfigError: There is no such corruption or severity, or there are no images.
        DataError: The set has no labels of the task, or its classes aren't the model's.
    """
    task = task_of(model.name)
    if settings is None:
        settings = TestSettings.model_validate(dict(model.description.get("test", {})))
    if settings.surface is None:  # hundreds of tests of each case would take hours
        settings = settings.model_copy(update={"surface": False})
    labelled = labelled_only(labelled, task.labels(model.description.get("head", {})))
    images = labelled if max_images is None else subset(labelled, max_images)

    def score(part: LabelledSet) -> Scores:
        return model.evaluate(part, settings)

    resize = settings.resize or model.input_size
    seen = SeenBands.by(model.backbone.in_channels, images, missing_bands=settings.missing_bands)
    facts = {
        **_facts(images, seed, seen),
        "weights": content_hash(tensor_digests(model.state_dict())),
        "test": _stated(settings) | {"resize": resize.model_dump(mode="json")},
    }
    same = known is not None and dict(known.facts) == facts
    clean = known.clean if known is not None and same else score(images)
    start = RobustnessResult(name, model.name, labelled.name, clean, {}, seed, facts)
    return measure(
        images,
        score,
        start,
        severities=severities,
        corruptions=corruptions,
        known=known,
        on_cell=on_cell,
        keep=2 * max(_READ_AT_ONCE, settings.batch_size),
        seen=seen,
    )


def _stated(settings: TestSettings) -> dict[str, Any]:
    """Return settings as the facts of a test have them: those that earlier ones had, and others where they matter."""
    values = settings.model_dump(mode="json")
    if settings.missing_bands == "error":
        del values["missing_bands"]
    if not settings.surface:
        del values["tolerance"]
    return values


def _facts(images: LabelledSet, seed: int, seen: SeenBands) -> dict[str, Any]:
    items = images.items
    # Items of a lazy set are rendered when touched: a few of them stand for all.
    eager = isinstance(items, list | tuple)
    probe = range(len(items)) if eager else range(0, len(items), max(1, len(items) // 8))
    names = json.dumps([(items[index].id, Path(items[index].image).name) for index in probe])
    return {
        "set": images.name,
        "images": len(images),
        "image_names": hashlib.sha256(names.encode()).hexdigest(),
        "seed": seed,
        **nodata_facts(images, seen),
    }


def robustness_of_backbone(
    tower: VisionTower,
    labelled_set: LabelledSet | Mapping[str, LabelledSet],
    *,
    name: str = "backbone",
    severities: Sequence[int] = SEVERITIES,
    corruptions: Iterable[str] | None = None,
    seed: int = 0,
    seeds: Sequence[int] = (0, 1, 2),
    labels_per_seed: int | float | None = None,
    max_images: int = 2000,
    known: RobustnessResult | None = None,
    on_cell: OnCell | None = None,
) -> RobustnessResult:
    """Fit probes on a frozen backbone's features of clean images, and score them on corrupted test images.

    Args:
        tower: Backbone, on the device that it is to run on.
        labelled_set: See `vitp.evaluation.features.probe_data`.
        name: Name of the backbone, for tables.
        severities, corruptions, known, on_cell: See `measure`.
        seed: Seed of the corruptions.
        seeds: Draws of the labelled images; scores are means over them.
        labels_per_seed: See `vitp.evaluation.probes.run_probes`.
        max_images: Most images of a split.

    Raises:
        ConfigError: A split is empty, the labels allow no probe, or there is no such corruption or severity.
    """
    splits = {part: subset(images, max_images) for part, images in splits_of(labelled_set).items()}
    data = probe_data(tower, splits, max_images=max_images)
    probes = fit_probes(data, seeds=seeds, labels_per_seed=labels_per_seed)
    seen = SeenBands.by(tower.in_channels, test := splits["test"])
    facts = {
        **_facts(test, seed, seen),
        "weights": content_hash(tensor_digests(tower.state_dict())),
        "probes": {
            "tasks": list(probes.tasks),
            "seeds": list(seeds),
            "labels": labels_per_seed,
            "train_images": len(data.train),
            "note": probes.note,
        },
    }
    clean = probe_scores(probes.score(data.test), len(test))
    start = RobustnessResult(name, PROBE_TASK, test.name, clean, {}, seed, facts)

    def score(part: LabelledSet) -> Scores:
        return probe_scores(probes.score(extract(tower, part)), len(part))

    return measure(
        test,
        score,
        start,
        severities=severities,
        corruptions=corruptions,
        known=known,
        on_cell=on_cell,
        seen=seen,
    )


def probe_scores(table: ProbeTable, images: int) -> Scores:
    """Return the means of a table of probes as scores named "task, metric".

    Raises:
        ConfigError: The table is empty.
    """
    values = {f"{row.task}, {row.metric}": row.mean for row in table.rows}
    if not values:
        raise ConfigError("there is no score", where="probes", fix="label scenes, masks or objects")
    order = [f"{task}, {metric}" for task, metric in PROBE_HEADLINES]
    headline = next((key for key in order if key in values), next(iter(values)))
    return Scores(headline, values, images=images)
