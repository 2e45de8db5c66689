"""Token and tile counts of a record, found without decoding its images; and even shares of a batch."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitp.core.errors import VitpError
from vitp.core.files import atomic_path
from vitp.data.chat import ChatTokenizer
from vitp.data.mixture import Sample
from vitp.data.readers.index import cache_folder
from vitp.data.record_set import RecordSet
from vitp.data.tiling import count_tiles
from vitp.io.images import image_size
from vitp.records.instructions import InstructionRecord


@dataclass(frozen=True)
class RecordLength:
    """Counts by the tokenizer and the tiles of one model.

    Attributes:
        chat: Tokenizer with template.
        tile: Side of a tile in pixels.
        max_tiles: Tiles a record's images may have where their set says nothing, shared by several images as in
            training.
        max_turns: Questions of a record that are trained on; None: all.
    """

    chat: ChatTokenizer
    tile: int
    max_tiles: int
    max_turns: int | None = None

    def tiles(self, record: InstructionRecord, max_tiles: int | None = None) -> int:
        """Return the tiles of all images, thumbnails included.

        Args:
            record: The record.
            max_tiles: Of its set; None: the run's.
        """
        return sum(self._tiles_per_image(record, max_tiles))

    def tokens(self, record: InstructionRecord, max_tiles: int | None = None) -> int:
        """Return the tokens of the whole record before image tokens are dropped; see `tiles`."""
        return self.both(record, max_tiles)[0]

    def both(self, record: InstructionRecord, max_tiles: int | None = None) -> tuple[int, int]:
        """Return (tokens, tiles); image sizes are looked up once. See `tiles`."""
        tiles = self._tiles_per_image(record, max_tiles)
        if self.max_turns is not None:
            record = record.with_turns(record.turns[: self.max_turns])
        return len(self.chat.encode(record, tiles)), sum(tiles)

    def fingerprint(self) -> str:
        """Return a hash of all that decides the counts."""
        vocabulary = self.chat.tokenizer.get_vocab()
        parts = (
            *("plain text", self.chat.template_name, self.chat.tokens_per_tile),
            *(self.tile, self.max_tiles, self.max_turns),
        )
        return hashlib.sha256(f"{parts} {sorted(vocabulary.items())}".encode()).hexdigest()

    def _tiles_per_image(self, record: InstructionRecord, max_tiles: int | None) -> list[int]:
        budget = max(1, (max_tiles or self.max_tiles) // max(1, len(record.images)))
        sizes = record.sizes or [image_size(path) for path in record.images]
        return [count_tiles(width, height, self.tile, budget) for width, height in sizes]


def length_index(records: RecordSet, length: RecordLength) -> np.ndarray:
    """Return (N, 2) int32 of each record's tokens and tiles: counted once, then mapped from a cache.

    Counting takes as long as reading and tokenising all rows. A record costs 8 bytes.

    Raises:
        DataError: A row can't be used, or an image without given size can't be opened.
    """
    key = hashlib.sha256(f"{records.fingerprint()} {length.fingerprint()}".encode()).hexdigest()[:24]
    cache = cache_folder().parent / "lengths" / f"{key}.npy"
    found = _mapped(cache, len(records))
    if found is not None:
        return found
    counts = np.empty((len(records), 2), np.int32)
    for index in range(len(records)):
        counts[index] = length.both(records[index])
    # A cache that can't be written only costs the next start the time to count again.
    with contextlib.suppress(VitpError), atomic_path(cache) as temporary:
        np.save(temporary, counts)
    return counts


def _mapped(cache: Path, size: int) -> np.ndarray | None:
    try:
        found = np.load(cache, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == (size, 2) and found.dtype == np.int32 else None


@dataclass
class RecordCost:
    """What a sample costs to train on, in tokens of the language model.

    Attributes:
        length: Counts tokens and tiles.
        tile_cost: Tokens that cost as much as a tile in the vision tower.
        survivors: Share of the image tokens that VRL leaves.
    """

    length: RecordLength
    tile_cost: float
    survivors: float = 1.0

    def __call__(self, sample: Sample) -> float:
        """Return the cost of one sample.

        Raises:
            DataError: An image without given size can't be opened.
        """
        tokens, tiles = self.length.both(sample.record, sample.max_tiles)
        dropped = (1 - self.survivors) * tiles * self.length.chat.tokens_per_tile
        return tokens - dropped + tiles * self.tile_cost


def balanced(costs: Sequence[float], parts: int) -> list[list[int]]:
    """Return items dealt out to parts of nearly equal cost: a pure function, the same on every rank.

    The dearest item goes first, each to the part that is cheapest so far (Graham's rule: the dearest part is at
    most 4/3 of the best possible one). Items of equal cost go in their order, parts are ascending.

    Args:
        costs: Of the items, 0 or more.
        parts: Number of parts, at most the number of items: none stays empty.

    Raises:
        ValueError: There are more parts than items.
    """
    if not 0 < parts <= len(costs):
        raise ValueError(f"{len(costs)} items can't be dealt out to {parts} parts")
    shares: list[list[int]] = [[] for _ in range(parts)]
    # A part without an item comes before all others, even where items cost nothing.
    heap = [(False, 0.0, part) for part in range(parts)]
    for item in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        _, cost, part = heapq.heappop(heap)
        shares[part].append(item)
        heapq.heappush(heap, (True, cost + costs[item], part))
    return [sorted(share) for share in shares]
