"""Files that tell whether they are still as they were written."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitp.core import sealed
from vitp.core.errors import CheckpointError, DamagedError
from vitp.core.tensors import load_tensors, save_tensors


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "w": torch.randn(5, 7, generator=generator),
        "half": torch.randn(3, generator=generator).bfloat16(),
        "count": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "mask": torch.tensor([True, False, True]),
        "turned": torch.randn(4, 6, generator=generator).t(),
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_tensors(path, tensors(), {"format": "pt", "note": 'a "quoted" ü'})
    return path


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_the_library_reads_what_is_written(file: Path) -> None:
    found, wanted = load_file(file), tensors()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["note"] == 'a "quoted" ü' and opened.metadata()["format"] == "pt"
    assert sealed.check(file)


def test_equal_tensors_are_equal_files_and_numbers_are_aligned(file: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    order = dict(reversed(tensors().items()))
    save_tensors(again, order, {"format": "pt", "note": 'a "quoted" ü'})
    assert again.read_bytes() == file.read_bytes()
    assert int.from_bytes(file.read_bytes()[:8], "little") % 8 == 0


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_no_flipped_bit_is_overlooked(tmp_path: Path, step: int) -> None:
    """Bits of the length, of the header with the digest in it, and of the numbers."""
    file = tmp_path / "model.safetensors"
    save_tensors(file, {"w": torch.ones(2)}, {"format": "pt"})
    whole = file.read_bytes()
    for bit in range(0, len(whole) * 8, step):
        flip(file, bit)
        with pytest.raises(DamagedError, match=r"model\.safetensors: "):
            load_tensors(file, ours=False)
        file.write_bytes(whole)
    assert torch.equal(load_tensors(file, ours=False)["w"], torch.ones(2))


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_cut_off_files_are_refused(file: Path, kept: int) -> None:
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DamagedError, match="is no whole safetensors file"):
        load_tensors(file, ours=False)


def test_a_copy_under_another_name_is_checked_and_a_missing_file_named(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "x.safetensors"
    copy.parent.mkdir()
    copy.write_bytes(file.read_bytes())
    assert sealed.check(copy)
    flip(copy, len(file.read_bytes()) * 8 - 3)
    with pytest.raises(DamagedError, match=r"x\.safetensors: is damaged"):
        sealed.check(copy)
    with pytest.raises(DamagedError, match=r"gone\.safetensors: is missing"):
        load_tensors(tmp_path / "gone.safetensors", ours=False)


def test_files_of_others_are_read_and_our_old_ones_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "theirs.safetensors"
    save_file({"w": torch.ones(2)}, path, {"format": "pt"})
    assert not sealed.check(path)
    with caplog.at_level(logging.WARNING):
        load_tensors(path, ours=False)
        assert caplog.records == []
        for _ in range(3):
            assert torch.equal(load_tensors(path)["w"], torch.ones(2))
    assert len(caplog.records) == 1 and "before weights had digests" in caplog.text


def test_only_what_is_wanted_is_returned_but_all_is_checked(file: Path) -> None:
    assert load_tensors(file, wanted=lambda name: name == "w", ours=False).keys() == {"w"}
    flip(file, len(file.read_bytes()) * 8 - 1)
    with pytest.raises(DamagedError):
        load_tensors(file, wanted=lambda name: name == "w", ours=False)


def test_unknown_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="complex128"):
        save_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(1, dtype=torch.complex128)})


def test_a_list_of_digests_vouches_for_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"one")
    (tmp_path / "b.safetensors").write_bytes(b"two")
    sealed.write_sums(tmp_path, ["a.bin"], {"b.safetensors": sealed.sha256(tmp_path / "b.safetensors")})
    sums = sealed.read_sums(tmp_path)
    sealed.check_sum(tmp_path / "a.bin", sums["a.bin"])
    assert sealed.check(tmp_path / "b.safetensors")
    flip(tmp_path / "b.safetensors", 3)
    with pytest.raises(DamagedError, match=r"b\.safetensors: is damaged"):
        sealed.check(tmp_path / "b.safetensors")
    (tmp_path / "a.bin").unlink()
    with pytest.raises(DamagedError, match=r"a\.bin: is missing"):
        sealed.check_sum(tmp_path / "a.bin", sums["a.bin"])


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"123  x\n", b"no list at all\n"])
def test_a_damaged_list_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / sealed.SUMS).write_bytes(content)
    with pytest.raises(DamagedError, match="SHA256SUMS"):
        sealed.read_sums(tmp_path)


def test_no_flipped_bit_of_a_list_is_overlooked(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_bytes(b"{}")
    sealed.write_sums(tmp_path, ["state.json"])
    file = tmp_path / sealed.SUMS
    whole = file.read_bytes()
    for bit in range(len(whole) * 8):
        flip(file, bit)
        with pytest.raises(DamagedError):
            sums = sealed.read_sums(tmp_path)
            for name, digest in sums.items():
                sealed.check_sum(tmp_path / name, digest)
        file.write_bytes(whole)


def test_a_file_that_may_not_be_read_is_no_damage(tmp_path: Path) -> None:
    error = sealed.unreadable(tmp_path / "x", PermissionError(13, "Permission denied"), "copy it")
    assert type(error) is CheckpointError and "permissions" in str(error)
    assert (
        type(sealed.unreadable(tmp_path / "x", OSError(5, "Input/output error"), "copy it")) is DamagedError
    )
