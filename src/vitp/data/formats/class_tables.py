"""Tables of image → class or classes: a column of names or numbers, or a column of 0 and 1 for each class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.tables import (
    IMAGE_KEYS,
    PATIENT_KEYS,
    STUDY_KEYS,
    TableImages,
    find_key,
    first_table_rows,
    raw_rows,
    refuse_several_tables,
    table_files,
    table_weight,
)
from vitp.data.formats.walk import comma_list, name_index, split_of
from vitp.records.labels import LabelledSet

_ID_KEYS = (*IMAGE_KEYS, "id", "name")
CLASS_KEYS = (
    *("label", "labels", "class", "classes", "class_name", "classname", "category", "scene"),
    *("diagnosis", "dx", "target", "tag", "tags", "label_name", "finding_labels"),
)
_BOX_KEYS = ("xmin", "x_min", "x1", "bbox", "bbox_x", "rle", "encodedpixels", "segmentation")
SPLIT_KEYS = ("split", "set", "subset", "partition", "fold")
_SEVERAL_KEYS = ("labels", "classes", "tags")
"""Names of columns that say that there are several classes."""

GROUP_KEYS = ("group", *PATIENT_KEYS, "series_id", "study_id", "video_id", "scene_id")
_NO_CLASSES = (*GROUP_KEYS, "age", "sex", "gender", "index", "unnamed:_0", "")
"""Columns that may hold 0 and 1, and are no classes."""

_NOT_KNOWN = -1
_WORDS = {"true": 1, "false": 0}
_MISSING = ("nan", "na", "n/a", "#n/a", "<na>", "null")
"""What programs write into a cell that holds nothing."""
_SEPARATORS = {"bar": "|", "semicolon": ";", "comma": ",", "blank": " "}
_NAMED = 0.9
"""Share of a column's values that name images when it is the column of the images."""


@dataclass(frozen=True)
class Columns:
    """Columns of a table: of the image, of its class (or else those of 0 and 1, one a class), of split and group.

    With `study`, the column `image` names the folder of a study.
    """

    image: str
    label: str = ""
    one_hot: tuple[str, ...] = ()
    split: str = ""
    group: str = ""
    study: bool = False


def columns_of(
    path: Path, image_column: str | None = None, class_column: str | None = None, patient: str = ""
) -> Columns | None:
    """Return the columns of a table of classes, or None when it isn't one; the options name unusual ones."""
    rows = first_table_rows(path)
    if not rows:
        return None
    image = find_key(rows[0], (image_column,) if image_column else _ID_KEYS)
    study = None if image or image_column else find_key(rows[0], STUDY_KEYS)
    image = image or study
    if image is None or find_key(rows[0], _BOX_KEYS) is not None:
        return None
    split, group = (
        find_key(rows[0], keys) or ""
        for keys in (SPLIT_KEYS, (patient, *GROUP_KEYS) if patient else GROUP_KEYS)
    )
    label = find_key(rows[0], (class_column,) if class_column else CLASS_KEYS)
    if label is not None and label != image:
        return Columns(image, label, (), split, group, study is not None)
    others = [
        key for key in rows[0] if key not in (image, split, group) and find_key({key: 0}, _NO_CLASSES) is None
    ]
    one_hot = _one_hot(rows, others)
    found = Columns(image, "", one_hot, split, group, study is not None)
    return found if len(one_hot) > 1 and not class_column else None


