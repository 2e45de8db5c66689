"""Pixels of maps that hold nothing: no class counts there, neither in training nor in a score.

Shapes: H × W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vitp.core.errors import DataError
from vitp.data.ignored import known_semantic, read_mask
from vitp.data.seen import SeenBands
from vitp.io.ground import is_map
from vitp.io.images import where_valid
from vitp.io.open_pixels import open_seen
from vitp.records.channels import Channels
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
    held_HW = held_HW if item.held is None else item.held()
    mask_HW = read_mask(item, labelled, image_CHW.shape[1:], optional=optional)
    return np.ascontiguousarray(image_CHW.transpose(1, 2, 0)), where_held(mask_HW, held_HW)


def held_by(item: LabelledImage, channels: Channels | None) -> np.ndarray | None:
    """Return where an image, both dates of a pair, holds something, (H, W) bool; None: everywhere.

    Nothing is said of a file that can't be read: reading it for a batch will tell what is wrong with it.

    Args:
        item: The image.
        channels: What is seen of its files' bands; None: pictures.

    Raises:
        DataError: A file isn't of the size that the labels say.
    """
    if item.held is not None:
        return item.held()
    held_HW = None
    for address in (item.image, item.second_image):
        try:
            valid_HW = None if address is None else where_valid(address, channels)
        except DataError:
            continue
        if address is None or valid_HW is None:
            continue
        if valid_HW.shape != (item.height, item.width):
            what = f"is {valid_HW.shape[1]}×{valid_HW.shape[0]} px, its labels say {item.width}×{item.height}"
            raise DataError(what, where=address, fix="compile the labels again")
        held_HW = valid_HW if held_HW is None else held_HW & valid_HW
    return held_HW


def held_classes(item: LabelledImage, held_HW: np.ndarray | None) -> np.ndarray:
    """Return the class of each pixel of an image that has a mask: (H, W) uint8, 255 where it isn't known.

    It isn't where a place is ignored, and where the image holds nothing.

    Args:
        item: The image.
        held_HW: What `held_by` returns of it.

    Raises:
        DataError: The mask can't be read, or doesn't fit the image.
    """
    mask_HW = known_semantic(item)
    if mask_HW.ndim != 2 or mask_HW.size == 0:
        raise DataError(f"the semantic mask has shape {mask_HW.shape}", where=item.id, fix="give (H, W)")
    _check_shape(mask_HW, held_HW, item)
    return where_held(mask_HW.astype(np.uint8, copy=False), held_HW)


def held_change(item: LabelledImage, held_HW: np.ndarray | None) -> np.ndarray:
    """Return where a pair that has a change mask changed: (H, W) uint8, 0 or 1, 255 where a date holds nothing.

    Raises:
        DataError: The mask can't be read, or doesn't fit the images.
    """
    assert item.change is not None
    change_HW = np.asarray(item.change()) > 0
    _check_shape(change_HW, held_HW, item)
    return where_held(change_HW.astype(np.uint8), held_HW)


def held_transition(item: LabelledImage, held_HW: np.ndarray | None) -> np.ndarray:
    """Return the classes of a pair at both dates: (2, H, W) uint8, 255 where they aren't known or a date holds nothing.

    Raises:
        DataError: A mask can't be read, or doesn't fit the images.
    """
    assert item.transition is not None
    both_2HW = np.asarray(item.transition())
    _check_shape(both_2HW[0], held_HW, item)
    return where_held(both_2HW, held_HW)


def _check_shape(mask_HW: np.ndarray, held_HW: np.ndarray | None, item: LabelledImage) -> None:
    if held_HW is not None and held_HW.shape != mask_HW.shape:
        what = (
            f"mask of {mask_HW.shape[1]}×{mask_HW.shape[0]} px for an image of {item.width}×{item.height} px"
        )
        raise DataError(what, where=f"image {item.id}", fix="mend the mask")


def held_histogram(mask_HW: np.ndarray, held_HW: np.ndarray | None) -> np.ndarray:
    """Return the number of pixels of each of the 256 values of a mask, of those that hold something alone."""
    counted = mask_HW if held_HW is None else mask_HW[held_HW]
    return np.bincount(np.asarray(counted, np.uint8).ravel(), minlength=256)


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
            held_HW = held_by(item, seen.channels)
        except DataError:
            continue
        pixels += item.width * item.height
        empty += 0 if held_HW is None else int((~held_HW).sum())
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
