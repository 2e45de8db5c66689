"""Boxes and rotated boxes in numpy: suppression, overlaps, corners, masks in boxes.

Shapes: N boxes, P pairs, H × W pixels, M × M cells of a mask; 4: x1, y1, x2, y2; 5: centre x and y, longer and shorter
side, angle in radians (clockwise in the image); 8: corners x1, y1, …, x4, y4.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

_PARALLEL = 1e-9
_ALONE = 1e-12

Overlaps = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""One box, and N others → (N,) how much of them is common."""


def overlaps_of_boxes(one_4: np.ndarray, others_N4: np.ndarray) -> np.ndarray:
    """Return (N,) the IoU of a box with others."""
    sides_N2 = np.minimum(one_4[2:], others_N4[:, 2:]) - np.maximum(one_4[:2], others_N4[:, :2])
    shared_N = np.maximum(sides_N2, 0).prod(1)
    area, area_N = (one_4[2:] - one_4[:2]).prod(), (others_N4[:, 2:] - others_N4[:, :2]).prod(1)
    overlap_N: np.ndarray = shared_N / np.maximum(area + area_N - shared_N, _ALONE)
    return overlap_N


def suppressed(
    boxes: np.ndarray,
    scores_N: np.ndarray,
    labels_N: np.ndarray,
    iou: float,
    overlaps: Overlaps = overlaps_of_boxes,
) -> np.ndarray:
    """Return the numbers of the boxes that stay, by falling score; equal scores keep their order.

    Args:
        boxes: (N, 4), or whatever `overlaps` compares.
        scores_N: Finite.
        labels_N: Boxes of different labels leave each other alone.
        iou: A box goes when a surer one that stays overlaps it by more.
        overlaps: How much two boxes have in common.
    """
    order = np.argsort(-scores_N, kind="stable")
    gone = np.zeros(len(order), bool)
    kept = []
    for place, number in enumerate(order):
        if gone[place]:
            continue
        kept.append(number)
        later = place + 1 + np.flatnonzero(~gone[place + 1 :])
        later = later[labels_N[order[later]] == labels_N[number]]
        gone[later[overlaps(boxes[number], boxes[order[later]]) > iou]] = True
    return np.array(kept, np.int64)


def corners_of(boxes_N5: np.ndarray) -> np.ndarray:
    """Return (N, 8) the corners of rotated boxes, clockwise, from the upper left one at angle 0."""
    cx, cy, w, h, angle = boxes_N5.T
    along_x, along_y = np.cos(angle) * w / 2, np.sin(angle) * w / 2
    across_x, across_y = -np.sin(angle) * h / 2, np.cos(angle) * h / 2
    corners = [
        value
        for u, v in ((-1, -1), (1, -1), (1, 1), (-1, 1))
        for value in (cx + u * along_x + v * across_x, cy + u * along_y + v * across_y)
    ]
    return np.stack(corners, axis=-1)


def hulls_around(quads_N8: np.ndarray) -> np.ndarray:
    """Return (N, 4) the boxes around quads."""
    points_N42 = quads_N8.reshape(-1, 4, 2)
    return np.concatenate([points_N42.min(1), points_N42.max(1)], axis=1)


def rectangles_of(quads_N8: np.ndarray) -> np.ndarray:
    """Return (N, 5) rotated boxes of quads that are rectangles up to rounding."""
    points_N42 = quads_N8.reshape(-1, 4, 2).astype(np.float64)
    first_N2, second_N2 = points_N42[:, 1] - points_N42[:, 0], points_N42[:, 2] - points_N42[:, 1]
    sides_N2 = np.stack([np.hypot(*first_N2.T), np.hypot(*second_N2.T)], axis=1)
    angle_N = np.arctan2(first_N2[:, 1], first_N2[:, 0])
    return np.concatenate([points_N42.mean(1), sides_N2, angle_N[:, None]], axis=1)


def overlaps_of_rotated(one_5: np.ndarray, others_N5: np.ndarray) -> np.ndarray:
    """Return (N,) the IoU of a rotated box with others; see `vitp.models.rotated.iou` for how."""
    first_P5 = np.broadcast_to(one_5.astype(np.float64), others_N5.shape)
    second_P5 = others_N5.astype(np.float64)
    areas = [np.maximum(box[:, 2], 0) * np.maximum(box[:, 3], 0) for box in (first_P5, second_P5)]
    shared_P = np.zeros(len(second_P5))
    # Only pairs are computed whose circles through the corners meet.
    reach_P = (np.hypot(first_P5[:, 2], first_P5[:, 3]) + np.hypot(second_P5[:, 2], second_P5[:, 3])) / 2
    near = np.hypot(*(second_P5 - first_P5)[:, :2].T) < reach_P
    if near.any():
        shared_P[near] = _shared(first_P5[near], second_P5[near], areas[0][near], areas[1][near])
    whole_P = areas[0] + areas[1] - shared_P
    return np.where(whole_P > 0, shared_P / np.maximum(whole_P, _ALONE), 0.0)


