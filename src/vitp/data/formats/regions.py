"""Connected regions of masks → outlines, boxes and oriented boxes."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from vitp.data.formats.geometry import as_flat, clockwise, min_area_quad
from vitp.data.labels import ObjectLabel


@dataclass(frozen=True)
class Regions:
    """The objects found in a mask and how many regions were too small."""

    objects: tuple[ObjectLabel, ...]
    too_small: int


def outline(mask_HW: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the outer outlines (N, 2) of a mask in pixels, along the edges of its pixels; holes are filled.

    OpenCV's contours run through pixel *centres*, which would shrink thin objects by a pixel. On a picture of
    twice the size, an even coordinate is the near half of a pixel and an odd one the far half, so rounding up
    to the pixel grid puts straight edges exactly where they are (inner corners are cut by up to one pixel).
    """
    doubled = np.repeat(np.repeat(np.ascontiguousarray(mask_HW, dtype=np.uint8), 2, axis=0), 2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    rings = [(contour.reshape(-1, 2) + 1) // 2 for contour in contours]
    return tuple(clockwise(_without_repeats(ring).astype(np.float64)) for ring in rings)


def _without_repeats(ring_N2: np.ndarray) -> np.ndarray:
    changes = (ring_N2 != np.roll(ring_N2, 1, axis=0)).any(axis=1)
    return ring_N2[changes] if changes.any() else ring_N2[:1]


def objects_of(semantic_HW: np.ndarray, names: dict[int, str], *, min_area: int) -> Regions:
    """Return one object for each 8-connected region of each class, in order of class and place.

    Objects that touch are one region: a semantic mask can't tell them apart.

    Args:
        semantic_HW: Class index of each pixel.
        names: Class index → name, for the classes that are objects.
        min_area: Regions of fewer pixels are dropped and counted.
    """
    objects: list[ObjectLabel] = []
    too_small = 0
    for index, name in names.items():
        found = (semantic_HW == index).astype(np.uint8)
        count, labels_HW, stats, _ = cv2.connectedComponentsWithStats(found, connectivity=8)
        for k in range(1, count):
            x, y, w, h, pixels = (int(value) for value in stats[k])
            if pixels < min_area:
                too_small += 1
                continue
            rings = [ring + np.array((x, y)) for ring in outline(labels_HW[y : y + h, x : x + w] == k)]
            objects.append(
                ObjectLabel(
                    name,
                    (float(x), float(y), float(x + w), float(y + h)),
                    as_flat(min_area_quad(np.concatenate(rings))),
                    tuple(as_flat(ring) for ring in rings),
                )
            )
    return Regions(tuple(objects), too_small)
