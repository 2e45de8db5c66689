"""Run-length masks of COCO: runs of 0 and 1 in turn, column by column, as numbers or as COCO's text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def decode_counts(text: str) -> list[int]:
    """Return the run lengths in COCO's compressed text.

    Each number is cut into groups of five bits, lowest first, each group one character from "0" on; bit 6
    says that more follow, and the sign is the top bit of the last group. From the third on, numbers are
    differences to the run before the last.

    Raises:
        ValueError: The text ends within a number or holds a foreign character.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"character {character!r} doesn't belong into a run-length text")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("the run-length text ends within a number")
    return counts


def encode_counts(counts: Sequence[int]) -> str:
    """Return run lengths as COCO's compressed text, which `decode_counts` reads."""
    text = []
    for number, count in enumerate(counts):
        value = count - (counts[number - 2] if number > 2 else 0)
        more = True
        while more:
            group = value & 31
            value >>= 5
            # Done where the rest is the sign that the group's top bit says already.
            more = value != (-1 if group & 16 else 0)
            text.append(chr(48 + group + (32 if more else 0)))
    return "".join(text)


def decode(counts: str | Sequence[int], height: int, width: int) -> np.ndarray:
    """Return the mask (H, W) bool of run lengths.

    Raises:
        ValueError: The runs don't fill the image exactly.
    """
    numbers = decode_counts(counts) if isinstance(counts, str) else counts
    try:
        runs = np.asarray(numbers, dtype=np.int64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("the runs are no list of whole numbers") from None
    if runs.ndim != 1:
        raise ValueError("the runs are no list of whole numbers")
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"the runs cover {int(runs.sum())} pixels of {height * width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def encode(mask_HW: np.ndarray) -> dict[str, list[int]]:
    """Return COCO's uncompressed run lengths of a mask: runs of 0 and 1 in turn, column by column."""
    flat = np.asarray(mask_HW, np.uint8).T.reshape(-1)
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    if flat.size and flat[0]:
        runs.insert(0, 0)
    return {"size": [int(mask_HW.shape[0]), int(mask_HW.shape[1])], "counts": runs}
