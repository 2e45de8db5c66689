"""Whether the vision tower learned."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tests.engine_toys import ToyObjective
from tests.unit.engine_runs import Recorder, make_trainer
from vitp.core.errors import VitpError
from vitp.engine.evidence import linear_cka, weight_change
from vitp.engine.hooks import Hook, StepMetrics
from vitp.engine.layers import layers_of
from vitp.engine.loop import Trainer


def test_linear_cka_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    for n, p, q in ((40, 7, 11), (9, 30, 20)):
        X = torch.randn(n, p, generator=generator, dtype=torch.float64)
        Y = X @ torch.randn(p, q, generator=generator, dtype=torch.float64) + torch.randn(
            n, q, generator=generator
        )
        H = torch.eye(n, dtype=torch.float64) - 1 / n
        K, L = H @ (X @ X.T) @ H, H @ (Y @ Y.T) @ H
        expected = torch.trace(K @ L) / torch.sqrt(torch.trace(K @ K) * torch.trace(L @ L))
        assert linear_cka(X, Y) == pytest.approx(expected.item(), abs=1e-12)
        rotation = torch.linalg.qr(torch.randn(p, p, generator=generator, dtype=torch.float64)).Q
        assert linear_cka(X, 3 * X @ rotation + 5) == pytest.approx(1, abs=1e-12)
    assert math.isnan(linear_cka(torch.ones(4, 2), torch.randn(4, 2)))
    with pytest.raises(ValueError):
        linear_cka(torch.ones(4, 2), torch.ones(3, 2))


def test_weight_change_by_layer() -> None:
    tower = ToyObjective().tower
    start = {name: p.detach().clone() for name, p in tower.named_parameters()}
    with torch.no_grad():
        tower.blocks[1].weight.mul_(1.5)
        tower.blocks[1].bias.mul_(1.5)
    change = weight_change(tower, start)
    layers = {row["layer"]: row["change"] for row in change["layers"]}
    assert layers.keys() == {"patch_embed", "pos_embed", "blocks.0", "blocks.1", "blocks.2"}
    assert layers["blocks.1"] == pytest.approx(0.5, rel=1e-6)
    assert layers["blocks.0"] == 0
    moved = sum((p - start[n]).square().sum().item() for n, p in tower.named_parameters())
    norm = sum(p.square().sum().item() for p in start.values())
    assert change["overall"] == pytest.approx(math.sqrt(moved / norm), rel=1e-5)


def test_layer_names_leave_wrappers_out() -> None:
    names = ["vit.patch_embed.proj.weight", "vit.pos_embed", "vit.blocks.0.attn.qkv.bias", "vit.norm.weight"]
    assert list(layers_of(names).values()) == ["patch_embed", "pos_embed", "blocks.0", "norm"]
    names = ["m.embeddings.class_embedding", "m.embeddings.patch_embedding.weight", "m.encoder.layers.11.ls1"]
    assert list(layers_of(names).values()) == [
        "embeddings.class_embedding",
        "embeddings.patch_embedding",
        "encoder.layers.11",
    ]
    assert list(layers_of(["blocks.0.a.weight", "blocks.1.a.weight"]).values()) == ["blocks.0", "blocks.1"]


def test_evidence_of_a_run(tmp_path: Path) -> None:
    probe = torch.randn(20, 8, generator=torch.Generator().manual_seed(4))

    class Features(Hook):
        def on_start(self, trainer: Trainer) -> None:
            trainer.evidence.features = lambda: trainer.objective.vision_tower(probe)

    start = ToyObjective()
    recorder = Recorder()
    trainer, text = make_trainer(tmp_path, ToyObjective(), hooks=(Features(), recorder), steps=30)
    result = trainer.train()
    evidence = json.loads((tmp_path / "evidence.json").read_text())
    assert evidence == result.evidence
    with torch.no_grad():
        expected = linear_cka(start.tower(probe), trainer.objective.tower(probe))
    assert evidence["cka"] == pytest.approx(expected, abs=1e-6)
    assert 0.1 < evidence["cka"] < 0.9999
    assert evidence["relative_change"] > 1e-3
    shares = [m.vision_share for m in recorder.metrics]
    assert evidence["gradient_share"] == pytest.approx(sum(shares) / 30)
    assert shares[0] == pytest.approx(recorder.metrics[0].grad_share["vision tower"])
    assert "weights moved by" in text.getvalue()


def test_a_tower_that_does_not_learn_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(VitpError, match="no gradient has reached the vision tower in 5 steps"):
        make_trainer(tmp_path / "a", ToyObjective(detached=True), steps=40, optim={"warmup_steps": 0})[
            0
        ].train()

    class Stuck(ToyObjective):
        """Its weights are put back after each step, as a copy in bf16 that rounds the step away would be."""

    objective = Stuck()
    start = {name: p.detach().clone() for name, p in objective.tower.named_parameters()}

    class PutBack(Hook):
        def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
            objective.tower.load_state_dict(start)

    with pytest.raises(VitpError, match="after 3 steps the vision tower has not changed"):
        make_trainer(tmp_path / "b", objective, hooks=(PutBack(),), steps=40, check_at=3)[0].train()
    frozen = ToyObjective()
    frozen.tower.requires_grad_(False)
    result = make_trainer(tmp_path / "c", frozen)[0].train()
    assert result.evidence["relative_change"] == 0
    assert result.evidence["meant_to_train"] is False
