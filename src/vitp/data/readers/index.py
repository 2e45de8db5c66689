"""The index of row starts in an annotation file: built in one pass, cached, mapped into memory.

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
from typing import Any, BinaryIO

import numpy as np

from vitp.core.errors import DataError, VitpError
from vitp.core.files import atomic_path, user_cache
from vitp.core.reading import check_file, read_json
from vitp.io.storage import readable

CACHE_ABOVE = 4 << 20
"""Files of fewer bytes are indexed again each time: that takes milliseconds, and leaves no files behind."""

LARGEST_ROW = 256 << 20
"""Bytes of one row."""

Seen = Callable[[bytes], None]
"""Gets the bytes that an index's digest is made of, in order."""

Scan = Callable[[Path, BinaryIO, Seen], Iterator[np.ndarray]]
"""Reads an open file once and yields blocks (n, 3) of `RowIndex.rows`."""

_VERSION = 1
_HEADER_ROWS = 3  # version, size, mtime; then 32 bytes of SHA-256 and padding
_CHUNK = 16 << 20
_BLANK = np.zeros(256, dtype=bool)
_BLANK[list(b" \t\n\r\x0b\x0c")] = True
_TOKEN = np.zeros(256, dtype=bool)
_TOKEN[list(b'"[]{}')] = True
_DEPTH = np.zeros(256, dtype=np.int8)
_DEPTH[list(b"[{")] = 1
_DEPTH[list(b"]}")] = -1


@dataclass(frozen=True)
class RowIndex:
    """Places of the rows of one version of a file.

    Attributes:
        rows: (N, 3) int64: byte offset, length in bytes, line from 1.
        digest: SHA-256 of the file.
        size: Size of the file in bytes.
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
    return cached_index(path, "lines", _scan_lines, cache_above)


def array_index(path: Path, *, cache_above: int = CACHE_ABOVE) -> RowIndex:
    """Return the index of a JSON file that holds one list of objects.

    The file is read piece by piece, not loaded: memory stays at 24 bytes a row.

    Raises:
        DataError: The file is missing, or is not one list.
    """
    return cached_index(path, "array", _scan_array, cache_above)


def cache_folder() -> Path:
    """Return the folder for indices: `$VITP_CACHE`, else `vitp` in the user's cache folder."""
    return user_cache() / "index"


def cached_index(path: Path, kind: str, scan: Scan, cache_above: int) -> RowIndex:
    """Return the rows of this version of a file: from the cache, or from a scan that is then kept there.

    Args:
        path: The file.
        kind: Name of the scan; each kind has a cache of its own.
        scan: Finds the rows.
        cache_above: Files of at least this many bytes are cached.

    Raises:
        DataError: The file is missing or can't be read.
    """
    with readable(path):
        if path.is_dir():
            raise DataError("is a folder, not an annotation file", where=str(path), fix="name the file in it")
        stat = check_file(path)
        key = hashlib.sha256(f"{kind} {path.resolve()}".encode(errors="surrogatepass")).hexdigest()[:24]
    if stat.st_size >= cache_above:
        cache = cache_folder() / f"{path.stem[:40]}-{key}.npy"
        found = _load(cache, stat)
        with contextlib.suppress(OSError):
            cache.parent.mkdir(parents=True, exist_ok=True)
        if found is None and os.access(cache.parent, os.W_OK):
            try:
                _store(cache, path, scan, stat)
                found = _load(cache, stat)
            except DataError:
                raise
            except VitpError:  # no room: without a cache it costs memory, and the next start some seconds
                pass
        if found is not None:
            return found
    digest, rows = hashlib.sha256(), [np.zeros((0, 3), np.int64)]
    rows.extend(_scanning(path, scan, digest))
    return RowIndex(np.concatenate(rows), digest.hexdigest(), stat.st_size, stat.st_mtime_ns, None)


def _scanning(path: Path, scan: Scan, digest: Any) -> Iterator[np.ndarray]:
    """Yield the blocks of a scan; a thread of its own feeds the digest, which is whole after the last block."""
    with readable(path), path.open("rb") as file, ThreadPoolExecutor(1) as thread:
        last = thread.submit(digest.update, b"")

        def seen(data: bytes) -> None:
            nonlocal last
            last.result()  # or the pieces would pile up
            last = thread.submit(digest.update, data)

        yield from scan(path, file, seen)


def _store(cache: Path, path: Path, scan: Scan, stat: os.stat_result) -> None:
    """Write the index block by block: an index of any length takes no memory."""
    count, digest = _HEADER_ROWS, hashlib.sha256()
    head = np.zeros((_HEADER_ROWS, 3), np.int64)
    with atomic_path(cache) as temporary, temporary.open("wb") as out:
        begin = _npy_header(out, count)
        head.tofile(out)
        for block in _scanning(path, scan, digest):
            block.tofile(out)
            count += len(block)
        out.seek(0)
        if _npy_header(out, count) != begin:
            raise AssertionError("numpy's header has grown")
        head[0] = (_VERSION, stat.st_size, stat.st_mtime_ns)
        head[1:].reshape(-1)[:4] = np.frombuffer(digest.digest(), np.int64)
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


