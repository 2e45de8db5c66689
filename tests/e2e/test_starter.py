"""The packaged starter: it loads, it is small, it sees, and the commands of the README run from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e.conftest import done
from vitp.checkpoints.description import STARTER
from vitp.checkpoints.loading import load_backbone, load_vlm, random_backbone
from vitp.evaluation.answers import ask_all, questions_of
from vitp.evaluation.probes import run_probes
from vitp.inference.ask import Assistant
from vitp.scenes import scene_set

README = Path(__file__).parents[2] / "README.md"


def test_it_is_small_and_has_a_card():
    size = sum(file.stat().st_size for file in STARTER.iterdir())
    assert size <= 12 * 2**20
    assert "generated scenes" in (STARTER / "README.md").read_text(encoding="utf-8")


def test_it_is_the_model_that_its_card_describes():
    loaded = load_vlm("starter")
    assert loaded.vlm.vision.image_size == (96, 96)
    assert loaded.vlm.tokens_per_tile == 144
    assert sum(p.numel() for p in loaded.vlm.vision.parameters()) == 2_734_656
    assert not any(p.isnan().any() for p in loaded.vlm.parameters())


@pytest.mark.slow
def test_it_sees_more_than_a_blind_model_guesses():
    loaded = load_vlm("starter")
    scenes = scene_set("general", seed=5, count=60, size=96, split="val")
    asked = [
        (r, t)
        for r, t in questions_of(scenes, 240)
        if t in ("grid_row", "dominant", "cell", "point", "scene")
    ]
    scores = [one.score or 0.0 for one in ask_all(Assistant(loaded.vlm, loaded.chat), asked[:40])]
    # Sixteen classes: always naming the most frequent one is right less than a quarter of the time.
    assert sum(scores) / len(scores) > 0.35


@pytest.mark.slow
def test_its_frozen_features_beat_random_ones():
    sets = {
        split: scene_set("general", seed=6, count=count, size=96, split=bank)
        for split, count, bank in (("train", 80, "train"), ("val", 30, "val"), ("test", 50, "test"))
    }
    tower = load_backbone("starter")
    key = ("patches linear", "patch mIoU")
    ours = run_probes(tower, sets, seeds=(0,), tasks=["patches linear"])[key].mean
    chance = run_probes(random_backbone(tower, 0), sets, seeds=(0,), tasks=["patches linear"])[key].mean
    assert ours > 1.5 * chance


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done("data", "scenes", "port", "--out", "my_images", "--count", "40", "--layout", "coco")
    commands = re.findall(
        r"^    vitp (data (?:compile|check|show)|pretrain|report|export|probe) (.*?)(?:\s+#.*)?$",
        # Walks with files of other kinds have tests of their own.
        README.read_text(encoding="utf-8").split("## Quickstart: images without labels")[0],
        re.M,
    )
    assert [command for command, _ in commands] == [
        "data compile", "data check", "data show", "pretrain", "report", "export", "probe",
    ]  # fmt: skip
    for command, rest in commands:
        arguments = rest.split()
        if command == "pretrain":
            arguments += ["-s", "train.steps=2", "-s", "data.global_batch=4", "-s", "train.num_workers=0"]
        if command == "report":
            arguments += ["--samples", "2"]
        done(*command.split(), *arguments)
    assert (tmp_path / "runs/mine/report.html").is_file()
    assert (tmp_path / "backbone/model.safetensors").is_file()
