"""Tables of image → class: a column with the class's name or number, or a column of 0 and 1 for each class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.tables import (
    IMAGE_KEYS,
    find_key,
    first_table_rows,
    raw_rows,
    refuse_several_tables,
    table_files,
)
from vitp.data.formats.walk import comma_list, name_index, split_of
from vitp.records.labels import LabelledSet

_ID_KEYS = (*IMAGE_KEYS, "id", "name")
_CLASS_KEYS = (
    *("label", "labels", "class", "classes", "class_name", "classname", "category", "scene"),
    *("diagnosis", "dx", "target", "tag", "tags", "label_name"),
)
_BOX_KEYS = ("xmin", "x_min", "x1", "bbox", "bbox_x", "rle", "encodedpixels", "segmentation")
_SPLIT_KEYS = ("split", "set", "subset", "partition", "fold")
_SEPARATORS = "|;,"
_NAMED = 0.9
"""Share of a column's values that name images when it is the column of the images."""


@dataclass(frozen=True)
class Columns:
    """Columns of a table: of the image, of its class (or else those of 0 and 1, one a class), and of its split."""

    image: str
    label: str = ""
    one_hot: tuple[str, ...] = ()
    split: str = ""


def columns_of(
    path: Path, image_column: str | None = None, class_column: str | None = None
) -> Columns | None:
    """Return the columns of a table of classes, or None when it isn't one; the options name unusual ones."""
    rows = first_table_rows(path)
    if not rows:
        return None
    image = find_key(rows[0], (image_column,) if image_column else _ID_KEYS)
    if image is None or find_key(rows[0], _BOX_KEYS) is not None:
        return None
    split = find_key(rows[0], _SPLIT_KEYS) or ""
    label = find_key(rows[0], (class_column,) if class_column else _CLASS_KEYS)
    if label is not None and label != image:
        return Columns(image, label, (), split)
    others = [key for key in rows[0] if key not in (image, split)]
    one_hot = tuple(key for key in others if all(_bit(row.get(key)) is not None for row in rows))
    return Columns(image, "", one_hot, split) if len(one_hot) > 1 and not class_column else None


def _bit(value: Any) -> int | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number in (0, 1) else None


def class_tables(root: Path) -> list[Path]:
    """Return the files of a folder that are tables of classes."""
    return [path for path in table_files(root) if columns_of(path) is not None]


def is_box_table(path: Path) -> bool:
    """Return whether a table has columns of boxes or outlines, which no reader understands."""
    rows = first_table_rows(path, 1)
    return bool(rows) and all(find_key(rows[0], keys) is not None for keys in (_ID_KEYS, _BOX_KEYS))


def guessed_columns(root: Path) -> list[tuple[Path, str, Columns | None]]:
    """Return the tables with a column of names of the set's images, under whatever name.

    Each is the table, that column, and the columns of image and class; None where the class isn't the one other
    column, with few values. Tables of boxes are left out.
    """
    found: list[tuple[Path, str, Columns | None]] = []
    images: dict[str, list[Path]] | None = None
    for path in table_files(root):
        rows = first_table_rows(path)
        if not rows or find_key(rows[0], _BOX_KEYS) is not None:
            continue
        images = name_index(root) if images is None else images
        keys = [key for key in rows[0] if isinstance(key, str)]
        shares = {
            key: sum(str(row.get(key) or "").strip() in images for row in rows) / len(rows) for key in keys
        }
        image = max(shares, key=lambda key: shares[key], default="")
        if not image or shares[image] < _NAMED:
            continue
        split = find_key(rows[0], _SPLIT_KEYS) or ""
        others = [key for key in keys if key not in (image, split)]
        known = find_key(dict.fromkeys(others), _CLASS_KEYS)
        label = known
        if label is None and len(others) == 1:
            values = {str(row.get(others[0])) for row in rows}
            fractions = any("." in value.removesuffix(".0") for value in values)
            label = others[0] if 2 <= len(values) <= len(rows) / 2 and not fractions else None
        found.append((path, image, None if label is None else Columns(image, label, (), split)))
    return found


