"""SIGKILL at random moments of training and saving, with real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, environment

SCRIPT = ROOT / "benchmarks" / "kill_nine.py"


def torment(tmp_path: Path, kills: int, seed: int, steps: int) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    out = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--kills", str(kills), "--seed", str(seed)]
    result = subprocess.run(
        [*command, "--steps", str(steps), "--json", str(out)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert out.is_file(), result.stdout + result.stderr
    figures = json.loads(out.read_text())
    assert result.returncode == (1 if figures["problems"] else 0)
    return figures


def check(figures: dict[str, Any], kills: int) -> None:
    assert figures["problems"] == []
    assert figures["bit_identical"] is True
    assert len(figures["kills"]) == kills
    assert (
        figures["most_bytes_of_checkpoints"]
        <= (figures["keep_last"] + 2) * figures["bytes_of_a_checkpoint"] * 1.01
    )


def test_three_kills_change_no_bit(tmp_path: Path) -> None:
    check(torment(tmp_path, kills=3, seed=1, steps=30), 3)


@pytest.mark.slow
def test_twenty_kills_change_no_bit(tmp_path: Path) -> None:
    figures = torment(tmp_path, kills=20, seed=0, steps=36)
    check(figures, 20)
    assert {kill["mode"] for kill in figures["kills"]} >= {"any", "writing", "removing"}
