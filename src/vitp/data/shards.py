"""Instruction rows and images in WebDataset tar shards: read at random, nothing is unpacked; and written.

WebDataset's rule: members that follow each other and have the same name up to the first dot of the last part are one
sample. `000017.json` holds its row, `000017.jpg` or `000017.0.jpg`, `000017.1.jpg` its images.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from vitp.core import files
from vitp.core.errors import DataError
from vitp.core.reading import open_file, parse_json
from vitp.data.formats.vitp_labels import channels_to_json
from vitp.data.readers.index import CACHE_ABOVE, LARGEST_ROW, Seen, cache_folder, cached_index
from vitp.data.readers.records import RowRecords
from vitp.io.images import is_scene, load_image
from vitp.io.part_files import part_bytes
from vitp.io.parts import WHOLE, FilePart, part_address, split_view
from vitp.io.storage import (
    LocalBytes,
    RemoteBytes,
    is_member,
    is_remote,
    local_copy,
    member_address,
    member_name,
    read_address,
    readable,
)
from vitp.io.volumes import is_volume
from vitp.records.channels import Channels
from vitp.records.instructions import InstructionRecord, record_to_json

DEFAULT_SIZE = 256 << 20
MOST_SHARDS = 100_000
"""Files that a pattern may stand for."""

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_DIGITS = 18
_BROKEN = (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError)
"""What `tarfile` raises, whatever the headers say."""


@dataclass(frozen=True)
class _Member:
    """A file in a tar file: name, first byte and size of its data; where its header begins and its blocks end."""

    name: str
    offset: int
    size: int
    header: int
    end: int

    @property
    def key(self) -> str:
        """Name of the sample that it belongs to."""
        folder, slash, name = self.name.rpartition("/")
        return f"{folder}{slash}{name.partition('.')[0]}"

    @property
    def last(self) -> str:
        """Name without folders."""
        return self.name.rpartition("/")[2]

    @property
    def kind(self) -> str:
        """What follows the key: `json`, `jpg`, `0.jpg`, …; lower case."""
        return self.last.partition(".")[2].lower()


def _members(file: BinaryIO) -> Iterator[_Member]:
    """Yield the regular files of a tar file in their order; only headers are read."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it keeps every header that it has seen
            if info.isreg():
                end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                # A long name stands in blocks of its own before the header; `offset` is that of the first.
                yield _Member(info.name, info.offset_data, info.size, info.offset, end)


class _Window:
    """A part of a file that is read by position, as `tarfile` wants a file: it begins at 0."""

    def __init__(self, source: LocalBytes | RemoteBytes, offset: int, length: int) -> None:
        self._source, self._offset, self._length, self._place = source, offset, length, 0

    def tell(self) -> int:
        return self._place

    def seek(self, place: int) -> None:
        self._place = place

    def read(self, count: int) -> bytes:
        wanted = max(0, min(count, self._length - self._place))
        data = self._source.read(self._offset + self._place, wanted)
        self._place += len(data)
        return data


def _scan(path: Path, file: BinaryIO, seen: Seen) -> Iterator[np.ndarray]:
    """Find the samples of a tar file: byte offset, length in bytes, number from 1.

    The digest is of the members' names and sizes and of the rows; images count by name and size only.
    """
    rows: list[tuple[int, int, int]] = []
    key, begin, number, has_row, end = "", 0, 0, True, 0

    def finish_sample() -> None:
        if not has_row:
            raise DataError(
                f"sample {key} has no row", where=str(path), fix=f"add {key}.json, or leave the sample out"
            )
        if number:
            rows.append((begin, end - begin, number))

    try:
        for member in _members(file):
            if member.key != key or not number:
                end = member.header
                finish_sample()
                key, begin, number, has_row = member.key, member.header, number + 1, False
            seen(f"{member.name}\0{member.size}\0".encode(errors="surrogateescape"))
            if member.kind == "json":
                if member.size > LARGEST_ROW:
                    what = f"the row {member.name} has {member.size:,} bytes"
                    raise DataError(what, where=str(path), fix="make the shard again")
                file.seek(member.offset)  # tarfile finds its own place again
                seen(file.read(member.size))
                has_row = True
            end = member.end
            if len(rows) == 4096:
                yield np.array(rows, np.int64)
                rows.clear()
    except _BROKEN as error:
        raise DataError(f"is no whole tar file ({error})", where=str(path), fix="make it again") from error
    finish_sample()
    if rows:
        yield np.array(rows, np.int64)