def read_class_tables(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    table: str | None = None,
    image_column: str | None = None,
    class_column: str | None = None,
    classes: str | list[str] | None = None,
) -> LabelledSet:
    """Read a table of image → class. An image has one class: tables with several are refused.

    Args:
        root: The table, or the folder that holds it; images lie anywhere below, named with or without suffix.
            Tables named train, val and test are read together.
        options: Name, licence, splits.
        table: Name of the table in the folder, where there are several.
        image_column: Column of the image, where it isn't one of the usual.
        class_column: Column of the class, likewise.
        classes: The classes in order; where the table holds numbers, the names of 0, 1, ….

    Raises:
        DataError: The table can't be understood, or an image has several classes.
    """
    base = root if root.is_dir() else root.parent
    builder = SetBuilder(base, options)
    known = comma_list(classes)
    images = name_index(base)
    found: dict[Path, tuple[str, str | None, str]] = {}
    guessed = {} if image_column or class_column or root.is_file() else _guessed(root, table)
    for path in _paths(root, table) if not guessed else list(guessed):
        columns = guessed.get(path) or columns_of(path, image_column, class_column)
        if columns is None:
            fix = "name them with the options image_column and class_column"
            raise DataError("has no columns of image and class", where=str(path), fix=fix)
        listed = ", ".join(columns.one_hot)
        said = f'"{columns.label}" its class' if columns.label else f"1 in one of {listed} its class"
        builder.understand(f'{builder.place(path)}: column "{columns.image}" is the image, {said}')
        for number, row in raw_rows(path):
            _take(
                builder, builder.place(path, number), row, columns, split_of(path.stem), images, known, found
            )
    seen: set[str] = set()
    for image, (name, split, _) in found.items():
        if (size := builder.size_of(image)) is not None:
            seen.add(name)
            builder.add(image, size, split=split, scene=name)
    numbers = all(name.isdigit() for name in seen)
    return builder.build(scene_classes=known or sorted(seen, key=int if numbers else str))


def _guessed(root: Path, table: str | None) -> dict[Path, Columns]:
    """Return the tables that say by their values which columns they have; none where the heads say it."""
    if columns_of(root / table) is not None if table is not None else class_tables(root):
        return {}
    found = {path: columns for path, _, columns in guessed_columns(root) if columns is not None}
    found = {path: columns for path, columns in found.items() if table is None or path.name == table}
    return found if len(found) == 1 or all(split_of(path.stem) for path in found) else {}


def _paths(root: Path, table: str | None) -> list[Path]:
    if root.is_file():
        return [root]
    if table is not None:
        return [root / table]
    paths = class_tables(root)
    if len(paths) > 1 and not all(split_of(path.stem) for path in paths):
        refuse_several_tables(root, paths)
    if not paths:
        what = "no table of image and class found"
        raise DataError(what, where=str(root), fix="name it with the option table")
    return paths


def _take(
    builder: SetBuilder,
    where: str,
    row: Any,
    columns: Columns,
    split: str | None,
    images: dict[str, list[Path]],
    known: tuple[str, ...] | None,
    found: dict[Path, tuple[str, str | None, str]],
) -> None:
    name = str(row.get(columns.image) or "").strip() if isinstance(row, dict) else ""
    if not name:
        raise DataError("row names no image", where=where, fix="name the column with the option image_column")
    label = _label(where, row, columns)
    if label is None:
        builder.note(where, f"{name} has no class; left out")
        return
    if known is not None and label.isdigit() and label not in known and int(label) < len(known):
        label = known[int(label)]
    if known is not None and label not in known:
        builder.note(where, f'unknown class "{label}"; {name} left out')
        return
    places = images.get(name) or images.get(Path(name).name) or []
    if len(places) != 1:
        fate = "is missing" if not places else f"is {len(places)} files"
        builder.note(where, f"{name} {fate}; left out")
        return
    told = split_of(str(row.get(columns.split) or "")) if columns.split else None
    earlier = found.setdefault(places[0], (label, told or split, where))
    if earlier[0] != label:
        raise DataError(
            f'{name} has the class "{label}" here and "{earlier[0]}" in {earlier[2]}',
            where=where,
            fix="give each image one class; images of several classes can't be read yet",
        )
    if earlier[1] != (told or split):
        what = f"{name} is in the split {told or split} here and {earlier[1]} in {earlier[2]}"
        raise DataError(what, where=where, fix="name it once")


def _label(where: str, row: dict[str, Any], columns: Columns) -> str | None:
    """Return the class in a row, None where it has none."""
    if columns.label:
        value = row.get(columns.label)
        several = isinstance(value, list) or any(mark in str(value or "") for mark in _SEPARATORS)
        text = "" if value is None else str(value).strip()
        # pandas writes whole numbers with gaps as 3.0
        text = text.removesuffix(".0") if text.removesuffix(".0").isdigit() else text
        shown = text
    else:
        bits = {key: _bit(row.get(key)) for key in columns.one_hot}
        ones = [key for key, bit in bits.items() if bit]
        several, text, shown = len(ones) > 1, ones[0] if ones else "", ", ".join(ones)
    if several:
        fix = "give each image one class; images of several classes can't be read yet"
        raise DataError(f"several classes of one image ({shown})", where=where, fix=fix)
    return text or None
