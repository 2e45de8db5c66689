"""Masks ↔ outlines along the edges of pixels, and the connected regions of masks as objects.

`rasterise(outline(mask))` is the mask again, whatever its shape: parts, holes, islands in holes, pixels that touch at
a corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from vitp.records.geometry import area, as_flat, as_points, bounds, min_area_quad, signed_area
from vitp.records.labels import ObjectLabel

Rings = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Outline:
    """The border of a mask along the edges of its pixels, each ring clockwise in the image, (N, 2) in pixels.

    Attributes:
        rings: Around the mask's parts.
        holes: Around what is cut out of them.
    """

    rings: tuple[np.ndarray, ...]
    holes: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Regions:
    """The objects found in a mask and how many regions were too small."""

    objects: tuple[ObjectLabel, ...]
    too_small: int


def outline(mask_HW: np.ndarray) -> Outline:
    """Return the outline of a mask (H, W).

    Every ring is simple: where it would touch itself at a corner, it is two rings.
    """
    rows_H, columns_W = np.any(mask_HW, axis=1), np.any(mask_HW, axis=0)
    if not rows_H.any():
        return Outline(())
    top, left = int(rows_H.argmax()), int(columns_W.argmax())
    bottom, right = len(rows_H) - int(rows_H[::-1].argmax()), len(columns_W) - int(columns_W[::-1].argmax())
    loops = _loops(np.asarray(mask_HW[top:bottom, left:right], dtype=bool))
    rings, holes = [], []
    for loop in loops:
        ring_N2 = np.array(loop, dtype=np.float64) + np.array((left, top))
        if signed_area(ring_N2) > 0:
            rings.append(ring_N2)
        else:
            holes.append(np.concatenate([ring_N2[:1], ring_N2[:0:-1]]))
    return Outline(tuple(rings), tuple(holes))


def _loops(mask_HW: np.ndarray) -> list[list[tuple[int, int]]]:
    """Return the corners (x, y) of the closed lines between mask and rest, the mask on their right hand.

    On each line of the grid the corners are the ends of straight pieces, so the first belongs to the second, the
    third to the fourth and so on, along rows and along columns. A corner where two pixels of the mask touch
    diagonally is the end of four pieces and stands twice; each of the two turns around its own pixel.
    """
    padded = np.pad(mask_HW, 1)
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    diagonal = (nw == se) & (ne == sw) & (nw != ne)
    y_K, x_K = np.nonzero((nw ^ ne ^ sw ^ se) | diagonal)
    twice_K = diagonal[y_K, x_K]
    y_C, x_C = np.repeat(y_K, 1 + twice_K), np.repeat(x_K, 1 + twice_K)
    second_C = np.zeros(len(y_C), bool)
    second_C[1:] = (y_C[1:] == y_C[:-1]) & (x_C[1:] == x_C[:-1])
    # Of the two at a diagonal corner the first ends the piece to the west. It goes on north or south, whichever
    # side its own pixel is on.
    south_C = second_C ^ (diagonal & ne)[y_C, x_C]
    along_rows = np.arange(len(y_C)).reshape(-1, 2)
    along_columns = np.lexsort((south_C, y_C, x_C)).reshape(-1, 2)
    beside, across = (np.empty(len(y_C), np.int64) for _ in range(2))
    for partner, pairs in ((beside, along_rows), (across, along_columns)):
        partner[pairs[:, 0]], partner[pairs[:, 1]] = pairs[:, 1], pairs[:, 0]
    outer_C = se[y_C, x_C].tolist()
    points = list(zip(x_C.tolist(), y_C.tolist(), strict=True))
    beside_C, across_C, touching_C = beside.tolist(), across.tolist(), diagonal[y_C, x_C].tolist()
    seen = bytearray(len(points))
    loops: list[list[tuple[int, int]]] = []
    for start in range(len(points)):
        if seen[start]:
            continue
        line, place, touches = [], start, False
        while not seen[place]:
            other = beside_C[place]
            seen[place] = seen[other] = 1
            line += [points[place], points[other]]
            touches = touches or touching_C[place] or touching_C[other]
            place = across_C[other]
        # The first corner of a line in reading order is its upper left one, and the walk began to the east.
        line = line if outer_C[start] else line[::-1]
        loops += _simple(line) if touches else [line]
    return loops


def _simple(line: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Cut a closed line that passes a corner twice into closed lines that don't."""
    loops: list[list[tuple[int, int]]] = []
    path: list[tuple[int, int]] = []
    places: dict[tuple[int, int], int] = {}
    for point in line:
        if point in places:
            begin = places[point]
            loops.append(path[begin:])
            for passed in path[begin + 1 :]:
                del places[passed]
            del path[begin + 1 :]
        else:
            places[point] = len(path)
            path.append(point)
    return [*loops, path]


def parts(mask_HW: np.ndarray) -> list[Outline]:
    """Return the outline of a mask as one outline a ring, each with the holes that lie in it."""
    whole = outline(mask_HW)
    # Smallest first: of the rings around a hole the smallest one is the part that has it.
    order = sorted(range(len(whole.rings)), key=lambda number: area(whole.rings[number]))
    holes: dict[int, list[np.ndarray]] = {number: [] for number in order}
    for hole_N2 in whole.holes:
        # Just inside of the hole's first corner, which is its upper left one or turns like it.
        inside = _point_in(hole_N2)
        owner = next(
            number
            for number in order
            if cv2.pointPolygonTest(whole.rings[number].astype(np.float32), inside, False) > 0
        )
        holes[owner].append(hole_N2)
    return [Outline((ring,), tuple(holes[number])) for number, ring in enumerate(whole.rings)]


