"""True sentences about a scene."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from vitp.scenes.looks import LOOKS
from vitp.scenes.types import SceneObject

_TO_TEN = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_TEENS = (
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
)
_NUMBERS = (*_TO_TEN, *_TEENS, "twenty")

_PLACES = {
    "airport": "an airport",
    "harbour": "a harbour",
    "residential": "a residential area",
    "farmland": "farmland",
    "forest": "a forest",
    "industrial": "an industrial area",
    "coast": "a coast",
    "parking": "a parking lot",
    "terminal": "a container terminal",
    "railyard": "a rail yard",
    "anchorage": "an anchorage",
    "flats": "tidal flats",
    "depot": "a depot",
}


def number_word(count: int) -> str:
    """Return the count in words up to twenty, in digits above."""
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)


def plural(word: str, count: int) -> str:
    """Return the noun in its form for a count."""
    if count == 1:
        return word
    return f"{word}es" if word.endswith(("s", "x", "ch", "sh")) else f"{word}s"


def _listing(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _counts(objects: Sequence[SceneObject]) -> list[tuple[str, int]]:
    """Return classes and counts, the most frequent first, ties by name."""
    return sorted(Counter(item.category for item in objects).items(), key=lambda row: (-row[1], row[0]))


def describe(scene_type: str, look: str, objects: Sequence[SceneObject], rng: np.random.Generator) -> str:
    """Return one or two sentences about the look, the place and what can be seen, with exact counts."""
    place, phrases = _PLACES[scene_type], LOOKS[look].phrases
    picture = phrases[int(rng.random() * len(phrases))]
    style = int(rng.random() * 4)
    rows = _counts(objects)
    if not rows:
        empty = (
            f"{picture} of {place} without objects.",
            f"{picture} of {place}.",
            f"{place}, seen in {picture}.",
            f"{picture} shows {place}. there are no objects.",
        )[style]
        return _sentences(empty)
    things = _listing([f"{number_word(n)} {plural(name, n)}" for name, n in rows])
    verb = "is" if rows[0][1] == 1 else "are"
    text = (
        f"{picture} of {place} with {things}.",
        f"{picture} of {place}. there {verb} {things}.",
        f"{things} in {place}, seen in {picture}.",
        f"{picture} shows {place}. it has {things}.",
    )[style]
    return _sentences(text)


def _sentences(text: str) -> str:
    return ". ".join(part[0].upper() + part[1:] for part in text.split(". "))
