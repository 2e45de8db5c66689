"""Scenes of six bands, from GeoTIFFs to a map: classes that differ in three of the bands are told by these alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
import timm
import torch
from PIL import Image

from tests.band_files import BANDS, MASK_CLASSES, mask_scenes
from tests.e2e.conftest import done
from vitp.checkpoints.loading import load_backbone
from vitp.data.formats import read_labels
from vitp.data.formats.vitp_labels import read_channels
from vitp.tasks.base import TestSettings
from vitp.tasks.data import label_reader
from vitp.tasks.model_folder import load_task
from vitp.tasks.predict import predictions_of

VISION = json.dumps(
    {"arguments": {"embed_dim": 48, "depth": 2, "num_heads": 2, "patch_size": 4}, "image_size": 32}
)


@dataclass(frozen=True)
class Scale:
    """How much is drawn and learned."""

    scenes: int
    pretraining: int
    finetuning: int


def learned(root: Path, out: Path, bands: str, seed: int, scale: Scale) -> float:
    """Return the mIoU on test scenes of a model that sees some bands, from the files to the map.

    Args:
        root: The scenes, with masks.
        out: New folder.
        bands: That are seen.
        seed: Of all that is drawn.
        scale: Of the runs.
    """
    names = tuple(bands.split(","))
    data, run, export, task = (out / name for name in ("set", "pretrain", "export", "task"))
    options = ("-o", f"classes={MASK_CLASSES}", "-o", f"bands={bands}")
    said = done("data", "compile", root, "--format", "masks", "--out", data, *options)
    assert f"bands {', '.join(names)} (uint16): 0–255 from " in said.out
    common = ("-s", f"seed={seed}", "-s", "train.device=cpu", "-s", "train.threads=1")
    done(
        *("pretrain", "--data", data, "--objective", "mae", "--out", run, "--steps", scale.pretraining),
        *("--init", "random", "-s", f"model.vision={VISION}", "-s", "data.global_batch=8", *common),
        *("-s", "train.num_workers=0", "-s", "log.trackers=[]"),
    )
    done("export", run, "--out", export)
    channels, exported = read_channels(data), load_backbone(export)
    assert channels is not None and channels.bands == names
    assert exported.in_channels is not None and exported.in_channels.channels == channels.channels
    plain = timm.create_model(f"local-dir:{export}", pretrained=True).eval()
    assert plain.patch_embed.proj.in_channels == len(names)
    image_BCHW = torch.rand(1, len(names), 32, 32)
    with torch.no_grad():
        (map_BDhw,) = exported.forward_features(image_BCHW)
        tokens_BND = plain.forward_features(image_BCHW)[:, plain.num_prefix_tokens :]
    assert torch.allclose(map_BDhw.flatten(2).transpose(1, 2), tokens_BND, atol=1e-4)
    done(
        *("finetune", "segmentation", "--data", data, "--backbone", export, "--out", task),
        *("-s", f"train.steps={scale.finetuning}", "-s", "train.val_every=0", "-s", "data.global_batch=8"),
        *(
            "-s",
            "neck.options={channels: 32}",
            "-s",
            "optim.lr=5e-3",
            "-s",
            "optim.layer_decay=1",
            "-s",
            "augment.photometric=0",
            *common,
        ),
    )
    return float(json.loads((task / "scores.json").read_text())["values"]["miou"])


def mapped(root: Path, task: Path, out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the map of a test scene and its mask; the map lies where the scene does."""
    scene = sorted((root / "images" / "test").glob("*.tif"))[0]
    done("predict", task, scene, "--out", out)
    with rasterio.open(out / "masks" / f"{scene.stem}.tif") as found, rasterio.open(scene) as drawn:
        assert found.crs == drawn.crs and found.transform == drawn.transform
        classes_HW: np.ndarray = found.read(1)
    return classes_HW, np.asarray(Image.open(root / "masks" / "test" / f"{scene.stem}.png"))


def test_six_bands_go_from_files_to_a_map(tmp_path: Path) -> None:
    root, task = mask_scenes(tmp_path / "scenes", 12, size=32, splits=True), tmp_path / "all" / "task"
    assert 0 <= learned(root, tmp_path / "all", ",".join(BANDS), 0, Scale(12, 2, 6)) <= 1
    classes_HW, _ = mapped(root, task, tmp_path / "map")
    model, labelled = load_task(task), read_labels("vitp", tmp_path / "all" / "set").split("test")
    reader = label_reader(model, labelled, "semantic", TestSettings())
    _, _, alone = next(iter(predictions_of(model, reader, TestSettings())))
    assert alone.semantic_HW is not None
    assert (classes_HW == alone.semantic_HW.numpy()).mean() > 0.99


@pytest.mark.slow
def test_a_model_of_six_bands_is_far_above_one_of_three_over_three_seeds(tmp_path: Path) -> None:
    scale = Scale(scenes=64, pretraining=10, finetuning=150)
    found: dict[str, list[float]] = {"six": [], "three": []}
    for seed in range(3):
        root = mask_scenes(tmp_path / f"scenes{seed}", scale.scenes, size=32, seed=seed, splits=True)
        for name, bands in (("six", BANDS), ("three", BANDS[:3])):
            out = tmp_path / f"{name}{seed}"
            found[name].append(learned(root, out, ",".join(bands), seed, scale))
        classes_HW, truth_HW = mapped(root, tmp_path / f"six{seed}" / "task", tmp_path / f"map{seed}")
        assert (classes_HW == truth_HW).mean() > 0.85
    assert min(found["six"]) > 0.75, found
    assert max(found["three"]) < 0.45, found
    assert min(found["six"]) - max(found["three"]) > 0.3, found
