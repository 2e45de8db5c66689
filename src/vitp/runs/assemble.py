"""The assembly of a run from its parts, which pretraining and finetuning share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vitp.core import distributed
from vitp.core.files import write_json
from vitp.engine.config import OptimSettings, TrainSettings
from vitp.engine.hooks import Hook, TrainResult
from vitp.engine.loop import Trainer
from vitp.engine.trackers import Trackers
from vitp.objectives.base import BatchSource, Objective


@dataclass(frozen=True)
class RunParts:
    """What a run consists of.

    Attributes:
        objective: Model and losses; its vision tower is watched.
        source: Its batches.
        optim: Optimizer and schedule.
        train: Length, precision and bookkeeping.
        hooks: Called while it trains.
        sets: What `mixture.json` says about the data; None: no such file.
        trackers: Are told the numbers; None: nobody is.
    """

    objective: Objective
    source: BatchSource
    optim: OptimSettings
    train: TrainSettings
    hooks: Sequence[Hook] = ()
    sets: Sequence[dict[str, Any]] | None = None
    trackers: Trackers | None = None


def say(lines: Sequence[str], console: Console | None) -> None:
    """Print what a user should know about the data, on the first rank."""
    if distributed.rank() == 0:
        for line in lines:
            (console or Console()).print(line, style="yellow", markup=False, highlight=False)


def train_parts(
    parts: RunParts, folder: Path, *, console: Console | None = None, resume: bool = False
) -> TrainResult:
    """Train, and leave metrics, checkpoints, evidence and the model in a folder.

    Raises:
        VitpError: Data that can't be used, a non-finite loss, a full disk.
    """
    if parts.sets is not None and distributed.rank() == 0:
        description = {"fingerprint": parts.source.fingerprint(), "sets": list(parts.sets)}
        write_json(folder / "mixture.json", description)
    return Trainer(
        parts.objective,
        parts.source,
        parts.optim,
        parts.train,
        folder,
        hooks=parts.hooks,
        console=console,
        resume=resume,
        trackers=parts.trackers,
    ).train()
