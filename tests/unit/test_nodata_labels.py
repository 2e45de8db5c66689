"""Questions, statistics and corrupted images of maps: what holds nothing counts for nothing there, either."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.map_models import BrightestBand, channels_of, write_raster
from tests.map_toys import BANDS
from vitp import compile_labels
from vitp.data.seen import SeenBands
from vitp.data.synthesis.build import QUESTION_TASKS, SynthesisConfig
from vitp.data.synthesis.classes import SetClasses
from vitp.data.synthesis.facts import Facts, Limits
from vitp.evaluation.corruptions.catalogue import CORRUPTIONS
from vitp.evaluation.corruptions.sets import corrupted_set, load_pixels
from vitp.records.channels import Channels
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet
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
