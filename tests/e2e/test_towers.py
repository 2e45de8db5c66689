"""Published kinds of ViTs through the command line: swapped in, continued by three objectives, exported, finetuned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.e2e.conftest import done, refused
from tests.e2e.test_finetune import LAYOUTS, data, settings_of  # noqa: F401 - `data` is a fixture
from vitp.checkpoints.loading import load_backbone
from vitp.models.flops import vision_shape
from vitp.models.vision import VisionSettings, VisionTower

SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}
KINDS: dict[str, tuple[str, dict[str, Any], int]] = {
    "DINOv3": ("vit_small_patch16_dinov3", SMALL, 64),
    "EVA-02": ("eva02_tiny_patch14_224", SMALL, 56),
    "SigLIP 2": ("vit_base_patch16_siglip_224", SMALL | {"patch_size": 8}, 48),
}
FAST = {"num_workers": 0, "log_every": 1, "tensorboard": False, "threads": 1}


def published(folder: Path, name: str, arguments: dict[str, Any], size: int) -> Path:
    """A folder as timm's on the hub are, with random weights."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, img_size=size, global_pool="", **arguments)
    save_file(model.state_dict(), folder / "model.safetensors")
    known = {"input_size": [3, size, size], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    config = {"architecture": name, "model_args": arguments, "pretrained_cfg": known}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def continued(source: Path, compiled: Path, out: Path) -> list[Path]:
    """The runs that continue a tower by ViTP, DINO and MAE for two steps each."""
    config = {
        "data": {"mixture": [str(compiled)], "global_batch": 2},
        "optim": {"lr": 1e-3, "warmup_ratio": 0.0},
        "train": {"steps": 2, **FAST},
    }
    (out / "run.yaml").write_text(yaml.safe_dump(config))
    done("swap", "starter", out / "vlm", "--vision", source, "--shuffle", 1)
    done("pretrain", out / "run.yaml", "--init", out / "vlm", "--out", out / "vitp")
    for objective in ("dino", "mae"):
        arguments = ("--objective", objective, "--init", source, "--out", out / objective)
        done("pretrain", out / "run.yaml", *arguments)
    return [out / name for name in ("vitp", "dino", "mae")]


def assert_exported(run: Path, start: Path, out: Path) -> None:
    """The export loads with timm, gives the run's features, and every part of the tower was trained."""
    done("export", run, "--out", out)
    tower, model = load_backbone(run), timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    image_BCHW = torch.randn(1, 3, *tower.image_size)
    with torch.no_grad():
        tokens_BND = model.forward_features(image_BCHW)[:, model.num_prefix_tokens :]
        torch.testing.assert_close(tower.forward_tokens(image_BCHW), tokens_BND, atol=1e-5, rtol=0)
    before, after = load_file(start / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert not [name for name, tensor in before.items() if torch.equal(tensor, after[name])]


@pytest.mark.slow
def test_a_dinov3_of_its_true_shape_is_continued_and_exported(
    compiled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = published(tmp_path / "dinov3", "vit_small_patch16_dinov3", {}, 64)
    for run in continued(start, compiled, tmp_path):
        assert_exported(run, start, tmp_path / f"{run.name}-timm")
    card = (tmp_path / "vitp-timm" / "README.md").read_text()
    assert "`vit_small_patch16_dinov3`, licence: dinov3-license." in card
    assert caplog.text.count("whose licence (dinov3-license) binds") == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_small_towers_go_all_the_way(kind: str, data: Any, compiled: Path, tmp_path: Path) -> None:  # noqa: F811
    start = published(tmp_path / "start", *KINDS[kind])
    for run in continued(start, compiled, tmp_path):
        assert_exported(run, start, tmp_path / f"{run.name}-timm")
    done("probe", tmp_path / "mae", compiled)
    done("convert", tmp_path / "mae", tmp_path / "converted", "--to", "timm")
    done("export", tmp_path / "mae", "--out", tmp_path / "onnx", "--format", "onnx")
    for task in LAYOUTS:
        arguments = ["--data", data(task), "--backbone", tmp_path / "dino-timm", "--steps", 1]
        sets = [word for key in settings_of(task, "export") for word in ("-s", key)]
        sets += ["-s", "data.resize.size=" + str(KINDS[kind][2])]
        done("finetune", task, *arguments, *sets, "--out", tmp_path / task)
    words = refused("export", tmp_path / "mae", "--out", tmp_path / "hf", "--format", "hf")
    assert "InternVL's ViT has" in words and "export it as timm" in words


def test_a_large_one_has_timms_names_and_shapes() -> None:
    name = "vit_large_patch16_dinov3"
    with torch.device("meta"):
        tower = VisionTower(VisionSettings(architecture=name, image_size=256))
        model = timm.create_model(name, num_classes=0)
        features = tower.forward_features(torch.empty(1, 3, 256, 384))
    assert {n: t.shape for n, t in tower.model.state_dict().items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }
    assert features[0].shape == (1, 1024, 16, 24)
    assert (vision_shape(tower).layers, sum(p.numel() for p in tower.parameters()) // 10**6) == (24, 303)


def test_other_kinds_are_one_line(compiled: Path, tmp_path: Path) -> None:
    swin = published(tmp_path / "swin", "swin_tiny_patch4_window7_224", {"embed_dim": 24}, 224)
    assert "is no plain Vision Transformer" in refused("swap", "starter", tmp_path / "a", "--vision", swin)
    vision = json.dumps({"architecture": "convnext_atto"})
    words = ("-s", "model.init=random", "-s", f"model.vision={vision}", "--out", tmp_path / "b")
    assert "a hierarchical ConvNeXt" in refused("pretrain", "--objective", "mae", "--data", compiled, *words)
