"""Captions: a JSON, JSON Lines or CSV table of image → text, or a text file beside each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.data.formats.common import ReadOptions, SetBuilder, list_images, read_text, split_folders
from vitp.data.formats.layouts import image_folders
from vitp.data.formats.splits import split_of
from vitp.data.formats.tables import (
    DELIMITERS,
    IMAGE_KEYS,
    delimiter_of,
    find_key,
    headed_texts,
    raw_rows,
    table_files,
)
from vitp.io.images import IMAGE_SUFFIXES
from vitp.records.instructions import IMAGE_MARK, text_problem
from vitp.records.labels import LabelledSet

TEXT_KEYS = (
    *("caption", "captions", "text", "sentences", "report", "description"),
    *("sentence", "comment"),
)

_MISSING = frozenset({"nan", "n/a", "#n/a", "na", "<na>", "none", "null", "-", "--"})
"""How tables write that there is no text."""


@dataclass(frozen=True)
class _Row:
    place: str
    image: str
    texts: tuple[str, ...]
    split: str | None


def read(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    table: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> LabelledSet:
    """Read captions.

    A table holds rows {"image": …, "caption": text or list} (other usual names of the keys are known), an
    object image → text, or the form {"images": [{"filename", "split", "sentences": [{"raw"}]}]}. Rows of the
    same image are joined.

    Args:
        root: The table, or the folder that holds it, or images with `.txt` files of the same stem beside
            them (one caption a line), also under folders of the splits.
        options: Name, licence, splits.
        table: Name of the table in the folder, where there are several.
        image_column: Key of the image, where it isn't one of the usual.
        caption_column: Key of the text, likewise.

    Raises:
        DataError: The table can't be understood.
    """
    base = root if root.is_dir() else root.parent
    builder = SetBuilder(base, options)
    path = _table(root, table)
    if path is None:
        return _read_sidecars(builder, root)
    image_keys = (image_column,) if image_column else IMAGE_KEYS
    text_keys = (caption_column,) if caption_column else TEXT_KEYS
    texts: dict[Path, list[str]] = {}
    splits: dict[Path, str | None] = {}
    if (delimiter := delimiter_of(path)) not in ("", ","):
        builder.understand(f"{builder.place(path)}: its cells are parted by {DELIMITERS[delimiter]}")
    elsewhere = _Elsewhere(base)
    seen = _Texts(builder)
    for row in _rows(path, builder, image_keys, text_keys, seen):
        image = next((p for p in _places(base, row) if p.is_file()), None)
        others = elsewhere.find(row.image) if image is None else []
        image = others[0] if len(others) == 1 else image
        if image is None:
            fate = f"is {len(others)} files" if others else "is missing"
            builder.note(row.place, f"{row.image} {fate}; left out")
        elif not row.texts:
            builder.note(row.place, "no caption; left out")
        else:
            texts.setdefault(image, []).extend(row.texts)
            splits[image] = splits.get(image) or row.split
    seen.tell()
    for image, captions in texts.items():
        if (size := builder.size_of(image)) is not None:
            builder.add(image, size, split=splits[image], captions=tuple(dict.fromkeys(captions)))
    return builder.build()


def is_table(path: Path) -> bool:
    """Return whether the first row of a table names an image and has a text about it."""
    try:
        _, row = next(raw_rows(path), (0, None))
    except DataError:
        return False
    if not isinstance(row, dict) or find_key(row, TEXT_KEYS) is None:
        return False
    image = _values(row, IMAGE_KEYS)
    return isinstance(image, str) and Path(image.strip()).suffix.lower() in IMAGE_SUFFIXES


def tables(root: Path) -> list[Path]:
    """Return the files in a folder that are tables of captions."""
    return [
        path for path in (*table_files(root), *headed_texts(root, (IMAGE_KEYS, TEXT_KEYS))) if is_table(path)
    ]


def _table(root: Path, name: str | None) -> Path | None:
    if root.is_file():
        return root
    if name is not None:
        return root / name
    found = tables(root) or table_files(root)
    if len(found) > 1:
        raise DataError(
            f"several tables: {', '.join(path.name for path in found)}",
            where=str(root),
            fix="name one with the option table",
        )
    return found[0] if found else None


def _read_sidecars(builder: SetBuilder, root: Path) -> LabelledSet:
    seen = _Texts(builder)
    for split, folder in split_folders(root):
        for image in [p for base in (folder, folder / "images") if base.is_dir() for p in list_images(base)]:
            path = image.with_suffix(".txt")
            if not path.is_file():
                builder.note(builder.place(image), "no text file; image left out")
                continue
            captions = seen.used(_texts(read_text(path).splitlines()))
            _check_texts(captions, builder.place(path))
            if not captions:
                builder.note(builder.place(path), "empty; image left out")
            elif (size := builder.size_of(image)) is not None:
                builder.add(image, size, split=split, captions=captions)
    seen.tell()
    return builder.build()


class _Texts:
    """Counts the texts that aren't used as they are.

    Args:
        builder: Takes the findings.
    """

    def __init__(self, builder: SetBuilder) -> None:
        self.builder = builder
        self.missing: Counter[str] = Counter()
        self.marks = 0

    def used(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Return the texts that say something."""
        kept = []
        for text in texts:
            if text.lower() in _MISSING:
                self.missing[text] += 1
                continue
            self.marks += IMAGE_MARK in text
            kept.append(text)
        return tuple(kept)

    def tell(self) -> None:
        """Note what was counted."""
        if self.missing:
            listed = ", ".join(f'"{text}" {count:,}' for text, count in self.missing.most_common())
            self.builder.note("captions", f"texts that say that there is none, not used: {listed}")
        if self.marks:
            self.builder.note(
                "captions", f'{self.marks:,} hold {IMAGE_MARK}, which stands for an image; read as "image"'
            )


