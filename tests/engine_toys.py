"""A tiny objective and source for tests of the engine: a residual MLP as the vision tower, and a head."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.nn import functional as F

from vitp.core.errors import DataError
from vitp.objectives.base import Objective, ParameterGroup

CLASSES, WIDTH = 5, 16


@dataclass(frozen=True)
class ToyBatch:
    x: Tensor
    y: Tensor
    supervised: Tensor
    record_names: tuple[str, ...]


class ToyTower(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(8, WIDTH)
        self.pos_embed = nn.Parameter(torch.randn(1, WIDTH) * 0.1)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = x + self.dropout(torch.tanh(block(x)))
        return x


class ToyObjective(Objective):
    """`answer`: cross entropy of the supervised rows. `size`: squared error of a scalar, on all rows.

    Batches whose x is all zero leave the tower out, as texts without an image do.
    """

    def __init__(self, seed: int = 0, dropout: float = 0.0, detached: bool = False) -> None:
        super().__init__()
        self.loss_weights = {"size": 0.5}
        torch.manual_seed(seed)
        self.tower = ToyTower(dropout)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.size_head = nn.Linear(WIDTH, 1)
        self.detached = detached

    def forward(self, batch: ToyBatch) -> dict[str, Tensor]:
        has_images = not bool((batch.x == 0).all())
        features = self.tower(batch.x) if has_images else batch.x.new_zeros(len(batch.x), WIDTH)
        if self.detached:
            features = features.detach()
        nll = F.cross_entropy(self.head(features), batch.y, reduction="none")
        size = (self.size_head(features)[:, 0] - batch.x.sum(1)).square()
        return {"answer": (nll * batch.supervised).sum(), "size": size.sum()}

    def loss_counts(self, batch: ToyBatch) -> dict[str, float]:
        return {"answer": float(batch.supervised.sum()), "size": float(len(batch.x))}

    def parameter_groups(self) -> list[ParameterGroup]:
        heads = {**dict(self.head.named_parameters())}
        heads |= {f"size_{name}": p for name, p in self.size_head.named_parameters()}
        return [
            ParameterGroup("vision tower", dict(self.tower.named_parameters())),
            ParameterGroup("head", heads, lr_scale=2.0),
        ]

    @property
    def vision_tower(self) -> nn.Module:
        return self.tower

    def work(self, batch: ToyBatch) -> dict[str, float]:
        rows = float(len(batch.x))
        return {"samples": rows, "tokens": 3 * rows, "capacity": 4 * rows, "tiles": rows}

    def save_pretrained(self, folder: Any) -> None:
        save_model(self, str(Path(folder) / "weights.safetensors"))


class ToySource:
    """Cuts the same global batch of each step into `world × micro_batches` pieces.

    Args:
        rows: Rows of the global batch.
        micro_batches: Pieces on each rank.
        bad_step: Raise a `DataError` for this step.
        nan_step: Put a nan into row 0 of this step.
        half_text: The second half of every global batch is without images.
        name: The fingerprint.
    """

    def __init__(
        self,
        rows: int = 12,
        micro_batches: int = 1,
        *,
        bad_step: int | None = None,
        nan_step: int | None = None,
        half_text: bool = False,
        name: str = "toy",
    ) -> None:
        self.rows, self.micro_batches, self.name = rows, micro_batches, name
        self.bad_step, self.nan_step, self.half_text = bad_step, nan_step, half_text

    def global_batch(self, step: int) -> ToyBatch:
        generator = torch.Generator().manual_seed(1000 + step)
        x = torch.randn(self.rows, 8, generator=generator)
        y = (x[:, 0] * 2).long().clamp(0, CLASSES - 1)
        # Unevenly spread: most supervised rows stand in the first half, none in the last piece.
        supervised = (torch.arange(self.rows) < self.rows * 0.6).float()
        if self.half_text:
            x[self.rows // 2 :] = 0
        if step == self.nan_step:
            x[0, 0] = float("nan")
        return ToyBatch(
            x, y, supervised, tuple(f"toy.jsonl:{step * self.rows + i}" for i in range(self.rows))
        )

    def __call__(self, step: int, micro: int, rank: int, world: int) -> ToyBatch:
        if step == self.bad_step:
            raise DataError("is truncated", where="image_7.png", fix="replace it")
        batch = self.global_batch(step)
        pieces = self.micro_batches * world
        size = self.rows // pieces
        # Rank-major: the pieces of rank 0 come first.
        begin = (rank * self.micro_batches + micro) * size
        cut = slice(begin, begin + size)
        return ToyBatch(batch.x[cut], batch.y[cut], batch.supervised[cut], batch.record_names[cut])

    def fingerprint(self) -> str:
        return self.name
