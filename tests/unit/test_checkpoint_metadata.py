"""The description of a checkpoint in parts: what torch writes is read, and nothing else in it runs."""

from __future__ import annotations

import os
import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from vitp.core.errors import CheckpointError
from vitp.engine.metadata import PartsReader, read_parts


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    tensors = {
        "model/a": torch.arange(12.0).reshape(3, 4),
        "model/b": torch.ones(3, dtype=torch.bfloat16),
        "optimizer/step:a": torch.tensor(7.0),
        "model/i": torch.ones(2, dtype=torch.int64),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(tmp_path / "shards"), no_dist=True)
    return tmp_path / "shards"


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_what_torch_writes_is_read(parts: Path) -> None:
    theirs, ours = dcp.FileSystemReader(parts).read_metadata(), read_parts(parts / ".metadata")
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data == theirs.storage_data
    target = {"model/a": torch.zeros(3, 4), "model/b": torch.zeros(3, dtype=torch.bfloat16)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(target, storage_reader=PartsReader(parts), no_dist=True)
    assert torch.equal(target["model/a"], torch.arange(12.0).reshape(3, 4))


def test_nothing_runs(parts: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = parts / ".metadata"
    whole = read_parts(path)
    for hostile in (
        _Touch(mark),
        [_Touch(mark)],
        replace(whole, planner_data={"x": _Touch(mark)}),
        replace(whole, state_dict_metadata={"model/a": _Touch(mark)}),
    ):
        path.write_bytes(pickle.dumps(hostile))
        with pytest.raises(CheckpointError, match=r"names posix\.system"):
            read_parts(path)
        with pytest.raises((CheckpointError, dcp.api.CheckpointException)):
            dcp.load({"model/a": torch.zeros(3, 4)}, storage_reader=PartsReader(parts), no_dist=True)
    # Opcodes by hand: names with dots reach into allowed modules, classes can be called with anything.
    for text in (
        b"\x80\x04\x8c\x2ctorch.distributed.checkpoint.metadata\x8c\x05os.ab\x93.",
        b"cbuiltins\neval\n(S'open(\"" + os.fsencode(mark) + b'", "w")\'\ntR.',
        b"ctorch.serialization\nload\n(S'x'\ntR.",
        b"ctorch\nload\n(S'x'\ntR.",
    ):
        path.write_bytes(text)
        with pytest.raises(CheckpointError, match="can't be read"):
            read_parts(path)
    assert not mark.exists()


def test_forged_descriptions_are_refused(parts: Path) -> None:
    path = parts / ".metadata"
    whole = read_parts(path)
    index, place = next(iter(whole.storage_data.items()))
    forged: list[tuple[Any, str]] = [
        (replace(whole, storage_data={index: replace(place, relative_path="../../secret")}), "outside"),
        (replace(whole, storage_data={index: replace(place, relative_path="/etc/passwd")}), "outside"),
        (replace(whole, storage_data={index: 3}), "nowhere"),
        ({"a": 1}, "describes no checkpoint"),
        (replace(whole, state_dict_metadata={3: None}), "no tensor"),
    ]
    for value, said in forged:
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(CheckpointError, match=said):
            read_parts(path)
    # Bytes would be unpickled by torch when they are read.
    path.write_bytes(
        pickle.dumps(Metadata(state_dict_metadata={"x": BytesStorageMetadata()}, storage_data={}))
    )
    with pytest.raises(CheckpointError, match="BytesStorageMetadata"):
        read_parts(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="named pipe"):
        read_parts(path)
