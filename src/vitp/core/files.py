"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from vitp.core.errors import DataError, VitpError
from vitp.core.leftovers import OLD, owned_prefix, recover, remove, sweep_once
from vitp.core.reading import open_file

_KEPT_FOLDERS = 2
"""Folders that `inner_path` repeats of a name that leads elsewhere."""

_UMASK = threading.Lock()
_SURROGATE = re.compile("[\ud800-\udfff]")


def as_user_error(error: OSError, path: str | Path) -> VitpError:
    """Return what a failed write means to the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return VitpError(
            "the disk is full", where=str(path), fix="free some space; nothing that was there is lost"
        )
    if error.errno == errno.EFBIG:
        return VitpError(
            "can't be written (the file would be larger than its file system, or `ulimit -f`, allows)",
            where=str(path),
            fix="choose a place on another file system, or raise the limit",
        )
    reason, fix = error.strerror, "check the path and its permissions"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        reason, fix = "a part of the path is a file", "name another path"
    return VitpError(f"can't be written ({reason})", where=str(path), fix=fix)


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed to `path`.

    On any error, an interrupt included, the temporary file is removed and what `path` held stays. What killed
    processes have left in the folder is removed by the next one that writes there; see `vitp.core.leftovers`.

    Raises:
        VitpError: The disk is full or the place can't be written.
    """
    path = Path(path)
    temporary: Path | None = None  # made inside of the try: an interrupt may come right after it was
    if path.is_dir():
        raise VitpError("is a folder", where=str(path), fix="name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_once(path.parent)
        handle, name = tempfile.mkstemp(
            prefix=owned_prefix(path.name), suffix=f".tmp{path.suffix}", dir=path.parent
        )
        temporary = Path(name)
        os.close(handle)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        # `mkstemp` makes files that only their owner can read; this one is to be like any other.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise as_user_error(error, path) from error
        raise


def _umask() -> int:
    with _UMASK:  # it can only be read by setting it: two threads at once would leave it at 0
        umask = os.umask(0)
        os.umask(umask)
    return umask


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically. A character that stands for a byte of a file's name is shown as `\\udc…`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Return `value` as JSON that can be written as UTF-8, and that is read back to the same.

    File names that aren't UTF-8 hold characters (surrogates) that UTF-8 has no form for; they are escaped.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def or_null(value: float | None) -> float | None:
    """Return a number for JSON, which knows neither NaN nor infinity: null stands for those."""
    return None if value is None or not math.isfinite(value) else float(value)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, to_json(value, indent=2) + "\n")


@contextlib.contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that becomes `path` on success; an older `path` is replaced.

    Replacing a folder that isn't empty takes two renames. A crash in between leaves the old one under a hidden name;
    the next call for the same `path` gives it its name back first.

    Raises:
        VitpError: The disk is full or the place can't be written.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise VitpError("can't be replaced", where=str(path), fix="name a new folder")
    if path.exists() and not path.is_dir():
        raise VitpError("is a file", where=str(path), fix="name a new folder")
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        recover(path)
        sweep_once(path.parent)
        temporary = Path(tempfile.mkdtemp(prefix=owned_prefix(path.name), suffix=".tmp", dir=path.parent))
        # `mkdtemp` makes folders that only their owner can enter; this one is to be like any other.
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        put_in_place(temporary, path)
    except BaseException as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise as_user_error(error, path) from error
        raise


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a finished folder to `path`, in place of an older folder.

    Raises:
        OSError: `path` is no folder, or can't be moved; it is then as before.
    """
    if not path.exists() or (path.is_dir() and not path.is_symlink() and not any(path.iterdir())):
        temporary.rename(path)  # onto an empty folder, too
        return
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    old = path.with_name(f"{owned_prefix(path.name)}{OLD}")
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    try:
        temporary.rename(path)
    except BaseException:
        old.rename(path)
        raise
    remove(old)


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def user_cache() -> Path:
    """Return the folder of what can be made again: `$VITP_CACHE`, else `vitp` in the user's cache folder."""
    own = os.environ.get("VITP_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitp"


def inner_path(name: str) -> str:
    """Return a relative path that stays in the folder it is joined to, for a name that others chose.

    A name without root and ".." stays as it is. Any other keeps its last part and the last of its folders' names; a
    hash of the whole name keeps it unique.
    """
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    if not path.is_absolute() and not windows.anchor and ".." not in windows.parts and path.name:
        return name
    *folders, own = [p for p in windows.parts if p not in (windows.anchor, "..")] or ["unnamed"]
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:10]
    return "/".join([*folders[-_KEPT_FOLDERS:], f"{own}-{digest}"])


def check_inside(path: Path, folder: Path) -> None:
    """Make sure that a file that is to be written lies in a folder, links followed.

    Raises:
        DataError: It lies elsewhere.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f"would be written outside of {folder}",
            where=str(path),
            fix="give it a plain name, without links",
        )
