"""Which label format a folder holds. What has two readings is refused, and the message names both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.core.reading import parse_json, read_text
from vitp.data.formats import (
    captions,
    class_tables,
    coco_files,
    dota,
    folders,
    mask_layouts,
    pairs,
    voc,
    yolo,
)
from vitp.data.formats.common import list_images, split_folders
from vitp.data.formats.label_files import check_ordinary, first_rows, label_places
from vitp.data.formats.layouts import image_folders
from vitp.data.formats.tables import TABLES, table_files
from vitp.data.formats.unread import refuse_beside_classes, refuse_unread


@dataclass(frozen=True)
class Detected:
    """What a folder holds.

    Attributes:
        format: Key of `vitp.data.formats.FORMATS`.
        understood: Lines about what else is there.
    """

    format: str
    understood: tuple[str, ...] = ()


def detect_format(root: Path) -> str:
    """Return the format of a folder, by the files and folders that only that format has.

    Raises:
        DataError: None fits, or there are several readings; the message says what was looked for.
    """
    return detect(root).format


def detect(root: Path) -> Detected:
    """Return the format of a folder and what was understood.

    Raises:
        DataError: As `detect_format`.
    """
    if not root.exists():
        raise DataError("doesn't exist", where=str(root), fix="check the path")
    if root.is_file():
        return Detected(_of_file(root))
    if not root.is_dir():
        check_ordinary(root)
    found = _first_that_fits(root)
    if found is not None:
        also = _also(root, found)
        others = ", ".join(f"{name} ({_SIGNS[name][1]})" for name in also)
        return Detected(found, (f"not read, but there, too: {others}; --format chooses",) if also else ())
    _refuse_unlabelled(root)
    looked_for = "; ".join(f"{name}: {sign}" for name, (_, sign) in _SIGNS.items())
    raise DataError(
        f"no label format recognised (looked for {looked_for})",
        where=str(root),
        fix="name the format, or arrange the files in one of these ways",
    )


def _first_that_fits(root: Path) -> str | None:
    """Return the first format whose files are there, unless label files of one before it can't be read."""
    for name, (test, _) in _SIGNS.items():
        for suffix in _UNREAD_BEFORE.get(name, ()):
            refuse_unread(root, suffix)
        if test(root):
            if name == "folders":
                refuse_beside_classes(root)
            return name
    return None


def _also(root: Path, found: str) -> list[str]:
    """Return the other formats that would read the folder, of those that can't be mistaken."""
    also = []
    for name in ("voc", "coco", "pairs", "masks", "captions", "classes"):
        if name == found or found in ("vitp", "pairs") or (name == "captions" and found == "coco"):
            continue
        try:
            if _CERTAIN.get(name, _SIGNS[name][0])(root):
                also.append(name)
        except DataError:
            continue
    return also


def _refuse_unlabelled(root: Path) -> None:
    """Raise for folders of images whose labels are of a kind that no reader knows."""
    boxes = [path.name for path in table_files(root) if class_tables.is_box_table(path)]
    if boxes:
        raise DataError(
            f"{boxes[0]} is a table of boxes or outlines, which no reader knows",
            where=str(root),
            fix="write it as COCO JSON (annotations/instances_train.json)",
        )
    dates = next((place for place in pairs.two_dates(pairs.find_pairs(root)) if not place.has_mask), None)
    if dates is not None:
        before, after = (dates.folders[key].path.relative_to(root).as_posix() for key in ("before", "after"))
        raise DataError(
            f"{before} and {after} are two dates, but there is no folder of masks of what changed",
            where=str(root),
            fix="add it as label/, or name it with --format pairs -o masks=FOLDER",
        )


def _of_file(path: Path) -> str:
    if path.suffix.lower() == ".json" and _is_coco(path):
        return "coco"
    if path.suffix.lower() in TABLES:
        if captions.is_table(path):
            return "captions"
        if class_tables.columns_of(path) is not None:
            return "classes"
        return "captions"
    if path.suffix.lower() == ".txt" and captions.is_table(path):
        return "captions"
    raise DataError("is not a table of labels", where=str(path), fix="name the folder of the set")


def _is_coco(path: Path) -> bool:
    try:
        content: Any = parse_json(read_text(path))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def _is_vitp(root: Path) -> bool:
    return (root / "labels" / "set.json").is_file()


def _is_voc(root: Path) -> bool:
    return bool(voc.annotation_places(voc.set_folder(root)))


def _is_coco_folder(root: Path) -> bool:
    return any(_is_coco(path) for path in coco_files.annotation_files(root))


