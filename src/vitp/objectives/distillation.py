"""Self-distillation: DINO (Caron et al., 2021), and iBOT's masked patches (Zhou et al., 2022) as an option.

A student sees crops of an image and is to say of each what a teacher, its own running average, says of the large ones.
What DINOv2 and DINOv3 added stands in `vitp.objectives.distillation_terms`.

Shapes: B images, G global views, V local views, N patches, D width of the tower, K prototypes.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vitp.core import distributed
from vitp.core.config import Positive, Share, Weight
from vitp.core.tensors import TensorFields
from vitp.data.augment import ViewSettings
from vitp.data.seen import PICTURES, SeenBands
from vitp.models.vision import VisionTower
from vitp.objectives.distillation_terms import (
    GramSettings,
    HighResolutionSettings,
    PrototypeHead,
    ViewSizes,
    cross_entropy_of,
    gram_distance,
    koleo,
    sinkhorn,
    view_sizes,
)
from vitp.objectives.image_base import (
    ImageObjective,
    backward_factor,
    folders_of,
    image_parts,
    mixture_of,
    seeded_tower,
    seen_by,
    told_apart,
    tower_flops,
)
from vitp.objectives.image_rows import (
    ImageCollate,
    ImageSamples,
    names_of,
    stacked,
    view_generator,
    view_maker,
)
from vitp.objectives.settings import ObjectiveParts, ObjectiveSettings, RunSettings

GLOBAL_VIEWS = 2


class DistillationSettings(ObjectiveSettings):
    """Self-distillation. The publication's head has 65,536 prototypes, for ImageNet and batches of 1,024."""

    former_keys: ClassVar[Mapping[str, str]] = {"dino": ""}

    name: Literal["dino"] = "dino"
    """Self-distillation."""
    local_views: int = Field(4, ge=0, le=1024)
    """Small crops an image."""
    local_size: int | None = Field(None, ge=8, le=65_536)
    """Side of the small crops in pixels; none: about half of a tile."""
    prototypes: int = Field(1024, ge=2, le=1_000_000)
    """Outputs of the head (K)."""
    hidden: int = Field(512, ge=8, le=65_536)
    """Width of the head's hidden layers."""
    bottleneck: int = Field(128, ge=4, le=65_536)
    """Width of the head before the prototypes."""
    student_temperature: float = Field(0.1, gt=0, le=1000)
    """Temperature of the student's softmax."""
    teacher_temperature: tuple[Positive, Positive] = (0.04, 0.07)
    """Temperature of the teacher's softmax, at the start and after its warm-up."""
    teacher_warmup: float = Field(0.3, ge=0, le=1)
    """Share of the steps over which the teacher's temperature rises."""
    momentum: float = Field(0.996, ge=0, le=1)
    """Momentum of the teacher's running average at the start; it rises to 1 along a cosine."""
    centre_momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of the running mean that is subtracted from the teacher's outputs against collapse."""
    mask: float = Field(0.0, ge=0, le=1)
    """Share of the global views with masked patches (iBOT); 0: DINO alone."""
    mask_ratio: tuple[Share, Share] = (0.1, 0.5)
    """Smallest and largest share of masked patches in such a view."""
    views: ViewSettings = Field(default_factory=lambda: ViewSettings(crop=(0.4, 1.0), solarize=0.1))
    """How the global views change."""
    local_crop: tuple[Share, Share] = (0.1, 0.4)
    """Smallest and largest share of the area that a small crop shows."""
    targets: Literal["centre", "sinkhorn"] = "centre"
    """What keeps the teacher's outputs from collapsing: a running mean that is subtracted, or Sinkhorn-Knopp."""
    koleo: Weight = 0.0
    """Weight of KoLeo, which spreads the images of a batch; 0: none, DINOv2's: 0.1."""
    gram: GramSettings = Field(default_factory=GramSettings)
    """Gram anchoring."""
    high: HighResolutionSettings = Field(default_factory=HighResolutionSettings)
    """Larger views at the end of the run."""

    def build(self, run: RunSettings, *, steps: int, micro_batches: int) -> ObjectiveParts:
        """Return the objective over all images, both dates of a pair."""
        rows = folders_of(run, both_dates=True)
        tower, images = seeded_tower(run), mixture_of(run, told_apart(rows) if self.koleo else rows)
        high_from = round((1 - self.high.share) * steps) if self.high.share else None
        collate = Crops(tower.image_size[0], tower.patch_size, self, seen_by(tower, run), high_from)
        for step in (0, high_from or 0):
            collate.sizes_at(step)  # what can't be cut is said before the run
        objective = DistillationObjective(tower, self, steps=steps)
        return image_parts(run, objective, images, collate, micro_batches)


