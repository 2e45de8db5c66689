"""How many tokens and tiles a record takes, without decoding its images."""

from __future__ import annotations

from dataclasses import dataclass

from vitp.data.chat import ChatTokenizer
from vitp.data.images import image_size
from vitp.data.records import InstructionRecord
from vitp.data.tiling import count_tiles


@dataclass(frozen=True)
class RecordLength:
    """Counts by the tokenizer and the tiles of one model.

    Attributes:
        chat: Tokenizer with template.
        tile: Side of a tile in pixels.
        max_tiles: Tiles a record's images may have, shared by several images as in training.
    """

    chat: ChatTokenizer
    tile: int
    max_tiles: int

    def tiles(self, record: InstructionRecord) -> int:
        """Return the tiles of all images, thumbnails included."""
        return sum(self._tiles_per_image(record))

    def tokens(self, record: InstructionRecord) -> int:
        """Return the tokens of the whole record before image tokens are dropped."""
        return len(self.chat.encode(record, self._tiles_per_image(record)))

    def _tiles_per_image(self, record: InstructionRecord) -> list[int]:
        budget = max(1, self.max_tiles // max(1, len(record.images)))
        sizes = record.sizes or [image_size(path) for path in record.images]
        return [count_tiles(width, height, self.tile, budget) for width, height in sizes]
