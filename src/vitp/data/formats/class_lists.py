"""Lists of lines "image class" (`train.txt`: `n01440764/a.jpg 3`), with or without a file of the classes' names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vitp.core.errors import DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.class_names import numbered
from vitp.data.formats.folders import find_class_folders
from vitp.data.formats.tables import TableImages
from vitp.data.formats.walk import (
    child,
    comma_list,
    named_file,
    read_label_lines,
    split_of,
    suffixed,
    within,
)
from vitp.io.images import IMAGE_SUFFIXES
from vitp.records.labels import LabelledSet

_FOLDERS = ("meta", "lists", "list", "splits", "ImageSets", "annotations")
_NAMES = ("classes.txt", "class_names.txt", "classnames.txt", "class_list.txt", "labels.txt", "names.txt")
_LOOKED_AT = 200
_SUFFIX = "|".join(re.escape(suffix) for suffix in sorted(IMAGE_SUFFIXES, key=len, reverse=True))
_ROW = re.compile(rf"(?P<image>[^\t]+?(?:{_SUFFIX}))(?P<mark>[ ,;\t]+)(?P<label>\S.*)$", re.IGNORECASE)
_BOXES = re.compile(r"(-?\d+(\.\d+)?,){4}\d+(\s|$)")
_NUMBER = re.compile(r"\d{1,9}$")


@dataclass(frozen=True)
class ListRow:
    """One line of a list: its number, the image, and what stands behind it and behind which mark."""

    number: int
    image: str
    label: str
    mark: str


def _rows(path: Path) -> Iterator[ListRow | None]:
    """Yield the lines of a list, None for one that isn't of an image and something behind it."""
    for number, line in enumerate(read_label_lines(path), 1):
        text = line.strip()
        if text and not text.startswith("#"):
            row = _ROW.match(text)
            yield ListRow(number, row["image"].strip(), row["label"].strip(), row["mark"]) if row else None


def class_lists(root: Path) -> list[Path]:
    """Return the texts in a set's folder, or in `meta/`, `lists/` and the like, whose lines are an image and a class.

    Lists of images and splits are none, nor are those of an image and the flag of one class, as Pascal VOC has them.
    """
    for folder in (root, *(child(root, (name,)) for name in _FOLDERS)):
        paths = [] if folder is None else [*suffixed(folder, ".txt"), *suffixed(folder, ".lst")]
        if found := [path for path in paths if _is_class_list(path)]:
            return found
    return []


def _is_class_list(path: Path) -> bool:
    try:
        rows = list(islice(_rows(path), _LOOKED_AT))
    except DataError:
        return False
    labels = {row.label for row in rows if row is not None}
    if not labels or None in rows or "-1" in labels:
        return False
    return not all(split_of(label) for label in labels)


def _plain_lists(root: Path) -> list[Path]:
    """Return the texts beside lists of classes that are called after a split and name nothing but images."""
    found = []
    for folder in (root, *(child(root, (name,)) for name in _FOLDERS)):
        for path in [] if folder is None else suffixed(folder, ".txt"):
            lines = [line.strip() for line in read_label_lines(path) if line.strip()]
            if (
                lines
                and split_of(path.stem)
                and all(line.lower().endswith(tuple(IMAGE_SUFFIXES)) for line in lines)
            ):
                found.append(path)
    return found


def lists_label(root: Path) -> bool:
    """Return whether lists say the classes of a folder's images, and no folders of classes say the same.

    Raises:
        DataError: Lists and folders say different things, or the images that lists name aren't there.
    """
    paths = class_lists(root)
    if not paths:
        return False
    images = TableImages(root)
    rows = [row for path in paths for row in islice(_rows(path), _LOOKED_AT) if row is not None]
    named = [(own[0], row.label) for row in rows if len(own := images.named(row.image)) == 1]
    if 2 * len(named) < len(rows):
        raise DataError(
            f"{paths[0].name} is a list of images and classes, but most of its images aren't there (the first: "
            f"{rows[0].image})",
            where=str(root),
            fix="add them, or move the list away if it is about other things",
        )
    folders = {folder.path for folder in find_class_folders(root)}
    pairs = {(path.parent, label) for path, label in named}
    if len(folders) < 2 or len({folder for folder, _ in pairs}) < 2:
        return True
    if len(pairs) == len({folder.name for folder, _ in pairs}) == len({label for _, label in pairs}):
        return False
    folder, label = min(pairs)
    raise DataError(
        f'the classes may be those of {paths[0].name} ("{label}") or the folders ({within(folder, root)}), which '
        "divide the images in different ways",
        where=str(root),
        fix="choose with --format lists or --format folders",
    )


