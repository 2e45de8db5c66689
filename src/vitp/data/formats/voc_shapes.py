"""The shapes of Pascal VOC's objects: `bndbox`, `robndbox` and `polygon`, as the usual tools write them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from xml.etree import ElementTree

from vitp.core.errors import DataError
from vitp.data.formats.image_labels import Shape

CORNERS = tuple(
    f"{axis}_{corner}"
    for corner in ("left_top", "right_top", "right_bottom", "left_bottom")
    for axis in ("x", "y")
)
"""Names of the four corners of an oriented box, as DIOR-R writes them."""

_EDGES = ("xmin", "ymin", "xmax", "ymax")
_CENTRE = ("cx", "cy", "w", "h", "angle")
_NUMBERED = re.compile(r"([xy])(\d{1,4})$")


def shape_of(
    node: ElementTree.Element, path: str, name: str, *, one_based: bool = False, degrees: bool = False
) -> Shape:
    """Return where an object lies; empty when it says nothing about it.

    Args:
        node: The `object` element.
        path: The file, for errors.
        name: What errors call the object.
        one_based: Edges of `bndbox` count from 1 and include the last pixel.
        degrees: The angle of `robndbox` is in degrees, else in radians; clockwise in the image, from the x axis.

    Raises:
        DataError: A coordinate isn't a number, or an angle can't be radians.
    """
    box = _values(node, "bndbox", _EDGES, path, name)
    if box is not None and one_based:
        box = (box[0] - 1, box[1] - 1, box[2], box[3])
    quad = _values(node, "robndbox", CORNERS, path, name)
    centre = _values(node, "robndbox", _CENTRE, path, name) if quad is None else None
    if centre is not None:
        quad = _corners(centre, path, name, degrees)
    if quad is not None:
        return Shape(quad=quad)
    return Shape(box=box, polygons=_polygons(node, path, name))


def _values(
    node: ElementTree.Element, parent: str, names: Sequence[str], path: str, name: str
) -> tuple[float, ...] | None:
    """Return the numbers under an element; None where the element or all of them are missing."""
    texts = [node.findtext(f"{parent}/{key}") for key in names]
    if all(text is None for text in texts):
        return None
    try:
        return tuple(float(text or "") for text in texts)
    except ValueError as error:
        raise DataError(
            f"{name} has no readable {parent}", where=path, fix=f"give {', '.join(names)} as numbers"
        ) from error


def _corners(centre: Sequence[float], path: str, name: str, degrees: bool) -> tuple[float, ...]:
    cx, cy, w, h, angle = centre
    if not degrees and abs(angle) > 2 * math.pi + 1e-6:
        raise DataError(
            f"the angle {angle:g} of {name} is no angle in radians",
            where=path,
            fix="if angles are degrees, say so with the option angles=degrees",
        )
    turn = math.radians(angle) if degrees else angle
    cos, sin = math.cos(turn), math.sin(turn)
    offsets = ((-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2), (-w / 2, h / 2))
    return tuple(value for x, y in offsets for value in (cx + cos * x - sin * y, cy + sin * x + cos * y))


def _polygons(node: ElementTree.Element, path: str, name: str) -> tuple[tuple[float, ...], ...]:
    """Return the rings of `polygon` elements with pt/x and pt/y, or with x1, y1, x2, y2, …"""
    rings = []
    for polygon in node.iter("polygon"):
        points = [(point.findtext("x"), point.findtext("y")) for point in polygon.iter("pt")]
        numbered = {
            (int(match[2]), match[1]): child.text
            for child in polygon
            if (match := _NUMBERED.match(child.tag)) is not None
        }
        points += [(numbered.get((k, "x")), numbered.get((k, "y"))) for k in sorted({k for k, _ in numbered})]
        try:
            rings.append(tuple(float(text or "") for point in points for text in point))
        except ValueError as error:
            raise DataError(
                f"{name} has a polygon that can't be read",
                where=path,
                fix="give x and y of each corner as numbers",
            ) from error
    return tuple(ring for ring in rings if len(ring) >= 6)
