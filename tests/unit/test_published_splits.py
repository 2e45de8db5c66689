"""Splits as published sets of whole images bring them: lists in `meta/`, numbered images, columns, folders in folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.layout_toys import mask, photo
from vitp.core.errors import DataError
from vitp.data.formats import read_labels
from vitp.records.labels import LabelledSet

NAMES = ("apple_pie", "waffles")


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def splits(found: LabelledSet) -> dict[str, str]:
    return {Path(item.image).stem: item.split for item in found.items}


def food(root: Path) -> dict[str, list[str]]:
    """Write six images of each class, and return their names as Food-101's lists have them."""
    names = {name: [f"{name}/{name[0]}{i}" for i in range(6)] for name in NAMES}
    for name in (name for own in names.values() for name in own):
        photo(root / f"images/{name}.jpg")
    text(root / "meta/classes.txt", "\n".join(NAMES))
    return names


@pytest.mark.parametrize("suffix", ["txt", "json"])
def test_lists_in_meta_are_the_splits(tmp_path: Path, suffix: str) -> None:
    names = food(tmp_path)
    for split, part in (("train", slice(4)), ("test", slice(4, 6))):
        own = {name: listed[part] for name, listed in names.items()}
        lines = "\n".join(name for listed in own.values() for name in listed)
        text(tmp_path / f"meta/{split}.{suffix}", lines if suffix == "txt" else json.dumps(own))
    found = read_labels("auto", tmp_path)
    assert found.scene_classes == NAMES and not found.findings
    assert splits(found) == {f"{c}{i}": "train" if i < 4 else "test" for c in "aw" for i in range(6)}
    assert f"splits: train 8, test 4; from the lists train.{suffix}, test.{suffix}" in found.understood


def cub(root: Path) -> Path:
    """Write six images of each of two classes, which CUB's lists number from 1; each third one is for the test."""
    images = [f"{c}/{c[4:]}_{i}.jpg" for c in ("001.Albatross", "002.Auklet") for i in range(6)]
    for name in images:
        photo(root / "images" / name)
    text(root / "images.txt", "".join(f"{n} {name}\n" for n, name in enumerate(images, 1)))
    flags = "".join(f"{n} {int(n % 3 > 0)}\n" for n in range(1, 13))
    text(root / "train_test_split.txt", flags)
    text(root / "classes.txt", "1 001.Albatross\n2 002.Auklet\n")
    text(root / "image_class_labels.txt", "".join(f"{n} {1 + n // 7}\n" for n in range(1, 13)))
    return root


def test_numbers_of_images_and_whether_they_train(tmp_path: Path) -> None:
    found = read_labels("auto", cub(tmp_path))
    assert found.scene_classes == ("001.Albatross", "002.Auklet")
    held = {name for name, split in splits(found).items() if split == "test"}
    assert held == {"Albatross_2", "Albatross_5", "Auklet_2", "Auklet_5"} and len(found.items) == 12
    assert "splits: train 8, test 4; from the list train_test_split.txt" in found.understood


@pytest.mark.parametrize("row", ["99 1", "3 train"])
def test_a_row_of_numbers_that_means_nothing_is_refused(tmp_path: Path, row: str) -> None:
    path = cub(tmp_path) / "train_test_split.txt"
    path.write_text(path.read_text().replace("3 0", row, 1))
    with pytest.raises(DataError, match=f'"{row}" is not the number of an image in images.txt') as caught:
        read_labels("auto", tmp_path)
    assert caught.value.where == f"{path}:3"


def test_splits_within_a_folder_of_images(tmp_path: Path) -> None:
    for name, split in ((n, s) for n in NAMES for s in ("train", "val")):
        for i in range(3):
            photo(tmp_path / f"images/{split}/{name}/{name[0]}{split}{i}.jpg")
    found = read_labels("auto", tmp_path)
    assert found.scene_classes == NAMES
    assert all(item.split in Path(item.image).stem for item in found.items) and len(found.items) == 12


def test_lists_of_other_names_are_said_to_be_there(tmp_path: Path) -> None:
    for i in range(12):
        photo(tmp_path / f"{NAMES[i % 2]}/{i}.jpg")
    text(tmp_path / "train_list.txt", "\n".join(f"{i}.jpg" for i in range(8)))
    text(tmp_path / "test_notes.txt", "photographed in May\nat noon\n")
    found = read_labels("auto", tmp_path)
    assert [line for line in found.understood if "not used" in line] == [
        "not used: train_list.txt, which name images; lists of the splits are called train.txt, val.txt and test.txt"
    ]


def table(root: Path, head: str, rows: list[str]) -> Path:
    for i in range(len(rows)):
        photo(root / f"images/{i}.png")
    text(root / "labels.csv", "\n".join([head, *(f"{i}.png,{row}" for i, row in enumerate(rows))]))
    return root


def test_a_column_of_splits_and_one_of_folds(tmp_path: Path) -> None:
    told = ["train"] * 6 + ["val"] * 2 + ["extra", "test"]
    rows = [f"{'ab'[i % 2]},{split},{i % 2 + 1}" for i, split in enumerate(told)]
    found = read_labels("auto", table(tmp_path, "image,label,split,fold", rows))
    assert splits(found) == {str(i): split for i, split in enumerate(told) if split != "extra"}
    assert [item.fold for item in found.items] == [i % 2 for i in (0, 1, 2, 3, 4, 5, 6, 7, 9)]
    assert 'labels.csv: column "split" says the splits' in found.understood
    assert any('column "fold" numbers 2 folds of a cross-validation (1–2;' in x for x in found.understood)
    assert (
        'labels.csv: column "split" holds "extra", which names no split (train, val, test)' in found.findings
    )


