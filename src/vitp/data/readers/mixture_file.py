"""Mixture files: set name → `{root, annotation, data_augment, repeat_time, length, max_dynamic_patch}`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError, did_you_mean
from vitp.core.reading import parse_json, read_text
from vitp.data.mixture import MixtureEntry
from vitp.data.readers.llava import open_records
from vitp.io.storage import join

LARGEST_MIXTURE = 4 << 20
"""Bytes of a mixture file."""

LARGEST_TILES = 1024

_KEYS = ("root", "annotation", "data_augment", "repeat_time", "length", "max_dynamic_patch")

_RANGES: dict[str, tuple[int, int]] = {
    "length": (0, 2**40),
    "max_dynamic_patch": (1, LARGEST_TILES),
}


def read_mixture(path: str | Path) -> list[MixtureEntry]:
    """Open the sets that a mixture file names.

    Relative paths start from the mixture file's folder. `annotation` must be given; `root` is the
    annotation's folder, `repeat_time` 1 and `data_augment` false by default; `length` is checked where it is
    given, and `max_dynamic_patch` left to the run where it is not.

    Raises:
        DataError: The file is not a mixture, has unknown keys, or names files that can't be used.
    """
    path = Path(path)
    sets = read_mixture_table(path)
    return [open_entry(name, fields, path) for name, fields in sets.items()]


def read_mixture_table(path: Path) -> dict[str, dict[str, Any]]:
    """Return set name → fields, with the keys checked and no file opened.

    Raises:
        DataError: The file is missing, broken or not a mixture.
    """
    try:
        value = parse_json(read_text(path, largest=LARGEST_MIXTURE), pairs_hook=_unique(path))
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror})", where=str(path), fix="check the path") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"broken JSON, column {error.colno}: {error.msg}",
            where=f"{path}:{error.lineno}",
            fix="mend the file",
        ) from error
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8 text", where=str(path), fix="is this the mixture file?") from error
    if not isinstance(value, dict) or not all(isinstance(fields, dict) for fields in value.values()):
        raise DataError(
            "is not a mixture", where=str(path), fix='write {"set name": {"annotation": "file.jsonl", …}, …}'
        )
    if not value:
        raise DataError("the mixture has no sets", where=str(path), fix="name at least one")
    for name, fields in value.items():
        _check_keys(name, fields, path)
    return value


def _unique(path: Path) -> Any:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f'the key "{twice}" is given twice', where=str(path), fix="rename or remove one")
        return table

    return build


def _check_keys(name: str, fields: dict[str, Any], path: Path) -> None:
    where = f"{path}, set {name}"
    for key in fields:
        if key not in _KEYS:
            near = did_you_mean(key, _KEYS)
            raise DataError(f'unknown key "{key}"', where=where, fix=near or f"known are {', '.join(_KEYS)}")
    checks: dict[str, tuple[type | tuple[type, ...], str]] = {
        "annotation": (str, "a path"),
        "root": (str, "a path"),
        "data_augment": (bool, "true or false"),
        "repeat_time": ((int, float), "a number"),
        "length": (int, "a whole number"),
        "max_dynamic_patch": (int, "a whole number"),
    }
    for key, (kinds, meaning) in checks.items():
        value = fields.get(key)
        number_as_flag = isinstance(value, bool) and kinds is not bool
        if value is not None and (number_as_flag or not isinstance(value, kinds)):
            raise DataError(f'"{key}" is {_shown(value)}', where=where, fix=f"it must be {meaning}")
        low, high = _RANGES.get(key, (None, None))
        if isinstance(value, int) and low is not None and high is not None and not low <= value <= high:
            raise DataError(f'"{key}" is {_shown(value)}', where=where, fix=f"it must be {low:,} to {high:,}")
    if not fields.get("annotation"):
        raise DataError('has no "annotation"', where=where, fix="name the file with the set's rows")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def open_entry(name: str, fields: dict[str, Any], path: Path) -> MixtureEntry:
    """Open one set of `read_mixture_table`.

    Args:
        name: Of the set.
        fields: Its fields, keys checked.
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
        records, 1.0 if rate is None else float(rate), fields.get("max_dynamic_patch"), bool(augment)
    )
