"""Land cover: what kind of ground is where, and which roads, rails and shores objects line up with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np

from vitp.scenes.chance import pick, uniform, whole
from vitp.scenes.domains import SceneDomain
from vitp.scenes.named import entered
from vitp.scenes.textures import LAND_VARIANTS, TILE_SIDE

FRACTION_BITS = 4
"""Fraction bits of the coordinates given to OpenCV."""


def fixed(points_N2: np.ndarray) -> np.ndarray:
    """Return pixel-edge coordinates as OpenCV's fixed-point ones, whose pixel centres are integers."""
    fixed_N2: np.ndarray = np.rint((points_N2 - 0.5) * (1 << FRACTION_BITS)).astype(np.int32)
    return fixed_N2


class Material(NamedTuple):
    """One piece of ground: a land class in one variant, laid down with its own turn and tone."""

    land: str
    variant: int
    angle: float
    scale: float
    offset: tuple[float, float]
    tone: float


class Line(NamedTuple):
    """A road, rail, runway or quay edge: its ground, ends, width and how it is marked."""

    land: str
    start: tuple[float, float]
    end: tuple[float, float]
    width: float
    marking: str


def _turn(points_N2: np.ndarray, centre: tuple[float, float], angle: float) -> np.ndarray:
    """Return points of a frame of its own as points of the image."""
    cos, sin = math.cos(angle), math.sin(angle)
    turned_N2: np.ndarray = points_N2 @ np.array([[cos, sin], [-sin, cos]]) + centre
    return turned_N2


def _corners(centre: tuple[float, float], length: float, width: float, angle: float) -> np.ndarray:
    return _turn(np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (length / 2, width / 2), centre, angle)


def _beside(
    through: tuple[float, float], angle: float, along_N: np.ndarray, across_N: np.ndarray
) -> np.ndarray:
    """Return the points that lie so far along a line and to its right."""
    cos, sin = math.cos(angle), math.sin(angle)
    x = through[0] + along_N * cos - across_N * sin
    return np.stack([x, through[1] + along_N * sin + across_N * cos], 1)


