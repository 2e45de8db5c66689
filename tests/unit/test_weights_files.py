"""Files of named tensors, whole and in shards, and what is wrong with them; reports; the hub."""

from __future__ import annotations

import argparse
import itertools
import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from vitp.checkpoints import hub
from vitp.checkpoints.tensors import (
    INDEX,
    _shards,
    read_index,
    read_tensors,
    read_torch,
    weights_file,
    write_tensors,
)
from vitp.core.errors import CheckpointError
from vitp.core.tensors import load_weights


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{n}.weight": torch.rand(4, 4, generator=generator) for n in range(5)} | {
        "half": torch.rand(6, generator=generator).bfloat16()
    }


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[n].dtype == second[n].dtype and torch.equal(first[n], second[n]) for n in first
    )


def test_small_weights_are_one_file(tmp_path):
    write_tensors(tmp_path, tensors())
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert equal(read_tensors(weights_file(tmp_path)), tensors())


def test_shards_hold_what_fits_and_come_back_bit_for_bit(tmp_path):
    write_tensors(tmp_path, tensors(), max_shard=150)  # two matrices of 64 bytes, the rest
    files = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert files == [f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 5 * 64 + 12
    assert index["weight_map"]["layer.2.weight"] == files[1]
    assert weights_file(tmp_path).name == INDEX
    assert equal(read_tensors(weights_file(tmp_path)), tensors())


def test_shards_without_a_wanted_tensor_are_not_opened(tmp_path):
    write_tensors(tmp_path, tensors(), max_shard=150)
    (tmp_path / "model-00003-of-00003.safetensors").write_bytes(b"broken")
    first = read_tensors(tmp_path / INDEX, lambda name: name in ("layer.0.weight", "layer.2.weight"))
    assert set(first) == {"layer.0.weight", "layer.2.weight"}
    with pytest.raises(CheckpointError, match=r"00003-of-00003\.safetensors: is no whole safetensors file"):
        read_tensors(tmp_path / INDEX)


def test_a_partial_download_names_the_first_missing_shard(tmp_path):
    write_tensors(tmp_path, tensors(), max_shard=70)
    for number in (2, 4):
        next(tmp_path.glob(f"model-0000{number}-of-*")).unlink()
    with pytest.raises(
        CheckpointError, match=r"2 of 6 shards are missing, the first is model-00002-of-00006"
    ):
        read_tensors(tmp_path / INDEX)


def test_an_index_of_another_release_is_found(tmp_path):
    write_tensors(tmp_path, tensors(), max_shard=150)
    shard = tmp_path / "model-00001-of-00003.safetensors"
    weights = load_file(shard)
    del weights["layer.1.weight"]
    save_file(weights, shard)
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors .*layer\.1\.weight"):
        read_tensors(tmp_path / INDEX)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../b.safetensors"}}']
)
def test_broken_indices_are_refused(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=r"is no index of shards|outside of its folder"):
        read_index(tmp_path / INDEX)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_shards_keep_the_order_and_the_size(lengths, limit):
    weights = {str(n): torch.zeros(length, dtype=torch.uint8) for n, length in enumerate(lengths)}
    shards = _shards(weights, limit)
    assert [name for names in shards for name in names] == list(weights)
    for names in shards:
        assert names
        assert len(names) == 1 or sum(weights[n].nbytes for n in names) <= limit
    for first, second in itertools.pairwise(shards):  # none could have been filled further
        assert sum(weights[n].nbytes for n in first) + weights[second[0]].nbytes > limit


