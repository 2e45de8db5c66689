"""Sets that many people download: lists, codes, crowds, colours and mixed annotations, as their publishers write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.layout_toys import SIDE, by_name, drawn, photo, text
from vitp.core.errors import DataError
from vitp.data.formats import detect, read_labels


def chests(root: Path) -> Path:
    rows = ["Image Index,Finding Labels,Follow-up #,Patient ID"]
    names = [f"{patient:08d}_{visit:03d}.png" for patient in range(6) for visit in range(2)]
    for number, name in enumerate(names):
        photo(root / f"images_{number // 6 + 1:03d}/images/{name}")
        rows.append(f"{name},{'No Finding' if number % 2 else 'Mass|Edema'},0,{number // 2}")
    text(root / "Data_Entry_2017.csv", *rows)
    text(
        root / "BBox_List_2017.csv",
        "Image Index,Finding Label,Bbox [x,y,w,h],,,",
        f"{names[0]},Mass,2,3,9,9,,,",
    )
    text(root / "train_val_list.txt", *names[:8])
    text(root / "test_list.txt", *names[8:])
    return root


def test_lists_of_splits_under_other_names_count_together(tmp_path: Path) -> None:
    found = read_labels("auto", chests(tmp_path))
    assert [item.split for item in found.items] == ["train"] * 8 + ["test"] * 4
    assert "splits: train 8, test 4; from the lists train_val_list.txt, test_list.txt" in found.understood
    assert any("not read: BBox_List_2017.csv" in line for line in found.understood)
    boxes = {"table": "BBox_List_2017.csv", "box_columns": "Bbox [x,y,w,h]", "box": "size"}
    found = read_labels("boxes", tmp_path, class_column="Finding Label", **boxes)
    assert drawn(found) == {"Mass": 1} and len(found.items) == 1  # without a row an image isn't empty


@pytest.mark.parametrize("name", ["test_cats_list.txt", "training_list.txt"])
def test_lists_that_say_more_or_one_split_twice_are_only_said(tmp_path: Path, name: str) -> None:
    chests(tmp_path)
    (tmp_path / "test_list.txt").rename(tmp_path / name)
    found = read_labels("auto", tmp_path)
    assert any(line.startswith("not used: ") and name in line for line in found.understood)


def traps(root: Path, boxed: int, count: int = 12) -> Path:
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for k in range(count):
        photo(root / f"images/{k}.png")
        images.append({"id": f"i{k}", "file_name": f"{k}.png", "seq_id": f"s{k // 2}", "location": k // 3})
        row = {"id": k, "image_id": f"i{k}", "category_id": k % 3}
        rows.append({**row, "bbox": [2, 3, 9, 9]} if k % 3 and k < boxed else row)
    names = [{"id": i, "name": name} for i, name in enumerate(("empty", "deer", "fox"))]
    text(root / "traps.json", json.dumps({"images": images, "annotations": rows, "categories": names}))
    return root


def test_images_of_a_camera_stay_together(tmp_path: Path) -> None:
    found = read_labels("auto", traps(tmp_path, 0, 36))
    assert found.scene_classes == ("empty", "deer", "fox")
    groups = {str(k) for k in range(12)}
    assert {item.group for item in found.items} == groups
    splits = {group: {item.split for item in found.items if item.group == group} for group in groups}
    assert all(len(own) == 1 for own in splits.values())
    assert 'images of one "location" are a group' in found.understood
    own = read_labels("auto", tmp_path, group_regex=r"(\d)$")  # what the user says counts
    assert {item.group for item in own.items} == set("0123456789")


@pytest.mark.parametrize("value", ["-1", "unknown", "left"])
def test_what_isnt_known_and_few_kinds_of_places_are_no_groups(tmp_path: Path, value: str) -> None:
    traps(tmp_path, 0, 36)
    whole = json.loads((tmp_path / "traps.json").read_text())
    for k, row in enumerate(whole["images"]):
        del row["seq_id"]
        row["location"] = ("left", "right")[k % 2] if value == "left" else k if k > 20 else value
    text(tmp_path / "traps.json", json.dumps(whole))
    found = read_labels("auto", tmp_path)
    assert not any(item.group for item in found.items)


def test_classes_of_images_among_boxes_are_told_apart_by_the_user(tmp_path: Path) -> None:
    traps(tmp_path, 5)
    with pytest.raises(
        DataError, match=r"5 annotations name a class and no place, 3 have.*about=images.*about=objects"
    ):
        read_labels("auto", tmp_path)
    found = read_labels("auto", tmp_path, about="images")
    assert len(found.items) == 12 and {item.scene for item in found.items} == {"empty", "deer", "fox"}
    found = read_labels("auto", tmp_path, about="objects")
    items = by_name(found)
    assert drawn(found) == {"deer": 2, "fox": 1}
    assert items["images/0"].objects == ()
    assert "images/7" not in items  # an unboxed deer isn't nothing


def open_images(root: Path) -> Path:
    head = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf"
    rows = [
        f"{k:08x},xclick,/m/{'01g317' if k % 2 else '0199g'},1,0.1,0.5,0.2,0.6,0,{int(k == 3)}"
        for k in range(8)
    ]
    for k in range(8):
        photo(root / f"train/{k:08x}.jpg")
    text(root / "oidv6-train-annotations-bbox.csv", head, *rows)
    text(root / "class-descriptions-boxable.csv", "/m/01g317,Person", "/m/0199g,Bicycle", "/m/02wbm,Food")
    return root


def test_codes_get_their_names_and_groups_are_crowds(tmp_path: Path) -> None:
    found = read_labels("auto", open_images(tmp_path))
    assert found.object_classes == ("Bicycle", "Person") and drawn(found) == {"Bicycle": 4, "Person": 4}
    assert [item.id[-1] for item in found.items for label in item.objects or () if label.difficult] == ["3"]
    assert any(line.startswith("class-descriptions-boxable.csv: the names") for line in found.understood)
    assert any("a class without a box in an image counts as not there" in line for line in found.understood)
    text(tmp_path / "class-descriptions.csv", "/m/01g317,Human", "/m/0199g,Bicycle")
    with pytest.raises(DataError, match=r'calls /m/01g317 "Human", and .*"Person"|"Person", and .*"Human"'):
        read_labels("auto", tmp_path)


def test_rows_that_deny_a_class_never_say_that_it_is_there(tmp_path: Path) -> None:
    for k in range(4):
        photo(tmp_path / f"images/{k}.png")
    rows = [f"{k}.png,verification,/m/0{name},{(k + name) % 2}" for k in range(4) for name in (1, 2)]
    text(tmp_path / "labels.csv", "ImageID,Source,LabelName,Confidence", *rows)
    with pytest.raises(DataError, match=r'labels.csv:3: "Confidence" is 0.*not there'):
        read_labels("classes", tmp_path, table="labels.csv", class_column="LabelName", separator="rows")


POTSDAM = [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)]


@pytest.mark.parametrize(("stem", "named"), [("top_potsdam_2_1{}", True), ("roof_{}", False)])
def test_published_colours_are_named_where_the_files_are_called_so(
    tmp_path: Path, stem: str, named: bool
) -> None:
    for k in range(4):
        photo(tmp_path / f"images/{stem.format(k)}_RGB.tif")
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
        for number, colour in enumerate(POTSDAM):
            pixels[:, 7 * number : 7 * number + 7] = colour
        path = tmp_path / f"labels/{stem.format(k)}_label.tif"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    found = read_labels("auto", tmp_path)
    assert ("low vegetation" in found.semantic_classes) is named
    assert any("publishes them" in line for line in found.understood) is named
    told = read_labels(
        "auto", tmp_path, classes="a=255:255:255,b=0:0:255,c=0:255:255,d=0:255:0,e=255:255:0,f=255:0:0"
    )
    assert {*"abcdef"} <= {*told.semantic_classes}


def test_a_format_is_looked_for_in_the_only_folder(tmp_path: Path) -> None:
    open_images(tmp_path / "outer/inner")
    assert detect(tmp_path).format == "boxes"
    auto = read_labels("auto", tmp_path)
    told = read_labels("boxes", tmp_path)
    assert [item.id for item in told.items] == [item.id for item in auto.items]
    assert told.understood == auto.understood and told.understood[0] == "the set is the folder outer/inner"


@pytest.mark.parametrize("table", ["counts.csv", "classes.csv", "prices.txt"])
def test_names_with_a_digit_are_no_codes_and_other_tables_name_none(tmp_path: Path, table: str) -> None:
    for k in range(4):
        photo(tmp_path / f"images/{k}.png")
    rows = [f"{k}.png,{('A320', 'B737')[k % 2]},2,3,9,9" for k in range(4)]
    text(tmp_path / "boxes.csv", "image,class,xmin,ymin,xmax,ymax", *rows)
    text(tmp_path / table, "A320,3", "B737,4")
    text(tmp_path / "notes.txt", 'said, "and never closed ' + 140000 * "x")
    assert read_labels("auto", tmp_path).object_classes == ("A320", "B737")


@pytest.mark.parametrize(
    ("cell", "crowd"), [("0", False), ("", False), ("1", True), ("2", True), ("maybe", True)]
)
def test_cells_of_crowds_that_cannot_be_used_are_no_plain_boxes(
    tmp_path: Path, cell: str, crowd: bool
) -> None:
    for k in range(4):
        photo(tmp_path / f"images/{k}.png")
    rows = [f"{k}.png,ship,2,3,9,9,0,{cell if k == 1 else 0}" for k in range(4)]
    text(tmp_path / "boxes.csv", "image,class,xmin,ymin,xmax,ymax,iscrowd,difficult", *rows)
    found = read_labels("auto", tmp_path)
    hard = [item.id[-1] for item in found.items for label in item.objects or () if label.difficult]
    assert hard == (["1"] if crowd else [])
    assert any('"difficult" is "maybe"' in line for line in found.findings) == (cell == "maybe")


def test_lists_that_name_few_images_divide_no_set(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for k in range(6):
            photo(tmp_path / name / f"{name}{k}.png")
    text(tmp_path / "train_images.txt", "cat0.png", "cat1.png")
    text(tmp_path / "test_images.txt", "dog0.png", "dog1.png")
    assert len(read_labels("auto", tmp_path).items) == 12
