"""Instruction rows in a JSON list, as LLaVA and ShareGPT files have them; and the choice by content."""

from __future__ import annotations

from pathlib import Path

from vitp.data.readers.index import CACHE_ABOVE, array_index
from vitp.data.readers.jsonl import IndexedRecords, JsonlRecords
from vitp.errors import DataError


class JsonArrayRecords(IndexedRecords):
    """Records of a `.json` file that holds one list of rows.

    The file is scanned once through a memory map; afterwards rows are read one by one as from JSON Lines.
    See `vitp.data.readers.rows` for the forms, and `IndexedRecords` for the arguments.
    """

    def __init__(
        self,
        annotation: str | Path,
        root: str | Path | None = None,
        name: str | None = None,
        *,
        cache_above: int = CACHE_ABOVE,
    ) -> None:
        super().__init__(annotation, root, name, indexer=array_index, cache_above=cache_above)


def open_records(
    annotation: str | Path, root: str | Path | None = None, name: str | None = None
) -> IndexedRecords:
    """Open an annotation file as what it is: a JSON list if it begins with `[`, else JSON Lines.

    The content decides, not the suffix: lists are often called `.jsonl`, and lines `.json`.

    Raises:
        DataError: The file is missing or can't be read.
    """
    try:
        with Path(annotation).open("rb") as file:
            begin = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise DataError(
            f"can't be read ({error.strerror})", where=str(annotation), fix="check the path"
        ) from error
    reader = JsonArrayRecords if begin.startswith(b"[") else JsonlRecords
    return reader(annotation, root, name)
