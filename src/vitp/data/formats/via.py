"""VIA, the VGG Image Annotator: regions of images as JSON, as a project or as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.core.reading import parse_json
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.class_columns import CLASS_KEYS
from vitp.data.formats.drawings import (
    Drawing,
    Empty,
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
from vitp.data.formats.tables import find_key, first_table_rows, raw_rows
from vitp.data.formats.walk import comma_list
from vitp.records.labels import LabelledSet
from vitp.records.tool_shapes import ellipse_ring

_VIA_COLUMNS = ("filename", "region_shape_attributes", "region_attributes")


def via_files(root: Path) -> list[Path]:
    """Return the files below a folder that VIA exported or saved."""
    tables = files_of_tool(root, ".csv", _VIA_COLUMNS, _is_via_table)
    files = files_of_tool(root, ".json", ('"regions"', '"filename"'), lambda path: bool(_via_entries(path)))
    return [path for path in (*files, *tables) if is_via(path)]


def is_via(path: Path) -> bool:
    """Return whether a file is one of VIA."""
    return (
        _is_via_table(path)
        if path.suffix.lower() == ".csv"
        else path.suffix.lower() == ".json" and bool(_via_entries(path))
    )


def _is_via_table(path: Path) -> bool:
    rows = first_table_rows(path, 1)
    return bool(rows) and all(key in rows[0] for key in _VIA_COLUMNS)


def _via_entries(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a JSON file of VIA, one an image; none for another file."""
    content = label_json(path)
    if isinstance(content, dict) and isinstance(content.get("_via_img_metadata"), dict):
        content = content["_via_img_metadata"]
    entries = list(content.values()) if isinstance(content, dict) else []
    is_one = bool(entries) and all(
        isinstance(one, dict) and {"filename", "regions"} <= one.keys() for one in entries
    )
    return entries if is_one else []


def read_via(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    semantic: bool | str = False,
    attribute: str = "",
    empty: Empty = "",
) -> LabelledSet:
    """Read what the VGG Image Annotator (versions 1 and 2) exports as JSON or CSV, or saves as a project.

    Args:
        root: Holds files and images, side by side or in folders of their own, anywhere below.
        options: Name, licence, splits.
        classes: The classes in order; the places of others are ignored. Of regions without attributes one name here is
            the class of all.
        semantic: True: masks of classes instead of objects; "both": beside them.
        attribute: The attribute of regions that is their class; by default the only one, or the only one that is
            called class, label, name or the like.
        empty: What images without regions are: "nothing" is there, or they are "unlabelled".

    Raises:
        DataError: A file can't be read, or the class of regions isn't known.
    """
    files = {path: list(_via_images(path)) for path in via_files(root)}
    regions = [one for images in files.values() for _, _, rows in images for _, one in rows]
    attributes = [dict.fromkeys(_attributes(one)) for one in regions]
    only = comma_list(classes)
    chosen = attribute or _class_attribute(attributes, only, str(root))
    whole = only[0] if only and not chosen else ""

    def found(builder: SetBuilder) -> Iterator[Drawing]:
        if chosen:
            builder.understand(f'VIA: the attribute "{chosen}" of a region is its class')
        elif whole:
            builder.understand(
                f"VIA: regions have no attributes; all are {whole}, the one name in -o classes"
            )
        for path, images in files.items():
            for where, name, rows in images:
                at = f"{builder.place(path)}: {where}"
                shapes = [
                    drawn(
                        f"{builder.place(path)}: {place}",
                        whole or _value(one, chosen),
                        partial(_via_shape, one),
                    )
                    for place, one in rows
                ]
                source = builder.place(path)
                yield Drawing(at, path, name, "", (0, 0), shapes, source, not rows)

    missing = "are in no file of VIA"
    return read_drawings(
        root, options, found, classes=classes, semantic=semantic, missing=missing, empty=empty
    )


