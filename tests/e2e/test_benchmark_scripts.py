"""The benchmarks of a GPU run where there is none: the same program, and the page says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, environment


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
