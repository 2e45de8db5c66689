"""Instruction rows and images in WebDataset tar shards, read at random: nothing is unpacked, nothing is streamed."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.core.reading import parse_json
from vitp.data.readers.index import CACHE_ABOVE, RowIndex, cache_folder
from vitp.data.readers.rows import RowPlace, RowRecords
from vitp.data.shards.tar_index import Member, members, tar_index
from vitp.io.storage import Bytes, is_remote, local_copy, member_address, open_bytes

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_SHARDS = 100_000
"""Files that a pattern may stand for."""

_MOST_DIGITS = 18


class ShardRecords(RowRecords):
    """Records of tar shards, in the order of the shards.

    A row's `image` names members of its own sample, whole (`000017.jpg`) or by what follows the key (`jpg`); a row
    without `image` has all of its sample's other members, in their order. Safe to pickle and to fork.

    Args:
        shards: Tar files. Remote ones are fetched into the cache: random access over a network is too slow.
        name: Of the set.
        cache_above: Shards of at least this many bytes get their index cached.

    Raises:
        DataError: There is no shard, or one can't be used.
    """

    def __init__(self, shards: list[str], name: str, *, cache_above: int = CACHE_ABOVE) -> None:
        if not shards:
            raise DataError("names no shard", where=name, fix="check the pattern")
        self.name, self.root = name, None
        self.shards = shards
        self._cache_above = cache_above
        self._files = [_local(shard) for shard in shards]
        self._indices: dict[int, RowIndex] = {}
        digests, counts = [], []
        for number, file in enumerate(self._files):
            index = tar_index(Path(file), cache_above=cache_above)
            digests.append(index.digest)
            counts.append(len(index.rows))
            self._keep(number, index)
        self._digests = digests
        self._ends = list(accumulate(counts))
        self.annotation = Path(self._files[0])

    def __len__(self) -> int:
        return self._ends[-1]

    def __repr__(self) -> str:
        return f"ShardRecords({len(self.shards)} shards, {len(self):,} rows)"

    def fingerprint(self) -> str:
        """Return a hash of the shards' rows and of the names and sizes of their images."""
        return hashlib.sha256("\n".join(self._digests).encode()).hexdigest()

    def row(self, index: int) -> Any:
        """Return the parsed JSON of a row, its images as addresses.

        Raises:
            DataError: The row is not JSON, or names an image that its sample doesn't have.
        """
        shard, (offset, length, _) = self._row_place(index)
        source = self._source(shard)
        found = members(source, offset, length)
        where = f"{self._files[shard]}: {found[0].name}"
        text = next(member for member in found if member.kind == "json")
        try:
            row = parse_json(source.read(text.offset, text.size).decode("utf-8-sig"))
        except ValueError as error:
            raise DataError(f"broken JSON ({error})", where=where, fix="make the shard again") from error
        return self._with_addresses(row, [m for m in found if m is not text], shard, where)

    def place(self, index: int) -> RowPlace:
        """Return shard and number of a row."""
        shard, (_, _, number) = self._row_place(index)
        return RowPlace(self._files[shard], number)

    def _with_addresses(self, row: Any, images: list[Member], shard: int, where: str) -> Any:
        if not isinstance(row, dict):
            return row
        by_name = {name: member for member in images for name in (member.name, _last(member), member.kind)}
        row = dict(row)
        key = "images" if row.get("images") else "image"
        named = row.get(key)
        wanted = [named] if isinstance(named, str) else named
        if wanted is None:
            wanted = [member.name for member in images]
        if not isinstance(wanted, list):
            return row
        for name in wanted:
            if name not in by_name:
                raise DataError(
                    f"image {name!r} is not in its sample", where=where, fix="make the shard again"
                )
        found = [by_name[name] for name in wanted]
        addresses = [member_address(self._files[shard], m.offset, m.size, m.name) for m in found]
        if addresses or key in row:
            row[key] = addresses[0] if isinstance(named, str) or len(addresses) == 1 else addresses
        return row

    def _row_place(self, index: int) -> tuple[int, tuple[int, int, int]]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)} in {self.name}")
        index %= len(self)
        shard = bisect_right(self._ends, index)
        if shard not in self._indices:
            found = tar_index(Path(self._files[shard]), cache_above=self._cache_above)
            if found.digest != self._digests[shard]:
                raise self._changed(shard)
            self._indices[shard] = found
        first = self._ends[shard - 1] if shard else 0
        offset, length, number = self._indices[shard].rows[index - first]
        return shard, (int(offset), int(length), int(number))

    def _source(self, shard: int) -> Bytes:
        file, index = self._files[shard], self._indices[shard]
        try:
            source = open_bytes(file)
            if (source.size, source.version) != (index.size, index.mtime_ns):
                open_bytes.cache_clear()  # this process may have opened the file that stood there before
                source = open_bytes(file)
        except OSError as error:
            raise DataError(
                f"can't be opened ({error.strerror})", where=file, fix="check the path"
            ) from error
        if (source.size, source.version) != (index.size, index.mtime_ns):
            raise self._changed(shard)
        return source

    def _changed(self, shard: int) -> DataError:
        return DataError(
            "has changed while it was in use", where=self._files[shard], fix="start again with the new file"
        )

    def _keep(self, number: int, index: RowIndex) -> None:
        # Thousands of mapped files would be too many; the others are mapped when a row of theirs is wanted.
        if index.cache is None or len(self._indices) < 64:
            self._indices[number] = index

    def __getstate__(self) -> dict[str, Any]:
        # The other process maps the cached ones; numpy would copy them into the pickle.
        held = {number: index for number, index in self._indices.items() if index.cache is None}
        return dict(self.__dict__, _indices=held)


def _last(member: Member) -> str:
    return member.name.rpartition("/")[2]


def _local(shard: str) -> str:
    return str(local_copy(shard, cache_folder().parent / "remote")) if is_remote(shard) else shard


def is_shard_pattern(address: str) -> bool:
    """Return whether an annotation is a tar file, or a pattern of tar files."""
    return address.endswith(".tar")


def expand_shards(pattern: str) -> list[str]:
    """Return the tar files of a pattern: `{000..127}` counts, `*` and `?` match what is there, sorted.

    Raises:
        DataError: No file matches, or the pattern counts too many.
    """
    count = 1
    for first, last in _RANGE.findall(pattern):
        if max(len(first), len(last)) > _MOST_DIGITS:  # Python refuses to read numbers of thousands of digits
            count = MOST_SHARDS + 1
        else:
            count *= max(int(last) - int(first) + 1, 0)
        if count > MOST_SHARDS:
            raise DataError(
                f"counts more than {MOST_SHARDS:,} shards",
                where=pattern,
                fix="name the numbers that are there",
            )
    if not count:
        raise DataError(
            "counts no shard", where=pattern, fix="write the smaller number first, as in {000..127}"
        )
    return _expand(pattern)


def _expand(pattern: str) -> list[str]:
    match = _RANGE.search(pattern)
    if match is not None:
        first, last = match.groups()
        numbers = range(int(first), int(last) + 1)
        parts = [f"{pattern[: match.start()]}{n:0{len(first)}d}{pattern[match.end() :]}" for n in numbers]
        return [shard for part in parts for shard in _expand(part)]
    if not any(mark in pattern for mark in "*?"):
        return [pattern]
    if is_remote(pattern):
        raise DataError("patterns don't work over a network", where=pattern, fix="count them: {000..127}")
    folder = Path(pattern).parent
    found = sorted(str(path) for path in folder.glob(Path(pattern).name))
    if not found:
        raise DataError("no tar file matches", where=pattern, fix="check the pattern")
    return found
