"""KITTI's text: which columns are the box, what DontCare means, which lists say the splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.layout_toys import photo
from vitp.core.errors import DataError
from vitp.data.formats import detect_format, read_labels

_CAR = "Car 0.50 1 -1.57 2.00 3.50 20.00 25.00 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59"
_NOBODY = "DontCare -1 -1 -10 30.00 1.00 39.00 9.00 -1 -1 -1 -1000 -1000 -1000 -10"


def kitti(root: Path, count: int = 6) -> Path:
    for k in range(count):
        photo(root / f"training/image_2/{k:06d}.png")
        text(root / f"training/label_2/{k:06d}.txt", f"{_CAR}\n{_NOBODY}\n")
    return root


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_boxes_are_the_columns_five_to_eight_and_dont_care_is_ignored(tmp_path: Path) -> None:
    found = read_labels("auto", kitti(tmp_path))
    assert detect_format(tmp_path) == "kitti" and found.object_classes == ("Car",)
    assert [label.box for item in found.items for label in item.objects or ()] == [(2.0, 3.5, 20.0, 25.0)] * 6
    assert [label.box for item in found.items for label in item.ignored] == [(30.0, 1.0, 39.0, 9.0)] * 6
    line = "6 places of DontCare ignored, which is no class by its name: neither objects nor background"
    assert line in found.understood
    assert not found.findings
    # What KITTI calls "training" is all that is labelled.
    assert {item.split for item in found.items} == {"train", "val", "test"}


def test_lists_say_the_splits_and_test_names_the_images_without_labels(tmp_path: Path) -> None:
    photo(kitti(tmp_path) / "testing/image_2/000000.png")
    for name, ids in (("train", "013"), ("val", "245"), ("trainval", "012345"), ("test", "0")):
        text(tmp_path / f"ImageSets/{name}.txt", "".join(f"{int(i):06d}\n" for i in ids))
    found = read_labels("auto", tmp_path)
    assert {Path(i.image).stem[-1]: i.split for i in found.items} == {
        **dict.fromkeys("013", "train"),
        **dict.fromkeys("245", "val"),
    }


def test_folders_of_splits_and_classes_that_are_asked_for(tmp_path: Path) -> None:
    for split in ("train", "val"):
        photo(tmp_path / split / "images/a.png")
        text(tmp_path / split / "labels/a.txt", f"{_CAR}\n{_CAR.replace('Car', 'Van')}\n")
    found = read_labels("auto", tmp_path, classes="Car")
    assert [item.split for item in found.items] == ["train", "val"]
    assert [[label.category for label in item.ignored] for item in found.items] == [["Van"], ["Van"]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"{_CAR} 0.97", "16 columns: the last is a confidence"),
        (f"0 7 {_CAR}", "is a row of KITTI's tracks"),
        (f"{_CAR}\nVan 0 0 0 1 2 3", r"a.txt:2: is not a KITTI row \(7 columns\)"),
    ],
)
def test_rows_that_are_no_labels_are_refused(tmp_path: Path, row: str, message: str) -> None:
    photo(tmp_path / "images/a.png")
    text(tmp_path / "labels/a.txt", row)
    with pytest.raises(DataError, match=message):
        read_labels("auto", tmp_path)


def test_a_fraction_behind_a_class_of_dota_is_a_confidence(tmp_path: Path) -> None:
    photo(tmp_path / "images/a.png")
    text(tmp_path / "labelTxt/a.txt", "1 1 9 1 9 9 1 9 plane 0.93\n")
    with pytest.raises(
        DataError, match=r"difficult is 0\.93, which looks like the confidence of a prediction"
    ):
        read_labels("auto", tmp_path)


@pytest.mark.parametrize(("images", "labels"), [("image_2", "label_2"), ("images", "labels")])
def test_a_damaged_first_file_is_named_with_its_row(tmp_path: Path, images: str, labels: str) -> None:
    for k in range(3):
        photo(tmp_path / f"training/{images}/{k}.png")
        text(tmp_path / f"training/{labels}/{k}.txt", f"{_CAR[:40] if k == 0 else _CAR}\n{_CAR}\n")
    with pytest.raises(DataError, match="is not a KITTI row") as caught:
        read_labels("auto", tmp_path)
    assert caught.value.where == str(tmp_path / f"training/{labels}/0.txt:1")
    for k in (1, 2):
        (tmp_path / f"training/{labels}/{k}.txt").write_text(_CAR[:40])
    with pytest.raises(DataError, match="which is of none of YOLO, DOTA and KITTI"):
        read_labels("auto", tmp_path)


@pytest.mark.parametrize(
    ("folder", "good", "bad", "message"),
    [
        ("labelTxt", "1 1 9 1 9 9 1 9 plane 0", "1 1 9 1", r"labelTxt/0\.txt:1"),
        ("labels", "0 0.5 0.5 0.2 0.2", "0 0.5", r"labels/0\.txt:1"),
    ],
)
def test_a_damaged_first_file_of_other_texts(
    tmp_path: Path, folder: str, good: str, bad: str, message: str
) -> None:
    for k in range(3):
        photo(tmp_path / f"images/{k}.png")
        text(tmp_path / folder / f"{k}.txt", f"{good if k else bad}\n")
    text(tmp_path / "classes.txt", "plane\n")
    with pytest.raises(DataError, match=message):
        read_labels("auto", tmp_path)
