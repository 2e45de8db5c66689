"""Callbacks of the engine, and the result that a run returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitp.engine.loop import Trainer


@dataclass(frozen=True)
class StepMetrics:
    """Measurements of one optimizer step, over all micro-batches and ranks.

    Attributes:
        step: Optimizer steps done, this one included.
        loss: Weighted total.
        losses: Name → mean over its terms, without weight.
        lr: Learning rate of a part with scale 1.
        grad_norm: Before clipping.
        grad_share: Part → share of the squared gradient norm.
        vision_share: The vision tower's share.
        work: What the batches amounted to (`samples`, `tokens`, …).
        skipped: The loss or the gradient was not finite and, under fp16, the weights stayed as they were.
    """

    step: int
    loss: float
    losses: dict[str, float]
    lr: float
    grad_norm: float
    grad_share: dict[str, float]
    vision_share: float
    work: dict[str, float] = field(default_factory=dict)
    skipped: bool = False


class Hook:
    """Something that looks on: probes, evaluations, exports. Called on every rank.

    Hooks may move the objective to `eval()` and draw random numbers; neither changes the training.

    `trainer.objective` has the current weights on rank 0 in `on_start`, in `on_end`, after the last step and
    after every `every`-th one. Where the model is sharded (`train.parallel`), it has them then only, and changing
    them there changes nothing.

    Attributes:
        every: Steps between looks at the weights; None or 0: only at the start and the end.
        score: Step and score of the newest look on rank 0, by which `train.patience` judges; more is better. None: the
            hook judges nothing.
        keeps_best: Whether the hook itself keeps the weights of the best score; else the engine does.
    """

    every: int | None = 1
    score: tuple[int, float] | None = None
    keeps_best: bool = False

    def on_start(self, trainer: Trainer) -> None:
        """Called once, with the weights that this process begins with."""

    def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
        """Called after each optimizer step; `step` counts from 1."""

    def on_end(self, trainer: Trainer) -> None:
        """Called after the last step, not when the run is interrupted."""


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves.

    Attributes:
        step: Optimizer steps done.
        loss: Loss of the last step; nan if a resumed run had nothing left to do.
        checkpoint: The last checkpoint.
        model: Folder of `Objective.save_pretrained`, None if the objective has no format of its own.
        evidence: What `evidence.json` holds.
        elapsed_s: Seconds of training, interruptions left out.
    """

    step: int
    loss: float
    checkpoint: Path
    model: Path | None
    evidence: dict[str, Any]
    elapsed_s: float
