"""What lies in folders: listed once for a look that asks for the same folders again and again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")
_look: ContextVar[dict[tuple[str, Path], Any] | None] = ContextVar("look", default=None)


@contextmanager
def one_look() -> Iterator[None]:
    """List each folder once while it lasts: detection asks for the same ones dozens of times.

    What changes there meanwhile isn't seen.
    """
    if _look.get() is not None:
        yield
        return
    token = _look.set({})
    try:
        yield
    finally:
        _look.reset(token)


def once(kind: str, folder: Path, find: Callable[[Path], _T]) -> _T:
    """Return what `find` says of a folder, in a look that it said before."""
    known = _look.get()
    if known is None:
        return find(folder)
    if (kind, folder) not in known:
        known[kind, folder] = find(folder)
    found: _T = known[kind, folder]
    return found


def entries_of(folder: Path) -> tuple[tuple[str, bool], ...]:
    """Return the names in a folder, sorted, and whether each is a folder; hidden ones are left out."""
    return once("entries", folder, _listed)


def _listed(folder: Path) -> tuple[tuple[str, bool], ...]:
    def is_folder(entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError:  # a link to itself
            return False

    # Names are sorted, and not paths, whose comparison takes many times as long.
    with os.scandir(folder) as entries:
        return tuple(
            sorted((entry.name, is_folder(entry)) for entry in entries if not entry.name.startswith("."))
        )


def suffix_of(name: str) -> str:
    """Return the suffix of a name in lower case, as `Path.suffix` has it."""
    stem, _, suffix = name.rpartition(".")  # a path would take ten times as long
    return f".{suffix.lower()}" if stem and suffix else ""
