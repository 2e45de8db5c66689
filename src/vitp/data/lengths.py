"""Token and tile counts of a record, found without decoding its images; and even shares of a batch."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from vitp.data.chat import ChatTokenizer
from vitp.data.mixture import Sample
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
            max_tiles: Most tiles of an image of its set; None: the run's.
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

    def _tiles_per_image(self, record: InstructionRecord, max_tiles: int | None) -> list[int]:
        budget = max(1, (max_tiles or self.max_tiles) // max(1, len(record.images)))
        sizes = record.sizes or [image_size(path) for path in record.images]
        return [count_tiles(width, height, self.tile, budget) for width, height in sizes]


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
        costs: Costs of the items, 0 or more.
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
