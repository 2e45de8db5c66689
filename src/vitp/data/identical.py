"""The search for files with the same image, which decodes only files that can be equal.

Files of equal bytes are equal images. Of the others only those of one width and height can have equal pixels (a
picture saved twice, with another compression or other metadata); these are decoded, up to a budget. JPEG files are
compared with each other at an eighth of their size first, which takes a fraction of the time.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vitp.core.errors import DataError
from vitp.data.image_hash import as_compared, in_threads, pixel_digest
from vitp.io.images import is_scene, load_image
from vitp.io.parts import base_address

MOST_PIXELS = 1_500_000_000
"""Pixels that are decoded at most to find equal ones in files of different bytes: about half a minute on two cores."""


@dataclass(frozen=True)
class Equals:
    """Files that hold the same image.

    Attributes:
        groups: Paths of each image that several files hold, in order.
        by_pixels: Files of different bytes were compared, too; else there were too many.
    """

    groups: tuple[tuple[str, ...], ...]
    by_pixels: bool


def find_equals(images: Iterable[tuple[str, tuple[int, int]]], most_pixels: int = MOST_PIXELS) -> Equals:
    """Return which images are equal.

    Args:
        images: Path, and width and height, of each; generated scenes and repeated paths are left out.
        most_pixels: Most pixels that are decoded in all.
    """
    sizes = {path: size for path, size in images if not is_scene(path)}
    paths = list(sizes)
    same_bytes = equal_files(paths)
    # Bytes are compared first, which is cheap: of each group of equal files only one is decoded.
    twin = {path: group[0] for group in same_bytes for path in group[1:]}
    by_size: dict[tuple[int, int], list[str]] = defaultdict(list)
    for path in paths:
        if path not in twin:
            by_size[sizes[path]].append(path)
    candidates = [group for group in by_size.values() if len(group) > 1]
    cost = sum(sizes[path][0] * sizes[path][1] for group in candidates for path in group)
    by_pixels = cost <= most_pixels
    same_pixels: list[list[str]] = []
    if by_pixels:
        jpegs: list[list[str]] = []
        others: list[list[str]] = []
        for group in candidates:
            only_jpeg = all(Path(base_address(path)).suffix.lower() in (".jpg", ".jpeg") for path in group)
            (jpegs if only_jpeg else others).append(group)
        # JPEGs are first decoded as small as the decoder can, which is quick; only what is equal then, in full.
        alike = _split(jpegs, partial(_pixel_digest, reduced=True))
        same_pixels = _split([*others, *alike], partial(_pixel_digest, reduced=False))
    joined: dict[str, list[str]] = defaultdict(list)
    leader = {path: group[0] for group in same_pixels for path in group}
    for path in paths:
        first = twin.get(path, path)
        joined[leader.get(first, first)].append(path)
    return Equals(tuple(tuple(group) for group in joined.values() if len(group) > 1), by_pixels)


def equal_files(paths: Sequence[str]) -> list[list[str]]:
    """Return the paths of each content that several files have."""
    return _split(_split([paths], partial(_file_key, whole=False)), partial(_file_key, whole=True))


def _split(groups: Iterable[Sequence[str]], key: Callable[[str], Hashable | None]) -> list[list[str]]:
    """Return the groups cut into those of equal keys, without those of one path or of no key."""
    numbered = [(number, path) for number, group in enumerate(groups) for path in group]
    parts: dict[tuple[int, Hashable], list[str]] = defaultdict(list)
    for (number, path), value in in_threads(lambda item: key(item[1]), numbered):
        if value is not None:
            parts[number, value].append(path)
    return [part for part in parts.values() if len(part) > 1]


def _file_key(path: str, *, whole: bool) -> Hashable | None:
    """Return the size of a file, or a digest of the whole; None: it can't be read, or is a part of one."""
    try:
        if base_address(path) != path:
            return None
        if not whole:
            return Path(path).stat().st_size
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except (OSError, DataError):
        return None


def _pixel_digest(path: str, *, reduced: bool) -> bytes | None:
    """Return a digest of the pixels, as `data check` compares them; of a reduced JPEG it only rules out."""
    try:
        if reduced:
            return pixel_digest(np.asarray(load_image(path, enough=lambda width, height: (1, 1))))
        return as_compared(path)[1]
    except DataError:
        return None
