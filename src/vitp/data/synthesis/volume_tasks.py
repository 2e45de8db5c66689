"""Questions about slices of volumes and other medical images: level, sides, sizes in millimetres, findings, growth.

All answers follow from labels and from how the image was taken; nothing is diagnosed. Sides are those of the patient,
who is looked at as radiologists do (`vitp.io.volume_grid`): the patient's right is on the left of axial and coronal
pictures. Sizes are in millimetres, square centimetres and millilitres, with two significant digits; as nobody can see
them in a picture without a scale, the question says how wide the picture is.

Each task asks one question, or returns None where the labels of the image allow none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import cv2
import numpy as np

from vitp.core.words import plural, spoken
from vitp.data.synthesis import phrases
from vitp.data.synthesis.choosing import one_of, worded
from vitp.data.synthesis.classes import NEVER_ASKED, class_pixels
from vitp.data.synthesis.facts import Facts, Question
from vitp.data.synthesis.ground_tasks import body_area_text, body_length_text, body_volume_text
from vitp.data.synthesis.volume_facts import slice_number
from vitp.records.channels import Channels
from vitp.records.labels import IGNORE, LabelledImage

BEYOND = {
    "axial": ("below", "above"),
    "coronal": ("behind", "in front of"),
    "sagittal": ("to the right of", "to the left of"),
}
"""Plane → where the slices before one lie, and those after it; right and left are the patient's."""

_THIRDS = {
    "axial": ("lower", "middle", "upper"),
    "coronal": ("back", "middle", "front"),
    "sagittal": ("right", "middle", "left"),
}
_AXES = {
    "axial": ("from the patient's right to left", "from front to back"),
    "coronal": ("from the patient's right to left", "from top to bottom"),
    "sagittal": ("from front to back", "from top to bottom"),
}
_NO_AXES = ("from the left to the right of the picture", "from the top to the bottom of the picture")
_SIDED = re.compile(r"(?:^|[\W_])(left|right|l|r|lt|rt)(?:$|[\W_])", re.IGNORECASE)
"""Names that tell the side themselves."""

_AT_BORDER = 0.02
"""Share of a volume around the borders of its thirds in which nobody is asked for the third."""

_ASIDE = 0.08
"""Share of the picture's width by which something must be off its middle, or off something else, to have a side."""

_FEWEST_PIXELS = 4.0
"""Pixels of a length, or of the root of an area, below which nothing can be measured."""

_CLEARLY_LARGER = 1.3
"""The largest region must have this many times the area of the next to be called so."""

_SAME_SIZE = 0.1
"""Relative change of an area up to which it is the same: outlines are drawn no better."""


def has_spacing(item: LabelledImage) -> bool:
    """Return whether the millimetres of an image's pixels are known."""
    return item.spacing is not None


def has_sides(item: LabelledImage) -> bool:
    """Return whether the patient's sides are known: those of a slice that was turned as radiologists look."""
    return slice_number(item) is not None and _plane(item) in ("axial", "coronal")


def is_slice(item: LabelledImage) -> bool:
    """Return whether an image is a slice whose place in its volume is known."""
    return item.level is not None and slice_number(item) is not None