def _one_hot(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that say whether a class fits: 1, 0, −1 where that is uncertain, or nothing.

    Columns without anything in them are some of a table in which other classes have gaps, too.
    """
    bits = {key: [_bit(row.get(key)) for row in rows] for key in keys}
    found = {key: own for key, own in bits.items() if None not in own}
    told = {key: own for key, own in found.items() if set(own) != {_NOT_KNOWN}}
    gaps = len(told) > 1 and any(_NOT_KNOWN in own for own in told.values())
    return tuple(found if gaps else told)


def _bit(value: Any) -> int | None:
    """Return 1, 0, or −1 where a cell doesn't say whether a class fits; None: it holds something else."""
    if value is None or str(value).strip() == "" or value != value:
        return _NOT_KNOWN
    try:
        number = float(_WORDS.get(str(value).strip().lower(), value))
    except (TypeError, ValueError):
        return None
    return int(number) if number in (0, 1, _NOT_KNOWN) else None


def class_tables(root: Path) -> list[Path]:
    """Return the files of a folder that are tables of classes, those that are about its images if there are some."""
    found = [path for path in table_files(root) if columns_of(path) is not None]
    return [path for path in found if table_weight(root, path, _ID_KEYS) != "none"] or found


def class_weight(root: Path) -> Literal["none", "some", "most"]:
    """Return whether tables give a class to "none", "some" or "most" of a folder's images."""
    found = {table_weight(root, path, _ID_KEYS) for path in class_tables(root)}
    return "most" if "most" in found else "some" if "some" in found else "none"


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
        split = find_key(rows[0], SPLIT_KEYS) or ""
        others = [key for key in keys if key not in (image, split)]
        known = find_key(dict.fromkeys(others), CLASS_KEYS)
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
    separator: str = "",
) -> LabelledSet:
    """Read a table of image → class or classes. Where an image of the set has several, all have `tags`.

    A column of patients, subjects or the like gives the groups, which our own splits keep together.

    Args:
        root: The table, or the folder that holds it; images lie anywhere below, named with or without suffix.
            Tables named train, val and test are read together.
        options: Name, licence, splits.
        table: Name of the table in the folder, where there are several.
        image_column: Column of the image, where it isn't one of the usual.
        class_column: Column of the class, likewise.
        classes: The classes in order; where the table holds numbers, the names of 0, 1, ….
        separator: What parts several classes in a cell: "bar", "semicolon", "comma", "blank" or "none"; by default
            the first of the first three that occurs. "rows": an image has the classes of all its rows.

    Raises:
        DataError: The table can't be understood, or rows contradict each other.
        ConfigError: There is no such separator.
    """
    if separator and separator not in (*_SEPARATORS, "none", "rows"):
        fix = f"choose {', '.join(_SEPARATORS)}, none or rows"
        raise ConfigError(f'is "{separator}"', where="separator", fix=fix)
    base = root if root.is_dir() else root.parent
    reading = _Reading(SetBuilder(base, options), TableImages(base), comma_list(classes), separator)
    guessed = {} if image_column or class_column or root.is_file() else _guessed(root, table)
    for path in _paths(root, table) if not guessed else list(guessed):
        columns = guessed.get(path) or columns_of(path, image_column, class_column, options.patient)
        if columns is None:
            list(raw_rows(path))  # a row that can't be read is what is wrong then
            fix = "name them with the options image_column and class_column"
            raise DataError("has no columns of image and class", where=str(path), fix=fix)
        reading.read(path, columns)
    return reading.build()


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


@dataclass(frozen=True)
class _Entry:
    """What rows say of an image: its classes, split and group, and which row said it first.

    `unknown` are classes of which the row says nothing; with `denies` it says of some that they don't fit.
    """

    labels: tuple[str, ...]
    split: str | None
    group: str
    where: str
    unknown: tuple[str, ...] = ()
    fold: int | None = None
    denies: bool = False

    @property
    def is_silent(self) -> bool:
        """Whether no class is known to fit or not to fit."""
        return bool(self.unknown) and not self.labels and not self.denies


