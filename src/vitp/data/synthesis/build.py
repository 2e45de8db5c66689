"""`synthesize_with_tasks`: labels of one image → one instruction record; and the table of all tasks."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np

from vitp.core.errors import ConfigError, did_you_mean
from vitp.core.words import spoken
from vitp.data.synthesis import change_tasks, ground_tasks, image_tasks, object_tasks, volume_tasks
from vitp.data.synthesis.choosing import Chooser, one_weighted
from vitp.data.synthesis.classes import SetClasses
from vitp.data.synthesis.facts import Facts, Limits, Question, place, scale_box, scale_quad
from vitp.data.synthesis.pretext_tasks import PRETEXT_TASKS
from vitp.data.synthesis.scoring import (
    AnswerScore,
    boxes_f1,
    cell_accuracy,
    cells_f1,
    exact,
    list_f1,
    oriented_f1,
    same_number,
    same_share,
    same_yes_no,
    token_f1,
)
from vitp.data.synthesis.volume_facts import VolumeIndex
from vitp.records.instructions import COORDINATE_RANGE, InstructionRecord, Region, Turn
from vitp.records.labels import LabelledImage


@dataclass(frozen=True)
class QuestionTask:
    """One kind of question.

    Attributes:
        ask: Asks one question of an image, or returns None where its labels allow none.
        score: How right an answer is, 0..1, from the predicted and the expected text.
        change: Asked of pairs. The only other task asked of a pair is the caption of its first image.
        balanced: Its answers are chosen so that none of them is frequent over the set.
        given: Where it asks for what somebody labelled: the labels of an image. A rare class is what is looked for
            then, so the task can teach as long as any two labels of the set differ.
        needs: Whether an image has what the task is about at all; the others don't know the task.
        findings: Asked where some classes of the set are findings.
    """

    ask: Callable[[Facts, np.random.Generator], Question | None]
    score: AnswerScore
    change: bool = False
    balanced: bool = False
    given: Callable[[LabelledImage], Iterable[str]] | None = None
    needs: Callable[[LabelledImage], bool] | None = None
    findings: bool = False


def _scenes(item: LabelledImage) -> Iterable[str]:
    return () if item.scene is None else (item.scene,)


def _has_transition(item: LabelledImage) -> bool:
    return item.transition is not None


def _of_metadata(key: str) -> QuestionTask:
    def given(item: LabelledImage) -> Iterable[str]:
        return [value] if (value := (item.metadata or {}).get(key)) else []

    return QuestionTask(
        ground_tasks.asks_metadata(key), exact, given=given, needs=ground_tasks.known_metadata(key)
    )


def _in_millimetres(
    ask: Callable[[Facts, np.random.Generator], Question | None], *, change: bool = False
) -> QuestionTask:
    score = ground_tasks.near_change if change else ground_tasks.near_amount
    return QuestionTask(ask, score, change=change, needs=volume_tasks.has_spacing)


def _of_ground(ask: Callable[[Facts, np.random.Generator], Question | None]) -> QuestionTask:
    return QuestionTask(ask, ground_tasks.near_amount, needs=ground_tasks.has_ground)


QUESTION_TASKS: dict[str, QuestionTask] = {
    "caption": QuestionTask(image_tasks.caption, token_f1, given=attrgetter("captions")),
    "scene": QuestionTask(image_tasks.scene, exact, given=_scenes),
    "scene_options": QuestionTask(image_tasks.scene_options, exact, given=_scenes),
    "tags": QuestionTask(
        image_tasks.tags,
        list_f1,
        needs=lambda item: item.tags is not None and not item.unknown,
        given=lambda item: (", ".join(item.tags or ()),),
    ),
    "presence": QuestionTask(image_tasks.presence, same_yes_no, balanced=True),
    "count": QuestionTask(image_tasks.count, same_number, balanced=True),
    "count_compare": QuestionTask(image_tasks.count_compare, exact),
    "relation": QuestionTask(object_tasks.relation, exact, balanced=True),
    "position": QuestionTask(object_tasks.position, exact),
    "size": QuestionTask(object_tasks.size, exact),
    "box": QuestionTask(object_tasks.box, boxes_f1),
    "boxes": QuestionTask(object_tasks.boxes, boxes_f1),
    "oriented": QuestionTask(object_tasks.oriented, oriented_f1),
    "region_class": QuestionTask(
        object_tasks.region_class, exact, given=lambda item: (label.category for label in item.objects or ())
    ),
    "region_attribute": QuestionTask(object_tasks.region_attribute, exact),
    "grid": QuestionTask(image_tasks.grid, cell_accuracy),
    "grid_row": QuestionTask(image_tasks.grid_row, cell_accuracy),
    "cells": QuestionTask(image_tasks.cells, cells_f1),
    "cell": QuestionTask(image_tasks.cell, exact),
    "point": QuestionTask(image_tasks.point, exact),
    "cover": QuestionTask(image_tasks.cover, same_share),
    "dominant": QuestionTask(image_tasks.dominant, exact),
    "change_caption": QuestionTask(
        change_tasks.change_caption, token_f1, change=True, given=attrgetter("change_captions")
    ),
    "change": QuestionTask(change_tasks.change, same_yes_no, change=True, balanced=True),
    "change_part": QuestionTask(change_tasks.change_part, same_yes_no, change=True, balanced=True),
    "change_boxes": QuestionTask(change_tasks.change_boxes, boxes_f1, change=True),
    "change_cells": QuestionTask(change_tasks.change_cells, cells_f1, change=True),
    "change_share": QuestionTask(change_tasks.change_share, same_share, change=True),
    "change_objects": QuestionTask(change_tasks.change_objects, list_f1, change=True),
    "transitions": QuestionTask(change_tasks.transitions, list_f1, change=True, needs=_has_transition),
    "transition_point": QuestionTask(
        change_tasks.transition_point, list_f1, change=True, needs=_has_transition
    ),
    "size_metres": _of_ground(ground_tasks.size_metres),
    "area_metres": _of_ground(ground_tasks.area_metres),
    "cover_hectares": _of_ground(ground_tasks.cover_hectares),
    "distance_metres": _of_ground(ground_tasks.distance_metres),
    "extent_metres": _of_ground(ground_tasks.extent_metres),
    "ground_resolution": _of_ground(ground_tasks.ground_resolution),
    **{key: _of_metadata(key) for key in ground_tasks.METADATA},
    "slice_level": QuestionTask(volume_tasks.slice_level, exact, needs=volume_tasks.is_slice),
    "level_of_class": QuestionTask(volume_tasks.level_of_class, exact, needs=volume_tasks.is_slice),
    "side": QuestionTask(volume_tasks.side, exact, needs=volume_tasks.has_sides),
    "side_of_class": QuestionTask(volume_tasks.side_of_class, exact, needs=volume_tasks.has_sides),
    "diameter_mm": _in_millimetres(volume_tasks.diameter_mm),
    "extent_mm": _in_millimetres(volume_tasks.extent_mm),
    "area_mm2": _in_millimetres(volume_tasks.area_mm2),
    "volume_ml": _in_millimetres(volume_tasks.volume_ml),
    "abnormal": QuestionTask(volume_tasks.abnormal, same_yes_no, balanced=True, findings=True),
    "findings": QuestionTask(volume_tasks.findings, list_f1, balanced=True, findings=True),
    "growth": QuestionTask(volume_tasks.growth, exact, change=True, needs=volume_tasks.has_spacing),
    "growth_mm": _in_millimetres(volume_tasks.growth_mm, change=True),
    "growth_mm2": _in_millimetres(volume_tasks.growth_mm2, change=True),
    "growth_ml": _in_millimetres(volume_tasks.growth_ml, change=True),
    "block": QuestionTask(object_tasks.block, exact),
    # Asked of pixels, in records of their own: see `pretext_tasks.pretext_records`.
    **{
        name: QuestionTask(lambda _facts, _rng: None, exact, needs=lambda _item: False)
        for name in PRETEXT_TASKS
    },
}


CONTEXT = "context"
"""Not a question: half of the records (at weight 1) begin with what is known of how the image was taken, as far as it
would be asked for; what all images of a set have in common isn't told."""

