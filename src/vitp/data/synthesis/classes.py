"""The classes of a set and their frequencies, which keep yes/no answers from being guessable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vitp.data.nodata import held_by, held_change, held_classes, held_histogram
from vitp.records.channels import Channels
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet

# fmt: off
NEVER_ASKED = frozenset({
    "background", "other", "others", "unknown", "unlabelled", "unlabeled", "void", "ignore", "clutter", "none",
})
# fmt: on
"""Semantic classes that mean "anything else": they may stand in grids, but nobody asks for them."""

_MIN_SHARE = 0.005
"""A class without objects counts as present from this share of the pixels on, as absent at none of them."""


@dataclass(frozen=True)
class ClassStatistics:
    """Frequencies of the classes of a set, alone and together; estimated from a sample of it.

    Attributes:
        share: Class → share of the images that have it, smoothed, so inside (0, 1).
        given: Class d → class c → share of the images with d that also have c, smoothed towards `share[c]`.
        askable: Share of the images with at least one present class, and with at least one absent class.
        changed: Share of the pairs that changed.
        abnormal: Share of the images with a finding.
    """

    share: Mapping[str, float] = field(default_factory=dict)
    given: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    askable: tuple[float, float] = (1.0, 1.0)
    changed: float = 0.5
    abnormal: float = 0.5

    def expectation(self, name: str, others: Iterable[str]) -> float:
        """Return how probable a class is to someone who knows which other classes are in the image.

        The mean over the others of P(name | other): no exact inference, but enough to tell a ship in a
        harbour from a ship in a forest.
        """
        known = [self.given[d][name] for d in others if d != name and name in self.given.get(d, {})]
        return sum(known) / len(known) if known else self.share.get(name, 0.5)

    @property
    def yes_probability(self) -> float:
        """Probability of asking for a "yes" at which as many yes as no questions come out over the set.

        An image without any class can't give a yes, and one that has them all can't give a no; such images are
        skipped, and this makes up for them.
        """
        yes, no = self.askable
        return no / (yes + no) if yes + no > 0 else 0.5


@dataclass(frozen=True)
class SetClasses:
    """The classes of a set that questions can be about.

    Attributes:
        object_classes, scene_classes, semantic_classes, change_classes: Names, in the set's order.
        name: Name of the set; becomes the records' source.
        licence: Licence of the set.
        statistics: How often classes occur; without them every class counts as present in half of the images.
        abnormal_classes: Those that are findings.
        channels: What is seen of the bands of its files, which decides where they hold nothing; None: pictures.
    """

    object_classes: tuple[str, ...] = ()
    scene_classes: tuple[str, ...] = ()
    semantic_classes: tuple[str, ...] = ()
    name: str = ""
    licence: str = ""
    statistics: ClassStatistics = field(default_factory=ClassStatistics, compare=False)
    change_classes: tuple[str, ...] = ()
    abnormal_classes: tuple[str, ...] = ()
    channels: Channels | None = None

    @classmethod
    def from_set(cls, labelled: LabelledSet, *, sample: int = 256) -> SetClasses:
        """Take the names from a set and the statistics from `sample` of its items, evenly spaced."""
        bare = cls(
            labelled.object_classes,
            labelled.scene_classes,
            labelled.semantic_classes,
            labelled.name,
            labelled.licence,
            change_classes=labelled.change_classes,
            abnormal_classes=labelled.abnormal_classes,
            channels=labelled.channels,
        )
        looked_at = (item for _, item in evenly_spaced(labelled.items, sample))
        return replace(bare, statistics=gather_statistics(looked_at, bare))


def evenly_spaced(items: Sequence[LabelledImage], most: int) -> Iterator[tuple[int, LabelledImage]]:
    """Yield the places and items of `most` of a sequence, evenly spaced, or all when there are no more."""
    count = len(items)
    places = np.unique(np.linspace(0, count - 1, min(most, count)).astype(int)) if count else ()
    return ((int(place), items[int(place)]) for place in places)


def class_pixels(item: LabelledImage, channels: Channels | None) -> np.ndarray | None:
    """Return the pixels of each of the 256 values of an image's mask, of those that hold something; None: no mask."""
    if item.semantic is None:
        return None
    held_HW = held_by(item, channels)
    return held_histogram(held_classes(item, held_HW), held_HW)


