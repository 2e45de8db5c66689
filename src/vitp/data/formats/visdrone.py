"""VisDrone's detection text, a file an image: `left,top,width,height,score,category,truncation,occlusion` in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitp.core.errors import DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.image_labels import ImageLabels, LabelShape
from vitp.data.formats.label_files import (
    TEXTS_BESIDE_LABELS,
    LabelPlace,
    add_labels,
    find_labels,
    first_rows,
    label_places,
    label_rows,
)
from vitp.data.formats.walk import child, comma_list, split_word
from vitp.records.labels import LabelledSet

_NAMES = (
    *("ignored regions", "pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle"),
    *("awning-tricycle", "bus", "motor", "others"),
)
"""Classes by their number, as VisDrone publishes them."""

_COLUMNS = 8
_LARGEST = (1, len(_NAMES) - 1, 1, 2)
"""Largest score, category, truncation and occlusion."""


def _places(root: Path) -> list[LabelPlace]:
    """Return where images and labels lie, in folders such as `VisDrone2019-DET-test-dev`, too."""
    found = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        images, labels = (child(folder, (name,)) for name in ("images", "annotations"))
        split = split_word(folder.name)
        if images and labels and split:
            found.append(LabelPlace(images, labels, split))
    return found or label_places(root, ("annotations",), ("images",))


def is_visdrone(root: Path) -> bool:
    """Return whether a label file's first row is one of VisDrone."""
    return any(_numbers(row) is not None for row in first_rows(_places(root), TEXTS_BESIDE_LABELS))


def _numbers(words: Sequence[str]) -> list[int] | None:
    """Return the numbers of a row; None where it is none of VisDrone's."""
    # Some files end their rows with a comma.
    cells = "".join(words).rstrip(",").split(",")
    try:
        values = [int(cell) for cell in cells]
    except ValueError:
        return None
    fits = len(values) == _COLUMNS and all(
        0 <= value <= most for value, most in zip(values[4:], _LARGEST, strict=True)
    )
    return values if fits else None


def read_visdrone(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    drop_empty: bool = False,
) -> LabelledSet:
    """Read VisDrone's boxes (DET).

    The places of `ignored regions`, of `others` and of boxes with a score of 0 are ignored, as its benchmark does.

    Args:
        root: Holds `images` and `annotations`, itself or in folders such as `VisDrone2019-DET-train`.
        options: Name, licence, splits.
        classes: The object classes in order; by default those that occur, in VisDrone's order. The places of others
            are ignored.
        drop_empty: Leave images with an empty label file out; by default there is nothing in them.

    Raises:
        DataError: A row can't be understood.
    """
    builder = SetBuilder(root, options)
    known = comma_list(classes)
    seen: set[str] = set()

    def read_one(path: Path, found: ImageLabels) -> int:
        count = 0
        for row, words in label_rows(path):
            count += 1
            where, values = builder.place(path, row), _numbers(words)
            if values is None:
                fix = 'write eight whole numbers, "left,top,width,height,score,category,truncation,occlusion"'
                raise DataError("is no row of VisDrone", where=f"{path}:{row}", fix=fix)
            x, y, width, height, score, category, *_ = values
            passed_over = score == 0 or category == len(_NAMES) - 1
            name = _NAMES[0 if passed_over else category]
            found.add(where, name, LabelShape(box=(x, y, x + width, y + height)), known=known)
        seen.update(label.category for label in found.objects)
        return count

    labels = find_labels(builder, _places(root), not_labels=TEXTS_BESIDE_LABELS)
    add_labels(builder, labels, read_one, drop_empty=drop_empty)
    return builder.build(object_classes=known or [name for name in _NAMES if name in seen])
