"""The mixture: which record or image comes at which place of the run.

Order is a pure function of (seed, position). Workers and ranks only decide who computes a position, so neither
their number nor a restart can change the data.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, Generic, NamedTuple

from typing_extensions import TypeVar

from vitp.core.errors import DataError
from vitp.data.fingerprint import contents_digest
from vitp.data.permutation import Permutation
from vitp.data.record_set import SampleSet
from vitp.records.channels import Channels
from vitp.records.instructions import InstructionRecord

Item = TypeVar("Item", default=InstructionRecord)
"""What is sampled: an instruction record, or an image with its labels."""

LARGEST_RATE = 10_000.0
"""Times that an epoch may take each record; the paper's largest is 10."""


@dataclass(frozen=True)
class MixtureEntry(Generic[Item]):
    """One set of a mixture.

    Attributes:
        records: The set.
        rate: How often an epoch takes each record on average: 0.1 a tenth of the set, 5 each one five times.
        max_tiles: Most tiles an image is cut into; None leaves it to the run.
        augment: Whether images may be augmented.
        channels: What is seen of the bands of its files; None: they are pictures.
    """

    records: SampleSet[Item]
    rate: float = 1.0
    max_tiles: int | None = None
    augment: bool = False
    channels: Channels | None = None

    def __post_init__(self) -> None:
        where = self.records.name
        if not len(self.records):
            file = getattr(self.records, "annotation", where)  # sets in memory have none
            raise DataError("the set is empty", where=str(file), fix="remove it from the mixture or fill it")
        if not 0 < self.rate <= LARGEST_RATE:  # NaN is neither
            raise DataError(
                f"its rate is {self.rate}",
                where=where,
                fix=f"use a rate above 0 and up to {LARGEST_RATE:,g}, or leave the set out",
            )
        if self.max_tiles is not None and self.max_tiles < 1:
            raise DataError(f"its largest tile count is {self.max_tiles}", where=where, fix="use 1 or more")
        if not self.per_epoch:
            raise DataError(
                f"a rate of {self.rate:g} takes none of its {len(self.records)} records",
                where=where,
                fix=f"use {1 / len(self.records):.2g} or more, or leave the set out",
            )

    @property
    def per_epoch(self) -> int:
        """Samples that an epoch takes of the set: rate × length, rounded half up."""
        return math.floor(self.rate * len(self.records) + 0.5)


class Location(NamedTuple):
    """What stands at a position: which set, which of its records, in which epoch."""

    entry: int
    record: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Sample(Generic[Item]):
    """A record or an image at its place in the run.

    Attributes:
        record: The record, or the image with its labels.
        max_tiles: Most tiles an image of it is cut into; None leaves it to the run.
        augment: Whether its images may be augmented.
        entry: Index of its set in the mixture.
        position: Its place in the run. What is random about the sample is a function of the seed and of it.
        seed: Seed of the run.
        partners: Other records that it may be mixed with.
    """

    record: Item
    max_tiles: int | None
    augment: bool
    entry: int
    position: int
    seed: int = 0
    partners: tuple[Item, ...] = ()


class Mixture(Generic[Item]):
    """An endless, seeded, random-access sequence of samples.

    An epoch takes `entry.per_epoch` samples of each set, shuffled together. Over the epochs each set is gone
    through pass after pass, every pass in a new order and every record once a pass: at a rate of 0.1 ten
    epochs show the whole set, at a rate of 2.5 an epoch shows each record two or three times. An epoch that
    ends one pass and begins the next may hold a record of both.

    `mixture[position]` takes any position from 0 on; `len(mixture)` is the length of an epoch.

    Args:
        entries: The sets.
        seed: Seed of the order.

    Raises:
        DataError: There is no set, or two have the same name.
    """

    def __init__(self, entries: Sequence[MixtureEntry[Item]], seed: int = 0) -> None:
        if not entries:
            raise DataError("the mixture has no sets", fix="name at least one")
        names = [entry.records.name for entry in entries]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise DataError(f'two sets are called "{twice}"', where="mixture", fix="rename one")
        self.entries = tuple(entries)
        self.seed = seed
        self._ends = list(accumulate(entry.per_epoch for entry in self.entries))

    def __len__(self) -> int:
        return self._ends[-1]

    def locate(self, position: int) -> Location:
        """Return what stands at a position of the run: a pure function of the seed and the position."""
        if position < 0:
            raise IndexError(f"position {position} is before the run's first")
        epoch, place = divmod(position, len(self))
        slot = _permutation(len(self), self.seed, "epoch", epoch)[place]
        number = bisect_right(self._ends, slot)
        entry = self.entries[number]
        within = slot - (self._ends[number] - entry.per_epoch)
        size = len(entry.records)
        # What earlier epochs took of the set, and this one so far: whole passes, and a place in the one that runs.
        turn, place_in_turn = divmod(epoch * entry.per_epoch + within, size)
        record = _permutation(size, self.seed, entry.records.name, turn)[place_in_turn]
        return Location(number, record, epoch)

    def __getitem__(self, position: int) -> Sample[Item]:
        location = self.locate(position)
        entry = self.entries[location.entry]
        record = entry.records[location.record]
        return Sample(record, entry.max_tiles, entry.augment, location.entry, position, self.seed)

    def fingerprint(self) -> str:
        """Return a hash of all that decides the samples: sets, rates, tile limits, augmentation, seed."""
        parts = [
            [e.records.name, e.records.fingerprint(), e.rate, e.max_tiles, e.augment] for e in self.entries
        ]
        return hashlib.sha256(json.dumps([self.seed, parts]).encode()).hexdigest()

    def contents(self, *, former: bool = False) -> list[str]:
        """Return a hash for each set of what its images and labels are, their files included; see `labels_digest`."""
        return [contents_digest(entry.records, former=former) for entry in self.entries]

    def describe(self) -> list[dict[str, Any]]:
        """Return name, size, rate and licence of each set, as a run's `mixture.json` has them."""
        return [
            {
                "name": entry.records.name,
                "records": len(entry.records),
                "rate": entry.rate,
                # Images have theirs from their set, each record has its own.
                "licence": getattr(entry.records, "licence", None)
                or getattr(entry.records[0], "licence", ""),
            }
            for entry in self.entries
        ]


@lru_cache(maxsize=256)
def _permutation(size: int, seed: int, name: str, turn: int) -> Permutation:
    return Permutation(size, seed, name, turn)
