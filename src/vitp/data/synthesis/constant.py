"""Tasks that can't teach a set: nearly every image gives the same answer, so that nobody has to look at one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vitp.data.synthesis.build import QUESTION_TASKS, SynthesisConfig, tasks_asked
from vitp.data.synthesis.classes import SetClasses, evenly_spaced
from vitp.data.synthesis.facts import Facts
from vitp.data.synthesis.pretext_look import look_at
from vitp.data.synthesis.pretext_tasks import PLAIN_TASKS
from vitp.data.synthesis.scoring import normalised
from vitp.data.synthesis.volume_facts import VolumeIndex
from vitp.records.channels import Channels
from vitp.records.labels import LabelledImage

_LOOKED_AT = 128
"""Images that are looked at, evenly spaced over the set."""

_FEWEST = 12
"""Answers that show that a task is constant: fewer may be alike by chance."""

_CONSTANT = 0.9
"""Share of the answers that are alike from which on a task is constant."""


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
        items: Items of the training split; some of them are looked at.
        classes: Classes of the set, with statistics.
        config: What is to be asked.
    """
    answers: dict[str, Counter[str]] = {}
    volumes = VolumeIndex(items, classes.channels) if isinstance(items, list | tuple) else None
    for place, item in evenly_spaced(items, _LOOKED_AT):
        facts, rng = Facts(item, classes, config, volumes), np.random.default_rng(place)
        for name in tasks_asked(item, classes):
            task = QUESTION_TASKS[name]
            if task.balanced or name in config.tasks:
                continue
            if (question := task.ask(facts, rng)) is not None:
                answers.setdefault(name, Counter())[normalised(question.answer)] += 1
    return _constant(answers, items)


def constant_pretext(
    items: Sequence[LabelledImage], channels: Channels | None, config: SynthesisConfig
) -> dict[str, ConstantTask]:
    """Return the tasks about an image's own pixels whose answer is the same for nearly every image of a set.

    Args:
        items: Items of the training split; some of them are looked at.
        channels: What is seen of the set's bands.
        config: What is to be asked.
    """
    tasks = {
        name: ask for name, ask in PLAIN_TASKS.items() if config.weight(name) > 0 and name not in config.tasks
    }
    answers: dict[str, Counter[str]] = {}
    for place, item in evenly_spaced(items, _LOOKED_AT if tasks else 0):
        look, rng = look_at(item, channels), np.random.default_rng(place)
        for name, ask in tasks.items():
            if look is not None and (question := ask(look, rng)) is not None:
                answers.setdefault(name, Counter())[question.answer] += 1
    return _constant(answers, items)


def _constant(answers: dict[str, Counter[str]], items: Sequence[LabelledImage]) -> dict[str, ConstantTask]:
    found = {}
    for name, counts in answers.items():
        answer, alike = counts.most_common(1)[0]
        if counts.total() < _FEWEST or alike < _CONSTANT * counts.total():
            continue
        if (given := QUESTION_TASKS[name].given) is not None:
            labels = (label for item in items for label in given(item))
            first = next(labels, None)
            if any(label != first for label in labels):
                continue
        found[name] = ConstantTask(answer, alike, counts.total())
    return found


def without_tasks(config: SynthesisConfig, tasks: Sequence[str]) -> SynthesisConfig:
    """Return the configuration with some tasks switched off."""
    return replace(config, tasks={**config.tasks, **dict.fromkeys(tasks, 0.0)})
