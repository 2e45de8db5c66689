"""Cases of the fuzzer; and that it sees what it is there to see."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import runner
from tests.fuzz.cases import CHEAP, TEMPLATES, Case, make_case
from tests.fuzz.seeds import make_seeds

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("count", "seed"), [(40, 1), pytest.param(200, 2, marks=pytest.mark.slow)])
def test_cases_hold(count: int, seed: int) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
        "OMP_NUM_THREADS": "1",
    }
    # A machine that has other things to do must not make a case hang: the limit is that of the whole run.
    command = [
        sys.executable,
        "-m",
        "tests.fuzz",
        "--count",
        str(count),
        "--seed",
        str(seed),
        "--cheap",
        "--limit",
        "300",
    ]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert re.search(rf"^all +{count}\b", result.stdout, re.MULTILINE)


def test_every_command_of_the_command_line_is_tried() -> None:
    from vitp.cli import app
    from vitp.cli.data import app as data

    tried = {
        " ".join(t.command[:2]) if t.command[0] in ("data", "recipes") else t.command[0] for t in TEMPLATES
    }
    commands = {command.name for command in app.registered_commands if not command.hidden}
    commands |= {f"data {command.name}" for command in data.registered_commands}
    assert commands - tried == set()


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("seeds")
    make_seeds(root, models=False)
    return root


def _content(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_case_follows_from_its_number(seeds: Path, tmp_path: Path) -> None:
    arguments = set()
    for number in range(12):
        place = tmp_path / str(number) / "x"
        first = make_case(3, number, seeds, place, 9, CHEAP)
        before = _content(place)
        place.rename(tmp_path / str(number) / "before")
        again = make_case(3, number, seeds, place, 9, CHEAP)
        assert first.arguments == again.arguments
        assert before == _content(place)
        arguments.add(tuple(first.arguments))
    assert len(arguments) > 8


def _tried(
    behaviour: Callable[[list[str]], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Return the faults that the fuzzer finds in a command that behaves in some way."""
    monkeypatch.setattr("vitp.cli.run", behaviour)
    place = tmp_path / "case"
    (place / "in").mkdir(parents=True)
    (place / "in" / "a.txt").write_text("a")
    case = Case(
        "x", ["x", "--out", str(place / "out")], place, place / "out", "whole.json", False, whole=False
    )
    case.before = runner._listing(place)
    outcome = runner._run(case, 0, 5.0)
    faults = outcome.faults + runner._judged(case, outcome)
    return ["; ".join(faults)] if faults else []


def _write(*names: str, code: int) -> Callable[[list[str]], int]:
    def behaviour(arguments: list[str]) -> int:
        for name in names:
            path = Path(arguments[2]).parent / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("x")
        return code

    return behaviour


def _raise(arguments: list[str]) -> int:
    raise KeyError(arguments[0])


def _connect(arguments: list[str]) -> int:
    try:
        socket.create_connection(("localhost", 9))
    except OSError:
        return 2
    return 0


def _wait(arguments: list[str]) -> int:
    time.sleep(600)
    return 0


def _crash(_: list[str]) -> int:
    faulthandler.disable()  # pytest's: its report would look like a crash of the tests
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


def _fill(arguments: list[str]) -> int:
    held = bytearray(3 << 30)
    return len(held) & 1


@pytest.mark.parametrize(
    ("behaviour", "fault"),
    [
        (_write("out/whole.json", code=0), None),
        (lambda _: 2, None),
        (lambda _: 1, None),
        (lambda _: 70, "exit code 70"),
        (lambda _: 130, "exit code 130"),
        (_raise, "exit code 99; a stack trace"),
        (_write("out/a.json", code=2), "leaves out half-written"),
        (_write("out/a.json", code=0), "succeeds without whole.json"),
        (_write("in/a.txt", code=2), "writes in/a.txt"),
        (_write("other/b.txt", code=2), "writes other"),
        (_write("cwd/b.txt", code=2), "writes cwd/b.txt"),
        (_write(".out.tmp", code=2), "leaves .out.tmp"),
        (_connect, "wants to connect to localhost"),
        (_fill, "exit code 99; a stack trace"),
        (_crash, "exit code -11"),
    ],
)
def test_what_must_not_be_is_seen(
    behaviour: Callable[[list[str]], int], fault: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = _tried(behaviour, tmp_path, monkeypatch)
    assert len(faults) == (fault is not None), faults
    assert fault is None or fault in faults[0]


def test_a_case_that_waits_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitp.cli.run", _wait)
    case = Case("x", ["x"], tmp_path, tmp_path / "out", None, False, whole=False)
    outcome = runner._run(case, 0, 0.2)
    assert outcome.faults == ["hangs: not done after 0.2 s"]
    assert outcome.code == -9
