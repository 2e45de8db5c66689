"""The plan of a place: its ground, and which object stands where. A plan has no light and no sensor yet."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import cv2
import numpy as np

from vitp.scenes.chance import pick, uniform, whole
from vitp.scenes.domains import ObjectSpec, Rule, SceneDomain
from vitp.scenes.layout import LAYOUTS, LandLayout, Line
from vitp.scenes.shapes import PAINTS, SHAPES
from vitp.scenes.textures import Bank

_OVERSAMPLE = 4
_ATTEMPTS = 7
_ON_GROUND = 0.88
"""Share of an object's visible outline that must stand on its zone."""

_AIR = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class Style:
    """One object before it has a place: its shape in its own frame, its size and its paint.

    Attributes:
        points_N2: float32 corners of all parts, one part after the other.
        stops: Where each part ends in `points_N2`.
        roles: Paint of each part.
        solid: Which parts make the outline.
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
    colour: str
    rgb: tuple[float, float, float]
    extent: tuple[float, float, float, float] = field(init=False)
    """x1, y1, x2, y2 of the outline in the object's frame."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "extent", self.extent_of(self.points_N2))

    @property
    def half_width(self) -> float:
        """Half of the width across the heading."""
        return max(-self.extent[1], self.extent[3])

    def parts(self, points: np.ndarray) -> list[np.ndarray]:
        """Cut an array that runs along `points_N2` into the parts."""
        return [points[start:stop] for start, stop in zip((0, *self.stops[:-1]), self.stops, strict=True)]

    def solid_parts(self, points: np.ndarray) -> list[np.ndarray]:
        """Cut an array that runs along `points_N2` into the parts that make the outline."""
        return list(itertools.compress(self.parts(points), self.solid))

    def extent_of(self, points_N2: np.ndarray) -> tuple[float, float, float, float]:
        """Return x1, y1, x2, y2 of the outline when the corners lie at `points_N2`."""
        outline = np.concatenate(self.solid_parts(points_N2))
        (x1, y1), (x2, y2) = outline.min(0).tolist(), outline.max(0).tolist()
        return x1, y1, x2, y2


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

    def window(self, size: int) -> tuple[slice, slice, np.ndarray]:
        """Return the rows and columns of the image that the outline can cover, and the outline there."""
        x, y = self.corner
        height, width = self.mask_HW.shape
        x1, y1 = min(max(x, 0), size), min(max(y, 0), size)
        x2, y2 = min(max(x + width, x1), size), min(max(y + height, y1), size)
        return slice(y1, y2), slice(x1, x2), self.mask_HW[y1 - y : y2 - y, x1 - x : x2 - x]


@dataclass
class ScenePlan:
    """A place: ground and objects, which never cover each other.

    Attributes:
        land_HW: uint8, index into the domain's land classes.
        taken_HW: uint8, 1 where an object or its surroundings of one pixel are.
    """

    domain: SceneDomain
    scene_type: str
    layout: LandLayout
    land_HW: np.ndarray
    taken_HW: np.ndarray
    objects: list[PlacedObject] = field(default_factory=list)


