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
from vitp.records.geometry import Box
from vitp.records.labels import IGNORE
from vitp.scenes.captions import describe
from vitp.scenes.chance import pick
from vitp.scenes.domains import SceneDomain, get_domain
from vitp.scenes.looks import LOOKS, take_picture
from vitp.scenes.paint import paint, random_light
from vitp.scenes.plan import PlacedObject, ScenePlan, make_plan
from vitp.scenes.textures import Bank, bank, name_seed
from vitp.scenes.types import Scene, SceneChange, SceneObject, ScenePair

MIN_SHOWN = 0.3
"""Objects of which less than this share lies in the image are not labelled; their pixels are 255."""

_MIN_PIXELS = 5
_SIZES = (16, 2048)


def _begin(
    domain: SceneDomain | str, seed: int, index: int, size: int, split: str, purpose: str, number: int
) -> tuple[ScenePlan, Bank, list[np.random.Generator]]:
    """Return the plan of a place, what its picture is made of, and `number` generators; the first made the plan."""
    domain = get_domain(domain)
    if seed < 0 or index < 0:
        raise ConfigError(f"seed {seed} and index {index} must not be negative", fix="use 0, 1, 2, …")
    if not _SIZES[0] <= size <= _SIZES[1]:
        raise ConfigError(
            f"scenes of {size} pixels can't be drawn", fix=f"use a size from {_SIZES[0]} to {_SIZES[1]}"
        )
    variants = bank(domain.name, split)
    # A generator for each purpose: what one of them draws more or less changes nothing that others draw.
    children = np.random.SeedSequence([seed, index, *name_seed(domain.name, split, purpose)]).spawn(number)
    # PCG64 by name, as a release of NumPy may choose another generator for `default_rng`.
    rngs = [np.random.Generator(np.random.PCG64(child)) for child in children]
    return make_plan(domain, variants, rngs[0], size, split), variants, rngs


def _shown(item: PlacedObject, size: int) -> tuple[bool, int, Box]:
    """Return whether enough of an object lies in the image to be labelled, its pixels, and its box there."""
    _, _, mask_HW = item.window(size)
    pixels, whole = int(np.count_nonzero(mask_HW)), int(np.count_nonzero(item.mask_HW))
    x, y = item.quad[0::2], item.quad[1::2]
    x1, y1, x2, y2 = (min(max(value, 0.0), size) for value in (min(x), min(y), max(x), max(y)))
    enough = pixels >= max(MIN_SHOWN * whole, _MIN_PIXELS) and min(x2 - x1, y2 - y1) >= 1
    return enough, pixels, (x1, y1, x2, y2)


def _labels(
    plan: ScenePlan, land_HW: np.ndarray, objects: Sequence[PlacedObject], true_colour: bool
) -> tuple[np.ndarray, np.ndarray, tuple[SceneObject, ...]]:
    """Return semantic mask, instance mask and what is labelled. Objects never overlap, so order is free."""
    size = land_HW.shape[0]
    semantic_HW, instance_HW = land_HW.copy(), np.zeros((size, size), np.uint16)
    names = plan.domain.semantic_classes
    seen: list[SceneObject] = []
    for item in objects:
        rows, columns, mask_HW = item.window(size)
        enough, pixels, box = _shown(item, size)
        if not enough:
            semantic_HW[rows, columns][mask_HW] = IGNORE
            continue
        low, high = item.style.spec.length
        attributes: dict[str, str | float] = {
            "size": "large" if item.style.length > math.sqrt(low * high) else "small",
            # Angles run clockwise from the right, headings from the top; a rounded 360.0 is 0.
            "heading": round((math.degrees(item.angle) + 90) % 360, 1) % 360,
        }
        if true_colour:
            attributes["colour"] = item.style.colour
        seen.append(SceneObject(item.category, box, item.quad, pixels, attributes))
        semantic_HW[rows, columns][mask_HW] = names.index(item.category)
        instance_HW[rows, columns][mask_HW] = len(seen)
    return semantic_HW, instance_HW, tuple(seen)


