"""How a share of a step is cut: what is preferred, what fits, what a run and a plan say."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tests.unit.test_task_runs import QUIET, config
from vitp.core.config import load_config
from vitp.core.errors import ConfigError
from vitp.models.vrl import VRLSettings
from vitp.planning.devices import machine_of
from vitp.planning.memory import GIB
from vitp.planning.model import INTERNVL_1B, INTERNVL_VOCABULARY, model_shape
from vitp.planning.plan import RunShape, best_batch
from vitp.planning.samples import SampleSize
from vitp.runs import micro_batch
from vitp.runs.finetune import FinetuneConfig, run_finetune
from vitp.runs.micro_batch import BatchChoice, batch_choices, chosen_batch, chosen_before, first_fitting
from vitp.runs.pretrain import PretrainConfig
from vitp.tasks.base import TaskBatch
from vitp.tasks.classification import ClassificationModel


def test_every_cut_of_a_share_is_there_once() -> None:
    found = batch_choices(12)
    assert {(c.micro_batches, c.recompute) for c in found} == {
        (parts, way) for parts in (1, 2, 3, 4, 6, 12) for way in ("none", "full")
    }
    assert all(c.micro_batches * c.records == 12 for c in found)
    assert found[0] == BatchChoice(1, 12, "none")


def test_many_records_with_recomputation_beat_few_without() -> None:
    order = batch_choices(32)
    assert order.index(BatchChoice(1, 32, "full")) < order.index(BatchChoice(8, 4, "none"))
    assert order.index(BatchChoice(4, 8, "none")) < order.index(BatchChoice(1, 32, "full"))


def test_the_first_that_fits_is_taken() -> None:
    tried: list[BatchChoice] = []

    def fits(choice: BatchChoice) -> bool:
        tried.append(choice)
        return choice.records <= 4

    found = first_fitting(16, fits)
    assert found == BatchChoice(4, 4, "none") and tried == batch_choices(16)[: len(tried)]
    assert first_fitting(4, lambda _: False) is None


@pytest.mark.parametrize("gpu", ["A10", "A100-40", "H100"])
def test_plans_fill_the_card(gpu: str) -> None:
    """24, 40 and 80 GB: what is planned fits, a larger card takes no fewer records, and the step stays whole."""
    shape = model_shape(INTERNVL_1B, INTERNVL_VOCABULARY)
    run = RunShape(100, 128, 32, True, VRLSettings(ratio=0.75), True)
    samples = [SampleSize(tiles, 120, 40) for tiles in (1, 3, 5, 7)]
    found = best_batch(shape, run, samples, machine_of(gpu))
    assert found is not None
    choice, memory = found
    machine = machine_of(gpu)
    assert memory.total <= 0.92 * machine.device.memory_gib * GIB
    assert choice.records * choice.micro_batches == 128
    larger = best_batch(shape, run, samples, machine_of("H200"))
    assert larger is not None and larger[0].cost <= choice.cost


def test_without_a_gpu_the_batch_stays(tmp_path: Path) -> None:
    config = PretrainConfig(data={"mixture": ["x"]}, train={"steps": 3, "batch": "auto", "device": "cpu"})  # type: ignore[arg-type]
    assert chosen_before(config, tmp_path) == (config, [])
    found, said = chosen_batch(config, None)  # type: ignore[arg-type]
    assert found.train.batch == "fixed" and found.train.micro_batches == config.train.micro_batches
    assert found.data == config.data and "no GPU" in said[0]


def test_where_it_has_no_meaning_it_is_refused() -> None:
    with pytest.raises((ValueError, ConfigError), match="no use for auto"):
        PretrainConfig(objective="mae", data={"mixture": ["x"]}, train={"steps": 3, "batch": "auto"})  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_finetuning_is_cut_by_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than two images at once are too many; what is learned is what that cut, stated by hand, learns."""
    real = ClassificationModel.forward

    def forward(self: ClassificationModel, batch: TaskBatch) -> dict[str, torch.Tensor]:
        if len(batch) > 2:
            raise torch.cuda.OutOfMemoryError("too many")
        return real(self, batch)

    monkeypatch.setattr(ClassificationModel, "forward", forward)
    monkeypatch.setattr(micro_batch, "usable_bytes", lambda _: 1e12)
    for name in ("reset_peak_memory_stats", "max_memory_allocated", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 0)
    said = io.StringIO()
    auto = config(train={"steps": 2, "batch": "auto", "device": "cpu"})
    run_finetune(auto, tmp_path / "auto", console=Console(file=said, width=200))
    assert "train.batch: 2 records a micro-batch, 2 a step (the fastest" in said.getvalue()
    by_hand = config(train={"steps": 2, "micro_batches": 2, "device": "cpu"})
    run_finetune(by_hand, tmp_path / "hand", console=QUIET)
    one, other = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("auto", "hand"))
    assert one == other
    monkeypatch.setattr(
        micro_batch, "usable_bytes", lambda _: 0.0
    )  # another machine: the run goes on as it began
    longer = config(train={"steps": 3, "batch": "auto", "device": "cpu"})
    run_finetune(longer, tmp_path / "auto", resume=True, console=Console(file=said, width=200))
    assert "train.batch: as the run began" in said.getvalue()
    assert load_config(FinetuneConfig, tmp_path / "auto" / "config.yaml").train.micro_batches == 2
    with pytest.raises(ConfigError, match="not even one record at a time"):
        run_finetune(longer, tmp_path / "none", console=QUIET)