def test_which_file_of_a_folder_is_meant(tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights"):
        weights_file(tmp_path)
    save_file(tensors(), tmp_path / "ViTP_ViT_L_300M_rs.safetensors")
    assert weights_file(tmp_path).name == "ViTP_ViT_L_300M_rs.safetensors"
    save_file(tensors(), tmp_path / "ViTP_ViT_L_300M_med.safetensors")
    with pytest.raises(CheckpointError, match="holds 2 weights files"):
        weights_file(tmp_path)
    save_file(tensors(), tmp_path / "model.safetensors")
    assert weights_file(tmp_path).name == "model.safetensors"


def test_torch_files_are_read_without_running_code(tmp_path):
    plain, training, evil = (tmp_path / f"{name}.pth" for name in ("plain", "training", "evil"))
    torch.save(tensors(), plain)
    assert equal(read_tensors(plain), tensors())
    torch.save({"model": tensors(), "args": argparse.Namespace(lr=1e-3), "epoch": 3}, training)
    assert equal(dict(read_torch(training)["model"]), tensors())
    with pytest.raises(CheckpointError, match="holds more than named tensors"):
        read_tensors(training)
    evil.write_bytes(pickle.dumps({"model": Path}))
    with pytest.raises(CheckpointError, match=r"evil\.pth: (holds Python objects|is no whole PyTorch file)"):
        read_torch(evil)
    evil.write_bytes(plain.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"evil\.pth: "):
        read_torch(evil)
    with pytest.raises(CheckpointError, match="is missing"):
        read_torch(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="no weights file by its name"):
        read_tensors(tmp_path / "weights.txt")


class Tied(nn.Module):
    """Two names of one tensor, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3, bias=False), nn.Linear(2, 3, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.ones(2))


def test_the_report_says_what_became_of_every_name():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    weights = {"0.weight": torch.rand(3, 2), "0.bias": torch.rand(4), "2.weight": torch.rand(1)}
    with pytest.raises(
        CheckpointError,
        match=r"file: is of another architecture: 2 missing \(1\.weight, 1\.bias\); 1 unexpected \(2\.weight\); "
        r"1 of another shape \(0\.bias \(4,\) instead of \(3,\)\)",
    ):
        load_weights(module, weights, source="file", layout="timm")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())

    report = load_weights(
        module, weights, source="file", layout="timm", ignored=["head.weight"], notes=["told by the shapes"], strict=False
    )  # fmt: skip
    assert report.loaded == ("0.weight",)
    assert torch.equal(module[0].weight, weights["0.weight"])
    assert torch.equal(module[0].bias, before["0.bias"])
    assert (report.missing, report.unexpected) == (("1.weight", "1.bias"), ("2.weight",))
    assert not report.complete
    assert report.summary() == (
        "timm layout: 1 loaded, 2 missing, 1 unexpected, 1 of another shape, 1 ignored"
    )


def test_tied_tensors_may_come_once_and_types_are_converted():
    module = Tied()
    weights = {"first.weight": torch.rand(3, 2).bfloat16(), "scale": torch.tensor([2.0, 3.0])}
    report = load_weights(module, weights, source="file", layout="hf")
    assert report.complete
    assert torch.equal(module.second.weight, weights["first.weight"].float())
    assert module.second.weight.dtype == torch.float32


def test_reports_are_printed():
    from rich.console import Console

    module = nn.Linear(2, 3)
    report = load_weights(
        module, dict(module.state_dict()), source="a [file]", layout="hf", resampled={"weight": "(1,) → (2,)"}
    )
    console = Console(width=120, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(report)
    assert "a [file]" in capture.get()
    assert "weight (1,) → (2,)" in capture.get()
    assert report.loaded == ("bias",)


def test_paths_come_first_and_only_names_of_the_hub_go_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    monkeypatch.setattr(hub, "_fetch", lambda repository, revision: Path("fetched") / repository)
    assert hub.locate("runs/mine") == Path("runs/mine")
    assert hub.locate(folder) == folder
    assert hub.locate("runs/other") is None  # a folder runs is here: misspelt, and no repository
    assert hub.locate("nowhere") is None
    assert hub.locate(tmp_path / "a" / "b") is None
    assert hub.locate("OpenGVLab/InternVL2_5-1B") == Path("fetched/OpenGVLab/InternVL2_5-1B")
    assert hub.locate("hf-hub:runs/mine") == Path("fetched/runs/mine")


def test_without_a_network_the_hub_is_one_clear_error(monkeypatch):
    def offline(*_args, **_options):
        raise ConnectionError("no route to host\nsecond line")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError) as caught:
        hub.locate("OpenGVLab/InternVL2_5-1B")
    assert str(caught.value) == (
        "OpenGVLab/InternVL2_5-1B: is no file or folder here, and the Hugging Face hub can't be reached "
        "(ConnectionError); download it where there is a network, copy the folder here and name that folder"
    )


def test_only_weights_and_descriptions_are_fetched(monkeypatch, tmp_path):
    seen = {}

    def fetch(repository, **options):
        seen.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert hub.locate("a/b", revision="v1") == tmp_path
    assert (seen["repository"], seen["revision"]) == ("a/b", "v1")
    assert not any(pattern.endswith((".py", ".bin", ".pth")) for pattern in seen["allow_patterns"])
