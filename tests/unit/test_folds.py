"""Cross-validation: groups stay whole, folds are even, published ones count, and the command makes all runs."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitp.cli import run
from vitp.core.errors import ConfigError
from vitp.data.folds import as_fold, folds_of
from vitp.records.labels import LabelledImage, LabelledSet
from vitp.runs.finetune import FinetuneConfig, run_splits
from vitp.runs.folds import FoldScores


def item(
    name: str, group: str = "", split: str = "train", scene: str = "a", fold: int | None = None
) -> LabelledImage:
    return LabelledImage(name, f"{name}.png", 8, 8, split, group, scene=scene, fold=fold)


def patients(count: int, each: int = 4) -> list[LabelledImage]:
    return [
        item(f"{number}-{place}", f"patient-{number}", ("train", "val")[number % 2], "ab"[number % 3 == 0])
        for number in range(count)
        for place in range(1 + (number * 7) % each)
    ]


def test_folds_keep_patients_and_are_even() -> None:
    items = patients(40)
    folds = folds_of(items, 5)
    sides = {one.group: set() for one in items}
    for one, fold in zip(items, folds, strict=True):
        sides[one.group].add(fold)
    assert all(len(own) == 1 for own in sides.values())
    sizes = Counter(folds)
    assert max(sizes.values()) - min(sizes.values()) <= 2 and set(sizes) == set(range(5))
    of_b = Counter(fold for one, fold in zip(items, folds, strict=True) if one.scene == "b")
    assert max(of_b.values()) - min(of_b.values()) <= 2
    # The order of the images says nothing.
    back = folds_of(items[::-1], 5)[::-1]
    assert back == folds


def test_no_fold_is_empty_and_too_many_are_refused() -> None:
    items = [item(str(n), "big") for n in range(50)] + [item("x", "small"), item("y", "tiny")]
    assert set(folds_of(items, 3)) == {0, 1, 2}
    with pytest.raises(ConfigError, match="3 groups can't be spread over 4 folds"):
        folds_of(items, 4)


def test_each_image_is_tested_once_and_the_test_split_never() -> None:
    items = [*patients(10), item("held", "patient-99", "test")]
    labelled = LabelledSet("set", items, scene_classes=("a", "b"))
    tested: Counter[str] = Counter()
    for fold in range(5):
        part, line = as_fold(labelled, 5, fold)
        tested.update(one.id for one in part.items if one.split == "test")
        groups = {side: {one.group for one in part.split(side).items} for side in ("train", "test")}
        assert not groups["train"] & groups["test"] and "patient-99" not in groups["train"] | groups["test"]
        assert f"fold {fold} of 0–4" in line and "1 images of the set's own test split are in no fold" in line
    assert set(tested.values()) == {1} and len(tested) == len(items) - 1
    with pytest.raises(ConfigError, match="there is no fold 5 of 5"):
        as_fold(labelled, 5, 5)


def test_published_folds_count_where_there_are_as_many() -> None:
    items = [item(str(n), f"g{n}", fold=n % 2) for n in range(6)]
    labelled = LabelledSet("set", items, scene_classes=("a",))
    part, line = as_fold(labelled, 2, 1)
    assert [one.split for one in part.items] == ["train", "test"] * 3 and "as published" in line
    _, line = as_fold(labelled, 3, 0)
    assert "the set has 2 folds of its own, which aren't used" in line


@pytest.mark.parametrize("choose", ["last", "best"])
def test_splits_of_a_fold(choose: str) -> None:
    labelled = LabelledSet("set", patients(15), scene_classes=("a", "b"))
    values = {
        "task": "classification",
        "data": {"root": "x", "folds": 3, "fold": 2},
        "train": {"choose": choose},
    }
    said: list[str] = []
    splits = run_splits(labelled, FinetuneConfig.model_validate(values), "scene", said)
    ids = {name: {one.id for one in part.items} for name, part in splits.items()}
    assert not ids["train"] & ids["test"] and len(said) == 1
    # What chooses the weights is never the test.
    assert (ids["val"] == ids["test"]) == (choose == "last")
    assert not ids["val"] & ids["train"]
    values["data"] = {"root": "x", "folds": 3, "splits": {"test": "val"}}
    with pytest.raises(ConfigError, match="name the splits a second time"):
        run_splits(labelled, FinetuneConfig.model_validate(values), "scene")


def test_the_command_makes_a_run_for_each_fold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for number in range(8):
        for place in range(2):
            path = tmp_path / "set" / "ab"[number % 2] / f"patient{number}_{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    tower = {"arguments": {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8}, "image_size": 16}
    small = [f"backbone.vision={json.dumps(tower)}", "train.val_every=0"]
    command = [
        "finetune",
        "classification",
        "--data",
        str(tmp_path / "set"),
        "--backbone",
        "random",
        "--steps",
        "1",
    ]
    command += [
        "-s",
        'data.options={"test": 0, "patient": "patient[0-9]"}',
        *[w for s in small for w in ("-s", s)],
    ]
    command += ["--folds", "2", "--out", str(tmp_path / "cv")]
    assert run(command) == 0
    shown = capsys.readouterr().out
    assert "mean ± sd" in shown and "fold 1" in shown
    told = json.loads((tmp_path / "cv" / "folds.json").read_text())
    scores = [json.loads((tmp_path / "cv" / f"fold-{k}" / "scores.json").read_text()) for k in range(2)]
    assert told["images"] == [8, 8] and scores[1]["split"] == "fold 1 of 2"
    top = [one["values"][told["headline"]] for one in scores]
    value = told["values"][told["headline"]]
    assert value["folds"] == top and value["mean"] == pytest.approx(np.mean(top))
    assert value["sd"] == pytest.approx(np.std(top, ddof=1))
    # A cross-validation that is complete is told again; one of another length isn't mixed with it.
    before = (tmp_path / "cv" / "fold-0" / "scores.json").stat().st_mtime_ns
    (tmp_path / "cv" / "folds.json").unlink()
    assert run([*command, "--resume"]) == 0
    assert json.loads((tmp_path / "cv" / "folds.json").read_text()) == told
    assert (tmp_path / "cv" / "fold-0" / "scores.json").stat().st_mtime_ns == before
    assert run([*command[:-2], "--out", str(tmp_path / "cv"), "--resume", "-s", "optim.lr=1"]) == 2
    assert "differs from the run that is to be resumed: optim.lr" in capsys.readouterr().err


def test_the_table_shows_counts_as_they_are_and_units_as_they_are() -> None:
    values = {
        "case_dice": [0.5, 0.7],
        "cases": [4.0, 1200.0],
        "case_error_mm2": [1.0, 3.0],
        "case_hd95_mm": [2.0, math.nan],
        "hd95_pixels": [2.0, 4.0],
    }
    liver = {"case_dice": [0.25, 0.25], "cases": [3.0, math.nan]}
    head, rows = FoldScores("case_dice", values, {"liver": liver}, [8, 9]).table()
    assert head == ["", "images", *values]
    assert rows == [
        ["fold 0", "8", "50.0", "4", "1.0", "2.0", "2.0"],
        ["fold 1", "9", "70.0", "1,200", "3.0", "–", "4.0"],
        ["mean ± sd", "17", "60.0 ± 14.1", "1,204", "2.0 ± 1.4", "2.0 ± 0.0", "3.0 ± 1.4"],
        ["liver", "", "25.0 ± 0.0", "3", "", "", ""],
    ]
