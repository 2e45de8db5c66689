"""YOLO text, normalised to the image: boxes, oriented boxes and polygons; class names in a file beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from vitp.data.formats.common import ReadOptions, SetBuilder, comma_list, read_text
from vitp.data.formats.label_files import add_images
from vitp.data.labels import LabelledSet, ObjectLabel
from vitp.errors import DataError
from vitp.reading import parse_yaml

_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
NOT_LABELS = ("classes.txt", "obj.names", "train.txt", "val.txt", "test.txt", "README.txt")


def read(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    drop_empty: bool = False,
) -> LabelledSet:
    """Read a YOLO folder.

    A row of 5 columns is a box, of 9 an oriented box, of any other odd number from 7 a polygon.

    Args:
        root: Holds `{split}/{images,labels}`, `{images,labels}/{split}`, `images` and `labels`, or images and
            text side by side; class names in data.yaml, classes.txt or a `.names` file.
        options: Name, licence, splits.
        classes: The class names in the order of their numbers, instead of a file.
        drop_empty: Leave images with an empty label file out; by default they count as labelled, and there
            is nothing in them. An image without label file is not labelled, and always left out.

    Raises:
        DataError: A row can't be understood, or there are no class names.
    """
    builder = SetBuilder(root, options)
    names = comma_list(classes) or class_names(root)
    add_images(
        builder,
        ("labels",),
        lambda path, size: _objects(builder, path, size, names),
        drop_empty=drop_empty,
        not_labels=NOT_LABELS,
    )
    return builder.build(object_classes=names)


def names_file(root: Path) -> Path | None:
    """Return the file that names the classes, or None."""
    places = [root / name for name in (*_YAML_NAMES, "classes.txt", "labels/classes.txt")]
    return next(
        (p for p in [*places, *sorted(root.glob("*.names")), *sorted(root.glob("*.yaml"))] if p.is_file()),
        None,
    )


def class_names(root: Path) -> tuple[str, ...]:
    """Return the class names in the order of their numbers.

    Raises:
        DataError: There is no such file, or it can't be understood.
    """
    path = names_file(root)
    if path is None:
        raise DataError(
            "no class names found (data.yaml, classes.txt or *.names)",
            where=str(root),
            fix="add one of them, or name the classes in order with the option classes",
        )
    if path.suffix not in (".yaml", ".yml"):
        return tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    try:
        content: Any = parse_yaml(read_text(path))
    except yaml.YAMLError as error:
        raise DataError(f"is not YAML ({error})", where=str(path), fix="mend the file") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(
            "has no list of class names",
            where=f"{path}: names",
            fix="write names: [first, second] or 0: first",
        )
    return tuple(str(name) for name in names)


def _objects(
    builder: SetBuilder, path: Path, size: tuple[int, int], names: tuple[str, ...]
) -> list[ObjectLabel] | None:
    """Return the labels of one file, or None when it holds none at all."""
    objects: list[ObjectLabel] = []
    rows = 0
    for row, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        rows += 1
        number, values = _parse_row(words, path, row)
        where = builder.place(path, row)
        if not 0 <= number < len(names):
            builder.note(where, f"class number {number} is not one of 0–{len(names) - 1}; left out")
            continue
        label = _label(builder, where, names[number], size, values)
        if label is not None:
            objects.append(label)
    return objects if rows else None


def _parse_row(words: list[str], path: Path, row: int) -> tuple[int, list[float]]:
    try:
        if len(words) < 5 or len(words) % 2 == 0:
            raise ValueError(f"{len(words)} columns")
        return int(words[0]), [float(word) for word in words[1:]]
    except ValueError as error:
        raise DataError(
            f"is not a YOLO row ({error})",
            where=f"{path}:{row}",
            fix='write "class cx cy w h", "class x1 y1 … x4 y4" or "class x1 y1 x2 y2 …" on 0–1',
        ) from error


def _label(
    builder: SetBuilder, where: str, name: str, size: tuple[int, int], values: list[float]
) -> ObjectLabel | None:
    width, height = size
    scaled = [value * (height if i % 2 else width) for i, value in enumerate(values)]
    if len(scaled) == 4:
        cx, cy, w, h = scaled
        return builder.label(where, name, size, box=(cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
    if len(scaled) == 8:
        return builder.label(where, name, size, quad=scaled)
    return builder.label(where, name, size, polygons=(scaled,))
