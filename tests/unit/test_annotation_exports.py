"""COCO and YOLO files as annotation tools write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.annotation_toys import picture
from vitp.core.errors import DataError
from vitp.data.formats import read_labels
from vitp.records.geometry import as_points
from vitp.records.labels import LabelledSet
from vitp.records.tool_shapes import rectangle_of


def coco(root: Path, rows: list[dict[str, Any]], **more: Any) -> LabelledSet:
    picture(root / "images" / "default" / "a.png", (200, 100), 1)
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 200, "height": 100}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 1, **row} for n, row in enumerate(rows)],
        "categories": [{"id": 1, "name": "ship"}],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / "instances_default.json").write_text(json.dumps(content))
    return read_labels("auto", root, val=0, test=0, **more)


@pytest.mark.parametrize("angle", [30.0, 120.5, 200, 300, -15])
def test_a_turned_box_of_cvats_coco_is_turned(tmp_path: Path, angle: float) -> None:
    row = {"bbox": [60, 40, 40, 20], "segmentation": [], "iscrowd": 0}
    (item,) = coco(tmp_path, [row | {"attributes": {"occluded": False, "rotation": angle}}]).items
    (label,) = item.objects or ()
    points = as_points(label.quad or ())
    assert points.mean(0) == pytest.approx((80, 50))
    assert rectangle_of(label.quad or ())[2:] == pytest.approx((40, 20, angle % 360))


def test_masks_of_cvats_coco_are_objects_and_crowds_of_others_are_not(tmp_path: Path) -> None:
    counts = [105, 20, 80, 20, 200 * 100 - 225]
    row = {"bbox": [1, 5, 2, 20], "segmentation": {"size": [100, 200], "counts": counts}, "iscrowd": 1}
    (item,) = coco(tmp_path, [row]).items
    assert [label.difficult for label in item.objects or ()] == [True]
    cvats = [row | {"attributes": {"occluded": False}}]
    read = coco(tmp_path, cvats)
    assert [label.difficult for label in read.items[0].objects or ()] == [False]
    assert any("1 masks of CVAT" in line and "-o crowds=difficult" in line for line in read.understood)
    assert [
        label.difficult for label in coco(tmp_path, cvats, crowds="difficult").items[0].objects or ()
    ] == [True]
    assert [label.difficult for label in coco(tmp_path, [row], crowds="objects").items[0].objects or ()] == [
        False
    ]


def test_images_of_coco_that_come_twice_and_broken_places(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (200, 100), 1)
    row = {"category_id": 1, "bbox": [20, 20, 60, 40], "iscrowd": 0}
    images = [{"id": n, "file_name": "a.png", "width": 200, "height": 100} for n in (1, 2)]

    def read(*rows: dict[str, Any], entries: Any = images) -> LabelledSet:
        content = {"images": entries, "categories": [{"id": 1, "name": "ship"}]}
        content["annotations"] = [{"id": n, **one} for n, one in enumerate(rows)]
        (tmp_path / "r.json").write_text(json.dumps(content))
        return read_labels("auto", tmp_path, val=0, test=0)

    both = read(*({**row, "image_id": n} for n in (2, 1)))
    assert [len(item.objects or ()) for item in both.items] == [1]
    said = "r.json:images[1]: a.png is listed under two ids, before in r.json:images[0], with the same annotations"
    assert f"{said}; counted once" in both.findings
    for rows in (
        [row | {"image_id": 1}],
        [row | {"image_id": 1}, row | {"image_id": 2, "bbox": [1, 1, 9, 9]}],
    ):
        with pytest.raises(
            DataError, match=r"images\[1\]: a.png is listed under two ids, before in .*other ann"
        ):
            read(*rows)
    once = read(row | {"image_id": 1}, entries=[images[0], images[0]])
    assert (
        "r.json:images[1]: a.png is listed twice, before in r.json:images[0]; counted once" in once.findings
    )
    picture(tmp_path / "b.png", (200, 100), 2)
    entries = [images[0], {**images[1], "file_name": "b.png"}]
    for broken, why in (
        ({"bbox": None, "segmentation": {"size": [100, 200]}}, "a mask has size [height, width] and counts"),
        ({"bbox": None, "segmentation": {"size": [100, 200], "counts": ["a"]}}, "no list of whole numbers"),
        ({"bbox": None, "segmentation": [["a", 1, 2, 3, 4, 5]]}, "an outline is a list of numbers"),
        ({"bbox": None, "segmentation": [[1, 2, 3, 4, 5]]}, "an outline has x without y"),
        ({"attributes": {"rotation": "much"}}, "its rotation is no finite number"),
        ({"bbox": [1, 2, 3, float("inf")]}, "bbox has a coordinate that is not a number"),
    ):
        found = read(row | {"image_id": 1}, row | {"image_id": 2} | broken, entries=entries)
        assert [item.id for item in found.items] == ["a"] and any(why in line for line in found.findings), why


def test_rows_of_yolo_twice_and_with_words(tmp_path: Path) -> None:
    label_studio_yolo(tmp_path, "1 0.5 0.5 0.2 0.4\n1 0.5 0.5 0.2 0.4\n")
    read = read_labels("auto", tmp_path, val=0, test=0)
    assert len(read.items[0].objects or ()) == 1 and any(
        "stands there twice" in line for line in read.findings
    )
    (tmp_path / "labels" / "0a1b2c3d-a.txt").write_text("1 0.5 left 0.2 0.4\n")
    with pytest.raises(DataError, match='"left" is no number'):
        read_labels("yolo", tmp_path, val=0, test=0)


def label_studio_yolo(root: Path, rows: str) -> None:
    picture(root / "images" / "0a1b2c3d-a.png", (200, 100), 1)
    (root / "labels").mkdir()
    (root / "labels" / "0a1b2c3d-a.txt").write_text(rows)
    (root / "classes.txt").write_text("ship\ntank\n")
    (root / "notes.json").write_text('{"categories": [{"id": 0, "name": "ship"}], "info": {"year": 2026}}')


def cvat_yolo(root: Path, rows: str) -> None:
    picture(root / "obj_train_data" / "a.png", (200, 100), 1)
    (root / "obj_train_data" / "a.txt").write_text(rows)
    (root / "obj.names").write_text("ship\ntank\n")
    (root / "obj.data").write_text(
        "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
    )
    (root / "train.txt").write_text("data/obj_train_data/a.png\n")


def ultralytics(root: Path, rows: str) -> None:
    picture(root / "images" / "train" / "a.png", (200, 100), 1)
    (root / "labels" / "train").mkdir(parents=True)
    (root / "labels" / "train" / "a.txt").write_text(rows)
    (root / "data.yaml").write_text("names:\n  0: ship\n  1: tank\npath: .\ntrain: train.txt\n")
    (root / "train.txt").write_text("data/images/train/a.png\n")


@pytest.mark.parametrize("layout", [label_studio_yolo, cvat_yolo, ultralytics])
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("1 0.5 0.5 0.2 0.4\n", (80, 30, 120, 70)),
        ("0 0.5 0.3 0.6 0.5 0.5 0.7 0.4 0.5\n", (80, 30, 120, 70)),
        ("0 0.4 0.3 0.6 0.3 0.6 0.7\n1 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.3 0.1 0.2\n", (80, 30, 120, 70)),
    ],
)
def test_yolo_of_both_tools_compiles(
    tmp_path: Path, layout: Callable[[Path, str], None], rows: str, expected: tuple[float, ...]
) -> None:
    layout(tmp_path, rows)
    read = read_labels("auto", tmp_path, val=0, test=0)
    (item,) = read.items
    assert item.objects is not None and len(item.objects) == rows.count("\n")
    assert item.objects[0].box == pytest.approx(expected) and read.object_classes[:1] == ("ship",)
    assert (item.objects[0].quad is not None) == (rows.count(" ") == 8)


def test_label_studios_coco_compiles(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "0a1b2c3d-a.png", (200, 100), 1)
    row = {
        "id": 0,
        "image_id": 0,
        "category_id": 0,
        "segmentation": [],
        "bbox": [20.0, 20.0, 60.0, 40.0],
        "ignore": 0,
    }
    content = {
        "images": [{"width": 200, "height": 100, "id": 0, "file_name": "images\\0a1b2c3d-a.png"}],
        "categories": [{"id": 0, "name": "ship"}],
        "annotations": [{**row, "iscrowd": 0, "area": 2400.0}],
        "info": {"year": 2026, "version": "1.0", "contributor": "Label Studio"},
    }
    (tmp_path / "result.json").write_text(json.dumps(content))
    (item,) = read_labels("auto", tmp_path, val=0, test=0).items
    assert item.objects is not None and item.objects[0].box == (20, 20, 80, 60)
