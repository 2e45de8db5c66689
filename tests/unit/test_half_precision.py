"""fp16: the loss scale, steps that are skipped, and that a resumed run has both to the bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.engine_toys import ToyBatch, ToyObjective, ToySource
from tests.objective_toys import CASES, labelled_folder
from tests.unit.engine_runs import Recorder, StopAfter, assert_same_checkpoint, make_trainer, rows
from tests.unit.test_task_runs import config
from vitp.core.errors import VitpError
from vitp.engine import checkpoint, numerics, scaling
from vitp.engine.scaling import LossScale
from vitp.engine.stopping import Interrupted
from vitp.models.vlm import VisionLanguageModel
from vitp.objectives.vitp import ViTPObjective
from vitp.planning.bench.synthetic import MODEL_SIZES, SyntheticSource, Workload, make_chat
from vitp.runs.finetune import build_run


@pytest.fixture(autouse=True)
def toy_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "START", 2.0**10)  # at more the toy itself overflows


class _Overflows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * float("inf")


class Overflowing(ToyObjective):
    """Its gradient, not its loss, is infinite in some forward passes."""

    def __init__(self, *passes: int, dropout: float = 0.0) -> None:
        super().__init__(dropout=dropout)
        self.passes, self.done = passes, 0

    def forward(self, batch: ToyBatch) -> dict[str, Tensor]:
        sums, self.done = super().forward(batch), self.done + 1
        return {n: _Overflows.apply(s) if self.done in self.passes else s for n, s in sums.items()}


def weights(objective: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in objective.state_dict().items()}


def test_the_scale_is_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "GROWTH_STEPS", 3)
    own, parameter = LossScale(torch.float16), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    theirs = torch.amp.GradScaler("cpu", init_scale=scaling.START, growth_interval=3)
    for finite in [True, False, True, True, True, True, False, False, *[True] * 7]:
        theirs.scale(parameter.sum() * (1.0 if finite else float("inf"))).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        own.update(finite)
        assert own.value == theirs.get_scale()
    assert own.skipped == 3 and own.row() == {"loss_scale": own.value, "skipped_steps": 3.0}


def test_other_precisions_have_no_scale() -> None:
    for dtype in (None, torch.bfloat16):
        scale, loss = LossScale(dtype), torch.ones(())
        scale.update(False)
        assert (scale.value, scale.row(), scale.state()) == (1.0, {}, {})
        assert scale.scaled(loss) is loss and not scale.can_fall


@pytest.mark.parametrize("masks", [False, True])
def test_a_step_with_an_infinite_gradient_is_skipped(tmp_path: Path, masks: bool) -> None:
    """Of two micro-batches one overflows, in step 3; the step is gone, and the next one goes on."""
    seen, record = [], Recorder()

    class Watch(Recorder):
        def on_step_end(self, trainer: Any, step: int, metrics: Any) -> None:
            seen.append((weights(trainer.objective), trainer.loss_scale.value, metrics.skipped))

    objective = Overflowing(6)
    trainer, text = make_trainer(
        tmp_path,
        objective,
        micro_batches=2,
        hooks=(record, Watch()),
        precision="fp16",
        log_every=1,
        ema=0.5,
    )
    trainer._masks_steps = masks  # as on a GPU, where the optimizer itself leaves the step out
    assert trainer.train().step == 6
    assert [skipped for _, _, skipped in seen] == [False, False, True, False, False, False]
    assert [scale for _, scale, _ in seen] == [2.0**10] * 2 + [2.0**9] * 4
    # With an average hooks see that, which a skipped step leaves as it is, too.
    assert all(torch.equal(seen[1][0][name], seen[2][0][name]) for name in seen[1][0])
    assert any(not torch.equal(seen[2][0][name], seen[3][0][name]) for name in seen[1][0])
    said = " ".join(text.getvalue().split())
    assert "step 3 skipped: the gradient is not finite at a loss scale of 1024, which is halved" in said
    assert [(row["step"], row["skipped_steps"]) for row in rows(tmp_path) if "loss" in row] == [
        *((1, 0), (2, 0)),
        *((4, 1), (5, 1), (6, 1)),
    ]
    state = json.loads((checkpoint.folder(tmp_path, 6) / "state.json").read_text())
    assert state["more"]["scaler"] == {"scale": 2.0**9, "finite": 3, "skipped": 1}


def test_fp16_learns_what_fp32_does(tmp_path: Path) -> None:
    """The clip is of unscaled gradients: with the scale left in, all of them would be at its bound."""
    found = {}
    for precision in ("fp32", "fp16"):
        record = Recorder()
        trainer, _ = make_trainer(
            tmp_path / precision, hooks=(record,), precision=precision, optim={"clip_norm": 0.5}
        )
        trainer.train()
        found[precision] = record.metrics
    for exact, half in zip(found["fp32"], found["fp16"], strict=True):
        assert half.loss == pytest.approx(exact.loss, rel=0.02)
        assert half.grad_norm == pytest.approx(exact.grad_norm, rel=0.05)
        assert half.losses != exact.losses  # it is another arithmetic


def test_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "GROWTH_STEPS", 3)
    settings: dict[str, Any] = {"steps": 10, "precision": "fp16", "log_every": 1, "save_every": None}
    make_trainer(tmp_path / "whole", Overflowing(2, dropout=0.2), **settings)[0].train()
    with pytest.raises(Interrupted):
        stop = (StopAfter(4, signal.SIGTERM),)
        make_trainer(tmp_path / "cut", Overflowing(2, dropout=0.2), hooks=stop, **settings)[0].train()
    trainer, _ = make_trainer(tmp_path / "cut", Overflowing(dropout=0.2), resume=True, **settings)
    trainer.train()
    one, other = (checkpoint.folder(tmp_path / name, 10) for name in ("whole", "cut"))
    assert_same_checkpoint(one, other)
    scaler = {"scale": 2.0**11, "finite": 2, "skipped": 1}
    assert checkpoint.read_state(one).more == checkpoint.read_state(other).more == {"scaler": scaler}
    scales = [[row["loss_scale"] for row in rows(tmp_path / name)] for name in ("whole", "cut")]
    assert scales[0] == scales[1] and len(scales[0]) == 9
    # A run of another precision begins with the scale that runs begin with.
    other_way, text = make_trainer(
        tmp_path / "cut", ToyObjective(dropout=0.2), resume=True, **settings | {"precision": "fp32"}
    )
    other_way.train()
    assert "train.precision fp16 → fp32" in text.getvalue()


def test_a_scale_that_cannot_fall_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "START", 4.0)
    trainer, text = make_trainer(
        tmp_path, Overflowing(*range(2, 20)), ToySource(), precision="fp16", save_every=None
    )
    with pytest.raises(VitpError, match="the gradient is not finite in step 4") as raised:
        trainer.train()
    assert text.getvalue().count("skipped") == 2 and "step_00000003" in str(raised.value)
    first = make_trainer(tmp_path / "one", steps=1, precision="fp16")[0]
    first.train()
    state = weights(first.objective)
    assert all(torch.equal(value, state[name]) for name, value in weights(trainer.objective).items())


def test_statistics_that_are_spoilt_end_the_run(tmp_path: Path) -> None:
    """A batch whose values are not finite is in the running statistics before its loss is known."""

    class Running(ToyObjective):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(8, affine=False)

        def forward(self, batch: ToyBatch) -> dict[str, Tensor]:
            self.norm(batch.x)
            return super().forward(batch)

    trainer, _ = make_trainer(tmp_path, Running(), ToySource(nan_step=2), precision="fp16", save_every=1)
    with pytest.raises(VitpError, match=r"in step 3, with toy\.jsonl.*earlier checkpoints are untouched"):
        trainer.train()


def test_a_gpu_without_bf16_is_told_of_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert numerics.amp_dtype("auto", cuda) is None and numerics.amp_dtype("fp16", cuda) is torch.float16
    with pytest.raises(VitpError, match='use "fp16"'):
        numerics.amp_dtype("bf16", cuda)


def trained(run_dir: Path, objective: Any, source: Any) -> tuple[int, list[float]]:
    """Make three fp16 steps; return the skipped ones and the losses of the others."""
    record = Recorder()
    make_trainer(run_dir, objective, source, hooks=(record,), precision="fp16", deterministic=False)[
        0
    ].train()
    kept = [metrics.loss for metrics in record.metrics if not metrics.skipped]
    return len(record.metrics) - len(kept), kept


@pytest.mark.slow
def test_every_objective_and_task_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "START", 2.0**8)  # three steps are not enough to come down from 65,536
    folder = labelled_folder(tmp_path / "data")
    found = {name: trained(tmp_path / name, case.make(), case.source(folder)) for name, case in CASES.items()}
    size = MODEL_SIZES["micro"]
    chat = make_chat(size)
    objective = ViTPObjective(VisionLanguageModel(size.config, vocabulary=size.vocabulary), chat)
    work = Workload(records=2, questions=2, question_words=4, answer_words=3)
    source = SyntheticSource(chat, objective.vlm.vision.image_size[0], work, seed=0)
    found["vitp"] = trained(tmp_path / "vitp", objective, source)
    vision = {"arguments": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}, "image_size": 64}
    sized = {"options": {"count": 20, "size": 64, "val": 0.2, "test": 0.2}}
    for task in ("classification", "segmentation", "instance", "oriented"):
        run = build_run(config(task=task, data=sized, backbone={"vision": vision}))
        found[task] = trained(tmp_path / task, run.model, run.source)
    for name, (skipped, losses) in found.items():
        assert skipped <= 2 and losses and all(0 <= loss < 1000 for loss in losses), (name, skipped, losses)
