"""What killed processes leave behind is found and removed; what running ones use is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitp.core import leftovers
from vitp.core.files import atomic_dir, atomic_path, put_in_place, write_text

DEAD = 2**22 + 5
"""More than the largest number that Linux gives to a process."""


def left(name: str, end: str, *, pid: int = DEAD, started: int = 7, host: str | None = None) -> str:
    return f".{name}.{host or leftovers._host()}-{pid}-{started}.{end}"


@pytest.fixture(autouse=True)
def _first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "_swept", set())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_next_command_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / left("out", "abc.tmp")).mkdir()
    (tmp_path / left("out", "abc.tmp") / "file").write_text("half")
    (tmp_path / left("x.png", "q_1.tmp.png")).write_text("half")
    write_text(tmp_path / "y.txt", "whole")
    assert names(tmp_path) == ["y.txt"]


def test_a_process_that_was_really_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom vitp.core.files import atomic_dir\n"
        "with atomic_dir(sys.argv[1]) as folder:\n"
        "    (folder / 'half').write_text('x')\n    os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False, env=environment)
    assert done.returncode == -9 and len(names(tmp_path)) == 1
    with atomic_dir(tmp_path / "out") as folder:
        (folder / "whole").write_text("x")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["whole"]


def test_what_others_use_is_never_touched(tmp_path: Path) -> None:
    own = leftovers._started(os.getpid())
    kept = [
        left("out", "abc.tmp", pid=os.getpid(), started=own),  # ours, in another thread
        left("out", "abc.tmp", pid=os.getppid(), started=leftovers._started(os.getppid())),
        left("out", "abc.tmp", host="another_machine"),
        ".out.abc123.tmp",  # of an older version: nobody knows whose
        ".hidden.tmp",
        f".config.vm-{DEAD}-7",
    ]
    for name in kept:
        (tmp_path / name).mkdir()
    write_text(tmp_path / "y.txt", "whole")
    assert names(tmp_path) == sorted([*kept, "y.txt"])


def test_a_number_that_went_to_another_process_is_no_owner(tmp_path: Path) -> None:
    if not leftovers._started(os.getpid()):
        pytest.skip("this system doesn't tell when a process began")
    (tmp_path / left("out", "abc.tmp", pid=os.getpid(), started=1)).mkdir()
    write_text(tmp_path / "y.txt", "whole")
    assert names(tmp_path) == ["y.txt"]


@pytest.mark.parametrize("old", [left("out", "old"), ".out.old"])
def test_a_crash_between_two_renames_is_recovered(tmp_path: Path, old: str) -> None:
    (tmp_path / old).mkdir()
    (tmp_path / old / "first").write_text("1")
    with pytest.raises(KeyError), atomic_dir(tmp_path / "out"):
        assert names(tmp_path / "out") == ["first"], "there before the next one is made"
        raise KeyError
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["first"]


def test_an_old_folder_whose_place_is_taken_is_removed(tmp_path: Path) -> None:
    (tmp_path / left("out", "old")).mkdir()
    (tmp_path / "out").mkdir()
    with atomic_dir(tmp_path / "other"):
        pass
    assert names(tmp_path) == ["other", "out"]


def test_a_long_name_gets_a_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / ("ö" * 120)
    with atomic_dir(path) as folder:
        (folder / "x").touch()
    with atomic_path(tmp_path / ("n" * 240 + ".json")) as file:
        file.write_text("{}")
    assert names(tmp_path) == sorted(["n" * 240 + ".json", path.name])


def test_replacing_that_fails_leaves_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "first").touch()
    with pytest.raises(OSError):
        put_in_place(tmp_path / "nothing", tmp_path / "out")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["first"]


def test_folders_for_a_while_are_swept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / left("vitp-check", "abc.tmp")).mkdir()
    with leftovers.temporary_folder("vitp-check") as folder:
        assert folder.is_dir() and names(tmp_path) == [folder.name]
    assert names(tmp_path) == []


def test_a_link_to_a_folder_is_replaced_and_what_it_names_stays(tmp_path: Path) -> None:
    for content in ((), ("first",)):
        target = tmp_path / f"target{len(content)}"
        target.mkdir()
        for name in content:
            (target / name).touch()
        (tmp_path / "out").symlink_to(target)
        with atomic_dir(tmp_path / "out") as folder:
            (folder / "second").touch()
        assert names(tmp_path / "out") == ["second"] and names(target) == list(content)
        (tmp_path / "out" / "second").unlink()
        (tmp_path / "out").rmdir()
    assert names(tmp_path) == ["target0", "target1"]


def test_a_folder_that_is_kept_between_attempts(tmp_path: Path) -> None:
    assert not leftovers.is_abandoned(tmp_path), "nobody knows whose"
    note = leftovers.claim(tmp_path)
    assert not leftovers.is_abandoned(tmp_path)
    (tmp_path / left("owner", "1.tmp")).touch()
    assert not leftovers.is_abandoned(tmp_path), "one of the two still runs"
    note.unlink()
    assert leftovers.is_abandoned(tmp_path)
