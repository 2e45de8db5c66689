"""Tables of image → class or classes: a column of names or numbers, or a column of 0 and 1 for each class."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.class_columns import (
    BIT_WORDS,
    MISSING_WORDS,
    NO_CLASSES,
    NOT_KNOWN,
    Columns,
    bit_of,
    check_bits,
    class_tables,
    columns_of,
    guessed_columns,
    refuse_denials,
)
from vitp.data.formats.tables import (
    PATIENT_KEYS,
    TableImages,
    find_key,
    raw_rows,
    refuse_doubles,
    refuse_several_tables,
    table_files,
)
from vitp.data.formats.walk import comma_list, split_of, split_word
from vitp.records.labels import LabelledSet

_SEVERAL_KEYS = ("labels", "classes", "tags")
"""Names of columns that say that there are several classes."""

_SEPARATORS = {"bar": "|", "semicolon": ";", "comma": ",", "blank": " "}


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
            Tables named train, val and test, or in folders of these names, are read together.
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
    paths = _paths(root, table) if not guessed else list(guessed)
    for path in paths:
        columns = guessed.get(path) or columns_of(path, image_column, class_column, options.patient)
        if columns is None:
            list(raw_rows(path))  # a row that can't be read is what is wrong then
            fix = "name them with the options image_column and class_column"
            raise DataError("has no columns of image and class", where=str(path), fix=fix)
        reading.read(path, columns, split_of(path.stem) or (split_word(path.stem) if paths[1:] else None))
    if table is None and root.is_dir():
        others = [path for path in table_files(root) if path.suffix.lower() in (".csv", ".tsv")]
        if left := [path.name for path in others if path not in reading.tables]:
            line = f"there, and not read: {', '.join(left[:6])}; -o table=NAME reads another table"
            reading.builder.understand(line)
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
    # Of several each tells its split: by its name, or by a word of it or of its own folder's.
    words = (
        (split_word(path.parent.name) or split_word(path.stem)) if path.parent != root else ""
        for path in paths
    )
    if len(paths) > 1 and not all(
        split_of(path.stem) or word for path, word in zip(paths, words, strict=True)
    ):
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
        tables: Those that were read.
    """

    builder: SetBuilder
    images: TableImages
    known: tuple[str, ...] | None
    separator: str
    found: dict[Path, _Entry] = field(default_factory=dict)
    persons: dict[str, str] = field(default_factory=dict)
    several: bool = False
    tables: list[Path] = field(default_factory=list)

    def read(self, path: Path, columns: Columns, split: str | None) -> None:
        """Take all rows of a table, whose name says the split."""
        self.tables.append(path)
        rows = list(raw_rows(path))
        for number, row in rows:
            if isinstance(row, dict):
                refuse_doubles(row, columns.read)
                _refuse_shapes(row, columns.label, self.builder.place(path, number))
        if path.parent != self.builder.root and (told := split_of(path.parent.name)):
            split, self.images = told, TableImages(path.parent)
        mark = self._separator(path, columns, [row for _, row in rows])
        listed = ", ".join(columns.one_hot)
        if columns.label:
            refuse_denials(path, rows)
        else:
            self._check_others(path, columns, rows)
        if columns.label:
            said = f'"{columns.label}" its class' + (f'es, parted by "{mark}"' if mark else "")
        else:
            texts = {
                str(row.get(key)).strip().lower()
                for _, row in rows
                if isinstance(row, dict)
                for key in columns.one_hot
            }
            words = " and ".join(f"{yes}/{no}" for yes, no in BIT_WORDS if {yes, no} & texts)
            said = f"{'1' if not words else f'1 ({words}: 1 and 0)'} in one of {listed} its class"
            bits = [
                bit_of(row.get(key)) for _, row in rows if isinstance(row, dict) for key in columns.one_hot
            ]
            if unsaid := bits.count(NOT_KNOWN):
                said += f" ({unsaid:,} of {len(bits):,} cells are empty or −1: not known, which is no “no”)"
        place = self.builder.place(path)
        noun = "study, and all images in its folder" if columns.study else "image"
        self.builder.understand(f'{place}: column "{columns.image}" is the {noun}, {said}')
        self._say_splits(place, columns, [row for _, row in rows if isinstance(row, dict)])
        if columns.group:
            self.builder.understand(f'{place}: images of one "{columns.group}" are a group')
        for number, row in rows:
            self._take(self.builder.place(path, number), row, columns, mark, split)

    def _say_splits(self, place: str, columns: Columns, rows: Sequence[Mapping[str, Any]]) -> None:
        """Say what the columns of splits and folds hold, and what of it isn't used."""
        values = {text for row in rows if (text := _cell(row, columns.split))}
        odd = sorted(text for text in values if split_of(text) is None)
        shown = ", ".join(f'"{text}"' for text in odd[:3])
        if len(odd) < len(values):
            self.builder.understand(f'{place}: column "{columns.split}" says the splits')
            if odd:
                self.builder.note(
                    place, f'column "{columns.split}" holds {shown}, which names no split (train, val, test)'
                )
        folds = {number for row in rows if (number := _fold(row, columns)) is not None}
        if folds:
            self.builder.understand(
                f'{place}: column "{columns.fold}" numbers {len(folds)} folds of a cross-validation ({min(folds)}–'
                f"{max(folds)}; vitp finetune --folds {len(folds)}), which are no splits"
            )
        elif values and len(odd) == len(values):
            self.builder.understand(
                f'not used: column "{columns.split}" of {place}, whose values ({shown}) name no split'
            )

    def _check_others(self, path: Path, columns: Columns, rows: Sequence[tuple[int, Any]]) -> None:
        """Refuse a column that would be a class but for a few cells: without it its images would say "no".

        Raises:
            DataError: Such a cell; or a class that was asked for has a column of something else.
        """
        of_image = {columns.image, columns.split, columns.group, *columns.one_hot}
        dicts = [(number, row) for number, row in rows if isinstance(row, dict)]
        for key in dict.fromkeys(key for _, row in dicts for key in row):
            if key in of_image or find_key({key: 0}, NO_CLASSES) is not None:
                continue
            asked = self.known is not None and key in self.known
            if self.known is not None and not asked:
                continue
            check_bits(self.builder.place(path), dicts, key, asked=asked)

    def _separator(self, path: Path, columns: Columns, rows: Sequence[Any]) -> str:
        """Return what parts several classes in the cells of a table, "" where nothing does.

        Raises:
            DataError: Blanks may part classes or be within their names.
        """
        if not columns.label or self.separator in ("none", "rows"):
            return ""
        if self.separator:
            return _SEPARATORS[self.separator]
        cells = [row.get(columns.label) for row in rows if isinstance(row, dict)]
        texts = {str(value) for value in cells if value and _listed(value) is None}
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
        told = split_of(_cell(row, columns.split))
        group = str(row.get(columns.group) or "").strip() if columns.group else ""
        unknown = tuple(key for key in columns.one_hot if bit_of(row.get(key)) == NOT_KNOWN)
        denies = len(unknown) < len(columns.one_hot)
        entry = _Entry(labels, told or split, group, where, unknown, _fold(row, columns), denies)
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
        if texts is not None and len(texts) == 1 and texts[0].lower() in MISSING_WORDS:
            texts = texts if texts[0] in (self.known or ()) else None
        if texts is None:
            self.builder.note(where, f"{name} has no class; left out")
            return None
        if self.known is None:
            return tuple(texts)
        kept: list[str] = []
        for text in texts:
            number = self._number_of(text)
            label = text if number is None else self.known[number]
            if label in self.known:
                kept.append(label)
            elif len(texts) == 1 or text.isdigit():
                self.builder.note(where, f'unknown class "{text}"; {name} left out')
                return None
        return tuple(kept)

    def _number_of(self, text: str) -> int | None:
        """Return the place of a class that a cell numbers, or, of two, answers with a word for 0 or 1; else None."""
        if self.known is None or text in self.known:
            return None
        bit = bit_of(text) if len(self.known) == 2 else None
        number = int(text) if text.isdigit() else NOT_KNOWN if bit is None else bit
        return number if 0 <= number < len(self.known) else None

    def _say_bits(self, names: Sequence[str]) -> None:
        """Say that two classes are called 0 and 1, or no and yes, and how they get names."""
        by_bit = {bit_of(name): name for name in names}
        if self.known is None and not self.several and len(names) == 2 and by_bit.keys() == {0, 1}:
            no, yes = by_bit[0], by_bit[1]
            self.builder.understand(
                f'two classes, called "{no}" and "{yes}" as the cells are: -o classes=A,B names {no} A and {yes} B'
            )

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
        folds = {entry.fold for entry in self.found.values() if entry.fold is not None}
        first = int(bool(folds) and 0 not in folds)  # some count their folds from 1
        for path, entry in self.found.items():
            unknown = tuple(name for name in entry.unknown if name in named)
            told: dict[str, Any] = {"tags": entry.labels, "unknown": unknown}
            if path in hidden:
                told = {}
            elif not self.several:
                told = {"scene": entry.labels[0]}
            person = self.persons.get(entry.group, "")
            others: dict[str, Any] = {"group": entry.group, "person": person}
            others["fold"] = None if entry.fold is None else entry.fold - first
            category = entry.labels[0] if len(entry.labels) == 1 else ""
            if self.builder.add_file(path, split=entry.split, category=category, **others, **told):
                seen.update(entry.labels)
        if self.several:
            self.builder.understand("images may have several classes")
        numbers = all(name.isdigit() for name in seen)
        names = self.known or sorted(seen, key=int if numbers else str)
        self._say_bits([*names])
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