@dataclass
class LandLayout:
    """The ground of one place while it is being laid out.

    Attributes:
        material_HW: uint8, index into `materials`.
        materials: Pieces of ground.
        lines: What objects line up with.
        axis: Main direction of the place in radians.
    """

    domain: SceneDomain
    split: str
    size: int
    rng: np.random.Generator
    material_HW: np.ndarray = field(init=False)
    materials: list[Material] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    axis: float = 0.0

    def __post_init__(self) -> None:
        self.material_HW = np.zeros((self.size, self.size), np.uint8)
        self.axis = float(self.rng.random() * math.pi)

    def uniform(self, low: float, high: float) -> float:
        """Return a number between low and high."""
        return uniform(self.rng, low, high)

    def chance(self, share: float) -> bool:
        """Return True with a probability of `share`."""
        return self.rng.random() < share

    def pick(self, *lands: str) -> str:
        """Return one of the land classes."""
        return pick(self.rng, lands)

    def point(self, margin: float = 0.0) -> tuple[float, float]:
        """Return a place in the image, `margin` (share of its side) away from the border."""
        low, high = self.size * margin, self.size * (1 - margin)
        return self.uniform(low, high), self.uniform(low, high)

    def shifted(self, distance: float, angle: float | None = None) -> tuple[float, float]:
        """Return the point `distance` px to the right of the image's middle, seen along `angle`."""
        turn = self.axis if angle is None else angle
        return self.size / 2 - distance * math.sin(turn), self.size / 2 + distance * math.cos(turn)

    def ground(self, land: str, angle: float | None = None) -> int:
        """Add a material of a random variant, so that two fields rarely look alike, and return its index."""
        variant = whole(self.rng, 0, LAND_VARIANTS[self.split] - 1)
        turn = self.uniform(0, 2 * math.pi) if angle is None else angle
        offset = (self.uniform(0, TILE_SIDE), self.uniform(0, TILE_SIDE))
        scale, tone = self.uniform(0.8, 1.25), self.uniform(-1, 1)
        self.materials.append(Material(land, variant, turn, scale, offset, tone))
        return len(self.materials) - 1

    def fill(self, land: str) -> None:
        """Cover everything."""
        self.material_HW[:] = self.ground(land)

    def polygon(self, points_N2: np.ndarray, material: int) -> None:
        """Cover a polygon."""
        cv2.fillPoly(self.material_HW, [fixed(points_N2)], (material,), cv2.LINE_8, FRACTION_BITS)

    def blob(self, land: str, centre: tuple[float, float], radius: float) -> None:
        """Cover a rounded, irregular area."""
        turn = np.arange(14) * (2 * math.pi / 14)
        reach = radius * (0.65 + 0.7 * self.rng.random(14))
        reach = 0.5 * reach + 0.25 * (np.roll(reach, 1) + np.roll(reach, -1))
        points = np.stack([centre[0] + reach * np.cos(turn), centre[1] + reach * np.sin(turn)], 1)
        self.polygon(points, self.ground(land))

    def rectangle(
        self, land: str, centre: tuple[float, float], length: float, width: float, angle: float
    ) -> None:
        """Cover an oriented rectangle."""
        self.polygon(_corners(centre, length, width, angle), self.ground(land, angle))

    def line(
        self, land: str, through: tuple[float, float], angle: float, width: float, marking: str = ""
    ) -> None:
        """Lay a straight strip across the whole image."""
        reach = self.size * 1.5
        x, y = reach * math.cos(angle), reach * math.sin(angle)
        self.rectangle(land, through, 2 * reach, width, angle)
        start, end = (through[0] - x, through[1] - y), (through[0] + x, through[1] + y)
        self.lines.append(Line(land, start, end, width, marking))

    def side(self, land: str, distance: float, wobble: float = 0.0, angle: float | None = None) -> None:
        """Cover everything `distance` px and more to the right of the image's middle, seen along `angle`.

        The shore wobbles by up to `wobble` px.
        """
        # Beyond the image's diagonal (1.41 sides) on both ends: however the shore is turned, no corner stays uncovered.
        reach, steps = self.size * 1.6, 24
        through, turn = self.shifted(distance, angle), self.axis if angle is None else angle
        bend = self.rng.standard_normal(steps)
        # The mean of three neighbours: a shore of single random numbers would be jagged.
        bend = wobble * (bend + np.roll(bend, 1) + np.roll(bend, 2)) / 3
        shore = _beside(through, turn, np.linspace(-reach, reach, steps), bend)
        far = _turn(np.array([[reach, 2 * reach], [-reach, 2 * reach]]), through, turn)
        self.polygon(np.concatenate([shore, far]), self.ground(land))

    def river(self, land: str, width: float) -> None:
        """Lay a winding strip across the image."""
        start, angle = self.point(0.2), self.uniform(0, math.pi)
        along = np.linspace(-self.size * 1.5, self.size * 1.5, 24)
        phase, bend = self.uniform(0, 6), self.uniform(0.05, 0.12) * self.size
        swing = bend * np.sin(along / self.uniform(12, 25) + phase)
        half = width / 2 * (0.8 + 0.4 * self.rng.random(24))
        banks = [_beside(start, angle, along, swing - half), _beside(start, angle, along, swing + half)[::-1]]
        self.polygon(np.concatenate(banks), self.ground(land))

    def parcels(self, lands: tuple[str, ...], length: float, width: float, skip: float = 0.0) -> None:
        """Cover the image with a turned grid of fields, each with ground of its own."""
        reach = int(self.size * 0.8 / min(length, width)) + 1
        cos, sin = math.cos(self.axis), math.sin(self.axis)
        centre = self.point(0.3)
        for row in range(-reach, reach + 1):
            # Rows begin at different places, else the ends of all fields would lie on common lines.
            stagger = self.uniform(0, length)
            for column in range(-reach, reach + 1):
                x, y = column * length + stagger, row * width
                place = (centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos)
                # A field whose centre lies outside may still reach in.
                margin = max(length, width) * 0.7
                inside = all(-margin < value < self.size + margin for value in place)
                # uint8 material numbers: very large places keep their first fields and the base ground.
                if inside and self.rng.random() >= skip and len(self.materials) < 200:
                    turn = self.axis + (math.pi / 2 if self.chance(0.4) else 0.0)
                    material = self.ground(self.pick(*lands), turn)
                    # A little larger than its place in the grid, so that no seam of other ground shows between
                    # neighbours.
                    field_length = length * self.uniform(1.0, 1.06)
                    self.polygon(_corners(place, field_length, width * 1.04, self.axis), material)


LAYOUTS: dict[str, Callable[[LandLayout], None]] = {}
"""Scene type → function that lays out the ground of one place."""


def _country(lay: LandLayout) -> None:
    lay.fill(lay.pick("grass", "soil", "grass", "sand"))
    for _ in range(int(lay.rng.random() * 3)):
        lay.blob(lay.pick("forest", "soil", "grass", "crops"), lay.point(), lay.uniform(10, 26))
    if lay.chance(0.15):
        lay.river("water", lay.uniform(5, 12))


