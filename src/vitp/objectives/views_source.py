"""Images and their labels for the image objectives: which image comes at which place of the run, and its batch.

The order is that of ViTP's mixture over the same folders and rates, a pure function of (seed, position); what is random
about an image is a function of (seed, position), too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitp.core import files
from vitp.core.errors import ConfigError, DataError
from vitp.data.fingerprint import fingerprint, labels_digest
from vitp.data.formats.vitp_labels import read_compiled
from vitp.data.mixture import Mixture, MixtureEntry
from vitp.data.record_set import RecordSet
from vitp.io.images import load_image
from vitp.records.labels import LabelledImage, LabelledSet

Batch = TypeVar("Batch", covariant=True)

_VIEWS = 0x564945
"""Keeps the random numbers of views apart from those of other uses of the same seed."""


@dataclass(frozen=True)
class ImageRows:
    """Images of one labelled set, as the mixture samples them.

    Attributes:
        labelled: The set; all its items are used.
        digest: Hash of the files that the items come from.
        folder: Where they come from.
    """

    labelled: LabelledSet
    digest: str
    folder: Path

    @property
    def name(self) -> str:
        """Of the set."""
        return self.labelled.name

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
                fix="leave it out or choose another objective",
            )
        return replace(self, labelled=replace(self.labelled, items=items))

    def fingerprint(self) -> str:
        """Return the hash of the set and of the choice among its images."""
        return hashlib.sha256(f"{self.digest} {len(self)}".encode()).hexdigest()


def read_rows(folder: str | Path, *, both_dates: bool = False) -> ImageRows:
    """Return the training images of a compiled folder.

    Args:
        folder: Made by `vitp data compile`.
        both_dates: The later image of a pair is an image of its own, with its own objects as its only labels.

    Raises:
        DataError: The folder holds no compiled labels, or no training images.
    """
    folder = Path(folder)
    train = read_compiled(folder).split("train")
    later = [_later(item) for item in train.items if item.second_image is not None] if both_dates else []
    digest = files.sha256(folder / "labels" / "train.jsonl")
    rows = ImageRows(replace(train, items=[*train.items, *later]), digest, folder)
    return rows.having(lambda item: True, "images")


def _later(item: LabelledImage) -> LabelledImage:
    assert item.second_image is not None
    return LabelledImage(
        id=f"{item.id} (later)",
        image=item.second_image,
        width=item.width,
        height=item.height,
        split=item.split,
        group=item.group,
        objects=item.later_objects,
    )


class ImageMixture:
    """An endless, seeded, random-access sequence of labelled images.

    Args:
        sets: What is sampled from.
        rates: How often an epoch takes each image of a set; None: once.
        seed: Of the order.

    Raises:
        ConfigError: There are not as many rates as sets.
        DataError: Two sets have the same name, or a rate is not usable.
    """

    def __init__(self, sets: Sequence[ImageRows], rates: Sequence[float] | None, seed: int) -> None:
        if rates is not None and len(rates) != len(sets):
            raise ConfigError(
                f"{len(rates)} rates for {len(sets)} folders", where="data.rates", fix="give one each"
            )
        self.sets, self.seed = tuple(sets), seed
        # The mixture's order depends on names and lengths only, which images have as records do.
        self.order = Mixture(
            [
                MixtureEntry(cast(RecordSet, one), 1.0 if rates is None else rates[number])
                for number, one in enumerate(sets)
            ],
            seed,
        )

    def __len__(self) -> int:
        """Images of an epoch."""
        return len(self.order)

    def locate(self, position: int) -> tuple[int, LabelledImage]:
        """Return which set, and which of its images, stands at a position of the run."""
        place = self.order.locate(position)
        return place.entry, self.sets[place.entry][place.record]

    def fingerprint(self) -> str:
        """Return a hash of all that decides the order."""
        return self.order.fingerprint()

    def describe(self) -> list[dict[str, Any]]:
        """Return name, size, rate and licence of each set, as a run's `mixture.json` has them."""
        return [
            {
                "name": entry.records.name,
                "records": len(one),
                "rate": entry.rate,
                "licence": one.labelled.licence,
            }
            for one, entry in zip(self.sets, self.order.entries, strict=True)
        ]


@dataclass(frozen=True)
class PlacedImage:
    """An image at its place in the run.

    Attributes:
        item: The image's labels.
        entry: Which set of the mixture it is of.
        position: Place in the run.
        seed: Of the run.
    """

    item: LabelledImage
    entry: int
    position: int
    seed: int

    def load(self) -> Image.Image:
        """Return the pixels, RGB.

        Raises:
            DataError: The file is missing or damaged.
        """
        try:
            return load_image(self.item.image)
        except DataError as error:
            raise DataError(
                error.what, where=f"image {self.item.id}: {error.where}", fix=error.fix
            ) from error

    def generator(self) -> np.random.Generator:
        """Return what decides all that is random about the image at this place."""
        return np.random.default_rng([self.seed, _VIEWS, self.position])


class Collate(Protocol[Batch]):
    """Makes the batch of some images: what an objective sees of them."""

    def __call__(self, images: Sequence[PlacedImage], step: int) -> Batch:
        """Return the batch; `step` is the optimizer step."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return all settings that decide the batch, as JSON values."""
        ...


class ViewSource(Generic[Batch]):
    """The batches of a run: step, micro-batch and rank → batch, with no state at all.

    Step s takes positions s · G … (s + 1) · G of the order; the micro-batches of the ranks are slices of it.

    Args:
        images: The order.
        collate: Makes a batch.
        global_batch: Images an optimizer step, over all micro-batches and ranks.
        micro_batches: Parts that a rank cuts its share of a step into.
    """

    def __init__(
        self, images: ImageMixture, collate: Collate[Batch], global_batch: int, micro_batches: int = 1
    ) -> None:
        self.images, self.collate = images, collate
        self.global_batch, self.micro_batches = global_batch, micro_batches

    def __call__(self, step: int, micro: int, rank: int, world: int) -> Batch:
        """Return the `micro`-th batch of a step for a rank.

        Raises:
            ConfigError: The batch can't be cut into equal parts.
            DataError: An image can't be read.
        """
        parts = self.micro_batches * world
        if self.global_batch % parts:
            # Contrastive losses gather rows over ranks, which must be as many on each.
            raise ConfigError(
                f"a global batch of {self.global_batch} can't be cut into {self.micro_batches} micro-batches "
                f"on {world} ranks",
                where="data.global_batch",
                fix=f"choose a multiple of {parts}",
            )
        size = self.global_batch // parts
        first = step * self.global_batch + (micro * world + rank) * size
        return self.collate([self.place(position) for position in range(first, first + size)], step)

    def place(self, position: int) -> PlacedImage:
        """Return the image at a position of the run."""
        entry, item = self.images.locate(position)
        return PlacedImage(item, entry, position, self.images.seed)

    def fingerprint(self) -> str:
        """Return a hash of images, labels, order and all settings that decide the batches."""
        contents = [labels_digest(one.labelled) for one in self.images.sets]
        return fingerprint(self.former_fingerprint(), contents)

    def former_fingerprint(self) -> str:
        """Return the hash without that of masks and image files."""
        facts = [self.images.fingerprint(), self.global_batch, type(self.collate).__name__]
        return hashlib.sha256(json.dumps([*facts, dict(self.collate.describe())]).encode()).hexdigest()


def stacked(views: Sequence[np.ndarray]) -> Tensor:
    """Return (H, W, 3) images as one (B, 3, H, W) tensor."""
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).contiguous()
