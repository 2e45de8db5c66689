"""Labels of COCO files that can't be used: none of them turns into the statement that there is nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.lost_label_toys import BOX, GOOD, by_name, coco, image, text
from vitp.core.errors import DataError
from vitp.data.compile import compile_labels
from vitp.data.formats import read_labels
from vitp.data.formats.coco_files import Ids
from vitp.data.formats.empty import is_empty
from vitp.records.labels import LabelledImage

TRIANGLE = [[1, 1, 9, 1, 9, 9]]
NAN = float("nan")


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


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        ((0.9, 0.31, 1.0), '3 of 3 annotations have a "score"'),
        ((None, 0.5, None), '1 of 3 annotations have a "score"'),
        (("0.4", 1, 1), '3 of 3 annotations have a "score"'),
        ((1.0, 1, "1"), ""),
        ((100, 100, 100), ""),
        ((0, 1, None), ""),
        ((-1, -1, -1), ""),
    ],
)
def test_coco_predictions_are_no_labels(tmp_path: Path, scores: tuple[object, ...], why: str) -> None:
    rows = [{**row, "score": score} for row, score in zip(GOOD, scores, strict=True)]
    coco(tmp_path, rows)
    if why:
        with pytest.raises(DataError, match=why):
            read_labels("auto", tmp_path)
    found = read_labels("auto", tmp_path, **({"scores": "labels"} if why else {}))
    assert sum(len(item.objects or ()) for item in found.items) == 3


def test_coco_results_are_no_labels(tmp_path: Path) -> None:
    coco(tmp_path, GOOD)
    results = [{**row, "score": 0.5} for row in GOOD]
    path = tmp_path / "annotations" / "instances_train.json"
    text(path, json.dumps(results))
    for place in (tmp_path, path):
        with pytest.raises(DataError, match="is a list of COCO results, as predictions are written"):
            read_labels("auto", place)


def test_coco_categories_of_one_name_are_one_class_and_said(tmp_path: Path) -> None:
    coco(tmp_path, GOOD)
    path = tmp_path / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["categories"] = [{**row, "name": "ship"} for row in content["categories"]]
    path.write_text(json.dumps(content))
    found = read_labels("auto", tmp_path)
    assert found.object_classes == ("ship",)
    assert 'categories: several are called "ship" and count as one class' in found.understood


def written(root: Path, boxes: list[list[float]], names: list[dict[str, Any]]) -> Path:
    """Write a file of one picture of 64 × 48 px a box; each outline is the rectangle 4, 6, 14, 16."""
    outline = [[4, 6, 14, 6, 14, 16, 4, 16]]
    (root / "images").mkdir(parents=True)
    for number in range(len(boxes)):
        image(root / f"images/im{number}.png")
    rows = [
        {"id": n, "image_id": n, "category_id": 1 + n % 2, "bbox": box, "segmentation": outline, "iscrowd": 0}
        for n, box in enumerate(boxes)
    ]
    pictures = [{"id": n, "file_name": f"im{n}.png", "width": 64, "height": 48} for n in range(len(boxes))]
    content = {"images": pictures, "annotations": rows, "categories": names}
    (root / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    return root


TWO = [
    {"id": 1, "name": "ship", "supercategory": "harbour"},
    {"id": 2, "name": "port", "supercategory": "harbour"},
]


def test_boxes_that_fit_their_outlines_as_corners_only_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="outlines or areas of 4 of 4 objects fit their boxes only when"):
        read_labels("coco", written(tmp_path / "corners", [[4, 6, 14, 16]] * 4, TWO))
    right = read_labels("coco", written(tmp_path / "sizes", [[4, 6, 10, 10]] * 4, TWO))
    assert {label.box for item in right.items for label in item.objects or ()} == {(4, 6, 14, 16)}
    # One wrong box among right ones is a matter of that box.
    assert read_labels("coco", written(tmp_path / "one", [[4, 6, 10, 10]] * 3 + [[4, 6, 14, 16]], TWO)).items


def test_boxes_whose_stated_areas_are_those_of_corners_are_refused(tmp_path: Path) -> None:
    def stated(name: str, box: list[float], area: float) -> Path:
        root = written(tmp_path / name, [box] * 4, TWO)
        content = json.loads((root / "annotations.json").read_text())
        for row in content["annotations"]:
            del row["segmentation"]
            row["area"] = area
        (root / "annotations.json").write_text(json.dumps(content))
        return root

    with pytest.raises(DataError, match="areas of 4 of 4 objects fit their boxes only when"):
        read_labels("coco", stated("corners", [4, 6, 14, 18], 120))
    found = read_labels("coco", stated("sizes", [4, 6, 10, 12], 120))
    assert {label.box for item in found.items for label in item.objects or ()} == {(4, 6, 14, 18)}
    # An area of something else, such as of a mask that isn't there, says nothing of corners.
    assert read_labels("coco", stated("other", [4, 6, 10, 12], 77)).items


@pytest.mark.parametrize(("first", "refused"), [(0, True), (2, True), (1, False)])
def test_classes_that_are_counted_from_another_number_are_refused(
    tmp_path: Path, first: int, refused: bool
) -> None:
    root = written(tmp_path, [[4, 6, 10, 10]] * 4, TWO)
    content = json.loads((root / "annotations.json").read_text())
    for number, row in enumerate(content["annotations"]):
        row["category_id"] = first + number % 2
    (root / "annotations.json").write_text(json.dumps(content))
    if refused:
        with pytest.raises(DataError, match="each object would have the class beside its own"):
            read_labels("coco", root)
    else:
        found = read_labels("coco", root)
        assert [label.category for item in found.items for label in item.objects or ()] == [
            "ship",
            "port",
        ] * 2


def test_a_supercategory_without_objects_is_no_class(tmp_path: Path) -> None:
    names = [{"id": 0, "name": "harbour", "supercategory": "none"}, *TWO]
    found = read_labels("coco", written(tmp_path / "roboflow", [[4, 6, 10, 10]] * 4, names))
    assert found.object_classes == ("ship", "port")
    assert any('"harbour" is what others are kinds of' in line for line in found.understood)
    # A class of which there is no object stays one where nothing is of its kind.
    names = [{"id": 0, "name": "crane"}, *TWO]
    assert (
        "crane" in read_labels("coco", written(tmp_path / "rare", [[4, 6, 10, 10]] * 4, names)).object_classes
    )
