"""`SampleSet`: a named, indexable collection that a mixture samples from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

from vitp.records.instructions import InstructionRecord, to_line

_Item = TypeVar("_Item", covariant=True)


@runtime_checkable
class SampleSet(Protocol[_Item]):
    """What a mixture samples from: any object with a name, a length and random access.

    It must be picklable, because data workers get a copy of it.
    """

    @property
    def name(self) -> str:
        """Name of the set in tables and messages."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> _Item: ...

    def fingerprint(self) -> str:
        """Return a hash of the set's rows: equal for equal rows, wherever they are stored."""
        ...


class ListRecords:
    """Records held in memory: for tests, examples and generated sets that are small.

    Args:
        records: The records, in order.
        name: Name of the set.
    """

    def __init__(self, records: Sequence[InstructionRecord], name: str) -> None:
        self.name = name
        self._records = tuple(records)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> InstructionRecord:
        return self._records[index]

    def fingerprint(self) -> str:
        """Return the SHA-256 of the records' canonical lines."""
        digest = hashlib.sha256()
        for record in self._records:
            digest.update(to_line(record).encode() + b"\n")
        return digest.hexdigest()
