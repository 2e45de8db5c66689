"""Random choices: wordings, classes, and the yes or no of a question, so that nothing but the image tells it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from vitp.data.synthesis.facts import Facts

T = TypeVar("T")


def draw(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Return one of the options, each as likely as the others."""
    return options[int(rng.integers(len(options)))]


def ask(rng: np.random.Generator, wordings: Sequence[str], **fields: object) -> str:
    """Return one of the wordings with its fields filled in, starting with a capital letter."""
    text = draw(rng, wordings).format(**fields)
    return text[0].upper() + text[1:]


def draw_weighted(rng: np.random.Generator, options: Sequence[T], weights: Sequence[float]) -> T:
    """Return one of the options with a probability proportional to its weight; the sum must be positive."""
    place = rng.random() * sum(weights)
    for option, weight in zip(options, weights, strict=True):
        place -= weight
        if place < 0:
            return option
    return options[-1]


def draw_present(facts: Facts, rng: np.random.Generator, names: Sequence[str]) -> str:
    """Return a class that is in the image, preferring those that the other classes do not give away."""
    expectation = facts.classes.statistics.expectation
    return draw_weighted(rng, names, [1.01 - expectation(name, facts.present) for name in names])


def draw_absent(facts: Facts, rng: np.random.Generator, names: Sequence[str]) -> str:
    """Return a class that is not in the image, preferring those that go with the classes that are."""
    expectation = facts.classes.statistics.expectation
    return draw_weighted(rng, names, [0.01 + expectation(name, facts.present) for name in names])


def draw_yes_no(facts: Facts, rng: np.random.Generator) -> tuple[str, bool] | None:
    """Return a class to ask for and whether it is there, or None where the side that was drawn has no class.

    With e = how probable the class is given the others, present classes are drawn by 1 - e and absent ones by
    e: then neither how frequent a class is nor what else is in the image tells the answer. None must not be
    answered by drawing the other side: that would tilt the balance of the set. Further questions about the
    same image come in pairs of yes and no, as one side has often far more classes than the other.
    """
    asked = facts.yes_no_asked
    sides = [
        [name for name in names if (name, yes) not in asked]
        for yes, names in ((False, facts.absent), (True, facts.present))
    ]
    if len(asked) % 2:
        yes = not asked[-1][1]
    elif asked and not all(sides):
        return None
    else:
        yes = rng.random() < facts.classes.statistics.yes_probability
    if not sides[yes]:
        return None
    name = (draw_present if yes else draw_absent)(facts, rng, sides[yes])
    asked.append((name, yes))
    return name, yes
