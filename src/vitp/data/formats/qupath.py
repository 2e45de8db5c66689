"""QuPath's GeoJSON: annotations and detections of slides (or pictures), in pixels of the finest level.

One file an image, named after it (`slide.geojson`, `slide.svs.geojson`, `slide.svs - Series 0.geojson`), anywhere below
the set's folder. The class of an object is the name of its classification.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import ConfigError, DataError
from vitp.core.extras import need
from vitp.core.reading import head_of
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.drawn_masks import Drawn, DrawnMask, drawing_order, parts_of
from vitp.data.formats.geo_shapes import object_label, without_holes
from vitp.data.formats.image_labels import ImageLabels, LabelShape
from vitp.data.formats.walk import (
    comma_list,
    files_below,
    images_below,
    parse_label_json,
    read_label_text,
    split_in,
    within,
)
from vitp.records.geometry import as_flat, as_points, bounds
from vitp.records.labels import BACKGROUND, IGNORE, NOT_LABELLED, LabelledSet, ObjectLabel

NO_CLASS = "unclassified"
"""What annotations without a classification are called in options."""
_SUFFIXES = (".geojson", ".json")
_HEAD = 1 << 16
_SIGN = re.compile(
    rb'"(?:objectType|object_type)"\s*:\s*"(?:annotation|detection|cell|tile|tma_core|root)"|'
    rb'"classification"\s*:\s*\{'
)
_AREAS = ("Polygon", "MultiPolygon", "GeometryCollection")


def qupath_files(root: Path) -> list[Path]:
    """Return the files below a folder that QuPath exported, by how they begin."""
    return [path for path in files_below(root) if path.suffix.lower() in _SUFFIXES and _is_qupath(path)]


def _is_qupath(path: Path) -> bool:
    head = head_of(path, _HEAD)
    return b'"Feature"' in head and b'"crs"' not in head and _SIGN.search(head) is not None


def is_qupath(root: Path) -> bool:
    """Return whether a folder holds images and exports of QuPath."""
    return bool(qupath_files(root)) and bool(images_below(root))


@dataclass
class _Reading:
    """What the files of a set have in common."""

    builder: SetBuilder
    known: tuple[str, ...] | None
    area: str | None
    unclassified: str
    rest: str
    wants_objects: bool
    wants_masks: bool
    values: dict[str, int] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    outside: int = 0
    starred: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Object:
    """One object of a file: its place there, its class, and its area as a shapely geometry (None: it has none)."""

    where: str
    name: str | None
    kind: str
    shape: Any
    drawn_as: str


def read_qupath(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    semantic: bool | str = False,
    area: str | None = None,
    unclassified: str = "",
    rest: str = BACKGROUND,
    images: str | None = None,
) -> LabelledSet:
    """Read images with QuPath's GeoJSON.

    Args:
        root: Holds images, and one file for each anywhere below.
        options: Name, licence, splits.
        classes: The classes in order; the places of others are ignored.
        semantic: True: masks of classes instead of objects; "both": beside them.
        area: Classification of the annotations that are the labelled area ("unclassified": those without one); by
            default the whole image is.
        unclassified: "ignore": what has no classification is neither object nor background; needed where such an
            annotation holds others and may be an area.
        rest: What pixels of no outline are in masks: "background", or "ignore" for nothing.
        images: Folder of the images, where there are several.

    Raises:
        DataError: A file can't be read, has two readings, or belongs to no image.
        ConfigError: An option doesn't fit.
    """
    need("geo", "shapely", str(root))
    for name, value, choices in (
        ("semantic", semantic, (True, False, "both")),
        ("unclassified", unclassified, ("", "ignore")),
        ("rest", rest, (BACKGROUND, "ignore")),
    ):
        if value not in choices:
            listed = " or ".join(str(one).lower() for one in choices if one != "")
            raise ConfigError(f'is "{value}"', where=name, fix=f"choose {listed}")
    builder = SetBuilder(root, options)
    owners = _owners(root, images_below(root if images is None else root / images), qupath_files(root))
    reading = _Reading(
        builder, comma_list(classes), area, unclassified, rest, semantic is not True, semantic is not False
    )
    read = {path: _objects(builder, file) for path, file in owners.items() if file is not None}
    if reading.wants_masks:
        _number_classes(reading, read.values())
    for path, file in owners.items():
        if file is None:
            builder.note(builder.place(path), "no GeoJSON of QuPath belongs to it; left out")
        elif (size := builder.size_of(path)) is not None:
            _add(reading, path, file, size, read[path])
    return _built(reading)


def _owners(root: Path, images: Sequence[Path], found: Sequence[Path]) -> dict[Path, Path | None]:
    """Return the file of each image.

    Raises:
        DataError: There is none, or a file may belong to two images or to none.
    """
    if not found:
        what = "holds no GeoJSON of QuPath"
        raise DataError(what, where=str(root), fix="export the objects (File › Export objects as GeoJSON)")
    by_name: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        for name in {image.name, image.stem, image.name.partition(".")[0]}:
            by_name[name].append(image)
    owners: dict[Path, Path | None] = dict.fromkeys(images)
    for file in found:
        names = (file.stem, file.stem.partition(" - ")[0], file.name.partition(".")[0])
        hits = next((by_name[name] for name in names if by_name.get(name)), [])
        if len(hits) != 1:
            shown = (
                f"may belong to {within(hits[0], root)} or to {within(hits[1], root)}"
                if hits
                else ("has the name of no image")
            )
            fix = "name it after its image (slide.geojson), or the folder of the images (-o images=FOLDER)"
            raise DataError(shown, where=within(file, root), fix=fix)
        if (other := owners[hits[0]]) is not None:
            what = f"has the labels {within(other, root)} and {within(file, root)}"
            raise DataError(what, where=within(hits[0], root), fix="keep one of them")
        owners[hits[0]] = file
    return owners


def _objects(builder: SetBuilder, path: Path) -> list[_Object]:
    """Return the objects of a file.

    Raises:
        DataError: It can't be read.
    """
    content = parse_label_json(read_label_text(path), path)
    features = content.get("features") if isinstance(content, dict) else content
    if isinstance(content, dict) and content.get("type") == "Feature":
        features = [content]
    if not isinstance(features, list):
        what = "is no list of features"
        raise DataError(what, where=str(path), fix="export it again as GeoJSON from QuPath")
    return [_object(builder, path, number, row) for number, row in enumerate(features)]


def _object(builder: SetBuilder, path: Path, number: int, row: Any) -> _Object:
    where = builder.place(path, f"features[{number}]")
    shapely = need("geo", "shapely", str(path))
    if not isinstance(row, dict) or not isinstance(row.get("properties") or {}, dict):
        raise DataError("is no feature", where=f"{path}: features[{number}]", fix="export the file again")
    told = row.get("properties") or {}
    classified = told.get("classification")
    name = classified.get("name") if isinstance(classified, dict) else classified
    if name is None and isinstance(classified, dict) and isinstance(classified.get("names"), list):
        name = ": ".join(map(str, classified["names"]))
    text = " ".join(str(name).split()) if isinstance(name, str | int | float) else None
    kind = str(told.get("objectType") or told.get("object_type") or row.get("id") or "annotation")
    geometry = row.get("geometry")
    geometry = geometry if isinstance(geometry, dict) else {}
    drawn_as = str(geometry.get("type") or "no geometry")[:40]
    shape = None
    if drawn_as in _AREAS:
        try:
            shape = need("geo", "shapely.geometry", str(path)).shape(geometry)
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, shapely.GEOSException):
            drawn_as = f"a broken {drawn_as}"
        if shape is not None and not shape.is_valid:
            why = shapely.is_valid_reason(shape).split("[")[0].lower()
            builder.note(where, f"its outline was mended ({why})")
            shape = shapely.make_valid(shape)
        if shape is not None and not np.isfinite(shape.bounds).all():
            shape = None
    return _Object(where, text or None, kind, shape, drawn_as)


def _number_classes(reading: _Reading, files: Iterable[Sequence[_Object]]) -> None:
    builder = reading.builder
    occurring = {one.name for objects in files for one in objects if _is_label(reading, one)}
    names = [name for name in reading.known or sorted(filter(None, occurring)) if name != BACKGROUND]
    if len(names) >= IGNORE:
        what = f"{len(names)} classes are more than a mask can hold"
        raise DataError(what, where=str(builder.root), fix="choose some with -o classes=…")
    plain = reading.rest == BACKGROUND or BACKGROUND in occurring
    named = [BACKGROUND, *names] if plain else names
    reading.values = {name: number for number, name in enumerate(named)}
    if reading.rest == BACKGROUND:
        builder.understand(
            f'masks: pixels of no outline are "{BACKGROUND}" (-o rest=ignore: nothing is said of them); of outlines '
            "that overlap the smaller one lies on top"
        )
    else:
        builder.understand(
            "masks: of pixels of no outline nothing is said; of outlines that overlap the smaller one "
            "lies on top"
        )


def _is_label(reading: _Reading, one: _Object) -> bool:
    """Return whether an object is one of a class: neither an area, nor one of QuPath's classes to be ignored."""
    return (
        one.name is not None
        and one.name != reading.area
        and not (one.name.endswith("*") and one.name not in (reading.known or ()))
    )


