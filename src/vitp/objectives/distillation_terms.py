"""The parts of self-distillation: its head, and what DINOv2 and DINOv3 added to DINO.

KoLeo, Gram anchoring, Sinkhorn-Knopp, and larger views at the end of a run.

Shapes: B images, R views or rows, N patches, D width of the tower, E of the head's bottleneck, K prototypes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from vitp.core import distributed
from vitp.core.config import SettingsModel, Share, Weight
from vitp.core.errors import ConfigError
from vitp.objectives.gathering import first_row, gather_rows, similarities
from vitp.objectives.image_base import linear_flops

_CLOSEST = 1e-4
"""Distance below which two images count as the same: empty tiles would get a gradient that drowns all others."""

_ROUNDS = 3
"""Rounds of Sinkhorn-Knopp, as DINOv2 takes them."""


class GramSettings(SettingsModel):
    """Gram anchoring (DINOv3, Siméoni et al., 2025): which patches resemble which stays as a Gram teacher sees it."""

    weight: Weight = 0.0
    """Weight of this loss in the total loss; 0: no Gram teacher. The publication's is 2."""
    size: int | None = Field(None, ge=8, le=65_536)
    """Side in pixels at which the Gram teacher sees the global views; its features are then made smaller. none: that of
    the views. The publication's is twice that."""
    every: int = Field(0, ge=0, le=100_000_000)
    """Steps after which the teacher of that step becomes the Gram teacher; 0: it stays the tower of the start."""


class HighResolutionSettings(SettingsModel):
    """Larger views in the last steps of the run, which the tower takes by its own rule for positions."""

    share: Share = 0.0
    """Share of the steps, at the end; 0: none."""
    size: int | None = Field(None, ge=8, le=65_536)
    """Side of the large crops in these steps, in pixels."""
    local_size: int | None = Field(None, ge=8, le=65_536)
    """Side of the small crops in these steps; none: about half of the large ones."""
    gram_size: int | None = Field(None, ge=8, le=65_536)
    """Side at which the Gram teacher sees the large crops in these steps; none: that of the crops."""

    @model_validator(mode="after")
    def _has_a_size(self) -> HighResolutionSettings:
        if self.share and self.size is None:
            raise ValueError("size is missing: the side of the large crops in these steps")
        return self


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


@dataclass(frozen=True)
class ViewSizes:
    """Sides of the views of a step, in pixels.

    Attributes:
        large: Of global views.
        small: Of local views.
        gram: At which the Gram teacher sees the global views.
    """

    large: int
    small: int
    gram: int


def view_sizes(
    patch: int, large: int, small: int | None, gram: int | None, *, where: str = "objective"
) -> ViewSizes:
    """Return the sides that settings ask for: local views about half of the global ones, the Gram teacher's the same.

    Raises:
        ConfigError: One is no multiple of the patch size, or the Gram teacher would see less than the student.
    """
    sizes = ViewSizes(large, small or patch * max(1, round(large / patch / 2)), gram or large)
    named = {"size": sizes.large, "local_size": sizes.small, "gram size": sizes.gram}
    for name, size in named.items():
        if size % patch:
            raise ConfigError(
                f"patches of {patch} px don't cut {size} px evenly",
                where=f"{where}.{name}",
                fix=f"choose a multiple of {patch}",
            )
    if sizes.gram < sizes.large:
        raise ConfigError(
            f"{sizes.gram} px are less than the {sizes.large} px of the student's views",
            where=f"{where}.gram size",
            fix="choose a size that is at least as large",
        )
    return sizes


def koleo(pooled_BD: Tensor) -> Tensor:
    """Return −Σ log of the distance between each of this rank's images and its nearest other image of all ranks.

    The regulariser of Kozachenko and Leonenko (Sablayrolles et al., 2019, equation 4) on unit vectors, in float32: it
    spreads the images of a batch evenly. The mean over the images is what DINOv2 weighs with 0.1.

    Args:
        pooled_BD: Image vectors, before any head.

    Raises:
        ConfigError: There is no other image.
    """
    with torch.autocast(pooled_BD.device.type, enabled=False):
        own_BD = F.normalize(pooled_BD.float(), dim=-1)
        all_AD = gather_rows(own_BD)
        if len(all_AD) < 2:
            raise ConfigError(
                "an image alone has no nearest neighbour",
                where="objective.koleo",
                fix="choose a larger data.global_batch, fewer train.micro_batches or 0",
            )
        with torch.no_grad():
            close_BA = own_BD @ all_AD.T
            itself_B = first_row(len(own_BD)) + torch.arange(len(own_BD), device=own_BD.device)
            nearest_B = close_BA.scatter(1, itself_B[:, None], -math.inf).argmax(1)
        distance_B = F.pairwise_distance(own_BD, all_AD[nearest_B], eps=1e-8)
        return -distance_B.clamp(min=_CLOSEST).log().sum()


def gram_distance(student_RND: Tensor, taught_RMD: Tensor) -> Tensor:
    """Return ‖X_S X_Sᵀ − X_G X_Gᵀ‖²_F / N² of each view (R,): Gram matrices of unit patch vectors, float32.

    Divided by the number of pairs of patches, as DINOv3's code does it, so that a weight doesn't depend on the size.

    Args:
        student_RND: Patch tokens.
        taught_RMD: Of the same views, at as many cells or more; then made smaller, as maps.
    """
    with torch.autocast(student_RND.device.type, enabled=False):
        own_RND = F.normalize(student_RND.float(), dim=-1)
        taught_RND = F.normalize(resized_tokens(taught_RMD.float(), student_RND.shape[1]), dim=-1)
        difference_RNN = own_RND @ own_RND.mT - taught_RND @ taught_RND.mT
        return difference_RNN.square().mean((1, 2))


def resized_tokens(tokens_RMD: Tensor, count: int) -> Tensor:
    """Return the tokens of a square grid on a square grid of `count` cells, bicubic with averaging where it shrinks."""
    side, wanted = math.isqrt(tokens_RMD.shape[1]), math.isqrt(count)
    if side == wanted:
        return tokens_RMD
    map_RDss = tokens_RMD.mT.unflatten(2, (side, side))
    smaller = F.interpolate(map_RDss, (wanted, wanted), mode="bicubic", antialias=True, align_corners=False)
    return smaller.flatten(2).mT


@torch.no_grad()
def sinkhorn(outputs_RK: Tensor, temperature: float) -> Tensor:
    """Return the teacher's probabilities (R, K) after Sinkhorn-Knopp over the rows of all ranks (SwAV, DINOv2).

    In turn every prototype gets an equal share of all rows, and every row shares out 1; it replaces the centre.

    Args:
        outputs_RK: Cosines with the prototypes.
        temperature: Temperature of the softmax.
    """
    # No cosine is above 1: nothing overflows, and no rank needs the maximum of another.
    share_RK = ((outputs_RK.float() - 1) / temperature).exp()
    tiny = torch.finfo(torch.float32).tiny
    for _ in range(_ROUNDS):
        share_RK = share_RK / distributed.sum_tensor(share_RK.sum(0)).clamp(min=tiny)
        share_RK = share_RK / share_RK.sum(1, keepdim=True).clamp(min=tiny)
    return share_RK


def cross_entropy_of(teacher_RK: Tensor, student_RK: Tensor, temperature: float) -> Tensor:
    """Return −Σ_k p log q of each row, (R,).

    Args:
        teacher_RK: Probabilities p.
        student_RK: Logits of q before the temperature.
        temperature: Temperature of q.
    """
    return -(teacher_RK * (student_RK / temperature).log_softmax(-1)).sum(-1)
