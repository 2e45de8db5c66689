"""What a path that a user names holds: one annotation file, a mixture, or a compiled folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.core.reading import check_file, parse_json, read_text
from vitp.data.readers.llava import open_records
from vitp.data.readers.mixture_file import LARGEST_MIXTURE, open_entry, read_mixture_table
from vitp.data.readers.rows import RowRecords
from vitp.io.storage import join
from vitp.records.labels import SPLITS


@dataclass(frozen=True)
class Source:
    """One annotation file of what was named.

    Attributes:
        name: What reports call it.
        split: `train`, `val` or `test`; everything that doesn't say so is `train`.
        records: Its rows.
        rate: How often an epoch takes each record, where a mixture says so.
        max_tiles: Most tiles an image of it is cut into, where a mixture says so.
    """

    name: str
    split: str
    records: RowRecords
    rate: float = 1.0
    max_tiles: int | None = None


def is_mixture(path: Path) -> bool:
    """Return whether a file is one JSON object without a conversation: a mixture, not a row."""
    try:
        if path.suffix != ".json" or check_file(path).st_size > LARGEST_MIXTURE:
            return False
        value = parse_json(read_text(path))
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and not {"conversations", "messages"} & value.keys()


def open_sources(path: str | Path) -> tuple[list[Source], list[DataError]]:
    """Open everything that a path names, and go on after what can't be opened.

    A folder is one that `vitp data compile` made: a file a split, and `mixture.json` with the images' root.

    Returns:
        The sources that could be opened, and what was wrong with the others.
    """
    path = Path(path)
    errors: list[DataError] = []
    sources: list[Source] = []
    if path.is_dir():
        return _open_folder(path)
    if not is_mixture(path):
        try:
            split = path.stem if path.stem in SPLITS else "train"
            sources.append(Source(path.stem, split, open_records(path)))
        except DataError as error:
            errors.append(error)
        return sources, errors
    try:
        table = read_mixture_table(path)
    except DataError as error:
        return [], [error]
    for name, fields in table.items():
        try:
            entry = open_entry(name, fields, path)
            assert isinstance(entry.records, RowRecords)
            sources.append(Source(name, "train", entry.records, entry.rate, entry.max_tiles))
        except DataError as error:
            errors.append(error)
    return sources, errors


def _open_folder(folder: Path) -> tuple[list[Source], list[DataError]]:
    errors: list[DataError] = []
    root: str | None = None
    fields: dict[str, Any] = {}
    if (folder / "mixture.json").is_file():
        try:
            fields = next(iter(read_mixture_table(folder / "mixture.json").values()))
            root = join(folder, fields["root"]) if fields.get("root") else None
        except DataError as error:
            errors.append(error)
    if str(fields.get("annotation")).endswith(".tar"):
        return open_sources(folder / "mixture.json")
    files = [(split, folder / f"{split}.jsonl") for split in SPLITS]
    present = [(split, file) for split, file in files if file.is_file()]
    if not present:
        errors.append(
            DataError(
                "holds no train.jsonl, val.jsonl or test.jsonl",
                where=str(folder),
                fix="name a folder that `vitp data compile` made, an annotation file or a mixture",
            )
        )
    sources: list[Source] = []
    for split, file in present:
        try:
            records = open_records(file, root)
            sources.append(Source(split, split, records, max_tiles=fields.get("max_dynamic_patch")))
        except DataError as error:
            errors.append(error)
    return sources, errors