def read_class_lists(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    table: str | None = None,
    classes: str | list[str] | None = None,
) -> LabelledSet:
    """Read lists of one image and one class a line, parted by blanks, tabs, commas or semicolons.

    Args:
        root: The set's folder, with lists in itself, in `meta/`, `lists/`, `splits/` or `annotations/`; those called
            train, val and test say the splits. Images lie anywhere below.
        options: Name, licence, splits.
        table: Name of the one list that is read.
        classes: The classes in order; where the list has numbers, the names of 0, 1, …. By default those of
            `classes.txt` and the like, else the numbers.

    Raises:
        DataError: A line can't be understood, numbers and names don't fit, or lines contradict each other.
    """
    builder = SetBuilder(root, options)
    paths = _without_doubles(builder, class_lists(root) if table is None else [root / table])
    if not paths:
        what = "has no list of lines with an image and a class"
        raise DataError(what, where=str(root), fix="name it with the option table")
    splits = {path: split_of(path.stem) for path in paths}
    if len(paths) > 1 and not all(splits.values()):
        what = f"several lists of images and classes: {', '.join(path.name for path in paths)}"
        raise DataError(what, where=str(root), fix="name one with the option table")
    rows = {path: [_checked(path, row) for row in _rows(path)] for path in paths}
    labels = {row.label for own in rows.values() for row in own}
    _refuse_captions(paths, labels, sum(map(len, rows.values())))
    names = _named(builder, labels, comma_list(classes), paths)
    listed = ", ".join(builder.place(path) for path in paths)
    mark = next((row.mark.strip(" ") for own in rows.values() for row in own), "")[:1]
    builder.understand(f"{listed}: a line is an image and its class, parted by {_MARKS[mark]}")
    if any(splits.values()):
        builder.splits_from = f"the list{'s' * (len(paths) > 1)} {', '.join(path.name for path in paths)}"
    _add(builder, rows, names, splits)
    used = [names[label] for label in labels if label in names]
    order = comma_list(classes) or [name for name in dict.fromkeys(names.values()) if name in {*used}]
    return builder.build(scene_classes=tuple(order))


_MARKS = {"\t": "tabs", ",": "commas", ";": "semicolons", "": "blanks"}


def _without_doubles(builder: SetBuilder, paths: Sequence[Path]) -> list[Path]:
    """Leave out `trainval` beside `train` and `val`, which holds the same images again."""
    stems = {path.stem.lower() for path in paths}
    double = "trainval" if {"train", "val"} <= stems else ""
    for path in paths:
        if path.stem.lower() == double:
            builder.note(builder.place(path), "holds the images of train and val again; left out")
    return [path for path in paths if path.stem.lower() != double]


def _checked(path: Path, row: ListRow | None) -> ListRow:
    """Return a line that has one class.

    Raises:
        DataError: It has none, or what may be several.
    """
    if row is None:
        fix = 'write "images/a.jpg 3", an image and its class'
        raise DataError("isn't an image and a class", where=str(path), fix=fix)
    where = f"{path}:{row.number}"
    if _BOXES.match(row.label):
        what = f'"{row.label[:40]}" looks like boxes behind the image, which this format has not'
        raise DataError(what, where=where, fix="write boxes as COCO JSON or YOLO text")
    parted = "\t" in row.mark or "," in row.mark or ";" in row.mark
    words = re.split(r"[\s,;]+", row.label)
    if len(words) > 1 and (not parted or all(_NUMBER.match(word) for word in words)):
        raise DataError(
            f'"{row.label[:40]}" behind the image may be one class or {len(words)} values',
            where=where,
            fix="part image and class by a tab; for several classes of an image write a CSV (image,label) with cells a|b",
        )
    return row


def _refuse_captions(paths: Sequence[Path], labels: set[str], count: int) -> None:
    texts = sorted(label for label in labels if len(label.split()) > 2)
    if texts and 2 * len(texts) > count:
        what = f'has texts of several words that hardly repeat, as captions do ("{texts[0][:40]}")'
        fix = "for captions write a head, image and caption, and read it with --format captions"
        raise DataError(what, where=str(paths[0]), fix=fix)


