from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.conftest import make_record
from tests.export_toys import MEAN, STD, change_json, described, exported, odd_vision, run, without_digest
from vitp.checkpoints.description import (
    Provenance,
    content_hash,
    provenance_of_run,
    read_description,
    tensor_digests,
)
from vitp.checkpoints.export import export_backbone, write_backbone
from vitp.checkpoints.loading import load_backbone, random_backbone
from vitp.checkpoints.verify import verify_export
from vitp.core.errors import CheckpointError, VitpError
from vitp.core.files import write_json, write_text
from vitp.data.mixture import Mixture, MixtureEntry
from vitp.data.record_set import ListRecords
from vitp.models.vision import VisionTower

__all__ = ["exported", "run"]  # fixtures


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def images(size: int = 40) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(5).integers(0, 256, size=(2, 3, size, size), dtype=np.uint8)
    )


def test_timm_gives_the_trained_features_and_normalisation(run, exported):
    trained = load_backbone(run)
    model = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    with torch.no_grad():
        expected = trained.forward_tokens(trained.normalize(images()))
        tokens = model.forward_features(normalised(images()))
    assert tokens.shape == (2, 1 + 25, 32)
    torch.testing.assert_close(tokens[:, 1:], expected, atol=1e-5, rtol=0)
    data = timm.data.resolve_model_data_config(model)
    assert tuple(data["mean"]) == MEAN
    assert tuple(data["std"]) == STD
    assert tuple(data["input_size"]) == (3, 40, 40)
    assert data["interpolation"] == "bicubic"
    assert data["crop_pct"] == 1.0


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_timm_classifier_keeps_the_backbone(run, exported, pool):
    trained = load_backbone(run)
    model = timm.create_model(
        f"local-dir:{exported}", pretrained=True, num_classes=5, global_pool=pool
    ).eval()
    with torch.no_grad():
        tokens = model.forward_features(normalised(images()))[:, 1:]
        assert model(normalised(images())).shape == (2, 5)
        expected = trained.forward_tokens(trained.normalize(images()))
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)


def test_transformers_gives_the_trained_features(run, exported):
    from transformers import AutoModel

    trained = load_backbone(run)
    model = AutoModel.from_pretrained(exported, local_files_only=True).eval()
    with torch.no_grad():
        tokens = model(normalised(images())).last_hidden_state[:, 1:]
        expected = trained.forward_tokens(trained.normalize(images()))
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "architecture, arguments, patch",
    [
        ("vit_tiny_patch16_224", {"class_token": False}, 8),
        ("vit_tiny_patch16_224", {"reg_tokens": 4}, 8),
        ("vit_tiny_patch16_224", {"init_values": 0.1, "qk_norm": True}, 8),
        ("vit_intern300m_patch14_448", {}, 14),
    ],
    ids=["no cls", "registers", "layer scale", "InternViT"],
)
def test_other_vits_survive_the_export(tmp_path, architecture, arguments, patch):
    torch.manual_seed(1)
    small = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": patch}
    vision = odd_vision(architecture=architecture, arguments=small | arguments, image_size=5 * patch)
    tower = VisionTower(vision).eval()
    description = write_backbone(tmp_path / "vit", tower, Provenance(source="test"))
    assert description.prefix_tokens == tower.model.num_prefix_tokens
    report = verify_export(tmp_path / "vit")
    assert report.passed
    assert len(report.checks) == 5


def test_the_hash_is_of_the_content_alone():
    weights = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(1)}
    again = {"a": torch.ones(1), "b": torch.arange(6.0).reshape(2, 3)}
    assert content_hash(tensor_digests(weights)) == content_hash(tensor_digests(again))
    for other in (
        {"a": torch.ones(1), "b": torch.arange(6.0).reshape(3, 2)},
        {"a": torch.ones(1), "c": torch.arange(6.0).reshape(2, 3)},
        {"a": torch.ones(1).half(), "b": torch.arange(6.0).reshape(2, 3)},
    ):
        assert content_hash(tensor_digests(other)) != content_hash(tensor_digests(weights))


def test_two_exports_are_equal(run, exported, tmp_path):
    second = export_backbone(run / "model", tmp_path / "again")
    assert second.sha256 == read_description(exported).sha256
    assert (
        load_file(exported / "model.safetensors").keys()
        == load_file(second.folder / "model.safetensors").keys()
    )
    # An export of an export keeps weights and provenance.
    third = export_backbone(exported, tmp_path / "third")
    assert third.sha256 == second.sha256
    assert read_description(third.folder).provenance == read_description(exported).provenance


def test_only_the_vit_is_exported(exported):
    names = set(load_file(exported / "model.safetensors"))
    config = odd_vision()
    plain = timm.create_model(
        config.architecture,
        num_classes=0,
        global_pool="",
        img_size=40,
        dynamic_img_size=True,
        **config.arguments,
    )
    assert names == set(plain.state_dict())
    assert not [name for name in names if re.search(r"head|projector|language|vision", name)]


def test_metadata_hold_the_contract(exported):
    with safe_open(exported / "model.safetensors", framework="pt") as file:
        metadata = without_digest(file.metadata())
    contract = json.loads(metadata["contract"])
    assert contract == {
        "architecture": "vit_tiny_patch16_224",
        "mean": list(MEAN),
        "std": list(STD),
        "image_size": 40,
        "patch_size": 8,
        "grid": 5,
        "prefix_tokens": 1,
        "sha256": read_description(exported).sha256,
    }
    provenance = json.loads(metadata["provenance"])
    assert provenance["source"] == "my_run"
    assert provenance["steps"] == 7
    assert provenance["mixture"]["fingerprint"] == "ab" * 32
    assert metadata["vitp_version"]


