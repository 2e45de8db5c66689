"""Weights of towers with bands on disk: exports, graphs, conversions, loading for other bands, hostile descriptions."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import timm
import torch
from safetensors.torch import load_file

from tests.band_toys import bands, tower_with, vision_with
from tests.conftest import tiny_chat, tiny_vlm_config
from vitp.checkpoints.checkpoint import Hints, read_checkpoint
from vitp.checkpoints.convert import convert_model
from vitp.checkpoints.description import Provenance, read_description
from vitp.checkpoints.export import export_backbone, write_backbone
from vitp.checkpoints.formats import export_as
from vitp.checkpoints.loading import load_backbone, load_vlm, open_tower, random_backbone
from vitp.checkpoints.swap import swap_vision
from vitp.checkpoints.verify import inspect_export, verify_export
from vitp.checkpoints.writing import save_vlm
from vitp.cli import run
from vitp.core.errors import CheckpointError, DataError
from vitp.evaluation.robustness_comparison import tower_to_probe
from vitp.models.vision import VisionTower
from vitp.models.vlm import VisionLanguageModel
from vitp.tasks.build import BackboneSettings, NeckSettings, build_model, open_backbone
from vitp.tasks.model_folder import load_task

SIX = "B2 B3 B4 B8 B11 B12"


def exported(folder: Path, names: str | None, **changes) -> VisionTower:
    torch.manual_seed(2)
    tower = tower_with(names, **changes)
    write_backbone(folder, tower, Provenance(source="toy"))
    return tower


def images_of(tower, count: int = 2, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (count, tower.num_channels, side, side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@torch.no_grad()
def tokens_of(tower) -> torch.Tensor:
    return tower.forward_tokens(tower.normalize(images_of(tower)))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A vision-language model of six bands."""
    torch.manual_seed(0)
    folder, chat = tmp_path_factory.mktemp("six") / "run" / "model", tiny_chat()
    config = tiny_vlm_config(vision=vision_with(SIX))
    save_vlm(folder, VisionLanguageModel(config, vocabulary=len(chat)), chat)
    return folder.parent


