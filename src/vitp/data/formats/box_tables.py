"""Tables of boxes: a row for each object, with the image, its class and four numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.box_rows import (
    BoxForm,
    Nothings,
    TableColumns,
    names_images,
    rows_of_annotator,
    spread,
    unnamed_column,
)
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.class_columns import (
    MISSING_WORDS,
    bit_of,
    is_form,
)
from vitp.data.formats.code_names import code_names
from vitp.data.formats.image_labels import ImageLabels, LabelShape
from vitp.data.formats.tables import (
    TableImages,
    box_columns,
    first_table_rows,
    raw_rows,
    refuse_doubles,
    refuse_several_tables,
    table_files,
)
from vitp.data.formats.walk import comma_list, images_below, split_folders, split_of, split_word
from vitp.records.geometry import Box
from vitp.records.labels import LabelledSet

_Four = tuple[float, float, float, float]

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_ROUNDING = 1.0
"""Pixels by which a box may reach outside of its image without speaking against how its numbers are read."""

_SAID = {
    "corners": "left, top, right and bottom",
    "size": "left, top, width and height",
    "centre": "centre, width and height",
}


def box_tables(root: Path) -> list[tuple[Path, Path]]:
    """Return the tables of boxes in a folder, or in those of its splits, each with the folder of its images."""
    bases = list(dict.fromkeys([root, *(folder for _, folder in split_folders(root))]))
    return [
        (path, base)
        for base in bases
        for path in table_files(base)
        if (rows := first_table_rows(path))
        and box_columns(rows[0])
        and not is_form(path)
        and names_images(base, path)
    ]


def read_box_tables(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    table: str | None = None,
    image_column: str | None = None,
    class_column: str | None = None,
    box_columns: str | list[str] | None = None,
    box: Literal["", "corners", "size", "centre"] = "",
    classes: str | list[str] | None = None,
    annotator: str | None = None,
) -> LabelledSet:
    """Read a table with a row for each box.

    Coordinates are pixels, or shares of the image where none is above 1. A row of an image without a box and without
    a class, or with one such as "No finding" (`Nothings`), says that there is nothing in it.

    Args:
        root: The table, or the folder that holds it; images lie anywhere below, named with or without suffix. Tables
            named train, val and test, or in folders of these names, are read together.
        options: Name, licence, splits.
        table: Name of the table in the folder, where there are several.
        image_column: Column of the image, where it isn't one of the usual.
        class_column: Column of the class, likewise.
        box_columns: The four columns of the box, likewise; or the one that holds four numbers.
        box: What the four numbers are: "corners" (left, top, right, bottom), "size" (left, top, width, height) or
            "centre" (centre, width, height); by default what the columns are called, else what fits the images.
        classes: The classes in order; where the table holds numbers, the names of 0, 1, …, or of 1, 2, … where they
            run from 1 to the number of names. One name for all boxes, where there is no column of classes.
        annotator: Whose boxes are read, where a column (`rad_id`, `annotator`, …) names several people for an image;
            "all": each box is an object.

    Raises:
        DataError: The table can't be understood, or its numbers have two readings.
        ConfigError: An option is unknown.
    """
    if box and box not in _SAID:
        raise ConfigError(f'is "{box}"', where="box", fix=f"choose {', '.join(_SAID)}")
    base = root if root.is_dir() else root.parent
    reading = TableReading(SetBuilder(base, options), comma_list(classes), box)
    paths = table_paths(root, table, box_tables)
    for path, folder in paths:
        rows = spread(raw_rows(path))
        named = image_column or unnamed_column(folder, path)
        columns = TableColumns.of(path, rows, named, class_column, comma_list(box_columns), reading.known)
        rows, whose = rows_of_annotator(rows, columns.image, annotator or "", str(path))
        if whose:
            reading.builder.understand(f"{reading.builder.place(path)}: {whose}")
        reading.take(path, folder, rows, columns)
    read = {*(path for path, _ in paths), *(reading.codes or ())[:1]}
    others = [path for path in table_files(base) if path.suffix.lower() in (".csv", ".tsv")]
    if left := [path.name for path in others if path not in read and not is_form(path)]:
        line = f"there, and not read: {', '.join(left[:6])}; -o table=NAME reads another table"
        reading.builder.understand(line)
    return reading.build()


def table_paths(
    root: Path, table: str | None, tables: Callable[[Path], list[tuple[Path, Path]]]
) -> list[tuple[Path, Path]]:
    """Return the tables that are read, each with the folder of its images.

    Args:
        root: The table, or the set's folder.
        table: Name of the one that is meant.
        tables: Finds those of a folder by their columns.

    Raises:
        DataError: There is none, or several that aren't those of splits.
    """
    if root.is_file():
        return [(root, root.parent)]
    if table is not None:
        return [(root / table, root)]
    found = tables(root) or [(path, root) for path in table_files(root)]
    if not found:
        raise DataError("no table found", where=str(root), fix="name it with the option table")
    if len(found) > 1 and not all(split_word(path.stem) or folder != root for path, folder in found):
        refuse_several_tables(root, [path for path, _ in found])
    return found


@dataclass
class TableObject:
    """A row: its place, class, and numbers; None: none, or `wrong` says why they can't be read.

    `shape` is the place that they say, once it is known what the numbers of the table are.
    """

    where: str
    category: str
    numbers: Sequence[float] | None
    wrong: str = ""
    shape: LabelShape | None = None
    crowd: bool = False


@dataclass
class _Image:
    """What rows say of an image."""

    size: tuple[int, int]
    source: str
    split: str | None
    group: str
    objects: list[TableObject] = field(default_factory=list)


@dataclass
class TableReading:
    """The tables of a set while they are read."""

    builder: SetBuilder
    known: tuple[str, ...] | None
    told: BoxForm | Literal[""]
    images: dict[Path, _Image | None] = field(default_factory=dict)

    def take(
        self, path: Path, folder: Path, rows: Sequence[tuple[int, Mapping[str, Any]]], columns: TableColumns
    ) -> None:
        """Take all rows of a table."""
        names = TableImages(folder)
        own: list[tuple[TableObject, tuple[int, int]]] = []
        missing: Counter[str] = Counter()
        for number, row in rows:
            where = self.builder.place(path, number)
            refuse_doubles(row, (columns.image, columns.label, *columns.box))
            name = str(row.get(columns.image) or "").strip()
            found = names.named(name) if name else []
            if len(found) > 1:
                raise DataError(f"{name} is {len(found)} files", where=where, fix="write its folder, too")
            if not found:
                missing[name or "(no name)"] += 1
                continue
            image = self._image(found[0], path, where, row, columns)
            if image is not None:
                image.objects.append(label := self.object_of(where, row, columns))
                label.crowd = any(self._is_crowd(row, key, where) for key in columns.crowd)
                own.append((label, image.size))
        for name, count in missing.items():
            text = f"{name} is missing; {count} {'row' if count == 1 else 'rows'} left out"
            self.builder.lose(self.builder.place(path), text, absent=True)
        self.give_shapes(path, columns, [(x, size) for x, size in own if x.numbers is not None])

    def object_of(self, where: str, row: Mapping[str, Any], columns: TableColumns) -> TableObject:
        """Return what a row says."""
        return _object(where, row, columns)

    def give_shapes(
        self, path: Path, columns: TableColumns, own: Sequence[tuple[TableObject, tuple[int, int]]]
    ) -> None:
        """Give the objects of a table, each with the size of its image, the shapes that their numbers say."""
        four = [cast(_Four, label.numbers) for label, _ in own]
        form, shares = self._meaning(path, columns, list(zip(four, (size for _, size in own), strict=True)))
        for numbers, (label, size) in zip(four, own, strict=True):
            label.shape = LabelShape(box=_box(form, _in_pixels(numbers, size) if shares else numbers))

    def _image(
        self, image: Path, path: Path, where: str, row: Mapping[str, Any], columns: TableColumns
    ) -> _Image | None:
        """Return what is known of an image, None where it can't be used; the first of its rows opens it."""
        builder = self.builder
        if image not in self.images:
            size = builder.size_of(image, where)
            stated = [_whole(row.get(key)) for key in columns.size]
            fits = size is not None and (not stated or builder.agree(where, stated, size, image))
            group = str(row.get(columns.group) or "").strip() if columns.group else ""
            split = split_of(str(row.get(columns.split) or "")) if columns.split else None
            split = split or split_word(path.stem) or self._folder_split(image)
            new = _Image(size, builder.place(path), split, group) if size is not None and fits else None
            self.images[image] = new
        return self.images[image]

    def _folder_split(self, image: Path) -> str | None:
        parts = image.relative_to(self.builder.root).parts[:-1]
        return next((split for part in parts if (split := split_of(part))), None)

    def _meaning(
        self, path: Path, columns: TableColumns, pairs: Sequence[tuple[_Four, tuple[int, int]]]
    ) -> tuple[BoxForm, bool]:
        """Return what the four numbers of a table are, and whether they are shares of the image.

        Raises:
            DataError: They fit the images in two ways, or in none.
        """
        shares = bool(pairs) and all(0 <= value <= 1 for numbers, _ in pairs for value in numbers)
        shares = shares and any(value % 1 for numbers, _ in pairs for value in numbers)
        if shares:
            pairs = [(_in_pixels(numbers, size), size) for numbers, size in pairs]
        misfits = {
            form: sum(not _fits(form, *pair) for pair in pairs) for form in ("corners", "size", "centre")
        }
        shown = ", ".join(columns.box)
        form = self.told or columns.form
        if not self.told and form == "size" and 2 * misfits["size"] > len(pairs) and not misfits["centre"]:
            raise DataError(
                f"{misfits['size']:,} of {len(pairs):,} boxes reach outside their images when {shown} are {_SAID['size']}, "
                f"none when they are {_SAID['centre']}",
                where=str(path),
                fix="-o box=centre or -o box=size says which",
            )
        if not form:
            fitting = [one for one in ("corners", "size") if not misfits[one]]
            if len(fitting) != 1:
                raise DataError(
                    f'the four numbers of "{shown}" may be {_SAID["corners"]}, or {_SAID["size"]}: '
                    f"{'both fit all images' if fitting else 'neither fits all images'}",
                    where=str(path),
                    fix="-o box=corners, -o box=size or -o box=centre says which",
                )
            form = cast(BoxForm, fitting[0])
        if (
            form == "size"
            and columns.box[2:]
            and pairs
            and all(numbers[2:] == size for numbers, size in pairs)
        ):
            raise DataError(
                f"{columns.box[2]} and {columns.box[3]} are those of the images, so the labels are points, which have no "
                "area",
                where=str(path),
                fix="write boxes (xmin, ymin, xmax, ymax), or COCO with -o point_size=PIXELS",
            )
        unit = "shares of the image" if shares else "pixels"
        self.builder.understand(f"{self.builder.place(path)}: {shown} are {_SAID[form]} of boxes in {unit}")
        return form, shares

    def _is_crowd(self, row: Mapping[str, Any], key: str, where: str) -> bool:
        """Return whether a cell says that a box is a crowd or difficult; so does what can't be read, with a finding."""
        value = row.get(key)
        if (bit := bit_of(value)) is not None:
            return bit == 1
        try:
            return float(str(value)) > 0  # degrees of it
        except ValueError:
            self.builder.note(where, f'"{key}" is "{str(value)[:40]}", not 0 or 1; its place is ignored')
            return True

    def build(self) -> LabelledSet:
        """Return the set."""
        builder = self.builder
        seen: dict[str, None] = {}
        for line in self.nothings.understood():
            builder.understand(line)
        if self.codes is not None:
            builder.understand(
                f"{builder.place(self.codes[0])}: the names of the classes, which are codes in the labels"
            )
            builder.understand(
                "a class without a box in an image counts as not there; where only some classes of each image were looked "
                "for (OpenImages), choose those that were: -o classes=…"
            )
        for path, image in self.images.items():
            if image is None:
                continue
            found = builder.labels_of(image.size, image.source)
            for label in image.objects:
                if (name := self._add(found, label)) is not None:
                    seen.setdefault(name)
            person = {"person": "patient"} if image.group else {}
            builder.add_labelled(path, found, split=image.split, group=image.group, **person)
        strangers = [path for path in images_below(builder.root) if path not in self.images]
        if strangers:
            builder.note(
                "images", f"{len(strangers):,} are in no row ({builder.place(strangers[0])}); left out"
            )
        crowds = sum(label.crowd for image in self.images.values() if image for label in image.objects)
        if crowds:
            builder.understand(
                f"crowds: {crowds:,} boxes of several objects or difficult ones are neither learned nor counted"
            )
        return builder.build(object_classes=self.known or sorted(seen))

    def _add(self, found: ImageLabels, label: TableObject) -> str | None:
        """Add an object; return its class where it was used."""
        if label.shape is None:
            if label.wrong or (label.category and label.category not in self.nothings.counts):
                found.lose(label.where, label.wrong or f"has no box ({label.category})", label.category)
            return None
        name, shape = label.category, label.shape
        if not name and self.known is not None and len(self.known) == 1:
            name = self.known[0]
        if not name:
            found.ignore(label.where, "has no class", "object", shape)
            return None
        if self.known is not None and (first := self._first_number) is not None:
            if not 0 <= int(name) - first < len(self.known):
                why = f"class number {name} is not one of {first}–{len(self.known) - 1 + first}"
                found.ignore(label.where, why, name, shape)
                return None
            name = self.known[int(name) - first]
        if self.codes is not None:
            name = self.codes[1].get(name, name)
        added = found.add(label.where, name, shape, known=self.known, difficult=label.crowd)
        return name if added is not None else None

    @cached_property
    def nothings(self) -> Nothings:
        """Classes of rows without a box that say that nothing is there."""
        labels = [x for image in self.images.values() if image for x in image.objects if not x.wrong]
        numbered = not any(name.isdigit() for name in self.known or ())
        return Nothings(((x.category, x.numbers is not None) for x in labels), numbered=numbered)

    @cached_property
    def codes(self) -> tuple[Path, dict[str, str]] | None:
        """The file that names the classes where the tables call them by codes, and the names."""
        found = {label.category for image in self.images.values() if image for label in image.objects}
        found -= {"", *self.nothings.counts}
        return None if found & {*(self.known or ())} else code_names(self.builder.root, found)

    @cached_property
    def _first_number(self) -> int | None:
        """Number of the first class where the option names the numbers of the tables; None: it doesn't."""
        known, found = self.known or (), {x.category for i in self.images.values() if i for x in i.objects}
        names = found - {"", *self.nothings.counts}
        if not (names and all(name.isdigit() for name in names)) or any(name.isdigit() for name in known):
            return None
        first = int("0" not in names and max(map(int, names)) == len(known))
        self.builder.understand(f"classes: the numbers from {first} on are {', '.join(known)}")
        return first


