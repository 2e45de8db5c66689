"""Batches in, measurements out."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine_toys import ToySource
from tests.unit.engine_runs import make_trainer, rows
from vitp.engine.config import LogSettings
from vitp.engine.hooks import Hook, StepMetrics
from vitp.engine.loading import StepLoader, to_device
from vitp.engine.logging import Meter, MetricsFile
from vitp.engine.loop import Trainer
from vitp.engine.trackers import Trackers


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_keeps_the_order_of_steps(num_workers: int) -> None:
    class Places(ToySource):
        def __call__(self, *place: int) -> Any:
            assert num_workers == 0 or torch.get_num_threads() == 1
            return place

    loader = StepLoader(Places(), 2, 6, 3, rank=1, world=4, num_workers=num_workers)
    found = [loader.next_step() for _ in range(4)]
    loader.close()
    assert found == [[(step, micro, 1, 4) for micro in range(3)] for step in range(2, 6)]
    assert loader.wait_s > 0


@pytest.mark.parametrize(("num_workers", "told"), [(2, 0), (3, 2)])
def test_two_workers_on_one_core_are_no_news(
    num_workers: int, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two is the default; whoever asks for more is told by torch, of the loader and of its workers."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        loader = StepLoader(ToySource(), 0, 4, 1, num_workers=num_workers)
        loader.next_step()
    loader.close()
    assert sum("suggested max number of worker" in str(one.message) for one in found) == told


def test_to_device_keeps_the_structure() -> None:
    batch = ToySource()(0, 0, 0, 1)
    nested = {"a": [batch, (torch.ones(2), "text", 3)], "b": None}
    moved = to_device(nested, torch.device("meta"))
    assert moved["a"][0].x.device.type == "meta"
    assert moved["a"][0].record_names == batch.record_names
    assert moved["a"][1][0].device.type == "meta"
    assert moved["a"][1][1:] == ("text", 3)
    assert batch.x.device.type == "cpu"


def test_metrics_of_later_steps_are_dropped_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n{"step": 20, "a": 1}\n{"step": 20, "probe": 2}\n{"step": 30}\n{"step": 4')
    MetricsFile(path, 20).write({"step": 30, "loss": 0.5})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20, 20, 30]
    MetricsFile(path, 0)
    assert path.read_text() == ""


def test_meter_gives_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 104.0, 106.0])
    monkeypatch.setattr("vitp.engine.logging.time.perf_counter", lambda: next(clock))
    meter = Meter()
    meter.add({"samples": 6, "tokens": 30, "capacity": 40})
    meter.add({"samples": 2, "tokens": 30, "capacity": 40})
    assert meter.read(1.0) == {"samples_per_s": 2.0, "tokens_per_s": 15.0, "packing": 0.75, "data_wait": 0.25}
    assert meter.read(2.0) == {"data_wait": 0.5}


def test_hooks_log_scalars_and_tensorboard_has_them(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Probe(Hook):
        def on_step_end(self, trainer: Trainer, step: int, metrics: StepMetrics) -> None:
            if step == 2:
                trainer.log_scalars(step, {"probe/accuracy": 0.25})

    trackers = Trackers(tmp_path, LogSettings(), {})
    make_trainer(tmp_path, hooks=(Probe(),), steps=3, log_every=1, trackers=trackers)[0].train()
    trackers.close()
    assert {"step": 2, "probe/accuracy": 0.25} in rows(tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Scalars("probe/accuracy")[0].value == 0.25
    losses = [row["loss"] for row in rows(tmp_path) if "loss" in row]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses, rel=1e-6)
    assert (
        "grad_share/vision tower" in events.Tags()["scalars"]
        or "grad_share/vision_tower" in events.Tags()["scalars"]
    )