TASK_NAMES = (*QUESTION_TASKS, CONTEXT)
"""What weights can be given to."""


def tasks_asked(item: LabelledImage, classes: SetClasses) -> list[str]:
    """Return the names of the tasks that can be asked of an image, or of a pair, of a set."""
    pair = item.second_image is not None
    names = [
        name
        for name, task in QUESTION_TASKS.items()
        if task.change == pair
        and (task.needs is None or task.needs(item))
        and (classes.abnormal_classes or not task.findings)
    ]
    return [*names, "caption"] if pair else names


def _task(name: str, where: str) -> QuestionTask:
    if name not in QUESTION_TASKS:
        fix = did_you_mean(name, QUESTION_TASKS) or f"choose from {', '.join(QUESTION_TASKS)}"
        raise ConfigError(f'there is no task "{name}"', where=where, fix=fix)
    return QUESTION_TASKS[name]


def score_answer(task: str, predicted: str, expected: str) -> float:
    """Return how right an answer is, 0..1, in the measure of its task.

    Raises:
        ConfigError: The task is unknown.
    """
    return _task(task, "scoring").score(predicted, expected)


@dataclass(frozen=True)
class SynthesisConfig(Limits):
    """Settings of the questions that are asked about each image.

    Attributes:
        questions_per_image: Most questions in one record.
        tasks: Task → weight. Tasks that are not named have weight 1 (block: 0), 0 switches a task off, 6 lets it come
            up to six times before all others have come once.
        grid_always: Each image that has a grid gets the grid question, as its first.
        neighbours: Slices of a volume on either side that are shown with the one that is asked about.
        pretext: Tasks that need no labels have weight 1, too; otherwise 0.
        wordings: Only the first so many wordings of each kind of question are asked; 0: all of them. With 1 each kind
            has one form, which a language model learns to look by several times sooner.

    Raises:
        ConfigError: A task is unknown or a number is out of range.
    """

    questions_per_image: int = 6
    tasks: Mapping[str, float] = field(default_factory=dict)
    grid_always: bool = False
    neighbours: int = 0
    pretext: bool = False
    wordings: int = 0

    def __post_init__(self) -> None:
        for name, weight in self.tasks.items():
            if name != CONTEXT:
                _task(name, "synthesis tasks")
            if not 0 <= weight < float("inf"):
                what, where = f"weight {weight} is not a number from 0 on", f"synthesis task {name}"
                raise ConfigError(what, where=where, fix="use 0 or more")
        ranges = {
            "questions_per_image": (1, 1000),
            "grid": (1, 64),
            "max_boxes": (1, 1000),
            "coordinate_range": (10, COORDINATE_RANGE),
            "neighbours": (0, 16),
            "wordings": (0, 100),
        }
        fixes = {
            key: f"use {low} to {high}"
            for key, (low, high) in ranges.items()
            if not low <= getattr(self, key) <= high
        }
        if not 0 < self.object_share <= 1:
            fixes["object_share"] = "use above 0, up to 1"
        for key, fix in fixes.items():
            raise ConfigError(f"{getattr(self, key)} is out of range", where=f"synthesis {key}", fix=fix)
        if self.oriented_style not in ("quad", "geochat"):
            what = f'there is no style "{self.oriented_style}"'
            raise ConfigError(what, where="synthesis oriented_style", fix="use quad or geochat")

    def weight(self, task: str) -> float:
        """Return the weight of a task."""
        asked = task not in _ON_REQUEST and (self.pretext or task not in PRETEXT_TASKS)
        return float(self.tasks.get(task, float(asked)))

    def stated(self) -> dict[str, Any]:
        """Return all settings but those that are younger than compiled sets and neutral: what tells sets apart."""
        values = asdict(self)
        return {key: value for key, value in values.items() if key not in _YOUNGER or value}


