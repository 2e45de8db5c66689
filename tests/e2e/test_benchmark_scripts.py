"""Scripts of benchmarks: of a GPU run where there is none, and of annotation, which begins broken cells again."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.e2e.conftest import ROOT, environment
from vitp.checkpoints.loading import load_vlm
from vitp.checkpoints.tensors import WEIGHTS
from vitp.core.files import sha256
from vitp.planning.bench.measure import Measurement
from vitp.runs.check.findings import CheckFinding, Difference
from vitp.studies.scales import scale_of


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    """The script that writes the page."""
    spec = importlib.util.spec_from_file_location("benchmark_of_a_gpu", ROOT / "benchmarks" / "gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_a_page_names_its_checks_and_stays_narrow(gpu: ModuleType) -> None:
    """Of what `vitp check --json`, `gpu_step.py` and `finetune_step.py` write, in their own classes and words."""
    wrong = Difference("gradient, cosine", 0.5, 0.999, at_least=True)
    checks = [
        CheckFinding("packed ≡ one by one", (Difference("loss, relative", 3e-8, 1e-4),)),
        CheckFinding("bf16 ≡ dense mask", skipped="there is no GPU"),
        CheckFinding("compiled ≡ eager", (Difference("loss, relative", 0.0, 1e-4), wrong)),
    ]
    measured: dict[str, Any] = {field.name: 0.5 for field in fields(Measurement)} | {
        "step_s": 0.25,
        "samples_per_s": 16.0,
    }
    measured |= {"compiled": "nothing"}
    step: dict[str, Any] = {
        "benchmark": "gpu_step",
        "commit": "abc",
        "size": "micro",
        "note": "the time was over before all settings were measured",
        "published, unpadded, 4 records": measured,
        "ours, compiled vision, 8 records": {**measured, "compiled": "2 graphs"},
        "largest_micro_batch": {"eager": 16, "compiled vision": 32},
        "times_faster": {"unpadded": 3.1},
    }
    parts = {
        "checks": gpu.Done("done", 1.0, [check.to_json() for check in checks]),
        "step": gpu.Done("done", 2.0, step),
        "finetune": gpu.Done("stopped after 9 s", 9.0, {}),
    }
    head = {"hardware": "a CPU", "date": "today", "commit": "abc", "torch": "2.11", "size": "micro"}
    page = gpu.page({**head, "gpu": False}, parts)
    rows = page.splitlines()
    assert "| packed ≡ one by one | loss, relative 3e-08 |" in rows
    assert "| bf16 ≡ dense mask | skipped: there is no GPU |" in rows
    assert "| compiled ≡ eager | **differs**: loss, relative 0; gradient, cosine 0.5 |" in rows
    assert "None" not in page
    titles = cells(next(row for row in rows if row.startswith("| | samples/s")))
    ours = cells(next(row for row in rows if row.startswith("| ours")))
    assert dict(zip(titles, ours, strict=True))["samples/s"] == "16.0" and ours[-1] == "2 graphs"
    assert cells(next(row for row in rows if row.startswith("| published")))[-1] == "nothing"
    assert max(row.count("|") for row in rows) <= 11, "wider than a page"
    assert "- largest micro batch: eager 16, compiled vision 32" in rows
    assert "- times faster: unpadded 3.1" in rows and f"- note: {step['note']}" in rows
    assert page.count("abc") == 1, "what all parts share is said once"


@pytest.mark.slow
def test_the_script_for_a_gpu_writes_its_figures_and_its_page(tmp_path: Path) -> None:
    words = [
        "--device",
        "cpu",
        "--size",
        "micro",
        "--parts",
        "finetune",
        "predict",
        "--tasks",
        "segmentation",
    ]
    command = ["sh", str(ROOT / "benchmarks" / "gpu.sh"), *words, "--seconds", "500", "--out", str(tmp_path)]
    result = subprocess.run(
        command,
        env={**environment(), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert result.returncode == 0, result.stdout + result.stderr + logs
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert not found["gpu"] and list(found["parts"]) == ["finetune", "predict"]
    assert all(part["said"] == "done" for part in found["parts"].values())
    finetune, predict = (found["parts"][name]["found"]["segmentation"] for name in ("finetune", "predict"))
    assert finetune["samples_per_s"] > 0 and finetune["step_s"] > 0 and predict["images_per_s"] > 0
    page = (tmp_path / "page.md").read_text()
    assert "**No GPU: these are no figures of one.**" in page
    assert f"| segmentation | {finetune['samples_per_s']} |" in page


@pytest.fixture(scope="module")
def annotation() -> ModuleType:
    path, before = ROOT / "benchmarks" / "annotation.py", list(sys.path)
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location("annotation_benchmark", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def annotated(seed: int, way: str, scores: list[float], drawn: list[int]) -> dict[str, Any]:
    plan = {"first": 8, "a_round": 4, "rounds": 2}
    return {"seed": seed, "way": way, "plan": plan, "AP50": scores, "objects_drawn": drawn}


def test_annotation_is_compared_by_seed(annotation: ModuleType) -> None:
    rows = [annotated(seed, "uncertain", [0.1, 0.2, 0.3 + seed / 100], [5, 6]) for seed in range(3)]
    assert annotation.table(rows) == "no seed has both ways yet"
    rows += [annotated(seed, "random", [0.1, 0.25, 0.2 + seed / 100], [2, 3]) for seed in range(3)]
    rows.append(annotated(3, "random", [0.9, 0.9, 0.9], [90, 90]))
    said = annotation.table(rows)
    assert said.startswith("AP50 in percent, 3 seeds")
    assert "| 8 | 10.0 ± 0.0 | 10.0 ± 0.0 | – | – |" in said
    assert "| 12 | 20.0 ± 0.0 | 25.0 ± 0.0 | -5.0 [-5.0, -5.0] | 0.00 |" in said
    assert "| 16 | 31.0 ± 1.0 | 21.0 ± 1.0 | +10.0 [+10.0, +10.0] | 0.00 |" in said
    assert said.endswith("objects drawn: uncertain 11 ± 0, random 5 ± 0")


def test_a_broken_cell_of_annotation_begins_again_from_its_start(
    annotation: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Walk:
        def __init__(self, out: Path, plan: object, seed: int) -> None:
            self.seen = sorted(path.name for path in out.iterdir() if path.is_dir())

        def go(self, way: str) -> tuple[list[str], list[int]]:
            return self.seen, [1]

    monkeypatch.setattr(annotation, "Annotation", Walk)
    for name in ("random-1-model", "uncertain-1-model", "model", "data"):
        (tmp_path / "seed-4" / name).mkdir(parents=True)
    (tmp_path / "seed-4" / "model" / "scores.json").write_text("{}")
    assert annotation.cell(tmp_path, 4, "random")["AP50"] == ["data", "model", "uncertain-1-model"]
    (tmp_path / "seed-4" / "model" / "scores.json").unlink()  # the start is broken, too
    assert annotation.cell(tmp_path, 4, "uncertain")["AP50"] == []


@pytest.mark.slow
def test_a_piece_of_a_study_starts_everywhere_from_the_same_model_and_ends_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ROOT / "benchmarks" / "gpu_study.py"
    spec = importlib.util.spec_from_file_location("piece_of_a_study", path)
    assert spec is not None and spec.loader is not None
    piece = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(piece)
    for name in ("one", "other"):
        piece.make_start(tmp_path / name, "micro", None)
    assert sha256(tmp_path / "one" / WEIGHTS) == sha256(tmp_path / "other" / WEIGHTS)
    made, starter = load_vlm(tmp_path / "one").vlm, load_vlm("starter").vlm
    assert not torch.equal(
        made.vision.model.blocks[0].mlp.fc1.weight, starter.vision.model.blocks[0].mlp.fc1.weight
    )
    assert torch.equal(
        made.language.get_input_embeddings().weight, starter.language.get_input_embeddings().weight
    )
    # Sizes that the scale doesn't have would be found out on the GPU.
    for scale, changes in piece.SIZES.items():
        scale_of(scale, overrides=changes, study="cheap-labels")
    assert piece.run_piece([sys.executable, "-c", "raise SystemExit(3)"], 600) == 3
    monkeypatch.setattr(piece, "GRACE", 5.0)
    endless = "import time\nwhile True: time.sleep(1)"
    assert piece.run_piece([sys.executable, "-c", endless], 6.0) == 1
