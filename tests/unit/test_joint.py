"""Several objectives in one run: their sum, their one tower, and what is left of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from tests.forks import fork_ranks
from tests.objective_toys import VISION, labelled_folder
from vitp.core.config import make_config, save_config
from vitp.core.errors import ConfigError
from vitp.engine.hooks import Hook
from vitp.objectives.joint import JointBatch, JointObjective
from vitp.recipes.paradigms import pretrain_settings
from vitp.runs.pretrain import PretrainConfig, build, run_pretraining

QUIET = Console(quiet=True)
VIEWS = {"crop": [0.6, 1.0], "colour": 0.2, "hue": 0, "grey": 0, "blur": 0, "flip": False, "rotate90": False}
CLIP = {"text_width": 32, "text_layers": 1, "text_heads": 2, "dimension": 16, "views": VIEWS}
MAE = {"decoder_width": 32, "decoder_layers": 1}
DINO = {"prototypes": 16, "hidden": 32, "bottleneck": 8, "local_views": 1, "mask": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_folder(tmp_path_factory.mktemp("joint") / "toy")


def config(folder: Path, objectives: Any, words: tuple[str, ...] = (), **train: Any) -> PretrainConfig:
    values = {
        **(
            {"objectives": objectives}
            if isinstance(objectives, dict)
            else {"objective": {"name": objectives}}
        ),
        "model": {"init": "random", "vision": VISION.model_dump(), "drop_path": 0.1},
        "data": {"mixture": [str(folder)], "global_batch": 4},
        "optim": {"lr": 1e-3, "warmup_ratio": 0, "schedule": "constant"},
        "train": {"steps": 2, "num_workers": 0, "device": "cpu", "save_every": 2, **train},
    }
    return make_config(PretrainConfig, values, words)


def three(folder: Path, **weights: float) -> dict[str, Any]:
    """Masked patches, contrast with texts and classes: the three terms of heuristic pretraining."""
    settings: dict[str, Any] = {"mae": MAE, "clip": CLIP, "supervised": {"views": VIEWS}}
    return {name: {**settings[name], "weight": weight} for name, weight in weights.items()}


def gradients(
    objective: Any, losses: dict[str, torch.Tensor], counts: dict[str, float]
) -> dict[str, torch.Tensor]:
    """Name → gradient of the total loss by the tower's weights."""
    total = sum(objective.loss_weight(name) * loss / counts[name] for name, loss in losses.items())
    tower = dict(objective.vision_tower.named_parameters())
    found = torch.autograd.grad(total, list(tower.values()), allow_unused=True)
    return {
        name: g if g is not None else torch.zeros_like(tower[name])
        for name, g in zip(tower, found, strict=True)
    }


def test_the_total_is_the_weighted_sum_and_the_tower_sees_equal_images_once(folder: Path) -> None:
    weights = {"mae": 1.0, "clip": 0.5, "supervised": 0.25}
    run = build(config(folder, three(folder, **weights)))
    objective = run.objective.eval()
    assert isinstance(objective, JointObjective)
    batch = run.source(0, 0, 0, 1)
    assert isinstance(batch, JointBatch) and batch.same == (0, 1, 1)
    seen: list[int] = []
    handle = objective.vision_tower.model.blocks[0].register_forward_hook(lambda *_: seen.append(1))
    losses, counts = objective(batch), objective.loss_counts(batch)
    handle.remove()
    assert len(seen) == 2  # of the masked image, and of the one that two objectives share
    together = gradients(objective, losses, counts)
    expected = {name: torch.zeros_like(g) for name, g in together.items()}
    total = 0.0
    for name, weight in weights.items():
        alone = build(config(folder, three(folder, **{name: 1.0}))).objective.eval()
        alone.load_state_dict(
            {k: v for k, v in objective.state_dict().items() if k in alone.state_dict()}, strict=False
        )
        own = JointBatch((batch.batches[list(weights).index(name)],), (0,))
        part, count = alone(own), alone.loss_counts(own)
        assert {k: v.item() for k, v in part.items()} == pytest.approx(
            {k: v.item() for k, v in losses.items() if k.startswith(name)}, rel=1e-5
        )
        total += weight * sum((v / count[k]).item() for k, v in part.items())
        for key, gradient in gradients(alone, part, count).items():
            expected[key] += weight * gradient
    whole = sum((objective.loss_weight(name) * loss / counts[name]).item() for name, loss in losses.items())
    assert whole == pytest.approx(total, abs=1e-6)
    worst = max((together[name] - g).abs().max().item() for name, g in expected.items())
    assert worst < 1e-6 * max(1.0, max(g.abs().max().item() for g in expected.values()))