@dataclass(frozen=True)
class CropBatch(TensorFields):
    """Large and small crops of some images.

    Attributes:
        global_GBCHW: uint8.
        local_VBChw: Smaller, uint8; V may be 0.
        mask_GBN: Which patches of the global views the student doesn't see, bool.
        step: Optimizer step: the teacher moves once a step, and its schedules follow it.
        record_names: Ids of the images, for messages.
        gram_GBCHW: The global views as the Gram teacher sees them, where that is at another size.
    """

    global_GBCHW: Tensor
    local_VBChw: Tensor
    mask_GBN: Tensor
    step: int
    record_names: tuple[str, ...]
    gram_GBCHW: Tensor | None = None

    @property
    def tiles_BCHW(self) -> Tensor:
        """The first global view of each image."""
        return self.global_GBCHW[0]


@dataclass(frozen=True)
class Crops(ImageCollate[CropBatch]):
    """Makes a `CropBatch`.

    Attributes:
        size: Side of the global views in pixels.
        patch_size: Side of a patch in pixels.
        config: Number, size, views and masks.
        seen: How images are read.
        high_from: Step from which the views are larger; None: none.
    """

    size: int
    patch_size: int
    config: DistillationSettings
    seen: SeenBands = PICTURES
    high_from: int | None = None

    def sizes_at(self, step: int) -> ViewSizes:
        """Return the sides of the views of a step.

        Raises:
            ConfigError: One is no multiple of the patch size.
        """
        config, high = self.config, self.config.high
        if self.high_from is not None and step >= self.high_from:
            large, small, gram, where = (
                high.size or self.size,
                high.local_size,
                high.gram_size,
                "objective.high",
            )
        else:
            large, small, gram, where = self.size, config.local_size, config.gram.size, "objective"
        return view_sizes(self.patch_size, large, small, gram if config.gram.weight else None, where=where)

    @property
    def local_size(self) -> int:
        """Side of the local views at the start of the run: what was asked for, or about half of a global view."""
        return self.sizes_at(0).small

    def __call__(self, samples: ImageSamples, step: int) -> CropBatch:
        """Return the batch of some images."""
        config, sizes = self.config, self.sizes_at(step)
        patches = (sizes.large // self.patch_size) ** 2
        # As in DINO only large views may be solarised.
        local = config.views.model_copy(update={"crop": config.local_crop, "solarize": 0.0})
        large: list[list[Any]] = [[] for _ in range(GLOBAL_VIEWS)]
        gram: list[list[Any]] = [[] for _ in range(GLOBAL_VIEWS)]
        small: list[list[Any]] = [[] for _ in range(config.local_views)]
        masks: list[list[Tensor]] = [[] for _ in range(GLOBAL_VIEWS)]
        for sample in samples:
            view, rng = view_maker(sample, self.seen), view_generator(sample)
            for views, same in zip(large, gram, strict=True):
                # The Gram teacher sees the student's very crop, larger: its random numbers begin where the student's
                # did.
                again = copy.deepcopy(rng)
                views.append(view(sizes.large, config.views, rng)[0])
                if sizes.gram != sizes.large:
                    same.append(view(sizes.gram, config.views, again)[0])
            for views in small:
                views.append(view(sizes.small, local, rng)[0])
            for of_view in masks:
                chosen, share = rng.random() < config.mask, rng.uniform(*config.mask_ratio)
                order = torch.from_numpy(rng.permutation(patches))
                # The numbers below m of a random permutation lie at m random patches.
                of_view.append(order < (round(share * patches) if chosen else 0))
        whole = torch.stack([stacked(views) for views in large])
        empty = torch.empty(0, len(samples), whole.shape[2], sizes.small, sizes.small, dtype=torch.uint8)
        return CropBatch(
            whole,
            torch.stack([stacked(views) for views in small]) if small else empty,
            torch.stack([torch.stack(of_view) for of_view in masks]),
            step,
            names_of(samples),
            torch.stack([stacked(views) for views in gram]) if gram[0] else None,
        )

    def describe(self) -> Mapping[str, Any]:
        """Return what decides the batch."""
        names = ("local_views", "mask", "mask_ratio", "views", "local_crop")
        values = self.config.model_dump(mode="json", include=set(names))
        known = {"size": self.size, "patch": self.patch_size, "local_size": self.local_size, **values}
        if self.sizes_at(0).gram != self.size:
            known["gram_size"] = self.sizes_at(0).gram
        if self.high_from is not None:
            known["high"] = [self.high_from, dataclasses.asdict(self.sizes_at(self.high_from))]
        return known


class Teacher(nn.Module):
    """A running average of a tower and its head. It never trains, and never drops anything."""

    def __init__(self, tower: VisionTower, head: PrototypeHead) -> None:
        super().__init__()
        self.tower, self.head = copy.deepcopy(tower), copy.deepcopy(head)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, tower: VisionTower, head: PrototypeHead, momentum: float) -> None:
        """Set every weight to `momentum × itself + (1 − momentum) × the student's`."""
        for mine, students in ((self.tower, tower), (self.head, head)):
            for own, other in zip(mine.parameters(), students.parameters(), strict=True):
                own.lerp_(other.to(own.dtype), 1 - momentum)


