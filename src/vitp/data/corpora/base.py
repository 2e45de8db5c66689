"""`Corpus`: a published pretraining set and its conversion; and what the conversions share."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from vitp.core.errors import DataError
from vitp.data.formats.tables import refuse_doubles, under_head, with_doubles
from vitp.data.formats.walk import parse_label_json, read_label_text
from vitp.data.published import PublishedSet, any_of
from vitp.io.images import IMAGE_SUFFIXES
from vitp.records.instructions import COORDINATE_RANGE, IMAGE_MARK, InstructionRecord, Turn


@dataclass
class Download:
    """A download that is being converted.

    Attributes:
        corpus: The published set that it is.
        root: The download; the records' images are absolute paths below it.
        work: Folder for images that only exist inside of a table.
        findings: Lines about what was left out.
    """

    corpus: Corpus
    root: Path
    work: Path
    findings: list[str] = field(default_factory=list)

    def path(self, *places: str) -> Path:
        """Return the first of the places below the root that exists.

        Raises:
            DataError: None does; the message names the first, and who publishes the set.
        """
        for place in places:
            if (self.root / place).exists():
                return self.root / place
        return self.refuse(f"{any_of(places)} is missing")

    def images(self, *places: str, stems: bool = False) -> dict[str, Path]:
        """Return name → path of every image below the first of the places that exists.

        Archives unpack into one more folder or don't, so images are found by their names alone.

        Args:
            *places: Where the images are, by all names.
            stems: The names are without suffix.
        """
        paths = sorted(self.path(*places).rglob("*"))
        return {p.stem if stems else p.name: p for p in paths if p.suffix.lower() in IMAGE_SUFFIXES}

    def refuse(self, what: str) -> NoReturn:
        """Raise that the download isn't complete.

        Raises:
            DataError: Always.
        """
        self.corpus.refuse(self.root, what)

    def leave_out(self, path: Path, row: int | str, what: str) -> None:
        """Add a finding about a row that is left out."""
        name = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)
        self.findings.append(f"{name}:{row}: {what}; left out")

    def image(self, path: Path, file: Path, row: int | str) -> Path | None:
        """Return an image that a row names, or None with a finding when it isn't there."""
        if path.is_file():
            return path
        self.leave_out(file, row, f"{path.name} is missing")
        return None

    def record(
        self, name: str, images: Sequence[Path], turns: Sequence[Turn], **more: Any
    ) -> InstructionRecord:
        """Return a record; the image marks are put in front of its first question."""
        marks = "".join(f"{IMAGE_MARK}\n" for _ in images)
        first = Turn(marks + turns[0].question.replace(IMAGE_MARK, "").strip(), turns[0].answer)
        paths = tuple(str(image) for image in images)
        return InstructionRecord(name, paths, (first, *turns[1:]), source=self.corpus.name, **more)

    def captioned(
        self, path: Path, images: Mapping[str, Path], rows: Iterable[tuple[int, str, str]]
    ) -> Iterator[InstructionRecord]:
        """Yield a record a row (line, image name, caption) of a file that has both."""
        for line, name, caption in rows:
            if name not in images or not caption:
                self.leave_out(path, line, f"{name} is missing or has no caption")
            else:
                turn = Turn(DESCRIBE, caption)
                yield self.record(f"{Path(name).stem}:{line}", [images[name]], [turn])


DESCRIBE = "Describe the image."
CorpusConversion = Callable[[Download], Iterator[InstructionRecord]]


@dataclass(frozen=True)
class Corpus(PublishedSet):
    """A pretraining set.

    Attributes:
        layout: What the conversion reads, relative to the download, for the documentation.
        convert: Yields the records of the training part.
        notes: Quirks, and what is left out.
        domain: "remote sensing", "medical" or "general".
    """

    layout: str
    convert: CorpusConversion
    notes: str = ""
    domain: str = ""


def one_line(text: object) -> str:
    """Return a text without outer blanks, all others single."""
    return " ".join(str(text).split())


def json_rows(path: Path, key: str | None = None) -> list[dict[str, Any]]:
    """Return the objects of a JSON list, or of the list under a key.

    Raises:
        DataError: The file isn't JSON, or holds something else.
    """
    again = "download the file again"
    content = parse_label_json(read_label_text(path), path, again)
    rows = content if key is None else content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, list):
        what = "is no list of rows" if key is None else f'has no list "{key}"'
        raise DataError(what, where=str(path), fix=again)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError("is no object", where=f"{path}:{key or ''}[{number}]", fix=again)
    return rows


def table_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and columns of a table with a head, `.tsv` by tabs and others by commas.

    Cells of columns that share a name but differ are `TwoCells`, which `column` refuses.

    Raises:
        DataError: It can't be read, or a row has more cells than the head.
    """
    # Tables of images hold megabytes in a cell.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            reader = csv.reader(file, delimiter=delimiter)
            filled = (cells for cells in reader if cells)
            keys = [key.strip() for key in next(filled, [])]
            for cells in filled:
                where = f"{path}:{reader.line_num}"
                yield reader.line_num, with_doubles(keys, under_head(keys, cells, where, delimiter), where)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"can't be read ({error})", where=str(path), fix="download the file again") from error


def column(row: Mapping[str, Any], path: Path, *names: str) -> str:
    """Return the first of the columns (or, of a JSON row, keys) that the table has, as text.

    Raises:
        DataError: It has none of them, or two of the name that differ.
    """
    for name in names:
        if name in row:
            refuse_doubles(row, (name,))
            return str(row[name]).strip()
    raise DataError(
        f"has no column {' or '.join(names)} (it has {', '.join(row)})",
        where=str(path),
        fix="check that this is the set's own table",
    )


def box_text(label: str, box: Sequence[float], size: tuple[float, float]) -> str:
    """Return InternVL's form of a named box, on 0..1000 of the image.

    Args:
        label: What is in the box.
        box: x1, y1, x2, y2 in the units of `size`.
        size: Width and height.
    """
    scaled = [round(value / size[axis % 2] * COORDINATE_RANGE) for axis, value in enumerate(box)]
    inside = [str(min(max(value, 0), COORDINATE_RANGE)) for value in scaled]
    return f"<ref>{label}</ref><box>[[{', '.join(inside)}]]</box>"


def choice_turn(question: str, options: Sequence[tuple[str, str]], letter: str) -> Turn:
    """Return a question with lettered options and the letter of the right one, with its text."""
    listed = "\n".join(f"{name}. {value}" for name, value in options)
    answer = next(value for name, value in options if name == letter)
    return Turn(f"{question}\n{listed}\nAnswer with the option's letter and its text.", f"{letter}. {answer}")
