"""Small parts of the engine to the last number."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tests.engine_toys import ToyObjective
from vitp.core.errors import CheckpointError, ConfigError, VitpError
from vitp.core.tensors import load_weights, unique_state
from vitp.engine.checkpoint import changed_settings
from vitp.engine.config import OptimSettings, TrainSettings
from vitp.engine.evidence import VisionEvidence, linear_cka, summary, weight_change
from vitp.engine.gradients import Gradients
from vitp.engine.layers import layers_of
from vitp.engine.numerics import amp_dtype, autocast, numerics
from vitp.engine.optim import Part, build_optimizer, describe_parts, lr_factor, set_lr
from vitp.engine.stopping import StopSignals
from vitp.objectives.base import ParameterGroup

CPU = torch.device("cpu")


# Settings.


@pytest.mark.parametrize(
    ("kind", "field", "right", "wrong"),
    [
        (OptimSettings, "lr", (1e-9, 1.0), (0.0, -1.0)),
        (OptimSettings, "eps", (1e-30,), (0.0,)),
        (OptimSettings, "weight_decay", (0.0, 0.5), (-0.1,)),
        (OptimSettings, "clip_norm", (None, 0.5), (0.0,)),
        (OptimSettings, "warmup_ratio", (0.0, 1.0), (-0.01, 1.01)),
        (OptimSettings, "warmup_steps", (None, 0, 7), (-1,)),
        (OptimSettings, "warmup_start", (0.0, 0.99), (-0.1, 1.0)),
        (OptimSettings, "min_lr_ratio", (0.0, 1.0), (-0.1, 1.1)),
        (OptimSettings, "gamma", (0.01, 1.0), (0.0, 1.1)),
        (OptimSettings, "layer_decay", (None, 0.1, 1.0), (0.0, 1.1)),
        (OptimSettings, "betas", ((0.0, 0.999),), ((1.0, 0.9), (0.9, 1.0), (-0.1, 0.9))),
        (OptimSettings, "milestones", ((0.5, 1.0), ()), ((0.0, 0.5), (0.5, 1.1), (0.9, 0.5))),
        (OptimSettings, "lr_scale", ({"a": 0.1},), ({"a": 0.0}, {"a": -1.0})),
        (TrainSettings, "steps", (1,), (0, -1)),
        (TrainSettings, "micro_batches", (1,), (0,)),
        (TrainSettings, "save_every", (None, 1), (0,)),
        (TrainSettings, "keep_last", (1,), (0,)),
        (TrainSettings, "log_every", (1,), (0,)),
        (TrainSettings, "num_workers", (0, 1), (-1,)),
        (TrainSettings, "seed", (0, 1), (-1,)),
        (TrainSettings, "device", ("auto", "cpu", "cuda", "cuda:12"), ("gpu", "cuda:", "cpu:0", "a cpu")),
        (TrainSettings, "threads", (None, 1), (0,)),
        (TrainSettings, "check_at", (None, 1), (0,)),
        (TrainSettings, "shard_size", (None, 1), (0,)),
    ],
)
def test_settings_keep_to_their_range(kind: Any, field: str, right: tuple, wrong: tuple) -> None:
    base = {"steps": 5} if kind is TrainSettings else {}
    for value in right:
        assert getattr(kind.model_validate(base | {field: value}), field) == value
    for value in wrong:
        with pytest.raises(ValidationError, match=field):
            kind.model_validate(base | {field: value})


def test_settings_have_the_documented_defaults() -> None:
    assert OptimSettings().model_dump() == {
        "lr": 2e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "clip_norm": 1.0, "warmup_ratio": 0.2,
        "warmup_steps": None, "warmup_start": 0.0, "schedule": "cosine", "decay_from": "warmup", "min_lr_ratio": 0.0,
        "milestones": (8 / 12, 11 / 12), "gamma": 0.1, "lr_scale": {}, "layer_decay": None,
    }  # fmt: skip
    assert TrainSettings(steps=3).model_dump() == {
        "steps": 3, "batch": "fixed", "micro_batches": 1, "precision": "auto", "save_every": 500, "keep_last": 2, "log_every": 10,
        "num_workers": 2, "seed": 0, "device": "auto", "deterministic": False, "loss_weights": {}, "ema": None,
        "ema_warmup": 10.0, "patience": None, "min_gain": 0.0,
        "threads": None, "must_train": (), "check_at": None, "parallel": "ddp", "shard_size": None, "async_save": False,
    }  # fmt: skip


def test_the_warmup_is_a_share_or_a_number_and_no_longer_than_the_run() -> None:
    assert OptimSettings(warmup_ratio=0.25).warmup(10) == 2  # round half to even
    assert OptimSettings(warmup_ratio=0.5, warmup_steps=3).warmup(10) == 3
    assert OptimSettings(warmup_steps=30).warmup(10) == 10
    assert OptimSettings(warmup_steps=0, warmup_ratio=0.5).warmup(10) == 0


# Schedule and groups.


def test_the_schedule_at_its_corners() -> None:
    assert lr_factor(9, 10, OptimSettings(warmup_steps=10)) == 1.0
    assert lr_factor(10, 10, OptimSettings(warmup_steps=10)) == 1.0  # never asked for: no division by zero
    assert lr_factor(12, 10, OptimSettings(warmup_steps=0, min_lr_ratio=0.25)) == 0.25
    half = OptimSettings(warmup_steps=4, warmup_start=0.5)
    assert [lr_factor(step, 8, half) for step in range(4)] == [0.625, 0.75, 0.875, 1.0]
    steps = OptimSettings(warmup_steps=0, schedule="step", milestones=(0.25, 0.5), gamma=0.5)
    assert [lr_factor(step, 8, steps) for step in range(8)] == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    linear = OptimSettings(warmup_steps=2, schedule="linear")
    assert [lr_factor(step, 6, linear) for step in range(6)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_rows_of_parts_add_up_groups_of_one_name() -> None:
    one, other = nn.Linear(3, 2), nn.Linear(2, 2)
    other.bias.requires_grad_(False)
    frozen = nn.Linear(4, 1).requires_grad_(False)
    groups = [
        ParameterGroup("a", dict(one.named_parameters()), lr_scale=2.0),
        ParameterGroup("a", {"w": other.weight, "b": other.bias}, lr_scale=0.5),
        ParameterGroup("b", dict(frozen.named_parameters())),
    ]
    found = describe_parts(groups, OptimSettings(lr=0.1, weight_decay=0.3, lr_scale={"a": 3.0}))
    assert found == [Part("a", 14, 12, pytest.approx(0.6), 0.3), Part("b", 5, 0, 0.0, 0.0)]


def test_rates_follow_factor_and_scale() -> None:
    objective = ToyObjective()
    config = OptimSettings(lr=0.5, lr_scale={"head": 3.0})
    optimizer, _ = build_optimizer(objective, objective.parameter_groups(), config)
    assert set_lr(optimizer, config, 0.1) == pytest.approx(0.05)
    assert {group["scale"]: group["lr"] for group in optimizer.param_groups} == pytest.approx(
        {1.0: 0.05, 6.0: 0.3}
    )
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.999)}
    assert {group["eps"] for group in optimizer.param_groups} == {1e-8}
    assert all(group["fused"] for group in optimizer.param_groups)


# Numerics.


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    assert amp_dtype("auto", CPU) is None and amp_dtype("fp32", CPU) is None
    assert amp_dtype("bf16", CPU) is torch.bfloat16
    asked: list[bool] = []
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: asked.append(including_emulation) or True
    )
    assert amp_dtype("auto", gpu) is torch.bfloat16 and amp_dtype("fp32", gpu) is None
    assert asked == [False]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert amp_dtype("auto", gpu) is None
    with pytest.raises(ConfigError, match="this GPU has no bf16"):
        amp_dtype("bf16", gpu)
    product = torch.ones(2, 2)
    with autocast(CPU, None):
        assert (product @ product).dtype is torch.float32
    with autocast(CPU, torch.bfloat16):
        assert (product @ product).dtype is torch.bfloat16


def test_threads_and_determinism_are_given_back() -> None:
    threads, before = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        with pytest.raises(KeyError), numerics(TrainSettings(steps=1, threads=3, deterministic=True)):
            assert torch.get_num_threads() == 3
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert not torch.backends.cudnn.benchmark
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
            raise KeyError
        assert torch.get_num_threads() == threads and torch.backends.cudnn.benchmark
        assert not torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)
        with numerics(TrainSettings(steps=1)):
            assert torch.get_num_threads() == threads and torch.backends.cudnn.benchmark
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = before


# Evidence.


def test_cka_of_few_and_of_many_examples_is_one_formula() -> None:
    generator = torch.Generator().manual_seed(3)
    for n, p, q in ((6, 6, 2), (6, 2, 6), (6, 7, 2), (6, 2, 7), (2, 1, 1)):
        x, y = (torch.randn(n, k, generator=generator, dtype=torch.float64) for k in (p, q))
        a, b = x - x.mean(0), y - y.mean(0)
        wanted = (a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
        assert linear_cka(x, y) == pytest.approx(float(wanted), abs=1e-12)
    assert math.isnan(linear_cka(torch.randn(4, 2), torch.ones(4, 2)))
    for wrong in (torch.ones(4), torch.ones(4, 2, 1)):
        with pytest.raises(ValueError, match="linear CKA takes"):
            linear_cka(wrong, torch.ones(4, 2))
        with pytest.raises(ValueError, match="linear CKA takes"):
            linear_cka(torch.ones(4, 2), wrong)


def test_layers_that_began_at_zero_have_their_norm_as_change() -> None:
    tower = nn.Sequential()
    tower.add_module("blocks", nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]))
    tower.add_module("norm", nn.LayerNorm(2))
    start = {name: torch.zeros_like(p) for name, p in tower.named_parameters()}
    start["norm.weight"] = torch.tensor([3.0, 4.0])
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.zero_()
        tower.blocks[0].bias.copy_(torch.tensor([3.0, 4.0]))
        tower.norm.weight.copy_(torch.tensor([3.0, 5.0]))
    tower.blocks[1].bias.requires_grad_(False)
    found = weight_change(tower, start)
    assert found["layers"] == [
        {"layer": "blocks.0", "parameters": 6, "trainable": 6, "change": 5.0},
        {"layer": "blocks.1", "parameters": 6, "trainable": 4, "change": 0.0},
        {"layer": "norm", "parameters": 4, "trainable": 4, "change": pytest.approx(0.2)},
    ]
    assert found["overall"] == pytest.approx(math.sqrt(26) / 5)


def test_evidence_counts_steps_and_keeps_them(tmp_path: Path) -> None:
    tower = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    evidence = VisionEvidence(tower, tmp_path)
    assert evidence.gradient_share == 0.0
    stale = tmp_path / "start_features.safetensors"
    stale.write_bytes(b"of another run")
    evidence.begin()
    assert not stale.exists()
    evidence.add_share(0.25)
    evidence.add_share(0.75)
    assert evidence.gradient_share == 0.5
    other = VisionEvidence(tower, tmp_path)
    other.load_state(json.loads(json.dumps(evidence.state())))
    other.add_share(0.2)
    assert other.gradient_share == pytest.approx(0.4)
    with pytest.raises(VitpError, match="after 7 steps the vision tower has not changed"):
        evidence.check(7)
    with torch.no_grad():
        tower[0].weight.mul_(1 + 1e-5)
    assert 1e-7 < evidence.check(7)["overall"] < 1e-4
    silent = VisionEvidence(tower, tmp_path)
    silent.add_share(0.0)
    silent.add_share(0.0)
    with pytest.raises(VitpError, match="no gradient has reached the vision tower in 2 steps"):
        silent.check(7)
    tower.requires_grad_(False)
    assert not silent.meant_to_train and silent.finish(9)["meant_to_train"] is False
    assert json.loads((tmp_path / "evidence.json").read_text())["step"] == 9
    # Features are those without dropout, and the tower trains on afterwards.
    evidence.features = lambda: tower(torch.ones(8, 2))
    for training in (True, False):
        tower.train(training)
        evidence.begin()
        assert tower.training is training
    assert evidence.finish(9)["cka"] is None  # all rows are the same: nothing varies
    rows_82 = torch.randn(8, 2)
    evidence.features = lambda: tower(rows_82)
    tower.train()
    evidence.begin()
    assert evidence.finish(9)["cka"] == pytest.approx(1.0)


def test_the_evidence_in_one_line() -> None:
    found = {"meant_to_train": True, "relative_change": 0.0123, "gradient_share": 0.456, "cka": 0.98765}
    line = summary(found)
    assert (
        "weights moved by 1.23e-02" in line and "45.6%" in line and line.endswith("CKA with the start 0.988")
    )
    assert "CKA" not in summary(found | {"cka": None})
    assert summary({"meant_to_train": False}) == "vision tower: frozen"


def test_names_of_layers() -> None:
    assert layers_of([]) == {}
    one = {"blocks.0.attn.weight": "blocks.0", "blocks.0.mlp.weight": "blocks.0"}
    assert layers_of(one) == one
    found = layers_of(
        ["model.stages.2.blocks.1.w", "model.layer10.weight", "model.cls_token", "model.head.fc.bias"]
    )
    assert list(found.values()) == ["stages.2", "layer10", "cls_token", "head"]
    found = layers_of(
        ["a.encoder.resblocks.3.ls1.gamma", "a.embeddings.proj.weight", "a.norm.gamma", "a.gamma"]
    )
    assert list(found.values()) == ["encoder.resblocks.3", "embeddings.proj", "norm", "gamma"]
    assert list(layers_of(["x.weight", "x.norm.bias"]).values()) == ["weight", "norm"]
    assert layers_of(["0.weight"]) == {"0.weight": "0"}
    found = layers_of(["a.embeddings.proj.conv.weight", "a.encoder.norm.x.y", "a.norm.x.weight"])
    assert list(found.values()) == ["embeddings.proj", "encoder.norm", "norm"]


# Gradients.


def test_gradient_sizes_by_part() -> None:
    tower, head = nn.Linear(2, 1, bias=False), nn.Linear(2, 1)
    head.bias.requires_grad_(False)
    groups = [
        ParameterGroup("both", {"t": tower.weight, "h": head.weight}),
        ParameterGroup("rest", {"b": head.bias}),
    ]
    gradients = Gradients(groups, tower)
    head.weight.grad = torch.tensor([[0.0, 2.0]])
    assert gradients.norms().tolist() == [0.0, 2.0]  # what has no gradient yet adds nothing
    head.weight.grad = None
    assert [p is q for p, q in zip(gradients.parameters, (tower.weight, head.weight), strict=True)] == [
        True,
        True,
    ]
    tower.weight.grad = torch.tensor([[3.0, 0.0]])
    gradients.complete()
    assert head.weight.grad is not None and not head.weight.grad.any() and head.bias.grad is None
    assert tower.weight.grad.tolist() == [[3.0, 0.0]]
    head.weight.grad = torch.tensor([[0.0, 4.0]])
    norms = gradients.norms()
    assert norms.tolist() == [3.0, 4.0]
    size = gradients.read(norms.tolist())
    assert (size.norm, size.share, size.vision_share) == (5.0, {"both": 1.0}, pytest.approx(0.36))
    none = gradients.read([0.0, 0.0])
    assert (none.norm, none.share, none.vision_share) == (0.0, {"both": 0.0}, 0.0)
    gradients.clip(10.0, norms)
    assert tower.weight.grad.tolist() == [[3.0, 0.0]]
    gradients.clip(1.0, norms)
    assert tower.weight.grad[0, 0].item() == pytest.approx(0.6, rel=1e-5)
    assert head.weight.grad[0, 1].item() == pytest.approx(0.8, rel=1e-5)


# Checkpoints.


def test_settings_that_changed_are_told_by_name() -> None:
    before = {"a": {"b": 1, "c": [1, 2]}, "d": 1, "e": {"f": 1}}
    now = {"a": {"b": 2, "c": [1, 2], "new": 3}, "d": {"x": 1}, "e": 4, "g": 5}
    said = [
        line.removeprefix("changed since the last checkpoint: ") for line in changed_settings(before, now)
    ]
    assert said == ["a.b 1 → 2", "d 1 → {'x': 1}", "e {'f': 1} → 4"]


class WithText(nn.Linear):
    def get_extra_state(self) -> str:
        return "no tensor"

    def set_extra_state(self, state: Any) -> None:
        pass


def test_a_state_has_each_tensor_once() -> None:
    module = nn.Module()
    module.one = nn.Linear(2, 2)
    module.two = nn.Linear(2, 2)
    module.two.weight = module.one.weight
    shared = torch.zeros(4)
    module.register_buffer("a", shared)
    module.register_buffer("b", shared.view(4))
    module.register_buffer("c", shared[:2])
    module.register_buffer("empty", torch.zeros(0))
    module.register_buffer("empty_too", torch.zeros(0))
    state = unique_state(module)
    assert list(state) == ["a", "c", "empty", "empty_too", "one.weight", "one.bias", "two.bias"]
    assert not any(tensor.requires_grad for tensor in state.values())
    with pytest.raises(TypeError, match="holds _extra_state, which is no tensor"):
        unique_state(WithText(2, 2))


def test_what_does_not_fit_is_listed_and_nothing_is_copied() -> None:
    module = nn.Linear(2, 3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    saved = {"weight": torch.ones(3, 4), "other": torch.ones(1)}
    with pytest.raises(
        CheckpointError,
        match=r"here: is of another architecture: 1 missing \(bias\); 1 unexpected \(other\); "
        r"1 of another shape \(weight \(3, 4\) instead of \(3, 2\)\)",
    ):
        load_weights(module, saved, source="here")
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    many = {f"x{number}": torch.ones(1) for number in range(7)} | dict(module.state_dict())
    with pytest.raises(CheckpointError, match=r"7 unexpected \(x0, x1, x2, …\)"):
        load_weights(module, many, source="here")
    few = {name: tensor for name, tensor in many.items() if name not in ("x0", "x1", "x2", "x3")}
    with pytest.raises(CheckpointError, match=r"3 unexpected \(x4, x5, x6\)"):
        load_weights(module, few, source="here")
    load_weights(module, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, source="here")
    assert module.weight.eq(1).all() and module.bias.eq(0).all()


def test_parts_without_a_scale_and_towers_without_layers() -> None:
    module = nn.Linear(2, 2)
    groups = [ParameterGroup("a", dict(module.named_parameters()))]
    assert describe_parts(groups, OptimSettings(lr=0.1, lr_scale={}))[0].lr == pytest.approx(0.1)

    class Flat(ToyObjective):
        def layer_distances(self) -> dict[str, int]:
            return dict.fromkeys(super().layer_distances(), 0)

    objective = Flat()
    with pytest.raises(ConfigError, match="ToyTower has no layers that could learn at falling rates"):
        build_optimizer(objective, objective.parameter_groups(), OptimSettings(layer_decay=0.9))


def test_signals_outside_of_the_main_thread_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[Any] = []

    def work() -> None:
        with StopSignals() as signals:
            seen.append((signals.received, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)] and signal.getsignal(signal.SIGTERM) is before
