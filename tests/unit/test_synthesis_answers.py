"""The text form of answers comes back through the parsers, and scores measure what they say."""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp.core.errors import ConfigError
from vitp.core.words import cell_name, how_many, plural, spoken, with_article
from vitp.data.synthesis.answers import (
    format_boxes,
    format_cells,
    format_geochat,
    format_grid,
    format_quads,
    format_share,
    grid_rows,
    parse_boxes,
    parse_cells,
    parse_count,
    parse_geochat,
    parse_quads,
    parse_yes_no,
)
from vitp.data.synthesis.build import QUESTION_TASKS, score_answer
from vitp.data.synthesis.facts import scale_box, scale_quad
from vitp.data.synthesis.object_tasks import turned_box
from vitp.data.synthesis.scoring import quad_iou, turned_text_box


def turned_quad(x: float, y: float, w: float, h: float, angle: float) -> tuple[float, ...]:
    """Return the corners, clockwise, of a rectangle around (x, y)."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    corners = [(-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2), (-w / 2, h / 2)]
    return tuple(v for a, b in corners for v in (x + a * c - b * s, y + a * s + b * c))


# Text forms

label = st.sampled_from(["ship", "storage_tank", "RBC", "tennis court", "véhicule <x>", "a;b,c"])
number = st.integers(0, 1000)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    x1, y1 = draw(st.integers(0, 999)), draw(st.integers(0, 999))
    return x1, y1, draw(st.integers(x1 + 1, 1000)), draw(st.integers(y1 + 1, 1000))


@given(label, st.lists(boxes(), min_size=1, max_size=8))
def test_boxes_come_back(name: str, given_boxes: list) -> None:
    parsed = parse_boxes(format_boxes(name, given_boxes))
    assert Counter(parsed) == Counter((spoken(name), box) for box in given_boxes)
    spaced = re.sub(r"([\[\],<>/])", r" \1 ", format_boxes(name, given_boxes))
    assert parse_boxes(spaced) == parsed  # as a word tokenizer writes it


@given(label, st.lists(st.tuples(*[number] * 8), min_size=1, max_size=8))
def test_quads_come_back(name: str, quads: list) -> None:
    assert Counter(parse_quads(format_quads(name, quads))) == Counter((spoken(name), q) for q in quads)


@given(label, st.lists(st.tuples(boxes(), st.integers(-89, 90)), min_size=1, max_size=8))
def test_geochat_comes_back(name: str, given_boxes: list) -> None:
    parsed = parse_geochat(format_geochat(name, given_boxes))
    assert Counter(parsed) == Counter((spoken(name), box, angle) for box, angle in given_boxes)


@given(st.integers(1, 8), st.data())
def test_grids_and_cells_come_back(n: int, data: st.DataObject) -> None:
    names = [[data.draw(label) for _ in range(n)] for _ in range(n)]
    assert grid_rows(format_grid(names)) == [[cell_name(name) for name in row] for row in names]
    cells = data.draw(st.sets(st.tuples(st.integers(1, n), st.integers(1, n)), min_size=1))
    assert parse_cells(format_cells(cells)) == sorted(cells)


FRAGMENTS = st.lists(
    st.sampled_from(["<ref>", "</ref>", "<box>", "</box>", "<quad>", "[", "]", "[[", ",", "1", "99999", "-", "{", "}",
                     "|", "<3>", "ship", ";", " ", "yes", "none", "³", "٣", "\n"]),
    max_size=30,
).map("".join)  # fmt: skip


@settings(max_examples=200)
@given(st.one_of(st.text(max_size=60), FRAGMENTS))
def test_nothing_that_a_model_writes_raises(text: str) -> None:
    assert all(0 <= v <= 1000 for _, box in parse_boxes(text) for v in box)
    for parse in (parse_quads, parse_geochat, parse_cells, parse_count, parse_yes_no, grid_rows):
        parse(text)
    for task in QUESTION_TASKS:
        assert 0 <= score_answer(task, text, "<ref>ship</ref><box>[[1, 2, 30, 40]]</box>") <= 1


def test_broken_answers_parse_to_what_is_complete() -> None:
    assert parse_boxes("<ref>ship</ref><box>[[1, 2, 3, 4], [5, 6, 7") == [("ship", (1, 2, 3, 4))]
    for text in ("", "ship", "<box>[[1, 2, 3, 4]]</box>", "<ref>s</ref><box>[[3, 2, 1, 4]]</box>",
                 "<ref>s</ref><box>[[1, 2, 3, 4000]]</box>", "<ref>s</ref><box>[[1, 2, 3]]</box>"):  # fmt: skip
        assert parse_boxes(text) == []
    assert [parse_count(t) for t in ("7", "There are twelve.", "35%", "3.5", "none")] == [
        7,
        12,
        35,
        None,
        None,
    ]
    assert [parse_yes_no(t) for t in ("Yes.", "no", "nothing", "")] == [True, False, None, None]


# Geometry


def test_overlaps_of_oriented_boxes_are_exact_where_sides_nearly_meet() -> None:
    shapely = pytest.importorskip("shapely")
    rng = np.random.default_rng(0)
    pairs = [
        # Two forms of one box, rounded apart by half a thousandth of the image: OpenCV finds 0.60.
        (
            turned_text_box((170, 189, 230, 211), 30),
            [v * 2 for v in turned_quad(100.0, 100.0, 30.0, 10.75, 30.0)],
        )
    ]
    for _ in range(300):
        x, y, w, h = rng.uniform((400, 400, 20, 10), (420, 420, 120, 60))
        angle, off = rng.integers(-89, 90), rng.uniform(-2, 2, 2) * (rng.random(2) < 0.5)
        quad = turned_quad(x, y, w, h, float(angle))
        pairs.append((quad, turned_quad(x + off[0], y + off[1], w, h, float(angle) + rng.uniform(-2, 2))))
    for one, other in pairs:
        a, b = (shapely.Polygon(np.reshape(quad, (4, 2))) for quad in (one, other))
        truth = a.intersection(b).area / a.union(b).area
        assert quad_iou(one, other) == pytest.approx(truth, abs=1e-4)
        assert quad_iou(other, one[2:] + one[:2]) == pytest.approx(truth, abs=1e-4)
    assert quad_iou(pairs[0][0], pairs[0][1]) > 0.9
    assert quad_iou(pairs[0][0], [v + 500 for v in pairs[0][0]]) == 0


@given(st.floats(100, 400), st.floats(100, 300), st.floats(30, 120), st.floats(10, 28), st.floats(-89, 90))
def test_oriented_forms_describe_the_same_rectangle(
    x: float, y: float, w: float, h: float, angle: float
) -> None:
    quad = turned_quad(x, y, w, h, angle)
    box, turn = turned_box(quad, 500, 500, 1000)
    assert -90 < turn <= 90
    assert quad_iou(turned_text_box(box, turn), [v * 2 for v in quad]) > 0.85
    if min(quad) >= 0 and max(quad) <= 500:
        text = scale_quad(quad, 500, 500, 1000)
        assert quad_iou(text, [v * 2 for v in quad]) > 0.85
        assert text[1] == min(text[1::2])
        mirrored = tuple(v for i in (6, 4, 2, 0) for v in quad[i : i + 2])
        assert scale_quad(mirrored, 500, 500, 1000) == text  # the order of the corners is mended


@given(st.tuples(*[st.floats(0, 1)] * 4))
def test_scaled_boxes_always_have_an_area(values: tuple[float, float, float, float]) -> None:
    a, b, c, d = values
    box = scale_box((min(a, c), min(b, d), max(a, c), max(b, d)), 1000)
    assert 0 <= box[0] < box[2] <= 1000 and 0 <= box[1] < box[3] <= 1000


# Scores


@pytest.mark.parametrize(
    ("task", "predicted", "expected", "score"),
    [
        ("presence", "Yes.", "yes", 1), ("presence", "maybe", "no", 0), ("count", "There are 3", "3", 1),
        ("count", "4", "3", 0), ("scene", "Oil-Terminal.", "oil terminal", 1), ("cover", "35 %", "35%", 1),
        ("caption", "a ship", "a red ship", 0.8), ("grid", "a b; c", "a b; c d", 0.75),
        ("grid_row", "a x b", "a b b", 2 / 3), ("cells", "1,1; 2,2", "1,1; 3,3", 0.5), ("cells", "", "none", 0),
        ("boxes", "none", "none", 1), ("boxes", "<ref>s</ref><box>[[0, 0, 9, 9]]</box>", "none", 0),
        ("boxes", "<ref>s</ref><box>[[0, 0, 10, 10], [50, 50, 60, 60]]</box>", "<ref>s</ref><box>[[0, 0, 10, 8]]</box>", 2 / 3),
        ("box", "<ref>t</ref><box>[[0, 0, 10, 10]]</box>", "<ref>s</ref><box>[[0, 0, 10, 10]]</box>", 0),
        ("box", "<ref>s</ref><box>[[0, 0, 10, 4]]</box>", "<ref>s</ref><box>[[0, 0, 10, 10]]</box>", 0),
        ("oriented", "<ref>s</ref>{<0><0><10><4>|<90>}", "<ref>s</ref><quad>[[3, -3, 7, -3, 7, 7, 3, 7]]</quad>", 0),
        ("oriented", "<ref>s</ref>{<10><10><30><20>|<90>}", "<ref>s</ref><quad>[[15, 5, 25, 5, 25, 25, 15, 25]]</quad>", 1),
        ("change_objects", "one crane, two ships", "two ships, one crane", 1), ("change_objects", "nothing", "nothing", 1),
        ("change_objects", "", "nothing", 0),
    ],
)  # fmt: skip
def test_scores(task: str, predicted: str, expected: str, score: float) -> None:
    assert score_answer(task, predicted, expected) == pytest.approx(score)


def test_unknown_tasks_have_no_score() -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        score_answer("captions", "a", "b")


# fmt: off
PLURALS = {
    "storage_tank": "storage tanks", "bus": "buses", "Platelets": "Platelets", "person": "people", "factory": "factories",
    "class": "classes", "aircraft": "aircraft", "RBC": "RBCs", "runway": "runways", "nucleus": "nuclei",
    "cell_nucleus": "cell nuclei", "vertebra": "vertebrae", "leaf": "leaves", "city": "cities", "mouse": "mice",
    "datum": "data", "cars": "cars", "trees": "trees", "nuclei": "nuclei", "people": "people", "metastasis": "metastases",
    "lens": "lenses", "virus": "viruses", "human": "humans", "fisherman": "fishermen", "SUVs": "SUVs", "F16": "F16s",
    "water": "regions of water", "low_vegetation": "regions of low vegetation", "forest": "forests",
    "bale of hay": "bales of hay", "car (parked)": "cars (parked)", "large-vehicle": "large-vehicles",
    "DenseResidential": "dense residential areas", "swimming-pool": "swimming-pools", "stadium": "stadiums",
    "Nucleus": "Nuclei", "series": "series", "jellyfish": "jellyfish", "box": "boxes", "tooth": "teeth",
}
ARTICLES = (
    "a ship", "an airport", "an RBC", "Platelets", "an airplane", "a USB", "an MRI", "an SUV", "an F16", "an X-ray",
    "an urban forest", "a university", "an umbrella", "an hour glass", "a harbour", "a one-way road", "a European house",
    "a SHIP", "water", "an unidentified ship", "a utility pole", "an ulcer", "a uterus", "an oil tank", "cars",
    "an 8-wheeler", "a 9-hole course",
)
SPOKEN = {
    "DenseResidential": "dense residential", "storage_tank": "storage tank", "OtherVehicle": "other vehicle",
    "USA": "USA", "F16": "F16", "SUVs": "SUVs", "MRIScan": "MRI scan", "USAirport": "US airport", "Forest": "Forest",
    "T1Weighted": "T1 weighted", "3DModel": "3D model", "McDonald": "McDonald", "iPhone": "iPhone",
    "Boeing737": "Boeing737", "AnnualCrop_2": "annual crop 2", "BUS": "BUS", "Golden Retriever": "Golden Retriever",
    "a<b>": "a b", "": "thing",
}
SCENES = (
    "airport anchorage barge basin building buoy car coast container court crane depot dredger forest harbour lane plane"
    " quay rail railyard road ship tank terminal tree truck wagon warehouse yard"
)
# fmt: on


@pytest.mark.parametrize(("name", "many"), PLURALS.items())
def test_plurals(name: str, many: str) -> None:
    assert plural(name) == many
    assert plural(many) == many, "a plural stays"


@pytest.mark.parametrize("text", ARTICLES)
def test_articles(text: str) -> None:
    assert with_article(text.removeprefix("an ").removeprefix("a ")) == text


@pytest.mark.parametrize(("name", "text"), SPOKEN.items())
def test_spoken_names(name: str, text: str) -> None:
    assert spoken(name) == text == spoken(text)
    assert cell_name(name) == text.replace(" ", "-")


def test_names_of_generated_scenes_are_spoken_as_the_starter_learned_them() -> None:
    for name in SCENES.split():
        assert (spoken(name), cell_name(name), plural(name)) == (name, name, f"{name}s")
        assert with_article(name) == f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def test_counted_names() -> None:
    assert how_many(1, "ship") == "one ship" and how_many(31, "bus") == "31 buses"
    assert (
        how_many(117, "nucleus") == "117 nuclei"
        and how_many(1, "DenseResidential") == "one dense residential"
    )
    assert with_article("DenseResidential") == "a dense residential area"


@pytest.mark.parametrize("share", [0.0, 1e-6, 0.004, 0.006, 0.024, 0.026, 0.5, 0.996, 1.0])
@pytest.mark.parametrize("step", [1, 5])
def test_shares_above_nothing_are_never_nothing(share: float, step: int) -> None:
    text = format_share(share, step)
    assert (text == "0%") == (share == 0)
    assert text == f"less than {step}%" or abs(int(text[:-1]) - 100 * share) <= step / 2 + 1e-9
    assert score_answer("cover", text, text) == 1.0
    others = {"0%", "less than 1%", "1%", "less than 5%", "5%"} - {text}
    assert [score_answer("change_share", other, text) for other in sorted(others)] == [0.0] * len(others)
