"""The step that is masked by its own finite check, and what ranks tell each other as numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.engine_toys import ToyObjective, ToySource
from vitp.core import distributed
from vitp.core.distributed import RankReport
from vitp.core.errors import DataError, VitpError
from vitp.core.tensors import tensors_of
from vitp.engine.config import OptimSettings, TrainSettings
from vitp.engine.exchange import StepExchange
from vitp.engine.loading import to_device
from vitp.engine.loop import Trainer
from vitp.planning.bench.synthetic import MODEL_SIZES, SyntheticSource, Workload, make_chat


def trained(folder: Path, *, masked: bool, nan_step: int | None = None) -> Trainer:
    trainer = Trainer(
        ToyObjective(),
        ToySource(rows=24, nan_step=nan_step),
        OptimSettings(lr=1e-2, weight_decay=0.1, clip_norm=2.0),
        TrainSettings(steps=6, num_workers=0, device="cpu", deterministic=True),
        folder,
        console=Console(quiet=True),
    )
    trainer._masks_steps = masked
    if nan_step is None:
        trainer.train()
    else:
        with pytest.raises(VitpError, match=f"in step {nan_step + 1}"):
            trainer.train()
    return trainer


def states(trainer: Trainer) -> list[torch.Tensor]:
    moments = [x for state in trainer.optimizer.state.values() for x in state.values()]
    return [*(p.detach() for p in trainer.objective.parameters()), *moments]


@pytest.mark.parametrize("nan_step", [None, 4])
def test_a_masked_step_is_the_step_bit_for_bit(tmp_path: Path, nan_step: int | None) -> None:
    """Where all is finite and where it is not: weights, moments and counts of steps."""
    plain, masked = (
        trained(tmp_path / name, masked=name == "masked", nan_step=nan_step) for name in ("plain", "masked")
    )
    assert plain.step == masked.step == (6 if nan_step is None else nan_step)
    for a, b in zip(states(plain), states(masked), strict=True):
        assert torch.equal(a, b)


def test_a_step_that_is_not_finite_at_the_start_changes_nothing(tmp_path: Path) -> None:
    trainer = trained(tmp_path, masked=True, nan_step=0)
    for ours, fresh in zip(trainer.objective.parameters(), ToyObjective().parameters(), strict=True):
        assert torch.equal(ours, fresh)


class Ranks:
    """Two ranks in one process: what the other one says is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, others: list[RankReport]) -> None:
        self.others, self.pickled, self.other = others, 0, StepExchange()
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        monkeypatch.setattr(distributed, "gather", self.gather)
        monkeypatch.setattr(distributed, "gather_numbers", self.gather_numbers)

    def gather(self, value: Any) -> list[Any]:
        self.pickled += 1
        return [value, self.others[0]]

    def gather_numbers(self, numbers: torch.Tensor) -> list[list[float]]:
        return [numbers.tolist(), self.other._numbers(self.others[0]).tolist()]


def report(**changes: Any) -> RankReport:
    values: dict[str, Any] = {
        "counts": {"a": 3.0},
        "work": {"tiles": 2.0},
        "stop": None,
        "error": None,
        "saved": True,
    }
    return RankReport(**(values | changes))


def test_numbers_are_told_as_numbers_and_the_rest_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = StepExchange()
    ranks = Ranks(monkeypatch, [report(counts={"a": 1.0, "b": 5.0})])
    assert exchange(report()) == [report(), ranks.others[0]] and ranks.pickled == 1
    ranks.other._names = exchange._names
    for own, other in (
        (report(), report(counts={"b": 0.1 + 0.2}, saved=False)),
        (report(stop=15), report(counts={})),
        (report(counts={"a": math.pi, "b": 1e15}), report(stop=2)),
    ):
        ranks.others = [other]
        assert exchange(own) == [own, other]
    assert ranks.pickled == 1
    ranks.others = [report(work={"tiles": 1.0, "new": 1.0})]
    assert exchange(report()) == [report(), ranks.others[0]] and ranks.pickled == 2
    ranks.other._names = exchange._names
    broken = report(error=DataError("is broken", where="x"))
    assert exchange(broken)[0].error is broken.error and ranks.pickled == 3


def test_one_buffer_holds_all_tensors_of_a_batch() -> None:
    batch = ToySource(rows=8)(0, 0, 0, 1)
    made = SyntheticSource(make_chat(MODEL_SIZES["micro"]), 32, Workload(records=2))(0, 0, 0, 1)
    packed = made.in_one_buffer()
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors_of(packed)}) == 1
    moved = packed.to("meta")
    for one, other, far in zip(tensors_of(made), tensors_of(packed), tensors_of(moved), strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype
        assert (far.shape, far.dtype, far.device.type) == (one.shape, one.dtype, "meta")
    assert to_device(batch, torch.device("cpu")) is batch
