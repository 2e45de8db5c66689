"""Objects called "DontCare" and the like: places where nobody said what is there, in all formats of boxes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitp.data.formats import read_labels

SHIP, PLACE = (4, 5, 14, 17), (18, 20, 30, 31)


def pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def coco(root: Path, name: str) -> str:
    pictures(root / "images")
    boxes = [(i, k, box) for i in range(3) for k, box in enumerate((SHIP, PLACE))]
    content = {
        "images": [{"id": i, "file_name": f"images/{i}.png", "width": 40, "height": 40} for i in range(3)],
        "categories": [{"id": 0, "name": "ship"}, {"id": 1, "name": name}],
        "annotations": [
            {"id": n, "image_id": i, "category_id": k, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
            for n, (i, k, (x1, y1, x2, y2)) in enumerate(boxes)
        ],
    }
    (root / "labels.json").write_text(json.dumps(content))
    return "coco"


def voc(root: Path, name: str) -> str:
    pictures(root / "JPEGImages")
    (root / "Annotations").mkdir()
    corners = ("xmin", "ymin", "xmax", "ymax")
    for i in range(3):
        objects = ""
        for category, box in (("ship", SHIP), (name, PLACE)):
            inner = "".join(f"<{key}>{value}</{key}>" for key, value in zip(corners, box, strict=True))
            objects += f"<object><name>{category}</name><bndbox>{inner}</bndbox></object>"
        text = f"<annotation><filename>{i}.png</filename>{objects}</annotation>"
        (root / "Annotations" / f"{i}.xml").write_text(text)
    return "voc"


def dota(root: Path, name: str) -> str:
    pictures(root / "images")
    (root / "labelTxt").mkdir()
    for i in range(3):
        rows = [
            f"{x1} {y1} {x2} {y1} {x2} {y2} {x1} {y2} {category} 0"
            for category, (x1, y1, x2, y2) in (("ship", SHIP), (name.replace(" ", "-"), PLACE))
        ]
        (root / "labelTxt" / f"{i}.txt").write_text("\n".join(rows))
    return "dota"


def yolo(root: Path, name: str) -> str:
    pictures(root / "images")
    (root / "labels").mkdir()
    (root / "classes.txt").write_text(f"ship\n{name}\n")
    for i in range(3):
        rows = [
            f"{k} {(x1 + x2) / 80} {(y1 + y2) / 80} {(x2 - x1) / 40} {(y2 - y1) / 40}"
            for k, (x1, y1, x2, y2) in enumerate((SHIP, PLACE))
        ]
        (root / "labels" / f"{i}.txt").write_text("\n".join(rows))
    return "yolo"


@pytest.mark.parametrize("write", [coco, voc, dota, yolo])
@pytest.mark.parametrize("name", ["DontCare", "ignored regions"])
def test_such_places_are_neither_objects_nor_background(
    tmp_path: Path, write: Callable[[Path, str], str], name: str
) -> None:
    found = read_labels(write(tmp_path, name), tmp_path)
    assert found.object_classes == ("ship",)
    for item in found.items:
        (one,) = item.objects or ()
        (place,) = item.ignored
        assert one.category == "ship" and place.box == pytest.approx(PLACE, abs=1.01)
    (line,) = [line for line in found.understood if "no class by its name" in line]
    assert line.startswith("3 places of ")
    assert not any("no object is of the class" in finding for finding in found.findings)


@pytest.mark.parametrize("write", [coco, voc, dota])
def test_who_asks_for_the_class_gets_it(tmp_path: Path, write: Callable[[Path, str], str]) -> None:
    found = read_labels(write(tmp_path, "DontCare"), tmp_path, classes="ship,DontCare")
    assert found.object_classes == ("ship", "DontCare")
    assert [len(item.objects or ()) for item in found.items] == [2, 2, 2]


def test_unknown_is_a_class_of_objects(tmp_path: Path) -> None:
    found = read_labels(coco(tmp_path, "unknown"), tmp_path)
    assert set(found.object_classes) == {"ship", "unknown"}
