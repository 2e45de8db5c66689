"""Boxes on images that EXIF turns: drawn on what viewers show, or on the pixels as stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitp.core.errors import DataError
from vitp.data.formats import read_labels

UPRIGHT, HALF, QUARTER = 1, 3, 6
"""EXIF orientations: none, turned by 180°, by 90°."""


def photos(folder: Path, size: tuple[int, int], orientation: int, count: int = 3) -> list[str]:
    """Write photographs of a stored width and height, and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    names = [f"{orientation}{number}" for number in range(count)]
    for number, name in enumerate(names):
        rng = np.random.default_rng(100 * orientation + number)
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.jpg", exif=exif)
    return names


def coco(root: Path, names: list[str], size: tuple[int, int] | None, *, box: bool = True) -> None:
    told = {} if size is None else {"width": size[0], "height": size[1]}
    content: dict[str, Any] = {
        "images": [
            {"id": number, "file_name": f"{name}.jpg", **told} for number, name in enumerate(names, 1)
        ],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 1, "bbox": [2, 3, 10, 8]}
            for number in range(1, len(names) + 1)
            if box or number == 1
        ],
        "categories": [{"id": 1, "name": "cup"}],
    }
    (root / "instances.json").write_text(json.dumps(content))


def yolo(root: Path, names: list[str]) -> None:
    (root / "labels").mkdir()
    (root / "classes.txt").write_text("cup\n")
    for name in names:
        (root / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n")


def voc(root: Path, names: list[str], size: tuple[int, int]) -> None:
    (root / "Annotations").mkdir()
    box = "<xmin>2</xmin><ymin>3</ymin><xmax>12</xmax><ymax>11</ymax>"
    for name in names:
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.jpg</filename><size><width>{size[0]}</width><height>{size[1]}</height>"
            f"<depth>3</depth></size><object><name>cup</name><bndbox>{box}</bndbox></object></annotation>"
        )


def labelled(fmt: str, root: Path, size: tuple[int, int], orientation: int) -> None:
    """Write a set whose labels tell `size`, in the formats that tell one."""
    folder = root / {"coco": ".", "yolo": "images", "voc": "JPEGImages"}[fmt]
    names = photos(folder, size, orientation)
    if fmt == "coco":
        coco(root, names, size)
    elif fmt == "yolo":
        yolo(root, names)
    else:
        voc(root, names, size)


@pytest.mark.parametrize("fmt", ["coco", "voc", "yolo"])
@pytest.mark.parametrize(("size", "orientation"), [((32, 32), QUARTER), ((40, 32), HALF)])
def test_boxes_that_fit_both_ways_are_asked_about(
    tmp_path: Path, fmt: str, size: tuple[int, int], orientation: int
) -> None:
    labelled(fmt, tmp_path, size, orientation)
    with pytest.raises(
        DataError, match=r": 3 of 3 images are turned .*as they are stored and as they are"
    ) as error:
        read_labels(fmt, tmp_path)
    assert "-o orientation=shown if the labels were drawn" in str(error.value)
    found = read_labels(fmt, tmp_path, orientation="shown")
    assert len(found.items) == 3
    assert "the labels of 3 images that EXIF turns lie on them as they are shown" in found.understood


@pytest.mark.parametrize("fmt", ["coco", "voc", "yolo"])
def test_images_that_nothing_turns_are_not_asked_about(tmp_path: Path, fmt: str) -> None:
    labelled(fmt, tmp_path, (32, 32), UPRIGHT)
    found = read_labels(fmt, tmp_path)
    assert len(found.items) == 3 and not any("EXIF" in line for line in found.understood)


def test_a_size_of_one_image_tells_it_for_all(tmp_path: Path) -> None:
    square, tall = photos(tmp_path, (32, 32), QUARTER), photos(tmp_path, (40, 24), 8)
    coco(tmp_path, [*square, *tall], None)
    with pytest.raises(DataError, match="6 of 6 images are turned"):
        read_labels("coco", tmp_path)
    content = json.loads((tmp_path / "instances.json").read_text())
    for row in content["images"][3:]:
        row |= {"width": 24, "height": 40}  # of the image as it is shown
    (tmp_path / "instances.json").write_text(json.dumps(content))
    found = read_labels("coco", tmp_path)
    assert len(found.items) == 6 and found.items[-1].width == 24
    assert "the labels of 6 images that EXIF turns lie on them as they are shown" in found.understood


def test_sizes_of_the_stored_pixels_name_the_orientation(tmp_path: Path) -> None:
    labelled("coco", tmp_path, (40, 24), QUARTER)
    with pytest.raises(DataError, match=r"says 40×24 but the image has 24×40 \(turned by its EXIF") as error:
        read_labels("coco", tmp_path)
    assert "exiftool -Orientation=" in str(error.value)


def test_a_turned_image_without_an_object_asks_nothing(tmp_path: Path) -> None:
    plain, turned = photos(tmp_path, (32, 32), UPRIGHT, 1), photos(tmp_path, (32, 32), QUARTER, 2)
    coco(tmp_path, [*plain, *turned], (32, 32), box=False)
    found = read_labels("coco", tmp_path)
    assert [len(item.objects or ()) for item in found.items] == [1, 0, 0]


def test_label_studio_shows_images_turned(tmp_path: Path) -> None:
    names = photos(tmp_path / "images", (32, 32), QUARTER)
    value = {"x": 10, "y": 20, "width": 30, "height": 20, "rotation": 0, "rectanglelabels": ["cup"]}
    region = {"type": "rectanglelabels", "from_name": "label", "to_name": "image", "value": value}
    region |= {"original_width": 32, "original_height": 32, "id": "a"}
    tasks = [
        {
            "id": number,
            "data": {"image": f"images/{name}.jpg"},
            "annotations": [{"id": 1, "result": [region]}],
        }
        for number, name in enumerate(names)
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    found = read_labels("label-studio", tmp_path)
    assert len(found.items) == 3 and found.items[0].objects[0].box == pytest.approx((3.2, 6.4, 12.8, 12.8))
