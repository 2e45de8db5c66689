"""A run that is stopped and resumed ends with the bits of a run that was not."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.conftest import done, finish, fork, litter, read_rows, refused, snapshot, vitp, write_config
from tests.forks import Forked

STEPS = 40


@pytest.fixture(scope="module")
def config(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drop path and VRL draw random numbers in every step; a worker prepares the batches."""
    path = tmp_path_factory.mktemp("resume") / "run.yaml"
    train = {
        "steps": STEPS,
        "save_every": 7,
        "log_every": 1,
        "num_workers": 1,
        "threads": 1,
    }
    return write_config(path, compiled, train=train)


@pytest.fixture(scope="module")
def straight(config: Path) -> Path:
    """The run that nothing interrupts."""
    folder = config.parent / "straight"
    done("pretrain", config, "--out", folder)
    return folder


def steps_logged(run: Path) -> int:
    """Return the last step of a run that may be writing."""
    try:
        return sum(line.endswith("}") for line in (run / "metrics.jsonl").read_text().splitlines())
    except OSError:
        return 0


def wait_for_step(process: Forked, run: Path, step: int, timeout: float = 180) -> None:
    """Return when the run has logged a step.

    The machine may be busy with other things: the deadline is generous.
    """
    deadline = time.monotonic() + timeout
    while steps_logged(run) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.005)


def assert_same_run(run: Path, straight: Path) -> None:
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (run, straight))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    for part in ("model", "optimizer"):
        ours, theirs = (
            load_file(f / "checkpoints" / f"step_{STEPS:08d}" / f"{part}.safetensors")
            for f in (run, straight)
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    ours_rows, their_rows = (read_rows(folder / "metrics.jsonl") for folder in (run, straight))
    assert [(r["step"], r["loss"]) for r in ours_rows] == [(r["step"], r["loss"]) for r in their_rows]
    assert litter(run) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_run_resumes_bit_for_bit(
    config: Path, straight: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    run = tmp_path / "run"
    process = fork("pretrain", config, "--out", run)
    wait_for_step(process, run, 4)
    process.send_signal(number)
    result = finish(process)
    assert result.code == code, result
    assert f"interrupted by {number.name} after step" in result.error and "resume" in result.error
    stopped = steps_logged(run)
    assert 4 <= stopped < STEPS
    assert (run / "checkpoints" / f"step_{stopped:08d}").is_dir()
    assert not (run / "model").exists()
    resumed = done("pretrain", "--resume", "--out", run)
    assert f"step_{stopped:08d}" in resumed.out
    assert_same_run(run, straight)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_kill_at_any_moment_loses_a_few_steps_at_most(
    config: Path, straight: Path, tmp_path: Path, seed: int
) -> None:
    run = tmp_path / "run"
    process = fork("pretrain", config, "--out", run)
    wait_for_step(process, run, 7 * (seed + 1))
    time.sleep(random.Random(seed).random() * 0.1)
    process.kill()
    finish(process)
    assert vitp("pretrain", "--resume", "--out", run).code == 0
    assert_same_run(run, straight)


def test_two_processes_do_not_train_in_one_folder(config: Path, straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = fork("pretrain", config, "--out", run)
    wait_for_step(process, run, 3)
    process.send_signal(signal.SIGSTOP)
    assert f"{run}: another process trains there" in refused("pretrain", "--resume", "--out", run)
    process.kill()
    finish(process)
    done("pretrain", "--resume", "--out", run)
    assert_same_run(run, straight)
    assert not (run / "lock").exists()


def test_half_a_checkpoint_is_never_taken_for_one(straight: Path, tmp_path: Path) -> None:
    """What `kill -9` can leave: a hidden folder beside the checkpoints, half a row of metrics."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    last = run / "checkpoints" / f"step_{STEPS:08d}"
    last.rename(last.with_name(f".{last.name}.abc123.tmp"))
    shutil.rmtree(run / "model")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "lo')
    resumed = done("pretrain", "--resume", "--out", run)
    assert "step_00000035" in resumed.out
    assert_same_run(run, straight)


def test_a_finished_run_may_be_resumed_and_stays_as_it_is(straight: Path) -> None:
    before = snapshot(straight / "checkpoints") | snapshot(straight / "model")
    done("pretrain", "--resume", "--out", straight)
    assert snapshot(straight / "checkpoints") | snapshot(straight / "model") == before


def test_resuming_with_another_configuration_is_refused(straight: Path) -> None:
    before = snapshot(straight)
    error = refused(
        "pretrain", "--resume", "--out", straight, "-s", "optim.lr=0.1", "-s", "objective.vrl.ratio=0"
    )
    assert "config.yaml" in error and "optim.lr" in error and "vrl.ratio" in error
    assert "resume with the run's own configuration" in error
    assert snapshot(straight) == before


def test_resuming_on_other_data_is_refused(config: Path, straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    shutil.copytree(config.parent, tmp_path / "x", ignore=shutil.ignore_patterns("*"))
    values = (run / "config.yaml").read_text()
    compiled = Path(values.split("mixture:")[1].split("- ")[1].splitlines()[0])
    lines = (compiled / "train.jsonl").read_text().splitlines()
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(lines[1:] + lines[:1]) + "\n")
    (run / "config.yaml").write_text(values.replace(str(compiled), str(other)))
    before = snapshot(run / "checkpoints")
    error = refused("pretrain", "--resume", "--out", run)
    assert "checkpoints" in error and "data" in error
    assert snapshot(run / "checkpoints") == before


def test_a_run_is_never_written_over(config: Path, straight: Path) -> None:
    before = snapshot(straight)
    error = refused("pretrain", config, "--out", straight)
    assert str(straight) in error and "--resume" in error
    assert snapshot(straight) == before


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    error = refused("pretrain", "--resume", "--out", tmp_path / "nothing")
    assert "no run to resume" in error
    assert not (tmp_path / "nothing").exists()
