"""Checkpoint folders that are either whole or not there.

    checkpoints/step_00000100/
        model.safetensors      the objective's state
        optimizer.safetensors  AdamW's moments, "<moment>:<parameter>"
        ema.safetensors        the moving average of the weights, where there is one
        state.json             step, counters, what the run was
        config.yaml            a copy of the run's configuration, where it has one
        SHA256SUMS             digests of all files that don't carry their own (`vitp.core.sealed`)

A sharded run writes `shards/` in place of the two safetensors files (`vitp.engine.shards`); either form can be
read on any number of processes. There is no random state: the engine derives it from seed, step and rank.
`vitp.engine.recovery` chooses the newest checkpoint that is whole.
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

from vitp.core import sealed
from vitp.core.config import CONFIG_FILE
from vitp.core.errors import CheckpointError, DamagedError
from vitp.core.files import atomic_dir, write_json
from vitp.core.leftovers import recover, remove
from vitp.core.reading import read_json
from vitp.core.tensors import like, load_tensors, load_weights, save_tensors, trained_parameters, unique_state
from vitp.engine import shards

FORMAT, SHARDED_FORMAT = 1, 2
STATE_FILE = "state.json"
DAMAGED = ".damaged"
"""What follows the name of a checkpoint that was found damaged, until a newer one takes its place."""

_NAME = re.compile(r"step_(\d{8})")
_AGAIN = "copy the checkpoint again or remove it"
_OTHER_MODEL = "resume with the configuration that the run began with"


@dataclass
class RunState:
    """What a run needs beside weights and moments.

    Attributes:
        step: Optimizer steps done.
        fingerprint: Fingerprint of the batch source.
        counters: Totals since the start of the run: seconds, samples, tokens, tiles.
        evidence: Running sums of the evidence that the vision tower learns.
        settings: Configuration of the run, to report what changed.
        layout: How the checkpoint keeps its tensors: `FORMAT` or `SHARDED_FORMAT`.
        more: State of what is switched on: "patience", "scaler" (of the loss), "average".
    """

    step: int
    fingerprint: str
    counters: dict[str, float] = field(default_factory=dict)
    evidence: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    layout: int = FORMAT
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def kept(self) -> int | None:
        """Step of the best checkpoint so far, which stays; None where nothing is judged."""
        step: int | None = self.more.get("patience", {}).get("best_step")
        return step


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
    """Remove what a run that was killed had half written; only a run that owns its folder may call this.

    Whoever made it: nobody else writes there.
    """
    if not run_dir.is_dir():
        return
    recover(run_dir / "model")
    for parent in (run_dir, run_dir / "checkpoints", run_dir / "best"):
        for pattern in (".*.tmp", ".*.tmp.*", ".*.old"):
            for path in parent.glob(pattern):
                remove(path)


@dataclass(frozen=True)
class Tensors:
    """The tensors of a checkpoint by name: the model's state, the optimizer's `<moment>:<parameter>`, and the average
    of the weights, empty where there is none."""

    model: dict[str, Tensor]
    moments: dict[str, Tensor]
    average: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        names: Sequence[Sequence[str]],
        average: Mapping[str, Tensor] | None = None,
    ) -> Tensors:
        """Return what a model and its optimizer hold; nothing is copied.

        Args:
            model: The objective.
            optimizer: Optimizer of its parameters.
            names: Parameter names, parallel to the optimizer's groups.
            average: Moving average of the weights, where there is one.
        """
        moments = {
            f"{moment}:{name}": value
            for name, parameter in trained_parameters(optimizer, names).items()
            for moment, value in optimizer.state.get(parameter, {}).items()
        }
        return cls(unique_state(model), moments, dict(average or {}))

    def copies(self) -> Tensors:
        """Return copies in main memory, which the next step doesn't change."""
        parts = (
            {name: tensor.detach().to("cpu", copy=True) for name, tensor in part.items()}
            for part in (self.model, self.moments, self.average)
        )
        return Tensors(*parts)


def save(run_dir: Path, state: RunState, tensors: Tensors, keep_last: int) -> Path:
    """Write the checkpoint of `state.step`, then remove all but the newest `keep_last`.

    Raises:
        VitpError: The disk is full or can't be written; older checkpoints are untouched.
    """
    path = folder(run_dir, state.step)
    with atomic_dir(path) as temporary:
        save_tensors(temporary / "model.safetensors", tensors.model)
        save_tensors(temporary / "optimizer.safetensors", tensors.moments)
        if tensors.average:
            save_tensors(temporary / "ema.safetensors", tensors.average)
        write_state(temporary, state, FORMAT, run_dir)
    prune(run_dir, keep_last, path, state.kept)
    return path


