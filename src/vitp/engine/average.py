"""The moving average of the weights (EMA), which often scores better than the weights of any one step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitp.core.errors import CheckpointError
from vitp.core.tensors import like
from vitp.engine.sharding import local


class WeightAverage:
    """Averages the trained weights of a model, where they are: of a sharded one, each process its own part.

    Buffers, such as running statistics, are not averaged: a model with averaged weights has the newest ones.

    Args:
        model: Whose parameters that require a gradient are averaged, from the values that they have now.
        decay: Share of the average that stays at a step.
        warmup: The decay of step t (from 1) is at most (1 + t) / (`warmup` + t), so that the average soon forgets the
            weights that a run begins with; 1: `decay` from the first step on.

    Attributes:
        tensors: Name → average, each in the layout of its parameter.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: float) -> None:
        self.decay, self.warmup = decay, warmup
        self._weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._weights.items()}

    def decay_at(self, step: int) -> float:
        """Return the share of the average that stays at the `step`-th step, from 1."""
        return min(self.decay, (1 + step) / (self.warmup + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after the `step`-th step."""
        averages = [local(tensor) for tensor in self.tensors.values()]
        weights = [local(parameter.detach()) for parameter in self._weights.values()]
        # One call for all: tensor by tensor, hundreds of kernels would be started.
        torch._foreach_lerp_(averages, weights, 1 - self.decay_at(step))

    @torch.no_grad()
    def load(self, saved: Mapping[str, Tensor], source: str) -> None:
        """Go on with the average of a checkpoint; of an empty one, with the weights as they are.

        Raises:
            CheckpointError: It is of other parameters.
        """
        wrong = saved.keys() ^ self.tensors.keys() if saved else set()
        wrong |= {name for name in saved.keys() - wrong if saved[name].shape != self.tensors[name].shape}
        if wrong:
            raise CheckpointError(
                f"has the averages of other parameters ({', '.join(sorted(wrong)[:5])})",
                where=source,
                fix="resume with the configuration that the run began with",
            )
        for name, tensor in self.tensors.items():
            tensor.copy_(like(saved[name], tensor) if saved else self._weights[name].detach())

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages and the weights, to the bit; twice changes nothing."""
        for name, parameter in self._weights.items():
            mine, other = local(parameter.detach()), local(self.tensors[name])
            kept = mine.clone()
            mine.copy_(other)
            other.copy_(kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the model has the averaged weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
