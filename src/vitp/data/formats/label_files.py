"""Formats with one text file of labels an image (DOTA, YOLO): which files belong together, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vitp.core.errors import DataError
from vitp.core.reading import head_of, lines_of
from vitp.data.formats.builder import SetBuilder
from vitp.data.formats.image_labels import ImageLabels
from vitp.data.formats.walk import (
    bases_of,
    check_ordinary,
    child,
    files_below,
    images_below,
    read_label_lines,
    split_in,
)

TEXTS_BESIDE_LABELS = frozenset(
    ("classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "trainval.txt", "README.txt")
)
"""Text files that are no labels of an image."""


_FILES_LOOKED_AT = 20
_BYTES_LOOKED_AT = 1 << 20
"""Label files of a place that tell its format."""


def _is_among(path: Path, names: Collection[str]) -> bool:
    """Return whether a file has one of the names, in any case."""
    return path.name.lower() in {name.lower() for name in names}


@dataclass(frozen=True)
class LabelPlace:
    """Folders of images and of their label files, which may be the same; sub-folders without split may name one."""

    images: Path
    labels: Path
    split: str | None = None


@dataclass(frozen=True)
class LabelFile:
    """One image with its label file, the split from the layout, and the folder that the label file counts for."""

    image: Path
    labels: Path
    split: str | None
    source: str


def label_places(
    root: Path, label_folders: Sequence[str], image_folders: Sequence[str] = ("images",)
) -> list[LabelPlace]:
    """Return where images and labels lie.

    These are `{split}/{images,LABELS}`, and `{images,LABELS}` with or without sub-folders, or else the set's folder
    with images and text side by side, in sub-folders, too. LABELS is one of `label_folders`; `image_folders` may have
    other names for `images`.
    """
    found = []
    for split, base in bases_of(root):
        images, labels = child(base, image_folders), child(base, label_folders)
        if images and labels:
            found.append(LabelPlace(images, labels, split))
    return found or [LabelPlace(root, root)]


def first_rows(places: Sequence[LabelPlace], not_labels: Collection[str]) -> list[list[str]]:
    """Return the words of the first row of some label files of images of each place, for detection of formats.

    Header lines with a colon are skipped, and so are files without image or without a row. Several files are looked at,
    so that a damaged one doesn't hide what the others are.
    """

    def rows(path: Path) -> Iterator[list[str]]:
        lines = lines_of(head_of(path, _BYTES_LOOKED_AT).decode("utf-8-sig", errors="replace"))
        return islice((line.split() for line in lines if line.strip() and ":" not in line), 1)

    found: list[list[str]] = []
    for place in places:
        if not (texts := _texts_of(place.labels)):
            continue
        images = {image.relative_to(place.images).with_suffix("") for image in images_below(place.images)}
        files = (path for name in sorted(images) for path in texts.get(name, ()))
        words = (
            row for path in files if path.is_file() and not _is_among(path, not_labels) for row in rows(path)
        )
        found += islice(words, _FILES_LOOKED_AT)
    return found


def _texts_of(folder: Path) -> dict[Path, list[Path]]:
    """Return the text files below a folder by their path in it without suffix, which may be in any case."""
    found: dict[Path, list[Path]] = {}
    for path in files_below(folder, ".txt"):
        found.setdefault(path.relative_to(folder).with_suffix(""), []).append(path)
    return found


def label_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the words of each row of a label file that isn't empty.

    Raises:
        DataError: The file can't be read.
    """
    for row, line in enumerate(read_label_lines(path), 1):
        if words := line.split():
            yield row, words


def find_labels(
    builder: SetBuilder, places: Sequence[LabelPlace], *, not_labels: Collection[str] = ()
) -> list[LabelFile]:
    """Return the images that have a label file; what is missing becomes findings.

    An image counts for the first of the places. Text files of the names in `not_labels` are none.

    Raises:
        DataError: Two images have one label file, or an image has two.
    """
    found: list[LabelFile] = []
    owners: dict[Path, Path] = {}
    seen: set[Path] = set()
    for place in places:
        texts = _texts_of(place.labels)
        for image in images_below(place.images):
            if image in seen:
                continue
            seen.add(image)
            inside = image.relative_to(place.images)
            own = texts.get(inside.with_suffix(""), ())
            if len(own) > 1:
                what = f"may have its labels in {own[0].name} or in {own[1].name}"
                raise DataError(what, where=builder.place(image), fix="keep one of the two files")
            path = own[0] if own else (place.labels / inside).with_suffix(".txt")
            if not path.is_file():
                check_ordinary(path)
                builder.note(builder.place(image), "no label file; image left out")
                continue
            if (other := owners.setdefault(path, image)) != image:
                raise DataError(
                    f"belongs to {builder.place(other)} and to {builder.place(image)}",
                    where=builder.place(path),
                    fix="keep one of the images, or give each its own name",
                )
            split, part = (place.split, None) if place.split else split_in(inside)
            source = place.labels if part is None else place.labels / part
            found.append(LabelFile(image, path, split, builder.place(source)))
    images = {image.with_suffix("") for image in seen}
    for place in places:
        for path in files_below(place.labels, ".txt"):
            image = place.images / path.relative_to(place.labels).with_suffix("")
            if not _is_among(path, not_labels) and image not in images:
                builder.lose(builder.place(path), "its image is missing; left out", absent=True)
    return found


def add_labels(
    builder: SetBuilder,
    labels: Sequence[LabelFile],
    read: Callable[[Path, ImageLabels], int],
    *,
    drop_empty: bool,
) -> None:
    """Add the images with what their label files hold.

    `read` reads a label file into the labels of its image, and returns its number of rows. With `drop_empty` images
    with an empty label file are left out instead of being counted as without objects.
    """
    for entry in labels:
        size = builder.size_of(entry.image)
        if size is None:
            continue
        found = builder.labels_of(size, entry.source, folder=True)
        if not read(entry.labels, found):
            fate = "left out" if drop_empty else "counted as without objects"
            builder.note(builder.place(entry.labels), f"empty label file; image {fate}")
            if drop_empty:
                continue
        builder.add_labelled(entry.image, found, split=entry.split)
