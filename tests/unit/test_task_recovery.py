"""Which weights a finetuning ends with when it was interrupted, damaged or made longer."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from tests.unit.test_task_runs import config
from vitp.core.config import save_config
from vitp.core.errors import CheckpointError
from vitp.engine import checkpoint
from vitp.runs.finetune import FinetuneConfig, run_finetune
from vitp.tasks import validation
from vitp.tasks.validation import CURVE_FILE, best_weights

SCORES = {2: 0.3, 4: 0.6, 6: 0.5, 8: 0.9, 10: 0.1}
"""What validation says after each step, whatever the weights are."""


@pytest.fixture(autouse=True)
def _told_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    real = validation.Validation.on_step_end

    def told(self: Any, trainer: Any, step: int, metrics: Any) -> None:
        class Told:
            score, values = SCORES.get(step, 0.0), {}

        trainer.objective.evaluate = lambda *_: Told
        real(self, trainer, step, metrics)
        del trainer.objective.evaluate  # the test images are scored as they are

    monkeypatch.setattr(validation.Validation, "on_step_end", told)


def best(steps: int = 10, **train: Any) -> FinetuneConfig:
    return config(train={"choose": "best", "steps": steps, "save_every": 4, "keep_last": 9, **train})


def run(settings: FinetuneConfig, out: Path, *, resume: bool = False) -> tuple[int, str]:
    text = io.StringIO()
    result = run_finetune(settings, out, resume=resume, console=Console(file=text, width=300))
    return result.step, text.getvalue()


def cut_off(out: Path, step: int) -> None:
    """Leave what a run leaves that was killed before its checkpoint after `step` was written."""
    for path in checkpoint.checkpoints(out):
        if path > checkpoint.folder(out, step):
            shutil.rmtree(path)
    shutil.rmtree(out / "model")
    (out / "scores.json").unlink()


def curve(out: Path) -> list[int]:
    return [row[0] for row in json.loads((out / CURVE_FILE).read_text())["curve"]]


def test_the_best_until_each_checkpoint_is_kept(tmp_path: Path) -> None:
    assert run(best(), tmp_path / "run")[0] == 8
    kept = [int(file.stem.removeprefix("step_")) for file in (tmp_path / "run" / "best").iterdir()]
    assert sorted(kept) == [4, 8], "8 is the best, 4 was until the checkpoint of step 4"
    assert curve(tmp_path / "run") == [2, 4, 6, 8, 10]


def test_the_best_of_lost_steps_is_not_named(tmp_path: Path) -> None:
    """The last whole checkpoint is that of step 4; the best was found at step 8, and is not found again."""
    out = tmp_path / "run"
    run(best(), out)
    cut_off(out, 4)
    SCORES[8] = 0.2
    try:
        step, text = run(best(), out, resume=True)
    finally:
        SCORES[8] = 0.9
    assert step == 4 and "WARNING" not in text
    assert json.loads((out / CURVE_FILE).read_text())["best"] == [4, 0.6]
    file = best_weights(out, 4)
    assert file is not None and best_weights(out, 8) is None
    kept, written = load_file(file), load_file(out / "model" / "model.safetensors")
    assert all(torch.equal(kept[name], written[name]) for name in written)


def test_rows_of_lost_steps_go_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    run(best(), out)
    cut_off(out, 4)
    monkeypatch.setattr(validation.Validation, "on_step_end", lambda *_: None)
    run(best(), out, resume=True)
    assert curve(out) == [2, 4] and not (out / "best" / "step_00000008.safetensors").exists()


@pytest.mark.parametrize("content", ["", '{"curve": [[2, 0.3], [4,', '{"curve": 3}'])
def test_a_damaged_curve_is_told_and_known_by_the_weights(tmp_path: Path, content: str) -> None:
    out = tmp_path / "run"
    run(best(), out)
    cut_off(out, 4)
    (out / CURVE_FILE).write_text(content)
    step, text = run(best(), out, resume=True)
    assert step == 8 and "validation.json is damaged" in text
    assert curve(out) == [4, 6, 8, 10]


def test_damaged_best_weights_are_left_out(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(best(), out)
    file = out / "best" / "step_00000008.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 16
    file.write_bytes(data)
    step, text = run(best(), out, resume=True)
    assert "step_00000008.safetensors is damaged" in text and "step 8" in text
    assert step == 4
    shutil.rmtree(out / "best")
    with pytest.raises(CheckpointError, match=r"step_00000010\.safetensors: is missing; .*\"last\""):
        run(best(), out, resume=True)
    assert run(best(choose="last"), out, resume=True)[0] == 10


def test_runs_of_earlier_versions_go_on(tmp_path: Path) -> None:
    """They kept one file of weights, whose header names the step."""
    out = tmp_path / "run"
    run(best(), out)
    cut_off(out, 4)
    for kept, named in (("4", "4"), ("8", "8")):
        weights = load_file(checkpoint.folder(out, 4) / "model.safetensors")
        save_file(weights, out / "best.safetensors", {"step": named})
        copy = Path(shutil.copytree(out, tmp_path / f"former{kept}"))
        shutil.rmtree(copy / "best")
        SCORES[8] = 0.2
        try:
            step, text = run(best(), copy, resume=True)
        finally:
            SCORES[8] = 0.9
        # Where the file is of a lost step, what was best before can't be had any more, which is told.
        assert step == (4 if kept == "4" else 6)
        assert ("the best validation so far are not there" in text) is (kept == "8")


def test_a_finetuning_is_made_longer(tmp_path: Path) -> None:
    """At a constant rate it is the run that was longer from the start; its choice is made anew."""
    constant: dict[str, Any] = {"optim": {"schedule": "constant", "warmup_steps": 1, "lr": 1e-3}}
    settings = {
        steps: FinetuneConfig.model_validate(
            {**best(steps).model_dump(), "optim": {**best(steps).optim.model_dump(), **constant["optim"]}}
        )
        for steps in (6, 10)
    }
    assert run(settings[6], tmp_path / "run")[0] == 4
    step, text = run(settings[10], tmp_path / "run", resume=True)
    assert step == 8 and "WARNING" not in text
    run(settings[10], tmp_path / "long")
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "long"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    scores = [json.loads((tmp_path / name / "scores.json").read_text()) for name in ("run", "long")]
    assert scores[0] == scores[1]


def test_a_length_in_epochs_can_grow_too(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(config(train={"epochs": 1, "choose": "last"}), out)
    (first,) = checkpoint.checkpoints(out)[-1:]
    steps = checkpoint.read_state(first).step
    run(config(train={"epochs": 2, "choose": "last"}), out, resume=True)
    (last,) = checkpoint.checkpoints(out)[-1:]
    assert checkpoint.read_state(last).step == 2 * steps


def test_a_length_that_is_refused_leaves_the_configuration(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(config(train={"steps": 4}), out)
    before = (out / "config.yaml").read_text()
    with pytest.raises(Exception, match="has 4 steps behind it"):
        run(config(train={"steps": 2}), out, resume=True)
    assert (out / "config.yaml").read_text() == before


@pytest.mark.parametrize("content", [None, b"", b"task: [", b"\xff\xfe\x00"])
def test_a_damaged_configuration_is_taken_from_a_checkpoint(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    from vitp.runs.folder import config_to_resume

    out = tmp_path / "run"
    run(config(train={"steps": 4}), out)
    before = (out / "config.yaml").read_bytes()
    (out / "config.yaml").unlink()
    if content is not None:
        (out / "config.yaml").write_bytes(content)
    assert config_to_resume(out).read_bytes() == before
    assert "written anew from" in caplog.text
    # A file that is another one, but whole, is the user's.
    save_config(config(train={"steps": 8}), out / "config.yaml")
    assert "steps: 8" in config_to_resume(out).read_text()
