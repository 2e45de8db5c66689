"""Stored vectors of descriptions in place of a text tower (GPT4Image, Ding et al., 2023).

Somebody has described each image with a large model and embedded the description once; pretraining reads the vectors.
Nothing of a text tower is trained or kept.

Shapes: B images, W width of the stored vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitp.core import files
from vitp.core.errors import DataError
from vitp.core.tensors import TensorFields, load_tensors
from vitp.data.mixture import Sample
from vitp.records.labels import LabelledImage


@dataclass(frozen=True)
class VectorBatch(TensorFields):
    """Vectors (B, W) of the descriptions of some images, float32."""

    vectors_BW: Tensor


@dataclass(frozen=True)
class StoredVectors:
    """The vectors of a safetensors file: id of an image → (W,).

    Attributes:
        file: The file.
    """

    file: Path

    @cached_property
    def vectors(self) -> dict[str, Tensor]:
        """Id → vector.

        Raises:
            DataError: It holds none, or vectors of several widths.
        """
        found = load_tensors(self.file, ours=False)
        shapes = {tuple(vector.shape) for vector in found.values()}
        if len(shapes) != 1 or any(len(shape) != 1 for shape in shapes):
            raise DataError(
                f"holds tensors of the shapes {sorted(shapes)}",
                where=str(self.file),
                fix="store one vector (W,) for each image, under the image's id",
            )
        return found

    @property
    def width(self) -> int:
        """W."""
        return len(next(iter(self.vectors.values())))

    def __call__(self, ids: Sequence[str]) -> VectorBatch:
        """Return the vectors of some images."""
        return VectorBatch(torch.stack([self.vectors[name] for name in ids]).float())

    def facts(self) -> dict[str, Any]:
        """Return what decides a batch beside the images."""
        return {"vectors": self.width}

    def contents(self) -> list[Any]:
        """Return the hash of the file."""
        return [files.sha256(self.file)]


@dataclass(frozen=True)
class ImageIds:
    """The id of an image, where others have a text of it."""

    def __call__(self, image: Sample[LabelledImage], rng: np.random.Generator) -> str:
        """Return the id."""
        return image.record.id

    def digest(self) -> str:
        """Return nothing: the vectors count, and they are hashed as they are."""
        return ""


class VectorTower(nn.Module):
    """Gives back what is stored; W = `width`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, text: VectorBatch) -> Tensor:
        """Return (B, W)."""
        return text.vectors_BW

    def flops(self, text: Any) -> float:
        """Return 0."""
        return 0.0