class ShardRecords(RowRecords):
    """Records of tar shards, in the order of the shards.

    A row's `image` names members of its own sample, whole (`000017.jpg`) or by what follows the key (`jpg`); a row
    without `image` has all of its sample's other members, in their order.

    Args:
        shards: Tar files. Remote ones are fetched into the cache: random access over a network is too slow.
        name: Name of the set.
        cache_above: Shards of at least this many bytes get their index cached.

    Raises:
        DataError: There is no shard, or one can't be used.
    """

    _indexer = staticmethod(partial(cached_index, kind="tar", scan=_scan))

    def __init__(self, shards: Sequence[str], name: str, *, cache_above: int = CACHE_ABOVE) -> None:
        if not shards:
            raise DataError("names no shard", where=name, fix="check the pattern")
        folder = cache_folder().parent / "remote"
        local = [local_copy(shard, folder) if is_remote(shard) else shard for shard in shards]
        super().__init__(local, name, None, cache_above)

    def fingerprint(self) -> str:
        """Return a hash of the shards' rows and of the names and sizes of their images."""
        return hashlib.sha256("\n".join(self._digests).encode()).hexdigest()

    def row(self, index: int) -> Any:
        """Return the parsed JSON of a row, its images as addresses.

        Raises:
            DataError: The row is not JSON, or names an image that its sample doesn't have.
        """
        number, offset, length, _ = self._row_place(index)
        source, shard = self._source(number), self._files[number]
        found = list(_members(cast(BinaryIO, _Window(source, offset, length))))
        where = f"{shard}: {found[0].name}"
        text = next(member for member in found if member.kind == "json")
        try:
            row = parse_json(source.read(offset + text.offset, text.size).decode("utf-8-sig"))
        except ValueError as error:
            raise DataError(f"broken JSON ({error})", where=where, fix="make the shard again") from error
        if not isinstance(row, dict):
            return row
        images = [member for member in found if member is not text]
        by_name = {name: member for member in images for name in (member.name, member.last, member.kind)}
        key = "images" if row.get("images") else "image"
        named = row.get(key)
        wanted = [named] if isinstance(named, str) else named
        if wanted is None:
            wanted = [member.name for member in images]
        if not isinstance(wanted, list):
            return row
        addresses = []
        for name in wanted:
            if name not in by_name:
                what = f"image {name!r} is not in its sample"
                raise DataError(what, where=where, fix="make the shard again")
            member = by_name[name]
            addresses.append(member_address(shard, offset + member.offset, member.size, member.name))
        if addresses or key in row:
            row[key] = addresses[0] if isinstance(named, str) or len(addresses) == 1 else addresses
        return row


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
            what = f"counts more than {MOST_SHARDS:,} shards"
            raise DataError(what, where=pattern, fix="name the numbers that are there")
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


def write_shards(
    records: Iterable[InstructionRecord],
    out: Path,
    name: str,
    *,
    shard_bytes: int = DEFAULT_SIZE,
    channels: Channels | None = None,
) -> list[Path]:
    """Write records with their images into `out/NAME-000000.tar`, …, and a `mixture.json` that names them.

    Image files go in as they are, windows of them as files of their own, generated scenes as PNG. A shard is closed
    when it has reached its size.

    Args:
        records: Records to write; they are read one after the other.
        out: Folder for the shards.
        name: Name of the set, from which the names of the shards are made.
        shard_bytes: Size at which a shard is closed.
        channels: What is seen of the images' bands, for `mixture.json`; None: they are pictures.

    Returns:
        The shards.

    Raises:
        DataError: There is no record, or an image can't be read.
        VitpError: The disk is full or can't be written.
    """
    samples, stem = _samples(records, channels), files.inner_path(name)
    shards: list[Path] = []
    sample = next(samples, None)
    if sample is None:
        raise DataError("has no records", where=name, fix="nothing to write")
    while sample is not None:
        path = out / f"{stem}-{len(shards):06d}.tar"
        with (
            files.atomic_path(path) as temporary,
            tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT) as tar,
        ):
            while sample is not None and tar.offset < shard_bytes:
                for member, data in sample:
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                tar.members = []  # type: ignore[attr-defined]  # it keeps every header that it has written
                sample = next(samples, None)
        shards.append(path)
    seen = {} if channels is None else {"channels": channels_to_json(channels)}
    files.write_json(out / "mixture.json", {name: {"annotation": f"{stem}-*.tar", **seen}})
    return shards


def _samples(
    records: Iterable[InstructionRecord], channels: Channels | None
) -> Iterator[list[tuple[str, bytes]]]:
    for number, record in enumerate(records):
        key = f"{number:09d}"
        images = [_image(address, channels) for address in record.images]
        one = len(images) == 1
        names = [f"{key}{'' if one else f'.{i}'}{suffix}" for i, (suffix, _) in enumerate(images)]
        row = files.to_json(record_to_json(replace(record, images=tuple(names)))).encode()
        yield [(f"{key}.json", row), *zip(names, (data for _, data in images), strict=True)]


def _image(address: str, channels: Channels | None) -> tuple[str, bytes]:
    """Return suffix and bytes of an image: of a slice of a volume with the neighbours that are seen."""
    if channels is not None and is_volume(address):
        if any(channel.by_file for channel in channels.channels):
            what = "is seen by a range that its volume or header tells, which a shard doesn't hold"
            fix = "compile the set with fixed values (-o window=LEVEL/WIDTH or -o range=LOW,HIGH)"
            raise DataError(what, where=address, fix=fix)
        if channels.around:
            address = part_address(address, FilePart(around=channels.around))
    is_view = split_view(address)[1] != WHOLE
    if is_view and channels is not None:
        what = "is a turned, mirrored or blanked view of bands, which a shard doesn't hold"
        raise DataError(what, where=address, fix="train on the folder itself, or leave such questions out")
    copied = None if is_view else part_bytes(address)
    if copied is not None:
        return copied
    if is_scene(address) or is_view:
        buffer = io.BytesIO()
        load_image(address).save(buffer, "PNG")
        return ".png", buffer.getvalue()
    if is_member(address) or is_remote(address):
        data = read_address(address)
    else:
        with readable(address), open_file(address) as file:
            data = file.read()
    suffix = Path(member_name(address)).suffix.lower()
    return suffix if suffix.lstrip(".").isalnum() and suffix != ".json" else ".img", data
