"""Questions about single objects: where, how big, which way, what is in a box."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from vitp.core.words import ninth_of, size_word, spoken
from vitp.data.synthesis import phrases
from vitp.data.synthesis.answers import format_boxes
from vitp.data.synthesis.choosing import ask, draw, draw_present
from vitp.data.synthesis.facts import Facts, Placed, Question

CLEAR_OFFSET = 0.04
"""Centres must differ by this fraction of the image before one counts as further left, up, …"""

CLEAR_AREA = 1.3
"""The largest object must have this many times the area of the next."""

ELONGATED = 1.5
"""Long side over short side from which on an object has a direction."""

_SUPERLATIVES: tuple[tuple[str, Callable[[Placed], float], float], ...] = (
    ("leftmost", lambda p: -p.x, CLEAR_OFFSET),
    ("rightmost", lambda p: p.x, CLEAR_OFFSET),
    ("topmost", lambda p: -p.y, CLEAR_OFFSET),
    ("bottommost", lambda p: p.y, CLEAR_OFFSET),
    ("largest", lambda p: math.log(p.share), math.log(CLEAR_AREA)),
    ("smallest", lambda p: -math.log(p.share), math.log(CLEAR_AREA)),
)


def refer(found: list[Placed], rng: np.random.Generator) -> tuple[str, Placed] | None:
    """Return an expression that fits exactly one object of a class, and that object; None if there is none."""
    name = spoken(found[0].category)
    if len(found) == 1:
        return f"the {name}", found[0]
    for number in rng.permutation(len(_SUPERLATIVES)):
        word, key, margin = _SUPERLATIVES[int(number)]
        second, first = sorted(found, key=key)[-2:]
        if key(first) - key(second) >= margin:
            return f"the {word} {name}", first
    return None


def _refer_any(facts: Facts, rng: np.random.Generator) -> tuple[str, Placed] | None:
    names = [name for name in facts.by_class if name in facts.object_names]
    if not names:
        return None
    return refer(facts.by_class[draw_present(facts, rng, names)], rng)


def position(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the ninth of the image that holds the centre of an object."""
    if (referred := _refer_any(facts, rng)) is None:
        return None
    the, placed = referred
    return Question(ask(rng, phrases.POSITION, the=the), ninth_of(placed.x, placed.y), the)


def size(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for an object's size relative to the image: see `words.SIZE_STEPS`."""
    if (referred := _refer_any(facts, rng)) is None:
        return None
    the, placed = referred
    return Question(ask(rng, phrases.SIZE, the=the), size_word(placed.share), the)


def box(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the box of one object that an expression names without doubt."""
    if (referred := _refer_any(facts, rng)) is None:
        return None
    the, placed = referred
    return Question(
        ask(rng, phrases.BOX, the=the), format_boxes(placed.category, [facts.text_box(placed)]), the
    )


def relation(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the order of two objects of different classes along x or y.

    Half of the questions are yes/no; the order of the two is random, so both answers are equally likely.
    """
    names = list(facts.by_class)
    if len(names) < 2:
        return None
    chosen = [names[int(i)] for i in rng.permutation(len(names))[:2]]
    referred = [refer(facts.by_class[name], rng) for name in chosen]
    if referred[0] is None or referred[1] is None:
        return None
    (a, first), (b, second) = referred[0], referred[1]
    dx, dy = second.x - first.x, second.y - first.y
    axes = [axis for axis, offset in enumerate((dx, dy)) if abs(offset) >= CLEAR_OFFSET]
    if not axes:
        return None
    axis, backwards = draw(rng, axes), bool(rng.integers(2))
    about = "/".join(sorted((a, b)))
    holds = ((dx, dy)[axis] > 0) != backwards
    if rng.integers(2):
        words = (("left of", "right of"), ("above", "below"))[axis]
        text = ask(rng, phrases.RELATION, a=a, b=b, relation=words[backwards])
        return Question(text, "yes" if holds else "no", about)
    way = (("left", "right"), ("up", "down"))[axis][backwards]
    answer = spoken((first if holds else second).category)
    return Question(ask(rng, phrases.RELATION_WHICH, a=a, b=b, way=way), answer, about)


def _region(facts: Facts, rng: np.random.Generator, objects: list[Placed]) -> tuple[Placed, str] | None:
    """Choose an object, each class alike, whose box nearly coincides with none of another or an unknown class."""
    names = sorted({placed.category for placed in objects if not placed.label.difficult})
    if not names:
        return None
    name = draw(rng, names)
    placed = draw(rng, [p for p in objects if p.category == name and not p.label.difficult])
    others = [p for p in facts.objects if p.category != name]
    if any(_overlap(p, placed) > 0.5 for p in (*others, *facts.ignored)):
        return None
    return placed, f"<box>[{', '.join(str(v) for v in facts.text_box(placed))}]</box>"


def _overlap(a: Placed, b: Placed) -> float:
    width = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    height = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    common = max(width, 0.0) * max(height, 0.0)
    return common / max(a.share + b.share - common, 1e-12)


def region_class(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Give a box and ask for the class of the object in it; each class of the image is as likely."""
    if (region := _region(facts, rng, list(facts.objects))) is None:
        return None
    placed, text = region
    return Question(ask(rng, phrases.REGION_CLASS, box=text), spoken(placed.category), text)


def direction(placed: Placed) -> str | None:
    """Return how the long side of an oriented box lies; None when it has no clear direction.

    Returns:
        "horizontal", "vertical", "rising" (to the right) or "falling"; within 5° of the border between two of
        them, or for a nearly square box, None.
    """
    quad = placed.label.quad
    if quad is None:
        return None
    sides = [(quad[i + 2] - quad[i], quad[i + 3] - quad[i + 1]) for i in (0, 2)]
    short, long = sorted(sides, key=lambda s: math.hypot(*s))
    if math.hypot(*long) < ELONGATED * max(math.hypot(*short), 1e-6):
        return None
    angle = math.degrees(math.atan2(-long[1], long[0])) % 180
    if abs((angle % 45) - 22.5) < 5:
        return None
    return ("horizontal", "rising", "vertical", "falling")[round(angle / 45) % 4]


def region_attribute(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Give a box and ask for the object's size word or, for oriented boxes, its direction."""
    directed = [placed for placed in facts.objects if direction(placed)]
    if directed and rng.integers(2):
        if (region := _region(facts, rng, directed)) is None:
            return None
        placed, text = region
        answer = direction(placed)
        assert answer is not None
        return Question(ask(rng, phrases.REGION_DIRECTION, box=text), answer, f"direction {text}")
    if (region := _region(facts, rng, list(facts.objects))) is None:
        return None
    placed, text = region
    return Question(ask(rng, phrases.REGION_SIZE, box=text), size_word(placed.share), f"size {text}")
