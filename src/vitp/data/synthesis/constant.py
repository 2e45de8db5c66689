"""Tasks that can't teach a set: nearly every image gives the same answer, so that nobody has to look at one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vitp.data.synthesis.build import CHANGE_TASKS, TASKS, SynthesisConfig
from vitp.data.synthesis.classes import SetClasses
from vitp.data.synthesis.facts import Facts
from vitp.data.synthesis.scoring import normalised
from vitp.records.labels import LabelledImage

LOOKED_AT = 128
"""Images that are looked at, evenly spaced over the set."""

FEWEST = 12
"""Answers that show that a task is constant: fewer may be alike by chance."""

CONSTANT = 0.9
"""Share of the answers that are alike from which on a task is constant."""

GIVEN: dict[str, Callable[[LabelledImage], Iterable[str]]] = {
    "scene": lambda item: () if item.scene is None else (item.scene,),
    "scene_options": lambda item: () if item.scene is None else (item.scene,),
    "region_class": lambda item: (label.category for label in item.objects or ()),
    "caption": lambda item: item.captions,
    "change_caption": lambda item: item.change_captions,
}
"""Tasks that ask for what somebody labelled: a rare class is what is looked for, so only one for all is constant."""

BALANCED = frozenset({"presence", "relation", "change", "change_part", "count"})
"""Tasks whose answers are drawn so that none of them is frequent."""


@dataclass(frozen=True)
class ConstantTask:
    """A task that is not asked.

    Attributes:
        answer: What nearly all images answer.
        alike: Images that do.
        of: Images that were looked at and allow the task.
    """

    answer: str
    alike: int
    of: int


def constant_tasks(
    items: Sequence[LabelledImage], classes: SetClasses, config: SynthesisConfig
) -> dict[str, ConstantTask]:
    """Return the tasks whose answer is the same for nearly every image of a set.

    Tasks that the configuration names with a weight are asked as they were asked for.

    Args:
        items: Of the training split; some of them are looked at.
        classes: Of the set, with statistics.
        config: What is to be asked.
    """
    count = len(items)
    answers: dict[str, Counter[str]] = {}
    for place in np.unique(np.linspace(0, count - 1, min(LOOKED_AT, count)).astype(int)) if count else ():
        item = items[int(place)]
        pair = item.second_image is not None
        names = [*CHANGE_TASKS, "caption"] if pair else [n for n in TASKS if n not in CHANGE_TASKS]
        facts, rng = Facts(item, classes, config), np.random.default_rng(int(place))
        for name in names:
            if name in BALANCED or name in config.tasks:
                continue
            if (question := TASKS[name](facts, rng)) is not None:
                answers.setdefault(name, Counter())[normalised(question.answer)] += 1
    found = {}
    for name, given in answers.items():
        answer, alike = given.most_common(1)[0]
        if given.total() < FEWEST or alike < CONSTANT * given.total():
            continue
        if not _differ(items, GIVEN.get(name)):
            found[name] = ConstantTask(answer, alike, given.total())
    return found


def _differ(items: Sequence[LabelledImage], given: Callable[[LabelledImage], Iterable[str]] | None) -> bool:
    """Return whether any two labels of a set differ; it stops at the first that does."""
    if given is None:
        return False
    labels = (label for item in items for label in given(item))
    first = next(labels, None)
    return any(label != first for label in labels)


def without(config: SynthesisConfig, tasks: Sequence[str]) -> SynthesisConfig:
    """Return the configuration with some tasks switched off."""
    return replace(config, tasks={**config.tasks, **dict.fromkeys(tasks, 0.0)})
