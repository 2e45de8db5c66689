"""Run folders: a new run replaces nothing, a resumed one goes on, and one that never began leaves none behind."""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from vitp.core import distributed, sealed
from vitp.core.config import CONFIG_FILE, Settings, SettingsModel, load_config, save_config
from vitp.core.errors import CheckpointError, ConfigError, VitpError
from vitp.core.files import write_text
from vitp.engine import checkpoint

_log = logging.getLogger("vitp")
LOCK_FILE = "lock"
_LOG_FILE = "metrics.jsonl"
_REPLACED = (
    *("model", "best", "mixture.json", "scores.json", "validation.json", "evidence.json"),
    *("probes.jsonl", "trackers.json", "cases.csv", "cases.html", "start_vision.safetensors"),
)
"""What a run writes over where it is there: a compiled set has a `mixture.json` of its own, too."""
HARMLESS = (
    *("train.num_workers", "train.log_every", "train.save_every", "train.keep_last", "train.device"),
    *("train.micro_batches", "train.parallel", "train.shard_size", "train.async_save"),
    *("log.trackers", "log.project", "log.name"),
    *(
        "compute.attention",
        "compute.recompute",
        "compute.compile",
        "compute.tile_multiple",
        "compute.static_rows",
    ),
    *("data.input.cache_gb", "data.input.cache_folder", "data.balance"),
)
"""Settings that a resumed run may change: they don't change what is learned, beyond rounding."""
BEFORE_THEY_WERE = {
    "backbone.positions": "antialiased",
    "optim.decay_from": "warmup",
    "data.sizes": "fixed",
}
"""Settings that the oldest runs don't state, since there was one way only → that way."""
_WINDOWS = ("overlap", "stagger")
"""Settings of `test` whose defaults depend on the task."""
EXTENDING = ("train.steps", "train.epochs", "train.choose", "train.patience", "train.min_gain")
"""Settings that a resumed run may change, too: how long it is, and which of its weights are taken in the end.

The engine tells what that does to schedules.
"""


def started(run_dir: Path) -> bool:
    """Tell whether a run has claimed the folder, so that it can only be resumed."""
    return (run_dir / CONFIG_FILE).is_file()


def config_to_resume(run_dir: Path) -> Path:
    """Return the file with the settings of a run that began.

    A file that is missing or cut off is written anew from the copy in the newest checkpoint that has a whole one.

    Raises:
        CheckpointError: None did.
    """
    file = run_dir / CONFIG_FILE
    if _is_mapping(file):
        return file
    for path in reversed(checkpoint.checkpoints(run_dir)):
        copy = path / CONFIG_FILE
        with contextlib.suppress(VitpError):
            sums = sealed.read_sums(path)
            if CONFIG_FILE in sums:
                sealed.check_sum(copy, sums[CONFIG_FILE])
                write_text(file, copy.read_text(encoding="utf-8"))
                _log.warning("note: %s was missing or damaged; it is written anew from %s", file, copy)
                return file
    if not started(run_dir):
        raise CheckpointError("holds no run to resume", where=str(run_dir), fix="start it without --resume")
    return file  # whoever reads it says what is wrong with it


def _is_mapping(file: Path) -> bool:
    """Return whether a file holds YAML that may be a configuration."""
    try:
        return isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError, yaml.YAMLError):
        return False


def settings_that_differ(run_dir: Path, config: SettingsModel) -> list[str]:
    """Return the settings in which a run that began differs from `config`, but for those that a resumed run may change.

    Raises:
        CheckpointError: None began.
        ConfigError: What it wrote isn't a configuration of this kind.
    """
    before = as_begun(load_config(type(config), config_to_resume(run_dir)), run_dir)
    now = as_begun(config, run_dir)
    changed = _changed_keys(before.model_dump(mode="json"), now.model_dump(mode="json"))
    return [key for key in changed if key not in HARMLESS]


def as_begun(config: Settings, run_dir: Path) -> Settings:
    """Return a configuration with what a run did that began before there was a choice of how to do it.

    What its tower sees of bands, which a run finds in its data when it begins, is that of the run, too, and so is how
    its windows lie where the configuration doesn't say it.
    Defaults and recipes may differ from it by now, and a run goes on as it began. Without a run nothing changes.

    Raises:
        ConfigError: What the run wrote is no configuration.
    """
    if not started(run_dir):
        return config
    load_config(type(config), run_dir / CONFIG_FILE)  # says what is wrong with the file, if anything is
    stated = yaml.safe_load((run_dir / CONFIG_FILE).read_text(encoding="utf-8")) or {}
    values = config.model_dump()
    for key, way in BEFORE_THEY_WERE.items():
        part, name = key.split(".")
        if name in (values.get(part) or {}) and name not in (stated.get(part) or {}):
            values[part][name] = way
    for part in ("backbone", "model"):
        found = (stated.get(part) or {}).get("channels")
        if found is not None and part in values and values[part].get("channels", found) is None:
            values[part]["channels"] = found
    test = getattr(config, "test", None)
    if isinstance(test, BaseModel) and not {*_WINDOWS} & test.model_fields_set:
        values["test"] |= {name: way for name, way in (stated.get("test") or {}).items() if name in _WINDOWS}
    return type(config).model_validate(values)


