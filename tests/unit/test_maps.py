"""Maps of rasters: every pixel and polygon where it belongs, whatever the windows, strips, processes and restarts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet
from pyproj import Geod, Transformer
from rasterio import Affine
from rio_cogeo.cogeo import cog_validate

from tests.map_models import (
    PLACES,
    Brighter,
    BrightestBand,
    BrightObjects,
    channels_of,
    write_raster,
)
from vitp.core.errors import DataError, VitpError
from vitp.inference import maps
from vitp.inference.inputs import Unusable
from vitp.inference.polygons import class_polygons
from vitp.inference.prediction_files import predict_files
from vitp.inference.raster_files import MapOptions
from vitp.inference.unfinished import unfinished_folder
from vitp.io.open_pixels import Geometry
from vitp.records.channels import Channel, Channels
from vitp.records.labels import LabelledImage, LabelledSet
from vitp.tasks import windows
from vitp.tasks.base import InputSize, LabelKind, TestSettings
from vitp.tasks.data import label_reader
from vitp.tasks.predict import predict_images, predictions_of

BANDS = ("B2", "B3", "B8")
WINDOWS = TestSettings(window=32, overlap=0.25, batch_size=3)


def blocks(height: int, width: int, seed: int = 0, *, empty: int = 0) -> np.ndarray:
    """Return three uint16 bands of squares of ten pixels, the first rows empty (0)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(1, 1000, (3, -(-height // 10), -(-width // 10)))
    values = np.kron(coarse, np.ones((1, 10, 10)))[:, :height, :width].astype(np.uint16)
    values[:, :empty] = 0
    return values


def expected_classes(values: np.ndarray) -> np.ndarray:
    classes = channels_of(*BANDS).scale(values).argmax(0)
    return np.where((values == 0).all(0), 255, classes)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        band: np.ndarray = file.read(1)
    return band


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


class _Context(BrightestBand):
    """A model whose answer depends on where in its window a pixel lies."""

    def maps(self, images_BCHW: Any, later_BCHW: Any) -> Any:
        towards = torch.linspace(0, 3, images_BCHW.shape[-1])
        return images_BCHW.float() / 64 + towards * torch.tensor([1.0, -1.0, 0.5])[:, None, None]


def test_the_same_place_gets_the_same_class_wherever_the_raster_was_cut(tmp_path: Path) -> None:
    values, (_, transform) = blocks(200, 200), PLACES["utm"]
    whole = write_raster(tmp_path / "whole.tif", values, names=BANDS)
    cut = write_raster(
        tmp_path / "cut.tif",
        values[:, 37:, 51:],
        names=BANDS,
        transform=transform @ Affine.translation(51, 37),
    )
    predict_files(_Context(channels=channels_of(*BANDS)), [whole, cut], tmp_path / "out", WINDOWS)
    one, other = (read(tmp_path / "out" / "masks" / f"{name}.tif") for name in ("whole", "cut"))
    inside = (slice(32, -32), slice(32, -32))
    assert np.array_equal(one[37:, 51:][inside], other[inside])


def test_rasters_and_images_in_memory_are_seen_by_one_predictor(tmp_path: Path) -> None:
    values = blocks(100, 90).astype(np.uint8)
    raster = write_raster(tmp_path / "a.tif", values, "utm", transform=Affine.scale(1, -1))
    model = _Context()
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


# Objects.


def scene(height: int, width: int, count: int, seed: int = 0) -> np.ndarray:
    """Return three uint8 bands, dark but for bright rectangles that don't touch each other."""
    rng = np.random.default_rng(seed)
    values = np.full((3, height, width), 5, np.uint8)
    for _ in range(count):
        h, w = rng.integers(3, 14, 2)
        y, x = rng.integers(0, height - h), rng.integers(0, width - w)
        if values[0, max(y - 1, 0) : y + h + 1, max(x - 1, 0) : x + w + 1].max() == 5:
            values[:, y : y + h, x : x + w] = rng.choice([140, 160, 200, 240])
    return values


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


# Change, resolution, other bands.


def test_the_later_date_is_warped_onto_the_first(tmp_path: Path) -> None:
    early = np.full((1, 120, 100), 50, np.uint16)
    before = write_raster(tmp_path / "before.tif", early, "utm", nodata=0, names=["B2"])
    # Twice as coarse, its corner 30 px to the left and above: half of the place has become brighter.
    late = np.full((1, 90, 80), 50, np.uint16)
    late[:, :, 40:] = 900
    _, transform = PLACES["utm"]
    coarse = transform @ Affine.translation(-30, -30) @ Affine.scale(2)
    after = write_raster(tmp_path / "after.tif", late, "utm", nodata=0, names=["B2"], transform=coarse)
    said: list[str] = []
    predict_files(
        Brighter(channels_of("B2")), [before], tmp_path / "out", WINDOWS, later=[after], say=said.append
    )
    assert any("warped onto the grid" in note and "covers 100.0 %" in note for note in said)
    found = read(tmp_path / "out" / "label" / "before.tif")
    assert (found[:, :48] == 0).all() and (found[:, 52:] == 1).all()
    moved = transform @ Affine.translation(400, 0)
    far = write_raster(tmp_path / "far.tif", late, "utm", nodata=0, names=["B2"], transform=moved)
    with pytest.raises(DataError, match="doesn't overlap"):
        predict_files(Brighter(channels_of("B2")), [before], tmp_path / "no", WINDOWS, later=[far])
    half = write_raster(
        tmp_path / "half.tif", late, "utm", names=["B2"], transform=transform @ Affine.translation(50, 0)
    )
    predict_files(Brighter(channels_of("B2")), [before], tmp_path / "half", WINDOWS, later=[half])
    found = read(tmp_path / "half" / "label" / "before.tif")
    assert (found[:, :49] == 255).all() and (found[:89, 51:] != 255).all() and (found[91:] == 255).all()


def test_dates_in_two_reference_systems_are_aligned(tmp_path: Path) -> None:
    values = np.kron(np.random.default_rng(0).integers(1, 9, (1, 12, 12)), np.ones((1, 10, 10))) * 100
    before = write_raster(tmp_path / "a.tif", values.astype(np.uint16), "utm", nodata=0, names=["B2"])
    with rasterio.open(before) as file:
        from rasterio.warp import calculate_default_transform, reproject

        place, width, height = calculate_default_transform(
            file.crs, "EPSG:32634", file.width, file.height, *file.bounds, resolution=5
        )
        warped = np.zeros((1, height, width), np.uint16)
        reproject(rasterio.band(file, 1), warped[0], dst_transform=place, dst_crs="EPSG:32634")
    with rasterio.open(
        tmp_path / "b.tif", "w", driver="GTiff", count=1, height=height, width=width, dtype="uint16",
        nodata=0, crs="EPSG:32634", transform=place,
    ) as file:  # fmt: skip
        file.write(warped)
        file.set_band_description(1, "B2")
    predict_files(
        Brighter(channels_of("B2")), [before], tmp_path / "out", WINDOWS, later=[tmp_path / "b.tif"]
    )
    found = read(tmp_path / "out" / "label" / "a.tif")
    assert (found[5:-5, 5:-5] == 0).mean() > 0.97, "the dates lie beside each other"


def test_the_files_of_rasters_and_pictures_are_those_of_the_docs(tmp_path: Path) -> None:
    values = blocks(40, 40).astype(np.uint8)
    inputs = tmp_path / "in"
    write_raster(inputs / "placed.tif", values)
    write_raster(inputs / "plain.tif", values, None, tile=48)
    Image.fromarray(values.transpose(1, 2, 0).copy()).save(inputs / "shown.png")

    def files(model: Any, name: str, **wanted: Any) -> set[str]:
        predict_files(model, [inputs], tmp_path / name, WINDOWS, **wanted)
        found = {str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*.*")}
        return found - {f"pictures/{each}.png" for each in ("placed", "plain", "shown")}

    options = MapOptions(probabilities=True)
    of_map = {f"masks/placed.{end}" for end in ("tif", "tif.aux.xml")} | {"probabilities/placed.tif"}
    of_map |= {"vectors/placed.gpkg", "vitp_predictions.json"}
    of_pictures = {"classes.txt"}
    for name in ("plain", "shown"):
        of_pictures |= {f"masks/{name}.png", f"geojson/{name}.pixels.geojson"}
    assert files(BrightestBand(), "pictures", options=options) == of_map | of_pictures
    bands = BrightestBand(channels=channels_of("red", "green", "blue", high=255))
    unplaced = {each.replace(".gpkg", ".pixels.geojson") for each in of_map}
    assert files(bands, "bands", options=options) == of_map | {
        each.replace("placed", name) for each in unplaced for name in ("plain", "shown")
    }
    (inputs / "plain.tif").unlink()
    (inputs / "shown.png").unlink()
    change = files(Brighter(), "change", later=[inputs])
    assert change == {"label/placed.tif", "label/placed.tif.aux.xml"} | {
        "vectors/placed.gpkg", "vitp_predictions.json"
    }  # fmt: skip


def test_values_of_another_type_than_the_models_are_said(tmp_path: Path) -> None:
    model = BrightestBand(channels=Channels(channels=tuple(
        Channel(band=name, low=100, high=3000) for name in ("B4", "B8")
    )))  # fmt: skip
    rng = np.random.default_rng(0)

    def said(name: str, values: np.ndarray, nodata: float | None = None, of: Any = model) -> list[str]:
        raster = write_raster(tmp_path / f"{name}.tif", values, nodata=nodata, names=("B4", "B8"))
        lines: list[str] = []
        predict_files(of, [raster], tmp_path / name, WINDOWS, say=lines.append)
        return [line for line in lines if "ranges" in line]

    numbers = rng.integers(200, 2900, (2, 80, 90)).astype(np.uint16)
    ends = numbers.astype(np.float32) / 10_000
    ends[0, 0, :2] = 0, 1
    (line,) = said("reflectance", ends)
    assert line.startswith(str(tmp_path / "reflectance.tif")) and line.endswith(
        ": nearly all of its values lie outside of the ranges that the model knows, or at their very ends "
        "(B4 100–3000, B8 100–3000; here 0–1)"
    )
    assert "here 20200–2" in said("above", numbers + np.uint16(20_000))[0]
    # Pixels that hold nothing don't count: neither as values outside, nor as ones that are known.
    sparse = np.zeros_like(numbers)
    sparse[:, :4, :4] = 1000
    assert said("sparse", sparse, nodata=0) == [] and len(said("undeclared", sparse)) == 1
    sparse[:, :4, :4] = 50
    assert "here 50–50" in said("far", sparse, nodata=0)[0]
    # One band within is enough, and 2 % of the pixels are.
    assert said("known", numbers) == [] and said("one", np.stack([numbers[0], numbers[0] * 0])) == []
    some = np.full_like(numbers, 60_000)
    some[:, :2] = 1000
    assert said("some", some) == []
    # Low and high are in dB, the file's values aren't.
    radar = BrightestBand(channels=Channels(channels=tuple(
        Channel(band=name, low=-20, high=0, transform="db") for name in ("B4", "B8")
    )))  # fmt: skip
    assert "(B4 0.01–1, B8 0.01–1; here 200–" in said("db", numbers, of=radar)[0]
    assert said("power", (numbers / 3000).astype(np.float32), of=radar) == []
    plain = BrightestBand(channels=channels_of("B4", "B8", high=255))
    assert said("black", np.zeros((2, 40, 40), np.uint8), of=plain) == []


def test_one_ground_resolution_is_seen_and_brought_back(tmp_path: Path) -> None:
    fine = write_raster(
        tmp_path / "fine.tif", np.kron(blocks(40, 40), np.ones((1, 3, 3))).astype(np.uint16), names=BANDS
    )
    seen: list[tuple[int, int]] = []

    class Sized(BrightestBand):
        def maps(self, images_BCHW: Any, later_BCHW: Any) -> Any:
            seen.append(tuple(images_BCHW.shape[-2:]))
            return super().maps(images_BCHW, later_BCHW)

    said: list[str] = []
    options = MapOptions(resolution=30)
    predict_files(
        Sized(channels=channels_of(*BANDS)),
        [fine],
        tmp_path / "out",
        WINDOWS,
        options=options,
        say=said.append,
    )
    assert set(seen) == {(32, 32)} and sum(1 for _ in seen) <= 4
    assert any("10 m a pixel and is seen at 30 m" in note for note in said)
    found = read(tmp_path / "out" / "masks" / "fine.tif")
    assert found.shape == (120, 120)
    wanted = expected_classes(np.kron(blocks(40, 40), np.ones((1, 3, 3))).astype(np.uint16))
    assert (found == wanted).mean() > 0.9
    picture = tmp_path / "p.png"
    from PIL import Image

    Image.new("RGB", (40, 40)).save(picture)
    told: list[Unusable] = []
    predict_files(
        BrightestBand(),
        [picture, write_raster(tmp_path / "c.tif", scene(40, 40, 3))],
        tmp_path / "o2",
        WINDOWS,
        options=options,
        tell=told.append,
    )
    assert [one.reason for one in told] == [
        "doesn't say where it lies, so a resolution in metres means nothing"
    ]


def test_a_model_of_pictures_refuses_other_rasters_and_one_of_bands_names_what_is_missing(
    tmp_path: Path,
) -> None:
    good = write_raster(tmp_path / "good.tif", scene(40, 40, 4))
    wide = write_raster(tmp_path / "wide.tif", blocks(40, 40))
    told: list[Unusable] = []
    count, _ = predict_files(BrightestBand(), [good, wide], tmp_path / "out", WINDOWS, tell=told.append)
    assert count == 1
    assert told[0].reason == "has 3 bands (1, 2, 3) of uint16, and the model sees 8-bit RGB"
    named = write_raster(tmp_path / "named.tif", blocks(40, 40), names=("B2", "B3", "B4"))
    with pytest.raises(DataError, match="lacks the bands B8; it has B2, B3, B4"):
        predict_files(BrightestBand(channels=channels_of(*BANDS)), [named], tmp_path / "no", WINDOWS)
    four = write_raster(
        tmp_path / "four.tif",
        np.concatenate([scene(40, 40, 4), scene(40, 40, 4)[:1]]),
        names=("nir", "red", "green", "blue"),
    )
    assert predict_files(BrightestBand(), [four], tmp_path / "four", WINDOWS)[0] == 1


# What is damaged, what is interrupted.


def test_damage_that_is_found_late_leaves_that_raster_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write_raster(tmp_path / "good.tif", blocks(64, 64), names=BANDS)
    bad = write_raster(tmp_path / "bad.tif", blocks(700, 700), names=BANDS, compress="deflate")
    with rasterio.open(bad) as file:  # a tile that neither lies in a corner nor in the middle
        offset, size = (
            int(file.get_tag_item(f"BLOCK_{what}_9_1", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE")
        )
    content = bytearray(bad.read_bytes())
    content[offset : offset + size] = b"\xff" * size
    bad.write_bytes(content)
    told: list[Unusable] = []
    model = BrightestBand(channels=channels_of(*BANDS))
    count, _ = predict_files(model, [bad, good], tmp_path / "out", WINDOWS, tell=told.append)
    assert count == 1 and [Path(one.image).name for one in told] == ["bad.tif"]
    names = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {"good.tif", "good.tif.aux.xml", "good.gpkg", "good.png", "vitp_predictions.json"}


def outputs(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("task", ["segmentation", "instance"])
@pytest.mark.parametrize("stop", [1, 4, 9])
def test_an_interrupted_prediction_goes_on_to_the_same_bits(
    tmp_path: Path, task: str, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if task == "segmentation":
        images = [write_raster(tmp_path / f"{n}.tif", blocks(150, 90, n), names=BANDS) for n in range(2)]
        model: Any = _Context(channels=channels_of(*BANDS))
    else:
        images = [write_raster(tmp_path / f"{n}.tif", scene(150, 90, 30, n)) for n in range(2)]
        model = BrightObjects(task)
    predict_files(model, images, tmp_path / "whole", WINDOWS)
    calls = 0
    writer = maps._RawMap if task == "segmentation" else maps
    name = "write" if task == "segmentation" else "_save_objects"
    real = getattr(writer, name)

    def stopping(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > stop:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(writer, name, stopping)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict_files(model, images, out, WINDOWS)
    assert not out.exists() and unfinished_folder(out).exists()
    calls = -1000
    for note in unfinished_folder(out).glob(".owner.*"):
        note.rename(note.with_name(note.name.replace("-", "-9", 1)))  # as if another process had left it
    with pytest.raises(VitpError, match="of other settings"):
        predict_files(model, images, out, TestSettings(window=40), resume=True)
    predict_files(model, images, out, WINDOWS, resume=True)
    if task == "segmentation":
        assert calls < -1000 + 2 * 8, "what was done was done again"
    assert outputs(out) == outputs(tmp_path / "whole") and not unfinished_folder(out).exists()


def test_one_output_has_one_writer(tmp_path: Path) -> None:
    from vitp.core.leftovers import claim

    raster = write_raster(tmp_path / "a.tif", scene(40, 40, 4))
    folder = unfinished_folder(tmp_path / "out")
    folder.mkdir()
    claim(folder)
    with pytest.raises(VitpError, match="is being written by another process"):
        predict_files(BrightestBand(), [raster], tmp_path / "out", WINDOWS)


@pytest.mark.parametrize(
    ("trained", "chosen", "side", "expected"),
    [
        # (window, resize, factor): like training; larger than training; own scale of training; user's choice.
        ({"longest": 96, "scale": 1.0}, {}, 120, (None, None, 1.0)),
        ({"longest": 96, "scale": 1.0}, {}, 256, (96, "none", 1.0)),
        ({"longest": 48, "scale": 2.0}, {}, 256, (96, "none", 2.0)),
        ({"longest": 96, "scale": 1.0}, {"window": 48}, 256, (48, "none", 1.0)),
        (
            {"longest": 96, "scale": 1.0},
            {"resize": InputSize(mode="fixed", size=64)},
            900,
            (None, "fixed", 1.0),
        ),
        (None, {}, 256, (None, None, 1.0)),
        (None, {}, 900, (96, "none", 1.0)),
        (None, {"window": 96}, 256, (96, "none", 1.0)),
        (None, {"window": 48}, 256, (48, None, 1.0)),
    ],
)
def test_no_image_larger_than_those_of_training_is_squeezed(
    trained: Any, chosen: Any, side: int, expected: Any
) -> None:
    """Squeezed, a raster that is many times larger than the tiles of training is classified by chance."""
    description = {} if trained is None else {"trained": trained}
    model: Any = SimpleNamespace(
        input_size=InputSize(mode="fixed", size=96),
        description=description,
        backbone=SimpleNamespace(image_size=(96, 96)),
    )
    seen, factor, note = maps.seen_settings(model, TestSettings(**chosen), (side, side), None)
    mode = None if seen.resize is None else seen.resize.mode
    assert (seen.window, mode, factor) == expected
    assert (note is not None) == (expected[1] == "none")
