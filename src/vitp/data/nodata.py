"""Pixels of maps that hold nothing: no class counts there, neither in training nor in a score.

Shapes: H × W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vitp.core.errors import DataError
from vitp.data.ignored import read_mask
from vitp.data.seen import SeenBands
from vitp.io.ground import is_map
from vitp.io.open_pixels import open_seen
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet

_MOST_IMAGES = 64
"""Images that are looked at, at most, to tell how much of a set holds nothing."""

_MOST_PIXELS = 1 << 26
"""Pixels after which no further image is looked at."""


def where_held(mask_HW: np.ndarray, *held: np.ndarray | None) -> np.ndarray:
    """Return the class of each pixel, uint8, with 255 where an image, or one of two dates, holds nothing.

    Args:
        mask_HW: Classes.
        *held: (H, W) bool of each date; None: it holds something everywhere. See `SeenBands.held`.
    """
    for held_HW in held:
        if held_HW is not None:
            mask_HW = np.where(held_HW, mask_HW, np.uint8(IGNORE))
    return mask_HW


def image_with_mask(
    item: LabelledImage, labelled: LabelledSet, seen: SeenBands, *, optional: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return an image, (H, W, C) uint8, and the class of each pixel, (H, W) uint8: 255 counts for nothing.

    Args:
        item: The image.
        labelled: Its set.
        seen: How it is read.
        optional: Return all 255 when the image has no mask.

    Raises:
        DataError: The image can't be read, there is no mask, or it doesn't fit.
    """
    image_CHW, held_HW = seen.held(item.image)
    mask_HW = read_mask(item, labelled, image_CHW.shape[1:], optional=optional)
    return np.ascontiguousarray(image_CHW.transpose(1, 2, 0)), where_held(mask_HW, held_HW)


def nodata_facts(labelled: LabelledSet, seen: SeenBands) -> dict[str, str]:
    """Return what the fingerprint of batches says of pixels that hold nothing; nothing where the files have none.

    Earlier versions learned from what a mask says of such pixels, so that their runs can't go on with these batches.
    """
    for item in _chosen(labelled):
        for address in _maps_of(item, seen):
            try:
                with open_seen(address, seen.channels) as pixels:
                    if not pixels.all_valid:
                        return {"nodata": "ignored"}
            except DataError:  # reading it for a batch will tell what is wrong with it
                continue
    return {}


def nodata_note(labelled: LabelledSet, seen: SeenBands, what: str) -> list[str]:
    """Return a line on how much of a set's images holds nothing, or none.

    Args:
        labelled: Images with the class of each pixel.
        seen: How they are read.
        what: What the images are called: "training".
    """
    pixels = empty = looked = 0
    for item in _chosen(labelled):
        looked += 1
        try:
            held = [held for one in _maps_of(item, seen) if (held := seen.held(one)[1]) is not None]
        except DataError:
            continue
        pixels += item.width * item.height
        empty += int((~np.logical_and.reduce(held)).sum()) if held else 0
        if pixels >= _MOST_PIXELS:
            break
    if not empty:
        return []
    some = "" if looked == len(labelled) else f" (by {looked} of {len(labelled)} images)"
    share = f"{empty / pixels:.1%}" if empty >= pixels / 1000 else "less than 0.1%"
    return [
        f"{share} of the pixels of the {what} images are nodata: no class counts there, whatever a mask says{some}"
    ]


def _maps_of(item: LabelledImage, seen: SeenBands) -> list[str]:
    """Return the dates of an image that know where they hold nothing."""
    dates = [item.image] if item.second_image is None else [item.image, item.second_image]
    return [address for address in dates if is_map(address, seen.channels)]


def _chosen(labelled: LabelledSet) -> Iterator[LabelledImage]:
    """Yield an even choice of images; none of a lazy set, whose images are generated."""
    if isinstance(labelled.items, list | tuple):
        count = min(len(labelled), _MOST_IMAGES)
        yield from (labelled.items[number * len(labelled) // count] for number in range(count))
