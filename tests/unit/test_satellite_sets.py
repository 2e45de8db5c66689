"""xView, xView2 and FAIR1M as their publishers lay them out, in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.ground_files import DEGREES, UTM, moved, write_raster
from vitp.core.errors import DataError
from vitp.data.formats import detect_format, read_labels
from vitp.data.formats.crops import cut
from vitp.data.formats.vitp_labels import Roots, read_compiled, write_compiled
from vitp.io.ground import reproject


def write_picture(path: Path, seed: int, size: tuple[int, int] = (64, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


# --- xView


def xview(root: Path, names: bool = True) -> None:
    for number in (100, 102, 104):
        write_raster(root / "train_images" / f"{number}.tif", moved(DEGREES, 3000 * number, 0))
    rows = [
        ("100.tif", 11, "10,20,30,40"),
        ("100.tif", 73, "50,20,60,40"),
        ("102.tif", 73, "0,0,9,9"),
        ("7.tif", 11, "1,1,5,5"),
    ]
    features = [
        {
            "type": "Feature",
            "properties": {"bounds_imcoords": box, "image_id": image, "type_id": kind, "feature_id": n},
            "geometry": {"type": "Polygon", "coordinates": [[[15, 47], [15.1, 47], [15.1, 47.1], [15, 47]]]},
        }
        for n, (image, kind, box) in enumerate(rows)
    ]
    (root / "xView_train.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    if names:
        (root / "xview_class_labels.txt").write_text("11:Fixed-wing Aircraft\n73:Building\n")


def test_xview_is_read_by_its_boxes_in_pixels(tmp_path: Path) -> None:
    xview(tmp_path)
    assert detect_format(tmp_path) == "xview"
    labelled = read_labels("auto", tmp_path)
    assert labelled.object_classes == ("Building", "Fixed-wing Aircraft")
    boxes = {item.id: [label.box for label in item.objects or ()] for item in labelled.items}
    assert boxes == {
        "train_images/100": [(10, 20, 30, 40), (50, 20, 60, 40)],
        "train_images/102": [(0, 0, 9, 9)],
    }
    assert any("1 objects of 1 images that aren't there (7.tif)" in line for line in labelled.findings)


def test_xview_without_names_says_so(tmp_path: Path) -> None:
    xview(tmp_path, names=False)
    labelled = read_labels("xview", tmp_path)
    assert labelled.object_classes == ("11", "73")
    assert any("xview_class_labels.txt isn't there" in line for line in labelled.understood)


@pytest.mark.parametrize("box", ["1,2,3", "a,b,c,d", None])
def test_xview_without_a_box_in_pixels_is_refused(tmp_path: Path, box: object) -> None:
    xview(tmp_path)
    path = tmp_path / "xView_train.geojson"
    content = json.loads(path.read_text())
    content["features"][0]["properties"]["bounds_imcoords"] = box
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="no box in pixels"):
        read_labels("xview", tmp_path)


# --- xView2


def square(x: int, y: int, side: int = 10) -> str:
    return f"POLYGON (({x} {y}, {x + side} {y}, {x + side} {y + side}, {x} {y + side}, {x} {y}))"


def xbd_labels(shapes: list[tuple[str, str | None]], date: str) -> dict[str, Any]:
    features = [
        {
            "properties": {"feature_type": "building", "uid": str(n)} | ({"subtype": kind} if kind else {}),
            "wkt": wkt,
        }
        for n, (wkt, kind) in enumerate(shapes)
    ]
    metadata = {"sensor": "WORLDVIEW02", "gsd": 1.9, "capture_date": date, "disaster": "test-flood"}
    return {"features": {"lng_lat": [], "xy": features}, "metadata": metadata}


def xbd(root: Path) -> None:
    for number, folder in ((0, "tier1"), (1, "hold"), (2, "test")):
        for date in ("pre", "post"):
            name = f"test-flood_0000000{number}_{date}_disaster"
            write_picture(root / folder / "images" / f"{name}.png", 10 * number + len(date))
            kinds = [None] * 3 if date == "pre" else ["no-damage", "destroyed", "un-classified"]
            shapes = [(square(2 + 15 * k, 5), kind) for k, kind in enumerate(kinds)]
            labels = xbd_labels(shapes, f"2018-0{number + 1}-0{len(date)}T10:00:00Z")
            path = root / folder / "labels" / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(labels))


def test_xview2_is_read_as_pairs_with_their_damage(tmp_path: Path) -> None:
    xbd(tmp_path)
    assert detect_format(tmp_path) == "xbd"
    labelled = read_labels("auto", tmp_path)
    assert sorted(item.split for item in labelled.items) == ["test", "train", "val"]
    item = next(item for item in labelled.items if item.split == "train")
    assert item.second_image is not None and item.second_image.endswith("_post_disaster.png")
    assert [label.box for label in item.objects or ()] == [(2, 5, 12, 15), (17, 5, 27, 15), (32, 5, 42, 15)]
    names = ("background", "building", "no-damage", "minor-damage", "major-damage", "destroyed")
    assert labelled.change_classes == names
    expected_2HW = np.zeros((2, 48, 64), np.uint8)
    for left, level in ((2, 2), (17, 5), (32, 255)):
        expected_2HW[:, 5:15, left : left + 10] = np.array([1 if level < 255 else 255, level])[:, None, None]
    assert item.transition is not None and item.change is None  # one building isn't classified
    np.testing.assert_array_equal(item.transition(), expected_2HW)
    assert dict(item.metadata or {}) == {
        "sensor": "WORLDVIEW02",
        "date": "2018-01-03",
        "later_date": "2018-01-04",
    }


def test_xview2_that_lacks_a_date_leaves_the_place_out(tmp_path: Path) -> None:
    xbd(tmp_path)
    (tmp_path / "test" / "images" / "test-flood_00000002_post_disaster.png").unlink()
    labelled = read_labels("xbd", tmp_path)
    assert len(labelled) == 2
    assert any("one of its two images is missing" in line for line in labelled.findings)


def test_what_is_damaged_has_changed(tmp_path: Path) -> None:
    xbd(tmp_path / "set")
    for path in tmp_path.rglob("*_post_disaster.json"):
        path.write_text(path.read_text().replace("un-classified", "minor-damage"))
    labelled = read_labels("xbd", tmp_path / "set")
    expected_HW = np.zeros((48, 64), bool)
    expected_HW[5:15, 17:27] = expected_HW[5:15, 32:42] = True
    cropped = cut(labelled, 32, 0, tmp_path / "crops")
    write_compiled(cropped, Roots(tmp_path / "out", tmp_path / "crops", tmp_path / "set"))
    for item in labelled.items:
        assert item.change is not None
        np.testing.assert_array_equal(item.change(), expected_HW)
    crops = [item for item in read_compiled(tmp_path / "out").items if item.id.endswith("@0,0")]
    assert len(crops) == 3
    for crop in crops:
        assert crop.change is not None and crop.transition is not None
        np.testing.assert_array_equal(crop.change(), expected_HW[:32, :32])
        assert crop.transition()[1, 10, 20] == 5


@pytest.mark.parametrize("level", ["wet", None])
def test_unknown_damage_is_no_statement(tmp_path: Path, level: str | None) -> None:
    xbd(tmp_path)
    for path in tmp_path.rglob("*_post_disaster.json"):
        text = path.read_text().replace("un-classified", "no-damage")
        path.write_text(text.replace('"destroyed"', "null" if level is None else f'"{level}"'))
    labelled = read_labels("xbd", tmp_path)
    for item in labelled.items:
        assert item.change is None and item.transition is not None
        assert (item.transition()[:, 5:15, 17:27] == 255).all() and item.transition()[1, 10, 5] == 2
    assert any('unknown damage "wet"' in line for line in labelled.findings) == (level == "wet")


def test_a_building_without_outline_leaves_the_later_date_unknown(tmp_path: Path) -> None:
    xbd(tmp_path)
    for path in tmp_path.rglob("*_post_disaster.json"):
        path.write_text(path.read_text().replace("POLYGON ((17", "POLYGON ((x"))
    for item in read_labels("xbd", tmp_path).items:
        assert item.change is None and item.transition is None and len(item.objects or ()) == 3


@pytest.mark.parametrize("content", ["{}", '{"features": []}', '{"features": {"xy": 3}}', "[]"])
def test_xview2_labels_of_another_form_are_refused(tmp_path: Path, content: str) -> None:
    xbd(tmp_path)
    (tmp_path / "test" / "labels" / "test-flood_00000002_post_disaster.json").write_text(content)
    with pytest.raises(DataError, match=r"features\.xy"):
        read_labels("xbd", tmp_path)


# --- FAIR1M


def fair1m(
    root: Path, objects: list[tuple[list[str], list[tuple[float, float]], str]], image: str = "1.tif"
) -> None:
    rows = ""
    for names, points, coordinate in objects:
        possible = "".join(f"<possibleresult><name>{name}</name></possibleresult>" for name in names)
        corners = "".join(f"<point>{x!r},{y!r}</point>" for x, y in [*points, points[0]])
        rows += f"<object><coordinate>{coordinate}</coordinate><type>rectangle</type>{possible}<points>{corners}</points></object>"
    path = root / "labelXml" / f"{Path(image).stem}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation><source><filename>{image}</filename><origin>GF2/GF3</origin></source>"
        f"<size><width>200</width><height>160</height><depth>3</depth></size><objects>{rows}</objects></annotation>"
    )


QUAD = [(40.0, 20.0), (80.0, 40.0), (70.0, 60.0), (30.0, 40.0)]


def test_fair1m_in_pixels(tmp_path: Path) -> None:
    for number in range(3):
        part = tmp_path / "train" / f"part{1 + number % 2}"
        write_raster(part / "images" / f"{number}.tif", moved(UTM, 4000 * number, 0), seed=number)
        fair1m(
            part,
            [(["Boeing737"], QUAD, "pixel"), (["Small Car"], [(1, 1), (9, 1), (9, 5), (1, 5)], "pixel")],
            f"{number}.tif",
        )
    assert detect_format(tmp_path) == "voc"
    labelled = read_labels("auto", tmp_path)
    assert labelled.object_classes == ("Boeing737", "Small Car") and len(labelled) == 3
    assert {item.split for item in labelled.items} == {"train"}
    (plane, _) = labelled.items[0].objects or ()
    assert plane.quad == tuple(value for corner in QUAD for value in corner)


@pytest.mark.parametrize("latitude_first", [False, True])
@pytest.mark.parametrize("geometry", [UTM, DEGREES])
def test_fair1m_in_degrees(tmp_path: Path, latitude_first: bool, geometry: Any) -> None:
    write_raster(tmp_path / "images" / "1.tif", geometry)
    degrees = reproject(geometry.to_map(np.array(QUAD)), geometry.crs, "OGC:CRS84")
    points = [tuple(point[::-1] if latitude_first else point) for point in degrees.tolist()]
    fair1m(tmp_path, [(["Boeing737"], points, "geographic")])
    (item,) = read_labels("voc", tmp_path).items
    (plane,) = item.objects or ()
    assert plane.quad is not None
    np.testing.assert_allclose(np.reshape(plane.quad, (4, 2)), QUAD, atol=1e-5)


def test_fair1m_in_degrees_of_an_image_without_a_place_is_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "images" / "1.tif", None)
    fair1m(
        tmp_path, [(["Boeing737"], [(15.0, 47.0), (15.1, 47.0), (15.1, 47.1), (15.0, 47.1)], "geographic")]
    )
    with pytest.raises(DataError, match=r"is in degrees, but 1\.tif doesn't say where it lies"):
        read_labels("voc", tmp_path)


def test_fair1m_with_several_possible_classes_is_ignored_in_its_place(tmp_path: Path) -> None:
    write_raster(tmp_path / "images" / "1.tif")
    fair1m(
        tmp_path,
        [(["Boeing737", "A220"], QUAD, "pixel"), (["A220"], [(1, 1), (9, 1), (9, 5), (1, 5)], "pixel")],
    )
    (item,) = read_labels("voc", tmp_path).items
    assert len(item.objects or ()) == len(item.ignored) == 1


def test_fair1m_with_broken_points_is_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "images" / "1.tif")
    fair1m(tmp_path, [(["A220"], QUAD, "pixel")])
    path = tmp_path / "labelXml" / "1.xml"
    path.write_text(path.read_text().replace("40.0,20.0", "40.0;20.0"))
    with pytest.raises(DataError, match="points that can't be read"):
        read_labels("voc", tmp_path)
