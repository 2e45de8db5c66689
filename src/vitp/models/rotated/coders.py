"""Box coders: the two parametrisations of Oriented R-CNN (Xie et al., ICCV 2021).

Shapes: N boxes; 4: x1, y1, x2, y2; 5: a rotated box (see `vitp.models.rotated.boxes`), 6: midpoint offsets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vitp.models.rotated.boxes import long_edge_first, wrap_angle

LARGEST_LOG = math.log(1000 / 16)
"""A box can't become more than 62.5 times larger or smaller: one bad output would make all of them infinite."""

SMALLEST_SIDE = 1e-3
"""Pixels; sides are at least this long where they are divided by or stand in a logarithm."""

STRAIGHT = 1e-4
"""Radians; a box that is tilted by less counts as axis-aligned (see `midpoint_offsets`)."""


def midpoint_offsets(boxes_N5: Tensor) -> Tensor:
    """Return (N, 6): centre x, centre y, width and height of the hull, Δα and Δβ (figure 3 of the paper).

    The topmost corner lies Δα · width right of the middle of the hull's upper side, the rightmost one Δβ · height
    below the middle of its right side; both are on [-½, ½]. An axis-aligned box has two topmost and two rightmost
    corners: the right and the lower one are taken, Δα = Δβ = ½.
    """
    cx, cy, w, h, angle = long_edge_first(boxes_N5).unbind(-1)
    cos, sin = torch.cos(angle), torch.sin(angle).abs()
    width, height = w * cos + h * sin, w * sin + h * cos
    # Corner (w, -h) of the box is on top for angles below 0, corner (-w, -h) above 0: the offsets change sign.
    sign = torch.where(angle > 0, -1.0, 1.0).to(boxes_N5.dtype)
    alpha = sign * (w * cos - h * sin) / 2 / width.clamp(min=SMALLEST_SIDE)
    beta = sign * (h * cos - w * sin) / 2 / height.clamp(min=SMALLEST_SIDE)
    straight = torch.minimum(angle.abs(), math.pi / 2 - angle.abs()) < STRAIGHT
    half = torch.full_like(alpha, 0.5)
    alpha, beta = torch.where(straight, half, alpha), torch.where(straight, half, beta)
    return torch.stack([cx, cy, width, height, alpha, beta], -1)


def boxes_of_midpoint_offsets(offsets_N6: Tensor) -> Tensor:
    """Return rotated boxes, (N, 5), of hull centre, hull size, Δα, Δβ.

    Any Δα, Δβ on [-½, ½] give a parallelogram; it becomes a rectangle by stretching its shorter diagonal to the
    length of the longer one, as in the paper.
    """
    cx, cy, width, height, alpha, beta = offsets_N6.unbind(-1)
    alpha, beta = alpha.clamp(-0.5, 0.5), beta.clamp(-0.5, 0.5)
    top = torch.stack([alpha * width, -height / 2], -1)
    right = torch.stack([width / 2, beta * height], -1)
    top_length, right_length = top.norm(dim=-1, keepdim=True), right.norm(dim=-1, keepdim=True)
    longest = torch.maximum(top_length, right_length)
    top = top * longest / top_length.clamp(min=SMALLEST_SIDE)
    right = right * longest / right_length.clamp(min=SMALLEST_SIDE)
    # The four corners are ±top and ±right about the centre, so these are two neighbouring edges.
    falling, rising = right - top, right + top
    angle = torch.atan2(falling[..., 1], falling[..., 0])
    boxes = torch.stack([cx, cy, falling.norm(dim=-1), rising.norm(dim=-1), angle], -1)
    return long_edge_first(boxes)


