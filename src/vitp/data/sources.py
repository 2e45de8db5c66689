"""Readers for any path that a user names: annotation file, tar shards, mixture or compiled folder.

A mixture file is one JSON object: set name → `{root, annotation, data_augment, repeat_time, length,
max_dynamic_patch, channels}`. The last two need not be there; `channels` is for files with bands, and stands there
as in `labels/set.json` of a compiled set.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError, did_you_mean
from vitp.core.reading import check_file, json_or_none, open_file, parse_json, read_text
from vitp.data.formats.vitp_labels import channels_from_json
from vitp.data.mixture import MixtureEntry
from vitp.data.readers.index import cache_folder
from vitp.data.readers.records import JsonArrayRecords, JsonlRecords, RowRecords
from vitp.data.shards import ShardRecords, expand_shards
from vitp.io.storage import is_remote, join, local_copy, parent, readable
from vitp.records.channels import Channels
from vitp.records.labels import SPLITS

LARGEST_MIXTURE = 4 << 20
"""Bytes of a mixture file."""

LARGEST_TILES = 1024

_KEYS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "root": (str, "a path"),
    "annotation": (str, "a path"),
    "data_augment": (bool, "true or false"),
    "repeat_time": ((int, float), "a number"),
    "length": (int, "a whole number"),
    "max_dynamic_patch": (int, "a whole number"),
    "channels": (dict, "a mapping of what is seen of the files' bands"),
}
_RANGES = {"length": (0, 2**40), "max_dynamic_patch": (1, LARGEST_TILES)}


@dataclass(frozen=True)
class Source:
    """One annotation file of what was named.

    Attributes:
        name: What reports call it.
        split: `train`, `val` or `test`; everything that doesn't say so is `train`.
        records: Rows of the file.
        rate: How often an epoch takes each record, where a mixture says so.
        max_tiles: Most tiles an image of it is cut into, where a mixture says so.
        channels: What is seen of the bands of its files, where a mixture says so.
    """

    name: str
    split: str
    records: RowRecords
    rate: float = 1.0
    max_tiles: int | None = None
    channels: Channels | None = None


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
        shards = expand_shards(str(annotation))
        return ShardRecords(shards, name or Path(shards[0]).stem)
    if is_remote(annotation):
        root = parent(annotation) if root is None else root
        annotation = local_copy(str(annotation), cache_folder().parent / "remote")
    with readable(annotation), open_file(annotation) as file:
        begin = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    reader = JsonArrayRecords if begin.startswith(b"[") else JsonlRecords
    return reader(annotation, root, name)


def read_mixture(path: str | Path) -> list[MixtureEntry]:
    """Open the sets that a mixture file names.

    Relative paths start from the mixture file's folder. `annotation` must be given; `root` is the
    annotation's folder, `repeat_time` 1 and `data_augment` false by default; `length` is checked where it is
    given, and `max_dynamic_patch` left to the run where it is not.

    Raises:
        DataError: The file is not a mixture, has unknown keys, or names files that can't be used.
    """
    path = Path(path)
    return [open_entry(name, fields, path) for name, fields in read_mixture_table(path).items()]


def read_mixture_table(path: Path) -> dict[str, dict[str, Any]]:
    """Return set name → fields, with the keys checked and no file opened.

    Raises:
        DataError: The file is missing, broken or not a mixture.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f'the key "{twice}" is given twice', where=str(path), fix="rename or remove one")
        return dict(pairs)

    try:
        with readable(path):
            value = parse_json(read_text(path, largest=LARGEST_MIXTURE), pairs_hook=unique)
    except json.JSONDecodeError as error:
        what = f"broken JSON, column {error.colno}: {error.msg}"
        raise DataError(what, where=f"{path}:{error.lineno}", fix="mend the file") from error
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8 text", where=str(path), fix="is this the mixture file?") from error
    if not isinstance(value, dict) or not all(isinstance(fields, dict) for fields in value.values()):
        raise DataError(
            "is not a mixture", where=str(path), fix='write {"set name": {"annotation": "file.jsonl", …}, …}'
        )
    if not value:
        raise DataError("the mixture has no sets", where=str(path), fix="name at least one")
    for name, fields in value.items():
        _check_fields(fields, f"{path}, set {name}")
    return value


