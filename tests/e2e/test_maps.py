"""Maps through the real command: killed at any moment and resumed, or shared by processes, it is the same to the bit."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rio_cogeo.cogeo import cog_validate

from tests.e2e.conftest import done, finish, fork, program, start, vitp
from tests.forks import fork_ranks
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


def predict(model: Path, *words: object) -> tuple[object, ...]:
    return ("predict", model, *words, "--probabilities")


def killed_when_half_done(command: tuple[object, ...], work: Path, marks: int) -> None:
    """Start a prediction and kill it once so many parts are done."""
    process = fork(*command)
    while process.poll() is None:
        files = [*work.glob("parts/*/done-*.txt"), *work.glob("parts/*/objects-*.npz")]
        there = sum(file.read_text().count("\n") if file.suffix == ".txt" else 1 for file in files)
        if there >= marks:
            process.kill()
        time.sleep(0.005)
    assert process.returncode == -9, "it was done before it could be killed"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segmentation", "oriented"])
def test_killed_and_resumed_or_shared_it_is_the_same_to_the_bit(tmp_path: Path, task: str) -> None:
    model, image = save_model(tmp_path / "model", task), raster(tmp_path / "a.tif", 600)
    done(*predict(model, image, "--out", tmp_path / "whole"))
    whole = outputs(tmp_path / "whole")
    assert len(whole["vectors/a.gpkg"]) > 100_000
    if task == "segmentation":
        for name in ("masks", "probabilities"):
            assert cog_validate(str(tmp_path / "whole" / name / "a.tif"), strict=True, quiet=True)[0]
    out = tmp_path / "out"
    words = predict(model, image, "--out", out)
    rng = random.Random()
    for _ in range(2):
        killed_when_half_done(words, unfinished_folder(out), rng.randint(1, 8))
        words = (*words, "--resume")
    assert not out.exists()
    done(*words)
    assert outputs(out) == whole and not unfinished_folder(out).exists()
    assert "nothing to resume" in done(*words).out
    fork_ranks(program(*predict(model, image, "--out", tmp_path / "shared")), 2, timeout=240)
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
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vitp")
    for result in (
        vitp(*predict(model, *images, "--out", tmp_path / "by-1")),
        finish(start(*predict(model, *images, "--out", tmp_path / "by-2"), module=torchrun)),
    ):
        assert result.code == 1 and result.out.count("can't be used") == 1, result.err[-3000:]
    one, two = outputs(tmp_path / "by-1"), outputs(tmp_path / "by-2")
    assert {f"pictures/{number}.png" for number in range(3)} <= set(one) and one == two
    assert len(json.loads(one["vitp_predictions.json"])["images"]) == 3
    assert len(json.loads(one["predictions.json"])["annotations"]) > 3
