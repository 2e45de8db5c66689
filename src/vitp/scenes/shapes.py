"""Object shapes: convex parts in pixels of the object's own frame (x forward, y to the right)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from vitp.scenes.named import entered

PAINTS: dict[str, tuple[int, int, int]] = {
    "white": (232, 232, 228),
    "gray": (140, 142, 146),
    "black": (42, 42, 46),
    "red": (176, 56, 46),
    "blue": (54, 88, 166),
    "green": (58, 122, 70),
    "yellow": (218, 186, 62),
    "orange": (214, 124, 50),
    "brown": (122, 88, 62),
    "olive": (98, 104, 48),
}

# Paint of a part relative to the object's colour: factor on the colour, and the colour it is mixed with.
ROLES: dict[str, tuple[float, tuple[int, int, int], float]] = {
    "body": (1.0, (0, 0, 0), 0.0),
    "shade": (0.72, (0, 0, 0), 0.0),
    "light": (1.0, (255, 255, 255), 0.28),
    "dark": (0.45, (30, 30, 32), 0.5),
    "hole": (0.2, (28, 28, 30), 0.8),
    "mark": (0.2, (238, 238, 234), 0.85),
    "steel": (0.3, (112, 114, 118), 0.75),
}


class ShapePart(NamedTuple):
    """A convex polygon of an object.

    Attributes:
        points: (N, 2) float32, pixels.
        role: Key of `ROLES`.
        solid: Belongs to the object's outline; other parts are details that lie inside it.
    """

    points: np.ndarray
    role: str
    solid: bool


ShapeBuilder = Callable[[float, Sequence[float]], list[ShapePart]]
SHAPES: dict[str, ShapeBuilder] = {}
"""Object class → function of its length in pixels and `SHAPE_PARAMETERS` numbers in 0..1 that builds its parts."""


def _poly(points: Sequence[tuple[float, float]], role: str, solid: bool = False) -> ShapePart:
    return ShapePart(np.asarray(points, np.float32), role, solid)


def _hull(side: Sequence[tuple[float, float]], role: str) -> ShapePart:
    """Return a solid polygon from its right side, front to rear; the left side is its mirror image."""
    return _poly([*side, *((x, -y) for x, y in reversed(side) if y)], role, True)


def _rect(x1: float, y1: float, x2: float, y2: float, role: str, solid: bool = False) -> ShapePart:
    return _poly(((x1, y1), (x2, y1), (x2, y2), (x1, y2)), role, solid)


def _bar(x1: float, x2: float, wide: float, role: str, solid: bool = False) -> ShapePart:
    """Return a rectangle that reaches `wide` to both sides of the object's axis."""
    return _rect(x1, -wide, x2, wide, role, solid)


def _round(x: float, y: float, radius: float, role: str, solid: bool = False, sides: int = 16) -> ShapePart:
    return ShapePart(_circle(sides) * np.float32(radius) + np.array((x, y), np.float32), role, solid)


@lru_cache(maxsize=32)
def _circle(sides: int) -> np.ndarray:
    turn = np.arange(sides) * (2 * np.pi / sides)
    return np.stack([np.cos(turn), np.sin(turn)], 1).astype(np.float32)