def _scan_lines(path: Path, file: BinaryIO, seen: Seen) -> Iterator[np.ndarray]:
    base = begin = 0
    line = 1
    while chunk := file.read(_CHUNK):
        seen(chunk)
        data = np.frombuffer(chunk, np.uint8)
        ends = np.flatnonzero(data == 10) + (base + 1)
        if len(ends):
            begins = np.concatenate([[begin], ends[:-1]])
            # A blank line begins with a blank, and few lines do. Where the first one does stands in the chunk before.
            suspects = np.concatenate([[True], _BLANK[data[begins[1:] - base]]])
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


def _scan_array(path: Path, file: BinaryIO, seen: Seen) -> Iterator[np.ndarray]:
    """Find the objects of one list by counting brackets outside of strings.

    What stands between the objects is checked, what stands within them is not. An object that a piece of the file cuts
    is looked at again with the next piece; that one is as large as what is left over, so a long object is read about
    twice, not once for each piece.
    """
    begin = file.read(3)
    if not begin:
        raise DataError("is empty", where=str(path), fix="a JSON list of rows is expected")
    seen(begin)
    base, rest = (3, b"") if begin == b"\xef\xbb\xbf" else (0, begin)
    line, opened = 1, False
    while chunk := file.read(max(_CHUNK, len(rest))):
        seen(chunk)
        rest += chunk
        found = _objects(rest, opened)
        if found is None or len(rest) > 2 * max(LARGEST_ROW, _CHUNK):
            raise _broken_array(path)
        begins, ends = found
        if len(ends):
            breaks = np.flatnonzero(np.frombuffer(rest, np.uint8) == ord("\n"))
            lines = line + np.searchsorted(breaks, begins)
            yield np.stack([begins + base, ends - begins, lines], axis=1).astype(np.int64)
            cut, opened = int(ends[-1]), True
            line += int(np.searchsorted(breaks, cut))
            base, rest = base + cut, rest[cut:]
    if b"".join(rest.split()) != (b"]" if opened else b"[]"):
        raise _broken_array(path)


def _objects(data: bytes, opened: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Return begins and ends (after the last byte) of the whole objects of a piece of a list; None: it is no such list.

    Args:
        data: From the end of an object, or from the file's beginning.
        opened: There was an object before.
    """
    # Escaped signs can't end a string. Pairs of backslashes go first: in `\\"` it is the backslash that is escaped.
    bytes_N = np.frombuffer(data.replace(rb"\\", b"__").replace(rb"\"", b"__"), np.uint8)
    places = np.flatnonzero(_TOKEN[bytes_N])
    quotes = bytes_N[places] == ord('"')
    places = places[~quotes & (np.cumsum(quotes) % 2 == 0)]
    marks = bytes_N[places]
    steps = _DEPTH[marks]
    after = np.cumsum(steps, dtype=np.int64) + opened
    begins, ends = places[(steps > 0) & (after == 2)], places[(steps < 0) & (after == 1)] + 1
    begins = begins[: len(ends)]
    if len(begins) < len(ends) or (bytes_N[begins] != ord("{")).any():
        return None
    if len(ends):
        # What stands between the objects must be one comma each, and one bracket before the first.
        level = np.zeros(ends[-1] + 1, np.int8)
        level[begins] = 1
        level[ends] -= 1
        between = np.cumsum(level[:-1], dtype=np.int8) == 0
        signs = np.flatnonzero(between & ~_BLANK[bytes_N[: ends[-1]]])
        first = b"," if opened else b"["
        if bytes_N[signs].tobytes() != first + b"," * (len(ends) - 1):
            return None
        if not np.array_equal(np.searchsorted(begins, signs), np.arange(len(ends))):
            return None
    return begins, ends


def _broken_array(path: Path) -> DataError:
    """Return what is wrong with a file that is not one list of objects. Loads it whole: the way out only."""
    try:
        value = read_json(path)
    except json.JSONDecodeError as error:
        return DataError(
            f"broken JSON, column {error.colno}: {error.msg}",
            where=f"{path}:{error.lineno}",
            fix="mend the file; was it written to the end?",
        )
    except UnicodeDecodeError as error:
        return DataError(f"is not UTF-8 (byte {error.start})", where=str(path), fix="convert it to UTF-8")
    if not isinstance(value, list):
        return DataError(
            "is not a list of rows", where=str(path), fix="use JSON Lines or a JSON list of objects"
        )
    odd = next((n for n, row in enumerate(value, 1) if not isinstance(row, dict)), 0)
    if not odd:
        what = f"holds a row of more than {LARGEST_ROW:,} bytes, which no row needs"
        return DataError(what, where=str(path), fix="is the file a list of rows?")
    return DataError(f"entry {odd} of the list is not an object", where=str(path), fix="remove the entry")
