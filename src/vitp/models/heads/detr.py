"""A detection transformer: queries that look at the maps and become objects, one each, with nothing to suppress.

The design is RT-DETR's (arXiv 2304.08069), which takes from Deformable DETR its attention and two stages, from DAB-DETR
queries that are boxes, and from DINO the noised objects that it learns from at first: self-attention over the coarsest
map, a feature pyramid network, the surest cells as queries, and layers that move their boxes. For oriented boxes the
points that a query looks at turn with its box.

Shapes: B images, Q queries, C classes, D width, S cells of all levels, L levels, h × w cells; K numbers of a box (see
`vitp.models.heads.detr_boxes`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vitp.core.config import SettingsModel, Weight
from vitp.core.errors import ConfigError
from vitp.models.convolution import make_norm
from vitp.models.deformable import MultiScaleDeformableAttention
from vitp.models.heads.detr_boxes import QueryBoxes, Stage
from vitp.models.heads.fpn import DetectionNeck
from vitp.models.heads.rpn import MIN_SIDE

NOWHERE = -1e4
"""Score of a cell in the padding: below all logits, and a number that half precision holds."""

ANCHOR = 4.0
"""Side of the box that a cell starts from, in strides."""

PRIOR = 0.01
"""Probability of a class at the start: nearly all queries are nothing."""

FREQUENCIES = 8
"""Sines that tell a number of a box, from half a wave on 0..1 to 64."""


class DETRSettings(SettingsModel):
    """A detection transformer for boxes or oriented boxes; the defaults are those of RT-DETR-R18."""

    kind: Literal["detr"] = "detr"
    """Which head."""
    width: int = Field(256, gt=0, le=65_536)
    """Channels of levels and queries."""
    heads: int = Field(8, gt=0, le=1024)
    """Attention heads; they share the width."""
    points: int = Field(4, gt=0, le=256)
    """Points that a head looks at on each level."""
    hidden: int = Field(1024, gt=0, le=65_536)
    """Hidden units between the attentions."""
    encoder: int = Field(1, ge=0, le=64)
    """Layers of self-attention over the coarsest map."""
    layers: int = Field(3, gt=0, le=64)
    """Layers that move the queries' boxes; RT-DETR-R50 has 6."""
    queries: int = Field(300, gt=0, le=100_000)
    """Boxes that are looked for in an image: at least as many as it can have objects."""
    finest: int = Field(8, gt=0, le=1024)
    """Finest stride that is looked at; 4 for objects of less than about 16 px."""
    noised: int = Field(100, ge=0, le=100_000)
    """Queries of an image, in training, that are noised objects or beside one: more where it has more objects; 0:
    none."""
    class_cost: Weight = 2.0
    """Weight of the score where queries are assigned to objects."""
    box_weight: Weight = 5.0
    """Weight of differences of centre and sides, in the assignment and in the loss."""
    overlap_weight: Weight = 2.0
    """Weight of 1 - GIoU, or of the distance of oriented boxes, in the assignment and in the loss."""
    score_threshold: float = Field(0.05, ge=0, lt=1)
    """Smallest score of a box at test."""
    detections: int = Field(300, gt=0, le=1_000_000)
    """Most boxes of an image at test."""


