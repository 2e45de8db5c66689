"""Scores of answers, 0 (wrong) to 1 (right)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import cv2
import numpy as np

from vitp.core.words import cell_name, words_apart
from vitp.data.synthesis.answers import (
    TextBox,
    grid_rows,
    is_none,
    parse_boxes,
    parse_cells,
    parse_count,
    parse_geochat,
    parse_quads,
    parse_share,
    parse_yes_no,
)
from vitp.data.synthesis.facts import match_pairs, overlap
from vitp.records.geometry import area, as_points, shared_part

AnswerScore = Callable[[str, str], float]
_Outline = TypeVar("_Outline")

_MATCH_IOU = 0.5
"""Boxes of one label match from this intersection over union on."""


def normalised(text: str) -> str:
    """Return text without case, outer and doubled blanks and final stop; a hyphen or a hump counts as a blank."""
    return re.sub(r"\s*-\s*|\s+", " ", words_apart(text)).strip().rstrip(".").strip().casefold()


def exact(predicted: str, expected: str) -> float:
    """Return 1 for the same text but for case, blanks and final stop."""
    return float(normalised(predicted) == normalised(expected))


def _same(parse: Callable[[str], object]) -> AnswerScore:
    """Return a score of 1 for answers that mean the same; one that means nothing counts 0."""

    def score(predicted: str, expected: str) -> float:
        answer = parse(predicted)
        return float(answer is not None and answer == parse(expected))

    return score


same_yes_no = _same(parse_yes_no)
same_number = _same(parse_count)
same_share = _same(parse_share)
"""Shares: "less than 1%" is another one than 0 % and than 1 %."""


def _f1(common: float, predicted: float, expected: float) -> float:
    if predicted == 0 and expected == 0:
        return 1.0
    return 2 * common / (predicted + expected)


def token_f1(predicted: str, expected: str) -> float:
    """Return the F1 of the words, each counted as often as it occurs."""
    words = [Counter(re.findall(r"\w+", text.casefold())) for text in (predicted, expected)]
    return _f1((words[0] & words[1]).total(), words[0].total(), words[1].total())


def list_f1(predicted: str, expected: str) -> float:
    """Return the F1 of the parts between commas."""
    parts = [
        Counter(p for p in map(normalised, re.split(r",|\band\b", text)) if p and not is_none(p))
        for text in (predicted, expected)
    ]
    if not parts[0] and not parts[1]:
        return float(is_none(predicted))
    return _f1((parts[0] & parts[1]).total(), parts[0].total(), parts[1].total())


def quad_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection over union of the convex hulls of two oriented boxes."""
    hulls = [cv2.convexHull(as_points(q).astype(np.float32))[:, 0].astype(np.float64) for q in (a, b)]
    areas = [area(hull) for hull in hulls]
    if min(areas) <= 0:
        return 0.0
    # OpenCV's own intersection loses a part of boxes whose sides nearly lie on each other.
    common = area(shared_part(*hulls))
    return common / (sum(areas) - common)


def match_f1(
    predicted: Sequence[tuple[str, _Outline]],
    expected: Sequence[tuple[str, _Outline]],
    iou: Callable[[_Outline, _Outline], float],
) -> float:
    """Return the F1 of labelled shapes, matched one to one by overlap, best first, from an IoU of 0.5 on."""
    overlaps = (
        (iou(p, e), i, j)
        for i, (label, p) in enumerate(predicted)
        for j, (name, e) in enumerate(expected)
        if normalised(label) == normalised(name)
    )
    return _f1(len(match_pairs(overlaps, _MATCH_IOU)), len(predicted), len(expected))


def boxes_f1(predicted: str, expected: str) -> float:
    """Return the F1 of boxes at IoU 0.5; where nothing is expected, only "none" is right."""
    if is_none(expected):
        return float(is_none(predicted))
    return match_f1(parse_boxes(predicted), parse_boxes(expected), overlap)


def turned_text_box(box: TextBox, angle: float) -> tuple[float, ...]:
    """Return the corners of a box that is turned around its centre by degrees, clockwise in the image."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return tuple(float(v) for v in cv2.boxPoints(((x, y), (box[2] - box[0], box[3] - box[1]), angle)).ravel())


def oriented_f1(predicted: str, expected: str) -> float:
    """Return the F1 of oriented boxes, in either style, at a rotated IoU of 0.5.

    GeoChat's form does not tell the image's shape, so its boxes are turned on the square of the coordinates.
    """
    if is_none(expected):
        return float(is_none(predicted))
    shapes = []
    for text in (predicted, expected):
        found: list[tuple[str, tuple[float, ...]]] = [*parse_quads(text)]
        found += [(label, turned_text_box(box, angle)) for label, box, angle in parse_geochat(text)]
        shapes.append(found)
    return match_f1(shapes[0], shapes[1], quad_iou)


def cell_accuracy(predicted: str, expected: str) -> float:
    """Return the share of the expected cells that have the right name; missing cells are wrong."""
    answer, truth = (
        [[cell_name(name).casefold() for name in row] for row in grid_rows(text)]
        for text in (predicted, expected)
    )
    cells = [(r, c) for r, row in enumerate(truth) for c in range(len(row))]
    right = sum(r < len(answer) and c < len(answer[r]) and answer[r][c] == truth[r][c] for r, c in cells)
    return right / len(cells) if cells else 0.0


def cells_f1(predicted: str, expected: str) -> float:
    """Return the F1 of the listed cells; where nothing is expected, only "none" is right."""
    if is_none(expected):
        return float(is_none(predicted))
    sets = set(parse_cells(predicted)), set(parse_cells(expected))
    return _f1(len(sets[0] & sets[1]), len(sets[0]), len(sets[1]))
