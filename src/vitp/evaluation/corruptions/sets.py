"""Corrupted samples and labelled sets: what every task and probe can be scored on as on any other set.

Shapes: C channels, H × W pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitp.data.image_sample import ImageSample
from vitp.data.seen import PICTURES, SeenBands
from vitp.evaluation.corruptions.catalogue import Corruption
from vitp.evaluation.corruptions.geometry import moved_objects, moved_places, warp
from vitp.io.part_files import geotiff
from vitp.records.channels import Channels
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet

Load = Callable[[str], np.ndarray]
"""Path or `scene:` address → (H, W, C) uint8."""


def load_pixels(address: str, seen: SeenBands = PICTURES) -> np.ndarray:
    """Return an image as (H, W, C) uint8: what a model sees of it."""
    return np.asarray(seen.load(address))


def corrupt_sample(
    sample: ImageSample, corruption: Corruption, severity: int, seed: int, name: str
) -> ImageSample:
    """Return a sample with image, objects and masks corrupted together.

    What comes into a semantic mask from outside is 255, into a change mask too; the class of the image stays.

    Args:
        sample: Image, or two dates, with labels; not changed.
        corruption: The corruption.
        severity: 1 to 5; 0 changes nothing.
        seed: Seed of the test.
        name: Id of the image.
    """

    def image(pixels_CHW: Tensor, date: int) -> Tensor:
        image_HWC = np.ascontiguousarray(pixels_CHW.permute(1, 2, 0).numpy())
        corrupted_HWC = corruption.apply(image_HWC, severity, seed, name, date)
        return torch.from_numpy(np.array(corrupted_HWC)).permute(2, 0, 1).contiguous()

    later_CHW, semantic_HW, objects = sample.later_CHW, sample.semantic_HW, sample.objects
    ignored = sample.ignored
    matrix = corruption.matrix(sample.size, severity, seed, name)
    if matrix is not None:
        if semantic_HW is not None:
            semantic_HW = torch.from_numpy(warp(semantic_HW.numpy(), matrix, nearest=True, fill=IGNORE))
        if objects is not None:
            objects = moved_objects(objects, matrix, sample.size)
        ignored = moved_places(ignored, matrix, sample.size)
    return replace(
        sample,
        image_CHW=image(sample.image_CHW, 0),
        later_CHW=None if later_CHW is None else image(later_CHW, 1),
        semantic_HW=semantic_HW,
        objects=objects,
        ignored=ignored,
    )


def corrupted_set(
    labelled: LabelledSet,
    corruption: Corruption,
    severity: int,
    folder: str | Path,
    *,
    seed: int = 0,
    keep: int | None = None,
    load: Load = load_pixels,
    channels: Channels | None = None,
) -> LabelledSet:
    """Return the set with corrupted images and labels that moved along; a file is written when its item is touched.

    Args:
        labelled: The clean set.
        corruption: The corruption.
        severity: 1 to 5; 0 leaves the pixels as they are.
        folder: Gets the images: pictures as PNG; of files with bands what is seen of them, in their own values.
        seed: Seed of the test.
        keep: Files that stay; older ones are removed as new ones come, so that a large set needs little room.
            None: all. At least twice as many as are read at once.
        load: Reads the clean images.
        channels: What is seen of their bands; None: pictures. A band that stands in several channels is corrupted once.

    Raises:
        DataError: An image can't be read (when its item is touched).
    """
    items = CorruptedItems(labelled.items, corruption, severity, Path(folder), seed, keep, load, channels)
    return replace(labelled, name=f"{labelled.name}, {corruption.name} {severity}", items=items)


class CorruptedItems(Sequence[LabelledImage]):
    """A lazy sequence of corrupted images; see `corrupted_set`."""

    def __init__(
        self,
        items: Sequence[LabelledImage],
        corruption: Corruption,
        severity: int,
        folder: Path,
        seed: int,
        keep: int | None,
        load: Load,
        channels: Channels | None = None,
    ) -> None:
        self.items, self.corruption, self.severity = items, corruption, severity
        self.folder, self.seed, self.keep, self.load = folder, seed, keep, load
        self.channels = channels
        self._written: deque[tuple[Path, ...]] = deque()

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, at: int) -> LabelledImage: ...

    @overload
    def __getitem__(self, at: slice) -> list[LabelledImage]: ...

    def __getitem__(self, at: int | slice) -> LabelledImage | list[LabelledImage]:
        """Write the images of an item and return it."""
        if isinstance(at, slice):
            return [self[index] for index in range(*at.indices(len(self)))]
        number = range(len(self))[at]
        item = self.items[number]
        first = self._write(item.image, item.id, number, 0)
        second = None if item.second_image is None else self._write(item.second_image, item.id, number, 1)
        self._forget((first,) if second is None else (first, second))
        matrix = self.corruption.matrix((item.height, item.width), self.severity, self.seed, item.id)
        corrupted = replace(item, image=str(first), second_image=None if second is None else str(second))
        return corrupted if matrix is None else moved_item(corrupted, matrix)

    def _write(self, address: str, name: str, number: int, date: int) -> Path:
        ending = "png" if self.channels is None else "tif"
        path = self.folder / f"{number:06d}{'-later' if date else ''}.{ending}"
        image_HWC = self.corruption.apply(self.load(address), self.severity, self.seed, name, date)
        # Scratch, read once: neither small files nor a flush to the disk are worth the time.
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.channels is None:
            Image.fromarray(image_HWC).save(path, format="PNG", compress_level=1)
        else:
            path.write_bytes(_as_file(image_HWC, self.channels))
        return path

    def _forget(self, files: tuple[Path, ...]) -> None:
        if self.keep is None:
            return
        if files in self._written:
            self._written.remove(files)
        self._written.append(files)
        while len(self._written) > self.keep:
            for old in self._written.popleft():
                old.unlink(missing_ok=True)


def _as_file(image_HWC: np.ndarray, channels: Channels) -> bytes:
    """Return a file of which these channels see the image."""
    values_CHW = channels.unscale(image_HWC.transpose(2, 0, 1))
    first = dict(zip(channels.bands[::-1], values_CHW[::-1], strict=True))
    names = list(dict.fromkeys(channels.bands))
    return geotiff(np.stack([first[name] for name in names]), names)


def moved_item(item: LabelledImage, matrix: np.ndarray) -> LabelledImage:
    """Return an item with all labels moved by a matrix; both dates of a pair move alike."""
    size = (item.height, item.width)
    objects, later = item.objects, item.later_objects
    return replace(
        item,
        objects=None if objects is None else moved_objects(objects, matrix, size),
        ignored=moved_places(item.ignored, matrix, size),
        later_objects=None if later is None else moved_objects(later, matrix, size),
        semantic=None
        if item.semantic is None
        else partial(_moved_mask, item.semantic, matrix, IGNORE, np.uint8),
        # What comes in from outside is black at both dates, so nothing changed there.
        change=None if item.change is None else partial(_moved_mask, item.change, matrix, 0, np.bool_),
    )


def _moved_mask(
    read: Callable[[], np.ndarray], matrix: np.ndarray, fill: int, dtype: type[np.generic]
) -> np.ndarray:
    return warp(read().astype(np.uint8), matrix, nearest=True, fill=fill).astype(dtype)
