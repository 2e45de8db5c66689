"""Studies: what a cell depends on, who works on it, what happens when it fails or is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from vitp.core.config import CONFIG_FILE, save_config
from vitp.core.errors import ConfigError, DataError
from vitp.runs.finetune import FinetuneConfig
from vitp.studies.cost import EnergyMeter, duration, operations, total_cost
from vitp.studies.grid import RESULT, Store, Study, StudyCell, cell_keys, ordered
from vitp.studies.process import Context, resumable, run_apart
from vitp.studies.runner import LOCK, STALE, Lock, StudyRunner, leave_torchrun

QUIET = Console(quiet=True)


def number(context: Context) -> Mapping[str, Any]:
    """Own number plus those of the needs; a file counts the times it was made."""
    with (context.folder / "made").open("a") as file:
        file.write("x")
    return {"value": context.cell.settings["value"] + sum(i.values["value"] for i in context.inputs.values())}


def broken(context: Context) -> Mapping[str, Any]:
    raise DataError("is missing", where="image 7", fix="bring it back")


def killed(context: Context) -> Mapping[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def slow(context: Context) -> Mapping[str, Any]:
    (context.folder / "began").touch()
    time.sleep(60)
    return {}


def largest(context: Context) -> Mapping[str, Any]:
    return {"value": max(i.values["value"] for i in context.inputs.values())}


WORK = {"number": number, "broken": broken, "killed": killed, "slow": slow, "largest": largest}


def cell(name: str, value: int = 1, kind: str = "number", **changes: Any) -> StudyCell:
    return StudyCell(name, kind, {"value": value}, **changes)


def study(*cells: StudyCell) -> Study:
    return Study("toy", "Toy", "Does it run?", cells)


CHAIN = (cell("c", 3, needs={"b": "b"}), cell("a", 1), cell("b", 2, needs={"a": "a"}))


def runner(cells: Study, out: Path, **changes: Any) -> StudyRunner:
    return StudyRunner(cells, out, WORK, console=QUIET, **{"apart": False, **changes})


def test_cells_come_after_those_they_need() -> None:
    assert [one.name for one in ordered(CHAIN)] == ["a", "b", "c"]
    assert study(*CHAIN)["b"].settings == {"value": 2}


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ((cell("a"), cell("a", 2)), "two cells have this name"),
        ((cell("a", needs={"x": "b"}),), 'needs "b", which is not in the study'),
        ((cell("a", needs={"x": "b"}), cell("b", needs={"x": "a"})), "need each other"),
    ],
)
def test_grids_that_make_no_sense_are_refused(cells: tuple[StudyCell, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study(*cells)


def test_a_hash_follows_from_what_decides_the_result_and_from_nothing_else() -> None:
    keys = cell_keys(study(*CHAIN), {})
    moved = tuple(
        StudyCell(o.name, o.kind, o.settings, o.needs, places={"start": "/x"}, facts={"arm": "z"})
        for o in CHAIN
    )
    assert cell_keys(study(*moved), {}) == keys
    other = cell_keys(study(CHAIN[0], cell("a", 5), CHAIN[2]), {})
    assert all(other[name] != keys[name] for name in "abc")
    assert cell_keys(study(CHAIN[0], CHAIN[1], cell("b", 9, needs={"a": "a"})), {})["a"] == keys["a"]
    assert cell_keys(study(*CHAIN), {"number": 2})["a"] != keys["a"]
    renamed = cell_keys(study(cell("other", 1)), {})
    assert renamed["other"] == keys["a"]


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.integers() | st.text(max_size=3), max_size=4))
def test_the_order_of_settings_does_not_matter(settings: dict[str, Any]) -> None:
    backwards = dict(reversed(settings.items()))
    one, two = (
        cell_keys(study(StudyCell("a", "number", values)), {})["a"] for values in (settings, backwards)
    )
    assert one == two


def test_results_are_kept_and_shared_between_studies(tmp_path: Path) -> None:
    first = runner(study(*CHAIN), tmp_path)
    assert first.run().complete
    result = first.store.result(first.study["c"])
    assert result is not None and result["values"] == {"value": 6} and result["cost"]["attempts"] == 1
    again = runner(study(*CHAIN, cell("d", 10, needs={"b": "b"})), tmp_path)
    assert again.run().done == 4
    made = {one.name: (again.store.folder(one) / "made").read_text() for one in again.study.cells}
    assert made == {"a": "x", "b": "x", "c": "x", "d": "x"}


def test_a_cell_whose_product_is_gone_is_done_again(tmp_path: Path) -> None:
    kept = study(cell("a", keep=("made",)))
    one = runner(kept, tmp_path)
    one.run()
    (one.store.folder(kept["a"]) / "made").unlink()
    assert runner(kept, tmp_path).progress().left == ("a",)
    assert runner(kept, tmp_path).run().complete


@pytest.mark.parametrize("apart", [False, True])
def test_a_broken_cell_is_written_down_and_the_others_finish(tmp_path: Path, apart: bool) -> None:
    cells = study(
        cell("bad", kind="broken"),
        cell("after", needs={"x": "bad"}),
        cell("good", 4),
        cell("best", kind="largest", needs={"x": "bad", "y": "good"}, tolerant=True),
    )
    one = runner(cells, tmp_path, apart=apart)
    summary = one.run()
    assert summary.failed == ("bad", "after") and summary.done == 2 and not summary.left
    bad, after = (one.store.failure(cells[name]) for name in ("bad", "after"))
    assert bad is not None and bad.kind == "DataError"
    assert bad.message == "image 7: is missing; bring it back"
    assert after is not None and after.kind == "blocked" and '"bad", which failed' in after.message
    best = one.store.result(cells["best"])
    assert best is not None and best["values"] == {"value": 4}
    # Another call tries what failed once more, and only that.
    time.sleep(0.01)
    again = runner(cells, tmp_path)
    assert again.progress().left == ("bad", "after")
    assert again.run().failed == ("bad", "after")


def test_a_cell_that_the_system_kills_takes_no_other_with_it(tmp_path: Path) -> None:
    cells = study(cell("greedy", kind="killed"), cell("good"))
    one = runner(cells, tmp_path, apart=True)
    summary = one.run()
    assert summary.failed == ("greedy",) and summary.done == 1
    failure = one.store.failure(cells["greedy"])
    assert failure is not None and failure.kind == "killed"
    assert "SIGKILL" in failure.message and "memory" in failure.message


def _run_slow(out: str) -> None:
    runner(study(cell("slow", kind="slow"), cell("good")), Path(out), apart=True).run()


def test_a_killed_study_leaves_no_worker_and_its_cell_can_be_taken(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_run_slow, args=(str(tmp_path),))
    process.start()
    cells = study(cell("slow", kind="slow"), cell("good"))
    store = Store(tmp_path / "cells", cell_keys(cells, {}))
    folder = store.folder(cells["slow"])
    until = time.monotonic() + 20
    while not (folder / "began").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert Lock(folder).held() and not Lock(folder).acquire()
    process.kill()
    process.join()
    lock = Lock(folder)
    assert lock.acquire()
    lock.release()
    assert not (folder / LOCK).exists() and store.result(cells["slow"]) is None


def test_only_one_of_two_gets_a_lock(tmp_path: Path) -> None:
    one, two = Lock(tmp_path), Lock(tmp_path)
    assert one.acquire() and not two.acquire()
    two.release()  # not its own: nothing happens
    assert (tmp_path / LOCK).exists()
    one.release()
    assert two.acquire()
    assert {path.name for path in tmp_path.iterdir()} == {LOCK}


def test_locks_of_other_machines_are_left_alone_until_they_are_stale(tmp_path: Path) -> None:
    path = tmp_path / LOCK
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "t"}))
    lock = Lock(tmp_path)
    assert lock.held() and not lock.acquire()
    old = time.time() - STALE - 60
    os.utime(path, (old, old))
    assert not lock.held() and lock.acquire()


def test_a_lock_of_a_process_that_is_gone_is_taken(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join()
    owner = {"host": socket.gethostname(), "pid": process.pid, "token": "t"}
    (tmp_path / LOCK).write_text(json.dumps(owner))
    assert Lock(tmp_path).acquire()


def test_cells_that_others_work_on_are_left_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitp.studies.runner.POLL", 0.01)
    cells = study(cell("a"), cell("b", 2))
    one = runner(cells, tmp_path)
    other = Lock(one.store.folder(cells["a"]))
    assert other.acquire()
    summary = one.run(until=time.time() + 0.5)
    assert summary.left == ("a",) and summary.done == 1
    other.release()
    assert one.run().complete


def test_no_cell_is_begun_after_the_time_is_up(tmp_path: Path) -> None:
    assert runner(study(cell("a")), tmp_path).run(until=time.time() - 1).left == ("a",)


def test_what_a_cell_prints_and_costs_is_kept(tmp_path: Path) -> None:
    def talk(context: Context) -> Mapping[str, Any]:
        print("a word")
        os.system("echo from a child")
        deadline = time.process_time() + 0.05
        while time.process_time() < deadline:
            pass
        return {"pid": os.getpid()}

    context = Context(cell("a"), tmp_path)
    outcome = run_apart(talk, context, lambda: None)
    assert outcome.values is not None and outcome.values["pid"] != os.getpid()
    assert (tmp_path / "log.txt").read_text() == "a word\nfrom a child\n"
    assert 0.04 < (outcome.cost["processor_seconds"] or 0) <= (outcome.cost["seconds"] or 0) + 0.1
    assert (outcome.cost["memory"] or 0) > 1e6


def test_an_interrupt_in_the_middle_of_a_fork_is_not_lost(tmp_path: Path) -> None:
    def in_fork() -> None:
        if armed:
            armed.clear()
            os.kill(os.getpid(), signal.SIGINT)

    armed = [True]
    os.register_at_fork(before=in_fork)
    context = Context(cell("a", kind="slow"), tmp_path)
    began = time.monotonic()
    # A shell that starts the tests in the background has them ignore Ctrl-C.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_apart(slow, context, lambda: None)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert time.monotonic() - began < 30


def test_values_that_json_cannot_hold_are_a_failure_of_the_cell(tmp_path: Path) -> None:
    work = {"number": lambda context: {"value": object()}}
    one = StudyRunner(study(cell("a")), tmp_path, work, console=QUIET, apart=False)
    assert one.run().failed == ("a",)


def test_interrupts_are_no_failures(tmp_path: Path) -> None:
    def stop(context: Context) -> Mapping[str, Any]:
        raise KeyboardInterrupt

    one = StudyRunner(study(cell("a")), tmp_path, {"number": stop}, console=QUIET, apart=False)
    with pytest.raises(KeyboardInterrupt):
        one.run()
    assert one.progress().left == ("a",)
    folder = one.store.folder(one.study["a"])
    assert not (folder / LOCK).exists() and not (folder / RESULT).exists()
    again = runner(study(cell("a")), tmp_path)
    assert again.run().complete
    result = again.store.result(again.study["a"])
    assert result is not None and result["cost"]["attempts"] == 2


def test_torchrun_ranks_become_workers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert leave_torchrun() == 3
    assert "WORLD_SIZE" not in os.environ and os.environ["LOCAL_RANK"] == "1"
    assert leave_torchrun() == 0


def test_costs_add_up_over_attempts() -> None:
    attempts = [
        {"seconds": 20.0},
        {"seconds": 10.0, "processor_seconds": 8.0, "memory": 5.0, "joules": 3.0},
    ]
    cost = total_cost(attempts)
    assert cost == {"seconds": 30, "processor_seconds": 8, "memory": 5, "joules": None, "attempts": 2}
    assert total_cost(attempts[1:])["joules"] == 3


def test_energy_is_read_from_packages_only_and_survives_the_counter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("intel-rapl:0", 900_000), ("intel-rapl:0:0", 5), ("intel-rapl:1", 100_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("1000000\n")
    monkeypatch.setattr("vitp.studies.cost._gpu_joules", lambda: None)
    meter = EnergyMeter(tmp_path)
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("999999\n")  # a part, counted with its package
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("400000\n")  # past its limit of one joule
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("350000\n")
    assert meter.joules() == pytest.approx(0.5 + 0.25)


def test_numbers_as_people_read_them() -> None:
    assert [duration(s) for s in (40, 600, 9000, 400_000)] == ["40 s", "10 min", "2.5 h", "4.6 days"]
    assert [operations(f) for f in (12, 3.14e12, 2e15)] == ["12 FLOP", "3.14 TFLOP", "2 PFLOP"]


@pytest.mark.parametrize(
    ("left", "root", "goes_on"),
    [
        ("nothing", "data", False),
        ("begun", "data", True),
        ("begun", "elsewhere/data", False),
        ("no configuration", "data", False),
        ("finished", "data", False),
    ],
)
def test_what_an_attempt_left_is_resumed_or_removed(
    tmp_path: Path, left: str, root: str, goes_on: bool
) -> None:
    def config(root: str, workers: int) -> FinetuneConfig:
        return FinetuneConfig(task="segmentation", data={"root": root}, train={"num_workers": workers})  # type: ignore[arg-type]

    run = tmp_path / "run"
    if left != "nothing":
        run.mkdir()
        save_config(config("data", 0), run / CONFIG_FILE)
    if left == "no configuration":
        (run / CONFIG_FILE).write_text("something else")
    if left == "finished":  # another study keeps files that this run was cleared of
        (tmp_path / RESULT).write_text("{}")
    assert resumable(Context(cell("a"), tmp_path), run, config(root, 2)) is goes_on
    assert run.exists() is goes_on
