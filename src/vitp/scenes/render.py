"""From (domain, seed, index, size, split) to a scene or a pair of dates, always the same one.

The arrays are the same bit for bit in every process and in every order on one kind of machine; another
release or build of OpenCV may round single pixels of the picture differently, never the labels' meaning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from vitp.core.errors import ConfigError
from vitp.records.labels import IGNORE
from vitp.scenes.captions import describe
from vitp.scenes.domains import SceneDomain, get_domain
from vitp.scenes.looks import LOOKS, take_picture
from vitp.scenes.paint import draw_light, paint
from vitp.scenes.plan import PlacedObject, Plan, Planner, make_plan
from vitp.scenes.textures import Bank, bank, name_seed
from vitp.scenes.types import Box, Scene, SceneChange, SceneObject, ScenePair

MIN_SHOWN = 0.3
"""Objects of which less than this share lies in the image are not labelled; their pixels are 255."""

MIN_PIXELS = 5
SIZES = (16, 2048)


def _generators(
    domain: SceneDomain, seed: int, index: int, split: str, purpose: str, number: int
) -> list[np.random.Generator]:
    entropy = [seed, index, *name_seed(domain.name, split, purpose)]
    children = np.random.SeedSequence(entropy).spawn(number)
    return [np.random.Generator(np.random.PCG64(child)) for child in children]


def _check(seed: int, index: int, size: int) -> None:
    if seed < 0 or index < 0:
        raise ConfigError(f"seed {seed} and index {index} must not be negative", fix="use 0, 1, 2, …")
    if not SIZES[0] <= size <= SIZES[1]:
        raise ConfigError(
            f"scenes of {size} pixels can't be drawn", fix=f"use a size from {SIZES[0]} to {SIZES[1]}"
        )


def _box(quad: Sequence[float], size: int) -> Box:
    x, y = quad[0::2], quad[1::2]
    return (
        min(max(min(x), 0.0), size),
        min(max(min(y), 0.0), size),
        min(max(max(x), 0.0), size),
        min(max(max(y), 0.0), size),
    )


def _seen(item: PlacedObject, pixels: int, box: Box, true_colour: bool) -> SceneObject:
    low, high = item.style.spec.length
    attributes: dict[str, str | float] = {
        "size": "large" if item.style.length > math.sqrt(low * high) else "small",
        "heading": round((math.degrees(item.angle) + 90) % 360, 1) % 360,
    }
    if true_colour:
        attributes["colour"] = item.style.colour
    return SceneObject(item.category, box, item.quad, pixels, attributes)


def _labels(
    plan: Plan, land_HW: np.ndarray, objects: Sequence[PlacedObject], true_colour: bool
) -> tuple[np.ndarray, np.ndarray, tuple[SceneObject, ...]]:
    """Return semantic mask, instance mask and what is labelled. Objects never overlap, so order is free."""
    size = land_HW.shape[0]
    semantic_HW, instance_HW = land_HW.copy(), np.zeros((size, size), np.uint16)
    names = plan.domain.semantic_classes
    seen: list[SceneObject] = []
    for item in objects:
        rows, columns, mask_HW = item.window(size)
        pixels, whole = int(np.count_nonzero(mask_HW)), int(np.count_nonzero(item.mask_HW))
        if pixels == 0:
            continue
        box = _box(item.quad, size)
        thin = box[2] - box[0] < 1 or box[3] - box[1] < 1
        if pixels < MIN_SHOWN * whole or pixels < MIN_PIXELS or thin:
            semantic_HW[rows, columns][mask_HW] = IGNORE
            continue
        seen.append(_seen(item, pixels, box, true_colour))
        semantic_HW[rows, columns][mask_HW] = names.index(item.category)
        instance_HW[rows, columns][mask_HW] = len(seen)
    return semantic_HW, instance_HW, tuple(seen)


def _scene(
    plan: Plan,
    objects: Sequence[PlacedObject],
    variants: Bank,
    look: str,
    land_HW: np.ndarray,
    rng: np.random.Generator,
) -> Scene:
    rgb_HWC, other_HWC = paint(plan, objects, variants, draw_light(rng))
    semantic_HW, instance_HW, seen = _labels(plan, land_HW, objects, LOOKS[look].true_colour)
    image_HWC = take_picture(look, rgb_HWC, other_HWC, rng)
    caption = describe(plan.scene_type, look, seen, rng)
    return Scene(image_HWC, semantic_HW, instance_HW, seen, plan.scene_type, look, caption)


def render_scene(
    domain: SceneDomain | str, seed: int, index: int, *, size: int = 96, split: str = "train"
) -> Scene:
    """Render one scene: a pure function of its arguments.

    Args:
        domain: Domain or its name.
        seed: Of the set, ≥ 0.
        index: Of the scene in its set, ≥ 0.
        size: Side in pixels. Ground resolution stays: a larger image shows a larger place.
        split: `train`, `val` or `test`: which bank of textures and object variants it is made of.

    Raises:
        ConfigError: Unknown domain or split, negative numbers or an impossible size.
    """
    domain = get_domain(domain)
    _check(seed, index, size)
    variants = bank(domain.name, split)
    layout_rng, picture_rng = _generators(domain, seed, index, split, "scene", 2)
    plan, _ = make_plan(domain, variants, layout_rng, size, split)
    look = domain.looks[int(picture_rng.random() * len(domain.looks))]
    return _scene(plan, plan.objects, variants, look, plan.land_HW, picture_rng)


def _change_land(plan: Plan, planner: Planner, rng: np.random.Generator) -> SceneChange | None:
    """Turn a free piece of ground into another class, in place; return what changed or None."""
    layout, size = plan.layout, plan.layout.size
    target = plan.domain.land_classes[int(rng.random() * len(plan.domain.land_classes))]
    before_HW, number = layout.material_HW.copy(), len(layout.materials)
    centre = (float(rng.random() * size), float(rng.random() * size))
    layout.blob(target, centre, 6 + 14 * float(rng.random()))
    # Ground under objects and their surroundings stays as it is, and so does ground of the same class.
    goal = plan.domain.land_classes.index(target)
    changed_HW = (layout.material_HW == number) & (planner.taken_HW == 0) & (plan.land_HW != goal)
    layout.material_HW[~changed_HW] = before_HW[~changed_HW]
    if np.count_nonzero(changed_HW) < 24:
        layout.material_HW[:] = before_HW
        return None
    plan.land_HW[changed_HW] = goal
    x, y, width, height = cv2.boundingRect(changed_HW.astype(np.uint8))
    return SceneChange("land", target, (float(x), float(y), float(x + width), float(y + height)))


def _identity(objects: Sequence[PlacedObject], everything: Sequence[PlacedObject], size: int) -> np.ndarray:
    numbers = {id(item): number for number, item in enumerate(everything, 1)}
    identity_HW = np.zeros((size, size), np.uint16)
    for item in objects:
        rows, columns, mask_HW = item.window(size)
        identity_HW[rows, columns][mask_HW] = numbers[id(item)]
    return identity_HW


def _split_objects(
    plan: Plan, rng: np.random.Generator, active: bool
) -> tuple[list[PlacedObject], list[PlacedObject], list[SceneChange]]:
    """Return the objects of the earlier and of the later date, and what came and went."""
    before: list[PlacedObject] = []
    after: list[PlacedObject] = []
    changes: list[SceneChange] = []
    rate = 0.15 + 0.45 * float(rng.random())
    size = plan.layout.size
    for item in plan.objects:
        chance = float(rng.random())
        _, _, mask_HW = item.window(size)
        shown, whole = int(np.count_nonzero(mask_HW)), int(np.count_nonzero(item.mask_HW))
        box = _box(item.quad, size)
        labelled = shown >= max(MIN_SHOWN * whole, MIN_PIXELS) and min(box[2] - box[0], box[3] - box[1]) >= 1
        if active and labelled and chance < rate:
            kind = "appeared" if chance < rate / 2 else "disappeared"
            (after if kind == "appeared" else before).append(item)
            changes.append(SceneChange(kind, item.category, box))
        else:
            before.append(item)
            after.append(item)
    return before, after, changes


def render_pair(
    domain: SceneDomain | str, seed: int, index: int, *, size: int = 96, split: str = "train"
) -> ScenePair:
    """Render two dates of one place: objects come and go, ground changes, and so do light and season.

    About one pair in six has no change at all. Arguments and errors are those of `render_scene`.
    """
    domain = get_domain(domain)
    _check(seed, index, size)
    variants = bank(domain.name, split)
    layout_rng, change_rng, before_rng, after_rng = _generators(domain, seed, index, split, "pair", 4)
    plan, planner = make_plan(domain, variants, layout_rng, size, split)
    look = domain.looks[int(change_rng.random() * len(domain.looks))]
    active = change_rng.random() > 1 / 6
    first, second, changes = _split_objects(plan, change_rng, active)
    land_before_HW = plan.land_HW.copy()
    before = _scene(plan, first, variants, look, land_before_HW, before_rng)
    if active and change_rng.random() < 0.5:
        ground = _change_land(plan, planner, layout_rng)
        if ground is not None:
            changes.append(ground)
    after = _scene(plan, second, variants, look, plan.land_HW, after_rng)
    change_HW = before.semantic_HW != after.semantic_HW
    change_HW |= _identity(first, plan.objects, size) != _identity(second, plan.objects, size)
    return ScenePair(before, after, change_HW, tuple(changes))