def is_usable(box: tuple[float, float, float, float], width: int, height: int) -> bool:
    """Return whether a box, in pixels, has an area inside the image."""
    x1, y1, x2, y2 = box
    return min(x2, width) - max(x1, 0.0) > 0 and min(y2, height) - max(y1, 0.0) > 0


def class_states(
    item: LabelledImage, classes: SetClasses, histogram: np.ndarray | None
) -> dict[str, bool | None]:
    """Return class name → present (True), absent (False) or not to be told (None).

    Not to be told are classes of which only difficult or unusable objects are labelled, those that cover a few
    pixels only, and those missing from a mask that leaves more than 5 % of the image open. No class is absent
    where a place is ignored: what lies there may be of any class.
    """
    states: dict[str, bool | None] = {}
    if histogram is not None:
        pixels = max(int(histogram.sum()), 1)
        nearly_all_labelled = histogram[IGNORE] <= 0.05 * pixels
        for index, name in enumerate(classes.semantic_classes):
            if name.casefold() in NEVER_ASKED:
                continue
            count = int(histogram[index])
            if count == 0:
                states[name] = False if nearly_all_labelled else None
            else:
                states[name] = True if count >= _MIN_SHARE * pixels else None
    if item.objects is not None:
        clear = Counter(
            o.category for o in item.objects if not o.difficult and is_usable(o.box, item.width, item.height)
        )
        unclear = {o.category for o in item.objects}
        for name in classes.object_classes:
            if clear[name]:
                states[name] = True
            elif name in unclear or states.get(name, False) is not False:
                states[name] = None
            else:
                states[name] = False
    if item.ignored:
        states = {name: state or None for name, state in states.items()}
    if item.tags is None:
        return states
    told = {n: None if n in item.unknown else n in item.tags for n in classes.scene_classes}
    return {**states, **told}


def countable(item: LabelledImage) -> list[str]:
    """Return the classes all of whose objects are known and clear, in the order of their first objects.

    None are where a place is ignored, and none are that have a difficult object or one without an area.
    """
    if item.ignored:
        return []
    clear = {label.category: True for label in item.objects or ()}
    for label in item.objects or ():
        if label.difficult or not is_usable(label.box, item.width, item.height):
            clear[label.category] = False
    return [name for name, known in clear.items() if known]


def gather_statistics(items: Iterable[LabelledImage], classes: SetClasses) -> ClassStatistics:
    """Estimate `ClassStatistics` from images. Pairs count for the share of changed ones only."""
    present: Counter[str] = Counter()
    told: Counter[str] = Counter()
    both: dict[str, Counter[str]] = {}
    askable = [0, 0]
    images, changed, ill = 0, [], 0
    for item in items:
        if item.second_image is not None:
            if item.change is not None:
                held_HW = held_by(item, classes.channels)
                if held_HW is None or held_HW.any():
                    changed.append(bool((held_change(item, held_HW) == 1).any()))
            continue
        images += 1
        histogram = class_pixels(item, classes.channels)
        states = class_states(item, classes, histogram)
        here = [name for name, state in states.items() if state]
        ill += _has_finding(item, classes, histogram, here)
        told.update(name for name, state in states.items() if state is not None)
        present.update(here)
        for name in here:
            both.setdefault(name, Counter()).update(here)
        for side, wanted in enumerate((True, False)):
            askable[side] += any(state is wanted for state in states.values())
    share = {name: (present[name] + 0.5) / (told[name] + 1) for name in told}
    # Four pseudo-images at the class's own share keep pairs that were seen once or twice from deciding.
    given = {
        d: {c: (both[d][c] + 4 * share[c]) / (present[d] + 4) for c in share if c != d}
        for d in both
        if d in share
    }
    return ClassStatistics(
        share,
        given,
        (askable[0] / images, askable[1] / images) if images else (1.0, 1.0),
        (sum(changed) + 0.5) / (len(changed) + 1) if changed else 0.5,
        (ill + 0.5) / (images + 1),
    )


def _has_finding(
    item: LabelledImage, classes: SetClasses, histogram: np.ndarray | None, present: list[str]
) -> bool:
    """Return whether one of the findings is there, be it as small as it may."""
    found = {*present, item.scene}
    if histogram is not None:
        found |= {name for value, name in enumerate(classes.semantic_classes) if histogram[value]}
    return bool(found & set(classes.abnormal_classes))
