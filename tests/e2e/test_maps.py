"""Maps through the real command: killed at any moment and resumed, or shared by processes, it is the same to the bit."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rio_cogeo.cogeo import cog_validate

from tests.map_models import channels_of, write_raster
from vitp.inference.unfinished import unfinished_folder
from vitp.models.vision import VisionSettings, VisionTower
from vitp.tasks.base import TestSettings
from vitp.tasks.build import NeckSettings, build_model

BANDS = ("B2", "B3", "B4", "B8")


def save_model(folder: Path, task: str, bands: tuple[str, ...] = BANDS) -> Path:
    """Save a model of these bands, or without any of pictures."""
    torch.manual_seed(0)
    vision: dict = {
        "arguments": {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8},
        "image_size": 32,
    }
    if bands:
        vision["channels"] = channels_of(*bands).model_dump()
    tower = VisionTower(VisionSettings.model_validate(vision))
    head: dict = {"width": 8}
    if task == "oriented":
        head |= {"proposals": {"keep_before": [20, 20], "keep": [20, 20]}, "box": {"hidden": 32}}
    model = build_model(task, tower, ("sea", "land"), NeckSettings(options={"channels": 8}), head).eval()
    model.description["test"] = TestSettings(window=32, score_threshold=0.3).model_dump()
    model.save_pretrained(folder)
    return folder


def raster(path: Path, side: int) -> Path:
    rng = np.random.default_rng(0)
    coarse = rng.integers(1, 1000, (4, side // 10, side // 10))
    values = np.kron(coarse, np.ones((1, 10, 10))).astype(np.uint16)
    values[:, : side // 3, : side // 2] = 0
    return write_raster(path, values, "rotated", nodata=0, names=BANDS, compress="deflate")


def outputs(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def predict(model: Path, *words: str, processes: int = 1) -> list[str]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*launcher, "-m", "vitp", "predict", str(model), *words, "--probabilities"]


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def killed_when_half_done(command: list[str], work: Path, marks: int) -> None:
    """Start a prediction and kill it once so many parts are done."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment())
    while process.poll() is None:
        files = [*work.glob("parts/*/done-*.txt"), *work.glob("parts/*/objects-*.npz")]
        done = sum(file.read_text().count("\n") if file.suffix == ".txt" else 1 for file in files)
        if done >= marks:
            process.kill()
        time.sleep(0.005)
    assert process.wait() == -9, "it was done before it could be killed"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segmentation", "oriented"])
def test_killed_and_resumed_or_shared_it_is_the_same_to_the_bit(tmp_path: Path, task: str) -> None:
    model, image = save_model(tmp_path / "model", task), raster(tmp_path / "a.tif", 600)
    run(predict(model, str(image), "--out", str(tmp_path / "whole")))
    whole = outputs(tmp_path / "whole")
    assert len(whole["vectors/a.gpkg"]) > 100_000
    if task == "segmentation":
        for name in ("masks", "probabilities"):
            assert cog_validate(str(tmp_path / "whole" / name / "a.tif"), strict=True, quiet=True)[0]
    out = tmp_path / "out"
    words = predict(model, str(image), "--out", str(out))
    rng = random.Random()
    for _ in range(2):
        killed_when_half_done(words, unfinished_folder(out), rng.randint(1, 8))
        words = [*words, "--resume"]
    assert not out.exists()
    run(words)
    assert outputs(out) == whole and not unfinished_folder(out).exists()
    assert "nothing to resume" in run(words)
    run(predict(model, str(image), "--out", str(tmp_path / "shared"), processes=2))
    assert outputs(tmp_path / "shared") == whole


@pytest.mark.slow
def test_processes_share_pictures_too(tmp_path: Path) -> None:
    """PNG pictures and a model of pictures; one broken picture, which both leave out."""
    model = save_model(tmp_path / "model", "oriented", bands=())
    rng = np.random.default_rng(0)
    for number in range(3):
        coarse = rng.integers(0, 256, (7, 9 + number, 3), dtype=np.uint8)
        Image.fromarray(np.kron(coarse, np.ones((10, 10, 1), np.uint8))).save(tmp_path / f"{number}.png")
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(whole[: len(whole) // 2])
    images = [str(tmp_path / name) for name in ("0.png", "broken.png", "1.png", "2.png")]
    found = []
    for processes in (1, 2):
        out = tmp_path / f"by-{processes}"
        command = predict(model, *images, "--out", str(out), processes=processes)
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment(), timeout=240
        )
        assert done.returncode == 1 and done.stdout.count("can't be used") == 1, done.stderr[-3000:]
        found.append(outputs(out))
    one, two = found
    assert {f"pictures/{number}.png" for number in range(3)} <= set(one) and one == two
    assert len(json.loads(one["vitp_predictions.json"])["images"]) == 3
    assert len(json.loads(one["predictions.json"])["annotations"]) > 3