@contextlib.contextmanager
def claimed(
    run_dir: Path, config: SettingsModel, device: str, *, resume: bool, phases: Sequence[str] = ()
) -> Iterator[bool]:
    """Write the configuration into a run folder for as long as the block trains there, on all ranks together.

    Gives whether the run goes on with what the folder holds: it is resumed, or `torchrun` has started it again.

    Args:
        run_dir: New folder, or the folder to resume.
        config: Configuration of the run.
        device: Device of the run, as in `TrainSettings`.
        resume: Whether the folder holds this run already.
        phases: Folders below that may hold checkpoints of the run, too.

    Raises:
        CheckpointError: There is nothing to resume.
        ConfigError: The folder holds another run, or another process trains there.
    """
    distributed.initialize(distributed.resolve_device(device))
    resume = resume or distributed.restarted(run_dir / CONFIG_FILE)
    main, refusal, held = distributed.rank() == 0, None, contextlib.ExitStack()
    before: str | None = None
    existed = run_dir.exists()
    found = {path.name for path in run_dir.iterdir()} if run_dir.is_dir() else set()
    file, folders = run_dir / CONFIG_FILE, (run_dir, *(run_dir / phase for phase in phases))
    newest = [checkpoint.latest(folder) for folder in folders]
    if main:
        try:
            _claim(run_dir, config, resume)
            held.enter_context(_alone(run_dir))
            before = file.read_text(encoding="utf-8") if resume else None
            save_config(config, file)
        except VitpError as error:
            refusal = error
    distributed.raise_together(refusal)
    try:
        with held:
            yield resume
    except VitpError:
        now = [checkpoint.latest(folder) for folder in folders]
        if main and not any(now):
            # Nothing was trained: the next try, with the mistake mended, may have the folder.
            file.unlink(missing_ok=True)
            _clear(run_dir, found)
            if not existed:
                with contextlib.suppress(OSError):  # it holds something
                    run_dir.rmdir()
        elif main and before is not None and now == newest:
            write_text(file, before)  # nothing was trained with what has changed
        raise


def _clear(run_dir: Path, found: set[str]) -> None:
    """Remove what a run wrote that trained nothing, but for its log where that has rows."""
    log = run_dir / _LOG_FILE
    logged = log.is_file() and log.stat().st_size > 0
    for path in run_dir.iterdir() if run_dir.is_dir() else ():
        if path.name in found or (logged and path.name != "checkpoints"):
            continue
        with contextlib.suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextlib.contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Keep other processes from training in the folder; the lock goes when this process does, however it ends.

    Where locks don't exist (Windows, some network file systems) nobody is kept out.

    Raises:
        ConfigError: Another process trains there.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = run_dir / LOCK_FILE
    # Locks of this kind aren't inherited by data workers, which may outlive a process that was killed.
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Any other error means that this file system has no locks.
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ConfigError(
                    "another process trains there",
                    where=str(run_dir),
                    fix="wait until it ends, or choose another folder",
                ) from None
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file within the block; it goes when this process does, however it ends.

    Where locks don't exist nobody is kept out.

    Args:
        path: Made where it is missing.
        wait: For whoever holds it.

    Raises:
        BlockingIOError: Another process holds it, and nobody waits.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except PermissionError as error:  # what some systems say instead
            raise BlockingIOError from error
        yield


def _claim(run_dir: Path, config: SettingsModel, resume: bool) -> None:
    """Refuse to write over another run."""
    if not resume:
        if started(run_dir) or (run_dir / "checkpoints").is_dir():
            raise ConfigError(
                "holds a run already",
                where=str(run_dir),
                fix="continue it with --resume, or choose another folder",
            )
        # A run that failed early may have left its log and more. Others' files have no such log beside them.
        theirs = [name for name in _REPLACED if (run_dir / name).exists()]
        if theirs and not (run_dir / _LOG_FILE).exists():
            raise ConfigError(
                f"holds {theirs[0]}, which is of no run and would be replaced",
                where=str(run_dir),
                fix="choose another folder",
            )
        run_dir.mkdir(parents=True, exist_ok=True)
        return
    existing = config_to_resume(run_dir)
    changed = [key for key in settings_that_differ(run_dir, config) if key not in EXTENDING]
    if changed:
        raise ConfigError(
            f"differs from the run that is to be resumed: {', '.join(changed[:5])}",
            where=str(existing),
            fix="resume with the run's own configuration, or start a new run",
        )


def _changed_keys(before: Any, after: Any, prefix: str = "") -> list[str]:
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [] if before == after else [prefix]
    return [
        changed
        for key in sorted(before.keys() | after.keys())
        for changed in _changed_keys(before.get(key), after.get(key), f"{prefix}.{key}" if prefix else key)
    ]
