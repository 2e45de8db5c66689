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
from typing import Any

from vitp.core import files
from vitp.core.errors import ConfigError, DataError
from vitp.core.reading import parse_json, read_text
from vitp.core.version import __version__
from vitp.data.corpora.base import Source
from vitp.data.corpora.catalogue import corpus
from vitp.records.instructions import to_line

FORMAT = "vitp-converted-1"
_RECORD = "converted.json"
_MOST_FINDINGS = 10_000


@dataclass(frozen=True)
class Converted:
    """What was converted.

    Attributes:
        name: Of the set.
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


def convert(
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
    if not root.is_dir():
        raise DataError(
            "is not a folder",
            where=str(root),
            fix=f"download {found.title}: it is published by {found.published_by}",
        )
    before = _record(out)
    if before is not None and not force and (before["set"], before["download"]) == (name, str(root)):
        records, questions, images = (before[key] for key in ("records", "questions", "images"))
        return Converted(name, out, records, questions, images, tuple(before["findings"]), again=True)
    _check_out(out, root, before is not None and force)
    key = hashlib.sha256(f"{name}\n{root}".encode(errors="surrogatepass")).hexdigest()[:12]
    work = out.parent / f".{out.name}.images-{key}"
    source = Source(found, root, work, [])
    with files.atomic_dir(out) as temporary:
        result = _write(source, temporary, out, progress)
        if (work / "images").is_dir():
            (work / "images").rename(temporary / "images")
            work.rmdir()
    return result


def _write(source: Source, folder: Path, out: Path, progress: Callable[[], None] | None) -> Converted:
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
        first = (
            f"; the first of {len(source.findings)} findings: {source.findings[0]}" if source.findings else ""
        )
        source.refuse(f"holds no usable record{first}")
    entry = {
        "root": ".",
        "annotation": "train.jsonl",
        "data_augment": False,
        "repeat_time": 1,
        "length": records,
    }
    files.write_json(folder / "mixture.json", {source.corpus.name: entry})
    result = Converted(
        source.corpus.name, out, records, questions, len(images), tuple(source.findings[:_MOST_FINDINGS])
    )
    files.write_json(
        folder / _RECORD,
        {
            "format": FORMAT,
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


def _record(out: Path) -> dict[str, Any] | None:
    try:
        record = parse_json(read_text(out / _RECORD))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT else None


def _check_out(out: Path, root: Path, replaceable: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError("is a file", where=str(out), fix="name a new folder with --out")
    if root.is_relative_to(out):
        raise ConfigError("holds the download itself", where=str(out), fix="name another folder with --out")
    if out.is_dir() and any(out.iterdir()) and not replaceable:
        raise ConfigError(
            "isn't empty", where=str(out), fix="name a new folder, or replace a conversion with --force"
        )
