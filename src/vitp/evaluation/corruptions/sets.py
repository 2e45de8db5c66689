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

from vitp.core.errors import ConfigError
from vitp.data.image_sample import ImageSample
from vitp.data.nodata import held_by
from vitp.data.seen import PICTURES, SeenBands
from vitp.evaluation.corruptions.catalogue import Corruption
from vitp.evaluation.corruptions.geometry import moved_objects, moved_places, warp
from vitp.io.open_pixels import open_seen
from vitp.io.part_files import geotiff
from vitp.records.channels import Channel, Channels
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
        channels: What is seen of their bands; None: pictures. A band that stands in several channels is corrupted once;
            where these show several ranges of its values, its values are, and 0–255 are all that any of them shows.

    Raises:
        DataError: An image can't be read (when its item is touched).
        ConfigError: A band is shown by several ranges of which one is each file's own.
    """
    if channels is not None and (wide := wide_channels(channels)) is not None:
        channels, load = wide, partial(_load_values, channels=wide)
    items = CorruptedItems(labelled.items, corruption, severity, Path(folder), seed, keep, load, channels)
    return replace(labelled, name=f"{labelled.name}, {corruption.name} {severity}", items=items)


def wide_channels(channels: Channels) -> Channels | None:
    """Return each band once, with a range that holds those of all its channels; None: no band has several.

    Raises:
        ConfigError: A band has several ranges of which one is each file's own, so that nothing holds all of them.
    """
    ranges: dict[str, list[Channel]] = {}
    for channel in channels.channels:
        own = ranges.setdefault(channel.band, [])
        if channel not in own:
            own.append(channel)
    if all(len(own) == 1 for own in ranges.values()):
        return None
    for band, own in ranges.items():
        if len(own) > 1 and (any(one.by_file for one in own) or len({one.transform for one in own}) > 1):
            words = " and ".join(one.range_words for one in own)
            raise ConfigError(
                f"band {band} is seen in several channels, by {words}: no values can be corrupted that all of them show",
                where="corruptions",
                fix="use a model whose channels show fixed ranges (-o window=lung,soft_tissue where the set is compiled)",
            )
    wide = [
        own[0].model_copy(update={"low": min(o.low for o in own), "high": max(o.high for o in own)})
        for own in ranges.values()
    ]
    return Channels(channels=tuple(wide))


def _load_values(address: str, channels: Channels) -> np.ndarray:
    """Return (H, W, C) float32, 0–255 from the low to the high value of each channel, without rounding."""
    with open_seen(address, channels) as pixels:
        channels.check_bands(pixels.names, where=pixels.where)
        names = [str(name) for name in channels.named_in(pixels.names)]
        values_CHW, valid_CHW = pixels.read_quantity(bands=names)
    scaled_CHW = values_CHW.astype(np.float64)
    for channel, values_HW in zip(channels.channels, scaled_CHW, strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            own_HW = 10 * np.log10(values_HW) if channel.transform == "db" else values_HW
            values_HW[:] = (own_HW - channel.low) * (255 / (channel.high - channel.low))
    scaled_CHW[~(valid_CHW & np.isfinite(scaled_CHW))] = 0
    return np.ascontiguousarray(scaled_CHW.clip(0, 255).astype(np.float32).transpose(1, 2, 0))


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
        # Takes numbers from the end, too, and raises an IndexError beyond it, by which loops over the items end.
        number = range(len(self))[at]
        item = self.items[number]
        first = self._write(item.image, item.id, number, 0)
        second = None if item.second_image is None else self._write(item.second_image, item.id, number, 1)
        self._forget((first,) if second is None else (first, second))
        matrix = self.corruption.matrix((item.height, item.width), self.severity, self.seed, item.id)
        # The files that are written don't tell any more where the clean ones held nothing.
        corrupted = replace(
            item,
            image=str(first),
            second_image=None if second is None else str(second),
            held=partial(held_by, item, self.channels),
        )
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
    # Backwards, so that of a band that is seen twice the first values stay.
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
        held=None if item.held is None else partial(_moved_held, item.held, matrix),
    )


def _moved_held(read: Callable[[], np.ndarray | None], matrix: np.ndarray) -> np.ndarray | None:
    held_HW = read()
    # What comes in from outside counts as the masks say.
    return None if held_HW is None else _moved_mask(lambda: held_HW, matrix, 1, np.bool_)


def _moved_mask(
    read: Callable[[], np.ndarray], matrix: np.ndarray, fill: int, dtype: type[np.generic]
) -> np.ndarray:
    return warp(read().astype(np.uint8), matrix, nearest=True, fill=fill).astype(dtype)
