"""Ctrl-C: what is left of commands that are stopped in the middle."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import finish, litter, snapshot, start, vitp, write_config


def ctrl_c(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("what", ["compile", "scenes", "export", "report"])
def test_ctrl_c_in_the_middle_leaves_nothing(
    finished: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Each command is stopped after it has written a part of its files."""
    place, arguments = {
        "compile": (
            "vitp.data.compile._content_hash",
            ("data", "compile", scenes, "--out", tmp_path / "out"),
        ),
        "scenes": (
            "os.fsync",
            ("data", "scenes", "port", "--count", 4, "--size", 32, "--out", tmp_path / "out"),
        ),
        "export": (
            "vitp.checkpoints.export.model_card",
            ("export", finished, "--out", tmp_path / "out"),
        ),
        "report": ("os.fsync", ("report", finished, "--samples", 1, "--out", tmp_path / "out.html")),
    }[what]
    monkeypatch.setattr(place, ctrl_c)
    result = vitp(*arguments)
    assert result.code == 130 and result.error == "interrupted; nothing half-written is left"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_compilation_leaves_what_was_there(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "compiled"
    options = ("--format", "scenes", "--out", out, "-o", "size=128")
    assert vitp("data", "compile", "port", *options, "-o", "count=10").code == 0
    before = snapshot(out)
    process = start("data", "compile", "port", *options, "-o", "count=20000", "--force")
    deadline = time.monotonic() + 120
    while not litter(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    result = finish(process)
    assert result.code == 128 + number, result
    assert "Traceback" not in result.err
    if number == signal.SIGINT:
        assert "interrupted" in result.error
    assert litter(tmp_path) == [] and snapshot(out) == before


@pytest.mark.slow
def test_an_interrupted_export_leaves_nothing(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "backbone"
    process = start("export", finished, "--out", out)
    deadline = time.monotonic() + 120
    while not litter(tmp_path) and not out.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    result = finish(process)
    assert litter(tmp_path) == []
    # The signal may also come a moment too late: then the export is there, and whole.
    assert (result.code == 130 and "interrupted" in result.error) or (out / "README.md").is_file()
    if out.exists():
        assert vitp("export", out, "--verify").code == 0


@pytest.mark.slow
def test_ctrl_c_while_a_run_starts_leaves_no_half_run(compiled: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", compiled)
    process = start("pretrain", config, "--out", tmp_path / "run")
    deadline = time.monotonic() + 120
    maps = Path(f"/proc/{process.pid}/maps")
    if not maps.exists():
        process.kill()
        pytest.skip("what a process has loaded can't be seen here")
    # Amid the imports: no handler of ours is there yet.
    while "libtorch_cpu" not in maps.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    result = finish(process)
    assert result.code == 130 and "Traceback" not in result.err, result
    assert litter(tmp_path) == []