def _mix(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


@entered(SHAPES)
def _plane(length: float, p: Sequence[float]) -> list[ShapePart]:
    half, body = length / 2, length * _mix(0.045, 0.075, p[0])
    span, chord = length * _mix(0.38, 0.54, p[1]), length * _mix(0.13, 0.22, p[2])
    sweep, root = length * _mix(0.0, 0.30, p[3]), half * _mix(0.05, 0.3, p[4])
    tail, tip = length * _mix(0.14, 0.22, p[5]), chord * _mix(0.3, 0.7, p[6])
    # Of each engine: place along the wing, reach behind and before the wing's edge, half of its width.
    engines = ((1.0, 0.35, 0.12, 0.55), (1.6, 0.3, 0.1, 0.45))[: 2 if p[8] > 0.6 else 1]
    parts = []
    for side in (-1.0, 1.0):
        wing = ((root, 0), (root - chord, 0), (root - sweep - tip, side * span), (root - sweep, side * span))
        parts.append(_poly(wing, "body", True))
        rear = -half * 0.98
        fin = ((rear + tail * 0.7, 0), (rear, 0), (rear, side * tail), (rear + tail * 0.3, side * tail))
        parts.append(_poly(fin, "light", True))
        for place, behind, before, wide in engines:
            at = span * _mix(0.3, 0.5, p[7]) * place
            front, y = root - sweep * at / span, side * at
            x1, x2 = front - chord * behind, front + chord * before
            parts.append(_rect(x1, y - body * wide, x2, y + body * wide, "dark"))
    fuselage = ((half, 0), (half - body * 2, body), (-half * 0.5, body), (-half, body * 0.3))
    parts.append(_hull(fuselage, "light"))
    parts.append(_bar(half - body * 2.2, half - body * 1.4, body * 0.6, "hole"))
    return parts


@entered(SHAPES)
def _ship(length: float, p: Sequence[float]) -> list[ShapePart]:
    half, beam = length / 2, length * _mix(0.09, 0.15, p[0])
    bow = length * _mix(0.16, 0.34, p[1])
    stern = beam * _mix(0.6, 1.0, p[2])
    side = (
        (half, 0),
        (half - bow * 0.45, beam * 0.62),
        (half - bow, beam),
        (-half + beam * 0.5, beam),
        (-half, stern * 0.8),
    )
    deck = _hull([(x * 0.92, y * 0.7) for x, y in side], "shade" if p[3] > 0.5 else "light")
    parts = [_hull(side, "body"), deck._replace(solid=False)]
    bridge = _mix(-half * 0.75, half * 0.2, p[4])
    holds = 1 + int(p[5] * 4)
    start, stop = -half * 0.75, half - bow
    step = (stop - start) / holds
    for k in range(holds):
        x = start + k * step
        parts.append(_bar(x + step * 0.15, x + step * 0.8, beam * 0.5, "dark" if p[6] > 0.4 else "steel"))
    x2 = bridge + length * _mix(0.03, 0.08, p[7])
    parts.append(_bar(bridge - length * 0.06, x2, beam * 0.75, "mark"))
    return parts


@entered(SHAPES)
def _car(length: float, p: Sequence[float]) -> list[ShapePart]:
    half, wide = length / 2, length * _mix(0.21, 0.26, p[0])
    nose = half * 0.2
    screen = _mix(0.15, 0.45, p[1]) * half
    return [
        _hull(((half, wide * 0.6), (half - nose, wide), (-half + nose, wide), (-half, wide * 0.7)), "body"),
        _bar(screen - length * 0.04, screen + length * 0.09, wide * 0.75, "hole"),
        _bar(-half * 0.75, -half * 0.55, wide * 0.65, "hole"),
    ]


@entered(SHAPES)
def _truck(length: float, p: Sequence[float]) -> list[ShapePart]:
    half, wide = length / 2, length * _mix(0.13, 0.17, p[0])
    cab = length * _mix(0.2, 0.3, p[1])
    parts = [
        _bar(-half, half - cab * 1.12, wide, "light" if p[2] > 0.5 else "shade", True),
        _bar(half - cab * 1.2, half - cab, wide * 0.5, "hole", True),
        _bar(half - cab, half, wide * 0.92, "body", True),
        _bar(half - cab * 0.35, half - cab * 0.1, wide * 0.75, "hole"),
    ]
    for k in range(1 + int(p[3] * 3)):
        x = -half + (k + 1) * (length - cab) / 5
        parts.append(_bar(x - 0.3, x + 0.3, wide, "dark"))
    return parts


def _roof(x1: float, y1: float, x2: float, y2: float, style: float) -> list[ShapePart]:
    middle = (y1 + y2) / 2
    if style < 0.4:
        inset = min(1.4, (y2 - y1) * 0.12)
        inner = _rect(x1 + inset, y1 + inset, x2 - inset, y2 - inset, "body")
        return [_rect(x1, y1, x2, y2, "light", True), inner]
    if style < 0.7:
        return [_rect(x1, y1, x2, middle, "light", True), _rect(x1, middle, x2, y2, "shade", True)]
    hip = min((y2 - y1) * 0.45, (x2 - x1) * 0.48)  # the hips of a wing that is deeper than wide would cross
    return [
        _rect(x1, y1, x2, y2, "body", True),
        _poly(((x1, y1), (x2, y1), (x2 - hip, middle), (x1 + hip, middle)), "light"),
        _poly(((x1, y2), (x1 + hip, middle), (x2 - hip, middle), (x2, y2)), "shade"),
    ]


@entered(SHAPES)
def _building(length: float, p: Sequence[float]) -> list[ShapePart]:
    half, wide = length / 2, length * _mix(0.24, 0.48, p[0])
    if p[1] > 0.55:
        wing = length * _mix(0.28, 0.42, p[2])
        parts = _roof(-half, -wide, half, -wide + wing, p[3]) + _roof(-half, -wide, -half + wing, wide, p[3])
    else:
        parts = _roof(-half, -wide, half, wide, p[3])
    for k in range(int(p[4] * 4)):
        x = -half + length * (0.15 + 0.22 * k)
        size = length * _mix(0.03, 0.06, p[5])
        parts.append(_rect(x, -wide * 0.7, x + size, -wide * 0.7 + size, "mark" if p[6] > 0.5 else "dark"))
    return parts


@entered(SHAPES)
def _tank(length: float, p: Sequence[float]) -> list[ShapePart]:
    radius = length / 2
    parts = [
        _round(0, 0, radius, "shade" if p[0] > 0.5 else "light", True),
        _round(0, 0, radius * _mix(0.74, 0.88, p[1]), "body"),
    ]
    if p[2] > 0.5:
        dome = radius * _mix(0.3, 0.6, p[3])
        parts.append(_round(radius * 0.15, 0, dome, "shade" if p[4] > 0.5 else "light"))
    ladder = _mix(0.1, 0.2, p[5])
    parts.append(_bar(radius * 0.1, radius * 0.9, radius * ladder / 2, "dark"))
    return parts


@entered(SHAPES)
def _court(length: float, p: Sequence[float]) -> list[ShapePart]:
    half, wide = length / 2, length * _mix(0.24, 0.34, p[0])
    ground = "shade" if p[1] > 0.5 else "light"
    x, y, line = half * _mix(0.72, 0.88, p[2]), wide * _mix(0.7, 0.86, p[3]), 0.4
    parts = [
        _bar(-half, half, wide, ground, True),
        _bar(-x - line, x + line, y + line, "mark"),
        _bar(-x, x, y, "body"),
        _bar(-line, line, y, "mark"),
    ]
    if p[4] > 0.4:
        box = y * _mix(0.4, 0.65, p[5])
        for side in (-1, 1):
            x1, x2 = sorted((side * x, side * x * 0.6))
            parts.append(_bar(x1, x2, box, "mark"))
            x1, x2 = sorted((side * (x - 2 * line), side * (x * 0.6 + 2 * line)))
            parts.append(_bar(x1, x2, box - 2 * line, "body"))
    return parts


@entered(SHAPES)
def _tree(length: float, p: Sequence[float]) -> list[ShapePart]:
    radius = length / 2
    parts = [_round(0, 0, radius, "shade", True, 9)]
    for k, role in enumerate(("dark", "body", "light", "body")):
        turn = 2 * np.pi * (k / 4 + 0.2 * p[k])
        x, y = 0.42 * radius * np.cos(turn), 0.42 * radius * np.sin(turn)
        parts.append(_round(x, y, radius * _mix(0.3, 0.48, p[k + 4]), role, sides=8))
    return parts


@entered(SHAPES)
def _crane(length: float, p: Sequence[float]) -> list[ShapePart]:
    half, beam = length / 2, max(0.8, length * _mix(0.035, 0.06, p[0]))
    gauge, leg = length * _mix(0.14, 0.24, p[1]), length * _mix(0.16, 0.26, p[2])
    at = _mix(-0.35, 0.0, p[3]) * length
    trolley = _mix(0.1, 0.9, p[5]) * half
    return [
        _bar(at - leg / 2 - beam, at - leg / 2 + beam * 0.4, gauge, "shade", True),
        _bar(at + leg / 2 - beam * 0.4, at + leg / 2 + beam, gauge, "shade", True),
        _bar(-half, half, beam, "body", True),
        _bar(at - leg / 2, at + leg * _mix(0.0, 0.3, p[4]), beam * 2.2, "light", True),
        _bar(trolley - beam, trolley + beam, beam, "hole"),
    ]


@entered(SHAPES)
def _container(length: float, p: Sequence[float]) -> list[ShapePart]:
    half, wide = length / 2, length * _mix(0.24, 0.42, p[0])
    rows, cols = 2 + int(p[1] * 3), 1 + int(p[2] * 2)
    roles = ("body", "shade", "light", "body", "dark", "mark")
    parts = [_bar(-half, half, wide, "hole", True)]
    tall, broad = 2 * wide / rows, length / cols
    for k in range(rows * cols):
        x, y = -half + (k % cols) * broad, -wide + (k // cols) * tall
        role = roles[int(p[3 + k % 7] * 5.99 + k * p[2] * 3) % len(roles)]
        parts.append(_rect(x + 0.15, y + 0.15, x + broad - 0.35, y + tall - 0.35, role))
    return parts


@entered(SHAPES)
def _barge(length: float, p: Sequence[float]) -> list[ShapePart]:
    half, beam = length / 2, length * _mix(0.12, 0.17, p[0])
    cut = beam * _mix(0.15, 0.5, p[1])
    holds = 1 + int(p[2] * 4)
    parts = [
        _hull(((half, beam - cut), (half - cut, beam), (-half + cut, beam), (-half, beam - cut)), "body")
    ]
    start, room = -half * _mix(0.9, 0.6, p[3]), half * 0.88
    step = (room - start) / holds
    rim, load = beam * 0.72, ("hole", "dark", "light")[int(p[4] * 2.99)]
    for k in range(holds):
        x = start + k * step
        parts.append(_bar(x + step * 0.06, x + step * 0.9, rim, "light"))
        parts.append(_bar(x + step * 0.06 + 0.5, x + step * 0.9 - 0.5, rim - 0.5, load))
    return parts


@entered(SHAPES)
def _dredger(length: float, p: Sequence[float]) -> list[ShapePart]:
    half, beam = length / 2, length * _mix(0.14, 0.19, p[0])
    notch, prong = length * _mix(0.22, 0.36, p[1]), beam * _mix(0.32, 0.45, p[2])
    return [
        _bar(-half, half - notch, beam, "body", True),
        _rect(half - notch - 0.5, -beam, half, -beam + prong, "shade", True),
        _rect(half - notch - 0.5, beam - prong, half, beam, "shade", True),
        _bar(-half * 0.95, -half * _mix(0.5, 0.7, p[3]), beam * 0.7, "mark"),
        _round(_mix(-0.2, 0.1, p[4]) * length, 0, beam * _mix(0.4, 0.62, p[5]), "dark", sides=10),
        _bar(-half * 0.3, half, beam * 0.14, "light", True),
    ]


@entered(SHAPES)
def _warehouse(length: float, p: Sequence[float]) -> list[ShapePart]:
    half, wide = length / 2, length * _mix(0.24, 0.38, p[0])
    parts = [_bar(-half, half, wide, "body", True)]
    bays = 3 + int(p[1] * 5)
    step = length / bays
    for k in range(bays):
        x = -half + k * step
        parts.append(_bar(x, x + step * _mix(0.3, 0.55, p[2]), wide, "shade" if p[3] > 0.4 else "light"))
        if p[4] > 0.5:
            parts.append(_bar(x + step * 0.7, x + step * 0.85, wide * 0.6, "mark"))
    return parts


@entered(SHAPES)
def _wagon(length: float, p: Sequence[float]) -> list[ShapePart]:
    half, wide = length / 2, length * _mix(0.12, 0.15, p[0])
    parts = [
        _bar(-half, half, wide * 0.35, "steel", True),
        _bar(-half * 0.93, half * 0.93, wide, "body", True),
    ]
    if p[1] < 0.35:
        parts.append(_bar(-half * 0.8, half * 0.8, wide * 0.6, "hole"))
    elif p[1] < 0.7:
        parts += [_round(half * x, 0, wide * 0.6, "light", sides=8) for x in (-0.6, 0.0, 0.6)]
    else:
        parts.append(_bar(-half * 0.9, half * 0.9, wide * 0.25, "light"))
    return parts


@entered(SHAPES)
def _buoy(length: float, p: Sequence[float]) -> list[ShapePart]:
    radius = length / 2
    bar = radius * _mix(0.16, 0.28, p[0])
    return [
        _round(0, 0, radius, "body", True, 8),
        _bar(-radius * 0.85, radius * 0.85, bar, "mark"),
        _bar(-bar, bar, radius * 0.85, "mark"),
        _round(0, 0, radius * _mix(0.25, 0.4, p[1]), "hole", sides=6),
    ]
