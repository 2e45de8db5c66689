"""Rows of tables of boxes: those that hold several, that several people wrote, and that say that nothing is there."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.class_columns import CLASS_KEYS, GROUP_KEYS, ID_KEYS, SPLIT_KEYS, naming_column
from vitp.data.formats.tables import box_columns, find_key, first_table_rows, table_weight
from vitp.data.formats.walk import as_option, name_index, words_of

SEVERAL_BOXES = ("boxesstring", "boxes_string")
"""Columns whose cells hold the boxes of an image, parted by semicolons."""

_ANNOTATOR_KEYS = (
    "rad_id",
    "radiologist",
    "annotator",
    "annotator_id",
    "reader",
    "reader_id",
    "rater",
    "rater_id",
)
_NOTHING = (
    "no finding",
    "no findings",
    "no object",
    "no objects",
    "no box",
    "none",
    "empty",
    "nothing",
    "normal",
)
"""Classes of rows without a box that say that there is nothing to be boxed, as VinDr-CXR's "No finding"."""

BoxForm = Literal["corners", "size", "centre"]
"""What the four numbers of a box are."""

_CLASS_KEYS = (
    *CLASS_KEYS,
    "labelname",
    "label_id",
    "class_id",
    "category_id",
    "category_name",
    "classid",
    "categoryid",
    "object",
    "type",
)
_CROWD_KEYS = ("isgroupof", "is_group_of", "iscrowd", "is_crowd", "difficult")
"""Columns of 1 where a box holds several objects as one, as OpenImages and COCO have them, or a difficult one."""

_SIZE_KEYS = (("width", "height"), ("image_width", "image_height"), ("img_width", "img_height"))


@dataclass(frozen=True)
class TableColumns:
    """Columns of a table: image, class ("" without), box (four, or one of four numbers), what these are, and others."""

    image: str
    label: str
    box: tuple[str, ...]
    form: BoxForm | Literal[""]
    split: str
    group: str
    size: tuple[str, ...]
    crowd: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        path: Path,
        rows: Sequence[tuple[int, Mapping[str, Any]]],
        image: str | None,
        label: str | None,
        box: tuple[str, ...] | None,
        known: tuple[str, ...] | None,
    ) -> TableColumns:
        """Return those of a table's rows, of which options name some; `box` is one or four columns.

        Raises:
            DataError: One that is needed isn't there.
            ConfigError: One that an option names isn't there.
        """
        head = dict(rows[0][1]) if rows else {}
        for name in (image, label, *(box or ())):
            if name and find_key(head, (name,)) is None:
                where, fix = str(path), f"there are {', '.join(map(str, head)) or 'none'}"
                raise ConfigError(f'has no column "{name}"', where=where, fix=fix)
        found = box_columns(head) if box is None else ((*(cast(str, find_key(head, (n,))) for n in box),), "")
        image_key = find_key(head, (image,) if image else ID_KEYS)
        if image_key is None:
            raise DataError("has no column of images", where=str(path), fix="-o image_column=COLUMN names it")
        if found is None or len(found[0]) not in (1, 4):
            what = "has no columns of a box" if found is None else "isn't one or four"
            fix = "-o box_columns=x,y,w,h (or the one that holds four numbers) names them"
            raise DataError(what, where=str(path), fix=fix)
        label_key = find_key(head, (label,) if label else _CLASS_KEYS) or ""
        if not label_key and (known is None or len(known) != 1):
            fix = "-o class_column=COLUMN names it; -o classes=NAME calls all boxes so"
            raise DataError("has no column of classes", where=str(path), fix=fix)
        split, group = (find_key(head, keys) or "" for keys in (SPLIT_KEYS, GROUP_KEYS))
        sizes = (tuple(find_key(head, (name,)) or "" for name in names) for names in _SIZE_KEYS)
        size = next((keys for keys in sizes if all(keys) and not set(keys) & set(found[0])), ())
        crowd = tuple(key for name in _CROWD_KEYS if (key := find_key(head, (name,))))
        return cls(image_key, label_key, found[0], cast(BoxForm, found[1]), split, group, size, crowd)


