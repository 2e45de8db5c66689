"""Levels of a slide, read block by block, and what lies between them: averages over areas on a fixed grid.

A block is what is decoded at once: a tile of a TIFF, a chunk of a Zarr array. Decoded blocks are kept in one cache of
bounded size for the whole process.

Shapes: C bands, h × w pixels of a window.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from vitp.io.parts import Window

BLOCKS_BYTES = 96 << 20
"""Of decoded blocks, of all slides together."""
_TILE, _SOURCE = 512, 4096
"""Largest side of a tile of averages, and of what is averaged into one."""

SlideBlock = tuple[np.ndarray, np.ndarray | None]
"""(S, h, w) values of all samples of a page, and (h, w) bool which of them count; None: all do."""

ReadBlock = Callable[[int, int, int], SlideBlock]
"""Number of the page, column and row of the block → what it holds, cut at the end of the level."""

_numbers = itertools.count()


class SlideBlocks:
    """Blocks that were decoded last, up to a number of bytes; may be used by several threads."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._blocks: OrderedDict[Hashable, SlideBlock] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, read: Callable[[], SlideBlock]) -> SlideBlock:
        """Return a block, read where it isn't there."""
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
                return self._blocks[key]
        # Outside of the lock: nobody waits for another's block, and at worst one is read twice.
        block = read()
        # The same arrays are given to all who ask.
        for part in block:
            if part is not None:
                part.setflags(write=False)
        with self._lock:
            if key not in self._blocks:
                self._blocks[key] = block
                self._held += _bytes(block)
            while self._held > self._most and len(self._blocks) > 1:
                self._held -= _bytes(self._blocks.popitem(last=False)[1])
        return block


def _bytes(block: SlideBlock) -> int:
    values_Shw, valid_hw = block
    return values_Shw.nbytes + (0 if valid_hw is None else valid_hw.nbytes)


BLOCKS = SlideBlocks(BLOCKS_BYTES)


