"""Records into tar shards that WebDataset and `ShardRecords` read."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from vitp.core.errors import DataError
from vitp.core.files import atomic_path, inner_path, write_json
from vitp.core.files import to_json as json_text
from vitp.core.reading import open_file
from vitp.io.images import is_scene, load_image
from vitp.io.storage import is_member, is_remote, member_name, read_address
from vitp.records.instructions import InstructionRecord, record_to_json

DEFAULT_SIZE = 256 << 20


def write_shards(
    records: Iterable[InstructionRecord], out: Path, name: str, *, shard_bytes: int = DEFAULT_SIZE
) -> list[Path]:
    """Write records with their images into `out/NAME-000000.tar`, …, and a `mixture.json` that names them.

    Image files go in as they are; generated scenes as PNG. A shard is closed when it has reached its size.

    Args:
        records: Any.
        out: Folder.
        name: Of the set, and of the shards.
        shard_bytes: Size of a shard.

    Returns:
        The shards.

    Raises:
        DataError: There is no record, or an image can't be read.
        VitpError: The disk is full or can't be written.
    """
    samples, stem = _samples(records), inner_path(name)
    shards: list[Path] = []
    sample = next(samples, None)
    if sample is None:
        raise DataError("has no records", where=name, fix="nothing to write")
    while sample is not None:
        path = out / f"{stem}-{len(shards):06d}.tar"
        with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT) as tar:
            while sample is not None and tar.offset < shard_bytes:
                for member, data in sample:
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                tar.members = []  # type: ignore[attr-defined]  # it keeps every header that it has written
                sample = next(samples, None)
        shards.append(path)
    write_json(out / "mixture.json", {name: {"annotation": f"{stem}-*.tar"}})
    return shards


def _samples(records: Iterable[InstructionRecord]) -> Iterator[list[tuple[str, bytes]]]:
    for number, record in enumerate(records):
        key = f"{number:09d}"
        images = [_image(address) for address in record.images]
        one = len(images) == 1
        names = [f"{key}{'' if one else f'.{i}'}{suffix}" for i, (suffix, _) in enumerate(images)]
        row = json_text(record_to_json(replace(record, images=tuple(names)))).encode()
        yield [(f"{key}.json", row), *zip(names, (data for _, data in images), strict=True)]


def _image(address: str) -> tuple[str, bytes]:
    """Return suffix and bytes of an image."""
    if is_scene(address):
        buffer = io.BytesIO()
        load_image(address).save(buffer, "PNG")
        return ".png", buffer.getvalue()
    if is_member(address) or is_remote(address):
        return _suffix(member_name(address)), read_address(address)
    path = Path(address)
    try:
        with open_file(path) as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror})", where=address, fix="check the path") from error
    return _suffix(path.name), data


def _suffix(name: str) -> str:
    suffix = Path(name).suffix.lower()
    return suffix if suffix.lstrip(".").isalnum() and suffix != ".json" else ".img"
