"""Columns of tables of classes: which is the image, which the class, and which say 0 or 1 of one class each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitp.core.errors import DataError
from vitp.data.formats.look import entries_of
from vitp.data.formats.tables import (
    IMAGE_KEYS,
    PATIENT_KEYS,
    STUDY_KEYS,
    TwoCells,
    box_columns,
    find_key,
    first_table_rows,
    refuse_doubles,
    table_files,
    table_weight,
)
from vitp.data.formats.walk import list_images, name_index, split_folders, split_of, words_of

ID_KEYS = (*IMAGE_KEYS, "id", "name")
CLASS_KEYS = (
    *("label", "labels", "class", "classes", "class_name", "classname", "category", "scene"),
    *("diagnosis", "dx", "target", "tag", "tags", "label_name", "finding_labels"),
)
_BOX_KEYS = (
    *("xmin", "x_min", "x1", "x2", "xmax", "bbox", "bbox_x", "cx", "center_x", "x_center", "xcenter"),
    *("rle", "encodedpixels", "segmentation"),
)
SPLIT_KEYS = ("split", "set", "subset", "partition", "fold")
FOLD_KEYS = ("fold",)
GROUP_KEYS = ("group", *PATIENT_KEYS, "series_id", "study_id", "video_id", "scene_id")
NO_CLASSES = (*GROUP_KEYS, *FOLD_KEYS, "age", "sex", "gender", "index", "unnamed:_0", "")
"""Columns that may hold 0 and 1, and are no classes."""

NOT_KNOWN = -1
_CONFIDENCES = ("confidence", "present", "is_present")
BIT_WORDS = (("true", "false"), ("yes", "no"), ("y", "n"))
"""Words for 1 and for 0, as tables have them."""
_WORDS = {word: bit for pair in BIT_WORDS for word, bit in zip(pair, (1, 0), strict=True)}
MISSING_WORDS = ("nan", "na", "n/a", "#n/a", "<na>", "null")
"""What programs write into a cell that holds nothing."""
_MOSTLY = 0.5
"""Share of a column's cells from which 0 and 1 say that it is a class, and the other cells wrong."""
_NAMED = 0.9
"""Share of a column's values that name images when it is the column of the images."""


@dataclass(frozen=True)
class Columns:
    """Columns of a table: of the image, its class (or else those of 0 and 1, one a class), split, group and fold.

    With `study`, the column `image` names the folder of a study.
    """

    image: str
    label: str = ""
    one_hot: tuple[str, ...] = ()
    split: str = ""
    group: str = ""
    study: bool = False
    fold: str = ""

    @property
    def read(self) -> tuple[str, ...]:
        """All that are read."""
        return (self.image, self.label, *self.one_hot, self.split, self.group, self.fold)


def columns_of(
    path: Path, image_column: str | None = None, class_column: str | None = None, patient: str = ""
) -> Columns | None:
    """Return the columns of a table of classes, or None when it isn't one; the options name unusual ones."""
    rows = first_table_rows(path)
    if not rows:
        return None
    image = find_key(rows[0], (image_column,) if image_column else ID_KEYS)
    study = None if image or image_column else find_key(rows[0], STUDY_KEYS)
    image = image or study
    if image is None or _has_boxes(rows[0]):
        return None
    split, group, fold = (
        find_key(rows[0], keys) or ""
        for keys in (SPLIT_KEYS, (patient, *GROUP_KEYS) if patient else GROUP_KEYS, FOLD_KEYS)
    )
    label = find_key(rows[0], (class_column,)) if class_column else _class_column(rows)
    if label is not None and label != image:
        return Columns(image, label, (), split, group, study is not None, fold)
    others = [
        key for key in rows[0] if key not in (image, split, group) and find_key({key: 0}, NO_CLASSES) is None
    ]
    one_hot = _one_hot(rows, others)
    found = Columns(image, "", one_hot, split, group, study is not None, fold)
    return found if len(one_hot) > 1 and not class_column else None