def _check_fields(fields: dict[str, Any], where: str) -> None:
    for key in fields:
        if key not in _KEYS:
            near = did_you_mean(key, _KEYS)
            raise DataError(f'unknown key "{key}"', where=where, fix=near or f"known are {', '.join(_KEYS)}")
    for key, (kinds, meaning) in _KEYS.items():
        value: Any = fields.get(key)
        if value is None:
            continue
        shown = json.dumps(value)
        what = f'"{key}" is {shown if len(shown) <= 60 else f"{shown[:57]}…"}'
        number_as_flag = isinstance(value, bool) and kinds is not bool
        if number_as_flag or not isinstance(value, kinds):
            raise DataError(what, where=where, fix=f"it must be {meaning}")
        low, high = _RANGES.get(key, (0, 0))
        if high and isinstance(value, int) and not low <= value <= high:
            raise DataError(what, where=where, fix=f"it must be {low:,} to {high:,}")
    if not fields.get("annotation"):
        raise DataError('has no "annotation"', where=where, fix="name the file with the set's rows")


def open_entry(name: str, fields: dict[str, Any], path: Path) -> MixtureEntry:
    """Open one set of `read_mixture_table`.

    Args:
        name: Name of the set.
        fields: Fields of the set, with checked keys.
        path: The mixture file, which relative paths start from.

    Raises:
        DataError: The annotation can't be used, or has another length than the mixture says.
    """
    annotation = join(path.parent, fields["annotation"])
    root = join(path.parent, fields["root"]) if fields.get("root") else None
    records = open_records(annotation, root, name)
    length = fields.get("length")
    if length is not None and length != len(records):
        raise DataError(
            f"{path.name} says {length} rows, the file has {len(records)}",
            where=annotation,
            fix=f'set "length" of {name} to {len(records)}, or get the right file',
        )
    rate, augment = fields.get("repeat_time"), fields.get("data_augment")
    return MixtureEntry(
        records,
        1.0 if rate is None else float(rate),
        fields.get("max_dynamic_patch"),
        bool(augment),
        channels_from_json(fields.get("channels"), f"{path}, set {name}"),
    )


def is_mixture(path: Path) -> bool:
    """Return whether a file is one JSON object without a conversation: a mixture, not a row."""
    try:
        if path.suffix != ".json" or check_file(path).st_size > LARGEST_MIXTURE:
            return False
    except (OSError, ValueError):
        return False
    value = json_or_none(path)
    return isinstance(value, dict) and not {"conversations", "messages"} & value.keys()


def open_sources(path: str | Path) -> tuple[list[Source], list[DataError]]:
    """Open everything that a path names, and go on after what can't be opened.

    A folder is one that `vitp data compile` made: a file a split, and `mixture.json` with the images' root.

    Returns:
        The sources that could be opened, and what was wrong with the others.
    """
    path = Path(path)
    sources: list[Source] = []
    errors: list[DataError] = []
    if path.is_dir():
        return _open_folder(path)
    if not is_mixture(path):
        try:
            sources.append(
                Source(path.stem, path.stem if path.stem in SPLITS else "train", open_records(path))
            )
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
            source = Source(name, "train", entry.records, entry.rate, entry.max_tiles, entry.channels)
            sources.append(source)
        except DataError as error:
            errors.append(error)
    return sources, errors


def _open_folder(folder: Path) -> tuple[list[Source], list[DataError]]:
    sources: list[Source] = []
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
    present = [split for split in SPLITS if (folder / f"{split}.jsonl").is_file()]
    if not present:
        errors.append(
            DataError(
                "holds no train.jsonl, val.jsonl or test.jsonl",
                where=str(folder),
                fix="name a folder that `vitp data compile` made, an annotation file or a mixture",
            )
        )
    for split in present:
        try:
            records = open_records(folder / f"{split}.jsonl", root)
            channels = channels_from_json(fields.get("channels"), folder / "mixture.json")
            sources.append(Source(split, split, records, 1.0, fields.get("max_dynamic_patch"), channels))
        except DataError as error:
            errors.append(error)
    return sources, errors
