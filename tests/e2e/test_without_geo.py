"""Without the packages of the extra `geo` pictures work as ever, and what needs them names the extra."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import without_packages, write_config
from tests.raster_files import values, write_raster
from tests.tiff_files import write_tiff

GEO = ("rasterio", "pyogrio", "shapely", "pyproj", "rio_cogeo")
SIZE = 48


def _masks(folder: Path) -> Path:
    """Write pictures of every kind that needs no extra, with masks."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for number in range(8):
        rgb_CHW = values(3, "uint8", (SIZE, SIZE), number)
        rgb_HWC = np.ascontiguousarray(rgb_CHW.transpose(1, 2, 0))
        labels_HW = (np.indices((SIZE, SIZE)).sum(axis=0) > 40 + number).astype(np.uint8)
        path = folder / "images" / f"{number}.tif"
        if number % 3 == 0:
            write_raster(path, rgb_CHW, photometric="RGB", compress="deflate")
        elif number % 3 == 1:
            write_tiff(path, rgb_HWC, deflate=True, predictor=True)
        else:
            Image.fromarray(rgb_HWC).save(path.with_suffix(".png"))
        Image.fromarray(labels_HW).save(folder / "masks" / f"{number}.png")
    return folder


@pytest.mark.slow
def test_pictures_go_from_labels_to_predictions_without_the_extra(tmp_path: Path) -> None:
    labels = _masks(tmp_path / "labels")
    compiled, run, task = tmp_path / "compiled", tmp_path / "run", tmp_path / "task"
    config = write_config(tmp_path / "run.yaml", compiled, train={"steps": 2})
    vision = {"arguments": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}, "image_size": SIZE}
    settings = [
        "data.global_batch=2", "train.threads=1", f"data.resize.size={SIZE}",
        "data.resize.mode=fixed", f"backbone.vision={json.dumps(vision)}", "neck.options.channels=32",
        "head.width=32",
    ]  # fmt: skip
    options = ["--steps", 2, *(word for setting in settings for word in ("-s", setting))]
    result = without_packages(
        GEO,
        ["data", "compile", labels, "--out", compiled],
        ["data", "check", compiled],
        ["pretrain", config, "--out", run],
        ["finetune", "segmentation", "--data", labels, "--backbone", "random", "--out", task, *options],
        ["predict", task, labels / "images", "--out", tmp_path / "maps"],
    )
    assert result.out.count("CODE 0") == 5, result.out + result.err
    assert len(list((tmp_path / "maps").rglob("*.png"))) >= 8


@pytest.mark.slow
def test_what_needs_the_extra_names_it(tmp_path: Path) -> None:
    folder, many = tmp_path / "labels", tmp_path / "many"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        (many / name).mkdir(parents=True)
        for number in range(2):
            values_CHW = values(13, "uint16", (SIZE, SIZE), number)
            write_raster(folder / name / f"{name}{number}.tif", values_CHW)
            write_raster(many / name / f"{name}{number}.jp2", values_CHW, driver="JP2OpenJPEG")
    result = without_packages(
        GEO,
        ["data", "compile", folder, "--out", tmp_path / "out"],
        ["data", "compile", many, "--out", tmp_path / "out"],
    )
    assert result.out.count("CODE 2") == 2, result.out + result.err
    lines = result.err.splitlines()
    assert len(lines) == 2
    for line, name in zip(lines, ("a0.tif: has 13 bands", "a0.jp2: is a JPEG 2000 file"), strict=True):
        assert name in line
        assert "pip install 'vitp[geo]'" in line
    assert not (tmp_path / "out").exists()
