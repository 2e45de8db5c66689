"""Ignored places of an image: masks and presences, and where labels can't be used.

Shapes: H × W pixels, n × n cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from vitp.core.errors import DataError
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet, ObjectLabel

UNLABELLED = -1
"""Stands for a class, or for whether a class is there, where nobody said it."""

FINE = 256
"""Cells on the longer side, at least, on which places are drawn."""

_AROUND = np.ones((3, 3), np.uint8)
_SHIFT = 4
"""Binary digits that OpenCV keeps of a fraction of a pixel."""


def rings_of(label: ObjectLabel) -> list[tuple[float, ...]]:
    """Return the rings of an object in pixels: its polygons, else its oriented box, else its box."""
    rings = [ring for ring in label.polygons if len(ring) >= 6]
    if rings:
        return rings
    if label.quad is not None:
        return [label.quad]
    x1, y1, x2, y2 = label.box
    return [(x1, y1, x2, y1, x2, y2, x1, y2)]


def touched(places: Iterable[ObjectLabel], size: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Return (H, W) bool: which pixels the places touch; holes in them count as touched.

    Args:
        places: In pixels of an image.
        size: Height and width of that image.
        shape: H, W of what is returned, which covers the same ground.
    """
    factor = max(1, FINE // max(shape))
    fine = (shape[0] * factor, shape[1] * factor)
    scale = np.array([fine[1] / size[1], fine[0] / size[0]])
    touched_HW = np.zeros(fine, np.uint8)
    for label in places:
        for ring in rings_of(label):
            points_N2 = (np.reshape(np.asarray(ring, float), (-1, 2)) * scale).clip(-1e6, 1e6)
            # The first column and row around the points, and those behind the last, inside the array.
            limit = (fine[1], fine[0])
            left, top = np.clip(np.floor(points_N2.min(0)), 0, limit).astype(int)
            right, bottom = np.clip(np.ceil(points_N2.max(0)), 0, limit).astype(int)
            if left < right and top < bottom:
                # OpenCV counts from the centres of pixels, and leaves out some that a slanted border only grazes.
                fixed_N2 = np.round((points_N2 - (left + 0.5, top + 0.5)) * 2**_SHIFT).astype(np.int32)
                part = np.zeros((bottom - top, right - left), np.uint8)
                cv2.fillPoly(part, [fixed_N2], 1, shift=_SHIFT)
                touched_HW[top:bottom, left:right] |= np.asarray(cv2.dilate(part, _AROUND), np.uint8)
    return np.asarray(touched_HW.reshape(shape[0], factor, shape[1], factor).any((1, 3)))


def known_semantic(item: LabelledImage) -> np.ndarray:
    """Return the class of each pixel of an image that has a mask, (H, W) uint8; 255 where a place is ignored, too."""
    assert item.semantic is not None
    mask_HW = np.asarray(item.semantic())
    if not item.ignored or mask_HW.ndim != 2:
        return mask_HW
    hidden_HW = touched(item.ignored, (item.height, item.width), mask_HW.shape)
    return np.where(hidden_HW, np.uint8(IGNORE), mask_HW.astype(np.uint8, copy=False))


def meets(label: ObjectLabel, window: tuple[float, ...]) -> bool:
    """Return whether the box of a label and a window x1, y1, x2, y2 have an area in common."""
    x1, y1, x2, y2 = label.box
    return min(x2, window[2]) > max(x1, window[0]) and min(y2, window[3]) > max(y1, window[1])


def read_mask(
    item: LabelledImage, labelled_set: LabelledSet, size: tuple[int, int], *, optional: bool = False
) -> np.ndarray:
    """Return the (H, W) uint8 mask of an image, checked against the image's size and the classes.

    Pixels of ignored places are 255.

    Args:
        item: The image.
        labelled_set: Its set.
        size: Height and width of the image.
        optional: Return all 255 when the image has no mask.

    Raises:
        DataError: There is no mask, or it doesn't fit.
    """
    if item.semantic is None:
        if optional:
            return np.full(size, IGNORE, np.uint8)
        raise DataError("has no mask", where=f"image {item.id}", fix="leave it out or label it")
    mask_HW = known_semantic(item)
    if mask_HW.shape != tuple(size):
        raise DataError(
            f"mask of {mask_HW.shape[1]}×{mask_HW.shape[0]} px for an image of {size[1]}×{size[0]} px",
            where=f"image {item.id}",
            fix="mend the mask",
        )
    labelled = mask_HW[mask_HW != IGNORE]
    if labelled.size and int(labelled.max()) >= len(labelled_set.semantic_classes):
        raise DataError(
            f"mask holds class {int(labelled.max())}, but there are {len(labelled_set.semantic_classes)} classes",
            where=f"image {item.id}",
            fix="mend the mask or name all classes",
        )
    return mask_HW


def presence_of(
    objects: Sequence[ObjectLabel] | None,
    classes: Sequence[str],
    window: tuple[float, ...] | None = None,
    ignored: Sequence[ObjectLabel] = (),
) -> np.ndarray:
    """Return (K,) int8: 1 where an object of the class has its centre in the window, 0 where none has, -1 unknown.

    Unknown is all when the objects aren't labelled; which classes there are beside the clear ones when an ignored
    place meets the window; and a class of which the window meets difficult objects only.

    Args:
        objects: In pixels of the image.
        classes: K names.
        window: x1, y1, x2, y2 in pixels; None: all the image.
        ignored: Places that may hold objects of any class.
    """
    if objects is None:
        return np.full(len(classes), UNLABELLED, np.int8)
    place = {name: index for index, name in enumerate(classes)}
    everywhere = window is None
    seen = [place for place in ignored if everywhere or meets(place, window or ())]
    presence_K = np.full(len(classes), UNLABELLED if seen else 0, np.int8)
    hard = [one for one in objects if one.difficult and (everywhere or meets(one, window or ()))]
    presence_K[[place[one.category] for one in hard if one.category in place]] = UNLABELLED
    for labelled in (one for one in objects if not one.difficult):
        x, y = (labelled.box[0] + labelled.box[2]) / 2, (labelled.box[1] + labelled.box[3]) / 2
        inside = window is None or (window[0] <= x < window[2] and window[1] <= y < window[3])
        if inside and labelled.category in place:
            presence_K[place[labelled.category]] = 1
    return presence_K
