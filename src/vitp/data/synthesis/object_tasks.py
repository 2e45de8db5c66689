"""Questions about objects: where, how big, which way, what is in a box, and all boxes of a class.

Each task asks one question, or returns None where the labels of the image allow none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from vitp.core.words import ninth_of, plural, size_word, spoken
from vitp.data.synthesis import phrases
from vitp.data.synthesis.answers import NONE, TextBox, format_boxes, format_geochat, format_quads
from vitp.data.synthesis.choosing import one_class, one_of, one_present, worded
from vitp.data.synthesis.facts import Facts, Placed, Question, overlap, scale_quad, topmost

_CLEAR_OFFSET = 0.04
"""Centres must differ by this fraction of the image before one counts as further left, up, …"""

_CLEAR_AREA = 1.3
"""The largest object must have this many times the area of the next."""

_ELONGATED = 1.5
"""Long side over short side from which on an object has a direction."""

_SUPERLATIVES: tuple[tuple[str, Callable[[Placed], float], float], ...] = (
    ("leftmost", lambda p: -p.x, _CLEAR_OFFSET),
    ("rightmost", lambda p: p.x, _CLEAR_OFFSET),
    ("topmost", lambda p: -p.y, _CLEAR_OFFSET),
    ("bottommost", lambda p: p.y, _CLEAR_OFFSET),
    ("largest", lambda p: math.log(p.share), math.log(_CLEAR_AREA)),
    ("smallest", lambda p: -math.log(p.share), math.log(_CLEAR_AREA)),
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


def _about_one(
    wordings: Sequence[str], answer: Callable[[Facts, Placed], str]
) -> Callable[[Facts, np.random.Generator], Question | None]:
    """Return a task about one object that an expression names without doubt."""

    def task(facts: Facts, rng: np.random.Generator) -> Question | None:
        names = [name for name in facts.by_class if name in facts.object_names]
        if not names:
            return None
        if (referred := refer(facts.by_class[one_present(facts, rng, names)], rng)) is None:
            return None
        the, placed = referred
        return Question(worded(rng, wordings, the=the), answer(facts, placed), the)

    return task


position = _about_one(phrases.POSITION, lambda facts, placed: ninth_of(placed.x, placed.y))
"""Ask for the ninth of the image that holds the centre of an object."""

size = _about_one(phrases.SIZE, lambda facts, placed: size_word(placed.share))
"""Ask for an object's size relative to the image: see `words.SIZE_STEPS`."""

box = _about_one(phrases.BOX, lambda facts, placed: format_boxes(placed.category, [facts.text_box(placed)]))
"""Ask for the box of one object."""


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
    axes = [axis for axis, offset in enumerate((dx, dy)) if abs(offset) >= _CLEAR_OFFSET]
    if not axes:
        return None
    axis, backwards = one_of(rng, axes), bool(rng.integers(2))
    about = "/".join(sorted((a, b)))
    holds = ((dx, dy)[axis] > 0) != backwards
    if rng.integers(2):
        words = (("left of", "right of"), ("above", "below"))[axis]
        text = worded(rng, phrases.RELATION, a=a, b=b, relation=words[backwards])
        return Question(text, "yes" if holds else "no", about)
    way = (("left", "right"), ("up", "down"))[axis][backwards]
    answer = spoken((first if holds else second).category)
    return Question(worded(rng, phrases.RELATION_WHICH, a=a, b=b, way=way), answer, about)


def _region(facts: Facts, rng: np.random.Generator, objects: list[Placed]) -> tuple[Placed, str] | None:
    """Choose an object, each class alike, whose box nearly coincides with none of another or an unknown class."""
    clear = [placed for placed in objects if not placed.label.difficult]
    if not clear:
        return None
    name = one_of(rng, sorted({placed.category for placed in clear}))
    placed = one_of(rng, [p for p in clear if p.category == name])
    others = [p for p in facts.objects if p.category != name]
    if any(overlap(p.box, placed.box) > 0.5 for p in (*others, *facts.ignored)):
        return None
    return placed, f"<box>[{', '.join(str(v) for v in facts.text_box(placed))}]</box>"


