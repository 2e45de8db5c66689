"""`synthesize`: labels of one image → one instruction record."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from vitp.core.errors import ConfigError, did_you_mean
from vitp.core.words import spoken
from vitp.data.synthesis import cell_tasks, change_tasks, grounding_tasks, image_tasks, object_tasks
from vitp.data.synthesis.choosing import draw_weighted
from vitp.data.synthesis.classes import SetClasses
from vitp.data.synthesis.facts import Facts, Limits, Question, place, scale_box, scale_quad
from vitp.records.instructions import COORDINATE_RANGE, InstructionRecord, Region, Turn
from vitp.records.labels import LabelledImage

Task = Callable[[Facts, np.random.Generator], Question | None]

TASKS: dict[str, Task] = {
    "caption": image_tasks.caption,
    "scene": image_tasks.scene,
    "scene_options": image_tasks.scene_options,
    "presence": image_tasks.presence,
    "count": image_tasks.count,
    "count_compare": image_tasks.count_compare,
    "relation": object_tasks.relation,
    "position": object_tasks.position,
    "size": object_tasks.size,
    "box": object_tasks.box,
    "boxes": grounding_tasks.boxes,
    "oriented": grounding_tasks.oriented,
    "region_class": object_tasks.region_class,
    "region_attribute": object_tasks.region_attribute,
    "grid": cell_tasks.grid,
    "grid_row": cell_tasks.grid_row,
    "cells": cell_tasks.cells,
    "cell": cell_tasks.cell,
    "point": cell_tasks.point,
    "cover": cell_tasks.cover,
    "dominant": cell_tasks.dominant,
    "change_caption": change_tasks.change_caption,
    "change": change_tasks.change,
    "change_part": change_tasks.change_part,
    "change_boxes": change_tasks.change_boxes,
    "change_cells": change_tasks.change_cells,
    "change_share": change_tasks.change_share,
    "change_objects": change_tasks.change_objects,
}
"""Task name → function that asks one question of an image, or returns None where its labels allow none."""

CHANGE_TASKS = (
    "change_caption",
    "change",
    "change_part",
    "change_boxes",
    "change_cells",
    "change_share",
    "change_objects",
)
"""Tasks for pairs. The only other one asked of a pair is the caption of its first image."""


@dataclass(frozen=True)
class SynthesisConfig(Limits):
    """What is asked of each image.

    Attributes:
        questions_per_image: Most questions in one record.
        tasks: Task → weight. Tasks that are not named have weight 1, 0 switches a task off, 6 lets it come up to six
            times before all others have come once.
        grid_always: Each image that has a grid gets the grid question, as its first.

    Raises:
        ConfigError: A task is unknown or a number is out of range.
    """

    questions_per_image: int = 6
    tasks: Mapping[str, float] = field(default_factory=dict)
    grid_always: bool = False

    def __post_init__(self) -> None:
        for name, weight in self.tasks.items():
            if name not in TASKS:
                hint = did_you_mean(name, TASKS) or f"choose from {', '.join(TASKS)}"
                raise ConfigError(f'there is no task "{name}"', where="synthesis tasks", fix=hint)
            if not 0 <= weight < float("inf"):
                raise ConfigError(
                    f"weight {weight} is not a number from 0 on",
                    where=f"synthesis task {name}",
                    fix="use 0 or more",
                )
        ranges = {
            "questions_per_image": (1, 1000),
            "grid": (1, 64),
            "max_boxes": (1, 1000),
            "coordinate_range": (10, COORDINATE_RANGE),
        }
        for key, (low, high) in ranges.items():
            if not low <= getattr(self, key) <= high:
                raise ConfigError(
                    f"{getattr(self, key)} is out of range",
                    where=f"synthesis {key}",
                    fix=f"use {low} to {high}",
                )
        if not 0 < self.object_share <= 1:
            raise ConfigError(
                f"{self.object_share} is out of range",
                where="synthesis object_share",
                fix="use above 0, up to 1",
            )
        if self.oriented_style not in ("quad", "geochat"):
            raise ConfigError(
                f'there is no style "{self.oriented_style}"',
                where="synthesis oriented_style",
                fix="use quad or geochat",
            )

    def weight(self, task: str) -> float:
        """Return the weight of a task."""
        return float(self.tasks.get(task, 1.0))


DUPLICATES = 8
"""Times that a task may come up with a question it has asked already before it is left alone."""


def _questions(facts: Facts, config: SynthesisConfig, rng: np.random.Generator) -> list[tuple[str, Question]]:
    """Draw tasks in rounds until there are enough questions.

    In a round a task is drawn by its weight, and each draw uses up 1 of it: tasks of weight 1 or less come once a
    round, one of weight 6 up to six times. A task that answers None is not tried again: its None may be half of a
    yes/no balance.
    """
    if facts.item.second_image is None:
        names = [name for name in TASKS if name not in CHANGE_TASKS]
    else:
        names = [*CHANGE_TASKS, "caption"]
    # How often each task may still repeat itself; tasks with nothing left to ask are taken out.
    patience = {name: DUPLICATES for name in names if config.weight(name) > 0}
    asked: list[tuple[str, Question]] = []
    seen: set[tuple[str, str]] = set()

    def attempt(name: str) -> None:
        question = TASKS[name](facts, rng)
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
            name = draw_weighted(rng, list(credit), list(credit.values()))
            attempt(name)
            credit[name] -= 1
            if credit[name] <= 0 or name not in patience:
                del credit[name]
    return asked


def _regions(item: LabelledImage) -> tuple[Region, ...]:
    found = []
    for image, labels in enumerate((item.objects or (), item.later_objects or ())):
        for label in labels:
            placed = place(label, item.width, item.height)
            if placed.share > 0 and not label.difficult:
                quad = label.quad
                found.append(
                    Region(
                        spoken(label.category),
                        scale_box(placed.box, COORDINATE_RANGE),
                        None if quad is None else scale_quad(quad, item.width, item.height, COORDINATE_RANGE),
                        image,
                    )
                )
    return tuple(found)


def synthesize_with_tasks(
    item: LabelledImage,
    classes: SetClasses,
    *,
    seed: int,
    config: SynthesisConfig | None = None,
    epoch: int = 0,
) -> tuple[InstructionRecord, tuple[str, ...]] | None:
    """Like `synthesize`, with the task of each turn beside the record."""
    config = config or SynthesisConfig()
    rng = np.random.default_rng(
        np.random.SeedSequence([seed, epoch, zlib.crc32(item.id.encode(errors="surrogatepass"))])
    )
    asked = _questions(Facts(item, classes, config), config, rng)
    if not asked:
        return None
    pair = item.second_image is not None
    prefix = "Image-1: <image>\nImage-2: <image>\n" if pair else "<image>\n"
    turns = [Turn(question.question, question.answer) for _, question in asked]
    turns[0] = Turn(prefix + turns[0].question, turns[0].answer)
    size = (item.width, item.height)
    record = InstructionRecord(
        id=f"{item.id}@{epoch}" if epoch else item.id,
        images=(item.image, item.second_image) if item.second_image is not None else (item.image,),
        turns=tuple(turns),
        sizes=(size, size) if pair else (size,),
        independent=True,
        regions=_regions(item),
        source=classes.name,
        licence=classes.licence,
    )
    return record, tuple(name for name, _ in asked)


def synthesize(
    item: LabelledImage,
    classes: SetClasses,
    *,
    seed: int,
    config: SynthesisConfig | None = None,
    epoch: int = 0,
) -> InstructionRecord | None:
    """Turn the labels of an image, or of a pair, into a record of independent questions about it.

    The same arguments give the same record; another epoch asks other questions.

    Args:
        item: The image and its labels; its mask is read once.
        classes: Of the set; `SetClasses.from_set` adds the statistics that balance the answers.
        seed: From 0 on.
        config: What to ask.
        epoch: From 0 on; above 0 it is added to the record's id as `@epoch`.

    Returns:
        The record, or None when nothing is known of the image that the tasks could ask.
    """
    made = synthesize_with_tasks(item, classes, seed=seed, config=config, epoch=epoch)
    return None if made is None else made[0]
