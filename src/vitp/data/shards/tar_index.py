"""Where each sample of a tar shard stands, and which members it has.

WebDataset's rule: members that follow each other and have the same name up to the first dot of the last part are one
sample. `000017.json` holds its row, `000017.jpg` or `000017.0.jpg`, `000017.1.jpg` its images.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vitp.core.errors import DataError
from vitp.data.readers.index import CACHE_ABOVE, Hash, RowIndex, cached_index
from vitp.io.storage import Bytes

_LARGEST_ROW = 256 << 20
_BROKEN = (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError)
"""What `tarfile` raises, whatever the headers say."""


@dataclass(frozen=True)
class Member:
    """A file in a tar file.

    Attributes:
        name: Whole name in the tar file.
        offset: Of its first byte.
        size: In bytes.
    """

    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """Name of the sample that it belongs to."""
        folder, slash, name = self.name.rpartition("/")
        return f"{folder}{slash}{name.partition('.')[0]}"

    @property
    def kind(self) -> str:
        """What follows the key: `json`, `jpg`, `0.jpg`, …; lower case."""
        return self.name.rpartition("/")[2].partition(".")[2].lower()


def tar_index(path: Path, *, cache_above: int = CACHE_ABOVE) -> RowIndex:
    """Return the samples of a tar file: byte offset, length in bytes, number from 1.

    The digest is of the members' names and sizes and of the rows; images count by name and size only.

    Raises:
        DataError: The file is missing, is no tar file, or has a sample without a row.
    """
    return cached_index(path, "tar", _scan, cache_above)


def members(source: Bytes, offset: int, length: int) -> list[Member]:
    """Return the members of one sample.

    Args:
        source: The tar file.
        offset: Of the sample.
        length: In bytes.
    """
    window = io.BufferedReader(_Window(source, offset, length), buffer_size=512)
    return [Member(m.name, m.offset + offset, m.size) for m in _walk(window)]


def _scan(path: Path, file: BinaryIO, digest: Hash) -> Iterator[np.ndarray]:
    rows: list[tuple[int, int, int]] = []
    key, begin, number, has_row = "", 0, 0, True

    def check() -> None:
        if not has_row:
            raise DataError(
                f"sample {key} has no row", where=str(path), fix=f"add {key}.json, or leave the sample out"
            )

    end = 0
    try:
        for found in _walk(file):
            member = Member(found.name, found.offset, found.size)
            if member.key != key or not number:
                check()
                if number:
                    rows.append((begin, found.header - begin, number))
                key, begin, number, has_row = member.key, found.header, number + 1, False
            digest.update(f"{member.name}\0{member.size}\0".encode(errors="surrogateescape"))
            if member.kind == "json":
                if member.size > _LARGEST_ROW:
                    raise DataError(
                        f"the row {member.name} has {member.size:,} bytes",
                        where=str(path),
                        fix="make the shard again",
                    )
                digest.update(_read_at(file, member))
                has_row = True
            end = found.end
            if len(rows) == 4096:
                yield np.array(rows, np.int64)
                rows.clear()
    except _BROKEN as error:
        raise DataError(f"is no whole tar file ({error})", where=str(path), fix="make it again") from error
    check()
    if number:
        rows.append((begin, end - begin, number))
        yield np.array(rows, np.int64)


def _read_at(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)  # tarfile finds its own place again
    return file.read(member.size)


@dataclass(frozen=True)
class _Found:
    name: str
    header: int
    offset: int
    size: int
    end: int


def _walk(file: io.IOBase | BinaryIO) -> Iterator[_Found]:
    """Yield the regular files of a tar file in their order; only headers are read."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it keeps every header that it has seen
            if info.isreg():
                end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                # A long name stands in blocks of its own before the header; `offset` is that of the first.
                yield _Found(info.name, info.offset, info.offset_data, info.size, end)


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, source: Bytes, offset: int, length: int) -> None:
        self._read: Callable[[int, int], bytes] = source.read
        self._offset, self._length, self._place = offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        self._place = base + offset
        return self._place

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        wanted = max(0, min(len(buffer), self._length - self._place))
        data = self._read(self._offset + self._place, wanted)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)
