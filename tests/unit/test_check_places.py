"""`data check` counts images of different splits that share ground or lie too near."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ground_files import DEGREES, UTM, moved, write_raster
from vitp.data.check import check_records
from vitp.io.contract import Geometry


def compiled(root: Path, places: dict[str, tuple[str, Geometry]]) -> Path:
    """Write record files of the splits over rasters."""
    rows: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number, (name, (split, place)) in enumerate(places.items()):
        file = name.partition("#")[0]
        write_raster(root / file, place, seed=number)
        row = {
            "id": name,
            "image": name,
            "conversations": [
                {"from": "human", "value": "<image>\nHow many?"},
                {"from": "gpt", "value": str(number)},
            ],
        }
        rows[split].append(json.dumps(row))
    for split, lines in rows.items():
        (root / f"{split}.jsonl").write_text("".join(line + "\n" for line in lines))
    entry = {
        "root": ".",
        "annotation": "train.jsonl",
        "data_augment": False,
        "repeat_time": 1,
        "length": len(rows["train"]),
    }
    (root / "mixture.json").write_text(json.dumps({"set": entry}))
    (root / "summary.json").write_text(json.dumps({"format": "vitp-compiled"}))
    return root


def found(root: Path, buffer: float = 0.0) -> list[str]:
    return [finding.what for finding in check_records(root, buffer=buffer).of_kind("neighbour")]


def test_overlaps_are_counted_by_pairs_of_splits(tmp_path: Path) -> None:
    places = {
        "a.tif": ("train", UTM),
        "b.tif": ("train", moved(UTM, 100, 0)),
        "c.tif": ("test", moved(UTM, 190, 0)),
        "d.tif": ("val", moved(UTM, 900, 0)),
    }
    (line,) = found(compiled(tmp_path, places))
    assert line == "2 images of train share ground with images of test, a.tif with c.tif for example"


@pytest.mark.parametrize(("buffer", "count"), [(0.0, 0), (5.0, 1), (60.0, 2)])
def test_distances_below_the_buffer_are_counted(tmp_path: Path, buffer: float, count: int) -> None:
    """Images are 100 m wide; the first two touch those of the test, and lie 50 m from them."""
    places = {
        "a.tif": ("train", UTM),
        "b.tif": ("train", moved(UTM, 700, 0)),
        "c.tif": ("test", moved(UTM, 200, 0)),
        "d.tif": ("test", moved(UTM, 400, 0)),
    }
    lines = found(compiled(tmp_path, places), buffer)
    assert lines == (
        [
            f"{count} image{'s' * (count > 1)} of train {'lies' if count == 1 else 'lie'} nearer than {buffer:g} m to images of test, a.tif with c.tif for example"
        ]
        if count
        else []
    )


def test_images_of_several_systems_are_compared(tmp_path: Path) -> None:
    import pyproj

    lon, lat = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True).transform(
        500_020.0, 5_299_990.0
    )
    there = Geometry("EPSG:4326", (1e-6, 0.0, lon, 0.0, -1e-6, lat))
    places = {"a.tif": ("train", UTM), "b.tif": ("test", there), "c.tif": ("test", DEGREES)}
    (line,) = found(compiled(tmp_path, places))
    assert line.startswith("1 image of train shares ground with images of test, a.tif with b.tif")


def test_windows_of_one_raster_are_compared_by_their_own_places(tmp_path: Path) -> None:
    names = {
        "a.tif#window=0,0,100,160": "train",
        "a.tif#window=90,0,200,160": "val",
        "a.tif#window=0,0,20,20": "train",
    }
    root = compiled(tmp_path, {name: (split, UTM) for name, split in names.items()})
    (line,) = found(root)
    assert line.startswith("1 image of train shares ground with images of val")


def test_pictures_without_a_place_have_no_neighbours(tmp_path: Path) -> None:
    root = compiled(tmp_path, {"a.tif": ("train", UTM), "b.tif": ("test", UTM)})
    write_raster(root / "b.tif", None, seed=9)
    assert found(root) == []
