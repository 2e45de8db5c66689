"""Our own models on disk through the one reader: runs, exports, finetuned models, and files that were changed."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.conftest import tiny_vlm_config
from vitp.checkpoints.convert import convert_model
from vitp.checkpoints.description import Provenance, read_description
from vitp.checkpoints.export import export_backbone, write_backbone
from vitp.checkpoints.loading import load_backbone, load_vlm, open_timm
from vitp.checkpoints.verify import verify_export
from vitp.checkpoints.writing import save_vlm
from vitp.core.errors import CheckpointError
from vitp.models.positions import resample_positions
from vitp.models.timm_backbone import TimmSettings, timm_backbone
from vitp.models.vision import VisionTower
from vitp.models.vlm import VisionLanguageModel
from vitp.tasks.build import build_model


@pytest.mark.parametrize("task", ["classification", "segmentation", "oriented", "change"])
def test_the_tower_of_a_finetuned_model_is_a_backbone(tmp_path, task):
    torch.manual_seed(4)
    tower = VisionTower(tiny_vlm_config().vision)
    model = build_model(task, tower, ["unchanged", "changed"] if task == "change" else ["ship", "plane"])
    model.save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "config.yaml").write_text("task: a task\n")
    for source in (tmp_path / "run", tmp_path / "run" / "model"):
        found = load_backbone(source)
        assert found.config == tower.config and not found.training
        assert found.state_dict().keys() == tower.state_dict().keys()
        assert all(torch.equal(tensor, found.state_dict()[n]) for n, tensor in tower.state_dict().items())
        with pytest.raises(CheckpointError, match="holds a vision tower without a language model"):
            load_vlm(source)
    exported = export_backbone(tmp_path / "run", tmp_path / "vit").folder
    assert verify_export(exported, tmp_path / "run").passed
    assert read_description(exported).provenance.configuration == {"task": "a task"}


def test_a_finetuned_network_without_a_vit_says_so(tmp_path):
    backbone = timm_backbone(TimmSettings(architecture="resnet10t", image_size=64))
    build_model("classification", backbone, ["ship", "plane"]).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is finetuned from a resnet10t, which is no plain ViT"):
        load_backbone(tmp_path)


def test_our_own_models_follow_an_image_size_as_published_ones_do(tmp_path, chat):
    torch.manual_seed(5)
    vlm = VisionLanguageModel(tiny_vlm_config(), vocabulary=len(chat))
    save_vlm(tmp_path / "model", vlm, chat)
    size = vlm.vision.image_size[0]
    larger, tower = load_vlm(tmp_path, image_size=2 * size).vlm, load_backbone(tmp_path, image_size=2 * size)
    assert larger.vision.grid == tower.grid == 2 * vlm.vision.grid
    expected = resample_positions(vlm.vision.model.pos_embed, (tower.grid, tower.grid), prefix=1)
    assert torch.equal(larger.vision.model.pos_embed, expected)
    assert torch.equal(tower.model.pos_embed, expected)
    assert torch.equal(larger.projector[1].weight, vlm.projector[1].weight)


@pytest.mark.parametrize("read", ["load_backbone", "resized", "convert", "cast", "export"])
def test_no_way_in_takes_an_export_that_was_changed(tmp_path, read):
    torch.manual_seed(6)
    write_backbone(tmp_path / "vit", VisionTower(tiny_vlm_config().vision), Provenance(source="a test"))
    path, out = tmp_path / "vit" / "model.safetensors", tmp_path / "out"
    with safe_open(path, framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "vitp_sha256"}
    weights = load_file(path)
    weights["norm.bias"] = weights["norm.bias"] + 1
    save_file(weights, path, metadata)
    ways = {
        "load_backbone": lambda: load_backbone(tmp_path / "vit"),
        "resized": lambda: load_backbone(tmp_path / "vit", image_size=96),
        "convert": lambda: convert_model(tmp_path / "vit", out, "timm"),
        "cast": lambda: convert_model(tmp_path / "vit", out, "timm", dtype="bfloat16"),
        "export": lambda: export_backbone(tmp_path / "vit", out),
    }
    with pytest.raises(CheckpointError, match=r"1 tensors are not those that were exported \(norm\.bias\)"):
        ways[read]()
    assert not out.exists()


@pytest.mark.parametrize("container", [(), ("state_dict",), ("state_dict_ema",), ("model",)])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_networks_are_found_where_training_scripts_leave_them(tmp_path, container, prefix):
    full = timm.create_model("resnet10t", num_classes=7)
    state = {prefix + name: tensor for name, tensor in full.state_dict().items()}
    for name in container:
        state = {name: state, "epoch": 3}
    torch.save(state, tmp_path / "net.pth")
    network, report = open_timm(TimmSettings(architecture="resnet10t"), tmp_path / "net.pth")
    own = network.model.state_dict()
    assert own and all(torch.equal(tensor, full.state_dict()[name]) for name, tensor in own.items())
    assert report.complete and set(report.ignored) == {"fc.weight", "fc.bias"}
