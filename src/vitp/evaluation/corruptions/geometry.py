"""Rotation, scale and translation of images together with their labels.

A geometric corruption is a 2 × 3 matrix in edge coordinates (pixel i covers i … i + 1). Pixels, masks and outlines
move by the same matrix, so that they can't diverge. What comes in from outside is black, and is ignored in masks: a
mirrored border, as REOBench has it, would hold copies of objects that nobody labelled.

Shapes: H × W pixels, N points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from vitp.data.formats.crops import crop_object
from vitp.data.image_sample import moved_object
from vitp.records.geometry import bounds
from vitp.records.labels import ObjectLabel

REFERENCE_SIDE = 800
"""Side in pixels of the images that the published levels were chosen for (DIOR's)."""

MIN_VISIBLE = 0.3
"""Objects of which less of the area is left are difficult: they count neither as found nor as missed."""

_ANY = 1e-6
"""Share of an object that has to be left in the image: whatever is left of it counts."""


def scaled(length: float, size: tuple[int, int]) -> float:
    """Return a length that is given for an image side of 800 px in pixels of an image of height and width `size`."""
    return length * max(size) / REFERENCE_SIDE


def about_centre(linear_22: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the 2 × 3 matrix of a linear map that leaves the centre of an image of height and width `size`."""
    centre_2 = np.array([size[1] / 2, size[0] / 2])
    return np.column_stack([linear_22, centre_2 - linear_22 @ centre_2])


def rotation(size: tuple[int, int], degrees: float, rng: np.random.Generator) -> np.ndarray:
    """Return the matrix of a turn about the centre against the clock; the image loses its corners."""
    angle = np.deg2rad(degrees)
    # Exactly 0 and 1 at quarter turns, which the functions miss by rounding.
    cosine, sine = round(float(np.cos(angle)), 12), round(float(np.sin(angle)), 12)
    matrix = about_centre(np.array([[cosine, sine], [-sine, cosine]]), size)  # y points down
    if cosine == 0:
        # Pixels go to pixels: where one side is odd and the other even, half a pixel beside the centre.
        matrix[:, 2] = np.floor(matrix[:, 2])
    return matrix


def scale(size: tuple[int, int], factor: float, rng: np.random.Generator) -> np.ndarray:
    """Return the matrix that shrinks the image in its middle, as from higher up; it gets a black frame."""
    return about_centre(np.eye(2) * factor, size)


def translation(size: tuple[int, int], length: float, rng: np.random.Generator) -> np.ndarray:
    """Return the matrix of a shift by `length` px at a side of 800, in x and y, left or right, up or down.

    Whole pixels, so that nothing is blurred: below 160 px neighbouring severities can be the same.
    """
    signs_2 = rng.choice([-1.0, 1.0], 2)
    return np.column_stack([np.eye(2), np.rint(signs_2 * scaled(length, size))])


def warp(pixels: np.ndarray, matrix: np.ndarray, *, nearest: bool = False, fill: int = 0) -> np.ndarray:
    """Return (H, W) or (H, W, C) pixels, uint8 or float32, moved by a matrix on a canvas of the same size.

    Args:
        pixels: Image or mask.
        matrix: 2 × 3, in edge coordinates.
        nearest: Never mix values (masks).
        fill: Value of what comes in from outside.
    """
    linear_22, shift_2 = matrix[:, :2], matrix[:, 2]
    factor = float(np.sqrt(abs(np.linalg.det(linear_22))))
    if factor < 0.999 and not nearest:
        # Bilinear interpolation looks at four pixels only: what would alias is taken out before.
        # A pixel of the smaller image blurs by 0.5 / factor; the image has 0.5 of it already. Squares of blurs add up.
        pixels = cv2.GaussianBlur(
            pixels, (0, 0), 0.5 * np.sqrt(1 / factor**2 - 1), borderType=cv2.BORDER_REFLECT
        )
    # OpenCV counts pixel centres from 0, which lie at ½ in edge coordinates.
    centres = np.column_stack([linear_22, shift_2 + linear_22 @ np.array([0.5, 0.5]) - 0.5])
    return cv2.warpAffine(
        np.ascontiguousarray(pixels),
        centres,
        (pixels.shape[1], pixels.shape[0]),
        flags=cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(fill,) * 3,
    )


def moved_objects(
    objects: Sequence[ObjectLabel], matrix: np.ndarray, size: tuple[int, int]
) -> tuple[ObjectLabel, ...]:
    """Return the labels under a matrix, cut at the border of the image; what left it is gone.

    Args:
        objects: Objects in pixels of the image.
        matrix: 2 × 3, in edge coordinates.
        size: Height and width.
    """
    window = (0, 0, size[1], size[0])
    found = []
    for label in objects:
        moved = moved_label(label, matrix)
        part = crop_object(moved, window, MIN_VISIBLE)
        # Too little of it to be asked for, and too much for the place to be background.
        if part is None and (rest := crop_object(moved, window, _ANY)) is not None:
            part = replace(rest, difficult=True)
        if part is not None:
            found.append(part)
    return tuple(found)


def moved_places(
    places: Sequence[ObjectLabel], matrix: np.ndarray, size: tuple[int, int]
) -> tuple[ObjectLabel, ...]:
    """Return ignored places under a matrix, cut at the border of the image, however little is left of them."""
    parts = (crop_object(moved_label(place, matrix), (0, 0, size[1], size[0]), _ANY) for place in places)
    return tuple(part for part in parts if part is not None)


def moved_label(label: ObjectLabel, matrix: np.ndarray) -> ObjectLabel:
    """Return a label under an affine map.

    Where axes don't go to axes, the new box is that of the moved outline, else of the moved quad, else of the
    moved ellipse in the old box: the box of the turned box would be far larger than the object (Kalra et al. 2021,
    "Towards rotation invariance in object detection").
    """
    moved = moved_object(label, matrix)
    linear = np.abs(matrix[:, :2])
    axes_stay = bool(min(linear[0, 0] + linear[1, 1], linear[0, 1] + linear[1, 0]) == 0)
    if axes_stay or label.polygons or label.quad is not None:
        return moved
    x1, y1, x2, y2 = label.box
    centre_2 = matrix[:, :2] @ np.array([(x1 + x2) / 2, (y1 + y2) / 2]) + matrix[:, 2]
    half_2 = np.hypot(matrix[:, 0] * (x2 - x1) / 2, matrix[:, 1] * (y2 - y1) / 2)
    return replace(moved, box=bounds(np.stack([centre_2 - half_2, centre_2 + half_2])))