@dataclass(frozen=True)
class SlideLevel:
    """One resolution of a slide.

    Attributes:
        size: Width and height.
        block: Width and height of a block.
        samples: Samples (channels) of a pixel of a page.
        dtype: Type of the values.
        read: Reads a block.
        number: Tells levels apart in the cache.
    """

    size: tuple[int, int]
    block: tuple[int, int]
    samples: int
    dtype: np.dtype[Any]
    read: ReadBlock = field(repr=False)
    number: int = field(default_factory=lambda: next(_numbers))

    def window(self, window: Window, planes: Sequence[tuple[int, int]]) -> SlideBlock:
        """Return (C, h, w) values and which pixels count, of a window within the level.

        Args:
            window: In pixels of the level.
            planes: Page and sample of each band.
        """
        x1, y1, x2, y2 = window
        wide, high = self.block
        values_Chw = np.zeros((len(planes), y2 - y1, x2 - x1), self.dtype)
        valid_hw: np.ndarray | None = None
        for row in range(y1 // high, -(-y2 // high)):
            for column in range(x1 // wide, -(-x2 // wide)):
                left, top = max(x1, column * wide), max(y1, row * high)
                right, bottom = min(x2, (column + 1) * wide), min(y2, (row + 1) * high)
                own = (
                    slice(top - row * high, bottom - row * high),
                    slice(left - column * wide, right - column * wide),
                )
                there = (slice(top - y1, bottom - y1), slice(left - x1, right - x1))
                for band, (page, sample) in enumerate(planes):
                    read_Shw, known_hw = self._block(page, column, row)
                    values_Chw[(band, *there)] = read_Shw[(sample, *own)]
                    if known_hw is not None:
                        valid_hw = np.ones(values_Chw.shape[1:], bool) if valid_hw is None else valid_hw
                        valid_hw[there] &= known_hw[own]
        return values_Chw, valid_hw

    def _block(self, page: int, column: int, row: int) -> SlideBlock:
        key = (self.number, page, column, row)
        return BLOCKS.get(key, lambda: self.read(page, column, row))


def placed_level(size: tuple[int, int], parts: Sequence[tuple[int, int, SlideLevel]]) -> SlideLevel:
    """Return a level of several scanned areas, each with x and y of its corner; between them there is nothing."""
    samples, dtype = parts[0][2].samples, parts[0][2].dtype
    planes = [(0, sample) for sample in range(samples)]

    def read(page: int, column: int, row: int) -> SlideBlock:
        x1, y1 = column * _TILE, row * _TILE
        x2, y2 = min(x1 + _TILE, size[0]), min(y1 + _TILE, size[1])
        values_Shw = np.zeros((samples, y2 - y1, x2 - x1), dtype)
        valid_hw = np.zeros(values_Shw.shape[1:], bool)
        for x, y, level in parts:
            left, top = max(x1, x), max(y1, y)
            right, bottom = min(x2, x + level.size[0]), min(y2, y + level.size[1])
            if left < right and top < bottom:
                found_Shw, known_hw = level.window((left - x, top - y, right - x, bottom - y), planes)
                there = (slice(top - y1, bottom - y1), slice(left - x1, right - x1))
                values_Shw[(slice(None), *there)] = found_Shw
                valid_hw[there] = True if known_hw is None else known_hw
        return values_Shw, valid_hw

    return SlideLevel(size, (_TILE, _TILE), samples, dtype, read)


@dataclass(frozen=True)
class SlideGrid:
    """Pixels of a slide at one resolution, as they follow from one of its levels.

    Attributes:
        level: The next finer one, or one of these very pixels.
        size: Width and height.
        steps: Pixels of the level along x and along y that a pixel of the grid covers; None: the level's own pixels.
    """

    level: SlideLevel
    size: tuple[int, int]
    steps: tuple[float, float] | None

    def window(self, window: Window, planes: Sequence[tuple[int, int]]) -> SlideBlock:
        """Return (C, h, w) values and which pixels count."""
        if self.steps is None:
            return self._own(window, planes)
        side, level = self._side, self.level
        return SlideLevel(
            self.size, (side, side), level.samples, level.dtype, self._averaged, self._number
        ).window(window, planes)

    @property
    def _side(self) -> int:
        assert self.steps is not None
        fitting = int(math.log2(max(_SOURCE / max(*self.steps, 1.0), 16)))
        return min(_TILE, 1 << fitting)

    @property
    def _number(self) -> int:
        # Of the same level and steps it is the same; never that of a level.
        return hash((self.level.number, self.steps, self.size, "averages"))

    def _own(self, window: Window, planes: Sequence[tuple[int, int]]) -> SlideBlock:
        """Return pixels of the level; writers cut a last row or column that they had no whole pixel for."""
        x1, y1, x2, y2 = window
        wide, high = self.level.size
        inner = (min(x1, wide - 1), min(y1, high - 1), min(x2, wide), min(y2, high))
        values_Chw, valid_hw = self.level.window(inner, planes)
        missing = (x2 - x1 - values_Chw.shape[2], y2 - y1 - values_Chw.shape[1])
        if missing != (0, 0):
            edges = ((0, missing[1]), (0, missing[0]))
            values_Chw = np.pad(values_Chw, ((0, 0), *edges), mode="edge")
            valid_hw = None if valid_hw is None else np.pad(valid_hw, edges, mode="edge")
        return values_Chw, valid_hw

    def _averaged(self, page: int, column: int, row: int) -> SlideBlock:
        """Return all samples of a page in a tile of the grid: always the same sums, whoever asks for which part."""
        assert self.steps is not None
        side = self._side
        ends = [
            (start * side, min((start + 1) * side, length))
            for start, length in zip((column, row), self.size, strict=True)
        ]
        (first_x, across), (first_y, down) = (
            _weights(*end, step, length)
            for end, step, length in zip(ends, self.steps, self.level.size, strict=True)
        )
        window = (first_x, first_y, first_x + across.shape[1], first_y + down.shape[1])
        samples, dtype = range(self.level.samples), self.level.dtype
        values_Shw, valid_hw = self.level.window(window, [(page, sample) for sample in samples])
        if valid_hw is not None and valid_hw.all():
            valid_hw = None
        known = values_Shw if valid_hw is None else np.where(valid_hw, values_Shw, 0)
        means = np.stack([_summed(one.astype(np.float64), across, down) for one in known])
        held_hw = None
        if valid_hw is not None:
            share_hw = _summed(valid_hw.astype(np.float64), across, down)
            held_hw = share_hw > 1e-9
            means /= np.where(held_hw, share_hw, 1)
        return (np.rint(means) if dtype.kind in "iub" else means).astype(dtype), held_hw


def _weights(begin: int, end: int, step: float, length: int) -> tuple[int, csr_array]:
    """Return the first pixel of a level, and (pixels of the grid, pixels of the level from it) shares of each mean."""
    starts, stops = np.arange(begin, end) * step, np.arange(begin + 1, end + 1) * step
    first = min(int(starts[0]), length - 1)
    # By rounding alone a sum of steps must not reach into one more pixel.
    last = max(min(math.ceil(stops[-1] - 1e-9), length), first + 1)
    rows, columns, shares = [], [], []
    for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        pixels = np.arange(min(int(start), length - 1), max(min(math.ceil(stop - 1e-9), length), 1))
        pixels = pixels if len(pixels) else np.array([length - 1])
        cover = np.clip(np.minimum(pixels + 1, stop) - np.maximum(pixels, start), 0, None)
        # Where a pixel lies beyond the end of the level, its last one stands for it.
        cover = cover if cover.sum() > 1e-9 else np.ones(len(pixels))
        rows.append(np.full(len(pixels), row))
        columns.append(pixels - first)
        shares.append(cover / cover.sum())
    shape = (end - begin, last - first)
    table = (np.concatenate(shares), (np.concatenate(rows), np.concatenate(columns)))
    return first, csr_array(table, shape=shape)


def _summed(values_hw: np.ndarray, across: csr_array, down: csr_array) -> np.ndarray:
    summed: np.ndarray = (across @ (down @ values_hw).T).T
    return summed
