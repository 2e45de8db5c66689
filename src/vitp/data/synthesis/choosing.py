"""Random choices: wordings, classes, and the yes or no of a question, so that nothing but the image tells it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from vitp.data.synthesis.facts import Facts

Choice = TypeVar("Choice")


def one_of(rng: np.random.Generator, options: Sequence[Choice]) -> Choice:
    """Return one of the options, each as likely as the others."""
    return options[int(rng.integers(len(options)))]


class Chooser(np.random.Generator):
    """Random numbers of one record, as `np.random.default_rng` draws them, and how many wordings are in use.

    Attributes:
        wordings: Only so many wordings of each kind of question come up, the first ones; 0: all.
    """

    wordings: int = 0

    def __init__(self, seeds: Sequence[int], wordings: int = 0) -> None:
        super().__init__(np.random.PCG64(np.random.SeedSequence(seeds)))
        self.wordings = wordings


def worded(rng: np.random.Generator, wordings: Sequence[str], **fields: object) -> str:
    """Return one of the wordings in use with its fields filled in, starting with a capital letter."""
    used = wordings[: getattr(rng, "wordings", 0) or None]
    return capital(one_of(rng, used).format(**fields))


def capital(text: str) -> str:
    """Return a text with a capital letter at its start."""
    return text[0].upper() + text[1:]


def one_weighted(rng: np.random.Generator, options: Sequence[Choice], weights: Sequence[float]) -> Choice:
    """Return one of the options with a probability proportional to its weight; the sum must be positive."""
    place = rng.random() * sum(weights)
    for option, weight in zip(options, weights, strict=True):
        place -= weight
        if place < 0:
            return option
    return options[-1]


def one_present(facts: Facts, rng: np.random.Generator, names: Sequence[str]) -> str:
    """Return a class that is in the image, preferring those that the other classes do not give away."""
    expectation = facts.classes.statistics.expectation
    return one_weighted(rng, names, [1.01 - expectation(name, facts.present) for name in names])


def one_absent(facts: Facts, rng: np.random.Generator, names: Sequence[str]) -> str:
    """Return a class that is not in the image, preferring those that go with the classes that are."""
    expectation = facts.classes.statistics.expectation
    return one_weighted(rng, names, [0.01 + expectation(name, facts.present) for name in names])


def one_class(
    facts: Facts, rng: np.random.Generator, names: Sequence[str], absent: Sequence[str]
) -> str | None:
    """Return a class that is there or, for half of the questions where the image lacks any, one that is not."""
    if rng.random() < 0.5 and absent:
        return one_absent(facts, rng, absent)
    return one_present(facts, rng, names) if names else None


def yes_or_no(
    facts: Facts, rng: np.random.Generator, absent: Sequence[str], present: Sequence[str], *, both: bool
) -> tuple[list[str], bool] | None:
    """Return what can be asked for, and whether the answer is yes; None where there is nothing on the side chosen.

    None must not be answered by taking the other side: that would tilt the balance of the set. Further questions
    about the same image come in pairs of yes and no, as one side has often far more to ask for than the other.

    Args:
        facts: Facts of the image; knows what was asked already.
        rng: Chooses the side.
        absent: What a no answers.
        present: What a yes answers.
        both: The first question, too, is only asked where both sides have something; then both are as likely.
            Otherwise yes comes as often as the set's statistics say.
    """
    asked = facts.yes_no_asked
    sides = [
        [name for name in names if (name, yes) not in asked]
        for yes, names in ((False, absent), (True, present))
    ]
    if len(asked) % 2:
        yes = not asked[-1][1]
    elif (asked or both) and not all(sides):
        return None
    else:
        yes = not rng.integers(2) if both else rng.random() < facts.classes.statistics.yes_probability
    return (sides[yes], yes) if sides[yes] else None
