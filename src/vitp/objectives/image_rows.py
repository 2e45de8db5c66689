"""The images of compiled folders, and what the collates of the image objectives have in common.

The order of the images is that of ViTP's mixture over the same folders and rates, a pure function of (seed, position);
what is random about an image is a function of (seed, position), too.
"""

from __future__ import annotations

import functools
import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitp.core import files
from vitp.core.errors import ConfigError, DataError
from vitp.data.augment import ViewSettings, make_view
from vitp.data.batches import Batch, Collate
from vitp.data.fingerprint import labels_digest
from vitp.data.formats import read_labels
from vitp.data.formats.vitp_labels import SET_FILE, read_compiled, relative
from vitp.data.mixture import Mixture, MixtureEntry, Sample
from vitp.data.seen import PICTURES, PixelImage, SeenBands
from vitp.records.labels import LabelledImage, LabelledSet

_VIEWS = 0x564945
"""Keeps the random numbers of views apart from those of other uses of the same seed."""

ImageSamples = Sequence[Sample[LabelledImage]]


@dataclass(frozen=True)
class ImageRows:
    """Images of one labelled set, as the mixture samples them.

    Attributes:
        labelled: The set; all its items are used.
        digest: Hash of the files that the items come from.
        folder: Folder that they come from.
    """

    labelled: LabelledSet
    digest: str
    folder: Path

    @property
    def name(self) -> str:
        """Name of the set."""
        return self.labelled.name

    @property
    def licence(self) -> str:
        """Licence of the set."""
        return self.labelled.licence

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, index: int) -> LabelledImage:
        return self.labelled.items[index]

    def having(self, need: Callable[[LabelledImage], bool], what: str) -> ImageRows:
        """Return the images that have the labels which an objective needs.

        Args:
            need: Tells whether an image has them.
            what: What they are called when no image has them.

        Raises:
            DataError: None has.
        """
        items = [item for item in self.labelled.items if need(item)]
        if not items:
            raise DataError(
                f"has no training {what}",
                where=str(self.folder),
                fix="compile its labels (vitp data compile), leave it out or choose another objective",
            )
        return replace(self, labelled=replace(self.labelled, items=items))

    def fingerprint(self) -> str:
        """Return the hash of the set and of the choice among its images."""
        return hashlib.sha256(f"{self.digest} {len(self)}".encode()).hexdigest()

    def contents_digest(self, *, former: bool) -> str:
        """Return the hash of all labels and images, their files included; see `labels_digest`."""
        return labels_digest(self.labelled, former=former)


def read_image_rows(folder: str | Path, *, both_dates: bool = False) -> ImageRows:
    """Return the training images of a folder.

    Args:
        folder: Made by `vitp data compile`, or any other one of images; see `read_uncompiled`.
        both_dates: The later image of a pair is an image of its own, with its own objects as its only labels.

    Raises:
        DataError: The folder holds no training images.
    """
    folder = Path(folder)
    compiled = (folder / SET_FILE).is_file()
    train = (read_compiled(folder) if compiled else read_uncompiled(folder)).split("train")
    later = [
        LabelledImage(
            id=f"{item.id} (later)",
            image=item.second_image,
            width=item.width,
            height=item.height,
            split=item.split,
            group=item.group,
            objects=item.later_objects,
        )
        for item in train.items
        if both_dates and item.second_image is not None
    ]
    digest = files.sha256(folder / "labels" / "train.jsonl") if compiled else _listing(train, folder)
    rows = ImageRows(replace(train, items=[*train.items, *later]), digest, folder)
    # For its error alone, where there are no images.
    return rows.having(lambda item: True, "images")


@functools.lru_cache(maxsize=8)
def read_uncompiled(folder: Path) -> LabelledSet:
    """Return the images of a folder that nobody has compiled, once a process; labels that are there aren't read.

    All are for training, but for those that lists or folders of the set name as validation or test images.

    Raises:
        DataError: It holds no images.
    """
    labelled = read_labels("images", folder, val=0.0, test=0.0)
    hint = "not compiled: nothing but images is read (`vitp data compile` reads labels)"
    return replace(labelled, understood=(hint, *labelled.understood))


