"""Sets of boxes in the files and folders in which their publishers hand them out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.layout_toys import SIDE, by_name, drawn, noise, photo, text
from vitp.core.errors import DataError
from vitp.data.formats import read_labels


def write(path: Path, content: Any) -> Path:
    return text(path, json.dumps(content))


# --- NWPU VHR-10 and UCAS-AOD


def nwpu(root: Path) -> Path:
    for i in (1, 2, 3):
        photo(root / f"positive image set/{i:03}.jpg")
        photo(root / f"negative image set/{i:03}.jpg")
        text(root / f"ground truth/{i:03}.txt", "(5,6),(25,26),1 ", " ( 4, 3),( 9, 8),2", "")
    return root


def test_nwpu_asks_for_the_names_of_its_numbers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"numbers its classes.*airplane,ship,storage tank"):
        read_labels("auto", nwpu(tmp_path / "NWPU VHR-10 dataset"))
    found = read_labels("auto", tmp_path, classes="airplane,ship")
    assert found.object_classes == ("airplane", "ship") and drawn(found) == {"airplane": 3, "ship": 3}
    items = by_name(found)
    assert [label.box for label in items["positive image set/002"].objects or ()] == [
        (5, 6, 25, 26),
        (4, 3, 9, 8),
    ]
    assert items["negative image set/002"].objects == () and not items["negative image set/002"].ignored


def test_nwpu_ignores_numbers_without_a_name_in_their_places(tmp_path: Path) -> None:
    item = by_name(read_labels("auto", nwpu(tmp_path), classes="airplane"))["positive image set/001"]
    assert [label.box for label in item.ignored] == [(4, 3, 9, 8)]
    text(tmp_path / "ground truth/001.txt", "(5,6),(25,26) 1")
    with pytest.raises(DataError, match=r"001.txt:1: .*is no row"):
        read_labels("auto", tmp_path, classes="airplane")


def test_ucas_has_cars_planes_and_images_of_neither(tmp_path: Path) -> None:
    corners, rest = [8, 10, 20, 4, 26, 16, 14, 22], [117, 8, 4, 18, 18]
    for kind in ("CAR", "PLANE"):
        photo(tmp_path / kind / "P0001.png")
        text(tmp_path / kind / "P0001.txt", "".join(f"{number:e}\t" for number in (*corners, *rest)))
    photo(tmp_path / "Neg/N0001.png")
    found = read_labels("auto", tmp_path)
    items = by_name(found)
    assert drawn(found) == {"car": 1, "plane": 1} and items["Neg/N0001"].objects == ()
    (car,) = items["CAR/P0001"].objects or ()
    assert car.quad == tuple(corners) and car.box == (8, 4, 26, 22)
    text(tmp_path / "PLANE/P0001.txt", "\t".join(map(str, (*corners, *rest))), "1\t2\t3")
    with pytest.raises(DataError, match=r"PLANE/P0001.txt:2: is no row of 13 numbers"):
        read_labels("ucas", tmp_path)


# --- BDD100K and Datumaro


def frame(name: str, *labels: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "attributes": {"weather": "clear"}, "timestamp": 10000, "labels": list(labels)}


CAR = {"category": "car", "box2d": {"x1": 2.5, "y1": 3, "x2": 12, "y2": 13}}


def test_bdd_boxes_areas_lanes_and_crowds(tmp_path: Path) -> None:
    lane = {"category": "lane", "poly2d": [{"vertices": [[1, 1], [9, 1]], "types": "LL", "closed": False}]}
    # Three straight sides and one that bends outwards by three quarters of its handles' distance.
    bent = [[4, 20], [4, 30], [24, 30], [24, 20], [18, 12], [10, 12]]
    road = {"category": "drivable area", "poly2d": [{"vertices": bent, "types": "LLLLCC", "closed": True}]}
    crowd, gone = CAR | {"attributes": {"crowd": True}}, CAR | {"attributes": {"ignored": True}}
    crowd["box2d"] = {"x1": 20, "y1": 1, "x2": 30, "y2": 9}
    for split in ("train", "val"):
        photo(tmp_path / f"images/100k/{split}/{split}.jpg")
        frames = [
            frame(
                f"{split}.jpg",
                CAR,
                road,
                lane,
                crowd,
                gone | {"box2d": {"x1": 30, "y1": 30, "x2": 39, "y2": 39}},
            )
        ]
        write(tmp_path / f"labels/det_20/det_{split}.json", frames)
    found = read_labels("auto", tmp_path)
    assert drawn(found) == {"car": 4, "drivable area": 2}
    assert [item.split for item in found.items] == ["train", "val"]
    item = found.items[0]
    assert [(o.box, o.difficult) for o in item.objects or () if o.category == "car"] == [
        ((2.5, 3, 12, 13), False),
        ((20, 1, 30, 9), True),
    ]
    assert [label.box for label in item.ignored] == [(30, 30, 39, 39)]
    (outline,) = [label.box for label in item.objects or () if label.category == "drivable area"]
    assert outline == pytest.approx((4, 14, 24, 30))
    assert any("lanes, have no area" in line for line in found.understood)


def test_bdd_frames_without_labels_have_two_readings(tmp_path: Path) -> None:
    for name in "ab":
        photo(tmp_path / f"images/{name}.jpg")
    write(tmp_path / "labels/det.json", [frame("a.jpg", CAR), {"name": "b.jpg", "timestamp": 1}])
    with pytest.raises(DataError, match="-o empty=nothing or -o empty=unlabelled"):
        read_labels("auto", tmp_path)
    assert [item.objects == () for item in read_labels("auto", tmp_path, empty="nothing").items] == [
        False,
        True,
    ]
    assert len(read_labels("auto", tmp_path, empty="unlabelled").items) == 1


def test_bdd_of_one_file_an_image(tmp_path: Path) -> None:
    photo(tmp_path / "images/train/a.jpg")
    write(
        tmp_path / "labels/train/a.json",
        {"name": "a", "frames": [{"timestamp": 1, "objects": [CAR | {"id": 0}]}]},
    )
    found = read_labels("auto", tmp_path)
    assert drawn(found) == {"car": 1} and found.items[0].split == "train"


def test_bdd_outlines_of_points_with_their_types(tmp_path: Path) -> None:
    """As BDD100K's first files write them: one outline, of which lanes are open; and an image of which all is empty."""
    area = {"category": "area/drivable", "poly2d": [[4, 4, "L"], [24, 4, "L"], [24, 24, "L"], [4, 24, "L"]]}
    lane = {"category": "lane/crosswalk", "poly2d": [[1, 1, "L"], [9, 9, "L"]]}
    for name, objects in (("a", [area, lane]), ("b", [])):
        photo(tmp_path / f"images/train/{name}.jpg")
        write(tmp_path / f"labels/train/{name}.json", {"name": name, "frames": [{"objects": objects}]})
    found = read_labels("auto", tmp_path, empty="nothing")
    items = by_name(found)
    assert [label.box for label in items["images/train/a"].objects or ()] == [(4, 4, 24, 24)]
    assert drawn(found) == {"area/drivable": 1} and items["images/train/b"].objects == ()
    assert any("open lines" in line for line in found.understood)


