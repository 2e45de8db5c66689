"""Questions with the expected and the given answer, drawn over their image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar

from vitp.core.errors import DataError
from vitp.evaluation.answers import Answered
from vitp.records.channels import Channels
from vitp.records.instructions import IMAGE_MARK
from vitp.report.pictures import data_address, open_picture
from vitp.report.places import Colours, asked_outlines, grid_answer, outlines_in, text_parts


@dataclass(frozen=True)
class AnsweredCards:
    """Answered questions as cards, to be filtered by task.

    Attributes:
        answered: The questions.
        note: Small text below.
        base: Relative paths of images that don't exist as they are, are looked for here.
        channels: What the model sees of the images' bands, of which the composite is shown; None: they are pictures.
    """

    kind: ClassVar[str] = "answered"
    answered: Sequence[Answered]
    note: str = ""
    base: Path | None = None
    channels: Channels | None = None

    @property
    def tasks(self) -> list[str]:
        """The tasks, in order of appearance."""
        return list(dict.fromkeys(one.task for one in self.answered if one.task))

    @cached_property
    def pictures(self) -> dict[str, dict[str, Any]]:
        """Each picture once, by its path: `name`, `address`, `size`, or why it can't be shown as `missing`."""
        found: dict[str, dict[str, Any]] = {}
        for path in dict.fromkeys(one.image for one in self.answered):
            try:
                image = open_picture(path, base=self.base, channels=self.channels)
            except DataError as error:
                found[path] = {"missing": str(error)}
                continue
            address = data_address(image)
            name = "p" + hashlib.sha256(address.encode()).hexdigest()[:16]
            found[path] = {"missing": "", "name": name, "address": address, "size": image.size}
        return found

    @cached_property
    def cards(self) -> list[dict[str, Any]]:
        """What each card shows."""
        colours = Colours()
        return [self._card(one, colours) for one in self.answered]

    def _card(self, one: Answered, colours: Colours) -> dict[str, Any]:
        picture = self.pictures[one.image]
        size = picture.get("size", (1, 1))
        truth, given = grid_answer(one.expected), grid_answer(one.answer)
        views: list[dict[str, Any]] = [{"caption": "", "cells": [], "outlines": [], "tags": []}]
        if truth:
            views = [
                {"caption": caption, "cells": _cells(rows, truth, colours), "outlines": [], "tags": []}
                for caption, rows in (("expected", truth), ("answered", given))
                if rows
            ]
        else:
            expected, answer = outlines_in(one.expected, size), outlines_in(one.answer, size)
            # Dashes come last: where both agree, the dashed line shows on top of the solid one.
            styles = (("asked", asked_outlines(one.question)), ("answer", answer), ("expected", expected))
            views[0]["outlines"] = [(style, outline) for style, outlines in styles for outline in outlines]
            tagged = answer or expected
            # Where all have one label, the text below says it.
            if len({outline.label for outline in tagged}) > 1:
                style = "answer" if answer else "expected"
                views[0]["tags"] = [
                    (style, o.label, min(o.corners[::2]), min(o.corners[1::2])) for o in tagged[:12]
                ]
        names = dict.fromkeys(name for rows in (truth, given) if truth for row in rows for name in row)
        return {
            "task": one.task,
            "question": text_parts(one.question.replace(IMAGE_MARK, "").strip()),
            "expected": f"{sum(map(len, truth))} cells" if truth else text_parts(one.expected),
            "answer": _cells_right(truth, given) if truth and given else text_parts(one.answer),
            "badge": score_badge(one.score),
            "picture": picture,
            "views": views,
            "legend": [(name, colours(name)) for name in names],
        }


def _cells(
    rows: Sequence[Sequence[str]], truth: Sequence[Sequence[str]], colours: Colours
) -> list[dict[str, Any]]:
    """Return the cells of a grid as rectangles on 0..1000, and which of them are not what the truth says."""
    return [
        {
            "name": name,
            "colour": colours(name),
            "box": (1000 * c / len(row), 1000 * r / len(rows), 1000 / len(row), 1000 / len(rows)),
            "wrong": r < len(truth) and c < len(truth[r]) and truth[r][c] != name,
        }
        for r, row in enumerate(rows)
        for c, name in enumerate(row)
    ]


def _cells_right(truth: Sequence[Sequence[str]], given: Sequence[Sequence[str]]) -> str:
    right = sum(a == b for row, other in zip_longest(truth, given, fillvalue=()) for a, b in zip(row, other))  # noqa: B905
    return f"{right} of {sum(map(len, truth))} cells right"


def score_badge(score: float | None) -> tuple[str, str] | None:
    """Return style and text of the badge of a score in 0..1, or None without a score."""
    if score is None:
        return None
    if score >= 0.999:
        return "good", "✓ right"
    if score <= 0.001:
        return "bad", "✗ wrong"
    return "part", f"{score * 100:.0f} %"
