"""Which JSON files Label Studio wrote, and which are only what it imports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.data.formats.walk import child, parse_label_json, read_label_text, suffixed
from vitp.io.images import IMAGE_SUFFIXES


def label_studio_files(root: Path) -> list[Path]:
    """Return the files in a folder, or in its `annotations/`, that Label Studio exported."""
    # One task without annotations, or one that is none, doesn't make the others something else.
    return [path for path, rows in _row_files(root) if any(map(_is_exported, rows))]


def unannotated_files(root: Path) -> list[Path]:
    """Return the files there whose rows are all tasks as Label Studio imports them: nobody has annotated any."""
    return [path for path, rows in _row_files(root) if rows and all(map(_is_task, rows))]


def _row_files(root: Path) -> Iterator[tuple[Path, list[Any]]]:
    folders = [folder for folder in (root, child(root, ("annotations",))) if folder is not None]
    for path in [root] if root.is_file() else [p for each in folders for p in suffixed(each, ".json")]:
        with suppress(DataError):
            content = parse_label_json(read_label_text(path), path)
            if isinstance(content, list):
                yield path, content


def _is_exported(row: Any) -> bool:
    return isinstance(row, dict) and ("annotation_id" in row or ("annotations" in row and "data" in row))


def _is_task(row: Any) -> bool:
    data = row.get("data") if isinstance(row, dict) else None
    return isinstance(data, dict) and not _is_exported(row) and any(map(is_image_name, data.values()))


def refuse_unannotated(root: Path) -> None:
    """Refuse a file, or a folder with one, of tasks of which none is annotated.

    Raises:
        DataError: There is one.
    """
    for path in unannotated_files(root):
        raise DataError(
            "holds tasks for Label Studio of which none is annotated",
            where=str(path),
            fix="annotate them there and export the project as JSON; --format images reads images without labels",
        )


def is_image_name(value: Any) -> bool:
    """Return whether a value of a task names an image, by the ending of its path."""
    if not isinstance(value, str):
        return False
    path = value.partition("#")[0]
    return Path(path if "?d=" in path else path.partition("?")[0]).suffix.lower() in IMAGE_SUFFIXES
