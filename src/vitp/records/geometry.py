"""Plane geometry of labels: polygons are (N, 2) arrays of x, y in pixels, y down."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

Box = tuple[float, float, float, float]


def as_points(flat: Sequence[float]) -> np.ndarray:
    """Return x1, y1, x2, y2, … as an (N, 2) array of float64."""
    return np.asarray(flat, dtype=np.float64).reshape(-1, 2)


def as_flat(points_N2: np.ndarray) -> tuple[float, ...]:
    """Return (N, 2) points as x1, y1, x2, y2, …"""
    return tuple(float(value) for value in points_N2.reshape(-1))


def signed_area(points_N2: np.ndarray) -> float:
    """Return the area of a polygon, positive when it runs clockwise in the image."""
    if len(points_N2) < 3:
        return 0.0
    # Relative to the first corner: far from the origin the products would lose the digits that matter.
    x, y = (points_N2 - points_N2[0]).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def area(points_N2: np.ndarray) -> float:
    """Return the area of a simple polygon."""
    return abs(signed_area(points_N2))


def point_inside(points_N2: np.ndarray) -> tuple[float, float]:
    """Return x and y of a point that lies in a simple polygon: in the middle between two of its edges."""
    levels = np.unique(points_N2[:, 1])
    if len(levels) < 2:
        return float(points_N2[:, 0].mean()), float(levels[0])
    widest = int(np.diff(levels).argmax())
    y = float(levels[widest] + levels[widest + 1]) / 2
    (x1, y1), (x2, y2) = points_N2.T, np.roll(points_N2, -1, axis=0).T
    crossed = (y1 < y) != (y2 < y)
    across = np.sort((x1 + (y - y1) / np.where(crossed, y2 - y1, 1.0) * (x2 - x1))[crossed])
    # From left to right the polygon lies between the first crossing and the second one.
    return float(across[:2].mean()), y


def encloses(ring_N2: np.ndarray, point: tuple[float, float]) -> bool:
    """Return whether a point lies in a polygon."""
    (x, y), after_N2 = point, np.roll(ring_N2, -1, axis=0)
    crosses_N = (ring_N2[:, 1] > y) != (after_N2[:, 1] > y)
    first_N2, last_N2 = ring_N2[crosses_N], after_N2[crosses_N]
    at_N = first_N2[:, 0] + (y - first_N2[:, 1]) / (last_N2[:, 1] - first_N2[:, 1]) * (
        last_N2[:, 0] - first_N2[:, 0]
    )
    return bool(np.count_nonzero(at_N > x) % 2)


def contains(ring_N2: np.ndarray, inner_M2: np.ndarray) -> bool:
    """Return whether one of two polygons, whose edges don't cross, lies within the other."""
    # An island in a hole has a point of the hole in it, too, but is the smaller one.
    return area(ring_N2) > area(inner_M2) and encloses(ring_N2, point_inside(inner_M2))


def bounds(points_N2: np.ndarray) -> Box:
    """Return the axis-aligned box around points."""
    (x1, y1), (x2, y2) = points_N2.min(0), points_N2.max(0)
    return float(x1), float(y1), float(x2), float(y2)


def clockwise(points_N2: np.ndarray) -> np.ndarray:
    """Return the polygon clockwise in the image; the first corner stays first (DOTA's marks the head)."""
    if signed_area(points_N2) >= 0:
        return points_N2
    return np.concatenate([points_N2[:1], points_N2[:0:-1]])


def is_convex(points_N2: np.ndarray) -> bool:
    """Return whether a polygon is convex and doesn't cross itself (true for four corners in order)."""
    edges = np.roll(points_N2, -1, axis=0) - points_N2
    following = np.roll(edges, -1, axis=0)
    turns = edges[:, 0] * following[:, 1] - edges[:, 1] * following[:, 0]
    return bool((turns >= 0).all() or (turns <= 0).all())


def min_area_quad(points_N2: np.ndarray) -> np.ndarray:
    """Return the corners (4, 2) of the smallest rectangle around points, clockwise."""
    # Float32 has seven digits: relative coordinates keep them for the shape.
    # OpenCV computes in float32, which is too coarse for points far from 0.
    origin = points_N2.min(0)
    rectangle = cv2.minAreaRect((points_N2 - origin).astype(np.float32))
    return clockwise(cv2.boxPoints(rectangle).astype(np.float64) + origin)


def clip_polygon(points_N2: np.ndarray, window: Box) -> np.ndarray:
    """Return the part of a polygon inside an axis-aligned window (Sutherland–Hodgman), possibly empty."""
    x1, y1, x2, y2 = window
    points = points_N2
    for axis, limit, sign in ((0, x1, 1.0), (1, y1, 1.0), (0, x2, -1.0), (1, y2, -1.0)):
        if len(points) == 0:
            break
        points = _clip_half_plane(points, sign * (points[:, axis] - limit), (axis, limit))
    return points


def shared_part(points_N2: np.ndarray, convex_M2: np.ndarray) -> np.ndarray:
    """Return the part of a polygon inside a convex one (Sutherland–Hodgman), possibly empty."""
    corners_M2, points = clockwise(convex_M2), points_N2
    for (x, y), (dx, dy) in zip(corners_M2, np.roll(corners_M2, -1, axis=0) - corners_M2, strict=True):
        if len(points) == 0:
            break
        points = _clip_half_plane(points, dx * (points[:, 1] - y) - dy * (points[:, 0] - x))
    return points


def _clip_half_plane(
    points_N2: np.ndarray, distance: np.ndarray, border: tuple[int, float] | None = None
) -> np.ndarray:
    """Keep the part with a distance of 0 or more from a line; of an axis-aligned one, axis and coordinate are named."""
    kept: list[np.ndarray] = []
    for i in range(len(points_N2)):
        j = (i + 1) % len(points_N2)
        if distance[i] >= 0:
            kept.append(points_N2[i])
        if (distance[i] >= 0) != (distance[j] >= 0):
            share = distance[i] / (distance[i] - distance[j])
            crossing = points_N2[i] + share * (points_N2[j] - points_N2[i])
            if border is not None:
                # On the border exactly, whatever rounding made of it.
                crossing[border[0]] = border[1]
            kept.append(crossing)
    return np.array(kept).reshape(-1, 2)
