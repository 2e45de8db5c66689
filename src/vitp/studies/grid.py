"""A study is a grid of cells that depend on each other; each cell has a folder, named by what decides its result.

OUT/cells/KIND-KEY/result.json    the values, what they cost and the machine they were made on
OUT/cells/KIND-KEY/failure.json   why there is no result
OUT/cells/KIND-KEY/attempts.json  seconds spent by each attempt, interrupted ones included
OUT/cells/KIND-KEY/log.txt        what the work printed
"""

from __future__ import annotations

import hashlib
import json
import platform
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import torch

from vitp.core.errors import ConfigError
from vitp.core.files import write_json
from vitp.core.reading import json_or_none
from vitp.core.version import __version__
from vitp.planning.bench.measure import processor_names

RESULT, FAILURE, ATTEMPTS, LOG = "result.json", "failure.json", "attempts.json", "log.txt"

Fact = str | int | float | None


@dataclass(frozen=True)
class StudyCell:
    """One piece of work.

    Attributes:
        name: Unique within the study, such as `pretrain/ViTP/starter/images/0`.
        kind: Which work: a key of `vitp.studies.cells.WORK`.
        settings: All that decides the result, as JSON values; the key of the cache is their hash.
        needs: Role → name of the cell whose result is needed.
        places: Folders of this machine. They don't decide the result.
        facts: What the result is evidence of (`arm`, `group`, `x`, `seed`, `draw`, `set`, `task`): for tables only.
        keep: Files or folders (in the cell's own) that must be there when it counts as done.
        tolerant: Runs with those needs that did not fail, as long as there is one.
        pace: Cells of one pace take about the same seconds a unit; empty: the time is too short to count.
        units: Amount of work, in units of the pace.
    """

    name: str
    kind: str
    settings: Mapping[str, Any]
    needs: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    tolerant: bool = False
    pace: str = ""
    units: float = 0.0


@dataclass(frozen=True)
class Claim:
    """A statement of the paper that the study can test.

    Attributes:
        text: The claim, in one sentence.
        ours, theirs: The first arm is said to be better than the second one.
        group: Within which group of arms.
        lower: True when `ours` is said to be lower (a drop, a cost).
        metric: The metric that the claim is about; empty: all main ones.
    """

    text: str
    ours: str
    theirs: str
    group: str
    lower: bool = False
    metric: str = ""


@dataclass(frozen=True)
class Study:
    """A grid of cells with its question.

    Attributes:
        name: As the command line takes it.
        title: As the page shows it.
        question: What the study is to answer, and where the paper does.
        cells: In any order.
        claims: What the paper says.
        ours: The arm that is compared with the others.
        x_label: Meaning of `facts["x"]`, for studies of one number; empty: arms are names.
        information: Arm → the label information it used.
        notes: Sentences that belong beside the results (what is equal, what is not).
        said: How the data are understood, for the console.

    Raises:
        ConfigError: The cells don't form a grid; see `ordered`.
    """

    name: str
    title: str
    question: str
    cells: tuple[StudyCell, ...]
    claims: tuple[Claim, ...] = ()
    ours: str = "ViTP"
    x_label: str = ""
    information: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    said: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ordered(self.cells)

    def __getitem__(self, name: str) -> StudyCell:
        """Return the cell of a name."""
        return self._by_name[name]

    def of_arms(self, arms: Sequence[str]) -> Study:
        """Return the same study with the cells of these arms alone, and what they need.

        Args:
            arms: Names as on the page; none: all.

        Raises:
            ConfigError: The study has no such arm.
        """
        known = list(dict.fromkeys(str(cell.facts["arm"]) for cell in self.cells if "arm" in cell.facts))
        if unknown := [arm for arm in arms if arm not in known]:
            named = "; ".join(f'"{arm}"' for arm in known)
            raise ConfigError(f'there is no arm "{unknown[0]}"', where="--arm", fix=f"choose of {named}")
        if not arms:
            return self
        waiting = [cell.name for cell in self.cells if cell.facts.get("arm") in arms]
        wanted: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name not in wanted:
                wanted.add(name)
                waiting += self[name].needs.values()
        return replace(self, cells=tuple(cell for cell in self.cells if cell.name in wanted))

    @cached_property
    def _by_name(self) -> dict[str, StudyCell]:
        return {cell.name: cell for cell in self.cells}


