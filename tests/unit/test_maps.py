"""Maps of rasters: every pixel and polygon where it belongs, whatever the windows and strips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from pyproj import Geod, Transformer
from rasterio import Affine
from rio_cogeo.cogeo import cog_validate

from tests.map_models import PLACES, BrightestBand, BrightObjects, channels_of, write_raster
from tests.map_toys import BANDS, WINDOWS, Context, blocks, expected_classes, read, scene
from vitp.inference.polygons import class_polygons
from vitp.inference.prediction_files import predict_files
from vitp.inference.raster_files import MapOptions
from vitp.io.open_pixels import Geometry
from vitp.records.labels import LabelledImage, LabelledSet
from vitp.tasks import windows
from vitp.tasks.base import InputSize, LabelKind, TestSettings
from vitp.tasks.data import label_reader
from vitp.tasks.predict import predict_images, predictions_of


@pytest.mark.parametrize("place", list(PLACES))
def test_pixels_and_polygons_lie_where_the_rasters_do(tmp_path: Path, place: str) -> None:
    values = blocks(143, 118, empty=40)
    raster = write_raster(tmp_path / "a.tif", values, place, nodata=0, names=BANDS)
    predict_files(BrightestBand(channels=channels_of(*BANDS)), [raster], tmp_path / "out", WINDOWS)
    crs, transform = PLACES[place]
    with rasterio.open(tmp_path / "out" / "masks" / "a.tif") as file:
        assert file.crs == rasterio.crs.CRS.from_string(crs) and file.nodata == 255
        # Pixel (r, c) lies where the input's does, to a millionth of a pixel.
        rows, columns = np.meshgrid([0, 71, 143], [0, 59, 118])
        corners = [file.transform @ (c, r) for r, c in zip(rows.ravel(), columns.ravel(), strict=True)]
        back = [~transform @ point for point in corners]
        assert np.abs(np.array(back) - np.stack([columns.ravel(), rows.ravel()], 1)).max() < 1e-6
        classes = file.read(1)
    assert np.array_equal(classes, expected_classes(values))
    meta, _, shapes, fields = pyogrio.raw.read(tmp_path / "out" / "vectors" / "a.gpkg")
    assert rasterio.crs.CRS.from_user_input(meta["crs"]) == rasterio.crs.CRS.from_string(crs)
    found = dict(zip(meta["fields"], fields, strict=True))
    drawn = np.full(classes.shape, 255, np.uint8)
    geometry = Geometry(crs, tuple(transform)[:6])  # type: ignore[arg-type]
    for polygon, name in zip(shapely.from_wkb(shapes), found["class"], strict=True):
        pixels = shapely.transform(polygon, geometry.to_pixels)
        points = shapely.get_coordinates(pixels)
        assert np.abs(points - points.round()).max() < 1e-6
        pixels = shapely.transform(pixels, np.round)
        inside = rasterio.features.rasterize([pixels], classes.shape).astype(bool)
        drawn[inside] = ("background", "water", "wood").index(name)
    wanted = np.where(np.isin(classes, (1, 2)), classes, 255)
    # Only regions of fewer than four pixels have no polygon.
    assert (drawn != wanted).mean() < 0.01 and np.isin(drawn[drawn != wanted], 255).all()
    if place != "degrees":
        area = abs(transform.determinant)
        assert found["area_m2"].sum() == pytest.approx((drawn != 255).sum() * area, rel=1e-9)
    else:
        ring = [transform @ point for point in ((0, 0), (118, 0), (118, 143), (0, 143))]
        whole, _ = Geod(ellps="WGS84").polygon_area_perimeter(*zip(*ring, strict=True))
        share = (drawn != 255).mean()
        assert found["area_m2"].sum() == pytest.approx(abs(whole) * share, rel=1e-3)


def test_a_class_map_is_a_valid_cog_with_names_colours_and_the_models_facts(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "a.tif", blocks(1100, 700), nodata=0, names=BANDS, tile=256)
    model = BrightestBand(channels=channels_of(*BANDS))
    model.description = {"card": {"data": "ponds", "seed": 3}}
    options = MapOptions(probabilities=True, vector="none")
    predict_files(model, [raster], tmp_path / "out", TestSettings(window=256), options=options)
    for name, bands in (("masks", 1), ("probabilities", 3)):
        path = tmp_path / "out" / name / "a.tif"
        assert cog_validate(str(path), strict=True, quiet=True) == (True, [], [])
        with rasterio.open(path) as file:
            tags = file.tags()
            assert file.count == bands and file.overviews(1) and file.block_shapes[0] == (512, 512)
        assert tags["vitp_task"] == "segmentation" and json.loads(tags["vitp_classes"])[1] == "water"
        assert tags["vitp_trained_data"] == "ponds" and tags["vitp_trained_seed"] == "3"
        assert len(tags["vitp_model_sha256"]) == 64
    with rasterio.open(tmp_path / "out" / "masks" / "a.tif") as file:
        assert file.tags()["class_2"] == "wood" and file.colormap(1)[1] == (238, 102, 119, 255)
        assert file.colormap(1)[255][3] == 0
        classes = file.read(1)
    with rasterio.open(tmp_path / "out" / "probabilities" / "a.tif") as file:
        shares = file.read() * np.array(file.scales)[:, None, None]
        assert file.descriptions == ("background", "water", "wood")
    assert np.abs(shares.sum(0) - 1).max() < 0.007
    sure = np.sort(shares, 0)[-1] - np.sort(shares, 0)[-2] > 0.01
    assert np.array_equal(shares.argmax(0)[sure], classes[sure])
    assert not (tmp_path / "out" / "vectors").exists()


def test_where_nothing_is_nothing_is_computed(tmp_path: Path) -> None:
    values = np.zeros((3, 320, 320), np.uint16)
    values[:, 100:130, 200:230] = blocks(30, 30)
    raster = write_raster(tmp_path / "a.tif", values, nodata=0, names=BANDS)
    model = BrightestBand(channels=channels_of(*BANDS))
    predict_files(model, [raster], tmp_path / "out", WINDOWS)
    assert sum(model.seen) <= 9, "windows that hold nothing were computed"
    assert np.array_equal(read(tmp_path / "out" / "masks" / "a.tif"), expected_classes(values))


def test_wide_rasters_are_decided_in_lanes_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raster = write_raster(tmp_path / "a.tif", blocks(70, 500, empty=20), nodata=0, names=BANDS)
    model = BrightestBand(channels=channels_of(*BANDS))
    options = MapOptions(probabilities=True)
    predict_files(model, [raster], tmp_path / "whole", WINDOWS, options=options)
    monkeypatch.setattr(windows, "SUMS_BYTES", 1)
    predict_files(model, [raster], tmp_path / "lanes", WINDOWS, options=options)
    for name in ("masks/a.tif", "probabilities/a.tif", "vectors/a.gpkg"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "lanes" / name).read_bytes()


def test_the_same_place_gets_the_same_class_wherever_the_raster_was_cut(tmp_path: Path) -> None:
    values, (_, transform) = blocks(200, 200), PLACES["utm"]
    whole = write_raster(tmp_path / "whole.tif", values, names=BANDS)
    cut = write_raster(
        tmp_path / "cut.tif",
        values[:, 37:, 51:],
        names=BANDS,
        transform=transform @ Affine.translation(51, 37),
    )
    predict_files(Context(channels=channels_of(*BANDS)), [whole, cut], tmp_path / "out", WINDOWS)
    one, other = (read(tmp_path / "out" / "masks" / f"{name}.tif") for name in ("whole", "cut"))
    inside = (slice(32, -32), slice(32, -32))
    assert np.array_equal(one[37:, 51:][inside], other[inside])


def test_rasters_and_images_in_memory_are_seen_by_one_predictor(tmp_path: Path) -> None:
    values = blocks(100, 90).astype(np.uint8)
    raster = write_raster(tmp_path / "a.tif", values, "utm", transform=Affine.scale(1, -1))
    model = Context()
    for wanted in (
        WINDOWS,
        TestSettings(),
        TestSettings(window=32, tta="d4", overlap=0.5),
        TestSettings(window=16, scales=(0.5, 1.0)),
        TestSettings(resize=InputSize(mode="fixed", size=48), flip=True),
    ):
        predict_files(model, [raster], tmp_path / "out", wanted, overwrite=True)
        (found,) = predict_images(model, [torch.from_numpy(values)], wanted)
        assert found.semantic_HW is not None
        assert np.array_equal(read(tmp_path / "out" / "masks" / "a.tif"), found.semantic_HW.numpy())


@pytest.mark.parametrize("task", ["detection", "oriented", "instance"])
@pytest.mark.parametrize("place", ["rotated", "degrees"])
def test_objects_are_merged_across_windows(tmp_path: Path, task: str, place: str) -> None:
    values = scene(210, 180, 60)
    raster = write_raster(tmp_path / "a.tif", values, place)
    settings_ = TestSettings(window=48, overlap=0.5, batch_size=3, score_threshold=0.5)
    predict_files(BrightObjects(task), [raster], tmp_path / "out", settings_)
    meta, _, shapes, fields = pyogrio.raw.read(tmp_path / "out" / "vectors" / "a.gpkg")
    found = dict(zip(meta["fields"], fields, strict=True))
    crs, transform = PLACES[place]
    geometry = Geometry(crs, tuple(transform)[:6])  # type: ignore[arg-type]
    boxes = {
        tuple(round(value) for value in shapely.transform(polygon, geometry.to_pixels).bounds): (name, score)
        for polygon, name, score in zip(shapely.from_wkb(shapes), found["class"], found["score"], strict=True)
    }
    (whole,) = BrightObjects("detection").predict([torch.from_numpy(values)])
    assert whole.boxes_N4 is not None and whole.labels_N is not None and whole.scores_N is not None
    wanted = {
        tuple(round(value) for value in box): (("ship", "car")[label], pytest.approx(score, abs=1e-5))
        for box, label, score in zip(
            whole.boxes_N4.tolist(), whole.labels_N.tolist(), whole.scores_N.tolist(), strict=True
        )
        if score >= 0.5
    }
    assert boxes == wanted and len(boxes) > 20
    if place == "rotated":
        assert found["area_m2"].min() > 800 and meta["geometry_type"] in ("Polygon", "MultiPolygon")


@given(seed=st.integers(0, 10_000), step=st.sampled_from([(48, 0.5), (40, 0.25), (64, 0.6)]))
@settings(max_examples=6, deadline=None)
def test_objects_merged_as_windows_come_are_those_of_all_at_once(
    seed: int, step: tuple[int, float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("m")
    image = torch.from_numpy(scene(150, 130, 50, seed))
    wanted = TestSettings(window=step[0], overlap=step[1], scales=(1.0, 1.5), flip=True, batch_size=2)
    model = BrightObjects("oriented")
    raster = write_raster(folder / "a.tif", image.numpy(), transform=Affine.scale(1, -1))
    predict_files(model, [raster], folder / "out", wanted)
    _, _, _, fields = pyogrio.raw.read(folder / "out" / "vectors" / "a.gpkg")
    (whole,) = predict_images(model, [image], wanted)
    assert whole.scores_N is not None
    sure = whole.scores_N[whole.scores_N >= wanted.score_threshold]
    assert sorted(fields[1]) == pytest.approx(sorted(sure.tolist()), abs=1e-5)


@pytest.mark.parametrize("task", ["detection", "oriented", "instance"])
@pytest.mark.parametrize("window", [None, 24])
def test_objects_centred_where_the_raster_holds_nothing_are_dropped(
    tmp_path: Path, task: str, window: int | None
) -> None:
    """Of three objects of 16 px one lies on the raster, one with its centre alone, and one beyond it."""
    values = np.zeros((3, 60, 64), np.uint8)
    values[:, :, :36] = 5
    for x, y in ((4, 6), (22, 22), (34, 40)):  # centres 12, 30 and 42; the raster holds something left of 36
        values[:, y : y + 8, x : x + 16] = 200
    mask = np.zeros((60, 64), bool)
    mask[:, :36] = True

    raster = write_raster(tmp_path / "a.tif", values, "utm")
    with rasterio.open(raster, "r+") as file:
        file.write_mask(mask)

    def unmasked(self: Any, place: Any, size: Any) -> Any:
        """What a model believes to see on nodata."""
        x1, y1, x2, y2 = place
        return torch.from_numpy(values[:, y1:y2, x1:x2])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitp.tasks.ground.RasterGround.planes", unmasked)
        wanted = TestSettings(window=window, overlap=0.5, batch_size=3, score_threshold=0.5)
        predict_files(BrightObjects(task), [raster], tmp_path / "out", wanted)
    _, _, shapes, _ = pyogrio.raw.read(tmp_path / "out" / "vectors" / "a.gpkg")
    geometry = Geometry(PLACES["utm"][0], tuple(PLACES["utm"][1])[:6])  # type: ignore[arg-type]
    bounds = [shapely.transform(one, geometry.to_pixels).bounds for one in shapely.from_wkb(shapes)]
    assert sorted(tuple(map(round, each)) for each in bounds) == [(4, 6, 20, 14), (22, 22, 38, 30)]
    # What `vitp eval` scores is what `vitp predict` writes.
    kinds: dict[str, LabelKind] = {"detection": "objects", "instance": "instances", "oriented": "oriented"}
    labelled = LabelledSet(
        "set", [LabelledImage("a", str(raster), 64, 60, "test", objects=())], ("ship", "car")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitp.data.seen.SeenBands.planes", lambda self, address, enough=None: values.copy())
        reader = label_reader(BrightObjects(task), labelled, kinds[task], wanted)
        ((_, _, found),) = predictions_of(BrightObjects(task), reader, wanted)
    assert found.boxes_N4 is not None and found.scores_N is not None
    assert len(found.boxes_N4) and bool(((found.boxes_N4[:, 0] + found.boxes_N4[:, 2]) / 2 < 36).all())
    if window is None:  # else they are counted from another place, and cut what these see whole
        assert sorted(found.boxes_N4.int().tolist()) == [[4, 6, 20, 14], [22, 22, 38, 30]]
        assert len(found.scores_N) == 2 and (found.masks_NHW is None or len(found.masks_NHW) == 2)


def test_a_raster_without_objects_has_an_empty_file(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "a.tif", np.zeros((3, 64, 64), np.uint8))
    for kind in ("gpkg", "parquet", "geojson"):
        options = MapOptions(vector=kind)  # type: ignore[arg-type]
        predict_files(BrightObjects(), [raster], tmp_path / kind, WINDOWS, options=options)
    meta, _, shapes, _ = pyogrio.raw.read(tmp_path / "gpkg" / "vectors" / "a.gpkg")
    assert len(shapes) == 0 and set(meta["fields"]) == {"class", "score", "area_m2"}
    assert parquet.read_table(tmp_path / "parquet" / "vectors" / "a.parquet").num_rows == 0
    assert json.loads((tmp_path / "geojson" / "vectors" / "a.geojson").read_text())["features"] == []


def test_geojson_is_in_longitude_and_latitude_and_geoparquet_says_its_system(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "a.tif", scene(90, 80, 12), "rotated")
    for kind in ("gpkg", "parquet", "geojson"):
        options = MapOptions(vector=kind)  # type: ignore[arg-type]
        predict_files(BrightObjects(), [raster], tmp_path / kind, WINDOWS, options=options)
    _, _, shapes, _ = pyogrio.raw.read(tmp_path / "gpkg" / "vectors" / "a.gpkg")
    metres = shapely.from_wkb(shapes)
    table = parquet.read_table(tmp_path / "parquet" / "vectors" / "a.parquet")
    head = json.loads(table.schema.metadata[b"geo"])
    assert head["version"] == "1.0.0" and head["columns"]["geometry"]["crs"]["id"]["code"] == 32633
    assert (shapely.from_wkb(table["geometry"].to_pylist()) == metres).all()
    content = json.loads((tmp_path / "geojson" / "vectors" / "a.geojson").read_text())
    degrees = shapely.from_geojson([json.dumps(one["geometry"]) for one in content["features"]])
    assert len(degrees) == len(metres) > 5 and shapely.is_ccw(shapely.get_exterior_ring(degrees)).all()
    back = Transformer.from_crs("EPSG:4326", "EPSG:32633", always_xy=True)
    for one, other in zip(degrees, metres, strict=True):
        points = np.stack(back.transform(*shapely.get_coordinates(one).T), 1)
        assert shapely.hausdorff_distance(shapely.MultiPoint(points), other.boundary) < 0.01


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_regions_are_joined_across_strips(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    classes = np.kron(rng.integers(0, 3, (14, 9)), np.ones((2, 3))).astype(np.uint8)
    classes[rng.random(classes.shape) < 0.1] = 255

    def regions(count: int) -> list[tuple[int, str]]:
        parts = class_polygons(
            lambda top, bottom: classes[top:bottom], classes.shape, (1, 2), strip_rows=count
        )
        return sorted(
            (int(number), shapely.normalize(polygon).wkt)
            for polygons, numbers in parts
            for polygon, number in zip(polygons, numbers, strict=True)
        )

    assert regions(rows) == [(number, wkt) for number, wkt in regions(1000)], "the strips' edges show"


def test_regions_that_hold_too_much_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitp.inference.polygons.MOST_VERTICES", 8)
    classes = np.zeros((40, 30), np.uint8)
    classes[:, 2:28:2] = 1
    parts = list(class_polygons(lambda a, b: classes[a:b], classes.shape, (1,), strip_rows=10))
    polygons = np.concatenate([polygons for polygons, _ in parts])
    assert shapely.area(polygons).sum() == (classes == 1).sum() and len(polygons) > 13