@entered(LAYOUTS)
def _airport(lay: LandLayout) -> None:
    _country(lay)
    near = lay.uniform(-0.35, -0.1) * lay.size
    lay.line("road", lay.shifted(near), lay.axis, lay.uniform(10, 15), "runway")
    apron = lay.shifted(lay.uniform(0.2, 0.35) * lay.size)
    lay.rectangle("pavement", apron, lay.size * lay.uniform(0.8, 1.8), lay.uniform(38, 54), lay.axis)
    if lay.chance(0.6):
        turn = lay.axis + math.pi / 2 + lay.uniform(-0.4, 0.4)
        lay.line("road", lay.point(0.2), turn, lay.uniform(5, 8), "yellow")


@entered(LAYOUTS)
def _harbour(lay: LandLayout) -> None:
    lay.fill("water")
    edge = lay.uniform(-0.15, 0.25) * lay.size
    lay.side("pavement", edge)
    lay.line("road", lay.shifted(edge + 4), lay.axis, 5)
    if lay.chance(0.5):
        pier = (lay.point(0.2), lay.size * lay.uniform(0.4, 0.9), lay.uniform(6, 12))
        lay.rectangle("pavement", *pier, lay.axis + math.pi / 2)
    if lay.chance(0.6):
        lay.side(lay.pick("grass", "soil", "pavement"), edge + lay.uniform(26, 40), lay.uniform(0, 3))


