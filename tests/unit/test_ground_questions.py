"""Questions that know metres, and metadata: rounding, units, switches, prefixes, dates of pairs."""

from __future__ import annotations

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
    on_ground,
    turned,
    write_raster,
    write_vectors,
)
from tests.ground_question_toys import CLASSES, SHIP, image
from vitp.data.formats import read_labels
from vitp.data.synthesis.build import (
    CONTEXT,
    QUESTION_TASKS,
    TASK_NAMES,
    SynthesisConfig,
    score_answer,
    synthesize_with_tasks,
)
from vitp.data.synthesis.ground_tasks import area_text, length_text, near_amount, parse_amount
from vitp.io.contract import Geometry
from vitp.records.labels import LabelledImage, ObjectLabel


def only(*tasks: str, **rest: object) -> SynthesisConfig:
    weights = {name: float(name in tasks) for name in TASK_NAMES}
    return SynthesisConfig(tasks=weights, questions_per_image=8, **rest)  # type: ignore[arg-type]


def asked(item: LabelledImage, *tasks: str, seed: int = 0) -> dict[str, str]:
    """Return task → answer."""
    made = synthesize_with_tasks(item, CLASSES, seed=seed, config=only(*tasks))
    return (
        {} if made is None else {task: turn.answer for task, turn in zip(made[1], made[0].turns, strict=True)}
    )


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