_ON_REQUEST = ("block",)
"""Tasks whose weight is 0 where they aren't named: what sets were compiled of before they were there stays the same."""

_YOUNGER = ("wordings",)
"""Settings that compiled sets of earlier versions don't state; they are off where they are 0."""

_DUPLICATES = 8
"""Times that a task may come up with a question it has asked already before it is left alone."""


def _questions(
    facts: Facts, config: SynthesisConfig, rng: np.random.Generator, told: bool = False
) -> list[tuple[str, Question]]:
    """Choose tasks in rounds until there are enough questions; what the record tells already isn't asked.

    In a round a task is chosen by its weight, and each choice uses up 1 of it: tasks of weight 1 or less come once a
    round, one of weight 6 up to six times. A task that answers None is not tried again: its None may be half of a
    yes/no balance.
    """
    if facts.holds_nothing:
        return []
    names = tasks_asked(facts.item, facts.classes)
    if told:
        names = [name for name in names if name not in (*ground_tasks.METADATA, "ground_resolution")]
    # How often each task may still repeat itself; tasks with nothing left to ask are taken out.
    patience = {name: _DUPLICATES for name in names if config.weight(name) > 0}
    asked: list[tuple[str, Question]] = []
    seen: set[tuple[str, str]] = set()

    def attempt(name: str) -> None:
        question = QUESTION_TASKS[name].ask(facts, rng)
        if question is None:
            patience.pop(name, None)
        elif (name, question.about) in seen:
            patience[name] -= 1
            if not patience[name]:
                del patience[name]
        else:
            seen.add((name, question.about))
            asked.append((name, question))

    if config.grid_always and facts.item.second_image is None:
        attempt("grid")
    while patience and len(asked) < config.questions_per_image:
        credit = {name: config.weight(name) for name in patience}
        while credit and len(asked) < config.questions_per_image:
            name = one_weighted(rng, list(credit), list(credit.values()))
            attempt(name)
            credit[name] -= 1
            if credit[name] <= 0 or name not in patience:
                del credit[name]
    return asked


