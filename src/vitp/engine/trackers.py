"""What a run tells other programs: TensorBoard, Weights & Biases, MLflow. Rank 0 only.

`RunLog` hands its numbers to one `Trackers`. A tracker that fails is dropped with one warning: no training ends
because of it. Names of their runs are kept in `RUN/trackers.json`, so that a resumed run goes on in the same ones. What
they are told holds no absolute paths and no keys; none opens a connection unless the user's environment asks for it.
"""

from __future__ import annotations

import logging
import math
import os
import re
import secrets
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar

from vitp.core import distributed
from vitp.core.errors import ConfigError
from vitp.core.extras import need
from vitp.core.files import write_json
from vitp.core.reading import read_json
from vitp.engine.config import LogSettings
from vitp.engine.stopping import Interrupted

NAMES_FILE = "trackers.json"
_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow.tracking"}
_log = logging.getLogger("vitp")

_SECRET = re.compile(r"(^|[_.\-])(key|keys|apikey|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
_PATH = re.compile(r"(?<![\w:/.\-\\])(?:~?/|[A-Za-z]:[\\/]|\\\\)[^\s,;=\"'\]})]+")
_WITH_USER = re.compile(r"(\w+://)[^/@\s]*@")
_QUERY = re.compile(r"(\w+://[^\s?#]*)[?#]\S*")


def shown_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings as dotted key → value that others may see.

    Of an absolute path its last part is left, of an address neither user nor query; what is named like a secret is left
    out.
    """
    shown: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if _SECRET.search(str(name)):
            continue
        if isinstance(value, Mapping):
            shown |= shown_settings(value, f"{_shown(key)}.")
        else:
            shown[str(_shown(key))] = _shown(value)
    return shown


def _shown(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_shown(str(key)): _shown(part) for key, part in value.items() if not _SECRET.search(str(key))}
    if isinstance(value, list | tuple):
        return [_shown(part) for part in value]
    if not isinstance(value, str):
        return value
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(value).is_absolute():
            return kind(value).name
    value = _QUERY.sub(r"\1", _WITH_USER.sub(r"\1", value))
    return _PATH.sub(lambda found: re.split(r"[\\/]", found[0].rstrip("/\\"))[-1], value)


class Tracker(ABC):
    """One program that is told of a run. Any method may raise anything.

    Attributes:
        run_name: What the program calls the run, to go on there; None: it needs no name.
    """

    run_name: str | None = None

    @abstractmethod
    def settings(self, values: Mapping[str, Any]) -> None:
        """Tell the settings of a run that begins: dotted key → plain value."""

    @abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Tell numbers of a step."""

    @abstractmethod
    def final(self, step: int, values: Mapping[str, float]) -> None:
        """Tell the scores of the model that the run leaves."""

    @abstractmethod
    def close(self, status: str) -> None:
        """Write what is left. `status`: "finished", "interrupted" or "failed"."""


class TensorBoard(Tracker):
    """Curves in `RUN/tensorboard`; those of steps that are made again are removed."""

    def __init__(self, run_dir: Path, settings: LogSettings, name: str | None, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # two seconds that other runs need not wait

        self._board: Any = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else None)

    def settings(self, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._board.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in values.items()), 0)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def final(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self.scalars(step, values)

    def close(self, status: str) -> None:
        """See `Tracker`."""
        self._board.close()


class WandB(Tracker):
    """A run of Weights & Biases in `RUN/wandb`, or `$WANDB_DIR`; offline unless `$WANDB_MODE` says otherwise.

    Nothing is sent about the machine, the command line, the repository or the packages.
    """

    def __init__(self, run_dir: Path, settings: LogSettings, name: str | None, step: int) -> None:
        wandb = need("track", "wandb", "log.trackers", ConfigError)
        self.run_name = name or secrets.token_hex(6)
        quiet = {"console": "off", "silent": True, "disable_code": True, "disable_git": True}
        quiet |= {"x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True}
        nobody = {"host": "", "username": "", "email": "", "program": "vitp", "x_save_requirements": False}
        own = wandb.Settings(**quiet, **nobody)
        folder = Path(os.environ.get("WANDB_DIR") or run_dir)
        self._mode = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(
            project=settings.project,
            name=settings.name or run_dir.resolve().name,
            id=self.run_name,
            resume="allow",
            dir=str(folder),
            mode=self._mode,
            settings=own,
        )
        self._files = Path(self._run.dir).parent
        # Its own count of steps can't go back, which a run that was killed does.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def settings(self, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._run.config.update(dict(values), allow_val_change=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log({**values, "step": step})

    def final(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.summary.update(dict(values))

    def close(self, status: str) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=0 if status == "finished" else 1)
        if self._mode == "offline":
            # Notes of the package to itself, which hold paths of this machine.
            shutil.rmtree(self._files / "logs", ignore_errors=True)
            for link in (self._files.parent / "debug.log", self._files.parent / "debug-internal.log"):
                link.unlink(missing_ok=True)


class MLflow(Tracker):
    """A run of MLflow in the store that `$MLFLOW_TRACKING_URI` names, else in the folder `RUN/mlflow`."""

    _ENDS: ClassVar[dict[str, str]] = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}

    def __init__(self, run_dir: Path, settings: LogSettings, name: str | None, step: int) -> None:
        store = os.environ.get("MLFLOW_TRACKING_URI")
        if not store:
            # MLflow wants a database by now, whose packages its small distribution lacks; a folder has to be allowed.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            store = (run_dir / "mlflow").resolve().as_uri()
        tracking = need("track", "mlflow.tracking", "log.trackers", ConfigError)
        self._client = tracking.MlflowClient(tracking_uri=store)
        self._entities = need("track", "mlflow.entities", "log.trackers", ConfigError)
        self.run_name = name if name is not None and self._goes_on(name) else self._new(settings, run_dir)

    def _goes_on(self, name: str) -> bool:
        try:
            self._client.update_run(name, status="RUNNING")
        except Exception as error:  # the store is another one, or the run was removed from it
            _log.warning(
                "note: MLflow has no run %s any more (%s): a new one begins", name, _first_line(error)
            )
            return False
        return True

    def _new(self, settings: LogSettings, run_dir: Path) -> str:
        found = self._client.get_experiment_by_name(settings.project)
        if found is None:
            # A place for files, of which there are none: else it would be a path of this machine.
            place = f"mlflow-artifacts:/{settings.project}"
            experiment = self._client.create_experiment(settings.project, artifact_location=place)
        else:
            experiment = found.experiment_id
        name = settings.name or run_dir.resolve().name
        run: str = self._client.create_run(experiment, run_name=name).info.run_id
        return run

    def settings(self, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        # Its parameters never change, and are short.
        told = self._client.get_run(self.run_name).data.params
        # MLflow takes 500 characters a value and 100 values a call.
        new = {name: str(value)[:500] for name, value in values.items() if name not in told}
        params = [self._entities.Param(name, value) for name, value in new.items()]
        for first in range(0, len(params), 100):
            self._client.log_batch(self.run_name, params=params[first : first + 100])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        now = int(time.time() * 1000)
        # MLflow takes no other characters in names.
        plain = [(re.sub(r"[^\w\-./ :]", "_", name), value) for name, value in values.items()]
        metrics = [self._entities.Metric(name, value, now, step) for name, value in plain]
        self._client.log_batch(self.run_name, metrics=metrics)

    def final(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self.scalars(step, values)

    def close(self, status: str) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self.run_name, self._ENDS[status])


_KINDS: dict[str, Callable[[Path, LogSettings, str | None, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


class Trackers:
    """All trackers of a run. Nothing that happens within one stops the training.

    Args:
        run_dir: Folder of the run.
        settings: Which trackers are used.
        told: Settings of the run, as plain values.
    """

    def __init__(self, run_dir: Path, settings: LogSettings, told: Mapping[str, Any]) -> None:
        self.run_dir, self.wanted, self._told = run_dir, settings, told
        self._open: dict[str, Tracker] = {}
        self._step = 0

    def begin(self, step: int) -> None:
        """Open them, for a run that has so many steps behind it."""
        self._step, names = step, _known_names(self.run_dir)
        for kind in dict.fromkeys(self.wanted.trackers):
            begin = _KINDS[kind]
            name = names.get(kind)

            def opened(begin: Any = begin, name: str | None = name, kind: str = kind) -> None:
                self._open[kind] = begin(self.run_dir, self.wanted, name, step)

            self._guarded(kind, opened)
        now = {kind: one.run_name for kind, one in self._open.items() if one.run_name is not None}
        if now and {**names, **now} != names:
            write_json(self.run_dir / NAMES_FILE, {**names, **now})
        if not step:
            shown = shown_settings(self._told)
            self._each(lambda one: one.settings(shown))

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Tell numbers of a step; those below a name get it as the first part of theirs."""
        self._step = step
        flat = {name: value for name, value in _flat(values).items() if name != "step"}
        self._each(lambda one: one.scalars(step, flat))

    def final(self, values: Mapping[str, Any]) -> None:
        """Tell the scores of the model that the run leaves; what isn't finite is left out."""
        finite = {name: value for name, value in _flat(values).items() if math.isfinite(value)}
        if finite:
            self._each(lambda one: one.final(self._step, finite))

    def close(self, status: str = "finished") -> None:
        """Close them; see `Tracker.close`."""
        self._each(lambda one: one.close(status))
        self._open = {}

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for kind, one in list(self._open.items()):
            self._guarded(kind, lambda one=one: action(one))  # type: ignore[misc]

    def _guarded(self, kind: str, action: Callable[[], None]) -> None:
        try:
            action()
        # Whatever a program of others, a full disk or a lost connection raises: the training is worth more.
        except Exception as error:
            self._open.pop(kind, None)
            reason = f"{type(error).__name__}: {_first_line(error)}"
            _log.warning("WARNING: %s fails (%s): the run goes on without it", kind, reason)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            flat[f"{prefix}{name}"] = value
    return flat


def _known_names(run_dir: Path) -> dict[str, str]:
    """Return tracker → name of its run, as earlier processes of the run have left it."""
    file = run_dir / NAMES_FILE
    try:
        names = read_json(file) if file.is_file() else {}
    except (OSError, ValueError, RecursionError):
        names = None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        _log.warning("WARNING: %s is damaged: trackers begin new runs", file)
        return {}
    return names


def check_trackers(settings: LogSettings) -> None:
    """Do nothing when the packages of all trackers are there.

    Raises:
        ConfigError: One is missing.
    """
    for kind in settings.trackers:
        if kind in _PACKAGES:
            need("track", _PACKAGES[kind], "log.trackers", ConfigError)


@contextmanager
def tracked(run_dir: Path, settings: LogSettings, told: Mapping[str, Any]) -> Iterator[Trackers | None]:
    """Give the trackers of a run to the first rank, None to others; they are closed with what became of the run."""
    if distributed.rank() > 0:
        yield None
        return
    trackers = Trackers(run_dir, settings, told)
    status = "failed"
    try:
        yield trackers
        status = "finished"
    except (Interrupted, KeyboardInterrupt, SystemExit):
        status = "interrupted"
        raise
    finally:
        trackers.close(status)