def _named(
    builder: SetBuilder, labels: set[str], known: tuple[str, ...] | None, paths: Sequence[Path]
) -> dict[str, str]:
    """Return the name of each label in the order of the classes.

    Raises:
        DataError: Numbers and names don't fit.
    """
    numbers = sorted(int(label) for label in labels if _NUMBER.match(label))
    if len(numbers) < len(labels):
        if numbers and known is None:
            odd = next(label for label in sorted(labels) if not _NUMBER.match(label))
            what = f'classes are numbers ({numbers[0]}) and names ("{odd}")'
            raise DataError(what, where=str(paths[0]), fix="write all as names or all as numbers")
        return {label: label for label in (known or sorted(labels))}
    names, origin = (known, "the option classes") if known else _name_file(builder.root, paths)
    if names is None:
        return {str(number): str(number) for number in numbers} | {label: str(int(label)) for label in labels}
    first = 1 if numbers[0] == 1 and numbers[-1] == len(names) else 0
    if numbers[-1] - first >= len(names):
        raise DataError(
            f"the classes run from {numbers[0]} to {numbers[-1]}, but {origin} names {len(names)}, which are 0 to "
            f"{len(names) - 1}",
            where=str(paths[0]),
            fix="name as many classes as there are numbers, in their order, with -o classes=NAME,…",
        )
    builder.understand(f"class numbers: {first}–{len(names) - 1 + first}, named by {origin}")
    by_number = {str(number): name for number, name in enumerate(names, first)}
    return by_number | {label: names[int(label) - first] for label in labels}


def _name_file(root: Path, paths: Sequence[Path]) -> tuple[tuple[str, ...] | None, str]:
    """Return the classes' names in order and the file that they come from; None where no file names them."""
    for folder in dict.fromkeys((root, *(path.parent for path in paths))):
        places = [named_file(folder, (name,)) for name in _NAMES]
        path = next(
            (p for p in (*places, *suffixed(folder, ".names")) if p is not None and p not in paths), None
        )
        if path is None:
            continue
        lines = [line.strip() for line in read_label_lines(path) if line.strip()]
        pairs = numbered(lines)
        if pairs is not None and [number for number, _ in pairs] != [*range(len(pairs))]:
            what = f"numbers the classes from {pairs[0][0]} on, so which of them are those of the list isn't known"
            fix = "number them from 0 without gaps, as in the list, or name them with -o classes=NAME,…"
            raise DataError(what, where=str(path), fix=fix)
        return tuple(name for _, name in pairs) if pairs is not None else tuple(lines), within(path, root)
    return None, ""


def _add(
    builder: SetBuilder,
    rows: Mapping[Path, Sequence[ListRow]],
    names: Mapping[str, str],
    splits: Mapping[Path, str | None],
) -> None:
    """Give the builder the images of the lists.

    Raises:
        DataError: An image has two classes, or is in two splits.
    """
    images = TableImages(builder.root)
    found: dict[Path, tuple[str, str | None, str]] = {}
    for path, row in ((path, row) for path, own in rows.items() for row in own):
        where, split = builder.place(path, row.number), splits[path]
        if row.label not in names:
            builder.note(where, f'unknown class "{row.label[:40]}"; {row.image} left out')
            continue
        places = images.named(row.image)
        if len(places) != 1:
            fate = f"is {len(places)} files" if places else "is missing"
            builder.lose(where, f"{row.image} {fate}; left out", absent=not places)
            continue
        name = names[row.label]
        before = found.setdefault(places[0], (name, split, where))
        if before[:2] != (name, split):
            told = f'"{before[0]}" in {before[2]}' if before[0] != name else f"{before[1]} in {before[2]}"
            own = f'"{name}"' if before[0] != name else split
            raise DataError(f"{row.image} is of {own} here and of {told}", where=where, fix="name it once")
    for place, (name, split, _) in found.items():
        builder.add_file(place, split=split, category=name, scene=name)
    every = {place for places in images.by_name.values() for place in places}
    if missing := sorted(every - found.keys()):
        few = len(missing) == 1
        builder.note(
            builder.place(missing[0]),
            f"{'is in no list' if few else f'this and {len(missing) - 1:,} more images are in no list'} with a class; "
            "left out",
        )
    bare = [path for path in _plain_lists(builder.root) if path not in rows]
    if bare:
        names_of = ", ".join(builder.place(path) for path in bare)
        builder.understand(f"not used: {names_of}, whose lines name images without a class")
