"""DOTA text: `x1 y1 x2 y2 x3 y3 x4 y4 class [difficult]`, one file an image."""

from __future__ import annotations

from pathlib import Path

from vitp.data.formats.common import ReadOptions, SetBuilder, comma_list, read_text
from vitp.data.formats.label_files import add_images
from vitp.data.labels import LabelledSet, ObjectLabel
from vitp.errors import DataError

LABEL_FOLDERS = ("labelTxt", "annfiles", "labels")
_HEADERS = ("imagesource", "gsd", "acquisition")


def read(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    drop_empty: bool = False,
) -> LabelledSet:
    """Read a folder of DOTA labels.

    Args:
        root: Holds `{train,val,valid,test}/{images,labelTxt}`, `{images,labelTxt}/{split}`, `images` and
            `labelTxt`, or images and text side by side.
        options: Name, licence, splits.
        classes: The object classes in order; by default those that occur, sorted.
        drop_empty: Leave images with an empty label file out; by default they count as labelled, and there
            is nothing in them. An image without label file is not labelled, and always left out.

    Raises:
        DataError: A row can't be understood.
    """
    builder = SetBuilder(root, options)
    known = comma_list(classes)
    seen: set[str] = set()

    def objects_of(path: Path, size: tuple[int, int]) -> list[ObjectLabel] | None:
        objects = read_objects(builder, path, size, known)
        seen.update(label.category for label in objects or ())
        return objects

    add_images(builder, LABEL_FOLDERS, objects_of, drop_empty=drop_empty, not_labels=("classes.txt",))
    return builder.build(object_classes=known or sorted(seen))


def read_objects(
    builder: SetBuilder, path: Path, size: tuple[int, int], known: tuple[str, ...] | None
) -> list[ObjectLabel] | None:
    """Return the labels of one file, or None when it holds none at all.

    Args:
        builder: Takes the findings.
        path: The label file; header lines (`imagesource:`, `gsd:`) are skipped.
        size: Width and height of the image.
        known: The classes; others become findings. None: all.

    Raises:
        DataError: A row can't be understood.
    """
    objects: list[ObjectLabel] = []
    rows = 0
    for row, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if not words or line.split(":")[0].strip().lower() in _HEADERS:
            continue
        rows += 1
        quad, name, difficult = _parse_row(words, path, row)
        where = builder.place(path, row)
        if known is not None and name not in known:
            builder.note(where, f'unknown class "{name}"; left out')
            continue
        label = builder.label(where, name, size, quad=quad, difficult=difficult)
        if label is not None:
            objects.append(label)
    return objects if rows else None


def _parse_row(words: list[str], path: Path, row: int) -> tuple[list[float], str, bool]:
    try:
        if len(words) not in (9, 10):
            raise ValueError(f"{len(words)} columns")
        return [float(word) for word in words[:8]], words[8], len(words) == 10 and int(float(words[9])) > 0
    except ValueError as error:
        raise DataError(
            f"is not a DOTA row ({error})",
            where=f"{path}:{row}",
            fix='write "x1 y1 x2 y2 x3 y3 x4 y4 class difficult"',
        ) from error