def ordered(cells: Iterable[StudyCell]) -> list[StudyCell]:
    """Return the cells so that each comes after those it needs; otherwise they keep their order where they can.

    Raises:
        ConfigError: Two have the same name, one needs an unknown one, or they need each other in a circle.
    """
    by_name: dict[str, StudyCell] = {}
    for cell in cells:
        if cell.name in by_name:
            raise ConfigError("two cells have this name", where=cell.name, fix="give each its own")
        by_name[cell.name] = cell
    for cell in by_name.values():
        for need in cell.needs.values():
            if need not in by_name:
                raise ConfigError(f'needs "{need}", which is not in the study', where=cell.name)
    sorter = TopologicalSorter({name: list(cell.needs.values()) for name, cell in by_name.items()})
    try:
        # Only for its check: its own order would not keep a cell next to what it needs.
        sorter.prepare()
    except CycleError as error:
        raise ConfigError(f"cells need each other: {' → '.join(error.args[1])}", where="study") from None
    # Each with what it needs right before it, so that the first arm of an unfinished study has all its numbers.
    result: dict[str, StudyCell] = {}
    waiting = list(reversed(by_name.values()))
    while waiting:
        needs = [by_name[name] for name in waiting[-1].needs.values() if name not in result]
        if needs:
            waiting += reversed(needs)
        else:
            cell = waiting.pop()
            result.setdefault(cell.name, cell)
    return list(result.values())


def cell_keys(study: Study, versions: Mapping[str, int]) -> dict[str, str]:
    """Return name → hash of kind, its version, settings and the hashes of the cells it needs.

    Args:
        study: The cells.
        versions: Kind → number that changes when the same settings give another result.
    """
    keys: dict[str, str] = {}
    for cell in ordered(study.cells):
        facts = {
            "kind": cell.kind,
            "version": versions.get(cell.kind, 0),
            "settings": cell.settings,
            # Keys instead of names: what changes a cell changes all cells that follow from it.
            "needs": {role: keys[name] for role, name in sorted(cell.needs.items())},
        }
        # Sorted, so that the order in which settings are written down changes no key.
        text = json.dumps(facts, sort_keys=True, ensure_ascii=True)
        keys[cell.name] = hashlib.sha256(text.encode()).hexdigest()[:20]
    return keys


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result.

    Attributes:
        message: One line.
        kind: Name of the exception, `killed`, or `blocked` when a cell that it needs failed.
        trace: Traceback, or the last lines of the log.
        when: Seconds since the epoch.
    """

    message: str
    kind: str
    trace: str = ""
    when: float = 0.0


@dataclass(frozen=True)
class Store:
    """The folder of all cells of all studies; equal work of two studies is done once.

    Attributes:
        root: `OUT/cells`.
        keys: Name of the cell → its hash.
        rows: Hash → row of a cell that was finished elsewhere (`vitp.studies.rows`).
        again: Names of the cells that are done again though they have a row.
    """

    root: Path
    keys: Mapping[str, str]
    rows: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    again: frozenset[str] = frozenset()

    def folder(self, cell: StudyCell) -> Path:
        """Return the folder of a cell."""
        return self.root / f"{cell.kind}-{self.keys[cell.name]}"

    def known(self, cell: StudyCell) -> dict[str, Any] | None:
        """Return the row of a cell, or what `finish` wrote; None where the cell was never finished."""
        return self.rows.get(self.keys[cell.name]) or self.at_hand(cell)

    def result(self, cell: StudyCell) -> dict[str, Any] | None:
        """Return what `known` does; None also for a cell that has a row and is done again, as its files are needed."""
        needed = cell.name in self.again and self.at_hand(cell) is None
        return None if needed else self.known(cell)

    def at_hand(self, cell: StudyCell) -> dict[str, Any] | None:
        """Return what `finish` wrote, or None when there is nothing or a kept file is missing."""
        folder = self.folder(cell)
        found: dict[str, Any] | None = json_or_none(folder / RESULT)
        if found is None or not all((folder / name).exists() for name in cell.keep):
            return None
        return found

    def failure(self, cell: StudyCell, since: float = 0.0) -> Failure | None:
        """Return why a cell failed, if it did after the time `since` and has no result."""
        found = json_or_none(self.folder(cell) / FAILURE)
        if found is None or found["when"] < since or self.result(cell) is not None:
            return None
        return Failure(**found)

    def finish(self, cell: StudyCell, values: Mapping[str, Any], cost: Mapping[str, Any]) -> None:
        """Write a result."""
        folder = self.folder(cell)
        content = {
            "name": cell.name,
            "kind": cell.kind,
            "key": self.keys[cell.name],
            "settings": dict(cell.settings),
            "pace": cell.pace,
            "units": cell.units,
            "values": dict(values),
            "cost": dict(cost),
            "when": time.time(),
            "machine": machine(),
            "commit": source_commit(),
        }
        write_json(folder / RESULT, content)
        (folder / FAILURE).unlink(missing_ok=True)

    def fail(self, cell: StudyCell, message: str, kind: str, trace: str = "") -> Failure:
        """Write why there is no result."""
        failure = Failure(" ".join(message.split()), kind, trace, time.time())
        write_json(self.folder(cell) / FAILURE, asdict(failure))
        return failure


@cache
def source_commit() -> str:
    """Return the commit of the checkout that vitp runs from; empty where it runs from none."""
    # From src/vitp/studies/grid.py to the checkout's root.
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@cache
def machine() -> dict[str, str]:
    """Return what the results were made with, as far as it can change them or their cost."""
    names = processor_names()
    return {
        "host": socket.gethostname(),
        "processor": f"{len(names)} × {names[0]}" if names else platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vitp": __version__,
    }
