"""Checks of single rows: coordinates, names of control tokens in texts, no image, a system text that is dropped."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.data.check_report import Severity
from vitp.data.mixture import Mixture
from vitp.data.readers.records import RowRecords
from vitp.records.instructions import COORDINATE_RANGE, IMAGE_MARK, InstructionRecord

CONTROL_TOKENS = (
    *("<|endoftext|>", "<IMG_CONTEXT>", "<|im_start|>", "<assistant>", "<|im_end|>"),
    *("</img>", "<user>", "<end>", "<img>", "<pad>"),
)
"""Control tokens of all chat templates, for checks that know no tokenizer."""

NO_IMAGE = "no row has an image: there is nothing for the ViT to learn"
NO_IMAGE_FIX = 'name the images of the rows as "image" or "images"'

_SYSTEM_KEYS = ("system", "system_prompt", "system_message")
_READABLE = frozenset("\t\n\r")
_TAGGED = re.compile(r"<(box|quad)>(.*?)(?:</\1>|$)", re.DOTALL)
_LIST = re.compile(r"\[([^\[\]]*)\]")
_NUMBER = re.compile(r"\s*-?\d+(?:\.\d+)?\s*")
_LENGTHS = {"box": 4, "quad": 8}


def text_findings(record: InstructionRecord, control: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (kind, what, fix) of a record's texts: names of control tokens, and unreadable control characters."""
    tokens: dict[str, list[str]] = {}
    signs: dict[str, list[str]] = {}
    for place, text in _texts(record):
        text = text.replace(IMAGE_MARK, "")
        if found := [name for name in control if name in text]:
            tokens[place] = found
        if not text.isprintable() and (found := control_characters(text)):
            signs[place] = found
    for kind, places, what, fix in (
        (
            "control token",
            tokens,
            "the text of a control token",
            "nothing, if it is meant as plain text: it is read as such",
        ),
        ("control character", signs, "control characters", "remove them: they are learned as they stand"),
    ):
        if places:
            place, found = next(iter(places.items()))
            more = f" (and {len(places) - 1} more of the row's texts)" if len(places) > 1 else ""
            yield kind, f"{place} holds {what}, {', '.join(found)}{more}", fix


def _texts(record: InstructionRecord) -> Iterator[tuple[str, str]]:
    """Yield name and content of each text of a record."""
    for number, turn in enumerate(record.turns, 1):
        yield f"question {number}", turn.question
        yield f"answer {number}", turn.answer


def control_characters(text: str) -> list[str]:
    """Return the names (`U+001B`) of control characters other than tabs and line ends, in order of their code."""
    return [
        f"U+{ord(sign):04X}"
        for sign in sorted(set(text))
        if sign not in _READABLE and unicodedata.category(sign) == "Cc"
    ]


def coordinate_problems(record: InstructionRecord) -> list[tuple[Severity, str]]:
    """Return what is wrong with a record's coordinates: at most one error and one warning.

    An error: numbers outside 0..1000 (pixels, most likely), fractions, or a list of the wrong length. A warning:
    a box without area. Questions may explain the form with letters (`<box>[[x1, y1, x2, y2]]</box>`); answers
    may not.
    """
    found: list[tuple[Severity, str]] = []
    for place, text in _texts(record):
        found += _in_text(text, place)
    for number, region in enumerate(record.regions, 1):
        found += _judge("box", region.box, f"region {number}")
        if region.quad is not None:
            found += _judge("quad", region.quad, f"region {number}")
    result: list[tuple[Severity, str]] = []
    for severity in ("error", "warning"):
        texts = [text for kind, text in found if kind == severity]
        if texts:
            more = f" (and {len(texts) - 1} more in the row)" if len(texts) > 1 else ""
            result.append((severity, texts[0] + more))
    return result


def _in_text(text: str, where: str) -> Iterator[tuple[Severity, str]]:
    explains = where.startswith("question")
    for kind, inner in _TAGGED.findall(text):
        lists = _LIST.findall(inner)
        if not lists and not explains:
            yield "error", f"the {kind} in {where} holds no list of numbers"
        for content in lists:
            parts = content.split(",")
            if not all(_NUMBER.fullmatch(part) for part in parts):
                if not explains:
                    yield "error", f"the {kind} [{content}] in {where} is not made of numbers"
                continue
            yield from _judge(kind, [float(part) for part in parts], where)


