"""KITTI text, one file an image: `type truncated occluded alpha x1 y1 x2 y2 h w l x y z ry`, boxes in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vitp.core.errors import DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.dota import are_numbers
from vitp.data.formats.image_labels import ImageLabels, LabelShape
from vitp.data.formats.label_files import (
    TEXTS_BESIDE_LABELS,
    LabelFile,
    LabelPlace,
    add_labels,
    find_labels,
    first_rows,
    label_places,
    label_rows,
)
from vitp.data.formats.split_lists import find_split_lists
from vitp.data.formats.splits import check_missing, match_entries
from vitp.data.formats.walk import comma_list
from vitp.records.labels import LabelledSet

_LABEL_FOLDERS = ("label_2", "label_02", "labels", "label")
_IMAGE_FOLDERS = ("image_2", "image_02", "images", "image")
_COLUMNS = 15
_TRACKED = (17, 18)


def _places(root: Path) -> list[LabelPlace]:
    """Return where labels and images lie; KITTI calls all that is labelled `training`, which is no split then."""
    places = label_places(root, _LABEL_FOLDERS, _IMAGE_FOLDERS)
    if len(places) == 1 and places[0].labels.parent.name.lower() == "training":
        return [replace(places[0], split=None)]
    return places


def is_kitti(root: Path) -> bool:
    """Return whether a label file's first row is one of KITTI, of predictions and tracks, too."""
    return any(_is_row(row) for row in first_rows(_places(root), TEXTS_BESIDE_LABELS))


def _is_row(words: Sequence[str]) -> bool:
    if len(words) in _TRACKED and are_numbers([*words[:2]]) and not are_numbers([words[2]]):
        return are_numbers([*words[3:]])
    return (
        len(words) in (_COLUMNS, _COLUMNS + 1) and not are_numbers([words[0]]) and are_numbers([*words[1:]])
    )


def read_kitti(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    drop_empty: bool = False,
) -> LabelledSet:
    """Read a folder of KITTI's 2-D boxes; what is said of three dimensions isn't used.

    The places of `DontCare` are ignored: they are neither objects nor background.

    Args:
        root: Holds `training/{image_2,label_2}`, `{split}/{images,labels}`, `images` and `labels`, or images and text
            side by side. Lists in `ImageSets/` say the splits of `training`; there test.txt names `testing`, which
            has no labels.
        options: Name, licence, splits.
        classes: The object classes in order; by default those that occur, sorted. The places of labels of other
            classes are ignored.
        drop_empty: Leave images with an empty label file out; by default they count as labelled, and there
            is nothing in them. An image without label file is not labelled, and always left out.

    Raises:
        DataError: A row can't be understood, or has a confidence, as predictions have.
    """
    builder = SetBuilder(root, options)
    known = comma_list(classes)
    seen: set[str] = set()

    def read_one(path: Path, found: ImageLabels) -> int:
        count = 0
        for row, words in label_rows(path):
            count += 1
            where = builder.place(path, row)
            name, shape = _parsed(words, f"{path}:{row}")
            found.add(where, name, shape, known=known)
        seen.update(label.category for label in found.objects)
        return count

    labels = find_labels(builder, _places(root), not_labels=TEXTS_BESIDE_LABELS)
    add_labels(builder, _listed(builder, labels), read_one, drop_empty=drop_empty)
    return builder.build(object_classes=known or sorted(seen))


def _parsed(words: Sequence[str], where: str) -> tuple[str, LabelShape]:
    """Return class and box of a row.

    Raises:
        DataError: It is no row of labels.
    """
    if len(words) in _TRACKED and _is_row(words):
        what = "is a row of KITTI's tracks, whose files hold all images of a sequence"
        raise DataError(
            what, where=where, fix="write a file an image, without the columns of frame and track"
        )
    if len(words) == _COLUMNS + 1:
        what = f"has {len(words)} columns: the last is a confidence, as of predictions"
        raise DataError(
            what, where=where, fix="take the column away if these are labels that somebody has checked"
        )
    if len(words) != _COLUMNS or not are_numbers([*words[1:]]):
        fix = 'write "type truncated occluded alpha x1 y1 x2 y2 h w l x y z ry"'
        raise DataError(f"is not a KITTI row ({len(words)} columns)", where=where, fix=fix)
    return words[0], LabelShape(box=[float(word) for word in words[4:8]])


def _listed(builder: SetBuilder, labels: list[LabelFile]) -> list[LabelFile]:
    """Return the images of `training` with the splits of the lists train and val, where test.txt names `testing`."""
    if builder.options.splits or not all(entry.image.parent.parent.name == "training" for entry in labels):
        return labels
    places = [builder.place(entry.image) for entry in labels]
    lists = find_split_lists(builder.root, places)
    named = {path.stem.lower(): entries for path, entries in lists}
    if not {"train", "val", "test"} <= named.keys():
        return labels
    splits, misses = match_entries([*named["train"], *named["val"]], places)
    check_missing(builder.root, places, misses, builder.note, partial=builder.options.partial)
    builder.splits_from = "the lists train.txt and val.txt; test.txt names testing/"
    return [replace(entry, split=split) for entry, split in zip(labels, splits, strict=True)]
