"""Whether a command may write where it is told to: looked at before anything is computed.

What vitp wrote itself may be replaced where that is asked for; what it didn't write is never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from vitp.core.errors import ConfigError, VitpError

FileKind = Literal["JSON", "page", "PNG"]
_BEGINS: dict[FileKind, tuple[bytes, ...]] = {
    "JSON": (b"{", b"["),
    "page": (b"<!doctype html",),
    "PNG": (b"\x89png\r\n\x1a\n",),
}


def check_folder(
    out: Path,
    is_ours: Callable[[Path], bool],
    *,
    what: str,
    overwrite: bool,
    inputs: Iterable[str | Path] = (),
) -> None:
    """Do nothing when a folder may be written.

    Args:
        out: New or empty folder, or one with earlier output of the same command.
        is_ours: Tells whether a folder holds such output.
        what: What such output is called.
        overwrite: Whether it is to be replaced.
        inputs: Files and folders that the command reads; they would go with what is replaced.

    Raises:
        VitpError: It holds something else or an input, or isn't to be replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not is_ours(out):
        # Replacing means removing what is there: never a folder that isn't ours.
        raise VitpError(f"exists and doesn't hold {what}", where=str(out), fix="choose another folder")
    if not overwrite:
        raise VitpError(
            f"exists, and holds {what} already",
            where=str(out),
            fix="choose another folder, or replace it with --force",
        )
    for one in inputs:
        if Path(one).resolve().is_relative_to(out.resolve()):
            what = f"would be replaced with all that is in it, and {one} is an input of the same command"
            raise VitpError(what, where=str(out), fix="choose another folder")


def check_output_file(out: Path, kind: FileKind, inputs: Iterable[str | Path] = ()) -> None:
    """Do nothing when a file may be written: a new one, or in place of one of its kind that isn't an input.

    Raises:
        ConfigError: It is a folder, an input of the command, or a file of another kind.
    """
    fix = "choose another file"
    if out.is_dir():
        raise ConfigError("is a folder", where=str(out), fix="name a file in it")
    if not out.exists():
        return
    if any(Path(one).exists() and out.samefile(one) for one in inputs):
        raise ConfigError("is an input of the same command", where=str(out), fix=fix)
    with out.open("rb") as file:
        begin = file.read(64).lstrip().lower()
    if begin and not begin.startswith(_BEGINS[kind]):
        raise ConfigError(f"exists and is no {kind}", where=str(out), fix=fix)