class SelfAttention(nn.Module):
    """Attention of queries (or cells) to each other; positions are added to what is compared, not to what is read."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.compared, self.read = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, query_BQD: Tensor, place_BQD: Tensor, allowed_BQQ: Tensor | None = None) -> Tensor:
        """Return what each query read."""
        query, key = self.compared(query_BQD + place_BQD).unflatten(-1, (2, self.heads, -1)).unbind(2)
        value = self.read(query_BQD).unflatten(-1, (self.heads, -1))
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        mask = None if allowed_BQQ is None else allowed_BQQ[:, None]
        read_BQD: Tensor = self.output(
            F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
        )
        return read_BQD


@dataclass(frozen=True)
class SeenLevels:
    """The levels of a batch, their cells one after the other.

    Attributes:
        cells_BSD: Features.
        shapes: Height and width of each level.
        frame: Width and height in pixels that the levels cover.
        unit_B: Longer side of each image in pixels.
    """

    cells_BSD: Tensor
    shapes: list[tuple[int, int]]
    frame: tuple[int, int]
    unit_B: Tensor


class DecoderLayer(nn.Module):
    """Self-attention, a look at the levels, two linear layers; each is added and normalised.

    Args:
        settings: Settings of the head.
        levels: Maps to look at; 0: none, as in the encoder.
    """

    def __init__(self, settings: DETRSettings, levels: int) -> None:
        super().__init__()
        width, heads = settings.width, settings.heads
        self.attention = SelfAttention(width, heads)
        self.look: MultiScaleDeformableAttention | None = None
        if levels:
            self.look = MultiScaleDeformableAttention(
                width, levels=levels, heads=heads, points=settings.points
            )
        self.mix = nn.Sequential(
            nn.Linear(width, settings.hidden), nn.ReLU(), nn.Linear(settings.hidden, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3 if levels else 2))

    def forward(
        self,
        query_BQD: Tensor,
        place_BQD: Tensor,
        seen: tuple[Tensor, Tensor, SeenLevels] | None = None,
        allowed_BQQ: Tensor | None = None,
    ) -> Tensor:
        """Return the queries after the layer.

        Args:
            query_BQD: Queries.
            place_BQD: Where they are.
            seen: Their places and frames on 0..1 of the levels, and the levels.
            allowed_BQQ: Which other queries (the last axis) each one sees; None: all.
        """
        query_BQD = self.norms[0](query_BQD + self.attention(query_BQD, place_BQD, allowed_BQQ))
        if self.look is not None and seen is not None:
            centre_BQ2, frame_BQ22, memory = seen
            looked_BQD = self.look(
                query_BQD + place_BQD, centre_BQ2, memory.cells_BSD, memory.shapes, frame_BQ22
            )
            query_BQD = self.norms[1](query_BQD + looked_BQD)
        mixed_BQD: Tensor = self.norms[-1](query_BQD + self.mix(query_BQD))
        return mixed_BQD


class Say(nn.Module):
    """Queries or cells → class logits, and moves of their boxes, in float32."""

    def __init__(self, width: int, classes: int, numbers: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, classes)
        self.move = nn.Sequential(
            *(nn.Linear(width, width), nn.ReLU()),
            *(nn.Linear(width, width), nn.ReLU()),
            nn.Linear(width, numbers),
        )
        # As in RetinaNet: without it the many queries that hold nothing would make up nearly all of the first losses.
        nn.init.constant_(self.score.bias, -math.log((1 - PRIOR) / PRIOR))
        last = self.move[-1]
        assert isinstance(last, nn.Linear)
        # Boxes begin where they are, and learn to move from there.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, query_BQD: Tensor, boxes_BQK: Tensor, geometry: QueryBoxes) -> Stage:
        """Return the logits and the moved boxes."""
        return Stage(self.score(query_BQD).float(), geometry.moved(boxes_BQK, self.move(query_BQD)))


@dataclass(frozen=True)
class Noised:
    """Queries that are given, in training, beside those that are found.

    Attributes:
        labels_BT: Their classes.
        boxes_BTK: Their boxes.
        real_BT: Whether there is one; a batch is filled up.
        group: So many after each other see each other.
    """

    labels_BT: Tensor
    boxes_BTK: Tensor
    real_BT: Tensor
    group: int

    def allowed(self, found: int) -> Tensor:
        """Return (B, T + Q, T + Q): found queries see each other, these see them and the real ones of their group.

        Args:
            found: Q.
        """
        (batch, count), device = self.real_BT.shape, self.real_BT.device
        number = torch.arange(count + found, device=device)
        of = torch.where(number < count, number // self.group, -1)
        real_BK = torch.cat([self.real_BT, self.real_BT.new_ones(batch, found)], 1)
        mates = (of[:, None] == of) | (of == -1)
        # Everybody sees itself, as a softmax over nothing is NaN.
        return (mates & real_BK[:, None]) | torch.eye(len(number), dtype=torch.bool, device=device)


class DETR(nn.Module):
    """Maps of a pyramid → queries with class logits and boxes.

    Args:
        channels: Channels of the maps.
        strides: Strides of the maps, finest first; there may be one.
        classes: C.
        geometry: Kind of boxes.
        settings: See `DETRSettings`.

    Raises:
        ConfigError: The heads can't share the width.
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        classes: int,
        geometry: QueryBoxes,
        settings: DETRSettings,
    ) -> None:
        super().__init__()
        if settings.width % settings.heads:
            raise ConfigError(
                f"{settings.width} channels can't be shared among {settings.heads} heads",
                where="head.heads",
                fix="choose a divisor of head.width",
            )
        self.settings, self.geometry, width = settings, geometry, settings.width
        self.strides = tuple(s for s in strides if s >= settings.finest) or tuple(strides[-1:])
        self.narrow = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), make_norm("group", width))
            for _ in self.strides
        )
        self.encoder = nn.ModuleList(DecoderLayer(settings, 0) for _ in range(settings.encoder))
        self.fpn = DetectionNeck((width,) * len(self.strides), self.strides, width)
        self.cells = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.propose = Say(width, classes, geometry.numbers)
        # A sine and a cosine of each frequency for the four lengths of a box; an angle's two numbers go in as they are.
        known = 4 * 2 * FREQUENCIES + geometry.numbers - 4
        self.place = nn.Sequential(nn.Linear(known, width), nn.ReLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(DecoderLayer(settings, len(self.strides)) for _ in range(settings.layers))
        self.say = nn.ModuleList(Say(width, classes, geometry.numbers) for _ in range(settings.layers))
        self.labels = nn.Embedding(classes, width)

    def forward(
        self,
        maps: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        noised: Noised | None = None,
        count: int | None = None,
    ) -> list[Stage]:
        """Return what the chosen cells say of themselves, and then each layer's word on the queries, noised ones first.

        Args:
            maps: Maps of the pyramid, finest first.
            sizes: Height and width of each image without padding; a single one is that of all.
            noised: Further queries.
            count: Queries; None: as the settings say.
        """
        memory = self.remember(maps, sizes)
        anchors_BSK, inside_BS = self._anchors(memory, sizes)
        told_BSD = self.cells(memory.cells_BSD)
        said = self.propose(told_BSD, anchors_BSK, self.geometry)
        score_BS = torch.where(inside_BS, said.logits_BQC.amax(-1), NOWHERE)
        best_BQ = score_BS.topk(min(count or self.settings.queries, score_BS.shape[1]), dim=1).indices
        first = Stage(_rows(said.logits_BQC, best_BQ), _rows(said.boxes_BQK, best_BQ))
        # As in Deformable DETR with two stages: the layers don't teach the cells, which have a loss of their own.
        query_BQD, boxes_BQK = _rows(told_BSD, best_BQ).detach(), first.boxes_BQK.detach()
        if noised is not None:
            query_BQD = torch.cat([self.labels(noised.labels_BT).to(query_BQD.dtype), query_BQD], 1)
            boxes_BQK = torch.cat([noised.boxes_BTK, boxes_BQK], 1)
        allowed = None if noised is None else noised.allowed(best_BQ.shape[1])
        return [first, *self._decode(query_BQD, boxes_BQK, memory, allowed)]

    def remember(self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> SeenLevels:
        """Return the cells of the levels that are looked at."""
        kept = list(maps)[-len(self.strides) :]
        levels = [narrow(level) for narrow, level in zip(self.narrow, kept, strict=True)]
        height, width = levels[-1].shape[-2:]
        # Padding is part of the maps but not of the image: places on maps are shares of this frame, boxes of the image.
        frame = (width * self.strides[-1], height * self.strides[-1])
        if len(self.encoder):
            cells_BSD = levels[-1].flatten(2).transpose(1, 2)
            centres_S2, sides_S = self._cells([(height, width)], self.strides[-1:], cells_BSD.device)
            boxes_S4 = torch.cat([centres_S2, sides_S[:, None].expand(-1, 2)], -1) / max(frame)
            place_SD = self.place(self._waves(self.geometry.anchors(boxes_S4)))
            for layer in self.encoder:
                cells_BSD = layer(cells_BSD, place_SD)
            levels[-1] = cells_BSD.transpose(1, 2).unflatten(-1, (height, width))
        # The last level is the neck's own, subsampled one, which is meant for anchors.
        levels = self.fpn(levels)[:-1]
        unit_B = torch.tensor([float(max(size)) for size in sizes], device=levels[0].device)
        shapes = [(level.shape[-2], level.shape[-1]) for level in levels]
        return SeenLevels(
            torch.cat([level.flatten(2) for level in levels], 2).transpose(1, 2), shapes, frame, unit_B
        )

    def _decode(
        self, query_BQD: Tensor, boxes_BQK: Tensor, memory: SeenLevels, allowed_BQQ: Tensor | None
    ) -> list[Stage]:
        stages = []
        unit_B11 = memory.unit_B[:, None, None]
        frame_2 = torch.tensor(memory.frame, device=unit_B11.device, dtype=unit_B11.dtype)
        for layer, say in zip(self.layers, self.say, strict=True):
            place_BQD = self.place(self._waves(boxes_BQK))
            frame_BQ22 = self.geometry.frame(boxes_BQK) * unit_B11[..., None] / frame_2[:, None]
            seen = (boxes_BQK[..., :2] * unit_B11 / frame_2, frame_BQ22, memory)
            query_BQD = layer(query_BQD, place_BQD, seen, allowed_BQQ)
            stages.append(say(query_BQD, boxes_BQK, self.geometry))
            # Each layer learns its own move only, as in Deformable DETR: no gradient flows through boxes of earlier
            # ones.
            boxes_BQK = stages[-1].boxes_BQK.detach()
        return stages

    def _cells(
        self, shapes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return the centres (S, 2) of all cells and the sides (S,) of their boxes, in pixels."""
        centres, sides = [], []
        for (height, width), stride in zip(shapes, strides, strict=True):
            y_h = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) * stride
            x_w = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) * stride
            y_hw, x_hw = torch.meshgrid(y_h, x_w, indexing="ij")
            centres.append(torch.stack([x_hw.flatten(), y_hw.flatten()], -1))
            sides.append(torch.full_like(centres[-1][:, 0], ANCHOR * stride))
        return torch.cat(centres), torch.cat(sides)

    def _anchors(self, memory: SeenLevels, sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return the box that each cell starts from, (B, S, K), and (B, S) whether it lies in its image."""
        centres_S2, sides_S = self._cells(memory.shapes, self.strides, memory.unit_B.device)
        own_S4 = torch.cat([centres_S2, sides_S[:, None].expand(-1, 2)], -1)
        boxes_BSK = torch.stack([self.geometry.anchors(own_S4 / max(size)) for size in sizes])
        limits_B12 = torch.tensor([[size[::-1]] for size in sizes], device=own_S4.device)
        return boxes_BSK, (centres_S2 < limits_B12).all(-1)

    def _waves(self, boxes: Tensor) -> Tensor:
        """Return sines and cosines that tell boxes (…, K)."""
        factor_F = math.pi * 2.0 ** torch.arange(FREQUENCIES, device=boxes.device, dtype=boxes.dtype)
        phase = (boxes[..., :4, None] * factor_F).flatten(-2)
        # An angle comes as cosine and sine already.
        return torch.cat([phase.sin(), phase.cos(), boxes[..., 4:]], -1)

    def table(
        self, maps: Sequence[Tensor], size: tuple[int, int], count: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what the last layer says of images of one size: boxes in pixels (B, Q, 4 or 5), scores (B, Q, C)."""
        last = self(maps, [size], None, count)[-1]
        unit_1 = last.boxes_BQK.new_full((1,), float(max(size)))
        return self.geometry.pixels(last.boxes_BQK, unit_1), last.logits_BQC.sigmoid()

    def rows(self, maps: Sequence[Tensor], size: tuple[int, int], count: int | None = None) -> Tensor:
        """Return `table` as one, (B, 4 + C, Q): centre x and y, sides, scores; of oriented boxes the angle last."""
        boxes_BQK, scores_BQC = self.table(maps, size, count)
        if boxes_BQK.shape[-1] == 4:
            low_BQ2, high_BQ2 = boxes_BQK.chunk(2, -1)
            boxes_BQK = torch.cat([(low_BQ2 + high_BQ2) / 2, high_BQ2 - low_BQ2], -1)
        return torch.cat([boxes_BQK[..., :4], scores_BQC, boxes_BQK[..., 4:]], -1).transpose(1, 2)

    def kept(self, boxes_QK: Tensor, scores_QC: Tensor, sides_Q2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, scores and labels (from 1) of the objects that an image is said to show, by falling score."""
        real_Q1 = (sides_Q2 >= MIN_SIDE).all(-1, keepdim=True)
        row, column = torch.where((scores_QC > self.settings.score_threshold) & real_Q1)
        scores_N = scores_QC[row, column]
        order = scores_N.argsort(descending=True, stable=True)[: self.settings.detections]
        return boxes_QK[row[order]], scores_N[order], column[order] + 1


def _rows(values_BSK: Tensor, index_BQ: Tensor) -> Tensor:
    return values_BSK.gather(1, index_BQ[..., None].expand(-1, -1, values_BSK.shape[-1]))
