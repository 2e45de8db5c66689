"""Feature-preserving distillation: learn something new, and stay near what the initial ViT saw.

With a decoder it is UNIT's (Zhu et al., 2024): what the initial ViT saw can be read from the new features.

Shapes: B images, N patch tokens, D width.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vitp.core.errors import ConfigError
from vitp.data.packing import PackedBatch
from vitp.models.vision import VisionTower
from vitp.objectives.base import Objective, ParameterGroup
from vitp.objectives.image_base import backward_factor, tower_flops
from vitp.objectives.settings import PreserveSettings
from vitp.objectives.teachers import cosine_distance, projector

LOSS = "preserve"


def preserving(objective: Objective, settings: PreserveSettings) -> Objective:
    """Return the objective with feature preservation, or itself where the weight is 0.

    Args:
        objective: Before its first step: the features of its tower as it is now are the ones that are preserved.
        settings: Weight, decoder and size.
    """
    return objective if settings.weight == 0 else FeaturePreserving(objective, settings)


def tiles_of(batch: Any) -> Tensor:
    """Return the images (B, 3, H, W) uint8 of an objective's batch: one view of each."""
    tiles: Tensor = batch.tiles_TCHW if isinstance(batch, PackedBatch) else batch.tiles_BCHW
    return tiles


class FeaturePreserving(Objective):
    """Another objective, and 1 − cos between each patch token's feature and the initial tower's.

    The mean is over the patch tokens of the last layer; the sum over images. It costs a forward pass of the initial
    tower and one more forward and backward pass of the trained one.

    Args:
        inner: The objective proper; its vision tower is a `VisionTower`.
        settings: Weight of the loss `preserve`, decoder and size.

    Raises:
        ConfigError: The tower's patches don't cut the size evenly.
    """

    def __init__(self, inner: Objective, settings: PreserveSettings) -> None:
        super().__init__()
        self.inner, self.size = inner, settings.size
        tower = self.vision_tower
        if self.size is not None and self.size % tower.patch_size:
            raise ConfigError(
                f"patches of {tower.patch_size} px don't cut {self.size} px evenly",
                where="model.preserve.size",
                fix=f"choose a multiple of {tower.patch_size}",
            )
        # No random numbers but its own: the objective's heads are made already, dropout is still to come.
        with torch.random.fork_rng(devices=[]):
            self.decoder = projector(tower.width, tower.width, settings.decoder)
        self.initial = copy.deepcopy(self.vision_tower).requires_grad_(False).eval()
        self.loss_weights = {**inner.loss_weights, LOSS: settings.weight}
        self.scheduled = inner.scheduled

    def train(self, mode: bool = True) -> FeaturePreserving:
        """Set the mode of the inner objective; the initial tower stays in eval mode."""
        super().train(mode)
        self.initial.eval()
        return self

    def loss_weight(self, name: str) -> float:
        """Return the weight of a loss in the total."""
        return self.loss_weights[LOSS] if name == LOSS else self.inner.loss_weight(name)

    @property
    def vision_tower(self) -> VisionTower:
        """The tower that trains."""
        return cast(VisionTower, self.inner.vision_tower)

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Return the inner losses and {"preserve": sum over the images}."""
        losses = self.inner(batch)
        tiles = tiles_of(batch)
        if not len(tiles):
            return {**losses, LOSS: torch.zeros((), device=tiles.device)}
        image_BCHW = self.initial.normalize(tiles)
        if self.size is not None:
            image_BCHW = F.interpolate(image_BCHW, self.size, mode="bilinear", antialias=True)
        with torch.no_grad():
            before_BND = self.initial.forward_tokens(image_BCHW)
        now_BND = self.decoder(self.vision_tower.forward_tokens(image_BCHW))
        return {**losses, LOSS: cosine_distance(now_BND, before_BND).mean(1).sum()}

    def loss_counts(self, batch: Any) -> dict[str, float]:
        """Return the inner counts and {"preserve": number of images}."""
        return {**self.inner.loss_counts(batch), LOSS: float(len(tiles_of(batch)))}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the inner groups and the frozen initial tower."""
        groups = [
            ParameterGroup(
                group.name,
                {f"inner.{name}": parameter for name, parameter in group.parameters.items()},
                group.lr_scale,
            )
            for group in self.inner.parameter_groups()
        ]
        decoder = {f"decoder.{name}": parameter for name, parameter in self.decoder.named_parameters()}
        if decoder:
            groups.append(ParameterGroup("feature decoder", decoder))
        initial = {f"initial.{name}": parameter for name, parameter in self.initial.named_parameters()}
        return [*groups, ParameterGroup("initial tower", initial)]

    def layer_distances(self) -> dict[str, int]:
        """Return the inner objective's."""
        return self.inner.layer_distances()

    def work(self, batch: Any) -> dict[str, float]:
        """Return the inner work, with the cost of the features where FLOPs are counted."""
        work = self.inner.work(batch)
        if "flops" in work:
            work["flops"] += self._own_flops(batch)
        return work

    def step_flops(self, batch: Any) -> float:
        """Return the FLOPs of the inner objective and of the features."""
        return self.inner.step_flops(batch) + self._own_flops(batch)

    def _own_flops(self, batch: Any) -> float:
        cells = self.initial.grid if self.size is None else self.size // self.initial.patch_size
        forward = tower_flops(self.initial, len(tiles_of(batch)), cells**2)
        return forward * (1 + backward_factor(self.vision_tower))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what the inner objective writes."""
        self.inner.save_pretrained(folder)
