"""A damaged checkpoint is passed over for the one before it; a run goes on to more steps than it had."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.engine_toys import ToyObjective
from tests.unit.engine_runs import Recorder, assert_same_checkpoint, make_trainer, rows
from vitp.core.config import CONFIG_FILE
from vitp.core.errors import CheckpointError, ConfigError, DamagedError
from vitp.engine import checkpoint
from vitp.engine.config import OptimSettings
from vitp.engine.optim import changed_rate

CONSTANT = {"schedule": "constant", "warmup_steps": 2}


def flip(file: Path, bit: int | None = None) -> None:
    data = bytearray(file.read_bytes())
    bit = len(data) * 4 + 1 if bit is None else bit
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def empty(file: Path) -> None:
    file.write_bytes(b"")


FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with three checkpoints."""
    run = tmp_path_factory.mktemp("straight") / "run"
    run.mkdir()
    (run / CONFIG_FILE).write_text("seed: 0\n")
    make_trainer(run, ToyObjective(dropout=0.3), save_every=2, keep_last=3)[0].train()
    return run


@pytest.fixture
def run(straight: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(straight, tmp_path / "run"))


def resume(run: Path, **settings: Any) -> str:
    trainer, text = make_trainer(
        run, ToyObjective(dropout=0.3), resume=True, save_every=2, keep_last=3, **settings
    )
    trainer.train()
    return text.getvalue()


@pytest.mark.parametrize("damage", [flip, cut, empty, Path.unlink])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_newest_checkpoint_is_passed_over(
    run: Path, straight: Path, file: str, damage: Callable[[Path], None]
) -> None:
    damage(checkpoint.folder(run, 6) / file)
    text = " ".join(resume(run).split())
    assert "WARNING: skipped the damaged checkpoint step_00000006" in text
    # A digest that is wrong is told of the file that it is for.
    assert file in text or (file, damage) == ("SHA256SUMS", flip)
    assert "going on from step_00000004" in text
    assert_same_checkpoint(checkpoint.folder(run, 6), checkpoint.folder(straight, 6))
    assert [(r["step"], r["loss"]) for r in rows(run)] == [(r["step"], r["loss"]) for r in rows(straight)]
    # The damaged one has gone when there is a whole one of its step again.
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        "step_00000002",
        "step_00000004",
        "step_00000006",
    ]
    assert "WARNING" not in resume(run)


def test_two_damaged_ones_in_a_row(run: Path, straight: Path) -> None:
    flip(checkpoint.folder(run, 6) / "model.safetensors")
    shutil.rmtree(checkpoint.folder(run, 4) / "optimizer.safetensors", ignore_errors=True)
    (checkpoint.folder(run, 4) / "optimizer.safetensors").unlink()
    assert "going on from step_00000002" in resume(run)
    assert_same_checkpoint(checkpoint.folder(run, 6), checkpoint.folder(straight, 6))