@pytest.mark.parametrize("names", ["VV", "VV VH", SIX, " ".join(f"B{n}" for n in range(13)), "B8 B4 B3"])
@torch.no_grad()
def test_plain_timm_gives_the_features_of_an_export(names, tmp_path):
    tower = exported(tmp_path / "toy", names)
    other = timm.create_model(f"local-dir:{tmp_path / 'toy'}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(other)
    mean, std = (torch.tensor(data[key]).view(-1, 1, 1) for key in ("mean", "std"))
    images = images_of(tower)
    found = other.forward_features((images / 255 - mean) / std)[:, other.num_prefix_tokens :]
    torch.testing.assert_close(found, tokens_of(tower), atol=1e-6, rtol=0)
    assert data["input_size"] == (tower.num_channels, 32, 32)
    checks = {check.name: check.detail for check in verify_export(tmp_path / "toy").checks}
    assert checks["contract"].startswith(f"{tower.num_channels} bands: {names.split()[0]} (10 to 3000)")
    again = load_backbone(tmp_path / "toy")
    assert again.in_channels == tower.in_channels and torch.equal(tokens_of(again), tokens_of(tower))
    # Also without our description: bands and scaling stand in timm's own configuration.
    (tmp_path / "toy" / "vitp_backbone.json").unlink()
    again = load_backbone(tmp_path / "toy")
    assert again.in_channels == tower.in_channels and torch.equal(tokens_of(again), tokens_of(tower))


def test_the_card_states_bands_and_scaling_and_its_code_runs(tmp_path, monkeypatch):
    exported(tmp_path / "toy", SIX)
    card = (tmp_path / "toy" / "README.md").read_text()
    assert "| 3 | B8 |  | 10 | 3000 |" in card and "6 bands (below) on 0..1" in card
    codes = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(codes) == 4
    monkeypatch.chdir(tmp_path)
    known: dict = {}
    for code in codes:
        exec(compile(code, "card", "exec"), known)
    # The last one takes a file: bands in another order, and one pixel that holds nothing.
    values = np.random.default_rng(0).integers(1, 4000, (7, 32, 32)).astype(np.uint16)
    values[:, 5, 7] = 0
    written = ["B12", "B11", "B8", "QA", "B4", "B3", "B2"]
    with rasterio.open(
        tmp_path / "scene.tif", "w", driver="GTiff", width=32, height=32, count=7, dtype="uint16", nodata=0
    ) as file:
        file.write(values)
        file.descriptions = written
    planes = np.rint(np.clip((values[[written.index(b) for b in SIX.split()]] - 10.0) / 2990, 0, 1) * 255)
    tower = known["tower"]
    with torch.no_grad():
        (found,) = known["features"](tower, tmp_path / "scene.tif")
        (wanted,) = tower.forward_features(tower.normalize(torch.from_numpy(planes.astype(np.uint8))[None]))
    # Halves may round to the other side in single precision; a value of the wrong band would move much more.
    torch.testing.assert_close(found, wanted, atol=5e-3, rtol=0)
    pictures = exported(tmp_path / "rgb", None)
    assert "RGB on 0..1" in (tmp_path / "rgb" / "README.md").read_text()
    assert "## Bands" not in (tmp_path / "rgb" / "README.md").read_text()
    assert "channels" not in read_description(tmp_path / "rgb").contract() and pictures.in_channels is None
    assert "vitp" not in json.loads((tmp_path / "rgb" / "config.json").read_text())


def test_the_command_exports_and_verifies_a_run_of_six_bands(model, tmp_path, capsys):
    out = tmp_path / "toy"
    assert run(["export", str(model), "--out", str(out)]) == 0
    assert run(["export", str(out), "--verify", "--against", str(model)]) == 0
    assert "6 bands" in capsys.readouterr().out.replace("\n", " ")
    assert (
        load_backbone(out).in_channels
        == load_vlm(model).vlm.vision.in_channels
        == bands(SIX, low=10, high=3000)
    )
    assert load_vlm(model).vlm.encode_tiles(torch.zeros(1, 6, 32, 32, dtype=torch.uint8)).isfinite().all()


@pytest.mark.parametrize("form", ["hf", "internvl"])
def test_layouts_of_pictures_refuse_other_numbers_of_channels(form, model, tmp_path, capsys):
    # InternVL's ViT has no final norm in one of its layouts.
    exported(tmp_path / "six", SIX, arguments={**vision_with(SIX).arguments, "final_norm": False})
    for source in (tmp_path / "six", model):
        assert run(["export", str(source), "--out", str(tmp_path / "out"), "--format", form]) == 2
        said = capsys.readouterr().err
        assert (
            "sees 6 channels, and InternVL's layouts have places for three" in said and said.count("\n") == 1
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["hf", "original"])
def test_three_bands_keep_their_names_in_layouts_of_pictures(layout, tmp_path):
    arguments = {**vision_with(None).arguments, "final_norm": False}
    tower = exported(tmp_path / "toy", "B8 B4 B3", arguments=arguments, mean=(0.1, 0.2, 0.3))
    convert_model(tmp_path / "toy", tmp_path / "out", layout)
    again = load_backbone(tmp_path / "out")
    assert again.in_channels == tower.in_channels and again.mean == (0.1, 0.2, 0.3)
    assert torch.equal(tokens_of(again), tokens_of(tower))


def test_graphs_take_the_bands(tmp_path):
    exported(tmp_path / "toy", "B2 B3 B4 B8")
    export_as(tmp_path / "toy", tmp_path / "graph", "torch-export")
    described = json.loads((tmp_path / "graph" / "vitp_graph.json").read_text())
    assert described["input"]["shape"] == ["batch", 4, 32, 32]
    assert [one["band"] for one in described["channels"]["channels"]] == ["B2", "B3", "B4", "B8"]
    assert len(described["normalisation"]["mean"]) == 4
    program = torch.export.load(tmp_path / "graph" / "backbone.pt2").module()
    assert program(torch.rand(1, 4, 32, 32)).shape == (1, 32, 4, 4)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="needs the extra onnx")
def test_onnx_takes_one_band(tmp_path):
    exported(tmp_path / "toy", "VV")
    export_as(tmp_path / "toy", tmp_path / "graph", "onnx")
    assert json.loads((tmp_path / "graph" / "vitp_graph.json").read_text())["input"]["shape"][1] == 1


def test_conversions_keep_the_bands(model, tmp_path):
    convert_model(model, tmp_path / "vitp", "vitp")
    convert_model(model, tmp_path / "timm", "timm")
    for folder in (tmp_path / "vitp", tmp_path / "timm"):
        assert load_backbone(folder).in_channels == bands(SIX, low=10, high=3000)


