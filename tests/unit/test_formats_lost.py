"""A label that can't be used never says "there is nothing here": places are ignored, images left out, sets refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitp.core.errors import DataError
from vitp.data.compile import compile_labels
from vitp.data.formats import read_labels
from vitp.data.formats.coco_files import Ids
from vitp.data.formats.empty import is_empty
from vitp.records.labels import LabelledImage, LabelledSet

BOX = [5, 6, 20, 24]
GOOD = [
    {"image_id": 1, "category_id": 1, "bbox": BOX},
    {"image_id": 1, "category_id": 2, "bbox": [1, 1, 9, 9]},
    {"image_id": 2, "category_id": 2, "bbox": [1, 1, 9, 9]},
]
TRIANGLE = [[1, 1, 9, 1, 9, 9]]
NAN = float("nan")


def image(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((48, 64, 3), 40 + number, np.uint8)).save(path)


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def coco(root: Path, annotations: list[dict[str, Any]], **content: Any) -> Path:
    for i in range(3):
        image(root / "images" / f"im{i}.png", i)
    rows = [{"id": i + 1, "file_name": f"im{i}.png", "width": 64, "height": 48} for i in range(3)]
    classes = [{"id": 1, "name": "ship"}, {"id": 2, "name": "car"}]
    whole = {"images": rows, "categories": classes, "annotations": annotations, **content}
    text(root / "annotations" / "instances_train.json", json.dumps(whole))
    return root


def voc(root: Path, *objects: str, size: str = "<width>64</width><height>48</height>") -> Path:
    for i, content in enumerate(objects):
        image(root / "JPEGImages" / f"im{i}.png", i)
        body = f"<annotation><size>{size}</size>{content}</annotation>"
        text(root / "Annotations" / f"im{i}.xml", body)
    return root


def voc_object(name: str, *box: object, more: str = "") -> str:
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=False))
    return f"<object><name>{name}</name>{f'<bndbox>{corners}</bndbox>' if box else ''}{more}</object>"


def dota(root: Path, *rows: str) -> Path:
    for i, row in enumerate(rows):
        image(root / "images" / f"im{i}.png", i)
        text(root / "labelTxt" / f"im{i}.txt", row)
    return root


def by_name(found: LabelledSet) -> dict[str, LabelledImage]:
    return {Path(item.image).stem: item for item in found.items}


# --- COCO


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"bbox": None}, "has no bbox"),
        ({"bbox": []}, "has no bbox"),
        ({"bbox": [NAN, 1, 2, 3]}, "bbox has a coordinate that is not a number"),
        ({"bbox": [1, 2, float("inf"), 4]}, "bbox has a coordinate that is not a number"),
        ({"bbox": [5, 6, -3, 4]}, "bbox has a negative size"),
        ({"bbox": ["5", "6", "20", "x"]}, "bbox is not four numbers"),
        ({"bbox": [1, 2, 3, 4, 5]}, "bbox is not four numbers"),
        ({"bbox": {"x": 1}}, "bbox is not four numbers"),
        ({"bbox": [True, 1, 2, 3]}, "bbox is not four numbers"),
        ({"bbox": [500, 500, 5, 5]}, "lies outside the image"),
        ({"keypoints": [5, 5, 2]}, "has no bbox"),
        ({"segmentation": [[1, 2, 3]]}, "segmentation can't be understood"),
    ],
)
def test_coco_image_that_lost_its_label_is_left_out(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    found = read_labels("coco", coco(tmp_path, [*GOOD, {"image_id": 3, "category_id": 1, **row}]))
    assert sorted(by_name(found)) == ["im0", "im1"]
    assert any(f"annotations[3]: {why}" in line or why in line for line in found.findings)
    assert any("images/im2.png: its labels can't be used" in line for line in found.findings)
    assert found.understood[-1] == "labels: 3 used, 1 can't be used, 1 image left without object labels"


@pytest.mark.parametrize(
    ("row", "box", "polygons"),
    [
        ({"bbox": ["5", "6", "20", "24"]}, (5, 6, 25, 30), 0),
        ({"bbox": BOX, "segmentation": [[1, 2, 3]]}, (5, 6, 25, 30), 0),
        ({"bbox": BOX, "segmentation": {"size": [48, 64], "counts": [3]}}, (5, 6, 25, 30), 0),
        ({"bbox": BOX, "segmentation": {"size": [10**9, 10**9], "counts": [1]}}, (5, 6, 25, 30), 0),
        ({"bbox": [5, 6, -3, 4], "segmentation": TRIANGLE}, (1, 1, 9, 9), 1),
        ({"bbox": [0, 0, 0, 0], "segmentation": TRIANGLE}, (1, 1, 9, 9), 1),
        ({"bbox": None, "segmentation": TRIANGLE}, (1, 1, 9, 9), 1),
    ],
)
def test_coco_label_with_one_good_shape_is_used(
    tmp_path: Path, row: dict[str, Any], box: tuple[int, ...], polygons: int
) -> None:
    found = read_labels("coco", coco(tmp_path, [*GOOD, {"image_id": 3, "category_id": 1, **row}]))
    (label,) = by_name(found)["im2"].objects or ()
    assert (label.box, len(label.polygons)) == (box, polygons)


def test_coco_zero_area_alone_is_no_loss(tmp_path: Path) -> None:
    rows = [*GOOD, {"image_id": 3, "category_id": 1, "bbox": [5, 5, 0, 9]}]
    found = read_labels("coco", coco(tmp_path, rows))
    assert by_name(found)["im2"].objects == ()
    assert found.understood[-1] == "labels: 3 used, 1 without area dropped"
    # It has a width or a height, so it is no point.
    assert by_name(read_labels("coco", tmp_path, point_size=10))["im2"].objects == ()


def test_coco_points_are_small_regions_where_asked_for(tmp_path: Path) -> None:
    coco(tmp_path, [*GOOD, {"image_id": 3, "category_id": 1, "bbox": [20, 20, 0, 0]}])
    (point,) = by_name(read_labels("coco", tmp_path, point_size=12))["im2"].objects or ()
    assert point.box == (14, 14, 26, 26)


@pytest.mark.parametrize("key", [9, "9", None, "ship", 1.5])
def test_coco_unknown_class_is_ignored_in_its_place(tmp_path: Path, key: object) -> None:
    found = read_labels("coco", coco(tmp_path, [*GOOD, {"image_id": 3, "category_id": key, "bbox": BOX}]))
    item = by_name(found)["im2"]
    assert item.objects == ()
    assert [label.box for label in item.ignored] == [(5, 6, 25, 30)]
    assert not is_empty(item)
    assert is_empty(LabelledImage("x", "x.png", 9, 9, objects=()))


@pytest.mark.parametrize(
    "row",
    [
        {"bbox": BOX, "iscrowd": 1},
        {"bbox": BOX, "iscrowd": "1"},
        {"iscrowd": 1, "segmentation": {"size": [48, 64], "counts": [100, 50, 2922]}},
    ],
)
def test_coco_crowd_is_a_difficult_object(tmp_path: Path, row: dict[str, Any]) -> None:
    found = read_labels("coco", coco(tmp_path, [*GOOD, {"image_id": 3, "category_id": 1, **row}]))
    (crowd,) = by_name(found)["im2"].objects or ()
    assert crowd.difficult
    assert crowd.category == "ship"
    assert not any(label.difficult for label in by_name(found)["im0"].objects or ())
    assert "crowds: 1 regions are neither learned nor counted" in found.understood


def test_coco_crowd_is_never_called_empty(tmp_path: Path) -> None:
    rows = [*GOOD, {"image_id": 3, "category_id": 1, "bbox": BOX, "iscrowd": 1}]
    compile_labels(coco(tmp_path / "set", rows), "coco", tmp_path / "out")
    lines = (tmp_path / "out" / "labels" / "train.jsonl").read_text().splitlines()
    (crowd,) = next(row["objects"] for row in map(json.loads, lines) if row["image"].endswith("im2.png"))
    assert crowd == {"category": "ship", "box": [5, 6, 25, 30], "difficult": True}


@pytest.mark.parametrize("form", [str, float, lambda i: f"{i}.0", lambda i: f"0{i}", lambda i: f" {i} "])
def test_coco_ids_as_text_are_those_of_numbers(tmp_path: Path, form: Any) -> None:
    rows = [
        {**row, "image_id": form(row["image_id"]), "category_id": form(row["category_id"])} for row in GOOD
    ]
    found = by_name(read_labels("coco", coco(tmp_path, rows)))
    assert [label.category for label in found["im0"].objects or ()] == ["ship", "car"]
    assert [len(found[f"im{i}"].objects or ()) for i in range(3)] == [2, 1, 0]


def test_ids_take_the_exact_one_first() -> None:
    ids: Ids[str] = Ids()
    for key, value in ((7, "seven"), ("007", "bond"), ("a", "letter")):
        assert ids.add(key, value) == value
    assert ids.add(7.0, "again") == "seven"
    assert [ids.find(key, "image", "row 1") for key in (7, 7.0, "007", "a", "b", None, True, [7], NAN)] == [
        "seven",
        "seven",
        "bond",
        "letter",
        None,
        None,
        None,
        None,
        None,
    ]
    with pytest.raises(DataError, match="row 1: image_id '7' may mean '7' or '007'"):
        ids.find("7", "image", "row 1")
    for key in (None, [3], 1.5, True, NAN, ""):
        with pytest.raises(ValueError, match="neither a whole number nor text"):
            ids.add(key, "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [{"id": 1, "file_name": f"im{i}.png"} for i in range(2)]}, "id 1 is im0.png and im1.png"),
        ({"images": [{"id": i, "file_name": "im0.png"} for i in (1, 2)]}, "im0.png is listed under two ids"),
        ({"images": [{"id": [3], "file_name": "im0.png"}]}, "neither a whole number nor text"),
        ({"images": ["im0.png"]}, "has no id or file_name"),
        ({"categories": []}, "has no categories, so class 1 has no name"),
        ({"categories": [{"id": [1], "name": "ship"}]}, "neither a whole number nor text"),
        ({"categories": [{"id": 1, "name": None}]}, "has no id or name"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, 'number 1 is "a" in this file'),
        ({"categories": {"1": "ship"}}, "categories is no list"),
    ],
)
def test_coco_files_with_two_readings_are_refused(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_labels("coco", coco(tmp_path, GOOD, **content))


def test_coco_annotations_of_no_image_make_no_image_empty(tmp_path: Path) -> None:
    coco(tmp_path, [*GOOD, {"image_id": None, "category_id": 1, "bbox": BOX}])
    assert sorted(by_name(read_labels("coco", tmp_path))) == ["im0", "im1"]  # im2 may be its image
    coco(tmp_path, [*GOOD, {"image_id": 99, "category_id": 1, "bbox": BOX}])
    assert sorted(by_name(read_labels("coco", tmp_path))) == ["im0", "im1", "im2"]  # it is image 99's


def test_coco_same_image_in_two_files(tmp_path: Path) -> None:
    coco(tmp_path, GOOD)
    folder = tmp_path / "annotations"
    same = (folder / "instances_train.json").read_text()
    text(folder / "instances_train_2.json", same)
    with pytest.raises(
        DataError, match=r"labels the objects of im0.png again, after annotations/instances_train\.json"
    ):
        read_labels("coco", tmp_path)
    (folder / "instances_train_2.json").rename(folder / "instances_val.json")
    with pytest.raises(
        DataError, match=r"im0.png is in train .*instances_train.* and in val .*instances_val"
    ):
        read_labels("coco", tmp_path)
    (folder / "instances_val.json").unlink()
    captions = {
        "images": [{"id": 8, "file_name": "im2.png"}],
        "annotations": [{"image_id": 8, "caption": "A ship."}],
    }
    text(folder / "captions_train.json", json.dumps(captions))
    item = by_name(read_labels("coco", tmp_path))["im2"]
    assert (item.objects, item.captions) == ((), ("A ship.",))


def test_coco_lost_label_keeps_the_captions(tmp_path: Path) -> None:
    coco(tmp_path, [*GOOD, {"image_id": 3, "category_id": 1, "bbox": None}])
    captions = {
        "images": [{"id": 3, "file_name": "im2.png"}],
        "annotations": [{"image_id": 3, "caption": "A ship."}],
    }
    text(tmp_path / "annotations" / "captions_train.json", json.dumps(captions))
    item = by_name(read_labels("coco", tmp_path))["im2"]
    assert (item.objects, item.captions) == (None, ("A ship.",))


def test_coco_images_of_a_captions_file_are_not_empty(tmp_path: Path) -> None:
    image(tmp_path / "images" / "other.png", 9)
    captions = {
        "images": [{"id": 3, "file_name": "other.png"}],
        "annotations": [{"image_id": 3, "caption": "x"}],
    }
    coco(tmp_path, GOOD)
    text(tmp_path / "annotations" / "captions_train.json", json.dumps(captions))
    assert by_name(read_labels("coco", tmp_path))["other"].objects is None


def test_coco_file_without_annotations_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no labelled image found.*has no annotation at all"):
        read_labels("coco", coco(tmp_path, []))


def test_same_label_twice_counts_once(tmp_path: Path) -> None:
    found = read_labels("coco", coco(tmp_path, GOOD + GOOD))
    assert sum(len(item.objects or ()) for item in found.items) == 3
    assert sum("stands there twice; counted once" in line for line in found.findings) == 3


def test_coco_split_of_the_image_folder(tmp_path: Path) -> None:
    coco(tmp_path, GOOD)
    (tmp_path / "annotations" / "instances_train.json").rename(tmp_path / "annotations" / "all.json")
    for i, split in enumerate(("train", "train", "val")):
        (tmp_path / "images" / split).mkdir(exist_ok=True)
        (tmp_path / "images" / f"im{i}.png").rename(tmp_path / "images" / split / f"im{i}.png")
    found = by_name(read_labels("coco", tmp_path))
    assert [found[f"im{i}"].split for i in range(3)] == ["train", "train", "val"]
    image(tmp_path / "images" / "val" / "im0.png", 5)
    with pytest.raises(DataError, match=r"im0.png may be .*images/train/im0.png or .*images/val/im0.png"):
        read_labels("coco", tmp_path)


def test_labels_of_other_classes_are_ignored_not_lost(tmp_path: Path) -> None:
    found = by_name(read_labels("coco", coco(tmp_path, GOOD), classes="ship"))
    assert [label.category for label in found["im1"].ignored] == ["car"]
    assert found["im1"].objects == ()
    with pytest.raises(
        DataError, match="no label is of a class that was asked for; the labels are of car 2, ship 1"
    ):
        read_labels("coco", tmp_path, classes="Ship")


# --- VOC and DOTA


@pytest.mark.parametrize(
    "bad",
    [
        voc_object("ship", 25, 6, 5, 30),
        voc_object("ship", "nan", 6, 25, 30),
        voc_object("ship"),
        voc_object("ship", 500, 500, 510, 510),
        voc_object(
            "ship", more="<robndbox><cx>nan</cx><cy>9</cy><w>9</w><h>9</h><angle>0</angle></robndbox>"
        ),
    ],
)
def test_voc_image_that_lost_its_label_is_left_out(tmp_path: Path, bad: str) -> None:
    good = voc_object("ship", 5, 6, 25, 30)
    found = read_labels("voc", voc(tmp_path, good, good, bad))
    assert sorted(by_name(found)) == ["im0", "im1"]
    assert any(line.startswith("Annotations/im2.xml:object 1: ship ") for line in found.findings)


def test_voc_object_without_class_is_ignored(tmp_path: Path) -> None:
    good = voc_object("ship", 5, 6, 25, 30)
    item = by_name(read_labels("voc", voc(tmp_path, good, voc_object("", 5, 6, 25, 30))))["im1"]
    assert item.objects == ()
    assert [label.box for label in item.ignored] == [(5, 6, 25, 30)]


@pytest.mark.parametrize("size", ["<width>abc</width>", "<width>inf</width>", "<height>4 8</height>"])
def test_voc_size_that_is_no_number_is_one_line(tmp_path: Path, size: str) -> None:
    with pytest.raises(DataError, match=r"im0\.xml: size: (width|height) is "):
        read_labels("voc", voc(tmp_path, voc_object("ship", 1, 2, 3, 4), size=size))


def test_dota_image_that_lost_its_label_is_left_out(tmp_path: Path) -> None:
    good = "5 6 25 6 25 30 5 30 ship 0\n"
    dota(tmp_path, good, good, good.replace("25", "nan"), good + good.replace("30", "inf"))
    assert sorted(by_name(read_labels("dota", tmp_path))) == ["im0", "im1"]


def test_one_label_outside_is_left_out_but_most_make_the_image_unknown(tmp_path: Path) -> None:
    good, far = "5 6 25 6 25 30 5 30 ship 0\n", "500 500 510 500 510 510 500 510 ship 0\n"
    dota(tmp_path, good, good + far, good + far + far.replace("510", "520"))
    found = by_name(read_labels("dota", tmp_path))
    assert sorted(found) == ["im0", "im1"]
    assert len(found["im1"].objects or ()) == 1


@pytest.mark.parametrize(
    ("row", "name", "difficult"),
    [
        ("small vehicle 1", "small vehicle", True),
        ("small vehicle", "small vehicle", False),
        ("ship 2", "ship", True),
        ("ship 1.0", "ship", True),
        ("ship 0", "ship", False),
        ("7", "7", False),
    ],
)
def test_dota_class_and_flag(tmp_path: Path, row: str, name: str, difficult: bool) -> None:
    dota(tmp_path, "\ufeffimagesource:x\r\nacquisition dates:2017\r\n5 6 25 6 25 30 5 30 " + row + "\r\n")
    (label,) = read_labels("dota", tmp_path).items[0].objects or ()
    assert (label.category, label.difficult) == (name, difficult)


@pytest.mark.parametrize("row", ["ship -1", "ship nan", "ship inf", "ship 1 2", "small nan 1"])
def test_dota_flag_that_is_none_is_refused(tmp_path: Path, row: str) -> None:
    with pytest.raises(DataError, match=r"im0\.txt:1: is not a DOTA row"):
        read_labels("dota", dota(tmp_path, f"5 6 25 6 25 30 5 30 {row}"))


# --- sets that lost too much


def test_set_whose_labels_are_all_lost_is_refused(tmp_path: Path) -> None:
    rows = [{**row, "category_id": 9} for row in GOOD]
    with pytest.raises(
        DataError, match=r"instances_train\.json: none of the 3 labels can be used \(the first: .*9"
    ):
        read_labels("coco", coco(tmp_path, rows))


def test_class_whose_labels_are_all_lost_is_refused(tmp_path: Path) -> None:
    rows = [GOOD[0], *({**row, "bbox": None} for row in GOOD[1:])]
    with pytest.raises(DataError, match='none of the 2 labels of the class "car" can be used'):
        read_labels("coco", coco(tmp_path, rows))
    rows = [GOOD[0], *({**row, "bbox": [5, 5, 0, 0]} for row in GOOD[1:])]
    with pytest.raises(DataError, match=r'none of the 2 labels of the class "car" can be used .*has no area'):
        read_labels("coco", coco(tmp_path, rows))


@pytest.mark.parametrize(("count", "lost", "refused"), [(10, 5, False), (10, 6, True), (9, 6, False)])
def test_set_that_lost_more_than_half_is_refused(
    tmp_path: Path, count: int, lost: int, refused: bool
) -> None:
    rows = [
        {"image_id": 3 if i < lost else 1, "category_id": 1, "bbox": [i, i, -9 if i < lost else 9, 9]}
        for i in range(count)
    ]
    coco(tmp_path, rows)
    if refused:
        with pytest.raises(DataError, match="6 of 10 labels can't be used"):
            read_labels("coco", tmp_path)
    else:
        found = by_name(read_labels("coco", tmp_path))
        assert {name: len(item.objects or ()) for name, item in found.items()} == {
            "im0": count - lost,
            "im1": 0,
        }


@pytest.mark.parametrize("fmt", ["coco", "voc", "dota"])
def test_shares_where_pixels_belong_are_refused(tmp_path: Path, fmt: str) -> None:
    if fmt == "coco":
        coco(tmp_path, [{**row, "bbox": [0.1, 0.2, 0.5, 0.5]} for row in GOOD[:1]])
    elif fmt == "voc":
        voc(tmp_path, voc_object("ship", 0.1, 0.1, 0.5, 0.9))
    else:
        dota(tmp_path, "0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5 ship 0")
    with pytest.raises(DataError, match="all boxes lie within the first pixel"):
        read_labels(fmt, tmp_path)


@pytest.mark.parametrize(
    ("place", "content"),
    [
        ("annotations.json", '{"images": [{"id": 1'),
        ("annotations/train.json", "{" * 5),
        ("a/0.xml", "<annotation><filename>x</fil"),
        ("Annotations/0.xml", ""),
        ("labels/0.txt", None),
        ("a/0.xml", "<annotation></annotation>"),
    ],
)
def test_a_label_file_that_cannot_be_read_is_named(tmp_path: Path, place: str, content: str | None) -> None:
    for k in range(6):
        path = tmp_path / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (40 * k, 9, 9)).save(path)
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    if content is None:
        os.mkfifo(path)
    else:
        path.write_text(content)
    with pytest.raises(DataError, match=path.name):
        read_labels("auto", tmp_path)


def test_a_pipe_in_the_place_of_a_label_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for k in range(2):
        Image.new("RGB", (8, 8), (40 * k, 9, 9)).save(tmp_path / "images" / f"{k}.png")
    (tmp_path / "labels" / "0.txt").write_text("0 .5 .5 .5 .5\n")
    os.mkfifo(tmp_path / "labels" / "1.txt")
    (tmp_path / "data.yaml").write_text("names: [ship]\n")
    with pytest.raises(DataError, match="named pipe"):
        read_labels("yolo", tmp_path)
    (tmp_path / "data.yaml").write_text("names: [ship\nval: {]\n")
    with pytest.raises(DataError, match=r"data\.yaml: is not YAML \(line 2: [^\n<^]*\)") as caught:
        read_labels("yolo", tmp_path)
    assert "unicode" not in str(caught.value)


# --- images whose labels are lost with them


def _photo(path: Path, number: int, *, broken: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if broken:
        path.write_bytes(b"no image")
    else:
        Image.fromarray(np.full((20, 20, 3), number, np.uint8)).save(path)


def test_class_whose_images_are_all_unreadable_is_refused(tmp_path: Path) -> None:
    for k in range(4):
        _photo(tmp_path / "port" / f"p{k}.png", k)
        _photo(tmp_path / "farm" / f"f{k}.png", 9 + k, broken=True)
    with pytest.raises(
        DataError, match=r'none of the 4 labels of the class "farm" .*farm/f0.png: is not an image'
    ):
        read_labels("auto", tmp_path)
    _photo(tmp_path / "farm" / "f0.png", 77)
    found = read_labels("auto", tmp_path)
    assert len(found) == 5 and "labels: 5 used, 3 can't be used" in found.understood


@pytest.mark.parametrize(("good", "refused"), [(6, False), (5, True)])
def test_masks_of_another_size_are_lost_labels(tmp_path: Path, good: int, refused: bool) -> None:
    for k in range(12):
        _photo(tmp_path / "images" / f"{k}.png", k)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.eye(20 if k < good else 24, dtype=np.uint8) * 255).save(
            tmp_path / "masks" / f"{k}.png"
        )
    if refused:
        with pytest.raises(DataError, match=r"7 of 12 labels can't be used .*is 24×24 but its image 20×20"):
            read_labels("auto", tmp_path)
    else:
        assert len(read_labels("auto", tmp_path)) == good


@pytest.mark.parametrize("fmt", ["coco", "voc", "yolo", "dota", "masks", "classes"])
def test_set_most_of_whose_labelled_images_are_missing_is_refused(tmp_path: Path, fmt: str) -> None:
    names = [f"{k}.png" for k in range(12)]
    for k, name in enumerate(names):
        folder = {"voc": "JPEGImages"}.get(fmt, "images")
        if k < 5:
            _photo(tmp_path / folder / name, k)
        stem = name.removesuffix(".png")
        if fmt == "voc":
            box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
            _text(
                tmp_path / "Annotations" / f"{stem}.xml",
                f"<annotation><object><name>a</name>{box}</object></annotation>",
            )
        elif fmt == "yolo":
            _text(tmp_path / "labels" / f"{stem}.txt", "0 .5 .5 .2 .2")
        elif fmt == "dota":
            _text(tmp_path / "labelTxt" / f"{stem}.txt", "2 2 9 2 9 9 2 9 a 0")
        elif fmt == "masks":
            (tmp_path / "masks").mkdir(exist_ok=True)
            Image.fromarray(np.eye(20, dtype=np.uint8) * 255).save(tmp_path / "masks" / name)
    _text(tmp_path / "classes.txt", "a=0\nb=255\n" if fmt == "masks" else "a\n")
    if fmt == "coco":
        images = [{"id": k, "file_name": name, "width": 20, "height": 20} for k, name in enumerate(names)]
        rows = [{"id": k, "image_id": k, "category_id": 1, "bbox": [2, 2, 9, 9]} for k in range(12)]
        content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "a"}]}
        _text(tmp_path / "annotations" / "instances.json", json.dumps(content))
    if fmt == "classes":
        _text(
            tmp_path / "l.csv",
            "image,label\n" + "".join(f"{name},{'ab'[k % 2]}\n" for k, name in enumerate(names)),
        )
    with pytest.raises(
        DataError, match=r"7 of 12 labelled images aren't there \(the first: .*-o partial=true"
    ):
        read_labels(fmt, tmp_path)
    assert len(read_labels(fmt, tmp_path, partial=True)) == 5


def _text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_coco_corners_in_the_place_of_sizes_are_refused(tmp_path: Path) -> None:
    corners = [[30, 20, 60, 44], [5, 6, 40, 40], [40, 10, 63, 30]]
    coco(tmp_path, [{"image_id": i % 2 + 1, "category_id": 1, "bbox": box} for i, box in enumerate(corners)])
    with pytest.raises(DataError, match=r"2 of 3 boxes reach outside .* two corners"):
        read_labels("coco", tmp_path)


def test_voc_files_that_name_the_images_of_each_other_are_refused(tmp_path: Path) -> None:
    names = {"a": "b.png", "b": "c.png", "c": "a.png", "d": "d.png"}
    for number, (stem, named) in enumerate(names.items()):
        image(tmp_path / f"JPEGImages/{stem}.png", number)
        content = f"<annotation><filename>{named}</filename>{voc_object('ship', 5, 6, 25, 30)}</annotation>"
        text(tmp_path / f"Annotations/{stem}.xml", content)
    with pytest.raises(
        DataError, match=r"a\.xml: is called like JPEGImages/a\.png, but <filename> is that of .*b\.png"
    ):
        read_labels("voc", tmp_path)
    # Copies keep the name of the image that they were made from.
    for stem in ("a", "b", "c"):
        file = tmp_path / f"Annotations/{stem}.xml"
        file.write_text(file.read_text().replace(names[stem], "d.png"))
    assert len(read_labels("voc", tmp_path)) == 4
