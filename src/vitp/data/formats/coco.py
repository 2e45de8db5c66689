"""COCO JSON: boxes, polygons, run-length masks and captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.coco_classes import (
    EMPTY,
    group_key,
    group_of,
    grouping,
    labels_scenes,
    read_categories,
    refuse_panoptic,
    refuse_shifted,
    says_place,
    stated_pixels,
)
from vitp.data.formats.coco_files import (
    CocoFile,
    Ids,
    annotation_files,
    coco_image_folders,
    coco_shape,
    find_coco_image,
    is_cvat_mask,
    is_id,
    is_set,
    load_coco_file,
    refuse_scores,
    says_segmentation,
    split_of_image,
    told_classes,
    without_doubles,
)
from vitp.data.formats.drawn_masks import with_drawn_masks
from vitp.data.formats.image_labels import ImageLabels
from vitp.data.formats.tool_labels import tell_strange
from vitp.data.formats.walk import comma_list
from vitp.records.labels import LabelledSet


@dataclass
class CocoImage:
    """What the files of one set say of one image: `objects_from` is None while only captions are known."""

    path: Path
    split: str | None
    found: ImageLabels
    where: str
    objects_from: Path | None = None
    captions: list[str] = field(default_factory=list)
    others: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Entry:
    """One row of `images`: its file name and place, and the image where it can be used.

    Attributes:
        first: The row before it that is of the same file; `said` holds the annotations of both.
        said: None: no other row is of the file.
    """

    name: str
    where: str
    image: CocoImage | None = None
    first: _Entry | None = None
    said: list[str] | None = None


def read_coco(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    point_size: float | None = None,
    images: str | None = None,
    semantic: bool | str | None = None,
    crowds: Literal["", "objects", "difficult"] = "",
    scores: Literal["", "labels"] = "",
    about: Literal["", "images", "objects"] = "",
) -> LabelledSet:
    """Read COCO annotations.

    A crowd (`iscrowd`) is a difficult object: it is neither learned nor counted, and its place is no background. CVAT
    calls every mask a crowd; its masks are objects. It keeps a box as it was before it was turned, beside the angle.
    Ids may be numbers or text. A file without any annotation says nothing of its images.

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
        semantic: True: masks of classes, drawn from the outlines, instead of objects; "both": beside them; by default
            objects, unless the file says that it is for segmentation.
        crowds: What `iscrowd` means: "difficult" objects, or plain "objects"; by default difficult, but for masks of
            CVAT.
        scores: "labels": annotations with scores are labels that somebody has checked; by default they are refused as
            predictions, unless all scores are 0 or 1.
        about: "images" reads each class as that of the image; "objects" no image with an object without a place.

    Raises:
        DataError: A file isn't COCO JSON, a row lacks what it must have, or too many labels can't be used.
    """
    paths = annotation_files(root)
    if not paths:
        raise DataError("no COCO JSON file found", where=str(root), fix="put it into annotations/")
    base = root if root.is_dir() else root.parent
    builder = SetBuilder(base, options, point_size=point_size)
    folder = None if images is None else base / images
    if folder is not None and not folder.is_dir():
        raise DataError("is no folder", where=str(folder), fix="name one with -o images=FOLDER")
    files = [replace(load_coco_file(path, base), images=folder) for path in without_doubles(builder, paths)]
    refuse_panoptic(files)
    if crowds not in ("", "objects", "difficult"):
        raise ConfigError(f'is "{crowds}"', where="crowds", fix="choose objects or difficult")
    refuse_scores(files, scores)
    if labels_scenes(files, about):
        return SceneReading(builder, files, comma_list(classes)).build()
    reading = CocoReading(builder, files, comma_list(classes), crowds=crowds, unplaced=about == "objects")
    reading.add_images()
    _tell(builder, reading)
    tell_strange(builder, reading.drawn(), () if reading.known else told_classes(files))
    semantic = any(map(says_segmentation, files)) if semantic is None else semantic
    return with_drawn_masks(builder.build(object_classes=_classes_of(reading, files)), semantic)


def _classes_of(reading: CocoReading, files: Sequence[CocoFile]) -> tuple[str, ...]:
    """Return the object classes, without those that say that nothing is there; none where files hold captions alone."""
    bare = reading.empties.keys() - reading.drawn()
    names = reading.known or tuple(name for name in reading.names if name not in bare)
    return names if any(file.labels_objects for file in files) else ()


def _tell(builder: SetBuilder, reading: CocoReading) -> None:
    if reading.crowds:
        builder.understand(f"crowds: {reading.crowds:,} regions are neither learned nor counted")
    if reading.masks:
        text = f"{reading.masks:,} masks of CVAT, which calls all masks crowds, are objects"
        builder.understand(f"{text} (-o crowds=difficult reads them as crowds)")
    for name in reading.groups:
        if name not in (reading.known or ()):
            builder.understand(
                f'categories: "{name}" is what others are kinds of, and no object is one: no class'
            )
    for name in reading.categories.doubles():
        builder.understand(f'categories: several are called "{name}" and count as one class')
    for name, count in reading.empties.items():
        if name not in reading.drawn():
            noun = "annotation" if count == 1 else "annotations"
            builder.understand(
                f'categories: "{name}" without a place in {count:,} {noun}: nothing is there, no class'
            )


def read_coco_files(
    builder: SetBuilder, entries: Sequence[tuple[Path, str, Path]], on_missing: Callable[[Path], None]
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
    files = [
        replace(load_coco_file(path, builder.root), split=split, images=folder)
        for path, split, folder in entries
    ]
    reading = CocoReading(builder, files, on_missing=on_missing)
    reading.add_images()
    return reading.names


class CocoReading:
    """The files of one set while they are read.

    Args:
        builder: Takes images and findings.
        files: The annotation files.
        known: The classes that are asked for; None: all.
        on_missing: Is told of every image that isn't there; None: it becomes a finding, and so does an image of
            which nothing is known.
        crowds: As of `read_coco`.
        unplaced: Annotations without a place are no lost labels; objects of their images aren't known.
    """

    def __init__(
        self,
        builder: SetBuilder,
        files: Sequence[CocoFile],
        known: tuple[str, ...] | None = None,
        on_missing: Callable[[Path], None] | None = None,
        crowds: str = "",
        unplaced: bool = False,
    ) -> None:
        self.builder, self.known, self.on_missing = builder, known, on_missing
        self.crowds_are, self.masks, self.unplaced = crowds, 0, unplaced
        own = builder.options
        self.group = "" if own.group_regex or own.group or own.patient else group_key(files)
        if self.group:
            builder.understand(f'images of one "{self.group}" are a group')
        self.categories, self.names = read_categories(files)
        refuse_shifted(files)
        self.groups = grouping(files)
        self.names = tuple(name for name in self.names if name not in self.groups or name in (known or ()))
        self.images: dict[Path, CocoImage] = {}
        self.crowds = 0
        self.empties: Counter[str] = Counter()
        for file in files:
            self._read_file(file)

    def drawn(self) -> set[str]:
        """Return the classes of which there is an object."""
        return {label.category for image in self.images.values() for label in image.found.objects}

    def add_images(self) -> None:
        """Give the builder all images that were read."""
        for image in self.images.values():
            split, captions = image.split, tuple(image.captions)
            if image.objects_from is not None:
                self.builder.add_labelled(
                    image.path, image.found, split=split, captions=captions, **image.others
                )
            elif captions or self.on_missing is not None:
                self.builder.add(image.path, image.found.size, split=split, captions=captions)
            else:
                self.builder.note(image.where, "nothing is known of the image; left out")

    def _read_file(self, file: CocoFile) -> None:
        builder, source = self.builder, self.builder.place(file.path)
        entries, again = self._read_images(file)
        if not file.content["annotations"] and file.labels_objects:
            builder.note(source, "has no annotation at all; its images count as unlabelled")
            return
        lost = False
        for number, row in enumerate(file.content["annotations"]):
            where = builder.place(file.path, f"annotations[{number}]")
            image_id = row.get("image_id") if isinstance(row, dict) else None
            entry = entries.find(image_id, "image", where)
            if entry is None:
                lost = lost or not is_id(image_id)
                builder.note(where, "belongs to no image of the file; left out")
                if not (isinstance(row, dict) and row.get("caption")):
                    builder.tally.lose(source, "", f"{where}: belongs to no image of the file")
                continue
            if entry.said is not None:
                entry.said.append(str(sorted((k, v) for k, v in row.items() if k not in ("id", "image_id"))))
            if entry.image is not None:
                self.read_annotation(row, where, entry.image)
        for entry in again:
            _check_same(builder, entry)
        if not lost:
            return
        # Annotations that name no image may be those of the images without a label: these are unlabelled.
        own = [image.found for image in self.images.values() if image.objects_from == file.path]
        empty = [found for found in own if not found.objects and not found.ignored]
        for found in empty:
            found.lost += 1
        if empty:
            text = f"{len(empty):,} images without a label may own annotations that name no image"
            builder.note(source, text)

    def _read_images(self, file: CocoFile) -> tuple[Ids[_Entry], list[_Entry]]:
        """Return the images of a file by id, and the rows that are of a file of another id.

        Raises:
            DataError: A row isn't understood, or two images have one id.
        """
        builder = self.builder
        folders = coco_image_folders(builder, file)
        entries: Ids[_Entry] = Ids()
        listed: dict[Path, _Entry] = {}
        again: list[_Entry] = []
        own_number = "give each image its own number"
        for number, row in enumerate(file.content["images"]):
            where = builder.place(file.path, f"images[{number}]")
            name = row.get("file_name") if isinstance(row, dict) else None
            if not isinstance(name, str) or not name.strip():
                raise DataError("has no id or file_name", where=where, fix="give both")
            key = row.get("id")
            if not is_id(key):
                what = f"id {str(key)[:40]} is neither a whole number nor text"
                raise DataError(what, where=where, fix=own_number)
            before = entries.exact(key)
            if before is not None:
                if before.name != name:
                    raise DataError(f"id {key} is {before.name} and {name}", where=where, fix=own_number)
                builder.note(where, f"{name} is listed twice, before in {before.where}; counted once")
                continue
            path = find_coco_image(file, name, folders, builder.root, where)
            if path is None:
                if self.on_missing is not None:
                    self.on_missing(folders[0] / name)
                else:
                    builder.lose(where, f"{name} is missing; image left out", absent=True)
            entry = entries.add(key, _Entry(name, where))
            if path is None:
                continue
            if (first := listed.setdefault(path, entry)) is entry:
                entry.image = self._image(file, row, path, where)
                continue
            first.said, entry.first, entry.said = first.said or [], first, []
            again.append(entry)
        return entries, again

    def _image(self, file: CocoFile, row: dict[str, Any], path: Path, where: str) -> CocoImage | None:
        """Return what is known of an image, or None with a finding when it isn't what the row says.

        Raises:
            DataError: Two files label the objects of the image, or put it into two splits.
        """
        builder = self.builder
        split = split_of_image(file, path, builder.root)
        known = self.images.get(path)
        if known is None:
            size = builder.size_of(path, where)
            if size is None:
                return None
            if not builder.agree(
                where, [stated_pixels(row.get(key)) for key in ("width", "height")], size, path
            ):
                return None
            found = builder.labels_of(size, builder.place(file.path))
            known = self.images[path] = CocoImage(path, split, found, where)
            if self.group and (group := group_of(row, self.group)):
                known.others["group"] = group
        elif split and known.split and split != known.split:
            what = f"{path.name} is in {known.split} ({known.where}) and in {split} ({where})"
            raise DataError(what, where=str(file.path), fix="keep it in one of them")
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

    def read_annotation(self, row: dict[str, Any], where: str, image: CocoImage) -> None:
        """Read a row of `annotations` that belongs to an image."""
        found = image.found
        if str(row.get("caption") or "").strip():
            image.captions.append(" ".join(str(row["caption"]).split()))
            return
        key = row.get("category_id")
        category = self.categories.find(key, "category", where)
        name = category if category is not None else f"class {str(key)[:40]}"
        shape, said = coco_shape(row, found.size)
        if shape is None and category is not None and not row.get("bbox") and category.lower() in EMPTY:
            self.empties[category] += 1
            return
        if shape is None and self.unplaced and not says_place(row):
            found.lost += 1  # the image isn't known to hold no other object
            return
        if shape is None:
            found.lose(where, f"{said} ({name})", category or "")
            return
        if said:
            self.builder.note(where, f"{said} ({name})")
        if category is None:
            found.ignore(where, f"unknown class number {str(key)[:40]}", name, shape)
            return
        crowd = is_set(row.get("iscrowd")) and self.crowds_are != "objects"
        if crowd and not self.crowds_are and is_cvat_mask(row):
            crowd = False
            self.masks += 1
        difficult = crowd or is_set(row.get("ignore"))
        label = found.add(where, name, shape, known=self.known, difficult=difficult)
        if not row.get("segmentation"):
            self.builder.tally.compare_area(found.source, shape, row.get("area"))
        self.crowds += crowd and label is not None


class SceneReading(CocoReading):
    """Files whose annotations are classes of whole images, while they are read; see `CocoReading`."""

    def __init__(self, builder: SetBuilder, files: Sequence[CocoFile], known: tuple[str, ...] | None) -> None:
        self.scenes: dict[Path, dict[str, None]] = {}
        self.rows = [row for file in files for row in file.content["annotations"] if isinstance(row, dict)]
        super().__init__(builder, files, known)

    def read_annotation(self, row: dict[str, Any], where: str, image: CocoImage) -> None:
        """Take the class of an image."""
        key = row.get("category_id")
        name = self.categories.find(key, "category", where)
        if name is None:
            image.found.lose(where, f"unknown class number {str(key)[:40]}", "")
        elif self.known is None or name in self.known:
            self.scenes.setdefault(image.path, {}).setdefault(name)

    def build(self) -> LabelledSet:
        """Return the set: each image with its class, or all with the classes that fit where one has several."""
        several = any(len(names) > 1 for names in self.scenes.values())
        for image in self.images.values():
            names = tuple(self.scenes.get(image.path, ()))
            if not names or image.found.lost:
                self.builder.note(image.where, "no class is known of the image; left out")
                continue
            told: dict[str, Any] = {"tags": names} if several else {"scene": names[0]}
            self.builder.add_file(image.path, split=image.split, category=names[0], **image.others, **told)
        placed = sum(says_place(row) for row in self.rows)
        also = f"; {placed:,} boxes and outlines aren't read" if placed else " and no place"
        self.builder.understand(f"annotations name a class{also}: they are classes of whole images")
        if several:
            self.builder.understand("images may have several classes")
        used = {name for names in self.scenes.values() for name in names}
        return self.builder.build(
            scene_classes=self.known or tuple(name for name in self.names if name in used)
        )


def _check_same(builder: SetBuilder, entry: _Entry) -> None:
    """Note that a row of `images` repeats another one.

    Raises:
        DataError: Their annotations differ.
    """
    assert entry.first is not None
    before = f"{entry.name} is listed under two ids, before in {entry.first.where}"
    if sorted(entry.said or ()) != sorted(entry.first.said or ()):
        fix = "keep one of the entries, with the annotations of both"
        raise DataError(f"{before}, with other annotations", where=entry.where, fix=fix)
    builder.note(entry.where, f"{before}, with the same annotations; counted once")