def _add(
    reading: _Reading, path: Path, file: Path, size: tuple[int, int], objects: Sequence[_Object]
) -> None:
    """Add one image with its labels."""
    builder = reading.builder
    shapely = need("geo", "shapely", str(file))
    found = builder.labels_of(size, builder.place(file))
    area = _area(reading, file, size, objects)
    if area is not None:
        if area.is_empty:
            builder.note(builder.place(path), "no annotation says which area is labelled; left out")
            return
        found.ignored += _outside(area, size)
    drawn: list[Drawn] = []
    if reading.wants_masks and reading.rest != BACKGROUND:
        width, height = size
        whole = (0.0, 0.0, float(width), 0.0, float(width), float(height), 0.0, float(height))
        drawn.append((IGNORE, ((whole,),)))
    for one in objects:
        if reading.area is not None and (one.name or NO_CLASS) == reading.area:
            continue
        parts = () if one.shape is None else parts_of(one.shape)
        if not parts:
            line = f"{one.drawn_as} has no area; left out"
            builder.note(one.where, line)
            builder.tally.lose(found.source, one.name or "", f"{one.where}: {line}", flat=True)
        elif area is not None and not shapely.intersects(area, one.shape):
            reading.outside += 1
        else:
            _take(reading, one, parts, found, drawn)
    mask = DrawnMask(size, drawing_order(drawn)).windowed((0, 0, *size)) if reading.wants_masks else None
    split = split_in(path.relative_to(builder.root))[0]
    if reading.wants_objects:
        builder.add_labelled(path, found, split=split, semantic=mask)
    else:
        builder.add(path, size, split=split, semantic=mask, ignored=tuple(found.ignored))


