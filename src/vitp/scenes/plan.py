"""The plan of a place: its ground, and which object stands where. A plan has no light and no sensor yet."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import cv2
import numpy as np

from vitp.scenes.domains import ObjectSpec, Rule, SceneDomain
from vitp.scenes.layout import LAYOUTS, Layout, Line
from vitp.scenes.shapes import COLOURS, SHAPES
from vitp.scenes.textures import Bank, ObjectVariant

OVERSAMPLE = 4
ATTEMPTS = 7
ON_GROUND = 0.88
"""Share of an object's visible outline that must stand on its zone."""


@dataclass(frozen=True)
class Style:
    """One object before it has a place: its shape in its own frame, its size and its paint.

    Attributes:
        points_N2: float32 corners of all parts, one part after the other.
        stops: Where each part ends in `points_N2`.
        roles: Paint of each part.
        solid: Which parts make the outline.
        extent: x1, y1, x2, y2 of the outline in the object's frame.
        colour: Name of the paint.
        rgb: The paint itself, about 0..255.
    """

    category: str
    spec: ObjectSpec
    length: float
    points_N2: np.ndarray
    stops: tuple[int, ...]
    roles: tuple[str, ...]
    solid: tuple[bool, ...]
    extent: tuple[float, float, float, float]
    colour: str
    rgb: tuple[float, float, float]

    @property
    def half_width(self) -> float:
        """Half of the width across the heading."""
        return max(-self.extent[1], self.extent[3])


@dataclass(frozen=True)
class PlacedObject:
    """One object in its place.

    Attributes:
        style: What it looks like.
        angle: Heading in radians, clockwise from the image's right.
        points_N2: float32 corners of all parts in pixels of the image.
        mask_HW: bool, its outline in a window of its own that may leave the image.
        corner: x, y of the window in the image.
        quad: Corners of the oriented box, clockwise.
        radar, heat: Bands 0..1.
    """

    style: Style
    angle: float
    points_N2: np.ndarray
    mask_HW: np.ndarray
    corner: tuple[int, int]
    quad: tuple[float, ...]
    radar: float
    heat: float

    @property
    def category(self) -> str:
        """Class name."""
        return self.style.category

    def parts(self, points: np.ndarray) -> list[np.ndarray]:
        """Cut an array that runs along `points_N2` into the parts."""
        starts = (0, *self.style.stops[:-1])
        return [points[start:stop] for start, stop in zip(starts, self.style.stops, strict=True)]

    def window(self, size: int) -> tuple[slice, slice, np.ndarray]:
        """Return the rows and columns of the image that the outline can cover, and the outline there."""
        x, y = self.corner
        height, width = self.mask_HW.shape
        x1, y1 = min(max(x, 0), size), min(max(y, 0), size)
        x2, y2 = min(max(x + width, x1), size), min(max(y + height, y1), size)
        return slice(y1, y2), slice(x1, x2), self.mask_HW[y1 - y : y2 - y, x1 - x : x2 - x]


@dataclass
class Plan:
    """A place: ground and objects, which never cover each other."""

    domain: SceneDomain
    scene_type: str
    layout: Layout
    land_HW: np.ndarray
    objects: list[PlacedObject] = field(default_factory=list)


