"""Every image objective keeps the engine's contract, trains the tower, and leaves nothing but the tower behind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from tests.objective_toys import CASES, VISION, Case, labelled_folder, tiny_tower
from vitp.checkpoints.loading import load_backbone
from vitp.engine.config import OptimSettings, TrainSettings
from vitp.engine.loop import Trainer
from vitp.models.lora import VisionLoRASettings, add_lora
from vitp.models.vision import VisionTower
from vitp.objectives.preserving import preserving
from vitp.objectives.settings import PreserveSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_folder(tmp_path_factory.mktemp("labelled") / "toy")


SLOW = ("dino of today", "distil")  # cases of their base's kind: their terms have tests of their own


@pytest.fixture(params=[pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def train(objective: Any, source: Any, run: Path, *, steps: int = 2, **more: Any) -> Any:
    resume = more.pop("resume", False)
    values = {"save_every": 1, "num_workers": 0, "device": "cpu", **more}
    trainer = Trainer(
        objective,
        source,
        OptimSettings(lr=1e-3, warmup_ratio=0, schedule="constant"),
        TrainSettings(steps=steps, must_train=("vision tower",), **values),
        run,
        console=Console(quiet=True),
        resume=resume,
    )
    return trainer.train()


def test_every_parameter_is_in_one_part(case: Case) -> None:
    objective = case.make()
    groups = objective.parameter_groups()
    held = [id(p) for group in groups for p in group.parameters.values()]
    assert sorted(held) == sorted(id(p) for p in objective.parameters())
    assert tuple(group.name for group in groups) == case.groups
    own = dict(objective.named_parameters())
    assert all(own[name] is p for group in groups for name, p in group.parameters.items())
    assert [id(p) for p in groups[0].parameters.values()] == [id(p) for p in objective.tower.parameters()]


def test_losses_counts_and_work_fit_each_other(case: Case, folder: Path) -> None:
    objective, batch = case.make().eval(), case.source(folder)(0, 0, 0, 1)
    losses, counts, work = objective(batch), objective.loss_counts(batch), objective.work(batch)
    assert losses.keys() == counts.keys() == case.losses
    assert all(math.isfinite(loss.item()) for loss in losses.values())
    assert all(loss.item() > 0 for name, loss in losses.items() if name != "koleo")  # a logarithm
    assert all(count > 0 for count in counts.values())
    assert work["samples"] == 4 and work["tiles"] == 4 * case.views
    assert work["flops"] > 0


def test_losses_in_bf16_are_those_of_fp32_but_for_rounding(case: Case, folder: Path) -> None:
    objective, batch = case.make().eval(), case.source(folder)(0, 0, 0, 1)
    exact = objective(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = objective(batch)
    sum(rounded.values()).backward()
    for name, loss in exact.items():
        assert rounded[name].dtype == torch.float32
        assert rounded[name].item() == pytest.approx(loss.item(), rel=0.03)
    assert all(bool(torch.isfinite(p.grad).all()) for p in objective.tower.parameters())


def test_two_steps_train_the_tower_and_export_nothing_else(case: Case, folder: Path, tmp_path: Path) -> None:
    objective, before = case.make(), tiny_tower()
    result = train(objective, case.source(folder), tmp_path / "run")
    assert result.step == 2 and math.isfinite(result.loss)
    start = dict(before.named_parameters())
    unmoved = [name for name, p in objective.tower.named_parameters() if torch.equal(p, start[name])]
    assert unmoved == []
    assert 0 < result.evidence["gradient_share"] <= 1
    exported = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert exported.keys() == before.model.state_dict().keys()
    loaded = load_backbone(tmp_path / "run")
    assert isinstance(loaded, VisionTower) and loaded.config == VISION
    for name, tensor in objective.tower.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name


def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(
    case: Case, folder: Path, tmp_path: Path
) -> None:
    whole, half = case.make(), case.make()
    train(whole, case.source(folder), tmp_path / "whole", steps=4)
    train(half, case.source(folder), tmp_path / "half", steps=2)
    resumed = case.make()
    torch.nn.init.zeros_(resumed.tower.model.norm.weight)  # what is not loaded would show
    train(resumed, case.source(folder), tmp_path / "half", steps=4, resume=True)
    expected, found = whole.state_dict(), resumed.state_dict()
    assert expected.keys() == found.keys()
    differing = [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])]
    assert differing == []


def test_a_batch_depends_on_its_place_in_the_run_only(case: Case, folder: Path) -> None:
    source = case.source(folder)
    once, again = source(5, 0, 0, 1), case.source(folder)(5, 0, 0, 1)
    assert source.fingerprint() == case.source(folder).fingerprint()
    assert once.record_names == again.record_names
    assert torch.equal(once.tiles_BCHW, again.tiles_BCHW)
    halves = [source(5, 0, rank, 2) for rank in range(2)]
    assert torch.equal(torch.cat([half.tiles_BCHW for half in halves]), once.tiles_BCHW)
    assert not torch.equal(source(6, 0, 0, 1).tiles_BCHW, once.tiles_BCHW)


def test_no_preservation_is_the_objective_itself(case: Case) -> None:
    objective = case.make()
    assert preserving(objective, PreserveSettings()) is objective


def test_preservation_keeps_the_contract(case: Case, folder: Path, tmp_path: Path) -> None:
    objective = preserving(case.make(), PreserveSettings(weight=0.5))
    batch = case.source(folder)(0, 0, 0, 1)
    counts = objective.loss_counts(batch)
    assert counts.keys() == case.losses | {"preserve"} and counts["preserve"] == 4
    # Nothing has moved yet, so nothing is lost.
    assert objective.eval()(batch)["preserve"].item() == pytest.approx(0, abs=1e-4)
    train(objective, case.source(folder), tmp_path / "run")
    exported = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert exported.keys() == tiny_tower().model.state_dict().keys()
    losses = [
        json.loads(row)["losses"] for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert losses[-1]["preserve"] >= 0


def test_low_rank_updates_are_merged_into_the_export(case: Case, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")

    tower = tiny_tower()
    add_lora(tower, VisionLoRASettings(rank=2, unfrozen_blocks=1))
    objective = case.make(tower=tower)
    frozen = objective.tower.model.blocks[0].mlp.fc1.weight.clone()
    train(objective, case.source(folder), tmp_path / "run")
    assert torch.equal(objective.tower.model.blocks[0].mlp.fc1.weight, frozen)
    exported = load_file(tmp_path / "run" / "model" / "model.safetensors")
    plain = tiny_tower().model.state_dict()
    assert {name: t.shape for name, t in exported.items()} == {name: t.shape for name, t in plain.items()}
    assert not torch.equal(exported["blocks.0.attn.qkv.weight"], plain["blocks.0.attn.qkv.weight"])
    image = torch.randn(1, 3, 32, 32)
    expected = objective.tower.eval().forward_tokens(image)
    assert torch.allclose(load_backbone(tmp_path / "run").forward_tokens(image), expected, atol=1e-5)
