"""`vitp bench`: the workload is what it says, the figures fit together, results are compared with like."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import tiny_chat
from vitp.cli import run
from vitp.core.errors import ConfigError
from vitp.objectives.vlm_flops import vlm_step_flops
from vitp.planning.bench import measure
from vitp.planning.bench.benchmark import BenchConfig, bench_config, changes, last_result, synthetic_subject
from vitp.planning.bench.measure import StepSettings, data_sheet, measure_steps, measured_peak, peak_memory
from vitp.planning.bench.profile import kind_of
from vitp.planning.bench.synthetic import MODEL_SIZES, SyntheticSource, Workload

CPU = torch.device("cpu")


def source(**changes) -> SyntheticSource:
    return SyntheticSource(tiny_chat(), 32, Workload(**({"records": 8} | changes)))


def test_tiles_follow_the_histogram():
    made = source(records=20, tiles=((1, 0.5), (3, 0.25), (5, 0.25)))
    counts = made.tile_counts(3)
    assert sorted(counts) == [1] * 10 + [3] * 5 + [5] * 5
    assert counts != made.tile_counts(4) and counts == made.tile_counts(3)
    batch = made(3, 0, 0, 1)
    assert len(batch.tiles_TCHW) == sum(counts)
    assert len(batch.keep_K) == sum(-(-count * 16 // 4) for count in counts)


def test_ranks_share_the_records_of_a_step():
    made = source(records=6, questions=2)
    whole = made(0, 0, 0, 1)
    parts = [made(0, 0, rank, 3) for rank in range(3)]
    assert [len(part.record_names) for part in parts] == [2, 2, 2]
    assert sum((part.record_names for part in parts), ()) == whole.record_names
    assert sum(part.tokens for part in parts) == whole.tokens
    assert whole.turns == 12


def test_shared_and_separate_records_have_the_same_answers():
    shared, apart = (source(questions=3, independent=one, together=one)(0, 0, 0, 1) for one in (True, False))
    assert sorted(shared.target_ids_S.tolist()) == sorted(apart.target_ids_S.tolist())
    assert int(apart.segments_BL.max()) == 0


@pytest.mark.parametrize(
    ("size", "tokens", "padded"), [("micro", 144, 2304), ("small", 196, 3136), ("full", 256, 4096)]
)
def test_sizes_know_their_tokens(size, tokens, padded):
    made = MODEL_SIZES[size]
    assert (made.tokens_per_tile, made.padded_length) == (tokens, padded)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A40", 149.7),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA Unheard 1", None),
    ],
)
def test_peaks_of_data_sheets(name, tflops):
    found = data_sheet(name)
    assert found == (None if tflops is None else pytest.approx(tflops * 1e12))


def test_a_measured_peak_is_plausible():
    found = measured_peak(CPU, torch.float32, side=256)
    assert 1e8 < found < 1e13


def test_memory_of_a_call_is_measured():
    size = 48 * 2**20
    found = peak_memory(lambda: np.ones(size, dtype=np.uint8).sum(), CPU)
    assert 0.8 * size <= found <= 1.6 * size


def test_figures_fit_together(monkeypatch):
    monkeypatch.setattr(measure, "measured_peak", lambda *_: 2e12)
    subject = synthetic_subject(BenchConfig(records=2, tiles=1, questions=2, steps=2))
    seen: list[int] = []
    found = measure_steps(
        subject.objective, subject.source, StepSettings(steps=2, warmup=0, device="cpu"), on_step=seen.append
    )
    batch = subject.source(0, 0, 0, 1)
    assert seen == [0, 1]
    assert found.questions_per_s == pytest.approx(2 * found.samples_per_s)
    assert found.tiles_per_s == pytest.approx(found.samples_per_s)
    assert found.tokens_per_s == pytest.approx(found.samples_per_s * batch.tokens / 2, rel=0.05)
    flops = vlm_step_flops(subject.objective.vlm, batch) / 2 * found.samples_per_s
    assert found.model_tflops == pytest.approx(flops / 1e12, rel=0.05)
    assert found.mfu == pytest.approx(found.model_tflops / 2)
    assert (found.peak_tflops, found.peak_basis) == (2.0, "measured")
    parameters = sum(p.numel() for p in subject.objective.parameters())
    assert found.state_gb == pytest.approx(16 * parameters / 2**30)
    assert 0 <= found.data_wait < 1 and 0 < found.packing <= 1 and found.memory_gb > 0


def test_settings_are_checked():
    assert bench_config(["records=3"], size=None, steps=4) == BenchConfig(records=3, steps=4)
    with pytest.raises(ConfigError, match="size is 'huge'"):
        bench_config([], size="huge")


def result(date: str, hardware: str = "cpu", size: str = "micro", rate: float = 2.0, steps: int = 8) -> dict:
    return {
        "benchmark": "vitp bench",
        "date": date,
        "hardware": hardware,
        "subject": {"size": size, "steps": steps},
        "figures": {"samples_per_s": rate, "memory_gb": 1.0, "data_wait": 0.0},
    }


def test_the_last_result_of_the_same_hardware_and_subject(tmp_path: Path):
    made = {
        "old": result("2026-01-01"),
        "new": result("2026-02-01", rate=4.0, steps=3),
        "other": result("2026-03-01", hardware="gpu"),
        "small": result("2026-03-01", size="small"),
    }
    for name, value in made.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "foreign.json").write_text('{"benchmark": "vrl_cost"}')
    now = result("2026-04-01", rate=5.0)
    found = last_result(tmp_path, now)
    assert found == made["new"]
    assert changes(found, now) == {"samples_per_s": 1.25, "memory_gb": 1.0}
    assert last_result(tmp_path, result("2026-04-01", hardware="tpu")) is None


def test_kinds_of_work():
    assert kind_of("aten::addmm") == "matrix products"
    assert kind_of("aten::_scaled_dot_product_flash_attention_for_cpu") == "attention"
    assert kind_of("aten::native_layer_norm") == "normalisation"
    assert kind_of("aten::_fused_adamw_") == "optimizer"
    assert kind_of("aten::mkldnn_convolution") == "convolution"
    assert kind_of("aten::sqrt") == "other"


def test_the_command_writes_figures_trace_and_page(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "measured_peak", lambda *_: 1e12)
    small = ["--set", "records=1", "--set", "tiles=1", "--set", "device=cpu"]
    assert run(["bench", "--steps", "1", *small, "--json", "a.json", "--profile", "profile"]) == 0
    made = json.loads((tmp_path / "a.json").read_text())
    assert made["benchmark"] == "vitp bench" and made["figures"]["samples_per_s"] > 0
    assert made["subject"]["records"] == 1
    page = (tmp_path / "profile" / "summary.md").read_text()
    assert "matrix products" in page and "vision" in page
    assert (tmp_path / "profile" / "trace.json").stat().st_size > 1000
    assert run(["bench", "--steps", "1", *small, "--against", "."]) == 0
    assert made["date"] in capsys.readouterr().out
