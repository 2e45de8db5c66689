"""Checkpoint folders that are either whole or not there.

    checkpoints/step_00000100/
        model.safetensors      the objective's state
        optimizer.safetensors  AdamW's moments, "<moment>:<parameter>"
        state.json             step, counters, what the run was

There is no random state: the engine derives it from seed, step and rank.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitp.engine.weights import load_state, load_tensors, save_tensors, unique_state
from vitp.errors import CheckpointError
from vitp.files import atomic_dir, write_json

FORMAT = 1
_NAME = re.compile(r"step_(\d{8})")


@dataclass
class RunState:
    """What a run needs beside weights and moments.

    Attributes:
        step: Optimizer steps done.
        fingerprint: Of the batch source.
        counters: Totals since the start of the run: seconds, samples, tokens, tiles.
        evidence: Running sums of the evidence that the vision tower learns.
        settings: Configuration of the run, to report what changed.
    """

    step: int
    fingerprint: str
    counters: dict[str, float] = field(default_factory=dict)
    evidence: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def folder(run_dir: Path, step: int) -> Path:
    """Return the checkpoint folder of a step."""
    return run_dir / "checkpoints" / f"step_{step:08d}"


def checkpoints(run_dir: str | Path) -> list[Path]:
    """Return the run's checkpoint folders, oldest first."""
    parent = Path(run_dir) / "checkpoints"
    found = [path for path in parent.glob("step_*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found)


def latest(run_dir: str | Path) -> Path | None:
    """Return the newest checkpoint folder of a run, or None."""
    return next(reversed(checkpoints(run_dir)), None)


def remove_leftovers(run_dir: Path) -> None:
    """Remove what a run that was killed had half written; only a run that owns its folder may call this."""
    for parent in (run_dir, run_dir / "checkpoints"):
        for pattern in (".*.tmp", ".*.tmp.*", ".*.old"):
            for path in parent.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def _moments(optimizer: torch.optim.Optimizer, names: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    return {
        f"{moment}:{name}": value
        for group, group_names in zip(optimizer.param_groups, names, strict=True)
        for parameter, name in zip(group["params"], group_names, strict=True)
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def save(
    run_dir: Path,
    state: RunState,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    names: Sequence[Sequence[str]],
    keep_last: int,
) -> Path:
    """Write the checkpoint of `state.step`, then remove all but the newest `keep_last`.

    Args:
        names: Parameter names, parallel to the optimizer's groups.

    Raises:
        VitpError: The disk is full or can't be written; older checkpoints are untouched.
    """
    path = folder(run_dir, state.step)
    with atomic_dir(path) as temporary:
        save_tensors(temporary / "model.safetensors", unique_state(model))
        save_tensors(temporary / "optimizer.safetensors", _moments(optimizer, names))
        write_json(
            temporary / "state.json",
            {
                "format": FORMAT,
                "torch": torch.__version__,
                "step": state.step,
                "fingerprint": state.fingerprint,
                "counters": state.counters,
                "evidence": state.evidence,
                "settings": state.settings,
            },
        )
    for old in checkpoints(run_dir)[:-keep_last]:
        if old == path:
            continue
        # Renamed first, so that a half-removed folder is never taken for a checkpoint.
        hidden = old.with_name(f".{old.name}.old")
        old.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
    return path


def read_state(path: Path) -> RunState:
    """Read `state.json` of a checkpoint folder.

    Raises:
        CheckpointError: It is missing, damaged or of another format.
    """
    file = path / "state.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise CheckpointError(
                f"has format {values['format']}, this version reads {FORMAT}",
                where=str(path),
                fix="resume with the version that wrote it",
            )
        return RunState(
            int(values["step"]),
            values["fingerprint"],
            values["counters"],
            values["evidence"],
            values["settings"],
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"can't be read ({error})", where=str(file), fix="remove this checkpoint to use the one before it"
        ) from error


def load(
    path: Path,
    fingerprint: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    names: Sequence[Sequence[str]],
) -> RunState:
    """Load a checkpoint into model and optimizer, in place; nothing changes unless all of it fits.

    Learning rates, decay and the like stay the optimizer's own: they come from the configuration.

    Raises:
        CheckpointError: The data, the architecture or the trained parameters are others, or a file is
            damaged.
    """
    state = read_state(path)
    if state.fingerprint != fingerprint:
        raise CheckpointError(
            "was trained on other batches: data, batch size or seed have changed",
            where=str(path),
            fix="resume with the configuration that the run began with, or start in another folder",
        )
    weights = load_tensors(path / "model.safetensors")
    moments = load_tensors(path / "optimizer.safetensors")
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for key, value in moments.items():
        moment, _, name = key.partition(":")
        by_parameter.setdefault(name, {})[moment] = value
    _check_moments(path, by_parameter, optimizer, names)
    load_state(model, weights, where=str(path))
    # Indices count parameters over all groups: the form that Optimizer.load_state_dict reads.
    flat = [name for group_names in names for name in group_names]
    optimizer.load_state_dict(
        {
            "state": {i: by_parameter[name] for i, name in enumerate(flat) if name in by_parameter},
            "param_groups": optimizer.state_dict()["param_groups"],
        }
    )
    return state


def _check_moments(
    path: Path,
    saved: dict[str, dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    names: Sequence[Sequence[str]],
) -> None:
    trained = {
        name: parameter
        for group, group_names in zip(optimizer.param_groups, names, strict=True)
        for parameter, name in zip(group["params"], group_names, strict=True)
    }
    wrong = [f"{name} is trained now and was not" for name in trained if saved and name not in saved]
    wrong += [f"{name} was trained and is not now" for name in saved if name not in trained]
    wrong += [
        f"{name} was {tuple(saved[name]['exp_avg'].shape)} and is {tuple(parameter.shape)}"
        for name, parameter in trained.items()
        if name in saved and saved[name]["exp_avg"].shape != parameter.shape
    ]
    if wrong:
        raise CheckpointError(
            f"does not fit the trained parameters, {len(wrong)} differ: {'; '.join(wrong[:8])}"
            + ("; …" if len(wrong) > 8 else ""),
            where=str(path),
            fix="resume with the configuration that the run began with",
        )


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """Return one line for each setting that a resumed run has changed, by its dotted name."""
    lines = []
    for name, value in now.items():
        old = before.get(name)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            lines += changed_settings(old, value, f"{path}{name}.")
        elif old != value:
            lines.append(f"changed since the last checkpoint: {path}{name} {old} → {value}")
    return lines
