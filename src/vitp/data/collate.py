"""From samples of the mixture to one packed batch; and the batches of a whole run as a pure function."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance
from pydantic import Field

from vitp.core.config import SettingsModel
from vitp.core.errors import ConfigError, DataError
from vitp.data.chat import ChatTokenizer, EncodedRecord
from vitp.data.fingerprint import fingerprint, images_digest
from vitp.data.mixture import Mixture, Sample
from vitp.data.packing import PackedBatch, pack
from vitp.data.tiling import cut_tiles
from vitp.io.images import load_image
from vitp.records.instructions import InstructionRecord

DropTokens = Callable[[int, Sequence[int], int], np.ndarray]
"""(image tokens, key of the sample, step) → surviving token indices; see `vitp.models.vrl`."""

LoadTiles = Callable[[str, int], np.ndarray]
"""(address of an image, most tiles) → (tiles, 3, tile, tile) uint8; see `vitp.data.tiles`."""


class SequenceConfig(SettingsModel):
    """How a record becomes tokens."""

    max_length: int = Field(default=4096, ge=16, le=4_194_304, description="Tokens a row, after dropping.")
    max_tiles: int = Field(
        default=6, ge=1, le=1024, description="Tiles an image where the mixture says nothing."
    )
    pack: bool = Field(default=True, description="False: one record a row.")
    max_turns: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Questions a record; the rest is left out."
    )


@dataclass
class Collator:
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

    def encode(self, sample: Sample) -> tuple[EncodedRecord, np.ndarray]:
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

    def __call__(self, samples: Sequence[Sample], keys: Sequence[int], step: int = 0) -> PackedBatch:
        """Return the packed batch of some samples.

        Args:
            samples: From the mixture.
            keys: Position of each in the order of samples; seeds what is random about it.
            step: Optimizer step, for schedules of the dropping.
        """
        encoded, tiles, kept = [], [], []
        for sample, key in zip(samples, keys, strict=True):
            record, record_tiles = self.encode(sample)
            if sample.augment:
                record_tiles = jitter(record_tiles, np.random.default_rng([key, 0x415547]))
            count = int(record.image_N.sum())
            survivors = np.arange(count) if self.drop is None else self.drop(count, (key,), step)
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

    def _tiles(self, path: str, budget: int, record: InstructionRecord) -> np.ndarray:
        try:
            if self.load_tiles is not None:
                return self.load_tiles(path, budget)
            return cut_tiles(load_image(path), self.tile, budget)
        except DataError as error:
            raise DataError(error.what, where=f"{record.name}: {error.where}", fix=error.fix) from error


def jitter(tiles_TCHW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return tiles with brightness, contrast and colour changed by up to 25 %; the geometry stays.

    All tiles of a record change alike. Positions in the answers stay true, and so do colour names as long as
    the change is small.
    """
    factors = rng.uniform(0.75, 1.25, size=3)
    changed = np.empty_like(tiles_TCHW)
    for number, tile_CHW in enumerate(tiles_TCHW):
        image = Image.fromarray(tile_CHW.transpose(1, 2, 0))
        for enhance, factor in zip(
            (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True
        ):
            image = enhance(image).enhance(float(factor))
        changed[number] = np.asarray(image).transpose(2, 0, 1)
    return changed


@dataclass
class InstructionSource:
    """The batches of a run: step, micro-batch and rank → packed batch, with no state at all.

    Step s takes positions s · G … (s + 1) · G of the mixture's order; the micro-batches of the ranks are
    slices of it, so neither workers nor ranks nor a resume change what is learned from.

    Attributes:
        mixture: Samples by position.
        collator: Samples → batch.
        global_batch: Samples a step, over all ranks and micro-batches.
        micro_batches: Of each rank.
        cost: What computing a sample costs; with it the samples of a step are shared out so that all ranks and
            micro-batches have about the same to do (`vitp.data.lengths.balanced`). None: by position. The samples of a
            step are the same either way.
    """

    mixture: Mixture
    collator: Collator
    global_batch: int
    micro_batches: int = 1
    cost: Callable[[Sample], float] | None = None

    def __call__(self, step: int, micro: int, rank: int, world: int) -> PackedBatch:
        """Return the `micro`-th batch of a step for a rank."""
        parts = self.micro_batches * world
        if self.global_batch % parts:
            raise ConfigError(
                f"a global batch of {self.global_batch} can't be cut into {self.micro_batches} micro-batches "
                f"on {world} ranks",
                where="data.global_batch",
                fix=f"choose a multiple of {parts}",
            )
        first = step * self.global_batch
        mine = self._share(first, parts, micro * world + rank)
        return self.collator([self.mixture[p] for p in mine], mine, step)

    def _share(self, first: int, parts: int, part: int) -> list[int]:
        """Return the positions of one part of the step that begins at position `first`."""
        if self.cost is None:
            size = self.global_batch // parts
            return list(range(first + part * size, first + (part + 1) * size))
        from vitp.data.lengths import balanced

        costs = [self.cost(self.mixture[p]) for p in range(first, first + self.global_batch)]
        return [first + number for number in balanced(costs, parts)[part]]

    def fingerprint(self) -> str:
        """Return a hash of records and image files, order, template and lengths; see `vitp.data.fingerprint`."""
        contents = [images_digest(entry.records) for entry in self.mixture.entries]
        return fingerprint(self.former_fingerprint(), contents)

    def former_fingerprint(self) -> str:
        """Return the hash without that of the image files."""
        value = [
            self.mixture.fingerprint(),
            self.global_batch,
            self.collator.tile,
            self.collator.chat.template_name,
            len(self.collator.chat),
            self.collator.config.model_dump(),
        ]
        return hashlib.sha256(json.dumps(value).encode()).hexdigest()
