"""True sentences about a scene."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from vitp.core.words import how_many, listed, with_article
from vitp.scenes.chance import pick
from vitp.scenes.looks import LOOKS
from vitp.scenes.types import SceneObject

_PLACES = {
    "parking": "a parking lot",
    "terminal": "a container terminal",
    "railyard": "a rail yard",
    "flats": "tidal flats",
}
"""Scene types whose name isn't what one says."""

_EMPTY = (
    "{picture} of {place} without objects.",
    "{picture} of {place}.",
    "{place}, seen in {picture}.",
    "{picture} shows {place}. there are no objects.",
)
_FULL = (
    "{picture} of {place} with {things}.",
    "{picture} of {place}. there {verb} {things}.",
    "{things} in {place}, seen in {picture}.",
    "{picture} shows {place}. it has {things}.",
)


def describe(scene_type: str, look: str, objects: Sequence[SceneObject], rng: np.random.Generator) -> str:
    """Return one or two sentences about the look, the place and what can be seen, with exact counts."""
    place = _PLACES.get(scene_type) or with_article(scene_type)
    picture = pick(rng, LOOKS[look].phrases)
    text = pick(rng, _FULL if objects else _EMPTY)
    # The most frequent class comes first; classes of one count are sorted by name.
    counts = sorted(Counter(item.category for item in objects).items(), key=lambda row: (-row[1], row[0]))
    things = listed([how_many(count, name) for name, count in counts]) if counts else ""
    verb = "is" if counts and counts[0][1] == 1 else "are"
    sentences = text.format(picture=picture, place=place, things=things, verb=verb).split(". ")
    return ". ".join(part[0].upper() + part[1:] for part in sentences)
