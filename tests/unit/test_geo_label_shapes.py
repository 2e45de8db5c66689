"""Shapes of vector labels on rasters: borders, parts, points, lines, masks of outlines, and what no outline covers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio.features
import shapely
from rasterio.transform import Affine

from tests.geo_label_toys import HOLE, OUTLINE, PLACES, four, one
from tests.ground_files import (
    DEGREES,
    FEET,
    POLAR,
    UTM,
    box_on_ground,
    moved,
    on_ground,
    turned,
    write_raster,
    write_vectors,
)
from vitp.core.errors import ConfigError, DataError
from vitp.data.formats import read_labels
from vitp.data.formats.vitp_labels import Roots, read_compiled, write_compiled
from vitp.io.contract import Geometry
from vitp.records.labels import IGNORE


def test_objects_at_the_border_follow_the_rule_of_crops(tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif")  # 200 wide
    boxes = [(190, 10, 210, 20), (195, 40, 215, 50), (199.5, 60, 219.5, 70), (220, 10, 240, 20)]
    write_vectors(tmp_path / "ships.gpkg", [box_on_ground(UTM, *box) for box in boxes])
    labelled = read_labels("geo", tmp_path)
    found = sorted((label.box, label.difficult) for label in one(labelled).objects or ())
    assert [difficult for _, difficult in found] == [False, True]
    np.testing.assert_allclose([box for box, _ in found], [(190, 10, 200, 20), (195, 40, 200, 50)], atol=1e-6)
    assert "labels: 1 of 4 objects lie outside of all rasters; not used" in labelled.findings


def test_parts_of_a_feature_are_one_object_or_each_one(tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif")
    parts = shapely.MultiPolygon([box_on_ground(UTM, 10, 10, 30, 30), box_on_ground(UTM, 50, 10, 60, 30)])
    write_vectors(tmp_path / "ships.gpkg", [parts])
    labelled = read_labels("geo", tmp_path)
    (label,) = one(labelled).objects or ()
    assert len(label.polygons) == 2 and label.box[2] - label.box[0] == pytest.approx(50)
    assert any("-o parts=true" in line for line in labelled.understood)
    assert len(one(read_labels("geo", tmp_path, parts=True)).objects or ()) == 2


def test_a_crossed_outline_is_mended_and_told(tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif")
    bow = on_ground(UTM, [(10, 10), (30, 30), (30, 10), (10, 30)])
    write_vectors(tmp_path / "ships.gpkg", [bow, box_on_ground(UTM, 50, 50, 60, 60)])
    labelled = read_labels("geo", tmp_path)
    assert [line for line in labelled.findings if "mended" in line] == [
        "ships.gpkg:1: its outline was mended (self-intersection)"
    ]
    assert len(one(labelled).objects or ()) == 2


def test_a_feature_without_geometry_is_counted(tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif")
    write_vectors(tmp_path / "ships.gpkg", [None, *four()])
    labelled = read_labels("geo", tmp_path)
    assert "ships.gpkg:1: has no geometry; left out" in labelled.findings
    assert len(one(labelled).objects or ()) == 4
    write_vectors(tmp_path / "none.gpkg", [None, None])
    with pytest.raises(DataError, match="holds no feature with a place"):
        read_labels("geo", tmp_path, labels="none.gpkg")


@pytest.mark.parametrize("geometry", PLACES)
def test_points_are_given_a_size_in_metres(tmp_path: Path, geometry: Geometry) -> None:
    write_raster(tmp_path / "scene.tif", geometry)
    point = shapely.Point(*geometry.to_map(np.array([[100.0, 80.0]]))[0])
    write_vectors(tmp_path / "trees.gpkg", [point], geometry.crs)
    with pytest.raises(DataError, match="1 of its 1 features are points") as caught:
        read_labels("geo", tmp_path)
    assert "-o point_size=METRES" in str(caught.value.fix)
    (label,) = one(read_labels("geo", tmp_path, point_size=12)).objects or ()
    metres = {
        UTM.crs: (0.5002, 0.5002),
        DEGREES.crs: (0.7489, 1.1119),
        POLAR.crs: (2.0255, 2.0255),
        FEET.crs: (0.3048, 0.3048),
    }
    size = (label.box[2] - label.box[0], label.box[3] - label.box[1])
    np.testing.assert_allclose(np.multiply(size, metres[geometry.crs]), 12, rtol=2e-3)
    np.testing.assert_allclose(np.add(label.box[:2], label.box[2:]), (200, 160), atol=1e-6)


@pytest.mark.parametrize("geometry", [UTM, DEGREES, turned(UTM, 30.0)])
def test_lines_are_given_a_width_in_metres(tmp_path: Path, geometry: Geometry) -> None:
    write_raster(tmp_path / "scene.tif", geometry)
    line = shapely.LineString(geometry.to_map(np.array([[20.0, 80.0], [120.0, 80.0]])))
    write_vectors(tmp_path / "roads.gpkg", [line], geometry.crs)
    with pytest.raises(DataError, match="features are lines") as caught:
        read_labels("geo", tmp_path)
    assert "-o line_width=METRES" in str(caught.value.fix)
    item = one(read_labels("geo", tmp_path, line_width=6))
    (label,) = item.objects or ()
    assert item.ground is not None
    down = float(np.hypot(*item.ground[2:]))
    assert (label.box[3] - label.box[1]) * down == pytest.approx(6, rel=2e-3)
    assert (label.box[0], label.box[2]) == pytest.approx((20, 120), abs=0.01)


@pytest.mark.parametrize("value", [0, -3, "wide", float("nan")])
def test_a_size_that_is_no_length_is_refused(tmp_path: Path, value: object) -> None:
    write_raster(tmp_path / "scene.tif")
    write_vectors(tmp_path / "x.gpkg", four())
    with pytest.raises(ConfigError, match="point_size"):
        read_labels("geo", tmp_path, point_size=value)


def test_masks_hold_the_pixels_whose_centres_lie_in_outlines(tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif")
    shapes = [
        on_ground(UTM, OUTLINE, HOLE),
        box_on_ground(UTM, 0, 0, 150, 120),
        box_on_ground(UTM, 180, 140, 260, 300),
    ]
    write_vectors(tmp_path / "x.gpkg", shapes, label=["lake", "park", "lake"])
    labelled = read_labels("geo", tmp_path, semantic=True)
    assert labelled.semantic_classes == ("background", "lake", "park") and labelled.object_classes == ()
    item = one(labelled)
    assert item.objects is None and item.semantic is not None
    expected_HW = rasterio.features.rasterize(
        [(shapes[1], 2), (shapes[0], 1), (shapes[2], 1)],
        out_shape=(160, 200),
        transform=Affine(*UTM.transform),
    )
    np.testing.assert_array_equal(item.semantic(), expected_HW)  # the smaller of two that overlap lies on top


@pytest.mark.filterwarnings("error")
def test_triangles_with_triangular_holes_are_drawn(tmp_path: Path) -> None:
    """Windows cut many outlines to triangles."""
    write_raster(tmp_path / "scene.tif")
    shape = on_ground(UTM, [(10, 10), (110, 10), (10, 110)], [(30, 30), (50, 30), (30, 50)])
    write_vectors(tmp_path / "x.gpkg", [shape])
    mask = one(read_labels("geo", tmp_path, semantic=True)).semantic
    assert mask is not None
    expected_HW = rasterio.features.rasterize([shape], out_shape=(160, 200), transform=Affine(*UTM.transform))
    np.testing.assert_array_equal(mask(), expected_HW)
    assert 4500 < int(mask().sum()) < 5000
    part = mask.windowed((60, 30, 120, 90))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(part(), expected_HW[30:90, 60:120])


def test_masks_and_objects_survive_being_written_down(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_raster(root / "scene.tif", turned(UTM, 20.0))
    place = turned(UTM, 20.0)
    write_vectors(
        root / "x.gpkg",
        [on_ground(place, OUTLINE, HOLE), box_on_ground(place, 80, 10, 90, 30)],
        label=["a", "b"],
    )
    labelled = read_labels("geo", root, semantic="both")
    roots = Roots(tmp_path / "out", root, root)
    write_compiled(labelled, roots)
    again = one(read_compiled(tmp_path / "out"))
    before = one(labelled)
    assert again.objects == before.objects and again.ground == before.ground
    assert again.semantic is not None and before.semantic is not None
    np.testing.assert_array_equal(again.semantic(), before.semantic())


def test_outside_of_the_labelled_area_nothing_is_known(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif")
    write_raster(tmp_path / "b.tif", moved(UTM, 3000, 0))
    area = on_ground(UTM, [(0, 0), (100, 0), (100, 160), (0, 160)], [(40, 60), (60, 60), (60, 80), (40, 80)])
    write_vectors(tmp_path / "area.gpkg", [area])
    shapes = [box_on_ground(UTM, 10, 10, 30, 20), box_on_ground(UTM, 150, 10, 170, 20)]
    write_vectors(tmp_path / "ships.gpkg", shapes)
    labelled = read_labels("geo", tmp_path, area="area.gpkg", semantic="both")
    item = one(labelled)
    assert len(item.objects or ()) == 1
    assert "b.tif: lies outside of the labelled area; left out" in labelled.findings
    assert any("1 objects lie outside of the labelled area" in line for line in labelled.findings)
    from vitp.data.ignored import known_semantic

    known_HW = known_semantic(item)
    assert (known_HW[10:20, 10:30] == 1).all() and (known_HW[:, 102:] == IGNORE).all()
    assert (known_HW[62:78, 42:58] == IGNORE).all() and (known_HW[100:158, 2:98] == 0).all()
    whole = read_labels("geo", tmp_path, labels="ships.gpkg")
    assert any("the whole of each raster counts as labelled" in line for line in whole.understood)


@pytest.mark.parametrize("value", ["masks", 3])
def test_semantic_is_true_false_or_both(tmp_path: Path, value: object) -> None:
    with pytest.raises(ConfigError, match="semantic"):
        read_labels("geo", tmp_path, semantic=value)
