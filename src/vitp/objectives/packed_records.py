"""From instruction records to one packed batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import Field

from vitp.core.config import SettingsModel
from vitp.core.errors import DataError
from vitp.data.asked_places import tokens_inside
from vitp.data.augment import jitter_tiles
from vitp.data.batches import Collate
from vitp.data.chat import ChatTokenizer, EncodedRecord
from vitp.data.fingerprint import labels_digest
from vitp.data.mixture import Mixture, Sample
from vitp.data.packing import PackedBatch, pack
from vitp.data.seen import PICTURES, SeenBands
from vitp.data.tiles import TileLoader
from vitp.data.tiling import cut_tiles
from vitp.data.tokenizer import vocabulary_digest
from vitp.models.compute import ComputeSettings
from vitp.models.vrl import VisualRobustness
from vitp.objectives.packed_layouts import with_layout
from vitp.records.instructions import InstructionRecord

_PARALLEL = 0x504152
"""Keeps the choice of parallel answers apart from other uses of a position."""

_JITTER = 0x415547
"""Keeps the random numbers of colour changes apart from those of other uses of a position."""

DropTokens = Callable[[int, Sequence[int], int], np.ndarray]
"""(image tokens, key of the sample, step) → surviving token indices; see `vitp.models.vrl`."""

LoadTiles = Callable[[str, int], np.ndarray]
"""(address of an image, most tiles) → (tiles, C, tile, tile) uint8; see `vitp.data.tiles`."""


class SequenceSettings(SettingsModel):
    """How a record becomes tokens."""

    max_length: int = Field(4096, ge=16, le=4_194_304)
    """Most tokens of a row, after image tokens are dropped."""
    max_tiles: int = Field(6, ge=1, le=1024)
    """Most tiles of an image, where the mixture file says nothing."""
    pack: bool = True
    """Put several records into a row; false: one record a row."""
    max_turns: int | None = Field(None, ge=1, le=1_000_000)
    """Most questions of a record; the rest is left out."""
    parallel: float = Field(0.0, ge=0, le=1)
    """Share of the questions whose answer's tokens are predicted without those before them (masked-parallel answers,
    CapPa): only the image can tell them. Not used when a model answers."""

    def stated(self) -> dict[str, Any]:
        """Return the settings without those that came later and are neutral: older runs, which lack them, go on."""
        values = self.model_dump()
        return {key: value for key, value in values.items() if key != "parallel" or value}


@dataclass
class PackedRecords(Collate[InstructionRecord, PackedBatch]):
    """Loads images, tiles, encodes, drops and packs.

    Attributes:
        chat: Tokenizer with template.
        tile: Side of a tile in pixels.
        config: Lengths and limits.
        drop: Chooses the surviving image tokens; None keeps all.
        load_tiles: Reads and tiles an image; None: plainly, with nothing kept in between.
        seen: How images are read.
        compute: What of the model's settings decides the layout of a batch, none of which changes a result.
        places: Say which image tokens lie in the places that questions ask about.
    """

    chat: ChatTokenizer
    tile: int
    config: SequenceSettings
    drop: DropTokens | None = None
    load_tiles: LoadTiles | None = None
    seen: SeenBands = PICTURES
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    places: bool = False

    def encode(self, sample: Sample[InstructionRecord]) -> tuple[EncodedRecord, np.ndarray]:
        """Return the record's tokens and tiles.

        Raises:
            DataError: An image can't be read, or marks and images differ.
        """
        record = sample.record
        if self.config.max_turns is not None and len(record.turns) > self.config.max_turns:
            record = record.with_turns(record.turns[: self.config.max_turns])
        budget = sample.max_tiles or self.config.max_tiles
        if len(record.images) > 1:
            # The tiles that a record may have are shared out among its images.
            budget = max(1, budget // len(record.images))
        seen = self.seen.at(sample.seed, sample.position)
        tiles = [self._tiles(path, budget, record, seen) for path in record.images]
        encoded = self.chat.encode(record, [len(t) for t in tiles])
        if self.places and len(tiles) == 1:
            # Of several images a question doesn't say which one it means.
            asked = [turn.question for turn in record.turns]
            inside_QI = tokens_inside(asked, len(tiles[0]), self.chat.tokens_per_tile)
            encoded = replace(encoded, inside_QI=inside_QI)
        if not tiles:
            channels = 3 if self.seen.channels is None else len(self.seen.channels)
            return encoded, np.empty((0, channels, self.tile, self.tile), dtype=np.uint8)
        return encoded, np.concatenate(tiles)

    def __call__(self, samples: Sequence[Sample[InstructionRecord]], step: int = 0) -> PackedBatch:
        """Return the packed batch of some samples; their positions seed what is random about them."""
        encoded, tiles, kept = [], [], []
        for sample in samples:
            record, record_tiles = self.encode(sample)
            if sample.augment:
                rng = np.random.default_rng([sample.seed, _JITTER, sample.position])
                record_tiles = jitter_tiles(record_tiles, rng, rgb=self.seen.is_rgb)
            if (dropped_C := self.seen.dropped(sample.seed, sample.position)) is not None:
                record_tiles = np.where(dropped_C[:, None, None], np.uint8(0), record_tiles)
            if self.config.parallel > 0:
                rng = np.random.default_rng([sample.seed, _PARALLEL, sample.position])
                record = record.in_parallel(self.config.parallel, rng)
            count = int(record.image_N.sum())
            survivors = np.arange(count) if self.drop is None else self.drop(count, (sample.position,), step)
            encoded.append(record)
            tiles.append(record_tiles)
            kept.append(survivors)
        packed = pack(
            encoded,
            tiles,
            kept,
            tokens_per_tile=self.chat.tokens_per_tile,
            max_length=self.config.max_length,
            pad_id=self.chat.pad_id,
            together=self.config.pack,
        )
        return with_layout(
            packed, static=self.compute.static_rows, token_multiple=self.compute.token_multiple
        )

    def facts(self, order: Mixture, global_batch: int) -> list[Any]:
        """Return order, template and lengths; see `Collate.facts`."""
        chat = self.chat
        return [
            *(order.fingerprint(), global_batch, self.tile),
            *(chat.template_name, len(chat), self.config.stated()),
        ]

    def contents(self, order: Mixture) -> list[Any]:
        """Return the tokenizer, what is dropped, how images are read, and the labels that records are made of."""
        drop, load = self.drop, self.load_tiles
        made = [getattr(entry.records, "labelled", None) for entry in order.entries]
        return [
            vocabulary_digest(self.chat.tokenizer),
            # Left out where it is neutral: runs of before it was there go on.
            [drop.config.model_dump(exclude={"how"} if drop.config.how == "drop" else None), drop.seed]
            if isinstance(drop, VisualRobustness)
            else drop is not None,
            isinstance(load, TileLoader) and load.draft,
            [labels_digest(labelled) for labelled in made if labelled is not None],
            *self.seen.facts(),
            *(["places"] if self.places else []),
            # Earlier versions changed colours alike for all seeds.
            *(["colours by seed"] if any(entry.augment for entry in order.entries) else []),
        ]

    def _tiles(self, path: str, budget: int, record: InstructionRecord, seen: SeenBands) -> np.ndarray:
        load = self.load_tiles
        if seen is not self.seen and isinstance(load, TileLoader):
            load = replace(load, seen=seen, cache=None)  # no two places see the same, so nothing is kept
        try:
            if load is not None:
                return load(path, budget)
            return cut_tiles(seen.load(path), self.tile, budget)
        except DataError as error:
            raise DataError(error.what, where=f"{record.name}: {error.where}", fix=error.fix) from error
