"""Rasters with vector labels: GeoPackage, Shapefile, GeoJSON, GeoParquet; one file for all rasters, or one for each.

Outlines are brought from their coordinate reference system into that of each raster, corner by corner, and then into
its pixels. What reaches over the border of a raster is cut, by the rule of crops (`crops.visible_part`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import ConfigError, DataError
from vitp.core.extras import need
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.crops import LEAST_VISIBLE, visible_part
from vitp.data.formats.drawn_masks import Drawn, DrawnMask, DrawnPart, drawing_order, parts_of
from vitp.data.formats.geo_files import LabelSource, class_column, class_text, find_sources, without_sources
from vitp.data.formats.geo_shapes import LabelledArea, PlacedShapes, Widths, object_label, point_boxes
from vitp.data.formats.image_labels import ImageLabels, LabelShape
from vitp.data.formats.pairs import find_pair_places, two_dates
from vitp.data.formats.places import GroundPlace
from vitp.data.formats.walk import as_option, comma_list, images_below, split_in, within
from vitp.io.ground import geometry_of, ground_matrix
from vitp.io.vectors import read_features, vector_layers
from vitp.records.labels import BACKGROUND, IGNORE, NOT_LABELLED, LabelledSet

_UNKNOWN = "unknown"


@dataclass
class _Layer:
    """One layer while it is read: where it comes from, its shapes, and the class of each feature."""

    source: LabelSource
    shapes: PlacedShapes
    classes: list[str | None]
    place: str


@dataclass
class _Reading:
    """What the labels of all rasters have in common."""

    builder: SetBuilder
    widths: Widths
    known: tuple[str, ...] | None
    wants_objects: bool
    wants_masks: bool
    single_parts: bool
    area: LabelledArea | None = None
    values: dict[str, int] = field(default_factory=dict)
    several_parts: int = 0
    outside_area: int = 0
    seen: set[str] = field(default_factory=set)


def read_geo(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    labels: str | list[str] | None = None,
    layer: str | list[str] | None = None,
    class_: str | None = None,
    classes: str | list[str] | None = None,
    labels_crs: str | int | None = None,
    images: str | None = None,
    area: str | None = None,
    point_size: float | None = None,
    line_width: float | None = None,
    parts: bool = False,
    semantic: bool | str = False,
) -> LabelledSet:
    """Read rasters with vector labels.

    Args:
        root: Holds georeferenced images, and vector files anywhere below.
        options: Name, licence, splits.
        labels: The file of the labels, or several (then each file's name is a class), or a folder with one a raster.
        layer: Of a file with several layers, the one that is read, or several (then each layer's name is a class).
        class_: Column that holds the class; called `class` as an option.
        classes: The classes in order; the places of others are ignored. Without a column: the name of all.
        labels_crs: Coordinate reference system of the labels, where the file doesn't say it, or says it wrongly.
        images: Folder of the images, where there are several.
        area: File with the area that is labelled; by default the whole of each raster is.
        point_size: Side in metres of the box around a point.
        line_width: Width in metres of a line.
        parts: Each part of a feature of several polygons is an object of its own.
        semantic: True: masks of classes instead of objects; "both": beside them.

    Raises:
        DataError: Labels or rasters don't say where they lie, or have two readings.
        ConfigError: An option doesn't fit.
    """
    for module in ("rasterio", "pyogrio", "shapely", "pyproj"):
        need("geo", module, str(root))
    if semantic not in (True, False, "both"):
        raise ConfigError(f'is "{semantic}"', where="semantic", fix="choose true, false or both")
    widths = Widths(_metres("point_size", point_size), _metres("line_width", line_width))
    builder = SetBuilder(root, options)
    if images is None:
        _refuse_dates(root)
    rasters = _rasters(builder, root if images is None else root / images)
    crs = None if labels_crs is None else str(labels_crs)
    area_file = None if area is None else _file(root, area)
    sources = find_sources(root, list(rasters), labels=labels, layer=layer, crs=crs, without=area_file)
    reading = _Reading(
        builder, widths, comma_list(classes), semantic is not True, semantic is not False, single_parts=parts
    )
    _read_rasters(reading, rasters, _layers(reading, sources, class_), area_file)
    names = reading.known or sorted(reading.seen)
    return builder.build(
        object_classes=names if reading.wants_objects else (),
        semantic_classes=list(reading.values) if reading.wants_masks else (),
    )


def _refuse_dates(root: Path) -> None:
    """Refuse two dates of each place: outlines of what changed would label both of them.

    Raises:
        DataError: There are folders of two dates with files of equal names.
    """
    for place in two_dates(find_pair_places(root)):
        before, after = (within(place.folders[key].path, root) for key in ("before", "after"))
        raise DataError(
            f"{before} and {after} are two dates, and the outlines may be of what changed or of what one of them shows",
            where=str(root),
            fix=f"{as_option('images', after)} labels that date alone; what changed is read from masks in label/ (--format pairs)",
        )


def _read_rasters(
    reading: _Reading, rasters: dict[Path, GroundPlace], layers: list[_Layer], area_file: Path | None
) -> None:
    """Add all rasters with their labels."""
    builder = reading.builder
    if area_file is not None:
        reading.area = _area(builder, area_file)
    else:
        builder.understand("the whole of each raster counts as labelled; -o area=FILE names the part that is")
    own = {layer.source.image for layer in layers}
    for path, placed in rasters.items():
        if None not in own and path not in own:
            builder.note(builder.place(path), "no vector file belongs to it; left out")
            continue
        _add(reading, path, placed, [one for one in layers if one.source.image in (None, path)])
    _report(reading, layers, rasters)


def _metres(name: str, value: float | None) -> float | None:
    if value is not None and not (isinstance(value, int | float) and 0 < value < 1e6):
        raise ConfigError(f"is {value}", where=name, fix="give metres, as 5")
    return value


def _file(root: Path, name: str) -> Path:
    path = root / name
    if not path.is_file():
        raise DataError("doesn't exist", where=str(path), fix="check the option area")
    return path


def _rasters(builder: SetBuilder, folder: Path) -> dict[Path, GroundPlace]:
    """Return the images that say where they lie.

    Raises:
        DataError: None does, or the folder isn't there.
    """
    if not folder.is_dir():
        raise DataError("is not a folder", where=str(folder), fix="check the option images")
    found: dict[Path, GroundPlace] = {}
    unplaced = []
    images, said = without_sources(builder.root, images_below(folder))
    if said:
        builder.understand(said)
    for path in images:
        size = builder.size_of(path)
        if size is None:
            continue
        geometry = geometry_of(path)
        if geometry is None:
            unplaced.append(path)
        else:
            found[path] = geometry, size
    if not found:
        first = f" (the first: {builder.place(unplaced[0])})" if unplaced else ""
        raise DataError(
            f"none of {len(unplaced)} images says where it lies on the ground{first}",
            where=str(folder),
            fix="vector labels need images with a coordinate reference system, such as GeoTIFF",
        )
    for path in unplaced:
        builder.note(builder.place(path), "doesn't say where it lies on the ground; left out")
    return found


def _layers(reading: _Reading, sources: list[LabelSource], told: str | None) -> list[_Layer]:
    """Return the layers with the class of each feature, and say how they were understood."""
    builder = reading.builder
    one = reading.known is not None and len(reading.known) == 1
    column = class_column(sources, told, builder.root, named_by_option=one)
    name_of_all = reading.known[0] if reading.known and len(reading.known) == 1 and not column.name else None
    layers = []
    for source in sources:
        features, place = source.features, builder.place(source.features.path)
        values = features.columns.get(column.name) if column.name else None
        titles: list[str | None] = [name_of_all or source.title] * len(features)
        classes = titles if values is None else [class_text(value) for value in values.tolist()]
        if values is None and column.name:
            classes = [None] * len(features)
        shapes = PlacedShapes.of(features, reading.widths, builder.note, place)
        layers.append(_Layer(source, shapes, classes, place))
    first = layers[0]
    each = "" if first.source.image is None else f" and {len(layers) - 1} more, one for each raster"
    title = f"{first.place}, layer {first.source.features.layer} ({first.source.features.crs}){each}"
    if first.source.image is None:
        title = "; ".join(
            f"{one.place}, layer {one.source.features.layer} ({one.source.features.crs})" for one in layers
        )
    said = f'no column; all are "{name_of_all}"' if name_of_all is not None else column.said
    builder.understand(f"labels: {title}; class: {said}")
    occurring = sorted({name for one in layers for name in one.classes if name is not None})
    if reading.wants_masks:
        names = [name for name in reading.known or occurring if name != BACKGROUND]
        if len(names) >= IGNORE:
            what = f"{len(names)} classes are more than a mask can hold"
            raise DataError(
                what, where=str(builder.root), fix="choose some with -o classes=…, or another column"
            )
        reading.values = {name: number for number, name in enumerate([BACKGROUND, *names])}
        builder.understand(
            f'masks: pixels whose centre no outline holds are "{BACKGROUND}"; of outlines that overlap the smaller one '
            "lies on top"
        )
    return layers


def _area(builder: SetBuilder, path: Path) -> LabelledArea:
    """Return the area that is labelled.

    Raises:
        DataError: The file has several layers, or doesn't say where it lies.
    """
    known = vector_layers(path)
    if len(known) != 1:
        raise DataError(
            f"has {len(known)} layers", where=str(path), fix="write the area into a file of its own"
        )
    shapes = PlacedShapes.of(read_features(path, known[0]), Widths(), builder.note, builder.place(path))
    builder.understand(f"labelled is the area in {builder.place(path)}; nothing is said about the rest")
    return LabelledArea(shapes)


def _add(reading: _Reading, path: Path, placed: GroundPlace, layers: list[_Layer]) -> None:
    """Add one raster with the labels that meet it."""
    builder = reading.builder
    ignored = () if reading.area is None else reading.area.outside(placed)
    if ignored is None:
        builder.note(builder.place(path), "lies outside of the labelled area; left out")
        return
    found = builder.labels_of(placed[1], layers[0].place)
    found.ignored += ignored
    drawn: list[Drawn] = []
    for layer in layers:
        found.source = layer.place
        for number, shape in layer.shapes.on(placed, reading.widths):
            _take(reading, layer, number, shape, placed, found, drawn)
        if layer.source.image is not None:
            for number in layer.shapes.empty.tolist():
                found.lose(f"{layer.place}:{number + 1}", "an object has no place")
    split = split_in(path.relative_to(builder.root))[0]
    mask = None
    if reading.wants_masks:
        mask = DrawnMask(placed[1], drawing_order(drawn)).windowed((0, 0, *placed[1]))
    if reading.wants_objects:
        builder.add_labelled(path, found, split=split, semantic=mask)
    else:
        builder.add(path, placed[1], split=split, semantic=mask, ignored=tuple(found.ignored))


def _take(
    reading: _Reading,
    layer: _Layer,
    number: int,
    shape: Any,
    placed: GroundPlace,
    found: ImageLabels,
    drawn: list[Drawn],
) -> None:
    """Take one feature into the labels of a raster that it meets."""
    where, category = f"{layer.place}:{number + 1}", layer.classes[number]
    pieces = _pieces(reading, shape, placed)
    reading.several_parts += len(pieces) == 1 and len(pieces[0]) > 1
    for parts in pieces:
        label = object_label(category or _UNKNOWN, parts)
        visible = visible_part(label, (0, 0, *placed[1]), LEAST_VISIBLE)
        if visible is None:
            continue
        if reading.area is not None and _hidden(visible, found):
            reading.outside_area += 1
            continue
        known = reading.known
        value = IGNORE if category is None else reading.values.get(category, IGNORE)
        if reading.wants_masks:
            drawn.append((value, parts))
        own = LabelShape(visible.box, visible.quad, visible.polygons, visible.holes)
        if not reading.wants_objects:
            continue
        if category is None:
            found.ignore(where, "an object without a class", _UNKNOWN, own)
        elif found.add(where, category, own, known=known, difficult=visible.difficult) is not None:
            reading.seen.add(category)


def _pieces(reading: _Reading, shape: Any, placed: GroundPlace) -> list[tuple[DrawnPart, ...]]:
    """Return the polygons of each object that a feature is."""
    if reading.widths.point is not None:
        boxes = point_boxes(shape, ground_matrix(*placed), reading.widths.point)
        if boxes:
            return [(((x1, y1, x2, y1, x2, y2, x1, y2),),) for x1, y1, x2, y2 in boxes]
    parts = parts_of(shape)
    if reading.single_parts:
        return [(part,) for part in parts]
    return [parts] if parts else []


def _hidden(label: Any, found: ImageLabels) -> bool:
    """Return whether an object lies in places that aren't labelled, all but a hundredth of it."""
    if not found.ignored:
        return False
    shapely = need("geo", "shapely", "labels")
    own = shapely.box(*label.box)
    rest = shapely.union_all(
        [
            shapely.polygons(np.reshape(one.polygons[0], (-1, 2)))
            for one in found.ignored
            if one.category == NOT_LABELLED
        ]
    )
    return bool(shapely.intersection(own, rest).area > 0.99 * own.area)


def _report(reading: _Reading, layers: list[_Layer], rasters: dict[Path, GroundPlace]) -> None:
    """Count what lies outside of all rasters, and refuse when everything does.

    Raises:
        DataError: There is no object, or none lies in a raster.
    """
    builder = reading.builder
    total = met = 0
    for layer in layers:
        empty = layer.shapes.empty
        if layer.source.image is None:
            for number in empty.tolist():
                where, why = f"{layer.place}:{number + 1}", "has no geometry; left out"
                builder.note(where, why)
                builder.tally.lose(layer.place, layer.classes[number] or "", f"{where}: {why}")
        total += len(layer.source.features) - len(empty)
        met += int(layer.shapes.met_N.sum())
    if not total:
        first = layers[0]
        several = f" (nor do {len(layers) - 1} more files or layers)" if len(layers) > 1 else ""
        raise DataError(
            f"layer {first.source.features.layer} holds no feature with a place{several}: that would make every image "
            "one without any object",
            where=first.place,
            fix="check whether the file was written in full, or name another (-o labels=FILE, -o layer=NAME)",
        )
    if not met:
        path, (geometry, _) = next(iter(rasters.items()))
        raise DataError(
            f"none of the {total:,} objects lies in a raster: the labels are in {layers[0].source.features.crs}, "
            f"{builder.place(path)} in {geometry.crs[:60]}",
            where=layers[0].place,
            fix="check the coordinate reference systems (-o labels_crs=EPSG:… says what the labels are in), and "
            "whether they are of this place",
        )
    if total > met:
        builder.note("labels", f"{total - met:,} of {total:,} objects lie outside of all rasters; not used")
    if reading.outside_area:
        builder.note("labels", f"{reading.outside_area:,} objects lie outside of the labelled area; not used")
    if reading.several_parts:
        builder.understand(
            f"{reading.several_parts:,} features have several polygons: one object each; -o parts=true makes each one"
        )
    counts = Counter(
        name
        for layer in layers
        for name, met in zip(layer.classes, layer.shapes.met_N, strict=True)
        if met and name
    )
    if reading.wants_masks and not reading.wants_objects:
        listed = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(20))
        builder.understand(f"outlines of each class: {listed}")
