"""Predictions of slides: where there is tissue, at the model's resolution, in files that QuPath and OpenSlide read."""

from __future__ import annotations

import csv
import json
import tracemalloc
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely.geometry
import tifffile
import tiffslide

from tests.map_models import BrightestBand, BrightObjects, channels_of
from tests.slide_files import SECRET, circle, tissue_picture, write_ome, write_svs
from vitp.core.errors import DataError
from vitp.inference import maps, raster_files
from vitp.inference.inputs import Unusable
from vitp.inference.maps import RasterPrediction
from vitp.inference.prediction_files import predict_files
from vitp.inference.raster_files import MapOptions
from vitp.inference.slides import AreaTable
from vitp.inference.unfinished import unfinished_folder
from vitp.io import tissue as tissue_module
from vitp.io.contract import Pixels
from vitp.io.images import load_image
from vitp.io.slides import SlidePlace
from vitp.io.tissue import find_tissue
from vitp.records.labels import IGNORE
from vitp.tasks.base import TestSettings
from vitp.tasks.dense import DenseModel
from vitp.tasks.ground import RasterGround

PINK, VIOLET = (200, 60, 120), (120, 60, 190)
BLOBS = [(200, 200, 90, PINK), (560, 380, 120, VIOLET)]
WINDOWS = TestSettings(window=64, overlap=0.25, batch_size=3)
NAMES = ("stroma", "background", "tumor")