def region_class(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Give a box and ask for the class of the object in it; each class of the image is as likely."""
    if (region := _region(facts, rng, list(facts.objects))) is None:
        return None
    placed, text = region
    return Question(worded(rng, phrases.REGION_CLASS, box=text), spoken(placed.category), text)


def _sides(quad: tuple[float, ...]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the short and the long side of an oriented box as vectors."""
    first, second = ((quad[i + 2] - quad[i], quad[i + 3] - quad[i + 1]) for i in (0, 2))
    return (second, first) if math.hypot(*second) < math.hypot(*first) else (first, second)


def direction(placed: Placed) -> str | None:
    """Return how the long side of an oriented box lies; None when it has no clear direction.

    Returns:
        "horizontal", "vertical", "rising" (to the right) or "falling"; within 5° of the border between two of
        them, or for a nearly square box, None.
    """
    if placed.label.quad is None:
        return None
    short, long = _sides(placed.label.quad)
    if math.hypot(*long) < _ELONGATED * max(math.hypot(*short), 1e-6):
        return None
    angle = math.degrees(math.atan2(-long[1], long[0])) % 180
    if abs((angle % 45) - 22.5) < 5:
        return None
    return ("horizontal", "rising", "vertical", "falling")[round(angle / 45) % 4]


def region_attribute(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Give a box and ask for the object's size word or, for oriented boxes, its direction."""
    directed = [placed for placed in facts.objects if direction(placed)]
    kind = "direction" if directed and rng.integers(2) else "size"
    region = _region(facts, rng, directed if kind == "direction" else list(facts.objects))
    if region is None:
        return None
    placed, text = region
    answer = direction(placed) if kind == "direction" else size_word(placed.share)
    wordings = phrases.REGION_DIRECTION if kind == "direction" else phrases.REGION_SIZE
    return Question(worded(rng, wordings, box=text), answer or "", f"{kind} {text}")


def block_of(placed: Placed, side: int) -> int:
    """Return the number of the block that holds an object's centre, row by row from 1."""
    row, column = (min(int(value * side), side - 1) for value in (placed.y, placed.x))
    return row * side + column + 1


def block(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the object of a block, or for the block of an object: PTP's two sentences, as likely as each other."""
    side = facts.limits.grid
    names = [name for name in facts.by_class if name in facts.object_names]
    if not names:
        return None
    if rng.integers(2):
        if (referred := refer(facts.by_class[one_present(facts, rng, names)], rng)) is None:
            return None
        the, placed = referred
        return Question(worded(rng, phrases.BLOCK_OF, n=side, the=the), str(block_of(placed, side)), the)
    held: dict[int, set[str]] = {}
    for placed in facts.objects:
        held.setdefault(block_of(placed, side), set()).add(placed.category)
    clear = {number: next(iter(found)) for number, found in held.items() if len(found) == 1}
    clear = {number: name for number, name in clear.items() if name in names}
    if not clear:
        return None
    name = one_of(rng, sorted(set(clear.values())))
    number = one_of(rng, [place for place, found in sorted(clear.items()) if found == name])
    return Question(worded(rng, phrases.BLOCK_CLASS, n=side, block=number), spoken(name), f"block {number}")


def boxes(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for all boxes of a class; "none" where it is absent.

    For more objects than `max_boxes` the question asks for that many, from the top by their upper edge.
    """
    limit = facts.limits.max_boxes
    name = one_class(facts, rng, [n for n in facts.by_class if n in facts.object_names], facts.absent_objects)
    if name is None:
        return None
    found = topmost((facts.text_box(p) for p in facts.by_class.get(name, [])), limit)
    if found is None:
        return None
    wordings = phrases.BOXES_SOME if len(facts.by_class.get(name, [])) > limit else phrases.BOXES
    question = worded(rng, wordings, many=plural(name), one=spoken(name), limit=limit)
    return Question(question, format_boxes(name, found), name)


def turned_box(quad: tuple[float, ...], width: int, height: int, limit: int) -> tuple[TextBox, int]:
    """Return GeoChat's form of an oriented box: the box before it is turned, and the angle.

    Args:
        quad: Corners in pixels, clockwise.
        width, height: Width and height of the image in pixels.
        limit: Coordinates are integers on 0..limit; the box may leave them, as it is not turned yet.

    Returns:
        The box around the same centre with the longer side along x, and the degrees, clockwise as seen in the
        image, by which it is turned: -90 < angle ≤ 90. Angle and lengths are those of the image in pixels.
    """
    short, long = _sides(quad)
    angle = round(math.degrees(math.atan2(long[1], long[0])))
    if angle > 90:
        angle -= 180
    elif angle <= -90:
        angle += 180
    x, y = sum(quad[::2]) / 4, sum(quad[1::2]) / 4
    w, h = math.hypot(*long) / 2, math.hypot(*short) / 2
    x1, x2 = (round(v / width * limit) for v in (x - w, x + w))
    y1, y2 = (round(v / height * limit) for v in (y - h, y + h))
    return (x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)), angle


def oriented(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for all oriented boxes of a class, in the style that the limits name; "none" where it is absent.

    Classes with more than `max_boxes` objects, or with objects that have no oriented box, are not asked.
    """
    item, limits = facts.item, facts.limits
    if not any(p.label.quad is not None for p in facts.objects):
        return None  # nothing says that the set has oriented boxes at all
    quads = {
        name: [p.label.quad for p in found if p.label.quad is not None]
        for name, found in facts.by_class.items()
        if name in facts.object_names
    }
    names = [n for n, q in quads.items() if len(q) == len(facts.by_class[n]) <= limits.max_boxes]
    name = one_class(facts, rng, names, facts.absent_objects)
    if name is None:
        return None
    found = quads.get(name, [])
    scale = (item.width, item.height, limits.coordinate_range)
    if not found:
        answer = NONE
    elif limits.oriented_style == "geochat":
        answer = format_geochat(name, [turned_box(quad, *scale) for quad in found])
    else:
        answer = format_quads(name, [scale_quad(quad, *scale) for quad in found])
    return Question(worded(rng, phrases.ORIENTED, many=plural(name), one=spoken(name)), answer, name)
