"""`vitp pretrain --objective …` on generated scenes: a run, its refusals, and what other commands make of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.e2e.conftest import SCRATCH, done, litter, refused, write_config
from vitp.checkpoints.loading import load_backbone


@pytest.fixture(scope="module")
def config(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("paradigms") / "run.yaml"
    values = {
        "objective": "mae",
        "model": {"init": "random", "vision": SCRATCH["vision"], "drop_path": 0.1},
        "data": {"mixture": [str(compiled)], "global_batch": 4},
        "image_text": {"text_width": 32, "text_layers": 1, "text_heads": 2, "dimension": 16},
        "optim": {"lr": 3e-3, "warmup_ratio": 0.1},
        "train": {"steps": 6, "num_workers": 0, "log_every": 1, "save_every": 3},
        "log": {"trackers": []},
    }
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_a_paradigm_from_the_command_line(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = done("pretrain", config, "--out", run)
    assert "vision tower" in result.out and f"next: vitp probe {run} DATA" in result.out
    assert load_backbone(run).patch_size == 8
    assert litter(run) == []


def test_the_option_wins_over_the_file(config: Path, tmp_path: Path) -> None:
    done("pretrain", config, "--objective", "clip", "--steps", 2, "--out", tmp_path / "run")
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (written["objective"]["name"], written["train"]["steps"]) == ("clip", 2)


def test_a_resumed_run_ends_with_the_same_weights(config: Path, tmp_path: Path) -> None:
    done("pretrain", config, "--out", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "step_00000006")
    shutil.rmtree(tmp_path / "half" / "model")
    done("pretrain", "--out", tmp_path / "half", "--resume")
    whole, half = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "half"))
    assert all(torch.equal(tensor, half[name]) for name, tensor in whole.items())


def test_wrong_objectives_are_one_line(config: Path, compiled: Path, tmp_path: Path) -> None:
    assert 'did you mean "simclr"?' in refused("pretrain", "--objective", "simclear", "--data", compiled)
    assert "has no training masks" in refused(
        "pretrain",
        "--objective",
        "dense",
        "--data",
        _without_masks(compiled, tmp_path),
        "--out",
        tmp_path / "a",
    )
    (tmp_path / "empty").mkdir()
    assert "holds no image" in refused(
        "pretrain", config, "--data", tmp_path / "empty", "--out", tmp_path / "b"
    )
    # Nothing was trained, so the folder is free for the next try.
    assert not (tmp_path / "b" / "config.yaml").exists()


def _without_masks(compiled: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "bare"
    shutil.copytree(compiled, folder)
    for file in (folder / "labels").glob("*.jsonl"):
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for row in lines:
            row.pop("semantic", None)
        file.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_vitp_with_token_weights_and_preserved_features(compiled: Path, tmp_path: Path) -> None:
    """The reference is trained first, in the run's own folder, and found there when the run is resumed."""
    config = write_config(
        tmp_path / "run.yaml",
        compiled,
        objective={"prior": {"alpha": 1.0, "steps": 4}},
        train={"steps": 4, "save_every": 2},
    )
    run = tmp_path / "run"
    lora = "model.vision_lora={rank: 2, unfrozen_blocks: 1}"
    done(
        "pretrain",
        config,
        "--out",
        run,
        "-s",
        "model.preserve.weight=0.1",
        "-s",
        lora,
        "-s",
        "objective.align.steps=2",
    )
    assert (run / "prior" / "model" / "model.safetensors").is_file()
    rows = (run / "metrics.jsonl").read_text()
    assert '"preserve"' in rows and '"language"' in rows
    assert load_backbone(run).patch_size == 8
