"""Does one image show a part of another? Found by key points, whatever the crop, scale or rotation.

Perceptual hashes compare whole pictures; a 512-pixel tile of a test image has another hash than the image. Its
corners look the same, though: a thousand binary descriptors of each image are indexed in bands, matched, and a match
counts only when one similarity transform explains it and the pixels agree under it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

_LARGEST_SIDE = 1600
"""Larger images are reduced before key points are looked for; ORB covers a factor of about three in scale."""

KEYPOINTS = 1000
_BANDS = 16
_MOST_ALIKE = 256
"""A band that more places share than this says nothing (flat sky, empty water)."""

_BITS = 40
"""Bits of 256 in which the descriptors of one place may differ after recompression and resizing."""

_ONES = np.array([value.bit_count() for value in range(256)], np.uint8)

LEAST_MATCHES = 12
LEAST_CORRELATION = 0.6
_CHECK_SIDE = 256


@dataclass(frozen=True, slots=True)
class Landmarks:
    """Key points of an image.

    Attributes:
        points_K2: float32 x, y in pixels of the image.
        bits_K32: uint8 descriptors of 256 bits.
        size: Width and height of the image.
        grey_hw: The image, reduced to 256 pixels on its longer side.
    """

    points_K2: np.ndarray
    bits_K32: np.ndarray
    size: tuple[int, int]
    grey_hw: np.ndarray


@dataclass(frozen=True, slots=True)
class Overlap:
    """One image holds a part of another.

    Attributes:
        known: Number of the indexed image.
        share: Part of the indexed image that the other one shows, 0..1.
    """

    known: int
    share: float


def landmarks(image: Image.Image) -> Landmarks:
    """Return the key points of an RGB image."""
    grey_HW = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY)
    height, width = grey_HW.shape
    scale = min(1.0, _LARGEST_SIDE / max(height, width))
    if scale < 1:
        grey_HW = cv2.resize(grey_HW, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    orb = cv2.ORB.create(nfeatures=KEYPOINTS, fastThreshold=5, edgeThreshold=16, patchSize=31)
    points, bits = orb.detectAndCompute(grey_HW, None)
    found = np.array([point.pt for point in points], np.float32).reshape(-1, 2) / scale
    reduced = _CHECK_SIDE / max(grey_HW.shape)
    small_hw = cv2.resize(grey_HW, None, fx=reduced, fy=reduced, interpolation=cv2.INTER_AREA)
    empty = np.zeros((0, 32), np.uint8)
    return Landmarks(found, empty if bits is None else bits, (width, height), small_hw)


class OverlapIndex:
    """Finds which of some images another image shows a part of.

    Descriptors that differ in few bits agree in one of sixteen bands of 16 bits nearly always, so only those that
    share a band are compared. About 300 kB an image, its key points included.

    Args:
        images: Key points of the images that are to be found.
    """

    def __init__(self, images: Iterable[Landmarks]) -> None:
        self.images = list(images)
        self._owners = np.concatenate(
            [np.full(len(image.bits_K32), k) for k, image in enumerate(self.images)] or [np.zeros(0)]
        ).astype(np.int64)
        self._bits = np.concatenate([i.bits_K32 for i in self.images] or [np.zeros((0, 32), np.uint8)])
        self._points = np.concatenate([i.points_K2 for i in self.images] or [np.zeros((0, 2), np.float32)])
        bands = self._bits.copy().view(np.uint16).reshape(-1, _BANDS)
        self._order = np.argsort(bands, axis=0, kind="stable")
        self._sorted = np.take_along_axis(bands, self._order, axis=0)

    def find(self, image: Landmarks) -> list[Overlap]:
        """Return the indexed images of which an image shows a part, the largest share first."""
        pairs: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for mine, its in self._candidates(image):
            pairs[int(self._owners[its])].append((mine, its))
        found = [
            overlap for owner, matches in pairs.items() if (overlap := self._verify(image, owner, matches))
        ]
        return sorted(found, key=lambda overlap: -overlap.share)

    def _candidates(self, image: Landmarks) -> list[tuple[int, int]]:
        """Return (key point of the image, indexed key point) of descriptors that are nearly equal."""
        if not len(image.bits_K32) or not len(self._bits):
            return []
        queries = image.bits_K32.copy().view(np.uint16).reshape(-1, _BANDS)
        found: list[np.ndarray] = []
        for band in range(_BANDS):
            column = self._sorted[:, band]
            low = np.searchsorted(column, queries[:, band], side="left")
            counts = np.searchsorted(column, queries[:, band], side="right") - low
            counts[counts > _MOST_ALIKE] = 0
            mine_P = np.repeat(np.arange(len(queries)), counts)
            within_P = np.arange(len(mine_P)) - np.repeat(np.cumsum(counts) - counts, counts)
            its_P = self._order[np.repeat(low, counts) + within_P, band]
            differing_P = _ONES[self._bits[its_P] ^ image.bits_K32[mine_P]].sum(axis=1, dtype=np.int64)
            near_P = differing_P <= _BITS
            found.append(np.stack([mine_P[near_P], its_P[near_P]], axis=1))
        pairs_P2 = np.unique(np.concatenate(found), axis=0)
        return [(int(mine), int(its)) for mine, its in pairs_P2]

    def _verify(self, image: Landmarks, owner: int, pairs: list[tuple[int, int]]) -> Overlap | None:
        """Return the overlap when one similarity transform explains the pairs and the pixels agree under it."""
        if len({mine for mine, _ in pairs}) < LEAST_MATCHES:
            return None
        mine_P2 = image.points_K2[[mine for mine, _ in pairs]]
        its_P2 = self._points[[its for _, its in pairs]]
        cv2.setRNGSeed(0)
        known = self.images[owner]
        tolerance = max(3.0, max(known.size) / 400)
        matrix_23, inliers_P1 = cv2.estimateAffinePartial2D(
            mine_P2, its_P2, method=cv2.RANSAC, ransacReprojThreshold=tolerance
        )
        if matrix_23 is None:
            return None
        kept = np.flatnonzero(inliers_P1.reshape(-1))
        if len({pairs[k][0] for k in kept.tolist()}) < LEAST_MATCHES:
            return None
        share, correlation = _agreement(image, known, matrix_23)
        return Overlap(owner, share) if correlation >= LEAST_CORRELATION else None


def _agreement(image: Landmarks, known: Landmarks, matrix_23: np.ndarray) -> tuple[float, float]:
    """Return the share of the known image that the other shows, and the correlation of what both show.

    Args:
        image: The other image.
        known: The indexed one.
        matrix_23: Maps pixels of the other image to pixels of the known one.
    """
    height, width = known.grey_hw.shape
    to_known = np.array([[width / known.size[0], 0, 0], [0, height / known.size[1], 0], [0, 0, 1]])
    from_small = np.array(
        [
            [image.size[0] / image.grey_hw.shape[1], 0, 0],
            [0, image.size[1] / image.grey_hw.shape[0], 0],
            [0, 0, 1],
        ]
    )
    small_23 = (to_known @ np.vstack([matrix_23, [0, 0, 1]]) @ from_small)[:2]
    moved_hw = cv2.warpAffine(image.grey_hw, small_23, (width, height), flags=cv2.INTER_AREA)
    covered_hw = (
        cv2.warpAffine(np.ones_like(image.grey_hw), small_23, (width, height), flags=cv2.INTER_NEAREST) > 0
    )
    count = int(covered_hw.sum())
    if count < 64:
        return 0.0, 0.0
    seen: list[np.ndarray] = []
    for image_hw in (moved_hw, known.grey_hw):
        # What lies between noise and large areas is compared: different resolutions blur differently, and any two
        # harbours agree in where land and water are.
        grey_hw = image_hw.astype(np.float32)
        middle_hw = cv2.GaussianBlur(grey_hw, (0, 0), 1.0) - cv2.GaussianBlur(grey_hw, (0, 0), 5.0)
        seen.append(middle_hw[covered_hw].astype(np.float64))
    a, b = seen
    if a.std() < 0.5 or b.std() < 0.5:
        return count / covered_hw.size, 0.0
    return count / covered_hw.size, float(np.corrcoef(a, b)[0, 1])
