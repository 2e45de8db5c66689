"""Weights of others that are loaded for bands: publications, timm's files and folders, convolutional networks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.band_toys import bands
from tests.weights_toys import released_backbone
from vitp.checkpoints.loading import load_backbone
from vitp.core.errors import DataError
from vitp.records.channels import Channel, Channels
from vitp.records.labels import LabelledSet
from vitp.runs.channels import tower_channels
from vitp.tasks.build import BackboneSettings, open_backbone


def test_published_files_are_loaded_for_bands(tmp_path):
    file = released_backbone(tmp_path / "released.safetensors")
    before = load_backbone(file, heads=2).model.patch_embed.proj.weight
    found = load_backbone(file, heads=2, channels=bands("VV VH"))
    torch.testing.assert_close(
        found.model.patch_embed.proj.weight, before.mean(1, keepdim=True).repeat(1, 2, 1, 1) * 1.5
    )


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_files_of_timm_are_loaded_for_bands(name, tmp_path, caplog):
    arguments = {"depth": 2, "embed_dim": 48, "num_heads": 2, "patch_size": 8, "img_size": 32}
    made = timm.create_model(name, num_classes=0, global_pool="", **arguments)
    save_file(made.state_dict(), tmp_path / "weights.safetensors")
    wanted = bands("red VV")
    options = {"architecture": name, "arguments": {**arguments}, "image_size": 32}
    tower = load_backbone(tmp_path / "weights.safetensors", channels=wanted, **options)
    old, new = made.patch_embed.proj.weight, tower.model.patch_embed.proj.weight
    torch.testing.assert_close(new, torch.stack([old[:, 0], old.mean(1)], 1) * 1.5)
    assert tower.in_channels == wanted and "times 3/2" in caplog.text


def test_folders_of_timm_with_other_channels_call_them_by_number(tmp_path, caplog):
    """As others publish them: `in_chans`, and no word on what the channels are."""
    made = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0, in_chans=5, img_size=32)
    folder = tmp_path / "published"
    folder.mkdir()
    save_file(made.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "model_args": {"depth": 1, "in_chans": 5, "img_size": 32},
        "pretrained_cfg": {
            "mean": [0.1, 0.2, 0.3, 0.4, 0.5],
            "std": [1, 1, 1, 1, 1],
            "input_size": [5, 32, 32],
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    tower = load_backbone(folder)
    assert tower.in_channels is not None and tower.in_channels.bands == ("1", "2", "3", "4", "5")
    assert tower.mean == (0.1, 0.2, 0.3, 0.4, 0.5)
    kernel = tower.model.patch_embed.proj.weight
    assert torch.equal(kernel, made.patch_embed.proj.weight)
    named = load_backbone(folder, channels=bands("B2 B3 B4 B8 B11", high=4000))
    assert torch.equal(named.model.patch_embed.proj.weight, kernel) and named.mean == tower.mean
    assert "taken as it is, in the given order" in caplog.text
    rotated = load_backbone(folder, architecture="vit_tiny_patch16_224", channels=bands("5 1"))
    torch.testing.assert_close(rotated.model.patch_embed.proj.weight, kernel[:, [4, 0]] * 2.5)
    assert rotated.mean == (0.5, 0.1)


def test_numbered_channels_take_the_ranges_of_the_data(tmp_path, caplog):
    """0–255 isn't what such a tower was trained on: 12-bit values would nearly all be white."""
    made = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0, in_chans=2, img_size=32)
    save_file(made.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "model_args": {"depth": 1, "in_chans": 2, "img_size": 32},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    data = bands("2 1", low=400, high=3600)
    tower = load_backbone(tmp_path, data=data)
    assert tower.in_channels == bands("1 2", low=400, high=3600)
    assert torch.equal(tower.model.patch_embed.proj.weight, made.patch_embed.proj.weight)
    assert "0–255 are those of the data (400 to 3600)" in caplog.text
    assert tower.in_channels.scale(np.array([[[400.0]], [[1680.0]]])).ravel().tolist() == [0, 102]
    with pytest.raises(DataError, match="doesn't say which of them its 2 channels are"):
        load_backbone(tmp_path, data=bands("VV VH", low=400, high=3600))
    windows = Channels(channels=(*data.channels, Channel(band="1", low=0, high=50)))
    with pytest.raises(DataError, match="doesn't say which of them"):
        load_backbone(tmp_path, data=windows)
    stated = load_backbone(tmp_path, channels=bands("VV VH", low=400, high=3600))
    assert stated.in_channels == bands("VV VH", low=400, high=3600)

    settings = BackboneSettings(init=str(tmp_path))
    labelled = LabelledSet(name="set", items=(), channels=data)
    channels, lines = tower_channels(settings, labelled, 0.0)
    assert channels == bands("1 2", low=400, high=3600)
    assert not [line for line in lines if "not by its own" in line]
    named = settings.model_copy(update={"channels": bands("1 2")})  # who says 0–255 gets it
    channels, lines = tower_channels(named, labelled, 0.0)
    assert channels == bands("1 2") and "set is read by these bands and ranges, not by its own" in lines


def test_files_of_runs_tell_their_channels_by_their_shape(tmp_path):
    made = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0, in_chans=4, img_size=32)
    torch.save({"teacher": {f"backbone.{n}": t for n, t in made.state_dict().items()}}, tmp_path / "dino.pth")
    tower = load_backbone(tmp_path / "dino.pth")
    assert tower.num_channels == 4
    assert torch.equal(tower.model.patch_embed.proj.weight, made.patch_embed.proj.weight)


def test_weights_of_a_cnn_are_loaded_for_bands(tmp_path):
    made = timm.create_model("resnet10t")
    save_file(made.state_dict(), tmp_path / "cnn.safetensors")
    settings = BackboneSettings(init="timm:resnet10t", weights=str(tmp_path / "cnn.safetensors"))
    backbone = open_backbone(settings, data=bands("red nir"))
    old, new = made.conv1[0].weight, backbone.model.conv1[0].weight
    torch.testing.assert_close(new, torch.stack([old[:, 0], old.mean(1)], 1) * 1.5)
