"""LabelMe's files: shapes as the program writes them, and which image each file is of."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitp.core.errors import DataError
from vitp.data.formats import read_labels
from vitp.data.formats.detect import detect_format
from vitp.records.geometry import area, as_points
from vitp.records.labels import ObjectLabel

SQUARE = [[4, 6], [24, 6], [24, 16], [4, 16]]


def shape(label: str, points: list[list[float]], kind: str = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **more}


def written(
    root: Path, shapes: list[dict[str, Any]], count: int = 4, images: str = ".", files: str = "."
) -> Path:
    """Write pictures of 64 × 48 px with equal shapes."""
    for i in range(count):
        for folder in (images, files):
            (root / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (50 * i, 9, 9)).save(root / images / f"im{i}.png")
        content = {
            "version": "5.2.1",
            "flags": {},
            "shapes": shapes,
            "imagePath": f"im{i}.png",
            "imageData": None,
        }
        content |= {"imageHeight": 48, "imageWidth": 64}
        (root / files / f"im{i}.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def first(root: Path) -> tuple[ObjectLabel, ...]:
    return read_labels("auto", root).items[0].objects or ()


def test_polygons_rectangles_circles_and_turned_rectangles(tmp_path: Path) -> None:
    turned = [[10.0, 10.0], [20.0, 20.0], [15.0, 25.0], [5.0, 15.0]]
    shapes = [
        shape("bolt", SQUARE),
        shape("nut", [[40, 30], [30, 20]], "rectangle"),
        shape("ring", [[50, 20], [50, 26]], "circle"),
        shape("screw", turned, "rotation"),
        shape("ship", SQUARE, difficult=True),
    ]
    root = written(tmp_path, shapes)
    assert detect_format(root) == "labelme"
    bolt, nut, ring, screw, ship = first(root)
    assert bolt.box == (4, 6, 24, 16) and bolt.polygons == ((4, 6, 24, 6, 24, 16, 4, 16),)
    assert nut.box == (30, 20, 40, 30) and not nut.polygons
    assert area(as_points(ring.polygons[0])) == pytest.approx(36 * math.pi)
    assert sorted(zip(*[iter(screw.quad or ())] * 2, strict=True)) == sorted(map(tuple, turned))
    assert ship.difficult and not bolt.difficult


def test_masks_and_groups(tmp_path: Path) -> None:
    mask_HW = np.zeros((10, 20), np.uint8)
    mask_HW[:, :8], mask_HW[2:4, 2:4] = 255, 0
    buffer = io.BytesIO()
    Image.fromarray(mask_HW).save(buffer, "PNG")
    drawn = shape("leaf", [[30, 20], [49, 29]], "mask", mask=base64.b64encode(buffer.getvalue()).decode())
    other = [[x + 30, y] for x, y in SQUARE]
    parts = [shape("ship", SQUARE, group_id=1), drawn, shape("ship", other, group_id=1)]
    ship, leaf = first(written(tmp_path, parts))
    assert ship.box == (4, 6, 54, 16) and len(ship.polygons) == 2
    assert leaf.box == (30, 20, 38, 30) and area(as_points(leaf.holes[0])) == pytest.approx(4)


@pytest.mark.parametrize(
    "wrong", [shape("bolt", [[4, 6], [9, 9]], "line"), shape("bolt", [[4, 6], [9, "a"]])]
)
def test_a_shape_without_a_place_leaves_the_image_unlabelled(tmp_path: Path, wrong: dict[str, Any]) -> None:
    written(tmp_path, [shape("bolt", SQUARE)])
    content = json.loads((tmp_path / "im1.json").read_text())
    (tmp_path / "im1.json").write_text(json.dumps(content | {"shapes": [shape("bolt", SQUARE), wrong]}))
    (tmp_path / "im2.json").write_text(json.dumps(content | {"shapes": [], "imagePath": "im2.png"}))
    (tmp_path / "im3.json").unlink()
    found = read_labels("auto", tmp_path)
    assert {Path(item.image).name: item.objects for item in found.items}.keys() == {"im0.png", "im2.png"}
    assert next(item for item in found.items if item.image.endswith("im2.png")).objects == ()
    assert any("im1.json: shape 2" in line for line in found.findings)
    assert any("1 have no JSON file (im3.png)" in line for line in found.findings)


def test_the_image_of_a_file(tmp_path: Path) -> None:
    root = written(tmp_path / "folders", [shape("bolt", SQUARE)], images="images", files="jsons")
    assert len(read_labels("auto", root).items) == 4
    for split in ("train", "val"):  # the same names in both
        written(tmp_path / "splits" / split, [shape("bolt", SQUARE)])
    found = read_labels("auto", tmp_path / "splits", splits="folders")
    assert sorted(item.split for item in found.items) == ["train"] * 4 + ["val"] * 4
    # Renamed together, the file still names the old image: what is called alike belongs together.
    root = written(tmp_path / "renamed", [shape("bolt", SQUARE)], count=1)
    for suffix in ("png", "json"):
        (root / f"im0.{suffix}").rename(root / f"new.{suffix}")
    assert [Path(item.image).name for item in read_labels("auto", root).items] == ["new.png"]
    root = written(tmp_path / "crossed", [shape("bolt", SQUARE)])
    content = json.loads((root / "im0.json").read_text())
    (root / "im0.json").write_text(json.dumps(content | {"imagePath": "im1.png"}))
    with pytest.raises(DataError, match=r"may be of im1.png or im0.png"):
        read_labels("auto", root)
