"""Exact overlap of rotated boxes, vectorised over pairs, on any device.

The intersection of two rectangles is convex, and its boundary consists of the parts of each rectangle's edges that
lie inside the other one. By Green's theorem its area is half the sum, over the eight edges, of the length inside
times the edge's distance from the origin: no corners to collect and none to sort, and the result is continuous in
all numbers except where edges coincide. Those pairs (equal angles modulo a quarter turn) are two axis-aligned
rectangles in a common frame, and have a formula of their own.

Shapes: N, M boxes; P pairs; 5: a rotated box (see `vitp.models.rotated.boxes`).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from vitp.models.rotated.boxes import areas_of, hulls_of, in_double
from vitp.models.rotated.pairs import overlapping_pairs

Mode = Literal["iou", "iof", "intersection"]

PAIRS_CPU, PAIRS_GPU = 2**15, 2**20
"""Pairs computed at once: the intermediate values of so many stay in a core's cache, or fill a GPU."""

PARALLEL = 1e-9
"""Radians; edges nearer to parallel than this are. Where they cross can't be told in double precision."""


def rotated_iou(first_N5: Tensor, second_M5: Tensor, mode: Mode = "iou") -> Tensor:
    """Return the overlap of every box with every other one, (N, M), in the boxes' floating type.

    Only pairs whose axis-aligned hulls overlap are computed, a bounded number at once.

    Args:
        first_N5, second_M5: Rotated boxes.
        mode: "iou": intersection over union; "iof": intersection over the area of the first box;
            "intersection": area in pixels². A box without area has no overlap with anything.
    """
    first, second = in_double(first_N5.detach()), in_double(second_M5.detach())
    overlap_NM = first.new_zeros(len(first_N5), len(second_M5), dtype=first_N5.dtype)
    if overlap_NM.numel() == 0:
        return overlap_NM.to(first_N5)
    step = pairs_at_once(first)
    for i, j in overlapping_pairs(hulls_of(first), hulls_of(second)):
        for part_i, part_j in zip(i.split(step), j.split(step), strict=True):
            value = paired_rotated_iou(first[part_i], second[part_j], mode)
            overlap_NM[part_i, part_j] = value.to(overlap_NM.dtype)
    return overlap_NM.to(first_N5)


def pairs_at_once(boxes: Tensor) -> int:
    """Return how many pairs to compute in one go on the boxes' device."""
    return PAIRS_GPU if boxes.is_cuda else PAIRS_CPU


@torch.no_grad()
def paired_rotated_iou(first_P5: Tensor, second_P5: Tensor, mode: Mode = "iou") -> Tensor:
    """Return the overlap of the first with the second box of each pair, (P,), in the boxes' floating type.

    Computed in double precision. See `rotated_iou` for the modes.
    """
    first, second = in_double(first_P5), in_double(second_P5)
    first_area, second_area = areas_of(first), areas_of(second)
    intersection = _intersection(first, second, first_area, second_area)
    if mode == "intersection":
        return intersection.to(first_P5)
    whole = first_area + second_area - intersection if mode == "iou" else first_area
    return torch.where(whole > 0, intersection / whole, 0.0).to(first_P5)


