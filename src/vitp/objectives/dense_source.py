"""Batches of labelled images for dense objectives: pure functions of the place in the run.

Shapes: B images, H × W pixels, C channels, K object classes.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np
import torch

from vitp.core.errors import ConfigError, DataError
from vitp.data.fingerprint import fingerprint, labels_digest
from vitp.data.ignored import known_semantic, meets
from vitp.io.images import load_image
from vitp.objectives.dense import UNKNOWN, DenseBatch
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet, ObjectLabel


@dataclass(frozen=True)
class Augmentation:
    """Random changes of image and mask. `Augmentation.none()` changes nothing.

    Attributes:
        flip: Mirror left-right and top-bottom, each with probability ½.
        rotate90: Turn by a random multiple of 90°; overhead images have no up.
        crop: Smallest share of the short side that a random square crop keeps; 1: the whole image.
        photometric: Strength of brightness, contrast, gamma and channel changes; 0: none.
    """

    flip: bool = True
    rotate90: bool = True
    crop: float = 0.6
    photometric: float = 0.2

    @classmethod
    def none(cls) -> Augmentation:
        """Return the neutral setting."""
        return cls(flip=False, rotate90=False, crop=1.0, photometric=0.0)


class LabelledSource:
    """Random batches of a labelled set with masks, and optionally the presence of its object classes.

    Every epoch sees each image once, in an order of its own. Position `step · batch_size + k` of the run
    decides image and augmentation, so that a batch doesn't depend on how many micro-batches or ranks share it.

    Args:
        labelled_set: Items of the wanted split only; may be lazy.
        batch_size: Images of one optimizer step, over all micro-batches and ranks.
        seed: Of order and augmentation.
        size: Side of the square tiles in pixels.
        micro_batches: Parts that a rank cuts its share of a step into.
        augment: Random changes.
        presence: Also tell which object classes are there. Images without masks are taken then, too.

    Raises:
        ConfigError: The set is empty or has not the labels.
        DataError: A mask doesn't fit its image or the classes (when the image's turn comes).
    """

    def __init__(
        self,
        labelled_set: LabelledSet,
        batch_size: int,
        seed: int,
        *,
        size: int,
        micro_batches: int = 1,
        augment: Augmentation | None = None,
        presence: bool = False,
    ) -> None:
        if not len(labelled_set):
            raise ConfigError("has no images", where=labelled_set.name, fix="choose another split or set")
        if not labelled_set.semantic_classes and not presence:
            raise ConfigError(
                "has no masks", where=labelled_set.name, fix="choose a set with semantic classes"
            )
        if presence and not labelled_set.object_classes:
            raise ConfigError("has no object classes", where=labelled_set.name, fix="leave out presence")
        self.labelled_set, self.batch_size, self.seed = labelled_set, batch_size, seed
        self.size, self.micro_batches, self.presence = size, micro_batches, presence
        self.augment = Augmentation() if augment is None else augment

    def __call__(self, step: int, micro: int, rank: int, world: int) -> DenseBatch:
        """Return the `micro`-th micro-batch of step `step` for this rank."""
        parts = self.micro_batches * world
        if self.batch_size < parts or micro >= self.micro_batches:
            raise ConfigError(
                f"a step of {self.batch_size} images can't be cut into {parts} parts (asked for micro-batch {micro})",
                where="data.global_batch",
                fix="give at least one image for each rank and micro-batch",
            )
        places = range(micro * world + rank, self.batch_size, parts)
        return self._collate([self._sample(step, place) for place in places])

    def fingerprint(self) -> str:
        """Return a hash of images, labels and all options that decide the batches; see `vitp.data.fingerprint`."""
        return fingerprint(self.former_fingerprint(), [labels_digest(self.labelled_set)])

    def former_fingerprint(self) -> str:
        """Return the hash without that of labels and image files."""
        labelled, count = self.labelled_set, len(self.labelled_set)
        # Items of a lazy set are rendered when touched: a few of them stand for all.
        eager = isinstance(labelled.items, list | tuple)
        probe = range(count) if eager else range(0, count, max(1, count // 8))
        facts = {
            "set": labelled.name,
            "count": count,
            "items": [(labelled.items[i].id, labelled.items[i].image) for i in probe],
            "classes": [labelled.semantic_classes, labelled.object_classes],
            "options": [self.batch_size, self.seed, self.size, self.presence, asdict(self.augment)],
        }
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _sample(self, step: int, place: int) -> tuple[LabelledImage, np.ndarray, np.ndarray, np.ndarray]:
        """Return item, image, mask and presence of one place in a step."""
        epoch, offset = divmod(step * self.batch_size + place, len(self.labelled_set))
        item = self.labelled_set.items[int(_order(self.seed, epoch, len(self.labelled_set))[offset])]
        rng = np.random.default_rng([self.seed, step, place, 1])
        image_HWC = np.asarray(load_image(item.image))
        mask_HW = read_mask(item, self.labelled_set, image_HWC.shape[:2], optional=self.presence)
        x, y, side_x, side_y = _crop(image_HWC.shape[:2], self.augment.crop, rng)
        presence_K = presence_of(
            item.objects, self.labelled_set.object_classes, (x, y, x + side_x, y + side_y), item.ignored
        )
        image_HWC = resize(image_HWC[y : y + side_y, x : x + side_x], (self.size, self.size))
        mask_HW = resize_mask(mask_HW[y : y + side_y, x : x + side_x], (self.size, self.size))
        image_HWC, mask_HW = _turn(image_HWC, mask_HW, self.augment, rng)
        return item, _photometric(image_HWC, self.augment.photometric, rng), mask_HW, presence_K

    def _collate(
        self, samples: Sequence[tuple[LabelledImage, np.ndarray, np.ndarray, np.ndarray]]
    ) -> DenseBatch:
        items, images, masks, presences = zip(*samples, strict=True)
        return DenseBatch(
            tiles_BCHW=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
            target_BHW=torch.from_numpy(np.stack(masks)),
            names=tuple(item.id for item in items),
            presence_BK=torch.from_numpy(np.stack(presences)) if self.presence else None,
        )


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, 0]).permutation(count)


def read_mask(
    item: LabelledImage, labelled_set: LabelledSet, size: tuple[int, int], *, optional: bool = False
) -> np.ndarray:
    """Return the (H, W) uint8 mask of an image, checked against the image's size and the classes.

    Pixels of ignored places are 255.

    Args:
        item: The image.
        labelled_set: Its set.
        size: Height and width of the image.
        optional: Return all 255 when the image has no mask.

    Raises:
        DataError: There is no mask, or it doesn't fit.
    """
    if item.semantic is None:
        if optional:
            return np.full(size, IGNORE, np.uint8)
        raise DataError("has no mask", where=f"image {item.id}", fix="leave it out or label it")
    mask_HW = known_semantic(item)
    if mask_HW.shape != tuple(size):
        raise DataError(
            f"mask of {mask_HW.shape[1]}×{mask_HW.shape[0]} px for an image of {size[1]}×{size[0]} px",
            where=f"image {item.id}",
            fix="mend the mask",
        )
    labelled = mask_HW[mask_HW != IGNORE]
    if labelled.size and int(labelled.max()) >= len(labelled_set.semantic_classes):
        raise DataError(
            f"mask holds class {int(labelled.max())}, but there are {len(labelled_set.semantic_classes)} classes",
            where=f"image {item.id}",
            fix="mend the mask or name all classes",
        )
    return mask_HW


def presence_of(
    objects: Sequence[ObjectLabel] | None,
    classes: Sequence[str],
    window: tuple[float, ...] | None = None,
    ignored: Sequence[ObjectLabel] = (),
) -> np.ndarray:
    """Return (K,) int8: 1 where an object of the class has its centre in the window, 0 where none has, -1 unknown.

    Unknown is all when the objects aren't labelled; which classes there are beside the clear ones when an ignored
    place meets the window; and a class of which the window meets difficult objects only.

    Args:
        objects: In pixels of the image.
        classes: K names.
        window: x1, y1, x2, y2 in pixels; None: all the image.
        ignored: Places that may hold objects of any class.
    """
    if objects is None:
        return np.full(len(classes), UNKNOWN, np.int8)
    place = {name: index for index, name in enumerate(classes)}
    everywhere = window is None
    seen = [place for place in ignored if everywhere or meets(place, window or ())]
    presence_K = np.full(len(classes), UNKNOWN if seen else 0, np.int8)
    hard = [one for one in objects if one.difficult and (everywhere or meets(one, window or ()))]
    presence_K[[place[one.category] for one in hard if one.category in place]] = UNKNOWN
    for labelled in (one for one in objects if not one.difficult):
        x, y = (labelled.box[0] + labelled.box[2]) / 2, (labelled.box[1] + labelled.box[3]) / 2
        inside = window is None or (window[0] <= x < window[2] and window[1] <= y < window[3])
        if inside and labelled.category in place:
            presence_K[place[labelled.category]] = 1
    return presence_K


def resize(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the image at `size` (height, width), averaged over areas when it shrinks."""
    if image_HWC.shape[:2] == size:
        return np.ascontiguousarray(image_HWC)
    shrinks = image_HWC.shape[0] > size[0] and image_HWC.shape[1] > size[1]
    return cv2.resize(
        np.ascontiguousarray(image_HWC),
        size[::-1],
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )


def resize_mask(mask_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the mask at `size` (height, width); classes are never mixed."""
    if mask_HW.shape == size:
        return np.ascontiguousarray(mask_HW)
    # INTER_NEAREST of OpenCV takes the upper left neighbour, half a pixel off; the exact one doesn't.
    return cv2.resize(np.ascontiguousarray(mask_HW), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def _crop(size: tuple[int, int], smallest: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return x, y, width, height of the crop; the whole image, squeezed to a square, when `smallest` is 1."""
    height, width = size
    share = rng.uniform(smallest, 1.0)
    x_share, y_share = rng.random(2)
    if smallest >= 1.0:
        return 0, 0, width, height
    side = max(1, round(share * min(height, width)))
    return round(x_share * (width - side)), round(y_share * (height - side)), side, side


def _turn(
    image_HWC: np.ndarray, mask_HW: np.ndarray, augment: Augmentation, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    mirror_x, mirror_y = rng.random(2) < 0.5
    quarters = int(rng.integers(4))
    if augment.flip and mirror_x:
        image_HWC, mask_HW = image_HWC[:, ::-1], mask_HW[:, ::-1]
    if augment.flip and mirror_y:
        image_HWC, mask_HW = image_HWC[::-1], mask_HW[::-1]
    if augment.rotate90:
        image_HWC, mask_HW = np.rot90(image_HWC, quarters), np.rot90(mask_HW, quarters)
    return np.ascontiguousarray(image_HWC), np.ascontiguousarray(mask_HW)


def _photometric(image_HWC: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Return the image under a random tone curve for each channel, as one table look-up."""
    if strength == 0:
        return image_HWC
    gamma, contrast = np.exp(rng.uniform(-strength, strength, 2))
    brightness = rng.uniform(-strength, strength) / 2
    gain_C = np.exp(rng.uniform(-strength, strength, 3) / 2)
    tone = (np.linspace(0, 1, 256)[:, None] ** gamma - 0.5) * contrast + 0.5 + brightness
    table_1VC = (np.clip(tone * gain_C, 0, 1) * 255).round().astype(np.uint8)[None]
    return cv2.LUT(image_HWC, table_1VC)