def model_of(mpp: float | None = 0.5) -> BrightestBand:
    """Return a model that calls what is red stroma, what is blue tumor."""
    model = BrightestBand(NAMES)
    model.description = {} if mpp is None else {"mpp": mpp}
    return model


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return {row["class"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_svs(tmp_path_factory.mktemp("slides") / "a.svs", tissue_picture(800, 600, BLOBS), 0.25)


@pytest.fixture(scope="module")
def predicted(slide: Path) -> Path:
    out = slide.parent / "out"
    predict_files(model_of(), [slide], out, WINDOWS)
    return out


def test_the_mask_is_the_tissue_at_the_models_resolution(slide: Path, predicted: Path) -> None:
    address = f"{slide}#mpp=0.5"
    seen = np.asarray(load_image(address)).argmax(2)
    tissue = find_tissue(address).valid((0, 0, 400, 300))
    with tiffslide.TiffSlide(predicted / "masks" / "a.tif") as file:
        assert file.dimensions == (400, 300)
        assert (file.properties["tiffslide.mpp-x"], file.properties["tiffslide.mpp-y"]) == (0.5, 0.5)
    with tifffile.TiffFile(predicted / "masks" / "a.tif") as file:
        page = file.pages.first
        classes = page.asarray()
        assert page.is_tiled and page.photometric.name == "PALETTE" and page.colormap[1, 0] // 257 == 119
    assert np.array_equal(classes, np.where(tissue, seen, 255))
    with rasterio.open(predicted / "masks" / "a.tif") as file:
        assert file.tags()["class_2"] == "tumor" and json.loads(file.tags()["vitp_mpp"]) == [0.5, 0.5]
    rows = table(predicted / "areas.csv")
    for number, name in enumerate(NAMES):
        assert int(rows[name]["pixels"]) == (classes == number).sum()
        assert float(rows[name]["area_mm2"]) == pytest.approx((classes == number).sum() * 0.25e-6, abs=1e-6)
    assert float(rows["(seen)"]["area_mm2"]) == pytest.approx(tissue.sum() * 0.25e-6, abs=1e-6)


def test_qupath_gets_outlines_in_pixels_of_the_finest_level(predicted: Path) -> None:
    content = json.loads((predicted / "vectors" / "a.geojson").read_text(encoding="utf-8"))
    assert content["type"] == "FeatureCollection"
    by_name: dict[str, list[Any]] = {}
    for row in content["features"]:
        told = row["properties"]
        assert told["objectType"] == "annotation" and len(told["classification"]["color"]) == 3
        shape = shapely.geometry.shape(row["geometry"])
        assert shape.is_valid and told["measurements"]["Area µm^2"] == pytest.approx(shape.area * 0.25**2)
        by_name.setdefault(told["classification"]["name"], []).append(shape)
    assert set(by_name) == {"stroma", "tumor"}
    for name, (x, y, radius, _) in zip(("stroma", "tumor"), BLOBS, strict=True):
        found = max(by_name[name], key=lambda shape: shape.area)
        truth = shapely.geometry.Polygon(circle(x, y, radius, 128))
        assert found.intersection(truth).area / found.union(truth).area > 0.96


def test_nothing_of_the_header_leaves_the_slide(slide: Path, predicted: Path) -> None:
    assert SECRET.encode() in slide.read_bytes()
    files = [path for path in predicted.rglob("*") if path.is_file()]
    assert len(files) == 6
    assert not any(word.encode() in path.read_bytes() for path in files for word in SECRET.split())


def test_objects_are_merged_across_windows_and_measured(tmp_path: Path) -> None:
    image = np.full((600, 800, 3), 60, np.uint8)
    image[..., 0] = 90  # tissue is everywhere, dark red
    for x, y in ((100, 120), (400, 300), (650, 500)):
        image[y : y + 32, x : x + 24] = (200, 40, 40)
    slide = write_svs(tmp_path / "a.svs", image, 0.25)
    for task in ("detection", "instance"):
        model = BrightObjects(task)
        model.description = {"mpp": 0.5}
        predict_files(model, [slide], tmp_path / task, WINDOWS)
        content = json.loads((tmp_path / task / "vectors" / "a.geojson").read_text(encoding="utf-8"))
        shapes = [shapely.geometry.shape(row["geometry"]) for row in content["features"]]
        boxes = sorted(tuple(map(round, shape.bounds)) for shape in shapes)
        assert boxes == [(100, 120, 124, 152), (400, 300, 424, 332), (650, 500, 674, 532)]
        told = content["features"][0]["properties"]
        assert told["objectType"] == "detection" and told["measurements"]["Score"] == pytest.approx(
            200 / 255, 1e-3
        )
        assert told["measurements"]["Area µm^2"] == pytest.approx(24 * 32 / 16)
        rows = table(tmp_path / task / "areas.csv")
        assert rows["car"]["objects"] == "3" and rows["ship"]["objects"] == "0"
        if task == "instance":
            assert float(rows["car"]["area_mm2"]) == pytest.approx(3 * 24 * 32 / 16 / 1e6, abs=1e-6)


def test_only_windows_with_tissue_are_seen_and_nothing_large_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tissue_picture(1600, 1200, [(800, 500, 80, PINK)])
    slide = write_svs(tmp_path / "a.svs", image, 0.5, factors=(4,))
    largest = 0
    read = Pixels.read_valid

    def counted(self: Pixels, *arguments: Any, **named: Any) -> Any:
        nonlocal largest
        values, valid = read(self, *arguments, **named)
        largest = max(largest, values[0].size)
        return values, valid

    seen = 0
    planes = RasterGround.planes

    def looked(self: RasterGround, window: Any, size: Any) -> Any:
        nonlocal seen
        seen += size == (64, 64)
        return planes(self, window, size)

    monkeypatch.setattr(Pixels, "read_valid", counted)
    monkeypatch.setattr(RasterGround, "planes", looked)
    monkeypatch.setattr(raster_files, "PICTURE_PIXELS", 1 << 14)
    monkeypatch.setattr(tissue_module, "TISSUE_SIDE", 512)
    predict_files(model_of(), [slide], tmp_path / "out", WINDOWS)
    # Of 825 windows those that touch the disc; what is read at once is no more than the whole, reduced to a quarter.
    assert 9 <= seen <= 40 and largest <= 400 * 300
    with tifffile.TiffFile(tmp_path / "out" / "masks" / "a.tif") as file:
        assert 0 < (file.pages.first.asarray() != 255).sum() < 180 * 180


@pytest.mark.parametrize("task", ["segmentation", "instance"])
def test_a_killed_prediction_goes_on_to_the_same_bits(
    slide: Path, tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = model_of() if task == "segmentation" else BrightObjects(task)
    model.description = {"mpp": 0.5}
    predict_files(model, [slide], tmp_path / "whole", WINDOWS)
    calls = 0
    writer = maps._RawMap if task == "segmentation" else maps
    name = "write" if task == "segmentation" else "_save_objects"
    real = getattr(writer, name)

    def stopping(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(writer, name, stopping)
    with pytest.raises(KeyboardInterrupt):
        predict_files(model, [slide], tmp_path / "out", WINDOWS)
    monkeypatch.setattr(writer, name, real)
    for note in unfinished_folder(tmp_path / "out").glob(".owner.*"):
        note.rename(note.with_name(note.name.replace("-", "-9", 1)))  # as if another process had left it
    predict_files(model, [slide], tmp_path / "out", WINDOWS, resume=True)
    found, wanted = (
        {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for folder in (tmp_path / "out", tmp_path / "whole")
    )
    assert found == wanted


def test_at_which_resolution_a_slide_is_seen_is_said_first(slide: Path, tmp_path: Path) -> None:
    def said(
        name: str, trained: float | None, image: str = str(slide), **options: Any
    ) -> tuple[str, list[Unusable]]:
        lines: list[str] = []
        refused: list[Unusable] = []
        predict_files(
            model_of(trained), [image], tmp_path / name, WINDOWS, options=MapOptions(**options), say=lines.append,
            tell=refused.append,
        )  # fmt: skip
        return "\n".join(lines), refused

    assert "is seen at 0.5 µm a pixel, as in training" in said("trained", 0.5)[0]
    assert "is seen at 1 µm a pixel, as was asked for" in said("asked", 0.5, mpp=1.0)[0]
    assert "is seen at 0.25 µm a pixel, its own resolution; --mpp chooses another" in said("own", None)[0]
    lines, _ = said("part", 0.5, f"{slide}#mpp=1&window=10,20,110,120")
    assert (
        "is seen at 1 µm a pixel, as its address says" in lines and "is tissue; the rest isn't seen" in lines
    )
    assert "isn't seen" not in said("all", 1.0, tissue=False)[0]
    with tifffile.TiffFile(tmp_path / "all" / "masks" / "a.tif") as file:
        assert (file.pages.first.asarray() != 255).all()
    content = json.loads((tmp_path / "part" / "vectors" / "a.geojson").read_text(encoding="utf-8"))
    stroma = max(
        (shapely.geometry.shape(row["geometry"]) for row in content["features"]), key=lambda s: s.area
    )
    x1, y1, _, _ = (
        stroma.bounds
    )  # in pixels of the finest level, though a part at another resolution was seen
    assert abs(x1 - 110) <= 8 and abs(y1 - 110) <= 8
    unknown = write_svs(tmp_path / "b.svs", tissue_picture(800, 600, BLOBS), None)
    with pytest.raises(DataError, match=r"how many micrometres .*--mpp 0 reads its own pixels"):
        said("unknown", 0.5, str(unknown))
    assert "0.25 µm a pixel" in said("stated", 0.25, f"{unknown}#own_mpp=0.25")[0]
    assert table(tmp_path / "stated" / "areas.csv")["tumor"]["area_mm2"] != ""
    assert "doesn't say how many micrometres" in said("free", 0.5, str(unknown), mpp=0)[0]
    assert table(tmp_path / "free" / "areas.csv")["tumor"]["area_mm2"] == ""
    blank = write_svs(tmp_path / "c.svs", np.full((90, 120, 3), 244, np.uint8))
    with pytest.raises(DataError, match="shows no tissue"):
        said("blank", 0.5, str(blank))


def test_fluorescence_is_seen_by_its_channels(tmp_path: Path) -> None:
    image = tissue_picture(300, 200, [(100, 100, 60, PINK)])
    light = np.moveaxis(np.where(image == 244, 20, image).astype(np.uint16) * 16, 2, 0)
    slide = write_ome(tmp_path / "a.ome.tif", light, "CYX", ("DAPI", "CD3", "CD8"), levels=2)
    model = BrightestBand(NAMES, channels_of("DAPI", "CD3", "CD8", high=4095))
    predict_files(model, [slide], tmp_path / "out", WINDOWS)
    with tifffile.TiffFile(next((tmp_path / "out" / "masks").glob("*.tif"))) as file:
        classes = file.pages.first.asarray()
    assert classes[100, 100] == 0 and classes[5, 250] == 255


def test_counting_areas_takes_no_more_memory_than_the_rows(tmp_path: Path) -> None:
    size = (512, 8192)
    rows_RW = np.full(size, IGNORE, np.uint8)
    rows_RW[:4, :3], rows_RW[8:10] = 0, 1
    prediction = Mock(
        spec=RasterPrediction, size=size, model=Mock(spec=DenseModel), dates=[Mock(tissue=None)]
    )
    prediction.is_known.return_value, prediction.class_rows.return_value = True, rows_RW
    table = AreaTable(SlidePlace((0, 0), (1, 1), (0.5, 0.5)), ("stroma", "tumor"), prediction)
    tracemalloc.start()
    try:
        table.write(tmp_path / "areas.json")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < rows_RW.nbytes
    found = json.loads((tmp_path / "areas.json").read_text())
    assert [row["pixels"] for row in found] == [12 + 2 * 8192, 12, 2 * 8192]
