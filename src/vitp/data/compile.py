"""Labels → instruction files: what `vitp data compile` does.

The output folder holds

    {train,val,test}.jsonl   instruction records, images relative to the root in mixture.json
    mixture.json             the training split as a mixture of one set
    labels/                  the labels themselves, for probes and finetuning (`formats.vitp_labels`)
    crops/ or images/        the images, where they were cut into files, or were inside of a table
    summary.json             counts, findings, options, licence, content hash

The same labels, options and seed give the same bytes.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

from vitp.core import leftovers
from vitp.core.errors import ConfigError, DataError, VitpError
from vitp.core.files import atomic_dir, sha256, write_json
from vitp.core.reading import read_json
from vitp.data.compile_conversations import compile_conversations
from vitp.data.compile_summary import COMPILED_FORMAT, CompileSummary, SplitCounts
from vitp.data.formats import detect, read_labels
from vitp.data.formats.channels import declare_again
from vitp.data.formats.class_names import check_names
from vitp.data.formats.crops import crops_in_place, cut
from vitp.data.formats.empty import limit_empty
from vitp.data.formats.generated import Chained
from vitp.data.formats.parquet import parquet_columns
from vitp.data.formats.vitp_labels import (
    LineWriter,
    Roots,
    channels_to_json,
    label_line,
    relative,
    write_head,
)
from vitp.data.synthesis.build import SynthesisConfig, synthesize_with_tasks
from vitp.data.synthesis.classes import SetClasses
from vitp.data.synthesis.constant import ConstantTask, constant_pretext, constant_tasks, without_tasks
from vitp.data.synthesis.pretext_tasks import PRETEXT_TASKS, PretextRecord, pretext_records
from vitp.data.synthesis.volume_facts import VolumeIndex
from vitp.io.parts import base_address
from vitp.records.channels import Channels
from vitp.records.instructions import to_line
from vitp.records.labels import SPLITS, LabelledImage, LabelledSet

Told = Callable[[str, tuple[str, ...]], None]
"""Takes a format, and lines about how files were understood."""


def _tell_nobody(fmt: str, lines: tuple[str, ...]) -> None:
    pass


def compile_labels(
    src: str | Path,
    fmt: str,
    out: str | Path,
    *,
    seed: int = 0,
    crop: int | None = None,
    overlap: int = 0,
    min_visible: float = 0.4,
    empty: float = 1.0,
    synthesis: SynthesisConfig | None = None,
    max_tiles: int | None = None,
    force: bool = False,
    told: Told = _tell_nobody,
    chosen: Callable[[LabelledSet], LabelledSet] | None = None,
    **options: Any,
) -> CompileSummary:
    """Read labels, ask questions about them, and write records, mixture, labels and summary.

    Args:
        src: Folder (or file) of the set; the domain for `fmt="scenes"`.
        fmt: A key of `vitp.data.formats.LABELCOMPILED_FORMATS`, or "auto".
        out: New or empty folder, or with `force` one of an earlier compilation.
        seed: Seed of the splits, the questions and, for generated scenes, the scenes.
        crop: Cut images into crops of this many pixels; those of rasters are windows of their files.
        overlap: Pixels that neighbouring crops share.
        min_visible: Objects of which less of the area is in a crop are difficult in it.
        empty: Training images (or crops) without objects at most, as a share of the training images; which ones stay
            follows from the seed.
        synthesis: What to ask.
        max_tiles: Written into the mixture as `max_dynamic_patch`; left to the run by default.
        force: Replace an earlier compilation, in one step and only when the new one is complete.
        told: Called once the labels are read, with the format and the lines about how they were understood.
        chosen: Takes the set that was read, and returns what is to be compiled of it.
        **options: Of the format, see `vitp.data.formats.read_labels`.

    Raises:
        DataError: The labels can't be read, there is nothing to ask in the training split, or `out` can't be
            replaced.
        ConfigError: An option is unknown or out of range.
    """
    out, source = Path(out).resolve(), Path(src).resolve()
    base = None if fmt == "scenes" else source.parent if source.is_file() else source
    _check_out(out, base, force=force)
    also: tuple[str, ...] = ()
    if fmt == "auto":
        found = detect(Path(src), options)
        fmt, also, source = found.format, found.understood, found.root.resolve()
        base = source.parent if source.is_file() else source
    if fmt != "vitp":  # a compiled set brings its own splits
        options["seed"] = seed
    synthesis = synthesis or SynthesisConfig()
    if fmt == "images":
        synthesis = replace(synthesis, pretext=True)
    cutting = {} if crop is None else {"crop": crop, "overlap": overlap, "min_visible": min_visible}
    settings = {**cutting, "empty": empty, **options, "synthesis": synthesis.stated()}
    job = _Job(src, fmt, out, base, seed, synthesis, max_tiles, settings, also, told, chosen=chosen)
    if fmt in ("parquet", "pannuke"):  # their images are inside of their files
        return (_compile_table if fmt == "parquet" else _compile_unpacked)(job, source, options)
    return _compile_read(job, read_labels(fmt, str(src) if base is None else source, **options))


def _compile_table(job: _Job, source: Path, options: dict[str, Any]) -> CompileSummary:
    """Compile a table that holds its images, with labels or with conversations about them."""
    asked = {name: value for name, value in options.items() if name.endswith("_column")}
    columns = parquet_columns(source, asked, str(options.get("patient") or ""))
    if columns.talk and "crop" in job.settings:
        fix = "leave --crop out"
        raise ConfigError("answers of conversations are about whole images", where="--crop", fix=fix)
    if columns.talk:
        settings = {name: value for name, value in job.settings.items() if name != "synthesis"}
        return compile_conversations(
            source, columns, job.out, seed=job.seed, max_tiles=job.max_tiles, settings=settings
        )
    return _compile_unpacked(job, source, options)


def _compile_unpacked(job: _Job, source: Path, options: dict[str, Any]) -> CompileSummary:
    """Compile a set whose images are inside of its files: they wait beside `out` until all is complete."""
    job.out.parent.mkdir(parents=True, exist_ok=True)
    with leftovers.temporary_folder(job.out.name, job.out.parent) as folder:
        try:
            whole = read_labels(job.fmt, source, **options, images_to=folder)
            return _compile_read(replace(job, inside=folder), whole)
        except DataError as error:  # the folder is gone when it is read
            where = (error.where or "").replace(str(folder), str(source))
            raise DataError(error.what, where=where, fix=error.fix) from error


def _compile_read(job: _Job, whole: LabelledSet) -> CompileSummary:
    whole = whole if job.chosen is None else job.chosen(whole)
    job.told(job.fmt, (*job.also_there, *whole.understood))
    if "crop" in job.settings:
        return _write_crops(job, whole)
    return _write(job, limit_empty(whole, job.settings["empty"], job.seed))


def compile_set(
    labelled: LabelledSet,
    out: Path,
    base: Path,
    *,
    seed: int,
    synthesis: SynthesisConfig,
    settings: dict[str, Any],
    force: bool = False,
) -> CompileSummary:
    """Write a set that is in memory as `compile_labels` writes what it reads.

    Args:
        labelled: Set with its splits.
        out: As of `compile_labels`.
        base: Folder that images and masks are relative to.
        seed: Seed of the questions.
        synthesis: What to ask.
        settings: What the summary says under `options`.
        force: Replace an earlier compilation.

    Raises:
        DataError: There is nothing to ask in the training split, or `out` can't be replaced.
    """
    out = out.resolve()
    _check_out(out, base, force=force)
    settings = {**settings, "synthesis": synthesis.stated()}
    return _write(_Job(base, "merged", out, base, seed, synthesis, None, settings, ()), labelled)


@dataclass(frozen=True)
class _Job:
    """What is compiled, as `compile_labels` has it; no `base` where the images are generated."""

    src: str | Path
    fmt: str
    out: Path
    base: Path | None
    seed: int
    synthesis: SynthesisConfig
    max_tiles: int | None
    settings: dict[str, Any]
    also_there: tuple[str, ...]
    told: Told = _tell_nobody
    inside: Path | None = None
    """Folder of the images that were inside of a table."""
    chosen: Callable[[LabelledSet], LabelledSet] | None = None


def _write_crops(job: _Job, whole: LabelledSet) -> CompileSummary:
    """Cut the images and write the set of crops.

    The crops wait beside `out` until all is complete: an interrupted run finds them again. When the set is refused
    they are removed.
    """
    crop, overlap, min_visible = (job.settings[key] for key in ("crop", "overlap", "min_visible"))
    tissue = job.settings.get("tissue", True)
    if crops_in_place(whole):
        cropped = cut(whole, crop, overlap, job.out, min_visible, tissue=tissue)
        if whole.drawn is not None and job.base is not None:
            cropped = declare_again(cropped, job.base, job.settings)
        return _write(job, limit_empty(cropped, job.settings["empty"], job.seed), whole=whole)
    folder = _crop_folder(job.out, job.base or job.out, crop, overlap)
    try:
        labelled = limit_empty(
            cut(whole, crop, overlap, folder, min_visible, tissue=tissue), job.settings["empty"], job.seed
        )
        _remove_strangers(folder, labelled)
        return _write(job, labelled, folder, whole)
    except (DataError, ConfigError):
        leftovers.remove(folder)
        raise
    except VitpError as error:  # a full disk, say
        waiting = (
            f"crops that are done wait in {folder} for the same command: remove it if that isn't to come"
        )
        fix = "; ".join(part for part in (error.fix, waiting if folder.exists() else "") if part)
        raise VitpError(error.what, where=error.where, fix=fix) from error


def _write(
    job: _Job, labelled: LabelledSet, crops: Path | None = None, whole: LabelledSet | None = None
) -> CompileSummary:
    """Write all files of the compiled set and put them into their place in one step.

    Args:
        job: What is compiled.
        labelled: The set.
        crops: Folder of its images, where they were cut.
        whole: The set before they were cut.
    """
    own = crops or job.inside
    with atomic_dir(job.out) as temporary:
        described = job.base or temporary
        roots = Roots(temporary, own or described, described)
        splits, constant = _write_lines(labelled, roots, job.seed, job.synthesis)
        image_root = "crops" if crops else "images" if own else relative(roots.images, temporary)
        write_head(labelled, roots, image_root=image_root)
        if not splits["train"].records:
            if whole is not None:
                _refuse_lost_captions(job.src, whole, labelled)
            raise _nothing_to_ask(job.src, constant, cropped=whole is not None)
        entry: dict[str, Any] = {
            "root": image_root,
            "annotation": "train.jsonl",
            "data_augment": False,
            "repeat_time": 1,
            "length": splits["train"].records,
        }
        if job.max_tiles is not None:
            entry["max_dynamic_patch"] = job.max_tiles
        if labelled.channels is not None:
            entry["channels"] = channels_to_json(labelled.channels)
        write_json(temporary / "mixture.json", {labelled.name: entry})
        summary = CompileSummary(
            name=labelled.name,
            out=job.out,
            fmt=job.fmt,
            licence=labelled.licence,
            seed=job.seed,
            splits=splits,
            findings=labelled.findings,
            unasked=sum(counts.unasked for counts in splits.values()),
            content_hash=_content_hash(temporary, labelled.channels),
            constant=constant,
            understood=(*job.also_there, *labelled.understood),
        )
        summary.write(temporary, job.settings)
        if crops is not None:
            leftovers.claim(crops).unlink()
        if own is not None:
            own.rename(temporary / image_root)
    return summary


def _refuse_lost_captions(src: str | Path, whole: LabelledSet, cropped: LabelledSet) -> None:
    """Raise when all that there was to ask about were captions and scene classes, which crops don't have."""

    def count(labelled: LabelledSet) -> int:
        return sum(
            bool(item.captions or item.scene or item.tags) for item in labelled.items if item.split == "train"
        )

    if (before := count(whole)) and not count(cropped):
        raise DataError(
            f"{before:,} training images have captions or scene classes, which are about the whole image and not about "
            "crops of it, and nothing else to ask about",
            where=str(src),
            fix="compile without --crop",
        )


