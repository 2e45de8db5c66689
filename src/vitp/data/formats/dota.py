"""DOTA text: `x1 y1 x2 y2 x3 y3 x4 y4 class [difficult]`, one file an image."""

from __future__ import annotations

import math
from pathlib import Path

from vitp.core.errors import DataError
from vitp.data.formats.common import ReadOptions, SetBuilder, comma_list, read_text
from vitp.data.formats.image_labels import ImageLabels, Shape
from vitp.data.formats.label_files import add_labels, find_labels, label_places
from vitp.records.labels import LabelledSet

LABEL_FOLDERS = ("labelTxt", "annfiles", "labels")
NOT_LABELS = ("classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "trainval.txt", "README.txt")
_HEADERS = ("imagesource", "gsd", "acquisition", "acquisition dates", "acquisitiondate")


def read(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    drop_empty: bool = False,
) -> LabelledSet:
    """Read a folder of DOTA labels.

    Args:
        root: Holds `{train,val,valid,test}/{images,labelTxt}`, `images` and `labelTxt` with or without sub-folders,
            or images and text side by side.
        options: Name, licence, splits.
        classes: The object classes in order; by default those that occur, sorted. The places of labels of other
            classes are ignored: they are neither objects nor background.
        drop_empty: Leave images with an empty label file out; by default they count as labelled, and there
            is nothing in them. An image without label file is not labelled, and always left out.

    Raises:
        DataError: A row can't be understood.
    """
    builder = SetBuilder(root, options)
    known = comma_list(classes)
    seen: set[str] = set()

    def read_one(path: Path, found: ImageLabels) -> int:
        rows = read_objects(builder.place(path), path, found, known)
        seen.update(label.category for label in found.objects)
        return rows

    labels = find_labels(builder, label_places(root, LABEL_FOLDERS), not_labels=NOT_LABELS)
    add_labels(builder, labels, read_one, drop_empty=drop_empty)
    return builder.build(object_classes=known or sorted(seen))


def read_objects(place: str, path: Path, found: ImageLabels, known: tuple[str, ...] | None) -> int:
    """Read the labels of one file, and return how many rows of labels it has.

    Args:
        place: What findings call the file.
        path: The label file; header lines (`imagesource:`, `gsd:`) are skipped.
        found: Takes the labels.
        known: The classes that are asked for; the places of others are ignored. None: all.

    Raises:
        DataError: A row can't be understood.
    """
    rows = 0
    for row, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if not words or line.split(":")[0].strip().lower() in _HEADERS:
            continue
        rows += 1
        where = f"{place}:{row}"
        quad, name, difficult = _parse_row(words, path, row)
        if known is None or name in known:
            found.add(where, name, Shape(quad=quad), difficult=difficult)
        else:
            found.exclude(where, name, Shape(quad=quad))
    return rows


def _parse_row(words: list[str], path: Path, row: int) -> tuple[list[float], str, bool]:
    try:
        quad, (name, difficult) = [float(word) for word in words[:8]], _name_and_flag(words[8:])
    except ValueError as error:
        raise DataError(
            f"is not a DOTA row ({error})",
            where=f"{path}:{row}",
            fix='write "x1 y1 x2 y2 x3 y3 x4 y4 class difficult"',
        ) from error
    return quad, name, difficult


def _name_and_flag(words: list[str]) -> tuple[str, bool]:
    """Return class and whether it is difficult (1 or more). A class of several words holds no number."""
    flag = _number(words[-1]) if len(words) > 1 else None
    name = words if flag is None else words[:-1]
    if not name or (len(name) > 1 and any(_number(word) is not None for word in name)):
        raise ValueError(f"{len(words) + 8} columns")
    if flag is not None and not 0 <= flag < math.inf:
        raise ValueError(f"difficult is {words[-1]}")
    return " ".join(name), bool(flag)


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
