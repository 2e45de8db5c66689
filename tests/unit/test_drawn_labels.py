"""Files of VIA, Create ML, Supervisely and V7 Darwin, as the tools write them."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats import read_labels
from vitp.data.formats.detect import detect_format
from vitp.records.geometry import area, as_points
from vitp.records.labels import LabelledSet

RECT = {"name": "rect", "x": 10, "y": 8, "width": 30, "height": 20}
TRIANGLE = {"name": "polygon", "all_points_x": [40, 60, 50], "all_points_y": [10, 10, 40]}


def pictures(folder: Path, count: int = 4) -> list[str]:
    """Write pictures of 64 × 48 px; return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (64, 48), (50 * i, 9, len(folder.parts))).save(folder / f"im{i}.png")
    return [f"im{i}.png" for i in range(count)]


def boxes(found: LabelledSet, number: int = 0) -> list[tuple[str, tuple[float, ...]]]:
    return [(one.category, tuple(one.box)) for one in found.items[number].objects or ()]


# --- VIA


def region(shape: dict[str, Any], **attributes: Any) -> dict[str, Any]:
    return {"shape_attributes": shape, "region_attributes": attributes}


def via(root: Path, regions: list[list[dict[str, Any]]], *, wrapped: bool = False) -> Path:
    names = pictures(root, len(regions))
    entries = {
        f"{name}123": {"filename": name, "size": 123, "regions": own, "file_attributes": {}}
        for name, own in zip(names, regions, strict=True)
    }
    content = {"_via_settings": {}, "_via_img_metadata": entries} if wrapped else entries
    (root / "via_region_data.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("wrapped", [False, True])
def test_regions_of_via(wrapped: bool, tmp_path: Path) -> None:
    ellipse = {"name": "ellipse", "cx": 30, "cy": 20, "rx": 12, "ry": 5, "theta": math.pi / 2}
    circle = {"name": "circle", "cx": 20, "cy": 20, "r": 6}
    own = [region(RECT, kind="ship"), region(TRIANGLE, kind="plane")]
    regions = [own, [region(circle, kind="ship")], [region(ellipse, kind="ship")], own]
    root = via(tmp_path, regions, wrapped=wrapped)
    assert detect_format(root) == "via"
    found = read_labels("auto", root)
    assert found.object_classes == ("plane", "ship") and len(found.items) == 4
    assert boxes(found) == [("ship", (10, 8, 40, 28)), ("plane", (40, 10, 60, 40))]
    assert area(as_points(found.items[0].objects[1].polygons[0])) == pytest.approx(300)  # type: ignore[index]
    assert boxes(found, 1)[0][1] == pytest.approx((14, 14, 26, 26), abs=0.1)
    # A quarter of a turn: what was wide is high.
    assert boxes(found, 2)[0][1] == pytest.approx((25, 8, 35, 32), abs=0.1)
    assert 'VIA: the attribute "kind" of a region is its class' in found.understood


def test_a_table_of_via_holds_regions_and_no_classes(tmp_path: Path) -> None:
    names = pictures(tmp_path)
    with (tmp_path / "via.csv").open("w", newline="") as file:
        file.write("filename,file_size,file_attributes,region_count,region_id,")
        file.write("region_shape_attributes,region_attributes\n")
        table = csv.writer(file, quoting=csv.QUOTE_ALL)
        for name in names:
            for number, shape in enumerate((RECT, TRIANGLE)):
                table.writerow([name, 123, "{}", 2, number, json.dumps(shape), '{"class":"ship"}'])
    assert detect_format(tmp_path) == "via"
    found = read_labels("auto", tmp_path)
    assert found.object_classes == ("ship",) and found.scene_classes == ()
    assert [boxes(found, i) for i in range(4)] == [
        [("ship", (10, 8, 40, 28)), ("ship", (40, 10, 60, 40))]
    ] * 4
    with pytest.raises(DataError, match=r"via.csv: is a file of the VGG Image Annotator; name the folder"):
        read_labels("auto", tmp_path / "via.csv")
    (tmp_path / "via.csv").write_text((tmp_path / "via.csv").read_text().replace('""rect""', '""rect', 1))
    with pytest.raises(DataError, match=r"via.csv:2: a cell is no JSON"):
        read_labels("auto", tmp_path)


def test_the_class_of_regions_is_never_guessed(tmp_path: Path) -> None:
    root = via(tmp_path / "two", [[region(RECT, colour="red", size="large")]] * 4)
    with pytest.raises(
        DataError, match=r"attributes colour, size; which is the class.*-o attribute=colour or -o attri"
    ):
        read_labels("auto", root)
    assert read_labels("auto", root, attribute="size").object_classes == ("large",)
    with pytest.raises(DataError, match='no region has the attribute "form"; there are colour, size'):
        read_labels("auto", root, attribute="form")
    root = via(tmp_path / "named", [[region(RECT, type="ship", size="large")]] * 4)
    assert read_labels("auto", root).object_classes == ("ship",)
    root = via(tmp_path / "none", [[region(RECT)]] * 4)
    with pytest.raises(DataError, match=r"no attributes.*-o classes=NAME"):
        read_labels("auto", root)
    assert read_labels("auto", root, classes="balloon").object_classes == ("balloon",)
    # Of check boxes one is the class; where two are ticked nobody knows, and the place is ignored.
    ticks = [{"ship": True, "plane": False}, {"ship": True, "plane": True}]
    root = via(tmp_path / "ticked", [[region(RECT, type=ticks[0]), region(TRIANGLE, type=ticks[1])]] * 4)
    found = read_labels("auto", root)
    assert boxes(found) == [("ship", (10, 8, 40, 28))] and len(found.items[0].ignored) == 1


def test_attributes_of_whole_files_are_said_not_to_be_read(tmp_path: Path) -> None:
    root = via(tmp_path, [[region(RECT, type="ship")]] * 4)
    path, line = root / "via_region_data.json", "VIA: attributes of whole files aren't read"
    assert line not in read_labels("auto", root).understood
    path.write_text(
        path.read_text().replace('"file_attributes": {}', '"file_attributes": {"quality": "good"}', 1)
    )
    assert line in read_labels("auto", root).understood
    path.write_text(
        json.dumps({"im0": {"filename": "im0.png", "regions": [], "file_attributes": {"class": "a"}}})
    )
    with pytest.raises(DataError, match="no image has a region, and attributes of whole files aren't read"):
        read_labels("auto", root)


def test_images_without_regions_are_asked_about(tmp_path: Path) -> None:
    root = via(tmp_path, [[region(RECT, type="ship")], [], [region(RECT, type="ship")], []])
    with pytest.raises(
        DataError, match=r"2 of 4 images have no shape \(the first: im1.png\).*-o empty=nothing or"
    ):
        read_labels("auto", root)
    found = read_labels("auto", root, empty="nothing")
    assert [len(item.objects or ()) for item in found.items] == [1, 0, 1, 0]
    assert [item.id for item in read_labels("auto", root, empty="unlabelled").items] == ["im0", "im2"]
    with pytest.raises(ConfigError, match="choose nothing or unlabelled"):
        read_labels("auto", root, empty="no")


def test_points_of_via_cost_an_image_its_labels(tmp_path: Path) -> None:
    point = {"name": "point", "cx": 5, "cy": 5}
    root = via(
        tmp_path,
        [[region(RECT, type="ship"), region(point, type="ship")], *[[region(RECT, type="ship")]] * 3],
    )
    found = read_labels("auto", root)
    assert [item.id for item in found.items] == ["im1", "im2", "im3"]
    assert any("im0.png, region 2: ship: a point has no area" in line for line in found.findings)


# --- Create ML


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_create_ml_counts_from_the_centre(tmp_path: Path, encoding: str) -> None:
    for split in ("train", "valid"):
        names = pictures(tmp_path / split, 3)
        coordinates = {"x": 20, "y": 16, "width": 10, "height": 6}
        rows = [
            {"image": name, "annotations": [{"label": "ship", "coordinates": coordinates}]} for name in names
        ]
        rows[2]["annotations"] = []
        (tmp_path / split / "_annotations.createml.json").write_text(json.dumps(rows), encoding=encoding)
    assert detect_format(tmp_path) == "createml"
    found = read_labels("auto", tmp_path)
    assert boxes(found) == [("ship", (15, 13, 25, 19))]
    assert [(item.split, len(item.objects or ())) for item in found.items] == [
        (split, count) for split in ("train", "val") for count in (1, 1, 0)
    ]


# --- Supervisely


def supervisely(root: Path, objects: list[dict[str, Any]], folder: str = "ds0") -> Path:
    for name in pictures(root / folder / "img"):
        (root / folder / "ann").mkdir(exist_ok=True)
        content = {"description": "", "tags": [], "size": {"height": 48, "width": 64}, "objects": objects}
        (root / folder / "ann" / f"{name}.json").write_text(json.dumps(content))
    (root / "meta.json").write_text(json.dumps({"classes": [{"title": "ship", "shape": "any"}], "tags": []}))
    return root


def drawn(kind: str, exterior: list[list[float]], *interior: Any, **more: Any) -> dict[str, Any]:
    points = {"exterior": exterior, "interior": list(interior)}
    return {"id": 1, "classTitle": "ship", "geometryType": kind, "points": points, "tags": [], **more}


def test_shapes_of_supervisely(tmp_path: Path) -> None:
    mask_HW = np.zeros((6, 10), np.uint8)
    mask_HW[1:, 2:] = 255
    stored = io.BytesIO()
    Image.fromarray(np.stack([mask_HW] * 4, axis=-1)).save(stored, "PNG")
    bitmap = {"data": base64.b64encode(zlib.compress(stored.getvalue())).decode(), "origin": [30, 20]}
    objects = [
        drawn("polygon", [[4, 4], [24, 4], [24, 14], [4, 14]], [[8, 6], [12, 6], [12, 10], [8, 10]]),
        drawn("rectangle", [[40, 30], [30, 22]]),
        drawn("bitmap", [], bitmap=bitmap),
    ]
    root = supervisely(supervisely(tmp_path, objects), objects, "ds1")  # equal names in two data sets
    assert detect_format(root) == "supervisely"
    found = read_labels("auto", root)
    assert len(found.items) == 8
    assert boxes(found) == [("ship", (4, 4, 24, 14)), ("ship", (30, 22, 40, 30)), ("ship", (32, 21, 40, 26))]
    first, _, painted = found.items[0].objects or ()
    assert first.holes and area(as_points(painted.polygons[0])) == pytest.approx(40)


def test_supervisely_says_nothing_of_images_without_objects(tmp_path: Path) -> None:
    root = supervisely(tmp_path, [drawn("rectangle", [[4, 4], [20, 20]])])
    path = root / "ds0/ann/im2.png.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"objects": []}))
    with pytest.raises(DataError, match="1 of 4 images have no shape"):
        read_labels("auto", root)
    assert len(read_labels("auto", root, empty="unlabelled").items) == 3


def test_a_damaged_bitmap_of_supervisely_costs_the_image_its_labels(tmp_path: Path) -> None:
    root = supervisely(tmp_path, [drawn("rectangle", [[4, 4], [20, 20]])])
    path = root / "ds0/ann/im2.png.json"
    broken = drawn("bitmap", [], bitmap={"data": "AAAA", "origin": [1, 1]})
    path.write_text(json.dumps(json.loads(path.read_text()) | {"objects": [broken]}))
    found = read_labels("auto", root)
    assert len(found.items) == 3 and any("its mask can't be read" in line for line in found.findings)


# --- V7 Darwin


def ring(points: list[tuple[float, float]]) -> list[dict[str, float]]:
    return [{"x": x, "y": y} for x, y in points]


@pytest.mark.parametrize("version", [1, 2])
def test_shapes_of_darwin(version: int, tmp_path: Path) -> None:
    square = ring([(4, 4), (24, 4), (24, 14), (4, 14)])
    polygon = {"paths": [square]} if version == 2 else {"path": square}
    ellipse = {"center": {"x": 40, "y": 20}, "radius": {"x": 10, "y": 4}, "angle": 0}
    rows = [
        {"name": "ship", "polygon": polygon, "bounding_box": {"x": 4, "y": 4, "w": 20, "h": 10}},
        {"name": "car", "bounding_box": {"x": 30, "y": 30, "w": 10, "h": 8}},
        {"name": "buoy", "ellipse": ellipse},
        {"name": "harbour", "tag": {}},
    ]
    for name in pictures(tmp_path / "images"):
        slot = {"slot_name": "0", "width": 64, "height": 48}
        image = {"filename": name, "width": 64, "height": 48}
        one = {"item": {"name": name, "path": "/", "slots": [slot]}} if version == 2 else {"image": image}
        path = tmp_path / "annotations" / f"{Path(name).stem}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"version": f"{version}.0", **one, "annotations": rows}))
    assert detect_format(tmp_path) == "darwin"
    found = read_labels("auto", tmp_path)
    assert found.object_classes == ("buoy", "car", "ship") and len(found.items) == 4
    assert boxes(found)[:2] == [("ship", (4, 4, 24, 14)), ("car", (30, 30, 40, 38))]
    assert boxes(found)[2][1] == pytest.approx((30, 16, 50, 24), abs=0.1)
    assert "V7: tags of whole images aren't read" in found.understood
    (tmp_path / "annotations/im0.json").write_text(
        json.dumps({**json.loads((tmp_path / "annotations/im1.json").read_text())})
    )
    with pytest.raises(DataError, match=r"may be of images/im1.png or images/im0.png"):
        read_labels("auto", tmp_path)


def test_a_ring_within_another_is_a_hole_for_darwin(tmp_path: Path) -> None:
    outer, inner = [(4, 4), (40, 4), (40, 40), (4, 40)], [(10, 10), (20, 10), (20, 20), (10, 20)]
    beside = [(44, 4), (60, 4), (60, 20), (44, 20)]
    rows = [{"name": "ship", "polygon": {"paths": [ring(one) for one in (inner, outer, beside)]}}]
    for name in pictures(tmp_path):
        slot = {"slot_name": "0", "width": 64, "height": 48}
        item = {"name": name, "path": "/", "slots": [slot]}
        (tmp_path / f"{Path(name).stem}.json").write_text(json.dumps({"item": item, "annotations": rows}))
    ((ship,), *_) = (item.objects or () for item in read_labels("auto", tmp_path).items)
    assert len(ship.polygons) == 2 and [area(as_points(one)) for one in ship.holes] == [100]
