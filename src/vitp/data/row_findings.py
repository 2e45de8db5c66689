"""What is odd about rows that can be used: names of control tokens in texts, no image, a system text that is dropped."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitp.core.errors import DataError
from vitp.data.mixture import Mixture
from vitp.data.readers.records import RowRecords
from vitp.records.instructions import IMAGE_MARK, InstructionRecord

CONTROL_TOKENS = (
    *("<|endoftext|>", "<IMG_CONTEXT>", "<|im_start|>", "<assistant>", "<|im_end|>"),
    *("</img>", "<user>", "<end>", "<img>", "<pad>"),
)
"""Control tokens of all chat templates, for checks that know no tokenizer."""

LOOKED_AT = 5000
"""Rows of a set that are looked at before a run: all of a smaller one, an even sample of a larger one."""

_SYSTEM_KEYS = ("system", "system_prompt", "system_message")
_READABLE = frozenset("\t\n\r")


def text_findings(record: InstructionRecord, control: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (kind, what, fix) of a record's texts: names of control tokens, and unreadable control characters."""
    tokens: dict[str, list[str]] = {}
    signs: dict[str, list[str]] = {}
    for number, turn in enumerate(record.turns, 1):
        for place, text in ((f"question {number}", turn.question), (f"answer {number}", turn.answer)):
            text = text.replace(IMAGE_MARK, "")
            if found := [name for name in control if name in text]:
                tokens[place] = found
            if not text.isprintable() and (found := control_characters(text)):
                signs[place] = found
    if tokens:
        place, found = next(iter(tokens.items()))
        what = f"{place} holds the text of a control token, {', '.join(found)}{_more(tokens)}"
        yield "control token", what, "nothing, if it is meant as plain text: it is read as such"
    if signs:
        place, found = next(iter(signs.items()))
        what = f"{place} holds control characters, {', '.join(found)}{_more(signs)}"
        yield "control character", what, "remove them: they are learned as they stand"


def _more(places: dict[str, list[str]]) -> str:
    return f" (and {len(places) - 1} more of the row's texts)" if len(places) > 1 else ""


def control_characters(text: str) -> list[str]:
    """Return the names (`U+001B`) of control characters other than tabs and line ends, in order of their code."""
    return [
        f"U+{ord(sign):04X}"
        for sign in sorted(set(text))
        if sign not in _READABLE and unicodedata.category(sign) == "Cc"
    ]


def drops_system(row: Any) -> bool:
    """Return whether a parsed row has a system text beside its conversation, which no run reads."""
    return isinstance(row, dict) and any(
        isinstance(row.get(key), str) and row[key].strip() for key in _SYSTEM_KEYS
    )


@dataclass
class Neglected:
    """Rows of a set of which a run doesn't learn all that they hold.

    Attributes:
        name: Of the set.
        rows: Rows in it.
        looked_at: Usable rows that were looked at.
        without_image: Of them, those that name no image.
        with_system: Of them, those whose system text is dropped.
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
        if self.without_image:
            what = f"{self.without_image:,} of {of} {_have(self.without_image)} no image: the ViT learns nothing of them"
            found.append(
                ("no image", what, "leave them out, unless the language model is to learn from them")
            )
        if self.with_system:
            what = f"{self.with_system:,} of {of} {_have(self.with_system)} a system text, which is dropped"
            fix = "the run's chat template sets one for all rows; write what matters into the questions"
            found.append(("system text", what, fix))
        return found


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


NO_IMAGE = "no row has an image: there is nothing for the ViT to learn"
NO_IMAGE_FIX = 'name the images of the rows as "image" or "images"'


def look_over(records: RowRecords, most: int = LOOKED_AT) -> Neglected:
    """Look at the rows of a set, or at an even sample of `most` of them; rows that can't be used are passed over."""
    count = len(records)
    found = Neglected(records.name, count)
    _look_at(records, np.unique(np.linspace(0, count - 1, min(most, count)).astype(int)).tolist(), found)
    if found.has_no_image and found.looked_at < count:  # only all rows tell that there is no image at all
        found = Neglected(records.name, count)
        _look_at(records, range(count), found)
    return found


def _look_at(records: RowRecords, rows: Iterable[int], found: Neglected) -> None:
    for row in rows:
        try:
            record = records[row]
        except DataError:
            continue
        found.add(record, records.row(row))


def mixture_warnings(mixture: Mixture) -> list[str]:
    """Return a line for each thing that a run would not learn from the rows of its sets.

    Raises:
        DataError: No row of the mixture has an image.
    """
    found = [look_over(e.records) for e in mixture.entries if isinstance(e.records, RowRecords)]
    if found and len(found) == len(mixture.entries) and all(one.has_no_image for one in found):
        raise DataError(NO_IMAGE, where=", ".join(one.name for one in found), fix=NO_IMAGE_FIX)
    return [f"{one.name}: {what}; {fix}" for one in found for _, what, fix in one.lines()]