def test_files_of_many_images_tell_their_split(tmp_path: Path) -> None:
    for i in range(4):
        noise(tmp_path / f"images/{i}.jpg", i)
    rows = {
        half: [{"name": f"{i}.jpg", "labels": [CAR]} for i in own]
        for half, own in (("train", (0, 1)), ("val", (2, 3)))
    }
    for half, frames in rows.items():
        write(tmp_path / f"det_20/det_{half}.json", frames)
    assert [item.split for item in read_labels("auto", tmp_path).items] == ["train", "train", "val", "val"]


def test_odgt_of_others_is_not_crowdhuman(tmp_path: Path) -> None:
    for i in range(3):
        noise(tmp_path / f"cat/cat{i}.jpg", i)
        noise(tmp_path / f"dog/dog{i}.jpg", i + 5)
    text(tmp_path / "training.odgt", json.dumps({"fpath_img": "cat/cat0.jpg", "fpath_segm": "cat/cat0.png"}))
    assert read_labels("auto", tmp_path).scene_classes == ("cat", "dog")


def datumaro(root: Path, *rows: dict[str, Any]) -> Path:
    photo(root / "images/train/a.png")
    labels = {"labels": [{"name": "cat", "parent": ""}, {"name": "dog", "parent": ""}], "attributes": []}
    items = [{"id": "a", "annotations": list(rows), "image": {"path": "a.png", "size": [SIDE, SIDE]}}]
    return write(
        root / "annotations/train.json", {"info": {}, "categories": {"label": labels}, "items": items}
    )


@pytest.mark.parametrize(
    "more",
    [{"points": 5}, {"points": {}}, {"points": [1, 2, 3, 4, 5, 6, 7]}, {"label_id": []}, {"group": [1]}],
)
def test_datumaro_of_odd_types_is_said(tmp_path: Path, more: dict[str, Any]) -> None:
    good = {"type": "polygon", "label_id": 1, "group": 7, "points": [4.0, 4, 12, 4, 12, 12, 4, 12]}
    other = good | {"group": 8, "points": [20.0, 20, 30, 20, 30, 30, 20, 30]}
    datumaro(tmp_path, good, other | more)
    photo(tmp_path / "images/train/b.png")
    path = tmp_path / "annotations/train.json"
    content = json.loads(path.read_text())
    content["items"].append(
        {"id": "b", "annotations": [good], "image": {"path": "b.png", "size": [SIDE, SIDE]}}
    )
    write(path, content)
    found = read_labels("auto", tmp_path)
    if "group" in more:
        assert drawn(found) == {"dog": 3} and not found.findings
    else:
        assert any("a, annotation 2" in line for line in found.findings)


