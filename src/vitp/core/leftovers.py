"""Hidden files and folders of processes that were killed: found, and removed once nobody owns them.

    .NAME.HOST-PID-STARTED.RANDOM.tmp    being written
    .NAME.HOST-PID-STARTED.old           what is being replaced, between two renames

The name tells who made it. It is left over when that process ran on this machine, in the same container, and doesn't
any more; what others have made on a shared disk is never touched. STARTED keeps two processes apart that got the same
number.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

OLD = "old"

_NAME = re.compile(
    r"\.(?P<of>.+)\.(?P<host>[A-Za-z0-9_]+)-(?P<pid>\d+)-(?P<started>\d+)\.(?:old|\w+\.tmp(?:\..*)?)"
)
_LONGEST = 100
"""Bytes of the final name that are repeated: file systems take 255 for a whole one."""

_swept: set[str] = set()
_lock = threading.Lock()


def owned_prefix(name: str) -> str:
    """Return how the temporary name of a file or folder begins: hidden, with this process as its owner."""
    whole = os.fsencode(name)  # a name need not be UTF-8
    short = name if len(whole) <= _LONGEST else whole[:_LONGEST].decode(errors="ignore")
    return f".{short}.{_host()}-{os.getpid()}-{_started(os.getpid())}."


def sweep_once(folder: Path) -> None:
    """Remove the leftovers in a folder, unless this process has looked there already."""
    # A forked process inherits the set, but has looked nowhere itself.
    key = f"{os.getpid()} {folder.absolute()}"
    with _lock:
        if key in _swept:
            return
        _swept.add(key)
    sweep(folder)


def sweep(folder: Path) -> list[Path]:
    """Remove the leftovers in a folder and return them. An old folder whose place is empty gets its name back."""
    found = [path for path in _entries(folder) if _is_left(path)]
    for path in found:
        place = _final(path) if path.name.endswith(f".{OLD}") else None
        if place is not None and not place.exists():
            with contextlib.suppress(OSError):
                path.rename(place)
        remove(path)
    return found


def recover(path: Path) -> None:
    """Give a folder its name back that a killed process was replacing."""
    if path.exists():
        return
    for old in _entries(path.parent):
        legacy = old.name == f".{path.name}.{OLD}"
        if (legacy or _is_left(old)) and old.name.endswith(f".{OLD}") and _final(old) == path:
            with contextlib.suppress(OSError):
                old.rename(path)
            return


def _final(path: Path) -> Path | None:
    """Return what a hidden name stands for; None where it was too long to be repeated."""
    match = _NAME.fullmatch(path.name)
    name = match["of"] if match is not None else path.name[1 : -len(OLD) - 1]
    return None if len(os.fsencode(name)) >= _LONGEST else path.with_name(name)


def _entries(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.name.startswith(".")]
    except OSError:
        return []


def _is_left(path: Path) -> bool:
    match = _NAME.fullmatch(path.name)
    if match is None or match["host"] != _host():
        return False
    return _started(int(match["pid"])) != int(match["started"])


def claim(folder: Path) -> Path:
    """Note in a folder that is kept between attempts that this process works in it; return the note.

    It stays when the process ends, so that `is_abandoned` can tell the folder from one that nobody ever claimed.
    """
    note = folder / f"{owned_prefix('owner')}1.tmp"
    note.touch()
    return note


def is_abandoned(folder: Path) -> bool:
    """Return whether those who claimed a folder don't run any more."""
    notes = [path for path in _entries(folder) if path.name.startswith(".owner.")]
    return bool(notes) and all(_is_left(path) for path in notes)


def remove(path: Path) -> None:
    """Remove a file or folder, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _host() -> str:
    """Return a name of what the numbers of processes belong to: the machine, and the container if it is one."""
    name = re.sub(r"\W", "_", socket.gethostname(), flags=re.ASCII)[:40] or "localhost"
    try:
        return f"{name}_{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return name


def _started(pid: int) -> int:
    """Return when a running process has begun, in ticks since the start of the machine; -1 where it isn't running.

    0 where the system doesn't tell: then a number that is taken counts as the process that had it.
    """
    try:
        # Signal 0 isn't sent: it only asks whether there is such a process.
        os.kill(pid, 0)
    except ProcessLookupError:
        return -1
    except OSError:
        pass  # it runs, for another user
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # The 22nd field. The second one is the program's name in parentheses, which may hold blanks and parentheses.
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


@contextlib.contextmanager
def temporary_folder(name: str, place: Path | None = None) -> Iterator[Path]:
    """Yield a folder for temporary files, removed afterwards.

    What killed processes have left there of this kind is removed first.

    Args:
        name: What it is for.
        place: Folder that it lies in; the system's place for temporary files by default.
    """
    root = place or Path(tempfile.gettempdir())
    sweep(root)
    folder = Path(tempfile.mkdtemp(prefix=owned_prefix(name), suffix=".tmp", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