def _refuse_shapes(row: Mapping[str, Any], key: str, where: str) -> None:
    """Raise where a cell of classes holds JSON of objects, as annotation tools write what was drawn into a CSV."""
    if key and re.match(r"\s*(\[\s*)?\{\s*['\"]", str(row.get(key) or "")):
        raise DataError(
            f'the column "{key}" holds JSON of what was drawn, no class ({str(row[key])[:40]})',
            where=where,
            fix="export the labels as JSON or COCO instead of CSV (Label Studio: JSON or JSON-MIN)",
        )


def _cell(row: Mapping[str, Any], key: str) -> str:
    """Return the text of a cell, "" where the row or the table has none."""
    value = row.get(key) if key else None
    return "" if value is None else str(value).strip()


def _fold(row: Mapping[str, Any], columns: Columns) -> int | None:
    """Return the number of a row's fold; pandas writes whole numbers with gaps as 3.0."""
    text = _cell(row, columns.fold).removesuffix(".0")
    return int(text) if text.isdecimal() else None


def _texts(row: Mapping[str, Any], columns: Columns, mark: str) -> list[str] | None:
    """Return the classes in a row, None where it says nothing of them."""
    if not columns.label:
        return [key for key in columns.one_hot if bit_of(row.get(key)) == 1]
    value = row.get(columns.label)
    value = value if (listed := _listed(value)) is None else listed
    whole = "" if value is None else str(value)
    parts = value if isinstance(value, list) else whole.split(mark) if mark else [whole]
    texts = dict.fromkeys(text for part in parts if (text := str(part).strip()))
    # pandas writes whole numbers with gaps as 3.0
    return [text.removesuffix(".0") if text.removesuffix(".0").isdigit() else text for text in texts] or None


def _listed(value: Any) -> list[Any] | None:
    """Return the list in a cell, also where it is written as text (["cat", "dog"], as pandas does); None: no list."""
    if not isinstance(value, str) or not (value.strip().startswith("[") and value.strip().endswith("]")):
        return value if isinstance(value, list) else None
    try:
        found = ast.literal_eval(value.strip())  # JSON's lists of texts and numbers are Python's, too
    except (ValueError, SyntaxError):
        return None
    return found if isinstance(found, list) and all(isinstance(one, (str, int)) for one in found) else None
