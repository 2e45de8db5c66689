"""`Corpus`: a published pretraining set and its conversion; and what the conversions share."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vitp.core.errors import DataError
from vitp.core.reading import parse_json
from vitp.data.formats.walk import read_label_text
from vitp.io.images import IMAGE_SUFFIXES
from vitp.records.instructions import COORDINATE_RANGE, IMAGE_MARK, InstructionRecord, Turn


@dataclass
class Source:
    """A download that is being converted.

    Attributes:
        corpus: Which set.
        root: The download; the records' images are absolute paths below it.
        work: Folder for images that only exist inside of a table; None: the set has none.
        findings: Lines about what was left out.
    """

    corpus: Corpus
    root: Path
    work: Path
    findings: list[str]

    def path(self, *places: str) -> Path:
        """Return the first of the places below the root that exists.

        Raises:
            DataError: None does; the message names the first, and who publishes the set.
        """
        for place in places:
            if (self.root / place).exists():
                return self.root / place
        others = f" (or {', '.join(places[1:])})" if len(places) > 1 else ""
        return self.refuse(f"{places[0]}{others} is missing")

    def refuse(self, what: str) -> NoReturn:
        """Raise that the download isn't complete.

        Raises:
            DataError: Always.
        """
        raise DataError(
            f"{self.corpus.title}: {what}",
            where=str(self.root),
            fix=f"the set is published by {self.corpus.published_by}; docs/datasets.md shows its layout",
        )

    def note(self, path: Path, row: int | str, what: str) -> None:
        """Add a finding about a row."""
        name = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)
        self.findings.append(f"{name}:{row}: {what}")

    def image(self, path: Path, file: Path, row: int | str) -> Path | None:
        """Return an image that a row names, or None with a finding when it isn't there."""
        if path.is_file():
            return path
        self.note(file, row, f"{path.name} is missing; left out")
        return None

    def record(
        self, name: str, images: Sequence[Path], turns: Sequence[Turn], **more: Any
    ) -> InstructionRecord:
        """Return a record; the image marks are put in front of its first question."""
        marks = "".join(f"{IMAGE_MARK}\n" for _ in images)
        first = Turn(marks + turns[0].question.replace(IMAGE_MARK, "").strip(), turns[0].answer)
        return InstructionRecord(
            name, tuple(str(image) for image in images), (first, *turns[1:]), source=self.corpus.name, **more
        )


Convert = Callable[[Source], Iterator[InstructionRecord]]


@dataclass(frozen=True)
class Corpus:
    """A pretraining set.

    Attributes:
        name: What the command line and the mixtures call it.
        title: As its authors write it.
        domain: "remote sensing", "medical" or "general".
        published_by: Where to get it, in words.
        layout: What the conversion reads, relative to the download, for the documentation.
        convert: Yields the records of the training part.
        notes: Quirks, and what is left out.
    """

    name: str
    title: str
    domain: str
    published_by: str
    layout: str
    convert: Convert
    notes: str = ""


def read_json(path: Path) -> Any:
    """Return a file's JSON.

    Raises:
        DataError: It can't be read; the message names the row.
    """
    try:
        return parse_json(read_label_text(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"is not JSON ({error.msg})", where=f"{path}:{error.lineno}", fix="download the file again"
        ) from error


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and columns of a table with a head, `.tsv` by tabs and others by commas.

    Raises:
        DataError: It can't be read.
    """
    # Tables of images hold megabytes in a cell.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            for row in reader:
                yield reader.line_num, {(key or "").strip(): value or "" for key, value in row.items()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"can't be read ({error})", where=str(path), fix="download the file again") from error


def column(row: dict[str, str], path: Path, *names: str) -> str:
    """Return the first of the columns that the table has.

    Raises:
        DataError: It has none of them.
    """
    for name in names:
        if name in row:
            return row[name].strip()
    raise DataError(
        f"has no column {' or '.join(names)} (it has {', '.join(row)})",
        where=str(path),
        fix="check that this is the set's own table",
    )


def images_by_name(folder: Path) -> dict[str, Path]:
    """Return file name → path of every image below a folder; archives unpack into one more folder or don't."""
    return {path.name: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES}


def box_text(label: str, box: Sequence[float], size: tuple[float, float]) -> str:
    """Return InternVL's form of a named box, on 0..1000 of the image.

    Args:
        label: What is in the box.
        box: x1, y1, x2, y2 in the units of `size`.
        size: Width and height.
    """
    scaled = [
        min(max(round(value / size[axis % 2] * COORDINATE_RANGE), 0), COORDINATE_RANGE)
        for axis, value in enumerate(box)
    ]
    return f"<ref>{label}</ref><box>[[{', '.join(map(str, scaled))}]]</box>"


def choice_turn(question: str, options: Sequence[tuple[str, str]], letter: str) -> Turn:
    """Return a question with lettered options and the letter of the right one, with its text."""
    listed = "\n".join(f"{name}. {value}" for name, value in options)
    answer = next(value for name, value in options if name == letter)
    return Turn(f"{question}\n{listed}\nAnswer with the option's letter and its text.", f"{letter}. {answer}")
