"""The meaning of YOLO rows, decided for a whole set: boxes, oriented boxes, outlines or keypoints."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.dota import are_numbers
from vitp.data.formats.image_labels import LabelShape
from vitp.data.formats.label_files import label_rows

Rows = Literal["auto", "boxes", "oriented", "polygons", "pose"]

_LARGEST_SHARE = 1.01
"""Centre, width or height of a box up to which a share of the image was only rounded."""

_FARTHEST_CORNER = 1.5
"""Corners of outlines and oriented boxes may lie outside the image, but by no more than half of it."""

_WRITE = 'write "class cx cy w h", "class x1 y1 … x4 y4" or "class x1 y1 x2 y2 …" on 0–1'
_WORDS = {
    "boxes": "boxes",
    "oriented": "oriented boxes",
    "polygons": "outlines",
    "pose": "boxes with keypoints",
}
_FLAGS = (0.0, 1.0, 2.0)
"""Visibility of a keypoint."""


@dataclass
class Survey:
    """The forms of the rows of a set.

    Attributes:
        columns: How many rows have so many columns.
        first: Where the first row with so many columns stands.
        flagged: Numbers of columns of which every row reads as a box with keypoints of x, y and visibility.
        pointed: Numbers of columns of which every row reads as a box with keypoints of x and y in it.
    """

    columns: Counter[int] = field(default_factory=Counter)
    first: dict[int, str] = field(default_factory=dict)
    flagged: set[int] = field(default_factory=set)
    pointed: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class RowForm:
    """What rows of more than five columns are, how many keypoint rows have (if known), and the decision in words."""

    kind: Rows
    pose_columns: int | None = None
    text: str = ""


def survey(paths: Iterable[Path]) -> Survey:
    """Look at the rows of all label files.

    Raises:
        DataError: A file can't be read.
    """
    found = Survey()
    not_flagged: set[int] = set()
    not_pointed: set[int] = set()
    for path in paths:
        for row, words in label_rows(path):
            count = len(words)
            found.columns[count] += 1
            found.first.setdefault(count, f"{path}:{row}")
            if count > 5 and not (count in not_flagged and count in not_pointed):
                if not _reads_as_pose(words[1:], 3):
                    not_flagged.add(count)
                if not _reads_as_pose(words[1:], 2):
                    not_pointed.add(count)
    long = {count for count in found.columns if count > 5}
    found.flagged, found.pointed = long - not_flagged, long - not_pointed
    return found


def form_of(rows: Rows, found: Survey, keypoints: tuple[int, int] | None) -> RowForm:
    """Decide what the rows of a set mean, by the option, the label files and `kpt_shape` of data.yaml.

    Raises:
        ConfigError: There is no such kind of rows.
        DataError: The rows have two readings.
    """
    if rows not in get_args(Rows):
        raise ConfigError(f'is "{rows}"', where="rows", fix=f"choose one of {', '.join(get_args(Rows))}")
    long = sorted(count for count in found.columns if count > 5)
    if keypoints is not None and rows in ("auto", "pose"):
        number, width = keypoints
        columns = 5 + number * width
        return RowForm("pose", columns, f"rows: boxes; their {number} keypoints (kpt_shape) are not used")
    if rows == "pose":
        return RowForm("pose", None, "rows: boxes; their keypoints are not used (rows=pose)")
    if rows != "auto":
        return RowForm(rows, None, f"rows: {_WORDS[rows]} (rows={rows})" if long else "")
    if not long:
        return RowForm("boxes")
    if len(long) == 1:
        _refuse_pose(long[0], found)
    if long == [9]:
        said = "rows of 9 columns: oriented boxes (rows=polygons reads them as outlines of four corners)"
        return RowForm("oriented", None, said)
    return RowForm("polygons", None, "rows of more than 5 columns: outlines (the option rows says otherwise)")


def yolo_shape(values: list[float], form: RowForm, size: tuple[int, int]) -> LabelShape | str:
    """Return where the label of a row's values lies in pixels, or why it has no place."""
    box = len(values) == 4 or form.kind == "pose"
    if box:
        values = values[:4]
    if not all(math.isfinite(value) for value in values):
        return "a coordinate is not a number"
    low, high = (1 - _LARGEST_SHARE, _LARGEST_SHARE) if box else (1 - _FARTHEST_CORNER, _FARTHEST_CORNER)
    worst = max(values, key=lambda value: abs(value - 0.5))
    if not low <= worst <= high:
        kind = "looks like pixels" if worst > 1 else "is below 0"
        return f"{worst:g} {kind}, but YOLO rows are shares of the image from 0 to 1"
    width, height = size
    scaled = [value * (height if i % 2 else width) for i, value in enumerate(values)]
    if box:
        cx, cy, w, h = scaled
        return LabelShape(box=(cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), corners=scaled)
    if form.kind == "oriented" and len(values) == 8:
        return LabelShape(quad=scaled)
    return LabelShape(polygons=(scaled,))