def test_folds_are_no_class_and_values_that_name_no_split_are_said(tmp_path: Path) -> None:
    rows = [f"{i % 2},{i // 2 % 2},{i % 2},{'AB'[i % 2]}" for i in range(12)]
    found = read_labels("auto", table(tmp_path, "image,cat,dog,fold,set", rows))
    assert found.scene_classes == ("cat", "dog") and [item.fold for item in found.items[:2]] == [0, 1]
    assert {item.split for item in found.items} == {"train", "val", "test"}
    (line,) = (line for line in found.understood if "folds" in line)
    assert "2 folds of a cross-validation (0–1; vitp finetune --folds 2), which are no splits" in line
    text(tmp_path / "labels.csv", (tmp_path / "labels.csv").read_text().replace("fold,set", "view,set"))
    found = read_labels("auto", tmp_path, classes="cat,dog")
    expected = 'not used: column "set" of labels.csv, whose values ("A", "B") name no split'
    assert expected in found.understood


def tiny(root: Path) -> Path:
    """Write Tiny ImageNet's layout: folders of classes for training, a text for validation, nothing for the test."""
    for number in (0, 1):
        for i in range(4):
            photo(root / f"train/n0{number}/images/n0{number}_{i}.JPEG")
    for i in range(4):
        photo(root / f"val/images/val_{i}.JPEG")
        photo(root / f"test/images/test_{i}.JPEG")
    rows = [f"val_{i}.JPEG\tn0{i // 3}\t0\t0\t9\t9\n" for i in range(4)]
    text(root / "val/val_annotations.txt", "".join(rows))
    return root


def test_classes_of_a_split_in_a_text(tmp_path: Path) -> None:
    found = read_labels("auto", tiny(tmp_path))
    assert found.scene_classes == ("n00", "n01")
    scenes = {Path(i.image).stem: (i.split, i.scene) for i in found.items}
    assert {name: told for name, told in scenes.items() if name.startswith("val")} == {
        f"val_{i}": ("val", f"n0{i // 3}") for i in range(4)
    }
    assert len(scenes) == 12
    assert found.findings == ("test/images: 4 images of no known class; left out",)
    text(tmp_path / "words.txt", "n00\tgoldfish, Carassius auratus\nn01\tbullfrog\nn02\tentity\n")
    found = read_labels("auto", tmp_path)
    assert found.scene_classes == ("bullfrog", "goldfish")
    assert "words.txt: the names of 2 classes, the first word for each" in found.understood
    assert {i.scene for i in found.items if "n00" in i.image} == {"goldfish"}
    assert sum(i.scene == "goldfish" for i in found.items) == 4 + 3


def test_a_class_that_no_training_image_has_is_said(tmp_path: Path) -> None:
    path = tiny(tmp_path) / "val/val_annotations.txt"
    path.write_text(path.read_text().replace("val_2.JPEG\tn00", "val_2.JPEG\tn0o"))
    found = read_labels("auto", tmp_path)
    assert found.findings[0] == (
        'val/val_annotations.txt:3: no folder of training images is called after its class "n0o"'
    )
    assert "no training image is of n0o: only images of other splits are" in found.understood
    assert found.scene_classes == ("n00", "n01", "n0o")
    for name in ("n00", "n01", "n05"):
        photo(tmp_path / f"folders/test/{name}/{name}.png")
        if name != "n05":
            photo(tmp_path / f"folders/train/{name}/a{name}.png")
    told = read_labels("folders", tmp_path / "folders").understood
    assert "no training image is of n05: only images of other splits are" in told


def test_files_of_published_sets_that_nobody_reads_are_said(tmp_path: Path) -> None:
    cub(tmp_path / "cub")
    text(tmp_path / "cub/bounding_boxes.txt", "1 60.0 27.0 325.0 304.0\n")
    told = read_labels("auto", tmp_path / "cub").understood
    assert any(
        line.startswith("there, and not read: bounding_boxes.txt, a box for each image") for line in told
    )
    for i in range(4):
        photo(tmp_path / f"ade/images/training/ADE_train_{i}.jpg")
        mask(tmp_path / f"ade/annotations/training/ADE_train_{i}.png", 1, 2)
    text(tmp_path / "ade/sceneCategories.txt", "ADE_train_0 airport_terminal\n")
    told = read_labels("auto", tmp_path / "ade").understood
    assert any(
        line.startswith("there, and not read: sceneCategories.txt, the kind of scene") for line in told
    )


def test_a_row_without_class_and_one_without_image(tmp_path: Path) -> None:
    path = tiny(tmp_path) / "val/val_annotations.txt"
    rows = path.read_text()
    path.write_text(rows + "val_9.JPEG\tn00\n")
    assert (
        "val/val_annotations.txt:5: val_9.JPEG is missing; left out" in read_labels("auto", tmp_path).findings
    )
    path.write_text(rows + "val_9.JPEG\n")
    with pytest.raises(DataError, match=r"val_annotations\.txt:5: names no image and class"):
        read_labels("auto", tmp_path)
