"""`vitp data prepare NAME`: a download → a folder that recipes train on.

    OUT/labels/          the labels in our own format, with the splits of the protocol
    OUT/images/          crops, where the set needs them; otherwise the images stay in the download
    OUT/prepared.json    what was prepared, from where, with which settings and counts

Slices of volumes stay in their volumes. Crops wait beside OUT until all is complete, and an interrupted run continues
with them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vitp.core import files
from vitp.core.version import __version__
from vitp.data.benchmarks.base import Benchmark, Reading, count_problems, differing_counts, under_protocol
from vitp.data.benchmarks.catalogue import benchmark
from vitp.data.benchmarks.medical import amos_cases, brats_cases
from vitp.data.formats import read_labels
from vitp.data.formats.builder import ReadOptions
from vitp.data.formats.crops import cut
from vitp.data.formats.vitp_labels import Roots, write_compiled
from vitp.data.published import check_out, read_record
from vitp.records.labels import SPLITS, LabelledSet

_FORMAT = "vitp-prepared-1"
_RECORD = "prepared.json"


Progress = Callable[[str, int | None], Callable[[], None]]
"""Begins a part of the work, of a title and a total, and returns what to call for each piece of it."""


@dataclass(frozen=True)
class PrepareSettings:
    """Settings of a preparation.

    Attributes:
        protocol: "official" or "paper", see `vitp.data.benchmarks.base.under_protocol`.
        crop: Side of the crops; None: the set's own, 0: no crops.
        overlap: Pixels that neighbouring crops share; None: the set's own.
        partial: Go on without files that are missing.
        options: Options of the set's reader.
    """

    protocol: str = "official"
    crop: int | None = None
    overlap: int | None = None
    partial: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """The result of a preparation.

    Attributes:
        facts: Facts of the set.
        out: The folder; None when the download was only checked.
        splits: Split → images.
        counts: Lines about official splits that have another number of images than published.
        findings: Lines about labels that were left out or mended.
        again: The folder was there already with the same settings.
    """

    facts: Benchmark
    out: Path | None
    splits: dict[str, int]
    counts: tuple[str, ...]
    findings: tuple[str, ...]
    again: bool = False


def check_download(name: str, root: str | Path, settings: PrepareSettings = PrepareSettings()) -> Prepared:
    """Read a download without writing anything (of volumes: look for every file).

    Raises:
        DataError: Something is missing; the message names the first thing and who publishes the set.
        ConfigError: There is no such set or option.
    """
    facts, root = benchmark(name), Path(root)
    facts.check_folder(root)
    if not facts.volumes:
        official = _read(facts, root, settings)
        return _prepared(facts, None, official, count_problems(official, facts))
    reading = Reading(facts, root, ReadOptions(partial=settings.partial))
    own = {k: v for k, v in settings.options.items() if k in ("modality", "channels")}
    cases = amos_cases(reading, **own) if facts.name == "amos2022" else brats_cases(reading, **own)
    splits = {split: sum((case.split or "train") == split for case in cases) for split in SPLITS}
    findings = tuple(f"{place}: is missing; left out" for place in reading.missing)
    return Prepared(facts, None, splits, tuple(differing_counts(splits, facts)), findings)


def prepare_benchmark(
    name: str,
    root: str | Path,
    out: str | Path,
    settings: PrepareSettings = PrepareSettings(),
    *,
    force: bool = False,
    progress: Progress = lambda title, total: lambda: None,
) -> Prepared:
    """Check a download, make crops, and write a folder that `open_labelled` reads.

    Args:
        name: A key of `BENCHMARKS`.
        root: The download; it is only read.
        out: New or empty folder, or one that was prepared before.
        settings: Protocol, crops, options.
        force: Replace a folder that was prepared with other settings.
        progress: Shows how far the work is.

    Raises:
        DataError: Something is missing or can't be read; the message names the first thing.
        ConfigError: There is no such set or option, or `out` holds something else.
    """
    facts, root, out = benchmark(name), Path(root).resolve(), Path(out).resolve()
    facts.check_folder(root)
    content = json.dumps([_FORMAT, facts.name, str(root), asdict(settings)], sort_keys=True, default=str)
    key = hashlib.sha256(content.encode()).hexdigest()
    if (before := read_record(out / _RECORD, _FORMAT)) is not None and before["key"] == key:
        counts, findings = (tuple(before[name]) for name in ("counts", "findings"))
        return Prepared(facts, out, before["images"], counts, findings, again=True)
    check_out(out, root, ours=before is not None, force=force)
    work = out.parent / f".{out.name}.images-{key[:12]}"
    official = _read(facts, root, settings)
    problems = count_problems(official, facts)
    labelled = under_protocol(official, facts, settings.protocol)
    images = _cut(facts, labelled, work, settings, progress)
    inside = work.is_dir()
    with files.atomic_dir(out) as temporary:
        roots = Roots(temporary, work if inside else root, root)
        write_compiled(images, roots, image_root="images" if inside else None)
        result = _prepared(facts, out, images, problems)
        _write_record(temporary / _RECORD, key, root, settings, result)
        if inside:
            work.rename(temporary / "images")
    return result


def _read(facts: Benchmark, root: Path, settings: PrepareSettings) -> LabelledSet:
    """Read a download with its official splits."""
    options = {**settings.options, "protocol": "official", "partial": settings.partial}
    return read_labels(facts.name, root, **options)


def _cut(
    facts: Benchmark, labelled: LabelledSet, work: Path, settings: PrepareSettings, progress: Progress
) -> LabelledSet:
    """Return the set with its training and validation images (and where the protocol says so, test images) cut."""
    size = facts.crop if settings.crop is None else settings.crop
    if not size or facts.volumes:
        return labelled
    overlap = facts.overlap if settings.overlap is None else settings.overlap
    whole = [item for item in labelled.items if item.split == "test" and not facts.crop_test]
    cropped = [item for item in labelled.items if item.split != "test" or facts.crop_test]
    step = progress(f"{facts.title}: crops of {size} px", len(cropped))
    crops = cut(replace(labelled, items=cropped), size, overlap, work, facts.min_visible, step)
    items = list(crops.items)
    findings = list(crops.findings)
    if facts.drop_empty and settings.protocol == "paper":
        full = [
            item
            for item in items
            if item.split != "train" or any(not label.difficult for label in item.objects or ())
        ]
        if len(full) < len(items):
            findings.append(f"{len(items) - len(full):,} training crops without objects; left out")
        items = full
    return replace(labelled, items=[*items, *whole], findings=tuple(findings))


def _prepared(facts: Benchmark, out: Path | None, labelled: LabelledSet, problems: list[str]) -> Prepared:
    splits = {split: sum(item.split == split for item in labelled.items) for split in SPLITS}
    return Prepared(facts, out, splits, tuple(problems), tuple(labelled.findings))


def _write_record(path: Path, key: str, root: Path, settings: PrepareSettings, result: Prepared) -> None:
    files.write_json(
        path,
        {
            "format": _FORMAT,
            "vitp": __version__,
            "key": key,
            "set": result.facts.name,
            "download": str(root),
            "settings": json.loads(json.dumps(asdict(settings), default=str)),
            "images": result.splits,
            "counts": list(result.counts),
            "findings": list(result.findings),
        },
    )