def _class_column(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the column of the class; of numbers beside their names, as EuroSAT has them, that of the names."""
    found = [key for name in CLASS_KEYS if (key := find_key(dict(rows[0]), (name,)))]
    named = [key for key in found if "name" in key.lower()]
    for key in named if found and all(str(row.get(found[0])).isdigit() for row in rows) else ():
        pairs = {(str(row.get(found[0])), str(row.get(key) or "")) for row in rows}
        numbers, names = map(set, zip(*pairs, strict=True))
        if len(pairs) == len(numbers) == len(names) and not any(n.isdigit() or not n.strip() for n in names):
            return key
    return found[0] if found else None


def _one_hot(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that say whether a class fits: 1, 0, −1 where that is uncertain, or nothing.

    Columns without anything in them are some of a table in which other classes have gaps, too.
    """
    bits = {key: [bit_of(row.get(key)) for row in rows] for key in keys}
    found = {key: own for key, own in bits.items() if None not in own}
    told = {key: own for key, own in found.items() if set(own) != {NOT_KNOWN}}
    gaps = len(told) > 1 and any(NOT_KNOWN in own for own in told.values())
    return tuple(found if gaps else told)


def bit_of(value: Any) -> int | None:
    """Return 1, 0, or −1 where a cell doesn't say whether a class fits; None: it holds something else.

    >>> bit_of("Yes"), bit_of("n"), bit_of("1.0"), bit_of(""), bit_of("maybe")
    (1, 0, 1, -1, None)
    """
    if isinstance(value, TwoCells):
        first, other = map(bit_of, value.cells)
        return None if other is None else first
    if value is None or value != value or str(value).strip().lower() in ("", *MISSING_WORDS):
        return NOT_KNOWN
    try:
        number = float(_WORDS.get(str(value).strip().lower(), value))
    except (TypeError, ValueError):
        return None
    return int(number) if number in (0, 1, NOT_KNOWN) else None


def check_bits(
    place: str,
    rows: Sequence[tuple[int, Mapping[str, Any]]],
    key: str,
    *,
    asked: bool = False,
    otherwise: str = "name the others with -o classes=NAME,…",
) -> None:
    """Make sure that a column isn't one of 0 and 1 but for a few cells: without it its images would say "no".

    Args:
        place: The table.
        rows: Numbers of rows, and the rows.
        key: The column.
        asked: The user says that it is a class.
        otherwise: What to do where it is no class.

    Raises:
        DataError: It is, or it was asked for and holds something else.
    """
    odd = [(number, row.get(key)) for number, row in rows if bit_of(row.get(key)) is None]
    if odd and (asked or _mostly_bits(rows, key)):
        raise DataError(
            f'column "{key}" holds "{str(odd[0][1])[:40]}", which is neither 0 nor 1, so whether it is a class '
            "isn't known",
            where=f"{place}:{odd[0][0]}",
            fix=f"write 1, 0 or nothing in its cells; where it is none, {otherwise}",
        )


def _mostly_bits(rows: Sequence[tuple[int, Mapping[str, Any]]], key: str) -> bool:
    bits = [bit_of(row.get(key)) for _, row in rows]
    clear = sum(bit in (0, 1) for bit in bits)
    return clear > 0 and clear >= _MOSTLY * (clear + bits.count(None))


def check_odd_bits(path: Path) -> None:
    """Make sure that a table of several columns of 0 and 1 holds nothing else in them, and no name stands twice.

    Raises:
        DataError: A cell does, or columns of one name differ.
    """
    rows = [*enumerate(first_table_rows(path), 2)]
    for _, row in rows:
        refuse_doubles(row, row)
    keys = [key for key in (rows[0][1] if rows else ()) if find_key({key: 0}, NO_CLASSES) is None]
    mostly = [key for key in keys if _mostly_bits(rows, key)]
    for key in mostly if len(mostly) > 1 else ():
        check_bits(str(path), rows, key, otherwise="take the column out of the table")


def class_tables(root: Path) -> list[Path]:
    """Return the files of a folder that are tables of classes, those that are about its images if there are some.

    Forms for predictions count only where nothing else is there. Without any, those in the folders of the splits count.
    """
    found = [path for path in table_files(root) if columns_of(path) is not None]
    if not found:  # a table in each folder of the splits, as Roboflow writes _classes.csv
        folders = [folder for split, folder in split_folders(root) if split is not None]
        found = [path for folder in folders for path in table_files(folder) if columns_of(path) is not None]
    if not found:  # in folders beside those of the images that they name, as ISIC has them
        folders = [root / name for name, is_folder in entries_of(root) if is_folder and not split_of(name)]
        paths = [path for folder in folders if not list_images(folder) for path in table_files(folder)]
        paths = [path for path in paths if path.suffix.lower() in (".csv", ".tsv")]
        found = [path for path in paths if columns_of(path) is not None and _weight(root, path) != "none"]
    found = [path for path in found if _weight(root, path) != "none"] or found
    return [path for path in found if not is_form(path)] or found


def _weight(root: Path, path: Path) -> Literal["none", "some", "most"]:
    """Return how many images a table is about: those of its folder where that is a split, else those of the set."""
    return table_weight(path.parent if split_of(path.parent.name) else root, path, ID_KEYS)


def refuse_denials(path: Path, rows: Sequence[tuple[int, Any]]) -> None:
    """Refuse a table whose rows say of a class that it is there, or that it isn't, as OpenImages' labels of images.

    Raises:
        DataError: Such a column holds 0; the row would be read as a class that is there.
    """
    key = find_key(rows[0][1], _CONFIDENCES) if rows and isinstance(rows[0][1], dict) else None
    denied = (number for number, row in rows if key and isinstance(row, dict) and bit_of(row.get(key)) == 0)
    if (number := next(denied, None)) is not None:
        raise DataError(
            f'"{key}" is 0, which says that the class of the row is not there',
            where=f"{path}:{number}",
            fix="write a column of 1, 0 or nothing for each class; what is empty isn't known",
        )


def is_form(path: Path) -> bool:
    """Return whether a table is a form for predictions by its name, as Kaggle's sample_submission.csv is."""
    return "submission" in words_of(path.stem)


def class_weight(root: Path) -> Literal["none", "some", "most"]:
    """Return whether tables give a class to "none", "some" or "most" of a folder's images."""
    found = {_weight(root, path) for path in class_tables(root)}
    return "most" if "most" in found else "some" if "some" in found else "none"


def is_box_table(path: Path) -> bool:
    """Return whether a table has columns of boxes, outlines or points, which are no class of a whole image."""
    rows = first_table_rows(path, 1)
    return bool(rows) and find_key(rows[0], ID_KEYS) is not None and _has_boxes(rows[0])


def _has_boxes(row: dict[str, Any]) -> bool:
    return box_columns(row) is not None or find_key(row, _BOX_KEYS) is not None


def naming_column(rows: Sequence[Mapping[str, Any]], images: Collection[str]) -> str | None:
    """Return the column of a table whose cells name images, under whatever name, or None."""
    keys = [key for key in rows[0] if isinstance(key, str)]
    shares = {key: sum(str(row.get(key) or "").strip() in images for row in rows) / len(rows) for key in keys}
    found = max(shares, key=lambda key: shares[key], default="")
    return found if found and shares[found] >= _NAMED else None


def guessed_columns(root: Path) -> list[tuple[Path, str, Columns | None]]:
    """Return the tables with a column of names of the set's images, under whatever name.

    Each is the table, that column, and the columns of image and class; None where the class isn't the one other
    column, with few values. Left out are tables of boxes, forms for predictions, and tables that name images and say
    nothing of them, where another table says something.
    """
    found: list[tuple[Path, str, Columns | None]] = []
    images: dict[str, list[Path]] | None = None
    for path in table_files(root):
        rows = first_table_rows(path)
        if not rows or _has_boxes(rows[0]):
            continue
        images = name_index(root) if images is None else images
        image = naming_column(rows, images)
        if image is None:
            continue
        keys = [key for key in rows[0] if isinstance(key, str)]
        split, fold = (find_key(rows[0], keys) or "" for keys in (SPLIT_KEYS, FOLD_KEYS))
        others = [key for key in keys if key not in (image, split, fold)]
        known = find_key(dict.fromkeys(others), CLASS_KEYS)
        label = known
        if label is None and len(others) == 1:
            values = {str(row.get(others[0])) for row in rows}
            fractions = any("." in value.removesuffix(".0") for value in values)
            label = others[0] if 2 <= len(values) <= len(rows) / 2 and not fractions else None
        found.append((path, image, None if label is None else Columns(image, label, (), split, fold=fold)))
    telling = [
        one for one in found if not is_form(one[0]) and (one[2] or len(first_table_rows(one[0], 1)[0]) > 1)
    ]
    return telling or found
