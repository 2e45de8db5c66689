"""`LabelledRecords`: a labelled set as a sequence of instruction records, made when they are asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import overload

from vitp.core.errors import DataError
from vitp.data.synthesis.build import SynthesisConfig, synthesize_with_tasks
from vitp.data.synthesis.classes import SetClasses
from vitp.data.synthesis.volume_facts import VolumeIndex
from vitp.records.instructions import InstructionRecord, to_line
from vitp.records.labels import LabelledSet

_ATTEMPTS = 16
"""Seeds that are tried before an image counts as having nothing to ask about."""


class LabelledRecords(Sequence[InstructionRecord]):
    """Records of a labelled set, computed on access: generated scenes stream into training without files.

    Args:
        labelled: The set; every item must have something to ask about.
        seed: Seed of the questions.
        config: What to ask.
        epoch: Another epoch asks other questions about the same images.
        classes: Classes of the set, with statistics; taken from the set when missing. Give those of the training
            split to a validation split, so that both are balanced alike.
    """

    def __init__(
        self,
        labelled: LabelledSet,
        *,
        seed: int,
        config: SynthesisConfig | None = None,
        epoch: int = 0,
        classes: SetClasses | None = None,
    ) -> None:
        self.labelled, self.seed, self.epoch = labelled, seed, epoch
        self.config = config or SynthesisConfig()
        self.classes = classes or SetClasses.from_set(labelled)
        items = labelled.items
        self._volumes = VolumeIndex(items, labelled.channels) if isinstance(items, list | tuple) else None

    @property
    def name(self) -> str:
        """Name of the set."""
        return self.labelled.name

    def fingerprint(self) -> str:
        """Return a hash of all that decides the rows: the set's names and size, the options, some of the rows."""
        count = len(self)
        probe = [to_line(self[i]) for i in range(0, count, max(1, count // 4))][:4] if count else []
        facts = [self.name, count, self.seed, self.epoch, self.config.stated(), probe]
        return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.labelled.items)

    def with_tasks(self, index: int) -> tuple[InstructionRecord, tuple[str, ...]]:
        """Return a record and the task of each of its turns.

        Raises:
            DataError: Nothing is known of the image that the tasks could ask.
        """
        item = self.labelled.items[index]
        # With few tasks a balanced choice can come out empty for an image that has something to ask.
        for attempt in range(_ATTEMPTS):
            made = synthesize_with_tasks(
                item,
                self.classes,
                seed=self.seed + (attempt << 32),
                config=self.config,
                epoch=self.epoch,
                volumes=self._volumes,
            )
            if made is not None:
                return made
        raise DataError(
            "there is nothing to ask about this image",
            where=f"{self.name}, {item.id}",
            fix="leave it out, label it, or switch on more tasks",
        )

    @overload
    def __getitem__(self, index: int) -> InstructionRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[InstructionRecord]: ...

    def __getitem__(self, index: int | slice) -> InstructionRecord | list[InstructionRecord]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self.with_tasks(index % len(self))[0]

    def __iter__(self) -> Iterator[InstructionRecord]:
        return (self[i] for i in range(len(self)))
