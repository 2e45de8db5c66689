"""`vitp data compile` on label files that are odd or broken: what it says, what it writes, and when it stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import refused, vitp

BOX = [5, 6, 20, 24]


def _image(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def _text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def _coco(root: Path, change: dict[str, Any]) -> Path:
    """Write six images with one object each; `change` is laid over the annotations of the last three."""
    for i in range(6):
        _image(root / "images" / f"im{i}.png", i)
    images = [{"id": i, "file_name": f"im{i}.png", "width": 64, "height": 48} for i in range(6)]
    rows = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": BOX, **(change if i > 2 else {})} for i in range(6)
    ]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "ship"}]}
    _text(root / "annotations" / "instances_train.json", json.dumps(content))
    return root


def _yolo(root: Path, row: str, count: int = 6, good: int = 0, yaml: str = "names: [ship, car]") -> Path:
    for i in range(count):
        _image(root / "images" / f"im{i}.png", i)
        _text(root / "labels" / f"im{i}.txt", "0 .5 .5 .2 .2" if i < good else row)
    _text(root / "data.yaml", yaml + "\n")
    return root


def _compiled(root: Path, *options: str) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """Compile a set; return what was printed, and the label rows of each split."""
    out = root.parent / "out"
    result = vitp("data", "compile", root, "--out", out, *options)
    assert result.code == 0, result
    rows = {
        split: [json.loads(line) for line in (out / "labels" / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "val", "test")
    }
    return result.out, rows


def test_what_was_understood_is_said_first(tmp_path: Path) -> None:
    output, rows = _compiled(
        _yolo(tmp_path / "set", "1 .1 .1 .3 .1 .3 .2 .1 .2"), "-o", "val=0", "-o", "test=0"
    )
    lines = [line.strip() for line in output.splitlines()]
    assert lines[:5] == [
        "understood as yolo:",
        "class numbers: 0–1, named by data.yaml",
        "rows of 9 columns: oriented boxes (rows=polygons reads them as outlines of four corners)",
        "splits: train 6; drawn (val=0, test=0, seed=0)",
        "objects: ship 0, car 6",
    ]
    assert len(rows["train"]) == 6
    head = json.loads((tmp_path / "out" / "labels" / "set.json").read_text())
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert head["understood"] == summary["understood"] == lines[1:5]


@pytest.mark.parametrize(
    "change",
    [
        {"category_id": 2},
        {"bbox": None},
        {"bbox": [float("nan"), 1, 2, 3]},
        {"bbox": [5, 6, -1, 3]},
        {"iscrowd": 1},
    ],
)
def test_images_that_lost_their_label_are_never_empty(tmp_path: Path, change: dict[str, Any]) -> None:
    _, rows = _compiled(_coco(tmp_path / "set", change))
    assert not any(row.get("objects") == [] and not row.get("ignored") for row in rows["train"])
    assert len(rows["train"]) == (6 if change.keys() & {"category_id", "iscrowd"} else 3)


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_ids_as_text(tmp_path: Path, key: str) -> None:
    root = _coco(tmp_path / "set", {})
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for row in content["annotations"]:
        row[key] = str(row[key])
    path.write_text(json.dumps(content))
    _, rows = _compiled(root)
    assert [len(row["objects"]) for row in rows["train"]] == [1] * 6


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("9 .5 .5 .2 .2", "none of the 6 labels can be used"),
        ("0 30 20 10 10", "30 looks like pixels"),
        ("0 .5 .5 .2 .2 .4 .4 2 .4 .4 2", "rows=pose"),
        ("0 .5 .5 .2 .2 .9", "confidence"),
    ],
)
def test_sets_that_cannot_be_understood_leave_nothing_behind(tmp_path: Path, row: str, why: str) -> None:
    line = refused("data", "compile", _yolo(tmp_path / "set", row), "--out", tmp_path / "out")
    assert why in line
    assert line.count("\n") <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_lists_of_data_yaml_are_the_splits(tmp_path: Path) -> None:
    root = _yolo(
        tmp_path / "set", "0 .5 .5 .2 .2", 20, yaml="path: .\ntrain: train.txt\nval: val.txt\nnames: [a]"
    )
    _text(root / "train.txt", "".join(f"./images/im{i}.png\n" for i in range(10)))
    _text(root / "val.txt", "".join(f"./images/im{i}.png\n" for i in range(10, 20)))
    output, rows = _compiled(root)
    assert {row["id"] for row in rows["train"]} == {f"images/im{i}" for i in range(10)}
    assert {row["id"] for row in rows["val"]} == {f"images/im{i}" for i in range(10, 20)}
    assert "splits: train 10, val 10; from data.yaml" in output


def test_names_of_yaml_are_text(tmp_path: Path) -> None:
    _, rows = _compiled(_yolo(tmp_path / "set", "1 .5 .5 .2 .2", good=3, yaml="names: [no, on]"))
    named = {label["category"] for split in rows.values() for row in split for label in row["objects"]}
    assert named == {"no", "on"}
