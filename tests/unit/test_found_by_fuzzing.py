"""Inputs that once ended in a stack trace, by kind: each is one line now."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import save_image
from vitp.checkpoints.description import Provenance, provenance_of_run
from vitp.cli import run as run_cli
from vitp.core.errors import CheckpointError, DataError
from vitp.data.formats import read_labels
from vitp.models.foreign import described_by, numbers_of
from vitp.records.labels import LabelledSet


def _refused(*arguments: object) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(printed):
        code = run_cli([str(argument) for argument in arguments])
    lines = printed.getvalue().splitlines()
    assert (code, len(lines)) == (2, 1), lines
    return lines[0]


def _yolo(root: Path, *, data: str = "names: [ship]\n", label: str = "0 .5 .5 .2 .2\n") -> Path:
    for number in range(3):
        save_image(root / "images" / f"im{number}.png", number)
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"im{number}.txt").write_text("0 .5 .5 .2 .2\n" if number else label)
    (root / "data.yaml").write_text(data)
    return root


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    "data",
    [
        f"{BOMB}names: *a8\n",
        f"names: {'[' * 5000}\n",
        "names: !!python/object/apply:os.system [true]\n",
        "names: !!int abc\n",
        "names: !mine [a]\n",
        f"names: {{0: a, {'9' * 5000}: b}}\n",
        "names: [a, b\x00]\n",
        "names: 2024-99-99\n",
        "names: &n [*n]\n",
    ],
)
def test_hostile_yaml_of_a_label_set_is_one_line(data: str, tmp_path: Path) -> None:
    line = _refused("data", "compile", _yolo(tmp_path / "set", data=data), "--out", tmp_path / "out")
    assert "data.yaml" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"images": ' + "9" * 5000 + "}", '{"images": [{"id": [3]}]}', "[]", "3"]
)
def test_hostile_json_of_a_label_set_is_one_line(text: str, tmp_path: Path) -> None:
    save_image(tmp_path / "set" / "a.png")
    (tmp_path / "set" / "annotations.json").write_text(text)
    _refused("data", "compile", tmp_path / "set", "--out", tmp_path / "out", "--format", "coco")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--option", "overlap=3"), "--overlap"),
        (("--option", "out=x"), "--out"),
        (("--option", "a b=3"), "no option"),
        (("--empty", "nan"), "--empty"),
        (("--seed", "-1"), "--seed"),
        (("--seed", "9" * 5000), "--seed"),
    ],
)
def test_options_that_cannot_be_are_one_line(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    assert said in _refused("data", "compile", _yolo(tmp_path / "set"), "--out", tmp_path / "out", *arguments)


@pytest.mark.parametrize("out", ["", "..", "mine", "mine/x", "/dev/null/x", "o" * 300])
def test_outputs_that_cannot_be_are_one_line(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _yolo(Path("set"))
    Path("mine").write_text("mine")
    _refused("data", "compile", "set", "--out", out)
    _refused("export", "starter", "--out", out)
    assert Path("mine").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "set"]


@pytest.mark.parametrize("classes", [("ship", "car", "ship"), ({"a": 1},), (True,), ("\ud83d",)])
def test_classes_are_different_texts(classes: tuple, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"named twice|is no text|half a character"):
        LabelledSet(name="x", items=[], semantic_classes=classes)


def test_labels_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    for number in range(3):
        save_image(tmp_path / "images" / f"{number}.png", number, (8, 8))
        values = np.zeros((8, 8), np.float32)
        values[0, number] = np.nan
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(values).save(tmp_path / "masks" / f"{number}.tif")
    with pytest.raises(DataError, match="no numbers"):
        read_labels("masks", tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"name": 3}, {"object_classes": "ab"}, {"findings": [None]}, {"image_root": "a\0b"}, {"licence": None}],
)
def test_heads_of_compiled_labels_are_looked_at(change: dict, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with contextlib.redirect_stdout(io.StringIO()):
        assert run_cli(["data", "compile", str(_yolo(tmp_path / "set")), "--out", str(out)]) == 0
    head = json.loads((out / "labels" / "set.json").read_text())
    (out / "labels" / "set.json").write_text(json.dumps({**head, **change}))
    with pytest.raises(DataError, match=r"no text|no list of texts"):
        read_labels("vitp", out)


@pytest.mark.parametrize("evidence", ["[1]", '"x"', '{"step": "x"}', '{"step": 1e400}', "[" * 10_000])
def test_odd_evidence_of_a_run_is_one_error(evidence: str, tmp_path: Path) -> None:
    (tmp_path / "evidence.json").write_text(evidence)
    with pytest.raises(CheckpointError):
        provenance_of_run(tmp_path)


def test_descriptions_that_cannot_be_followed_are_one_error() -> None:
    for values in ([1, 2], ["a", "b", "c"], None, 3, {"a": 1}):
        with pytest.raises(CheckpointError, match=r"x: doesn't describe a model"), described_by("x"):
            numbers_of(values, 3)
    with pytest.raises(CheckpointError, match="steps"), described_by("x"):
        Provenance(source="x", steps=-1)
