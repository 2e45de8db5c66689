"""Files of further annotation tools: Create ML, Supervisely and V7 Darwin."""

from __future__ import annotations

import base64
import binascii
import io
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitp.core.reading import head_of
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.drawings import (
    Drawing,
    Empty,
    ToolShape,
    box_of,
    dicts_of,
    drawn,
    files_of_tool,
    finite_points,
    label_json,
    masked_part,
    numbers_under,
    read_drawings,
    ring_shape,
)
from vitp.data.formats.image_labels import LabelShape
from vitp.data.formats.walk import parse_label_json, read_label_text
from vitp.records.geometry import as_points, contains
from vitp.records.labels import LabelledSet
from vitp.records.tool_shapes import LARGEST_MASK, ellipse_ring

_NO_AREA = frozenset({"point", "polyline", "line", "keypoint", "graph", "skeleton", "cuboid", "string"})


# --- Create ML


def createml_files(root: Path) -> list[Path]:
    """Return the JSON files below a folder that are of Apple's Create ML."""
    return list(_createml_sets(root))


def _createml_sets(root: Path) -> dict[Path, list[dict[str, Any]]]:
    """Return the files of Create ML below a folder, each with its rows, one an image."""
    paths = files_of_tool(
        root, ".json", ('"coordinates"', '"annotation'), lambda path: bool(_createml_rows(path))
    )
    return {path: rows for path in paths if (rows := _createml_rows(path))}


