"""Class names and numbers in plain English: plurals, number words, places and sizes."""

from __future__ import annotations

import re
from functools import lru_cache

# fmt: off
NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)
# fmt: on

NINTHS = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)
"""Names of the ninths of an image, by row and column."""

SIZE_STEPS = ((0.04, "tiny"), (0.10, "small"), (0.25, "medium"))
"""Upper bound of the square root of a box's share of the image → word; above the last one it is "large"."""

_IRREGULAR = {"person": "people", "man": "men", "woman": "women", "child": "children", "foot": "feet"}
_UNCHANGED = frozenset({"aircraft", "sheep", "livestock", "traffic", "debris", "people", "cattle"})
_NEVER_SPOKEN = re.compile(r"[\s_<>\[\]{}|;,]+")


@lru_cache(maxsize=4096)
def spoken(name: str) -> str:
    """Return a class name as it stands in text: no underscores, and none of the signs answers are built of.

    >>> spoken("storage_tank")
    'storage tank'
    """
    return _NEVER_SPOKEN.sub(" ", name).strip() or "thing"


@lru_cache(maxsize=4096)
def cell_name(name: str) -> str:
    """Return a class name as one word, for grid answers: `storage_tank` → `storage-tank`."""
    return re.sub(r"[\s-]+", "-", spoken(name)).strip("-.") or "thing"


@lru_cache(maxsize=4096)
def plural(name: str) -> str:
    """Return the plural of a (spoken) class name; a name that looks like a plural stays."""
    head, _, last = spoken(name).rpartition(" ")
    lower = last.lower()
    if lower in _UNCHANGED:
        many = last
    elif lower in _IRREGULAR:
        many = _IRREGULAR[lower]
    elif lower.endswith(("ss", "us", "sh", "ch", "x")):
        many = last + "es"
    elif lower.endswith("s") and len(lower) > 2:
        many = last
    elif lower.endswith("y") and lower[-2:-1] not in "aeiou":
        many = last[:-1] + "ies"
    else:
        many = last + "s"
    return f"{head} {many}".strip()


@lru_cache(maxsize=4096)
def with_article(name: str) -> str:
    """Return "a ship", "an RBC", "an airport"; plural names stand alone."""
    text = spoken(name)
    if plural(text) == text:
        return text
    first = text.split(" ")[0]
    initials = first.isupper() and len(first) > 1
    vowel = text[0].upper() in ("AEFHILMNORSX" if initials else "AEIO")
    return f"{'an' if vowel else 'a'} {text}"


def counted(count: int, name: str) -> str:
    """Return "one ship", "three ships", "31 ships"."""
    word = NUMBER_WORDS[count] if count < len(NUMBER_WORDS) else str(count)
    return f"{word} {spoken(name) if count == 1 else plural(name)}"


def listed(parts: list[str]) -> str:
    """Join with commas and "and"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def ninth_of(x: float, y: float) -> str:
    """Return the name of the ninth that holds a point.

    Args:
        x, y: Fractions 0..1 of the width and height.
    """
    return NINTHS[min(int(y * 3), 2)][min(int(x * 3), 2)]


def size_word(share: float) -> str:
    """Return "tiny", "small", "medium" or "large".

    Args:
        share: Share of the image's area that the box has, 0..1.
    """
    side = share**0.5
    return next((word for bound, word in SIZE_STEPS if side < bound), "large")
