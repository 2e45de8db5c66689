"""Tar shards and remote files: the same records and pixels as from a plain folder."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import save_image
from vitp.core.errors import DataError
from vitp.data.mixture import Mixture
from vitp.data.readers.records import JsonlRecords
from vitp.data.record_set import ListRecords, SampleSet
from vitp.data.shards import ShardRecords, expand_shards, write_shards
from vitp.data.sources import open_records, open_sources, read_mixture
from vitp.io.images import image_size, load_image
from vitp.io.storage import join, member_address, member_name, parent
from vitp.records.instructions import InstructionRecord, Turn, to_line


def make_set(folder: Path, count: int = 7) -> ListRecords:
    records = []
    for number in range(count):
        images = [
            save_image(folder / f"{number}_{i}.png", seed=number * 9 + i) for i in range(number % 3 + 1)
        ]
        marks = "<image>\n" * len(images)
        records.append(
            InstructionRecord(
                f"r{number}",
                tuple(map(str, images)),
                (Turn(f"{marks}What is it?", f"number {number}"),),
                source="plain",
            )
        )
    return ListRecords(records, "plain")


def test_shards_hold_the_same_records_and_pixels(tmp_path: Path) -> None:
    plain = make_set(tmp_path / "images")
    shards = write_shards(list(plain._records), tmp_path / "out", "set", shard_bytes=40_000)
    assert len(shards) > 1
    records = open_records(tmp_path / "out" / "set-*.tar", name="set")
    assert isinstance(records, ShardRecords) and isinstance(records, SampleSet)
    assert len(records) == len(plain)
    for index in range(len(plain)):
        ours, theirs = records[index], plain[index]
        assert (ours.id, ours.turns, ours.source) == (theirs.id, theirs.turns, "plain")
        assert len(ours.images) == len(theirs.images)
        for address, path in zip(ours.images, theirs.images, strict=True):
            assert np.array_equal(np.asarray(load_image(address)), np.asarray(load_image(path)))
            assert image_size(address) == image_size(path)
    assert [record.id for record in records] == [f"r{n}" for n in range(7)]
    with pytest.raises(IndexError):
        records[7]


def test_a_shard_folder_is_a_data_folder(tmp_path: Path) -> None:
    plain = make_set(tmp_path / "images", 5)
    write_shards(iter(plain._records), tmp_path / "out", "set")
    (entry,) = read_mixture(tmp_path / "out" / "mixture.json")
    assert {sample.record.id for sample, _ in zip(Mixture([entry]), range(5), strict=False)} == {
        f"r{n}" for n in range(5)
    }
    sources, errors = open_sources(tmp_path / "out")
    assert errors == [] and [(s.name, len(s.records)) for s in sources] == [("set", 5)]


def test_workers_get_a_small_pickle_of_cached_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITP_CACHE", str(tmp_path / "cache"))
    write_shards(list(make_set(tmp_path / "images")._records), tmp_path / "out", "set")
    shards = expand_shards(str(tmp_path / "out" / "set-{000000..000000}.tar"))
    records = ShardRecords(shards, "set", cache_above=0)
    sent = pickle.dumps(records)
    assert len(sent) < 1500
    assert [record.id for record in pickle.loads(sent)] == [record.id for record in records]
    again = ShardRecords(shards, "set", cache_above=0)
    assert again.fingerprint() == records.fingerprint()
    with tarfile.open(shards[0], "a") as tar:
        data = json.dumps({"conversations": []}).encode()
        info = tarfile.TarInfo("000000099.json")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    assert ShardRecords(shards, "set", cache_above=0).fingerprint() != records.fingerprint()


names = st.text(st.characters(categories=("L", "Nd"), max_codepoint=0x2FF), min_size=1, max_size=160)


@given(
    st.lists(names, min_size=1, max_size=6, unique=True),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
@settings(max_examples=40, deadline=None)
def test_any_names_and_both_tar_formats(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], form: int
) -> None:
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    with tarfile.open(path, "w", format=form) as tar:
        folder = tarfile.TarInfo("some")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number, key in enumerate(keys):
            row = {
                "id": key,
                "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}],
            }
            for name, data in (
                (f"some/{key}.JPG", bytes([number]) * (number + 1)),
                (f"some/{key}.json", json.dumps(row).encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    records = ShardRecords([str(path)], "x")
    assert [record.id for record in records] == keys
    for number, (key, record) in enumerate(zip(keys, records, strict=True)):
        (address,) = record.images
        assert member_name(address) == f"some/{key}.JPG"
        assert f"+{number + 1}/" in address


def test_shards_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    write_shards(list(make_set(tmp_path / "images")._records), tmp_path / "out", "set")
    whole = tmp_path / "out" / "set-000000.tar"
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[:30_000])
    with pytest.raises(DataError, match=r"cut\.tar: is no whole tar file"):
        ShardRecords([str(cut)], "x")
    with tarfile.open(tmp_path / "rowless.tar", "w") as tar:
        tar.add(tmp_path / "images" / "0_0.png", "0.png")
    with pytest.raises(DataError, match=r"sample 0 has no row; add 0\.json"):
        ShardRecords([str(tmp_path / "rowless.tar")], "x")
    with pytest.raises(DataError, match="no tar file matches"):
        open_records(tmp_path / "none-*.tar")
    with tarfile.open(tmp_path / "wrong.tar", "w") as tar:
        data = json.dumps({"image": "other.png", "conversations": []}).encode()
        info = tarfile.TarInfo("0.json")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    with pytest.raises(DataError, match=r"image 'other\.png' is not in its sample"):
        ShardRecords([str(tmp_path / "wrong.tar")], "x")[0]
    with pytest.raises(DataError, match="the shard is cut off"):
        load_image(member_address(str(cut), 29_000, 5_000, "a.png"))


def test_shards_that_are_written_again_are_read_again(tmp_path: Path) -> None:
    for count in (5, 3):
        write_shards(list(make_set(tmp_path / "images", count)._records), tmp_path / "out", "set")
        before = open_records(tmp_path / "out" / "set-*.tar")
        assert [record.id for record in before] == [f"r{n}" for n in range(count)]
    write_shards(list(make_set(tmp_path / "images", 2)._records), tmp_path / "out", "set")
    assert [record.id for record in before] == ["r0", "r1", "r2"], "an open shard stays what it was"


def test_patterns_count_and_match(tmp_path: Path) -> None:
    assert expand_shards("s3://b/x-{008..011}.tar") == [f"s3://b/x-{n:03d}.tar" for n in range(8, 12)]
    with pytest.raises(DataError, match="don't work over a network"):
        expand_shards("s3://b/*.tar")


def test_addresses() -> None:
    assert join("s3://b/root", "a/b.png") == "s3://b/root/a/b.png"
    assert join(Path("root"), "a.png") == "root/a.png"
    assert join("root", "/a.png") == "/a.png"
    for whole in ("https://x/y.png", "scene:port/1", "tar:x.tar#0+5/a.png"):
        assert join("root", whole) == whole
    assert parent("s3://b/c/train.jsonl") == "s3://b/c"
    assert member_name(member_address("/data/a#1.tar", 3, 4, "ä/b c.png")) == "ä/b c.png"


def test_remote_annotations_images_and_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("VITP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VITP_ALLOW_REMOTE", "memory,nosuchscheme")
    memory = fsspec.filesystem("memory")
    plain = make_set(tmp_path / "images", 4)
    rows = []
    for record in plain._records:
        row = json.loads(to_line(record))
        names = [Path(image).name for image in record.images]
        row["image"] = names
        rows.append(json.dumps(row))
        for image in record.images:
            memory.pipe_file(f"/bucket/set/pictures/{Path(image).name}", Path(image).read_bytes())
    memory.pipe_file("/bucket/set/train.jsonl", "\n".join(rows).encode())
    local = tmp_path / "mixture.json"
    local.write_text(
        json.dumps(
            {"far": {"annotation": "memory://bucket/set/train.jsonl", "root": "memory://bucket/set/pictures"}}
        )
    )
    (entry,) = read_mixture(local)
    assert isinstance(entry.records, JsonlRecords)
    for ours, theirs in zip(entry.records, plain._records, strict=True):
        assert ours.images[0].startswith("memory://bucket/set/pictures/")
        for address, path in zip(ours.images, theirs.images, strict=True):
            assert np.array_equal(np.asarray(load_image(address)), np.asarray(load_image(path)))
    (shard,) = write_shards(iter(entry.records), tmp_path / "out", "set")
    memory.pipe_file("/bucket/far.tar", shard.read_bytes())
    far = open_records("memory://bucket/far.tar", name="far")
    assert [record.id for record in far] == [record.id for record in plain._records]
    assert np.array_equal(
        np.asarray(load_image(far[2].images[0])), np.asarray(load_image(plain[2].images[0]))
    )


def test_remote_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    monkeypatch.setenv("VITP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VITP_ALLOW_REMOTE", "memory,nosuchscheme")
    with pytest.raises(DataError, match=r"memory://nowhere/a\.jsonl: is missing"):
        open_records("memory://nowhere/a.jsonl")
    with pytest.raises(DataError, match="no package reads this scheme"):
        load_image("nosuchscheme://a/b.png")
