"""Captions with one word exchanged, which makes them wrong: negatives after SVLC (Doveh et al., 2022).

A word of a group (a class, a number, a size, a direction, a colour) is replaced by another one of its group; all else
stays. The groups are the words that captions of labels are composed of, and common ones of given captions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vitp.core.words import NUMBER_WORDS, SIZE_STEPS, plural, spoken
from vitp.data.synthesis.choosing import capital, one_of

_GROUPS: tuple[tuple[str, ...], ...] = (
    NUMBER_WORDS[2:],  # "a" and "one" belong to a singular
    (*(word for _, word in SIZE_STEPS), "large"),
    *(("left", "right"), ("above", "below"), ("top", "bottom"), ("before", "after"), ("inside", "outside")),
    ("leftmost", "rightmost", "topmost", "bottommost"),
    ("red", "green", "blue", "yellow", "white", "black", "grey", "brown", "orange"),
    ("horizontal", "vertical"),
)
"""Words of a group exclude each other."""


class Edit(NamedTuple):
    """An edited text, and the words that differ."""

    text: str
    before: str
    after: str


def edited(text: str, classes: Sequence[str], rng: np.random.Generator) -> Edit | None:
    """Return the text with exactly one word of a group exchanged; None where it holds none.

    Args:
        text: A true caption.
        classes: Names of the set; those of classes that the text names aren't put in, as they may be true.
        rng: Chooses place and word.
    """
    said = text.casefold()
    forms = [tuple(form(name).casefold() for name in classes) for form in (spoken, plural)]
    # Of a class that is named in either form, another sentence about it may be true.
    named = {
        word for pair in zip(*forms, strict=True) if any(_named(one, said) for one in pair) for word in pair
    }
    found: list[tuple[re.Match[str], list[str]]] = []
    for group in (*_GROUPS, *forms):
        words = sorted(set(group), key=lambda word: (-len(word), word))
        pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)"
        for match in re.finditer(pattern, text, re.I) if len(words) > 1 else ():
            others = [word for word in words if word != match[0].casefold() and word not in named]
            if others:
                found.append((match, others))
    if not found:
        return None
    match, others = one_of(rng, found)
    after = one_of(rng, others)
    after = capital(after) if match[0][0].isupper() else after
    return Edit(text[: match.start()] + after + text[match.end() :], match[0], after)


def _named(word: str, said: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", said) is not None
