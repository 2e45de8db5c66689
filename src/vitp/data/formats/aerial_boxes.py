"""NWPU VHR-10 and UCAS-AOD: text files of boxes, a file an image, beside folders of images that show no object."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from vitp.core.errors import DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.image_labels import ImageLabels, LabelShape
from vitp.data.formats.label_files import LabelPlace, add_labels, find_labels, first_rows, label_rows
from vitp.data.formats.walk import child, comma_list, images_below
from vitp.records.labels import LabelledSet

_NWPU_ROW = re.compile(r"\((\d+),(\d+)\),\((\d+),(\d+)\),(\d+)")
_NWPU_CLASSES = "airplane,ship,storage tank,baseball diamond,tennis court,basketball court,ground track field,harbor,bridge,vehicle"
_NUMBERS = 13
"""Of a row of UCAS-AOD: four corners, the angle of the heading, and left, top, width and height."""


def _nwpu_place(root: Path) -> LabelPlace | None:
    images, labels = child(root, ("positive image set",)), child(root, ("ground truth",))
    return LabelPlace(images, labels) if images and labels else None


def is_nwpu(root: Path) -> bool:
    """Return whether a folder is laid out as NWPU VHR-10."""
    return _nwpu_place(root) is not None


def read_nwpu(
    root: Path, options: ReadOptions = ReadOptions(), *, classes: str | list[str] | None = None
) -> LabelledSet:
    """Read NWPU VHR-10: rows `(x1,y1),(x2,y2),number` in pixels.

    Args:
        root: Holds `positive image set`, `ground truth` and perhaps `negative image set`, whose images are empty.
        options: Name, licence, splits.
        classes: The names of the classes 1, 2, …; the places of higher numbers are ignored.

    Raises:
        DataError: A row can't be understood, or nobody names the classes.
    """
    builder, known, place = SetBuilder(root, options), comma_list(classes), _nwpu_place(root)
    if place is None:
        fix = "name the folder that holds them"
        raise DataError('has no "positive image set" and "ground truth"', where=str(root), fix=fix)
    if not known:
        what = "numbers its classes from 1 on, and no file of the set names them"
        fix = f'-o classes="…" names them in order; as NWPU VHR-10 is published: -o classes="{_NWPU_CLASSES}"'
        raise DataError(what, where=str(place.labels), fix=fix)

    def take(where: str, text: str, found: ImageLabels) -> None:
        row = _NWPU_ROW.fullmatch(text)
        if row is None:
            raise DataError(f'"{text[:40]}" is no row', where=where, fix="write (x1,y1),(x2,y2),number")
        *box, number = map(int, row.groups())
        shape = LabelShape(box=box)
        if 1 <= number <= len(known):
            found.add(where, known[number - 1], shape)
        else:
            found.ignore(where, f"class number {number} is not one of 1–{len(known)}", str(number), shape)

    _add(builder, place, take)
    _add_empty(builder, child(root, ("negative image set",)))
    return builder.build(object_classes=known)


def _ucas_places(root: Path) -> list[LabelPlace]:
    folders = [folder for name in ("CAR", "PLANE") if (folder := child(root, (name,)))]
    places = [LabelPlace(folder, folder) for folder in folders]
    rows = first_rows(places, ())
    return places if any(map(_ucas_numbers, rows)) else []


def is_ucas(root: Path) -> bool:
    """Return whether a folder is laid out as UCAS-AOD."""
    return bool(_ucas_places(root))


def _ucas_numbers(words: Sequence[str]) -> list[float]:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return []
    return numbers if len(numbers) == _NUMBERS and all(map(math.isfinite, numbers)) else []


def read_ucas(
    root: Path, options: ReadOptions = ReadOptions(), *, classes: str | list[str] | None = None
) -> LabelledSet:
    """Read UCAS-AOD: oriented boxes of cars and of planes, each in a folder of their own.

    Args:
        root: Holds `CAR` and `PLANE` with images and text files, and perhaps `Neg`, whose images are empty.
        options: Name, licence, splits.
        classes: The classes in order (`car`, `plane`); the places of others are ignored.

    Raises:
        DataError: A row can't be understood.
    """
    builder, known, places = SetBuilder(root, options), comma_list(classes), _ucas_places(root)
    builder.understand(
        "images of CAR are taken to show no plane and those of PLANE no car, as in its benchmark"
    )
    for place in places:
        name = place.images.name.lower()

        def take(where: str, text: str, found: ImageLabels, name: str = name) -> None:
            if not (numbers := _ucas_numbers(text.split(","))):
                fix = "write four corners, an angle, and left, top, width, height, parted by tabs"
                raise DataError(f"is no row of {_NUMBERS} numbers", where=where, fix=fix)
            found.add(where, name, LabelShape(quad=numbers[:8]), known=known)

        _add(builder, place, take, mark=",")
    _add_empty(builder, child(root, ("Neg",)))
    return builder.build(object_classes=known or [place.images.name.lower() for place in places])


def _add(
    builder: SetBuilder, place: LabelPlace, take: Callable[[str, str, ImageLabels], None], mark: str = ""
) -> None:
    """Add the images of a place; `take` takes the words of a row, joined by `mark`."""

    def read(path: Path, found: ImageLabels) -> int:
        rows = list(label_rows(path))
        for row, words in rows:
            take(builder.place(path, row), mark.join(words), found)
        return len(rows)

    add_labels(builder, find_labels(builder, [place]), read, drop_empty=False)


def _add_empty(builder: SetBuilder, folder: Path | None) -> None:
    """Add images that are published as those without an object."""
    count = builder.count
    for image in images_below(folder) if folder else ():
        if (size := builder.size_of(image)) is not None:
            builder.add_labelled(image, builder.labels_of(size, builder.place(image.parent)))
    if folder and builder.count > count:
        builder.understand(
            f"{folder.name}: {builder.count - count:,} images, in which there is nothing, as is published"
        )
