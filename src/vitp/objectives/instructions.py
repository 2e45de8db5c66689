"""Instruction records on their way to the language model: the mixture of a run, and packed batches of its records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitp.core.errors import ConfigError, DataError
from vitp.data.augment import jitter_tiles
from vitp.data.batches import Collate
from vitp.data.chat import ChatTokenizer, EncodedRecord
from vitp.data.fingerprint import labels_digest
from vitp.data.mixture import Mixture, MixtureEntry, Sample
from vitp.data.packing import PackedBatch, pack
from vitp.data.readers.jsonl import JsonlRecords
from vitp.data.readers.mixture_file import read_mixture
from vitp.data.tiles import TileLoader
from vitp.data.tiling import cut_tiles
from vitp.data.tokenizer import vocabulary_digest
from vitp.io.images import load_image
from vitp.models.vrl import VisualRobustness
from vitp.objectives.settings import (
    DataSettings,
    SequenceConfig,
)
from vitp.records.instructions import InstructionRecord

_JITTER = 0x415547
"""Keeps the random numbers of colour changes apart from those of other uses of a position."""


def open_mixture(data: DataSettings, seed: int) -> Mixture:
    """Return the mixture of all files that the settings name.

    Raises:
        DataError, ConfigError: A file is missing, empty or wrong.
    """
    if data.rates is not None and len(data.rates) != len(data.mixture):
        raise ConfigError(
            f"{len(data.rates)} rates for {len(data.mixture)} mixtures",
            where="data.rates",
            fix="give one each",
        )
    entries: list[MixtureEntry] = []
    for number, name in enumerate(data.mixture):
        factor = data.rates[number] if data.rates else 1.0
        entries += [
            MixtureEntry(entry.records, entry.rate * factor, max_tiles=entry.max_tiles, augment=entry.augment)
            for entry in open_entries(Path(name))
        ]
    return Mixture(entries, seed)


def open_entries(path: Path) -> list[MixtureEntry]:
    """Return the sets of one of the files or folders that a run learns from.

    Raises:
        DataError, ConfigError: It is missing, empty or wrong.
    """
    if path.is_dir():
        path = path / "mixture.json"
        if not path.is_file():
            raise ConfigError(
                "holds no mixture.json", where=str(path.parent), fix="make it with `vitp data compile`"
            )
    if not path.is_file():
        raise ConfigError("no such file", where=str(path), fix="check data.mixture")
    if path.suffix == ".jsonl":
        return [MixtureEntry(JsonlRecords(path, path.parent, path.stem))]
    return list(read_mixture(path))


def describe_sets(mixture: Mixture) -> list[dict[str, Any]]:
    """Return what the card of an export says about the data: name, size, sampling rate and licence of each set."""
    return [
        {
            "name": entry.records.name,
            "records": len(entry.records),
            "rate": entry.rate,
            "licence": entry.records[0].licence,
        }
        for entry in mixture.entries
    ]


def corpus_of(mixture: Mixture, limit: int = 20_000) -> list[str]:
    """Return the texts of the first records of the mixture's order, for training a tokenizer."""
    texts: list[str] = []
    for position in range(min(limit, len(mixture))):
        for turn in mixture[position].record.turns:
            texts += [turn.question, turn.answer]
    return texts


DropTokens = Callable[[int, Sequence[int], int], np.ndarray]
"""(image tokens, key of the sample, step) → surviving token indices; see `vitp.models.vrl`."""


LoadTiles = Callable[[str, int], np.ndarray]
"""(address of an image, most tiles) → (tiles, 3, tile, tile) uint8; see `vitp.data.tiles`."""


@dataclass
class PackedRecords(Collate[InstructionRecord, PackedBatch]):
    """Loads images, tiles, encodes, drops and packs.

    Attributes:
        chat: Tokenizer with template.
        tile: Side of a tile in pixels.
        config: Lengths and limits.
        drop: Chooses the surviving image tokens; None keeps all.
        load_tiles: Reads and tiles an image; None: plainly, with nothing kept in between.
    """

    chat: ChatTokenizer
    tile: int
    config: SequenceConfig
    drop: DropTokens | None = None
    load_tiles: LoadTiles | None = None

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
            budget = max(1, budget // len(record.images))
        tiles = [self._tiles(path, budget, record) for path in record.images]
        encoded = self.chat.encode(record, [len(t) for t in tiles])
        if not tiles:
            return encoded, np.empty((0, 3, self.tile, self.tile), dtype=np.uint8)
        return encoded, np.concatenate(tiles)

    def __call__(self, samples: Sequence[Sample[InstructionRecord]], step: int = 0) -> PackedBatch:
        """Return the packed batch of some samples; their positions seed what is random about them."""
        encoded, tiles, kept = [], [], []
        for sample in samples:
            record, record_tiles = self.encode(sample)
            if sample.augment:
                record_tiles = jitter_tiles(record_tiles, np.random.default_rng([sample.position, _JITTER]))
            count = int(record.image_N.sum())
            survivors = np.arange(count) if self.drop is None else self.drop(count, (sample.position,), step)
            encoded.append(record)
            tiles.append(record_tiles)
            kept.append(survivors)
        return pack(
            encoded,
            tiles,
            kept,
            tokens_per_tile=self.chat.tokens_per_tile,
            max_length=self.config.max_length,
            pad_id=self.chat.pad_id,
            together=self.config.pack,
        )

    def facts(self, order: Mixture, global_batch: int) -> list[Any]:
        """Return order, template and lengths; see `Collate.facts`."""
        chat = self.chat
        return [
            *(order.fingerprint(), global_batch, self.tile),
            *(chat.template_name, len(chat), self.config.model_dump()),
        ]

    def contents(self, order: Mixture) -> list[Any]:
        """Return the tokenizer, what is dropped, how images are read, and the labels that records are made of."""
        drop, load = self.drop, self.load_tiles
        made = [getattr(entry.records, "labelled", None) for entry in order.entries]
        return [
            vocabulary_digest(self.chat.tokenizer),
            [drop.config.model_dump(), drop.seed] if isinstance(drop, VisualRobustness) else drop is not None,
            isinstance(load, TileLoader) and load.draft,
            [labels_digest(labelled) for labelled in made if labelled is not None],
        ]

    def _tiles(self, path: str, budget: int, record: InstructionRecord) -> np.ndarray:
        try:
            if self.load_tiles is not None:
                return self.load_tiles(path, budget)
            return cut_tiles(load_image(path), self.tile, budget)
        except DataError as error:
            raise DataError(error.what, where=f"{record.name}: {error.where}", fix=error.fix) from error
