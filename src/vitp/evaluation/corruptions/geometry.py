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
from vitp.evaluation.corruptions.levels import level, scaled
from vitp.records.geometry import bounds
from vitp.records.labels import ObjectLabel

ROTATION_DEGREES = (30.0, 45.0, 60.0, 75.0, 90.0)
SCALE_FACTOR = (0.9, 0.8, 0.7, 0.6, 0.5)
SHIFT = (15.0, 20.0, 25.0, 30.0, 35.0)
"""Pixels in x and in y, at an image side of 800."""

MIN_VISIBLE = 0.3
"""Objects of which less of the area is left are difficult: they count neither as found nor as missed."""

_ANY = 1e-6


def about_centre(linear_22: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the 2 × 3 matrix of a linear map that leaves the centre of an image of height and width `size`."""
    centre_2 = np.array([size[1] / 2, size[0] / 2])
    return np.column_stack([linear_22, centre_2 - linear_22 @ centre_2])


def rotation(size: tuple[int, int], severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the matrix of a turn about the centre by 30°, 45°, 60°, 75° or 90° against the clock.

    Args:
        size: Height and width; the image keeps it, and loses its corners.
        severity: 1 to 5.
        rng: Not used: there is nothing random in it.
    """
    angle = np.deg2rad(level(ROTATION_DEGREES, severity))
    cosine, sine = round(float(np.cos(angle)), 12), round(float(np.sin(angle)), 12)
    matrix = about_centre(np.array([[cosine, sine], [-sine, cosine]]), size)  # y points down
    if cosine == 0:
        # Pixels go to pixels: where one side is odd and the other even, half a pixel beside the centre.
        matrix[:, 2] = np.floor(matrix[:, 2])
    return matrix


def scale(size: tuple[int, int], severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the matrix that shrinks the image to 0.9, 0.8, 0.7, 0.6 or 0.5 in its middle, as from higher up.

    Args:
        size: Height and width; the image keeps it, with a black frame.
        severity: 1 to 5.
        rng: Not used: there is nothing random in it.
    """
    return about_centre(np.eye(2) * level(SCALE_FACTOR, severity), size)


def translation(size: tuple[int, int], severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return the matrix of a shift by 15, 20, 25, 30 or 35 px at a side of 800, in x and y, left or right, up or down.

    Whole pixels, so that nothing is blurred: below 160 px neighbouring severities can be the same.

    Args:
        size: Height and width.
        severity: 1 to 5.
        rng: Draws the two directions.
    """
    signs_2 = rng.choice([-1.0, 1.0], 2)
    return np.column_stack([np.eye(2), np.rint(signs_2 * scaled(level(SHIFT, severity), size))])


def warp(pixels: np.ndarray, matrix: np.ndarray, *, nearest: bool = False, fill: int = 0) -> np.ndarray:
    """Return uint8 (H, W) or (H, W, C) pixels moved by a matrix on a canvas of the same size.

    Args:
        pixels: Image or mask.
        matrix: 2 × 3, in edge coordinates.
        nearest: Never mix values (masks).
        fill: Of what comes in from outside.
    """
    linear_22, shift_2 = matrix[:, :2], matrix[:, 2]
    factor = float(np.sqrt(abs(np.linalg.det(linear_22))))
    if factor < 0.999 and not nearest:
        # Bilinear interpolation looks at four pixels only: what would alias is taken out before.
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
        objects: In pixels of the image.
        matrix: 2 × 3, in edge coordinates.
        size: Height and width.
    """
    found = []
    for label in objects:
        moved = moved_label(label, matrix)
        window = (0, 0, size[1], size[0])
        part = crop_object(moved, window, MIN_VISIBLE)
        if part is None:
            rest = crop_object(moved, window, _ANY)
            part = None if rest is None else replace(rest, difficult=True)
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