class DistillationObjective(ImageObjective):
    """DINO's loss between views, and iBOT's between patches.

    `views`: for each image the mean over all pairs (global view of the teacher, other view of the student) of the
    cross-entropy between their prototype distributions. `patches`: the cross-entropy of the student's masked patches
    with what the teacher, which sees them, says. Both networks share head and prototypes over views and patches.
    `koleo` and `gram`, where they have a weight: of the student's global views, the mean over the two of an image.

    The teacher, its centres and the last step it moved at are part of the state, so that a resumed run goes on to the
    bit. It moves when the first batch of a step arrives: by then the optimizer has made the student's step.

    Args:
        tower: The vision tower, student.
        config: Head, temperatures, momenta.
        steps: Optimizer steps of the run, which the schedules span.
    """

    PARTS: ClassVar[Mapping[str, str]] = {
        "tower.": "vision tower",
        "teacher.": "teacher",
        "gram_tower.": "Gram teacher",
    }
    scheduled = ("the teacher's momentum", "its temperature")

    def __init__(self, tower: VisionTower, config: DistillationSettings, *, steps: int) -> None:
        super().__init__(tower)
        self.config, self.steps = config, steps
        self.head = PrototypeHead(tower.width, config.hidden, config.bottleneck, config.prototypes)
        self.teacher = Teacher(tower, self.head)
        self.mask_token = nn.Parameter(torch.zeros(tower.width)) if config.mask else None
        self.gram_tower: VisionTower | None = None
        if config.gram.weight:
            self.gram_tower = copy.deepcopy(tower).requires_grad_(False).eval()
        terms = {"koleo": config.koleo, "gram": config.gram.weight}
        self.loss_weights = {name: weight for name, weight in terms.items() if weight}
        self.view_centre_K: Tensor
        self.patch_centre_K: Tensor
        self.moved_at: Tensor
        self.register_buffer("view_centre_K", torch.zeros(config.prototypes))
        self.register_buffer("patch_centre_K", torch.zeros(config.prototypes))
        self.register_buffer("moved_at", torch.zeros((), dtype=torch.int64))

    def train(self, mode: bool = True) -> DistillationObjective:
        """Set the mode of the student; the teachers stay in eval mode."""
        super().train(mode)
        if self.gram_tower is not None:
            self.gram_tower.eval()
        return self

    def momentum_at(self, step: int) -> float:
        """Return the teacher's momentum: from `config.momentum` to 1 along half a cosine."""
        return 1 - (1 - self.config.momentum) * (math.cos(math.pi * step / self.steps) + 1) / 2

    def temperature_at(self, step: int) -> float:
        """Return the teacher's temperature: it rises linearly over the warm-up."""
        first, last = self.config.teacher_temperature
        warmup = self.config.teacher_warmup * self.steps
        return last if step >= warmup else first + (last - first) * step / warmup

    def forward(self, batch: CropBatch) -> dict[str, Tensor]:
        """Return {"views": sum over the images} and, with masks, {"patches": sum over the masked patches}.

        KoLeo and Gram anchoring add sums over the images.
        """
        self._move_teacher(batch.step)
        temperature = self.temperature_at(batch.step)
        views, images = batch.global_GBCHW.flatten(0, 1), len(batch.tiles_BCHW)
        with torch.no_grad():
            taught_RND = self.teacher.tower.forward_tokens(self.tower.normalize(views))
            taught_RK = self.teacher.head(taught_RND.mean(1))
        student_RND = self._tokens(views, batch.mask_GBN.flatten(0, 1))
        pooled_RD = student_RND.mean(1)
        student_RK = [self.head(pooled_RD)]
        if len(batch.local_VBChw):
            student_RK.append(self.head(self.pooled(batch.local_VBChw.flatten(0, 1))))
        target_RK = self._targets(taught_RK, self.view_centre_K, temperature)
        losses = {"views": self._view_loss(target_RK, torch.cat(student_RK), images)}
        # After the targets are made: as in DINO a step is centred by what the teacher said in the steps before.
        self._move_centre(self.view_centre_K, taught_RK)
        if self.mask_token is not None:
            hidden_RN = batch.mask_GBN.flatten(0, 1)
            losses["patches"] = self._patch_loss(taught_RND[hidden_RN], student_RND[hidden_RN], temperature)
        if self.config.koleo:
            # Each view by itself, as in DINOv2: the other view of an image is meant to be near.
            losses["koleo"] = torch.stack([koleo(view_BD) for view_BD in pooled_RD.split(images)]).mean()
        if self.gram_tower is not None:
            seen = batch.global_GBCHW if batch.gram_GBCHW is None else batch.gram_GBCHW
            with torch.no_grad():
                anchor_RMD = self.gram_tower.forward_tokens(self.tower.normalize(seen.flatten(0, 1)))
            losses["gram"] = gram_distance(student_RND, anchor_RMD).sum() / GLOBAL_VIEWS
        return losses

    def _targets(self, taught_RK: Tensor, centre_K: Tensor, temperature: float) -> Tensor:
        """Return the teacher's probabilities."""
        if self.config.targets == "sinkhorn":
            return sinkhorn(taught_RK, temperature)
        return ((taught_RK - centre_K) / temperature).softmax(-1)

    def _view_loss(self, target_RK: Tensor, student_RK: Tensor, images: int) -> Tensor:
        targets, outputs = target_RK.split(images), student_RK.split(images)
        losses = [
            cross_entropy_of(target, output, self.config.student_temperature).sum()
            for number, target in enumerate(targets)
            for other, output in enumerate(outputs)
            if number != other
        ]
        return torch.stack(losses).mean()

    def _patch_loss(self, taught_MD: Tensor, student_MD: Tensor, temperature: float) -> Tensor:
        with torch.no_grad():
            taught_MK = self.teacher.head(taught_MD)
            target_MK = self._targets(taught_MK, self.patch_centre_K, temperature)
        self._move_centre(self.patch_centre_K, taught_MK)
        loss_M = cross_entropy_of(target_MK, self.head(student_MD), self.config.student_temperature)
        return loss_M.sum()

    def _tokens(self, views_RCHW: Tensor, mask_RN: Tensor) -> Tensor:
        """Return the student's patch tokens (R, N, D), masked patches replaced before they get their positions."""
        image_RCHW = self.tower.normalize(views_RCHW)
        if self.mask_token is None:
            return self.tower.forward_tokens(image_RCHW)
        token_D = self.mask_token

        def hide(_module: nn.Module, _arguments: Any, patches: Tensor) -> Tensor:
            hidden = mask_RN.view(*patches.shape[:-1], 1)
            return torch.where(hidden, token_D.to(patches.dtype), patches)

        handle = self.tower.model.patch_embed.register_forward_hook(hide)
        try:
            return self.tower.forward_tokens(image_RCHW)
        finally:
            handle.remove()

    def _move_teacher(self, step: int) -> None:
        if self.training and step > int(self.moved_at):
            self.teacher.follow(self.tower, self.head, self.momentum_at(step))
            self.moved_at.fill_(step)
            if self.gram_tower is not None and self.config.gram.every and step % self.config.gram.every == 0:
                self.gram_tower.load_state_dict(self.teacher.tower.state_dict())

    @torch.no_grad()
    def _move_centre(self, centre_K: Tensor, outputs_RK: Tensor) -> None:
        """Move a centre towards the mean of the teacher's outputs over all ranks."""
        if not self.training:
            return
        # Sums of all ranks and the number of rows go in one message.
        rows = torch.full((1,), float(len(outputs_RK)), device=outputs_RK.device)
        total = distributed.sum_tensor(torch.cat([outputs_RK.float().sum(0), rows]))
        if total[-1] > 0:
            centre_K.lerp_(total[:-1] / total[-1], 1 - self.config.centre_momentum)

    def loss_counts(self, batch: CropBatch) -> dict[str, float]:
        """Return {"views": number of images} and, with masks, {"patches": number of masked patches}."""
        counts = {"views": float(len(batch.tiles_BCHW))}
        if self.mask_token is not None:
            counts["patches"] = float(batch.mask_GBN.sum())
        return counts | dict.fromkeys(self.loss_weights, counts["views"])

    def work(self, batch: CropBatch) -> dict[str, float]:
        """Return images, views and the FLOPs of the student's forward and backward and the teacher's forward pass."""
        images, small = len(batch.tiles_BCHW), len(batch.local_VBChw)
        large = self._flops_of(batch.global_GBCHW)
        local = self._flops_of(batch.local_VBChw)
        rows, masked = images * GLOBAL_VIEWS, float(batch.mask_GBN.sum())
        # Forward and backward pass of the student's head count three forward passes, the teacher's head one.
        heads = 3 * self.head.flops(rows + images * small) + self.head.flops(rows)
        heads += 4 * self.head.flops(1) * masked if self.mask_token is not None else 0.0
        flops = backward_factor(self.tower) * (large + local) + large + heads
        if self.gram_tower is not None:
            flops += large if batch.gram_GBCHW is None else self._flops_of(batch.gram_GBCHW)
        return {"samples": float(images), "tiles": float(images * (GLOBAL_VIEWS + small)), "flops": flops}

    def _flops_of(self, views_VBCHW: Tensor) -> float:
        """Return the forward FLOPs of the tower over some views."""
        cells = (views_VBCHW.shape[-1] // self.tower.patch_size) ** 2
        return tower_flops(self.tower, views_VBCHW.shape[0] * views_VBCHW.shape[1], cells)
