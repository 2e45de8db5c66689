"""Gradient norms of each part of a model, kept on the device until they are asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from vitp.core import distributed
from vitp.engine.sharding import local, shard_group
from vitp.objectives.base import ParameterGroup


@dataclass(frozen=True)
class GradientSize:
    """Sizes of one step's gradient before clipping.

    Attributes:
        norm: L2 norm over all parameters.
        share: Part → its share of the squared norm; the shares add up to 1.
        vision_share: The same for the vision tower.
    """

    norm: float
    share: dict[str, float]
    vision_share: float


class Gradients:
    """The gradients of all trainable parameters.

    Args:
        groups: The objective's parts.
        tower: The vision tower.
    """

    def __init__(self, groups: Sequence[ParameterGroup], tower: nn.Module) -> None:
        in_tower = {id(parameter) for parameter in tower.parameters()}
        self._cells: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for group in groups:
            for parameter in group.parameters.values():
                if parameter.requires_grad:
                    cell = (group.name, id(parameter) in in_tower)
                    self._cells.setdefault(cell, []).append(parameter)
        self.parameters = [parameter for cell in self._cells.values() for parameter in cell]
        groups_of = (shard_group(parameter) for parameter in self.parameters)
        self._group = next((group for group in groups_of if group is not None), None)
        self._whole = [p for p in self.parameters if shard_group(p) is None] if self._group else []
        # The parts of each cell are the same in every step: they are found once.
        cells = self._cells.values()
        self._sharded = [[p for p in cell if shard_group(p) is not None] for cell in cells]
        self._unsharded = [[p for p in cell if shard_group(p) is None] for cell in cells]

    def complete(self) -> None:
        """Give a zero gradient to parameters that no batch of this step used, and average those that nobody shards.

        AdamW would leave them out of the step. DDP, though, turns missing gradients into zeros, and the
        number of ranks must not change what is learned. A collective call.
        """
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for gradient in (parameter.grad for parameter in self._whole):
            assert gradient is not None
            dist.all_reduce(gradient)
            gradient /= distributed.world_size()

    def multiply(self, factor: float) -> None:
        """Multiply all gradients, in place."""
        torch._foreach_mul_([local(p.grad) for p in self.parameters if p.grad is not None], factor)

    def norms(self) -> Tensor:
        """Return the L2 norm of each cell, for `read`; nothing is synchronised with the host."""
        if self._group is None:
            return self._norms(self._cells.values())
        squares = self._norms(self._sharded).square()
        dist.all_reduce(squares, group=self._group)
        # Whole parameters have the same gradient on each rank: they are added after the sum, once.
        if self._whole:
            squares += self._norms(self._unsharded).square()
        return squares.sqrt()

    def _norms(self, cells: Iterable[Sequence[nn.Parameter]]) -> Tensor:
        """Return the L2 norm of each cell, of what this process holds."""
        device = local(self.parameters[0]).device
        norms = [get_total_norm([local(p.grad) for p in cell if p.grad is not None]) for cell in cells]
        return torch.stack([norm.float().to(device) for norm in norms])

    def read(self, norms: Sequence[float]) -> GradientSize:
        """Return the sizes from the values of `norms`."""
        squares = [norm * norm for norm in norms]
        total = sum(squares)
        share: dict[str, float] = {}
        vision = 0.0
        for (part, in_tower), square in zip(self._cells, squares, strict=True):
            fraction = square / total if total > 0 else 0.0
            share[part] = share.get(part, 0.0) + fraction
            vision += fraction if in_tower else 0.0
        return GradientSize(math.sqrt(total), share, vision)

    def clip(self, max_norm: float, norms: Tensor) -> None:
        """Scale the gradients down to `max_norm` where the norm over all cells is above it."""
        total = norms.square().sum().sqrt()
        if self._group is None:
            clip_grads_with_norm_(self.parameters, max_norm, total)
            return
        # As torch does it, on the parts that this process holds.
        factor = torch.clamp(max_norm / (total + 1e-6), max=1.0)
        torch._foreach_mul_([local(p.grad) for p in self.parameters if p.grad is not None], factor)
