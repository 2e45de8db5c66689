"""`Objective`: batch → named losses. The engine sees nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from vitp.models.layer_decay import layer_distances


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate, and what the console calls them.

    Attributes:
        name: "vision tower", "projector", "language model", "head", …
        parameters: Name → parameter, trainable or not: frozen ones are listed in the table, too.
        lr_scale: Multiplies the run's learning rate.
    """

    name: str
    parameters: Mapping[str, nn.Parameter]
    lr_scale: float = 1.0


class Objective(nn.Module, ABC):
    """A model and its losses behind one call.

    `forward` returns *sums*, `loss_counts` what they are to be divided by; the engine adds the counts over
    micro-batches and ranks before it divides, so that the gradient does not depend on how a batch was cut.

    Attributes:
        loss_weights: Name → weight in the total loss. A missing name counts 1.
        scheduled: What of the objective follows a schedule over all steps of the run, in words.
        reads_weights: The setting by which weights are read outside of their layer's own call, which a sharded model
            can't offer; empty: none.
    """

    loss_weights: Mapping[str, float] = {}
    scheduled: tuple[str, ...] = ()
    reads_weights: str = ""

    @abstractmethod
    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Return name → summed loss (a scalar with gradient)."""

    @abstractmethod
    def loss_counts(self, batch: Any) -> dict[str, float]:
        """Return name → number of terms in the sum of `forward`, known before it runs."""

    def loss_weight(self, name: str) -> float:
        """Return the weight of a loss in the total."""
        return self.loss_weights.get(name, 1.0)

    @abstractmethod
    def parameter_groups(self) -> list[ParameterGroup]:
        """Return all parameters, once each, in named groups."""

    @property
    @abstractmethod
    def vision_tower(self) -> nn.Module:
        """The module that pretraining is for: it is watched, probed and exported."""

    def layer_distances(self) -> dict[str, int]:
        """Return name of the vision tower's parameter → layers between it and the tower's top.

        Layer-wise learning-rate decay multiplies the rate by `decay ** distance`.
        """
        return layer_distances(self.vision_tower)

    def work(self, batch: Any) -> dict[str, float]:
        """Return what the batch amounts to, for the progress line.

        Keys in use: `samples`, `tokens` (that the language model computes), `tiles`, `capacity` (token
        slots with padding; `tokens / capacity` is the packing efficiency).
        """
        return {}

    def step_flops(self, batch: Any) -> float:
        """Return the FLOPs of forward and backward pass of a batch; 0 where nobody counts them.

        Unlike `work`, it may take long: nothing calls it in each step.
        """
        return float(self.work(batch).get("flops", 0.0))

    def save_pretrained(self, folder: Any) -> None:
        """Write the model in its own format beside a checkpoint, where it has one."""
        raise NotImplementedError(f"{type(self).__name__} has no format of its own")


@runtime_checkable
class BatchSource(Protocol):
    """A pure function from place in the run to batch: no state, so resume and rank count can't change it.

    The batch must be a dataclass, tuple, list or dict of tensors and plain values, or have a
    `.to(device)` method.
    """

    def __call__(self, step: int, micro: int, rank: int, world: int) -> Any:
        """Return the `micro`-th micro-batch of optimizer step `step` for this rank."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of all that decides the batches; a resumed run must have the same one.

        A source whose fingerprints once were others has `former_fingerprints()`, too, for runs of that time.
        """
        ...


def is_of_source(fingerprint: str, source: BatchSource, own: str) -> bool:
    """Tell whether a saved fingerprint is that of a source's batches.

    Args:
        fingerprint: As saved, by this version or an earlier one.
        source: Source of the batches.
        own: What its `fingerprint` returns.
    """
    former = getattr(source, "former_fingerprints", tuple)
    return fingerprint == own or fingerprint in former()
