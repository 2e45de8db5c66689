"""DOTA text: `x1 y1 x2 y2 x3 y3 x4 y4 class [difficult]`, one file an image."""

from __future__ import annotations

import math
import re
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
from vitp.data.formats.walk import bases_of, child, comma_list
from vitp.records.labels import LabelledSet

_LABEL_FOLDERS = ("labelTxt", "annfiles", "labels")
_PUBLISHED = re.compile(r"labelTxt|DOTA-v[\d.]+_[a-z]+", re.IGNORECASE)
"""Folders of oriented boxes in `labelTxt-v1.5`; those of upright ones end in `_hbb`, or in `_reclabelTxt` below."""
_HEADERS = ("imagesource", "gsd", "acquisition", "acquisition dates", "acquisitiondate")


def _places(root: Path) -> list[LabelPlace]:
    """Return where images and labels lie, in `labelTxt-v1.5/DOTA-v1.5_train`, as DOTA is published, too.

    Raises:
        DataError: There are labels of several versions.
    """
    found: list[LabelPlace] = []
    for split, base in bases_of(root):
        outer = [folder for folder in sorted(base.glob("labelTxt-v*")) if folder.is_dir()]
        images = child(base, ("images",))
        if not outer or images is None:
            continue
        inner = [
            path for folder in outer for path in sorted(folder.iterdir()) if _PUBLISHED.fullmatch(path.name)
        ]
        if len(outer) > 1 or len(inner) > 1:
            several = ", ".join(folder.name for folder in (outer if len(outer) > 1 else inner))
            what = f"holds labels of several versions or splits: {several}"
            raise DataError(what, where=str(base), fix="move all but one of them away")
        found.append(LabelPlace(child(images, ("images",)) or images, (inner or outer)[0], split))
    usual = label_places(root, _LABEL_FOLDERS)
    # Beside such folders only those count that are called as labels, and not texts beside images.
    here = {place.split for place in found}
    return found + [place for place in usual if not found or place.split not in here]


def is_dota(root: Path) -> bool:
    """Return whether a label file's first row is one of DOTA."""
    rows = first_rows(_places(root), TEXTS_BESIDE_LABELS)
    return any(len(row) >= 9 and are_numbers(row[:8]) and not are_numbers(row[8:9]) for row in rows)


def are_numbers(words: list[str]) -> bool:
    """Return whether all words are numbers, and there is one."""
    try:
        return [float(word) for word in words] != []
    except ValueError:
        return False


def read_dota(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    drop_empty: bool = False,
) -> LabelledSet:
    """Read a folder of DOTA labels.

    Args:
        root: Holds `{train,val,valid,test}/{images,labelTxt}`, with `labelTxt-v1.5/DOTA-v1.5_train` and the like for
            `labelTxt`, too; `images` and `labelTxt` with or without sub-folders; or images and text side by side.
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
        rows = read_dota_objects(builder.place(path), path, found, known)
        seen.update(label.category for label in found.objects)
        return rows

    labels = find_labels(builder, _places(root), not_labels=TEXTS_BESIDE_LABELS)
    add_labels(builder, labels, read_one, drop_empty=drop_empty)
    return builder.build(object_classes=known or sorted(seen))


def read_dota_objects(place: str, path: Path, found: ImageLabels, known: tuple[str, ...] | None) -> int:
    """Read the labels of one file, and return how many rows of labels it has.

    Args:
        place: What findings call the file.
        path: The label file; header lines (`imagesource:`, `gsd:`) are skipped.
        found: Takes the labels.
        known: The classes that are asked for; the places of others are ignored. None: all.

    Raises:
        DataError: A row can't be understood.
    """
    count = 0
    for row, words in label_rows(path):
        if " ".join(words).split(":")[0].strip().lower() in _HEADERS:
            continue
        count += 1
        try:
            quad, (name, difficult) = [float(word) for word in words[:8]], _name_and_flag(words[8:])
        except ValueError as error:
            fix = 'write "x1 y1 x2 y2 x3 y3 x4 y4 class difficult"'
            raise DataError(f"is not a DOTA row ({error})", where=f"{path}:{row}", fix=fix) from error
        found.add(f"{place}:{row}", name, LabelShape(quad=quad), known=known, difficult=difficult)
    return count


def _name_and_flag(words: list[str]) -> tuple[str, bool]:
    """Return class and whether it is difficult (1 or more). A class of several words holds no number."""
    flag = float(words[-1]) if len(words) > 1 and are_numbers(words[-1:]) else None
    name = words if flag is None else words[:-1]
    if not name or (len(name) > 1 and any(are_numbers([word]) for word in name)):
        raise ValueError(f"{len(words) + 8} columns")
    if flag is not None and not 0 <= flag < math.inf:
        raise ValueError(f"difficult is {words[-1]}")
    if flag is not None and not flag.is_integer():
        raise ValueError(f"difficult is {words[-1]}, which looks like the confidence of a prediction")
    return " ".join(name), bool(flag)
