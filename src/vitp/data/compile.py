"""Labels → instruction files: what `vitp data compile` does.

The output folder holds

    {train,val,test}.jsonl   instruction records, images relative to the root in mixture.json
    mixture.json             the training split as a mixture of one set
    labels/                  the labels themselves, for probes and finetuning (`formats.vitp_labels`)
    crops/                   the images, where they were cut
    summary.json             counts, findings, options, licence, content hash

The same labels, options and seed give the same bytes.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vitp.core import files, leftovers
from vitp.core.errors import ConfigError, DataError
from vitp.core.reading import parse_json, read_text
from vitp.core.version import __version__
from vitp.core.words import cell_name, spoken
from vitp.data.formats import detect, read_labels, vitp_labels
from vitp.data.formats.crops import cut
from vitp.data.formats.empty import limit_empty
from vitp.data.formats.generated import Chained
from vitp.data.formats.vitp_labels import LabelWriter, Roots
from vitp.data.synthesis.build import SynthesisConfig, synthesize_with_tasks
from vitp.data.synthesis.classes import SetClasses
from vitp.data.synthesis.constant import ConstantTask, constant_tasks, without_tasks
from vitp.records.instructions import InstructionRecord, to_line
from vitp.records.labels import SPLITS, LabelledImage, LabelledSet

_FORMAT = "vitp-compiled"


@dataclass
class SplitCounts:
    """What one split holds.

    Attributes:
        images: Labelled images.
        records: Instruction records; fewer than images when there was nothing to ask of some.
        turns: Questions.
        tasks: Questions of each task.
        objects: Objects of each class, difficult ones left out.
        scenes: Images of each scene class.
    """

    images: int = 0
    records: int = 0
    turns: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    objects: Counter[str] = field(default_factory=Counter)
    scenes: Counter[str] = field(default_factory=Counter)

    def count(self, item: LabelledImage, tasks: tuple[str, ...] | None) -> None:
        """Add one image and the tasks that were asked of it (None: nothing could be asked)."""
        self.images += 1
        self.objects.update(label.category for label in item.objects or () if not label.difficult)
        if item.scene is not None:
            self.scenes[item.scene] += 1
        if tasks is not None:
            self.records += 1
            self.turns += len(tasks)
            self.tasks.update(tasks)


@dataclass(frozen=True)
class CompileSummary:
    """What was compiled.

    Attributes:
        name: Of the set.
        out: Where it lies.
        fmt: Format that was read.
        licence: Of the data.
        seed: Of splits and questions.
        splits: Split → counts.
        findings: Lines about labels that were left out or mended, each with file and row.
        unasked: Images of which there was nothing to ask.
        constant: Tasks that were not asked, as nearly all images would give the same answer.
        content_hash: SHA-256 over the record and label lines of all splits.
        understood: Lines about how the files were understood: classes, splits, what became of the labels.
    """

    name: str
    out: Path
    fmt: str
    licence: str
    seed: int
    splits: dict[str, SplitCounts]
    findings: tuple[str, ...]
    unasked: int
    content_hash: str
    constant: dict[str, ConstantTask] = field(default_factory=dict)
    understood: tuple[str, ...] = ()


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
    **options: Any,
) -> CompileSummary:
    """Read labels, ask questions about them, and write records, mixture, labels and summary.

    Args:
        src: Folder (or file) of the set; the domain for `fmt="scenes"`.
        fmt: A key of `vitp.data.formats.FORMATS`, or "auto".
        out: New or empty folder, or with `force` one of an earlier compilation.
        seed: Of the splits, the questions and, for generated scenes, the scenes.
        crop: Cut images into crops of this many pixels.
        overlap: Pixels that neighbouring crops share.
        min_visible: Objects of which less of the area is in a crop are difficult in it.
        empty: Training images (or crops) without objects at most, as a share of the training images; which ones stay
            follows from the seed.
        synthesis: What to ask.
        max_tiles: Written into the mixture as `max_dynamic_patch`; left to the run by default.
        force: Replace an earlier compilation, in one step and only when the new one is complete.
        **options: Of the format, see `vitp.data.formats.read_labels`.

    Raises:
        DataError: The labels can't be read, there is nothing to ask in the training split, or `out` can't be
            replaced.
        ConfigError: An option is unknown or out of range.
    """
    out = Path(out).resolve()
    generated = fmt == "scenes"
    base = out if generated else _base(Path(src))
    _check_out(out, base, generated=generated, force=force)
    understood: tuple[str, ...] = ()
    if fmt == "auto":
        found = detect(Path(src))
        fmt, understood = found.format, found.understood
    if fmt != "vitp":  # a compiled set brings its own splits
        options["seed"] = seed
    labelled = read_labels(fmt, str(src) if generated else Path(src).resolve(), **options)
    synthesis = synthesis or SynthesisConfig()
    cropped = None if crop is None else _crop_folder(out, base, crop, overlap)
    whole = labelled
    if crop is not None and cropped is not None:
        with _removed_on_refusal(cropped):
            labelled = cut(labelled, crop, overlap, cropped, min_visible)
    labelled = limit_empty(labelled, empty, seed)
    if cropped is not None:
        _remove_strangers(cropped, labelled)
    with _removed_on_refusal(cropped), files.atomic_dir(out) as temporary:
        described = temporary if generated else base
        roots = Roots(temporary, cropped or described, described)
        splits, constant = _write_lines(labelled, roots, seed, synthesis)
        vitp_labels.write_head(labelled, roots, image_root="crops" if cropped else None)
        if not splits["train"].records:
            if cropped is not None:
                _refuse_lost_captions(src, whole, labelled)
            raise _nothing_to_ask(src, constant)
        image_root = "crops" if cropped else vitp_labels.relative(roots.images, temporary)
        _write_mixture(temporary, labelled.name, image_root, splits["train"].records, max_tiles)
        summary = CompileSummary(
            name=labelled.name,
            out=out,
            fmt=fmt,
            licence=labelled.licence,
            seed=seed,
            splits=splits,
            findings=labelled.findings,
            unasked=sum(counts.images - counts.records for counts in splits.values()),
            content_hash=_content_hash(temporary),
            constant=constant,
            understood=(*understood, *labelled.understood),
        )
        cutting = {} if crop is None else {"crop": crop, "overlap": overlap, "min_visible": min_visible}
        settings = {**cutting, "empty": empty, **options, "synthesis": asdict(synthesis)}
        _write_summary(temporary, summary, settings)
        if cropped is not None:
            leftovers.claim(cropped).unlink()
            cropped.rename(temporary / "crops")
    return summary


def _refuse_lost_captions(src: str | Path, whole: LabelledSet, cropped: LabelledSet) -> None:
    """Raise when all that there was to ask about were captions and scene classes, which crops don't have."""

    def count(labelled: LabelledSet) -> int:
        return sum(bool(item.captions or item.scene) for item in labelled.items if item.split == "train")

    if (before := count(whole)) and not count(cropped):
        raise DataError(
            f"{before:,} training images have captions or scene classes, which are about the whole image and not about "
            "crops of it, and nothing else to ask about",
            where=str(src),
            fix="compile without --crop",
        )


