"""Weights files that tell whether they are still as they were written.

A safetensors file carries the SHA-256 of all its other bytes in its own metadata, so that it may be copied, renamed and
loaded by any program, and one flipped bit anywhere in it is noticed:

    "__metadata__": {"vitp_sha256": "vitp:<64 digits>", …}    hashed with 64 zeros in place of the digits

What has no place for a digest (torch's distributed checkpoints, graphs) is listed in `SHA256SUMS` beside it, in the
form that `sha256sum -c` reads. Files of others have neither, and are taken as they are. `vitp.core.tensors` writes and
reads the tensors.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping
from io import BufferedReader, FileIO
from pathlib import Path

from safetensors import SafetensorError, safe_open

from vitp.core.errors import CheckpointError, DamagedError
from vitp.core.files import sha256, write_text
from vitp.core.reading import check_file

KEY, MARK, ZEROS = "vitp_sha256", "vitp:", "0" * 64
SUMS = "SHA256SUMS"

_DIGEST = re.compile(rb'"([^"]*)"\s*:\s*"([^"]*?)([0-9a-f]{64})"')
_SUM = re.compile(r"([0-9a-f]{64})  (\S.*)")
_LONGEST_HEADER = 100_000_000
_log = logging.getLogger("vitp")
_told: set[str] = set()


def read_metadata(path: Path, *, fix: str = "copy it again") -> dict[str, str]:
    """Return the texts of a safetensors file's header; its digest isn't checked.

    Raises:
        DamagedError: It is missing or cut off.
    """
    try:
        check_file(path)
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise not_whole(path, error, fix) from error


def check(path: Path, *, fix: str = "copy it again") -> bool:
    """Return whether a digest of a weights file is known; it is then as it was written.

    Raises:
        DamagedError: It is missing, or isn't as it was written.
    """
    try:
        with path.open("rb") as file:
            known = _check_own(path, file, fix)
    except OSError as error:
        raise unreadable(path, error, fix) from error
    if known:
        return True
    sums = read_sums(path.parent, fix=fix)
    if path.name not in sums:
        return False
    check_sum(path, sums[path.name], fix=fix)
    return True


def _check_own(path: Path, file: FileIO | BufferedReader, fix: str) -> bool:
    """Compare a file with the digest in its header, if it has one."""
    size = path.stat().st_size
    length = int.from_bytes(file.read(8), "little")
    if length > min(size, _LONGEST_HEADER):
        return False  # no header of this format: the library says what is wrong with it
    head = bytearray(file.read(length))
    found = None
    for match in _DIGEST.finditer(head):
        # Either of the two tells that there was a digest, so that no single bit hides it.
        marks = (match[1] == KEY.encode(), match[2] == MARK.encode())
        if all(marks):
            found = match
        elif any(marks):
            raise _changed(path, fix)
    if found is None:
        if KEY.encode() in head or f'"{MARK}'.encode() in head:  # the digits themselves were hit
            raise _changed(path, fix)
        return False
    stated = found[3].decode()
    start, end = found.span(3)
    head[start:end] = ZEROS.encode()
    digest = hashlib.sha256(length.to_bytes(8, "little") + head)
    # `file_digest` asks for a function that makes a hash; it gets the one that has the head already.
    hashlib.file_digest(file, lambda: digest)
    if digest.hexdigest() != stated:
        raise _changed(path, fix)
    return True


def write_sums(folder: Path, names: Iterable[str] = (), known: Mapping[str, str] | None = None) -> None:
    """Write `SHA256SUMS` of files in a folder.

    Args:
        folder: Holds the files.
        names: Those to hash, relative to it.
        known: Name → digest of others.
    """
    digests = {**(known or {}), **{name: sha256(folder / name) for name in names}}
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())))


def read_sums(folder: Path, *, fix: str = "copy it again") -> dict[str, str]:
    """Return name → digest as `SHA256SUMS` of a folder lists them; empty without that file.

    Raises:
        DamagedError: It is damaged.
    """
    path = folder / SUMS
    if not path.is_file():
        return {}
    try:
        # Behind the last line's end there must be nothing: a file that was cut off has a part of a line there.
        *lines, end = path.read_bytes().decode().split("\n")
    except OSError as error:
        raise unreadable(path, error, fix) from error
    except UnicodeDecodeError as error:
        raise DamagedError(f"can't be read ({error})", where=str(path), fix=fix) from error
    rows = [_SUM.fullmatch(line) for line in lines]
    if not rows or None in rows or end:
        raise DamagedError("is no list of digests", where=str(path), fix=fix)
    return {row[2]: row[1] for row in rows if row is not None}


def check_sum(path: Path, digest: str, *, fix: str = "copy it again") -> None:
    """Compare a file with a digest that is kept elsewhere.

    Raises:
        DamagedError: It is missing, or isn't the file that the digest is of.
    """
    try:
        same = sha256(path) == digest
    except OSError as error:
        raise unreadable(path, error, fix) from error
    if not same:
        raise _changed(path, fix)


def check_sums(folder: Path, *, fix: str) -> str:
    """Compare all files that `SHA256SUMS` of a folder lists, and return in words how many there are.

    Raises:
        DamagedError: A file is missing, or isn't as it was written; or there is no list.
    """
    sums = read_sums(folder, fix=fix)
    if not sums:
        raise DamagedError("is missing", where=str(folder / SUMS), fix=fix)
    for name, digest in sums.items():
        check_sum(folder / name, digest, fix=fix)
    return f"{len(sums)} files as written"


def tell_unknown(path: Path) -> None:
    """Say once a process and folder that damage to it, or to a file in it, can't be noticed."""
    folder = str(path if path.is_dir() else path.parent)
    if folder not in _told:
        _told.add(folder)
        _log.warning(
            "note: %s: was written before weights had digests; whether it is still as written can't be told",
            path,
        )


def _changed(path: Path, fix: str) -> DamagedError:
    return DamagedError(
        "is damaged: its content isn't what was written (SHA-256 differs)", where=str(path), fix=fix
    )


def unreadable(path: Path, error: OSError, fix: str) -> CheckpointError:
    """Return what it means that a file can't be opened or read: that this user may not is no damage."""
    if isinstance(error, FileNotFoundError):
        return DamagedError("is missing", where=str(path), fix=fix)
    if isinstance(error, PermissionError):
        return CheckpointError(
            f"can't be read ({error.strerror})", where=str(path), fix="check its permissions"
        )
    return DamagedError(f"can't be read ({error.strerror or error})", where=str(path), fix=fix)


def not_whole(path: Path, error: Exception, fix: str) -> CheckpointError:
    """Return what it means that the library for safetensors can't read a file."""
    # The library's own errors of the system have no number: they come with another text.
    if isinstance(error, OSError) and error.errno is not None:
        return unreadable(path, error, fix)
    if isinstance(error, FileNotFoundError):
        return DamagedError("is missing", where=str(path), fix=fix)
    return DamagedError(f"is no whole safetensors file ({error})", where=str(path), fix=fix)
