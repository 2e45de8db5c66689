"""Hostile inputs through the real command line: a forged checkpoint, and names that aren't UTF-8."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import save_image
from tests.e2e.conftest import done, refused, vitp
from tests.fuzz.seeds import finetune_settings, pretrain_settings


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def _labels(root: Path, name: bytes = b"im%d") -> Path:
    for number in range(4):
        stem = os.fsdecode(name % number)
        save_image(root / "images" / f"{stem}.png", number, (48, 48))
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{stem}.txt").write_text(f"0 .5 .5 .{number + 2} .2\n")
    (root / "data.yaml").write_text("names: [ship]\n")
    return root


def _config(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_forged_description_of_parts_runs_nothing(tmp_path: Path) -> None:
    mark, run = tmp_path / "ran", tmp_path / "run"
    done("data", "compile", _labels(tmp_path / "set"), "--out", tmp_path / "out")
    config = _config(tmp_path / "run.yaml", pretrain_settings(str(tmp_path / "out")))
    assert vitp("pretrain", config, "--out", run).code == 0
    (newest,) = (path for path in (run / "checkpoints").glob("step_00000002"))
    parts = newest / "shards"
    parts.mkdir()
    (parts / ".metadata").write_bytes(pickle.dumps({"model/x": _Touch(mark)}))
    # A run that never was in parts doesn't look there.
    assert vitp("pretrain", config, "--out", run, "--resume", "--steps", 3).code == 0
    assert not mark.exists()
    # One that says it is in parts reads them by a list of classes.
    for checkpoint in (run / "checkpoints").glob("step_*"):
        shutil.rmtree(checkpoint / "shards", ignore_errors=True)
        (checkpoint / "shards").mkdir()
        (checkpoint / "shards" / ".metadata").write_bytes(pickle.dumps({"model/x": _Touch(mark)}))
        state = json.loads((checkpoint / "state.json").read_text())
        (checkpoint / "state.json").write_text(json.dumps({**state, "format": 2}))
        (checkpoint / "SHA256SUMS").unlink(missing_ok=True)
    line = refused("pretrain", config, "--out", run, "--resume", "--steps", 4)
    assert "checkpoint" in line
    assert not mark.exists()


def test_names_that_are_not_utf8_go_through_all_commands(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    labels = _labels(Path(os.fsdecode(b"s\xe4t")), b"im\xe4%d")
    done("data", "compile", labels, "--out", "out")
    for path in Path("out").rglob("*.json*"):
        path.read_bytes().decode("utf-8")
    assert vitp("data", "check", "out").code == 0
    done("data", "show", "out", "--out", "page.html")
    Path("page.html").read_bytes().decode("utf-8")
    config = _config(Path("run.yaml"), pretrain_settings("out"))
    assert vitp("pretrain", config, "--out", "run").code == 0
    for number in range(8):
        kind = ("ship", "car")[number % 2]
        save_image(Path("kinds") / kind / os.fsdecode(b"k\xe4%d.png" % number), number, (48, 48))
    finetuning = _config(Path("finetune.yaml"), finetune_settings("classification", "kinds"))
    assert vitp("finetune", "classification", finetuning, "--out", "tuned").code == 0
    assert vitp("predict", "tuned", labels / "images", "--out", "predictions").code == 0
    written = [path for path in Path("predictions").rglob("*") if path.is_file()]
    assert any(os.fsencode(path.name).startswith(b"im\xe4") for path in written)
    for path in written:
        if path.suffix in (".json", ".csv", ".html"):
            path.read_bytes().decode("utf-8")
