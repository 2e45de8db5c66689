"""Splits by place: nothing of one split lies near what another one holds; crops of rasters as windows."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ground_files import (
    DEGREES,
    UTM,
    box_on_ground,
    moved,
    on_ground,
    turned,
    write_raster,
    write_vectors,
)
from vitp.core.errors import ConfigError, DataError
from vitp.data.formats import ReadOptions, read_labels
from vitp.data.formats.builder import SetBuilder
from vitp.data.formats.crops import cut
from vitp.data.formats.places import neighbours, on_one_plane, split_by_place
from vitp.io.ground import geometry_of
from vitp.io.parts import split_address
from vitp.records.labels import IGNORE, LabelledSet, PlaceSplit


def squares(corners: list[tuple[float, float]], side: float) -> np.ndarray:
    return np.array([shapely.box(x, y, x + side, y + side) for x, y in corners])


def nearest(shapes: np.ndarray, splits: list[str | None]) -> float:
    """Return the least distance between two images of different splits, by plain geometry."""
    names = np.array([split or "" for split in splits])
    differ = (names[:, None] != names[None]) & (names[:, None] != "") & (names[None] != "")
    distances = shapely.distance(shapes[:, None], shapes[None])
    return float(distances[differ].min(initial=np.inf))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=60, unique=True),
    st.sampled_from([0.0, 5.0, 37.0]),
    st.integers(0, 5),
    st.sampled_from([None, 100.0, 450.0]),
)
def test_no_two_splits_are_nearer_than_the_buffer(
    corners: list[tuple[int, int]], buffer: float, seed: int, block: float | None
) -> None:
    shapes = squares([(50.0 * x, 50.0 * y) for x, y in corners], 60.0)
    found = split_by_place(shapes, [""] * len(shapes), PlaceSplit(0.2, 0.2, seed, block, buffer))
    assert nearest(shapes, found.splits) > buffer
    assert found.left_out == found.splits.count(None)
    assert found.splits.count("train") > 0


def test_a_mosaic_is_drawn_in_blocks_and_loses_little(tmp_path: Path) -> None:
    shapes = squares([(100.0 * x, 100.0 * y) for x in range(30) for y in range(30)], 100.0)
    found = split_by_place(shapes, [""] * 900, PlaceSplit(0.1, 0.1, 3, None, 0.0))
    counts = Counter(found.splits)
    assert nearest(shapes, found.splits) > 0
    assert counts["train"] > 500 and counts["val"] > 40 and counts["test"] > 40
    assert found.said.startswith("drawn by place in blocks of ")


def test_neighbours_stay_together_where_clusters_are_many() -> None:
    """Pairs of touching images, far from each other: nothing needs to be left out."""
    shapes = squares([(10_000.0 * k + 100 * side, 0.0) for k in range(20) for side in range(2)], 100.0)
    found = split_by_place(shapes, [""] * 40, PlaceSplit(0.2, 0.2, 0, None, 0.0))
    assert None not in found.splits and len(set(found.splits)) == 3
    assert all(found.splits[2 * k] == found.splits[2 * k + 1] for k in range(20))


def test_images_of_one_block_stay_together() -> None:
    shapes = squares([(400.0 * x, 400.0 * y) for x in range(10) for y in range(10)], 100.0)
    found = split_by_place(shapes, [""] * 100, PlaceSplit(0.2, 0.2, 0, 800.0, 0.0))
    for x in range(5):
        for y in range(5):
            assert len({found.splits[10 * (2 * x + i) + 2 * y + j] for i in range(2) for j in range(2)}) == 1


def test_seeds_and_only_seeds_change_the_blocks() -> None:
    shapes = squares([(100.0 * x, 100.0 * y) for x in range(20) for y in range(20)], 100.0)
    runs = [split_by_place(shapes, [""] * 400, PlaceSplit(0.1, 0.1, seed)).splits for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("option", "value"), [("block", 0), ("block", "wide"), ("buffer", -1), ("buffer", float("nan"))]
)
def test_lengths_that_are_none_are_refused(tmp_path: Path, option: str, value: object) -> None:
    write_raster(tmp_path / "a.tif")
    write_vectors(tmp_path / "x.gpkg", [box_on_ground(UTM, 10, 10, 30, 20)])
    with pytest.raises(ConfigError, match=option):
        read_labels("geo", tmp_path, **{option: value})


def test_images_of_several_systems_come_onto_one_plane(tmp_path: Path) -> None:
    """Two zones of UTM, and degrees: the same ground lies at the same place."""
    import pyproj

    east = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:32632", always_xy=True)
    x, y = east.transform(500_000.0, 5_300_000.0)
    other = type(UTM)("EPSG:32632", (0.5, 0, x + 300.0, 0, -0.5, y))
    one, two = on_one_plane([(UTM, (200, 160)), (other, (200, 160))])
    corners = (shapely.Point(shape.exterior.coords[0]) for shape in (one, two))
    assert shapely.distance(*corners) == pytest.approx(
        300, rel=0.003
    )  # its grid is stretched so far from its meridian
    assert one.area == pytest.approx(100 * 80, rel=0.001)


def scenes(root: Path, count: int) -> None:
    for number in range(count):
        write_raster(root / f"s{number}.tif", moved(UTM, 200 * number, 0), seed=number)
    shapes = [box_on_ground(UTM, 20 + 40 * k, 20, 40 + 40 * k, 60) for k in range(5 * count)]
    write_vectors(root / "x.gpkg", shapes, label=["a" if k % 2 else "b" for k in range(len(shapes))])


def test_splits_of_georeferenced_files_are_drawn_by_place(tmp_path: Path) -> None:
    for number in range(12):
        write_raster(
            tmp_path / f"s{number}.tif", moved(UTM, 2000 * (number // 2) + 200 * (number % 2), 0), seed=number
        )
    shapes = [box_on_ground(UTM, 2000 * k + 20, 20, 2000 * k + 260, 60) for k in range(6)]
    write_vectors(tmp_path / "x.gpkg", shapes)
    labelled = read_labels("geo", tmp_path, val=0.2, test=0.2)
    splits = {item.id: item.split for item in labelled.items}
    assert (
        all(splits[f"s{2 * k}"] == splits[f"s{2 * k + 1}"] for k in range(6))
        and len(set(splits.values())) == 3
    )
    assert any(line.startswith("splits: ") and "drawn by place" in line for line in labelled.understood)


def test_official_splits_win(tmp_path: Path) -> None:
    scenes(tmp_path, 3)
    (tmp_path / "train.txt").write_text("s0\ns2\n")
    (tmp_path / "test.txt").write_text("s1\n")
    labelled = read_labels("geo", tmp_path, buffer=100)
    assert {item.id: item.split for item in labelled.items} == {"s0": "train", "s1": "test", "s2": "train"}
    assert any("block and buffer aren't used" in line for line in labelled.understood)
    assert labelled.drawn is None


def test_a_block_for_files_without_a_place_is_refused(tmp_path: Path) -> None:
    for number in range(4):
        write_raster(tmp_path / "ab"[number % 2] / f"s{number}.tif", None, seed=number)
    with pytest.raises(ConfigError, match="4 of 4 images don't say where they lie"):
        read_labels("folders", tmp_path, block=500)


def test_other_formats_are_split_by_place_too(tmp_path: Path) -> None:
    for number in range(10):
        write_raster(
            tmp_path / "ab"[number % 2] / f"s{number}.tif",
            moved(UTM, 200 * (number // 2), 900 * (number % 2)),
            seed=number,
        )
    labelled = read_labels("folders", tmp_path)
    assert any("drawn by place" in line or "near each other" in line for line in labelled.understood)
    assert all(item.ground is not None for item in labelled.items)


# --- crops


def test_crops_are_windows_with_their_own_labels_and_places(tmp_path: Path) -> None:
    place = turned(DEGREES, 25.0)
    write_raster(tmp_path / "scene.tif", place)
    shapes = [box_on_ground(place, 10, 10, 30, 20), box_on_ground(place, 110, 90, 130, 100)]
    write_vectors(tmp_path / "x.gpkg", shapes, place.crs, label=["a", "b"])
    whole = read_labels("geo", tmp_path, semantic="both", val=0, test=0)
    crops = cut(whole, 100, 20, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [(name, part.window) for name, part in (split_address(item.image) for item in crops.items)] == [
        (str(tmp_path / "scene.tif"), window)
        for window in (
            (0, 0, 100, 100),
            (80, 0, 180, 100),
            (100, 0, 200, 100),
            (0, 60, 100, 160),
            (80, 60, 180, 160),
            (100, 60, 200, 160),
        )
    ]
    by_window = {split_address(item.image)[1].window: item for item in crops.items}
    (label,) = by_window[100, 60, 200, 160].objects or ()
    np.testing.assert_allclose(label.box, (10, 30, 30, 40), atol=1e-6)
    whole_mask = whole.items[0].semantic
    assert whole_mask is not None
    for (x1, y1, x2, y2), item in by_window.items():
        assert item.semantic is not None
        np.testing.assert_array_equal(item.semantic(), whole_mask()[y1:y2, x1:x2])
        geometry = geometry_of(item.image)
        assert geometry is not None
        np.testing.assert_allclose(
            geometry.to_map(np.zeros((1, 2))), place.to_map(np.array([[x1, y1]])), rtol=1e-14
        )


def test_crops_of_one_raster_are_split_by_place(tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif", UTM, (610, 610))
    shapes = [box_on_ground(UTM, x, y, x + 8, y + 8) for x in range(5, 600, 40) for y in range(5, 600, 40)]
    write_vectors(tmp_path / "x.gpkg", shapes)
    whole = read_labels("geo", tmp_path, val=0.15, test=0.15, buffer=12)
    crops = cut(whole, 50, 10, tmp_path / "out")
    splits = [item.split for item in crops.items]
    assert set(splits) == {"train", "val", "test"} and splits.count("train") > len(splits) / 2
    places = [(geometry_of(item.image), (item.width, item.height)) for item in crops.items]
    shapes_N = on_one_plane([(geometry, size) for geometry, size in places if geometry is not None])
    assert nearest(shapes_N, [*splits]) > 12
    left_out = next(line for line in crops.findings if "crops are left out" in line)
    count = int(left_out.removeprefix("splits: ").split()[0].replace(",", ""))
    assert count + len(crops) == 15 * 15
    assert sum(line.startswith("splits: ") for line in crops.understood) == 1
    assert neighbours(shapes_N, splits, 12) == []


def test_crops_outside_of_the_labelled_area_are_left_out(tmp_path: Path) -> None:
    write_raster(tmp_path / "scene.tif")
    write_vectors(tmp_path / "area.gpkg", [on_ground(UTM, [(0, 0), (120, 0), (120, 160), (0, 160)])])
    write_vectors(tmp_path / "ships.gpkg", [box_on_ground(UTM, 10, 10, 30, 20)])
    whole = read_labels("geo", tmp_path, area="area.gpkg", semantic="both", val=0, test=0)
    crops = cut(whole, 50, 0, tmp_path / "out")
    assert "4 crops: nothing of them is labelled; left out" in crops.findings
    assert len(crops) == 12
    edge = next(item for item in crops.items if split_address(item.image)[1].window == (100, 0, 150, 50))
    from vitp.data.ignored import known_semantic

    assert (known_semantic(edge)[:, 22:] == IGNORE).all() and (known_semantic(edge)[:, :19] == 0).all()


def test_pictures_are_still_cut_into_files(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    builder = SetBuilder(tmp_path, ReadOptions(val=0, test=0))
    builder.add(tmp_path / "a.png", (60, 40), objects=())
    labelled: LabelledSet = builder.build()
    crops = cut(labelled, 32, 0, tmp_path / "out")
    assert all(Path(item.image).is_file() for item in crops.items)


@pytest.mark.parametrize("missing", ["rasterio", "pyproj", "shapely"])
def test_without_the_extra_splits_are_drawn_as_ever_and_it_is_said(
    tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        write_raster(tmp_path / "ab"[number % 2] / f"s{number}.tif", moved(UTM, 200 * number, 0), seed=number)
    monkeypatch.setitem(sys.modules, missing, None)
    labelled = read_labels("folders", tmp_path)
    assert labelled.drawn is None and all(item.ground is None for item in labelled.items)
    assert any(line.startswith("splits: ") and "drawn (val=0.1" in line for line in labelled.understood)
    assert any(
        f"it needs {missing}, which `pip install 'vitp[geo]'` brings" in line for line in labelled.understood
    )


@pytest.mark.parametrize("missing", ["rasterio", "pyproj", "shapely", "pyogrio"])
def test_vector_labels_without_the_extra_name_it(
    tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_raster(tmp_path / "a.tif")
    write_vectors(tmp_path / "x.gpkg", [box_on_ground(UTM, 10, 10, 30, 20)])
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(DataError, match=missing) as caught:
        read_labels("auto", tmp_path)
    assert "vitp[geo]" in str(caught.value)