class _Elsewhere:
    """Images by their names in any folder of a set, looked for when the first isn't in the usual places.

    Args:
        base: The set's folder.
    """

    def __init__(self, base: Path) -> None:
        self.base = base

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for folder in image_folders(self.base):
            for file in folder.files:
                found.setdefault(file.name, []).append(file)
        return found

    def find(self, name: str) -> list[Path]:
        """Return the files of a name; names with folders stand for what lies there only."""
        return self._files.get(name, []) if "/" not in name else []


def _places(base: Path, row: _Row) -> list[Path]:
    folders = ["", "images", row.split or ""]
    return [base / folder / row.image for folder in dict.fromkeys(folders)]


def _rows(
    path: Path,
    builder: SetBuilder,
    image_keys: tuple[str, ...],
    text_keys: tuple[str, ...],
    seen: _Texts,
) -> Iterator[_Row]:
    for number, row in raw_rows(path):
        place = builder.place(path, number)
        image = _values(row, image_keys) if isinstance(row, dict) else None
        if not isinstance(image, str) or not image.strip():
            raise DataError(
                f"row names no image (looked for {', '.join(image_keys)})",
                where=place,
                fix="name the key with the option image_column",
            )
        if find_key(row, text_keys) is None:
            raise DataError(
                f"row has no caption (looked for {', '.join(text_keys)})",
                where=place,
                fix="name the key with the option caption_column",
            )
        texts = seen.used(_texts(_values(row, text_keys)))
        _check_texts((image, *texts), place)
        yield _Row(place, image.strip(), texts, split_of(str(row.get("split") or "")))


def _check_texts(texts: Iterable[str], place: str) -> None:
    for text in texts:
        if (problem := text_problem(text)) is not None:
            raise DataError(problem, where=place, fix="mend the text or remove the row")


def _values(row: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """Return the first value that isn't empty among the keys, in any case."""
    for key in keys:
        own = find_key(row, (key,))
        if own is not None and row[own]:
            return row[own]
    return None


def _texts(value: Any) -> tuple[str, ...]:
    """Return one text, a list of texts or a list of {"raw": text} as texts with single spaces."""
    values = value if isinstance(value, list | tuple) else [value]
    texts = (
        (v.get("raw") or v.get("caption") or v.get("text")) if isinstance(v, dict) else v for v in values
    )
    return tuple(" ".join(str(text).split()) for text in texts if text is not None and str(text).strip())