def slice_level(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the third of the volume that a slice lies in."""
    level = facts.item.level
    if level is None or min(abs(3 * level - 1), abs(3 * level - 2)) < 3 * _AT_BORDER:
        return None
    thirds = _THIRDS.get(_plane(facts.item), ("first", "middle", "last"))
    return Question(worded(rng, phrases.THIRD), f"{thirds[min(int(3 * level), 2)]} third")


def level_of_class(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask whether a slice lies before, after or in what is labelled elsewhere in its volume; each is as likely."""
    beyond = BEYOND.get(_plane(facts.item))
    volume = None if facts.volumes is None else facts.volumes.whole_volume(facts.item)
    if beyond is None or volume is None:
        return None
    place = slice_number(facts.item) or 0
    before, after = (word.removesuffix(" of") for word in beyond)
    found: dict[str, list[str]] = {}
    for name in _asked_classes(facts):
        value = facts.classes.semantic_classes.index(name)
        if (span := volume.span(value)) is None:
            continue
        if place < span[0] or place > span[1]:
            found.setdefault(before if place < span[0] else after, []).append(name)
        elif volume.counts_N256[place, value] >= _FEWEST_PIXELS**2:
            found.setdefault("through", []).append(name)
    if not found:
        return None
    answer = one_of(rng, sorted(found))
    name = one_of(rng, found[answer])
    question = worded(rng, phrases.LEVEL_OF, one=spoken(name), before=beyond[0], after=beyond[1])
    return Question(question, answer, name)


def side(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the half, of the patient or of the picture, that holds a class.

    A name that tells the patient's side is asked for the picture's.
    """
    centres = _centres(facts)
    aside = [
        name
        for name, (x, least, most) in centres.items()
        if abs(x - 0.5) >= _ASIDE and (most <= 0.5 + _ASIDE / 2 or least >= 0.5 - _ASIDE / 2)
    ]
    if not aside or not has_sides(facts.item):
        return None
    name = one_of(rng, aside)
    left = centres[name][0] < 0.5
    if rng.integers(2) or _SIDED.search(name):
        question = worded(rng, phrases.PICTURE_SIDE, one=spoken(name))
        return Question(question, "left" if left else "right", f"picture {name}")
    return Question(worded(rng, phrases.PATIENT_SIDE, one=spoken(name)), "right" if left else "left", name)


def side_of_class(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask on which of the patient's sides of one class another one lies."""
    centres = {name: x for name, (x, _, _) in _centres(facts).items() if not _SIDED.search(name)}
    pairs = [(a, b) for a in centres for b in centres if a != b and abs(centres[a] - centres[b]) >= _ASIDE]
    if not pairs or not has_sides(facts.item):
        return None
    a, b = one_of(rng, pairs)
    answer = "right" if centres[a] < centres[b] else "left"
    question = worded(rng, phrases.SIDE_OF, a=spoken(a), b=spoken(b))
    return Question(question, answer, "/".join(sorted((a, b))))


def diameter_mm(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the longest diameter of the only region of a class, or of the clearly largest one."""
    found = []
    for name in _measured_classes(facts):
        regions = sorted(_regions(facts, name), key=lambda one: -int(one.sum()))
        if len(regions) > 1 and regions[0].sum() < _CLEARLY_LARGER * regions[1].sum():
            continue
        the = f"the {'largest ' if len(regions) > 1 else ''}{spoken(name)}"
        length = longest_diameter(regions[0], facts.item.spacing or (1.0, 1.0))
        pixels = longest_diameter(regions[0], (1.0, 1.0))
        if pixels >= _FEWEST_PIXELS and not _at_border(regions[0]):
            found.append((the, length))
    if not found:
        return None
    the, length = one_of(rng, found)
    return Question(_scaled(facts, worded(rng, phrases.DIAMETER, the=the)), body_length_text(length), the)


def extent_mm(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask how far the only region of a class reaches along x or y."""
    spacing = facts.item.spacing
    names = [name for name in _measured_classes(facts) if len(_regions(facts, name)) == 1]
    if spacing is None or not names:
        return None
    name, axis = one_of(rng, names), int(rng.integers(2))
    region_HW = _regions(facts, name)[0]
    places = np.flatnonzero(region_HW.any(axis=axis))
    pixels = int(places[-1] - places[0] + 1)
    if pixels < _FEWEST_PIXELS or _at_border(region_HW):
        return None
    along = _AXES.get(_plane(facts.item), _NO_AXES)[axis]
    question = worded(rng, phrases.SPAN, one=spoken(name), along=along)
    return Question(_scaled(facts, question), body_length_text(pixels * spacing[axis]), f"{name} {axis}")


def area_mm2(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the area of a class in the slice."""
    names = _measured_classes(facts)
    if not names or facts.histogram is None or facts.item.spacing is None:
        return None
    name = one_of(rng, names)
    pixels = int(facts.histogram[facts.classes.semantic_classes.index(name)])
    x, y = facts.item.spacing
    question = worded(rng, phrases.SLICE_AREA, one=_named(facts, name))
    return Question(_scaled(facts, question), body_area_text(pixels * x * y), name)


def volume_ml(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the volume of a class in the slices that the record shows; of all of it where all of it is in them."""
    item, names = facts.item, _measured_classes(facts)
    if not names or item.spacing is None or item.thickness is None:
        return None
    name = one_of(rng, names)
    value = facts.classes.semantic_classes.index(name)
    counts = [_known_count(one, value, facts.classes.channels) for one in facts.shown]
    if None in counts:
        return None
    held = sum(count for count in counts if count is not None)
    volume = None if facts.volumes is None else facts.volumes.whole_volume(item)
    whole = volume is not None and int(volume.counts_N256[:, value].sum()) == held
    if whole:
        question = worded(rng, phrases.WHOLE_VOLUME, one=_named(facts, name))
    else:
        these = "this slice" if len(counts) == 1 else f"these {len(counts)} slices"
        question = worded(rng, phrases.HELD_VOLUME, one=_named(facts, name), these=these)
    thick = f", slices are {body_length_text(item.thickness).removeprefix('about ')} apart"
    x, y = item.spacing
    return Question(_scaled(facts, question, thick), body_volume_text(held * x * y * item.thickness), name)


def abnormal(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask whether there is a finding, one of the classes that are declared to be; as many yes as no over the set."""
    found = findings_of(facts)
    if found is None:
        return None
    yes = rng.random() < 1 - facts.classes.statistics.abnormal
    if yes != bool(found):
        return None
    return Question(worded(rng, phrases.ABNORMAL), "yes" if yes else "no")


def findings(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask for the names of the findings; "none" without any, for a quarter of those images."""
    found = findings_of(facts)
    if found is None or (not found and rng.random() >= 0.25):
        return None
    return Question(worded(rng, phrases.FINDINGS), ", ".join(spoken(name) for name in found) or "none")


def findings_of(facts: Facts) -> list[str] | None:
    """Return the findings of an image, in the set's order; None where one of them can't be told.

    A finding in a mask is there from its first pixel on: small ones are what is looked for.
    """
    item, classes = facts.item, facts.classes
    found = []
    for name in classes.abnormal_classes:
        state = facts.states.get(name)
        if facts.histogram is not None and name in classes.semantic_classes:
            count = int(facts.histogram[classes.semantic_classes.index(name)])
            state = True if count else (None if facts.histogram[IGNORE] or item.ignored else False)
        elif item.scene is not None and name in classes.scene_classes:
            state = item.scene == name
        if state is None:
            return None
        if state:
            found.append(name)
    return found if classes.abnormal_classes else None


def growth(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask whether what is labelled at both studies grew: "larger", "smaller" or "unchanged"."""
    found = {name: sizes for name, sizes in _both_areas(facts).items() if max(sizes) >= _FEWEST_PIXELS**2}
    if not found:
        return None
    name = one_of(rng, list(found))
    before, after = found[name]
    change = (after - before) / max(before, after)
    answer = "unchanged" if abs(change) <= _SAME_SIZE else "larger" if change > 0 else "smaller"
    return Question(worded(rng, phrases.GROWTH, one=spoken(name)), answer, name)


def growth_mm2(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask by what area something in the slice grew or shrank from one study to the next."""
    return _growth_of_pixels(facts, rng, phrases.GROWTH_AREA, deep=False)


def growth_ml(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask by what volume something in the slice grew or shrank."""
    return (
        None
        if facts.item.thickness is None
        else _growth_of_pixels(facts, rng, phrases.GROWTH_VOLUME, deep=True)
    )


def growth_mm(facts: Facts, rng: np.random.Generator) -> Question | None:
    """Ask by how much the longest diameter changed of what is one region at both studies."""
    spacing, found = facts.item.spacing, []
    for name in _both_areas(facts) if spacing is not None else ():
        both = [_components(mask_HW) for mask_HW in _both_masks(facts, name)]
        if all(len(regions) == 1 and not _at_border(regions[0]) for regions in both):
            before, after = (longest_diameter(regions[0], spacing or (1.0, 1.0)) for regions in both)
            if abs(after - before) > _SAME_SIZE * max(before, after):
                found.append((name, after - before))
    if not found:
        return None
    name, change = one_of(rng, found)
    question = _scaled(facts, worded(rng, phrases.GROWTH_DIAMETER, one=spoken(name)))
    return Question(question, _changed(body_length_text(abs(change)), change), name)


def _growth_of_pixels(
    facts: Facts, rng: np.random.Generator, wordings: Sequence[str], *, deep: bool
) -> Question | None:
    found = {
        name: after - before
        for name, (before, after) in _both_areas(facts).items()
        if abs(after - before) > max(_SAME_SIZE * max(before, after), _FEWEST_PIXELS**2)
    }
    spacing = facts.item.spacing
    if spacing is None or not found:
        return None
    name = one_of(rng, list(found))
    size = abs(found[name]) * spacing[0] * spacing[1]
    text = body_volume_text(size * (facts.item.thickness or 0.0)) if deep else body_area_text(size)
    return Question(
        _scaled(facts, worded(rng, wordings, one=spoken(name))), _changed(text, found[name]), name
    )


def _changed(text: str, change: float) -> str:
    return f"{text} {'larger' if change > 0 else 'smaller'}"


def _both_masks(facts: Facts, name: str) -> list[np.ndarray]:
    assert facts.transition is not None
    value = facts.classes.change_classes.index(name)
    return [np.asarray(mask_HW == value) for mask_HW in facts.transition]


def _both_areas(facts: Facts) -> dict[str, tuple[int, int]]:
    """Return the pixels at both studies of each class that is there at one, where all that hold something are known."""
    if facts.transition is None:
        return {}
    unknown_2HW = facts.transition == IGNORE
    if (unknown_2HW if facts.held is None else unknown_2HW & facts.held).any():
        return {}
    found = {}
    for name in facts.classes.change_classes:
        if name.casefold() not in NEVER_ASKED:
            before, after = (int(mask_HW.sum()) for mask_HW in _both_masks(facts, name))
            if before and after:
                found[name] = (before, after)
    return found


def _plane(item: LabelledImage) -> str:
    return (item.metadata or {}).get("plane", "")


def _asked_classes(facts: Facts) -> list[str]:
    return [name for name in facts.classes.semantic_classes if name.casefold() not in NEVER_ASKED]


def _measured_classes(facts: Facts) -> list[str]:
    """Return the classes of a mask that knows all its pixels that are large enough to be measured."""
    histogram = facts.histogram
    if histogram is None or histogram[IGNORE] or facts.item.ignored or not has_spacing(facts.item):
        return []
    values = facts.classes.semantic_classes
    return [name for name in _asked_classes(facts) if histogram[values.index(name)] >= _FEWEST_PIXELS**2]


def _known_count(item: LabelledImage, value: int, channels: Channels | None) -> int | None:
    histogram = None if item.ignored else class_pixels(item, channels)
    return None if histogram is None or histogram[IGNORE] else int(histogram[value])


def _centres(facts: Facts) -> dict[str, tuple[float, float, float]]:
    """Return class → its centre of mass and its outer edges along x, in shares of the picture's width."""
    found = {}
    for name in _asked_classes(facts):
        if facts.mask is None or facts.histogram is None or facts.histogram[IGNORE]:
            break
        columns = (facts.mask == facts.classes.semantic_classes.index(name)).sum(0)
        if columns.sum() >= _FEWEST_PIXELS**2:
            width, places = len(columns), np.flatnonzero(columns)
            middle = float(((np.arange(width) + 0.5) * columns).sum() / columns.sum())
            found[name] = (middle / width, float(places[0]) / width, float(places[-1] + 1) / width)
    return found


def _regions(facts: Facts, name: str) -> list[np.ndarray]:
    assert facts.mask is not None
    return _components(facts.mask == facts.classes.semantic_classes.index(name))


def _components(mask_HW: np.ndarray) -> list[np.ndarray]:
    """Return the connected regions of a mask; corners connect."""
    count, labels_HW = cv2.connectedComponents(mask_HW.astype(np.uint8), connectivity=8)
    return [np.asarray(labels_HW == number) for number in range(1, count)]


def _at_border(region_HW: np.ndarray) -> bool:
    """Return whether a region reaches the border of the picture, behind which it may go on."""
    edges = (region_HW[0], region_HW[-1], region_HW[:, 0], region_HW[:, -1])
    return any(bool(edge.any()) for edge in edges)


def longest_diameter(region_HW: np.ndarray, spacing: tuple[float, float]) -> float:
    """Return the largest distance between two corners of a region's pixels.

    Args:
        region_HW: Region with at least one pixel.
        spacing: Lengths of a pixel along x and along y.
    """
    y_N, x_N = np.nonzero(region_HW)
    corners_N2 = np.concatenate([np.stack([x_N + dx, y_N + dy], 1) for dx in (0, 1) for dy in (0, 1)])
    hull_M2 = cv2.convexHull((corners_N2 * np.array(spacing)).astype(np.float32))[:, 0].astype(np.float64)
    return float(np.linalg.norm(hull_M2[:, None] - hull_M2[None], axis=-1).max())


def _named(facts: Facts, name: str) -> str:
    """Return a class as it is spoken, in the plural where it is in several places."""
    return plural(name) if len(_regions(facts, name)) > 1 else spoken(name)


def _scaled(facts: Facts, question: str, more: str = "") -> str:
    """Return a question with the scale of the picture."""
    assert facts.item.spacing is not None
    width = body_length_text(facts.item.width * facts.item.spacing[0])
    return f"{question} (The picture is {width} wide{more}.)"


def slice_marks(items: Sequence[LabelledImage], own: int) -> str:
    """Return the marks of adjacent slices, each with its place relative to the one that is asked about.

    Args:
        items: In the order of the volume.
        own: Place of the one that is asked about.
    """
    before, after = BEYOND.get(_plane(items[own]), ("before", "after"))
    lines = []
    for place, _ in enumerate(items):
        steps = abs(place - own)
        if not steps:
            where = "asked about"
        else:
            thickness = items[own].thickness
            far = (
                f"{steps}"
                if thickness is None
                else body_length_text(steps * thickness).removeprefix("about ")
            )
            where = f"{far} {before if place < own else after}"
        lines.append(f"Image-{place + 1} ({where.removesuffix(' of')}): <image>\n")
    return "".join(lines)
