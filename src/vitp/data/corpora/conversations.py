"""Sets that are published as conversations: LLaVA or InternVL rows, with their own ways to write boxes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.data.corpora.base import CorpusConversion, Download
from vitp.data.readers.rows import record_from_row
from vitp.data.sources import open_records
from vitp.records.instructions import COORDINATE_RANGE, IMAGE_MARK, InstructionRecord, Turn

_PERCENT_BOX = re.compile(r"\{((?:<-?\d+(?:\.\d+)?>\s*){4})(?:\|\s*<-?\d+(?:\.\d+)?>)?\}")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_TAG = re.compile(r"^\s*\[(?:caption|vqa|refer|grounding|identify)\]\s*", re.IGNORECASE)


def conversations(
    *tables: str, images: tuple[str, ...] = ("images", ""), boxes: bool = False, tags: bool = False
) -> CorpusConversion:
    """Return the conversion of conversation files.

    Args:
        *tables: The file, by all names that it is known under.
        images: Folders that the rows' images are relative to; a file is also found by its name alone.
        boxes: Boxes are `{<x1><y1><x2><y2>}` on 0..100, optionally with `|<angle>`; they are rewritten to
            `<box>[[…]]</box>` on 0..1000. The angle stays: `<box>[[…]]</box>|<angle>`.
        tags: Questions begin with the task in brackets, which is taken off.
    """

    def convert(source: Download) -> Iterator[InstructionRecord]:
        path, folder = source.path(*tables), source.path(*images)
        # Archives are unpacked in several ways; the list of all images is only made when one isn't in its place.
        by_name = lru_cache(partial(source.images, *images))

        def find(name: str) -> Path | None:
            direct = folder / name
            return direct if direct.is_file() else by_name().get(Path(name).name)

        records = open_records(path)
        for index in range(len(records)):
            place = records.place(index)
            row = _with_marks(records.row(index))
            try:
                record = record_from_row(row, place=place, root=None, source=source.corpus.name)
            except DataError as error:
                source.leave_out(path, place.line, error.what)
                continue
            found = {image: find(image) for image in record.images}
            if gone := [name for name, image in found.items() if image is None]:
                source.leave_out(path, place.line, f"{gone[0]} is missing")
                continue
            turns = tuple(_turn(turn, boxes, tags) for turn in record.turns)
            paths = tuple(str(found[image]) for image in record.images)
            yield replace(record, images=paths, turns=turns, source=source.corpus.name)

    return convert


def _with_marks(row: Any) -> Any:
    """Return a row with a mark for each image where it has several and no mark at all (PubMedVision)."""
    if not isinstance(row, dict):
        return row
    images, messages = row.get("image") or row.get("images"), row.get("conversations")
    if not isinstance(images, list) or len(images) < 2 or not isinstance(messages, list) or not messages:
        return row
    if any(IMAGE_MARK in str(m.get("value", "")) for m in messages if isinstance(m, dict)):
        return row
    first = dict(messages[0])
    first["value"] = f"{IMAGE_MARK}\n" * len(images) + str(first.get("value", ""))
    return {**row, "conversations": [first, *messages[1:]]}


def _turn(turn: Turn, boxes: bool, tags: bool) -> Turn:
    question, answer = turn.question, turn.answer
    if tags:
        marks = question[: question.rfind(IMAGE_MARK) + len(IMAGE_MARK)] if IMAGE_MARK in question else ""
        rest = _TAG.sub("", question[len(marks) :])
        question = f"{marks}\n{rest}" if marks else rest
    if boxes:
        question, answer = (percent_boxes(text) for text in (question, answer))
    return Turn(question, answer)


def percent_boxes(text: str) -> str:
    """Return a text with its `{<x1><y1><x2><y2>}` boxes on 0..100 as `<box>[[…]]</box>` on 0..1000.

    An angle stays behind the box as it was, in degrees: `<box>[[…]]</box>|<45>`. A text without boxes stays.
    """

    def rewrite(match: re.Match[str]) -> str:
        values = [float(value) for value in _NUMBER.findall(match.group(1))]
        scaled = [min(max(round(value * COORDINATE_RANGE / 100), 0), COORDINATE_RANGE) for value in values]
        x1, x2 = sorted(scaled[::2])
        y1, y2 = sorted(scaled[1::2])
        angle = match.group(0)[match.group(0).find("|") : -1] if "|" in match.group(0) else ""
        return f"<box>[[{x1}, {y1}, {x2}, {y2}]]</box>{angle}"

    return _PERCENT_BOX.sub(rewrite, text)
