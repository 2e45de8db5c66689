"""VIA, the VGG Image Annotator: regions of images as JSON, as a project or as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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
from vitp.data.formats.walk import as_option, comma_list
from vitp.records.labels import LabelledSet
from vitp.records.tool_shapes import ellipse_ring

_COLUMNS = ("filename", "region_shape_attributes", "region_attributes")


def via_files(root: Path) -> list[Path]:
    """Return the files below a folder that VIA exported or saved."""
    return list(_via_sets(root))


def is_via(path: Path) -> bool:
    """Return whether a file is one of VIA."""
    return bool(_entries(path))


def _via_sets(root: Path) -> dict[Path, list[dict[str, Any]]]:
    """Return the files of VIA below a folder, each with its entries, one an image."""
    words = {".json": ('"regions"', '"filename"'), ".csv": _COLUMNS}
    paths = [path for suffix in words for path in files_of_tool(root, suffix, words[suffix], is_via)]
    return {path: entries for path in paths if (entries := _entries(path))}


def _entries(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a file, in the form of VIA's JSON; none for a file that isn't VIA's.

    Raises:
        DataError: A cell of its table isn't JSON.
    """
    if path.suffix.lower() == ".csv":
        return _table_entries(path)
    content = label_json(path) if path.suffix.lower() == ".json" else None
    if isinstance(content, dict) and isinstance(content.get("_via_img_metadata"), dict):
        content = content["_via_img_metadata"]
    entries = list(content.values()) if isinstance(content, dict) else []
    is_one = all(isinstance(one, dict) and {"filename", "regions"} <= one.keys() for one in entries)
    return entries if is_one else []


def _table_entries(path: Path) -> list[dict[str, Any]]:
    head = first_table_rows(path, 1)
    if not head or not all(key in head[0] for key in _COLUMNS):
        return []
    images: dict[str, dict[str, Any]] = {}
    for line, row in raw_rows(path):
        name = str(row["filename"])
        try:
            shape, own, of_file = (
                parse_json(str(row.get(key) or "") or "{}") for key in (*_COLUMNS[1:], "file_attributes")
            )
        except ValueError as error:
            what = f"a cell is no JSON ({error})"
            raise DataError(what, where=f"{path}:{line}", fix="mend the row") from error
        image = images.setdefault(name, {"filename": name, "regions": [], "file_attributes": of_file})
        if shape:  # an image without regions is a row of empty cells
            region = {"shape_attributes": shape, "region_attributes": own, "where": f"row {line}"}
            image["regions"].append(region)
    return list(images.values())


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
    files = _via_sets(root)
    entries = [entry for own in files.values() for entry in own]
    attributes = [_attributes(region) for entry in entries for region in dicts_of(entry["regions"])]
    only = comma_list(classes)
    chosen = _class_attribute(attributes, attribute, only, str(root))
    whole = only[0] if only and not chosen else ""

    def found(builder: SetBuilder) -> Iterator[Drawing]:
        if chosen:
            builder.understand(f'VIA: the attribute "{chosen}" of a region is its class')
        else:
            what = f"regions have no attributes; all are {whole}, the one name in -o classes"
            builder.understand(f"VIA: {what}")
        if any(entry.get("file_attributes") for entry in entries):
            builder.understand("VIA: attributes of whole files aren't read")
        for path, images in files.items():
            source = builder.place(path)
            for entry in images:
                name, shapes = str(entry["filename"]), []
                for number, region in enumerate(dicts_of(entry["regions"]), 1):
                    place = region.get("where") or f"{name}, region {number}"
                    label = whole or _value(region, chosen)
                    shapes.append(drawn(f"{source}: {place}", label, partial(_via_shape, region)))
                yield Drawing(f"{source}: {name}", path, name, "", (0, 0), shapes, source, not shapes)

    missing = "are in no file of VIA"
    return read_drawings(
        root, options, found, classes=classes, semantic=semantic, missing=missing, empty=empty
    )


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
    attributes: Sequence[Mapping[str, Any]], asked: str, classes: tuple[str, ...] | None, where: str
) -> str:
    """Return the attribute that is the class of regions, "" where they have none and one class is named.

    Raises:
        DataError: None is certain, or no region has the one that is asked for.
    """
    if not attributes:
        what = "no image has a region, and attributes of whole files aren't read"
        raise DataError(what, where=where, fix="write classes of images as a table: image,class")
    found = list(dict.fromkeys(key for one in attributes for key in one))
    known = [
        key for key in found if find_key({key: 0}, CLASS_KEYS) is not None or key.lower() in ("name", "type")
    ]
    if asked and asked not in found:
        what = f'no region has the attribute "{asked}"'
        raise DataError(what, where=where, fix=f"there are {', '.join(found[:8]) or 'none'}")
    if asked:
        return asked
    if len(found) == 1 or len(known) == 1:
        return (known or found)[0]
    if found:
        named = " or ".join(as_option("attribute", key) for key in (known or found)[:4])
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
