"""The edge of the command line: whatever is raised becomes one line and an exit code, on any terminal."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from vitp.cli import run as run_cli
from vitp.cli.boundary import INTERNAL, INTERRUPTED, TERMINATED, guarded
from vitp.cli.options import FORMAT_NAMES
from vitp.core.errors import DataError
from vitp.core.files import atomic_dir, atomic_path, to_json, write_json
from vitp.data.formats import LABEL_FORMATS


def _raise(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


def _line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("is odd", where="a.json", fix="mend it"), 2, "error: a.json: is odd; mend it"),
        (RecursionError("maximum recursion depth exceeded"), 2, "nested too deeply"),
        (MemoryError(), 2, "memory is not enough"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            2,
            "memory is not enough",
        ),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), 2, "use a shorter name"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), 2, "a part of the path is a file"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a"), 2, "a: is a directory"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "a"), 2, "mend the symbolic link"),
        (OSError(errno.ENOSPC, "No space left on device", "a"), 2, "the disk is full"),
        (
            OSError(errno.EFBIG, "File too large", "a"),
            2,
            "a: can't be written (the file would be larger than its",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a"), 2, "a: no such file"),
        (UnicodeEncodeError("utf-8", "im\udce4", 2, 3, "surrogates not allowed"), 2, "rename the file"),
        (ValueError("embedded null byte"), 2, "null byte"),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
        (SystemExit(TERMINATED), TERMINATED, "interrupted; nothing half-written is left"),
        (typer.Abort(), INTERRUPTED, "interrupted"),
    ],
)
def test_known_errors_have_a_sentence(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(_raise(error)) == code
    assert said in _line(capsys)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        EOFError("cut off"),
        AssertionError(),
        OSError("of the program"),
        ZeroDivisionError("a\nb"),
    ],
)
def test_other_errors_keep_their_trace_in_a_file(
    error: Exception, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert guarded(_raise(error)) == INTERNAL
    line = _line(capsys)
    (trace,) = tmp_path.glob("vitp-error-*.txt")
    assert line.startswith(f"error: internal error: {type(error).__name__}")
    assert str(trace) in line
    assert "report it with the command" in line
    text = trace.read_text(encoding="utf-8")
    assert "Traceback" in text
    assert type(error).__name__ in text
    assert "command: " in text


def test_without_a_place_for_the_trace_there_is_still_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert guarded(_raise(KeyError("x"))) == INTERNAL
    assert "no trace was kept" in _line(capsys)


def test_the_end_of_a_file_is_no_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer()

    @app.command()
    def read() -> None:
        raise EOFError("a file was cut off")

    assert guarded(lambda: app(args=[], standalone_mode=False)) == INTERNAL
    assert "EOFError: a file was cut off" in capsys.readouterr().err


def test_what_a_file_name_holds_does_not_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(_raise(DataError("is odd", where="a\x1b[2J\udce4.png"))) == 2
    assert _line(capsys) == r"error: a\x1b[2J\udce4.png: is odd"


def _vitp(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("environment", {})}  # type: ignore[dict-item]
    return subprocess.run(
        [sys.executable, "-m", "vitp", *map(os.fsdecode, map(str, arguments))],
        capture_output=True, text=True, errors="replace", env=environment, timeout=120, check=False, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"PYTHONIOENCODING": "ascii"}, marks=pytest.mark.slow),
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_a_terminal_of_ascii_takes_all_that_is_said(environment: dict[str, str], tmp_path: Path) -> None:
    result = _vitp("data", "check", tmp_path / "ä×–.jsonl", environment=environment)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stdout.isascii()
    assert "???.jsonl" in result.stdout or "??????.jsonl" in result.stdout


def test_closed_streams_are_no_fault() -> None:
    script = f"{sys.executable} -m vitp --version >&- 2>&-"
    result = subprocess.run(["sh", "-c", script], timeout=120, check=False, capture_output=True)
    assert result.returncode == 0


def test_outputs_that_cannot_be_are_refused_before_anything_is_moved(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    with pytest.raises(Exception, match="is a file; name a new folder"), atomic_dir(mine):
        pass
    assert mine.read_text() == "mine"
    (tmp_path / "folder").mkdir()
    with pytest.raises(Exception, match="is a folder; name a file"), atomic_path(tmp_path / "folder"):
        pass
    for odd in ("", tmp_path / "folder" / ".."):
        with pytest.raises(Exception, match="can't be replaced"), atomic_dir(odd):
            pass
    with pytest.raises(Exception, match="name too long"), atomic_dir(tmp_path / ("o" * 300)):
        pass
    with pytest.raises(Exception, match="a part of the path is a file"), atomic_path(mine / "x.json"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "mine"]


def test_json_of_names_that_are_not_utf8_is_utf8_and_comes_back(tmp_path: Path) -> None:
    from vitp.core.reading import parse_json, read_text

    name = os.fsdecode(b"im\xe4.png")
    for value in (name, [name, "ä😀"], {name: {"x": name}}):
        assert parse_json(to_json(value).encode("utf-8").decode()) == value
        write_json(tmp_path / "x.json", value)
        assert parse_json(read_text(tmp_path / "x.json")) == value
    assert os.fsencode(parse_json(to_json(name))) == b"im\xe4.png"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("export", "starter", "--format", "tim"),
            "'tim' is not one of 'timm', 'hf', 'internvl', 'onnx', 'torch-export'",
        ),
        (
            ("convert", "starter", "x", "--dtype", "int8"),
            "'int8' is not one of 'keep', 'float32', 'bfloat16', 'float16'",
        ),
        (("probe", "starter", "x", "--view", "all"), "'all' is not one of 'whole', 'tiles'"),
    ],
)
def test_a_wrong_choice_names_the_right_ones(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    option = arguments[-2]
    assert line == f"error: Invalid value for '{option}': {message}; see `vitp {arguments[0]} --help`"


def test_the_help_names_all_label_formats() -> None:
    assert FORMAT_NAMES.replace(" or ", ", ").split(", ") == [*LABEL_FORMATS, "auto"]
