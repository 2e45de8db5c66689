"""Sets with large images, few objects or few images: what a study learns from and scores, and which shares it can ask."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitp.core.errors import ConfigError
from vitp.data.compile import compile_labels
from vitp.data.formats.crops import empty_crops
from vitp.data.formats.empty import is_empty
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel
from vitp.studies.main import make_study
from vitp.studies.process import Context
from vitp.studies.scales import scale_of
from vitp.studies.sources import provide_data
from vitp.tasks.data import open_labelled

SIDE, EACH = 300, 16
"""Of the images, in pixels, and the crops of 96 px that each gives."""


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a compiled set: 6, 5 and 4 images that train, validate and test, each with one object of two classes."""
    root = tmp_path_factory.mktemp("sparse")
    for split, count in (("train", 6), ("val", 5), ("test", 4)):
        (root / split / "images").mkdir(parents=True)
        images, boxes = [], []
        for i in range(count):
            pixels = np.random.default_rng(i + 10 * count).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / "images" / f"{split}{i}.png")
            images.append({"id": i, "file_name": f"{split}{i}.png", "width": SIDE, "height": SIDE})
            box = {"id": i, "image_id": i, "category_id": i % 2, "bbox": [20 + i, 30, 24, 20], "iscrowd": 0}
            boxes.append(box)
        names = [{"id": 0, "name": "ship"}, {"id": 1, "name": "crane"}]
        content = {"images": images, "annotations": boxes, "categories": names}
        (root / split / "labels.json").write_text(json.dumps(content))
    compile_labels(root, "coco", root / "out")
    return root / "out"


def study(folder: Path, *words: str) -> tuple[dict[str, object], tuple[str, ...], Context]:
    """Return the limits in the settings of the cell of crops, what is said, and its context."""
    scale = scale_of("micro", overrides=["downstream=[detection]", *words], study="cheap-labels")
    found = make_study("cheap-labels", scale, folder)
    (cell,) = [cell for cell in found.cells if cell.settings.get("crop")]
    limits = {name: cell.settings[name] for name in ("empty", "scored_crops") if name in cell.settings}
    return limits, found.said, Context(cell, folder.parent / f"cell{len(words)}")


def test_empty_crops_are_thinned_in_training_and_whole_images_are_drawn_to_be_scored(sparse: Path) -> None:
    limits, said, context = study(sparse, "scored_crops=40")
    assert limits == {"empty": 0.2, "scored_crops": 40}
    assert any("more than half of the training crops hold no object" in line for line in said)
    assert any("so many are drawn as give 40 crops" in line for line in said)
    context.folder.mkdir()
    sizes = provide_data(context)["images"]
    crops = open_labelled(context.folder / "compiled", "vitp").items
    # One empty crop to each four of the six with objects, rounded down; three images of 16 crops reach 40.
    assert sizes == {"train": 7, "val": 3 * EACH, "test": 3 * EACH}
    assert sum(is_empty(item) for item in crops if item.split == "train") == 1
    for split in ("val", "test"):
        own = [item for item in crops if item.split == split]
        assert len({item.group for item in own}) == 3
        assert sum(not is_empty(item) for item in own) == 3


def test_a_limit_that_changes_nothing_is_none(sparse: Path) -> None:
    """So cells that are finished are found again, whatever the limits are."""
    limits, said, _ = study(sparse, "empty=1", f"scored_crops={5 * EACH}")
    assert not limits and len(said) == 1


def test_crops_without_boxes_are_not_called_empty_where_nobody_looked_for_objects() -> None:
    image = LabelledImage(id="a", image="a.png", width=SIDE, height=SIDE, split="train")
    box = ObjectLabel("ship", (20.0, 30.0, 44.0, 50.0))
    assert empty_crops(image, 96) == (EACH, 0)
    assert empty_crops(replace(image, objects=()), 96) == (EACH, EACH)
    assert empty_crops(replace(image, objects=(box,)), 96) == (EACH, EACH - 1)


def test_shares_of_fewer_than_two_images_are_left_out_and_said(sparse: Path) -> None:
    scale = scale_of("micro", overrides=["downstream=[detection]"])
    found = make_study("data-efficiency", scale, sparse)
    assert {cell.settings["labels"] for cell in found.cells if cell.name.startswith("finetune/")} == {None}
    assert {claim.group for claim in found.claims} == {"100 % of the labels"}
    left_out = [line for line in found.said if "fewer than two" in line]
    assert left_out == [
        f"{sparse.parent.name}: {share} % of 6 training images is fewer than two; that share is left out."
        for share in (20, 10, 5, 2)
    ]
    assert set(left_out) <= set(found.notes)


def test_a_set_of_which_no_share_can_be_asked_is_refused(sparse: Path) -> None:
    words = ["downstream=[detection]", "shares=[0.05, 0.2]", "whole_up_to=9"]
    with pytest.raises(ConfigError, match="no share of the labels that is asked for is two images or more"):
        make_study("cheap-labels", scale_of("micro", overrides=words, study="cheap-labels"), sparse)


def test_a_folder_is_opened_once_while_planning_and_again_only_to_be_cut(
    sparse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def counted(folder: Path, fmt: str) -> LabelledSet:
        opened.append(folder)
        return open_labelled(folder, fmt)

    monkeypatch.setattr("vitp.studies.sources.open_labelled", counted)
    study(sparse)
    assert len(opened) == 2
    opened.clear()
    words = ["downstream=[detection]", "whole_up_to=9", "shares=[1]"]
    found = make_study("cheap-labels", scale_of("micro", overrides=words, study="cheap-labels"), sparse)
    assert len(opened) == 1 and any(
        f"images of about {SIDE} px are seen whole" in line for line in found.said
    )


def _one_in(root: Path, every: int) -> Path:
    """Return a compiled set of 40, 6 and 6 images; of those that train each `every`th holds an object."""
    for split, count in (("train", 40), ("val", 6), ("test", 6)):
        (root / split / "images").mkdir(parents=True)
        images, boxes = [], []
        for i in range(count):
            pixels = np.random.default_rng([i, count]).integers(0, 256, (96, 96, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / "images" / f"{split}{i}.png")
            images.append({"id": i, "file_name": f"{split}{i}.png", "width": 96, "height": 96})
            if split != "train" or i % every == 0:
                boxes.append(
                    {"id": i, "image_id": i, "category_id": 0, "bbox": [20, 30, 24, 20], "iscrowd": 0}
                )
        content = {"images": images, "annotations": boxes, "categories": [{"id": 0, "name": "ship"}]}
        (root / split / "labels.json").write_text(json.dumps(content))
    compile_labels(root, "coco", root / "out")
    return root / "out"


@pytest.mark.parametrize(("every", "left"), [(40, {None}), (1, {None, 0.05})])
def test_shares_of_which_a_draw_holds_no_object_are_left_out_and_said(
    tmp_path: Path, every: int, left: set[float | None]
) -> None:
    words = ["downstream=[detection]", "shares=[0.05, 1]"]
    scale = scale_of("micro", overrides=words, study="cheap-labels")
    found = make_study("cheap-labels", scale, _one_in(tmp_path / "set", every))
    cells = [cell for cell in found.cells if cell.name.startswith("finetune/")]
    assert {cell.settings["labels"] for cell in cells} == left
    said = [line for line in found.said if "hold no object in the draw of seed" in line]
    assert len(said) == (0.05 not in left)
    assert all(
        ": 5 % of 40 training images hold no object" in line and "is left out" in line for line in said
    )
