"""Rectangles as Gaussians: a distance of oriented boxes that is smooth everywhere and knows no first edge.

A box is here (centre x, centre y, w, h, c, s): instead of an angle θ it has (c, s) = (cos 2θ, sin 2θ). Half a turn
leaves these numbers alone, and there is no place where they jump. The same rectangle has two descriptions,
(w, h, c, s) and (h, w, -c, -s); a square has one more freedom than its corners tell.

The Gaussian has the rectangle's mean and the covariance of points spread evenly over it, R diag(w², h²) Rᵀ / 12,
which both descriptions share.

Shapes: `…` any; 6: a box as above; 5: a rotated box (see `vitp.models.rotated.boxes`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitp.models.rotated.boxes import long_edge_first

SHORTEST = 1e-6
"""Sides are at least this long where they are divided by."""

_ROUNDING = 1e-7
"""Keeps the slope of a square root finite where boxes are equal."""


def doubled(boxes_N5: Tensor) -> Tensor:
    """Return rotated boxes with the sine and cosine of twice the angle, (…, 6)."""
    twice = 2 * boxes_N5[..., 4:]
    return torch.cat([boxes_N5[..., :4], twice.cos(), twice.sin()], -1)


def undoubled(boxes_N6: Tensor) -> Tensor:
    """Return rotated boxes, (…, 5), long edge first."""
    angle = torch.atan2(boxes_N6[..., 5:], boxes_N6[..., 4:5]) / 2
    return long_edge_first(torch.cat([boxes_N6[..., :4], angle], -1))


def other_description(boxes_N6: Tensor) -> Tensor:
    """Return the same rectangles with width and height in each other's place, (…, 6)."""
    cx, cy, w, h, cos, sin = boxes_N6.unbind(-1)
    return torch.stack([cx, cy, h, w, -cos, -sin], -1)


def bhattacharyya(first: Tensor, second: Tensor) -> Tensor:
    """Return the Bhattacharyya distance of boxes' Gaussians, (…), from 0 on; both (…, 6) are broadcast.

    ⅛ Δᵀ Σ⁻¹ Δ + ½ ln(|Σ| / √(|Σ₁| |Σ₂|)) with Δ between the means and Σ = (Σ₁ + Σ₂) / 2.
    """
    # The determinants are differences of squared areas: in single precision thin boxes would lose their digits.
    first, second = first.double(), second.double()
    own, other = _covariance(first), _covariance(second)
    xx, yy, xy = ((a + b) / 2 for a, b in zip(own[:3], other[:3], strict=True))
    determinant = _determinant(xx, yy, xy)
    dx, dy = first[..., 0] - second[..., 0], first[..., 1] - second[..., 1]
    # Δᵀ Σ⁻¹ Δ, the inverse of two by two numbers written out.
    apart = (yy * dx**2 - 2 * xy * dx * dy + xx * dy**2) / determinant
    return apart / 8 + (determinant / (own[3] * other[3]).sqrt()).log() / 2


def hellinger(first: Tensor, second: Tensor) -> Tensor:
    """Return the Hellinger distance of boxes' Gaussians, (…) on 0..1, in the boxes' number type.

    1 minus it is ProbIoU (arXiv 2106.06072), which follows the overlap of boxes closely.
    """
    distance = bhattacharyya(first, second).clamp(min=0)
    # √(1 - exp(-D)); `expm1` keeps the digits of a small D.
    return (_ROUNDING - torch.expm1(-distance)).sqrt().to(first.dtype)


def _covariance(boxes_N6: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the covariances' xx, yy and xy, and their determinant."""
    _, _, w, h, cos, sin = boxes_N6.unbind(-1)
    # The variance of a side's points: its square / 12.
    along, across = w.clamp(min=SHORTEST) ** 2 / 12, h.clamp(min=SHORTEST) ** 2 / 12
    mean, half = (along + across) / 2, (along - across) / 2
    xx, yy, xy = mean + half * cos, mean - half * cos, half * sin
    return xx, yy, xy, _determinant(xx, yy, xy)


def _determinant(xx: Tensor, yy: Tensor, xy: Tensor) -> Tensor:
    # That of the smallest rectangle at least: rounding can't make it 0 or negative.
    return (xx * yy - xy**2).clamp(min=SHORTEST**4 / 144)
