"""Questions that know metres, and metadata: rounding, units, switches, prefixes, dates of pairs."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ground_files import (
    DEGREES,
    FEET,
    UTM,
    box_on_ground,
    moved,
    on_ground,
    turned,
    write_raster,
    write_vectors,
)
from vitp.core.errors import ConfigError
from vitp.data.check import check_records
from vitp.data.compile import compile_labels
from vitp.data.formats import read_labels
from vitp.data.formats.vitp_labels import Roots, read_compiled, write_compiled
from vitp.data.synthesis.build import (
    CONTEXT,
    QUESTION_TASKS,
    TASK_NAMES,
    SynthesisConfig,
    score_answer,
    synthesize_with_tasks,
)
from vitp.data.synthesis.classes import SetClasses
from vitp.data.synthesis.ground_tasks import area_text, length_text, near_amount, parse_amount
from vitp.io.contract import Geometry
from vitp.records.instructions import InstructionRecord
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel

CLASSES = SetClasses(("ship", "car"), (), ("background", "lake"), "set")
SHIP = ObjectLabel(
    "ship",
    (20.0, 20.0, 100.0, 40.0),
    (20, 20, 100, 20, 100, 40, 20, 40),
    ((20, 20, 100, 20, 100, 40, 20, 40),),
)
CAR = ObjectLabel("car", (20.0, 100.0, 30.0, 105.0), (20, 100, 30, 100, 30, 105, 20, 105))


def only(*tasks: str, **rest: object) -> SynthesisConfig:
    weights = {name: float(name in tasks) for name in TASK_NAMES}
    return SynthesisConfig(tasks=weights, questions_per_image=8, **rest)  # type: ignore[arg-type]


def asked(item: LabelledImage, *tasks: str, seed: int = 0) -> dict[str, str]:
    """Return task → answer."""
    made = synthesize_with_tasks(item, CLASSES, seed=seed, config=only(*tasks))
    return (
        {} if made is None else {task: turn.answer for task, turn in zip(made[1], made[0].turns, strict=True)}
    )


def image(
    ground: tuple[float, float, float, float] | None = (0.5, 0.0, 0.0, -0.5), **rest: object
) -> LabelledImage:
    return LabelledImage("a", "a.tif", 200, 160, objects=(SHIP, CAR), ground=ground, **rest)  # type: ignore[arg-type]


NEW = (
    *(
        "size_metres",
        "area_metres",
        "cover_hectares",
        "distance_metres",
        "extent_metres",
        "ground_resolution",
    ),
    *("sensor", "date", "season", "region"),
)


# --- numbers and units


@pytest.mark.parametrize(
    ("metres", "text"),
    [
        (40.2, "about 40 m"),
        (0.4321, "about 43 cm"),
        (0.999, "about 1 m"),
        (7.25, "about 7.2 m"),
        (994.9, "about 990 m"),
        (996.0, "about 1 km"),
        (1249.0, "about 1.2 km"),
        (123_456.0, "about 120 km"),
    ],
)
def test_lengths_have_two_digits(metres: float, text: str) -> None:
    assert length_text(metres) == text


@pytest.mark.parametrize(
    ("square_metres", "text"),
    [
        (800.0, "about 800 m²"),
        (9_940.0, "about 9900 m²"),
        (9_960.0, "about 1 ha"),
        (34_567.0, "about 3.5 ha"),
        (9.96e6, "about 10 km²"),
        (12_345_678.0, "about 12 km²"),
        (3.2, "about 3.2 m²"),
    ],
)
def test_areas_have_two_digits(square_metres: float, text: str) -> None:
    assert area_text(square_metres) == text


@given(st.floats(0.011, 9e6))
def test_texts_say_the_number_to_a_twentieth(value: float) -> None:
    """Two digits of 1.0 … 9.9 are right to 5 %; centimetres and metres come from the same rounding."""
    for text in (length_text(value), area_text(value)):
        read = parse_amount(text)
        assert read is not None and abs(read - value) <= 0.0501 * value
        assert len(re.sub(r"[^1-9]", "", text)) <= 2 + 1  # at most one zero between
        assert "e" not in text.removeprefix("about ")


@pytest.mark.parametrize(
    ("predicted", "score"),
    [
        ("about 40 m", 1),
        ("44 m", 1),
        ("0.04 km", 1),
        ("60 metres", 0),
        ("50 m", 0.625),
        ("4000 cm", 1),
        ("4 m", 0),
        ("long", 0),
        ("", 0),
    ],
)
def test_amounts_count_by_their_size(predicted: str, score: float) -> None:
    assert near_amount(predicted, "about 40 m") == pytest.approx(score)
    assert score_answer("size_metres", predicted, "about 40 m") == pytest.approx(score)


def test_areas_are_compared_in_any_unit() -> None:
    assert near_amount("20000 m2", "about 2 ha") == near_amount("2 hectares", "about 2 ha") == 1
    assert near_amount("0.02 km²", "about 2 ha") == 1 and near_amount("2 m²", "about 2 ha") == 0


# --- what is asked


def test_objects_are_measured_on_the_ground() -> None:
    tasks = ("size_metres", "area_metres", "distance_metres", "extent_metres", "ground_resolution")
    found: dict[str, str] = {}
    for seed in range(6):
        found |= asked(image(), *tasks, seed=seed)
    assert found["size_metres"] in ("about 40 m", "about 5 m")
    assert found["area_metres"] == "about 400 m²"  # only the ship has an outline
    assert found["distance_metres"] == length_text(0.5 * float(np.hypot(35, 72.5)))
    assert found["extent_metres"] == "about 100 m" and found["ground_resolution"] == "about 50 cm"


@pytest.mark.parametrize("turn", [0.0, 30.0, 77.0])
@pytest.mark.parametrize("geometry", [UTM, DEGREES, FEET])
def test_lengths_are_those_on_the_ground_in_any_system(
    tmp_path: Path, geometry: Geometry, turn: float
) -> None:
    """A barge of 60 × 12 m, drawn on the ground itself, in pixels that are no squares there in degrees."""
    import pyproj

    place = turned(geometry, turn)
    write_raster(tmp_path / "scene.tif", place, (400, 400))
    to_degrees = pyproj.Transformer.from_crs(place.crs, "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(*place.to_map(np.array([[200.0, 200.0]]))[0])
    flat = f"+proj=aeqd +lat_0={lat} +lon_0={lon} +units=m"
    angle = np.deg2rad(23.0)
    axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    corners = np.array([(-30, -6), (30, -6), (30, 6), (-30, 6)]) @ axes
    back = pyproj.Transformer.from_crs(flat, place.crs, always_xy=True)
    ground = np.column_stack(back.transform(corners[:, 0], corners[:, 1]))
    write_vectors(tmp_path / "barge.gpkg", [on_ground(place, place.to_pixels(ground))], place.crs)
    (item,) = read_labels("geo", tmp_path).items
    classes = replace(CLASSES, object_classes=("barge",))
    made = synthesize_with_tasks(item, classes, seed=0, config=only("size_metres", "area_metres"))
    assert made is not None
    answers = dict(zip(made[1], (turn.answer for turn in made[0].turns), strict=True))
    assert answers == {"size_metres": "about 60 m", "area_metres": "about 720 m²"}


def test_what_reaches_the_border_or_is_an_upright_box_has_no_length() -> None:
    cut = replace(SHIP, box=(0.0, 20.0, 100.0, 40.0))
    upright = ObjectLabel("ship", (20.0, 20.0, 100.0, 40.0))
    tiny = replace(SHIP, box=(20.0, 20.0, 26.0, 22.0), quad=(20, 20, 26, 20, 26, 22, 20, 22), polygons=())
    for label in (cut, upright, tiny):
        assert "size_metres" not in asked(replace(image(), objects=(label,)), "size_metres")
    square = replace(
        SHIP, box=(20.0, 20.0, 60.0, 60.0), quad=None, polygons=((20, 20, 60, 20, 60, 60, 20, 60),)
    )
    assert asked(replace(image(), objects=(square,)), "size_metres", "area_metres") == {
        "area_metres": "about 400 m²"
    }


def test_classes_of_masks_are_measured_in_hectares() -> None:
    mask = np.zeros((160, 200), np.uint8)
    mask[:100, :] = 1
    item = replace(image((5.0, 0.0, 0.0, -5.0)), objects=None, semantic=lambda: mask)
    answers = {asked(item, "cover_hectares", seed=seed)["cover_hectares"] for seed in range(6)}
    assert answers <= {"about 50 ha", "about 30 ha"} and "about 50 ha" in answers


def test_without_metres_and_metadata_nothing_new_is_asked() -> None:
    """Records of images of which nothing of this is known are what they were: no random number is drawn."""
    bare = image(None)
    made = synthesize_with_tasks(bare, CLASSES, seed=3)
    without = synthesize_with_tasks(bare, CLASSES, seed=3, config=SynthesisConfig(tasks={CONTEXT: 0.0}))
    assert made == without and made is not None
    assert not set(NEW) & set(made[1])


@pytest.mark.parametrize("name", NEW)
def test_each_of_them_can_be_switched_off(name: str) -> None:
    mask = np.ones((160, 200), np.uint8)
    known = {"sensor": "Sentinel-2", "date": "2020-07-01", "season": "summer", "region": "Kenya"}
    item = replace(image(metadata=known), semantic=lambda: mask)
    others = [task for task in QUESTION_TASKS if task != name]
    seen = {
        task
        for seed in range(12)
        for task in (synthesize_with_tasks(item, CLASSES, seed=seed, config=only(name)) or (None, ()))[1]
    }
    assert seen == {name}
    for seed in range(6):
        made = synthesize_with_tasks(item, CLASSES, seed=seed, config=only(*others))
        assert made is not None and name not in made[1]


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
