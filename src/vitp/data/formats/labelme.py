"""LabelMe: a JSON file beside each image, with its shapes."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.coco_files import is_set
from vitp.data.formats.drawings import (
    Drawing,
    ToolShape,
    files_of_tool,
    finite_points,
    label_json,
    masked_part,
    read_drawings,
    ring_shape,
)
from vitp.data.formats.image_labels import LabelShape
from vitp.data.formats.walk import parse_label_json, read_label_text
from vitp.records.labels import LabelledSet
from vitp.records.tool_shapes import LARGEST_MASK, ellipse_ring

_IGNORED = "__ignore__"
"""LabelMe's name for what is neither object nor background."""


def labelme_files(root: Path) -> list[Path]:
    """Return the files below a folder that hold the shapes of one image each."""
    return files_of_tool(root, ".json", ('"shapes"', '"imagePath"'), lambda path: _content(path) is not None)


def _content(path: Path) -> dict[str, Any] | None:
    """Return what a file of LabelMe says, None for another file."""
    content = label_json(path)
    is_one = isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content
    return content if is_one else None


def read_labelme(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    semantic: bool | str = False,
) -> LabelledSet:
    """Read LabelMe's files: polygons, rectangles, circles, turned rectangles and masks.

    Polygons of one label and one `group_id` are one object. A file without shapes says that there is nothing in its
    image; an image without a file isn't labelled.

    Args:
        root: Holds JSON files and images, side by side or in folders of their own, anywhere below.
        options: Name, licence, splits.
        classes: The classes in order; the places of others are ignored.
        semantic: True: masks of classes instead of objects; "both": beside them.

    Raises:
        DataError: A file can't be read, or belongs to two images.
    """
    return read_drawings(root, options, _drawings, classes=classes, semantic=semantic)


def _drawings(builder: SetBuilder) -> Iterator[Drawing]:
    for path in labelme_files(builder.root):
        content = _content(path)
        where = builder.place(path)
        if content is None:
            parse_label_json(read_label_text(path), path)
            builder.note(where, "is none of LabelMe's files; not read")
            continue
        told = [content.get(key) or 0 for key in ("imageWidth", "imageHeight")]
        shapes = partial(_shapes, content["shapes"], where)
        yield Drawing(where, path, str(content["imagePath"]), path.stem, told, shapes)


def _shapes(rows: list[Any], where: str, size: tuple[int, int]) -> list[ToolShape]:
    """Return the shapes of a file; polygons of one label and group are one."""
    grouped: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    ready: list[ToolShape] = []
    for number, row in enumerate(rows, 1):
        at = f"{where}: shape {number}"
        label = " ".join(str(row.get("label") or "").split()) if isinstance(row, dict) else ""
        try:
            shape = _shape(row if isinstance(row, dict) else {}, size)
        except ValueError as error:
            ready.append(ToolShape(at, label, str(error)))
            continue
        group = row.get("group_id")
        if group is not None and shape.polygons and not shape.holes and row.get("shape_type") != "circle":
            rings = grouped.setdefault((label, str(group)), [])
            rings.append(tuple(shape.polygons[0]))
            if len(rings) > 1:
                continue
            shape = LabelShape(polygons=rings)  # the rings that follow belong to it
        if label == _IGNORED:
            ready.append(ToolShape(at, "", shape, why=_IGNORED))
        else:
            ready.append(ToolShape(at, label, shape, is_set(row.get("difficult"))))
    return ready


def _shape(row: dict[str, Any], size: tuple[int, int]) -> LabelShape:
    """Return where a shape lies.

    Raises:
        ValueError: It has no area, or can't be understood.
    """
    kind = str(row.get("shape_type") or "polygon")
    points = finite_points(row.get("points") or ())
    if kind in ("rectangle", "mask", "circle") and len(points) not in (
        (2, 4) if kind == "rectangle" else (2,)
    ):
        raise ValueError(f"a {kind} of {len(points)} points")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    if kind == "rectangle":
        return LabelShape(box=(min(xs), min(ys), max(xs), max(ys)))
    if kind == "circle":
        radius = math.dist(*points)
        return LabelShape(polygons=(ellipse_ring(xs[0], ys[0], radius, radius, 0),))
    if kind == "mask":
        return _mask(row.get("mask"), (min(xs), min(ys)), size)
    if kind == "rotation" and len(points) == 4:
        return LabelShape(quad=tuple(value for point in points for value in point))
    if kind != "polygon":
        raise ValueError(f"a {kind} has no area")
    return ring_shape(points)


def _mask(text: Any, corner: tuple[float, float], size: tuple[int, int]) -> LabelShape:
    try:
        with Image.open(io.BytesIO(base64.b64decode(str(text), validate=True))) as file:
            if file.width * file.height > LARGEST_MASK:
                raise ValueError("its mask is too large")
            part_HW = np.asarray(file.convert("L")) > 0
    except (binascii.Error, OSError, SyntaxError) as error:
        raise ValueError(f"its mask can't be read ({error})") from None
    return masked_part(part_HW, corner, size)
