"""What the slices of a volume know of each other: which classes lie where, how much there is, what is beside a slice.

Shapes: N slices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from vitp.data.formats.pixel_masks import MaskFile
from vitp.data.formats.volume_masks import VolumeMask
from vitp.data.synthesis.classes import class_pixels
from vitp.io.parts import FilePart, part_address, split_address
from vitp.records.channels import Channels
from vitp.records.labels import IGNORE, LabelledImage


def slice_number(item: LabelledImage) -> int | None:
    """Return the number of a slice in its volume; None: the image is none."""
    return split_address(item.image)[1].slice if "#" in item.image else None


@dataclass(frozen=True)
class WholeVolume:
    """What the masks of all slices of a volume along one plane hold.

    Attributes:
        counts_N256: Pixels of each value of each slice's mask.
    """

    counts_N256: np.ndarray

    def span(self, value: int) -> tuple[int, int] | None:
        """Return the numbers of the first and the last slice that a class is in; None: it is nowhere."""
        places = np.flatnonzero(self.counts_N256[:, value])
        return (int(places[0]), int(places[-1])) if len(places) else None


@dataclass
class _Volume:
    """Slices of a volume that are in the set, and how many it has; None: that isn't known."""

    slices: dict[int, LabelledImage]
    count: int | None = None


class VolumeIndex:
    """The volumes of a set, whose masks are read when they are asked for, one volume at a time.

    Slices that were left out of the set are known all the same, where their masks lie in the same files.

    Args:
        items: Items of the set; those that are no slices are left out.
        channels: What is seen of their files.
    """

    def __init__(self, items: Iterable[LabelledImage], channels: Channels | None = None) -> None:
        self._channels = channels
        self._volumes: dict[tuple[str, FilePart], _Volume] = {}
        self._of: dict[str, tuple[str, FilePart]] = {}
        for item in items:
            number = slice_number(item)
            if number is None or item.second_image is not None:
                continue
            base, part = split_address(item.image)
            # Parts that differ in more than the slice, such as crops, are other volumes.
            key = base, replace(part, slice=None)
            volume = self._volumes.setdefault(key, _Volume({}))
            volume.slices[number] = item
            if item.level and number:
                volume.count = round(number / item.level) + 1
            self._of[item.id] = key
        self._read: tuple[object, WholeVolume | None] = (None, None)

    def whole_volume(self, item: LabelledImage) -> WholeVolume | None:
        """Return what the volume of a slice holds; None where not all of its pixels are known."""
        key = self._of.get(item.id)
        if key is None or key[1].window is not None:  # what lies outside of a crop isn't known
            return None
        if self._read[0] != key:
            self._read = (key, self._gathered(item, self._volumes[key]))
        return self._read[1]

    def _gathered(self, item: LabelledImage, volume: _Volume) -> WholeVolume | None:
        counts = []
        for number in range(volume.count or 0):
            one = volume.slices.get(number) or _other_slice(item, number)
            if one is None or one.ignored or (pixels := class_pixels(one, self._channels)) is None:
                return None
            counts.append(pixels)
        if not counts or np.stack(counts)[:, IGNORE].any():
            return None
        return WholeVolume(np.stack(counts))

    def beside(
        self, item: LabelledImage, most: int
    ) -> tuple[tuple[LabelledImage, ...], tuple[LabelledImage, ...]]:
        """Return the slices right before and right after one, in order, `most` on each side at most."""
        key, own = self._of.get(item.id), slice_number(item)
        if key is None or own is None or not most:
            return (), ()
        volume = self._volumes[key]
        last = max(volume.slices) if volume.count is None else volume.count - 1

        def joined(numbers: Iterable[int]) -> list[LabelledImage]:
            found = []
            for number in numbers:
                if (one := volume.slices.get(number) or _other_slice(item, number)) is None:
                    break  # one that isn't known parts those behind it from the slice
                found.append(one)
            return found

        before = joined(range(own - 1, max(own - most, 0) - 1, -1))
        return tuple(before[::-1]), tuple(joined(range(own + 1, min(own + most, last) + 1)))


def _other_slice(item: LabelledImage, number: int) -> LabelledImage | None:
    """Return another slice of a slice's volume as far as its mask tells; None: its mask isn't in the same file."""
    mask = item.semantic
    if isinstance(mask, MaskFile) and mask.onto is None and split_address(mask.path)[1].slice is not None:
        semantic: MaskFile | VolumeMask = replace(
            mask, path=part_address(mask.path, FilePart(slice=_turned(item, mask, number)))
        )
    elif isinstance(mask, VolumeMask) and mask.place is None:
        semantic = replace(mask, number=number)
    else:
        return None
    image = part_address(item.image, FilePart(slice=number))
    return replace(
        item, id=f"{item.id} {number}", image=image, semantic=semantic, objects=None, level=None, captions=()
    )


def _turned(item: LabelledImage, mask: MaskFile, number: int) -> int:
    """Return the number of a mask's slice that belongs to a slice of the image: both count alike."""
    own, of_mask = slice_number(item), split_address(mask.path)[1].slice
    return number if own is None or of_mask is None else number + of_mask - own
