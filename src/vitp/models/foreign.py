"""Reading a folder that others made: whatever is odd in its description is one error that names it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vitp.core.config import first_fault
from vitp.core.errors import CheckpointError, ConfigError

_ODD = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    RecursionError,
    AssertionError,
    ZeroDivisionError,
)
"""What code that expects a published description raises on another one."""


def numbers_of(values: Any, count: int) -> list[float]:
    """Return one number a channel, as a mean or a standard deviation is.

    Raises:
        ValueError, TypeError: They are not that many numbers.
    """
    numbers = [float(value) for value in values]
    if len(numbers) != count:
        raise ValueError(f"{numbers[:13]} are not {count} numbers")
    return numbers


@contextlib.contextmanager
def described_by(where: str | Path) -> Iterator[None]:
    """Turn what goes wrong while a description is followed into an error about it.

    Args:
        where: The description: a file or folder.

    Raises:
        CheckpointError: The description can't be followed.
    """
    try:
        yield
    except ConfigError as error:
        raise CheckpointError(
            f"doesn't describe a model that this version can build ({error})",
            where=str(where),
            fix="copy the folder again, or make it anew",
        ) from error
    except ValidationError as error:
        what = f"doesn't describe a model ({first_fault(error)})"
        raise CheckpointError(what, where=str(where), fix="copy the folder again") from error
    except _ODD as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise CheckpointError(
            f"doesn't describe a model that this version can build ({type(error).__name__}: {reason})",
            where=str(where),
            fix="copy the folder again, or export it anew",
        ) from error
