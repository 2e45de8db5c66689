"""What the labels of a finetuning can't teach or score is said before it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vitp.core.config import make_config
from vitp.core.errors import DataError
from vitp.data.formats import vitp_labels
from vitp.data.formats.vitp_labels import Roots
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel
from vitp.runs.finetune import FinetuneConfig, run_finetune
from vitp.tasks.data import labelled_only
from vitp.tasks.label_notes import label_notes, left_out_notes

CLASSES = ("car", "ship")


def at(name: str, x1: float, y1: float, x2: float, y2: float, **more: Any) -> ObjectLabel:
    return ObjectLabel(name, (x1, y1, x2, y2), **more)


# What labels can't teach


def items(*objects: tuple[ObjectLabel, ...] | None, split: str = "train") -> LabelledSet:
    made = [
        LabelledImage(f"{split}{k}", "a.png", 40, 32, split, objects=one) for k, one in enumerate(objects)
    ]
    return LabelledSet("set", made, CLASSES, ("port", "field", "forest"), ("land", "sea"))


def test_what_became_what_is_said_to_be_no_task() -> None:
    both = np.stack([np.zeros((4, 4), np.uint8), np.eye(4, dtype=np.uint8)])
    pair = LabelledImage(
        "a",
        "a.png",
        4,
        4,
        "train",
        second_image="b.png",
        change=lambda: both[0] != both[1],
        transition=lambda: both,
    )
    labelled = LabelledSet("set", [pair], change_classes=("field", "house"))
    (line,) = label_notes({"train": labelled}, "change", ("unchanged", "changed"))
    assert "where something changed is learned, not what became what" in line
    with pytest.raises(
        DataError, match=r"has no masks; its masks say what became what .*vitp finetune change"
    ):
        labelled_only(labelled, "semantic")


def test_runs_say_which_classes_the_training_images_lack() -> None:
    car, crowd = at("car", 1, 1, 9, 9), at("ship", 1, 1, 9, 9, difficult=True)
    full = {"train": items((car,), ()), "test": items((car,), split="test")}
    lacks = "no training image holds ship: the model can't learn that"
    assert label_notes(full, "objects", CLASSES) == [lacks]
    assert label_notes({**full, "train": items((car, crowd))}, "presence", CLASSES) == [lacks]
    assert (
        label_notes({**full, "train": items((car, replace(crowd, difficult=False)))}, "oriented", CLASSES)
        == []
    )
    for nothing in (items((), ()), items((crowd,))):
        with pytest.raises(DataError, match="train images holds an object: there is nothing to learn"):
            label_notes({**full, "train": nothing}, "instances", CLASSES)
    empty_test = {**full, "test": items((), (crowd,), split="test")}
    assert label_notes(empty_test, "objects", CLASSES)[1:] == [
        "none of the 2 test images holds an object: they can't be scored"
    ]
    assert label_notes({"train": items(())}, "objects", CLASSES, learned=None) == [
        "none of the 1 train images holds an object: they can't be scored"
    ]


def test_runs_say_which_scenes_and_mask_classes_are_missing() -> None:
    def scenes(*names: str) -> LabelledSet:
        made = [LabelledImage(str(k), "a.png", 4, 4, scene=name) for k, name in enumerate(names)]
        return LabelledSet("set", made, scene_classes=("port", "field", "forest"))

    assert label_notes({"train": scenes("field")}, "scene", ("port", "field", "forest")) == [
        "no training image holds port, forest: the model can't learn that"
    ]

    def masks(*values: int, kind: str = "semantic") -> LabelledSet:
        made = []
        for k, value in enumerate(values):
            array = np.full((4, 4), value, np.uint8)
            reads = {kind: (lambda mask=array: mask)}
            made.append(LabelledImage(str(k), "a.png", 4, 4, second_image="b.png", **reads))  # type: ignore[arg-type]
        return LabelledSet("set", made, semantic_classes=("land", "sea"))

    assert label_notes({"train": masks(0, 255)}, "semantic", ("land", "sea")) == [
        "no training image holds sea: the model can't learn that"
    ]
    assert label_notes({"train": masks(1, 0)}, "semantic", ("land", "sea")) == []
    with pytest.raises(DataError, match="none of the 2 train images holds a labelled pixel"):
        label_notes({"train": masks(255, 255)}, "semantic", ("land", "sea"))
    names = ("unchanged", "changed")
    with pytest.raises(DataError, match="none of the 1 train images holds a changed pixel"):
        label_notes({"train": masks(0, kind="change")}, "change", names)
    assert label_notes({"train": masks(0, 1, kind="change")}, "change", names) == []


def test_images_without_labels_are_said_to_be_left_out() -> None:
    test = items((), None, None, split="test")
    parts = {"test": labelled_only(test, "objects")}
    assert left_out_notes(parts, test.findings) == ["test: 2 of 3 images have no objects; left out"]


def test_finetuning_prints_what_is_missing_and_refuses_nothing_to_learn(tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    made = []
    for number, split in enumerate(("train", "train", "val", "test", "test")):
        path = src / f"{number}.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(
            path
        )
        made.append(LabelledImage(str(number), str(path), 32, 32, split, objects=(at("car", 4, 4, 20, 20),)))
    made[-1] = replace(made[-1], objects=None)
    made[0] = replace(made[0], ignored=(at("[red]?", 20, 20, 30, 30),))
    vision = {"arguments": {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8}, "image_size": 32}

    def run(name: str, images: list[LabelledImage]) -> str:
        root = tmp_path / name
        root.mkdir()
        vitp_labels.write_compiled(LabelledSet("set", images, CLASSES), Roots(root, src, src))
        values = {
            "task": "detection",
            "backbone": {"init": "random", "vision": vision},
            "head": {"width": 16},
            "data": {"root": str(root), "format": "vitp", "global_batch": 2},
            "train": {"steps": 1, "val_every": 0, "threads": 1},
        }
        with (tmp_path / f"{name}.txt").open("w") as file:
            console = Console(file=file, width=200)
            run_finetune(make_config(FinetuneConfig, values), tmp_path / f"{name}-run", console=console)
        return (tmp_path / f"{name}.txt").read_text()

    lines = run("good", made).splitlines()
    assert lines[0] == "test: 1 of 2 images have no objects; left out"
    assert lines[1] == "no training image holds ship: the model can't learn that"
    empty = [replace(item, objects=()) if item.split == "train" else item for item in made]
    with pytest.raises(DataError, match="none of the 2 train images holds an object"):
        run("empty", empty)
    assert not (tmp_path / "empty-run" / "config.yaml").exists()
