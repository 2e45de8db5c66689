"""LabelMe: a JSON file beside each image, with its shapes."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitp.core.errors import DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.coco_files import is_set
from vitp.data.formats.drawn_masks import with_drawn_masks
from vitp.data.formats.image_labels import ImageLabels, LabelShape
from vitp.data.formats.walk import (
    comma_list,
    files_below,
    images_below,
    name_index,
    parse_label_json,
    read_label_text,
    split_in,
)
from vitp.records.geometry import as_flat
from vitp.records.labels import LabelledSet
from vitp.records.regions import outline
from vitp.records.tool_shapes import LARGEST_MASK, ellipse_ring

_LOOKED_AT = 8
"""JSON files that tell whether they are LabelMe's."""

_IGNORED = "__ignore__"
"""LabelMe's name for what is neither object nor background."""


def labelme_files(root: Path) -> list[Path]:
    """Return the files below a folder that hold the shapes of one image each."""
    files = list(files_below(root, ".json"))
    return files if any(_content(path) is not None for path in islice(files, _LOOKED_AT)) else []


def _content(path: Path) -> dict[str, Any] | None:
    """Return what a file of LabelMe says, None for another file."""
    try:
        content = parse_label_json(read_label_text(path), path)
    except DataError:
        return None
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
    builder = SetBuilder(root, options)
    known, names = comma_list(classes), name_index(root)
    seen: set[str] = set()
    used: dict[Path, str] = {}
    for path in labelme_files(root):
        content = _content(path)
        where = builder.place(path)
        if content is None:
            parse_label_json(read_label_text(path), path)
            builder.note(where, "is none of LabelMe's files; not read")
            continue
        image = _image_of(builder, path, str(content["imagePath"]), names)
        if image is None:
            continue
        if (other := used.setdefault(image, where)) != where:
            raise DataError(
                f"labels {builder.place(image)} again, after {other}", where=where, fix="keep one"
            )
        size = builder.size_of(image, where)
        if size is None:
            continue
        told = [content.get(key) or 0 for key in ("imageWidth", "imageHeight")]
        if not builder.agree(where, told, size, image):
            continue
        found = builder.labels_of(size, builder.place(path.parent), folder=True)
        seen |= _take(found, content["shapes"], where, known)
        builder.add_labelled(image, found, split=split_in(image.relative_to(root))[0])
    if rest := [image for image in images_below(root) if image not in used]:
        builder.note("images", f"{len(rest):,} have no JSON file ({builder.place(rest[0])}); left out")
    return with_drawn_masks(builder.build(object_classes=known or sorted(seen)), semantic)


def _image_of(builder: SetBuilder, path: Path, told: str, names: Mapping[str, list[Path]]) -> Path | None:
    """Return the image of a file: what it names, else what is called like it.

    Raises:
        DataError: It may be of two images.
    """

    def nearest(word: str) -> list[Path]:
        found = names.get(word, ())
        split = split_in(path.relative_to(builder.root))[0]
        same = [image for image in found if split_in(image.relative_to(builder.root))[0] == split]
        return [image for image in found if image.parent == path.parent] or same or list(found)

    name = told.replace("\\", "/").rpartition("/")[2]
    named, called = nearest(name), nearest(path.stem)
    found = named or called
    where = builder.place(path)
    if not found:
        builder.lose(where, f"{name or path.stem} is missing; left out", absent=True)
        return None
    if len(found) > 1 or (called and found[0] not in called):
        both = [*found, *(image for image in called if image not in found)]
        shown = " or ".join(builder.place(image) for image in both[:2])
        raise DataError(
            f"may be of {shown}", where=where, fix="mend imagePath, or call the file like its image"
        )
    return found[0]


def _take(found: ImageLabels, shapes: list[Any], where: str, known: tuple[str, ...] | None) -> set[str]:
    """Take the shapes of an image; return the classes that were used."""
    grouped: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    ready: list[tuple[str, str, LabelShape, bool]] = []
    for number, row in enumerate(shapes, 1):
        at = f"{where}: shape {number}"
        label = " ".join(str(row.get("label") or "").split()) if isinstance(row, dict) else ""
        try:
            shape = _shape(row if isinstance(row, dict) else {}, found.size)
        except ValueError as error:
            found.lose(at, f"{label or 'a shape without a label'}: {error}", label)
            continue
        group = row.get("group_id")
        if group is not None and shape.polygons and not shape.holes and row.get("shape_type") != "circle":
            rings = grouped.setdefault((label, str(group)), [])
            rings.append(tuple(shape.polygons[0]))
            if len(rings) > 1:
                continue
            shape = LabelShape(polygons=rings)  # the rings that follow belong to it
        ready.append((at, label, shape, is_set(row.get("difficult"))))
    used = set()
    for at, label, shape, difficult in ready:
        if not label or label == _IGNORED:
            found.ignore(at, "a shape without a label" if not label else _IGNORED, "unknown", shape)
        elif found.add(at, label, shape, known=known, difficult=difficult) is not None:
            used.add(label)
    return used


def _shape(row: dict[str, Any], size: tuple[int, int]) -> LabelShape:
    """Return where a shape lies.

    Raises:
        ValueError: It has no area, or can't be understood.
    """
    kind = str(row.get("shape_type") or "polygon")
    try:
        points = [(float(x), float(y)) for x, y in row.get("points") or ()]
    except (TypeError, ValueError, OverflowError):
        raise ValueError("its points are no pairs of numbers") from None
    if not all(math.isfinite(value) for point in points for value in point):
        raise ValueError("a coordinate is no finite number")
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
    if len(points) < 3:
        raise ValueError(f"a polygon of {len(points)} points")
    return LabelShape(polygons=(tuple(value for point in points for value in point),))


def _mask(text: Any, corner: tuple[float, float], size: tuple[int, int]) -> LabelShape:
    try:
        with Image.open(io.BytesIO(base64.b64decode(str(text), validate=True))) as file:
            if file.width * file.height > LARGEST_MASK:
                raise ValueError("its mask is too large")
            part_HW = np.asarray(file.convert("L")) > 0
    except (binascii.Error, OSError, SyntaxError) as error:
        raise ValueError(f"its mask can't be read ({error})") from None
    mask_HW = np.zeros((size[1], size[0]), bool)
    x, y = (round(value) for value in corner)
    part_HW = part_HW[max(0, -y) :, max(0, -x) :]
    held_HW = mask_HW[max(0, y) : max(0, y) + part_HW.shape[0], max(0, x) : max(0, x) + part_HW.shape[1]]
    held_HW[:] = part_HW[: held_HW.shape[0], : held_HW.shape[1]]
    if not mask_HW.any():
        raise ValueError("its mask is empty")
    drawn = outline(mask_HW)
    return LabelShape(polygons=tuple(map(as_flat, drawn.rings)), holes=tuple(map(as_flat, drawn.holes)))
