"""Instruction rows in a JSON list, as LLaVA and ShareGPT files have them; and the choice by content."""

from __future__ import annotations

from pathlib import Path

from vitp.core.errors import DataError
from vitp.core.reading import open_file
from vitp.data.readers.index import array_index, cache_folder
from vitp.data.readers.jsonl import IndexedRecords, JsonlRecords
from vitp.data.readers.rows import RowRecords
from vitp.io.storage import is_remote, local_copy, parent


class JsonArrayRecords(IndexedRecords):
    """Records of a `.json` file that holds one list of rows.

    The file is scanned once through a memory map; afterwards rows are read one by one as from JSON Lines.
    See `vitp.data.readers.rows` for the forms, and `IndexedRecords` for the arguments.
    """

    _indexer = staticmethod(array_index)


def open_records(
    annotation: str | Path, root: str | Path | None = None, name: str | None = None
) -> RowRecords:
    """Open an annotation file as what it is: a JSON list if it begins with `[`, else JSON Lines.

    The content decides, not the suffix: lists are often called `.jsonl`, and lines `.json`. Only tar shards are
    told by their suffix; they may be a pattern (`set-{000..127}.tar`, `set-*.tar`). A file behind a URL is fetched
    once; its images stay where they are, beside it or below `root`.

    Raises:
        DataError: The file is missing or can't be read.
    """
    if str(annotation).endswith(".tar"):
        from vitp.data.shards.records import ShardRecords, expand_shards

        shards = expand_shards(str(annotation))
        return ShardRecords(shards, name or Path(shards[0]).stem)
    if is_remote(annotation):
        root = parent(annotation) if root is None else root
        annotation = local_copy(str(annotation), cache_folder().parent / "remote")
    try:
        with open_file(annotation) as file:
            begin = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise DataError(
            f"can't be read ({error.strerror})", where=str(annotation), fix="check the path"
        ) from error
    reader = JsonArrayRecords if begin.startswith(b"[") else JsonlRecords
    return reader(annotation, root, name)
