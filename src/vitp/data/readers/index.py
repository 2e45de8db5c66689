"""Where each row of an annotation file begins: built in one pass, kept in a cache, mapped into memory.

A row costs 24 bytes of a file that all workers share, so a set of millions of rows costs a process nothing.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitp.errors import DataError, VitpError
from vitp.files import atomic_path

_VERSION = 1
_HEADER_ROWS = 3  # version, size, mtime; then 32 bytes of SHA-256 and padding

CACHE_ABOVE = 4 << 20
"""Files of fewer bytes are indexed again each time: that takes milliseconds, and leaves no files behind."""

# Everything up to the next bracket that is not inside of a string, and that bracket.
_TO_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+")*+[\[\]{}]', re.DOTALL)


@dataclass(frozen=True)
class RowIndex:
    """Places of the rows of one version of a file.

    Attributes:
        rows: (N, 3) int64: byte offset, length in bytes, line from 1.
        digest: SHA-256 of the file.
        size: Bytes of the file.
        mtime_ns: Time of its last change.
        cache: The file that `rows` is mapped from; None when it is held in memory.
    """

    rows: np.ndarray
    digest: str
    size: int
    mtime_ns: int
    cache: Path | None


def line_index(path: Path, *, cache_above: int = CACHE_ABOVE) -> RowIndex:
    """Return the index of a JSON Lines file; blank lines are no rows.

    Raises:
        DataError: The file is missing or can't be read.
    """
    return _cached(path, "lines", _scan_lines, cache_above)


def array_index(path: Path, *, cache_above: int = CACHE_ABOVE) -> RowIndex:
    """Return the index of a JSON file that holds one list of objects.

    The file is mapped, not loaded: memory stays at 24 bytes a row.

    Raises:
        DataError: The file is missing, or is not one list.
    """
    return _cached(path, "array", _scan_array, cache_above)


def cache_folder() -> Path:
    """Return the folder for indices: `$VITP_CACHE`, else `vitp` in the user's cache folder."""
    own = os.environ.get("VITP_CACHE")
    if own:
        return Path(own) / "index"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitp" / "index"


def _cached(path: Path, kind: str, scan: Callable[[Path], tuple[array, str]], cache_above: int) -> RowIndex:
    try:
        stat = path.stat()
        if path.is_dir():
            raise DataError("is a folder, not an annotation file", where=str(path), fix="name the file in it")
        if stat.st_size < cache_above:
            return _from_scan(path, scan, stat)
        key = hashlib.sha256(f"{kind} {path.resolve()}".encode()).hexdigest()[:24]
        cache = cache_folder() / f"{path.stem[:40]}-{key}.npy"
        found = _load(cache, stat)
        if found is not None:
            return found
        index = _from_scan(path, scan, stat)
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror})", where=str(path), fix="check the path") from error
    try:
        _store(cache, index)
    except (OSError, VitpError):
        return index  # a cache that can't be written only costs the next start some seconds
    return _load(cache, stat) or index


def _from_scan(path: Path, scan: Callable[[Path], tuple[array, str]], stat: os.stat_result) -> RowIndex:
    numbers, digest = scan(path)
    rows = np.frombuffer(numbers, dtype=np.int64).reshape(-1, 3) if numbers else np.zeros((0, 3), np.int64)
    return RowIndex(rows, digest, stat.st_size, stat.st_mtime_ns, None)


def _store(cache: Path, index: RowIndex) -> None:
    header = np.zeros((_HEADER_ROWS, 3), np.int64)
    header[0] = (_VERSION, index.size, index.mtime_ns)
    header[1:].reshape(-1)[:4] = np.frombuffer(bytes.fromhex(index.digest), np.int64)
    with atomic_path(cache) as temporary:
        np.save(temporary, np.concatenate([header, index.rows]))


def _load(cache: Path, stat: os.stat_result) -> RowIndex | None:
    """Return the cached index when it belongs to this version of the file."""
    try:
        stored = np.load(cache, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = stored.ndim == 2 and stored.shape[1] == 3 and len(stored) >= _HEADER_ROWS
    if not fits or tuple(stored[0]) != (_VERSION, stat.st_size, stat.st_mtime_ns):
        return None
    digest = np.ascontiguousarray(stored[1:_HEADER_ROWS]).tobytes()[:32].hex()
    return RowIndex(stored[_HEADER_ROWS:], digest, stat.st_size, stat.st_mtime_ns, cache)


def _scan_lines(path: Path) -> tuple[array, str]:
    numbers, digest, offset = array("q"), hashlib.sha256(), 0
    with path.open("rb", buffering=1 << 20) as file:
        for number, line in enumerate(file, 1):
            digest.update(line)
            if not line.isspace():
                numbers.extend((offset, len(line), number))
            offset += len(line)
    return numbers, digest.hexdigest()


def _scan_array(path: Path) -> tuple[array, str]:
    numbers = array("q")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not path.stat().st_size:
            raise DataError("is empty", where=str(path), fix="a JSON list of rows is expected")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            line, counted = 1, 0
            for begin, end in _array_rows(data, path):
                line += data[counted:begin].count(b"\n")
                counted = begin
                numbers.extend((begin, end - begin, line))
    return numbers, digest


def _array_rows(data: mmap.mmap, path: Path) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each object of the list, found by counting brackets outside of strings."""
    last = 3 if data[:3] == b"\xef\xbb\xbf" else 0  # end of what has been understood so far
    depth = begin = rows = 0
    closed, token = False, _TO_BRACKET.match(data, last)
    while token is not None:
        end = token.end()
        bracket = data[end - 1 : end]
        if depth <= 1:
            gap = data[last : end - 1].strip()
            row_begins = depth == 1 and bracket == b"{" and gap == (b"," if rows else b"")
            list_turns = not gap and not closed and bracket == (b"]" if depth else b"[")
            if not (row_begins or list_turns):
                raise _broken_array(path)
            begin, last = end - 1, end
        depth += 1 if bracket in b"[{" else -1
        closed = depth == 0
        if depth == 1 and bracket in b"]}":
            last, rows = end, rows + 1
            yield begin, last
        token = _TO_BRACKET.match(data, end)
    if not closed or data[last:].strip():
        raise _broken_array(path)


def _broken_array(path: Path) -> DataError:
    """Return what is wrong with a file that is not one list of objects. Loads it whole: the way out only."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        return DataError(
            f"broken JSON, column {error.colno}: {error.msg}",
            where=f"{path}:{error.lineno}",
            fix="mend the file; was it written to the end?",
        )
    except UnicodeDecodeError as error:
        return DataError(f"is not UTF-8 (byte {error.start})", where=str(path), fix="convert it to UTF-8")
    if isinstance(value, list):
        odd = next((n for n, row in enumerate(value, 1) if not isinstance(row, dict)), 0)
        return DataError(f"entry {odd} of the list is not an object", where=str(path), fix="remove the entry")
    return DataError("is not a list of rows", where=str(path), fix="use JSON Lines or a JSON list of objects")