def test_when_all_are_damaged_nothing_is_touched(run: Path) -> None:
    for path in checkpoint.checkpoints(run):
        flip(path / "optimizer.safetensors")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(DamagedError, match=r"all 3 checkpoints are damaged \(step_00000006.*step_00000002"):
        resume(run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_every_bit_of_the_list_and_the_state_is_watched(run: Path) -> None:
    path = checkpoint.folder(run, 6)
    for name in ("state.json", "SHA256SUMS", CONFIG_FILE):
        whole = (path / name).read_bytes()
        for bit in range(0, len(whole) * 8, 149):
            flip(path / name, bit)
            with pytest.raises(DamagedError):
                checkpoint.verify(path)
            (path / name).write_bytes(whole)
    checkpoint.verify(path)


def as_written_before(run: Path) -> None:
    """Make checkpoints as versions without digests wrote them."""
    for path in checkpoint.checkpoints(run):
        for name in ("model.safetensors", "optimizer.safetensors"):
            save_file(load_file(path / name), path / name)
        state = json.loads((path / "state.json").read_text())
        del state["digests"]
        (path / "state.json").write_text(json.dumps(state))
        (path / "SHA256SUMS").unlink()
        (path / CONFIG_FILE).unlink()


def test_checkpoints_without_digests_are_taken_and_that_is_told(
    run: Path, straight: Path, caplog: pytest.LogCaptureFixture
) -> None:
    as_written_before(run)
    cut(checkpoint.folder(run, 6) / "model.safetensors")
    assert "going on from step_00000004" in resume(run)
    assert "step_00000004: was written before weights had digests" in caplog.text
    assert_same_checkpoint(checkpoint.folder(run, 6), checkpoint.folder(straight, 6))


def test_what_the_run_started_from_is_written_anew(run: Path, straight: Path) -> None:
    shutil.rmtree(checkpoint.folder(run, 6))
    flip(run / "start_vision.safetensors")
    text = resume(run)
    assert "start_vision.safetensors" in text and "written anew" in text
    ours, theirs = (json.loads((folder / "evidence.json").read_text()) for folder in (run, straight))
    assert ours == theirs


def test_other_data_is_no_damage(run: Path) -> None:
    state = checkpoint.folder(run, 6) / "state.json"
    as_written_before(run)
    state.write_text(state.read_text().replace('"toy"', '"another"'))
    with pytest.raises(CheckpointError, match="other batches: data, labels"):
        resume(run)
    assert len(checkpoint.checkpoints(run)) == 3


# More steps.


def test_a_longer_run_at_a_constant_rate_is_the_run_that_was_longer_from_the_start(tmp_path: Path) -> None:
    common: dict[str, Any] = {"optim": CONSTANT, "save_every": 2}
    longer = Recorder()
    make_trainer(tmp_path / "long", ToyObjective(dropout=0.3), hooks=(longer,), steps=9, **common)[0].train()
    make_trainer(tmp_path / "run", ToyObjective(dropout=0.3), steps=5, **common)[0].train()
    again = Recorder()
    trainer, text = make_trainer(
        tmp_path / "run", ToyObjective(dropout=0.3), hooks=(again,), steps=9, resume=True, **common
    )
    trainer.train()
    assert "WARNING" not in text.getvalue()
    assert_same_checkpoint(checkpoint.folder(tmp_path / "run", 9), checkpoint.folder(tmp_path / "long", 9))
    assert [m.loss for m in again.metrics] == [m.loss for m in longer.metrics[5:]]
    for file in ("evidence.json", "model/weights.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "long" / file).read_bytes()


def test_a_schedule_that_changes_for_steps_done_is_told(tmp_path: Path) -> None:
    make_trainer(tmp_path, steps=4)[0].train()
    trainer, text = make_trainer(tmp_path, steps=8, resume=True)
    trainer.train()
    said = " ".join(text.getvalue().split())
    assert "WARNING: 3 of the 4 steps done had other learning rates than in a run of 8 steps" in said
    assert "the schedule was laid over 4" in said
    assert [row["step"] for row in rows(tmp_path) if "loss" in row][-1] == 8


def test_what_an_objective_schedules_is_told(tmp_path: Path) -> None:
    class Scheduled(ToyObjective):
        scheduled = ("the teacher's momentum",)

    common: dict[str, Any] = {"optim": CONSTANT}
    make_trainer(tmp_path, Scheduled(), steps=3, **common)[0].train()
    trainer, text = make_trainer(tmp_path, Scheduled(), steps=5, resume=True, **common)
    trainer.train()
    assert "WARNING: the teacher's momentum follow the 5 steps from here on, 3 before" in text.getvalue()


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"schedule": "constant", "warmup_steps": 3}, False),
        ({"schedule": "constant", "warmup_ratio": 0.0}, False),
        ({"schedule": "constant", "warmup_ratio": 0.5}, True),
        ({"schedule": "cosine", "warmup_steps": 20}, False),  # all steps done are of the warm-up
        ({"schedule": "cosine", "warmup_steps": 3}, True),
        ({"schedule": "linear", "warmup_steps": 3}, True),
        ({"schedule": "step", "warmup_steps": 3}, True),
    ],
)
def test_which_schedules_change_with_the_length(settings: dict[str, Any], changes: bool) -> None:
    optim = OptimSettings(**settings)
    note = changed_rate(optim.model_dump(mode="json"), 20, optim, 40, 18)
    assert (note is not None) is changes
    assert changed_rate({"lr": "of another version"}, 20, optim, 20, 18) is None


def test_a_run_is_not_made_shorter_than_it_is(run: Path) -> None:
    with pytest.raises(ConfigError, match="has 6 steps behind it, more than the 5 asked for"):
        resume(run, steps=5)
