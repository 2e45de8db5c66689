"""Metadata and dates of images: told or asked, never both, and images of one place joined."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.ground_files import (
    UTM,
    box_on_ground,
    moved,
    write_raster,
    write_vectors,
)
from tests.ground_question_toys import CLASSES, image
from vitp.core.errors import ConfigError
from vitp.data.check import check_records
from vitp.data.compile import compile_labels
from vitp.data.formats import read_labels
from vitp.data.formats.vitp_labels import Roots, read_compiled, write_compiled
from vitp.data.synthesis.build import (
    CONTEXT,
    SynthesisConfig,
    synthesize_with_tasks,
)
from vitp.io.contract import Geometry
from vitp.records.instructions import InstructionRecord
from vitp.records.labels import LabelledImage, LabelledSet

# --- metadata


KNOWN = {"sensor": "Sentinel-2", "date": "2020-07-01", "season": "summer", "region": "Kenya"}


def records(
    item: LabelledImage, config: SynthesisConfig, count: int = 40
) -> list[tuple[InstructionRecord, tuple[str, ...]]]:
    found = [synthesize_with_tasks(item, CLASSES, seed=seed, config=config) for seed in range(count)]
    return [made for made in found if made is not None]


def test_metadata_are_told_or_asked_never_both() -> None:
    line = "Sensor: Sentinel-2; ground resolution: 50 cm; date: 2020-07-01; season: summer; region: Kenya.\n<image>\n"
    told = untold = 0
    for record, tasks in records(image(metadata=KNOWN), SynthesisConfig(questions_per_image=30)):
        if record.turns[0].question.startswith("Sensor"):
            assert record.prefix == line and not {*KNOWN, "ground_resolution"} & set(tasks)
            told += 1
        else:
            assert record.prefix == "<image>\n" and {*KNOWN, "ground_resolution"} <= set(tasks)
            untold += 1
    assert told >= 10 and untold >= 10


def test_the_line_can_be_switched_off_and_on() -> None:
    config = SynthesisConfig(tasks={CONTEXT: 2.0, "region": 0.0, "ground_resolution": 0.0})
    told = {record.prefix for record, _ in records(image(metadata=KNOWN), config)}
    assert told == {"Sensor: Sentinel-2; date: 2020-07-01; season: summer.\n<image>\n"}
    for weight, share in ((0.0, 0.0), (2.0, 1.0)):
        config = SynthesisConfig(tasks={CONTEXT: weight})
        starts = [
            record.turns[0].question.startswith("Sensor")
            for record, _ in records(image(metadata=KNOWN), config)
        ]
        assert sum(starts) == share * len(starts)


def test_dates_of_a_pair_stand_beside_its_images() -> None:
    changed = np.zeros((160, 200), bool)
    changed[:40] = True
    pair = replace(
        image(metadata={"sensor": "WV2", "date": "2018-01-03", "later_date": "2018-06-01"}),
        second_image="b.tif",
        change=lambda: changed,
    )
    prefixes = {record.prefix for record, _ in records(pair, SynthesisConfig())}
    dated = "Image-1 (2018-01-03): <image>\nImage-2 (2018-06-01): <image>\n"
    assert prefixes == {dated, f"Sensor: WV2; ground resolution: 50 cm.\n{dated}"}
    plain = {record.prefix for record, _ in records(pair, SynthesisConfig(tasks={CONTEXT: 0.0}))}
    assert plain == {"Image-1: <image>\nImage-2: <image>\n"}


def scenes(root: Path, count: int = 3, geometry: Geometry = UTM) -> None:
    for number in range(count):
        write_raster(root / f"s{number}.tif", moved(geometry, 4000 * number, 0), seed=number)
    shapes = [box_on_ground(geometry, 4000 * k + 20, 20, 4000 * k + 100, 40) for k in range(count)]
    write_vectors(root / "ships.gpkg", shapes, geometry.crs)


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def metadata_of(labelled: LabelledSet) -> list[dict[str, str] | None]:
    return [None if item.metadata is None else dict(item.metadata) for item in labelled.items]


def test_a_table_beside_the_images_is_read(tmp_path: Path) -> None:
    scenes(tmp_path)
    rows = [
        {
            "file_name": "s0.tif",
            "Satellite": "Landsat 8",
            "acquired": "2020-07-01T10:00:00Z",
            "country": "Austria",
            "cloud": "3",
        },
        {"file_name": "s1", "Satellite": "Landsat 8", "acquired": "20200115", "country": "", "cloud": "1"},
    ]
    write_table(tmp_path / "metadata.csv", rows)
    labelled = read_labels("auto", tmp_path)
    assert metadata_of(labelled) == [
        {"sensor": "Landsat 8", "date": "2020-07-01", "region": "Austria", "season": "summer"},
        {"sensor": "Landsat 8", "date": "2020-01-15", "season": "winter"},
        None,
    ]
    assert any(
        line
        == "known (metadata.csv): date of 2 images, region of 1 images, season of 2 images, sensor of 2 images"
        for line in labelled.understood
    )


def test_tags_of_rasters_are_read(tmp_path: Path) -> None:
    import rasterio

    scenes(tmp_path, 1)
    with rasterio.open(tmp_path / "s0.tif", "r+") as file:
        file.update_tags(
            SENSOR="WorldView-3", ACQUISITION_DATE="2019:04:02", TIFFTAG_DATETIME="2023:01:01 00:00:00"
        )
    (item,) = read_labels("geo", tmp_path).items
    assert dict(item.metadata or {}) == {"sensor": "WorldView-3", "date": "2019-04-02", "season": "spring"}


@pytest.mark.parametrize(("north", "season"), [(5_300_000.0, "summer"), (500_000.0, None)])
def test_seasons_follow_from_date_and_latitude(tmp_path: Path, north: float, season: str | None) -> None:
    scenes(tmp_path, 1, Geometry("EPSG:32633", (0.5, 0, 500_000.0, 0, -0.5, north)))
    write_table(tmp_path / "metadata.csv", [{"image": "s0.tif", "date": "2020-07-01"}])
    (item,) = read_labels("geo", tmp_path).items
    assert (item.metadata or {}).get("season") == season


def test_seasons_of_the_south_are_the_other_way_round(tmp_path: Path) -> None:
    scenes(tmp_path, 1, Geometry("EPSG:32733", (0.5, 0, 500_000.0, 0, -0.5, 5_800_000.0)))
    write_table(tmp_path / "metadata.csv", [{"image": "s0.tif", "date": "2020-07-01"}])
    (item,) = read_labels("geo", tmp_path).items
    assert (item.metadata or {})["season"] == "winter"


@pytest.mark.parametrize("date", ["03/04/2020", "2020-13-01", "yesterday", "2020"])
def test_a_date_without_one_reading_is_not_used_and_told(tmp_path: Path, date: str) -> None:
    scenes(tmp_path, 1)
    write_table(tmp_path / "metadata.csv", [{"image": "s0.tif", "date": date, "sensor": "X"}])
    labelled = read_labels("geo", tmp_path)
    assert metadata_of(labelled) == [{"sensor": "X"}]
    assert "metadata: s0.tif: its date has no one reading; write it as 2024-05-31" in labelled.findings


def test_ground_resolution_of_pictures_comes_from_the_table(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(4):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "ab"[number % 2] / f"{number}.png")
    write_table(
        tmp_path / "metadata.csv",
        [{"image": f"{n}.png", "gsd": text} for n, text in enumerate(("0.3", "0.5 m", "wide", ""))],
    )
    labelled = read_labels("folders", tmp_path)
    grounds = {Path(item.image).name: item.ground for item in labelled.items}
    assert grounds["0.png"] == (0.3, 0, 0, -0.3) and grounds["1.png"] == (0.5, 0, 0, -0.5)
    assert grounds["2.png"] is None and grounds["3.png"] is None
    assert any('the ground resolution "wide" is no number of metres' in line for line in labelled.findings)


def test_metadata_and_metres_survive_being_written_down(tmp_path: Path) -> None:
    root = tmp_path / "set"
    scenes(root)
    write_table(root / "metadata.csv", [{"image": "s0.tif", "sensor": "X", "date": "2020-07-01"}])
    labelled = read_labels("geo", root)
    write_compiled(labelled, Roots(tmp_path / "out", root, root))
    again = read_compiled(tmp_path / "out")
    by_id = {item.id: item for item in labelled.items}
    assert [(item.metadata, item.ground) for item in again.items] == [
        (by_id[item.id].metadata, by_id[item.id].ground) for item in again.items
    ]


def test_compiled_records_ask_in_metres(tmp_path: Path) -> None:
    """The same sensor and size everywhere teach nothing, and are left out; lengths differ, and are asked."""
    root = tmp_path / "set"
    for number in range(16):
        write_raster(root / f"s{number:02}.tif", moved(UTM, 4000 * number, 0), seed=number)
    shapes = [box_on_ground(UTM, 4000 * k + 20, 20, 4000 * k + 60 + 6 * k, 40) for k in range(16)]
    write_vectors(root / "ships.gpkg", shapes)
    summary = compile_labels(root, "auto", tmp_path / "out", seed=1, val=0, test=0)
    assert {"extent_metres", "ground_resolution"} <= set(summary.constant)
    assert summary.splits["train"].tasks["size_metres"] > 3
    text = (tmp_path / "out" / "train.jsonl").read_text()
    lengths = {int(number) for number in re.findall(r'"about (\d+) m"', text)}
    assert lengths <= {20 + 3 * k for k in range(16)} and len(lengths) > 3
    off = SynthesisConfig(tasks={"size_metres": 0.0})
    other = compile_labels(root, "auto", tmp_path / "off", seed=1, val=0, test=0, synthesis=off)
    assert "size_metres" not in other.splits["train"].tasks


# --- several dates


def dated(root: Path, dates: list[str], other: str = "") -> None:
    for number, _ in enumerate(dates):
        write_raster(root / f"t{number}.tif", UTM, seed=number)
    write_raster(root / "far.tif", moved(UTM, 9000, 0), seed=99)
    shapes = [box_on_ground(UTM, 20, 20, 100, 40), box_on_ground(UTM, 9020, 20, 9100, 40)]
    write_vectors(root / "ships.gpkg", shapes)
    rows = [{"image": f"t{number}.tif", "date": date, "sensor": "S2"} for number, date in enumerate(dates)]
    write_table(root / "metadata.csv", [*rows, {"image": "far.tif", "date": "2020-01-01", "sensor": "S2"}])


def test_dates_of_one_place_are_images_of_one_record(tmp_path: Path) -> None:
    root = tmp_path / "set"
    dated(root, ["2020-07-01", "2020-01-01", "2021-01-01"])
    compile_labels(
        root,
        "auto",
        tmp_path / "out",
        val=0,
        test=0,
        dates=3,
        crop=100,
        synthesis=SynthesisConfig(tasks={CONTEXT: 2.0}),
    )
    rows = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    several = [row for row in rows if isinstance(row["image"], list)]
    assert len(several) == 4 and len(rows) == 8
    first = several[0]["conversations"][0]["value"]
    assert (
        "Image-1 (2020-01-01): <image>\nImage-2 (2020-07-01): <image>\nImage-3 (2021-01-01): <image>\n"
        in first
    )
    assert several[0]["image"] == [f"t{n}.tif#window=0,0,100,100" for n in (1, 0, 2)]
    again = [item for item in read_compiled(tmp_path / "out").items if item.series]
    assert len(again) == 4 and all(len(item.series) == 2 and item.objects is not None for item in again)
    assert vitp_check(tmp_path / "out") == 0


def vitp_check(folder: Path) -> int:
    return check_records(folder).exit_code


@pytest.mark.parametrize(("most", "records"), [(1, 6), (2, 4), (5, 2)])
def test_no_more_dates_than_asked_for_are_joined(tmp_path: Path, most: int, records: int) -> None:
    dated(tmp_path, ["2020-07-01", "2020-01-01", "2021-01-01", "2021-02-01", "2021-03-01"])
    labelled = read_labels("geo", tmp_path, val=0, test=0, dates=most)
    assert len(labelled) == records
    assert sum(1 + len(item.series) for item in labelled.items) == 6


@pytest.mark.parametrize("dates", [["2020-07-01", "2020-07-01"], ["2020-07-01", ""]])
def test_images_of_one_date_or_of_none_are_not_joined(tmp_path: Path, dates: list[str]) -> None:
    dated(tmp_path, dates)
    with pytest.raises(ConfigError, match="no two images are of one place"):
        read_labels("geo", tmp_path, val=0, test=0, dates=4)


@pytest.mark.parametrize("most", [0, -1, 65, "many", 2.5, True])
def test_a_number_of_dates_that_is_none_is_refused(tmp_path: Path, most: object) -> None:
    dated(tmp_path, ["2020-07-01"])
    with pytest.raises(ConfigError, match="dates"):
        read_labels("geo", tmp_path, dates=most)


def test_a_picture_whose_name_holds_a_hash_has_its_row_of_the_table(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(4):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "ab"[number % 2] / f"{number} #1.png")
    rows = [{"image": f"{n} #1.png", "sensor": f"S{n}"} for n in range(4)]
    write_table(tmp_path / "metadata.csv", rows)
    labelled = read_labels("folders", tmp_path)
    assert sorted(row["sensor"] for row in metadata_of(labelled) if row) == ["S0", "S1", "S2", "S3"]