def test_weights_of_pictures_are_loaded_for_bands_and_that_is_said(tmp_path, caplog):
    tower = exported(tmp_path / "rgb", None, mean=(0.2, 0.4, 0.6))
    wanted = bands("nir red green blue", high=9)
    with caplog.at_level(logging.WARNING):
        found, report = open_tower(tmp_path / "rgb", hints=Hints(channels=wanted))
    said = "red, green, blue continue their own; nir begins with the mean of all; times 3/4"
    assert said in caplog.text and said in report.notes[0]
    assert report.resampled == ("model.patch_embed.proj.weight (32, 3, 8, 8) → (32, 4, 8, 8)",)
    assert found.in_channels == wanted and found.mean == pytest.approx((0.4, 0.2, 0.4, 0.6))
    old, new = (one.model.patch_embed.proj.weight for one in (tower, found))
    torch.testing.assert_close(new, torch.stack([old.mean(1), old[:, 0], old[:, 1], old[:, 2]], 1) * 0.75)
    kept = {name for name in report.loaded if "patch_embed.proj.weight" not in name}
    own, theirs = tower.state_dict(), found.state_dict()
    assert kept and all(torch.equal(own[name], theirs[name]) for name in kept)
    # Nothing to say where nothing changes, be it that another composite is shown.
    write_backbone(tmp_path / "four", found, Provenance(source="toy"))
    caplog.clear()
    shown = wanted.model_copy(update={"composite": (0, 1, 2)})
    again, report = open_tower(tmp_path / "four", hints=Hints(channels=shown))
    assert again.in_channels == shown and report.notes == () and caplog.text == ""
    with caplog.at_level(logging.WARNING):
        assert load_backbone(tmp_path / "rgb", channels=None).in_channels is None
    assert "kernel" not in caplog.text


def test_data_decide_the_bands_of_pictures_only(tmp_path):
    exported(tmp_path / "rgb", None)
    tower = exported(tmp_path / "four", "B2 B3 B4 B8")
    declared = bands("B2 B3 B4 B8 B11", high=77)
    assert load_backbone(tmp_path / "rgb", data=declared).in_channels == declared
    assert load_backbone(tmp_path / "four", data=declared).in_channels == tower.in_channels
    with pytest.raises(DataError, match=r"four: lacks the bands B2, B3; it has B4, B8, B11"):
        load_backbone(tmp_path / "four", data=bands("B4 B8 B11"))
    moved = load_backbone(tmp_path / "four", channels=bands("B4 B8 B11"))
    old, new = (one.model.patch_embed.proj.weight for one in (tower, moved))
    torch.testing.assert_close(new, torch.stack([old[:, 2], old[:, 3], old.mean(1)], 1) * (4 / 3))
    assert random_backbone(moved, 0).in_channels == moved.in_channels


def test_probes_of_pictures_are_made_for_the_bands_of_the_set(tmp_path):
    exported(tmp_path / "rgb", None)
    exported(tmp_path / "two", "B4 B8")
    declared = bands("B2 B4 B8")
    for name in ("random", str(tmp_path / "rgb")):
        assert tower_to_probe(name, declared).in_channels == declared
        assert tower_to_probe(name).in_channels is None
    assert tower_to_probe(str(tmp_path / "two"), declared).in_channels == bands("B4 B8", low=10, high=3000)


def test_models_with_language_are_loaded_for_bands(model):
    four = bands("B4 B8 VV VH")
    loaded = load_vlm(model, channels=four)
    assert loaded.vlm.vision.in_channels == loaded.vlm.config.vision.channels == four
    assert loaded.vlm.encode_tiles(torch.zeros(2, 4, 32, 32, dtype=torch.uint8)).shape[0] == 2
    starter = load_vlm("starter", data=four).vlm
    assert starter.vision.num_channels == 4
    # Rows without an image go through the tower, too.
    ids = torch.zeros(1, 3, dtype=torch.long)
    none = torch.zeros(0, dtype=torch.long)
    assert starter.embed(torch.zeros(0, 4, 96, 96, dtype=torch.uint8), none, none, ids).isfinite().all()


def test_a_tower_with_bands_takes_the_place_of_one_of_pictures(model):
    mixed = swap_vision(load_vlm("starter"), load_backbone(model), shuffle=1)
    assert mixed.vlm.config.vision.channels == bands(SIX, low=10, high=3000)


@pytest.mark.parametrize(
    ("init", "arguments"),
    [
        ("starter", {}),
        ("random", {}),
        ("timm:resnet10t", {}),
        ("timm:vit_tiny_patch16_224", {"depth": 1, "embed_dim": 48, "num_heads": 2, "patch_size": 16}),
    ],
)
def test_task_models_carry_their_bands(init, arguments, tmp_path):
    declared = bands("B2 B3 B4 B8", low=100, high=4000)
    settings = BackboneSettings(init=init, arguments=arguments, image_size=64)
    backbone = open_backbone(settings, data=declared)
    model = build_model(
        "segmentation", backbone, ["field", "wood"], NeckSettings(options={"channels": 32}), {"width": 32}
    )
    model.save_pretrained(tmp_path / "model")
    again = load_task(tmp_path)
    assert again.in_channels == backbone.in_channels == declared
    image = torch.randint(0, 256, (4, 64, 64), dtype=torch.uint8)
    before, after = (one.eval().predict([image])[0].semantic_HW for one in (model, again))
    np.testing.assert_array_equal(before, after)
    # Asked for by name, and a backbone of its own bands keeps them.
    asked = BackboneSettings(init=init, arguments=arguments, image_size=64, channels=bands("B8 B4"))
    assert open_backbone(asked, data=declared).in_channels == bands("B8 B4")
    if init in ("starter", "random"):
        assert load_backbone(tmp_path / "model").in_channels == declared
        kept = BackboneSettings(init=str(tmp_path / "model"), image_size=64)
        assert open_backbone(kept, data=bands("B2 B3 B4 B8 B9")).in_channels == declared
        with pytest.raises(DataError, match="lacks the bands B2, B3"):
            open_backbone(kept, data=bands("B4 B8"))


