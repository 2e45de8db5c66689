"""Objects of masks: a number an object in one file, a file an object, or numbers beside a mask of classes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vitp.core.errors import DataError
from vitp.data.formats.builder import SetBuilder
from vitp.data.formats.mask_kinds import is_label_number
from vitp.data.formats.pixel_masks import mask_values
from vitp.data.formats.turned import AS_STORED, swaps_sides
from vitp.io.images import label_nodata, load_label_pixels, orientation_of
from vitp.records.geometry import area, as_points
from vitp.records.labels import IGNORE, ObjectLabel
from vitp.records.regions import object_of


def check_turned(builder: SetBuilder, pairs: Sequence[tuple[Path, Path, tuple[int, int]]]) -> None:
    """Make sure that masks lie on images that EXIF turns as these are shown, not as they are stored.

    Sizes tell it, where a turn swaps width and height of one image of the set; a square one, or a turn by 180°, fits
    both ways.

    Args:
        builder: Takes a line about what was decided.
        pairs: Images, their masks, which have their sizes, and width and height of the images.

    Raises:
        DataError: Masks fit both ways, and nothing tells which is meant.
    """
    turned = [
        (f"{builder.place(image)} with {builder.place(mask)}", swaps_sides(number, size))
        for image, mask, size in pairs
        if (number := builder.orientation(image)) > 1 and orientation_of(mask) == 1
    ]
    decided = any(decides for _, decides in turned)
    builder.check_turned([name for name, _ in turned], decided, "masks", len(pairs))


def mask_fits(
    builder: SetBuilder, values_HW: np.ndarray, mask: Path, image: Path | None, size: tuple[int, int]
) -> bool:
    """Return whether a mask has the width and height of its image; else note it.

    An image that is given is looked at for an EXIF orientation that would explain the difference.
    """
    height, width = values_HW.shape[:2]
    if (width, height) == size:
        return True
    turned = image is not None and size == (height, width) and orientation_of(image) > 4
    why = " (turned by its EXIF orientation; the mask is of the pixels as stored)" if turned else ""
    text = f"is {width}×{height} but its image {size[0]}×{size[1]}{why}; image left out"
    mend = "save each mask with the width and height of its image"
    if turned:
        mend = f"write images and masks with one orientation: {AS_STORED}, or turn the masks as it says"
    builder.lose(builder.place(mask), text, mend=mend)
    return False


def single_object(values_HW: np.ndarray, path: Path, name: str) -> ObjectLabel | None:
    """Return the object of a mask that holds one, or None when it is empty.

    Raises:
        DataError: The mask holds more than an object and its background.
    """
    found = np.unique(values_HW)
    if len(found) > 2 or (len(found) == 2 and found[0] != 0):
        what = f"holds {len(found)} values, but a mask of one object holds 0 and one other"
        raise DataError(what, where=str(path), fix="save it without smoothing and as PNG")
    return object_of(values_HW != 0, name)


def numbered_objects(
    builder: SetBuilder, path: Path, name: str
) -> tuple[tuple[ObjectLabel, ...], tuple[ObjectLabel, ...]]:
    """Return the objects of a mask with a number for each, and what is to be ignored.

    0 is background, and so is 255 in a palette file (VOC's line around objects). In another 8-bit file 255 is
    an object only where the numbers run up to it; else its place is ignored. So is what the file names as nodata.
    """
    values_HW, nodata = _numbers_of(path)
    objects: list[ObjectLabel] = []
    ignored: list[ObjectLabel] = []
    void = values_HW.dtype == np.uint8 and not (values_HW == IGNORE - 1).any()
    for value, mask_HW, corner in each_value(values_HW):
        label = object_of(mask_HW, name, corner)
        if label is None or (value == IGNORE and _has_palette(path)):
            continue
        if value == nodata or (value == IGNORE and void):
            why = "nodata by the file's tag: ignored there" if value == nodata else "taken as what to ignore"
            builder.note(builder.place(path), f"{value} is {why}")
            ignored.append(label)
        else:
            objects.append(label)
    return tuple(objects), tuple(ignored)


def objects_of_classes(
    builder: SetBuilder, path: Path, semantic_HW: np.ndarray, names: Mapping[int, str]
) -> tuple[tuple[ObjectLabel, ...] | None, tuple[ObjectLabel, ...]]:
    """Return the objects of an instance mask, each of the class that most of its pixels have.

    Returns:
        Objects, None when the mask doesn't fit; and the places of instances without class. What was wrong is a
        finding.
    """
    values_HW, nodata = _numbers_of(path)
    place = builder.place(path)
    if values_HW.shape != semantic_HW.shape:
        builder.note(place, "has another size than the mask of classes; no objects there")
        return None, ()
    labels: list[ObjectLabel] = []
    ignored: list[ObjectLabel] = []
    border = IGNORE if _has_palette(path) else None
    for value, mask_HW, (x, y) in each_value(values_HW):
        if value in (border, nodata):
            continue
        part_HW = semantic_HW[y : y + mask_HW.shape[0], x : x + mask_HW.shape[1]]
        counts = np.bincount(part_HW[mask_HW], minlength=256)
        counts[IGNORE] = 0
        best = int(counts.argmax())
        known = bool(counts[best]) and best in names
        label = object_of(mask_HW, names[best] if known else "unknown", (x, y))
        if label is not None:
            (labels if known else ignored).append(label)
        if not known:
            builder.note(place, f"instance {value} is of no class in the mask of classes; ignored")
    return tuple(labels), tuple(ignored)


def _numbers_of(path: Path) -> tuple[np.ndarray, int | None]:
    """Return a mask's values, and the one but 0 that its tag names as nodata.

    Raises:
        DataError: It can't be read, or its nodata value is no number of a label.
    """
    pixels, tag = load_label_pixels(path), label_nodata(path)
    if pixels.dtype.kind == "f" and not (np.abs(pixels) < 1 << 31).all():
        what = "holds pixels without a number among the numbers of instances"
        raise DataError(what, where=str(path), fix="save it with whole numbers, and another nodata value")
    nodata = None if not tag or not is_label_number(tag) else int(tag) * (0x010101 if pixels.ndim == 3 else 1)
    return mask_values(pixels), nodata


def _has_palette(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.mode == "P"
    except OSError:  # a raster of which Pillow knows nothing
        return False


def each_value(values_HW: np.ndarray) -> Iterator[tuple[int, np.ndarray, tuple[int, int]]]:
    """Yield each value but 0 with its mask, cut to its box, and the box's corner x, y."""
    y_K, x_K = np.nonzero(values_HW)
    values_K = values_HW[y_K, x_K]
    order = np.argsort(values_K, kind="stable")
    found, starts = np.unique(values_K[order], return_index=True)
    for value, members in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
        y, x = y_K[members], x_K[members]
        top, left = int(y.min()), int(x.min())
        mask_HW = np.zeros((int(y.max()) - top + 1, int(x.max()) - left + 1), bool)
        mask_HW[y - top, x - left] = True
        yield int(value), mask_HW, (left, top)


def note_touching(builder: SetBuilder, regions: Sequence[ObjectLabel]) -> None:
    """Say that objects are connected regions, and note how many look like several objects in one."""
    if not regions:
        return
    builder.understand("objects: the connected regions of each class; those that touch are one")
    areas = defaultdict(list)
    for label in regions:
        areas[label.category].append(_area(label))
    middle = {name: float(np.median(values)) for name, values in areas.items()}
    several = sum(_is_bent(label) or _area(label) > 3 * middle[label.category] for label in regions)
    if several:
        builder.note(
            "instances",
            f"objects that touch are one region: {several} of {len(regions)} regions are bent inwards or more "
            "than three times as large as the middle one of their class; masks of instances tell them apart",
        )


def _area(label: ObjectLabel) -> float:
    return sum(area(as_points(r)) for r in label.polygons) - sum(area(as_points(h)) for h in label.holes)


def _is_bent(label: ObjectLabel) -> bool:
    """Return whether an outline fills much less than its convex hull; corners of pixels bend small ones, too."""
    filled = sum(area(as_points(ring)) for ring in label.polygons)
    points = np.concatenate([as_points(ring) for ring in label.polygons]).astype(np.float32)
    return filled >= 50 and filled < 0.85 * float(cv2.contourArea(cv2.convexHull(points)))
