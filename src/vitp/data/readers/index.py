"""Where each row of an annotation file begins: built in one pass, kept in a cache, mapped into memory.

A row costs 24 bytes of a file that all workers share, so a set of millions of rows costs a process nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vitp.core.errors import DataError, VitpError
from vitp.core.files import atomic_path
from vitp.core.reading import check_file, parse_json, read_text
from vitp.data.readers.array_scan import BrokenArray, array_rows

_VERSION = 1
_HEADER_ROWS = 3  # version, size, mtime; then 32 bytes of SHA-256 and padding
_CHUNK = 16 << 20
_BLANKS = np.zeros(256, dtype=bool)
_BLANKS[list(b" \t\n\r\x0b\x0c")] = True

CACHE_ABOVE = 4 << 20
"""Files of fewer bytes are indexed again each time: that takes milliseconds, and leaves no files behind."""

Scan = Callable[[Path, BinaryIO, "Hash"], Iterator[np.ndarray]]
"""Reads an open file once: yields blocks (n, 3) of `RowIndex.rows`, and feeds the hash."""


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


class Hash:
    """SHA-256 that is computed in a thread of its own, beside the scan."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._last = self._thread.submit(lambda: None)

    def update(self, data: bytes) -> None:
        """Add bytes; waits until those before are done, so that they don't pile up."""
        self._last.result()
        self._last = self._thread.submit(self._digest.update, data)

    def hexdigest(self) -> str:
        """Return the digest of all that was added."""
        self._last.result()
        return self._digest.hexdigest()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()


def line_index(path: Path, *, cache_above: int = CACHE_ABOVE) -> RowIndex:
    """Return the index of a JSON Lines file; blank lines are no rows.

    Raises:
        DataError: The file is missing or can't be read.
    """
    return cached_index(path, "lines", _scan_lines, cache_above)


def array_index(path: Path, *, cache_above: int = CACHE_ABOVE) -> RowIndex:
    """Return the index of a JSON file that holds one list of objects.

    The file is mapped, not loaded: memory stays at 24 bytes a row.

    Raises:
        DataError: The file is missing, or is not one list.
    """
    return cached_index(path, "array", _scan_array, cache_above)


def cache_folder() -> Path:
    """Return the folder for indices: `$VITP_CACHE`, else `vitp` in the user's cache folder."""
    own = os.environ.get("VITP_CACHE")
    if own:
        return Path(own) / "index"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitp" / "index"


def cached_index(path: Path, kind: str, scan: Scan, cache_above: int) -> RowIndex:
    """Return the rows of this version of a file: from the cache, or from a scan that is then kept there.

    Args:
        path: The file.
        kind: Of the scan; another kind has another cache.
        scan: Finds the rows.
        cache_above: Files of at least this many bytes are cached.

    Raises:
        DataError: The file is missing or can't be read.
    """
    try:
        if path.is_dir():
            raise DataError("is a folder, not an annotation file", where=str(path), fix="name the file in it")
        stat = check_file(path)
        if stat.st_size < cache_above:
            return _in_memory(path, scan, stat)
        key = hashlib.sha256(f"{kind} {path.resolve()}".encode(errors="surrogatepass")).hexdigest()[:24]
        cache = cache_folder() / f"{path.stem[:40]}-{key}.npy"
        found = _load(cache, stat)
        if found is not None:
            return found
        if not _can_write(cache.parent):
            return _in_memory(path, scan, stat)
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror})", where=str(path), fix="check the path") from error
    try:
        _store(cache, path, scan, stat)
    except DataError:
        raise
    except (
        VitpError
    ):  # no room: a cache that can't be written only costs memory, and the next start some seconds
        return _in_memory(path, scan, stat)
    return _load(cache, stat) or _in_memory(path, scan, stat)


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _in_memory(path: Path, scan: Scan, stat: os.stat_result) -> RowIndex:
    with _scanning(path, scan) as (blocks, digest):
        rows = [np.zeros((0, 3), np.int64), *blocks]
        return RowIndex(np.concatenate(rows), digest.hexdigest(), stat.st_size, stat.st_mtime_ns, None)


@contextlib.contextmanager
def _scanning(path: Path, scan: Scan) -> Iterator[tuple[Iterator[np.ndarray], Hash]]:
    digest = Hash()
    try:
        with path.open("rb") as file:
            yield scan(path, file, digest), digest
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror})", where=str(path), fix="check the path") from error
    finally:
        digest.close()


def _store(cache: Path, path: Path, scan: Scan, stat: os.stat_result) -> None:
    """Write the index block by block: an index of any length takes no memory."""
    count = _HEADER_ROWS
    with atomic_path(cache) as temporary, temporary.open("wb") as out:
        begin = _npy_header(out, count)
        np.zeros((_HEADER_ROWS, 3), np.int64).tofile(out)
        with _scanning(path, scan) as (blocks, digest):
            for block in blocks:
                block.tofile(out)
                count += len(block)
            sha = digest.hexdigest()
        out.seek(0)
        if _npy_header(out, count) != begin:
            raise AssertionError("numpy's header has grown")
        head = np.zeros((_HEADER_ROWS, 3), np.int64)
        head[0] = (_VERSION, stat.st_size, stat.st_mtime_ns)
        head[1:].reshape(-1)[:4] = np.frombuffer(bytes.fromhex(sha), np.int64)
        head.tofile(out)


def _npy_header(out: BinaryIO, rows: int) -> int:
    """Write the head of an array file at the file's place; return where its data begin.

    numpy leaves room for the number of rows to grow, for files that are written as this one is.
    """
    form = {"descr": "<i8", "fortran_order": False, "shape": (rows, 3)}
    np.lib.format.write_array_header_1_0(out, form)
    return out.tell()


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


def _scan_lines(path: Path, file: BinaryIO, digest: Hash) -> Iterator[np.ndarray]:
    base = begin = 0
    line = 1
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        data = np.frombuffer(chunk, np.uint8)
        ends = np.flatnonzero(data == 10) + (base + 1)
        if len(ends):
            begins = np.concatenate([[begin], ends[:-1]])
            # A blank line begins with a blank, and few lines do. Where the first one does stands in the chunk before.
            suspects = np.concatenate([[True], _BLANKS[data[begins[1:] - base]]])
            yield _filled_lines(file, begins, ends, line, suspects)
            begin, line = int(ends[-1]), line + len(ends)
        base += len(chunk)
    if begin < base:
        yield _filled_lines(file, np.array([begin]), np.array([base]), line, np.array([True]))


def _filled_lines(
    file: BinaryIO, begins: np.ndarray, ends: np.ndarray, line: int, suspects: np.ndarray
) -> np.ndarray:
    """Return the rows of those of some consecutive lines that are not blank."""
    rows = np.stack([begins, ends - begins, np.arange(line, line + len(ends))], axis=1).astype(np.int64)
    keep = np.ones(len(rows), dtype=bool)
    for index in np.flatnonzero(suspects).tolist():
        offset, length = int(rows[index, 0]), int(rows[index, 1])
        keep[index] = not os.pread(file.fileno(), length, offset).isspace()
    return rows[keep]


def _scan_array(path: Path, file: BinaryIO, digest: Hash) -> Iterator[np.ndarray]:
    if not os.fstat(file.fileno()).st_size:
        raise DataError("is empty", where=str(path), fix="a JSON list of rows is expected")
    try:
        yield from array_rows(file, digest.update)
    except BrokenArray:
        raise _broken_array(path) from None


def _broken_array(path: Path) -> DataError:
    """Return what is wrong with a file that is not one list of objects. Loads it whole: the way out only."""
    try:
        value = parse_json(read_text(path))
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
