"""The loss scale of fp16 runs: small gradients of half precision would become 0 without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitp.engine.gradients import Gradients

START = 2.0**16
GROWTH_STEPS = 2000
"""Steps in a row with a finite gradient after which the scale doubles; as in torch's GradScaler, as is `START`."""

FLOOR = 1.0
"""At this scale a gradient that isn't finite is no matter of the scale any more."""


class LossScale:
    """Halves with each step whose loss or gradient isn't finite, and doubles after many that are.

    The rule of `torch.amp.GradScaler`. The verdict is the engine's, which all ranks share and the host knows anyway: so
    all ranks skip the same steps, sharded or not. Powers of two change no digit of a gradient.

    Args:
        dtype: In which autocast computes; of others than float16 the scale stays 1.

    Attributes:
        value: Factor on the loss.
        skipped: Steps that were skipped since the start of the run.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.active = dtype is torch.float16
        self.value = START if self.active else 1.0
        self.skipped = 0
        self._finite = 0

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the loss that gradients are computed of."""
        return loss * self.value if self.active else loss

    def unscale(self, gradients: Gradients) -> None:
        """Divide the summed gradients of a step, in place."""
        if self.active:
            gradients.multiply(1 / self.value)

    @property
    def can_fall(self) -> bool:
        """Whether a step that isn't finite is to be skipped, rather than to end the run."""
        return self.active and self.value > FLOOR

    def update(self, finite: bool) -> None:
        """Take in whether a step was finite."""
        if not self.active:
            return
        self._finite = self._finite + 1 if finite else 0
        if not finite:
            self.value, self.skipped = max(self.value / 2, FLOOR), self.skipped + 1
        elif self._finite == GROWTH_STEPS:
            self.value, self._finite = self.value * 2, 0

    def row(self) -> dict[str, float]:
        """Return what `metrics.jsonl` is told."""
        return {"loss_scale": self.value, "skipped_steps": float(self.skipped)} if self.active else {}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as JSON; empty where there is no scale."""
        return {"scale": self.value, "finite": self._finite, "skipped": self.skipped} if self.active else {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; from one of another precision, with the scale that runs begin with."""
        if self.active and state:
            self.value, self._finite, self.skipped = state["scale"], state["finite"], state["skipped"]
