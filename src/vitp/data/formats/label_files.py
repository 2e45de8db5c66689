"""Formats with one text file of labels an image (DOTA, YOLO): which files belong together, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitp.core.errors import DataError
from vitp.core.reading import check_file
from vitp.data.formats.common import SetBuilder, child, split_folders, split_in
from vitp.data.formats.image_labels import ImageLabels
from vitp.io.images import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Place:
    """Where images lie, and where their label files lie in the same sub-folders.

    Attributes:
        images: Folder of the images.
        labels: Folder of the label files; may be the same.
        split: Of all of them, or None: that of the sub-folder that names one, if any does.
    """

    images: Path
    labels: Path
    split: str | None = None


@dataclass(frozen=True)
class LabelFile:
    """One image with its label file.

    Attributes:
        image: The image.
        labels: The file.
        split: From the layout, or None.
        source: Folder that the label file counts for.
    """

    image: Path
    labels: Path
    split: str | None
    source: str


def label_places(root: Path, label_folders: Sequence[str]) -> list[Place]:
    """Return where images and labels lie.

    These are `{split}/{images,LABELS}`, and `{images,LABELS}` with or without sub-folders, or else the set's folder with
    images and text side by side, in sub-folders, too.

    Args:
        root: The set's folder.
        label_folders: Names that LABELS may have.
    """

    def pair(base: Path, split: str | None) -> Place | None:
        images = child(base, ("images",))
        labels = child(base, label_folders)
        return Place(images, labels, split) if images and labels else None

    bases = [(folder, split) for split, folder in split_folders(root) if split is not None]
    found = [place for base, split in [*bases, (root, None)] if (place := pair(base, split))]
    return found or [Place(root, root)]


def first_rows(places: Sequence[Place], not_labels: Collection[str]) -> list[list[str]]:
    """Return the words of the first row that each place's label files of an image hold, for detection of formats.

    Header lines with a colon are skipped, and so are files without image.
    """
    found = []
    for place in places:
        images = {image.relative_to(place.images).with_suffix("") for image in images_below(place.images)}
        files = (place.labels / name.with_suffix(name.suffix + ".txt") for name in sorted(images))
        rows = (
            words for path in files if path.is_file() and path.name not in not_labels for words in _rows(path)
        )
        found.append(next(rows, []))
    return found


def _rows(path: Path) -> Iterator[list[str]]:
    for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        if line.strip() and ":" not in line:
            yield line.split()


def images_below(folder: Path) -> list[Path]:
    """Return the images in a folder and its sub-folders, sorted; hidden ones are left out."""
    return [path for path in files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES]


def files_below(folder: Path) -> list[Path]:
    """Return the files in a folder and its sub-folders, sorted; hidden ones are left out."""

    def walk(base: Path, above: tuple[Path, ...]) -> Iterator[Path]:
        real = base.resolve()
        if real in above:  # a link that leads in a circle
            return
        for path in sorted(base.iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                yield from walk(path, (*above, real))
            else:
                yield path

    return list(walk(folder, ()))


def check_ordinary(path: Path) -> None:
    """Make sure that what stands in the place of a label file is a file, where there is anything.

    Raises:
        DataError: It is a folder, a named pipe, a device or a link that leads nowhere.
    """
    try:
        check_file(path)
    except FileNotFoundError as error:
        if path.is_symlink():
            raise DataError(
                "is a link that leads nowhere", where=str(path), fix="mend the link, or remove it"
            ) from error
    except OSError as error:
        raise DataError(
            f"can't be read ({error.strerror})", where=str(path), fix="put the label file in its place"
        ) from error


def find_labels(
    builder: SetBuilder, places: Sequence[Place], *, not_labels: Collection[str] = ()
) -> list[LabelFile]:
    """Return the images that have a label file; what is missing becomes findings.

    Args:
        builder: Takes the findings.
        places: Where to look; an image counts for the first of them.
        not_labels: Names of text files that are no labels.

    Raises:
        DataError: Two images have one label file.
    """
    found: list[LabelFile] = []
    owners: dict[Path, Path] = {}
    seen: set[Path] = set()
    for place in places:
        for image in images_below(place.images):
            if image in seen:
                continue
            seen.add(image)
            inside = image.relative_to(place.images)
            path = (place.labels / inside).with_suffix(".txt")
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
        for path in files_below(place.labels):
            image = place.images / path.relative_to(place.labels).with_suffix("")
            if path.suffix == ".txt" and path.name not in not_labels and image not in images:
                builder.note(builder.place(path), "its image is missing; left out")
    return found


def add_labels(
    builder: SetBuilder,
    labels: Sequence[LabelFile],
    read: Callable[[Path, ImageLabels], int],
    *,
    drop_empty: bool,
) -> None:
    """Add the images with what their label files hold.

    Args:
        builder: Takes images and findings.
        labels: The images and their label files.
        read: Reads a label file into the labels of its image, and returns its number of rows.
        drop_empty: Leave images with an empty label file out instead of counting them as without objects.
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
