"""Where results lie: one folder a cell, named by the hash of all that the cell depends on.

OUT/cells/KIND-KEY/result.json    what came out, what it cost, on what machine
OUT/cells/KIND-KEY/failure.json   why nothing came out
OUT/cells/KIND-KEY/attempts.json  seconds spent by each attempt, interrupted ones included
OUT/cells/KIND-KEY/log.txt        what the work printed
"""

from __future__ import annotations

import hashlib
import json
import platform
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vitp.core.files import write_json
from vitp.core.reading import parse_json, read_text
from vitp.core.version import __version__
from vitp.studies.grid import Cell, Study, ordered

RESULT, FAILURE, ATTEMPTS, LOG = "result.json", "failure.json", "attempts.json", "log.txt"


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result.

    Attributes:
        message: One line.
        kind: Name of the exception, `killed`, or `blocked` when a cell that it needs failed.
        trace: Where it happened.
        when: Seconds since the epoch.
    """

    message: str
    kind: str
    trace: str = ""
    when: float = 0.0


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
            "needs": {role: keys[name] for role, name in sorted(cell.needs.items())},
        }
        text = json.dumps(facts, sort_keys=True, ensure_ascii=True)
        keys[cell.name] = hashlib.sha256(text.encode()).hexdigest()[:20]
    return keys


@dataclass(frozen=True)
class Store:
    """The folder of all cells of all studies; equal work of two studies is done once.

    Attributes:
        root: `OUT/cells`.
        keys: Name of the cell → its hash.
    """

    root: Path
    keys: Mapping[str, str]

    def folder(self, cell: Cell) -> Path:
        """Return the folder of a cell."""
        return self.root / f"{cell.kind}-{self.keys[cell.name]}"

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """Return what `finish` wrote, or None when there is nothing or a kept file is missing."""
        folder = self.folder(cell)
        found = read_json(folder / RESULT)
        if found is None or not all((folder / name).exists() for name in cell.keep):
            return None
        return found

    def failure(self, cell: Cell, since: float = 0.0) -> Failure | None:
        """Return why a cell failed, if it did after the time `since` and has no result."""
        found = read_json(self.folder(cell) / FAILURE)
        if found is None or found["when"] < since or self.result(cell) is not None:
            return None
        return Failure(**found)

    def finish(self, cell: Cell, values: Mapping[str, Any], cost: Mapping[str, Any]) -> None:
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
        }
        write_json(folder / RESULT, content)
        (folder / FAILURE).unlink(missing_ok=True)

    def fail(self, cell: Cell, message: str, kind: str, trace: str = "") -> Failure:
        """Write why there is no result."""
        failure = Failure(" ".join(message.split()), kind, trace, time.time())
        write_json(self.folder(cell) / FAILURE, asdict(failure))
        return failure


def read_json(path: Path) -> Any | None:
    """Return the content of a JSON file; None when there is none or it can't be read."""
    try:
        return parse_json(read_text(path))
    except (OSError, ValueError):
        return None


@cache
def machine() -> dict[str, str]:
    """Return what the results were made with, as far as it can change them or their cost."""
    import torch

    return {
        "host": socket.gethostname(),
        "processor": _processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vitp": __version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.machine()
