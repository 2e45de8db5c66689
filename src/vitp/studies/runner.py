"""The runner works on the cells of a study: results are kept, interrupted cells go on, failures are written down.

Any number of processes may work on one folder, started by hand, on several machines or by `torchrun`: each takes
the next cell that nobody works on.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from vitp.core.files import write_json
from vitp.core.reading import json_or_none
from vitp.studies.cost import duration, total_cost
from vitp.studies.grid import ATTEMPTS, Store, Study, StudyCell, cell_keys, ordered
from vitp.studies.process import Context, Input, Work, run_apart, run_here
from vitp.studies.rows import FinishedRows, check_rows, row_of, to_do_again

LOCK = "lock.json"
BEAT = 20.0
"""Seconds between two signs of life."""
STALE = 300.0
"""Seconds without a sign of life after which a lock on another machine counts as left behind."""
POLL = 2.0
"""Seconds between two looks for work while others work on all that is left."""


class Lock:
    """The right to work on one cell, held from `acquire` to `release`.

    The file is created exclusively and touched every `BEAT` seconds. A lock of this machine whose process is
    gone, and any lock that nobody has touched for `STALE` seconds, is taken over.

    Args:
        folder: Of the cell.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self.token = uuid.uuid4().hex
        self._beaten = 0.0

    def acquire(self) -> bool:
        """Take the lock and return True, or return False when somebody else works on the cell."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._create():
            return True
        owner = _owner_of(self.path)
        # Only the lock that was looked at is put aside, not one that another process makes in the meantime.
        return self._abandoned() and self._remove(owner.get("token")) and self._create()

    def beat(self) -> None:
        """Give a sign of life, when it is time."""
        if time.monotonic() - self._beaten > BEAT:
            self._beaten = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        """Give the lock back."""
        if _owner_of(self.path).get("token") == self.token:
            self.path.unlink(missing_ok=True)

    def held(self) -> bool:
        """Return whether somebody works on the cell."""
        return self.path.exists() and not self._abandoned()

    def _create(self) -> bool:
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "token": self.token}
        try:
            # Looks and makes in one call of the system: between two calls another process could make it.
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(owner))
        self._beaten = time.monotonic()
        return True

    def _abandoned(self) -> bool:
        owner = _owner_of(self.path)
        if owner.get("host") == socket.gethostname():
            try:
                # Signal 0 does nothing but ask whether the process lives.
                os.kill(owner.get("pid"), 0)  # type: ignore[arg-type]
            except (ProcessLookupError, TypeError, OverflowError):
                return True
            except PermissionError:  # a living process of somebody else
                pass
        # Clocks of machines differ: the time is read from the common file system, by a file made now.
        probe = self.path.with_name(f".now-{self.token}")
        try:
            probe.touch()
            return probe.stat().st_mtime - self.path.stat().st_mtime > STALE
        except OSError:
            return False
        finally:
            probe.unlink(missing_ok=True)

    def _remove(self, token: object) -> bool:
        """Put the abandoned lock with this token aside; of several that try, one succeeds."""
        aside = self.path.with_name(f".old-{self.token}")
        try:
            self.path.rename(aside)
        except OSError:
            return False
        mine = _owner_of(aside).get("token") == token
        if not mine:
            # Somebody was faster and this is the new lock: back with it.
            with contextlib.suppress(OSError):
                # `rename` would replace a lock that a third one has made meanwhile; `link` fails then.
                os.link(aside, self.path)
        aside.unlink(missing_ok=True)
        return mine


def _owner_of(path: Path) -> dict[str, object]:
    found = json_or_none(path)
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class StudyProgress:
    """State of the cells after a call of `StudyRunner.run`.

    Attributes:
        done: Cells with a result.
        failed: Names of the cells that failed or need one that did.
        left: Names of the cells that were not begun, or that others still work on.
    """

    done: int
    failed: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every cell has a result."""
        return not self.failed and not self.left


