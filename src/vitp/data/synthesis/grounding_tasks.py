"""All objects of a class as boxes, upright and oriented."""

from __future__ import annotations

import math

import numpy as np

from vitp.core.words import plural, spoken
from vitp.data.synthesis import phrases
from vitp.data.synthesis.answers import NONE, Box, format_boxes, format_geochat, format_quads
from vitp.data.synthesis.choosing import ask, draw_absent, draw_present
from vitp.data.synthesis.facts import Facts, Placed, Question, scale_quad


def _pick_class(facts: Facts, rng: np.random.Generator, names: list[str]) -> str | None:
    """Draw a class that is there or, for half of the questions where the image lacks any, one that is not."""
    absent = facts.absent_objects
    if rng.random() < 0.5 and absent:
        return draw_absent(facts, rng, absent)
    return draw_present(facts, rng, names) if names else None


def boxes(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for all boxes of a class; "none" where it is absent.

    For more objects than `max_boxes` the question asks for that many, from the top by their upper edge.
    """
    limit = facts.limits.max_boxes
    name = _pick_class(facts, rng, [n for n in facts.by_class if n in facts.object_names])
    if name is None:
        return None
    found = sorted(
        (facts.text_box(p) for p in facts.by_class.get(name, [])), key=lambda b: (b[1], b[0], b[3], b[2])
    )
    many = len(found) > limit
    if many and found[limit - 1][1] == found[limit][1]:
        return None  # which of the two is the last one would be a matter of taste
    wordings = phrases.BOXES_SOME if many else phrases.BOXES
    question = ask(rng, wordings, many=plural(name), one=spoken(name), limit=limit)
    return Question(question, format_boxes(name, found[:limit]), name)


def turned_box(quad: tuple[float, ...], width: int, height: int, limit: int) -> tuple[Box, int]:
    """Return GeoChat's form of an oriented box: the box before it is turned, and the angle.

    Args:
        quad: Corners in pixels, clockwise.
        width, height: Of the image in pixels.
        limit: Coordinates are integers on 0..limit; the box may leave them, as it is not turned yet.

    Returns:
        The box around the same centre with the longer side along x, and the degrees, clockwise as seen in the
        image, by which it is turned: -90 < angle ≤ 90. Angle and lengths are those of the image in pixels.
    """
    sides = [(quad[i + 2] - quad[i], quad[i + 3] - quad[i + 1]) for i in (0, 2)]
    short, long = sorted(sides, key=lambda s: math.hypot(*s))
    angle = round(math.degrees(math.atan2(long[1], long[0])))
    while angle > 90:
        angle -= 180
    while angle <= -90:
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

    def fits(found: list[Placed]) -> bool:
        return len(found) <= limits.max_boxes and all(p.label.quad is not None for p in found)

    names = [n for n, found in facts.by_class.items() if n in facts.object_names and fits(found)]
    if not any(p.label.quad is not None for p in facts.objects):
        return None  # nothing says that the set has oriented boxes at all
    name = _pick_class(facts, rng, names)
    if name is None:
        return None
    quads = [p.label.quad for p in facts.by_class.get(name, []) if p.label.quad is not None]
    if not quads:
        answer = NONE
    elif limits.oriented_style == "geochat":
        turned = [turned_box(q, item.width, item.height, limits.coordinate_range) for q in quads]
        answer = format_geochat(name, turned)
    else:
        scaled = [scale_quad(q, item.width, item.height, limits.coordinate_range) for q in quads]
        answer = format_quads(name, scaled)
    return Question(ask(rng, phrases.ORIENTED, many=plural(name), one=spoken(name)), answer, name)
