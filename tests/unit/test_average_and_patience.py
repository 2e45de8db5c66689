"""The moving average of the weights and the early stop: what they compute, and that a resumed run has them to the bit."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.engine_toys import ToyObjective
from tests.unit.engine_runs import StopAfter, assert_same_checkpoint, make_trainer
from vitp.core.errors import ConfigError, DamagedError
from vitp.engine import checkpoint
from vitp.engine.average import WeightAverage
from vitp.engine.hooks import Hook, StepMetrics
from vitp.engine.loop import Trainer
from vitp.engine.patience import Patience
from vitp.engine.stopping import Interrupted


class Weights(Hook):
    """Keeps what it sees of the model after each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
        self.seen.append({name: p.detach().clone() for name, p in trainer.objective.named_parameters()})


class Scores(Hook):
    """Scores each `every`-th step by a list; with `keeps` it keeps the best weights itself."""

    def __init__(self, scores: list[float], every: int = 1, keeps: bool = False) -> None:
        self.scores, self.every, self.keeps_best = scores, every, keeps

    def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
        if self.every and step % self.every == 0:
            self.score = (step, self.scores[step // self.every - 1])


def ema_of(run: Path, step: int) -> dict[str, Tensor]:
    return load_file(checkpoint.folder(run, step) / "ema.safetensors")


@pytest.mark.parametrize(("decay", "warmup"), [(0.9, 1.0), (0.99, 10.0)])
def test_the_average_is_that_of_the_weights_seen(tmp_path: Path, decay: float, warmup: float) -> None:
    plain, averaged = Weights(), Weights()
    make_trainer(tmp_path / "plain", hooks=(plain,))[0].train()
    trainer, _ = make_trainer(tmp_path / "ema", hooks=(averaged,), ema=decay, ema_warmup=warmup)
    trainer.train()
    wanted = {n: p.detach().double() for n, p in ToyObjective().named_parameters()}
    for step, (weights, seen) in enumerate(zip(plain.seen, averaged.seen, strict=True), 1):
        stays = min(decay, (1 + step) / (warmup + step))
        wanted = {n: stays * wanted[n] + (1 - stays) * weights[n].double() for n in wanted}
        for name, value in wanted.items():
            torch.testing.assert_close(seen[name].double(), value, rtol=1e-5, atol=1e-7)
    last = [checkpoint.folder(tmp_path / run, 6) for run in ("plain", "ema")]
    assert_same_checkpoint(*last)  # what is trained does not know of the average
    assert not (last[0] / "ema.safetensors").exists() and "more" not in json.loads(
        (last[0] / "state.json").read_text()
    )
    final = load_file(tmp_path / "ema" / "model" / "weights.safetensors")
    for name, value in ema_of(tmp_path / "ema", 6).items():
        assert torch.equal(final[name], value)
        assert torch.equal(dict(trainer.objective.named_parameters())[name], value)


def test_weights_and_averages_change_places_to_the_bit() -> None:
    model = ToyObjective()
    model.head.requires_grad_(False)
    average = WeightAverage(model, 0.5, 1.0)
    assert not any(name.startswith("head.") for name in average.tensors)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)
    average.update(1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    averages = {n: t.clone() for n, t in average.tensors.items()}
    with average.in_place():
        inside = dict(model.named_parameters())
        assert all(torch.equal(inside[n], averages[n]) for n in averages)
        assert torch.equal(inside["head.weight"], before["head.weight"])
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(torch.equal(t, averages[n]) for n, t in average.tensors.items())


def test_a_resumed_run_has_the_same_average_and_patience(tmp_path: Path) -> None:
    scores = [0.1, 0.3, math.nan, 0.2, 0.3, 0.1, 0.9]
    common: dict[str, Any] = {"steps": 7, "ema": 0.9, "patience": 3, "save_every": 2}
    whole, _ = make_trainer(tmp_path / "whole", ToyObjective(dropout=0.3), hooks=(Scores(scores),), **common)
    result = whole.train()
    hooks = (Scores(scores), StopAfter(4, signal.SIGTERM))
    with pytest.raises(Interrupted):
        make_trainer(tmp_path / "cut", ToyObjective(dropout=0.3), hooks=hooks, **common)[0].train()
    again, text = make_trainer(
        tmp_path / "cut", ToyObjective(7, dropout=0.3), hooks=(Scores(scores),), resume=True, **common
    )
    assert again.train().step == result.step == 6
    assert "stopped early: no better score in 3 looks since step 2 (0.3; train.patience 3)" in text.getvalue()
    ours, theirs = (checkpoint.folder(tmp_path / run, 6) for run in ("cut", "whole"))
    assert_same_checkpoint(ours, theirs)
    for name, value in ema_of(tmp_path / "whole", 6).items():
        assert torch.equal(value, ema_of(tmp_path / "cut", 6)[name])
    states = [json.loads((path / "state.json").read_text())["more"] for path in (ours, theirs)]
    assert states[0] == states[1] == {"patience": {"best": 0.3, "best_step": 2, "waited": 3}, "average": True}
    # The best checkpoint is kept beside the newest two, and its averages are the model.
    assert [path.name[-1] for path in checkpoint.checkpoints(tmp_path / "cut")] == ["2", "4", "6"]
    models = [load_file(tmp_path / run / "model" / "weights.safetensors") for run in ("cut", "whole")]
    for name, value in ema_of(tmp_path / "whole", 2).items():
        assert torch.equal(models[0][name], value) and torch.equal(models[1][name], value)
    # Resumed once more it has nothing to do, and leaves the same model.
    make_trainer(tmp_path / "cut", hooks=(Scores(scores),), resume=True, **common)[0].train()
    assert torch.equal(
        load_file(tmp_path / "cut/model/weights.safetensors")["head.weight"], models[1]["head.weight"]
    )


def test_a_hook_that_keeps_the_best_itself_spares_the_engine_the_work(tmp_path: Path) -> None:
    hooks = (Scores([0.5, 0.4, 0.3], every=2, keeps=True),)
    trainer, _ = make_trainer(tmp_path, hooks=hooks, patience=1, save_every=None)
    assert trainer.train().step == 4
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step_00000004"]


def test_more_patience_makes_a_stopped_run_longer(tmp_path: Path) -> None:
    scores = [0.5, 0.4, 0.4, 0.9, 0.1, 0.1]
    assert make_trainer(tmp_path, hooks=(Scores(scores),), patience=2)[0].train().step == 3
    longer, text = make_trainer(tmp_path, hooks=(Scores(scores),), patience=4, resume=True)
    assert longer.train().step == 6
    assert (
        "train.patience 2 → 4" in text.getvalue()
        and "the weights of the best score, step_00000004" in text.getvalue()
    )


def test_a_best_checkpoint_that_is_damaged_leaves_the_last_weights(tmp_path: Path) -> None:
    class Damage(Scores):
        def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
            super().on_step_end(trainer, step, metrics)
            if step == 3:
                (checkpoint.folder(tmp_path, 1) / "model.safetensors").unlink()

    trainer, text = make_trainer(tmp_path, hooks=(Damage([0.5, 0.4, 0.3]),), patience=2, save_every=None)
    trainer.train()
    assert "the model has the last weights instead of the best" in text.getvalue()


@pytest.mark.parametrize("name", ["ema.safetensors"])
def test_a_lost_average_is_a_damaged_checkpoint(tmp_path: Path, name: str) -> None:
    make_trainer(tmp_path, steps=2, ema=0.9)[0].train()
    (checkpoint.folder(tmp_path, 2) / name).unlink()
    with pytest.raises(DamagedError, match=r"ema\.safetensors"):
        make_trainer(tmp_path, steps=4, ema=0.9, resume=True)[0].train()


def test_small_gains_count_when_they_are_asked_for() -> None:
    patience = Patience(2, min_gain=0.1)
    assert [patience.look(step, score) for step, score in enumerate([0.5, 0.55, math.nan, 0.61], 1)] == [
        True, False, False, True,
    ]  # fmt: skip
    assert not patience.ended and patience.best_step == 4
    assert not Patience(None).ended and Patience(None).state() == {}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"train": {"patience": 2, "val_every": 0}}, "patience judges by the validations"),
        ({"train": {"patience": 2, "val_every": None}}, "patience judges by the validations"),
        ({"train": {"ema": 1.0}}, "train.ema"),
    ],
)
def test_finetuning_says_what_can_not_be_judged(values: dict[str, Any], said: str) -> None:
    from vitp.core.config import make_config
    from vitp.runs.finetune import FinetuneConfig

    with pytest.raises(ConfigError, match=said):
        make_config(FinetuneConfig, {"task": "detection", "data": {"root": "x"}, **values})


def test_with_patience_the_best_weights_are_chosen() -> None:
    from vitp.runs.finetune import FinetuneTrainSettings

    assert FinetuneTrainSettings().choose == "last"
    assert FinetuneTrainSettings(patience=3).choose == "best"
    assert FinetuneTrainSettings(patience=3, choose="last").choose == "last"


def test_pretraining_is_judged_by_its_probes() -> None:
    from vitp.core.config import make_config
    from vitp.runs.pretrain import PretrainConfig

    values = {"data": {"mixture": ["x"]}, "train": {"steps": 5, "patience": 2}}
    with pytest.raises(
        ConfigError, match=r"train.patience: nothing to judge by; name a compiled folder as probe.data"
    ):
        make_config(PretrainConfig, values)
    assert make_config(PretrainConfig, {**values, "probe": {"data": "y"}}).train.patience == 2
