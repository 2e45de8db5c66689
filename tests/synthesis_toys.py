"""Labelled images of random land with random objects, and the questions that are asked about them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from vitp.data.synthesis.build import (
    QUESTION_TASKS,
    SynthesisConfig,
    synthesize_with_tasks,
)
from vitp.data.synthesis.classes import SetClasses
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel

OBJECTS = ("ship", "crane", "storage_tank", "barge", "buoy")


# The rates at which the classes occur differ widely: balance must not come from them.
RATES = (0.9, 0.5, 0.3, 0.1, 0.05)

COUNT = 400


LAND = ("water", "quay", "forest", "bare_soil")


def rectangle(category: str, x: float, y: float, w: float, h: float, angle: float = 0.0) -> ObjectLabel:
    """Return a turned rectangle around (x, y) with its quad and tight box."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    corners = [(-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2), (-w / 2, h / 2)]
    quad = tuple(v for a, b in corners for v in (x + a * c - b * s, y + a * s + b * c))
    return ObjectLabel(category, (min(quad[::2]), min(quad[1::2]), max(quad[::2]), max(quad[1::2])), quad)


def constantly(array: np.ndarray) -> np.ndarray:
    return array


def make_image(index: int, *, size: int = 96, pair: bool = False) -> LabelledImage:
    """Return an image of random land with random objects, their pixels in the mask."""
    rng = np.random.default_rng([7, index])
    mask = np.full((size, size), rng.integers(4), np.uint8)
    mask[:, : rng.integers(20, 80)] = rng.integers(4)
    mask[rng.integers(30, 80) :] = rng.integers(4)
    objects = []
    for kind, name in enumerate(OBJECTS):
        if rng.random() < RATES[kind]:
            for _ in range(rng.integers(1, 5)):
                x, y = rng.uniform(12, size - 12, 2)
                w, h = rng.uniform(5, 20, 2)
                objects.append(rectangle(name, x, y, w, h, float(rng.integers(4) * 90)))
                x1, y1, x2, y2 = (round(v) for v in objects[-1].box)
                mask[y1:y2, x1:x2] = 4 + kind
    change = np.zeros((size, size), bool)
    if rng.random() < 0.7:
        x, y = rng.integers(0, size - 20, 2)
        change[y : y + 18, x : x + 18] = True
    return LabelledImage(
        id=f"image-{index}",
        image=f"images/{index}.png",
        width=size,
        height=size,
        objects=tuple(objects),
        scene=("harbour", "oil_terminal", "beach")[index % 3],
        semantic=partial(constantly, mask),
        second_image=f"later/{index}.png" if pair else None,
        change=partial(constantly, change) if pair else None,
        later_objects=tuple(objects[1:]) if pair else None,
    )


@pytest.fixture(scope="module")
def port() -> LabelledSet:
    items = [make_image(i) for i in range(COUNT)]
    return LabelledSet("port", items, OBJECTS, ("harbour", "oil_terminal", "beach"), LAND + OBJECTS, "CC0")


def only(*tasks: str, **rest: object) -> SynthesisConfig:
    """Return a configuration with these tasks only."""
    return SynthesisConfig(tasks={t: float(t in tasks) for t in QUESTION_TASKS}, **rest)  # type: ignore[arg-type]


def turns_of(
    labelled: LabelledSet, config: SynthesisConfig, *, seeds: int = 1
) -> Iterator[tuple[LabelledImage, str, str, str]]:
    """Yield item, task, question without marks, and answer over a set; its statistics are exact."""
    classes = SetClasses.from_set(labelled, sample=len(labelled))
    for seed in range(seeds):
        for item in labelled.items:
            made = synthesize_with_tasks(item, classes, seed=seed, config=config)
            if made is not None:
                record, tasks = made
                for task, turn in zip(tasks, record.turns, strict=True):
                    yield item, task, turn.question.removeprefix(record.prefix), turn.answer
