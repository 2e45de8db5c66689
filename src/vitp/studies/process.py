"""A cell is worked on in a process of its own: whatever happens to it, the study goes on.

A cell that the system kills for its memory, that crashes in native code or leaks takes nobody else with it, and
what it needed (processor seconds, memory) is known exactly.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitp.core.config import SettingsModel
from vitp.core.errors import VitpError
from vitp.core.files import write_json
from vitp.core.reading import json_or_none
from vitp.runs.folder import settings_that_differ, started
from vitp.studies.cost import EnergyMeter
from vitp.studies.grid import LOG, RESULT, StudyCell

_OUTCOME = "outcome.json"
_GRACE = 120.0
"""Seconds that interrupted work has for finishing its step and saving."""
_STOPS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Input:
    """A cell that was needed, with its result."""

    cell: StudyCell
    folder: Path
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Context:
    """Arguments of the work of a cell.

    Attributes:
        cell: The cell.
        folder: Its folder. It may hold what an interrupted attempt left.
        inputs: Role → needed cell.
    """

    cell: StudyCell
    folder: Path
    inputs: Mapping[str, Input] = field(default_factory=dict)


def resumable(context: Context, run: Path, config: SettingsModel) -> bool:
    """Return whether the cell's run goes on with what an interrupted attempt left; remove what it can't go on with.

    A run can't when the cell was finished (its run was cleared then, and files that another study keeps are missing),
    and when its settings name other folders: the hash of the cell is the same, so all else is, and the study has moved.
    """
    if not started(run):
        return False
    if not (context.folder / RESULT).exists():
        with contextlib.suppress(VitpError):
            if not settings_that_differ(run, config):
                return True
    shutil.rmtree(run)
    return False


Work = Callable[[Context], Mapping[str, Any]]
"""Does the work of a cell and returns its values, as JSON values."""


@dataclass(frozen=True)
class Attempt:
    """Result of one attempt at a cell.

    Attributes:
        values: What the work returned; None when it failed.
        message, kind, trace: Why it failed.
        cost: Seconds, processor seconds, bytes, joules of this attempt.
    """

    values: Mapping[str, Any] | None
    message: str = ""
    kind: str = ""
    trace: str = ""
    cost: Mapping[str, float | None] = field(default_factory=dict)


def run_here(work: Work, context: Context) -> Attempt:
    """Do the work in this process."""
    meter, began, cpu = EnergyMeter(), time.monotonic(), _processor_seconds()
    try:
        # Through JSON: the work gives what a later run will read, or fails now.
        values: Mapping[str, Any] | None = json.loads(json.dumps(work(context)))
        message = kind = trace = ""
    except Exception as error:  # any mistake of one cell is a finding about that cell
        if hasattr(error, "exit_code"):  # an interrupt, which is for the whole study
            raise
        kind, text = type(error).__name__, " ".join(str(error).split())
        values, message = None, text if len(text) <= 500 else text[:497] + "…"
        message = message or kind
        trace = "" if isinstance(error, VitpError) else traceback.format_exc(limit=-6)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cost = {
        "seconds": time.monotonic() - began,
        "processor_seconds": _processor_seconds() - cpu,
        # Kilobytes on Linux, bytes on macOS.
        "memory": float(peak if sys.platform == "darwin" else peak * 1024),
        "joules": meter.joules(),
    }
    return Attempt(values, message, kind, trace, cost)


def run_apart(work: Work, context: Context, beat: Callable[[], None]) -> Attempt:
    """Do the work in a child process and wait for it.

    Args:
        work: What is to be done.
        context: Of the cell.
        beat: Called several times a second while waiting.

    Raises:
        KeyboardInterrupt, SystemExit: This process was told to stop. The child was told, too, and has ended.
    """
    (context.folder / _OUTCOME).unlink(missing_ok=True)
    # A forked child has all modules already. Elsewhere it starts anew.
    method = "fork" if sys.platform == "linux" else "spawn"
    methods: Any = multiprocessing.get_context(method)
    child = methods.Process(target=_child, args=(work, context, os.getpid()))
    began = time.monotonic()
    try:
        with _interrupts_wait(), warnings.catch_warnings():
            # Libraries have threads of their own, which are idle here.
            warnings.simplefilter("ignore", DeprecationWarning)
            child.start()
        while child.is_alive():
            child.join(0.25)
            beat()
    except BaseException:
        if child.pid is not None:
            _stop(child)
        raise
    found = json_or_none(context.folder / _OUTCOME)
    (context.folder / _OUTCOME).unlink(missing_ok=True)
    if found is not None:
        return Attempt(**found)
    cost: dict[str, float | None] = {"seconds": time.monotonic() - began}
    last_lines = ""
    with contextlib.suppress(OSError):
        log = (context.folder / LOG).read_text(encoding="utf-8", errors="replace")
        last_lines = "\n".join(log.splitlines()[-8:])
    return Attempt(None, _death(child.exitcode or 0), "killed", last_lines, cost)


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Keep interrupts until the block is done.

    In the middle of a fork they would be swallowed by the handlers that Python runs there. Blocking them in this thread
    is not enough, as the system may give them to any other one; but the child inherits it, so that a stop that comes
    before the child has handlers of its own is not lost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: received.append(number)) for number in _STOPS
    }
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for got in received:
            signal.raise_signal(got)


def _stop(child: multiprocessing.process.BaseProcess) -> None:
    """Let the child finish its step and save; a second interrupt doesn't wait."""
    child.terminate()
    try:
        child.join(_GRACE)
    finally:
        if child.is_alive():
            child.kill()
            child.join()


def _child(work: Work, context: Context, parent: int) -> None:
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)  # Ctrl-C is for the parent, which passes it on once
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # 128 and the signal's number is how shells say that a signal ended a process.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # The handlers are there now: a stop that came since the fork is delivered.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)

    def watch() -> None:
        # End with the parent: nobody would know of this process, and the next study would do its work again.
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    with _printing_to(context.folder / LOG):
        try:
            attempt = run_here(work, context)
        except Exception as error:
            code = getattr(error, "exit_code", None)
            sys.exit(code if isinstance(code, int) else 1)
        if attempt.message:
            print(f"{attempt.kind}: {attempt.message}\n{attempt.trace}", flush=True)
        write_json(context.folder / _OUTCOME, attempt.__dict__)


@contextlib.contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Send what is printed, by native code too, into a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", buffering=1) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        sys.stdout = sys.stderr = file
        yield


def _death(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} and left no result"
    name = signal.Signals(-code).name
    hint = "; most often the memory is not enough" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"


def _processor_seconds() -> float:
    parts = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in parts)
