"""Questions about pairs of images of one place: what changed, where, how much."""

from __future__ import annotations

import math
from collections import Counter

import cv2
import numpy as np

from vitp.core.words import NINTHS, how_many, spoken
from vitp.data.synthesis import phrases
from vitp.data.synthesis.answers import format_boxes, format_cells, format_share
from vitp.data.synthesis.choosing import one_of, worded, yes_or_no
from vitp.data.synthesis.classes import is_usable
from vitp.data.synthesis.facts import (
    Facts,
    Question,
    inner_point,
    match_pairs,
    overlap,
    scale_box,
    topmost,
)
from vitp.data.synthesis.image_tasks import next_caption
from vitp.records.labels import ObjectLabel

_TOLD_TRANSITION = 0.01
"""Share of the changed pixels from which on a change of class is told."""

_CHANGED_CELL = 0.1
"""A cell counts as changed from this share of its pixels on."""


def change_caption(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for a description of the change, where one is given."""
    return next_caption(facts.item.change_captions, phrases.CHANGE_CAPTION, facts, rng)


def change(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask whether anything changed at all; as many yes as no over the set."""
    mask = facts.change
    if mask is None:
        return None
    share = facts.classes.statistics.changed
    yes = rng.random() < 1 - share  # changed pairs come up with `share`, so this evens the answers out
    if yes != bool(mask.any()):
        return None
    return Question(worded(rng, phrases.CHANGE), "yes" if yes else "no")


def change_part(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for a change in one ninth, where some ninths changed and some did not; half of the answers are yes."""
    mask = facts.change
    if mask is None or min(mask.shape) < 3:
        return None
    counts = facts.change_counts(3)
    part_of = [name for row in NINTHS for name in row]
    most_held = 2 * counts.sum(1) >= mask.size / 9
    same = [part_of[place] for place in np.flatnonzero((counts[:, 1] == 0) & most_held)]
    other = [part_of[place] for place in changed_cells(mask, counts)]
    side = yes_or_no(facts, rng, same, other, both=True)
    if side is None:
        return None
    part, yes = one_of(rng, side[0]), side[1]
    facts.yes_no_asked.append((part, yes))
    return Question(worded(rng, phrases.CHANGE_PART, part=part), "yes" if yes else "no", part)


def changed_boxes(mask_HW: np.ndarray) -> list[tuple[float, float, float, float]]:
    """Return the boxes of the connected changed regions in fractions of the image, 0..1.

    Gaps of about 1 % of the image are bridged first: a building whose roof is in two pieces is one change.
    """
    height, width = mask_HW.shape
    reach = 2 * (max(height, width) // 100) + 1
    closed = cv2.morphologyEx(
        mask_HW.astype(np.uint8), cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_RECT, (reach, reach))
    )
    _, _, stats, _ = cv2.connectedComponentsWithStats(closed, connectivity=8)
    return [
        (x / width, y / height, (x + w) / width, (y + h) / height) for x, y, w, h, _ in stats[1:].tolist()
    ]


def changed_cells(mask_HW: np.ndarray, counts_C2: np.ndarray) -> list[int]:
    """Return the cells that changed, in order.

    Those of which a tenth or more did. Where a change is too small for that everywhere, each changed region counts in
    the cell that holds its centre.

    Args:
        mask_HW: The changed pixels.
        counts_C2: Unchanged and changed pixels of each cell of a grid of C = n² cells; 0 where it holds nothing.
    """
    changed = np.flatnonzero(counts_C2[:, 1] >= np.maximum(_CHANGED_CELL * counts_C2.sum(1), 1))
    if len(changed) or not mask_HW.any():
        return [int(i) for i in changed]
    n = math.isqrt(len(counts_C2))
    boxes = changed_boxes(mask_HW)
    centres = (((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in boxes)
    cells = {min(int(y * n), n - 1) * n + min(int(x * n), n - 1) for x, y in centres}
    # The centre of a crooked region may lie where nothing changed.
    return sorted(cell for cell in cells if counts_C2[cell, 1]) or [int(counts_C2[:, 1].argmax())]


def change_boxes(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the boxes of all changed regions; "none" without change.

    For more regions than `max_boxes` the question asks for that many, from the top by their upper edge.
    """
    if facts.change is None:
        return None
    limit = facts.limits.max_boxes
    boxes = [scale_box(b, facts.limits.coordinate_range) for b in changed_boxes(facts.change)]
    found = topmost(boxes, limit)
    if found is None:
        return None
    wordings = phrases.CHANGE_BOXES if len(boxes) <= limit else phrases.CHANGE_BOXES_SOME
    return Question(worded(rng, wordings, limit=limit), format_boxes("change", found))


def change_cells(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the cells that changed (see `changed_cells`); "none" where nothing did."""
    n, mask = facts.limits.grid, facts.change
    if mask is None or min(mask.shape) < n:
        return None
    changed = changed_cells(mask, facts.change_counts(n))
    places = [(i // n + 1, i % n + 1) for i in changed]
    return Question(worded(rng, phrases.CHANGE_CELLS, n=n), format_cells(places))


def change_share(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the changed share of the pixels in whole percent; a change below half of one is "less than 1%"."""
    if facts.change is None:
        return None
    share = float(facts.change.mean() if facts.held is None else facts.change[facts.held].mean())
    return Question(worded(rng, phrases.CHANGE_SHARE), format_share(share, 1))


def transitions(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask which class became which, the largest changes first; "none" without a change.

    Changes of less than 1 % of the changed pixels aren't told.
    """
    both_2HW = facts.transition
    if both_2HW is None:
        return None
    names = facts.classes.change_classes
    told = (both_2HW < len(names)).all(0) & (both_2HW[0] != both_2HW[1])
    pairs, counts = np.unique(both_2HW[:, told], axis=1, return_counts=True)
    order = sorted(range(len(counts)), key=lambda i: (-int(counts[i]), *pairs[:, i].tolist()))
    least = _TOLD_TRANSITION * counts.sum()
    found = [
        f"{spoken(names[pairs[0, i]])} to {spoken(names[pairs[1, i]])}" for i in order if counts[i] >= least
    ]
    return Question(worded(rng, phrases.TRANSITIONS), ", ".join(found) or "none")


def transition_point(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the classes of a changed point at both dates; each change of class is as likely."""
    both_2HW, names = facts.transition, facts.classes.change_classes
    if both_2HW is None:
        return None
    told_HW = (both_2HW < len(names)).all(0) & (both_2HW[0] != both_2HW[1])
    pairs = np.unique(both_2HW[:, told_HW], axis=1).T.tolist()
    if not pairs:
        return None
    before, after = one_of(rng, pairs)
    there_HW = (both_2HW[0] == before) & (both_2HW[1] == after)
    found = inner_point(there_HW, rng, facts.limits.coordinate_range)
    if found is None:
        return None
    x, y = found
    answer = f"{spoken(names[before])}, {spoken(names[after])}"
    return Question(worded(rng, phrases.TRANSITION_POINT, x=x, y=y), answer, f"{x},{y}")


def only_in_first(first: tuple[ObjectLabel, ...], second: tuple[ObjectLabel, ...]) -> Counter[str]:
    """Count the objects of the first date, by class, that have no partner of their class at the second.

    Partners are matched one to one, nearest overlap first, from an IoU of 0.3 on.
    """
    overlaps = (
        (overlap(a.box, b.box), i, j)
        for i, a in enumerate(first)
        for j, b in enumerate(second)
        if a.category == b.category
    )
    matched = {i for i, _ in match_pairs(overlaps, 0.3)}
    return Counter(o.category for i, o in enumerate(first) if i not in matched)


def _is_shown(facts: Facts, label: ObjectLabel) -> bool:
    """Return whether both dates hold something in half of an object's box or more."""
    if facts.held is None:
        return True
    x1, y1, x2, y2 = (max(0, round(value)) for value in label.box)
    shown_hw = facts.held[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
    return shown_hw.size > 0 and float(shown_hw.mean()) >= 0.5


def change_objects(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask which objects appeared or disappeared: "two ships, one crane", or "nothing".

    Needs the objects of both dates; pairs with difficult objects or ignored places are not asked, nor are those with an
    object most of whose place one of the dates doesn't show: there it would appear or disappear with the image.
    """
    item = facts.item
    if item.objects is None or item.later_objects is None or item.ignored:
        return None
    objects = (*item.objects, *item.later_objects)
    if any(o.difficult or not is_usable(o.box, item.width, item.height) for o in objects):
        return None
    if not all(_is_shown(facts, o) for o in objects):
        return None
    appeared = bool(rng.integers(2))
    pair = (item.later_objects, item.objects) if appeared else (item.objects, item.later_objects)
    found = only_in_first(*pair)
    answer = ", ".join(how_many(number, name) for name, number in sorted(found.items())) or "nothing"
    wordings = phrases.APPEARED if appeared else phrases.DISAPPEARED
    return Question(worded(rng, wordings), answer, "appeared" if appeared else "disappeared")