def _nothing_to_ask(src: str | Path, constant: dict[str, ConstantTask], *, cropped: bool) -> DataError:
    what = "there is nothing to ask in the training split"
    if not constant:
        return DataError(what, where=str(src), fix="check the splits, the labels and the tasks")
    # The answer of a grid fills lines.
    shown = {name: shorten(task.answer, 60, placeholder=" …") for name, task in constant.items()}
    alike = "; ".join(f'{name} is "{answer}" for nearly all images' for name, answer in shown.items())
    crops = "" if cropped else "cut large images with small objects into crops (--crop 512), "
    fix = f"give labels that differ, {crops}or ask all the same with --task {next(iter(constant))}=1"
    return DataError(f"{what} that would teach anything: {alike}", where=str(src), fix=fix)


def _check_out(out: Path, base: Path | None, *, force: bool) -> None:
    """Refuse to write over anything but an earlier compilation, and that only with `force`."""
    where = str(out)
    if out.exists() and not out.is_dir():
        raise DataError("is a file", where=where, fix="name a new folder")
    if not out.exists() or not any(out.iterdir()):
        return
    try:
        ours = bool(read_json(out / "summary.json").get("format") == COMPILED_FORMAT)
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        what = "isn't empty and doesn't come from an earlier compilation"
        raise DataError(what, where=where, fix="name a new folder")
    if not force:
        fix = "name a new folder, or replace it with --force"
        raise DataError("holds an earlier compilation", where=where, fix=fix)
    if base is not None and base.is_relative_to(out):
        raise DataError("holds the labels that are to be read", where=where, fix="name another folder")