def _regions(item: LabelledImage, first: int) -> Iterator[Region]:
    for image, labels in enumerate((item.objects or (), item.later_objects or ()), first):
        for label in labels:
            placed = place(label, item.width, item.height)
            if placed.share > 0 and not label.difficult:
                box, quad = scale_box(placed.box, COORDINATE_RANGE), None
                if label.quad is not None:
                    quad = scale_quad(label.quad, item.width, item.height, COORDINATE_RANGE)
                yield Region(spoken(label.category), box, quad, image)


def synthesize_with_tasks(
    item: LabelledImage,
    classes: SetClasses,
    *,
    seed: int,
    config: SynthesisConfig | None = None,
    epoch: int = 0,
    volumes: VolumeIndex | None = None,
    named: Callable[[str], str] = str,
) -> tuple[InstructionRecord, tuple[str, ...]] | None:
    """Turn the labels of an image, or of a pair, into a record of independent questions about it.

    The same arguments give the same record; another epoch asks other questions.

    Args:
        item: The image and its labels; its mask is read once.
        classes: Classes of the set; `SetClasses.from_set` adds the statistics that balance the answers.
        seed: Seed, from 0 on.
        config: What to ask.
        epoch: From 0 on; above 0 it is added to the record's id as `@epoch`.
        volumes: The slices of the set, for questions about a slice's volume and for `config.neighbours`.
        named: Address of an image → what the record calls it.

    Returns:
        The record and the task of each of its turns, or None when nothing is known of the image that the tasks
        could ask.
    """
    config = config or SynthesisConfig()
    seeds = [seed, epoch, zlib.crc32(item.id.encode(errors="surrogatepass"))]
    rng = Chooser(seeds, config.wordings)
    context = ground_tasks.context_line(item, lambda name: config.weight(name) > 0)
    # Without anything to tell no random number is drawn: such records stay what they were.
    if context and rng.random() >= config.weight(CONTEXT) / 2:
        context = ""
    before, after = ((), ()) if volumes is None else volumes.beside(item, config.neighbours)
    shown = (*before, item, *after)
    asked = _questions(Facts(item, classes, config, volumes, shown), config, rng, bool(context))
    if not asked:
        return None
    images = tuple(one.image for one in shown)
    marks = volume_tasks.slice_marks(shown, len(before))
    if len(shown) == 1:
        images = (item.image, *item.series) if item.second_image is None else (item.image, item.second_image)
        marks = ground_tasks.image_marks(item, dated=config.weight(CONTEXT) > 0)
    prefix = (f"{context}\n" if context else "") + marks
    turns = [Turn(question.question, question.answer) for _, question in asked]
    turns[0] = Turn(prefix + turns[0].question, turns[0].answer)
    record = InstructionRecord(
        id=f"{item.id}@{epoch}" if epoch else item.id,
        images=tuple(map(named, images)),
        turns=tuple(turns),
        sizes=((item.width, item.height),) * len(images),
        independent=True,
        regions=tuple(_regions(item, len(before))),
        source=classes.name,
        licence=classes.licence,
    )
    return record, tuple(name for name, _ in asked)
