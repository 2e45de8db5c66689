"""Lists of an image and a class a line; and label files whose suffixes are in capitals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.layout_toys import photo
from vitp.core.errors import DataError
from vitp.data.formats import detect_format, read_labels


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def listed(root: Path, row: str = "images/a {k}.png {c}", folder: str = "") -> Path:
    """Write six images of the classes 3 and 4 in turn, in lists of train and val."""
    for k in range(6):
        photo(root / f"images/a {k}.png")
    for split, own in (("train", range(4)), ("val", range(4, 6))):
        text(root / folder / f"{split}.txt", "".join(row.format(k=k, c=k % 2 + 3) + "\n" for k in own))
    return root


@pytest.mark.parametrize(
    ("row", "folder"),
    [("images/a {k}.png {c}", ""), ("a {k}.png\t{c}", "meta"), ("/data/set/images/a {k}.png,{c}", "lists")],
)
def test_lists_of_numbers_with_and_without_names(tmp_path: Path, row: str, folder: str) -> None:
    found = read_labels("auto", listed(tmp_path, row, folder))
    assert detect_format(tmp_path) == "lists"
    assert [(item.scene, item.split) for item in found.items] == [
        *[("3", "train"), ("4", "train")] * 2,
        *[("3", "val"), ("4", "val")],
    ]
    text(tmp_path / folder / "classes.txt", "zero\none\ntwo\nthree\nfour\n")
    found = read_labels("auto", tmp_path)
    assert [item.scene for item in found.items] == ["three", "four"] * 3
    assert found.scene_classes == ("three", "four") and not found.findings


def test_names_that_do_not_fit_the_numbers_are_refused(tmp_path: Path) -> None:
    text(listed(tmp_path) / "classes.txt", "a\nb\nc\nd\n")
    with pytest.raises(DataError, match=r"run from 3 to 4, but classes\.txt names 4, which are 0 to 3"):
        read_labels("auto", tmp_path)
    found = read_labels("auto", tmp_path, classes="zero,a,b,c,d")
    assert [item.scene for item in found.items] == ["c", "d"] * 3


def test_folders_that_divide_the_images_alike_name_the_classes(tmp_path: Path) -> None:
    for k in range(6):
        photo(tmp_path / f"{['tabby', 'shark'][k % 2]}/{k}.png")
    rows = [f"{['tabby', 'shark'][k % 2]}/{k}.png {k % 2}\n" for k in range(6)]
    text(tmp_path / "train.txt", "".join(rows[:4]))
    text(tmp_path / "val.txt", "".join(rows[4:]))
    found = read_labels("auto", tmp_path)
    assert found.scene_classes == ("shark", "tabby")
    assert {Path(i.image).stem: i.split for i in found.items} == {
        **dict.fromkeys("0123", "train"),
        **dict.fromkeys("45", "val"),
    }
    text(tmp_path / "train.txt", "tabby/0.png 0\nshark/1.png 0\ntabby/2.png 1\nshark/3.png 1\n")
    with pytest.raises(DataError, match="divide the images in different ways"):
        read_labels("auto", tmp_path)
    assert read_labels("lists", tmp_path).scene_classes == ("0", "1")


def test_trainval_beside_train_and_val_counts_once(tmp_path: Path) -> None:
    listed(tmp_path)
    text(tmp_path / "trainval.txt", "".join(f"images/a {k}.png {k % 2 + 3}\n" for k in range(6)))
    found = read_labels("auto", tmp_path)
    assert [item.split for item in found.items] == ["train"] * 4 + ["val"] * 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a {k}.png great white shark", "may be one class or 3 values"),
        ("a {k}.png 0 1 0", "may be one class or 3 values"),
        ("a {k}.png 1,2,30,40,0 1,2,3,4,1", "looks like boxes behind the image"),
        ("b{k}.png 1", "most of its images aren't there"),
        ("a {k}.png\ta dog runs along beach {k}", "as captions do"),
    ],
)
def test_lists_with_two_readings_are_refused(tmp_path: Path, rows: str, message: str) -> None:
    for k in range(6):
        photo(tmp_path / f"images/a {k}.png")
    text(tmp_path / "list.txt", "".join(rows.format(k=k) + "\n" for k in range(6)))
    with pytest.raises(DataError, match=message):
        read_labels("auto", tmp_path)


def test_one_image_of_two_classes_or_splits_is_refused(tmp_path: Path) -> None:
    text(listed(tmp_path) / "val.txt", "images/a 0.png 3\n")
    with pytest.raises(DataError, match=r"a 0.png is of val here and of train in train.txt:1"):
        read_labels("auto", tmp_path)
    text(tmp_path / "val.txt", "images/a 5.png 3\nimages/a 5.png 4\n")
    with pytest.raises(DataError, match=r'a 5.png is of "4" here and of "3" in val.txt:1'):
        read_labels("auto", tmp_path)


# --- suffixes in capitals

_XML = (
    "<annotation><filename>A.PNG</filename><object><name>ship</name><bndbox><xmin>4</xmin><ymin>8</ymin>"
    "<xmax>12</xmax><ymax>24</ymax></bndbox></object></annotation>"
)
_COCO = {
    "images": [{"id": 1, "file_name": "A.PNG", "width": 40, "height": 40}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 8, 8, 16]}],
    "categories": [{"id": 1, "name": "ship"}],
}
_CAPITALS = {
    "yolo": {"labels/A.TXT": "0 0.2 0.4 0.2 0.4\n", "CLASSES.TXT": "ship\n"},
    "yolo with DATA.YAML": {"labels/A.TXT": "0 0.2 0.4 0.2 0.4\n", "DATA.YAML": "names: [ship]\n"},
    "dota": {"labels/A.TXT": "4 8 12 8 12 24 4 24 ship 0\n"},
    "voc": {"Annotations/A.XML": _XML},
    "voc beside": {"images/A.XML": _XML},
    "coco": {"Annotations/INSTANCES.JSON": json.dumps(_COCO)},
    "cvat": {
        "ANNOTATIONS.XML": '<annotations><version>1.1</version><image id="0" name="A.PNG" width="40" height="40">'
        '<box label="ship" occluded="0" xtl="4" ytl="8" xbr="12" ybr="24"/></image></annotations>'
    },
}


@pytest.mark.parametrize("kind", _CAPITALS)
def test_suffixes_in_capitals(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "images" if kind == "voc beside" else tmp_path
    photo(tmp_path / "images/A.PNG")
    for name, content in _CAPITALS[kind].items():
        text(tmp_path / name, content)
    found = read_labels("auto", root)
    assert detect_format(root) == kind.split()[0]
    ((label,),) = (item.objects or () for item in found.items)
    assert (label.category, label.box) == ("ship", (4.0, 8.0, 12.0, 24.0))


def test_two_label_files_that_differ_in_case_are_refused(tmp_path: Path) -> None:
    photo(tmp_path / "images/A.PNG")
    for name in ("A.TXT", "A.txt"):
        text(tmp_path / "labels" / name, "0 0.2 0.4 0.2 0.4\n")
    text(tmp_path / "classes.txt", "ship\n")
    with pytest.raises(DataError, match=r"may have its labels in A.TXT or in A.txt"):
        read_labels("auto", tmp_path)


def test_captions_in_capitals(tmp_path: Path) -> None:
    photo(tmp_path / "A.PNG")
    text(tmp_path / "A.TXT", "a harbour")
    assert read_labels("auto", tmp_path).items[0].captions == ("a harbour",)


def test_numbers_may_begin_at_one(tmp_path: Path) -> None:
    for k in range(4):
        photo(tmp_path / f"images/{k}.png")
    text(tmp_path / "train.txt", "".join(f"images/{k}.png {k + 1}\n" for k in range(4)))
    text(tmp_path / "classes.txt", "ant\nbee\ncat\ndog\n")
    found = read_labels("auto", tmp_path)
    assert [item.scene for item in found.items] == ["ant", "bee", "cat", "dog"]
    assert any("class numbers: 1–4" in line for line in found.understood)
    assert read_labels("auto", tmp_path, classes="w,x,y,z").scene_classes == ("w", "x", "y", "z")


def test_images_of_no_list_and_lists_without_classes_are_said(tmp_path: Path) -> None:
    root = listed(tmp_path)
    photo(root / "images/alone.png")
    text(root / "test.txt", "images/alone.png\n")
    found = read_labels("auto", root)
    assert len(found.items) == 6
    assert any("test.txt" in line and "without a class" in line for line in found.understood)
    assert any("alone.png" in line and "in no list" in line for line in found.findings)