def parse_row(words: list[str], path: Path, row: int, form: RowForm) -> tuple[int, list[float]]:
    """Return class number and values of a row.

    Raises:
        DataError: It is no row of that form.
    """
    count = len(words)
    try:
        if count == 6:
            raise ValueError(
                "6 columns: the last is a confidence or the number of a track, as of predictions, or an angle"
            )
        if count != 5 and not _fits(count, form):
            raise ValueError(f"{count} columns")
        if odd := [word for word in words if not are_numbers([word])]:
            raise ValueError(f'"{odd[0][:40]}" is no number')
        number = float(words[0])  # some tools write "0.0"
        if not number.is_integer():
            raise ValueError(f"class {words[0][:40]} is not a whole number")
        return int(number), [float(word) for word in words[1:]]
    except ValueError as error:
        raise DataError(f"is not a YOLO row ({error})", where=f"{path}:{row}", fix=_WRITE) from error


def _fits(count: int, form: RowForm) -> bool:
    if form.kind == "pose":
        return count == form.pose_columns if form.pose_columns else count > 6
    if form.kind == "boxes":
        return False
    if form.kind == "oriented":
        return count == 9
    return count >= 7 and count % 2 == 1


def _refuse_pose(count: int, found: Survey) -> None:
    """Refuse rows of one length that may be boxes with keypoints.

    Outlines have different numbers of corners; rows of nine columns are read as oriented boxes unless their keypoints
    would have flags.
    """
    flagged = count in found.flagged
    if not flagged and (count not in found.pointed or count == 9):
        return
    number = (count - 5) // (3 if flagged else 2)
    other = f" or outlines of {(count - 1) // 2} corners (rows=polygons)" if count % 2 else ""
    raise DataError(
        f"all long rows have {count} columns: boxes with {number} keypoints (rows=pose reads the boxes){other}",
        where=found.first[count],
        fix="say which with the option rows, or give kpt_shape in data.yaml",
    )


def _reads_as_pose(words: list[str], width: int) -> bool:
    """Return whether words are a box in the image, and keypoints of 2 or 3 columns in it, or 0 where unseen."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        return False
    if len(values) < 4 + width or (len(values) - 4) % width:
        return False
    cx, cy, w, h = values[:4]
    points = [values[i : i + width] for i in range(4, len(values), width)]
    if width == 3:
        return all(point[2] in _FLAGS for point in points)
    edge = _LARGEST_SHARE - 1
    low, high = min(cx - w / 2, cy - h / 2), max(cx + w / 2, cy + h / 2)
    if min(w, h) <= 0 or low < -edge or high > 1 + edge:
        return False
    return all(
        (x == 0 and y == 0) or (abs(x - cx) <= w / 2 + edge and abs(y - cy) <= h / 2 + edge)
        for x, y in points
    )
