"""The batches of a task: pure functions of the place in the run.

Shapes: B images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitp.data.augment import AugmentSettings, augment
from vitp.data.batches import Collate, SampledBatches, ShuffledImages
from vitp.data.image_sample import ImageSample
from vitp.data.mixing import MixSettings, mixed
from vitp.data.mixture import Sample
from vitp.data.nodata import nodata_facts
from vitp.records.labels import LabelledImage
from vitp.tasks.base import InputSize, TaskBatch, pad_images
from vitp.tasks.data import LabelReader


@dataclass(frozen=True)
class LabelledSamples(Collate[LabelledImage, TaskBatch]):
    """Makes a `TaskBatch`: reads images and labels, changes them at random, pads them to the largest.

    Attributes:
        reader: The images and how they are read.
        size: What size images get first.
        augmentation: Random changes.
    """

    reader: LabelReader
    size: InputSize
    augmentation: AugmentSettings

    def __call__(self, samples: Sequence[Sample[LabelledImage]], step: int) -> TaskBatch:
        """Return the batch; see `Collate`."""
        batch = self.pad([self._augmented(one) for one in samples], [one.record.id for one in samples])
        return replace(batch, step=step)

    def pad(self, samples: Sequence[ImageSample], names: Sequence[str]) -> TaskBatch:
        """Return samples as one batch, padded to the largest of them, with what a model is told of them."""
        images_BCHW, sizes_B2 = pad_images([sample.image_CHW for sample in samples])
        later = [sample.later_CHW for sample in samples if sample.later_CHW is not None]
        return TaskBatch(
            images_BCHW,
            pad_images(later)[0] if later else None,
            sizes_B2,
            tuple(self.reader.target(sample) for sample in samples),
            tuple(names),
        )

    def _augmented(self, sample: Sample[LabelledImage]) -> ImageSample:
        # Each use of a sample's position draws numbers of its own: the image 1, its partners 5, the mix 6.
        item, rng = sample.record, np.random.default_rng([sample.seed, sample.position, 1])
        seen, size = self.reader.seen, self.size.of(item.height, item.width)
        reader = self.reader
        if (moved := seen.at(sample.seed, sample.position)) is not seen:
            reader = replace(reader, seen=moved)
        # An image that is read smaller still needs the pixels for its largest random scale.
        read = reader.sample(item, self.size, self.augmentation.scale[1])
        changed = augment(read, self.augmentation, rng, size=size, rgb=seen.is_rgb)
        if sample.partners:
            changed = self._mixed(changed, sample, reader)
        return _without_channels(changed, seen.dropped(sample.seed, sample.position))

    def _mixed(self, changed: ImageSample, sample: Sample[LabelledImage], reader: LabelReader) -> ImageSample:
        """Return a changed image mixed with its partners, which are changed by chance of their own."""
        others = []
        for number, item in enumerate(sample.partners):
            rng = np.random.default_rng([sample.seed, sample.position, 5, number])
            read = reader.sample(item, self.size, self.augmentation.scale[1])
            size = self.size.of(item.height, item.width)
            others.append(augment(read, self.augmentation, rng, size=size, rgb=reader.seen.is_rgb))
        joined = [changed, *others]
        if not self.augmentation.mosaic:  # the classes of the whole image, where objects tell them
            joined = [replace(one, classes_K=reader.target(one).classes_C, objects=None) for one in joined]
        rng = np.random.default_rng([sample.seed, sample.position, 6])
        return mixed(joined[0], joined[1:], self.augmentation, rng, self.augmentation.min_visible)

    def facts(self, order: ShuffledImages, global_batch: int) -> dict[str, Any]:
        """Return images and options; see `Collate.facts`."""
        # Bands are in what is seen; runs of before there were mixes have none.
        unmixed = {name for name in MixSettings.model_fields if not getattr(self.augmentation, name)}
        augmentation = self.augmentation.model_dump(exclude={"band_dropout", "window_jitter", *unmixed})
        return {
            # File names, not paths: a set that moved to another disk is still the same set.
            **order.facts(image=lambda address: Path(address).name),
            "labels": [self.reader.kind, self.reader.classes],
            "options": [global_batch, order.seed, self.size.model_dump(), augmentation],
            **({"seen": seen} if (seen := self.reader.seen.facts()) else {}),
            **(nodata_facts(self.reader.labelled, self.reader.seen) if self.reader.is_pixelwise else {}),
        }


def _without_channels(sample: ImageSample, dropped_C: np.ndarray | None) -> ImageSample:
    """Return a sample with some channels of its image, or of both dates, 0."""
    if dropped_C is None:
        return sample
    dropped_C11 = torch.from_numpy(dropped_C)[:, None, None]
    later = sample.later_CHW
    return replace(
        sample,
        image_CHW=sample.image_CHW.masked_fill(dropped_C11, 0),
        later_CHW=None if later is None else later.masked_fill(dropped_C11, 0),
    )


def task_batches(
    reader: LabelReader,
    batch_size: int,
    seed: int,
    *,
    micro_batches: int = 1,
    size: InputSize | None = None,
    augmentation: AugmentSettings | None = None,
    repeats: Sequence[float] | None = None,
) -> SampledBatches[LabelledImage, TaskBatch]:
    """Return random batches of a labelled set for one task.

    Args:
        reader: The training images and how they are read.
        batch_size: Images of one optimizer step, over all micro-batches and ranks.
        seed: Seed of order and augmentation.
        micro_batches: Parts that a rank cuts its share of a step into.
        size: What size images get first.
        augmentation: Random changes.
        repeats: How often each image comes in an epoch, on average; None: once.

    Raises:
        ConfigError: The set is empty.
        DataError: A label doesn't fit its image (when the image's turn comes).
    """
    augmentation = augmentation or AugmentSettings()
    return SampledBatches(
        ShuffledImages(reader.labelled, seed, repeats, partners=augmentation.partners),
        LabelledSamples(reader, size or InputSize(), augmentation),
        batch_size,
        micro_batches,
        interleaved=True,
    )
