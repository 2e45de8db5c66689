"""Runs of the other paradigms: from configuration to a backbone that the rest of vitp takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from tests.conftest import tiny_chat, tiny_vlm_config
from tests.objective_toys import VISION, labelled_folder
from vitp.checkpoints.loading import load_backbone, random_backbone
from vitp.checkpoints.verify import verify_export
from vitp.checkpoints.writing import save_vlm
from vitp.core.config import load_config, make_config, save_config
from vitp.core.errors import ConfigError, DataError
from vitp.engine.hooks import Hook
from vitp.models.vlm import VisionLanguageModel
from vitp.objectives import SETTINGS
from vitp.objectives.image_base import initial_tower
from vitp.objectives.settings import ModelSettings
from vitp.objectives.text_tower import LanguageTextTower
from vitp.recipes.paradigms import PARADIGMS, ParadigmBudget, flops_per_image
from vitp.records.labels import LabelledSet
from vitp.runs.pretrain import PretrainConfig, build, run_pretraining

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_folder(tmp_path_factory.mktemp("runs") / "toy")


def config(folder: Path, objective: str, **sections: Any) -> PretrainConfig:
    """A run of two steps of the tiny tower."""
    values: dict[str, Any] = {
        "objective": objective,
        "model": {"init": "random", "vision": VISION.model_dump(), "drop_path": 0.1},
        "data": {"mixture": [str(folder)], "global_batch": 4},
        "mae": {"decoder_width": 32, "decoder_layers": 1},
        "image_text": {"text_width": 32, "text_layers": 1, "text_heads": 2, "dimension": 16},
        "dino": {"prototypes": 16, "hidden": 32, "bottleneck": 8, "local_views": 1, "mask": 0.5},
        "optim": {"lr": 1e-3, "warmup_ratio": 0},
        "train": {
            "steps": 2,
            "num_workers": 0,
            "device": "cpu",
            "must_train": ["vision tower"],
        },
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return make_config(PretrainConfig, values)


@pytest.mark.parametrize(
    "objective", [name for name, kind in SETTINGS.items() if not kind.has_language_model]
)
def test_a_run_leaves_a_backbone(objective: str, folder: Path, tmp_path: Path) -> None:
    settings, run = config(folder, objective), tmp_path / "run"
    result = run_pretraining(settings, run, console=QUIET)
    assert result.step == 2 and result.model == run / "model"
    counters = json.loads((result.checkpoint / "state.json").read_text())["counters"]
    assert counters["samples"] == 8 and counters["flops"] > 1e6
    tower = load_backbone(run)
    assert tower.config == VISION
    start = initial_tower(settings.model, settings.seed)
    assert tower.state_dict().keys() == start.state_dict().keys()
    assert any(not torch.equal(a, b) for a, b in zip(tower.parameters(), start.parameters(), strict=True))
    verify_export(run / "model")
    description = json.loads((run / "model" / "vitp_backbone.json").read_text())
    provenance = description["provenance"]
    assert provenance["source"] == "run" and provenance["steps"] == 2
    assert provenance["configuration"]["objective"]["name"] == objective
    assert provenance["mixture"]["sets"] == [{"name": "toy", "records": 12, "rate": 1.0, "licence": "CC0"}]
    assert load_config(PretrainConfig, run / "config.yaml") == settings


def test_a_run_probes_while_it_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Silent(Hook):
        history: ClassVar[list[dict[str, float]]] = []

    def probes(labelled: LabelledSet, every: int, *, max_images: int) -> Hook:
        seen.append((labelled.name, len(labelled), every, max_images))
        return Silent()

    monkeypatch.setattr("vitp.runs.pretrain.OnlineProbes", probes)
    settings = config(folder, "mae", probe={"data": str(folder), "every": 1, "images": 10})
    run_pretraining(settings, tmp_path / "run", console=QUIET)
    assert seen == [("toy", 14, 1, 10)]


def test_a_run_is_the_same_twice_and_resumes_to_the_bit(folder: Path, tmp_path: Path) -> None:
    long = config(folder, "dino", train={"steps": 4, "save_every": 2})
    run_pretraining(long, tmp_path / "one", console=QUIET)
    run_pretraining(long, tmp_path / "two", console=QUIET)
    # As if the process had died after the first checkpoint.
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step_00000004")
    run_pretraining(long, tmp_path / "two", resume=True, console=QUIET)
    one, two = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("one", "two"))
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_low_rank_updates_with_a_teacher_are_merged(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    settings = config(folder, "dino", model={"vision_lora": {"rank": 2}, "preserve": {"weight": 0.5}})
    run_pretraining(settings, tmp_path / "run", console=QUIET)
    exported = load_backbone(tmp_path / "run")
    start = initial_tower(config(folder, "dino").model, 0)
    assert exported.state_dict().keys() == start.state_dict().keys()
    # Only attention is adapted below the last block.
    assert torch.equal(exported.model.blocks[0].mlp.fc1.weight, start.model.blocks[0].mlp.fc1.weight)
    assert not torch.equal(exported.model.blocks[0].attn.qkv.weight, start.model.blocks[0].attn.qkv.weight)


def test_towers_start_from_where_they_are_told(folder: Path, tmp_path: Path) -> None:
    starter = load_backbone("starter")
    named = initial_tower(ModelSettings(init="starter", drop_path=0.2), 0)
    assert all(torch.equal(a, b) for a, b in zip(named.parameters(), starter.parameters(), strict=True))
    random = initial_tower(ModelSettings(init="random"), 3)
    expected = random_backbone(starter, 3)
    assert all(torch.equal(a, b) for a, b in zip(random.parameters(), expected.parameters(), strict=True))
    run_pretraining(config(folder, "supervised"), tmp_path / "run", console=QUIET)
    again = initial_tower(ModelSettings(init=str(tmp_path / "run")), 0)
    exported = load_backbone(tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), exported.parameters(), strict=True))


def test_the_language_model_can_be_the_text_tower(folder: Path) -> None:
    run = build(config(folder, "siglip", image_text={"text": "language", "texts": "records"}))
    assert isinstance(run.objective.text, LanguageTextTower)  # type: ignore[union-attr]
    batch = run.source(0, 0, 0, 1)
    run.objective(batch)["contrast"].backward()
    missing = [n for n, p in run.objective.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_several_folders_are_sampled_by_their_rates(folder: Path, tmp_path: Path) -> None:
    other = labelled_folder(tmp_path / "other", images=4, name="other")
    data = {"mixture": [str(folder), str(other)], "rates": [0.5, 3.0], "global_batch": 6}
    run = build(config(folder, "mae", data=data))
    assert [one["rate"] for one in run.sets] == [0.5, 3.0]
    names = [run.source.order.locate(position).entry for position in range(18)]
    assert (names.count(0), names.count(1)) == (6, 12)
    with pytest.raises(ConfigError, match="3 rates for 2 folders"):
        build(config(folder, "mae", data={**data, "rates": [1.0, 1.0, 1.0]}))


def test_folders_without_what_is_needed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image"):
        build(config(tmp_path, "mae"))


def test_configurations_survive_their_file(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, "clip", model={"vision_lora": {"rank": 4}})
    save_config(settings, tmp_path / "run.yaml")
    assert load_config(PretrainConfig, tmp_path / "run.yaml") == settings
    with pytest.raises(ConfigError, match="did you mean"):
        load_config(PretrainConfig, tmp_path / "run.yaml", ["simclr.temprature=0.2"])


# Paradigms.


@pytest.mark.parametrize("name", PARADIGMS)
def test_a_paradigm_makes_a_run_of_its_budget(name: str, folder: Path) -> None:
    paradigm = PARADIGMS[name]
    made = paradigm.make([folder], "starter", ParadigmBudget(images=640), 5)
    steps = made.train.steps + sum(phase.steps for phase in made.objective.phases())
    assert made.data.global_batch == paradigm.batch and steps * paradigm.batch == 640
    assert (made.seed, made.train.seed, made.optim.lr) == (5, 5, paradigm.lr)
    swept = paradigm.make([folder], "random", ParadigmBudget(images=640, batch=8, lr=1e-4, workers=0), 5)
    assert (swept.train.steps, swept.optim.lr, swept.train.num_workers) == (80, 1e-4, 0)
    assert paradigm.labels and paradigm.title


@pytest.mark.parametrize("name", ["mae", "vitp"])
def test_a_run_from_scratch_has_the_sizes_of_a_model(name: str, folder: Path, tmp_path: Path) -> None:
    chat = tiny_chat()
    like = VisionLanguageModel(tiny_vlm_config(), vocabulary=len(chat))
    save_vlm(tmp_path / "vlm", like, chat)
    budget = ParadigmBudget(images=640, like=str(tmp_path / "vlm"))
    made = PARADIGMS[name].make([folder], "random", budget, 0)
    if made.objective.has_language_model:
        assert (made.model.init, made.model.scratch) == ("scratch", like.config)
        assert made.model.tokenizer == str(tmp_path / "vlm")
    else:
        assert (made.model.init, made.model.vision) == ("random", like.config.vision)


def test_what_an_image_costs_is_known_before_the_run(folder: Path) -> None:
    settings = config(folder, "mae")
    run = build(settings)
    work = run.objective.work(run.source(0, 0, 0, 1))
    assert flops_per_image(settings) == pytest.approx(work["flops"] / 4)
    # Two global views, one local one and a teacher against a quarter of one view and a decoder.
    assert flops_per_image(config(folder, "dino")) > 2.5 * flops_per_image(settings)
