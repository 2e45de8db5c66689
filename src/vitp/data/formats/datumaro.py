"""Datumaro's own JSON, which CVAT exports, too: items with boxes, polygons, masks and ellipses in pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.coco_files import polygons_of
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
    numbers_under,
    read_drawings,
    ring_shape,
)
from vitp.data.formats.image_labels import LabelShape
from vitp.data.formats.walk import split_word
from vitp.records.labels import LabelledSet
from vitp.records.tool_shapes import centred_corners, ellipse_ring

_NO_AREA = ("points", "polyline", "skeleton", "cuboid_3d")
_WHOLE = ("label", "caption")
"""Types of annotations of whole images."""


def datumaro_files(root: Path) -> list[Path]:
    """Return the JSON files below a folder that are in Datumaro's format, each with its items."""
    words = ('"categories"', '"items"', '"label"')
    return files_of_tool(root, ".json", words, lambda path: _is_datumaro(label_json(path)))


def _is_datumaro(content: object) -> bool:
    return (
        isinstance(content, dict)
        and isinstance(content.get("items"), list)
        and isinstance(content.get("categories"), dict)
    )


def read_datumaro(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    semantic: bool | str = False,
    empty: Empty = "",
) -> LabelledSet:
    """Read Datumaro's JSON: objects alone, and none of what is said of whole images.

    Args:
        root: Holds `annotations/SPLIT.json` and `images/SPLIT`, or images anywhere below.
        options: Name, licence, splits.
        classes: The classes in order; the places of others are ignored.
        semantic: True: masks of classes instead of objects; "both": beside them.
        empty: What items without annotations are: "nothing" is there, or they are "unlabelled".

    Raises:
        DataError: A file can't be read, or whether items without annotations are empty isn't known.
    """

    def found(builder: SetBuilder) -> Iterator[Drawing]:
        for path in datumaro_files(root):
            content = label_json(path)
            if not _is_datumaro(content):
                builder.note(builder.place(path), "is no file of Datumaro; not read")
                continue
            place, label = builder.place(path), content["categories"].get("label")
            names = [
                one.get("name") for one in dicts_of(label.get("labels") if isinstance(label, dict) else ())
            ]
            for item in dicts_of(content["items"]):
                key = str(item.get("id") or "")
                told = item.get("image") or item.get("media")
                image = told if isinstance(told, dict) else {}
                rows = dicts_of(item.get("annotations"))
                drawn_rows = [row for row in rows if row.get("type") not in _WHOLE]
                if len(drawn_rows) < len(rows):
                    builder.understand("Datumaro: labels and captions of whole images aren't read")
                name = f"{path.stem}/{image.get('path') or key}"
                size = list(reversed(image["size"])) if isinstance(image.get("size"), list) else (0, 0)
                shapes = partial(_shapes, f"{place}: {key}", drawn_rows, names)
                where, bare = f"{place}: {key}", not drawn_rows
                split = split_word(path.stem)
                yield Drawing(where, path, name, Path(key).name, size[:2], shapes, place, bare, split)

    missing = "are in no file of Datumaro"
    return read_drawings(
        root, options, found, classes=classes, semantic=semantic, missing=missing, empty=empty
    )


def _shapes(
    where: str, rows: Sequence[dict[str, Any]], names: Sequence[object], size: tuple[int, int]
) -> list[ToolShape]:
    """Return the objects of an item; polygons and masks of one group and class are one object."""
    objects: dict[object, list[int]] = defaultdict(list)
    for n, row in enumerate(rows):
        is_part = row.get("group") and row.get("type") in ("polygon", "mask")
        objects[str((row["group"], row.get("label_id"), row["type"])) if is_part else n].append(n)
    found = []
    for numbers in objects.values():
        row = rows[numbers[0]]
        number, told = row.get("label_id"), row.get("attributes")
        label = names[number] if isinstance(number, int) and 0 <= number < len(names) else ""
        made = drawn(
            f"{where}, annotation {numbers[0] + 1}", label, partial(_joined, [rows[n] for n in numbers], size)
        )
        crowd = isinstance(told, dict) and told.get("is_crowd") is True
        found.append(replace(made, difficult=crowd, why=f"label_id {number} names no class"))
    return found


def _joined(rows: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> LabelShape:
    shapes = [_shape(row, size) for row in rows]
    polygons = [ring for one in shapes for ring in one.polygons]
    holes = [ring for one in shapes for ring in one.holes]
    return replace(shapes[0], polygons=polygons, holes=holes)


def _shape(row: Mapping[str, Any], size: tuple[int, int]) -> LabelShape:
    kind, points = str(row.get("type") or "annotation without a type"), row.get("points") or []
    if not isinstance(points, list) or len(points) % 2:
        raise ValueError("its points are no list of x and y in turn")
    if kind == "bbox":
        four = row.get("bbox")
        values = dict(zip("xywh", four if isinstance(four, list) else (), strict=False))
        told = row.get("attributes")
        turn = told.get("rotation") if isinstance(told, dict) else None
        x, y, width, height = numbers_under(values, *"xywh")
        if turn and (degrees := numbers_under({"rotation": turn}, "rotation")[0]) % 360:
            return LabelShape(quad=centred_corners(x, y, x + width, y + height, degrees))
        return box_of(values, *"xywh")
    if kind == "polygon":
        return ring_shape(finite_points(list(zip(points[::2], points[1::2], strict=False))))
    if kind == "ellipse":
        x1, y1, x2, y2 = numbers_under(dict(zip("abcd", points, strict=False)), *"abcd")
        return LabelShape(
            polygons=(ellipse_ring((x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2, (y2 - y1) / 2, 0),)
        )
    if kind == "mask":
        try:
            rings, holes = polygons_of(row.get("rle"), size)
        except DataError as error:
            raise ValueError(error.what) from None
        return LabelShape(polygons=rings, holes=holes)
    raise ValueError(f"a {kind} {'has no area' if kind in _NO_AREA else 'is of no kind that is read'}")
