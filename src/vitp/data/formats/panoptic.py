"""COCO panoptic: for each image a PNG of the ids of its segments, and JSON that says of which class each of them is.

    annotations/panoptic_train2017.json        annotations[i]: image_id, file_name of the PNG, segments_info
    annotations/panoptic_train2017/NAME.png    id = R + 256 G + 65536 B; 0 is void: nothing is said of these pixels

Segments of things become objects with outlines, and all segments together the mask of classes, which the PNG itself
is: a panoptic label is both of one image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vitp.core.errors import DataError, did_you_mean
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.coco import CocoImage, CocoReading
from vitp.data.formats.coco_files import (
    CocoFile,
    annotation_files,
    is_panoptic_file,
    is_set,
    load_coco_file,
    refuse_scores,
)
from vitp.data.formats.image_labels import LabelShape
from vitp.data.formats.mask_objects import each_value
from vitp.data.formats.pixel_masks import MaskFile, mask_values
from vitp.data.formats.walk import comma_list
from vitp.io.images import load_label_pixels
from vitp.records.labels import IGNORE, LabelledSet
from vitp.records.regions import object_of


def read_panoptic(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    images: str | None = None,
    panoptic: str | None = None,
    things: str | list[str] | None = None,
    scores: Literal["", "labels"] = "",
) -> LabelledSet:
    """Read COCO panoptic annotations: objects with outlines of things, and a mask of the classes of things and stuff.

    A crowd (`iscrowd`) of things is a difficult object. An id of a PNG that no segment names, and one of an unknown
    category, are places of which nothing is known; so is void. An image whose PNG is missing, damaged or of another
    size, and one without an annotation, has no labels.

    Args:
        root: A JSON file, or a folder with JSON files in itself, in `annotations/` or in folders of the splits. Images
            lie as in COCO, the PNGs in a folder called like their JSON file, or in `panoptic/`.
        options: Name, licence, splits.
        images: Folder of the images, relative to that of the set; by default they are looked for.
        panoptic: Folder of the PNGs, likewise.
        things: Classes whose segments are single objects; by default those whose category says `isthing`.
        scores: "labels": segments with scores are labels that somebody has checked; by default they are refused.

    Raises:
        DataError: A file isn't panoptic JSON, there is no folder of PNGs, a category doesn't say whether it is a
            thing, or too many labels can't be used.
    """
    base = root if root.is_dir() else root.parent
    builder = SetBuilder(base, options)
    paths = [path for path in annotation_files(root) if is_panoptic_file(path)]
    if not paths:
        fix = "put it into annotations/"
        raise DataError("no COCO JSON with segments_info found", where=str(root), fix=fix)
    folder, pngs = (None if name is None else base / name for name in (images, panoptic))
    for given, option in ((folder, "images"), (pngs, "panoptic")):
        if given is not None and not given.is_dir():
            raise DataError("is no folder", where=str(given), fix=f"name another one with -o {option}=FOLDER")
    files = [replace(load_coco_file(path, base), images=folder) for path in paths]
    refuse_scores(files, scores)
    reading = _PanopticReading(builder, files, comma_list(things), pngs)
    reading.add_images()
    _say(builder, reading)
    return builder.build(
        object_classes=[name for name in reading.names if name in reading.things],
        semantic_classes=reading.names,
    )


def _say(builder: SetBuilder, reading: _PanopticReading) -> None:
    stuff = [name for name in reading.names if name not in reading.things]
    for title, names in (("things", sorted(reading.things, key=reading.names.index)), ("stuff", stuff)):
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        builder.understand(f"panoptic: {len(names)} classes of {title}{': ' if names else ''}{shown}")
    if reading.crowds:
        builder.understand(f"crowds: {reading.crowds:,} segments are neither learned nor counted")
    if reading.void:
        builder.understand(
            f"void: of pixels of id 0, in {reading.void:,} images, no class is learned or scored; the objects listed "
            "are taken as all that there are"
        )


@dataclass(frozen=True)
class _Segment:
    """A row of `segments_info`: where it stands, and its class; None with its number where that is unknown."""

    where: str
    category: str | None
    number: Any
    crowd: bool

    @property
    def name(self) -> str:
        """Of the class, or its number."""
        return self.category or f"class {str(self.number)[:40]}"


class _PanopticReading(CocoReading):
    """The panoptic files of one set while they are read.

    Args:
        builder: Takes images and findings.
        files: The annotation files.
        things: Classes of things; None: the files say it.
        folder: Folder of the PNGs; None: it is looked for.
    """

    def __init__(
        self,
        builder: SetBuilder,
        files: Sequence[CocoFile],
        things: Sequence[str] | None,
        folder: Path | None,
    ) -> None:
        self.folders = {file.path: _png_folders(file, builder.root, folder) for file in files}
        self.void = 0
        self._annotated: set[Path] = set()
        self._is_thing = _things(files, things)
        super().__init__(builder, files)
        if len(self.names) > IGNORE:
            what = f"has {len(self.names)} classes; masks of more than {IGNORE} can't be read"
            raise DataError(what, where=str(files[0].path), fix="merge categories")

    @property
    def things(self) -> frozenset[str]:
        """Names of the classes of things."""
        return frozenset(name for name, thing in self._is_thing.items() if thing)

    def add_images(self) -> None:
        """Give the builder all images that have an annotation; see `CocoReading.add_images`."""
        for path, image in self.images.items():
            if path not in self._annotated:  # nobody looked at it
                image.objects_from = None
        super().add_images()

    def read_annotation(self, row: dict[str, Any], where: str, image: CocoImage) -> None:
        """Read the segments of an image.

        Raises:
            DataError: The image has two annotations, or two segments one id.
        """
        if image.path in self._annotated:
            what = f"is a second annotation of {image.path.name}"
            raise DataError(what, where=where, fix="keep one annotation an image")
        self._annotated.add(image.path)
        found, segments = image.found, row.get("segments_info")
        if not isinstance(segments, list):
            found.lose(where, "has no list segments_info")
            return
        if not segments:
            self.builder.note(where, "names no segment; all of its image is void")
            self._annotated.discard(image.path)
            return
        assert image.objects_from is not None
        path = self._png(row.get("file_name"), self.folders[image.objects_from])
        if path is None:
            found.lose(where, f"its PNG {str(row.get('file_name'))[:80]} is missing")
            return
        place = self.builder.place(path)
        try:
            pixels = load_label_pixels(path)
        except DataError as error:
            found.lose(where, f"{place} {error.what}")
            return
        if pixels.ndim != 3:
            found.lose(where, f"{place} holds no colours R, G, B, which the id of a segment is made of")
        elif (pixels.shape[1], pixels.shape[0]) != found.size:
            shown = f"{pixels.shape[1]}×{pixels.shape[0]} px, the image {found.size[0]}×{found.size[1]}"
            found.lose(where, f"{place} has {shown}")
        else:
            values_HW = mask_values(pixels)
            self.void += bool((values_HW == 0).any())
            self._read_segments(self._named(segments, where, image), values_HW, path, where, image)

    def _named(self, rows: Sequence[Any], where: str, image: CocoImage) -> dict[int, _Segment]:
        """Return the segments of an image by the value of their pixels; one without an id is lost."""
        named: dict[int, _Segment] = {}
        for number, row in enumerate(rows):
            at = f"{where}.segments_info[{number}]"
            ident = row.get("id") if isinstance(row, dict) else None
            if type(ident) is not int or not 0 < ident < 1 << 24:
                image.found.lose(at, f"id {str(ident)[:40]} is none of a segment (1 to 16777215)")
                continue
            key = row.get("category_id")
            crowd = is_set(row.get("iscrowd"))
            segment = _Segment(at, self.categories.find(key, "category", at), key, crowd)
            if _swapped(ident) in named:
                what = f"names segment {ident} twice"
                raise DataError(what, where=at, fix="give each segment of an image its own id")
            named[_swapped(ident)] = segment
        return named

    def _read_segments(
        self, named: dict[int, _Segment], values_HW: Any, path: Path, where: str, image: CocoImage
    ) -> None:
        found, place, values = image.found, self.builder.place(path), []
        for value, mask_HW, corner in each_value(values_HW):
            segment = named.pop(value, None)
            name = segment.name if segment else f"segment {_swapped(value)}"
            label = object_of(mask_HW, name, corner)
            assert label is not None
            shape = LabelShape(label.box, label.quad, label.polygons, label.holes)
            if segment is None:
                found.ignore(
                    where, f"no segment is called {_swapped(value)}, as pixels of {place} are", name, shape
                )
                continue
            if segment.category is None:
                what = f"unknown class number {str(segment.number)[:40]}"
                found.ignore(segment.where, what, name, shape)
                continue
            values.append((value, self.names.index(segment.category)))
            if self._is_thing[segment.category]:
                added = found.add(segment.where, segment.category, shape, difficult=segment.crowd)
                self.crowds += segment.crowd and added is not None
            else:
                found.tally.used[found.source, segment.category] += 1
        for value, segment in named.items():
            what = f"segment {_swapped(value)} ({segment.name}) has no pixel in {place}"
            if segment.category is not None and not self._is_thing[segment.category]:
                self.builder.note(
                    segment.where, what
                )  # the pixels that it should have are of another, or void
                found.tally.lose(found.source, segment.category, f"{segment.where}: {what}")
            else:
                found.lose(segment.where, what, segment.category or "")
        if values:
            image.others["semantic"] = MaskFile(str(path), tuple(values))

    def _png(self, name: Any, folders: Sequence[Path]) -> Path | None:
        if not isinstance(name, str) or not name.strip():
            return None
        plain = name.replace("\\", "/")
        places = (folder / part for part in (plain, plain.rpartition("/")[2]) for folder in folders)
        return next((place for place in places if place.is_file()), None)


def _swapped(value: int) -> int:
    """Return the id of a colour 0xRRGGBB, or the colour of an id: red is the lowest byte of one, blue of the other."""
    return (value & 255) << 16 | value & 0xFF00 | value >> 16


def _png_folders(file: CocoFile, root: Path, given: Path | None) -> list[Path]:
    """Return the folders in which the PNGs of a file may lie.

    Raises:
        DataError: None of them is there.
    """
    if given is not None:
        return [given]
    stem, beside = file.path.stem, file.path.parent
    places = [base / name for base in (beside, root) for name in (stem, "panoptic")]
    found = [place for place in dict.fromkeys(places) if place.is_dir()]
    if not found:
        what = f"there is no folder of its PNGs ({stem}/ or panoptic/ beside it)"
        raise DataError(what, where=str(file.path), fix="add it, or name it with -o panoptic=FOLDER")
    return found


def _things(files: Sequence[CocoFile], given: Sequence[str] | None) -> dict[str, bool]:
    """Return class → whether its segments are single objects.

    Raises:
        DataError: A category doesn't say it, two files say different things, or a class that is given isn't there.
    """
    found: dict[str, bool] = {}
    for file in files:
        for number, row in enumerate(file.content.get("categories") or ()):
            if not isinstance(row, Mapping):
                continue  # the names are checked where they are read
            where, name = f"{file.path}: categories[{number}]", str(row.get("name", "")).strip()
            if given is None and str(row.get("isthing")).strip().lower() not in ("0", "1", "true", "false"):
                what = f'doesn\'t say whether "{name}" is a thing (single objects) or stuff'
                fix = 'write "isthing": 1 or 0, or name the things with -o things=NAME,NAME'
                raise DataError(what, where=where, fix=fix)
            thing = is_set(row["isthing"]) if given is None else name in given
            if found.setdefault(name, thing) != thing:
                what = f'"{name}" is {"a thing" if thing else "stuff"} here, and {"stuff" if thing else "a thing"} before'
                raise DataError(
                    what, where=where, fix="say it alike, or name the things with -o things=NAME,NAME"
                )
    for name in given or ():
        if name not in found:
            fix = did_you_mean(name, list(found)) or f"classes are {', '.join(list(found)[:8])}"
            raise DataError(f'there is no class "{name}" to be a thing', where=str(files[0].path), fix=fix)
    return found