def _take(reading: _Reading, one: _Object, parts: Any, found: ImageLabels, drawn: list[Drawn]) -> None:
    """Take one object into the labels of its image."""
    label = object_label(one.name or NO_CLASS, parts)
    shape = LabelShape(label.box, None, label.polygons, label.holes)
    is_label = _is_label(reading, one)
    if reading.wants_masks:
        drawn.append((reading.values.get(one.name or "", IGNORE) if is_label else IGNORE, parts))
    if one.name is not None and not is_label:
        reading.starred.add(one.name)
        found.ignored.append(label)
    elif not reading.wants_objects:
        if one.name is not None:
            found.tally.used[found.source, one.name] += 1
    elif one.name is None:
        found.ignore(one.where, f"a {one.kind} without a classification", NO_CLASS, shape)
    elif found.add(one.where, one.name, shape, known=reading.known) is not None:
        reading.seen.add(one.name)


def _area(reading: _Reading, file: Path, size: tuple[int, int], objects: Sequence[_Object]) -> Any:
    """Return the labelled area of an image as a shapely geometry; None: all of it is.

    Raises:
        DataError: Annotations without a classification may be the area, and no option says whether.
    """
    shapely = need("geo", "shapely", str(file))
    if reading.area is not None:
        own = [one.shape for one in objects if (one.name or NO_CLASS) == reading.area and one.shape]
        return shapely.intersection(shapely.union_all(own), shapely.box(0, 0, *size))
    bare = [one for one in objects if one.name is None and one.kind == "annotation" and one.shape is not None]
    named = [one.shape for one in objects if one.name is not None and one.shape is not None]
    if reading.unclassified or not bare or not named:
        return None
    tree = shapely.STRtree([shapely.centroid(shape) for shape in named])
    holder = next((one for one in bare if len(tree.query(one.shape, predicate="contains"))), None)
    if holder is not None:
        raise DataError(
            "is an annotation without a classification that holds others: it may be the area that is labelled, or an "
            "object whose class is missing",
            where=holder.where,
            fix="-o area=unclassified: the area, nothing is said of the rest; -o unclassified=ignore: neither object "
            "nor background",
        )
    return None


def _outside(area: Any, size: tuple[int, int]) -> list[ObjectLabel]:
    """Return the places of an image that aren't labelled."""
    shapely = need("geo", "shapely", "labels")
    rest = shapely.difference(shapely.box(0, 0, *size), area)
    parts = [part for polygon in shapely.get_parts(rest) for part in without_holes(shapely, polygon)]
    rings = [as_flat(shapely.get_coordinates(part.exterior)[:-1]) for part in parts if part.area > 0.5]
    return [ObjectLabel(NOT_LABELLED, bounds(as_points(ring)), None, (ring,)) for ring in rings]


def _built(reading: _Reading) -> LabelledSet:
    """Return the set, and say what its labels are."""
    builder = reading.builder
    if reading.starred:
        listed = ", ".join(sorted(reading.starred))
        builder.understand(f"classes that QuPath ignores, whose places are ignored here, too: {listed}")
    if reading.area is None:
        builder.understand(
            "the whole of each image counts as labelled; -o area=CLASS names the annotations that are"
        )
    else:
        builder.understand(
            f'labelled is what annotations of "{reading.area}" hold; nothing is said about the rest'
        )
    if reading.outside:
        builder.note("labels", f"{reading.outside:,} objects lie outside of the labelled area; not used")
    names = reading.known or sorted(reading.seen)
    return builder.build(
        object_classes=names if reading.wants_objects else (),
        semantic_classes=list(reading.values) if reading.wants_masks else (),
    )
