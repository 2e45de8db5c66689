"""The one exception that users see: what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VitpError(Exception):
    """A problem that the user can solve. The command line prints it as one line and exits with 2.

    Args:
        what: What is wrong, in one sentence without a final stop.
        where: The file, row, field or record that is wrong.
        fix: What to do, in one sentence without a final stop.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(str(self))

    @property
    def advice(self) -> str:
        """What is wrong and what to do, for lines that name the place themselves."""
        return f"{self.what}; {self.fix}" if self.fix else self.what

    def __str__(self) -> str:
        return f"{self.where}: {self.advice}" if self.where else self.advice

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders (data workers); keyword arguments need help to survive that.
        # By its parts: pickle would give the whole sentence as the first argument when a worker's error is passed on.
        return _rebuild, (self.__class__, self.what, self.where, self.fix)


def _rebuild(cls: type[VitpError], what: str, where: str | None, fix: str | None) -> VitpError:
    return cls(what, where=where, fix=fix)


class DataError(VitpError):
    """An input file, image or record that can't be used."""


class ConfigError(VitpError):
    """A configuration that can't be used."""


class CheckpointError(VitpError):
    """A checkpoint or weights file that can't be used."""


class DamagedError(CheckpointError):
    """A file of a checkpoint or of weights that isn't as it was written: missing, cut off, or changed."""


def did_you_mean(word: str, known: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """Return `did you mean "…"?` for the nearest of the known words, or None when none is so near (0–1)."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=likeness)
    return f'did you mean "{near[0]}"?' if near else None
