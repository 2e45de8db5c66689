"""Questions, statistics and corrupted images of maps: what holds nothing counts for nothing there, either."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.map_models import BrightestBand, channels_of, write_raster
from tests.map_toys import BANDS
from vitp import compile_labels
from vitp.data.seen import SeenBands
from vitp.data.synthesis.build import QUESTION_TASKS, SynthesisConfig, synthesize_with_tasks
from vitp.data.synthesis.classes import SetClasses
from vitp.data.synthesis.facts import UNKNOWN, Facts, Limits
from vitp.data.synthesis.pretext_look import look_at
from vitp.data.synthesis.pretext_tasks import (
    VIEW_TASKS,
    brighter_half,
    colour,
    missing_patch,
    texture_half,
)
from vitp.evaluation.corruptions.catalogue import CORRUPTIONS
from vitp.evaluation.corruptions.sets import corrupted_set, load_pixels
from vitp.records.channels import Channels
from vitp.records.labels import BACKGROUND, IGNORE, LabelledImage, LabelledSet, ObjectLabel
from vitp.report.robustness_page import example_figures
from vitp.studies.cheap import cheap_labels
from vitp.tasks.base import TestSettings
from vitp.tasks.data import label_reader
from vitp.tasks.label_notes import label_notes
from vitp.tasks.semantic import evaluate_pixels

SIDE, EMPTY = 40, 10
CLASSES = ("background", "water", "wood", "rock")


class Rows:
    """Rock where the image holds nothing, below it 15 rows of water, 3 of wood and 12 of background."""

    def __call__(self) -> np.ndarray:
        mask_HW = np.zeros((SIDE, SIDE), np.uint8)
        mask_HW[:EMPTY], mask_HW[EMPTY:25], mask_HW[25:28] = 3, 1, 2
        return mask_HW


class ChangedRows:
    """All that holds nothing changed, and three rows of the rest."""

    def __call__(self) -> np.ndarray:
        changed_HW = np.zeros((SIDE, SIDE), bool)
        changed_HW[:EMPTY], changed_HW[-3:] = True, True
        return changed_HW


def field(path: Path, *, bands: bool) -> tuple[Path, Channels | None]:
    """Write a raster whose first ten rows hold nothing, of 16 bits with named bands or of 8 bits as a picture."""
    values = np.full((3, SIDE, SIDE), 90, np.uint16 if bands else np.uint8)
    values[:, :EMPTY] = 0
    write_raster(path, values, nodata=0, names=BANDS if bands else ())
    return path, channels_of(*BANDS) if bands else None


def field_set(path: Path, *, bands: bool = True) -> LabelledSet:
    image, channels = field(path, bands=bands)
    item = LabelledImage("a", str(image), SIDE, SIDE, semantic=Rows(), metadata={})
    return LabelledSet("fields", [item], semantic_classes=CLASSES, channels=channels)


def facts_of(labelled: LabelledSet) -> Facts:
    return Facts(labelled.items[0], SetClasses.from_set(labelled), Limits(grid=4))


@pytest.mark.parametrize("bands", [True, False])
def test_shares_and_presence_are_of_the_pixels_that_hold_something(tmp_path: Path, bands: bool) -> None:
    labelled = field_set(tmp_path / "a.tif", bands=bands)
    facts = facts_of(labelled)
    assert facts.shares == {"background": 12 / 30, "water": 15 / 30, "wood": 3 / 30, "rock": 0}
    assert facts.states == {"water": True, "wood": True, "rock": False}
    assert facts.grid == [] or "rock" not in {name for row in facts.grid for name in row}
    rng = np.random.default_rng(0)
    answers = {
        (question.about, question.answer)
        for _ in range(60)
        if (question := QUESTION_TASKS["cover"].ask(facts, rng)) is not None
    }
    assert answers == {("water", "50%"), ("wood", "10%"), ("rock", "0%")}
    statistics = SetClasses.from_set(labelled).statistics
    assert statistics.share == {"water": 0.75, "wood": 0.75, "rock": 0.25}


def test_hectares_are_of_the_ground_that_is_seen(tmp_path: Path) -> None:
    labelled = field_set(tmp_path / "a.tif")
    item = replace(labelled.items[0], ground=(100.0, 0.0, 0.0, -100.0))
    facts = facts_of(replace(labelled, items=[item]))
    rng = np.random.default_rng(0)
    asked = [QUESTION_TASKS["cover_hectares"].ask(facts, rng) for _ in range(20)]
    assert {(one.about, one.answer) for one in asked if one} == {
        ("water", "about 600 ha"),
        ("wood", "about 120 ha"),
    }


def test_what_changed_is_of_the_pixels_that_both_dates_hold(tmp_path: Path) -> None:
    (before, channels), (after, _) = (field(tmp_path / name, bands=True) for name in ("a.tif", "b.tif"))
    item = LabelledImage("p", str(before), SIDE, SIDE, second_image=str(after), change=ChangedRows())
    pairs = LabelledSet("pairs", [item], channels=channels)
    facts, rng = facts_of(pairs), np.random.default_rng(0)
    share = QUESTION_TASKS["change_share"].ask(facts, rng)
    assert share is not None and share.answer == "10%"  # 3 rows of 30
    parts = {
        (question.about, question.answer)
        for _ in range(200)
        if (question := QUESTION_TASKS["change_part"].ask(facts, rng)) is not None
    }
    below = {name for name, answer in parts if answer == "yes"}
    assert {name.split()[0] for name in below} == {"bottom"}, parts
    # Most of the upper ninths holds nothing: nobody knows what happened there.
    assert not any("top" in name or "upper" in name for name, _ in parts), parts
    nothing = replace(item, change=lambda: ChangedRows()() & (np.arange(SIDE) < EMPTY)[:, None])
    statistics = SetClasses.from_set(replace(pairs, items=[nothing])).statistics
    assert statistics.changed == 0.25  # (0 + 0.5) / (1 + 1)


def test_compiled_questions_count_what_holds_something(tmp_path: Path) -> None:
    for number in range(4):
        field(tmp_path / "set" / "images" / f"{number}.tif", bands=True)
        mask = tmp_path / "set" / "masks" / f"{number}.tif"
        write_raster(mask, Rows()()[None])
    compile_labels(
        tmp_path / "set",
        "masks",
        tmp_path / "out",
        synthesis=SynthesisConfig(tasks={"cover": 1.0, "point": 1.0}),
        classes="background=0,water=1,wood=2,rock=3",
        bands="B2,B3,B8",
        range="0,1000",
        val=0.0,
        test=0.0,
    )
    rows = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    texts = [one["value"] for row in rows for one in row["conversations"]]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    shares = {answer for question, answer in pairs if "water" in question and "%" in answer}
    assert len(rows) == 4 and shares == {"50%"}
    assert all(row["image"].startswith("images/") for row in rows)
    assert "rock" not in {answer for _, answer in pairs}


def test_notes_cheap_labels_and_pages_see_no_class_where_nothing_is_held(tmp_path: Path) -> None:
    labelled = field_set(tmp_path / "a.tif")
    notes = label_notes({"train": labelled}, "semantic", CLASSES)
    assert notes == ["no training image holds rock: the model can't learn that"]
    (cheap,) = cheap_labels(labelled).items
    assert [label.category for label in cheap.objects or ()] == ["water", "wood"] and not cheap.ignored
    figures = example_figures(labelled, "semantic", [], 1, 0)
    picture = np.asarray(figures[0].image.convert("RGB"))
    nothing = picture[: picture.shape[0] * EMPTY // SIDE - 8]
    assert not nothing.any()  # no class is laid over it


@pytest.mark.parametrize("corruption", ["gaussian_noise", "rotation"])
@pytest.mark.parametrize("bands", [True, False])
def test_corrupted_images_count_the_pixels_that_the_clean_ones_hold(
    tmp_path: Path, corruption: str, bands: bool
) -> None:
    labelled = field_set(tmp_path / "a.tif", bands=bands)
    model = BrightestBand(CLASSES, labelled.channels)
    change = CORRUPTIONS[corruption]
    seen = SeenBands(labelled.channels)
    corrupted = corrupted_set(
        labelled,
        change,
        3,
        tmp_path / "made",
        load=partial(load_pixels, seen=seen),
        channels=labelled.channels,
    )
    reader = label_reader(model, corrupted, "semantic", TestSettings())
    truth_HW = reader.sample(corrupted.items[0]).semantic_HW
    assert truth_HW is not None and 3 not in truth_HW.unique().tolist()
    if corruption == "gaussian_noise":
        assert int((truth_HW == IGNORE).sum()) == EMPTY * SIDE
    scores = evaluate_pixels(model, corrupted, TestSettings())
    clean = evaluate_pixels(model, labelled, TestSettings())
    assert np.isnan(clean.per_class["rock"]["iou"]) == np.isnan(scores.per_class["rock"]["iou"])


def ships(path: Path, *, bands: bool, empty: int = EMPTY) -> Facts:
    """Return facts of a map with boxes alone, whose first rows hold nothing."""
    values = np.full((3, SIDE, SIDE), 90, np.uint16 if bands else np.uint8)
    values[:, :empty] = 0
    write_raster(path, values, nodata=0, names=BANDS if bands else ())
    objects = (ObjectLabel("ship", (1, 12, 9, 18)), ObjectLabel("ship", (31, 2, 39, 8)))
    item = LabelledImage("a", str(path), SIDE, SIDE, objects=objects, metadata={})
    channels = channels_of(*BANDS) if bands else None
    labelled = LabelledSet("ships", [item], object_classes=("ship", "tug"), channels=channels)
    return facts_of(labelled)


@pytest.mark.parametrize("bands", [False, True])
def test_cells_that_hold_nothing_are_no_background_of_boxes(tmp_path: Path, bands: bool) -> None:
    facts = ships(tmp_path / "a.tif", bands=bands)
    # A ship was labelled in the first row, although the image holds nothing there; of the other cells nothing is known.
    assert facts.grid == [[UNKNOWN] * 3 + ["ship"], ["ship"] + [BACKGROUND] * 3, *[[BACKGROUND] * 4] * 2]
    assert facts.listable == {"ship"}
    asked = QUESTION_TASKS["cells"].ask(facts, np.random.default_rng(0))
    assert asked is not None and "background" not in asked.question.lower()
    for seed in range(20):
        question = QUESTION_TASKS["cell"].ask(facts, np.random.default_rng(seed))
        assert not question.about.startswith("1,") or question.answer == "ship"
        assert QUESTION_TASKS["grid_row"].ask(facts, np.random.default_rng(seed)).about != "0"
    # Half a cell of nothing is the least of which nothing is said, and more than a quarter of the grid is too much.
    assert ships(tmp_path / "b.tif", bands=bands, empty=5).grid[0] == [BACKGROUND] * 3 + ["ship"]
    assert ships(tmp_path / "c.tif", bands=bands, empty=6).grid[0] == [UNKNOWN] * 3 + ["ship"]
    assert ships(tmp_path / "d.tif", bands=bands, empty=20).grid == []


def test_what_one_date_does_not_show_has_not_disappeared(tmp_path: Path) -> None:
    early, late = (tmp_path / f"{name}.tif" for name in ("early", "late"))
    field(late, bands=False)  # its first ten rows hold nothing
    write_raster(early, np.full((3, SIDE, SIDE), 90, np.uint8), nodata=0)
    low, high = ObjectLabel("ship", (1, 12, 9, 18)), ObjectLabel("ship", (31, 2, 39, 8))
    change_objects = QUESTION_TASKS["change_objects"].ask

    def answers(before: tuple[ObjectLabel, ...], after: tuple[ObjectLabel, ...]) -> set[tuple[str, str]]:
        item = LabelledImage(
            "a", str(early), SIDE, SIDE, second_image=str(late), objects=before, later_objects=after
        )
        facts = facts_of(LabelledSet("pairs", [item], object_classes=("ship",)))
        asked = [change_objects(facts, np.random.default_rng(seed)) for seed in range(8)]
        return {(question.about, question.answer) for question in asked if question is not None}

    assert answers((low, high), (low,)) == set()
    assert answers((low,), ()) == {("appeared", "nothing"), ("disappeared", "one ship")}


def test_nothing_is_asked_of_an_image_that_holds_nothing(tmp_path: Path) -> None:
    facts = ships(tmp_path / "a.tif", bands=True, empty=SIDE)
    assert facts.holds_nothing
    config = SynthesisConfig(questions_per_image=20)
    item, classes = replace(facts.item, objects=()), facts.classes
    assert synthesize_with_tasks(item, classes, seed=0, config=config) is None
    some = ships(tmp_path / "b.tif", bands=True).item
    assert synthesize_with_tasks(replace(some, objects=()), classes, seed=0, config=config) is not None


# --- questions that pixels alone answer


def torn(path: Path, *, bands: bool, empty: float) -> LabelledImage:
    """Write a map of bright green, rougher and darker on the right, whose left part (a share) holds nothing."""
    side, rng = 120, np.random.default_rng(0)
    values = np.full((3, side, side), 60, np.uint16 if bands else np.uint8)
    values[1] = 200
    values[:, :, side // 2 :] = values[:, :, side // 2 :] // 2 + rng.integers(1, 30, (1, side, side // 2))
    values[:, :, : round(empty * side)] = 0
    write_raster(path, values, nodata=0, names=BANDS if bands else ())
    return LabelledImage("torn", str(path), side, side)


@pytest.mark.parametrize("bands", [False, True])
def test_pixels_that_hold_nothing_are_no_colour_no_dark_and_no_texture(tmp_path: Path, bands: bool) -> None:
    channels = channels_of(*BANDS, high=250) if bands else None
    whole, some = (look_at(torn(tmp_path / f"{x}.tif", bands=bands, empty=x), channels) for x in (0, 0.2))
    assert whole.held_HW.all() and some.held_HW.mean() == pytest.approx(0.8, abs=0.01)
    assert (some.small_HWC[some.held_HW] > 0).all()
    for seed in range(20):
        for ask in (brighter_half, texture_half):
            answers = {
                question.answer
                for look in (whole, some)
                if (question := ask(look, np.random.default_rng(seed))) is not None
            }
            assert answers <= {"left" if ask is brighter_half else "right"}
    # By its black alone the left would be the darker half.
    left, right = np.array_split(some.small_HWC.mean(2) * some.held_HW, 2, axis=1)
    assert left.mean() < right.mean() + 0.06
    asked = [brighter_half(some, np.random.default_rng(seed)) for seed in range(20)]
    assert {question.answer for question in asked if question is not None} == {"left"}
    # An empty cell looks as one that is blank, so neither is asked for.
    assert missing_patch(whole, np.random.default_rng(0)) is not None
    assert (
        missing_patch(
            look_at(torn(tmp_path / "t.tif", bands=bands, empty=0.3), channels), np.random.default_rng(0)
        )
        is None
    )
    assert look_at(torn(tmp_path / "most.tif", bands=bands, empty=0.6), channels) is None


def test_transparent_pixels_are_no_colour(tmp_path: Path) -> None:
    rgba = np.zeros((100, 100, 4), np.uint8)
    rgba[:, 40:] = (200, 20, 20, 255)
    rgba[70:, 40:] = (20, 200, 20, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    look = look_at(LabelledImage("a", str(tmp_path / "a.png"), 100, 100), None)
    # 42 % are red, 18 % green and 40 % nothing.
    assert look.held_HW.mean() == pytest.approx(0.6, abs=0.01)
    assert colour(look, np.random.default_rng(0)).answer == "red"
    rgba[..., 3] = 255
    Image.fromarray(rgba).save(tmp_path / "b.png")
    assert look_at(LabelledImage("b", str(tmp_path / "b.png"), 100, 100), None).held_HW.all()


def test_views_of_torn_images_differ_by_what_they_show(tmp_path: Path) -> None:
    """A plain square whose corner holds nothing looks turned by that corner alone."""
    values = np.full((3, 120, 120), 120, np.uint8)
    values[:, :30, :30] = 0
    write_raster(tmp_path / "corner.tif", values, nodata=0)
    look = look_at(LabelledImage("corner", str(tmp_path / "corner.tif"), 120, 120), None)
    assert not look.held_HW[:20, :20].any() and look.small_HWC[look.held_HW].std() < 1e-3
    for seed in range(10):
        for ask in VIEW_TASKS.values():
            assert ask(look, np.random.default_rng(seed)) is None