def test_every_parameter_is_in_one_part_and_the_tower_is_stored_once(folder: Path) -> None:
    objective = build(config(folder, three(folder, mae=1, clip=1))).objective
    groups = objective.parameter_groups()
    assert [group.name for group in groups] == ["vision tower", "head", "clip text tower", "clip head"]
    held = [id(p) for group in groups for p in group.parameters.values()]
    assert sorted(held) == sorted(id(p) for p in objective.parameters())
    own = dict(objective.named_parameters())
    assert all(own[name] is p for group in groups for name, p in group.parameters.items())
    assert not [name for name in objective.state_dict() if name.startswith("parts.clip.tower")]


def trained(
    folder: Path, run: Path, objectives: Any, resume: bool = False, **train: Any
) -> dict[str, torch.Tensor]:
    run_pretraining(config(folder, objectives, **train), run, console=QUIET, resume=resume)
    return load_file(run / "model" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_weight_of_0_is_the_run_without_and_one_alone_is_the_run_itself(
    folder: Path, tmp_path: Path
) -> None:
    with_0 = trained(folder, tmp_path / "0", three(folder, clip=0.0, mae=1.0))
    alone = trained(folder, tmp_path / "1", three(folder, mae=1.0))
    plain = config(folder, "mae", tuple(f"objective.{k}={v}" for k, v in MAE.items()))
    run_pretraining(plain, tmp_path / "plain", console=QUIET)
    assert same(with_0, alone) and same(alone, load_file(tmp_path / "plain" / "model" / "model.safetensors"))
    both = trained(folder, tmp_path / "2", three(folder, clip=0.5, mae=1.0))
    assert not same(both, alone) and both.keys() == alone.keys()
    rows = [json.loads(line) for line in (tmp_path / "2" / "metrics.jsonl").read_text().splitlines()]
    assert {"mae.pixels", "clip.contrast"} <= {
        name.removeprefix("loss/") for row in rows for name in _losses(row)
    }


def _losses(row: dict[str, Any]) -> list[str]:
    nested = row.get("losses")
    return [*(nested if isinstance(nested, dict) else ()), *row]


class Stop(Hook):
    """Ends a run from outside after two steps."""

    def on_step_end(self, trainer: Any, step: int, metrics: Any) -> None:
        if step == 3:
            raise RuntimeError("stopped")


@pytest.mark.slow
def test_accumulated_resumed_and_alike_on_two_ranks(folder: Path, tmp_path: Path) -> None:
    # Masked patches beside their pixels: three terms.
    objectives = {"dino": {**DINO, "weight": 1.0}, "mae": {**MAE, "weight": 0.3}}
    whole = trained(folder, tmp_path / "whole", objectives, steps=4)
    with pytest.raises(RuntimeError, match="stopped"):
        run_pretraining(config(folder, objectives, steps=4), tmp_path / "half", console=QUIET, hooks=[Stop()])
    assert same(trained(folder, tmp_path / "half", objectives, resume=True, steps=4), whole)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    names = {name.removeprefix("loss/") for row in rows for name in _losses(row)}
    assert {"dino.views", "dino.patches", "mae.pixels"} <= names
    words, quiet = ("model.drop_path=0",), {"steps": 1, "precision": "fp32"}
    once = _weights(_run(config(folder, objectives, words, **quiet), tmp_path / "one"))
    cut = _weights(_run(config(folder, objectives, words, micro_batches=2, **quiet), tmp_path / "cut"))
    # The centre of the teacher moves with each micro-batch; a step of Adam is 1e-3.
    assert max((once[name] - cut[name]).abs().max().item() for name in once) < 2.1e-3
    pairs = three(folder, clip=0.5, mae=1.0)
    one, two = (config(folder, pairs, words, **quiet) for _ in range(2))
    _run(one, tmp_path / "rank")
    fork_ranks(lambda: _run(two, tmp_path / "ranks"), 2, 120)
    alone, shared = (
        json.loads((tmp_path / run / "metrics.jsonl").read_text().splitlines()[0])
        for run in ("rank", "ranks")
    )
    assert shared["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert shared["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def _run(settings: PretrainConfig, out: Path) -> Path:
    run_pretraining(settings, out, console=QUIET)
    return out


@pytest.mark.parametrize("names", [("vitp", "regionclip"), ("dino", "mae"), ("clip", "distil")])
def test_each_objective_of_several_keeps_the_settings_of_its_own_recipe(names: tuple[str, ...]) -> None:
    given = ["data.mixture=[x]", "train.steps=100"]
    both = pretrain_settings(None, ",".join(f"{name}=0.5" for name in names), given).objective.settings  # type: ignore[union-attr]
    for name in names:
        assert both[name] == pretrain_settings(None, name, given).objective


def test_settings_of_one_of_several_stand_above_its_recipe() -> None:
    words = ["data.mixture=[x]", "train.steps=100", "objectives={vitp: 1, clip: {weight: 2, text_layers: 5}}"]
    words += ["objective.settings.clip.views.flip=true", "objective.settings.vitp.vrl.ratio=0.5"]
    found = pretrain_settings(None, None, words).objective
    alone = pretrain_settings(None, "clip", words[:2]).objective
    assert found.weights == {"vitp": 1.0, "clip": 2.0}  # type: ignore[union-attr]
    clip, vitp = found.settings["clip"], found.settings["vitp"]  # type: ignore[union-attr]
    assert (clip.text_layers, clip.text_width, clip.views.flip) == (5, alone.text_width, True)  # type: ignore[union-attr]
    assert clip.views.colour == alone.views.colour  # type: ignore[union-attr]
    assert (vitp.vrl.ratio, vitp.align.steps) == (0.5, 20)


def test_spellings(folder: Path, tmp_path: Path) -> None:
    plain = config(folder, {"mae": 1.0, "clip": 0.5})
    assert plain.objective.weights == {"mae": 1.0, "clip": 0.5}  # type: ignore[union-attr]
    save_config(plain, tmp_path / "config.yaml")
    assert pretrain_settings(tmp_path / "config.yaml", None, []) == plain
    more = pretrain_settings(
        tmp_path / "config.yaml", None, ["objectives.clip=2", "objectives.clip.text_width=64"]
    )
    assert more.objective.weights == {"mae": 1.0, "clip": 2.0}  # type: ignore[union-attr]
    assert more.objective.settings["clip"].text_width == 64  # type: ignore[union-attr]
    words = ["objectives.simclr=0.25"]  # beside what the file has
    assert config(folder, "mae", tuple(words)).objective.weights == {"mae": 1.0, "simclr": 0.25}  # type: ignore[union-attr]
    given = [f"data.mixture=[{folder}]"]
    starter = pretrain_settings(None, "vitp=1,clip=0.5", given)
    assert starter.objective.has_language_model and starter.objective.weights == {"vitp": 1.0, "clip": 0.5}  # type: ignore[union-attr]
    for wrong, said in (
        ({"clap": 1.0}, "clap"),
        ({"mae": -1.0}, "greater than or equal to 0"),
        ("clip", "give names and weights"),
    ):
        with pytest.raises(ConfigError, match=said):
            make_config(PretrainConfig, {"objectives": wrong, "data": {"mixture": ["x"]}})
    with pytest.raises(ConfigError, match="no objective has a weight above 0"):
        build(config(folder, {"mae": 0.0}))


def test_an_objective_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="--objective: mae stands there twice"):
        pretrain_settings(None, "mae=1,dino=1,mae=0.5", [])