def _outline(style: Style, points_N2: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Rasterise the solid parts: a pixel belongs to the object when at least half of it is covered."""
    x, y = (math.floor(value) for value in points_N2.min(0).tolist())
    right, bottom = (math.ceil(value) for value in points_N2.max(0).tolist())
    width, height = right - x, bottom - y
    fine = np.zeros((height * _OVERSAMPLE, width * _OVERSAMPLE), np.uint8)
    # OpenCV's pixel centres are whole numbers, hence −0.5, and its coordinates have four fraction bits, hence 16.
    inside = np.rint(((points_N2 - (x, y)) * _OVERSAMPLE - 0.5) * 16).astype(np.int32)
    for part in style.solid_parts(inside):
        cv2.fillConvexPoly(fine, part, (255,), cv2.LINE_8, 4)
    return cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA) >= 128, (x, y)


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


class _Planner:
    """Puts objects into a layout by the rules of its scene type."""

    def __init__(self, plan: ScenePlan, bank: Bank, rng: np.random.Generator) -> None:
        self.plan, self.bank, self.rng = plan, bank, rng
        self.size = plan.layout.size

    def place_all(self) -> None:
        """Place the objects of the scene type and sometimes a stray of another."""
        domain = self.plan.domain
        rules = list(domain.rules[self.plan.scene_type])
        if self.rng.random() < 0.35:
            stray = pick(self.rng, domain.scene_types)
            rules.append(pick(self.rng, domain.rules[stray]))
        # The counts of the rules are those of a place of 96 px.
        area = (self.size / 96) ** 2
        for rule in rules:
            wanted = whole(self.rng, *rule.count) * area
            # What is left of a whole number is drawn, so that the mean count is exact.
            count = int(wanted) + int(self.rng.random() < wanted % 1)
            if not count:
                continue
            table = np.zeros(256, np.uint8)
            table[[domain.land_classes.index(zone) for zone in rule.zones]] = 1
            zone_HW = cv2.LUT(self.plan.land_HW, table)
            pixels = np.flatnonzero(zone_HW)
            if pixels.size >= 12:
                for _ in range(count):
                    self._group(rule, zone_HW, pixels)

    def _style(self, category: str) -> Style:
        spec, variants = self.plan.domain.objects[category], self.bank.objects[category]
        chance = self.rng.random(3).tolist()
        variant = variants[int(chance[0] * len(variants))]
        low, high = spec.length
        # Log-uniform: small ones are as frequent as they are hard.
        length = low * (high / low) ** chance[1]
        colour = spec.palette[int(chance[2] * len(spec.palette))]
        jitter = (self.rng.standard_normal(3) * 7).tolist()
        red, green, blue = (PAINTS[colour][k] + jitter[k] + variant.tint[k] for k in range(3))
        parts = SHAPES[category](length, variant.shape)
        return Style(
            category,
            spec,
            length,
            np.concatenate([part.points for part in parts]),
            tuple(itertools.accumulate(len(part.points) for part in parts)),
            tuple(part.role for part in parts),
            tuple(part.solid for part in parts),
            colour,
            (red, green, blue),
        )

    def _group(self, rule: Rule, zone_HW: np.ndarray, pixels: np.ndarray) -> None:
        """Place an object and, if there is room for it, the rest of its row or train."""
        members = whole(self.rng, *rule.group)
        style = self._style(rule.category)
        for _ in range(_ATTEMPTS):
            centre, angle = self._pose(rule, pixels, style)
            if self._place(style, centre, angle, zone_HW):
                break
        else:
            return
        gap = uniform(self.rng, 1.6, 3.4)
        same = self.rng.random() < 0.5
        for _ in range(members - 1):
            before = style
            if not same:
                style = self._style(rule.category)
            # Wagons stand end to end, the members of a row side by side.
            if rule.how == "train":
                step, turn = (before.length + style.length) / 2 + gap * 0.6, angle
            else:
                step, turn = before.half_width + style.half_width + gap, angle + math.pi / 2
            centre = (centre[0] + step * math.cos(turn), centre[1] + step * math.sin(turn))
            self._place(style, centre, angle, zone_HW)

    def _pose(self, rule: Rule, pixels: np.ndarray, style: Style) -> tuple[tuple[float, float], float]:
        pixel = int(pixels[int(self.rng.random() * pixels.size)])
        x, y = pixel % self.size + float(self.rng.random()), pixel // self.size + float(self.rng.random())
        quarter = math.pi / 2 * whole(self.rng, 0, 3)
        axis = self.plan.layout.axis
        if rule.how == "free":
            return (x, y), uniform(self.rng, 0, 2 * math.pi)
        if rule.how in ("axis", "row"):
            return (x, y), axis + quarter + uniform(self.rng, -0.06, 0.06)
        wanted = rule.line or rule.zones[0]
        lines = [line for line in self.plan.layout.lines if line.land == wanted]
        if not lines:
            return (x, y), axis + quarter
        return self._along(rule, pick(self.rng, lines), (x, y), style.half_width)

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
            # Runways are used along their middle, and so is a road whose half is too narrow for the object.
            lane = line.width / 4 if line.width < 9 and 2 * half_width < line.width / 2 + 1 else 0.0
            across = lane if flip == 0.0 else -lane
        else:
            away = line.width / 2 + half_width + uniform(self.rng, 1, 4)
            across = away if self.rng.random() < 0.5 else -away
            flip = math.pi / 2 * whole(self.rng, 0, 3) if rule.category == "building" else 0.0
        centre = (line.start[0] + along * cos - across * sin, line.start[1] + along * sin + across * cos)
        return centre, heading + flip + uniform(self.rng, -0.03, 0.03)

    def _blocked(self, quad: tuple[float, ...], centre: tuple[float, float], zone_HW: np.ndarray) -> bool:
        """Return whether the centre and three corners show already that an object can't stand here."""
        # Cheap: what fails here is never rasterised.
        off = 0
        for x, y in (centre, quad[0:2], quad[2:4], quad[4:6]):
            column, row = math.floor(x), math.floor(y)
            if 0 <= column < self.size and 0 <= row < self.size:
                if self.plan.taken_HW[row, column]:
                    return True
                off += not zone_HW[row, column]
        # One of the four points may be off, as `_ON_GROUND` allows a small part of an object to be.
        return off > 1

    def _place(self, style: Style, centre: tuple[float, float], angle: float, zone_HW: np.ndarray) -> bool:
        """Put one object down unless it leaves its zone or touches another; return whether it stands."""
        quad, spec, taken_HW = _quad(style, centre, angle), style.spec, self.plan.taken_HW
        if self._blocked(quad, centre, zone_HW):
            return False
        cos, sin = math.cos(angle), math.sin(angle)
        points_N2 = style.points_N2 @ np.array([[cos, sin], [-sin, cos]], np.float32)
        points_N2 = points_N2 + np.array(centre, np.float32)
        # A disc has no heading, so its quad lies along the image's axes.
        if spec.round:
            x1, y1, x2, y2 = style.extent_of(points_N2)
            quad = tuple(round(value, 3) for value in (x1, y1, x2, y1, x2, y2, x1, y2))
        mask_HW, corner = _outline(style, points_N2)
        radar = spec.radar + uniform(self.rng, -0.1, 0.1)
        heat = spec.heat + uniform(self.rng, -spec.heat_spread, spec.heat_spread)
        candidate = PlacedObject(style, angle, points_N2, mask_HW, corner, quad, radar, heat)
        rows, columns, seen_HW = candidate.window(self.size)
        visible = int(np.count_nonzero(seen_HW))
        if visible == 0 or taken_HW[rows, columns][seen_HW].any():
            return False
        if np.count_nonzero(zone_HW[rows, columns][seen_HW]) < _ON_GROUND * visible:
            return False
        # One pixel of air, so that two objects never merge in the mask.
        top, left = max(rows.start - 1, 0), max(columns.start - 1, 0)
        wide = (slice(top, rows.stop + 1), slice(left, columns.stop + 1))
        stamp = np.zeros_like(taken_HW[wide])
        stamp[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = seen_HW
        taken_HW[wide] = np.maximum(taken_HW[wide], cv2.dilate(stamp, _AIR))
        self.plan.objects.append(candidate)
        return True


def make_plan(domain: SceneDomain, bank: Bank, rng: np.random.Generator, size: int, split: str) -> ScenePlan:
    """Lay out one place and fill it with objects."""
    scene_type = pick(rng, domain.scene_types)
    layout = LandLayout(domain, split, size, rng)
    LAYOUTS[scene_type](layout)
    table = np.zeros(256, np.uint8)
    table[: len(layout.materials)] = [domain.land_classes.index(m.land) for m in layout.materials]
    taken_HW = np.zeros((size, size), np.uint8)
    plan = ScenePlan(domain, scene_type, layout, cv2.LUT(layout.material_HW, table), taken_HW)
    _Planner(plan, bank, rng).place_all()
    return plan