@dataclass(frozen=True)
class MidpointOffsetCoder:
    """Axis-aligned anchors ↔ rotated boxes, six numbers each: the oriented region proposal network's.

    Attributes:
        scales: What dx, dy, dw, dh, Δα, Δβ are divided by for the network.
    """

    scales: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 0.5, 0.5)

    def encode(self, anchors_N4: Tensor, boxes_N5: Tensor) -> Tensor:
        """Return what the network should say, (N, 6), to turn anchors into boxes."""
        ax, ay, aw, ah = _centre_size(anchors_N4)
        cx, cy, width, height, alpha, beta = midpoint_offsets(boxes_N5).unbind(-1)
        deltas = [
            (cx - ax) / aw,
            (cy - ay) / ah,
            torch.log(width.clamp(min=SMALLEST_SIDE) / aw),
            torch.log(height.clamp(min=SMALLEST_SIDE) / ah),
            alpha,
            beta,
        ]
        return torch.stack(deltas, -1) / anchors_N4.new_tensor(self.scales)

    def decode(self, anchors_N4: Tensor, deltas_N6: Tensor) -> Tensor:
        """Return the rotated boxes, (N, 5), that the network means."""
        ax, ay, aw, ah = _centre_size(anchors_N4)
        dx, dy, dw, dh, alpha, beta = (deltas_N6 * deltas_N6.new_tensor(self.scales)).unbind(-1)
        offsets = [
            ax + dx * aw,
            ay + dy * ah,
            aw * torch.exp(dw.clamp(-LARGEST_LOG, LARGEST_LOG)),
            ah * torch.exp(dh.clamp(-LARGEST_LOG, LARGEST_LOG)),
            alpha,
            beta,
        ]
        return boxes_of_midpoint_offsets(torch.stack(offsets, -1))


@dataclass(frozen=True)
class EdgeSwapCoder:
    """Rotated proposals ↔ rotated boxes, five numbers each, in the frame of the proposal.

    The long edge of the target may lie nearer to the short edge of the proposal than to its long one. Then the
    edges change roles, so that no angle has to be learned beyond ±π/4 and the jump at ±π/2 does no harm.

    Attributes:
        scales: What dx, dy, dw, dh, da are divided by for the network.
    """

    scales: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2, 0.1)

    def encode(self, proposals_N5: Tensor, boxes_N5: Tensor) -> Tensor:
        """Return what the network should say, (N, 5), to turn proposals into boxes."""
        px, py, pw, ph, pa = _safe(proposals_N5)
        gx, gy, gw, gh, ga = boxes_N5.unbind(-1)
        cos, sin = torch.cos(pa), torch.sin(pa)
        straight, turned = wrap_angle(ga - pa), wrap_angle(ga - pa + math.pi / 2)
        keep = straight.abs() <= turned.abs()
        w, h = torch.where(keep, gw, gh), torch.where(keep, gh, gw)
        deltas = [
            (cos * (gx - px) + sin * (gy - py)) / pw,
            (cos * (gy - py) - sin * (gx - px)) / ph,
            torch.log(w.clamp(min=SMALLEST_SIDE) / pw),
            torch.log(h.clamp(min=SMALLEST_SIDE) / ph),
            torch.where(keep, straight, turned),
        ]
        return torch.stack(deltas, -1) / proposals_N5.new_tensor(self.scales)

    def decode(self, proposals_N5: Tensor, deltas_N5: Tensor) -> Tensor:
        """Return the rotated boxes, (N, 5), that the network means, long edge first."""
        px, py, pw, ph, pa = _safe(proposals_N5)
        dx, dy, dw, dh, da = (deltas_N5 * deltas_N5.new_tensor(self.scales)).unbind(-1)
        cos, sin = torch.cos(pa), torch.sin(pa)
        along, across = dx * pw, dy * ph
        boxes = [
            px + cos * along - sin * across,
            py + sin * along + cos * across,
            pw * torch.exp(dw.clamp(-LARGEST_LOG, LARGEST_LOG)),
            ph * torch.exp(dh.clamp(-LARGEST_LOG, LARGEST_LOG)),
            pa + da,
        ]
        return long_edge_first(torch.stack(boxes, -1))


def _centre_size(hulls_N4: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = hulls_N4.unbind(-1)
    return (
        (x1 + x2) / 2,
        (y1 + y2) / 2,
        (x2 - x1).clamp(min=SMALLEST_SIDE),
        (y2 - y1).clamp(min=SMALLEST_SIDE),
    )


def _safe(boxes_N5: Tensor) -> tuple[Tensor, ...]:
    cx, cy, w, h, angle = boxes_N5.unbind(-1)
    return cx, cy, w.clamp(min=SMALLEST_SIDE), h.clamp(min=SMALLEST_SIDE), angle
