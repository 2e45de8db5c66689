"""A run folder whose run trained nothing is free for the next try."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitp.core.errors import ConfigError, DataError
from vitp.runs.finetune import FinetuneConfig
from vitp.runs.folder import claimed

CONFIG = FinetuneConfig.model_validate({"task": "segmentation", "data": {"root": "somewhere"}})


def fail_in(folder: Path, rows: str = "") -> None:
    """Begin a run that finds its files gone before the first checkpoint."""
    with pytest.raises(DataError, match="vanished"), claimed(folder, CONFIG, "cpu", resume=False):
        (folder / "start_vision.safetensors").write_bytes(b"weights")
        (folder / "mixture.json").write_text("{}")
        (folder / "metrics.jsonl").write_text(rows)
        (folder / "checkpoints").mkdir()
        raise DataError("vanished", where="a.png")


@pytest.mark.parametrize("rows", ["", '{"step": 10}\n'])
def test_a_run_without_a_checkpoint_frees_its_folder(tmp_path: Path, rows: str) -> None:
    folder = tmp_path / "run"
    fail_in(folder, rows)
    if rows:
        assert (folder / "metrics.jsonl").read_text() == rows, "what it logged stays"
        assert not (folder / "checkpoints").exists()
    else:
        assert not folder.exists()
    fail_in(folder, rows)


def test_what_lay_in_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    fail_in(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_with_a_checkpoint_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "vitp.runs.folder.checkpoint.latest", lambda folder: folder / "checkpoints" / "step_1"
    )
    folder = tmp_path / "run"
    fail_in(folder)
    assert {path.name for path in folder.iterdir()} >= {
        "config.yaml",
        "start_vision.safetensors",
        "checkpoints",
    }
    with (
        pytest.raises(ConfigError, match="holds a run already"),
        claimed(folder, CONFIG, "cpu", resume=False),
    ):
        pass


@pytest.mark.parametrize("name", ["mixture.json", "model", "scores.json"])
def test_a_run_replaces_nothing_that_is_of_no_run(tmp_path: Path, name: str) -> None:
    theirs = tmp_path / name / "weights" if name == "model" else tmp_path / name
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("mine")
    with (
        pytest.raises(ConfigError, match=f"holds {name}, which is of no run"),
        claimed(tmp_path, CONFIG, "cpu", resume=False),
    ):
        raise AssertionError("a run began here")
    assert theirs.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [name]
