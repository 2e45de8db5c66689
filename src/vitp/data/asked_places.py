"""The place that a question asks about, read from its text: a box, a point, or a cell of a grid.

Shapes: Q questions, I image tokens of a record.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from vitp.records.instructions import COORDINATE_RANGE

Spot = tuple[float, float, float, float]
"""x1, y1, x2, y2 of a place, 0..1 of the image."""

_CELL = re.compile(r"row (\d+), column (\d+)", re.I)
_GRID = re.compile(r"\b(\d+) by \1\b")
_BOX = re.compile(r"<box>\[(\d+), ?(\d+), ?(\d+), ?(\d+)\]</box>")
_POINT = re.compile(r"\((\d{1,4}), (\d{1,4})\)")
_POINT_SIDE = 1 / 6
"""Side of the square around a point: two of twelve image tokens."""


def asked_place(question: str) -> Spot | None:
    """Return the one place that a question names; None: it names none, or several.

    A box stands in it as `<box>[x1, y1, x2, y2]</box>` and a point as `(x, y)`, on 0..1000 of the image; a cell as
    "row 2, column 3" beside "6 by 6". A point stands for the square of a sixth of the image around it.
    """
    boxes, cells, points = (pattern.findall(question) for pattern in (_BOX, _CELL, _POINT))
    if len(boxes) + len(cells) + len(points) != 1:
        return None
    if cells:
        grid = _GRID.search(question)
        row, column = int(cells[0][0]) - 1, int(cells[0][1]) - 1
        if grid is None or not 0 <= max(row, column) < int(grid[1]) or min(row, column) < 0:
            return None
        side = int(grid[1])
        return column / side, row / side, (column + 1) / side, (row + 1) / side
    numbers = [int(number) / COORDINATE_RANGE for number in (boxes or points)[0]]
    if max(numbers) > 1:
        return None
    if points:
        half = _POINT_SIDE / 2
        x, y = (min(max(number, half), 1 - half) for number in numbers)
        return x - half, y - half, x + half, y + half
    x1, y1, x2, y2 = numbers
    return (x1, y1, x2, y2) if x1 <= x2 and y1 <= y2 else None


def tokens_inside(questions: Sequence[str], tiles: int, tokens_per_tile: int) -> np.ndarray:
    """Return (Q, I) bool: which image tokens of a record with one image lie in the place that a question asks about.

    Of several tiles the last one shows the whole image, and only its tokens count. A token lies in a place when its
    middle does; a place that holds no middle has the token around its own.

    Args:
        questions: Of the record.
        tiles: Tiles of its image.
        tokens_per_tile: Image tokens a tile, row by row.
    """
    side = round(tokens_per_tile**0.5)
    middles = (np.arange(side) + 0.5) / side
    inside_QI = np.zeros((len(questions), tiles * tokens_per_tile), np.bool_)
    for number, question in enumerate(questions):
        if (place := asked_place(question)) is None:
            continue
        x1, y1, x2, y2 = place
        spans = []
        for low, high in ((y1, y2), (x1, x2)):
            within = (middles >= low) & (middles <= high)
            if not within.any():
                within[min(int((low + high) / 2 * side), side - 1)] = True
            spans.append(within)
        inside_QI[number, -tokens_per_tile:] = np.logical_and.outer(*spans).ravel()
    return inside_QI