def _nothing_to_ask(src: str | Path, constant: dict[str, ConstantTask]) -> DataError:
    what = "there is nothing to ask in the training split"
    if not constant:
        return DataError(what, where=str(src), fix="check the splits, the labels and the tasks")
    alike = "; ".join(f'{name} is "{task.answer}" for nearly all images' for name, task in constant.items())
    fix = f"give labels that differ, or ask all the same with --task {next(iter(constant))}=1"
    return DataError(f"{what} that would teach anything: {alike}", where=str(src), fix=fix)


def _base(src: Path) -> Path:
    src = src.resolve()
    return src.parent if src.is_file() else src


def _check_out(out: Path, base: Path, *, generated: bool, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise DataError("is a file", where=str(out), fix="name a new folder")
    if not out.exists() or not any(out.iterdir()):
        return
    if not _is_ours(out):
        raise DataError(
            "isn't empty and doesn't come from an earlier compilation",
            where=str(out),
            fix="name a new folder",
        )
    if not force:
        raise DataError(
            "holds an earlier compilation",
            where=str(out),
            fix="name a new folder, or replace it with --force",
        )
    if not generated and base.is_relative_to(out):
        raise DataError("holds the labels that are to be read", where=str(out), fix="name another folder")


def _is_ours(out: Path) -> bool:
    try:
        return parse_json(read_text(out / "summary.json")).get("format") == _FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def _crop_folder(out: Path, base: Path, crop: int, overlap: int) -> Path:
    """Return the folder in which crops wait until all is complete; an interrupted run finds it again.

    Those of interrupted runs with other settings are removed.
    """
    key = hashlib.sha256(f"{base}\n{crop}\n{overlap}".encode(errors="surrogatepass")).hexdigest()[:12]
    folder = out.parent / f".{out.name}.crops-{key}"
    for other in out.parent.glob(f".{glob.escape(out.name)}.crops-*"):
        if other != folder and leftovers.is_abandoned(other):
            leftovers.remove(other)
    folder.mkdir(parents=True, exist_ok=True)
    leftovers.sweep(folder)
    leftovers.claim(folder)
    return folder


@contextlib.contextmanager
def _removed_on_refusal(folder: Path | None) -> Iterator[None]:
    """Remove the waiting crops when the set is refused; those of an interrupted run stay for the next one."""
    try:
        yield
    except (DataError, ConfigError):
        if folder is not None:
            leftovers.remove(folder)
        raise


def _remove_strangers(folder: Path, labelled: LabelledSet) -> None:
    """Remove what an interrupted run left of images that are no longer in the set."""
    names = {
        Path(path) for item in labelled.items for path in (item.image, item.second_image) if path is not None
    }
    mine = leftovers.claim(folder)
    for path in folder.rglob("*"):
        if path.is_file() and path not in names and path != mine:
            path.unlink()


def _training_part(labelled: LabelledSet) -> LabelledSet:
    # Filtering a generated set would render all of it; its first part is the training split.
    if isinstance(labelled.items, Chained):
        return replace(labelled, items=labelled.items.parts[0])
    return labelled.split("train")


def _relative_item(item: LabelledImage, root: Path) -> LabelledImage:
    second = item.second_image
    return replace(
        item,
        image=vitp_labels.relative(item.image, root),
        second_image=vitp_labels.relative(second, root) if second is not None else None,
    )


def _write_lines(
    labelled: LabelledSet, roots: Roots, seed: int, config: SynthesisConfig
) -> tuple[dict[str, SplitCounts], dict[str, ConstantTask]]:
    """Write the records and the labels of all images in one pass; return counts, and tasks that were not asked."""
    _check_spoken(labelled)
    training = _training_part(labelled)
    classes = SetClasses.from_set(training)
    constant = constant_tasks(training.items, classes, config)
    config = without_tasks(config, list(constant))
    counts = {split: SplitCounts() for split in SPLITS}
    records = {split: roots.out / f"{split}.jsonl" for split in SPLITS}
    with LabelWriter(roots) as writer, _Lines(records) as lines:
        for item in labelled.items:
            made = synthesize_with_tasks(
                _relative_item(item, roots.images), classes, seed=seed, config=config
            )
            if made is not None:
                lines.add(item.split, made[0])
            counts[item.split].count(item, None if made is None else made[1])
            writer.add(item)
    return counts, constant


def _check_spoken(labelled: LabelledSet) -> None:
    """Refuse classes that no question can tell apart, as their names are spoken alike."""
    for names in (labelled.object_classes, labelled.scene_classes, labelled.semantic_classes):
        first: dict[str, str] = {}
        for name in dict.fromkeys(names):
            other = first.setdefault(cell_name(name).casefold(), name)
            if other != name:
                raise DataError(
                    f'the classes "{other}" and "{name}" are both spoken "{spoken(name)}"',
                    where=labelled.name,
                    fix="rename one of them, or give both one name",
                )


class _Lines:
    """The record files of the splits, open for writing."""

    def __init__(self, paths: dict[str, Path]) -> None:
        self._open = {split: path.open("w", encoding="utf-8", newline="\n") for split, path in paths.items()}

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._open.values():
            file.close()

    def add(self, split: str, record: InstructionRecord) -> None:
        self._open[split].write(to_line(record) + "\n")


def _write_mixture(out: Path, name: str, root: str, length: int, max_tiles: int | None) -> None:
    entry: dict[str, Any] = {
        "root": root,
        "annotation": "train.jsonl",
        "data_augment": False,
        "repeat_time": 1,
        "length": length,
    }
    if max_tiles is not None:
        entry["max_dynamic_patch"] = max_tiles
    files.write_json(out / "mixture.json", {name: entry})


def _content_hash(out: Path) -> str:
    digest = hashlib.sha256()
    for folder in (out, out / "labels"):
        for split in SPLITS:
            digest.update(files.sha256(folder / f"{split}.jsonl").encode())
    return digest.hexdigest()


def _write_summary(out: Path, summary: CompileSummary, options: dict[str, Any]) -> None:
    def table(counts: Counter[str]) -> dict[str, int]:
        return dict(sorted(counts.items()))

    files.write_json(
        out / "summary.json",
        {
            "format": _FORMAT,
            "vitp": __version__,
            "name": summary.name,
            "label_format": summary.fmt,
            "licence": summary.licence,
            "seed": summary.seed,
            "content_hash": summary.content_hash,
            "unasked": summary.unasked,
            "constant_tasks": {name: asdict(task) for name, task in summary.constant.items()},
            "splits": {
                split: {
                    "images": counts.images,
                    "records": counts.records,
                    "turns": counts.turns,
                    "tasks": table(counts.tasks),
                    "objects": table(counts.objects),
                    "scenes": table(counts.scenes),
                }
                for split, counts in summary.splits.items()
            },
            "options": {name: str(v) if isinstance(v, Path) else v for name, v in options.items()},
            "understood": list(summary.understood),
            "findings": list(summary.findings),
        },
    )