def _intersection(first: Tensor, second: Tensor, first_area: Tensor, second_area: Tensor) -> Tensor:
    # One contiguous vector a number: operations on (P, 2) tensors take several times as long.
    first_columns, second_columns = first.T.contiguous().unbind(0), second.T.contiguous().unbind(0)
    # The frame is the smaller box's: its centre is near all of the intersection, which keeps the digits.
    smaller = first_area <= second_area
    own_w, own_h = (torch.where(smaller, first_columns[k], second_columns[k]) / 2 for k in (2, 3))
    other_w, other_h = (torch.where(smaller, second_columns[k], first_columns[k]) / 2 for k in (2, 3))
    own_angle = torch.where(smaller, first_columns[4], second_columns[4])
    sign = torch.where(smaller, 1.0, -1.0).to(first.dtype)
    dx, dy, turn = (sign * (second_columns[k] - first_columns[k]) for k in (0, 1, 4))

    # Quarter turns only swap the sides of a rectangle; without them the tilt stays small and its edges well told apart.
    quarters = torch.round(turn * (2 / math.pi))
    tilt = turn - quarters * (math.pi / 2)  # on [-π/4, π/4]
    swapped = quarters.remainder(2) == 1
    other_x, other_y = torch.where(swapped, other_h, other_w), torch.where(swapped, other_w, other_h)
    cos, sin = torch.cos(own_angle), torch.sin(own_angle)
    cx, cy = cos * dx + sin * dy, cos * dy - sin * dx

    area = _tilted_intersection(own_w, own_h, other_x, other_y, cx, cy, tilt)
    parallel = tilt.abs() < PARALLEL
    common_x = torch.minimum(own_w, cx + other_x) - torch.maximum(-own_w, cx - other_x)
    common_y = torch.minimum(own_h, cy + other_y) - torch.maximum(-own_h, cy - other_y)
    area = torch.where(parallel, common_x.clamp(min=0) * common_y.clamp(min=0), area)
    # Rounding must not make the common part larger than the smaller box: an IoU would exceed 1.
    limit = torch.minimum(first_area, second_area)
    return torch.where(limit > 0, torch.minimum(area.clamp(min=0), limit), 0.0)


def _tilted_intersection(
    own_x: Tensor, own_y: Tensor, other_x: Tensor, other_y: Tensor, cx: Tensor, cy: Tensor, tilt: Tensor
) -> Tensor:
    """Area common to an axis-aligned box about the origin and one that is tilted against it (not parallel).

    Args:
        own_x, own_y, other_x, other_y: Half the sides of both boxes, (P,).
        cx, cy: Centre of the other box, (P,).
        tilt: Tilt of the other box, (P,), at most π/4 and not 0.
    """
    cos, sin = torch.cos(tilt), torch.sin(tilt)
    # The other box's centre along its own axes; seen from there, this box's centre is at the negative of it.
    along, across = cos * cx + sin * cy, cos * cy - sin * cx
    # Each edge's length inside times the distance of its line from the origin, negative where that lies beyond the
    # line. "Lower" is towards positive y, as in an image.
    lower, upper, right, left = _lengths_inside(own_x, own_y, other_x, other_y, cx, cy, cos, sin)
    total = lower * (other_y + across) + upper * (other_y - across)
    total += right * (other_x + along) + left * (other_x - along)
    # The edges of this box in the frame of the other one. Its centre is the origin, so opposite edges are as far.
    lower, upper, right, left = _lengths_inside(other_x, other_y, own_x, own_y, -along, -across, cos, -sin)
    total += (lower + upper) * own_y + (right + left) * own_x
    return total / 2


def _lengths_inside(
    box_x: Tensor,
    box_y: Tensor,
    half_x: Tensor,
    half_y: Tensor,
    cx: Tensor,
    cy: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return how much of each edge of a tilted box lies in the box ±box_x, ±box_y: lower, upper, right, left.

    Lower and upper edge run along the tilted box's x, right and left along its y. The line m + t u crosses the slab
    |x| ≤ box_x where t is between (-m_x ± box_x) / u_x, likewise for y.
    """
    lengths = []
    for ux, uy, nx, ny, half_length, distance in (
        (cos, sin, -sin, cos, half_x, half_y),
        (-sin, cos, cos, sin, half_y, half_x),
    ):
        # Infinite where edges are parallel; the caller replaces what comes of such pairs.
        per_x, per_y = 1 / ux, 1 / uy
        reach_x, reach_y = (box_x * per_x).abs(), (box_y * per_y).abs()
        # Both edges of this direction: the middle of the edge is m = c ± distance · n.
        middle_x, middle_y = -cx * per_x, -cy * per_y
        shift_x, shift_y = distance * nx * per_x, distance * ny * per_y
        for x, y in ((middle_x - shift_x, middle_y - shift_y), (middle_x + shift_x, middle_y + shift_y)):
            end = torch.minimum(torch.minimum(x + reach_x, y + reach_y), half_length)
            begin = torch.maximum(torch.maximum(x - reach_x, y - reach_y), -half_length)
            lengths.append((end - begin).clamp_(min=0))
    return lengths[0], lengths[1], lengths[2], lengths[3]
