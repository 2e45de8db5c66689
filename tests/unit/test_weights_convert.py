"""`vitp convert`, `vitp export --format` and `vitp swap`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import tiny_chat, tiny_vlm_config
from tests.weights_toys import (
    CHAT_MARKS,
    Sizes,
    hf_folder,
    hf_names,
    language_config,
    language_weights,
    original_folder,
    original_weights,
    released_backbone,
    vision_weights,
    write,
    write_tokenizer,
)
from vitp.checkpoints import convert as conversion
from vitp.checkpoints.checkpoint import Hints, read_checkpoint
from vitp.checkpoints.convert import convert_model
from vitp.checkpoints.formats import PixelsToFeatures, export_as
from vitp.checkpoints.loading import load_backbone, load_vlm
from vitp.checkpoints.swap import swap_language, swap_vision
from vitp.checkpoints.writing import save_vlm
from vitp.cli import run
from vitp.core.errors import CheckpointError, ConfigError, VitpError
from vitp.models.positions import resample_positions
from vitp.models.vision import VisionSettings, VisionTower
from vitp.models.vlm import VisionLanguageModel

SIZES = Sizes()


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return original_folder(tmp_path_factory.mktemp("published") / "InternVL2_5-1B")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    return released_backbone(tmp_path_factory.mktemp("released") / "ViTP_ViT_L_300M_rs.safetensors")


@pytest.fixture(scope="module")
def starterlike(tmp_path_factory) -> Path:
    """A model of our own, whose ViT has a final norm and no layer scale."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("own") / "model"
    chat = tiny_chat()
    save_vlm(folder, VisionLanguageModel(tiny_vlm_config(), vocabulary=len(chat)), chat)
    return folder


def files_equal(first: Path, second: dict[str, torch.Tensor]) -> bool:
    found = load_file(first / "model.safetensors")
    return found.keys() == second.keys() and all(
        found[n].dtype == second[n].dtype and torch.equal(found[n], second[n]) for n in found
    )


def test_original_to_hf_is_the_published_conversion(original, tmp_path):
    done = convert_model(original, tmp_path / "hf", "hf")
    assert done.whole and done.checks.passed
    assert [check.name for check in done.checks.checks] == [
        "weights",
        "outputs through vitp",
        "outputs through transformers",
    ]
    assert files_equal(tmp_path / "hf", hf_names(original_weights(SIZES), SIZES))


def test_there_and_back_is_the_published_file(original, tmp_path):
    hf = hf_folder(tmp_path / "published-hf")
    convert_model(hf, tmp_path / "back", "original")
    assert files_equal(tmp_path / "back", original_weights(SIZES))
    convert_model(original, tmp_path / "ours", "vitp")
    convert_model(tmp_path / "ours", tmp_path / "again", "original")
    assert files_equal(tmp_path / "again", original_weights(SIZES))
    first, second = (json.loads((f / "config.json").read_text()) for f in (original, tmp_path / "again"))
    for key in (
        "template",
        "ps_version",
        "force_image_size",
        "downsample_ratio",
        "select_layer",
        "model_type",
    ):
        assert first[key] == second[key], key
    for part in ("vision_config", "llm_config"):
        ours = {
            key: value
            for key, value in second[part].items()
            if key in first[part] and key not in ("drop_path_rate", "torch_dtype")
        }
        assert ours == {key: first[part][key] for key in ours}
    assert len(ours) > 12


