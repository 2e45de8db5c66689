"""COCO JSON: boxes, polygons, run-length masks and captions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.data.formats.coco_files import (
    CocoFile,
    annotation_files,
    find_image,
    image_folders,
    load,
    split_of_image,
    without_doubles,
)
from vitp.data.formats.coco_rows import Ids, is_id, is_set, shape_of
from vitp.data.formats.common import ReadOptions, SetBuilder, comma_list
from vitp.data.formats.image_labels import ImageLabels
from vitp.records.labels import LabelledSet


@dataclass
class _Image:
    """What the files of one set say of one image.

    Attributes:
        path: The image.
        split: Of the image, if a file or folder says it.
        found: Its objects.
        where: File and row that list it.
        objects_from: The file that labels its objects; None while only captions are known.
        captions: Its captions.
    """

    path: Path
    split: str | None
    found: ImageLabels
    where: str
    objects_from: Path | None = None
    captions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Entry:
    """One row of `images`: its file name, and the image where it can be used."""

    name: str
    image: _Image | None


@dataclass
class _Reading:
    """The files of one set while they are read.

    Attributes:
        builder: Takes the findings.
        categories: Names of the classes.
        known: The classes that are asked for; None: all.
        images: The images by path.
        crowds: Regions that hold a crowd.
        on_missing: Is told of every image that isn't there; None: it becomes a finding.
    """

    builder: SetBuilder
    categories: Ids[str]
    known: tuple[str, ...] | None = None
    images: dict[Path, _Image] = field(default_factory=dict)
    crowds: int = 0
    on_missing: Callable[[Path], None] | None = None


def read(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    point_size: float | None = None,
    images: str | None = None,
) -> LabelledSet:
    """Read COCO annotations.

    A crowd (`iscrowd`) is a difficult object: it is neither learned nor counted, and its place is no background. Ids may
    be numbers or text. A file without any annotation says nothing of its images.

    Args:
        root: A JSON file, or a folder with JSON files in itself, in `annotations/` or in folders of the
            splits; a file's split follows from its name ("instances_val2017.json") or its folder's. Images
            lie beside the file or in `images/`, `train2017/` and the like.
        options: Name, licence, splits.
        classes: The object classes in order; by default all categories. The places of labels of other classes are
            ignored: they are neither objects nor background.
        point_size: Side in pixels of the box around an object whose bbox has no width and height; such objects have no
            area by default, and are left out.
        images: Folder of the images, relative to that of the set; by default they are looked for.

    Raises:
        DataError: A file isn't COCO JSON, a row lacks what it must have, or too many labels can't be used.
    """
    paths = annotation_files(root)
    if not paths:
        raise DataError("no COCO JSON file found", where=str(root), fix="put it into annotations/")
    base = root if root.is_dir() else root.parent
    builder = SetBuilder(base, options, point_size=point_size)
    paths = without_doubles(builder, paths)
    folder = None if images is None else base / images
    if folder is not None and not folder.is_dir():
        raise DataError(
            "is no folder", where=str(folder), fix="name the folder of the images with -o images=FOLDER"
        )
    files = [replace(load(path, base), images=folder) for path in paths]
    categories, names = _categories(files)
    known = comma_list(classes)
    reading = _Reading(builder, categories, known)
    for file in files:
        _read_file(reading, file)
    for image in reading.images.values():
        captions = tuple(image.captions)
        if image.objects_from is not None:
            builder.add_labelled(image.path, image.found, split=image.split, captions=captions)
        elif captions:
            builder.add(image.path, image.found.size, split=image.split, captions=captions)
        else:
            builder.note(image.where, "nothing is known of the image; left out")
    if reading.crowds:
        builder.understand(f"crowds: {reading.crowds:,} regions are neither learned nor counted")
    instances = any(file.labels_objects for file in files)
    return builder.build(object_classes=(known or names) if instances else ())


def read_files(
    builder: SetBuilder,
    entries: Sequence[tuple[Path, str, Path]],
    on_missing: Callable[[Path], None],
) -> tuple[str, ...]:
    """Add the images of COCO files whose place is known.

    Args:
        builder: Takes the images and findings.
        entries: Annotation file, split and folder of its images.
        on_missing: Is told of every image that isn't there.

    Returns:
        The names of the categories, in the order of the files.

    Raises:
        DataError: A file isn't COCO JSON, or a row lacks what it must have.
    """
    files = [replace(load(path, builder.root), split=split, images=folder) for path, split, folder in entries]
    categories, names = _categories(files)
    reading = _Reading(builder, categories, on_missing=on_missing)
    for file in files:
        _read_file(reading, file)
    for image in reading.images.values():
        if image.objects_from is not None:
            builder.add_labelled(image.path, image.found, split=image.split)
        else:
            builder.add(image.path, image.found.size, split=image.split)
    return names


def _categories(files: Sequence[CocoFile]) -> tuple[Ids[str], tuple[str, ...]]:
    """Return the classes by number and their names in order."""
    categories: Ids[str] = Ids()
    names: dict[str, None] = {}
    for file in files:
        own: set[str] = set()
        for number, row in enumerate(file.content.get("categories") or ()):
            where = f"{file.path}: categories[{number}]"
            name = row.get("name") if isinstance(row, dict) else None
            if not isinstance(name, str | int | float) or not str(name).strip():
                raise DataError("has no id or name", where=where, fix="give both")
            key, name = row.get("id"), str(name).strip()
            try:
                before = categories.add(key, name)
            except ValueError as error:
                raise DataError(str(error), where=where, fix="give each category a number") from error
            if before != name:
                place = "this file" if before in own else "another file"
                raise DataError(
                    f'number {key} is "{before}" in {place} and "{name}" here',
                    where=where,
                    fix="number the categories alike in all files, each once",
                )
            own.add(name)
            names[name] = None
    named = next((file for file in files if _first_category(file.content) is not None), None)
    if named is not None and not names:
        raise DataError(
            f"has no categories, so class {_first_category(named.content)} has no name",
            where=str(named.path),
            fix='add "categories": [{"id": 1, "name": …}]',
        )
    return categories, tuple(names)


def _first_category(content: dict[str, Any]) -> Any:
    rows = (row.get("category_id") for row in content["annotations"] if isinstance(row, dict))
    return next((key for key in rows if key is not None), None)


def _read_file(reading: _Reading, file: CocoFile) -> None:
    builder = reading.builder
    source = builder.place(file.path)
    paths = _read_images(reading, file)
    if not file.content["annotations"] and file.labels_objects:
        builder.note(source, "has no annotation at all; its images count as unlabelled")
        return
    lost = False
    for number, row in enumerate(file.content["annotations"]):
        where = builder.place(file.path, f"annotations[{number}]")
        entry = _owner(paths, row, where)
        if entry is None:
            lost = lost or not isinstance(row, dict) or not is_id(row.get("image_id"))
            builder.note(where, "belongs to no image of the file; left out")
            if not (isinstance(row, dict) and row.get("caption")):
                builder.tally.lose(source, "", f"{where}: belongs to no image of the file")
        elif entry.image is not None:
            _read_row(reading, row, where, entry.image)
    if lost:
        _unlabel_empty([i for i in reading.images.values() if i.objects_from == file.path], source, builder)


def _owner(paths: Ids[_Entry], row: Any, where: str) -> _Entry | None:
    if not isinstance(row, dict):
        return None
    try:
        return paths.find(row.get("image_id"))
    except ValueError as error:
        raise DataError(f"image_{error}", where=where, fix="write ids alike everywhere") from error


def _unlabel_empty(images: Iterable[_Image], source: str, builder: SetBuilder) -> None:
    """Make the images without a label unlabelled: annotations that name no image may be theirs."""
    empty = [image for image in images if not image.found.objects and not image.found.ignored]
    for image in empty:
        image.found.lost += 1
    if empty:
        builder.note(source, f"{len(empty):,} images without a label may own annotations that name no image")


def _read_images(reading: _Reading, file: CocoFile) -> Ids[_Entry]:
    """Return the images of a file by id.

    Raises:
        DataError: A row isn't understood, two images have one id, or an image is listed twice.
    """
    builder = reading.builder
    folders = image_folders(builder, file)
    entries: Ids[_Entry] = Ids()
    listed: dict[Path, str] = {}
    for number, row in enumerate(file.content["images"]):
        where = builder.place(file.path, f"images[{number}]")
        name = row.get("file_name") if isinstance(row, dict) else None
        if not isinstance(name, str) or not name.strip():
            raise DataError("has no id or file_name", where=where, fix="give both")
        key = row.get("id")
        if not is_id(key):
            raise DataError(
                f"id {str(key)[:40]} is neither a whole number nor text",
                where=where,
                fix="give each image its own number",
            )
        before = entries.exact(key)
        if before is not None:
            if before.name != name:
                raise DataError(
                    f"id {key} is {before.name} and {name}", where=where, fix="give each image its own number"
                )
            builder.note(where, f"{name} is listed twice; counted once")
            continue
        path = find_image(file, name, folders, builder.root, where)
        if path is None:
            if reading.on_missing is not None:
                reading.on_missing(folders[0] / name)
            else:
                builder.note(where, f"{name} is missing; image left out")
        elif (other := listed.setdefault(path, where)) != where:
            raise DataError(
                f"{name} is listed under two ids, before in {other}",
                where=where,
                fix="keep one of the entries, with the annotations of both",
            )
        entries.add(key, _Entry(name, _image(reading, file, row, path, where) if path else None))
    return entries


def _image(reading: _Reading, file: CocoFile, row: dict[str, Any], path: Path, where: str) -> _Image | None:
    """Return what is known of an image, or None with a finding when it isn't what the row says.

    Raises:
        DataError: Two files label the objects of the image, or put it into two splits.
    """
    builder = reading.builder
    split = split_of_image(file, path, builder.root)
    known = reading.images.get(path)
    if known is None:
        size = builder.size_of(path, where)
        if size is None or not _has_size(builder, row, size, where):
            return None
        found = builder.labels_of(size, builder.place(file.path))
        known = reading.images[path] = _Image(path, split, found, where)
    elif split and known.split and split != known.split:
        raise DataError(
            f"{path.name} is in {known.split} ({known.where}) and in {split} ({where})",
            where=str(file.path),
            fix="keep it in one of them",
        )
    elif file.labels_objects and known.objects_from is not None:
        raise DataError(
            f"labels the objects of {path.name} again, after {builder.place(known.objects_from)}",
            where=str(file.path),
            fix="read one of the two files, or move the other away",
        )
    known.split = known.split or split
    if file.labels_objects and file.content["annotations"]:
        known.objects_from = file.path
        known.found.source = builder.place(file.path)
    return known


def _has_size(builder: SetBuilder, row: dict[str, Any], size: tuple[int, int], where: str) -> bool:
    told = tuple(_pixels(row.get(key), own) for key, own in zip(("width", "height"), size, strict=True))
    if told == size:
        return True
    builder.note(where, f"says {told[0]}×{told[1]} but the image has {size[0]}×{size[1]}; image left out")
    return False


def _pixels(value: Any, own: int) -> Any:
    """Return a width or height as a number; where a file doesn't say it, the image's own."""
    if value in (None, "", 0):
        return own
    try:
        return int(float(value))
    except (TypeError, ValueError, OverflowError):
        return str(value)[:40]


def _read_row(reading: _Reading, row: dict[str, Any], where: str, image: _Image) -> None:
    found = image.found
    if str(row.get("caption") or "").strip():
        image.captions.append(" ".join(str(row["caption"]).split()))
        return
    key = row.get("category_id")
    try:
        category = reading.categories.find(key)
    except ValueError as error:
        raise DataError(f"category_{error}", where=where, fix="write ids alike everywhere") from error
    name = category if category is not None else f"class {str(key)[:40]}"
    shape, said = shape_of(row, found.size)
    if shape is None:
        found.lose(where, f"{said} ({name})", category or "")
        return
    if said:
        reading.builder.note(where, f"{said} ({name})")
    if category is None:
        found.ignore(where, f"unknown class number {str(key)[:40]}", name, shape)
    elif reading.known is not None and name not in reading.known:
        found.exclude(where, name, shape)
    else:
        crowd = is_set(row.get("iscrowd"))
        label = found.add(where, name, shape, difficult=crowd or is_set(row.get("ignore")))
        reading.crowds += crowd and label is not None
