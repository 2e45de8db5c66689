from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import random_tiles, tiny_vlm_config
from vitp.checkpoints.description import STARTER
from vitp.checkpoints.loading import load_backbone, load_vlm
from vitp.checkpoints.writing import save_vlm
from vitp.core.errors import CheckpointError, DamagedError
from vitp.core.tensors import load_tensors, load_weights, unique_state
from vitp.models.language import micro_qwen2
from vitp.models.vlm import VisionLanguageModel


@pytest.fixture
def folder(tmp_path, vlm, chat):
    save_vlm(tmp_path / "model", vlm, chat)
    return tmp_path / "model"


def logits(vlm, chat) -> torch.Tensor:
    prompt = chat.encode_prompt("<image>\nIs there a ship?", [1])
    return vlm.logits(
        vlm(
            tiles_TCHW=torch.from_numpy(random_tiles(1, 1)),
            keep_K=torch.arange(16),
            image_index_K=torch.from_numpy(np.flatnonzero(prompt.image_N)),
            ids_BL=torch.from_numpy(prompt.ids_N)[None],
            positions_BL=torch.from_numpy(prompt.positions_N)[None],
            segments_BL=torch.zeros(1, len(prompt), dtype=torch.long),
            branches_BL=torch.from_numpy(prompt.branches_N)[None],
            target_index_S=torch.arange(len(prompt)),
        )
    )


def test_round_trip_is_bit_identical(folder, vlm, chat):
    loaded = load_vlm(folder)
    saved = vlm.state_dict()
    assert loaded.vlm.state_dict().keys() == saved.keys()
    for name, tensor in loaded.vlm.state_dict().items():
        assert torch.equal(tensor, saved[name]), name
        assert tensor.dtype == saved[name].dtype
    assert not loaded.vlm.training
    with torch.no_grad():
        assert torch.equal(logits(loaded.vlm, loaded.chat), logits(vlm, chat))


def test_tokenizer_and_template_come_back(folder, chat):
    loaded = load_vlm(folder).chat
    question = "<image>\nHow many planes are there? <ref>ship</ref>"
    assert (
        loaded.encode_prompt(question, [2]).ids_N.tolist() == chat.encode_prompt(question, [2]).ids_N.tolist()
    )
    assert (loaded.stop_id, loaded.pad_id, loaded.image_id) == (chat.stop_id, chat.pad_id, chat.image_id)
    assert loaded.template_name == "micro"
    assert len(loaded) == len(chat)


def test_tied_weights_are_stored_once_and_stay_tied(folder, vlm):
    assert vlm.state_dict().keys() - unique_state(vlm).keys() == {"language.lm_head.weight"}
    names = set(load_file(folder / "model.safetensors"))
    assert names == set(vlm.state_dict()) - {"language.lm_head.weight"}
    loaded = load_vlm(folder).vlm
    assert loaded.language.lm_head.weight is loaded.language.get_input_embeddings().weight


def test_untied_weights_are_both_stored(tmp_path, chat):
    language = micro_qwen2(width=32, layers=1, heads=4, kv_heads=2, mlp=64)
    language.arguments["tie_word_embeddings"] = False
    torch.manual_seed(0)
    vlm = VisionLanguageModel(tiny_vlm_config(language=language), vocabulary=len(chat))
    save_vlm(tmp_path / "untied", vlm, chat)
    loaded = load_vlm(tmp_path / "untied").vlm
    assert unique_state(loaded).keys() == loaded.state_dict().keys()
    assert torch.equal(loaded.language.lm_head.weight, vlm.language.lm_head.weight)
    assert not torch.equal(loaded.language.lm_head.weight, loaded.language.get_input_embeddings().weight)


def test_half_precision_halves_the_file_and_comes_back_as_float32(tmp_path, folder, vlm, chat):
    save_vlm(tmp_path / "half", vlm, chat, dtype=torch.float16)
    full, half = ((f / "model.safetensors").stat().st_size for f in (folder, tmp_path / "half"))
    assert half < 0.6 * full
    loaded = load_vlm(tmp_path / "half").vlm.state_dict()
    for name, tensor in vlm.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor.half().to(tensor.dtype)), name


