"""SIGKILL at random moments of training and saving, with real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, environment

SCRIPT = ROOT / "benchmarks" / "kill_nine.py"


def communicate(process: subprocess.Popen[str], timeout: float) -> str:
    """Return what a process prints until it ends; afterwards nothing of its group runs any more."""
    try:
        return process.communicate(timeout=timeout)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def torment(
    tmp_path: Path, kills: int, seed: int, steps: int, command: str = "pretrain", timeout: float = 580
) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    out = tmp_path / "figures.json"
    words = [sys.executable, str(SCRIPT), "--kills", str(kills), "--seed", str(seed), "--command", command]
    # A group of its own: the benchmark has children, which must not go on when it is stopped.
    process = subprocess.Popen(
        [*words, "--steps", str(steps), "--json", str(out)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said = communicate(process, timeout)
    assert out.is_file(), said
    figures = json.loads(out.read_text())
    assert process.returncode == (1 if figures["problems"] else 0)
    return figures


def check(figures: dict[str, Any], kills: int) -> None:
    assert figures["problems"] == []
    assert figures["bit_identical"] is True
    assert len(figures["kills"]) == kills
    assert (
        figures["most_bytes_of_checkpoints"]
        <= (figures["keep_last"] + 2) * figures["bytes_of_a_checkpoint"] * 1.01
    )


def test_a_timeout_ends_the_children_too(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = (
        "import os, sys, time\n"
        "child = os.fork()\n"
        "if child: open(sys.argv[1] + '.tmp', 'w').write(str(child)); os.rename(sys.argv[1] + '.tmp', sys.argv[1])\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(pid)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    while not pid.is_file():
        assert process.poll() is None
        time.sleep(0.01)
    with pytest.raises(subprocess.TimeoutExpired):
        communicate(process, timeout=0.1)
    state = Path(f"/proc/{pid.read_text()}/stat")
    for _ in range(500):  # a killed process stays in the table until its new parent has looked
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)
    pytest.fail("the child runs on")


@pytest.mark.slow
def test_twenty_kills_change_no_bit(tmp_path: Path) -> None:
    figures = torment(tmp_path, kills=20, seed=0, steps=36)
    check(figures, 20)
    assert {kill["mode"] for kill in figures["kills"]} >= {"any", "writing", "removing"}


@pytest.mark.slow
def test_twenty_kills_of_a_finetuning_change_no_bit(tmp_path: Path) -> None:
    figures = torment(tmp_path, kills=20, seed=0, steps=12, command="finetune")
    check(figures, 20)
    assert {kill["mode"] for kill in figures["kills"]} >= {"any", "writing", "removing"}