def _are_numbers(words: list[str]) -> bool:
    try:
        return [float(word) for word in words] != []
    except ValueError:
        return False


def _is_dota(root: Path) -> bool:
    rows = first_rows(label_places(root, dota.LABEL_FOLDERS), dota.NOT_LABELS)
    return any(len(row) >= 9 and _are_numbers(row[:8]) and not _are_numbers(row[8:9]) for row in rows)


def _is_yolo(root: Path) -> bool:
    rows = first_rows(yolo.label_folders(root), yolo.NOT_LABELS)
    return any(len(row) >= 5 and _are_numbers(row) for row in rows)


def _is_pairs(root: Path) -> bool:
    _refuse_dates_in_names(root)
    return any(place.has_mask for place in pairs.two_dates(pairs.find_pairs(root)))


def _refuse_dates_in_names(root: Path) -> None:
    """Raise when both dates of pairs lie in one folder, as in xView2 (`…_pre_disaster.png`)."""
    for folder in image_folders(root):
        for first, second in (("_pre", "_post"), ("_before", "_after")):
            stems = folder.stems
            twins = [stem for stem in stems if first in stem and stem.replace(first, second) in stems]
            if twins and 4 * len(twins) >= len(stems):
                raise DataError(
                    f"{folder.path.relative_to(root).as_posix()} holds two dates of each place ({min(twins)} and "
                    f"{min(twins).replace(first, second)}), as xView2 does, which no reader knows",
                    where=str(root),
                    fix="put the earlier images into A/, the later ones into B/ and masks of what changed into "
                    "label/, with equal names",
                )


def _is_masks(root: Path) -> bool:
    return mask_layouts.find_masks(root) is not None


def _is_captions(root: Path) -> bool:
    if captions.tables(root):
        return True
    bases = [folder / name for _, folder in split_folders(root) for name in ("", "images")]
    return any(
        image.with_suffix(".txt").is_file()
        for base in bases
        if base.is_dir()
        for image in list_images(base)[:20]
    )


def _is_classes(root: Path) -> bool:
    if class_tables.class_tables(root):
        return True
    guesses = class_tables.guesses(root)
    if not guesses or _are_class_folders(root):
        return False
    # Nothing else says what the images are: a table that names them, under columns of other names, must.
    if any(columns is None for _, _, columns in guesses):
        path, image, _ = next(guess for guess in guesses if guess[2] is None)
        raise DataError(
            f'the column "{image}" of {path.name} names the images, but which column is their class isn\'t known',
            where=str(root),
            fix=f"--format classes -o table={path.name} -o image_column={image} -o class_column=COLUMN; for texts "
            f"--format captions -o table={path.name} -o image_column={image} -o caption_column=COLUMN",
        )
    return True


def _are_class_folders(root: Path) -> bool:
    found = folders.class_folders(root)
    if not found:
        return False
    try:
        folders.check_classes(root, found)
    except DataError:
        return False
    return True


def _is_folders(root: Path) -> bool:
    found = folders.class_folders(root)
    if not found:
        return False
    _refuse_unlabelled(root)
    folders.check_classes(root, found)
    return True


_UNREAD_BEFORE = {"pairs": (".json", ".xml"), "masks": (".txt",)}
"""Kinds of label files that must all be readable before a format, or one after it, is taken for the right one."""

_CERTAIN: dict[str, Callable[[Path], object]] = {
    # Text beside images and columns of other names are no sign of a second format: others have them, too.
    "captions": captions.tables,
    "classes": class_tables.class_tables,
}

# The order matters: a caption file beside an image looks like a label file of YOLO until its row is read, and
# any folder of folders with images passes for class folders.
_SIGNS: dict[str, tuple[Callable[[Path], bool], str]] = {
    "vitp": (_is_vitp, "labels/set.json"),
    "voc": (_is_voc, "*.xml in Annotations/ or beside images"),
    "coco": (_is_coco_folder, "JSON with images and annotations, in annotations/ or the split's folder"),
    "pairs": (_is_pairs, "folders A, B and label, or before, after and mask"),
    "dota": (_is_dota, 'labelTxt/*.txt with rows "x1 y1 … x4 y4 class"'),
    "yolo": (_is_yolo, 'labels/*.txt or text beside images with rows "class cx cy w h"'),
    "masks": (_is_masks, "images/ and masks/ with equal names, or a.png and a_mask.png"),
    "captions": (_is_captions, "a table with columns of image and caption, or text files beside images"),
    "classes": (_is_classes, "a table with columns of image and class"),
    "folders": (_is_folders, "one folder of images a class"),
}
