"""Object shapes: convex parts in pixels of the object's own frame (x forward, y to the right)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
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


class Part(NamedTuple):
    """A convex polygon of an object.

    Attributes:
        points: (N, 2) float32, pixels.
        role: Key of `ROLES`.
        solid: Belongs to the object's outline; other parts are details that lie inside it.
    """

    points: np.ndarray
    role: str
    solid: bool


Shape = Callable[[float, Sequence[float]], list[Part]]


def _poly(points: Sequence[tuple[float, float]], role: str, solid: bool = False) -> Part:
    return Part(np.asarray(points, np.float32), role, solid)


def _rect(x1: float, y1: float, x2: float, y2: float, role: str, solid: bool = False) -> Part:
    return _poly(((x1, y1), (x2, y1), (x2, y2), (x1, y2)), role, solid)


def _round(x: float, y: float, radius: float, role: str, solid: bool = False, sides: int = 16) -> Part:
    return Part(_circle(sides) * np.float32(radius) + np.array((x, y), np.float32), role, solid)


@lru_cache(maxsize=32)
def _circle(sides: int) -> np.ndarray:
    turn = np.arange(sides) * (2 * np.pi / sides)
    return np.stack([np.cos(turn), np.sin(turn)], 1).astype(np.float32)


def _mix(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _plane(length: float, p: Sequence[float]) -> list[Part]:
    half, body = length / 2, length * _mix(0.045, 0.075, p[0])
    span, chord = length * _mix(0.38, 0.54, p[1]), length * _mix(0.13, 0.22, p[2])
    sweep, root = length * _mix(0.0, 0.30, p[3]), half * _mix(0.05, 0.3, p[4])
    tail, tip = length * _mix(0.14, 0.22, p[5]), chord * _mix(0.3, 0.7, p[6])
    parts = []
    for side in (-1.0, 1.0):
        wing = ((root, 0), (root - chord, 0), (root - sweep - tip, side * span), (root - sweep, side * span))
        parts.append(_poly(wing, "body", True))
        rear = -half * 0.98
        fin = (
            (rear + tail * 0.7, 0),
            (rear, 0),
            (rear - tail * 0.0, side * tail),
            (rear + tail * 0.3, side * tail),
        )
        parts.append(_poly(fin, "light", True))
        at = span * _mix(0.3, 0.5, p[7])
        front = root - sweep * at / span
        parts.append(
            _rect(
                front - chord * 0.35,
                side * at - body * 0.55,
                front + chord * 0.12,
                side * at + body * 0.55,
                "dark",
            )
        )
        if p[8] > 0.6:
            far = at * 1.6
            front = root - sweep * far / span
            parts.append(
                _rect(
                    front - chord * 0.3,
                    side * far - body * 0.45,
                    front + chord * 0.1,
                    side * far + body * 0.45,
                    "dark",
                )
            )
    fuselage = (
        (half, 0),
        (half - body * 2, body),
        (-half * 0.5, body),
        (-half, body * 0.3),
        (-half, -body * 0.3),
        (-half * 0.5, -body),
        (half - body * 2, -body),
    )
    parts.append(_poly(fuselage, "light", True))
    parts.append(_rect(half - body * 2.2, -body * 0.6, half - body * 1.4, body * 0.6, "hole"))
    return parts


def _ship(length: float, p: Sequence[float]) -> list[Part]:
    half, beam = length / 2, length * _mix(0.09, 0.15, p[0])
    bow = length * _mix(0.16, 0.34, p[1])
    stern = beam * _mix(0.6, 1.0, p[2])
    hull = (
        (half, 0),
        (half - bow * 0.45, beam * 0.62),
        (half - bow, beam),
        (-half + beam * 0.5, beam),
        (-half, stern * 0.8),
        (-half, -stern * 0.8),
        (-half + beam * 0.5, -beam),
        (half - bow, -beam),
        (half - bow * 0.45, -beam * 0.62),
    )
    deck = tuple((x * 0.92, y * 0.7) for x, y in hull)
    parts = [_poly(hull, "body", True), _poly(deck, "shade" if p[3] > 0.5 else "light")]
    bridge = _mix(-half * 0.75, half * 0.2, p[4])
    holds = 1 + int(p[5] * 4)
    start, stop = -half * 0.75, half - bow
    step = (stop - start) / holds
    for k in range(holds):
        x = start + k * step
        parts.append(
            _rect(x + step * 0.15, -beam * 0.5, x + step * 0.8, beam * 0.5, "dark" if p[6] > 0.4 else "steel")
        )
    parts.append(
        _rect(
            bridge - length * 0.06,
            -beam * 0.75,
            bridge + length * _mix(0.03, 0.08, p[7]),
            beam * 0.75,
            "mark",
        )
    )
    return parts


def _car(length: float, p: Sequence[float]) -> list[Part]:
    half, wide = length / 2, length * _mix(0.21, 0.26, p[0])
    nose = half * 0.2
    body = (
        (half, wide * 0.6),
        (half - nose, wide),
        (-half + nose, wide),
        (-half, wide * 0.7),
        (-half, -wide * 0.7),
        (-half + nose, -wide),
        (half - nose, -wide),
        (half, -wide * 0.6),
    )
    screen = _mix(0.15, 0.45, p[1]) * half
    return [
        _poly(body, "body", True),
        _rect(screen - length * 0.04, -wide * 0.75, screen + length * 0.09, wide * 0.75, "hole"),
        _rect(-half * 0.75, -wide * 0.65, -half * 0.55, wide * 0.65, "hole"),
    ]


def _truck(length: float, p: Sequence[float]) -> list[Part]:
    half, wide = length / 2, length * _mix(0.13, 0.17, p[0])
    cab = length * _mix(0.2, 0.3, p[1])
    parts = [
        _rect(-half, -wide, half - cab * 1.12, wide, "light" if p[2] > 0.5 else "shade", True),
        _rect(half - cab * 1.2, -wide * 0.5, half - cab, wide * 0.5, "hole", True),
        _rect(half - cab, -wide * 0.92, half, wide * 0.92, "body", True),
        _rect(half - cab * 0.35, -wide * 0.75, half - cab * 0.1, wide * 0.75, "hole"),
    ]
    for k in range(1 + int(p[3] * 3)):
        x = -half + (k + 1) * (length - cab) / 5
        parts.append(_rect(x - 0.3, -wide, x + 0.3, wide, "dark"))
    return parts


def _roof(x1: float, y1: float, x2: float, y2: float, style: float, solid: bool = True) -> list[Part]:
    middle = (y1 + y2) / 2
    if style < 0.4:
        inset = min(1.4, (y2 - y1) * 0.12)
        return [
            _rect(x1, y1, x2, y2, "light", solid),
            _rect(x1 + inset, y1 + inset, x2 - inset, y2 - inset, "body"),
        ]
    if style < 0.7:
        return [_rect(x1, y1, x2, middle, "light", solid), _rect(x1, middle, x2, y2, "shade", solid)]
    hip = min((y2 - y1) * 0.45, (x2 - x1) * 0.48)  # the hips of a wing that is deeper than wide would cross
    return [
        _rect(x1, y1, x2, y2, "body", solid),
        _poly(((x1, y1), (x2, y1), (x2 - hip, middle), (x1 + hip, middle)), "light"),
        _poly(((x1, y2), (x1 + hip, middle), (x2 - hip, middle), (x2, y2)), "shade"),
    ]


def _building(length: float, p: Sequence[float]) -> list[Part]:
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


def _tank(length: float, p: Sequence[float]) -> list[Part]:
    radius = length / 2
    parts = [
        _round(0, 0, radius, "shade" if p[0] > 0.5 else "light", True),
        _round(0, 0, radius * _mix(0.74, 0.88, p[1]), "body"),
    ]
    if p[2] > 0.5:
        parts.append(
            _round(radius * 0.15, 0, radius * _mix(0.3, 0.6, p[3]), "shade" if p[4] > 0.5 else "light")
        )
    ladder = _mix(0.1, 0.2, p[5])
    parts.append(_rect(radius * 0.1, -radius * ladder / 2, radius * 0.9, radius * ladder / 2, "dark"))
    return parts


def _court(length: float, p: Sequence[float]) -> list[Part]:
    half, wide = length / 2, length * _mix(0.24, 0.34, p[0])
    ground = "shade" if p[1] > 0.5 else "light"
    parts = [_rect(-half, -wide, half, wide, ground, True)]
    x, y, line = half * _mix(0.72, 0.88, p[2]), wide * _mix(0.7, 0.86, p[3]), 0.4
    parts += [_rect(-x - line, -y - line, x + line, y + line, "mark"), _rect(-x, -y, x, y, "body")]
    parts.append(_rect(-line, -y, line, y, "mark"))
    if p[4] > 0.4:
        box = y * _mix(0.4, 0.65, p[5])
        for side in (-1, 1):
            parts.append(
                _rect(min(side * x, side * x * 0.6), -box, max(side * x, side * x * 0.6), box, "mark")
            )
            inner = sorted((side * (x - 2 * line), side * (x * 0.6 + 2 * line)))
            parts.append(_rect(inner[0], -box + 2 * line, inner[1], box - 2 * line, "body"))
    return parts


def _tree(length: float, p: Sequence[float]) -> list[Part]:
    radius = length / 2
    parts = [_round(0, 0, radius, "shade", True, 9)]
    for k in range(4):
        turn = 2 * np.pi * (k / 4 + 0.2 * p[k])
        x, y = 0.42 * radius * np.cos(turn), 0.42 * radius * np.sin(turn)
        role = ("dark", "body", "light", "body")[k]
        parts.append(_round(x, y, radius * _mix(0.3, 0.48, p[k + 4]), role, sides=8))
    return parts


def _crane(length: float, p: Sequence[float]) -> list[Part]:
    half, beam = length / 2, max(0.8, length * _mix(0.035, 0.06, p[0]))
    gauge, leg = length * _mix(0.14, 0.24, p[1]), length * _mix(0.16, 0.26, p[2])
    at = _mix(-0.35, 0.0, p[3]) * length
    parts = [
        _rect(at - leg / 2 - beam, -gauge, at - leg / 2 + beam * 0.4, gauge, "shade", True),
        _rect(at + leg / 2 - beam * 0.4, -gauge, at + leg / 2 + beam, gauge, "shade", True),
        _rect(-half, -beam, half, beam, "body", True),
        _rect(at - leg / 2, -beam * 2.2, at + leg * _mix(0.0, 0.3, p[4]), beam * 2.2, "light", True),
    ]
    trolley = _mix(0.1, 0.9, p[5]) * half
    parts.append(_rect(trolley - beam, -beam, trolley + beam, beam, "hole"))
    return parts


def _container(length: float, p: Sequence[float]) -> list[Part]:
    half, wide = length / 2, length * _mix(0.24, 0.42, p[0])
    rows, cols = 2 + int(p[1] * 3), 1 + int(p[2] * 2)
    roles = ("body", "shade", "light", "body", "dark", "mark")
    parts = [_rect(-half, -wide, half, wide, "hole", True)]
    tall, broad = 2 * wide / rows, length / cols
    for k in range(rows * cols):
        x, y = -half + (k % cols) * broad, -wide + (k // cols) * tall
        role = roles[int(p[3 + k % 7] * 5.99 + k * p[2] * 3) % len(roles)]
        parts.append(_rect(x + 0.15, y + 0.15, x + broad - 0.35, y + tall - 0.35, role))
    return parts


def _barge(length: float, p: Sequence[float]) -> list[Part]:
    half, beam = length / 2, length * _mix(0.12, 0.17, p[0])
    cut = beam * _mix(0.15, 0.5, p[1])
    hull = (
        (half, beam - cut),
        (half - cut, beam),
        (-half + cut, beam),
        (-half, beam - cut),
        (-half, -beam + cut),
        (-half + cut, -beam),
        (half - cut, -beam),
        (half, -beam + cut),
    )
    holds = 1 + int(p[2] * 4)
    parts = [_poly(hull, "body", True)]
    start, room = -half * _mix(0.9, 0.6, p[3]), half * 0.88
    step = (room - start) / holds
    rim, load = beam * 0.72, ("hole", "dark", "light")[int(p[4] * 2.99)]
    for k in range(holds):
        x = start + k * step
        parts.append(_rect(x + step * 0.06, -rim, x + step * 0.9, rim, "light"))
        parts.append(_rect(x + step * 0.06 + 0.5, -rim + 0.5, x + step * 0.9 - 0.5, rim - 0.5, load))
    return parts


def _dredger(length: float, p: Sequence[float]) -> list[Part]:
    half, beam = length / 2, length * _mix(0.14, 0.19, p[0])
    notch, prong = length * _mix(0.22, 0.36, p[1]), beam * _mix(0.32, 0.45, p[2])
    return [
        _rect(-half, -beam, half - notch, beam, "body", True),
        _rect(half - notch - 0.5, -beam, half, -beam + prong, "shade", True),
        _rect(half - notch - 0.5, beam - prong, half, beam, "shade", True),
        _rect(-half * 0.95, -beam * 0.7, -half * _mix(0.5, 0.7, p[3]), beam * 0.7, "mark"),
        _round(_mix(-0.2, 0.1, p[4]) * length, 0, beam * _mix(0.4, 0.62, p[5]), "dark", sides=10),
        _rect(-half * 0.3, -beam * 0.14, half, beam * 0.14, "light", True),
    ]


def _warehouse(length: float, p: Sequence[float]) -> list[Part]:
    half, wide = length / 2, length * _mix(0.24, 0.38, p[0])
    parts = [_rect(-half, -wide, half, wide, "body", True)]
    bays = 3 + int(p[1] * 5)
    step = length / bays
    for k in range(bays):
        x = -half + k * step
        parts.append(
            _rect(x, -wide, x + step * _mix(0.3, 0.55, p[2]), wide, "shade" if p[3] > 0.4 else "light")
        )
        if p[4] > 0.5:
            parts.append(_rect(x + step * 0.7, -wide * 0.6, x + step * 0.85, wide * 0.6, "mark"))
    return parts


def _wagon(length: float, p: Sequence[float]) -> list[Part]:
    half, wide = length / 2, length * _mix(0.12, 0.15, p[0])
    parts = [
        _rect(-half, -wide * 0.35, half, wide * 0.35, "steel", True),
        _rect(-half * 0.93, -wide, half * 0.93, wide, "body", True),
    ]
    if p[1] < 0.35:
        parts.append(_rect(-half * 0.8, -wide * 0.6, half * 0.8, wide * 0.6, "hole"))
    elif p[1] < 0.7:
        parts += [_round(half * x, 0, wide * 0.6, "light", sides=8) for x in (-0.6, 0.0, 0.6)]
    else:
        parts.append(_rect(-half * 0.9, -wide * 0.25, half * 0.9, wide * 0.25, "light"))
    return parts


def _buoy(length: float, p: Sequence[float]) -> list[Part]:
    radius = length / 2
    bar = radius * _mix(0.16, 0.28, p[0])
    return [
        _round(0, 0, radius, "body", True, 8),
        _rect(-radius * 0.85, -bar, radius * 0.85, bar, "mark"),
        _rect(-bar, -radius * 0.85, bar, radius * 0.85, "mark"),
        _round(0, 0, radius * _mix(0.25, 0.4, p[1]), "hole", sides=6),
    ]


SHAPES: dict[str, Shape] = {
    "plane": _plane,
    "ship": _ship,
    "car": _car,
    "truck": _truck,
    "building": _building,
    "tank": _tank,
    "court": _court,
    "tree": _tree,
    "crane": _crane,
    "container": _container,
    "barge": _barge,
    "dredger": _dredger,
    "warehouse": _warehouse,
    "wagon": _wagon,
    "buoy": _buoy,
}
