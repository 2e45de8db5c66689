"""Coordinates in records, judged: those in the text of answers and those of regions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from vitp.data.check_report import Severity
from vitp.records.instructions import COORDINATE_RANGE, InstructionRecord

_TAGGED = re.compile(r"<(box|quad)>(.*?)(?:</\1>|$)", re.DOTALL)
_LIST = re.compile(r"\[([^\[\]]*)\]")
_NUMBER = re.compile(r"\s*-?\d+(?:\.\d+)?\s*")
_LENGTHS = {"box": 4, "quad": 8}


def coordinate_problems(record: InstructionRecord) -> list[tuple[Severity, str]]:
    """Return what is wrong with a record's coordinates: at most one error and one warning.

    An error: numbers outside 0..1000 (pixels, most likely), fractions, or a list of the wrong length. A warning:
    a box without area. Questions may explain the form with letters (`<box>[[x1, y1, x2, y2]]</box>`); answers
    may not.
    """
    found = [problem for place in _places(record) for problem in place]
    result: list[tuple[Severity, str]] = []
    for severity in ("error", "warning"):
        texts = [text for kind, text in found if kind == severity]
        if texts:
            more = f" (and {len(texts) - 1} more in the row)" if len(texts) > 1 else ""
            result.append((severity, texts[0] + more))
    return result


def _places(record: InstructionRecord) -> Iterator[Iterator[tuple[Severity, str]]]:
    for number, turn in enumerate(record.turns, 1):
        yield _in_text(turn.question, f"question {number}", explains=True)
        yield _in_text(turn.answer, f"answer {number}", explains=False)
    for number, region in enumerate(record.regions, 1):
        yield _judge("box", region.box, f"region {number}")
        if region.quad is not None:
            yield _judge("quad", region.quad, f"region {number}")


def _in_text(text: str, where: str, *, explains: bool) -> Iterator[tuple[Severity, str]]:
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