def _crop_folder(out: Path, base: Path, crop: int, overlap: int) -> Path:
    """Return the folder in which crops wait; those of interrupted runs with other settings are removed."""
    key = hashlib.sha256(f"{base}\n{crop}\n{overlap}".encode(errors="surrogatepass")).hexdigest()[:12]
    folder = out.parent / f".{out.name}.crops-{key}"
    for other in out.parent.glob(f".{glob.escape(out.name)}.crops-*"):
        if other != folder and leftovers.is_abandoned(other):
            leftovers.remove(other)
    folder.mkdir(parents=True, exist_ok=True)
    leftovers.sweep(folder)
    leftovers.claim(folder)
    return folder


def _remove_strangers(folder: Path, labelled: LabelledSet) -> None:
    """Remove what an interrupted run left of images that are no longer in the set."""
    names = {
        Path(base_address(path))
        for item in labelled.items
        for path in (item.image, item.second_image)
        if path is not None
    }
    mine = leftovers.claim(folder)
    for path in folder.rglob("*"):
        if path.is_file() and path not in names and path != mine:
            path.unlink()


def _write_lines(
    labelled: LabelledSet, roots: Roots, seed: int, config: SynthesisConfig
) -> tuple[dict[str, SplitCounts], dict[str, ConstantTask]]:
    """Write the records and the labels of all images in one pass; return counts, and tasks that were not asked."""
    for names in labelled.class_lists:
        check_names(names, labelled.name, lambda where, text: None)
    items = labelled.items
    # Filtering a generated set would render all of it; its first part is the training split.
    training = (
        replace(labelled, items=items.parts[0]) if isinstance(items, Chained) else labelled.split("train")
    )
    classes = SetClasses.from_set(training)
    constant = constant_tasks(training.items, classes, config)
    constant |= constant_pretext(training.items, labelled.channels, config)
    config = without_tasks(config, list(constant))
    counts = {split: SplitCounts() for split in SPLITS}
    volumes = VolumeIndex(items, labelled.channels) if isinstance(items, list | tuple) else None
    with LineWriter(roots.out) as records, LineWriter(roots.out / "labels") as labels:
        for item in items:
            made = synthesize_with_tasks(
                item,
                classes,
                seed=seed,
                config=config,
                volumes=volumes,
                named=lambda address: relative(address, roots.images),
            )
            if made is not None:
                records.add(item.split, to_line(made[0]))
            own = _of_pixels(item, labelled, roots, seed, config)
            for one in own:
                records.add(item.split, to_line(one.record))
            asked = [] if made is None else [made[1]]
            counts[item.split].count(item, [*asked, *(one.tasks for one in own)])
            labels.add(item.split, label_line(item, roots))
    return counts, constant


def _of_pixels(
    item: LabelledImage, labelled: LabelledSet, roots: Roots, seed: int, config: SynthesisConfig
) -> list[PretextRecord]:
    weights = {name: config.weight(name) for name in PRETEXT_TASKS}
    if not any(weights.values()):
        return []
    head = {"source": labelled.name, "licence": labelled.licence}
    most = config.questions_per_image
    return pretext_records(
        item, _named(item, roots), labelled.channels, weights, seed=seed, most=most, **head
    )


def _named(item: LabelledImage, roots: Roots) -> LabelledImage:
    """Return an image as records name it: relative to the root of the images."""
    second = None if item.second_image is None else relative(item.second_image, roots.images)
    series = tuple(relative(image, roots.images) for image in item.series)
    return replace(item, image=relative(item.image, roots.images), second_image=second, series=series)


def _content_hash(out: Path, channels: Channels | None) -> str:
    digest = hashlib.sha256()
    for folder in (out, out / "labels"):
        for split in SPLITS:
            digest.update(sha256(folder / f"{split}.jsonl").encode())
    if channels is not None:
        digest.update(channels.model_dump_json().encode())
    return digest.hexdigest()
