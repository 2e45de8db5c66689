"""Location tokens: a coordinate is one token instead of a digit at a time (Chen et al. 2022, Pix2Seq).

Texts write coordinates as integers on 0..1000 (`<box>[[120, 45, 300, 410]]</box>`), which costs a small tokenizer
eighteen tokens a box. A vocabulary that holds `<loc_0>` … `<loc_N-1>` writes four:
`<box><loc_12><loc_4><loc_30><loc_41></box>` with N = 101. Texts outside stay what they are: what is translated are the
contents of `<box>` and `<quad>`, and points `(x, y)` in questions. With N = 1001 nothing is lost, with fewer each
coordinate is the nearest of N.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vitp.records.instructions import COORDINATE_RANGE

_NAME = re.compile(r"<loc_(\d+)>")
_LISTS = re.compile(r"<(box|quad)>(\[[\[\]\d,\s]*\])</\1>")
_TOKENS = re.compile(r"<(box|quad)>((?:<loc_\d+>)+)</\1>")
_POINT = re.compile(r"\((\d{1,4}), (\d{1,4})\)")
_PLACED = re.compile(r"\(<loc_(\d+)><loc_(\d+)>\)")
_LENGTH = {"box": 4, "quad": 8}


def location_names(count: int) -> list[str]:
    """Return the names of `count` location tokens."""
    return [f"<loc_{number}>" for number in range(count)]


def count_locations(vocabulary: Mapping[str, int]) -> int:
    """Return how many location tokens a vocabulary holds, from the first one on."""
    count = 0
    while f"<loc_{count}>" in vocabulary:
        count += 1
    return count


def with_locations(text: str, count: int, *, points: bool = False) -> str:
    """Return a text with its coordinates as location tokens.

    Args:
        text: A question or an answer.
        count: Location tokens, at least 2; 0: the text as it is.
        points: Translate points, too.
    """
    if not count:
        return text

    def token(number: str) -> str:
        return f"<loc_{round(min(int(number), COORDINATE_RANGE) * (count - 1) / COORDINATE_RANGE)}>"

    def listed(match: re.Match[str]) -> str:
        numbers = re.findall(r"\d+", match[2])
        if not numbers or len(numbers) % _LENGTH[match[1]]:
            return match[0]
        # One list of its own stands for a place in a question, a list of lists for those that an answer names.
        return f"<{match[1]}>{''.join(map(token, numbers))}</{match[1]}>"

    text = _LISTS.sub(listed, text)
    return _POINT.sub(lambda match: f"({token(match[1])}{token(match[2])})", text) if points else text


def without_locations(text: str, count: int) -> str:
    """Return a text with its location tokens as coordinates, in the form of answers."""
    if not count:
        return text

    def number(index: str) -> str:
        return str(round(int(index) * COORDINATE_RANGE / (count - 1)))

    def listed(match: re.Match[str]) -> str:
        numbers = [number(index) for index in _NAME.findall(match[2])]
        size = _LENGTH[match[1]]
        rows = [f"[{', '.join(numbers[i : i + size])}]" for i in range(0, len(numbers), size)]
        return f"<{match[1]}>[{', '.join(rows)}]</{match[1]}>"

    text = _PLACED.sub(lambda match: f"({number(match[1])}, {number(match[2])})", _TOKENS.sub(listed, text))
    return _NAME.sub(lambda match: number(match[1]), text)
