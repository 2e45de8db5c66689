"""Labels that can't be used never become "there is nothing here": questions, crops, targets, losses and scores."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitp.data.compile import compile_labels
from vitp.data.formats import vitp_labels
from vitp.data.formats.crops import cut
from vitp.data.formats.empty import is_empty, limit_empty
from vitp.data.formats.vitp_labels import Roots
from vitp.data.ignored import known_semantic, touched
from vitp.data.synthesis.build import SynthesisConfig, synthesize_with_tasks
from vitp.data.synthesis.classes import SetClasses, gather_statistics
from vitp.data.synthesis.facts import UNKNOWN, Facts, Limits
from vitp.objectives.text_tower import has_caption
from vitp.records.labels import BACKGROUND, IGNORE, LabelledImage, LabelledSet, ObjectLabel
from vitp.records.regions import rasterise

CLASSES = ("ship", "crane", "buoy")
LAND = ("water", "quay", "crane")
SIDE = 96


def at(name: str, x1: float, y1: float, x2: float, y2: float, **more: Any) -> ObjectLabel:
    return ObjectLabel(name, (x1, y1, x2, y2), (x1, y1, x2, y1, x2, y2, x1, y2), **more)


def image(*objects: ObjectLabel, ignored: tuple[ObjectLabel, ...] = (), **more: Any) -> LabelledImage:
    return LabelledImage("a", "a.png", SIDE, SIDE, objects=objects, ignored=ignored, **more)


def asked(
    item: LabelledImage, seeds: int = 30, classes: SetClasses | None = None
) -> list[tuple[str, str, str]]:
    """Return (task, question, answer) of many draws."""
    config = SynthesisConfig(questions_per_image=20)
    found = []
    for seed in range(seeds):
        made = synthesize_with_tasks(item, classes or SetClasses(CLASSES, (), LAND), seed=seed, config=config)
        if made is not None:
            found += [
                (task, turn.question, turn.answer) for task, turn in zip(made[1], made[0].turns, strict=True)
            ]
    return found


# Questions

places = st.builds(
    lambda name, x, y, w, h, hard: at(name, x, y, x + w, y + h, difficult=hard),
    st.sampled_from(CLASSES),
    *(st.integers(-10, 90), st.integers(-10, 90), st.integers(11, 60), st.integers(11, 60)),
    st.booleans(),
)


def land(value: int) -> np.ndarray:
    mask_HW = np.full((SIDE, SIDE), value, np.uint8)
    mask_HW[:, 60:] = 1
    return mask_HW


@given(
    objects=st.lists(places, max_size=4),
    ignored=st.lists(places, min_size=1, max_size=2),
    masked=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_nothing_is_denied_counted_or_listed_beside_an_ignored_place(
    objects: list[ObjectLabel], ignored: list[ObjectLabel], masked: bool, seed: int
) -> None:
    hidden = tuple(replace(one, category="DontCare", difficult=False) for one in ignored)
    semantic = partial(land, 0) if masked else None
    item = image(*objects, ignored=hidden, semantic=semantic, scene="harbour" if seed % 2 else None)
    names = SetClasses(CLASSES, ("harbour", "sea"), LAND if masked else ())
    config = SynthesisConfig(questions_per_image=40)
    made = synthesize_with_tasks(item, names, seed=seed, config=config)
    for task, turn in zip(made[1], made[0].turns, strict=True) if made else ():
        assert turn.answer.casefold() not in ("none", "no", "nothing", "0", "0%"), (task, turn)
        assert task not in ("count", "count_compare", "boxes", "oriented", "cells", "change_objects"), turn
        assert not re.search(r"\b(\d+|one|two|three|four) (ship|crane|buoy)", turn.answer), turn
        assert not re.search(r"\b(only|all|no other|nothing)\b", turn.answer), turn


@given(objects=st.lists(places, max_size=5), seed=st.integers(0, 1000))
@settings(max_examples=150, deadline=None)
def test_classes_with_a_difficult_object_are_neither_denied_counted_nor_listed(
    objects: list[ObjectLabel], seed: int
) -> None:
    hard = {one.category for one in objects if one.difficult}
    made = synthesize_with_tasks(
        image(*objects), SetClasses(CLASSES), seed=seed, config=SynthesisConfig(questions_per_image=40)
    )
    clear = {one.category for one in objects if not one.difficult}
    for task, turn in zip(made[1], made[0].turns, strict=True) if made else ():
        for name in hard:
            if name in turn.question:
                assert (task, turn.answer) == ("presence", "yes") and name in clear, turn
            if task == "caption":
                assert name not in turn.answer


def test_a_crowd_leaves_no_question_that_calls_its_place_empty() -> None:
    crowd = at("ship", 8, 8, 88, 88, difficult=True)
    got = asked(image(crowd), classes=SetClasses(CLASSES))
    assert got and {task for task, _, _ in got} <= {"presence", "boxes", "count", "cells", "oriented"}
    assert all("ship" not in question for _, question, _ in got)  # absent are crane and buoy alone
    assert {answer for _, _, answer in got} <= {"no", "none", "0"}
    # A crowd in one cell: the grid is asked, and that cell is not called background.
    small = Facts(image(at("ship", 2, 2, 12, 12, difficult=True)), SetClasses(CLASSES), Limits())
    assert small.grid[0][0] == UNKNOWN and sum(row.count(BACKGROUND) for row in small.grid) == 35
    assert "ship" not in small.listable and small.states["ship"] is None


def test_cells_that_an_unusable_place_touches_are_unknown_and_their_classes_not_listed() -> None:
    ship, crane = at("ship", 0, 0, 16, 16), at("crane", 32, 32, 48, 48)
    known = Facts(image(ship, crane), SetClasses(CLASSES), Limits())
    assert known.grid[0][0] == "ship" and known.listable == {"ship", "crane"}
    # Cells are 16 px: this crowd of buoys reaches one pixel into the ship's cell.
    beside = at("buoy", 15, 0, 20, 10, difficult=True)
    facts = Facts(image(ship, crane, beside), SetClasses(CLASSES), Limits())
    assert facts.grid[0][:3] == [UNKNOWN, UNKNOWN, BACKGROUND]
    assert facts.listable == {"crane"}
    hidden = Facts(image(ship, crane, ignored=(beside,)), SetClasses(CLASSES), Limits())
    assert hidden.grid == facts.grid and not hidden.listable and not hidden.by_class
    assert hidden.states == {"ship": True, "crane": True, "buoy": None}
    edge = Facts(image(ship, ignored=(at("?", 16, 0, 32, 16),)), SetClasses(CLASSES), Limits())
    assert edge.grid[0][:3] == ["ship", UNKNOWN, BACKGROUND]  # a border in common is no touch


def test_what_is_clear_is_still_asked_beside_an_ignored_place() -> None:
    item = image(at("ship", 10, 10, 30, 30), ignored=(at("?", 60, 60, 70, 70),))
    got = asked(item)
    assert {task for task, _, _ in got} >= {"presence", "region_class", "region_attribute", "cell", "grid"}
    assert {answer for task, _, answer in got if task == "presence"} == {"yes"}
    assert {answer for task, _, answer in got if task == "region_class"} == {"ship"}
    # A region that may as well be the ignored label's isn't asked.
    twin = replace(item, ignored=(at("?", 10, 10, 31, 31),))
    assert not [task for task, _, _ in asked(twin) if task.startswith("region")]


def test_images_without_object_labels_get_no_question_about_objects() -> None:
    item = LabelledImage(
        "a", "a.png", SIDE, SIDE, objects=None, ignored=(at("?", 1, 1, 9, 9),), scene="harbour"
    )
    got = asked(item, classes=SetClasses(CLASSES, ("harbour", "sea")))
    assert {task for task, _, _ in got} == {"scene", "scene_options", "caption"}
    assert {answer for task, _, answer in got if task == "caption"} <= {
        "Harbour.", "An image of a harbour.", "This is a harbour.", "A harbour."
    }  # fmt: skip


def test_masks_are_unknown_where_a_place_is_ignored() -> None:
    item = image(ignored=(at("?", 0, 0, 96, 40),), semantic=partial(land, 0))
    mask_HW = known_semantic(item)
    assert (mask_HW[:40] == IGNORE).all() and np.array_equal(mask_HW[40:], land(0)[40:])
    assert np.array_equal(known_semantic(replace(item, ignored=())), land(0))
    facts = Facts(item, SetClasses(CLASSES, (), LAND), Limits())
    assert facts.states == {"water": True, "quay": True, "crane": None, "ship": None, "buoy": None}
    assert facts.grid == []  # 12 of 36 cells are hidden
    points = [question for task, question, _ in asked(item) if task == "point"]
    assert points and all(int(re.findall(r"\d+", one)[-1]) >= 400 for one in points)  # y on 0..1000
    shares = gather_statistics([item, replace(item, ignored=())], SetClasses(CLASSES, (), LAND)).share
    assert shares["crane"] < 0.5  # told of the second image alone


def test_changes_are_not_told_of_pairs_with_ignored_places() -> None:
    pair = replace(image(at("ship", 1, 1, 9, 9)), second_image="b.png", later_objects=())
    assert {task for task, _, _ in asked(pair)} == {"change_objects", "caption"}
    hidden = replace(pair, ignored=(at("?", 50, 50, 60, 60),))
    assert not asked(hidden)


def test_texts_are_made_of_what_can_be_counted() -> None:
    assert has_caption(image(at("ship", 1, 1, 9, 9)))
    assert not has_caption(image(at("ship", 1, 1, 9, 9, difficult=True)))
    assert not has_caption(image(at("ship", 1, 1, 9, 9), ignored=(at("?", 20, 20, 40, 40),)))
    assert not has_caption(image())


# Crops and compiled sets


def labelled_files(folder: Path, *items: LabelledImage, side: int = 100) -> LabelledSet:
    made = []
    for number, item in enumerate(items):
        path = folder / f"{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        made.append(replace(item, id=str(number), image=str(path), width=side, height=side))
    return LabelledSet("set", made, object_classes=CLASSES)


def test_parts_in_crops_are_difficult_and_unusable_places_stay(tmp_path: Path) -> None:
    car = at("ship", 45, 10, 65, 30)  # a quarter is left of x = 50
    crowd = at("crane", 0, 0, 100, 100, difficult=True)
    hidden = at("?", 40, 60, 90, 90)
    hair = at("buoy", 49.5, 80, 70, 90)  # half a pixel is left of x = 50
    whole = labelled_files(tmp_path, image(car, crowd, hair, ignored=(hidden,)))
    crops = {item.id: item for item in cut(whole, 50, 0, tmp_path / "crops", min_visible=0.4).items}
    left, right = crops["0@0,0"], crops["0@50,0"]
    assert left.objects == (
        replace(left.objects[0], box=(45, 10, 50, 30), difficult=True),
        replace(left.objects[1], box=(0, 0, 50, 50), difficult=True),
    )
    assert right.objects[0].box == (0, 10, 15, 30) and not right.objects[0].difficult
    assert left.ignored == () and right.ignored == ()
    below = crops["0@0,50"]
    assert [one.box for one in below.ignored] == [(40, 10, 50, 40)] and not below.ignored[0].difficult
    assert [one.category for one in below.objects] == ["crane"]  # nothing can be seen of half a pixel
    unlabelled = cut(labelled_files(tmp_path, replace(image(), objects=None)), 50, 0, tmp_path / "none")
    assert all(item.objects is None for item in unlabelled.items)


def test_only_known_emptiness_is_left_out_as_empty() -> None:
    hidden = image(ignored=(at("?", 1, 1, 9, 9),))
    crowd = image(at("ship", 1, 1, 9, 9, difficult=True))
    assert is_empty(image())
    assert not any(is_empty(item) for item in (hidden, crowd, replace(image(), objects=None)))
    rest = limit_empty(LabelledSet("set", [image(), hidden, crowd], CLASSES), 0.0, 0)
    assert rest.items == [hidden, crowd]


def test_images_of_which_nothing_can_be_asked_are_counted(tmp_path: Path) -> None:
    everywhere = at("?", 0, 0, 100, 100)
    items = (
        image(ignored=(everywhere,)),
        image(at("ship", 10, 10, 40, 40)),
        image(at("ship", 10, 10, 40, 40), at("ship", 0, 0, 100, 100, difficult=True)),
    )
    src = tmp_path / "src"
    src.mkdir()
    whole = labelled_files(src, *items)
    vitp_labels.write_compiled(whole, Roots(src, src, src))
    summary = compile_labels(src, "vitp", tmp_path / "out")
    train = summary.splits["train"]
    assert summary.unasked == 1 and (train.images, train.records) == (3, 2)
    assert train.objects == {"ship": 2}
    kept = vitp_labels.read_compiled(tmp_path / "out").items
    assert [len(item.ignored) for item in kept] == [1, 0, 0]


def test_coco_crowds_and_strange_classes_leave_no_denial_in_compiled_records(tmp_path: Path) -> None:
    """From annotation files to records, through the readers: a crowd of ships, a class that nobody named."""
    src = tmp_path / "src"
    (src / "images").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for number in range(6):
        Image.fromarray(np.full((96, 96, 3), 40 * number, np.uint8)).save(src / "images" / f"{number}.png")
        label = {"id": number, "image_id": number, "bbox": [16, 16, 64, 64], "area": 4096}
        extra = [{"category_id": 1, "iscrowd": 1}, {"category_id": 9}, {"category_id": 2}][number % 3]
        rows.append({**label, "iscrowd": 0, **extra})
    named = [{"id": number, "file_name": f"{number}.png", "width": 96, "height": 96} for number in range(6)]
    content = {
        "images": named,
        "annotations": rows,
        "categories": [{"id": 1, "name": "ship"}, {"id": 2, "name": "crane"}],
    }
    (src / "annotations").mkdir()
    (src / "annotations" / "instances_train.json").write_text(json.dumps(content))
    config = SynthesisConfig(questions_per_image=30)
    compile_labels(src, "coco", tmp_path / "out", synthesis=config)
    lines = (tmp_path / "out" / "train.jsonl").read_text().splitlines()
    assert lines
    for record in map(json.loads, lines):
        number = int(Path(record["image"]).stem) % 3
        turns = [turn["value"] for turn in record["conversations"]]
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            if number == 0:
                assert "ship" not in question, (question, answer)
            if number == 1:
                assert answer not in ("no", "none", "0"), (question, answer)


@pytest.mark.parametrize(
    ("box", "shape", "cells"),
    [
        ((16, 16, 32, 48), (4, 4), [(1, 1), (2, 1)]),  # along the borders of cells
        ((15.5, 16, 32, 32), (4, 4), [(1, 0), (1, 1)]),
        ((20, 20, 21, 21), (4, 4), [(1, 1)]),  # far smaller than a cell
        ((-50, 50, 3, 80), (4, 4), [(3, 0)]),
        ((64, 0, 90, 9), (4, 4), []),  # outside
    ],
)
def test_touched_cells(box: tuple[float, ...], shape: tuple[int, int], cells: list[tuple[int, int]]) -> None:
    label = ObjectLabel("?", box)  # type: ignore[arg-type]
    assert np.argwhere(touched([label], (64, 64), shape)).tolist() == [list(one) for one in cells]


def test_touched_pixels_are_all_that_an_outline_covers() -> None:
    ring = (10.0, 5.0, 50.0, 20.0, 30.0, 60.0)
    label = ObjectLabel("?", (10, 5, 50, 60), polygons=(ring,))
    found = touched([label], (64, 64), (64, 64))
    inside = rasterise([ring], (64, 64)) > 0
    assert found[inside].all() and found.sum() < inside.sum() * 1.25
    assert torch.from_numpy(touched([label], (64, 64), (16, 16))).sum() < 16 * 16 / 2
