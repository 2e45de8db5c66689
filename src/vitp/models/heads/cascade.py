"""Box heads of Faster R-CNN (one stage) and Cascade R-CNN (Cai and Vasconcelos, CVPR 2018; three stages).

A stage scores regions and moves their boxes; the next one learns from the moved boxes with a stricter match.
torchvision's matcher, sampler, box coder and two-layer head are used throughout.

Shapes: B images, N proposals or objects of an image, R regions of the whole batch, C classes, K = C + 1 with
the background first, D channels, P × P cells of a region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from vitp.core.config import Positive, SettingsModel
from vitp.models.heads.fpn import RegionPool
from vitp.models.heads.rpn import ImageTruth, near, real_boxes
from vitp.models.heads.sampling import BatchSampler, counts_of, true_rows


class StageSettings(SettingsModel):
    """One stage."""

    iou: float = Field(0.5, gt=0, le=1)
    """A region holds an object from this overlap (IoU) on."""
    box_weights: tuple[Positive, Positive, Positive, Positive] = (10.0, 10.0, 5.0, 5.0)
    """Factors on the differences x, y, width and height: later stages move boxes less."""
    loss_weight: float = Field(1.0, ge=0, le=1e6)
    """Weight of the stage's losses in the total loss."""


FASTER_STAGES = (StageSettings(),)
CASCADE_STAGES = (
    StageSettings(),
    StageSettings(iou=0.6, box_weights=(20.0, 20.0, 10.0, 10.0), loss_weight=0.5),
    StageSettings(iou=0.7, box_weights=(30.0, 30.0, 15.0, 15.0), loss_weight=0.25),
)


class BoxSettings(SettingsModel):
    """Box head."""

    kind: Literal["faster", "cascade"] = "cascade"
    """`faster`: one stage that moves boxes separately for each class; `cascade`: three stages that move
    them alike for all classes."""
    stages: tuple[StageSettings, ...] | None = Field(None, min_length=1)
    """Stages that replace those of `kind`. More than one move boxes alike for all classes."""
    pool_size: int = Field(7, gt=0, le=256)
    """Cells on a side of a pooled region."""
    sampling: int = Field(2, gt=0, le=64)
    """Sampling points of a cell in each direction."""
    canonical_size: float = Field(224.0, gt=0, le=100_000)
    """Side in pixels of the regions that are pooled at stride 16."""
    aligned: bool = True
    """Shift the sampling points by half a pixel, so that they lie at the centres of pixels."""
    hidden: int = Field(1024, gt=0, le=65_536)
    """Width of the two hidden layers."""
    samples: int = Field(512, gt=0, le=1_000_000)
    """Regions of an image in a stage's loss."""
    positive_share: float = Field(0.25, gt=0, le=1)
    """Largest share of these regions that hold objects."""
    smooth_l1_beta: float = Field(1.0, gt=0, le=1000)
    """Difference at which the box loss turns from square to linear."""
    score_threshold: float = Field(0.05, ge=0, lt=1)
    """Smallest score of a box at test."""
    nms_iou: float = Field(0.5, gt=0, le=1)
    """Overlap (IoU) within a class above which the weaker of two boxes is dropped."""
    detections: int = Field(100, gt=0, le=1_000_000)
    """Most boxes of an image at test."""

    def all_stages(self) -> tuple[StageSettings, ...]:
        """The stages in order."""
        return self.stages or (CASCADE_STAGES if self.kind == "cascade" else FASTER_STAGES)


