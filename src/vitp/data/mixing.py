"""Several training images become one: mixup and cutmix of whole-image classes, mosaics of images with objects.

Which images meet is the source's business (`ShuffledImages.partners`), when and how much a generator's. So a mix is a
function of seed and position alone, as all random changes are.

Shapes: C channels, H × W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from vitp.core.config import SettingsModel
from vitp.core.errors import DataError
from vitp.core.tensors import present
from vitp.data.ignored import UNLABELLED
from vitp.data.image_sample import ImageSample, crop, moved_object, resize

_CENTRE = (0.25, 0.75)
"""Where the four images of a mosaic meet, as shares of the sides."""


class MixSettings(SettingsModel):
    """Images that are mixed with others of the training set; at 0 none is."""

    mixup: float = Field(0.0, ge=0, le=100)
    """Classification: each image becomes a weighted mean with another one, and so do their labels; the weight follows
    Beta(α, α) with this α, such as 0.2 or 0.8. With `cutmix` each image gets one of both, by chance."""
    cutmix: float = Field(0.0, ge=0, le=100)
    """Classification: a box of each image shows another one, and labels follow the area; α as in `mixup`, such as 1."""
    mosaic: float = Field(0.0, ge=0, le=1)
    """Detection, instances and oriented objects: share of the training images that become a mosaic of parts of four."""

    @property
    def partners(self) -> int:
        """Other images that an image may be mixed with."""
        return 3 if self.mosaic else 1 if self.mixup or self.cutmix else 0


def mixed(
    sample: ImageSample,
    others: Sequence[ImageSample],
    settings: MixSettings,
    rng: np.random.Generator,
    min_visible: float,
) -> ImageSample:
    """Return the sample mixed with others, as chance and the settings say.

    Args:
        sample: Already changed at random, as the others.
        others: As many as `settings.partners`.
        settings: What may happen.
        rng: Decides.
        min_visible: As in `mosaic`.

    Raises:
        DataError: The images have other channels or number types.
    """
    if settings.mosaic:
        if rng.random() >= settings.mosaic:
            return sample
        low, high = _CENTRE
        height, width = sample.size
        centre = (round(width * rng.uniform(low, high)), round(height * rng.uniform(low, high)))
        corners = [(float(x), float(y)) for x, y in rng.random((4, 2))]
        return mosaic([sample, *others], centre, corners, min_visible=min_visible)
    cuts = settings.cutmix > 0 and (not settings.mixup or rng.random() < 0.5)
    alpha = settings.cutmix if cuts else settings.mixup
    share, place = float(rng.beta(alpha, alpha)), rng.random(2)
    other = resize(others[0], sample.size)
    return cutmix(sample, other, share, (place[0], place[1])) if cuts else mixup(sample, other, share)


def mixup(sample: ImageSample, other: ImageSample, share: float) -> ImageSample:
    """Return `share` of a sample and 1 − `share` of another one of its size: pixels rounded, labels (K,) soft."""
    _check_alike([sample, other])
    mean_CHW = share * sample.image_CHW.float() + (1 - share) * other.image_CHW.float()
    classes_K = _blend(present(sample.classes_K), present(other.classes_K), share)
    return replace(sample, image_CHW=mean_CHW.round().to(sample.image_CHW.dtype), classes_K=classes_K)


def cutmix(sample: ImageSample, other: ImageSample, share: float, centre: tuple[float, float]) -> ImageSample:
    """Return a sample in which a box shows another one of its size; the labels follow the area that each keeps.

    Args:
        sample, other: Of one size.
        share: Share of the area that the sample keeps, where the box doesn't reach over the border.
        centre: x and y of the box's, on 0..1.
    """
    _check_alike([sample, other])
    height, width = sample.size
    x, y = int(centre[0] * width), int(centre[1] * height)
    half = 0.5 * math.sqrt(1 - share)
    x1, x2 = max(x - int(half * width), 0), min(x + int(half * width), width)
    y1, y2 = max(y - int(half * height), 0), min(y + int(half * height), height)
    image_CHW = sample.image_CHW.clone()
    image_CHW[:, y1:y2, x1:x2] = other.image_CHW[:, y1:y2, x1:x2]
    kept = 1 - (x2 - x1) * (y2 - y1) / (width * height)
    classes_K = _blend(present(sample.classes_K), present(other.classes_K), kept)
    return replace(sample, image_CHW=image_CHW, classes_K=classes_K)


def _blend(first_K: Tensor, second_K: Tensor, share: float) -> Tensor:
    """Return the weighted mean of labels; a class that isn't known of one of both images isn't of the mix."""
    unknown_K = (first_K == UNLABELLED) | (second_K == UNLABELLED)
    return torch.where(unknown_K, float(UNLABELLED), share * first_K + (1 - share) * second_K)


def mosaic(
    samples: Sequence[ImageSample],
    centre: tuple[int, int],
    corners: Sequence[tuple[float, float]],
    *,
    min_visible: float,
) -> ImageSample:
    """Return parts of four samples that meet in a point, as one of the first one's size.

    Args:
        samples: Upper left, upper right, lower left, lower right. Each shows as much as there is room for; where it is
            smaller, zeros follow.
        centre: x and y in pixels where they meet.
        corners: Where each one's part begins, as shares on 0..1 of the room that is left.
        min_visible: Objects of which less of the area is left are difficult: neither objects nor background.

    Raises:
        DataError: The images have other channels or number types.
    """
    _check_alike(samples)
    (height, width), (x, y) = samples[0].size, centre
    image_CHW = torch.zeros_like(samples[0].image_CHW)
    objects, ignored = [], []
    windows = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
    for sample, (x1, y1, x2, y2), (u, v) in zip(samples, windows, corners, strict=True):
        tall, wide = sample.size
        left, top = (int(s * (max(room, 0) + 1)) for s, room in ((u, wide - x2 + x1), (v, tall - y2 + y1)))
        part = crop(sample, (left, top, left + x2 - x1, top + y2 - y1), min_visible=min_visible)
        image_CHW[:, y1:y2, x1:x2] = part.image_CHW
        shift = np.array([[1.0, 0.0, x1], [0.0, 1.0, y1]])
        objects += [moved_object(label, shift) for label in part.objects or ()]
        ignored += [moved_object(label, shift) for label in part.ignored]
    return replace(samples[0], image_CHW=image_CHW, objects=tuple(objects), ignored=tuple(ignored))


def _check_alike(samples: Sequence[ImageSample]) -> None:
    kinds = {
        (len(sample.image_CHW), str(sample.image_CHW.dtype).removeprefix("torch.")) for sample in samples
    }
    if len(kinds) > 1:
        listed = " and ".join(f"{channels} channels of {kind}" for channels, kind in sorted(kinds))
        raise DataError(
            f"images of {listed} can't be mixed",
            where="augment",
            fix="leave mixup, cutmix and mosaic out, or give all images the same bands and scaling",
        )
