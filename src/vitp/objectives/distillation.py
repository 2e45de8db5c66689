"""Self-distillation: DINO (Caron et al., 2021), and iBOT's masked patches (Zhou et al., 2022) as an option.

A student sees crops of an image and is to say of each what a teacher, its own running average, says of the large ones.

Shapes: B images, G global views, V local views, N patches, D width of the tower, K prototypes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vitp.core import distributed
from vitp.core.config import Positive, Share
from vitp.core.errors import ConfigError
from vitp.core.tensors import TensorFields
from vitp.data.augment import ViewSettings
from vitp.data.seen import PICTURES, SeenBands
from vitp.models.vision import VisionTower
from vitp.objectives.gathering import similarities
from vitp.objectives.image_base import (
    ImageObjective,
    backward_factor,
    folders_of,
    image_parts,
    linear_flops,
    mixture_of,
    seeded_tower,
    seen_by,
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

    def build(self, run: RunSettings, *, steps: int, micro_batches: int) -> ObjectiveParts:
        """Return the objective over all images, both dates of a pair."""
        tower, images = seeded_tower(run), mixture_of(run, folders_of(run, both_dates=True))
        collate = Crops(tower.image_size[0], tower.patch_size, self, seen_by(tower, run))
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
    """

    global_GBCHW: Tensor
    local_VBChw: Tensor
    mask_GBN: Tensor
    step: int
    record_names: tuple[str, ...]

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
    """

    size: int
    patch_size: int
    config: DistillationSettings
    seen: SeenBands = PICTURES

    @property
    def local_size(self) -> int:
        """Side of the local views: what was asked for, or about half of a global view.

        Raises:
            ConfigError: The asked size is no multiple of the patch size.
        """
        wanted = self.config.local_size
        if wanted is None:
            return self.patch_size * max(1, round(self.size / self.patch_size / 2))
        if wanted % self.patch_size:
            raise ConfigError(
                f"patches of {self.patch_size} px don't cut {wanted} px evenly",
                where="objective.local_size",
                fix=f"choose a multiple of {self.patch_size}",
            )
        return wanted

    def __call__(self, samples: ImageSamples, step: int) -> CropBatch:
        """Return the batch of some images."""
        config, patches = self.config, (self.size // self.patch_size) ** 2
        local = config.views.model_copy(update={"crop": config.local_crop, "solarize": 0.0})
        large: list[list[Any]] = [[] for _ in range(GLOBAL_VIEWS)]
        small: list[list[Any]] = [[] for _ in range(config.local_views)]
        masks: list[list[Tensor]] = [[] for _ in range(GLOBAL_VIEWS)]
        for sample in samples:
            view, rng = view_maker(sample, self.seen), view_generator(sample)
            for views in large:
                views.append(view(self.size, config.views, rng)[0])
            for views in small:
                views.append(view(self.local_size, local, rng)[0])
            for of_view in masks:
                chosen, share = rng.random() < config.mask, rng.uniform(*config.mask_ratio)
                order = torch.from_numpy(rng.permutation(patches))
                of_view.append(order < (round(share * patches) if chosen else 0))
        whole, side = torch.stack([stacked(views) for views in large]), self.local_size
        empty = torch.empty(0, len(samples), whole.shape[2], side, side, dtype=torch.uint8)
        return CropBatch(
            whole,
            torch.stack([stacked(views) for views in small]) if small else empty,
            torch.stack([torch.stack(of_view) for of_view in masks]),
            step,
            names_of(samples),
        )

    def describe(self) -> Mapping[str, Any]:
        """Return what decides the batch."""
        names = ("local_views", "mask", "mask_ratio", "views", "local_crop")
        values = self.config.model_dump(mode="json", include=set(names))
        return {"size": self.size, "patch": self.patch_size, "local_size": self.local_size, **values}


class PrototypeHead(nn.Module):
    """Features → similarities to K unit vectors: an MLP with a bottleneck, then a linear layer of unit rows."""

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.prototypes_KE = nn.Parameter(torch.empty(prototypes, bottleneck))
        nn.init.normal_(self.prototypes_KE, std=0.02)

    def forward(self, x_RD: Tensor) -> Tensor:
        """Return (R, K) cosines of R feature vectors, float32."""
        x_RE = F.normalize(self.mlp(x_RD).float(), dim=-1)
        return similarities(x_RE, F.normalize(self.prototypes_KE.float(), dim=-1))

    def flops(self, rows: int) -> float:
        """Return the forward FLOPs over `rows` vectors."""
        return linear_flops(self.mlp, rows) + 2.0 * rows * self.prototypes_KE.numel()


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


def cross_entropy_of(teacher_RK: Tensor, student_RK: Tensor, temperature: float) -> Tensor:
    """Return −Σ_k p log q of each row, (R,).

    Args:
        teacher_RK: Probabilities p.
        student_RK: Logits of q before the temperature.
        temperature: Of q.
    """
    return -(teacher_RK * (student_RK / temperature).log_softmax(-1)).sum(-1)


class DistillationObjective(ImageObjective):
    """DINO's loss between views, and iBOT's between patches.

    `views`: for each image the mean over all pairs (global view of the teacher, other view of the student) of the
    cross-entropy between their prototype distributions. `patches`: the cross-entropy of the student's masked patches
    with what the teacher, which sees them, says. Both networks share head and prototypes over views and patches.

    The teacher, its centres and the last step it moved at are part of the state, so that a resumed run goes on to the
    bit. It moves when the first batch of a step arrives: by then the optimizer has made the student's step.

    Args:
        tower: The vision tower, student.
        config: Head, temperatures, momenta.
        steps: Optimizer steps of the run, which the schedules span.
    """

    PARTS: ClassVar[Mapping[str, str]] = {"tower.": "vision tower", "teacher.": "teacher"}
    scheduled = ("the teacher's momentum", "its temperature")

    def __init__(self, tower: VisionTower, config: DistillationSettings, *, steps: int) -> None:
        super().__init__(tower)
        self.config, self.steps = config, steps
        self.head = PrototypeHead(tower.width, config.hidden, config.bottleneck, config.prototypes)
        self.teacher = Teacher(tower, self.head)
        self.mask_token = nn.Parameter(torch.zeros(tower.width)) if config.mask else None
        self.view_centre_K: Tensor
        self.patch_centre_K: Tensor
        self.moved_at: Tensor
        self.register_buffer("view_centre_K", torch.zeros(config.prototypes))
        self.register_buffer("patch_centre_K", torch.zeros(config.prototypes))
        self.register_buffer("moved_at", torch.zeros((), dtype=torch.int64))

    def momentum_at(self, step: int) -> float:
        """Return the teacher's momentum: from `config.momentum` to 1 along half a cosine."""
        return 1 - (1 - self.config.momentum) * (math.cos(math.pi * step / self.steps) + 1) / 2

    def temperature_at(self, step: int) -> float:
        """Return the teacher's temperature: it rises linearly over the warm-up."""
        first, last = self.config.teacher_temperature
        warmup = self.config.teacher_warmup * self.steps
        return last if step >= warmup else first + (last - first) * step / warmup

    def forward(self, batch: CropBatch) -> dict[str, Tensor]:
        """Return {"views": sum over the images} and, with masks, {"patches": sum over the masked patches}."""
        self._move_teacher(batch.step)
        temperature = self.temperature_at(batch.step)
        views, images = batch.global_GBCHW.flatten(0, 1), len(batch.tiles_BCHW)
        with torch.no_grad():
            taught_RND = self.teacher.tower.forward_tokens(self.tower.normalize(views))
            taught_RK = self.teacher.head(taught_RND.mean(1))
        student_RND = self._tokens(views, batch.mask_GBN.flatten(0, 1))
        student_RK = [self.head(student_RND.mean(1))]
        if len(batch.local_VBChw):
            student_RK.append(self.head(self.pooled(batch.local_VBChw.flatten(0, 1))))
        target_RK = ((taught_RK - self.view_centre_K) / temperature).softmax(-1)
        losses = {"views": self._view_loss(target_RK, torch.cat(student_RK), images)}
        self._move_centre(self.view_centre_K, taught_RK)
        if self.mask_token is not None:
            hidden_RN = batch.mask_GBN.flatten(0, 1)
            losses["patches"] = self._patch_loss(taught_RND[hidden_RN], student_RND[hidden_RN], temperature)
        return losses

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
            target_MK = ((taught_MK - self.patch_centre_K) / temperature).softmax(-1)
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

    @torch.no_grad()
    def _move_centre(self, centre_K: Tensor, outputs_RK: Tensor) -> None:
        """Move a centre towards the mean of the teacher's outputs over all ranks."""
        if not self.training:
            return
        rows = torch.full((1,), float(len(outputs_RK)), device=outputs_RK.device)
        total = distributed.sum_tensor(torch.cat([outputs_RK.float().sum(0), rows]))
        if total[-1] > 0:
            centre_K.lerp_(total[:-1] / total[-1], 1 - self.config.centre_momentum)

    def loss_counts(self, batch: CropBatch) -> dict[str, float]:
        """Return {"views": number of images} and, with masks, {"patches": number of masked patches}."""
        counts = {"views": float(len(batch.tiles_BCHW))}
        if self.mask_token is not None:
            counts["patches"] = float(batch.mask_GBN.sum())
        return counts

    def work(self, batch: CropBatch) -> dict[str, float]:
        """Return images, views and the FLOPs of the student's forward and backward and the teacher's forward pass."""
        images, small = len(batch.tiles_BCHW), len(batch.local_VBChw)
        large = tower_flops(self.tower, GLOBAL_VIEWS * images, self.tower.grid**2)
        cells = (batch.local_VBChw.shape[-1] // self.tower.patch_size) ** 2
        local = tower_flops(self.tower, small * images, cells)
        rows, masked = images * GLOBAL_VIEWS, float(batch.mask_GBN.sum())
        heads = 3 * self.head.flops(rows + images * small) + self.head.flops(rows)
        heads += 4 * self.head.flops(1) * masked if self.mask_token is not None else 0.0
        flops = backward_factor(self.tower) * (large + local) + large + heads
        return {"samples": float(images), "tiles": float(images * (GLOBAL_VIEWS + small)), "flops": flops}
