"""What the slices of a volume know of each other: which classes lie where, how much there is, what is beside a slice.

Shapes: N slices, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from vitp.data.ignored import known_semantic
from vitp.data.synthesis.classes import mask_histogram
from vitp.io.parts import FilePart, split_address
from vitp.records.labels import IGNORE, LabelledImage


def slice_number(item: LabelledImage) -> int | None:
    """Return the number of a slice in its volume; None: the image is none."""
    return split_address(item.image)[1].slice if "#" in item.image else None


@dataclass(frozen=True)
class SlicesOfVolume:
    """The slices of one volume along one plane, in their order.

    Attributes:
        items: The slices.
        counts_NC: Pixels of each of 256 values of their masks.
    """

    items: tuple[LabelledImage, ...]
    counts_NC: np.ndarray

    def slices_with(self, value: int) -> tuple[int, int] | None:
        """Return the first and last place in `items` where a class is; None: it is nowhere."""
        places = np.flatnonzero(self.counts_NC[:, value])
        return (int(places[0]), int(places[-1])) if len(places) else None


class VolumeIndex:
    """The volumes of a set, whose masks are read when they are asked for, one volume at a time.

    Args:
        items: Of the set; those that are no slices are left out.
    """

    def __init__(self, items: Iterable[LabelledImage]) -> None:
        self._volumes: dict[tuple[str, FilePart, str], list[tuple[int, LabelledImage]]] = {}
        self._places: dict[str, tuple[tuple[str, FilePart, str], int]] = {}
        for item in items:
            number = slice_number(item)
            if number is not None and item.second_image is None:
                base, part = split_address(item.image)
                # Parts of one volume that differ in more than the slice, such as crops, are other volumes.
                key = base, replace(part, slice=None), item.split
                self._volumes.setdefault(key, []).append((number, item))
        for key, slices in self._volumes.items():
            slices.sort(key=lambda entry: entry[0])
            self._places.update({item.id: (key, place) for place, (_, item) in enumerate(slices)})
        self._read: tuple[object, SlicesOfVolume | None] = (None, None)

    def place(self, item: LabelledImage) -> int:
        """Return the place of a slice in its volume's `items`."""
        return self._places[item.id][1]

    def whole_volume(self, item: LabelledImage) -> SlicesOfVolume | None:
        """Return the volume of a slice; None where not all of its slices are there with masks that know all pixels."""
        if item.id not in self._places:
            return None
        key = self._places[item.id][0]
        if key[1].window is not None:  # what lies outside of the crop isn't known
            return None
        if self._read[0] != key:
            self._read = (key, self._gathered([one for _, one in self._volumes[key]]))
        return self._read[1]

    def _gathered(self, items: list[LabelledImage]) -> SlicesOfVolume | None:
        numbers = [slice_number(item) for item in items]
        ends = items[0].level, items[-1].level
        if numbers != list(range(len(items))) or ends != (0.0, 1.0):
            return None
        counts = []
        for item in items:
            if item.semantic is None or item.ignored:
                return None
            counts.append(mask_histogram(known_semantic(item)))
        counts_NC = np.stack(counts)
        return None if counts_NC[:, IGNORE].any() else SlicesOfVolume(tuple(items), counts_NC)

    def beside(
        self, item: LabelledImage, most: int
    ) -> tuple[tuple[LabelledImage, ...], tuple[LabelledImage, ...]]:
        """Return the slices right before and right after one, in order, `most` on each side at most."""
        if item.id not in self._places:
            return (), ()
        key, place = self._places[item.id]
        slices, own = self._volumes[key], self._volumes[key][place][0]
        # Only those that touch: where slices are left out, the next one that is there may be far away.
        before = [one for number, one in slices[max(place - most, 0) : place] if own - number <= most]
        after = [one for number, one in slices[place + 1 : place + 1 + most] if number - own <= most]
        return tuple(before), tuple(after)