def _shared(
    first: np.ndarray, second: np.ndarray, first_area: np.ndarray, second_area: np.ndarray
) -> np.ndarray:
    """Return (P,) areas that are common to two rotated boxes."""
    # The frame is the smaller box's: its centre is near all of the intersection, which keeps the digits.
    smaller = first_area <= second_area
    own, other = (
        np.where(smaller[:, None], first, second),
        np.where(smaller[:, None], second, first),
    )
    own_w, own_h, angle = own[:, 2] / 2, own[:, 3] / 2, own[:, 4]
    dx, dy, turn = other[:, 0] - own[:, 0], other[:, 1] - own[:, 1], other[:, 4] - angle
    # Whole quarter turns only swap the sides of a box; what is left is a tilt of at most 45°.
    quarters = np.round(turn * (2 / math.pi))
    tilt = turn - quarters * (math.pi / 2)
    swapped = np.mod(quarters, 2) == 1
    other_x = np.where(swapped, other[:, 3], other[:, 2]) / 2
    other_y = np.where(swapped, other[:, 2], other[:, 3]) / 2
    cos, sin = np.cos(angle), np.sin(angle)
    cx, cy = cos * dx + sin * dy, cos * dy - sin * dx
    common_x = np.minimum(own_w, cx + other_x) - np.maximum(-own_w, cx - other_x)
    common_y = np.minimum(own_h, cy + other_y) - np.maximum(-own_h, cy - other_y)
    straight = np.maximum(common_x, 0) * np.maximum(common_y, 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        tilted = _tilted(own_w, own_h, other_x, other_y, cx, cy, tilt)
    # Where nearly parallel edges cross can't be told in double precision: they count as parallel.
    area = np.where(np.abs(tilt) < _PARALLEL, straight, tilted)
    limit = np.minimum(first_area, second_area)
    return np.where(limit > 0, np.minimum(np.maximum(area, 0), limit), 0.0)


def _tilted(
    own_x: np.ndarray,
    own_y: np.ndarray,
    other_x: np.ndarray,
    other_y: np.ndarray,
    cx: np.ndarray,
    cy: np.ndarray,
    tilt: np.ndarray,
) -> np.ndarray:
    """Return (P,) areas common to a box about the origin and one that is tilted against it, by Green's theorem."""
    cos, sin = np.cos(tilt), np.sin(tilt)
    along, across = cos * cx + sin * cy, cos * cy - sin * cx
    lower, upper, right, left = _inside(own_x, own_y, other_x, other_y, cx, cy, cos, sin)
    total = lower * (other_y + across) + upper * (other_y - across)
    total = total + right * (other_x + along) + left * (other_x - along)
    lower, upper, right, left = _inside(other_x, other_y, own_x, own_y, -along, -across, cos, -sin)
    half: np.ndarray = (total + (lower + upper) * own_y + (right + left) * own_x) / 2
    return half


def _inside(
    box_x: np.ndarray,
    box_y: np.ndarray,
    half_x: np.ndarray,
    half_y: np.ndarray,
    cx: np.ndarray,
    cy: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
) -> list[np.ndarray]:
    """Return how much of each edge of a tilted box lies in the box ±box_x, ±box_y: lower, upper, right, left."""
    lengths = []
    for ux, uy, nx, ny, half_length, distance in (
        (cos, sin, -sin, cos, half_x, half_y),
        (-sin, cos, cos, sin, half_y, half_x),
    ):
        reach_x, reach_y = np.abs(box_x / ux), np.abs(box_y / uy)
        middle_x, middle_y = -cx / ux, -cy / uy
        shift_x, shift_y = distance * nx / ux, distance * ny / uy
        for x, y in ((middle_x - shift_x, middle_y - shift_y), (middle_x + shift_x, middle_y + shift_y)):
            end = np.minimum(np.minimum(x + reach_x, y + reach_y), half_length)
            begin = np.maximum(np.maximum(x - reach_x, y - reach_y), -half_length)
            lengths.append(np.maximum(end - begin, 0))
    return lengths


def mask_in_image(mask_MM: np.ndarray, box_4: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return (H, W) bool: a mask stretched over its box and cut at 0.5.

    Each pixel whose centre lies in the box reads the mask where the centre is.
    """
    pasted_HW = np.zeros(size, bool)
    x1, y1, x2, y2 = (float(value) for value in box_4)
    left, right = _pixels_inside(x1, x2, size[1])
    top, bottom = _pixels_inside(y1, y2, size[0])
    if left < right and top < bottom:
        x = ((np.arange(left, right) + 0.5 - x1) / (x2 - x1)).astype(np.float32)
        y = ((np.arange(top, bottom) + 0.5 - y1) / (y2 - y1)).astype(np.float32)
        rows = _read_between(mask_MM, y)
        pasted_HW[top:bottom, left:right] = _read_between(rows.T, x).T >= 0.5
    return pasted_HW


def _read_between(values_MK: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return (len(at), K): rows between the centres of cells, at places on 0..1; the border goes on outside."""
    cells = len(values_MK)
    place = np.clip(at * cells - 0.5, 0, cells - 1)
    low = place.astype(np.int64)
    share = (place - low)[:, None].astype(np.float32)
    between: np.ndarray = values_MK[low] * (1 - share) + values_MK[np.minimum(low + 1, cells - 1)] * share
    return between


def _pixels_inside(start: float, end: float, length: int) -> tuple[int, int]:
    return max(math.ceil(start - 0.5), 0), min(math.ceil(end - 0.5), length)