def _judge(kind: str, values: Sequence[float], where: str) -> Iterator[tuple[Severity, str]]:
    shown = f"the {kind} [{', '.join(f'{v:g}' for v in values)}] in {where}"
    if len(values) != _LENGTHS[kind]:
        yield "error", f"{shown} has {len(values)} numbers, not {_LENGTHS[kind]}"
    elif not all(0 <= v <= COORDINATE_RANGE for v in values):
        yield "error", f"{shown} leaves 0..{COORDINATE_RANGE}"
    elif not all(float(v).is_integer() for v in values):
        yield "error", f"{shown} has fractions"
    elif _area(values) <= 0:
        yield "warning", f"{shown} has no area"


def _area(values: Sequence[float]) -> float:
    if len(values) == 4:
        x1, y1, x2, y2 = values
        return max(0.0, x2 - x1) * max(0.0, y2 - y1)
    xs, ys = values[::2], values[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2


def drops_system(row: Any) -> bool:
    """Return whether a parsed row has a system text beside its conversation, which no run reads."""
    return isinstance(row, dict) and any(
        isinstance(row.get(key), str) and row[key].strip() for key in _SYSTEM_KEYS
    )


@dataclass
class Neglected:
    """Rows of a set of which a run doesn't learn all that they hold.

    Attributes:
        name: Name of the set.
        rows: Number of its rows.
        looked_at: Number of usable rows that were looked at.
        without_image: Number of looked-at rows that name no image.
        with_system: Number of looked-at rows whose system text is dropped.
    """

    name: str
    rows: int
    looked_at: int = 0
    without_image: int = 0
    with_system: int = 0

    def add(self, record: InstructionRecord, row: Any) -> None:
        """Count a usable row."""
        self.looked_at += 1
        self.without_image += not record.images
        self.with_system += drops_system(row)

    @property
    def has_no_image(self) -> bool:
        """Whether not one row has an image."""
        return self.looked_at > 0 and self.without_image == self.looked_at

    def lines(self) -> list[tuple[str, str, str]]:
        """Return (kind, what, fix) of what there is to say."""
        of = f"{self.looked_at:,} rows" + (" that were looked at" if self.looked_at < self.rows else "")
        found = []
        for kind, count, what, fix in (
            (
                "no image",
                self.without_image,
                "no image: the ViT learns nothing of them",
                "leave them out, unless the language model is to learn from them",
            ),
            (
                "system text",
                self.with_system,
                "a system text, which is dropped",
                "the run's chat template sets one for all rows; write what matters into the questions",
            ),
        ):
            if count:
                found.append((kind, f"{count:,} of {of} {'has' if count == 1 else 'have'} {what}", fix))
        return found


def look_over(records: RowRecords, most: int = 5000) -> Neglected:
    """Look at the rows of a set, or at an even sample of `most` of them; rows that can't be used are passed over."""
    count = len(records)
    some = np.unique(np.linspace(0, count - 1, min(most, count)).astype(int)).tolist()
    found = Neglected(records.name, count)
    for rows in (some, range(count)):
        found = Neglected(records.name, count)
        for row in rows:
            try:
                record = records[row]
            except DataError:
                continue
            found.add(record, records.row(row))
        if not found.has_no_image or found.looked_at == count:
            break  # only all rows tell that there is no image at all
    return found


def mixture_warnings(mixture: Mixture) -> list[str]:
    """Return a line for each thing that a run would not learn from the rows of its sets.

    Raises:
        DataError: No row of the mixture has an image.
    """
    found = [look_over(e.records) for e in mixture.entries if isinstance(e.records, RowRecords)]
    if found and len(found) == len(mixture.entries) and all(one.has_no_image for one in found):
        raise DataError(NO_IMAGE, where=", ".join(one.name for one in found), fix=NO_IMAGE_FIX)
    return [f"{one.name}: {what}; {fix}" for one in found for _, what, fix in one.lines()]
