"""Perceptual hashes: finding the same picture again after resizing, recompression or a change of brightness."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image

from vitp.io.images import load_image
from vitp.io.open_pixels import open_pixels
from vitp.io.parts import split_view
from vitp.io.pixels import STRETCH, planes_last

HASH_DISTANCE = 4
"""Bits of 64 in which the hashes of two images may differ for them to count as one picture."""

_THUMBNAIL = 16
_REDUCED = 512
_FLAT = 0.25
"""Grey levels of standard deviation below which a thumbnail has no structure that could be compared."""

SAME_PICTURE = 0.97
"""Least correlation of two thumbnails whose hashes agree. Neighbouring crops of one texture stay below."""


_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class ImagePrint:
    """What is kept of an image to recognise it.

    Attributes:
        bits: 64-bit difference hash: whether each of 8×8 places is brighter than its left neighbour.
        thumbnail: (256,) float32, a 16×16 grey thumbnail of zero mean and unit norm; zeros for a flat image.
        digest: Hash of size and pixels.
        blank: All pixels have one colour: it shows nothing that could be known again.
    """

    bits: int
    thumbnail: np.ndarray
    digest: bytes
    blank: bool = False


def as_compared(address: str) -> tuple[Image.Image, bytes, tuple[str, ...] | None]:
    """Return an image as it is compared with others, whatever is declared of its bands in their sets.

    Returns:
        An RGB image (of values that are no picture: the mean of the bands, stretched), the digest of the pixels' own
        values, and the names of the bands; None: it is a picture.

    Raises:
        DataError: It can't be read.
    """
    with open_pixels(split_view(address)[0]) as pixels:
        if not pixels.is_picture:
            values_CHW, valid_HW, names = pixels.read(), pixels.valid(), pixels.names
            return _stretched_mean(values_CHW, valid_HW), pixel_digest(values_CHW), names
    image = load_image(address)
    return image, pixel_digest(planes_last(image)), None


def _stretched_mean(values_CHW: np.ndarray, valid_HW: np.ndarray) -> Image.Image:
    with np.errstate(invalid="ignore", over="ignore"):
        grey_HW = values_CHW.astype(np.float64).mean(axis=0)
    known_HW = valid_HW & np.isfinite(grey_HW)
    low, high = np.percentile(grey_HW[known_HW], STRETCH) if known_HW.any() else (0.0, 1.0)
    share_HW = (np.where(known_HW, grey_HW, low) - low) / max(high - low, 1e-12)
    return Image.fromarray(np.rint(share_HW.clip(0, 1) * 255).astype(np.uint8)).convert("RGB")


def image_print(image: Image.Image, digest: bytes | None = None) -> ImagePrint:
    """Return the print of an RGB image.

    Args:
        image: As it is compared.
        digest: Digest of the values that it was made of, where those aren't its pixels.
    """
    pixels_HWC = planes_last(image)
    # Reduced, but not to 8 bits: dark radar scenes differ by fractions of a level.
    grey_HW = cv2.cvtColor(pixels_HWC, cv2.COLOR_RGB2GRAY)
    height, width = grey_HW.shape
    if max(height, width) > _REDUCED:
        size = (min(width, _REDUCED), min(height, _REDUCED))
        grey_HW = cv2.resize(grey_HW, size, interpolation=cv2.INTER_AREA)
    grey_HW = grey_HW.astype(np.float32)
    steps = cv2.resize(grey_HW, (9, 8), interpolation=cv2.INTER_AREA)
    bits = int.from_bytes(np.packbits(steps[:, 1:] > steps[:, :-1]).tobytes(), "big")
    small = cv2.resize(grey_HW, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    flat = float(small.std()) < _FLAT
    centred = (small - small.mean()).reshape(-1)
    thumbnail = np.zeros_like(centred) if flat else centred / np.linalg.norm(centred)
    blank = flat and bool((pixels_HWC == pixels_HWC[:1, :1]).all())
    return ImagePrint(bits, thumbnail, digest or pixel_digest(pixels_HWC), blank)


def pixel_digest(pixels: np.ndarray) -> bytes:
    """Return a hash of the size and the pixels of an image, (H, W, 3) uint8 or (C, H, W) of any type."""
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16)
    digest.update(repr(pixels.shape).encode())
    if pixels.dtype != np.uint8:
        digest.update(pixels.dtype.name.encode())
    return digest.digest()


def in_threads(
    function: Callable[[_Item], _Found],
    items: Iterable[_Item],
    *,
    threads: int | None = None,
    block: int = 64,
) -> Iterator[tuple[_Item, _Found]]:
    """Yield each item with what a function makes of it, in order; block by block, so that no queue builds up.

    Args:
        function: Releases Python's lock most of the time, as decoding an image does.
        items: What the function is called with.
        threads: Twice the cores by default, 16 at most.
        block: Items at a time.
    """
    waiting = iter(items)
    with ThreadPoolExecutor(threads or min(16, 2 * (os.cpu_count() or 1))) as pool:
        while some := list(islice(waiting, block)):
            yield from zip(some, pool.map(function, some), strict=True)


def same_picture(a: ImagePrint, b: ImagePrint, distance: int) -> bool:
    """Return whether two prints are of one picture.

    Either the pixels are equal, or the hashes differ in at most `distance` bits and the thumbnails agree. Flat
    images (all black, say) count only when their pixels are equal.
    """
    if a.digest == b.digest:
        return True
    if (a.bits ^ b.bits).bit_count() > distance:
        return False
    return float(a.thumbnail @ b.thumbnail) >= SAME_PICTURE


def alike_pairs(
    left: Sequence[ImagePrint], right: Sequence[ImagePrint], distance: int
) -> Iterator[tuple[int, int]]:
    """Yield each (i, j) for which left[i] and right[j] are one picture.

    Hashes that differ in at most d bits agree in at least one of d + 1 bands, so only images that share a band
    are compared. Images of equal pixels share all of them.

    Args:
        left: Prints of one side.
        right: Prints of the other.
        distance: Largest Hamming distance, 0..15.
    """
    if not 0 <= distance <= 15:
        raise ValueError(f"the distance must be 0..15, not {distance}")
    edges = np.linspace(0, 64, distance + 2).astype(int).tolist()
    bands = [(low, (1 << (high - low)) - 1) for low, high in pairwise(edges)]
    buckets: list[dict[int, list[int]]] = [defaultdict(list) for _ in bands]
    for i, known in enumerate(left):
        for bucket, (shift, mask) in zip(buckets, bands, strict=True):
            bucket[known.bits >> shift & mask].append(i)
    for j, other in enumerate(right):
        near: set[int] = set()
        for bucket, (shift, mask) in zip(buckets, bands, strict=True):
            near.update(bucket.get(other.bits >> shift & mask, ()))
        for i in sorted(near):
            if same_picture(left[i], other, distance):
                yield i, j