@dataclass(frozen=True)
class Samples:
    """Regions that a stage learns from, one entry an image.

    Attributes:
        boxes: (N, 4).
        labels: (N,) 0 background, 1 … C.
        matched: (N,) index of the object in the image's truth; means nothing for background.
        is_truth: (N,) bool: the region is an object's own box, which was added to the proposals.
        with_object: Rows whose label is not the background, rising.
    """

    boxes: list[Tensor]
    labels: list[Tensor]
    matched: list[Tensor]
    is_truth: list[Tensor]
    with_object: list[Tensor]

    def positives(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return boxes and `matched` of the regions that hold an object."""
        boxes, matched = (
            [table[rows] for table, rows in zip(tables, self.with_object, strict=True)]
            for tables in (self.boxes, self.matched)
        )
        return boxes, matched


@dataclass(frozen=True)
class Found:
    """Objects found in one image, best first.

    Attributes:
        boxes_N4: In pixels.
        scores_N: On 0..1.
        labels_N: 1 … C.
    """

    boxes_N4: Tensor
    scores_N: Tensor
    labels_N: Tensor


class BoxStage(nn.Module):
    """Regions → scores and moved boxes, and how to learn both.

    Args:
        channels: D.
        classes: C.
        class_agnostic: Whether one move serves all classes.
        stage: Match and scale.
        settings: Settings of the whole head.
    """

    def __init__(
        self, channels: int, classes: int, class_agnostic: bool, stage: StageSettings, settings: BoxSettings
    ) -> None:
        super().__init__()
        self.classes, self.class_agnostic, self.iou = classes, class_agnostic, stage.iou
        self.beta = settings.smooth_l1_beta
        self.layers = TwoMLPHead(channels * settings.pool_size**2, settings.hidden)
        self.score = nn.Linear(settings.hidden, classes + 1)
        self.move = nn.Linear(settings.hidden, 4 if class_agnostic else 4 * (classes + 1))
        # As Fast R-CNN starts: nearly uniform scores, boxes that stay where the proposals are.
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.normal_(self.move.weight, std=0.001)
        nn.init.zeros_(self.score.bias)
        nn.init.zeros_(self.move.bias)
        self.coder = BoxCoder(stage.box_weights)
        # Two equal thresholds: no region lies undecided between object and background.
        self.matcher = Matcher(stage.iou, stage.iou)
        self.sampler = BatchSampler(settings.samples, settings.positive_share)

    def forward(self, regions_RDPP: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (R, K) and moves (R, 4) or (R, K, 4), in float32: boxes are decoded from them."""
        hidden_RD = self.layers(regions_RDPP)
        logits_RK, moves = self.score(hidden_RD).float(), self.move(hidden_RD).float()
        return logits_RK, moves if self.class_agnostic else moves.unflatten(1, (-1, 4))

    @torch.no_grad()
    def sample(self, proposals: Sequence[Tensor], truths: Sequence[ImageTruth]) -> Samples:
        """Return regions to learn from: proposals and the objects' own boxes, matched and drawn."""
        boxes, labels, matched, is_truth = [], [], [], []
        for proposals_N4, truth in zip(proposals, truths, strict=True):
            # Without the objects' own boxes there would be next to nothing to learn from until the proposals are good.
            boxes.append(torch.cat([proposals_N4, truth.boxes_N4.to(proposals_N4.dtype)]))
            labels_N, matched_N = self._match(boxes[-1], truth)
            labels.append(labels_N)
            matched.append(matched_N)
            is_truth.append(torch.arange(len(boxes[-1]), device=labels_N.device) >= len(proposals_N4))
        drawn = self.sampler.draw(labels)

        def taken(tables: list[Tensor]) -> list[Tensor]:
            return [table[rows] for table, rows in zip(tables, drawn.rows, strict=True)]

        # Both are sorted, so a search finds the places; a mask's number of rows would have to be asked of the device.
        both = zip(drawn.rows, drawn.positives, strict=True)
        with_object = [torch.searchsorted(rows, positives) for rows, positives in both]
        return Samples(taken(boxes), taken(labels), taken(matched), taken(is_truth), with_object)

    def _match(self, boxes_N4: Tensor, truth: ImageTruth) -> tuple[Tensor, Tensor]:
        """Return (N,) labels, -1 where a box counts for nothing, and (N,) indices of objects."""
        labels_N = torch.zeros(len(boxes_N4), dtype=torch.int64, device=boxes_N4.device)
        matched_N = torch.zeros_like(labels_N)
        if len(truth.boxes_N4) and len(boxes_N4):
            found_N = self.matcher(box_iou(truth.boxes_N4.to(boxes_N4.dtype), boxes_N4))
            matched_N = found_N.clamp(min=0)
            labels_N = torch.where(found_N >= 0, truth.labels_N[matched_N], labels_N)
        nothing_N = (labels_N == 0) & near(boxes_N4, truth.ignored_M4, self.iou)
        return labels_N.masked_fill(nothing_N, -1), matched_N

    def losses(
        self, logits_RK: Tensor, moves: Tensor, samples: Samples, truths: Sequence[ImageTruth]
    ) -> tuple[Tensor, Tensor]:
        """Return sums over images of the mean losses over each image's regions: class, box.

        As in Fast R-CNN the box loss is divided by all regions, not by those that hold objects.
        """
        weight_R = torch.cat(
            [labels_N.new_ones(len(labels_N)) / max(len(labels_N), 1) for labels_N in samples.labels]
        )
        labels_R = torch.cat(samples.labels)
        class_loss = (F.cross_entropy(logits_RK, labels_R, reduction="none") * weight_R).sum()
        starts = accumulate([0, *(len(labels_N) for labels_N in samples.labels[:-1])])
        kept = torch.cat([rows + start for rows, start in zip(samples.with_object, starts, strict=True)])
        boxes, matched = samples.positives()
        wanted_R4 = torch.cat(
            [
                self.coder.encode_single(truth.boxes_N4[matched_N].to(boxes_N4.dtype), boxes_N4)
                for truth, boxes_N4, matched_N in zip(truths, boxes, matched, strict=True)
            ]
        )
        moves_R4 = moves[kept] if self.class_agnostic else moves[kept, labels_R[kept]]
        box_loss_R4 = F.smooth_l1_loss(moves_R4, wanted_R4, beta=self.beta, reduction="none")
        return class_loss, (box_loss_R4.sum(1) * weight_R[kept]).sum()

    def moved(self, moves: Tensor, boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Return the moved boxes of each image, clipped to it: (N, 4), or (N, K, 4) where classes differ."""
        shape = (-1, 4) if self.class_agnostic else (-1, self.classes + 1, 4)
        moved_R = self.coder.decode_single(moves.flatten(1), torch.cat(list(boxes))).view(shape)
        parts = moved_R.split([len(boxes_N4) for boxes_N4 in boxes])
        return [clip_boxes_to_image(part, size) for part, size in zip(parts, sizes, strict=True)]


class CascadeHead(nn.Module):
    """One or more `BoxStage`s on the same levels.

    Args:
        strides: Strides of the levels that regions are read from, finest first.
        channels: D, of the levels.
        classes: C.
        settings: Stages and what is kept at test.
    """

    def __init__(self, strides: Sequence[int], channels: int, classes: int, settings: BoxSettings) -> None:
        super().__init__()
        self.settings = settings
        self.pool = RegionPool(
            strides,
            settings.pool_size,
            sampling=settings.sampling,
            canonical_size=settings.canonical_size,
            aligned=settings.aligned,
        )
        stages = settings.all_stages()
        # A stage hands on one box a region, so in a cascade boxes belong to no class, as in the paper.
        self.stages = nn.ModuleList(
            BoxStage(channels, classes, len(stages) > 1, stage, settings) for stage in stages
        )
        self.loss_names = tuple(
            (f"class{end}", f"box{end}")
            for end in ([""] if len(stages) == 1 else [f"_{number + 1}" for number in range(len(stages))])
        )

    def loss_weights(self) -> dict[str, float]:
        """Return name → weight of each stage's losses in the total."""
        return {
            name: stage.loss_weight
            for names, stage in zip(self.loss_names, self.settings.all_stages(), strict=True)
            for name in names
        }

    def forward(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], truths: Sequence[ImageTruth]
    ) -> tuple[dict[str, Tensor], Samples]:
        """Return name → loss, summed over images, and the last stage's samples.

        Args:
            maps: Levels, finest first.
            proposals: (N, 4) of each image.
            truths: What to learn.
        """
        losses: dict[str, Tensor] = {}
        # As in Faster R-CNN regions are given: this loss moves no proposals.
        boxes = [proposals_N4.detach() for proposals_N4 in proposals]
        for number, stage in enumerate(self.stages):
            assert isinstance(stage, BoxStage)
            samples = stage.sample(boxes, truths)
            logits_RK, moves = stage(self.pool(maps, samples.boxes))
            pair = stage.losses(logits_RK, moves, samples, truths)
            losses |= dict(zip(self.loss_names[number], pair, strict=True))
            if number + 1 < len(self.stages):
                moved = stage.moved(moves.detach(), samples.boxes, [truth.size for truth in truths])
                # The objects' own boxes are added anew: moved, they would be far too easy.
                pairs = zip(moved, samples.is_truth, strict=True)
                kept = true_rows([real_boxes(boxes_N4) & ~truth_N for boxes_N4, truth_N in pairs])
                boxes = [boxes_N4[rows] for boxes_N4, rows in zip(moved, kept, strict=True)]
        return losses, samples

    def detect(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Found]:
        """Return the objects of each image: the last stage's boxes with the mean of all stages' probabilities.

        Args:
            maps: Levels, finest first.
            proposals: (N, 4) of each image.
            sizes: Height and width of each image without padding.
        """
        boxes, scores_RK = list(proposals), torch.zeros(())
        for stage in self.stages:
            assert isinstance(stage, BoxStage)
            logits_RK, moves = stage(self.pool(maps, boxes))
            scores_RK = scores_RK.to(logits_RK.device) + logits_RK.softmax(-1) / len(self.stages)
            boxes = stage.moved(moves, boxes, sizes)
        return self._keep(torch.cat(boxes), scores_RK, [len(boxes_N) for boxes_N in boxes])

    def _keep(self, boxes_R: Tensor, scores_RK: Tensor, lengths: Sequence[int]) -> list[Found]:
        """Return the objects of each image that are kept; the device is asked once for all, and by each suppression."""
        scores_RC = scores_RK[:, 1:]
        boxes_RC4 = (
            boxes_R[:, 1:] if boxes_R.ndim == 3 else boxes_R[:, None].expand(-1, scores_RC.shape[1], 4)
        )
        row, column = torch.where((scores_RC > self.settings.score_threshold) & real_boxes(boxes_RC4))
        counts = counts_of(row, lengths)
        parts = [of.split(counts) for of in (boxes_RC4[row, column], scores_RC[row, column], column + 1)]
        found = []
        for boxes_N4, scores_N, labels_N in zip(*parts, strict=True):
            kept = batched_nms(boxes_N4, scores_N, labels_N, self.settings.nms_iou)
            # They come by falling score.
            kept = kept[: self.settings.detections]
            found.append(Found(boxes_N4[kept], scores_N[kept], labels_N[kept]))
        return found