def _via_images(path: Path) -> Iterator[tuple[str, str, list[tuple[str, dict[str, Any]]]]]:
    """Yield place, name and regions, each with its place, of the images of a file.

    Raises:
        DataError: A cell isn't JSON.
    """
    if path.suffix.lower() != ".csv":
        for entry in _via_entries(path):
            name = str(entry["filename"])
            yield (
                name,
                name,
                [(f"{name}, region {n}", one) for n, one in enumerate(dicts_of(entry["regions"]), 1)],
            )
        return
    images: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for line, row in raw_rows(path):
        regions = images.setdefault(str(row["filename"]), [])
        try:
            region = {
                key: parse_json(str(row[f"region_{key}"]) or "{}")
                for key in ("shape_attributes", "attributes")
            }
        except ValueError as error:
            raise DataError(
                f"a cell is no JSON ({error})", where=f"{path}:{line}", fix="mend the row"
            ) from error
        # An image without regions is a row of empty cells.
        if region["shape_attributes"]:
            regions.append((f"row {line}", {**region, "region_attributes": region["attributes"]}))
    yield from ((name, name, regions) for name, regions in images.items())


def _says_of_files(path: Path) -> bool:
    rows = [row for _, row in raw_rows(path)] if path.suffix.lower() == ".csv" else _via_entries(path)
    return any(row.get("file_attributes") not in (None, "", "{}", {}) for row in rows)


def _attributes(region: Mapping[str, Any]) -> dict[str, Any]:
    found = region.get("region_attributes")
    return (
        {key: value for key, value in found.items() if value not in ("", {}, None)}
        if isinstance(found, dict)
        else {}
    )


def _value(region: Mapping[str, Any], attribute: str) -> str:
    """Return the class of a region; of check boxes the one that is ticked, "" where several are."""
    value = _attributes(region).get(attribute, "")
    if isinstance(value, dict):
        ticked = [name for name, is_set in value.items() if is_set in (True, "true", 1)]
        return ticked[0] if len(ticked) == 1 else ""
    return str(value)


def _class_attribute(
    attributes: Iterable[Mapping[str, None]], classes: tuple[str, ...] | None, where: str
) -> str:
    """Return the attribute that is the class of regions, "" where they have none and one class is named.

    Raises:
        DataError: None is certain.
    """
    attributes = list(attributes)
    if not attributes:
        what = "no image has a region, and attributes of whole files aren't read"
        raise DataError(what, where=where, fix="write classes of images as a table: image,class")
    found = list(dict.fromkeys(key for one in attributes for key in one))
    known = [
        key for key in found if find_key({key: 0}, CLASS_KEYS) is not None or key.lower() in ("name", "type")
    ]
    if len(found) == 1 or len(known) == 1:
        return (known or found)[0]
    if found:
        named = " or ".join(f"-o attribute={key}" for key in (known or found)[:4])
        raise DataError(
            f"regions have the attributes {', '.join(found[:8])}; which is the class isn't known",
            where=where,
            fix=named,
        )
    if classes is None or len(classes) != 1:
        raise DataError(
            "regions have no attributes, so their class isn't known",
            where=where,
            fix="-o classes=NAME is that of all",
        )
    return ""


def _via_shape(region: Mapping[str, Any]) -> LabelShape:
    shape = region.get("shape_attributes")
    values = shape if isinstance(shape, dict) else {}
    kind = str(values.get("name") or "shape without a name")
    if kind == "rect":
        return box_of(values, "x", "y", "width", "height")
    if kind == "polygon":
        xs, ys = values.get("all_points_x"), values.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
            raise ValueError("a polygon without as many x as y")
        return ring_shape(finite_points(zip(xs, ys, strict=True)))
    if kind in ("circle", "ellipse"):
        round_ = kind == "circle"
        x, y, rx, ry = numbers_under(values, "cx", "cy", *(("r", "r") if round_ else ("rx", "ry")))
        # Radians, clockwise in the image.
        turn = 0.0 if round_ or "theta" not in values else math.degrees(numbers_under(values, "theta")[0])
        return LabelShape(polygons=(ellipse_ring(x, y, rx, ry, turn),))
    raise ValueError(f"a {kind} has no area")
