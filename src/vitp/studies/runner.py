"""Running the cells of a study: what is there is kept, what was interrupted goes on, what fails is written down.

Any number of processes may work on one folder, started by hand, on several machines or by `torchrun`: each takes
the next cell that nobody works on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from vitp.core.files import write_json
from vitp.studies.budget import duration, total_cost
from vitp.studies.cache import ATTEMPTS, Store, cell_keys, read_json
from vitp.studies.grid import Cell, Study, ordered
from vitp.studies.locks import BEAT, Lock
from vitp.studies.process import Context, Input, Outcome, Work, run_apart, run_here

POLL = 2.0
"""Seconds between two looks for work while others work on all that is left."""


@dataclass(frozen=True)
class Summary:
    """What a call of `run` did and left.

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
class Runner:
    """Works on the cells of one study.

    Args:
        study: The cells.
        out: Folder of all studies; cells lie in `out/cells`.
        work: Kind of cell → what does it.
        versions: Kind → number that changes when equal settings give other results.
        console: Where one line a cell is printed.
        apart: Each cell in a process of its own.
    """

    study: Study
    out: Path
    work: Mapping[str, Work]
    versions: Mapping[str, int] = field(default_factory=dict)
    console: Console = field(default_factory=lambda: Console(highlight=False))
    apart: bool = True

    def __post_init__(self) -> None:
        # Runs write down the folders that they read: the same ones, from wherever the command is given.
        self.store = Store((self.out / "cells").resolve(), cell_keys(self.study, self.versions))
        self.began = time.time()
        self.worked = 0.0

    def run(
        self,
        *,
        kinds: frozenset[str] | None = None,
        until: float | None = None,
        left: Callable[[], float | None] = lambda: None,
    ) -> Summary:
        """Work until nothing is left that can be done.

        Args:
            kinds: Only cells of these kinds (all that they need must be among them).
            until: Time (`time.time`) after which no new cell is begun.
            left: Tells the seconds that the rest will take, for the console.
        """
        cells = [cell for cell in ordered(self.study.cells) if kinds is None or cell.kind in kinds]
        while until is None or time.time() < until:
            state = self._state(cells)
            if not state:
                break
            if not any(self._try(cell, left) for cell in state):
                time.sleep(POLL)  # others work on what is left
        return self.summary(cells)

    def summary(self, cells: list[Cell] | None = None) -> Summary:
        """Return what is there."""
        cells = list(self.study.cells) if cells is None else cells
        done = [cell for cell in cells if self.store.result(cell) is not None]
        names = {cell.name for cell in done}
        failed = [cell.name for cell in cells if cell.name not in names and self._failed(cell)]
        rest = [cell.name for cell in cells if cell.name not in names and cell.name not in failed]
        return Summary(len(done), tuple(failed), tuple(rest))

    def _state(self, cells: list[Cell]) -> list[Cell]:
        """Return the cells that can be worked on now; mark those that never can."""
        open_cells, seen = [], set()
        for cell in cells:
            key = self.store.keys[cell.name]
            if key in seen or self._finished(cell):
                continue
            seen.add(key)
            blocked = self._blocked(cell)
            if blocked:
                self.store.fail(cell, blocked, "blocked")
            elif all(self._finished(self.study[name]) for name in cell.needs.values()):
                open_cells.append(cell)
        return open_cells

    def _finished(self, cell: Cell) -> bool:
        return self.store.result(cell) is not None or self._failed(cell)

    def _failed(self, cell: Cell) -> bool:
        # A failure from before is an old story: the data may be there now.
        return self.store.failure(cell, since=self.began) is not None

    def _blocked(self, cell: Cell) -> str:
        """Return why a cell can never run: what it needs failed."""
        needed = [self.study[name] for name in cell.needs.values()]
        failed = [one for one in needed if self.store.result(one) is None and self._failed(one)]
        if not failed or (cell.tolerant and len(failed) < len(needed)):
            return ""
        failure = self.store.failure(failed[0])
        return f'needs "{failed[0].name}", which failed: {failure.message if failure else "?"}'

    def _try(self, cell: Cell, left: Callable[[], float | None]) -> bool:
        """Work on a cell unless somebody else does; return whether there is news."""
        lock = Lock(self.store.folder(cell))
        if not lock.acquire():
            return False
        try:
            if self._finished(cell):  # somebody else was faster
                return True
            self._attempt(cell, lock, left)
        finally:
            lock.release()
        return True

    def _attempt(self, cell: Cell, lock: Lock, left: Callable[[], float | None]) -> None:
        rest = left()
        more = f"  [dim]about {duration(rest)} left[/]" if rest else ""
        self.console.print(f"{time.strftime('%H:%M:%S')} [bold]{cell.name}[/]{more}")
        folder = self.store.folder(cell)
        context = Context(cell, folder, self._inputs(cell))
        attempts: list[dict[str, Any]] = read_json(folder / ATTEMPTS) or []
        began, noted = time.monotonic(), 0.0

        def beat() -> None:
            nonlocal noted
            lock.beat()
            spent = time.monotonic() - began
            if spent - noted > BEAT:
                noted = spent
                write_json(folder / ATTEMPTS, [*attempts, {"seconds": spent}])

        work = self.work[cell.kind]
        try:
            outcome = run_apart(work, context, beat) if self.apart else run_here(work, context)
        except BaseException:
            write_json(folder / ATTEMPTS, [*attempts, {"seconds": time.monotonic() - began}])
            raise
        attempts.append(dict(outcome.cost))
        write_json(folder / ATTEMPTS, attempts)
        self._note(cell, outcome, attempts)

    def _note(self, cell: Cell, outcome: Outcome, attempts: list[dict[str, Any]]) -> None:
        if outcome.values is not None:
            self.store.finish(cell, outcome.values, total_cost(list(attempts)))
            return
        failure = self.store.fail(cell, outcome.message, outcome.kind, outcome.trace)
        self.console.print(f"  [red]failed[/] ({failure.kind}): {escape(failure.message)}")

    def _inputs(self, cell: Cell) -> dict[str, Input]:
        found = {}
        for role, name in cell.needs.items():
            needed = self.study[name]
            result = self.store.result(needed)
            if result is not None:
                found[role] = Input(needed, self.store.folder(needed), result["values"])
        return found


def leave_torchrun() -> int:
    """Make a process that `torchrun` started a worker of its own; return its number.

    The ranks of a study don't train together: each takes cells. `LOCAL_RANK` stays, it chooses the GPU.
    """
    number = int(os.environ.get("RANK", "0"))
    for name in ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    return number
