"""Labels → instructions: answers are true, balanced, parseable, and the same for the same arguments."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.synthesis_toys import COUNT, LAND, OBJECTS, make_image, only, port, rectangle, turns_of
from vitp.core.words import cell_name, plural, spoken
from vitp.data.synthesis import phrases
from vitp.data.synthesis.answers import (
    format_cells,
    grid_rows,
    parse_boxes,
    parse_cells,
    parse_count,
    parse_quads,
    parse_yes_no,
)
from vitp.data.synthesis.build import (
    QUESTION_TASKS,
    SynthesisConfig,
    score_answer,
    synthesize_with_tasks,
    tasks_asked,
)
from vitp.data.synthesis.classes import SetClasses
from vitp.data.synthesis.facts import Facts, Limits, scale_box
from vitp.records.instructions import InstructionRecord
from vitp.records.labels import BACKGROUND, IGNORE, LabelledImage, LabelledSet, ObjectLabel

__all__ = ["port"]  # a fixture


def record_of(item: LabelledImage, classes: SetClasses, **options: Any) -> InstructionRecord | None:
    """Return the record that is made of an image, without the tasks of its turns."""
    made = synthesize_with_tasks(item, classes, **options)
    return None if made is None else made[0]


def fraction_box(label: ObjectLabel, size: int) -> tuple[int, int, int, int]:
    """Return the box that an answer should have."""
    x1, y1, x2, y2 = (v / size for v in label.box)
    return scale_box((x1, y1, x2, y2), 1000)


@pytest.fixture(scope="module")
def pairs() -> LabelledSet:
    return LabelledSet("pairs", [make_image(i, pair=True) for i in range(COUNT)], OBJECTS, (), LAND + OBJECTS)


def classes_in(text: str) -> str:
    """Return the object or land class that a question names."""
    names = sorted(OBJECTS + LAND, key=len, reverse=True)
    return next(n for n in names if spoken(n) in text.lower() or plural(n) in text.lower())


# Records


def test_record_is_complete_and_the_same_each_time(port: LabelledSet) -> None:
    classes = SetClasses.from_set(port)
    record = record_of(port.items[3], classes, seed=5)
    assert record is not None
    assert record == record_of(port.items[3], classes, seed=5)
    assert record.id == "image-3" and record.images == ("images/3.png",) and record.sizes == ((96, 96),)
    assert record.independent and record.prefix == "<image>\n" and record.source == "port"
    assert record.licence == "CC0" and len(record.turns) == 6
    assert len(record.regions) == len(port.items[3].objects or ())
    assert all(0 <= v <= 1000 for region in record.regions for v in (*region.box, *(region.quad or ())))
    other = record_of(port.items[3], classes, seed=5, epoch=1)
    assert other is not None and other.id == "image-3@1" and other.turns != record.turns
    assert record_of(port.items[3], classes, seed=6) != record


def test_pairs_have_two_marks_and_only_change_questions(pairs: LabelledSet) -> None:
    record, tasks = synthesize_with_tasks(pairs.items[0], SetClasses.from_set(pairs), seed=0) or (None, ())
    assert record is not None and record.prefix == "Image-1: <image>\nImage-2: <image>\n"
    assert record.images == ("images/0.png", "later/0.png") and record.sizes == ((96, 96), (96, 96))
    assert set(tasks) <= set(tasks_asked(pairs.items[0], SetClasses.from_set(pairs)))


def test_mask_is_read_once_and_unlabelled_images_give_nothing(port: LabelledSet) -> None:
    calls: list[str] = []
    item = port.items[1]
    read = item.semantic
    assert read is not None

    def counted_read() -> np.ndarray:
        calls.append("read")
        return read()

    everything = SynthesisConfig(questions_per_image=40)
    assert record_of(
        replace(item, semantic=counted_read), SetClasses.from_set(port), seed=0, config=everything
    )
    assert calls == ["read"]
    assert record_of(LabelledImage("x", "x.png", 10, 10), SetClasses.from_set(port), seed=0) is None


def test_every_task_is_asked_and_questions_are_short(port: LabelledSet, pairs: LabelledSet) -> None:
    described = [replace(item, change_captions=("A crane is gone.",)) for item in pairs.items[:100]]
    field_HW = np.zeros((10, 10), np.uint8)
    became = replace(
        pairs,
        change_classes=("field", "building"),
        items=[
            replace(item, transition=lambda: np.stack([field_HW, 1 - field_HW])) for item in described[:20]
        ],
    )
    tagged = replace(
        port, scene_classes=("sea", "land"), items=[replace(item, tags=("sea",)) for item in port.items[:9]]
    )
    asked = set()
    for labelled in (port, replace(pairs, items=described), became, tagged):
        for _, task, question, _ in turns_of(labelled, SynthesisConfig(tasks={"block": 1.0})):
            asked.add(task)
            words = re.sub(r"<box>.*</box>", "box", question).split()
            assert len(words) <= 15 or task == "scene_options", question  # a list of options may be longer
    some = {"transitions", "transition_point", "tags"}  # the others with a need are of places and of bodies
    always = {name for name, task in QUESTION_TASKS.items() if task.needs is None and not task.findings}
    assert asked == some | always


def test_each_task_has_six_wordings(port: LabelledSet) -> None:
    wordings = {name: value for name, value in vars(phrases).items() if name.isupper()}
    assert len(wordings) >= len(QUESTION_TASKS)
    for name, options in wordings.items():
        assert len(set(options)) == len(options) >= 6, name
    seen = defaultdict(set)
    for _, _, question, answer in turns_of(port, only("grid_row")):
        seen[re.sub(r"\d", "", question)].add(answer)
    assert len(seen) == 6


# Answers are true


def test_counts_presence_and_boxes_agree_with_the_labels(port: LabelledSet) -> None:
    config = only("count", "presence", "boxes", "oriented", questions_per_image=12)
    checked: Counter[str] = Counter()
    for item, task, question, answer in turns_of(port, config):
        name = classes_in(question)
        truth = [o for o in item.objects or () if o.category == name]
        if task == "count":
            assert parse_count(answer) == len(truth)
        elif task == "presence":
            assert item.semantic is not None
            value = (LAND + OBJECTS).index(name)
            assert parse_yes_no(answer) == (
                bool(truth) if name in OBJECTS else (item.semantic() == value).any()
            )
        elif task == "boxes":
            assert answer == "none" if not truth else len(parse_boxes(answer)) == len(truth)
            tops = [box[1] for _, box in parse_boxes(answer)]
            assert tops == sorted(tops)
        else:
            assert answer == "none" if not truth else len(parse_quads(answer)) == len(truth)
        checked[task] += 1
    assert min(checked[t] for t in ("count", "presence", "boxes", "oriented")) > 200


def test_box_expressions_name_the_right_object(port: LabelledSet) -> None:
    checked: Counter[str] = Counter()
    for item, _, question, answer in turns_of(port, only("box", questions_per_image=4)):
        ((label, box),) = parse_boxes(answer)
        truth = [o for o in item.objects or () if spoken(o.category) == label]
        word = next((w for w in ("leftmost", "topmost", "largest", "smallest") if w in question), "")
        area = [(o.box[2] - o.box[0]) * (o.box[3] - o.box[1]) for o in truth]
        keys = {
            "leftmost": [o.box[0] + o.box[2] for o in truth],
            "topmost": [o.box[1] + o.box[3] for o in truth],
            "largest": [-a for a in area],
            "smallest": area,
            "": [0.0],
        }[word]
        if word or len(truth) == 1:
            best = truth[int(np.argmin(keys))]
            assert box == fraction_box(best, 96)
            checked[word] += 1
    assert min(checked.values()) > 30 and len(checked) == 5


def test_more_objects_than_boxes_are_asked_for_by_number() -> None:
    objects = tuple(rectangle("ship", 50, 10 + 8 * i, 6, 4) for i in range(11))
    labelled = LabelledSet("s", [LabelledImage("a", "a.png", 100, 100, objects=objects)], ("ship",))
    ((_, _, question, answer),) = turns_of(labelled, only("boxes", max_boxes=3))
    assert "3" in question
    assert [box for _, box in parse_boxes(answer)] == [fraction_box(o, 100) for o in objects[:3]]
    assert not list(turns_of(labelled, only("oriented", max_boxes=3)))


def test_grid_follows_the_majority_of_the_mask() -> None:
    mask = np.zeros((12, 18), np.uint8)
    mask[:6, 9:] = 1
    mask[6:, :9] = IGNORE
    mask[0, 0] = 2  # one pixel of 54 does not name the cell
    item = LabelledImage("a", "a.png", 18, 12, semantic=lambda: mask)
    labelled = LabelledSet(
        "s", [item], semantic_classes=("water", "bare_soil", "ship"), object_classes=("ship",)
    )
    ((_, _, _, answer),) = turns_of(labelled, only("grid", grid=2))
    assert answer == "water bare-soil; unknown water"
    assert grid_rows(answer) == [["water", "bare-soil"], ["unknown", "water"]]
    assert Facts(item, SetClasses.from_set(labelled), Limits(grid=2, object_share=0.01)).grid[0][0] == "ship"


def test_grid_of_objects_only_has_background_and_keeps_small_objects() -> None:
    objects = (rectangle("ship", 15, 15, 30, 30), rectangle("buoy", 75, 45, 2, 2))
    item = LabelledImage("a", "a.png", 90, 90, objects=objects)
    facts = Facts(item, SetClasses(("ship", "buoy")), Limits(grid=3))
    assert facts.grid == [
        ["ship", BACKGROUND, BACKGROUND],
        [BACKGROUND, BACKGROUND, "buoy"],
        [BACKGROUND] * 3,
    ]
    empty = replace(item, objects=())
    assert Facts(empty, SetClasses(("ship",)), Limits(grid=2)).grid == [[BACKGROUND] * 2] * 2


def test_cells_rows_points_and_cover_agree_with_the_mask(port: LabelledSet) -> None:
    classes = SetClasses.from_set(port)
    checked: Counter[str] = Counter()
    for item, task, question, answer in turns_of(port, only("cells", "cell", "grid_row", "point", "cover")):
        facts = Facts(item, classes, Limits())
        numbers = [int(v) for v in re.findall(r"\d+", question)]
        assert facts.mask is not None
        if task == "cells":
            name = classes_in(question)
            held = [(r, c) for r in range(1, 7) for c in range(1, 7) if facts.grid[r - 1][c - 1] == name]
            assert answer == format_cells(held) and parse_cells(answer) == held
        elif task == "cell":
            places = list(itertools.pairwise(numbers))
            assert any(spoken(facts.grid[r - 1][c - 1]) == answer for r, c in places if max(r, c) <= 6)
        elif task == "grid_row":
            assert grid_rows(answer)[0] in [[cell_name(n) for n in row] for row in facts.grid]
        elif task == "point":
            x, y = numbers
            assert spoken((LAND + OBJECTS)[facts.mask[y * 96 // 1000, x * 96 // 1000]]) == answer
        else:
            share = 100 * float((facts.mask == (LAND + OBJECTS).index(classes_in(question))).mean())
            assert answer != "0%" or not share
            if answer.startswith("less"):
                assert answer == "less than 5%" and 0 < share <= 2.5
            else:
                assert abs((parse_count(answer) or 0) - share) <= 2.5 + 1e-9
        checked[task] += 1
    assert min(checked.values()) > 120 and len(checked) == 5


def test_change_answers(pairs: LabelledSet) -> None:
    item = replace(make_image(0, pair=True), objects=(rectangle("ship", 20, 20, 10, 10),) * 1)
    mask = np.zeros((96, 96), bool)
    mask[0:16, 16:48] = True
    gone = (
        rectangle("ship", 20, 21, 10, 10),
        rectangle("crane", 60, 60, 9, 9),
        rectangle("crane", 80, 60, 9, 9),
    )
    item = replace(item, change=lambda: mask, later_objects=gone)
    got = defaultdict(set)
    for _, task, _, answer in turns_of(replace(pairs, items=[item]), SynthesisConfig(), seeds=20):
        got[task].add(answer)
    assert got["change_boxes"] == {"<ref>change</ref><box>[[167, 0, 500, 167]]</box>"}
    assert got["change_cells"] == {"1,2; 1,3"}
    assert got["change_share"] == {"6%"}
    assert got["change_objects"] == {"two cranes", "nothing"}
    assert got["change_part"] == {"yes", "no"}


def test_difficult_objects_are_not_counted_and_leave_presence_open() -> None:
    hard = replace(rectangle("ship", 20, 20, 10, 10), difficult=True)
    item = LabelledImage("a", "a.png", 96, 96, objects=(hard, rectangle("crane", 60, 60, 10, 10)))
    facts = Facts(item, SetClasses(("ship", "crane", "buoy")), Limits())
    assert facts.states == {"ship": None, "crane": True, "buoy": False}
    assert list(facts.by_class) == ["crane"]


# Balance


@pytest.mark.parametrize("questions", [1, 4])
def test_presence_is_balanced_over_the_set_and_not_told_by_the_class(
    port: LabelledSet, questions: int
) -> None:
    answers: Counter[str] = Counter()
    by_class: dict[str, Counter[str]] = defaultdict(Counter)
    for _, _, question, answer in turns_of(port, only("presence", questions_per_image=questions), seeds=3):
        answers[answer] += 1
        by_class[classes_in(question)][answer] += 1
    assert 0.47 < answers["yes"] / answers.total() < 0.53
    # Guessing by class alone must not pay: the classes are present in 5 % to 90 % of the images.
    guessed = sum(max(c.values()) for c in by_class.values()) / answers.total()
    assert guessed < 0.65


def test_a_class_that_is_always_there_is_not_asked_for() -> None:
    items = [
        replace(make_image(i), objects=(rectangle("ship", 40, 40, 9, 9),), semantic=None) for i in range(50)
    ]
    labelled = LabelledSet("s", items, ("ship",))
    assert not list(turns_of(labelled, only("presence")))
    assert all(answer != "none" for *_, answer in turns_of(labelled, only("boxes")))


def test_yes_and_no_are_balanced_for_relations_and_change(port: LabelledSet, pairs: LabelledSet) -> None:
    for labelled, task in ((port, "relation"), (pairs, "change"), (pairs, "change_part")):
        answers: Counter[str] = Counter()
        answers.update(a for *_, a in turns_of(labelled, only(task, questions_per_image=1), seeds=3))
        yes = answers["yes"] / (answers["yes"] + answers["no"])
        assert 0.45 < yes < 0.55, (task, answers)


def test_none_is_at_most_about_half_of_grounding(port: LabelledSet) -> None:
    for task in ("boxes", "oriented", "cells"):
        answers = [a for *_, a in turns_of(port, only(task, questions_per_image=1))]
        assert 0.4 < sum(a == "none" for a in answers) / len(answers) < 0.56, task


def test_wording_does_not_tell_the_answer(port: LabelledSet) -> None:
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for _, _, question, answer in turns_of(port, only("presence"), seeds=4):
        table[question.replace(plural(classes_in(question)), "").split(" any")[0]][answer] += 1
    for wording, answers in table.items():
        assert 0.4 < answers["yes"] / answers.total() < 0.6, (wording, answers)


def test_true_answers_score_one(port: LabelledSet, pairs: LabelledSet) -> None:
    for labelled in (port, pairs):
        small = replace(labelled, items=labelled.items[:100])
        assert all(score_answer(task, a, a) == 1 for _, task, _, a in turns_of(small, SynthesisConfig()))