def test_datumaro_shapes(tmp_path: Path) -> None:
    square = [4.0, 4, 12, 4, 12, 12, 4, 12]
    runs = [30 * SIDE, 5, SIDE - 5, 5, SIDE * SIDE - 31 * SIDE - 5]
    datumaro(
        tmp_path,
        {"type": "bbox", "label_id": 0, "group": 0, "bbox": [1, 2, 3, 4], "attributes": {"is_crowd": True}},
        {"type": "bbox", "label_id": 0, "group": 0, "bbox": [20, 20, 8, 4], "attributes": {"rotation": 90.0}},
        {"type": "polygon", "label_id": 1, "group": 7, "points": square},
        {"type": "polygon", "label_id": 1, "group": 7, "points": [value + 10 for value in square]},
        {"type": "ellipse", "label_id": 1, "group": 0, "points": [2, 30, 8, 36]},
        {"type": "mask", "label_id": 1, "group": 0, "rle": {"size": [SIDE, SIDE], "counts": runs}},
        {"type": "bbox", "label_id": 9, "group": 0, "bbox": [30, 2, 4, 4]},
    )
    found = read_labels("auto", tmp_path)
    (item,) = found.items
    boxes = {label.box: label for label in item.objects or ()}
    assert (
        found.object_classes == ("cat", "dog")
        and item.split == "train"
        and drawn(found) == {"cat": 2, "dog": 3}
    )
    assert boxes[1, 2, 4, 6].difficult
    assert [tuple(round(v) for v in box) for box in boxes if boxes[box].quad] == [(22, 18, 26, 26)]
    assert len(boxes[4, 4, 22, 22].polygons) == 2  # one object of two parts
    assert (2, 30, 8, 36) in {tuple(round(value) for value in box) for box in boxes}
    assert boxes[30, 0, 32, 5].category == "dog"
    assert [label.box for label in item.ignored] == [(30, 2, 34, 6)]


def test_datumaro_loses_what_has_no_area(tmp_path: Path) -> None:
    datumaro(tmp_path, {"type": "points", "label_id": 0, "points": [1, 2]})
    with pytest.raises(DataError, match="cat: a points has no area"):
        read_labels("auto", tmp_path)


# --- CrowdHuman and WIDER FACE


def test_crowdhuman_reads_one_kind_of_boxes(tmp_path: Path) -> None:
    person = {
        "tag": "person",
        "fbox": [-3, 2, 20, 30],
        "vbox": [0, 2, 17, 10],
        "hbox": [4, 3, 5, 5],
        "extra": {"box_id": 0},
    }
    crowd = {
        "tag": "mask",
        "fbox": [30, 30, 5, 5],
        "vbox": [30, 30, 5, 5],
        "hbox": [30, 30, 5, 5],
        "extra": {"ignore": 1},
    }
    for split, name in (("train", "1,a"), ("val", "2,b")):
        photo(tmp_path / f"Images/{name}.jpg")
        text(tmp_path / f"annotation_{split}.odgt", json.dumps({"ID": name, "gtboxes": [person, crowd]}))
    found = read_labels("auto", tmp_path)
    assert {item.split: [label.box for label in item.objects or ()] for item in found.items} == {
        "train": [(0, 2, 17, 32)],
        "val": [(0, 2, 17, 32)],
    }
    assert [label.box for item in found.items for label in item.ignored] == [(30, 30, 35, 35)] * 2
    assert drawn(read_labels("auto", tmp_path, part="hbox")) == {"head": 2}
    text(tmp_path / "annotation_val.odgt", "[]")
    with pytest.raises(DataError, match=r"annotation_val.odgt:1: is no row of CrowdHuman"):
        read_labels("auto", tmp_path)


def test_wider_face_lists(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for i in (0, 1):
            photo(tmp_path / f"WIDER_{split}/images/0--Parade/{i}.jpg")
        rows = ["0--Parade/0.jpg", "2", "4 5 10 12 0 0 0 0 0 0 ", "20 20 9 9 2 0 0 1 0 0 "]
        empty = ["0--Parade/1.jpg", "0", "0 0 0 0 0 0 0 0 0 0 "]
        text(tmp_path / f"wider_face_split/wider_face_{split}_bbx_gt.txt", *rows, *empty)
    found = read_labels("auto", tmp_path)
    assert drawn(found) == {"face": 2} and Counter(item.split for item in found.items) == {
        "train": 2,
        "val": 2,
    }
    item = by_name(found)["WIDER_val/images/0--Parade/0"]
    assert [label.box for label in item.objects or ()] == [(4, 5, 14, 17)]
    assert [label.box for label in item.ignored] == [(20, 20, 29, 29)]
    assert by_name(found)["WIDER_val/images/0--Parade/1"].objects == ()


@pytest.mark.parametrize(
    ("told", "said"),
    [("3", "ends before its 3 rows"), ("99999999999", "is no number of faces"), ("x", "is no number")],
)
def test_a_list_of_faces_that_ends_early_is_refused(tmp_path: Path, told: str, said: str) -> None:
    photo(tmp_path / "WIDER_train/images/0--Parade/a.jpg")
    rows = ("0--Parade/a.jpg", told, "4 4 8 8 0 0 0 0 0 0")
    text(tmp_path / "wider_face_split/wider_face_train_bbx_gt.txt", *rows)
    with pytest.raises(DataError, match=rf"bbx_gt.txt:2: .*{said}"):
        read_labels("auto", tmp_path)