@entered(LAYOUTS)
def _residential(lay: LandLayout) -> None:
    lay.fill(lay.pick("grass", "soil", "grass"))
    if lay.chance(0.5):
        lay.blob(lay.pick("forest", "grass", "soil"), lay.point(), lay.uniform(10, 24))
    if lay.chance(0.2):
        lay.river("water", lay.uniform(6, 14))
    spacing, offset = lay.uniform(36, 50), lay.uniform(-20, 20)
    count = int(lay.size / spacing) + 1
    width = lay.uniform(5, 7.5)
    for k in range(-count // 2, count // 2 + 1):
        lay.line("road", lay.shifted(k * spacing + offset), lay.axis, width, "dash")
    lay.line("road", lay.point(0.2), lay.axis + math.pi / 2, width, "dash")


@entered(LAYOUTS)
def _farmland(lay: LandLayout) -> None:
    lay.fill(lay.pick("crops", "grass", "soil"))
    lay.parcels(("crops", "crops", "soil", "grass"), lay.uniform(34, 60), lay.uniform(22, 40), 0.1)
    if lay.chance(0.7):
        lay.line("road", lay.point(0.2), lay.axis + lay.uniform(-0.1, 0.1), lay.uniform(3, 5.5))
    if lay.chance(0.35):
        lay.blob("forest", lay.point(), lay.uniform(9, 18))
    if lay.chance(0.25):
        lay.river("water", lay.uniform(4, 9))


@entered(LAYOUTS)
def _forest(lay: LandLayout) -> None:
    lay.fill("forest")
    for _ in range(1 + int(lay.rng.random() * 3)):
        lay.blob(lay.pick("grass", "soil", "grass", "forest"), lay.point(), lay.uniform(10, 26))
    if lay.chance(0.4):
        lay.blob("water", lay.point(), lay.uniform(12, 28))
    if lay.chance(0.6):
        lay.line("road", lay.point(0.25), lay.axis, lay.uniform(3.5, 6))


@entered(LAYOUTS)
def _industrial(lay: LandLayout) -> None:
    lay.fill(lay.pick("pavement", "soil", "pavement"))
    lay.parcels(("pavement", "soil", "pavement", "grass"), lay.uniform(48, 70), lay.uniform(44, 60), 0.3)
    lay.line("road", lay.shifted(lay.uniform(-30, 30)), lay.axis, lay.uniform(6, 9), "dash")
    if lay.chance(0.5):
        lay.line("road", lay.point(0.2), lay.axis + math.pi / 2, lay.uniform(5, 8))
    if lay.chance(0.2):
        lay.river("water", lay.uniform(6, 12))


@entered(LAYOUTS)
def _coast(lay: LandLayout) -> None:
    lay.fill("water")
    # The axis covers half a turn; twice as much, and the sea may lie on any side.
    turn, edge = lay.axis * 2, lay.uniform(-0.2, 0.2) * lay.size
    lay.side("sand", edge, lay.uniform(3, 8), turn)
    lay.side(lay.pick("grass", "grass", "forest", "soil"), edge + lay.uniform(8, 22), lay.uniform(2, 6), turn)
    if lay.chance(0.5):
        lay.blob(lay.pick("forest", "grass"), lay.shifted(edge + 40, turn), lay.uniform(10, 20))
    if lay.chance(0.5):
        lay.line("road", lay.shifted(edge + lay.uniform(26, 34), turn), turn, lay.uniform(4, 6))
    if lay.chance(0.4):
        lay.blob("sand", lay.point(), lay.uniform(6, 14))


@entered(LAYOUTS)
def _parking(lay: LandLayout) -> None:
    _country(lay)
    lay.rectangle(
        "pavement",
        lay.point(0.35),
        lay.size * lay.uniform(0.7, 1.2),
        lay.size * lay.uniform(0.5, 0.9),
        lay.axis,
    )
    lay.line("road", lay.shifted(lay.uniform(-0.4, 0.4) * lay.size), lay.axis, lay.uniform(6, 9), "dash")
    if lay.chance(0.5):
        lay.rectangle(
            lay.pick("grass", "soil"), lay.point(0.2), lay.uniform(12, 40), lay.uniform(5, 12), lay.axis
        )


@entered(LAYOUTS)
def _terminal(lay: LandLayout) -> None:
    lay.fill("basin")
    edge = lay.uniform(-0.25, 0.1) * lay.size
    lay.side("quay", edge)
    lay.line("lane", lay.shifted(edge + 6), lay.axis, lay.uniform(4, 7), "dash")
    if lay.chance(0.7):
        lay.side("yard", edge + lay.uniform(26, 44))
    if lay.chance(0.5):
        lay.line("rail", lay.shifted(edge + lay.uniform(38, 60)), lay.axis, 7, "rails")


@entered(LAYOUTS)
def _railyard(lay: LandLayout) -> None:
    lay.fill(lay.pick("yard", "scrub", "yard", "mud"))
    if lay.chance(0.6):
        lay.side(lay.pick("scrub", "yard", "basin"), lay.uniform(20, 38), lay.uniform(0, 5))
    start, gap = lay.uniform(-0.4, -0.1) * lay.size, lay.uniform(8, 13)
    for k in range(2 + int(lay.rng.random() * 4)):
        lay.line("rail", lay.shifted(start + k * gap), lay.axis, 7, "rails")
    if lay.chance(0.5):
        lay.line("lane", lay.point(0.2), lay.axis + math.pi / 2 + lay.uniform(-0.3, 0.3), lay.uniform(4, 6))


@entered(LAYOUTS)
def _anchorage(lay: LandLayout) -> None:
    lay.fill("basin")
    if lay.chance(0.6):
        # The axis covers half a turn; twice as much, and the land may lie on any side.
        turn, edge = lay.axis * 2, lay.uniform(22, 42) * lay.size / 96
        lay.side(lay.pick("quay", "mud"), edge, lay.uniform(0, 3), turn)
        lay.side(lay.pick("yard", "scrub"), edge + 16, 2.0, turn)
    if lay.chance(0.4):
        lay.rectangle("quay", lay.point(), lay.size * lay.uniform(0.5, 1), lay.uniform(5, 9), lay.axis)


@entered(LAYOUTS)
def _flats(lay: LandLayout) -> None:
    lay.fill(lay.pick("mud", "basin"))
    # The axis covers half a turn; twice as much, and the land may lie on any side.
    turn = lay.axis * 2
    if lay.chance(0.6):
        lay.side("scrub", lay.uniform(25, 40) * lay.size / 96, lay.uniform(4, 9), turn)
    for _ in range(1 + int(lay.rng.random() * 3)):
        lay.blob(lay.pick("basin", "mud"), lay.point(), lay.uniform(16, 34))
    lay.river("basin", lay.uniform(10, 26))


@entered(LAYOUTS)
def _depot(lay: LandLayout) -> None:
    lay.fill(lay.pick("yard", "scrub", "yard", "mud"))
    lay.parcels(("yard", "scrub", "yard", "mud"), lay.uniform(50, 70), lay.uniform(40, 56), 0.4)
    lay.line("lane", lay.shifted(lay.uniform(-30, 30)), lay.axis, lay.uniform(5, 8), "dash")
    if lay.chance(0.7):
        lay.line("rail", lay.shifted(lay.uniform(-36, 36)), lay.axis, 7, "rails")
    if lay.chance(0.25):
        lay.side("basin", lay.uniform(26, 40), lay.uniform(0, 2))
