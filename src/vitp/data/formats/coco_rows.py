"""What single rows of COCO JSON say: ids, whether an object is a crowd, and where it lies."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import Any, Generic, TypeVar

import numpy as np

from vitp.core.errors import DataError
from vitp.data.formats.image_labels import Shape
from vitp.records.geometry import area, as_flat, as_points
from vitp.records.regions import Rings, outline
from vitp.records.rle import decode

_WHOLE = re.compile(r"[+-]?\d{1,300}(\.0*)?$")

Value = TypeVar("Value")


class Ids(Generic[Value]):
    """Values by id, where a number and the same number as text mean the same: some tools write "1", others 1 or 1.0.

    An id that is there exactly as it is asked for goes first.
    """

    def __init__(self) -> None:
        self._exact: dict[tuple[bool, str], Value] = {}
        self._alike: dict[str, list[tuple[bool, str]]] = defaultdict(list)

    def add(self, key: Any, value: Value) -> Value:
        """Put a value under an id that is free, and return what stands under it now.

        Raises:
            ValueError: It is neither a number nor text.
        """
        name = _id_name(key)
        if name is None:
            raise ValueError(f"id {str(key)[:40]!r} is neither a whole number nor text")
        if name not in self._exact:
            self._alike[_plain(name[1])].append(name)
        return self._exact.setdefault(name, value)

    def exact(self, key: Any) -> Value | None:
        """Return the value under an id as it is written, or None."""
        name = _id_name(key)
        return self._exact.get(name) if name is not None else None

    def find(self, key: Any) -> Value | None:
        """Return the value under an id, or None.

        Raises:
            ValueError: The id may mean two, such as "01" where there are 1 and "1".
        """
        name = _id_name(key)
        if name is None:
            return None
        if name in self._exact:
            return self._exact[name]
        alike = self._alike.get(_plain(name[1]), ())
        if len(alike) > 1:
            raise ValueError(f"id {key!r} may mean {' or '.join(repr(text) for _, text in alike)}")
        return self._exact[alike[0]] if alike else None


def is_id(key: Any) -> bool:
    """Return whether a value can be an id: a whole number or text."""
    return _id_name(key) is not None


def _id_name(key: Any) -> tuple[bool, str] | None:
    """Return (is text, id as text), or None for what is no id."""
    if isinstance(key, bool):
        return None
    if isinstance(key, int):
        return False, str(key)
    if isinstance(key, float):
        return (False, str(int(key))) if key.is_integer() else None
    return (True, key.strip()) if isinstance(key, str) and key.strip() else None


def _plain(text: str) -> str:
    return str(int(text.partition(".")[0])) if _WHOLE.match(text) else text


def is_set(value: Any) -> bool:
    """Return whether a flag such as `iscrowd` is set; numbers may be text."""
    return str(value).strip().lower() in ("1", "1.0", "true")


def shape_of(row: dict[str, Any], size: tuple[int, int]) -> tuple[Shape | None, str]:
    """Return where an object lies, and what had to be mended or why it has no place.

    Args:
        row: The annotation.
        size: Width and height of the image.
    """
    box, wrong = _box(row.get("bbox"))
    rings: Rings = ()
    holes: Rings = ()
    broken = ""
    try:
        rings, holes = polygons_of(row.get("segmentation"), size)
    except DataError as error:
        broken = error.what
    if rings and (box is None or box[0] == box[2] or box[1] == box[3]):
        said = f"{wrong}; its box is taken from its outline" if row.get("bbox") else ""
        return Shape(polygons=rings, holes=holes), said
    if box is None:
        return None, broken if broken and not row.get("bbox") else wrong
    said = f"{broken}; only its box is used" if broken else ""
    return Shape(box=box, polygons=rings, holes=holes), said


def _box(bbox: Any) -> tuple[tuple[float, float, float, float] | None, str]:
    """Return x1, y1, x2, y2, or None and what is wrong with the row's box."""
    if bbox is None or bbox == []:
        return None, "has no bbox"
    try:
        if not isinstance(bbox, list) or any(isinstance(value, bool) for value in bbox):
            raise TypeError
        x, y, w, h = (float(value) for value in bbox)
    except (TypeError, ValueError, OverflowError):
        return None, "bbox is not four numbers"
    if not all(math.isfinite(value) for value in (x, y, w, h)):
        return None, "bbox has a coordinate that is not a number"
    if w < 0 or h < 0:
        return None, f"bbox has a negative size ({w:g}×{h:g})"
    return (x, y, x + w, y + h), "bbox has no area"


def polygons_of(segmentation: Any, size: tuple[int, int]) -> tuple[Rings, Rings]:
    """Return rings and holes of polygons or of a run-length mask; rings without area are dropped.

    Raises:
        DataError: It is neither, or the mask has another size than the image.
    """
    if not segmentation:
        return (), ()
    holes: tuple[np.ndarray, ...] = ()
    try:
        if isinstance(segmentation, dict):
            height, width = (int(value) for value in segmentation["size"])
            if (width, height) != size:
                raise ValueError(f"the mask is {width}×{height}, the image {size[0]}×{size[1]}")
            found = outline(decode(segmentation["counts"], height, width))
            rings, holes = found.rings, found.holes
        else:
            rings = tuple(as_points([float(value) for value in ring]) for ring in segmentation)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"segmentation can't be understood ({error})",
            fix="write polygons [[x1, y1, …], …] or a run-length mask {size, counts}",
        ) from error
    used = (ring for ring in rings if np.isfinite(ring).all() and area(ring) > 0)
    return tuple(as_flat(ring) for ring in used), tuple(as_flat(hole) for hole in holes)