def test_drop_path_is_of_the_run_not_of_the_weights(tmp_path, chat):
    torch.manual_seed(0)
    vlm = VisionLanguageModel(tiny_vlm_config(drop_path=0.4), vocabulary=len(chat))
    save_vlm(tmp_path / "model", vlm, chat)
    assert load_vlm(tmp_path / "model").vlm.config.drop_path == 0.0
    again = load_vlm(tmp_path / "model", drop_path=0.2).vlm
    assert again.vision.model.blocks[-1].drop_path1.rate == pytest.approx(0.2)


def test_a_run_folder_leads_to_its_model(folder, vlm):
    loaded = load_vlm(folder.parent).vlm
    assert torch.equal(loaded.projector[1].weight, vlm.projector[1].weight)


def test_another_architecture_is_reported_name_by_name(folder):
    path = folder / "config.json"
    description = json.loads(path.read_text())
    description["model"]["vision"]["arguments"]["depth"] = 3
    description["model"]["language"]["arguments"]["intermediate_size"] = 96
    path.write_text(json.dumps(description))
    with pytest.raises(CheckpointError) as caught:
        load_vlm(folder)
    message = str(caught.value)
    assert "12 missing (vision.model.blocks.2.norm1.weight" in message
    # Three projections of each of the two layers.
    assert "6 of another shape" in message
    assert "(64, 32) instead of (96, 32)" in message
    assert "unexpected" not in message
    assert str(folder / "model.safetensors") in message


def test_unexpected_and_missing_names_change_nothing(vlm):
    before = {name: tensor.clone() for name, tensor in vlm.projector.state_dict().items()}
    weights = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    weights["4.weight"] = weights.pop("3.weight")
    with pytest.raises(CheckpointError, match=r"1 missing \(3\.weight\); 1 unexpected \(4\.weight\)"):
        load_weights(vlm.projector, weights, source="file")
    for name, tensor in vlm.projector.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("keep", [0, 4, 1000])
def test_truncated_weights_are_an_error(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is no whole safetensors file"):
        load_vlm(folder)


def test_missing_files_are_an_error(folder, tmp_path):
    with pytest.raises(CheckpointError, match="is missing"):
        load_tensors(tmp_path / "none.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no vision-language model"):
        load_vlm(folder)


def test_foreign_configurations_are_an_error(folder):
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(CheckpointError, match="is no configuration of a vitp model"):
        load_vlm(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is no configuration of a vitp model"):
        load_vlm(folder)


def test_saving_replaces_an_older_model_or_leaves_it(folder, vlm, chat, monkeypatch):
    old = load_file(folder / "model.safetensors")["projector.1.bias"]
    with torch.no_grad():
        vlm.projector[1].bias.add_(1)

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(Exception, match="disk is full"):
        patch.setattr("vitp.checkpoints.writing.save_tensors", fail)
        save_vlm(folder, vlm, chat)
    assert torch.equal(load_file(folder / "model.safetensors")["projector.1.bias"], old)
    save_vlm(folder, vlm, chat)
    assert torch.equal(load_file(folder / "model.safetensors")["projector.1.bias"], old + 1)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_weights_of_the_wrong_kind_are_refused(tmp_path, vlm):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"unexpected \(x\)"):
        load_weights(vlm.projector, load_tensors(tmp_path / "x.safetensors"), source="x")


def test_a_flipped_bit_of_the_starter_is_refused(tmp_path):
    copy = shutil.copytree(STARTER, tmp_path / "starter")
    assert load_vlm(copy).report is None
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[4_000_000] ^= 2
    (copy / "model.safetensors").write_bytes(data)
    for load in (load_vlm, load_backbone):
        with pytest.raises(DamagedError, match=r"starter/model\.safetensors: is damaged"):
            load(copy)
