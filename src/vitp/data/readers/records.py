"""Record sets of annotation files: rows of JSON Lines or of a JSON list, read one by one at their byte offsets."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

from vitp.core.errors import DataError
from vitp.core.reading import parse_json
from vitp.data.readers.index import CACHE_ABOVE, LARGEST_ROW, RowIndex, array_index, line_index
from vitp.data.readers.rows import RowPlace, record_from_row
from vitp.io.storage import LocalBytes, RemoteBytes, is_remote, open_bytes, readable
from vitp.records.instructions import InstructionRecord


class RowRecords(ABC):
    """A record set whose records are rows of JSON; only the rows that are asked for are read.

    Safe to pickle, to fork and to share between threads: rows are read by position (`pread`), no state moves.

    Args:
        files: Files that hold the rows, in this order.
        name: Name of the set.
        root: Folder or URL that relative image paths start from; None leaves them as they are.
        cache_above: Files of at least this many bytes get their index cached.

    Attributes:
        name: Name of the set.
        root: Folder or URL that relative image paths start from; None leaves them as they are.
        annotation: The file, or the first of them.

    Raises:
        DataError: A file is missing or can't be read.
    """

    _indexer: ClassVar[Callable[..., RowIndex]]
    """Finds the rows of a file."""

    def __init__(
        self, files: Sequence[str | Path], name: str, root: str | Path | None, cache_above: int
    ) -> None:
        self.name, self.root, self.annotation = name, root, Path(files[0])
        self._files, self._cache_above = [str(file) for file in files], cache_above
        self._indices: dict[int, RowIndex] = {}
        self._digests: list[str] = []
        counts = []
        for number, file in enumerate(self._files):
            index = self._indexer(Path(file), cache_above=cache_above)
            self._digests.append(index.digest)
            counts.append(len(index.rows))
            # Thousands of mapped files would be too many; the others are mapped when a row of theirs is wanted.
            if index.cache is None or len(self._indices) < 64:
                self._indices[number] = index
        self._ends = list(accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __repr__(self) -> str:
        files = "1 file" if len(self._files) == 1 else f"{len(self._files)} files"
        return f"{type(self).__name__}({str(self.annotation)!r}, {files}, {len(self):,} rows)"

    def __iter__(self) -> Iterator[InstructionRecord]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> InstructionRecord:
        return record_from_row(self.row(index), place=self.place(index), root=self.root, source=self.name)

    @abstractmethod
    def row(self, index: int) -> Any:
        """Return the parsed JSON of a row.

        Raises:
            DataError: The row is not JSON; the message names its place.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash of the set's rows."""

    def place(self, index: int) -> RowPlace:
        """Return where a row stands: file, and line or number in it."""
        number, _, _, line = self._row_place(index)
        return RowPlace(self._files[number], line)

    def _row_place(self, index: int) -> tuple[int, int, int, int]:
        """Return number of the file, byte offset, length and line of a row."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)} in {self.annotation}")
        index %= len(self)
        number = bisect_right(self._ends, index)
        if number not in self._indices:  # of many files, or after unpickling in a worker
            found = self._indexer(Path(self._files[number]), cache_above=self._cache_above)
            if found.digest != self._digests[number]:
                raise self._changed(number)
            self._indices[number] = found
        first = self._ends[number - 1] if number else 0
        offset, length, line = self._indices[number].rows[index - first].tolist()
        return number, offset, length, line

    def _source(self, number: int) -> LocalBytes | RemoteBytes:
        """Return an open file of the version that was indexed."""
        file, index = self._files[number], self._indices[number]
        with readable(file):
            source = open_bytes(file)
            if (source.size, source.version) != (index.size, index.mtime_ns):
                open_bytes.cache_clear()  # this process may have opened the file that stood there before
                source = open_bytes(file)
        if (source.size, source.version) != (index.size, index.mtime_ns):
            raise self._changed(number)
        return source

    def _changed(self, number: int) -> DataError:
        return DataError(
            "has changed while it was in use", where=self._files[number], fix="start again with the new file"
        )

    def __getstate__(self) -> dict[str, Any]:
        # The other process maps the cached ones; numpy would copy them into the pickle.
        held = {number: index for number, index in self._indices.items() if index.cache is None}
        return dict(self.__dict__, _indices=held)


class JsonlRecords(RowRecords):
    """Records of a JSON Lines file: InternVL, LLaVA, ShareGPT or chat-message rows, one a line.

    See `vitp.data.readers.rows` for the forms.

    Args:
        annotation: The file.
        root: Folder or URL that relative image paths start from; the annotation's folder by default.
        name: Name of the set; the file's stem by default.
        cache_above: Files of at least this many bytes get their index cached.

    Raises:
        DataError: The file is missing or can't be read.
    """

    _indexer = staticmethod(line_index)

    def __init__(
        self,
        annotation: str | Path,
        root: str | Path | None = None,
        name: str | None = None,
        *,
        cache_above: int = CACHE_ABOVE,
    ) -> None:
        file = Path(annotation)
        if root is None:
            root = file.parent
        elif not is_remote(root):
            root = Path(root)
        super().__init__([file], name or file.stem, root, cache_above)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the annotation file."""
        return self._digests[0]

    def row(self, index: int) -> Any:
        """Return the parsed JSON of a row.

        Raises:
            DataError: The row is not JSON; the message names line and column.
        """
        _, offset, length, line = self._row_place(index)
        if length > LARGEST_ROW:
            raise DataError(
                f"has {length:,} bytes, which no row needs",
                where=f"{self.annotation}:{line}",
                fix="is the file JSON Lines, or a JSON list of rows?",
            )
        source = self._source(0)
        data = source.read(offset, length)
        try:
            # Only the first row can begin with a byte order mark.
            return parse_json(data.decode("utf-8-sig" if offset == 0 else "utf-8"))
        except json.JSONDecodeError as error:
            column = error.colno
            if error.lineno == 1:  # a list may hold many rows on one line
                begin = max(0, offset - 4096)
                before = source.read(begin, offset - begin).rpartition(b"\n")[2]
                column += len(before.decode("utf-8", errors="replace"))
            raise DataError(
                f"broken JSON, column {column}: {error.msg}",
                where=f"{self.annotation}:{line + error.lineno - 1}",
                fix="mend or remove the row",
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"is not UTF-8 (byte {error.start + 1} of the row)",
                where=f"{self.annotation}:{line}",
                fix="convert the file to UTF-8",
            ) from error


class JsonArrayRecords(JsonlRecords):
    """Records of a `.json` file that holds one list of rows, as LLaVA and ShareGPT files do.

    The file is scanned once; afterwards rows are read one by one as from JSON Lines.
    """

    _indexer = staticmethod(array_index)
