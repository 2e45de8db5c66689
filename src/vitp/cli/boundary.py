"""The edge between the program and its user: every end of a command becomes an exit code and one line."""

from __future__ import annotations

import datetime
import errno
import io
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from vitp.core.errors import VitpError
from vitp.core.files import as_user_error
from vitp.core.version import __version__

WRONG_INPUT = 2
INTERNAL = 70
"""A fault of the program (`EX_SOFTWARE` of sysexits.h)."""

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
NOTHING_LEFT = "interrupted; nothing half-written is left"

_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
"""What the system refuses to those who write; all else may be said of a path that is read as well."""


def prepare_streams() -> None:
    """Make standard output and error take every character, and be there even where they were closed.

    A terminal of ASCII shows a question mark for what it hasn't; names of files that aren't UTF-8 have characters that
    no encoding has.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def guarded(command: Callable[[], Any]) -> int:
    """Return the exit code of a command: its own, or that of what it raised, after one line about it.

    Args:
        command: Returns an exit code or None.
    """
    try:
        code = command()
        if code == INTERRUPTED:  # typer may have caught Ctrl-C without a word
            return fail(NOTHING_LEFT, code)
        return code if isinstance(code, int) else 0
    except VitpError as error:
        return fail(str(error))
    except BrokenPipeError:
        # The reader of our output went away, as `head` does: no reason for a stack trace.
        # Python flushes its output once more when it ends, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except typer.Abort as error:
        # typer takes the end of a file for Ctrl-D at a prompt; there are no prompts, so a file was cut off.
        if isinstance(error.__cause__, EOFError):
            return _internal(error.__cause__)
        return fail(NOTHING_LEFT, INTERRUPTED)
    except KeyboardInterrupt:
        return fail(NOTHING_LEFT, INTERRUPTED)
    except SystemExit as error:
        if error.code == TERMINATED:
            return fail(NOTHING_LEFT, TERMINATED)
        raise
    except Exception as error:
        # Of typer's exceptions only the base class is public; all of them have an exit code, as has `Interrupted`.
        code = getattr(error, "exit_code", None)
        if isinstance(code, int):
            message = _usage(error)
            return fail(message, code) if message else code
        known = _known(error)
        return _internal(error) if known is None else fail(known)


def fail(message: str, code: int = WRONG_INPUT) -> int:
    """Print a message as one line on standard error; return the code."""
    # Names of files may hold marks that move the cursor or have no glyph.
    line = "".join(mark if mark.isprintable() else _escaped(mark) for mark in " ".join(message.split()))
    # One call is one write: the lines of several ranks don't run into each other.
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        Text.assemble(("error:", "bold red"), " ", line)
    )
    return code


def _escaped(mark: str) -> str:
    return mark.encode("unicode_escape", "backslashreplace").decode("ascii")


def _usage(error: Exception) -> str:
    """Return what typer would say about wrong arguments, in one line; empty when it has printed the help."""
    format_message = getattr(error, "format_message", None)
    if format_message is None:
        return str(error)
    # typer says so of choices, which pydantic checks.
    message, context = str(format_message()).replace("Value error, ", ""), getattr(error, "ctx", None)
    if not message or context is None:
        return message
    return f"{message.rstrip('.')}; see `{context.command_path} --help`"


def _known(error: Exception) -> str | None:
    """Return the sentence for an exception that says something about the input or the machine; None for others."""
    if isinstance(error, OSError) and error.errno is not None:
        return _system(error)
    if isinstance(error, RecursionError):
        return "what was read is nested too deeply; look for a list in a list in a list in the files that were named"
    if isinstance(error, MemoryError):
        return (
            f"the memory is not enough ({_first_line(error)}); use smaller images, batches or fewer workers"
        )
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which isn't imported for its sake
        return (
            f"the memory of the device is not enough ({_first_line(error)}); use a smaller batch, more micro-batches "
            "or recompute activations (vitp plan says what a run needs)"
        )
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
        return f"the memory is not enough ({_first_line(error)}); use smaller images, batches or models"
    if isinstance(error, UnicodeEncodeError):
        near = error.object[max(0, error.start - 60) : error.start + 20].splitlines()
        text = next((line for line in near if error.object[error.start] in line), error.object[error.start])
        return (
            f'a name or text holds half a character or bytes that are no {error.encoding}, near "{_escaped(text)}"; '
            "rename the file, or mend the text"
        )
    if isinstance(error, ValueError) and "embedded null byte" in str(error):
        return "a path holds a null byte; check the paths in the files that were named"
    return None


def _system(error: OSError) -> str:
    where = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else None
    if error.errno in _WRITING:
        return str(as_user_error(error, where or "output"))
    fix = {
        errno.ENAMETOOLONG: "use a shorter name",
        errno.ENOTDIR: "a part of the path is a file: name another path",
        errno.EISDIR: "name a file in it",
        errno.EEXIST: "name another path",
        errno.ELOOP: "mend the symbolic link",
        errno.EMFILE: "raise the limit with `ulimit -n`, or use fewer workers",
        errno.EIO: "look at the disk",
    }.get(error.errno or 0, "check the path")
    return str(VitpError((error.strerror or str(error)).lower(), where=where, fix=fix))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _internal(error: BaseException) -> int:
    """Say that the program is at fault, and keep the trace for a report."""
    what = f"internal error: {type(error).__name__}: {_first_line(error)}"
    try:
        path = _write_trace(error)
    except OSError as problem:
        frame = (traceback.extract_tb(error.__traceback__) or [None])[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}" if frame is not None else "an unknown place"
        return fail(f"{what} (at {place}; no trace was kept: {problem.strerror}); please report it", INTERNAL)
    return fail(f"{what} (the trace is in {path}; please report it with the command)", INTERNAL)


def _write_trace(error: BaseException) -> str:
    handle, path = tempfile.mkstemp(prefix="vitp-error-", suffix=".txt")
    head = [
        f"vitp {__version__}, Python {sys.version.split()[0]}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S}",
        f"command: {' '.join(sys.argv)}",
        "",
    ]
    trace = "".join(traceback.format_exception(error))
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write("\n".join([*head, trace]))
    return path