@dataclass
class StudyRunner:
    """Works on the cells of one study.

    Args:
        study: The cells.
        out: Folder of all studies; cells lie in `out/cells`.
        work: Kind of cell → what does it.
        versions: Kind → number that changes when equal settings give other results.
        console: Where one line a cell is printed.
        apart: Each cell in a process of its own.
        rows: Those of cells that were finished elsewhere; each cell that is finished here is added to their file.
    """

    study: Study
    out: Path
    work: Mapping[str, Work]
    versions: Mapping[str, int] = field(default_factory=dict)
    console: Console = field(default_factory=lambda: Console(highlight=False))
    apart: bool = True
    rows: FinishedRows | None = None

    def __post_init__(self) -> None:
        # Runs write down the folders that they read: the same ones, from wherever the command is given.
        self.store = Store((self.out / "cells").resolve(), cell_keys(self.study, self.versions))
        self.began = time.time()
        if self.rows is not None:
            keys = self.store.keys
            check_rows(self.rows, self.study, keys, self.versions)
            local = {cell.name for cell in self.study.cells if self.store.at_hand(cell) is not None}
            again = to_do_again(self.study, keys, self.rows.by_key, local)
            self.store = replace(self.store, rows=dict(self.rows.by_key), again=again)

    def write_rows(self) -> None:
        """Add the cells that are finished here to the file of rows."""
        if self.rows is None:
            return
        new = []
        for cell in self.study.cells:
            found = None if self.store.keys[cell.name] in self.rows.by_key else self.store.at_hand(cell)
            if found is not None:
                new.append(row_of(found, cell, self.versions.get(cell.kind, 0)))
        self.rows.add(new)

    def run(
        self,
        *,
        only: Collection[StudyCell] | None = None,
        until: float | None = None,
        left: Callable[[], float | None] = lambda: None,
    ) -> StudyProgress:
        """Work until nothing is left that can be done.

        Args:
            only: Only these cells (all that they need must be among them).
            until: Time (`time.time`) after which no new cell is begun.
            left: Tells the seconds that the rest will take, for the console.
        """
        cells = ordered(self.study.cells if only is None else only)
        while until is None or time.time() < until:
            ready = self._ready(cells)
            if not ready:
                break
            if not any(self._try(cell, left) for cell in ready):
                time.sleep(POLL)  # others work on what is left
        return self.progress(cells)

    def progress(self, cells: list[StudyCell] | None = None) -> StudyProgress:
        """Return which cells are done, failed and left."""
        cells = list(self.study.cells) if cells is None else cells
        done = {cell.name for cell in cells if self.store.result(cell) is not None}
        failed = [cell.name for cell in cells if cell.name not in done and self._failed(cell)]
        left = [cell.name for cell in cells if cell.name not in done and cell.name not in failed]
        return StudyProgress(len(done), tuple(failed), tuple(left))

    def _ready(self, cells: list[StudyCell]) -> list[StudyCell]:
        """Return the cells that can be worked on now; mark those that never can."""
        ready, seen = [], set()
        for cell in cells:
            key = self.store.keys[cell.name]
            if key in seen or self._finished(cell):
                continue
            seen.add(key)
            blocked = self._blocked(cell)
            if blocked:
                self.store.fail(cell, blocked, "blocked")
            elif all(self._finished(self.study[name]) for name in cell.needs.values()):
                ready.append(cell)
        return ready

    def _finished(self, cell: StudyCell) -> bool:
        return self.store.result(cell) is not None or self._failed(cell)

    def _failed(self, cell: StudyCell) -> bool:
        # A failure from before is an old story: the data may be there now.
        return self.store.failure(cell, since=self.began) is not None

    def _blocked(self, cell: StudyCell) -> str:
        """Return why a cell can never run: what it needs failed."""
        needed = [self.study[name] for name in cell.needs.values()]
        failed = [one for one in needed if self.store.result(one) is None and self._failed(one)]
        if not failed or (cell.tolerant and len(failed) < len(needed)):
            return ""
        failure = self.store.failure(failed[0])
        return f'needs "{failed[0].name}", which failed: {failure.message if failure else "?"}'

    def _try(self, cell: StudyCell, left: Callable[[], float | None]) -> bool:
        """Work on a cell unless somebody else does; return whether there is news."""
        lock = Lock(self.store.folder(cell))
        if not lock.acquire():
            return False
        try:
            if not self._finished(cell):  # somebody else may have been faster
                self._attempt(cell, lock, left)
        finally:
            lock.release()
        return True

    def _attempt(self, cell: StudyCell, lock: Lock, left: Callable[[], float | None]) -> None:
        rest = left()
        more = f"  [dim]about {duration(rest)} left[/]" if rest else ""
        self.console.print(f"{time.strftime('%H:%M:%S')} [bold]{cell.name}[/]{more}")
        folder = self.store.folder(cell)
        inputs = {}
        for role, name in cell.needs.items():
            needed = self.study[name]
            result = self.store.result(needed)
            if result is not None:
                inputs[role] = Input(needed, self.store.folder(needed), result["values"])
        context = Context(cell, folder, inputs)
        attempts: list[Mapping[str, float | None]] = json_or_none(folder / ATTEMPTS) or []
        began, noted = time.monotonic(), 0.0

        def beat() -> None:
            nonlocal noted
            lock.beat()
            spent = time.monotonic() - began
            if spent - noted > BEAT:
                noted = spent
                # A killed process has no time to write: its time until here is known all the same.
                write_json(folder / ATTEMPTS, [*attempts, {"seconds": spent}])

        work = self.work[cell.kind]
        try:
            attempt = run_apart(work, context, beat) if self.apart else run_here(work, context)
        except BaseException:
            # Interrupted attempts count: the cost of a cell is that of all of them.
            write_json(folder / ATTEMPTS, [*attempts, {"seconds": time.monotonic() - began}])
            raise
        attempts.append(dict(attempt.cost))
        write_json(folder / ATTEMPTS, attempts)
        if attempt.values is not None:
            self.store.finish(cell, attempt.values, total_cost(attempts))
            self.write_rows()
            return
        failure = self.store.fail(cell, attempt.message, attempt.kind, attempt.trace)
        self.console.print(f"  [red]failed[/] ({failure.kind}): {escape(failure.message)}")


def leave_torchrun() -> int:
    """Make a process that `torchrun` started a worker of its own; return its number.

    The ranks of a study don't train together: each takes cells. `LOCAL_RANK` stays, it chooses the GPU.
    """
    number = int(os.environ.get("RANK", "0"))
    for name in ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    return number
