"""Writing a pretraining set as instruction records.

OUT/train.jsonl     the records; images relative to OUT
OUT/mixture.json    a mixture of this one set, at rate 1
OUT/images/         images that only existed inside of a table
OUT/converted.json  what was converted, from where, and what was left out
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vitp.core import files
from vitp.core.version import __version__
from vitp.data.corpora.base import Download
from vitp.data.corpora.catalogue import corpus
from vitp.data.published import check_out, read_record
from vitp.records.instructions import to_line

_FORMAT = "vitp-converted-1"
_RECORD = "converted.json"
_MOST_FINDINGS = 10_000


@dataclass(frozen=True)
class Converted:
    """The result of a conversion.

    Attributes:
        name: Name of the set.
        out: The folder.
        records: Number of records.
        questions: Number of questions.
        images: Number of different images.
        findings: Lines about what was left out (the first 10,000).
        again: The folder was there already.
    """

    name: str
    out: Path
    records: int
    questions: int
    images: int
    findings: tuple[str, ...]
    again: bool = False


def convert_corpus(
    name: str,
    root: str | Path,
    out: str | Path,
    *,
    force: bool = False,
    progress: Callable[[], None] | None = None,
) -> Converted:
    """Convert a published pretraining set.

    Args:
        name: A key of `CORPORA`.
        root: The download; it is only read.
        out: New or empty folder, or one that was converted before.
        force: Convert again over an earlier conversion.
        progress: Called after each record.

    Raises:
        DataError: Something is missing or can't be understood.
        ConfigError: There is no such set, or `out` holds something else.
    """
    found, root, out = corpus(name), Path(root).resolve(), Path(out).resolve()
    found.check_folder(root)
    before = read_record(out / _RECORD, _FORMAT)
    if before is not None and not force and (before["set"], before["download"]) == (name, str(root)):
        records, questions, images = (before[key] for key in ("records", "questions", "images"))
        return Converted(name, out, records, questions, images, tuple(before["findings"]), again=True)
    check_out(out, root, ours=before is not None, force=force)
    key = hashlib.sha256(f"{name}\n{root}".encode(errors="surrogatepass")).hexdigest()[:12]
    work = out.parent / f".{out.name}.images-{key}"
    source = Download(found, root, work)
    with files.atomic_dir(out) as temporary:
        result = _write(source, temporary, out, progress)
        if (work / "images").is_dir():
            (work / "images").rename(temporary / "images")
            work.rmdir()
    return result


def _write(source: Download, folder: Path, out: Path, progress: Callable[[], None] | None) -> Converted:
    records = questions = 0
    images: set[str] = set()
    with (folder / "train.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for record in source.corpus.convert(source):
            names = tuple(_relative(Path(image), source.work, out) for image in record.images)
            file.write(to_line(replace(record, images=names)) + "\n")
            records, questions = records + 1, questions + len(record.turns)
            images.update(names)
            if progress is not None:
                progress()
    if not records:
        told = source.findings
        source.refuse(
            "holds no usable record" + (f"; the first of {len(told)} findings: {told[0]}" if told else "")
        )
    entry = {"root": ".", "annotation": "train.jsonl", "data_augment": False, "repeat_time": 1}
    files.write_json(folder / "mixture.json", {source.corpus.name: entry | {"length": records}})
    result = Converted(
        source.corpus.name, out, records, questions, len(images), tuple(source.findings[:_MOST_FINDINGS])
    )
    files.write_json(
        folder / _RECORD,
        {
            "format": _FORMAT,
            "vitp": __version__,
            "set": result.name,
            "download": str(source.root),
            "records": records,
            "questions": questions,
            "images": len(images),
            "left_out": len(source.findings),
            "findings": list(result.findings),
        },
    )
    return result


def _relative(image: Path, work: Path, out: Path) -> str:
    if image.is_relative_to(work):
        return image.relative_to(work).as_posix()
    # Not below `out` as a rule; so a data disk can still be mounted elsewhere as a whole.
    return Path(os.path.relpath(image, out)).as_posix()