def _createml_rows(path: Path) -> list[dict[str, Any]]:
    content = label_json(path) if head_of(path, 64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[" else None
    rows = content if isinstance(content, list) else []
    is_one = bool(rows) and all(
        isinstance(row, dict) and _first(row, "image", "imagefilename") and isinstance(_boxes(row), list)
        for row in rows
    )
    some = [box for row in rows for box in (_boxes(row) or ())] if is_one else []
    # Captions and answers are lists under these names, too.
    return (
        rows
        if is_one and all(isinstance(box, dict) and "coordinates" in box for box in some) and some
        else []
    )


def _first(row: Mapping[str, Any], *keys: str) -> Any:
    return next((row[key] for key in keys if key in row), None)


def _boxes(row: Mapping[str, Any]) -> Any:
    return _first(row, "annotations", "annotation")


def read_createml(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
) -> LabelledSet:
    """Read Create ML's JSON: boxes by their centre and size in pixels. An image with an empty list is empty.

    Args:
        root: Holds a file for each folder of images, such as `train/_annotations.createml.json`.
        options: Name, licence, splits.
        classes: The classes in order; the places of others are ignored.

    Raises:
        DataError: A file can't be read, or too many boxes can't be used.
    """

    def found(builder: SetBuilder) -> Iterator[Drawing]:
        builder.understand("Create ML: x, y, width and height are centre and size of boxes in pixels")
        for path, rows in _createml_sets(root).items():
            place = builder.place(path)
            for number, row in enumerate(rows, 1):
                shapes = [
                    drawn(
                        f"{place}: image {number}, box {n}",
                        _first(box, "label", "text"),
                        partial(_centred, box),
                    )
                    for n, box in enumerate(_boxes(row), 1)
                ]
                name = str(_first(row, "image", "imagefilename"))
                yield Drawing(f"{place}: image {number}", path, name, "", (0, 0), shapes, place)

    return read_drawings(
        root, options, found, classes=classes, semantic=False, missing="are in no file of Create ML"
    )


def _centred(box: Mapping[str, Any]) -> LabelShape:
    values = box.get("coordinates")
    x, y, width, height = numbers_under(
        values if isinstance(values, dict) else {}, "x", "y", "width", "height"
    )
    return LabelShape(box=(x - width / 2, y - height / 2, x + width / 2, y + height / 2))


# --- Supervisely


def supervisely_files(root: Path) -> list[Path]:
    """Return the annotations of a project or data set of Supervisely: `ann/a.png.json` beside `img/a.png`."""
    files = files_of_tool(
        root, ".json", ('"objects"', '"size"'), lambda path: _is_supervisely(label_json(path))
    )
    return [path for path in files if path.parent.name.lower() == "ann"]


def _is_supervisely(content: object) -> bool:
    return isinstance(content, dict) and isinstance(content.get("objects"), list) and "size" in content


def read_supervisely(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    semantic: bool | str = False,
    empty: Empty = "",
) -> LabelledSet:
    """Read projects of Supervisely in its own JSON: polygons with holes, rectangles and bitmaps.

    Args:
        root: Holds data sets, each with `ann` and `img`; those called train, val or test are splits.
        options: Name, licence, splits.
        classes: The classes in order; the places of others are ignored.
        semantic: True: masks of classes instead of objects; "both": beside them.
        empty: What images without objects are: "nothing" is there, or they are "unlabelled".

    Raises:
        DataError: A file can't be read, or is of no image.
    """

    def found(builder: SetBuilder) -> Iterator[Drawing]:
        for path in supervisely_files(root):
            content = parse_label_json(read_label_text(path), path)
            where = builder.place(path)
            if not _is_supervisely(content):
                builder.note(where, "is no annotation of Supervisely; not read")
                continue
            size = content["size"] if isinstance(content["size"], dict) else {}
            told = [size.get(key) or 0 for key in ("width", "height")]
            if content.get("tags"):
                builder.understand("Supervisely: tags of whole images aren't read")
            rows = dicts_of(content["objects"])
            shapes = partial(_supervisely_shapes, rows, where)
            # Data sets of one project may hold images of equal names.
            image = f"{path.parent.parent.name}/img/{path.stem}"
            yield Drawing(where, path, image, "", told, shapes, None, not rows)

    missing = "have no annotation"
    return read_drawings(
        root, options, found, classes=classes, semantic=semantic, missing=missing, empty=empty
    )


def _supervisely_shapes(rows: Iterable[dict[str, Any]], where: str, size: tuple[int, int]) -> list[ToolShape]:
    return [
        drawn(f"{where}: object {n}", row.get("classTitle"), partial(_supervisely_shape, row, size))
        for n, row in enumerate(rows, 1)
    ]


def _supervisely_shape(row: Mapping[str, Any], size: tuple[int, int]) -> LabelShape:
    kind, bitmap = str(row.get("geometryType") or ""), row.get("bitmap")
    if kind == "bitmap" or isinstance(bitmap, dict):
        return _bitmap(bitmap if isinstance(bitmap, dict) else {}, size)
    if kind in _NO_AREA:
        raise ValueError(f"a {kind} has no area")
    told = row.get("points")
    points = told if isinstance(told, dict) else {}
    ring = finite_points(points.get("exterior") or ())
    if kind == "rectangle":
        if len(ring) != 2:
            raise ValueError(f"a rectangle of {len(ring)} points")
        xs, ys = zip(*ring, strict=True)
        return LabelShape(box=(min(xs), min(ys), max(xs), max(ys)))
    if kind not in ("polygon", ""):
        raise ValueError(f"a {kind} isn't known here")
    return ring_shape(ring, [finite_points(hole) for hole in points.get("interior") or ()])


def _bitmap(bitmap: Mapping[str, Any], size: tuple[int, int]) -> LabelShape:
    """Return the shape of a PNG, deflated once more and written in base 64, at its origin."""
    try:
        ((x, y),) = finite_points([bitmap.get("origin") or ()])
        packed = zlib.decompressobj()
        raw = packed.decompress(base64.b64decode(str(bitmap.get("data") or ""), validate=True), LARGEST_MASK)
        with Image.open(io.BytesIO(raw)) as file:
            if file.width * file.height > LARGEST_MASK:
                raise ValueError("its mask is too large")
            # What isn't transparent is the object; without transparency what isn't black.
            part_HW = np.asarray(file.getchannel("A") if "A" in file.getbands() else file.convert("L")) > 0
    except (binascii.Error, OSError, SyntaxError, zlib.error) as error:
        raise ValueError(f"its mask can't be read ({error})") from None
    return masked_part(part_HW, (x, y), size)


# --- V7 Darwin


def darwin_files(root: Path) -> list[Path]:
    """Return the files below a folder that are in V7's Darwin JSON, versions 1 and 2."""
    return files_of_tool(
        root, ".json", ('"annotations"', '"name"'), lambda path: _darwin_image(label_json(path)) is not None
    )


def _darwin_image(content: object) -> tuple[str, list[object]] | None:
    """Return name, width and height of a file's image; None where it is none of V7's."""
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        return None
    item, image = content.get("item"), content.get("image")
    if isinstance(item, dict) and isinstance(item.get("slots"), list):
        slots = dicts_of(item["slots"])
        first = slots[0] if len(slots) == 1 else {}
        return str(item.get("name") or ""), [first.get(key) or 0 for key in ("width", "height")]
    if isinstance(image, dict) and "filename" in image:
        name = str(image.get("original_filename") or image["filename"])
        return name, [image.get(key) or 0 for key in ("width", "height")]
    return None


def read_darwin(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    semantic: bool | str = False,
) -> LabelledSet:
    """Read V7's Darwin JSON: polygons, boxes and ellipses. A file without annotations says that there is nothing.

    Args:
        root: Holds a JSON file for each image, and the images, anywhere below.
        options: Name, licence, splits.
        classes: The classes in order; the places of others are ignored.
        semantic: True: masks of classes instead of objects; "both": beside them.

    Raises:
        DataError: A file can't be read, or is of no image.
    """

    def found(builder: SetBuilder) -> Iterator[Drawing]:
        for path in darwin_files(root):
            content = parse_label_json(read_label_text(path), path)
            where, image = builder.place(path), _darwin_image(content)
            if image is None:
                builder.note(where, "is no file of V7; not read")
                continue
            if any("tag" in row for row in dicts_of(content["annotations"])):
                builder.understand("V7: tags of whole images aren't read")
            shapes = [
                drawn(f"{where}: annotation {n}", row.get("name"), partial(_darwin_shape, row))
                for n, row in enumerate(dicts_of(content["annotations"]), 1)
                if "tag" not in row  # said of the whole image
            ]
            yield Drawing(where, path, image[0], path.stem, image[1], shapes)

    return read_drawings(root, options, found, classes=classes, semantic=semantic)


def _darwin_shape(row: Mapping[str, Any]) -> LabelShape:
    if isinstance(polygon := row.get("polygon"), dict):
        more = row.get("additional_paths") or polygon.get("additional_paths") or ()
        paths = polygon.get("paths") or [polygon.get("path"), *more]
        rings = [[(point.get("x"), point.get("y")) for point in dicts_of(path)] for path in paths]
        return _even_odd([ring_shape(finite_points(ring)).polygons[0] for ring in rings])
    if isinstance(box := row.get("bounding_box"), dict):
        return box_of(box, "x", "y", "w", "h")
    if isinstance(ellipse := row.get("ellipse"), dict):
        parts = [ellipse.get(key) for key in ("center", "radius")]
        (x, y), (rx, ry) = (numbers_under(part if isinstance(part, dict) else {}, "x", "y") for part in parts)
        turn = math.degrees(numbers_under(ellipse, "angle")[0]) if "angle" in ellipse else 0.0
        return LabelShape(polygons=(ellipse_ring(x, y, rx, ry, turn),))
    kind = next((key for key in row if key in _NO_AREA), "shape of this kind")
    raise ValueError(f"a {kind} has no area")


def _even_odd(rings: Sequence[Sequence[float]]) -> LabelShape:
    """Return what rings enclose by the even-odd rule, by which V7 fills: a ring within another is a hole."""
    points = [as_points(ring) for ring in rings]
    within = [sum(contains(other, own) for other in points if other is not own) % 2 == 1 for own in points]
    outer, holes = (
        [ring for ring, inner in zip(rings, within, strict=True) if inner is hole] for hole in (False, True)
    )
    return LabelShape(polygons=outer, holes=holes)