def _object(where: str, row: Mapping[str, Any], columns: TableColumns) -> TableObject:
    category = " ".join(str(row.get(columns.label) or "").split()) if columns.label else ""
    if category.lower() in MISSING_WORDS:
        category = ""
    if re.fullmatch(r"\d+\.0", category):
        category = category[:-2]
    cells = [row.get(key) for key in columns.box]
    if len(cells) == 1:
        value = cells[0]
        cells = value if isinstance(value, list) else list(_NUMBER.findall(str(value or "")))
        if not cells:
            cells = [value]
    texts = [str("" if cell is None else cell).strip() for cell in cells]
    if all(text.lower() in ("", "[]", *MISSING_WORDS) for text in texts):
        return TableObject(where, category, None)
    try:
        x, y, w, h = (float(re.sub(r"^([-+]?\d+),(\d+)$", r"\1.\2", text)) for text in texts)
    except ValueError:
        return TableObject(where, category, None, f"its box is not four numbers ({', '.join(texts)[:40]})")
    return TableObject(where, category, (x, y, w, h))


def _whole(value: Any) -> object:
    try:
        return int(float(value or 0))
    except (TypeError, ValueError, OverflowError):
        return str(value)[:40]


def _box(form: BoxForm, numbers: _Four) -> Box:
    x, y, w, h = numbers
    if form == "corners":
        return numbers
    return (x, y, x + w, y + h) if form == "size" else (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def _in_pixels(numbers: _Four, size: tuple[int, int]) -> _Four:
    x, y, w, h = numbers
    return x * size[0], y * size[1], w * size[0], h * size[1]


def _fits(form: str, numbers: _Four, size: tuple[int, int]) -> bool:
    """Return whether four numbers are a box in its image, when they are read so."""
    x1, y1, x2, y2 = _box(cast(BoxForm, form), numbers)
    inside = min(x1, y1) >= -_ROUNDING and x2 <= size[0] + _ROUNDING and y2 <= size[1] + _ROUNDING
    return inside and x2 > x1 and y2 > y1
