"""Vector labels over rasters: places, classes, areas, widths, masks, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyproj
import pytest
import shapely
from pyarrow import parquet

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
from vitp.data.formats import detect_format, option_names, read_labels
from vitp.io.contract import Geometry
from vitp.io.ground import reproject
from vitp.io.vectors import read_features
from vitp.records.geometry import as_points
from vitp.records.labels import IGNORE


def corners_in(ring: tuple[float, ...], expected: list[tuple[float, float]], tolerance: float) -> bool:
    points = as_points(ring)
    return len(points) == len(expected) and all(
        np.abs(points - corner).max(1).min() <= tolerance for corner in expected
    )


@pytest.mark.parametrize("name", ["ships;2.gpkg", "ships!.geojson"])
def test_paths_that_the_reading_library_would_cut_are_refused(tmp_path: Path, name: str) -> None:
    write_raster(tmp_path / "scene.tif", UTM)
    kept = write_vectors(tmp_path / f"plain{Path(name).suffix}", [on_ground(UTM, OUTLINE)], UTM.crs)
    kept.rename(tmp_path / name)
    with pytest.raises(DataError, match=r"has a ; or ! or a tab in its path.*rename the file or folder"):
        read_labels("geo", tmp_path)


@pytest.mark.parametrize("geometry", [*PLACES, *(turned(place, 33.0) for place in PLACES)])
def test_outlines_come_back_to_the_pixels_they_were_drawn_on(tmp_path: Path, geometry: Geometry) -> None:
    write_raster(tmp_path / "scene.tif", geometry)
    shape = on_ground(geometry, OUTLINE, HOLE)
    write_vectors(tmp_path / "ships.gpkg", [shape], geometry.crs)
    (label,) = one(read_labels("geo", tmp_path)).objects or ()
    assert label.category == "ships"
    assert corners_in(label.polygons[0], OUTLINE, 1e-6)
    assert corners_in(label.holes[0], HOLE, 1e-6)
    np.testing.assert_allclose(label.box, (20.25, 24.0, 66.5, 90.0), atol=1e-6)


@pytest.mark.parametrize("geometry", [UTM, POLAR, FEET, turned(UTM, 120.0), turned(POLAR, -20.0)])
def test_longitude_and_latitude_are_brought_into_the_rasters_system(
    tmp_path: Path, geometry: Geometry
) -> None:
    """GeoJSON holds seven digits behind the point (a centimetre), which is what the tolerance is for."""
    write_raster(tmp_path / "scene.tif", geometry)
    shape = shapely.transform(
        on_ground(geometry, OUTLINE), lambda points: reproject(points, geometry.crs, "OGC:CRS84")
    )
    write_vectors(tmp_path / "ships.geojson", [shape], "EPSG:4326")
    (label,) = one(read_labels("geo", tmp_path)).objects or ()
    assert corners_in(label.polygons[0], OUTLINE, 0.05)


@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".geojson", ".json", ".fgb"])
def test_each_kind_of_file_is_found(tmp_path: Path, suffix: str) -> None:
    write_raster(tmp_path / "images" / "scene.tif", DEGREES)
    shapes = [box_on_ground(DEGREES, 10, 10, 30, 20), box_on_ground(DEGREES, 50, 50, 60, 70)]
    write_vectors(
        tmp_path / f"things{suffix}", shapes, "EPSG:4326", geometry_type="Polygon", label=["ship", "car"]
    )
    assert detect_format(tmp_path) == "geo"
    labelled = read_labels("auto", tmp_path)
    assert labelled.object_classes == ("car", "ship")
    boxes = {label.category: label.box for label in one(labelled).objects or ()}
    np.testing.assert_allclose(boxes["ship"], (10, 10, 30, 20), atol=0.02)
    assert any('class: column "label"' in line for line in labelled.understood)


def write_geoparquet(path: Path, shapes: Sequence[Any], about: dict[str, Any], **columns: Any) -> None:
    about = {"encoding": "WKB", "geometry_types": [], **about}
    geo = {"version": "1.1.0", "primary_column": "shape", "columns": {"shape": about}}
    table = pyarrow.table({"shape": list(shapely.to_wkb(np.array(shapes, object))), **columns})
    parquet.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), path)


@pytest.mark.parametrize("crs", ["EPSG:3857", "no id", "left out"])
def test_geoparquet_is_read_in_the_system_that_it_names(tmp_path: Path, crs: str) -> None:
    write_raster(tmp_path / "images" / "scene.tif", DEGREES)
    system = pyproj.CRS.from_user_input(
        "EPSG:3857" if crs == "EPSG:3857" else "+proj=laea +lat_0=50 +lon_0=10"
    )
    about = {"crs": system.to_json_dict()} if crs != "left out" else {}
    target = system.to_wkt() if about else "OGC:CRS84"
    shapes = [box_on_ground(DEGREES, 10, 10, 30, 20), box_on_ground(DEGREES, 50, 50, 60, 70)]
    shapes = [shapely.transform(each, lambda p: reproject(p, DEGREES.crs, target)) for each in shapes]
    if crs == "no id":
        shapes = list(shapely.force_3d(shapes, 7.0))
    path = tmp_path / "things.parquet"
    write_geoparquet(
        path, [*shapes, None], about, label=["ship", "car", "car"], bbox=[{"x": 1.0}] * 3, size=[1, None, 2]
    )
    labelled = read_labels("auto", tmp_path)
    boxes = {label.category: label.box for label in one(labelled).objects or ()}
    np.testing.assert_allclose(boxes["ship"], (10, 10, 30, 20), atol=0.02)
    np.testing.assert_allclose(boxes["car"], (50, 50, 60, 70), atol=0.02)
    found = read_features(path, "things")
    assert found.columns.keys() == {"label", "size"} and np.isnan(found.columns["size"][1])
    assert found.crs == {"EPSG:3857": "EPSG:3857", "left out": "OGC:CRS84"}.get(crs, found.crs)
    assert read_features(path, "things", "EPSG:32633").crs == "EPSG:32633"


def test_parquet_without_a_place_is_refused_with_the_reason(tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif")
    path = tmp_path / "things.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"things\.parquet.*can't be read as a vector file"):
        read_labels("auto", tmp_path)
    parquet.write_table(pyarrow.table({"label": ["ship"]}), path)
    with pytest.raises(DataError, match=r"things\.parquet.*doesn't say where its geometries are"):
        read_labels("auto", tmp_path)
    write_geoparquet(path, [shapely.Point(0, 0)], {"encoding": "point"}, label=["ship"])
    with pytest.raises(DataError, match=r'geometries as "point", and only WKB is read'):
        read_labels("auto", tmp_path)
    write_geoparquet(path, [shapely.box(0, 0, 1, 1)], {"crs": {"type": "nothing"}}, label=["ship"])
    with pytest.raises(DataError, match=r"things\.parquet.*can't be read"):
        read_labels("auto", tmp_path)


def test_one_file_labels_many_rasters_of_several_systems(tmp_path: Path) -> None:
    zone = Geometry("EPSG:32632", (0.5, 0.0, 948_000.0, 0.0, -0.5, 5_312_000.0))
    write_raster(tmp_path / "a.tif", UTM)
    write_raster(tmp_path / "b.tif", moved(UTM, 400, 0))
    write_raster(tmp_path / "c.tif", zone)
    ground = [box_on_ground(UTM, 10, 10, 30, 20), box_on_ground(UTM, 450, 40, 470, 60)]
    ground.append(
        shapely.transform(
            box_on_ground(zone, 5, 5, 25, 25), lambda p: reproject(p, "EPSG:32632", "EPSG:32633")
        )
    )
    ground.append(box_on_ground(UTM, 5000, 40, 5020, 60))
    write_vectors(tmp_path / "all.gpkg", ground, geometry_type="Polygon", type=["ship", "ship", "car", "car"])
    labelled = read_labels("geo", tmp_path)
    found = {
        item.id: [(label.category, label.box) for label in item.objects or ()] for item in labelled.items
    }
    assert [name for name, _ in found["a"]] == ["ship"] and [name for name, _ in found["c"]] == ["car"]
    np.testing.assert_allclose(found["b"][0][1], (50, 40, 70, 60), atol=1e-6)
    np.testing.assert_allclose(found["c"][0][1], (5, 5, 25, 25), atol=1e-4)
    assert "labels: 1 of 4 objects lie outside of all rasters; not used" in labelled.findings


def test_one_file_each_by_spacenets_chip_ids(tmp_path: Path) -> None:
    for number in (1, 2):
        place = moved(DEGREES, 4000 * number, 0)
        write_raster(tmp_path / "RGB-PanSharpen" / f"RGB-PanSharpen_AOI_2_Vegas_img{number}.tif", place)
        shapes = [box_on_ground(place, 10, 10, 10 + 10 * number, 20)]
        write_vectors(
            tmp_path / "geojson_buildings" / f"buildings_AOI_2_Vegas_img{number}.geojson",
            shapes,
            "EPSG:4326",
            OBJECTID=[number],
        )
    labelled = read_labels("auto", tmp_path)
    assert labelled.object_classes == ("buildings",)
    widths = [round(label.box[2] - label.box[0]) for item in labelled.items for label in item.objects or ()]
    assert widths == [10, 20]


def test_an_empty_file_of_a_raster_says_that_there_is_nothing(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif")
    write_raster(tmp_path / "b.tif", moved(UTM, 5000, 0))
    write_raster(tmp_path / "c.tif", moved(UTM, 9000, 0))
    write_vectors(tmp_path / "a.gpkg", [box_on_ground(UTM, 10, 10, 30, 20)], label=["ship"])
    write_vectors(tmp_path / "b.gpkg", [], label=np.array([], object))
    labelled = read_labels("geo", tmp_path)
    assert {item.id: item.objects and len(item.objects) for item in labelled.items} == {"a": 1, "b": ()}
    assert any(line.startswith("c.tif: no vector file belongs to it") for line in labelled.findings)


def test_files_of_two_folders_of_one_chip_are_refused(tmp_path: Path) -> None:
    for folder in ("RGB", "MUL"):
        for number in (1, 2):
            write_raster(
                tmp_path / folder / f"{folder}_AOI_2_Vegas_img{number}.tif", moved(UTM, 4000 * number, 0)
            )
    for number in (1, 2):
        shape = box_on_ground(moved(UTM, 4000 * number, 0), 10, 10, 30, 20)
        write_vectors(tmp_path / "geojson" / f"buildings_AOI_2_Vegas_img{number}.gpkg", [shape])
    with pytest.raises(DataError, match="may belong to") as caught:
        read_labels("geo", tmp_path)
    assert "-o images=" in str(caught.value.fix)
    assert len(read_labels("geo", tmp_path, images="RGB")) == 2


def test_files_that_belong_to_no_raster_are_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif")
    for name in ("houses", "roads"):
        write_vectors(tmp_path / f"{name}.gpkg", [box_on_ground(UTM, 10, 10, 30, 20)])
    with pytest.raises(DataError, match="2 vector files whose names") as caught:
        read_labels("geo", tmp_path)
    assert "-o labels=" in str(caught.value.fix)
    assert read_labels("geo", tmp_path, labels="houses.gpkg").object_classes == ("houses",)
    both = read_labels("geo", tmp_path, labels="houses.gpkg,roads.gpkg")
    assert both.object_classes == ("houses", "roads")


def test_layers_are_named_or_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif")
    for name, left in (("houses", 10), ("roads", 50)):
        shape = box_on_ground(UTM, left, 10, left + 20, 20)
        write_vectors(tmp_path / "map.gpkg", [shape], layer=name, append=name == "roads")
    with pytest.raises(DataError, match="has the layers houses, roads") as caught:
        read_labels("geo", tmp_path)
    assert "-o layer=houses" in str(caught.value.fix)
    (label,) = one(read_labels("geo", tmp_path, layer="roads")).objects or ()
    assert label.category == "roads" and round(label.box[0]) == 50
    assert read_labels("geo", tmp_path, layer="houses,roads").object_classes == ("houses", "roads")
    with pytest.raises(ConfigError, match='no layer "house"'):
        read_labels("geo", tmp_path, layer="house")


def test_the_class_column_is_named_when_two_may_be_it(tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif")
    columns = {"class": ["a", "a", "b", "b"], "type": ["x", "y", "x", "y"], "name": ["1", "2", "3", "4"]}
    write_vectors(tmp_path / "things.gpkg", four(), **columns)
    with pytest.raises(DataError, match=r'"class" .a, b. and "type" .x, y.') as caught:
        read_labels("geo", tmp_path)
    assert caught.value.fix is not None and "-o class=class" in caught.value.fix
    assert read_labels("geo", tmp_path, **{"class": "type"}).object_classes == ("x", "y")
    assert "class" in option_names("geo")
    with pytest.raises(ConfigError, match='no column "kinds"'):
        read_labels("geo", tmp_path, **{"class": "kinds"})


def test_a_column_whose_texts_repeat_is_the_class(tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif")
    write_vectors(
        tmp_path / "x.gpkg", four(), roof=["flat", "flat", "steep", "steep"], owner=["a", "b", "c", "d"]
    )
    assert read_labels("geo", tmp_path).object_classes == ("flat", "steep")


def test_two_columns_whose_texts_repeat_are_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif")
    write_vectors(
        tmp_path / "x.gpkg", four(), roof=["flat", "flat", "steep", "steep"], wall=["a", "b", "a", "b"]
    )
    with pytest.raises(DataError, match="may stand in the columns"):
        read_labels("geo", tmp_path)


@pytest.mark.parametrize(
    ("values", "classes"), [([1, 2, 2, 1], ("1", "2")), ([1.0, 2.0, None, 2.0], ("1", "2"))]
)
def test_numbers_are_classes_by_their_digits(
    tmp_path: Path, values: list[float], classes: tuple[str, ...]
) -> None:
    write_raster(tmp_path / "scene.tif")
    write_vectors(tmp_path / "x.gpkg", four(), class_id=[np.nan if v is None else v for v in values])
    labelled = read_labels("geo", tmp_path)
    assert labelled.object_classes == classes
    assert len(one(labelled).ignored) == values.count(None)


def test_without_a_column_the_name_is_told_and_said(tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif")
    write_vectors(tmp_path / "labels.gpkg", four(), id=[1, 2, 3, 4])
    labelled = read_labels("geo", tmp_path, classes="tree")
    assert labelled.object_classes == ("tree",) and len(one(labelled).objects or ()) == 4
    assert read_labels("geo", tmp_path).object_classes == ("object",)


def test_classes_that_are_not_asked_for_are_ignored_in_their_places(tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif")
    write_vectors(tmp_path / "x.gpkg", four(), kind=["a", "b", "b", "c"])
    item = one(read_labels("geo", tmp_path, classes="b", semantic="both"))
    assert len(item.objects or ()) == 2 and len(item.ignored) == 2
    assert item.semantic is not None
    counts = np.bincount(item.semantic().ravel(), minlength=256)
    assert (counts[1], counts[IGNORE]) == (800, 800)


def test_labels_without_a_reference_system_are_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif")
    write_vectors(tmp_path / "x.shp", four(), None, geometry_type="Polygon")
    with pytest.raises(DataError, match="coordinate reference system") as caught:
        read_labels("geo", tmp_path)
    assert "-o labels_crs=EPSG" in str(caught.value.fix)
    for crs in ("EPSG:32633", 32633):
        assert len(one(read_labels("geo", tmp_path, labels_crs=crs)).objects or ()) == 4
    with pytest.raises(DataError, match="is no coordinate reference system"):
        read_labels("geo", tmp_path, labels_crs="EPSG:1")


def test_geojson_in_metres_that_does_not_say_so_is_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif")
    write_vectors(tmp_path / "x.geojson", four(), None)
    with pytest.raises(DataError, match="no longitudes and latitudes") as caught:
        read_labels("geo", tmp_path)
    assert "-o labels_crs=" in str(caught.value.fix)
    assert len(one(read_labels("geo", tmp_path, labels_crs="EPSG:32633")).objects or ()) == 4


def test_labels_of_another_place_are_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif")
    write_vectors(tmp_path / "x.gpkg", four(), "EPSG:32632")
    with pytest.raises(
        DataError, match="none of the 4 objects lies in a raster: the labels are in EPSG:32632"
    ):
        read_labels("geo", tmp_path)


def test_images_without_a_place_are_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif", None)
    write_vectors(tmp_path / "x.gpkg", four())
    with pytest.raises(DataError, match="none of 1 images says where it lies"):
        read_labels("auto", tmp_path)
    write_raster(tmp_path / "other.tif")
    labelled = read_labels("geo", tmp_path)
    assert [item.id for item in labelled.items] == ["other"]
    assert "scene.tif: doesn't say where it lies on the ground; left out" in labelled.findings


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "x.gpkg",
            b"<OGRVRTDataSource><OGRVRTLayer name='a'><SrcDataSource>http://x</SrcDataSource></OGRVRTLayer>",
        ),
        ("x.shp", b"not a shapefile"),
        ("x.geojson", b"[1, 2]"),
        ("x.geojson", b'{"type": "FeatureCollection", "features": [{"type": '),
        ("x.gpkg", b"SQLite format 3\0 and nothing else"),
        ("x.gpkg", b""),
    ],
)
def test_files_that_are_no_vectors_are_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    write_raster(tmp_path / "scene.tif")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_labels("geo", tmp_path)
    assert caught.value.where is not None and caught.value.where.endswith(name)


@pytest.mark.parametrize("shapes", [[], [None]])
def test_a_file_without_any_feature_is_no_set_without_objects(tmp_path: Path, shapes: list[None]) -> None:
    write_raster(tmp_path / "a.tif")
    write_vectors(
        tmp_path / "labels.gpkg", shapes, label=np.array(["lake"] * len(shapes), object), layer="lakes"
    )
    for options in ({}, {"semantic": True}, {"classes": "lake"}):
        with pytest.raises(
            DataError, match=r"labels\.gpkg: layer lakes holds no feature with a place: that would"
        ):
            read_labels("geo", tmp_path, **options)


def test_empty_files_of_all_rasters_are_no_set_without_objects(tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        write_raster(tmp_path / f"{name}.tif", moved(UTM, 500 * number, 0))
        write_vectors(tmp_path / f"{name}.gpkg", [], label=np.array([], object))
    with pytest.raises(DataError, match=r"a\.gpkg: layer a holds no feature .*nor do 1 more files or layers"):
        read_labels("geo", tmp_path)


@pytest.mark.parametrize("west", [179.9995, 200.0])
def test_outlines_beyond_the_180th_meridian_are_found(tmp_path: Path, west: float) -> None:
    place = Geometry("EPSG:4326", (1e-5, 0.0, west, 0.0, -1e-5, 10.0))
    write_raster(tmp_path / "scene.tif", place, (100, 80))

    def usual(x1: float, y1: float, x2: float, y2: float) -> shapely.Polygon:
        shape = box_on_ground(place, x1, y1, x2, y2)
        turn = [360 if shape.centroid.x > 180 else 0, 0]
        return shapely.transform(shape, lambda points: points - turn)

    beyond = usual(60, 20, 80, 40)
    split = shapely.MultiPolygon([usual(40, 50, 50, 60), usual(50, 50, 60, 60)])
    write_vectors(tmp_path / "objects.geojson", [beyond, split], "EPSG:4326", kind=["ship", "car"])
    found = {label.category: label for label in one(read_labels("geo", tmp_path)).objects}
    assert found["ship"].box == pytest.approx((60, 20, 80, 40), abs=1e-4)
    assert found["car"].box == pytest.approx((40, 50, 60, 60), abs=1e-4) and not found["car"].difficult
    assert len(found["car"].polygons) == 1


@pytest.mark.parametrize(
    ("column", "values"),
    [("Kultur", ["Weizen", "Mais", "Weizen", None]), ("crop_code", [115, 171, 115, 311])],
)
def test_columns_that_may_be_the_class_are_not_passed_over(
    tmp_path: Path, column: str, values: list[Any]
) -> None:
    write_raster(tmp_path / "scene.tif", UTM)
    write_vectors(tmp_path / "fields.gpkg", four(), UTM.crs, **{column: values, "nr": [1, 2, 3, 4]})
    with pytest.raises(DataError, match=f'but "{column}" .* may hold it.*-o class={column}'):
        read_labels("geo", tmp_path)
    objects = one(read_labels("geo", tmp_path, **{"class": column})).objects or ()
    assert [label.category for label in objects] == [str(value) for value in values if value is not None]
    assert {label.category for label in one(read_labels("geo", tmp_path, classes="field")).objects or ()} == {
        "field"
    }


def test_outlines_beside_two_dates_are_refused(tmp_path: Path) -> None:
    for folder in ("before", "after"):
        (tmp_path / folder).mkdir()
        write_raster(tmp_path / folder / "scene.tif", UTM)
    write_vectors(tmp_path / "felled.gpkg", four(), UTM.crs)
    with pytest.raises(DataError, match=r"before and after are two dates.*-o images=after"):
        read_labels("auto", tmp_path)
    assert len(one(read_labels("geo", tmp_path, images="after")).objects or ()) == 4
