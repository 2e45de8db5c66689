"""Labels on a picture, each on a plate of its colour, none over another or over a small object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from PIL import ImageColor, ImageDraw, ImageFont

Colour: TypeAlias = str | tuple[int, int, int]

Corners: TypeAlias = Sequence[tuple[float, float]]

_MARGIN = 2

_MOST_COVERED = 0.5
"""Share of an object's box from which a label hides it."""


class LabelPlates:
    """Writes labels into a picture; one that finds no free place is left out.

    Args:
        pen: Draws.
        size: Width and height of the picture.
        outlines: Of objects that no label may hide.
    """

    def __init__(
        self, pen: ImageDraw.ImageDraw, size: tuple[int, int], outlines: Sequence[Corners] = ()
    ) -> None:
        self._pen, self._size = pen, size
        self._shown_N4 = np.array([_box(corners) for corners in outlines]).reshape(-1, 4)
        self._font = ImageFont.load_default(size=max(10, max(size) / 50))
        self._taken: list[tuple[float, float, float, float]] = []

    def beside(self, label: str, corners: Corners, colour: Colour) -> bool:
        """Write above an outline, or below it, or within: at the first free place. Return whether there was one."""
        width, height = self._plate(label)
        left, top, right, bottom = _box(corners)
        tops = [top - height, bottom, top, bottom - height]
        places = [(x, y) for y in tops if 0 <= y <= self._size[1] - height for x in (left, right - width)]
        return self._write(label, places or [(left, top)], colour)

    def within(self, label: str, centre: tuple[float, float], colour: Colour) -> bool:
        """Write around a point, moved so far that it stays in the picture. Return whether the place was free."""
        width, height = self._plate(label)
        return self._write(label, [(centre[0] - width / 2, centre[1] - height / 2)], colour)

    def _plate(self, label: str) -> tuple[float, float]:
        left, top, right, bottom = self._pen.textbbox((0, 0), label, font=self._font)
        return right - left + 2 * _MARGIN, bottom - top + 2 * _MARGIN

    def _write(self, label: str, places: Sequence[tuple[float, float]], colour: Colour) -> bool:
        width, height = self._plate(label)
        for place in places if label else ():
            x = round(min(max(place[0], 0), max(0, self._size[0] - width)))
            y = round(min(max(place[1], 0), max(0, self._size[1] - height)))
            plate = (x, y, x + width, y + height)
            if any(_meet(plate, other) for other in self._taken) or self._hides(plate):
                continue
            self._taken.append(plate)
            self._pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
            left, top, _, _ = self._pen.textbbox((0, 0), label, font=self._font)
            at = (x + _MARGIN - left, y + _MARGIN - top)
            self._pen.text(at, label, fill=_ink(colour), font=self._font)
            return True
        return False

    def _hides(self, plate: tuple[float, float, float, float]) -> bool:
        x1, y1, x2, y2 = self._shown_N4.T
        width_N = (np.minimum(x2, plate[2]) - np.maximum(x1, plate[0])).clip(0)
        height_N = (np.minimum(y2, plate[3]) - np.maximum(y1, plate[1])).clip(0)
        return bool((width_N * height_N > _MOST_COVERED * (x2 - x1) * (y2 - y1)).any())


def _box(corners: Corners) -> tuple[float, float, float, float]:
    xs, ys = zip(*corners, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _meet(plate: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return plate[0] < other[2] and other[0] < plate[2] and plate[1] < other[3] and other[1] < plate[3]


def _ink(colour: Colour) -> str:
    """Return black or white, whichever reads better on a colour."""
    red, green, blue = (ImageColor.getrgb(colour) if isinstance(colour, str) else colour)[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else "white"
