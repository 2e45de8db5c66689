"""Checkpoint folders that are either whole or not there.

    checkpoints/step_00000100/
        model.safetensors      the objective's state
        optimizer.safetensors  AdamW's moments, "<moment>:<parameter>"
        state.json             step, counters, what the run was

A sharded run writes `shards/` in place of the two safetensors files (`vitp.engine.shards`); either form can be
read on any number of processes. There is no random state: the engine derives it from seed, step and rank.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitp.engine import shards
from vitp.engine.weights import like, load_state, load_tensors, save_tensors, unique_state
from vitp.errors import CheckpointError
from vitp.files import atomic_dir, write_json
from vitp.reading import parse_json, read_text

FORMAT, SHARDED_FORMAT = 1, 2
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
        layout: How the checkpoint keeps its tensors: `FORMAT` or `SHARDED_FORMAT`.
    """

    step: int
    fingerprint: str
    counters: dict[str, float] = field(default_factory=dict)
    evidence: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    layout: int = FORMAT


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


@dataclass(frozen=True)
class Tensors:
    """The tensors of a checkpoint by name: the model's state, and the optimizer's `<moment>:<parameter>`."""

    model: dict[str, Tensor]
    moments: dict[str, Tensor]

    @classmethod
    def of(
        cls, model: nn.Module, optimizer: torch.optim.Optimizer, names: Sequence[Sequence[str]]
    ) -> Tensors:
        """Return what a model and its optimizer hold; nothing is copied.

        Args:
            model: The objective.
            optimizer: Of its parameters.
            names: Parameter names, parallel to the optimizer's groups.
        """
        moments = {
            f"{moment}:{name}": value
            for group, group_names in zip(optimizer.param_groups, names, strict=True)
            for parameter, name in zip(group["params"], group_names, strict=True)
            for moment, value in optimizer.state.get(parameter, {}).items()
        }
        return cls(unique_state(model), moments)

    def copies(self) -> Tensors:
        """Return copies in main memory, which the next step doesn't change."""
        model, moments = (
            {name: tensor.detach().to("cpu", copy=True) for name, tensor in part.items()}
            for part in (self.model, self.moments)
        )
        return Tensors(model, moments)


def save(run_dir: Path, state: RunState, tensors: Tensors, keep_last: int) -> Path:
    """Write the checkpoint of `state.step`, then remove all but the newest `keep_last`.

    Raises:
        VitpError: The disk is full or can't be written; older checkpoints are untouched.
    """
    path = folder(run_dir, state.step)
    with atomic_dir(path) as temporary:
        save_tensors(temporary / "model.safetensors", tensors.model)
        save_tensors(temporary / "optimizer.safetensors", tensors.moments)
        write_state(temporary, state, FORMAT)
    prune(run_dir, keep_last, path)
    return path


def write_state(path: Path, state: RunState, layout: int) -> None:
    """Write `state.json` into a checkpoint folder of format `layout`."""
    write_json(
        path / "state.json",
        {
            "format": layout,
            "torch": torch.__version__,
            "step": state.step,
            "fingerprint": state.fingerprint,
            "counters": state.counters,
            "evidence": state.evidence,
            "settings": state.settings,
        },
    )


def prune(run_dir: Path, keep_last: int, newest: Path) -> None:
    """Remove all checkpoints of a run but the last `keep_last`, and never `newest`."""
    for old in checkpoints(run_dir)[:-keep_last]:
        if old == newest:
            continue
        # Renamed first, so that a half-removed folder is never taken for a checkpoint.
        hidden = old.with_name(f".{old.name}.old")
        shutil.rmtree(hidden, ignore_errors=True)
        old.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def read_state(path: Path) -> RunState:
    """Read `state.json` of a checkpoint folder.

    Raises:
        CheckpointError: It is missing, damaged or of another format.
    """
    file = path / "state.json"
    try:
        values = parse_json(read_text(file))
        if values["format"] not in (FORMAT, SHARDED_FORMAT):
            raise CheckpointError(
                f"has format {values['format']}, this version reads {FORMAT} and {SHARDED_FORMAT}",
                where=str(path),
                fix="resume with the version that wrote it",
            )
        return RunState(
            int(values["step"]),
            values["fingerprint"],
            values["counters"],
            values["evidence"],
            values["settings"],
            values["format"],
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
    if state.layout == SHARDED_FORMAT:
        saved = Tensors(*shards.load(path, model, optimizer, names))
    else:
        saved = Tensors(
            load_tensors(path / "model.safetensors"), load_tensors(path / "optimizer.safetensors")
        )
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for key, value in saved.moments.items():
        moment, _, name = key.partition(":")
        by_parameter.setdefault(name, {})[moment] = value
    _check_moments(path, by_parameter, optimizer, names)
    load_state(model, saved.model, where=str(path))
    # Indices count parameters over all groups: the form that Optimizer.load_state_dict reads.
    flat = [
        (name, parameter)
        for group, group_names in zip(optimizer.param_groups, names, strict=True)
        for parameter, name in zip(group["params"], group_names, strict=True)
    ]
    optimizer.load_state_dict(
        {
            "state": {
                i: {moment: like(value, parameter) for moment, value in by_parameter[name].items()}
                for i, (name, parameter) in enumerate(flat)
                if name in by_parameter
            },
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
    """Return one line for each setting that a resumed run has changed, by its dotted name.

    What the version that saved it did not know yet is left out.
    """
    lines = []
    for name, value in now.items():
        if name not in before:
            continue
        old = before[name]
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            lines += changed_settings(old, value, f"{path}{name}.")
        elif old != value:
            lines.append(f"changed since the last checkpoint: {path}{name} {old} → {value}")
    return lines