BROKEN = {
    "too many": [{"band": f"B{n}"} for n in range(1025)],
    "none": [],
    "no list": "B2",
    "low above high": [{"band": "B2", "low": 9, "high": 1}] * 6,
    "no number": [{"band": "B2", "low": "x"}] * 6,
    "unknown key": [{"band": "B2", "colour": "red"}] * 6,
    "too few": [{"band": "B2"}] * 5,
    "too many for the kernel": [{"band": "B2"}] * 7,
}


@pytest.mark.parametrize("wrong", BROKEN)
def test_broken_channels_are_one_error(wrong, model, tmp_path):
    exported(tmp_path / "toy", SIX)
    torch.manual_seed(0)
    task = build_model("classification", tower_with(SIX), ["a", "b"])
    task.save_pretrained(tmp_path / "task")
    shutil.copytree(model / "model", tmp_path / "vlm")
    files = {
        "toy/vitp_backbone.json": lambda values: values["vision"],
        "task/config.json": lambda values: values["backbone"]["config"],
        "vlm/config.json": lambda values: values["model"]["vision"],
    }
    for name, place in files.items():
        values = json.loads((tmp_path / name).read_text())
        place(values)["channels"]["channels"] = BROKEN[wrong]
        (tmp_path / name).write_text(json.dumps(values))
    with pytest.raises(CheckpointError):
        load_backbone(tmp_path / "toy")
    with pytest.raises(CheckpointError):
        load_vlm(tmp_path / "vlm")
    with pytest.raises(CheckpointError):
        load_task(tmp_path / "task")
    with pytest.raises(CheckpointError):
        load_backbone(tmp_path / "task")
    assert not all(check.passed for check in inspect_export(tmp_path / "toy").checks)
    # timm's own configuration, without ours beside it.
    (tmp_path / "toy" / "vitp_backbone.json").unlink()
    values = json.loads((tmp_path / "toy" / "config.json").read_text())
    values["vitp"]["channels"]["channels"] = BROKEN[wrong]
    (tmp_path / "toy" / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError):
        load_backbone(tmp_path / "toy")


def test_channels_that_do_not_fit_the_kernel_are_named(model, tmp_path):
    shutil.copytree(model / "model", tmp_path / "vlm")
    values = json.loads((tmp_path / "vlm" / "config.json").read_text())
    values["model"]["vision"]["channels"] = None
    (tmp_path / "vlm" / "config.json").write_text(json.dumps(values))
    with pytest.raises(
        CheckpointError, match="described as a tower of RGB pictures, but its patch kernel has 6 channels"
    ):
        load_vlm(tmp_path / "vlm")
    weights = load_file(tmp_path / "vlm" / "model.safetensors")
    assert weights["vision.model.patch_embed.proj.weight"].shape[1] == 6


@pytest.mark.parametrize("count", [0, -3, 1025, 10**12, "x", 2.5, None])
def test_broken_numbers_of_channels_are_one_error(count, tmp_path):
    exported(tmp_path / "toy", None)
    (tmp_path / "toy" / "vitp_backbone.json").unlink()
    values = json.loads((tmp_path / "toy" / "config.json").read_text())
    values["model_args"]["in_chans"] = count
    (tmp_path / "toy" / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError):
        load_backbone(tmp_path / "toy")


def test_a_changed_scaling_is_noticed(tmp_path):
    exported(tmp_path / "toy", "B4 B8")
    path = tmp_path / "toy" / "vitp_backbone.json"
    values = json.loads(path.read_text())
    values["vision"]["channels"]["channels"][1]["high"] = 2999.0
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="says channels"):
        load_backbone(tmp_path / "toy")


def test_exports_are_made_of_folders_for_other_bands(model, tmp_path):
    checkpoint = read_checkpoint(model, hints=Hints(channels=bands("B8 B4")), vision_only=True)
    assert checkpoint.vision.channels == bands("B8 B4")
    export_backbone(model, tmp_path / "toy")
    assert verify_export(tmp_path / "toy", model).passed