def test_types_are_kept_or_changed_when_asked(original, tmp_path):
    convert_model(original, tmp_path / "half", "hf", dtype="bfloat16")
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert {t.dtype for t in half.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    convert_model(tmp_path / "half", tmp_path / "kept", "vitp")
    kept = load_file(tmp_path / "kept" / "model.safetensors")
    assert {t.dtype for t in kept.values()} == {torch.bfloat16}
    published = original_weights(SIZES)["mlp1.1.weight"].bfloat16()
    assert torch.equal(kept["projector.1.weight"], published)
    with pytest.raises(ConfigError, match='no type "int8"'):
        convert_model(original, tmp_path / "x", "hf", dtype="int8")


def test_a_model_of_our_own_becomes_one_of_transformers(starterlike, tmp_path):
    done = convert_model(starterlike, tmp_path / "hf", "hf")
    assert done.checks.passed
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["downsample_ratio"] == 1.0
    assert config["vision_config"]["use_mean_pooling"] is False  # transformers' way to say: a final norm
    back = load_vlm(tmp_path / "hf")
    assert back.vlm.config.template == "micro"
    assert torch.equal(back.vlm.vision.model.norm.weight, load_vlm(starterlike).vlm.vision.model.norm.weight)
    with pytest.raises(
        CheckpointError, match="final norm, which InternVL's original layout has no place for"
    ):
        convert_model(starterlike, tmp_path / "original", "original")
    assert not (tmp_path / "original").exists()


def test_timm_takes_the_tower_alone_and_gives_it_back(original, tmp_path):
    done = convert_model(original, tmp_path / "timm", "timm")
    assert not done.whole
    names = [check.name for check in done.checks.checks]
    assert "features through timm" in names and "weights" in names
    convert_model(tmp_path / "timm", tmp_path / "vit", "original")
    assert files_equal(tmp_path / "vit", vision_weights(SIZES))
    assert load_backbone(tmp_path / "vit").heads == SIZES.heads


def test_a_tower_is_resampled_when_it_is_asked_for(backbone, tmp_path):
    hints = Hints(heads=2, image_size=48)
    done = convert_model(backbone, tmp_path / "hf", "hf", hints=hints)
    assert done.read.resampled == ("model.pos_embed (1, 65, 32) → (1, 145, 32)",)
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    assert weights["embeddings.position_embeddings"].shape == (1, 145, 32)
    assert torch.equal(
        weights["embeddings.cls_token"], vision_weights(SIZES)["vision_model.embeddings.class_embedding"]
    )


@pytest.mark.parametrize("method", ["bicubic", "antialiased"])
def test_the_command_line_chooses_how_a_tower_is_resampled(backbone, tmp_path, method):
    arguments = ["--to", "hf", "--heads", "2", "--image-size", "48", "--positions", method]
    run(["convert", str(backbone), str(tmp_path / "hf"), *arguments])
    table = vision_weights(SIZES)["vision_model.embeddings.position_embedding"]
    found = load_file(tmp_path / "hf" / "model.safetensors")["embeddings.position_embeddings"]
    torch.testing.assert_close(found, resample_positions(table, (12, 12), prefix=1, method=method))


def test_what_differs_is_never_left_behind(original, tmp_path, monkeypatch):
    def broken(folder: Path, *arguments, **options) -> None:
        write_hf(folder, *arguments, **options)
        weights = load_file(folder / "model.safetensors")
        weights = {name: tensor.clone() for name, tensor in weights.items()}
        weights["vision_tower.encoder.layer.1.lambda_2"][3] += 1e-3
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    write_hf = conversion.write_hf
    monkeypatch.setattr(conversion, "write_hf", broken)
    with pytest.raises(
        CheckpointError, match=r"the converted weights differ: 1 tensors differ .*blocks\.1\.ls2"
    ):
        convert_model(original, tmp_path / "hf", "hf")
    assert list(tmp_path.iterdir()) == []


def test_folders_of_others_are_kept(original, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(VitpError, match="hold an export"):
        convert_model(original, tmp_path / "mine", "hf", overwrite=True)
    convert_model(original, tmp_path / "out", "original")
    with pytest.raises(VitpError, match="exists"):
        convert_model(original, tmp_path / "out", "hf")
    convert_model(original, tmp_path / "out", "hf", overwrite=True)
    assert read_checkpoint(tmp_path / "out").layout == "hf"


def test_large_models_are_written_in_shards(original, tmp_path):
    convert_model(original, tmp_path / "hf", "hf", max_shard=20_000)
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 3
    assert torch.equal(
        load_vlm(tmp_path / "hf").vlm.projector[0].bias, original_weights(SIZES)["mlp1.0.bias"]
    )


# Exports


def test_export_formats_give_the_towers_features(backbone, tmp_path):
    tower = load_backbone(backbone, heads=2)
    source = tmp_path / "vit"
    convert_model(backbone, source, "vitp", hints=Hints(heads=2))
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = tower.forward_features(tower.normalize(images))[0]

    result, checks = export_as(source, tmp_path / "hf", "hf")
    assert checks.passed and result.parameters == sum(t.numel() for t in tower.model.state_dict().values())
    from transformers import AutoModel

    hf = AutoModel.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        tokens = hf(tower.normalize(images)).last_hidden_state[:, 1:]
    torch.testing.assert_close(tokens.transpose(1, 2).unflatten(2, (8, 8)), wanted, atol=1e-5, rtol=0)

    result, checks = export_as(source, tmp_path / "internvl", "internvl")
    assert checks.passed
    assert files_equal(tmp_path / "internvl", vision_weights(SIZES))

    result, checks = export_as(source, tmp_path / "program", "torch-export")
    assert checks.passed and "3 images" in checks.checks[0].detail
    program = torch.export.load(tmp_path / "program" / "backbone.pt2").module()
    torch.testing.assert_close(program(images), wanted, atol=1e-5, rtol=0)
    contract = json.loads((tmp_path / "program" / "vitp_graph.json").read_text())
    assert contract["output"]["shape"] == ["batch", 32, 8, 8]
    assert contract["sha256"] == result.sha256
    assert str(tmp_path) not in json.dumps(contract)

    export_as(source, tmp_path / "program", "torch-export", image_size=48, overwrite=True)
    program = torch.export.load(tmp_path / "program" / "backbone.pt2").module()
    assert program(torch.rand(1, 3, 48, 48)).shape == (1, 32, 12, 12)


def test_formats_that_have_no_place_for_a_tower_say_so(starterlike, tmp_path):
    with pytest.raises(CheckpointError, match="final norm"):
        export_as(starterlike, tmp_path / "out", "internvl")
    with pytest.raises(ConfigError, match=r'no format "timn".*did you mean "timm"'):
        export_as(starterlike, tmp_path / "out", "timn")
    with pytest.raises(ConfigError, match="takes images of any size"):
        export_as(starterlike, tmp_path / "out", "timm", image_size=64)
    small = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8, "reg_tokens": 2}
    tower = VisionTower(VisionSettings(arguments=small, image_size=32))
    from vitp.checkpoints.description import Provenance
    from vitp.checkpoints.export import write_backbone

    write_backbone(tmp_path / "registers", tower, Provenance(source="test"))
    with pytest.raises(CheckpointError, match=r"\[CLS\] token with a position and no registers"):
        export_as(tmp_path / "registers", tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()


def test_the_graph_normalises_by_itself():
    config = VisionSettings(
        arguments={"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8},
        image_size=32,
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.6, 0.7),
    )
    tower = VisionTower(config).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = tower.forward_features(tower.normalize(images))[0]
        torch.testing.assert_close(PixelsToFeatures(tower)(images), expected, atol=1e-5, rtol=0)


def test_onnx_without_its_packages_names_the_extra(starterlike, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        ConfigError, match=r"--format onnx: needs onnx, which `pip install 'vitp\[onnx\]'` brings"
    ):
        export_as(starterlike, tmp_path / "out", "onnx")


def test_onnx_gives_the_towers_features(starterlike, tmp_path):
    pytest.importorskip("onnx", reason="the extra vitp[onnx] isn't installed")
    _, checks = export_as(starterlike, tmp_path / "out", "onnx")
    assert checks.passed
    assert (tmp_path / "out" / "backbone.onnx").is_file()


# Swapping parts


def test_another_tower_takes_the_place_of_the_old_one(original, starterlike):
    loaded, tower = load_vlm(original), load_backbone(starterlike)
    swapped = swap_vision(loaded, tower)
    assert swapped.vlm.config.vision == tower.config
    # 32 px with patches of 8: a grid of 4, folded by 2.
    assert swapped.vlm.tokens_per_tile == swapped.chat.tokens_per_tile == 4
    assert torch.equal(swapped.vlm.vision.model.norm.weight, tower.model.norm.weight)
    assert torch.equal(swapped.vlm.language.lm_head.weight, loaded.vlm.language.lm_head.weight)
    assert swapped.vlm.projector[1].weight.shape == (24, 4 * 32)
    assert not torch.equal(swapped.vlm.projector[1].weight, loaded.vlm.projector[1].weight)
    again, other = swap_vision(loaded, tower), swap_vision(loaded, tower, seed=1)
    assert torch.equal(swapped.vlm.projector[1].weight, again.vlm.projector[1].weight)
    assert not torch.equal(swapped.vlm.projector[1].weight, other.vlm.projector[1].weight)
    assert all(not p.is_meta for p in swapped.vlm.parameters())
    assert all(not b.is_meta for b in swapped.vlm.buffers())


def test_a_tower_that_was_trained_on_keeps_the_projector(original, tmp_path):
    loaded = load_vlm(original)
    tower = load_backbone(original)
    with torch.no_grad():
        tower.model.cls_token.add_(1)
    swapped = swap_vision(loaded, tower, keep_projector=True)
    assert torch.equal(swapped.vlm.projector[1].weight, loaded.vlm.projector[1].weight)
    assert torch.equal(swapped.vlm.vision.model.cls_token, loaded.vlm.vision.model.cls_token + 1)
    small = VisionTower(
        VisionSettings(
            arguments={"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8}, image_size=32
        )
    )
    with pytest.raises(ConfigError, match="sizes don't fit"):
        swap_vision(loaded, small, keep_projector=True)


def test_grids_that_cannot_be_folded_are_rounded_down(original):
    small = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8}
    tower = VisionTower(VisionSettings(arguments=small, image_size=40)).eval()
    swapped = swap_vision(load_vlm(original), tower)
    assert (swapped.vlm.vision.grid, swapped.vlm.vision.image_size, swapped.vlm.tokens_per_tile) == (
        4,
        (32, 32),
        4,
    )


def test_another_language_model_brings_its_tokenizer(starterlike, tmp_path):
    sizes = Sizes(
        language_width=16, language_heads=2, kv_heads=1, language_mlp=20, vocabulary=256 + 3, tied=True
    )
    folder = tmp_path / "Qwen2.5-0.5B"
    write_tokenizer(folder, marks=CHAT_MARKS)
    write(folder / "config.json", language_config(sizes))
    weights = language_weights(sizes, prefix="")
    save_file(weights, folder / "model.safetensors")
    loaded = load_vlm(starterlike)
    swapped = swap_language(loaded, folder)
    assert swapped.vlm.config.template == "chatml"
    table = swapped.vlm.language.get_input_embeddings().weight
    # The three image tokens got rows, at the mean of the others.
    assert table.shape == (259 + 3, 16)
    published = weights["model.embed_tokens.weight"]
    assert torch.equal(table[:259], published)
    torch.testing.assert_close(table[259:], published.mean(dim=0).expand(3, -1))
    assert swapped.vlm.language.lm_head.weight is table
    assert swapped.vlm.projector[3].weight.shape == (16, 16)
    assert torch.equal(swapped.vlm.vision.model.norm.weight, loaded.vlm.vision.model.norm.weight)
    save_vlm(tmp_path / "swapped", swapped.vlm, swapped.chat)
    again = load_vlm(tmp_path / "swapped")
    assert torch.equal(again.vlm.language.get_input_embeddings().weight, table)


def test_the_language_model_of_another_vlm_can_be_taken(original, starterlike):
    swapped = swap_language(load_vlm(starterlike), original)
    assert swapped.vlm.config.template == "internvl2_5"
    published = original_weights(SIZES)["language_model.model.embed_tokens.weight"]
    assert torch.equal(swapped.vlm.language.get_input_embeddings().weight, published)
    assert swapped.vlm.projector[3].weight.shape == (24, 24)


# Command line


def test_the_command_line_converts_exports_and_swaps(original, starterlike, tmp_path, capsys):
    hf, vit, mixed = (str(tmp_path / name) for name in ("hf", "vit", "mixed"))
    assert run(["convert", str(original), hf, "--to", "hf", "--dtype", "bfloat16"]) == 0
    text = capsys.readouterr().out
    assert "outputs through transformers" in text and "whole model" in text
    assert run(["export", hf, "--out", vit, "--format", "internvl"]) == 0
    assert "vision_model.encoder.layers.0.ls1" in load_file(Path(vit) / "model.safetensors")
    assert "load it:" in capsys.readouterr().out
    assert run(["swap", str(starterlike), mixed, "--vision", vit]) == 0
    assert load_vlm(mixed).vlm.vision.config.architecture == "vit_intern300m_patch14_448"
    capsys.readouterr()
    for arguments, message in (
        (["swap", str(starterlike), mixed], "nothing to swap"),
        (["swap", str(starterlike), mixed, "--vision", vit], "exists"),
        (["convert", str(tmp_path / "none"), str(tmp_path / "o")], "is no file or folder"),
        (["convert", str(starterlike), str(tmp_path / "o"), "--to", "original"], "final norm"),
        (["export", vit, "--out", hf], "exists"),
    ):
        assert run(arguments) == 2, arguments
        error = " ".join(capsys.readouterr().err.split())
        assert error.startswith("error:") and message in error
