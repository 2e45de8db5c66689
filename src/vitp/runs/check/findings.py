"""Comparisons of a check, and their findings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vitp.data.packing import PackedBatch
from vitp.objectives.vitp import ViTPObjective


@dataclass(frozen=True)
class Difference:
    """One figure of a comparison.

    Attributes:
        what: That is compared.
        value: Measured.
        limit: Largest value (or smallest, for a cosine) that counts as equal.
        at_least: The limit is a lower one.
    """

    what: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def ok(self) -> bool:
        """Whether it is within the limit; a value that is not finite never is."""
        if not math.isfinite(self.value):
            return False
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True)
class CheckFinding:
    """The outcome of one check.

    Attributes:
        name: "packed ≡ one by one".
        differences: Empty where it was skipped.
        skipped: Why it could not be made, or None.
    """

    name: str
    differences: tuple[Difference, ...] = ()
    skipped: str | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing differs; a check that was skipped finds nothing."""
        return all(difference.ok for difference in self.differences)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        differences = [{**asdict(one), "ok": one.ok} for one in self.differences]
        return {"check": self.name, "ok": self.ok, "skipped": self.skipped, "differences": differences}


@dataclass(frozen=True)
class BatchOutcome:
    """Loss and gradients of some batches.

    Attributes:
        loss: Sum over all supervised tokens.
        gradients: Parameter → gradient of that sum, on the host in fp32.
    """

    loss: float
    gradients: Mapping[str, Tensor]


def outcome(objective: ViTPObjective, batches: Sequence[PackedBatch], device: torch.device) -> BatchOutcome:
    """Return loss and gradients of batches together, in fp32."""
    objective.zero_grad(set_to_none=True)
    total = 0.0
    for batch in batches:
        loss = objective(batch.to(device))["language"]
        loss.backward()
        total += float(loss.detach())
    gradients = {
        name: parameter.grad.detach().float().cpu().clone()
        for name, parameter in objective.named_parameters()
        if parameter.grad is not None
    }
    objective.zero_grad(set_to_none=True)
    return BatchOutcome(total, gradients)


def compare(
    a: BatchOutcome, b: BatchOutcome, tolerance: float, cosine: float = 0.9999
) -> tuple[Difference, ...]:
    """Return how far two outcomes are apart: loss, length and direction of the whole gradient, worst parameter.

    Args:
        a, b: The outcomes; `b` is the reference.
        tolerance: Tolerance of the loss and of the gradient, relative.
        cosine: Smallest cosine between the gradients.
    """
    names = sorted(a.gradients.keys() | b.gradients.keys())
    first, second = (
        torch.cat([_gradient(one, other, name).flatten().double() for name in names])
        if names
        else torch.zeros(1)
        for one, other in ((a, b), (b, a))
    )
    norm = float(second.norm())
    difference = float((first - second).norm())
    product = float(first @ second) / max(float(first.norm()) * norm, 1e-300)
    return (
        Difference("loss, relative", abs(a.loss - b.loss) / max(abs(b.loss), 1e-12), tolerance),
        Difference("gradient, relative", difference / max(norm, 1e-300), tolerance),
        Difference("gradient, cosine", product, cosine, at_least=True),
    )


def compare_tensors(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], tolerance: float
) -> tuple[Difference, ...]:
    """Return how far two sets of weights are apart: length of the difference over length of the reference.

    All weights together, because AdamW makes steps of full size from gradients that are nothing but rounding (those of
    key biases, say), so that a few weights differ however small the error is. A name that one of them lacks, or another
    shape, is an infinite difference.
    """
    same = a.keys() == b.keys() and all(a[name].shape == b[name].shape for name in a)
    if not same:
        return (Difference("weights, relative", math.inf, tolerance),)
    apart = sum(float((a[name].double() - b[name].double()).square().sum()) for name in a)
    size = sum(float(value.double().square().sum()) for value in b.values())
    return (Difference("weights, relative", math.sqrt(apart / max(size, 1e-300)), tolerance),)


def compare_curves(a: Sequence[float], b: Sequence[float], tolerance: float) -> tuple[Difference, ...]:
    """Return how far two loss curves are apart at the worst step, relative."""
    if len(a) != len(b) or not a:
        return (Difference("loss curve, worst relative", math.inf, tolerance),)
    worst = max(abs(x - y) / max(abs(y), 1e-12) for x, y in zip(a, b, strict=True))
    return (Difference("loss curve, worst relative", worst, tolerance),)


def _gradient(one: BatchOutcome, other: BatchOutcome, name: str) -> Tensor:
    """A gradient that only the other side has counts as zero."""
    return one.gradients[name] if name in one.gradients else torch.zeros_like(other.gradients[name])
