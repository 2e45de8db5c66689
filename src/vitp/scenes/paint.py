"""From a plan to six physical bands: red, green, blue, near infrared, radar backscatter, temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from vitp.scenes.layout import FRACTION_BITS, Line, fixed
from vitp.scenes.plan import PlacedObject, ScenePlan
from vitp.scenes.shapes import ROLES
from vitp.scenes.textures import TILE_SIDE, Bank

_MAX_RISE = 8.0
"""Tallest object in pixels; a shadow longer than that would hide its neighbours."""


@dataclass(frozen=True)
class Light:
    """Sun and season of one date.

    Attributes:
        shadow: Shift in pixels of the shadow of something one pixel high.
        dark: What is left of the light in a shadow.
        season: −1 (lush) … 1 (dry), for plants.
        relief: Strength of slow changes of brightness.
    """

    shadow: tuple[float, float]
    dark: float
    season: float
    relief: float
    slope: int
    offset: tuple[float, float]


def random_light(rng: np.random.Generator) -> Light:
    """Return the light of a random date and hour."""
    values = rng.random(8)
    azimuth, length = 2 * math.pi * values[0], 0.4 + 1.1 * values[1]
    return Light(
        (length * math.cos(azimuth), length * math.sin(azimuth)),
        0.42 + 0.3 * float(values[2]),
        2 * float(values[3]) - 1,
        0.03 + 0.07 * float(values[4]),
        int(values[5] * 4),
        (TILE_SIDE * float(values[6]), TILE_SIDE * float(values[7])),
    )


def _tile(
    texture_HW: np.ndarray,
    window: tuple[int, int, int, int],
    angle: float,
    scale: float,
    offset: tuple[float, float],
) -> np.ndarray:
    """Sample a periodic texture, turned and scaled, in a window (x, y, width, height) of the image."""
    x, y, width, height = window
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    shift_x, shift_y = offset[0] + cos * x + sin * y, offset[1] - sin * x + cos * y
    matrix = np.array([[cos, sin, shift_x], [-sin, cos, shift_y]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(texture_HW, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_WRAP)


def _ground(plan: ScenePlan, bank: Bank, light: Light) -> tuple[np.ndarray, np.ndarray]:
    """Return (H, W, 3) float32 of red, green, blue and of infrared, radar, temperature, about 0..1."""
    material_HW = plan.layout.material_HW
    size = material_HW.shape[0]
    texture_HW = np.zeros((size, size), np.float32)
    # 256 rows, because they become look-up tables of 8-bit material numbers.
    level_MB = np.zeros((256, 6), np.float32)
    swing_MB = np.zeros_like(level_MB)
    present = np.flatnonzero(np.bincount(material_HW.ravel(), minlength=len(plan.layout.materials)))
    for number in present:
        material = plan.layout.materials[number]
        variant = bank.land[material.land][material.variant]
        # Only the window around this ground is sampled: a place may have 200 small fields.
        inside_HW = (material_HW == number).view(np.uint8)
        x, y, width, height = cv2.boundingRect(inside_HW)
        window = (x, y, width, height)
        part_HW = _tile(variant.texture_HW, window, material.angle, material.scale, material.offset)
        rows, columns = slice(y, y + height), slice(x, x + width)
        np.copyto(texture_HW[rows, columns], part_HW, where=inside_HW[rows, columns].view(bool))
        level_MB[number] = variant.level_B * (1 + 0.08 * material.tone)
        swing_MB[number] = variant.swing_B
        # Ground that is bright in the near infrared has plants, and those change with the season.
        if variant.level_B[3] > 0.45:
            level_MB[number, :4] += light.season * np.array([0.06, 0.015, 0.0, -0.08], np.float32)
    relief_HW = _tile(bank.relief[light.slope], (0, 0, size, size), 0.0, 1.0, light.offset)
    bright_HWC = cv2.merge([1 + light.relief * relief_HW] * 3)
    # OpenCV's look-up wants as many channels as its table has, so the material's number is repeated for each band.
    texture_HWC, material_HWC = cv2.merge([texture_HW] * 3), cv2.merge([material_HW] * 3)
    groups = []
    for band in (slice(0, 3), slice(3, 6)):
        level_HWC = cv2.LUT(material_HWC, np.ascontiguousarray(level_MB[:, None, band]))
        swing_HWC = cv2.LUT(material_HWC, np.ascontiguousarray(swing_MB[:, None, band]))
        groups.append((level_HWC + swing_HWC * texture_HWC) * bright_HWC)
    return groups[0], groups[1]


def _shadows(objects: Sequence[PlacedObject], light: Light, size: int) -> np.ndarray:
    """Return (H, W) float32, 1 in the light."""
    shade_HW = np.full((size, size), 255, np.uint8)
    dark = int(255 * light.dark)
    for item in objects:
        rise = min(item.style.length * item.style.spec.height, _MAX_RISE)
        if rise <= 0:
            continue
        shift = rise * np.array(light.shadow)
        near = fixed(item.points_N2)
        # `fixed` takes off half a pixel, which `near` has lost already: 0.5 gives it back.
        far = near + fixed(shift + 0.5)
        for here, there in zip(item.style.solid_parts(near), item.style.solid_parts(far), strict=True):
            # Parts are convex, so the ground that one shades is the hull of where it stands and where its top's shadow
            # falls.
            swept = cv2.convexHull(np.concatenate([here, there]))
            cv2.fillConvexPoly(shade_HW, swept, (dark,), cv2.LINE_AA, FRACTION_BITS)
    return cv2.GaussianBlur(shade_HW, (3, 3), 0.6).astype(np.float32) / 255


Stroke = tuple[tuple[int, int, int], tuple[int, int, int]]
"""Values of red, green, blue and of infrared, radar, heat, 0..255."""

_WHITE: Stroke = ((212, 210, 204), (140, 35, 148))
_YELLOW: Stroke = ((206, 178, 70), (140, 35, 150))
_TIE: Stroke = ((70, 60, 52), (50, 120, 110))
_RAIL: Stroke = ((176, 170, 164), (90, 235, 180))


def _strokes(line: Line, size: int) -> list[tuple[np.ndarray, Stroke]]:
    """Return what is painted on a road or lies on a rail bed: (K, 2, 2) strokes and their values."""
    start, end = np.asarray(line.start), np.asarray(line.end)
    length = float(np.hypot(*(end - start)))
    along = (end - start) / length
    right = np.array([-along[1], along[0]])

    def dashes(step: float, mark: float) -> np.ndarray:
        at = np.arange(0, length, step)[:, None]
        ends = np.stack([start + along * at, start + along * (at + mark)], 1)
        near = ((ends > -6) & (ends < size + 6)).all((1, 2))
        return ends[near]

    def beside(distance: float) -> np.ndarray:
        shifts = (-right * distance, right * distance)
        return np.stack([[start + shift, end + shift] for shift in shifts])

    if line.marking == "rails":
        ties = dashes(2.4, 0.0) + np.stack([-right * 2.2, right * 2.2])
        return [(ties, _TIE), (beside(1.1), _RAIL)]
    if line.marking == "runway":
        return [(dashes(9, 5), _WHITE), (beside(line.width / 2 - 1), _WHITE)]
    if line.marking == "dash":
        return [(dashes(6, 2.6), _WHITE)]
    return [(np.stack([[start, end]]), _YELLOW)]


def _mark(plan: ScenePlan, colour_C: np.ndarray, other_C: np.ndarray) -> None:
    """Draw the markings where their road can be seen; ground stays ground in the masks."""
    lines = [line for line in plan.layout.lines if line.marking]
    if not lines:
        return
    marked, others = colour_C.copy(), other_C.copy()
    for line in lines:
        # On copies: where another ground lies over the road, its markings are not taken over.
        for ends_K22, (rgb, other) in _strokes(line, plan.layout.size):
            strokes = list(fixed(ends_K22))
            cv2.polylines(marked, strokes, False, rgb, 1, cv2.LINE_AA, FRACTION_BITS)
            cv2.polylines(others, strokes, False, other, 1, cv2.LINE_AA, FRACTION_BITS)
    shows = np.zeros(256, np.uint8)
    shows[[plan.domain.land_classes.index(line.land) for line in lines]] = 1
    visible_HW1 = cv2.LUT(plan.land_HW, shows)[..., None].view(bool)
    np.copyto(colour_C, marked, where=visible_HW1)
    np.copyto(other_C, others, where=visible_HW1)


_ROLE_NAMES = tuple(ROLES)
_KEEP_R1 = np.array([[1 - share if share else keep] for keep, _, share in ROLES.values()])
_ADD_R3 = np.array([np.asarray(mixed) * share for _, mixed, share in ROLES.values()])
_HOLE_R = np.array([name == "hole" for name in _ROLE_NAMES])


def _object(item: PlacedObject, colour_C: np.ndarray, other_C: np.ndarray) -> None:
    paint_R3 = np.clip(np.asarray(item.style.rgb) * _KEEP_R1 + _ADD_R3, 4, 250)
    bright_R = paint_R3.sum(1) / (3 * 255)
    # Leaves reflect most of the near infrared, paint about as much as of visible light.
    infrared_R = 0.35 + 0.5 * bright_R if item.category == "tree" else 0.1 + 0.62 * bright_R
    radar_R = item.radar * np.where(_HOLE_R, 0.5, 0.7 + 0.5 * bright_R)
    # Dark paint is warmer than light paint; openings show what is inside.
    heat_R = item.heat + np.where(_HOLE_R, 0.2, 0.36 * (0.5 - bright_R))
    other_R3 = np.clip(np.stack([infrared_R, radar_R, heat_R], 1), 0.02, 1.0) * 255
    values = dict(zip(_ROLE_NAMES, zip(paint_R3.tolist(), other_R3.tolist(), strict=True), strict=True))
    for points, role in zip(item.style.parts(fixed(item.points_N2)), item.style.roles, strict=True):
        rgb, other = values[role]
        cv2.fillConvexPoly(colour_C, points, rgb, cv2.LINE_AA, FRACTION_BITS)
        cv2.fillConvexPoly(other_C, points, other, cv2.LINE_AA, FRACTION_BITS)


def paint(
    plan: ScenePlan, objects: Sequence[PlacedObject], bank: Bank, light: Light
) -> tuple[np.ndarray, np.ndarray]:
    """Paint a place.

    Returns:
        Two (H, W, 3) float32 arrays on 0..1: red, green, blue; infrared, radar, temperature.
    """
    rgb_HWC, other_HWC = _ground(plan, bank, light)
    shade_HW1 = _shadows(objects, light, plan.layout.size)[..., None]
    # Radar and heat know shadows too: no echo from behind a wall, and cooler ground.
    rgb_HWC = rgb_HWC * shade_HW1
    other_HWC = other_HWC * (1 + (shade_HW1 - 1) * np.array([1.0, 0.8, 0.25], np.float32))
    colour_C = np.clip(rgb_HWC * 255, 0, 255).astype(np.uint8)
    other_C = np.clip(other_HWC * 255, 0, 255).astype(np.uint8)
    _mark(plan, colour_C, other_C)
    for item in objects:
        _object(item, colour_C, other_C)
    return colour_C.astype(np.float32) / 255, other_C.astype(np.float32) / 255