def _listing(labelled: LabelledSet, folder: Path) -> str:
    """Return the hash of the images of a set, wherever its folder lies; what is in them counts elsewhere."""
    rows = [f"{item.id} {relative(item.image, folder)} {item.width} {item.height}" for item in labelled.items]
    # Names of files may hold bytes that are no UTF-8.
    return hashlib.sha256("\n".join(rows).encode(errors="surrogatepass")).hexdigest()


def image_mixture(
    sets: Sequence[ImageRows], rates: Sequence[float] | None, seed: int
) -> Mixture[LabelledImage]:
    """Return the order of the images: that of the instructions of the same folders at the same rates.

    Args:
        sets: What is sampled from.
        rates: How often an epoch takes each image of a set; None: once.
        seed: Seed of the order.

    Raises:
        ConfigError: There are not as many rates as sets.
        DataError: Two sets have the same name, or a rate is not usable.
    """
    if rates is not None and len(rates) != len(sets):
        raise ConfigError(
            f"{len(rates)} rates for {len(sets)} folders", where="data.rates", fix="give one each"
        )
    rates = [1.0] * len(sets) if rates is None else rates
    entries = [
        MixtureEntry(one, rate, channels=one.labelled.channels) for one, rate in zip(sets, rates, strict=True)
    ]
    return Mixture(entries, seed)


ViewMaker = Callable[
    [int, ViewSettings, np.random.Generator], tuple[np.ndarray, tuple[float, float, float, float]]
]
"""(side, how it may change, random numbers) → a view and what it shows; see `vitp.data.augment.make_view`."""


class ImageCollate(Collate[LabelledImage, Batch]):
    """Makes the batch of some labelled images.

    Attributes:
        seen: How the images are read.
    """

    seen: SeenBands = PICTURES

    @abstractmethod
    def describe(self) -> Mapping[str, Any]:
        """Return all settings that decide the batch, as JSON values."""

    def facts(self, order: Mixture[LabelledImage], global_batch: int) -> list[Any]:
        """Return order and settings; see `Collate.facts`."""
        own = [order.fingerprint(), global_batch, type(self).__name__, dict(self.describe())]
        return [*own, *self.seen.facts()]


def view_maker(sample: Sample[LabelledImage], seen: SeenBands) -> ViewMaker:
    """Return what makes views of an image: the image is read once, and all its views lack the same channels.

    Raises:
        DataError: The file is missing or damaged.
    """
    pixels, dropped_C = load_sample(sample, seen), seen.dropped(sample.seed, sample.position)

    def view(
        size: int, config: ViewSettings, rng: np.random.Generator
    ) -> tuple[np.ndarray, tuple[float, float, float, float]]:
        return make_view(pixels, size, config, rng, rgb=seen.is_rgb, dropped_C=dropped_C)

    return view


def load_sample(sample: Sample[LabelledImage], seen: SeenBands | None = None) -> PixelImage:
    """Return the pixels of an image; see `SeenBands.load`.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        return (seen or PICTURES).at(sample.seed, sample.position).load(sample.record.image)
    except DataError as error:
        raise DataError(
            error.what, where=f"image {sample.record.id}: {error.where}", fix=error.fix
        ) from error


def view_generator(sample: Sample[Any]) -> np.random.Generator:
    """Return what decides all that is random about the view of an image at its place in the run."""
    return np.random.default_rng([sample.seed, _VIEWS, sample.position])


def stacked(views: Sequence[np.ndarray]) -> Tensor:
    """Return (H, W, C) images as one (B, C, H, W) tensor."""
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).contiguous()


def names_of(samples: ImageSamples) -> tuple[str, ...]:
    """Return the ids of the images, for messages."""
    return tuple(sample.record.id for sample in samples)