def _scene(
    plan: ScenePlan,
    objects: Sequence[PlacedObject],
    variants: Bank,
    look: str,
    land_HW: np.ndarray,
    rng: np.random.Generator,
) -> Scene:
    rgb_HWC, other_HWC = paint(plan, objects, variants, random_light(rng))
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
        seed: Seed of the set, ≥ 0.
        index: Index of the scene in its set, ≥ 0.
        size: Side in pixels. Ground resolution stays: a larger image shows a larger place.
        split: `train`, `val` or `test`: which bank of textures and object variants it is made of.

    Raises:
        ConfigError: Unknown domain or split, negative numbers or an impossible size.
    """
    plan, variants, (_, picture_rng) = _begin(domain, seed, index, size, split, "scene", 2)
    look = pick(picture_rng, plan.domain.looks)
    return _scene(plan, plan.objects, variants, look, plan.land_HW, picture_rng)


def _change_land(plan: ScenePlan, rng: np.random.Generator) -> SceneChange | None:
    """Turn a free piece of ground into another class, in place; return what changed or None."""
    layout, size = plan.layout, plan.layout.size
    target = pick(rng, plan.domain.land_classes)
    before_HW, number = layout.material_HW.copy(), len(layout.materials)
    centre = (float(rng.random() * size), float(rng.random() * size))
    layout.blob(target, centre, 6 + 14 * float(rng.random()))
    # Ground under objects and their surroundings stays as it is, and so does ground of the same class.
    goal = plan.domain.land_classes.index(target)
    changed_HW = (layout.material_HW == number) & (plan.taken_HW == 0) & (plan.land_HW != goal)
    layout.material_HW[~changed_HW] = before_HW[~changed_HW]
    # So few pixels could hardly be seen: the ground is put back.
    if np.count_nonzero(changed_HW) < 24:
        layout.material_HW[:] = before_HW
        return None
    plan.land_HW[changed_HW] = goal
    x, y, width, height = cv2.boundingRect(changed_HW.astype(np.uint8))
    return SceneChange("land", target, (float(x), float(y), float(x + width), float(y + height)))


def _identity(objects: Sequence[PlacedObject], plan: ScenePlan) -> np.ndarray:
    """Return the number that each pixel's object has in the plan, 0 where there is none."""
    size = plan.layout.size
    numbers = {id(item): number for number, item in enumerate(plan.objects, 1)}
    identity_HW = np.zeros((size, size), np.uint16)
    for item in objects:
        rows, columns, mask_HW = item.window(size)
        identity_HW[rows, columns][mask_HW] = numbers[id(item)]
    return identity_HW


def _split_objects(
    plan: ScenePlan, rng: np.random.Generator, active: bool
) -> tuple[list[PlacedObject], list[PlacedObject], list[SceneChange]]:
    """Return the objects of the earlier and of the later date, and what came and went."""
    before: list[PlacedObject] = []
    after: list[PlacedObject] = []
    changes: list[SceneChange] = []
    rate = 0.15 + 0.45 * float(rng.random())
    for item in plan.objects:
        # Drawn for every object, so that those of the others do not depend on which ones are labelled.
        chance = float(rng.random())
        # What has no label doesn't come or go either: no label would say so.
        labelled, _, box = _shown(item, plan.layout.size)
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
    plan, variants, rngs = _begin(domain, seed, index, size, split, "pair", 4)
    layout_rng, change_rng, before_rng, after_rng = rngs
    look = pick(change_rng, plan.domain.looks)
    active = change_rng.random() > 1 / 6
    first, second, changes = _split_objects(plan, change_rng, active)
    # Painted before `_change_land` changes the plan in place, and with a copy of the ground's labels.
    before = _scene(plan, first, variants, look, plan.land_HW.copy(), before_rng)
    if active and change_rng.random() < 0.5 and (ground := _change_land(plan, layout_rng)) is not None:
        changes.append(ground)
    after = _scene(plan, second, variants, look, plan.land_HW, after_rng)
    change_HW = before.semantic_HW != after.semantic_HW
    change_HW |= _identity(first, plan) != _identity(second, plan)
    return ScenePair(before, after, change_HW, tuple(changes))