def _point_in(ring_N2: np.ndarray) -> tuple[float, float]:
    """Return the centre of a pixel in a ring along pixel edges."""
    # Of the topmost points the leftmost: the pixel to the right below it lies inside.
    first = int(np.lexsort((ring_N2[:, 0], ring_N2[:, 1]))[0])
    x, y = ring_N2[first]
    return float(x) + 0.5, float(y) + 0.5


def rasterise(
    rings: Sequence[Sequence[float]], size: tuple[int, int], holes: Sequence[Sequence[float]] = ()
) -> np.ndarray:
    """Return the mask (H, W) uint8 of an outline: pixels whose centre lies in more rings than holes.

    So rings are joined, a hole cuts only what is around it, and an island in a hole stays. Unlike OpenCV's fill,
    which also paints every pixel that the border touches, this gives back exactly the mask that an outline along
    pixel edges was made from. What is smaller than a pixel and reaches into the image is the pixel it lies in.

    Args:
        rings: x1, y1, x2, y2, … in pixels, each.
        size: Height and width.
        holes: Rings of holes, likewise.
    """
    depth_HW = np.zeros(size, np.int16)
    for flat, sign in (*((ring, 1) for ring in rings), *((hole, -1) for hole in holes)):
        points_N2 = as_points(flat)
        window = _window(points_N2, size)
        if window is not None:
            left, top, right, bottom = window
            part = _inside(points_N2 - (left, top), bottom - top, right - left)
            depth_HW[top:bottom, left:right] += sign * part
    mask_HW = (depth_HW > 0).astype(np.uint8)
    if not mask_HW.any() and sum(area(as_points(r)) for r in rings) > sum(area(as_points(h)) for h in holes):
        _mark_smallest(mask_HW, rings)
    return mask_HW


def _window(points_N2: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    if not len(points_N2):
        return None
    x1, y1, x2, y2 = bounds(points_N2)
    left, right = max(int(np.floor(x1)), 0), min(int(np.ceil(x2)), size[1])
    top, bottom = max(int(np.floor(y1)), 0), min(int(np.ceil(y2)), size[0])
    return (left, top, right, bottom) if right > left and bottom > top else None


def _mark_smallest(mask_HW: np.ndarray, rings: Sequence[Sequence[float]]) -> None:
    """Mark the pixel in the middle of the largest ring that has an area and lies in the image."""
    size = mask_HW.shape[0], mask_HW.shape[1]
    for points_N2 in sorted((as_points(ring) for ring in rings), key=area, reverse=True):
        window = _window(points_N2, size)
        if area(points_N2) > 0 and window is not None:
            left, top, right, bottom = window
            x, y = points_N2.mean(0)
            mask_HW[min(max(int(y), top), bottom - 1), min(max(int(x), left), right - 1)] = 1
            return


def _inside(points_N2: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return (H, W) bool by the even-odd rule: left of a pixel's centre lies an odd number of edges."""
    start_N2, end_N2 = points_N2, np.roll(points_N2, -1, axis=0)
    low_N, high_N = (pick(start_N2[:, 1], end_N2[:, 1]) for pick in (np.minimum, np.maximum))
    # Rows whose centre lies between the ends of an edge, one end included: a corner of two edges counts once.
    first_N = np.clip(np.ceil(low_N - 0.5), 0, height).astype(np.int64)
    count_N = np.clip(np.ceil(high_N - 0.5), 0, height).astype(np.int64) - first_N
    edges = np.repeat(np.arange(len(points_N2)), count_N)
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(count_N) - count_N, count_N) + first_N[edges]
    (x1, y1), (x2, y2) = start_N2[edges].T, end_N2[edges].T
    crossing_x = x1 + (rows + 0.5 - y1) / (y2 - y1) * (x2 - x1)
    columns = np.clip(np.ceil(crossing_x - 0.5), 0, width).astype(np.int64)
    # Each edge switches all pixels to the right of it, so a running sum says which ones are inside.
    toggles_HW = np.zeros((height, width + 1), np.int32)
    np.add.at(toggles_HW, (rows, columns), 1)
    return np.asarray(toggles_HW.cumsum(axis=1)[:, :width] % 2 == 1)


def object_of(mask_HW: np.ndarray, name: str, at: tuple[int, int] = (0, 0)) -> ObjectLabel | None:
    """Return a mask (H, W) as one object with box, oriented box and outline, or None when it is empty.

    Args:
        mask_HW: The object's pixels.
        name: Its class.
        at: x and y of the mask's corner in the image.
    """
    found = outline(mask_HW)
    if not found.rings:
        return None
    rings = [ring + at for ring in found.rings]
    return ObjectLabel(
        name,
        bounds(np.concatenate(rings)),
        as_flat(min_area_quad(np.concatenate(rings))),
        tuple(as_flat(ring) for ring in rings),
        holes=tuple(as_flat(hole + at) for hole in found.holes),
    )


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
            label = object_of(labels_HW[y : y + h, x : x + w] == k, name, (x, y))
            if label is not None:
                objects.append(label)
    return Regions(tuple(objects), too_small)
