"""The boxes of a DETR head, upright or oriented, as numbers that a network moves, and how far two of them are apart.

Lengths are parts of an image's longer side, so that a turned image has turned boxes.

Shapes: B images, Q queries, N objects, M ignored places, `…` any; K numbers of a box: 4 (centre x and y, width,
height), or 6 (these and the cosine and sine of twice the angle, see `vitp.models.rotated.gaussian`); 5: a rotated box.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vitp.models.heads.oriented_targets import OrientedTruth
from vitp.models.heads.rpn import INSIDE, ImageTruth, near
from vitp.models.rotated.gaussian import doubled, hellinger, other_description, undoubled
from vitp.models.rotated.iou import paired_rotated_iou, rotated_iou

Truth = ImageTruth | OrientedTruth

LEAST = 1e-5
"""Coordinates stay this far from 0 and 1 where their logits are taken."""

HIDDEN_IOU = 0.5
"""A query that overlaps an ignored place as far isn't told that there is nothing."""

ANGLE = 0.1
"""Weight of the angle's difference beside those of centre and sides: squares learn their angle by it alone."""


class QueryBoxes(ABC):
    """How boxes are written, moved and compared.

    Attributes:
        numbers: K.
    """

    numbers: int

    def moved(self, boxes: Tensor, moves: Tensor) -> Tensor:
        """Return boxes (…, K) that differ by `moves` in the logits of centre and sides."""
        place = (torch.logit(boxes[..., :4].float(), eps=LEAST) + moves[..., :4].float()).sigmoid()
        return self._turned(place, boxes[..., 4:].float(), moves[..., 4:].float())

    @abstractmethod
    def _turned(self, place: Tensor, angle: Tensor, moves: Tensor) -> Tensor:
        """Return whole boxes of centre and sides (…, 4), the old angle and its moves (…, K - 4)."""

    @abstractmethod
    def anchors(self, boxes_A4: Tensor) -> Tensor:
        """Return upright boxes (centre, sides) as (A, K)."""

    @abstractmethod
    def frame(self, boxes: Tensor) -> Tensor:
        """Return (…, 2, 2): half the edges of boxes as columns."""

    @abstractmethod
    def wanted(self, truth: Truth, unit: float) -> Tensor:
        """Return an image's objects, (N, K); `unit` is the image's longer side in pixels."""

    @abstractmethod
    def pixels(self, boxes: Tensor, unit_B: Tensor) -> Tensor:
        """Return boxes (B, Q, K) in pixels: (B, Q, 4) corners or (B, Q, 5) rotated boxes."""

    @abstractmethod
    def differences(self, boxes: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Return sums of differences of the numbers, and 1 - overlap in a form with a slope everywhere; broadcast."""

    @abstractmethod
    def overlap(self, boxes_P: Tensor, truth_P: Tensor) -> Tensor:
        """Return (P,) the IoU of pairs (P, K), without a gradient."""

    @abstractmethod
    def hidden(self, found_Q: Tensor, truth: Truth) -> Tensor:
        """Return (Q,) bool: which boxes in pixels lie in ignored places, or overlap one as an object would."""

    def noised(self, boxes: Tensor, least: Tensor) -> Tensor:
        """Return boxes (…, K) shifted, stretched and turned at random: by `least` (…) to `least` + 1; 2 is far."""
        sign = torch.randint(0, 2, (*boxes.shape[:-1], 5), device=boxes.device) * 2 - 1
        noise = sign * (least[..., None] + torch.rand(sign.shape, device=boxes.device))
        shift = (self.frame(boxes) * noise[..., None, :2] / 2).sum(-1)
        place = torch.cat([boxes[..., :2] + shift, boxes[..., 2:4] * (noise[..., 2:4] / 2).exp()], -1)
        return torch.cat([place.clamp(LEAST, 1 - LEAST), self._turned_by(boxes, noise[..., 4])], -1)

    def _turned_by(self, boxes: Tensor, turn: Tensor) -> Tensor:
        return boxes[..., 4:]


class UprightBoxes(QueryBoxes):
    """Boxes with edges along the image's."""

    numbers = 4

    def _turned(self, place: Tensor, angle: Tensor, moves: Tensor) -> Tensor:
        return place

    def anchors(self, boxes_A4: Tensor) -> Tensor:
        """See `QueryBoxes.anchors`."""
        return boxes_A4

    def frame(self, boxes: Tensor) -> Tensor:
        """See `QueryBoxes.frame`."""
        return torch.diag_embed(boxes[..., 2:4] / 2)

    def wanted(self, truth: Truth, unit: float) -> Tensor:
        """See `QueryBoxes.wanted`."""
        assert isinstance(truth, ImageTruth)
        low_N2, high_N2 = truth.boxes_N4.chunk(2, -1)
        return torch.cat([(low_N2 + high_N2) / 2, high_N2 - low_N2], -1) / unit

    def pixels(self, boxes: Tensor, unit_B: Tensor) -> Tensor:
        """See `QueryBoxes.pixels`."""
        return _corners(boxes) * unit_B[:, None, None]

    def differences(self, boxes: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """See `QueryBoxes.differences`: 1 - GIoU."""
        own, other = _corners(boxes), _corners(truth)
        shared = _shared(own, other)
        hull = _area(torch.minimum(own[..., :2], other[..., :2]), torch.maximum(own[..., 2:], other[..., 2:]))
        union = boxes[..., 2:].prod(-1) + truth[..., 2:].prod(-1) - shared
        # Boxes without an area have neither overlap nor hull; the guards keep NaN out of the loss.
        giou = shared / union.clamp(min=1e-9) - (hull - union) / hull.clamp(min=1e-9)
        return (boxes - truth).abs().sum(-1), 1 - giou

    @torch.no_grad()
    def overlap(self, boxes_P: Tensor, truth_P: Tensor) -> Tensor:
        """See `QueryBoxes.overlap`."""
        shared = _shared(_corners(boxes_P), _corners(truth_P))
        return shared / (boxes_P[..., 2:].prod(-1) + truth_P[..., 2:].prod(-1) - shared).clamp(min=1e-9)

    @torch.no_grad()
    def hidden(self, found_Q: Tensor, truth: Truth) -> Tensor:
        """See `QueryBoxes.hidden`."""
        assert isinstance(truth, ImageTruth)
        return near(found_Q, truth.ignored_M4, HIDDEN_IOU, truth.size)


class OrientedBoxes(QueryBoxes):
    """Boxes at any angle; either pair of edges may stand first."""

    numbers = 6

    def _turned(self, place: Tensor, angle: Tensor, moves: Tensor) -> Tensor:
        return torch.cat([place, F.normalize(angle + moves, dim=-1)], -1)

    def anchors(self, boxes_A4: Tensor) -> Tensor:
        """See `QueryBoxes.anchors`: angle 0."""
        return torch.cat([boxes_A4, torch.ones_like(boxes_A4[:, :1]), torch.zeros_like(boxes_A4[:, :1])], -1)

    def frame(self, boxes: Tensor) -> Tensor:
        """See `QueryBoxes.frame`."""
        # Boxes hold cosine and sine of twice their angle.
        angle = torch.atan2(boxes[..., 5], boxes[..., 4]) / 2
        cos, sin = angle.cos(), angle.sin()
        turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        return turn * boxes[..., None, 2:4] / 2

    def wanted(self, truth: Truth, unit: float) -> Tensor:
        """See `QueryBoxes.wanted`."""
        assert isinstance(truth, OrientedTruth)
        boxes_N6 = doubled(truth.boxes_N5)
        return torch.cat([boxes_N6[:, :4] / unit, boxes_N6[:, 4:]], -1)

    def pixels(self, boxes: Tensor, unit_B: Tensor) -> Tensor:
        """See `QueryBoxes.pixels`."""
        return undoubled(torch.cat([boxes[..., :4] * unit_B[:, None, None], boxes[..., 4:]], -1))

    def differences(self, boxes: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """See `QueryBoxes.differences`: of the nearer of the truth's two descriptions, and Hellinger's distance."""
        one, two = (_weighted(boxes, each) for each in (truth, other_description(truth)))
        return torch.minimum(one, two), hellinger(boxes, truth)

    @torch.no_grad()
    def overlap(self, boxes_P: Tensor, truth_P: Tensor) -> Tensor:
        """See `QueryBoxes.overlap`."""
        return paired_rotated_iou(undoubled(boxes_P), undoubled(truth_P))

    @torch.no_grad()
    def hidden(self, found_Q: Tensor, truth: Truth) -> Tensor:
        """See `QueryBoxes.hidden`."""
        assert isinstance(truth, OrientedTruth)
        if not len(truth.ignored_M5):
            return torch.zeros(len(found_Q), dtype=torch.bool, device=found_Q.device)
        ignored_M5 = truth.ignored_M5.to(found_Q.dtype)
        hidden_Q: Tensor = (rotated_iou(found_Q, ignored_M5) >= HIDDEN_IOU).any(1)
        return hidden_Q | (rotated_iou(found_Q, ignored_M5, "iof") >= INSIDE).any(1)

    def _turned_by(self, boxes: Tensor, turn: Tensor) -> Tensor:
        angle = torch.atan2(boxes[..., 5], boxes[..., 4]) + turn * (math.pi / 4)
        return torch.stack([angle.cos(), angle.sin()], -1)


def _weighted(boxes: Tensor, truth: Tensor) -> Tensor:
    apart = (boxes - truth).abs()
    return apart[..., :4].sum(-1) + ANGLE * apart[..., 4:].sum(-1)


def _corners(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[..., :2] - boxes[..., 2:4] / 2, boxes[..., :2] + boxes[..., 2:4] / 2], -1)


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp(min=0).prod(-1)


@dataclass(frozen=True)
class Stage:
    """What one layer says of all queries.

    Attributes:
        logits_BQC: Of the classes; each is there or not.
        boxes_BQK: See `QueryBoxes`.
    """

    logits_BQC: Tensor
    boxes_BQK: Tensor


def _shared(own: Tensor, other: Tensor) -> Tensor:
    return _area(torch.maximum(own[..., :2], other[..., :2]), torch.minimum(own[..., 2:], other[..., 2:]))
