"""Oriented boxes: representations and the ways between them.

A rotated box is (centre x, centre y, w, h, angle) in pixels and radians, long edge first ("le90"): w ≥ h and
-π/2 ≤ angle < π/2. The long edge runs along (cos angle, sin angle) with x to the right and *y down*, so that a
positive angle turns the box clockwise as it is seen in the image.

Shapes: N boxes; 4: x1, y1, x2, y2; 5: a rotated box; 8: corners x1, y1, …, x4, y4, clockwise in the image;
P points.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def wrap_angle(angle: Tensor) -> Tensor:
    """Return angles modulo π on [-π/2, π/2): a rectangle looks the same after half a turn."""
    wrapped = torch.remainder(angle + math.pi / 2, math.pi) - math.pi / 2
    # Rounding may land just below a multiple of π on the upper end, which is excluded.
    return torch.where(wrapped >= math.pi / 2, wrapped - math.pi, wrapped)


def long_edge_first(boxes_N5: Tensor) -> Tensor:
    """Return the same rectangles with w ≥ h and angles on [-π/2, π/2). The angle of a square is kept."""
    cx, cy, w, h, angle = boxes_N5.unbind(-1)
    swap = h > w
    angle = wrap_angle(torch.where(swap, angle + math.pi / 2, angle))
    return torch.stack([cx, cy, torch.where(swap, h, w), torch.where(swap, w, h), angle], -1)


def quads_of(boxes_N5: Tensor) -> Tensor:
    """Return the corners of rotated boxes, (N, 8), clockwise in the image, from the upper left one at angle 0."""
    cx, cy, w, h, angle = boxes_N5.unbind(-1)
    along_x, along_y = torch.cos(angle) * w / 2, torch.sin(angle) * w / 2
    across_x, across_y = -torch.sin(angle) * h / 2, torch.cos(angle) * h / 2
    corners = [
        value
        for u, v in ((-1, -1), (1, -1), (1, 1), (-1, 1))
        for value in (cx + u * along_x + v * across_x, cy + u * along_y + v * across_y)
    ]
    return torch.stack(corners, -1)


def boxes_of_quads(quads_N8: Tensor) -> Tensor:
    """Return the smallest rectangle around each quad as a rotated box, (N, 5), long edge first.

    A quad of one point gives w = h = 0, one of points in a line gives h = 0.
    """
    return boxes_of_points(quads_N8.unflatten(-1, (4, 2)))


def boxes_of_points(points_NP2: Tensor) -> Tensor:
    """Return the smallest rectangle around each set of points, (N, 5).

    One side of the smallest rectangle lies on an edge of the convex hull, and every edge of the hull joins two of
    the points: so all pairs are tried, at once for all sets. Meant for few points (quads).
    """
    count = points_NP2.shape[-2]
    # In double, and relative to a corner: cancellation far from the origin would tilt small boxes.
    points = in_double(points_NP2)
    origin_N12 = points[..., :1, :]
    points = points - origin_N12
    first, second = torch.combinations(torch.arange(count, device=points.device), 2).unbind(1)
    edges = points[..., second, :] - points[..., first, :]
    lengths = edges.norm(dim=-1, keepdim=True)
    level = torch.tensor((1.0, 0.0), dtype=points.dtype, device=points.device)
    # Two points at one place have no direction; the horizontal stands in, and another edge will be smaller or equal.
    along = torch.where(lengths > 0, edges / lengths.clamp(min=torch.finfo(points.dtype).tiny), level)
    across = torch.stack([-along[..., 1], along[..., 0]], -1)
    frame_NE22 = torch.stack([along, across], -2)
    # (N, E, 2, P): the points in the frame of each edge.
    inside = frame_NE22 @ points.transpose(-1, -2).unsqueeze(-3)
    low, high = inside.amin(-1), inside.amax(-1)
    sizes = high - low
    best = sizes.prod(-1).argmin(-1)
    pick = best[..., None, None].expand(*best.shape, 1, 2)
    size = sizes.gather(-2, pick).squeeze(-2)
    middle = ((low + high) / 2).gather(-2, pick)
    frame = frame_NE22.gather(-3, best[..., None, None, None].expand(*best.shape, 1, 2, 2)).squeeze(-3)
    centre = (middle @ frame + origin_N12).squeeze(-2)
    angle = torch.atan2(frame[..., 0, 1], frame[..., 0, 0])
    boxes = torch.cat([centre, size, angle[..., None]], -1)
    return long_edge_first(boxes.to(points_NP2))


def hulls_of(boxes_N5: Tensor) -> Tensor:
    """Return the axis-aligned boxes x1, y1, x2, y2 around rotated boxes, (N, 4)."""
    cx, cy, w, h, angle = boxes_N5.unbind(-1)
    cos, sin = torch.cos(angle).abs(), torch.sin(angle).abs()
    half_x, half_y = (w * cos + h * sin) / 2, (w * sin + h * cos) / 2
    return torch.stack([cx - half_x, cy - half_y, cx + half_x, cy + half_y], -1)


def hulls_of_quads(quads_N8: Tensor) -> Tensor:
    """Return the axis-aligned boxes around quads, (N, 4)."""
    points = quads_N8.unflatten(-1, (4, 2))
    return torch.cat([points.amin(-2), points.amax(-2)], -1)


def boxes_of_hulls(hulls_N4: Tensor) -> Tensor:
    """Return axis-aligned boxes as rotated ones, (N, 5): angle 0 where they are wide, -π/2 where they are high."""
    x1, y1, x2, y2 = hulls_N4.unbind(-1)
    return long_edge_first(
        torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, torch.zeros_like(x1)], -1)
    )


def in_double(values: Tensor) -> Tensor:
    """Return numbers as float64: on the CPU where the device has no such type (`mps`)."""
    return values.cpu().double() if values.device.type == "mps" else values.double()


def areas_of(boxes_N5: Tensor) -> Tensor:
    """Return the areas, (N,), in pixels²; negative sizes count as 0."""
    return boxes_N5[..., 2].clamp(min=0) * boxes_N5[..., 3].clamp(min=0)
