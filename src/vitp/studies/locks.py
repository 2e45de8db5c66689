"""Who works on what: lock files that several processes or machines see through a common folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from pathlib import Path

from vitp.core.reading import parse_json, read_text

LOCK = "lock.json"
BEAT = 20.0
"""Seconds between two signs of life."""
STALE = 300.0
"""Seconds without a sign of life after which a lock on another machine counts as left behind."""


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
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(owner))
        self._beaten = time.monotonic()
        return True

    def _abandoned(self) -> bool:
        owner = _owner_of(self.path)
        if owner.get("host") == socket.gethostname() and not _alive(owner.get("pid")):
            return True
        try:
            return self._now() - self.path.stat().st_mtime > STALE
        except OSError:
            return False

    def _now(self) -> float:
        """Return the time as the common file system tells it: clocks of machines differ."""
        probe = self.path.with_name(f".now-{self.token}")
        try:
            probe.touch()
            return probe.stat().st_mtime
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
                os.link(aside, self.path)
        aside.unlink(missing_ok=True)
        return mine


def _owner_of(path: Path) -> dict[str, object]:
    try:
        found = parse_json(read_text(path))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _alive(pid: object) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
