"""Masks of instances: a number an object in one file, or a file an object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vitp.core.errors import DataError
from vitp.data.formats.builder import SetBuilder
from vitp.data.formats.mask_layouts import MaskEntry
from vitp.data.formats.pixel_masks import mask_values
from vitp.io.images import load_label_pixels
from vitp.records.labels import IGNORE, LabelledSet, ObjectLabel
from vitp.records.regions import object_of


class InstanceMasks:
    """Adds images with the objects of instance masks.

    Args:
        builder: Takes images and findings.
        name: Class of all objects.
    """

    def __init__(self, builder: SetBuilder, name: str) -> None:
        self.builder, self.name = builder, name

    def add_numbers(self, entries: Sequence[tuple[MaskEntry, tuple[int, int]]]) -> LabelledSet:
        """Add images of which each has one mask with a number for each object.

        0 is background, and so is 255 in a palette file (VOC's line around objects). In another 8-bit file 255 is
        an object only where the numbers run up to it; else its place is ignored.
        """
        count = 0
        for entry, size in entries:
            values_HW = mask_values(load_label_pixels(entry.masks[0]))
            found, ignored = self._labels(values_HW, entry.masks[0])
            count += len(found)
            self.builder.add(entry.image, size, split=entry.split, objects=found, ignored=ignored)
        self.builder.understand(f"each value but 0 is one {self.name}: {count} in {len(entries)} masks")
        return self.builder.build(object_classes=(self.name,))

    def _labels(
        self, values_HW: np.ndarray, path: Path
    ) -> tuple[tuple[ObjectLabel, ...], tuple[ObjectLabel, ...]]:
        """Return the objects and what is to be ignored."""
        objects: list[ObjectLabel] = []
        ignored: list[ObjectLabel] = []
        void = values_HW.dtype == np.uint8 and not (values_HW == IGNORE - 1).any()
        for value, mask_HW, corner in each_value(values_HW):
            label = object_of(mask_HW, self.name, corner)
            if label is None or (value == IGNORE and has_palette(path)):
                continue
            if value == IGNORE and void:
                self.builder.note(self.builder.place(path), "255 is taken as what to ignore")
                ignored.append(label)
            else:
                objects.append(label)
        return tuple(objects), tuple(ignored)

    def add_files(self, entries: Sequence[MaskEntry]) -> LabelledSet:
        """Add images of which each has several masks with one object each.

        Raises:
            DataError: A mask holds more than an object and its background.
        """
        count = 0
        for entry in entries:
            size = self.builder.size_of(entry.image)
            if size is None:
                continue
            labels: list[ObjectLabel] = []
            usable = True
            for path in entry.masks:
                values_HW = mask_values(load_label_pixels(path))
                if values_HW.shape != (size[1], size[0]):
                    height, width = values_HW.shape
                    self.builder.note(
                        self.builder.place(path),
                        f"is {width}×{height} but its image {size[0]}×{size[1]}; image left out",
                    )
                    usable = False
                    break
                label = self._single(values_HW, path)
                if label is not None:
                    labels.append(label)
            if usable:
                count += len(labels)
                self.builder.add(entry.image, size, split=entry.split, objects=tuple(labels))
        self.builder.understand(f"each file is one {self.name}: {count} objects")
        return self.builder.build(object_classes=(self.name,))

    def _single(self, values_HW: np.ndarray, path: Path) -> ObjectLabel | None:
        found = np.unique(values_HW)
        if len(found) > 2 or (len(found) == 2 and found[0] != 0):
            raise DataError(
                f"holds {len(found)} values, but a mask of one object holds 0 and one other",
                where=str(path),
                fix="save it without smoothing and as PNG",
            )
        label = object_of(values_HW != 0, self.name)
        if label is None:
            self.builder.note(self.builder.place(path), "holds no pixel; left out")
        return label

    def with_classes(
        self, path: Path, semantic_HW: np.ndarray, names: dict[int, str]
    ) -> tuple[tuple[ObjectLabel, ...] | None, tuple[ObjectLabel, ...]]:
        """Return the objects of an instance mask, each of the class that most of its pixels have.

        Returns:
            Objects, None when the mask doesn't fit; and the places of instances without class. What was wrong is a
            finding.
        """
        values_HW = mask_values(load_label_pixels(path))
        place = self.builder.place(path)
        if values_HW.shape != semantic_HW.shape:
            self.builder.note(place, "has another size than the mask of classes; no objects there")
            return None, ()
        labels: list[ObjectLabel] = []
        ignored: list[ObjectLabel] = []
        border = IGNORE if has_palette(path) else None
        for value, mask_HW, (x, y) in each_value(values_HW):
            part_HW = semantic_HW[y : y + mask_HW.shape[0], x : x + mask_HW.shape[1]]
            counts = np.bincount(part_HW[mask_HW], minlength=256)
            counts[IGNORE] = 0
            best = int(counts.argmax())
            if value == border:
                continue
            known = bool(counts[best]) and best in names
            label = object_of(mask_HW, names[best] if known else "unknown", (x, y))
            if label is not None:
                (labels if known else ignored).append(label)
            if not known:
                self.builder.note(place, f"instance {value} is of no class in the mask of classes; ignored")
        return tuple(labels), tuple(ignored)


def has_palette(path: Path) -> bool:
    """Return whether an image file has a palette."""
    from PIL import Image

    with Image.open(path) as image:
        return image.mode == "P"


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
