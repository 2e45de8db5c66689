"""Teachers: anything that gives targets. Where one comes from, what of it is matched, and the losses.

Shapes: B images, N cells on a grid of h × w, D channels of the student, T of the teacher, a attention heads.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from vitp.checkpoints.loading import load_backbone, open_timm
from vitp.core.config import Positive, SettingsModel, Share, Weight
from vitp.core.errors import ConfigError
from vitp.models.backbone import Backbone
from vitp.models.timm_backbone import TimmSettings, timm_backbone
from vitp.models.vision import VisionTower
from vitp.objectives.gathering import first_row, gather_rows, similarities
from vitp.records.channels import Channels

TIMM = "timm:"
START, AVERAGE, FURTHER = "start", "average", "further"
MATCHES = ("tokens", "pooled", "attention", "relations")


class TeacherSettings(SettingsModel):
    """A teacher, and what of it the student is to match."""

    source: str = START
    """`start`: the tower that the run starts from. `average`: the student's running average. `further`: what the first
    stage leaves (see `further`). Else an export, a run, a folder of timm or transformers, or `timm:NAME`."""
    weights: str | None = None
    """File of weights for `timm:NAME`."""
    weight: Weight = 1.0
    """Weight of this teacher among several."""
    sets: list[str] = Field(default_factory=list)
    """Sets (by name) whose images it teaches; none: all."""
    tokens: Weight = 1.0
    """Weight of the patch tokens: 1 − cos of each with the teacher's."""
    pooled: Weight = 0.0
    """Weight of the mean patch token: 1 − cos with the teacher's."""
    attention: Weight = 0.0
    """Weight of the attention of a block: divergence of the student's rows from the teacher's (UNIP)."""
    relations: Weight = 0.0
    """Weight of how images resemble each other: divergence of the student's ranking of a batch from the teacher's."""
    temperature: Positive = 0.1
    """Temperature of the softmax over the relations between images."""
    layer: int = Field(-1, ge=-1000, le=1000)
    """Layer of the teacher, from 0; negative ones count from the end."""
    size: int | None = Field(None, ge=8, le=65_536)
    """Side in pixels at which it sees the images; none: where its grid is the student's, or the student's."""
    whiten: bool = False
    """Take the mean of all patches from the teacher's vectors and give them equal variance in every direction before
    they are matched (see `Whitening`). Raw vectors of a trained ViT vary mostly along a few directions, and a cosine
    hardly sees the others, which may tell objects apart."""
    projector: Literal["linear", "mlp", "none"] = "linear"
    """What makes the student's vectors the teacher's: the identity at the start where both are equally wide."""
    momentum: float = Field(0.996, ge=0, le=1)
    """Momentum of `average`."""
    past: Share = 0.0
    """Share of the tower of the start in what `average` moves towards; above 0 it is a three-way average (CTP)."""

    @model_validator(mode="after")
    def _matches_something(self) -> TeacherSettings:
        if not any(getattr(self, name) for name in MATCHES):
            raise ValueError(f"nothing is matched: give one of {', '.join(MATCHES)} a weight above 0")
        if self.weights is not None and not self.source.startswith(TIMM):
            raise ValueError(f'weights: "{self.source}" brings its own; they are for "timm:NAME"')
        if self.relations and self.sets:
            raise ValueError("relations: they are those of all images of a step; leave sets out")
        if self.past and self.source != AVERAGE:
            raise ValueError(f'past: only the source "{AVERAGE}" has one')
        if self.whiten and self.source == AVERAGE:
            raise ValueError(f'whiten: the mean and the variance of "{AVERAGE}" move; name another source')
        if self.whiten and not (self.tokens or self.pooled):
            raise ValueError("whiten: only tokens and pooled are vectors; leave it out")
        if self.whiten and self.projector == "none":
            raise ValueError("whiten: the student's vectors need a projector to get there")
        return self