def test_load_backbone_takes_all_sources(run, exported):
    towers = [load_backbone(source) for source in (run, run / "model", exported, str(exported))]
    for tower in towers[1:]:
        assert not tower.training
        for name, value in towers[0].state_dict().items():
            assert torch.equal(value, tower.state_dict()[name]), name
    assert towers[2].mean == MEAN
    assert towers[2].grid == 5


def test_objectives_without_a_language_model_can_keep_a_backbone_in_their_run(tmp_path):
    tower = VisionTower(odd_vision())
    run = tmp_path / "mim_run"
    write_backbone(run / "model", tower, Provenance(source="mim_run"))
    write_text(run / "config.yaml", "steps: 3\n")
    result = export_backbone(run, tmp_path / "out")
    assert verify_export(result.folder, run).passed
    assert read_description(result.folder).provenance.configuration == {"steps": 3}


def test_starter_is_loaded_by_name(run, tmp_path, monkeypatch):
    monkeypatch.setattr("vitp.checkpoints.description.STARTER", run / "model")
    tower = load_backbone("starter")
    assert torch.equal(tower.model.norm.weight, load_backbone(run).model.norm.weight)
    result = export_backbone("starter", tmp_path / "starter-vit")
    assert "starter model of the vitp package" in (result.folder / "README.md").read_text()


def test_random_backbone_is_seeded_and_leaves_the_global_state(run):
    like = load_backbone(run)
    state = torch.get_rng_state()
    first, second, other = random_backbone(like, 1), random_backbone(like, 1), random_backbone(like, 2)
    assert torch.equal(state, torch.get_rng_state())
    weight = "blocks.0.attn.qkv.weight"
    assert torch.equal(first.model.state_dict()[weight], second.model.state_dict()[weight])
    assert not torch.equal(first.model.state_dict()[weight], other.model.state_dict()[weight])
    assert not torch.equal(first.model.state_dict()[weight], like.model.state_dict()[weight])
    assert first.config == like.config


def test_existing_folders_are_kept(run, exported, tmp_path):
    with pytest.raises(VitpError, match="exists"):
        export_backbone(run, exported)
    assert export_backbone(run, exported, overwrite=True).folder == exported
    other = tmp_path / "photos"
    write_text(other / "holiday.txt", "mine")
    with pytest.raises(VitpError, match="doesn't hold an export"):
        export_backbone(run, other, overwrite=True)
    assert (other / "holiday.txt").read_text() == "mine"


def test_a_failed_export_leaves_nothing(run, tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vitp.checkpoints.export.write_text", fail)
    with pytest.raises(VitpError, match="disk is full"):
        export_backbone(run, tmp_path / "new" / "vit")
    assert list((tmp_path / "new").iterdir()) == []


def test_what_is_no_backbone_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such file or folder; name an export"):
        load_backbone(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no backbone"):
        load_backbone(tmp_path / "empty")
    write_json(tmp_path / "hf" / "config.json", {"model_type": "qwen2"})
    (tmp_path / "hf" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is no configuration of a vitp model"):
        load_backbone(tmp_path / "hf")


def test_broken_descriptions_name_the_field(exported):
    change_json(exported / "vitp_backbone.json", lambda v: v.update(grid="five"))
    with pytest.raises(CheckpointError, match="grid"):
        load_backbone(exported)


def test_card_tells_data_licences_and_change(exported):
    card = (exported / "README.md").read_text()
    assert "| ships | 8 | 0.5 | 50.0% | not stated |" in card
    assert "| blocks.0 | 12 | 12 | 25.000% |" in card
    assert "Relative change of the weights: 12.500%" in card
    assert read_description(exported).sha256 in card
    assert "| Mean | 0.4, 0.5, 0.6 |" in card


def test_exports_tell_no_folders(exported, tmp_path):
    for file in (path for path in exported.rglob("*") if path.is_file()):
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    assert read_description(exported).provenance.configuration == {"steps": 7, "data": "mixture.json"}


def test_notes_reach_the_card(run, tmp_path):
    folder = export_backbone(run, tmp_path / "vit", extra_card={"probe mIoU": 0.5, "note": "a | b"}).folder
    card = (folder / "README.md").read_text()
    assert "| probe mIoU | 0.5 |" in card
    assert "| note | a \\| b |" in card


def test_code_of_the_card_runs(exported, monkeypatch):
    monkeypatch.chdir(exported.parent)
    blocks = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.S)
    assert len(blocks) == 3
    results = []
    for block in blocks:
        names: dict = {}
        exec(block, names)
        results.append(names)
    assert results[0]["patches"].shape == (1, 25, 32)
    assert results[0]["classifier"].num_classes == 10
    assert results[1]["tokens"].shape == (1, 26, 32)
    assert results[2]["features"].shape == (1, 32, 5, 5)


def test_licences_of_the_sets_reach_the_card(run, tmp_path):
    records = [replace(make_record(n), licence="CC-BY-4.0") for n in range(3)]
    write_json(run / "mixture.json", described(Mixture([MixtureEntry(ListRecords(records, "clouds"))])))
    folder = export_backbone(run, tmp_path / "vit").folder
    assert "| clouds | 3 | 1 | 100.0% | CC-BY-4.0 |" in (folder / "README.md").read_text()


def test_a_broken_file_of_the_run_is_named(run):
    (run / "evidence.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"evidence\.json"):
        provenance_of_run(run)
