"""The choice of the checkpoint to resume from: the newest one that is whole."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from vitp.core import distributed
from vitp.core.errors import CheckpointError, ConfigError, DamagedError, VitpError
from vitp.core.tensors import load_weights
from vitp.engine import checkpoint
from vitp.engine.average import WeightAverage
from vitp.engine.checkpoint import RunState
from vitp.engine.config import OptimSettings, TrainSettings
from vitp.engine.optim import changed_rate

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on.

    Attributes:
        path: Checkpoint that was loaded.
        state: What it says beside the tensors.
        notes: Lines about newer checkpoints that are damaged.
    """

    path: Path
    state: RunState
    notes: tuple[str, ...]


def load_newest(
    run_dir: Path,
    is_of_source: Callable[[str], bool],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    names: Sequence[Sequence[str]],
    average: WeightAverage | None = None,
) -> Resumed | None:
    """Load the newest checkpoint that is whole into model and optimizer, in place. A collective call.

    A damaged one is passed over for the one before it, and gets a name under which it is no checkpoint any more;
    that never happens when none is whole. One of another run is an error, and nothing is passed over.

    Args:
        run_dir: Folder of the run.
        is_of_source: Tells whether a fingerprint is that of the run's batches.
        model: The objective.
        optimizer: Optimizer of its parameters.
        names: Parameter names, parallel to the optimizer's groups.
        average: Moving average of the weights, where there is one on this process.

    Returns:
        None where there is no checkpoint.

    Raises:
        DamagedError: All checkpoints are damaged.
        CheckpointError: The data, the architecture or the trained parameters are others.
    """
    paths = checkpoint.checkpoints(run_dir)
    if not paths:
        return None
    damaged: dict[Path, DamagedError] = {}
    share = slice(distributed.rank(), None, distributed.world_size())
    for path in reversed(paths):
        try:
            # Tensors are read only when all processes have found their share of the files whole: reading shards is
            # a collective call.
            _together(checkpoint.verify, path, share)
            state = _together(checkpoint.read_state, path)
            saved = _together(checkpoint.read_saved, path, model, optimizer, names)
        except DamagedError as error:
            damaged[path] = error
            continue
        if not is_of_source(state.fingerprint):
            raise CheckpointError(
                "was trained on other batches: data, labels, batch size or seed have changed",
                where=str(path),
                fix="resume with the configuration that the run began with, or start in another folder",
            )
        checkpoint.apply(path, saved, model, optimizer, names)
        if average is not None:
            average.load(saved.average, str(path))
        return Resumed(path, state, _put_aside(damaged, path))
    raise _none_is_whole(run_dir, damaged)


def load_best(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    names: Sequence[Sequence[str]],
    average: WeightAverage | None,
) -> str:
    """Give a model the weights of its best checkpoint, in place; return what is to be said. A collective call.

    Where it is missing or damaged the weights stay as they are.
    """
    try:
        _together(checkpoint.verify, path, slice(distributed.rank(), None, distributed.world_size()))
        saved = _together(checkpoint.read_saved, path, model, optimizer, names)
    except VitpError as error:
        return f"WARNING: {error.where} {error.what}: the model has the last weights instead of the best"
    load_weights(model, saved.model, source=str(path))
    if average is not None:
        average.load(saved.average, str(path))
    return f"the model has the weights of the best score, {path.name}"


def changes_on_resume(
    state: RunState,
    settings: Mapping[str, Any],
    optim: OptimSettings,
    train: TrainSettings,
    scheduled: Sequence[str],
) -> list[str]:
    """Return lines about what a resumed run has changed, and what another length means for the steps done.

    Args:
        state: State of the checkpoint that the run goes on from.
        settings: What it would say of the settings now.
        optim, train: The settings now.
        scheduled: What of the objective follows a schedule over all steps.

    Raises:
        ConfigError: The run is longer already.
    """
    if state.step > train.steps:
        raise ConfigError(
            f"the run has {state.step} steps behind it, more than the {train.steps} asked for",
            where="train.steps",
            fix=f"ask for at least {state.step}",
        )
    lines = checkpoint.changed_settings(state.settings, settings)
    return lines + changed_schedules(state, optim, train.steps, scheduled)


def changed_schedules(
    state: RunState, optim: OptimSettings, steps: int, scheduled: Sequence[str]
) -> list[str]:
    """Return lines about what it means for the steps done that a run has another length now.

    Args:
        state: State of the checkpoint that the run goes on from.
        optim: Optimizer and schedule now.
        steps: Length now.
        scheduled: What of the objective follows a schedule over all steps.
    """
    before = state.settings.get("train", {}).get("steps")
    if not isinstance(before, int) or before == steps:
        return []
    notes = []
    if note := changed_rate(state.settings.get("optim", {}), before, optim, steps, state.step):
        notes.append(f"WARNING: {note}")
    if scheduled:
        notes.append(
            f"WARNING: {' and '.join(scheduled)} follow the {steps} steps from here on, {before} before"
        )
    return notes


def _together(action: Callable[..., _Result], *arguments: Any) -> _Result:
    """Do something on all processes; an error of one of them is raised on all."""
    results: list[_Result] = []
    error = None
    try:
        results.append(action(*arguments))
    except VitpError as caught:
        error = caught
    distributed.raise_together(error)
    return results[0]


def _put_aside(damaged: dict[Path, DamagedError], used: Path) -> tuple[str, ...]:
    """Give damaged checkpoints another name, and return what there is to say of them."""
    notes = []
    for path, error in damaged.items():
        notes.append(f"WARNING: skipped the damaged checkpoint {path.name}: {error.where}: {error.what}")
        if distributed.rank() == 0:
            aside = path.with_name(path.name + checkpoint.DAMAGED)
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(OSError):  # it is written over when the run comes to its step again
                path.rename(aside)
    distributed.barrier()
    if damaged:
        notes.append(f"WARNING: going on from {used.name}; the steps since then are made again")
    return tuple(notes)


def _none_is_whole(run_dir: Path, damaged: dict[Path, DamagedError]) -> DamagedError:
    reasons = "; ".join(f"{path.name}: {error.where}: {error.what}" for path, error in damaged.items())
    what = (
        "the only checkpoint is damaged"
        if len(damaged) == 1
        else f"all {len(damaged)} checkpoints are damaged"
    )
    return DamagedError(
        f"{what} ({reasons})",
        where=str(run_dir / "checkpoints"),
        fix="copy one back from elsewhere, or start the run anew in another folder",
    )
