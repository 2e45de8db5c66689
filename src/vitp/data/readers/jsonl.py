"""Instruction rows in JSON Lines, read lazily by byte offsets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any, ClassVar

from vitp.core.errors import DataError
from vitp.core.reading import parse_json
from vitp.data.readers.index import CACHE_ABOVE, RowIndex, line_index
from vitp.data.readers.rows import RowPlace, RowRecords
from vitp.io.storage import is_remote

LARGEST_ROW = 256 << 20
"""Bytes of one row."""


class IndexedRecords(RowRecords):
    """Records of one annotation file; only the rows that are asked for are read.

    Safe to pickle, to fork and to share between threads: rows are read by position (`pread`), no state moves.

    Args:
        annotation: The file.
        root: Folder or URL that relative image paths start from; the annotation's folder by default.
        name: Of the set; the file's stem by default.
        cache_above: Files of at least this many bytes get their index cached.

    Raises:
        DataError: The file is missing or can't be read.
    """

    _indexer: ClassVar[Callable[..., RowIndex]]
    """Finds the rows of the file."""

    def __init__(
        self,
        annotation: str | Path,
        root: str | Path | None = None,
        name: str | None = None,
        *,
        cache_above: int = CACHE_ABOVE,
    ) -> None:
        self.annotation = Path(annotation)
        self.root = _root(root, self.annotation)
        self.name = name or self.annotation.stem
        self._cache_above = cache_above
        self._file: FileIO | None = None
        self._index: RowIndex | None = self._indexer(self.annotation, cache_above=cache_above)
        self._size, self._digest = self._index.size, self._index.digest
        self._mtime_ns = self._index.mtime_ns
        self._length = len(self._index.rows)

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.annotation)!r}, {self._length:,} rows)"

    def row(self, index: int) -> Any:
        """Return the parsed JSON of a row.

        Raises:
            DataError: The row is not JSON; the message names line and column.
        """
        offset, length, line = self._row_place(index)
        if length > LARGEST_ROW:
            raise DataError(
                f"has {length:,} bytes, which no row needs",
                where=f"{self.annotation}:{line}",
                fix="is the file JSON Lines, or a JSON list of rows?",
            )
        data = os.pread(self._handle(), length, offset)
        try:
            # Only the first row can begin with a byte order mark.
            return parse_json(data.decode("utf-8-sig" if offset == 0 else "utf-8"))
        except json.JSONDecodeError as error:
            column = error.colno + (self._column(offset) if error.lineno == 1 else 0)
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

    def place(self, index: int) -> RowPlace:
        """Return file and line of a row."""
        return RowPlace(str(self.annotation), self._row_place(index)[2])

    def fingerprint(self) -> str:
        """Return the SHA-256 of the annotation file."""
        return self._digest

    def _row_place(self, index: int) -> tuple[int, int, int]:
        if not -self._length <= index < self._length:
            raise IndexError(f"row {index} of {self._length} in {self.annotation}")
        if self._index is None:  # after unpickling in a worker
            self._index = self._indexer(self.annotation, cache_above=self._cache_above)
            if self._index.digest != self._digest:
                raise self._changed()
        offset, length, line = self._index.rows[index]
        return int(offset), int(length), int(line)

    def _handle(self) -> int:
        if self._file is None:
            try:
                file = FileIO(self.annotation)
            except OSError as error:
                raise DataError(
                    f"can't be opened ({error.strerror})", where=str(self.annotation), fix="check the path"
                ) from error
            stat = os.fstat(file.fileno())
            if (stat.st_size, stat.st_mtime_ns) != (self._size, self._mtime_ns):
                raise self._changed()
            self._file = file
        return self._file.fileno()

    def _column(self, offset: int) -> int:
        """Return how many characters stand before a byte offset on its line."""
        begin = max(0, offset - 4096)
        before = os.pread(self._handle(), offset - begin, begin)
        return len(before[before.rfind(b"\n") + 1 :].decode("utf-8", errors="replace"))

    def _changed(self) -> DataError:
        return DataError(
            "has changed while it was in use", where=str(self.annotation), fix="start again with the new file"
        )

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__, _file=None)
        if self._index is not None and self._index.cache is not None:
            state["_index"] = None  # the other process maps the cache; numpy would copy it into the pickle
        return state


def _root(root: str | Path | None, annotation: Path) -> str | Path:
    if root is None:
        return annotation.parent
    return root if is_remote(root) else Path(root)


class JsonlRecords(IndexedRecords):
    """Records of a JSON Lines file: InternVL, LLaVA, ShareGPT or chat-message rows, one a line.

    See `vitp.data.readers.rows` for the forms, and `IndexedRecords` for the arguments.
    """

    _indexer = staticmethod(line_index)
