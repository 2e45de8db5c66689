"""`verify_export`: whatever was changed in an export is found."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.conftest import tiny_vlm_config
from tests.export_toys import change_json, exported, odd_vision, run, without_digest
from vitp.checkpoints.description import (
    read_description,
)
from vitp.checkpoints.loading import load_backbone
from vitp.checkpoints.verify import inspect_export, verify_export
from vitp.checkpoints.writing import save_vlm
from vitp.core.errors import CheckpointError
from vitp.models.vlm import VisionLanguageModel

__all__ = ["exported", "run"]  # fixtures


def change_weights(folder: Path, name: str, change) -> None:
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = without_digest(file.metadata())
    weights = load_file(path)
    weights[name] = change(weights[name])
    save_file(weights, path, metadata=metadata)


def test_verify_passes_and_prints(run, exported):
    report = verify_export(exported, run)
    assert [check.name for check in report.checks] == [
        "files",
        "contract",
        "weights",
        "features through vitp",
        "features through timm",
        "trained tower",
    ]
    console = Console(width=150, file=io.StringIO())
    console.print(report)
    text = console.file.getvalue()
    assert text.count("ok") == 6
    assert "[0.4, 0.5, 0.6]" in text


def test_a_changed_weight_is_found_by_name(exported):
    def nudge(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[0] += 0.5
        return tensor

    change_weights(exported, "blocks.1.mlp.fc1.weight", nudge)
    with pytest.raises(CheckpointError, match=r"1 tensors .*blocks\.1\.mlp\.fc1\.weight"):
        load_backbone(exported)
    with pytest.raises(CheckpointError, match="features through timm"):
        verify_export(exported)


def test_a_changed_bit_without_effect_is_found(exported):
    """Beyond what features can tell: one weight off by its last bit."""
    change_weights(exported, "norm.bias", lambda t: torch.nextafter(t, t + 1))
    report = inspect_export(exported)
    assert {c.name: c.passed for c in report.checks}["weights"] is False
    assert {c.name: c.passed for c in report.checks}["features through timm"] is True


def test_renamed_and_cut_weights_are_reported_name_by_name(exported):
    path = exported / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = without_digest(file.metadata())
    weights = load_file(path)
    weights["head.weight"] = torch.zeros(3, 32)
    del weights["norm.bias"]
    save_file(weights, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"1 missing \(norm\.bias\).*1 unexpected \(head\.weight\)"):
        load_backbone(exported)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "vitp_backbone.json", "check/test_vectors.safetensors", "README.md"],
)
def test_missing_files_are_found(exported, name):
    (exported / name).unlink()
    with pytest.raises(CheckpointError, match=f"files: {re.escape(name)} missing"):
        verify_export(exported)


@pytest.mark.parametrize("name", ["model.safetensors", "check/test_vectors.safetensors"])
def test_truncated_files_are_found(exported, name):
    path = exported / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"is no whole safetensors file"):
        verify_export(exported)


def test_changed_normalisation_is_found_wherever_it_was_changed(exported, tmp_path):
    description, timm_file = "vitp_backbone.json", "config.json"

    def in_description(v):
        v["vision"]["mean"] = [0.5, 0.5, 0.5]

    def in_timm(v):
        v["pretrained_cfg"]["mean"] = [0.5, 0.5, 0.5]

    first, second, both = (shutil.copytree(exported, tmp_path / n) for n in ("first", "second", "both"))
    change_json(first / description, in_description)
    change_json(second / timm_file, in_timm)
    for folder in (first, second):
        with pytest.raises(CheckpointError, match=r"contract: .*mean \[0\.\d.*but .* says"):
            verify_export(folder)
    with pytest.raises(CheckpointError, match="mean"):
        load_backbone(first)

    # Changed consistently in all three places: the features still tell.
    change_json(both / description, in_description)
    change_json(both / timm_file, in_timm)
    weights = load_file(both / "model.safetensors")
    contract = read_description(both).contract()
    save_file(weights, both / "model.safetensors", metadata={"contract": json.dumps(contract)})
    report = inspect_export(both)
    assert [c.name for c in report.checks if not c.passed] == [
        "features through vitp",
        "features through timm",
    ]


def test_another_run_is_told_from_the_trained_one(exported, chat, tmp_path):
    torch.manual_seed(99)
    save_vlm(
        tmp_path / "other",
        VisionLanguageModel(tiny_vlm_config(vision=odd_vision()), vocabulary=len(chat)),
        chat,
    )
    with pytest.raises(CheckpointError, match=r"trained tower: \d+ tensors differ"):
        verify_export(exported, tmp_path / "other")
    save_vlm(
        tmp_path / "normalised",
        VisionLanguageModel(tiny_vlm_config(vision=odd_vision(std=(1, 1, 1))), vocabulary=len(chat)),
        chat,
    )
    with pytest.raises(CheckpointError, match="trained tower: was trained with mean"):
        verify_export(exported, tmp_path / "normalised")