def spread(rows: Iterable[tuple[int, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """Return rows of one box each, of rows whose cell may hold several: "x y x y;x y x y", as GWHD's BoxesString."""
    found: list[tuple[int, Mapping[str, Any]]] = []
    for number, row in rows:
        if isinstance(row, dict):
            key = find_key(row, SEVERAL_BOXES)
            parts = str(row.get(key) or "").split(";") if key else []
            told = [part for part in parts if not _says_nothing(part)]  # "no_box"
            found += [(number, {**row, key: part}) for part in told or [""]] if key else [(number, row)]
    return found


def rows_of_annotator(
    rows: Sequence[tuple[int, Mapping[str, Any]]], image: str, annotator: str, where: str
) -> tuple[list[tuple[int, Mapping[str, Any]]], str]:
    """Return the rows of one of several people who boxed the same images, and a line that says whose.

    Args:
        rows: Numbers of rows, and the rows.
        image: Column of the image.
        annotator: Their name in the table; "all" takes the boxes of all for objects; "" where nobody said it.
        where: The table.

    Raises:
        DataError: Several boxed an image and nobody said whose boxes count, or there is nobody of this name.
    """
    key = (find_key(dict(rows[0][1]), _ANNOTATOR_KEYS) if rows else None) or ""
    people: dict[str, set[str]] = defaultdict(set)
    for _, row in rows if key else ():
        people[str(row.get(image))].add(str(row.get(key)).strip())
    names = sorted(set().union(*people.values()))
    listed = ", ".join(names[:8])
    if annotator and annotator != "all":
        if annotator not in names:
            fix = f"choose one of {listed}, or all" if names else "leave the option annotator out"
            raise DataError(f'holds no boxes of "{annotator}"', where=where, fix=fix)
        own = [(number, row) for number, row in rows if str(row.get(key)).strip() == annotator]
        return own, f'{len(own):,} of {len(rows):,} rows, those with "{annotator}" in the column "{key}"'
    shared = sum(len(own) > 1 for own in people.values())
    if not shared:
        return list(rows), ""
    if not annotator:
        raise DataError(
            f'the column "{key}" says that several people ({listed}) boxed the same images ({shared:,}), so an object may '
            "have several boxes",
            where=where,
            fix=f"{as_option('annotator', names[0])} reads the boxes of one, -o annotator=all takes each box for an object",
        )
    return list(rows), f'the boxes of all in the column "{key}" ({listed}) count, each as an object'


def names_images(base: Path, path: Path) -> bool:
    """Return whether a table is about the images of a folder, whatever its column of images is called."""
    if unnamed_column(base, path) is not None:
        return True
    rows = first_table_rows(path)
    return find_key(rows[0], ID_KEYS) is not None and table_weight(base, path, ID_KEYS) != "none"


def unnamed_column(base: Path, path: Path) -> str | None:
    """Return the column that names the images where its own name doesn't say so (`patientId`), or None."""
    rows = first_table_rows(path)
    if not rows or find_key(rows[0], ID_KEYS) is not None:
        return None
    return naming_column(rows, name_index(base))


class Nothings:
    """Which classes of rows without a box say that nothing is in the image.

    They are those of such a name ("No finding"), and the number 0 that has never a box beside others that always have.

    Args:
        rows: Class of each row, and whether it has a box; without those whose box can't be read.
        numbered: The numbers of the table may say so; else they are names that the user gave.
    """

    def __init__(self, rows: Iterable[tuple[str, bool]], numbered: bool) -> None:
        rows = list(rows)
        boxed = {name for name, box in rows if box}
        bare = Counter(name for name, box in rows if name and not box)
        numbers = numbered and bool(boxed) and all(name.isdigit() for name in (*boxed, *bare))
        zero = numbers and set(bare) == {"0"} and "0" not in boxed
        self.counts = {name: count for name, count in bare.items() if zero or _says_nothing(name)}

    def understood(self) -> list[str]:
        """Return a line for each of them."""
        return [
            f'"{name}" without a box in {count:,} {"row" if count == 1 else "rows"}: nothing is there, no class'
            for name, count in self.counts.items()
        ]


def _says_nothing(category: str) -> bool:
    """Return whether the class of a row without a box says that nothing is in the image."""
    return " ".join(words_of(category)) in _NOTHING
