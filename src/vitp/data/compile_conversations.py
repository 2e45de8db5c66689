"""Tables of conversations with their images inside (`vitp.data.formats.parquet`) → instruction records.

OUT/{train,val,test}.jsonl  the records; images relative to OUT
OUT/images/                 the images, as they are in the table
OUT/mixture.json            the training split as a mixture of one set
OUT/summary.json            counts and what was understood
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.core.files import atomic_dir, sha256, write_json
from vitp.data.compile_summary import CompileSummary, SplitCounts
from vitp.data.formats.parquet import ParquetColumns, ParquetRow, parquet_rows, talk_of, unpack_image
from vitp.data.formats.vitp_labels import LineWriter
from vitp.data.formats.walk import split_of, within
from vitp.data.readers.rows import RowPlace, record_from_row
from vitp.io.images import image_size
from vitp.records.instructions import InstructionRecord, to_line
from vitp.records.labels import SPLITS


def compile_conversations(
    root: Path,
    columns: ParquetColumns,
    out: Path,
    *,
    seed: int,
    max_tiles: int | None,
    settings: dict[str, Any],
) -> CompileSummary:
    """Write the records of a table and its images.

    Args:
        root: File or folder of the table.
        columns: Its columns; `talk` is one of them.
        out: The folder, which may be replaced.
        seed: Told in the summary.
        max_tiles: Written into the mixture.
        settings: Options of the command, told in the summary.

    Raises:
        DataError: The table is damaged, or a row can't be used; nothing is written then.
    """
    name = str(settings.get("name") or root.stem)
    counts = {split: SplitCounts() for split in SPLITS}
    with atomic_dir(out) as temporary:
        with LineWriter(temporary) as lines:
            for row in parquet_rows(root, columns):
                split = split_of(str(row.values.get(columns.split) or "")) or row.split or "train"
                record = _record(row, columns, temporary, name)
                lines.add(split, to_line(replace(record, licence=str(settings.get("licence") or ""))))
                _count(counts[split], record)
        if not counts["train"].records:
            raise DataError("no row is in the training split", where=str(root), fix="check the splits' names")
        entry: dict[str, Any] = {
            "root": ".",
            "annotation": "train.jsonl",
            "data_augment": False,
            "repeat_time": 1,
        }
        entry |= {"length": counts["train"].records}
        entry |= {} if max_tiles is None else {"max_dynamic_patch": max_tiles}
        write_json(temporary / "mixture.json", {name: entry})
        digest = hashlib.sha256("".join(sha256(temporary / f"{one}.jsonl") for one in SPLITS).encode())
        said = f"columns: image from {columns.image}, conversation from {columns.talk}"
        summary = CompileSummary(
            name=name,
            out=out,
            fmt="parquet",
            licence=str(settings.get("licence") or ""),
            seed=seed,
            splits=counts,
            findings=(),
            unasked=0,
            content_hash=digest.hexdigest(),
            understood=(said,),
        )
        summary.write(temporary, settings)
    return summary


def _count(own: SplitCounts, record: InstructionRecord) -> None:
    own.images, own.records = own.images + len(record.images), own.records + 1
    own.turns += len(record.turns)
    own.tasks["conversation"] += len(record.turns)


def _record(row: ParquetRow, columns: ParquetColumns, out: Path, name: str) -> InstructionRecord:
    """Return the record of a row, its images written."""
    value = row.values[columns.image]
    values = value if isinstance(value, list) else [value]
    paths = [unpack_image(one, row, columns.image, out / "images", k) for k, one in enumerate(values)]
    for path in paths:
        try:
            image_size(path)
        except DataError as error:
            raise DataError(error.what, where=row.place(columns.image), fix="remove the row") from error
    talk = talk_of(row, columns.talk)
    written = {"images": [within(path, out) for path in paths], "conversations": list(talk)}
    place = RowPlace(row.shard, row.number)
    try:
        return record_from_row(written, place=place, root=None, source=name)
    except DataError as error:
        raise DataError(error.what, where=row.place(columns.talk), fix=error.fix) from error