def write_state(
    path: Path, state: RunState, layout: int, run_dir: Path, digests: Mapping[str, str] | None = None
) -> None:
    """Write into a checkpoint folder of format `layout` all but the tensors.

    Args:
        path: The checkpoint, which may still have another name.
        state: What to write.
        layout: `FORMAT` or `SHARDED_FORMAT`.
        run_dir: Folder of the run, for its configuration.
        digests: Name → SHA-256 of the files with tensors that don't carry their own.
    """
    names = [STATE_FILE]
    if (run_dir / CONFIG_FILE).is_file():
        shutil.copyfile(run_dir / CONFIG_FILE, path / CONFIG_FILE)
        names.append(CONFIG_FILE)
    write_json(
        path / STATE_FILE,
        {
            "format": layout,
            "digests": sealed.SUMS,
            "torch": torch.__version__,
            "step": state.step,
            "fingerprint": state.fingerprint,
            "counters": state.counters,
            "evidence": state.evidence,
            "settings": state.settings,
            **({"more": state.more} if state.more else {}),
        },
    )
    sealed.write_sums(path, names, digests)


def prune(run_dir: Path, keep_last: int, newest: Path, kept: int | None = None) -> None:
    """Remove all checkpoints of a run but the last `keep_last`, never `newest`, and damaged ones of earlier steps.

    That of the step `kept`, the best one, stays as well.
    """
    for damaged in newest.parent.glob(f"step_*{DAMAGED}"):
        if damaged.name.removesuffix(DAMAGED) <= newest.name:
            shutil.rmtree(damaged, ignore_errors=True)
    for old in checkpoints(run_dir)[:-keep_last]:
        if old == newest or (kept is not None and old == folder(run_dir, kept)):
            continue
        # Renamed first, so that a half-removed folder is never taken for a checkpoint.
        hidden = old.with_name(f".{old.name}.pruned.old")
        shutil.rmtree(hidden, ignore_errors=True)
        old.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def verify(path: Path, share: slice = slice(None)) -> None:
    """Compare files of a checkpoint folder with their digests: all that don't carry their own.

    Where a version that knew no digests has written the folder, that is told once.

    Args:
        path: Checkpoint folder.
        share: Which files of the list; every process may look at some.

    Raises:
        DamagedError: A file is missing, or isn't as it was written.
    """
    sums = sealed.read_sums(path, fix=_AGAIN)
    for name in sorted(sums)[share]:
        sealed.check_sum(path / name, sums[name], fix=_AGAIN)
    state = _read_json(path)
    # The state says that there were digests: their file has been lost, it isn't an older version's folder.
    if not sums and "digests" in state:
        raise DamagedError("is missing", where=str(path / sealed.SUMS), fix=_AGAIN)
    if not sums:
        sealed.tell_unknown(path)


def read_state(path: Path) -> RunState:
    """Read `state.json` of a checkpoint folder.

    Raises:
        DamagedError: It is missing or damaged.
        CheckpointError: It is of another format.
    """
    values = _read_json(path)
    try:
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
            dict(values.get("more", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"can't be read ({error})", where=str(path / STATE_FILE), fix=_AGAIN) from error


def _read_json(path: Path) -> dict[str, Any]:
    file = path / STATE_FILE
    try:
        values = read_json(file)
    except OSError as error:
        raise sealed.unreadable(file, error, _AGAIN) from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"can't be read ({error})", where=str(file), fix=_AGAIN) from error
    if not isinstance(values, dict):
        raise DamagedError("holds no state of a run", where=str(file), fix=_AGAIN)
    return values


def read_saved(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, names: Sequence[Sequence[str]]
) -> Tensors:
    """Return the tensors of a checkpoint, for a model and optimizer that stay as they are.

    Raises:
        DamagedError: A file is missing, or isn't as it was written.
    """
    # What the run says decides, not what lies in the folder: the list of parts is a pickle.
    state = read_state(path)
    if state.layout == SHARDED_FORMAT:
        return Tensors(*shards.load(path, model, optimizer, names))
    files = ["model", "optimizer", *(["ema"] if state.more.get("average") else [])]
    return Tensors(*(load_tensors(path / f"{name}.safetensors", fix=_AGAIN) for name in files))


def apply(
    path: Path,
    saved: Tensors,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    names: Sequence[Sequence[str]],
) -> None:
    """Give model and optimizer the tensors of a checkpoint, in place; nothing changes unless all of them fit.

    Learning rates, decay and the like stay the optimizer's own: they come from the configuration.

    Raises:
        CheckpointError: The architecture or the trained parameters are others.
    """
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for key, value in saved.moments.items():
        moment, _, name = key.partition(":")
        by_parameter.setdefault(name, {})[moment] = value
    _check_moments(path, by_parameter, optimizer, names)
    load_weights(model, saved.model, source=str(path), fix=_OTHER_MODEL)
    # Indices count parameters over all groups: the form that Optimizer.load_state_dict reads.
    trained = trained_parameters(optimizer, names)
    optimizer.load_state_dict(
        {
            "state": {
                i: {moment: like(value, parameter) for moment, value in by_parameter[name].items()}
                for i, (name, parameter) in enumerate(trained.items())
                if name in by_parameter
            },
            "param_groups": optimizer.state_dict()["param_groups"],
        }
    )


def _check_moments(
    path: Path,
    saved: dict[str, dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    names: Sequence[Sequence[str]],
) -> None:
    trained = trained_parameters(optimizer, names)
    # A checkpoint before the first step has no moments at all, and fits.
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
            fix=_OTHER_MODEL,
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
