"""Few parameters beside a frozen tower, and several objectives at once: in shards and compiled they learn the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.forks import fork_ranks
from tests.objective_toys import labelled_folder
from tests.unit.test_joint import CLIP, MAE, QUIET, config
from vitp.core import distributed
from vitp.models.compilation import compile_report, forget_graphs
from vitp.models.compute import BackboneComputeSettings, configure_backbone
from vitp.runs.pretrain import PretrainConfig, build, run_pretraining

# Two processes; one worker makes the runs.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sharding ranks")]

JOINT = {"clip": {**CLIP, "weight": 0.5}, "mae": {**MAE, "weight": 1.0}}
ADAPT = {
    "lora": {"kind": "lora", "rank": 2},
    "prompts": {"kind": "prompts", "count": 2},
    "gates": {"kind": "gates", "width": 4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_folder(tmp_path_factory.mktemp("adapted") / "toy")


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    forget_graphs()
    yield
    forget_graphs()


def scenario(folder: Path, name: str, **train: Any) -> PretrainConfig:
    """Masked patches with few parameters of the tower, or beside contrast with texts, both with scalars to learn."""
    words = ["model.drop_path=0"]
    if name in ADAPT:
        words += [f"model.adapt.{key}={value}" for key, value in ADAPT[name].items()]
    objectives = JOINT if name == "joint" else {"mae": {**MAE, "weight": 1.0}}
    settings = {"steps": 3, "precision": "fp32", "log_every": 1, **train}
    return config(folder, objectives, tuple(words), **settings)


def curve(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "losses" in row]


def test_two_processes_with_shards_learn_what_one_learns(folder: Path, tmp_path: Path) -> None:
    names = ("joint", *ADAPT)
    for name in names:
        run_pretraining(scenario(folder, name), tmp_path / f"{name}-one", console=QUIET)

    def ranks() -> None:
        for name in names:
            run_pretraining(scenario(folder, name, parallel="fsdp"), tmp_path / f"{name}-two", console=QUIET)
        distributed.shutdown()

    fork_ranks(ranks, 2, 480)
    for name in names:
        one, two = curve(tmp_path / f"{name}-one"), curve(tmp_path / f"{name}-two")
        assert len(one) == len(two) == 3
        for ours, theirs in zip(two, one, strict=True):
            assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4), name
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3), name


@pytest.mark.parametrize("name", ["joint", "lora", "prompts"])
def test_compiled_blocks_compute_what_plain_ones_do(folder: Path, name: str) -> None:
    run = build(scenario(folder, name))
    batch, found = run.source(0, 0, 0, 1), []
    for compiled in (False, True):
        if compiled:
            settings = BackboneComputeSettings(compile="vision")
            configure_backbone(run.objective, run.objective.vision_tower, settings, backend="aot_eager")
        torch.manual_seed(3)
        losses = run.objective(batch)
        run.objective.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        learned = {key: p.grad.clone() for key, p in run.objective.named_parameters() if p.grad is not None}
        found.append(({key: loss.item() for key, loss in losses.items()}, learned))
    (plain, by_plain), (fast, by_fast) = found
    assert fast == pytest.approx(plain, rel=1e-5) and by_fast.keys() == by_plain.keys()
    for key, gradient in by_plain.items():
        assert float((by_fast[key] - gradient).norm()) <= 1e-4 * float(gradient.norm()) + 1e-7, key
    report = compile_report()
    assert report.holds and report.graphs > 0, str(report)