def _outline(style: Style, points_N2: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Rasterise the solid parts: a pixel belongs to the object when at least half of it is covered."""
    x, y = (math.floor(value) for value in points_N2.min(0).tolist())
    right, bottom = (math.ceil(value) for value in points_N2.max(0).tolist())
    width, height = right - x, bottom - y
    fine = np.zeros((height * OVERSAMPLE, width * OVERSAMPLE), np.uint8)
    inside = np.rint(((points_N2 - (x, y)) * OVERSAMPLE - 0.5) * 16).astype(np.int32)
    start = 0
    for stop, solid in zip(style.stops, style.solid, strict=True):
        if solid:
            cv2.fillConvexPoly(fine, inside[start:stop], (255,), cv2.LINE_8, 4)
        start = stop
    return cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA) >= 128, (x, y)


def _turned(points_N2: np.ndarray, centre: tuple[float, float], angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    turned: np.ndarray = points_N2 @ np.array([[cos, sin], [-sin, cos]], np.float32)
    return turned + np.array(centre, np.float32)


def _quad(style: Style, centre: tuple[float, float], angle: float) -> tuple[float, ...]:
    """Return the outline's oriented box: y points down, so rear left, front left, … is clockwise."""
    x1, y1, x2, y2 = style.extent
    cos, sin = math.cos(angle), math.sin(angle)
    corners = ((x1, y1), (x2, y1), (x2, y2), (x1, y2))
    return tuple(
        round(value, 3)
        for x, y in corners
        for value in (centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos)
    )


def _upright(style: Style, points_N2: np.ndarray) -> tuple[float, ...]:
    start, solid = 0, []
    for stop, part in zip(style.stops, style.solid, strict=True):
        if part:
            solid.append(points_N2[start:stop])
        start = stop
    outline = np.concatenate(solid)
    (x1, y1), (x2, y2) = outline.min(0).tolist(), outline.max(0).tolist()
    return tuple(round(value, 3) for value in (x1, y1, x2, y1, x2, y2, x1, y2))


def _style(
    category: str, spec: ObjectSpec, variants: tuple[ObjectVariant, ...], rng: np.random.Generator
) -> Style:
    chance = rng.random(3).tolist()
    variant = variants[int(chance[0] * len(variants))]
    low, high = spec.length
    # Log-uniform: small ones are as frequent as they are hard.
    length = low * (high / low) ** chance[1]
    colour = spec.palette[int(chance[2] * len(spec.palette))]
    jitter = (rng.standard_normal(3) * 7).tolist()
    base = COLOURS[colour]
    rgb = tuple(base[k] + jitter[k] + variant.tint[k] for k in range(3))
    parts = SHAPES[category](length, variant.shape)
    stops = tuple(itertools.accumulate(len(part.points) for part in parts))
    outline = np.concatenate([part.points for part in parts if part.solid])
    (x1, y1), (x2, y2) = outline.min(0).tolist(), outline.max(0).tolist()
    return Style(
        category,
        spec,
        length,
        np.concatenate([part.points for part in parts]),
        stops,
        tuple(part.role for part in parts),
        tuple(part.solid for part in parts),
        (x1, y1, x2, y2),
        colour,
        (rgb[0], rgb[1], rgb[2]),
    )


class Planner:
    """Puts objects into a layout by the rules of its scene type."""

    def __init__(self, plan: Plan, bank: Bank, rng: np.random.Generator) -> None:
        self.plan, self.bank, self.rng = plan, bank, rng
        self.size = plan.layout.size
        self.taken_HW = np.zeros((self.size, self.size), np.uint8)

    def uniform(self, low: float, high: float) -> float:
        """Return a number between low and high."""
        return low + (high - low) * float(self.rng.random())

    def place_all(self) -> None:
        """Place the objects of the scene type and sometimes a stray of another."""
        domain = self.plan.domain
        rules = list(domain.rules[self.plan.scene_type])
        if self.rng.random() < 0.35:
            stray = domain.scene_types[int(self.rng.random() * len(domain.scene_types))]
            others = domain.rules[stray]
            rules.append(others[int(self.rng.random() * len(others))])
        area = (self.size / 96) ** 2
        for rule in rules:
            low, high = rule.count
            wanted = (low + int(self.rng.random() * (high - low + 1))) * area
            count = int(wanted) + int(self.rng.random() < wanted % 1)
            if count:
                self._apply(rule, count)

    def _apply(self, rule: Rule, count: int) -> None:
        lands = self.plan.domain.land_classes
        table = np.zeros(256, np.uint8)
        table[[lands.index(zone) for zone in rule.zones]] = 1
        zone_HW = cv2.LUT(self.plan.land_HW, table)
        pixels = np.flatnonzero(zone_HW)
        if pixels.size < 12:
            return
        for _ in range(count):
            self._group(rule, zone_HW, pixels)

    def _style(self, category: str) -> Style:
        return _style(category, self.plan.domain.objects[category], self.bank.objects[category], self.rng)

    def _group(self, rule: Rule, zone_HW: np.ndarray, pixels: np.ndarray) -> None:
        low, high = rule.group
        members = low + int(self.rng.random() * (high - low + 1))
        style = self._style(rule.category)
        for _ in range(ATTEMPTS):
            centre, angle = self._pose(rule, pixels, style)
            if self._place(style, centre, angle, zone_HW):
                self._followers(rule, style, members - 1, centre, angle, zone_HW)
                return

    def _followers(
        self,
        rule: Rule,
        style: Style,
        members: int,
        centre: tuple[float, float],
        angle: float,
        zone_HW: np.ndarray,
    ) -> None:
        """Place the rest of a row or train, starting beside its first object."""
        gap = self.uniform(1.6, 3.4)
        same = self.rng.random() < 0.5
        for _ in range(members):
            before = style
            if not same:
                style = self._style(rule.category)
            if rule.how == "train":
                step, turn = (before.length + style.length) / 2 + gap * 0.6, angle
            else:
                step, turn = before.half_width + style.half_width + gap, angle + math.pi / 2
            centre = (centre[0] + step * math.cos(turn), centre[1] + step * math.sin(turn))
            self._place(style, centre, angle, zone_HW)

    def _pose(self, rule: Rule, pixels: np.ndarray, style: Style) -> tuple[tuple[float, float], float]:
        pixel = int(pixels[int(self.rng.random() * pixels.size)])
        x, y = pixel % self.size + float(self.rng.random()), pixel // self.size + float(self.rng.random())
        quarter = math.pi / 2 * int(self.rng.random() * 4)
        axis = self.plan.layout.axis
        if rule.how == "free":
            return (x, y), self.uniform(0, 2 * math.pi)
        if rule.how in ("axis", "row"):
            return (x, y), axis + quarter + self.uniform(-0.06, 0.06)
        wanted = rule.line or rule.zones[0]
        lines = [line for line in self.plan.layout.lines if line.land == wanted]
        if not lines:
            return (x, y), axis + quarter
        line = lines[int(self.rng.random() * len(lines))]
        return self._along(rule, line, (x, y), style.half_width)

    def _along(
        self, rule: Rule, line: Line, near: tuple[float, float], half_width: float
    ) -> tuple[tuple[float, float], float]:
        """Return the pose on or beside a line at the place nearest to a point of the image."""
        heading = math.atan2(line.end[1] - line.start[1], line.end[0] - line.start[0])
        cos, sin = math.cos(heading), math.sin(heading)
        along = (near[0] - line.start[0]) * cos + (near[1] - line.start[1]) * sin
        if rule.how == "train":
            across, flip = 0.0, 0.0
        elif rule.how == "line":
            # Traffic keeps to the right of its own heading.
            flip = math.pi if self.rng.random() < 0.5 else 0.0
            lane = line.width / 4 if line.width < 9 and 2 * half_width < line.width / 2 + 1 else 0.0
            across = lane if flip == 0.0 else -lane
        else:
            away = line.width / 2 + half_width + self.uniform(1, 4)
            across = away if self.rng.random() < 0.5 else -away
            flip = math.pi / 2 * int(self.rng.random() * 4) if rule.category == "building" else 0.0
        centre = (line.start[0] + along * cos - across * sin, line.start[1] + along * sin + across * cos)
        return centre, heading + flip + self.uniform(-0.03, 0.03)

    def _blocked(self, quad: tuple[float, ...], centre: tuple[float, float], zone_HW: np.ndarray) -> bool:
        """Tell cheaply, from five points, that an object can't stand here."""
        off = 0
        for x, y in ((centre[0], centre[1]), (quad[0], quad[1]), (quad[2], quad[3]), (quad[4], quad[5])):
            column, row = math.floor(x), math.floor(y)
            if 0 <= column < self.size and 0 <= row < self.size:
                if self.taken_HW[row, column]:
                    return True
                off += not zone_HW[row, column]
        return off > 1

    def _place(self, style: Style, centre: tuple[float, float], angle: float, zone_HW: np.ndarray) -> bool:
        """Put one object down unless it leaves its zone or touches another; return whether it stands."""
        quad = _quad(style, centre, angle)
        if self._blocked(quad, centre, zone_HW):
            return False
        points_N2 = _turned(style.points_N2, centre, angle)
        if style.spec.round:
            quad = _upright(style, points_N2)
        mask_HW, corner = _outline(style, points_N2)
        spec = style.spec
        candidate = PlacedObject(
            style,
            angle,
            points_N2,
            mask_HW,
            corner,
            quad,
            spec.radar + self.uniform(-0.1, 0.1),
            spec.heat + self.uniform(-spec.heat_spread, spec.heat_spread),
        )
        rows, columns, seen_HW = candidate.window(self.size)
        visible = int(np.count_nonzero(seen_HW))
        if visible == 0 or self.taken_HW[rows, columns][seen_HW].any():
            return False
        if np.count_nonzero(zone_HW[rows, columns][seen_HW]) < ON_GROUND * visible:
            return False
        # One pixel of air, so that two objects never merge in the mask.
        wide = (
            slice(max(rows.start - 1, 0), rows.stop + 1),
            slice(max(columns.start - 1, 0), columns.stop + 1),
        )
        stamp = np.zeros_like(self.taken_HW[wide])
        top, left = rows.start - wide[0].start, columns.start - wide[1].start
        stamp[top : top + seen_HW.shape[0], left : left + seen_HW.shape[1]] = seen_HW
        self.taken_HW[wide] = np.maximum(self.taken_HW[wide], cv2.dilate(stamp, _AIR))
        self.plan.objects.append(candidate)
        return True


_AIR = np.ones((3, 3), np.uint8)


def make_plan(
    domain: SceneDomain, bank: Bank, rng: np.random.Generator, size: int, split: str
) -> tuple[Plan, Planner]:
    """Lay out one place and fill it with objects."""
    scene_type = domain.scene_types[int(rng.random() * len(domain.scene_types))]
    layout = Layout(domain, split, size, rng)
    LAYOUTS[scene_type](layout)
    table = np.zeros(256, np.uint8)
    table[: len(layout.materials)] = [domain.land_classes.index(m.land) for m in layout.materials]
    plan = Plan(domain, scene_type, layout, cv2.LUT(layout.material_HW, table))
    planner = Planner(plan, bank, rng)
    planner.place_all()
    return plan, planner