class Whitening(nn.Module):
    """x → (C + ε λ̄ I)^(-1/2) (x - μ): vectors without their mean, with equal variance in every direction.

    Of a feature teacher's outputs PHI-S (Ranzinger et al., 2024) equalises the variance likewise. ε keeps directions in
    which nothing but rounding varies from growing as large as the others.

    Args:
        width: T, channels of the teacher.
    """

    FLOOR: ClassVar[float] = 0.01
    """ε: what is added to each variance, as a share of the mean variance λ̄."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean_T: Tensor
        self.matrix_TT: Tensor
        self.register_buffer("mean_T", torch.zeros(width))
        self.register_buffer("matrix_TT", torch.eye(width))

    @torch.no_grad()
    def measure(self, vectors_NT: Tensor) -> None:
        """Take mean μ and covariance C of some vectors.

        Raises:
            ConfigError: They don't vary.
        """
        vectors_NT = vectors_NT.double()
        variances_T, directions_TT = torch.linalg.eigh(torch.cov(vectors_NT.T))
        # Rounding makes the variance of directions in which nothing varies slightly negative.
        variances_T = variances_T.clamp(min=0)
        if not variances_T.mean() > 0:
            raise ConfigError(
                "the teacher says the same of every patch",
                where="objective.teachers.whiten",
                fix="leave it out, or name another teacher",
            )
        scale_T = (variances_T + self.FLOOR * variances_T.mean()).rsqrt()
        self.mean_T.copy_(vectors_NT.mean(0))
        self.matrix_TT.copy_(directions_TT * scale_T @ directions_TT.T)

    @torch.no_grad()
    def start(self, linear: nn.Linear) -> None:
        """Let a projector that is the identity do the same, so that equal towers still agree."""
        linear.weight.copy_(self.matrix_TT)
        linear.bias.copy_(-self.matrix_TT @ self.mean_T)

    def forward(self, vectors_NT: Tensor) -> Tensor:
        """Return whitened vectors, float32; leading dimensions are kept."""
        with torch.autocast(vectors_NT.device.type, enabled=False):
            return (vectors_NT.float() - self.mean_T) @ self.matrix_TT


class TeacherModel(nn.Module):
    """A frozen backbone that gives targets.

    Args:
        backbone: It is not shared with the student.
        settings: What is matched.
        student: Whose features are matched; its layer `student_layer`.
        student_layer: Of the student.

    Raises:
        ConfigError: The two can't be matched.
    """

    def __init__(
        self, backbone: Backbone, settings: TeacherSettings, student: Backbone, student_layer: int = -1
    ) -> None:
        super().__init__()
        self.backbone, self.settings, self.student_layer = backbone, settings, student_layer
        for model, layer, where in (
            (backbone, settings.layer, "teachers.layer"),
            (student, student_layer, "student_layer"),
        ):
            if not -model.num_layers <= layer < model.num_layers:
                raise ConfigError(
                    f"there are {model.num_layers} layers, none is {layer}", where=f"objective.{where}"
                )
        if backbone.in_channels != student.in_channels:
            raise ConfigError(
                "teacher and student see different channels",
                where="objective.teachers",
                fix="name the same bands in model.channels, or another teacher",
            )
        self.size = settings.size or _size_for(backbone, student)
        if settings.attention:
            self._check_attention(student)
        backbone.requires_grad_(False).eval()
        self.whitening = Whitening(backbone.channels[settings.layer]) if settings.whiten else None
        averages = settings.source == AVERAGE and settings.past
        self.past = copy.deepcopy(backbone) if averages else None

    def train(self, mode: bool = True) -> TeacherModel:
        """Stay in eval mode."""
        return super().train(False)

    def projectors(self, student: Backbone) -> nn.ModuleDict:
        """Return what takes the student's vectors to the teacher's, one for each match that needs it."""
        settings = self.settings
        own, others = student.channels[self.student_layer], self.backbone.channels[settings.layer]
        names = (name for name in ("tokens", "pooled") if getattr(settings, name))
        return nn.ModuleDict({name: projector(own, others, settings.projector) for name in names})

    def _check_attention(self, student: Backbone) -> None:
        if not isinstance(self.backbone, VisionTower) or not isinstance(student, VisionTower):
            raise ConfigError(
                "a network without attention of all patches has none to match",
                where="objective.teachers.attention",
                fix="match tokens, pooled or relations",
            )
        if self.size // self.backbone.patch_size != student.grid:
            raise ConfigError(
                f"at {self.size} px the teacher has {self.size // self.backbone.patch_size} patches a side, the student "
                f"{student.grid}",
                where="objective.teachers.size",
                fix="leave it out",
            )

    @torch.no_grad()
    def follow(self, student: nn.Module) -> None:
        """Move the average: m × itself + (1 − m) × ((1 − past) × the student + past × the start)."""
        m, past = self.settings.momentum, self.settings.past
        starts = list((self.past or self.backbone).parameters())
        for own, now, start in zip(self.backbone.parameters(), student.parameters(), starts, strict=True):
            towards = now.to(own.dtype).lerp(start, past) if past else now.to(own.dtype)
            own.lerp_(towards, 1 - m)

    @torch.no_grad()
    def seen(self, images_BCHW: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        """Return patch tokens (B, N, T) of uint8 images on a grid, and its attention where that is matched."""
        settings = self.settings
        images_BCHW = self.backbone.normalize(images_BCHW)
        taught_BThw, theirs_BaNN = observed(
            self.backbone, images_BCHW, settings.layer, attention=bool(settings.attention)
        )
        return resized_map(taught_BThw, grid).flatten(2).mT, theirs_BaNN

    def losses(
        self,
        student_BDhw: Tensor,
        attention_BaNN: Tensor | None,
        images_BCHW: Tensor,
        projectors: nn.ModuleDict,
    ) -> dict[str, Tensor]:
        """Return match → sum over the images.

        Args:
            student_BDhw: The student's features.
            attention_BaNN: Its attention among patches, where that is matched.
            images_BCHW: The same images at `size`, uint8.
            projectors: See `projectors`.
        """
        settings = self.settings
        taught_BNT, theirs_BaNN = self.seen(images_BCHW, student_BDhw.shape[-2:])
        own_BND = student_BDhw.flatten(2).mT
        told_BNT = taught_BNT if self.whitening is None else self.whitening(taught_BNT)
        found = {}
        if settings.tokens:
            found["tokens"] = cosine_distance(projectors["tokens"](own_BND), told_BNT).mean(1).sum()
        if settings.pooled:
            found["pooled"] = cosine_distance(projectors["pooled"](own_BND.mean(1)), told_BNT.mean(1)).sum()
        if attention_BaNN is not None and theirs_BaNN is not None:
            found["attention"] = attention_divergence(theirs_BaNN, attention_BaNN).sum()
        if settings.relations:
            found["relations"] = relations(taught_BNT.mean(1), own_BND.mean(1), settings.temperature)
        return found


def open_teacher(settings: TeacherSettings, student: Backbone, channels: Channels | None) -> Backbone:
    """Return the backbone of a teacher, with weights of its own.

    Raises:
        CheckpointError: Nothing is there, or a file is broken.
        ConfigError: timm has no such model.
    """
    if settings.source in (START, AVERAGE):
        return copy.deepcopy(student)
    if not settings.source.startswith(TIMM):
        return load_backbone(settings.source, channels=channels)
    config = TimmSettings(architecture=settings.source.removeprefix(TIMM), channels=channels)
    if settings.weights is None:
        raise ConfigError(
            f"{settings.source} has random weights, which teach nothing",
            where="objective.teachers.weights",
            fix="name the file of its weights",
        )
    return open_timm(config, Path(settings.weights))[0]


def timm_student(name: str, weights: str | None, size: int | None, channels: Channels | None) -> Backbone:
    """Return a student of any architecture of timm that gives feature maps."""
    config = TimmSettings(architecture=name.removeprefix(TIMM), image_size=size, channels=channels)
    return timm_backbone(config) if weights is None else open_timm(config, Path(weights))[0].train()


def _size_for(teacher: Backbone, student: Backbone) -> int:
    """Return the side at which a ViT's grid is that of a student that is one, too; else the student's side."""
    if isinstance(teacher, VisionTower) and isinstance(student, VisionTower):
        return student.grid * teacher.patch_size
    step = teacher.patch_size if isinstance(teacher, VisionTower) else 1
    return max(1, round(student.image_size[0] / step)) * step


def observed(
    backbone: Backbone, image_BCHW: Tensor, layer: int, *, attention: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return the features of a layer (B, D, h, w) and, if wanted, its block's attention among patches (B, a, N, N).

    Rows of the attention sum to 1 over the patches: what goes to [CLS] and registers is left out, which another model
    may not have.
    """
    if not attention:
        if isinstance(backbone, VisionTower) and layer in (-1, backbone.num_layers - 1):
            tokens_BND, step = backbone.forward_tokens(image_BCHW), backbone.patch_size
            grid = (image_BCHW.shape[-2] // step, image_BCHW.shape[-1] // step)
            return tokens_BND.mT.unflatten(2, grid), None
        return backbone.forward_features(image_BCHW, [layer])[0], None
    assert isinstance(backbone, VisionTower)
    with backbone.attention_of(layer) as seen:
        (features_BDhw,) = backbone.forward_features(image_BCHW, [layer])
    prefix = int(backbone.model.num_prefix_tokens)
    patches_BaNN = seen[0][..., prefix:, prefix:]
    return features_BDhw, patches_BaNN / patches_BaNN.sum(-1, keepdim=True)


def resized_map(map_BThw: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return features on another grid: bicubic, with averaging where the grid gets coarser."""
    if map_BThw.shape[-2:] == size:
        return map_BThw
    return F.interpolate(map_BThw.float(), size, mode="bicubic", antialias=True, align_corners=False)


def projector(own: int, others: int, kind: str) -> nn.Module:
    """Return what takes the student's vectors to the teacher's space: the identity at the start where widths are equal.

    Raises:
        ConfigError: Without one the widths must be equal.
    """
    if kind == "none":
        if own != others:
            raise ConfigError(
                f"the student has {own} channels, the teacher {others}",
                where="objective.teachers.projector",
                fix='choose "linear" or "mlp"',
            )
        return nn.Identity()
    linear = nn.Linear(own, others)
    # The identity: a student that starts as a copy of its teacher starts with a loss of 0.
    if own == others:
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    return linear if kind == "linear" else nn.Sequential(Residual(own), linear)


class Residual(nn.Module):
    """x + MLP(x), the identity at the start: a light decoder of features (UNIT, Zhu et al., 2024)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.hidden, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x_ND: Tensor) -> Tensor:
        """Return vectors of the same width."""
        changed: Tensor = x_ND + self.out(F.gelu(self.hidden(self.norm(x_ND))))
        return changed


def cosine_distance(own_ND: Tensor, taught_ND: Tensor) -> Tensor:
    """Return 1 − cos of the last dimension, float32."""
    return 1 - F.cosine_similarity(own_ND.float(), taught_ND.float(), dim=-1)


def attention_divergence(taught_BaNN: Tensor, own_BaNN: Tensor) -> Tensor:
    """Return KL(teacher ‖ student) of each image (B,), the mean over heads and queries (UNIP, Dong et al., 2025).

    With other numbers of heads the means over the heads are compared.
    """
    if taught_BaNN.shape[1] != own_BaNN.shape[1]:
        taught_BaNN, own_BaNN = (part.mean(1, keepdim=True) for part in (taught_BaNN, own_BaNN))
    taught_BaNN, own_BaNN = (part.float().clamp(min=1e-12) for part in (taught_BaNN, own_BaNN))
    return (taught_BaNN * (taught_BaNN.log() - own_BaNN.log())).sum(-1).mean((1, 2))


def relations(taught_BT: Tensor, own_BD: Tensor, temperature: float) -> Tensor:
    """Return Σ over this rank's images of KL(teacher ‖ student) of the softmax of cosines with all other images.

    CTP's topology preservation (Zhu et al., 2023): which images of a step (of all ranks) are neighbours stays.

    Raises:
        ConfigError: There is no other image.
    """
    logs = []
    for rows in (taught_BT, own_BD):
        unit = F.normalize(rows.float(), dim=-1)
        cosines_BA = similarities(unit, gather_rows(unit)) / temperature
        if cosines_BA.shape[1] < 3:
            raise ConfigError(
                "two images or fewer have no order of neighbours",
                where="objective.teachers.relations",
                fix="choose a larger data.global_batch or fewer train.micro_batches",
            )
        itself_B = first_row(len(rows)) + torch.arange(len(rows), device=rows.device)
        # Not -inf: in the sum below a probability of 0 times a difference of infinities would be NaN.
        logs.append(cosines_BA.scatter(1, itself_B[:, None], -1e4).log_softmax(-1))
    taught_BA, own_BA = logs
    return (taught_BA.exp() * (taught_BA - own_BA)).sum()


def attention_nmi(attention_NN: Tensor) -> Tensor:
    """Return the normalised mutual information of queries and keys (…): 0 for uniform attention, 1 for one key each.

    UNIP chooses the teacher's layer by it. With equally likely queries, I(q; k) / √(H(q) H(k)).

    Args:
        attention_NN: Rows are queries and sum to 1; leading dimensions are kept.
    """
    queries = attention_NN.shape[-2]
    joint_NN = attention_NN.double() / queries
    key_N = joint_NN.sum(-2)
    # Keys that no query looks at would divide 0 by 0.
    independent_NN = (key_N / queries).unsqueeze(-2).clamp(min=1e-300)
    information = torch.special.xlogy(joint_NN, joint_NN / independent_NN).sum((-2, -1))
    of_keys = -torch.special.xlogy(key_N, key_N).sum(-1)
    shared: Tensor = information / (of_keys * math.log(queries)).sqrt().clamp(min=1e-12)
    return shared
