"""Published models and towers through `load_vlm` and `load_backbone`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.weights_toys import (
    CHAT_MARKS,
    IMAGE_ID,
    VOCABULARY,
    Sizes,
    change_json,
    hf_config,
    hf_folder,
    hf_names,
    original_config,
    original_folder,
    original_weights,
    released_backbone,
    vision_config,
    vision_weights,
    write,
    write_tokenizer,
)
from vitp.checkpoints.checkpoint import Hints, read_checkpoint
from vitp.checkpoints.export import export_backbone
from vitp.checkpoints.loading import load_backbone, load_vlm, open_tower
from vitp.checkpoints.tensors import write_tensors
from vitp.checkpoints.verify import verify_export
from vitp.checkpoints.writing import save_vlm
from vitp.core.errors import CheckpointError
from vitp.models.positions import resample_positions
from vitp.models.vision import IMAGENET_MEAN, VisionTower
from vitp.records.instructions import InstructionRecord, Turn

SIZES = Sizes()


@pytest.fixture
def original(tmp_path) -> Path:
    return original_folder(tmp_path / "InternVL2_5-1B")


@pytest.fixture
def hf(tmp_path) -> Path:
    return hf_folder(tmp_path / "InternVL3-1B-hf")


def vision_of(tower: VisionTower) -> dict[str, Tensor]:
    return dict(tower.model.state_dict())


def assert_is_the_published_tower(tower: VisionTower) -> None:
    published = vision_weights(SIZES)
    own = vision_of(tower)
    assert len(own) == len(published)
    for ours, theirs in (
        ("cls_token", "embeddings.class_embedding"),
        ("pos_embed", "embeddings.position_embedding"),
        ("patch_embed.proj.weight", "embeddings.patch_embedding.weight"),
        ("blocks.1.attn.qkv.weight", "encoder.layers.1.attn.qkv.weight"),
        ("blocks.1.mlp.fc2.bias", "encoder.layers.1.mlp.fc2.bias"),
        ("blocks.0.ls2.gamma", "encoder.layers.0.ls2"),
    ):
        assert torch.equal(own[ours], published[f"vision_model.{theirs}"]), ours


@pytest.mark.parametrize("layout", ["original", "hf"])
def test_load_vlm_reads_both_layouts(layout, request):
    folder = request.getfixturevalue(layout)
    loaded = load_vlm(folder)
    vlm, published = loaded.vlm, original_weights(SIZES)
    assert not vlm.training
    assert_is_the_published_tower(vlm.vision)
    assert torch.equal(vlm.projector[1].weight, published["mlp1.1.weight"])
    assert torch.equal(vlm.projector[3].bias, published["mlp1.3.bias"])
    assert torch.equal(vlm.language.lm_head.weight, published["language_model.lm_head.weight"])
    assert torch.equal(
        vlm.language.model.layers[1].self_attn.k_proj.bias,
        published["language_model.model.layers.1.self_attn.k_proj.bias"],
    )
    assert (vlm.config.shuffle, vlm.tokens_per_tile, vlm.config.template) == (2, 16, "internvl2_5")
    assert vlm.vision.mean == IMAGENET_MEAN
    assert vlm.language.config.rope_parameters["rope_theta"] == 1e6
    assert loaded.report is not None and loaded.report.complete
    assert len(loaded.report.loaded) == len(published)
    assert loaded.report.layout == layout


def test_the_tokenizer_of_a_published_folder_works_in_the_chat(original):
    chat = load_vlm(original).chat
    assert chat.added_tokens == 0
    assert len(chat) == VOCABULARY
    assert (chat.image_id, chat.tokens_per_tile) == (IMAGE_ID, 16)
    record = InstructionRecord(
        id="r", images=("a.png",), turns=(Turn("<image>\nIs there <ref>a ship</ref>?", "yes"),)
    )
    encoded = chat.encode(record, [3])
    assert int(encoded.image_N.sum()) == 3 * 16
    assert set(encoded.ids_N[encoded.image_N].tolist()) == {IMAGE_ID}
    places = np.flatnonzero(encoded.image_N)
    assert encoded.ids_N[places[0] - 1] == chat.image_start_id
    assert encoded.ids_N[places[-1] + 1] == chat.image_end_id
    # The answer and the stop token are what is learned; markup and marks are single tokens.
    assert chat.tokenizer.decode(encoded.ids_N[encoded.supervised_N]) == "yes<|im_end|>"
    text = chat.tokenizer.decode(encoded.ids_N[~encoded.image_N])
    assert text.startswith("<|im_start|>system\n你是书生·万象")
    assert (
        "<|im_start|>user\n<img></img>\nIs there <ref>a ship</ref>?<|im_end|>\n<|im_start|>assistant\n"
        in text
    )
    marks = chat.tokenizer("<ref>a</ref><|im_end|>", add_special_tokens=False)["input_ids"]
    assert len(marks) == 4


def test_image_tokens_are_added_to_a_plain_language_models_tokenizer(tmp_path):
    from vitp.checkpoints.loading import read_tokenizer
    from vitp.data.chat import ChatTokenizer

    write_tokenizer(tmp_path, marks=CHAT_MARKS)
    tokenizer = read_tokenizer(tmp_path)
    special = set(tokenizer.all_special_tokens)
    assert "<|im_start|>" in special
    chat = ChatTokenizer(tokenizer, template="chatml", tokens_per_tile=4)
    assert chat.added_tokens == 3
    # The special tokens that were there stay special.
    assert special | {"<img>", "</img>", "<IMG_CONTEXT>"} <= set(chat.tokenizer.all_special_tokens)


def test_shards_are_read(original):
    weights = load_file(original / "model.safetensors")
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    (original / "model.safetensors").unlink()
    write_tensors(original, weights, max_shard=20_000)
    assert (original / "model.safetensors.index.json").is_file()
    assert torch.equal(load_vlm(original).vlm.projector[0].weight, weights["mlp1.0.weight"])
    assert_is_the_published_tower(load_backbone(original))


@pytest.mark.parametrize("held", ["once", "twice"])
@pytest.mark.parametrize("layout", ["original", "hf"])
def test_tied_embeddings_are_tied_however_they_are_stored(tmp_path, layout, held):
    sizes = replace(SIZES, tied=True)
    folder = (original_folder if layout == "original" else hf_folder)(tmp_path / "tied", sizes)
    if held == "twice":
        weights = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
        table = weights["language_model.model.embed_tokens.weight"]
        save_file(weights | {"language_model.lm_head.weight": table.clone()}, folder / "model.safetensors")
    vlm = load_vlm(folder).vlm
    assert vlm.language.lm_head.weight is vlm.language.get_input_embeddings().weight


def test_weights_decide_where_a_configuration_ties_what_differs(hf):
    change_json(hf / "config.json", tie_word_embeddings=True)
    loaded = load_vlm(hf)
    assert loaded.vlm.language.lm_head.weight is not loaded.vlm.language.get_input_embeddings().weight
    assert loaded.report is not None and "kept apart" in loaded.report.notes[0]


def test_only_the_vision_tower_is_read_for_a_backbone(original, hf):
    for folder in (original, hf):
        checkpoint = read_checkpoint(folder, vision_only=True)
        assert (checkpoint.vlm, len(checkpoint.weights)) == (None, 4 + 14 * SIZES.layers)
        assert_is_the_published_tower(load_backbone(folder))


def test_released_backbones_and_internvit_alone(tmp_path):
    file = released_backbone(tmp_path / "release" / "ViTP_ViT_L_300M_rs.safetensors")
    with pytest.raises(CheckpointError, match=r"32 channels wide.*heads=…"):
        load_backbone(file)
    tower = load_backbone(file, heads=2)
    assert_is_the_published_tower(tower)
    assert (tower.heads, tower.image_size, tower.patch_size) == (2, (32, 32), 4)
    assert_is_the_published_tower(load_backbone(file.parent, heads=2))

    alone = tmp_path / "InternViT-300M-448px"
    alone.mkdir()
    write(alone / "config.json", vision_config(SIZES))
    save_file(vision_weights(SIZES, prefix=""), alone / "model.safetensors")
    assert_is_the_published_tower(load_backbone(alone))
    assert load_backbone(alone).heads == 2
    with pytest.raises(CheckpointError, match="vision tower without a language model"):
        load_vlm(alone)


def test_heads_of_64_channels_are_the_default(tmp_path):
    file = released_backbone(tmp_path / "vit.safetensors", replace(SIZES, width=128, layers=1))
    assert load_backbone(file).heads == 2


def test_positions_are_resampled_and_reported(tmp_path):
    file = released_backbone(tmp_path / "vit.safetensors")
    tower, report = open_tower(file, hints=Hints(heads=2, image_size=48))
    assert isinstance(tower, VisionTower)
    table = vision_weights(SIZES)["vision_model.embeddings.position_embedding"]
    wanted = resample_positions(table, (12, 12), prefix=1, method="bicubic")
    assert torch.equal(tower.model.pos_embed, wanted)
    assert report.resampled == ("model.pos_embed (1, 65, 32) → (1, 145, 32)",)
    assert len(report.loaded) == 4 + 14 * SIZES.layers - 1
    assert load_backbone(file, heads=2, image_size=48).image_size == (48, 48)


def test_the_forced_image_size_of_the_original_layout_counts(original):
    change_json(original / "config.json", force_image_size=48)
    loaded = load_vlm(original)
    assert (loaded.vlm.vision.image_size, loaded.vlm.tokens_per_tile) == ((48, 48), 36)
    assert loaded.report is not None and len(loaded.report.resampled) == 1


def test_the_normalisation_comes_with_the_folder(original):
    change_json(original / "preprocessor_config.json", image_mean=[0.5, 0.4, 0.3])
    assert load_vlm(original).vlm.vision.mean == (0.5, 0.4, 0.3)
    assert load_backbone(original).mean == (0.5, 0.4, 0.3)


def test_published_models_are_saved_and_exported_as_ours(original, tmp_path):
    loaded = load_vlm(original)
    save_vlm(tmp_path / "ours", loaded.vlm, loaded.chat)
    again = load_vlm(tmp_path / "ours")
    for name, tensor in loaded.vlm.state_dict().items():
        assert torch.equal(tensor, again.vlm.state_dict()[name]), name
    exported = export_backbone(original, tmp_path / "vit")
    assert verify_export(exported.folder, original).passed
    card = (exported.folder / "README.md").read_text()
    assert "`InternVL2_5-1B`" in card
    assert str(tmp_path) not in card


# What can't be read


def changed(folder: Path, **values) -> Path:
    change_json(folder / "config.json", **values)
    return folder


def test_other_language_models_are_one_clear_error(original):
    values = original_config(SIZES)["llm_config"] | {
        "architectures": ["InternLM2ForCausalLM"],
        "model_type": "internlm2",
    }
    changed(original, llm_config=values)
    with pytest.raises(
        CheckpointError, match=r"has the language model InternLM2ForCausalLM.*Qwen2 or Qwen2\.5"
    ):
        load_vlm(original)
    # The vision tower is the same in all sizes.
    assert_is_the_published_tower(load_backbone(original))


def test_the_large_internvit_is_one_clear_error(original):
    changed(
        original, vision_config=vision_config(SIZES) | {"qk_normalization": True, "norm_type": "rms_norm"}
    )
    for load in (load_vlm, load_backbone):
        with pytest.raises(CheckpointError, match="InternViT-6B"):
            load(original)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ps_version": "v1"}, "order v1"),
        ({"select_layer": -4}, "takes layer -4"),
        ({"template": "Hermes-2"}, 'chat template "Hermes-2", which vitp doesn\'t know'),
        ({"template": "internvl2.5"}, 'did you mean "internvl2_5"'),
        ({"llm_config": {}}, "has the language model none"),
        ({"vision_config": {}}, "InternViT-6B"),
        ({"model_type": "llava"}, "is no configuration of a vitp model.*model type llava"),
    ],
)
def test_original_configurations_that_mean_something_else_are_refused(original, values, message):
    with pytest.raises(CheckpointError, match=message):
        load_vlm(changed(original, **values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vision_feature_layer": -2}, "vision_feature_layer -2"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act relu"),
        ({"vision_config": hf_config(SIZES)["vision_config"] | {"layer_norm_eps": 1e-5}}, "epsilon 1e-05"),
        ({"vision_config": hf_config(SIZES)["vision_config"] | {"patch_size": [4, 8]}}, "is no square"),
    ],
)
def test_hf_configurations_that_mean_something_else_are_refused(hf, values, message):
    with pytest.raises(CheckpointError, match=message):
        load_vlm(changed(hf, **values))


def test_another_template_can_be_chosen(original):
    loaded = load_vlm(changed(original, template="Hermes-2"), template="chatml")
    assert loaded.vlm.config.template == "chatml"


def test_names_and_shapes_must_fit(original):
    weights = {name: tensor.clone() for name, tensor in load_file(original / "model.safetensors").items()}
    weights["vision_model.encoder.layers.2.norm1.weight"] = torch.zeros(32)
    weights["mlp1.1.bias"] = torch.zeros(7)
    del weights["language_model.model.norm.weight"]
    save_file(weights, original / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_vlm(original)
    message = str(caught.value)
    assert "1 missing (language.model.norm.weight)" in message
    assert "1 unexpected (vision.model.blocks.2.norm1.weight)" in message
    assert "1 of another shape (projector.1.bias (7,) instead of (24,))" in message
    report = load_vlm(original, strict=False).report
    assert report is not None
    assert not report.complete
    assert report.missing == ("language.model.norm.weight",)


def test_partial_downloads_name_what_is_missing(original, tmp_path):
    (original / "vocab.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no tokenizer\.json, nor vocab\.json and merges\.txt"):
        load_vlm(original)
    (original / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no vision-language model"):
        load_vlm(original)
    with pytest.raises(CheckpointError, match="holds no backbone"):
        load_backbone(original)
    with pytest.raises(CheckpointError, match="nowhere: there is no such file or folder"):
        load_backbone(tmp_path / "nowhere")


def test_the_hub_is_asked_when_nothing_is_here(original, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = []

    def fetch(repository: str, revision: str | None) -> Path:
        seen.append((repository, revision))
        return original

    monkeypatch.setattr("vitp.checkpoints.hub._fetch", fetch)
    assert_is_the_published_tower(load_vlm("OpenGVLab/InternVL2_5-1B", revision="main").vlm.vision)
    assert_is_the_published_tower(load_backbone("OpenGVLab/InternVL2_5-1B"))
    assert seen == [("OpenGVLab/InternVL2_5-1B", "main"), ("OpenGVLab/InternVL2_5-1B", None)]


def test_configurations_are_json(original):
    (original / "config.json").write_text(json.dumps([1]))
    with pytest.raises(CheckpointError, match="is no configuration of a vitp model"):
        load_vlm(original)


def test_hf_names_are_complete():
    # Guards the fixture itself: three tensors for each fused one, the same number of values.
    published, named = original_weights(SIZES), hf_names(original_weights(SIZES), SIZES)
    assert len(named) == len(published) + 2 * 2 * SIZES.layers
    assert sum(t.numel() for t in named.values()) == sum(t.numel() for t in published.values())


def test_our_own_configuration_is_ours_even_when_it_is_broken(tmp_path):
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    write(folder / "config.json", {"format": "vitp-vlm-1"})
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    for load in (load_vlm, load_backbone):
        with pytest.raises(CheckpointError, match=r"config\.json: is no configuration of a vitp model"):
            load(tmp_path / "run")
