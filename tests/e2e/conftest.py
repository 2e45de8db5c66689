"""The command line in this process or in one of its own, and runs of a model of 70,000 parameters."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.forks import Forked, forks_can_train
from vitp.__main__ import run as run_program
from vitp.cli import run as run_cli

ROOT = Path(__file__).parents[2]
SIZE = 48
"""Side of the generated scenes: six patches of 8 px would be 36 tokens, the model sees 32 px."""

SCRATCH: dict[str, Any] = {
    "vision": {
        "arguments": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8},
        "image_size": 32,
    },
    "language": {
        "model_type": "qwen2",
        "arguments": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        },
    },
    "shuffle": 1,
    "template": "micro",
}


@dataclass(frozen=True)
class Result:
    """What a command left: exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a refusal; fails when it is anything else."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        assert "Traceback" not in self.out + self.err
        return lines[0].removeprefix("error: ")


def vitp(*arguments: object) -> Result:
    """Run a command in this process: the same code as `python -m vitp`, without the seconds of imports."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        code = run_cli([str(argument) for argument in arguments])
    return Result(code, out.getvalue(), err.getvalue())


def refused(*arguments: object) -> str:
    """Run a command that must be refused with exit code 2; return its line."""
    result = vitp(*arguments)
    assert result.code == 2, result
    return result.error


def done(*arguments: object) -> Result:
    """Run a command that must succeed and complain of nothing."""
    result = vitp(*arguments)
    assert result.code == 0, result.err
    assert result.err == ""
    return result


def environment() -> dict[str, str]:
    """The environment of a process of its own."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
    }


def start(*arguments: object, module: Sequence[str] = ("vitp",), **options: Any) -> subprocess.Popen[str]:
    """Start `python -m vitp …` in a process of its own."""
    command = [sys.executable, "-m", *module, *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Shells start what they put into the background with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def program(*arguments: object) -> Callable[[], None]:
    """Return `vitp …` as a function for a process of its own."""

    def run() -> None:
        os.environ |= {"NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
        sys.argv = ["vitp", *map(str, arguments)]
        run_program()

    return run


def fork(*arguments: object) -> Forked | subprocess.Popen[str]:
    """Start `vitp …` in a process of its own, whose imports are done where it can be a fork."""
    return Forked(program(*arguments)) if forks_can_train() else start(*arguments)


def finish(process: subprocess.Popen[str] | Forked, timeout: float = 240) -> Result:
    """Wait for a process; it is killed when it doesn't end."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return Result(process.returncode, out, err)


def snapshot(folder: Path) -> dict[str, str]:
    """Return path → hash of all that a folder holds, hidden files included."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def litter(folder: Path) -> list[str]:
    """Return the hidden and temporary files below a folder: there must be none when nothing runs."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.startswith(".")]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_config(path: Path, data: Path, **changes: Any) -> Path:
    """Write the configuration of a tiny run from scratch; `changes` are section → settings over it."""
    values: dict[str, Any] = {
        "model": {"init": "scratch", "vocabulary": 400, "drop_path": 0.1, "scratch": SCRATCH},
        "data": {
            "mixture": [str(data)],
            "global_batch": 4,
            "sequence": {"max_length": 512, "max_tiles": 1, "max_turns": 3},
        },
        "objective": {"name": "vitp", "vrl": {"ratio": 0.75}},
        "optim": {"lr": 3e-3, "warmup_ratio": 0.1},
        "train": {
            "steps": 10,
            "num_workers": 0,
            "log_every": 1,
            "save_every": 4,
            "threads": 1,
        },
        "log": {"trackers": []},
    }
    for section, settings in changes.items():
        values[section] = {**values.get(section, {}), **settings} if isinstance(settings, dict) else settings
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 generated scenes of a port with masks."""
    folder = tmp_path_factory.mktemp("scenes") / "port"
    done("data", "scenes", "port", "--layout", "masks", "--count", 40, "--size", SIZE, "--out", folder)
    return folder


@pytest.fixture(scope="session")
def compiled(scenes: Path) -> Path:
    """Their instructions."""
    folder = scenes.parent / "compiled"
    done("data", "compile", scenes, "--out", folder, "--format", "auto")
    return folder


@pytest.fixture(scope="session")
def finished(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ten steps with probes."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(
        folder / "run.yaml", compiled, probe={"data": str(compiled), "every": 5, "images": 20}
    )
    done("pretrain", config, "--out", folder / "run")
    return folder / "run"


def without_packages(names: Sequence[str], *commands: list[object]) -> Result:
    """Run commands one after the other in one process in which these packages can't be imported."""
    program = f"""
import json, sys
for name in {tuple(names)}:
    sys.modules[name] = None
from tests.forks import Forked, forks_can_train
from vitp.__main__ import run as run_program
from vitp.cli import run as run_cli
for arguments in json.load(sys.stdin):
    print("CODE", run_cli(arguments), flush=True)
assert not any(sys.modules.get(name) for name in {tuple(names)})
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps([[str(word) for word in command] for command in commands]))
    process.stdin.close()
    process.stdin = None
    return finish(process)