@dataclass
class _Reading:
    """The images of tables while they are read.

    Attributes:
        builder: Builder of the set.
        images: The set's images by name.
        known: Classes that were asked for; None: all.
        separator: The option.
        found: What the rows say of each image.
        persons: Group → what it is a group of, where it is a person's.
        several: Some image has several classes.
    """

    builder: SetBuilder
    images: TableImages
    known: tuple[str, ...] | None
    separator: str
    found: dict[Path, _Entry] = field(default_factory=dict)
    persons: dict[str, str] = field(default_factory=dict)
    several: bool = False

    def read(self, path: Path, columns: Columns) -> None:
        """Take all rows of a table."""
        rows = list(raw_rows(path))
        mark = self._separator(path, columns, [row for _, row in rows])
        listed = ", ".join(columns.one_hot)
        if columns.label:
            said = f'"{columns.label}" its class' + (f'es, parted by "{mark}"' if mark else "")
        else:
            said = f"1 in one of {listed} its class"
            bits = [_bit(row.get(key)) for _, row in rows if isinstance(row, dict) for key in columns.one_hot]
            if unsaid := bits.count(_NOT_KNOWN):
                said += f" ({unsaid:,} of {len(bits):,} cells are empty or −1: not known, which is no “no”)"
        place = self.builder.place(path)
        noun = "study, and all images in its folder" if columns.study else "image"
        self.builder.understand(f'{place}: column "{columns.image}" is the {noun}, {said}')
        if columns.group:
            self.builder.understand(f'{place}: images of one "{columns.group}" are a group')
        for number, row in rows:
            self._take(self.builder.place(path, number), row, columns, mark, split_of(path.stem))

    def _separator(self, path: Path, columns: Columns, rows: Sequence[Any]) -> str:
        """Return what parts several classes in the cells of a table, "" where nothing does.

        Raises:
            DataError: Blanks may part classes or be within their names.
        """
        if not columns.label or self.separator in ("none", "rows"):
            return ""
        if self.separator:
            return _SEPARATORS[self.separator]
        texts = {str(value) for row in rows if isinstance(row, dict) and (value := row.get(columns.label))}
        for mark in list(_SEPARATORS.values())[:3]:
            if any(mark in text for text in texts):
                return mark
        blanks = [text for text in sorted(texts) if " " in text.strip()]
        words = {word for text in texts for word in text.split()}
        if blanks and (columns.label.lower() in _SEVERAL_KEYS or len(texts) > len(words)):
            raise DataError(
                f'"{blanks[0]}" in the column "{columns.label}" may be one class or {len(blanks[0].split())} classes',
                where=str(path),
                fix="-o separator=none reads each cell as one class, -o separator=blank as several",
            )
        return ""

    def _take(self, where: str, row: Any, columns: Columns, mark: str, split: str | None) -> None:
        name = str(row.get(columns.image) or "").strip() if isinstance(row, dict) else ""
        if not name:
            raise DataError(
                "row names no image", where=where, fix="name the column with the option image_column"
            )
        labels = self._labels(where, name, _texts(row, columns, mark))
        if labels is None:
            return
        places = self.images.named(name, study=columns.study)
        if not places or (len(places) > 1 and not columns.study):
            fate = "is missing" if not places else f"is {len(places)} files"
            self.builder.lose(where, f"{name} {fate}; left out", absent=not places)
            return
        told = split_of(str(row.get(columns.split) or "")) if columns.split else None
        group = str(row.get(columns.group) or "").strip() if columns.group else ""
        unknown = tuple(key for key in columns.one_hot if _bit(row.get(key)) == _NOT_KNOWN)
        fold = str(row.get(columns.split) or "").strip() if columns.split.lower() == "fold" else ""
        number = int(fold) if fold.isdecimal() else None
        denies = len(unknown) < len(columns.one_hot)
        entry = _Entry(labels, told or split, group, where, unknown, number, denies)
        if group:
            keys = (*PATIENT_KEYS, self.builder.options.patient)
            self.persons[group] = "patient" if find_key({columns.group: 0}, keys) else ""
        for path in places:
            self._enter(path, name, entry)

    def _enter(self, path: Path, name: str, entry: _Entry) -> None:
        """Take what a row says of one image, together with what earlier rows said."""
        labels, where = entry.labels, entry.where
        earlier = self.found.setdefault(path, entry)
        if self.separator == "rows":
            both = tuple(dict.fromkeys((*earlier.labels, *labels)))
            self.found[path] = replace(earlier, labels=both)
        elif earlier.labels != labels:
            raise DataError(
                f'{name} has the class "{", ".join(labels)}" here and "{", ".join(earlier.labels)}" in {earlier.where}',
                where=where,
                fix="name its class once; -o separator=rows reads the classes of all its rows",
            )
        if earlier.split != entry.split:
            what = f"{name} is in the split {entry.split} here and {earlier.split} in {earlier.where}"
            raise DataError(what, where=where, fix="name it once")
        self.several = self.several or len(self.found[path].labels) > 1 or bool(entry.unknown)

    def _labels(self, where: str, name: str, texts: Sequence[str] | None) -> tuple[str, ...] | None:
        """Return the classes of a row, None with a finding where they can't be told."""
        if texts is not None and len(texts) == 1 and texts[0].lower() in _MISSING:
            texts = texts if texts[0] in (self.known or ()) else None
        if texts is None:
            self.builder.note(where, f"{name} has no class; left out")
            return None
        if self.known is None:
            return tuple(texts)
        kept: list[str] = []
        for text in texts:
            numbered = text.isdigit() and text not in self.known and int(text) < len(self.known)
            label = self.known[int(text)] if numbered else text
            if label in self.known:
                kept.append(label)
            elif len(texts) == 1 or text.isdigit():
                self.builder.note(where, f'unknown class "{text}"; {name} left out')
                return None
        return tuple(kept)

    def build(self) -> LabelledSet:
        """Return the set: each image with one class, or all with the classes that fit.

        Images of which every class is unknown are kept without labels: they are neither yes nor no.
        """
        seen: set[str] = set()
        silent = [path for path, entry in self.found.items() if self.several and entry.is_silent]
        for path, entry in list(self.found.items()):
            if not entry.labels and not self.several:
                self.builder.note(
                    self.found.pop(path).where, f"{self.builder.place(path)} has no class; left out"
                )
        self._note_silent(silent)
        named = self.known or {name for entry in self.found.values() for name in entry.labels}
        hidden = set(silent)
        for path, entry in self.found.items():
            unknown = tuple(name for name in entry.unknown if name in named)
            told: dict[str, Any] = {"tags": entry.labels, "unknown": unknown}
            if path in hidden:
                told = {}
            elif not self.several:
                told = {"scene": entry.labels[0]}
            person = self.persons.get(entry.group, "")
            others: dict[str, Any] = {"group": entry.group, "person": person, "fold": entry.fold}
            category = entry.labels[0] if len(entry.labels) == 1 else ""
            if self.builder.add_file(path, split=entry.split, category=category, **others, **told):
                seen.update(entry.labels)
        if self.several:
            self.builder.understand("images may have several classes")
        numbers = all(name.isdigit() for name in seen)
        names = self.known or sorted(seen, key=int if numbers else str)
        return self.builder.build(scene_classes=names)

    def _note_silent(self, paths: Sequence[Path]) -> None:
        """Say how many images each table leaves without any known class."""
        tables: dict[str, list[Path]] = defaultdict(list)
        for path in paths:
            tables[self.found[path].where.rpartition(":")[0]].append(path)
        for table, own in tables.items():
            images = "image has" if len(own) == 1 else "images have"
            self.builder.note(
                table,
                f"{len(own):,} {images} no known class, as all cells are empty or −1 ({self.builder.place(own[0])} for "
                "example); kept without labels, not as “no”",
            )


def _texts(row: Mapping[str, Any], columns: Columns, mark: str) -> list[str] | None:
    """Return the classes in a row, None where it says nothing of them."""
    if not columns.label:
        return [key for key in columns.one_hot if _bit(row.get(key)) == 1]
    value = row.get(columns.label)
    whole = "" if value is None else str(value)
    parts = value if isinstance(value, list) else whole.split(mark) if mark else [whole]
    texts = dict.fromkeys(text for part in parts if (text := str(part).strip()))
    # pandas writes whole numbers with gaps as 3.0
    return [text.removesuffix(".0") if text.removesuffix(".0").isdigit() else text for text in texts] or None
