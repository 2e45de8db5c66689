"""Tables of run-length masks: a row for each object, with its image and runs "start length start length …".

ImageId,EncodedPixels
0a1b.png,3 4 67 4
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.box_rows import TableColumns
from vitp.data.formats.box_tables import TableObject, TableReading, table_paths
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.class_columns import ID_KEYS, MISSING_WORDS
from vitp.data.formats.drawn_masks import with_drawn_masks
from vitp.data.formats.image_labels import LabelShape
from vitp.data.formats.tables import find_key, first_table_rows, raw_rows, table_files, table_weight
from vitp.data.formats.walk import comma_list, split_folders
from vitp.records.labels import LabelledSet
from vitp.records.regions import object_of

_SURE_KEYS = ("encodedpixels", "encoded_pixels", "rle", "rle_mask", "mask_rle", "rle_encoded", "run_length")
_RUN_KEYS = (*_SURE_KEYS, "segmentation", "annotation", "encoding", "mask")
"""Columns of runs; what isn't sure by its name holds other things, too (outlines, names of files)."""
_RUNS = re.compile(r"\d+(\s+\d+)+")
_EMPTY = ("", "-1", "[]", *MISSING_WORDS)
_ORDERS = {"columns": "column by column", "rows": "row by row"}
_OTHER = {"columns": "rows", "rows": "columns"}


def run_column(rows: Sequence[dict[str, Any]]) -> str | None:
    """Return the column of the runs of a table's first rows; None: it has none."""
    key = find_key(rows[0], _RUN_KEYS) if rows else None
    if key is None:
        return None
    texts = [text for row in rows if (text := _text_of(row, key)).lower() not in _EMPTY]
    fitting = [bool(_RUNS.fullmatch(text)) for text in texts]
    sure = find_key({key: ""}, _SURE_KEYS) is not None
    return key if fitting and (any(fitting) if sure else all(fitting)) else None


def run_tables(root: Path) -> list[tuple[Path, Path]]:
    """Return the tables of runs in a folder, or in those of its splits, each with the folder of its images."""
    bases = list(dict.fromkeys([root, *(folder for _, folder in split_folders(root))]))
    return [
        (path, base)
        for base in bases
        for path in table_files(base)
        if run_column(first_table_rows(path)) and table_weight(base, path, ID_KEYS) != "none"
    ]


def read_run_tables(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    table: str | None = None,
    image_column: str | None = None,
    class_column: str | None = None,
    runs_column: str | None = None,
    order: Literal["", "columns", "rows"] = "",
    first: int | None = None,
    classes: str | list[str] | None = None,
    semantic: bool | str = False,
) -> LabelledSet:
    """Read a table with a row for each object, whose pixels are runs of start and length.

    Pixels are counted down the columns, from 1, as on Kaggle, unless an option says otherwise. Sizes are those of the
    images. A row without runs, or with -1, says that there is nothing (of its class) in its image.

    Args:
        root: The table, or the folder that holds it; images lie anywhere below, named with or without suffix.
        options: Name, licence, splits.
        table: Name of the table in the folder, where there are several.
        image_column: Column of the image, where it isn't one of the usual.
        class_column: Column of the class, likewise; without one all objects are of one class, "object".
        runs_column: Column of the runs, likewise.
        order: "columns" or "rows": along which pixels are counted; by default columns, and a table whose runs fit rows
            alone is refused.
        first: Number of the first pixel, 0 or 1; by default 1, and a table that fits 0 alone is refused.
        classes: As in tables of boxes.
        semantic: True: masks of the classes instead of objects; "both": beside them.

    Raises:
        DataError: The table can't be understood, its runs fit another reading alone, or too many can't be used.
        ConfigError: An option is unknown.
    """
    if order and order not in _ORDERS:
        raise ConfigError(f'is "{order}"', where="order", fix=f"choose {' or '.join(_ORDERS)}")
    if first not in (None, 0, 1):
        raise ConfigError(f"is {first}", where="first", fix="choose 0 or 1")
    base = root if root.is_dir() else root.parent
    builder = SetBuilder(base, options)
    reading = _RunReading(builder, comma_list(classes), "", order=order, first=first)
    for path, folder in table_paths(root, table, run_tables):
        rows = [(number, row) for number, row in raw_rows(path) if isinstance(row, dict)]
        runs = runs_column or run_column([row for _, row in rows]) or find_key(rows[0][1], _RUN_KEYS)
        if runs is None:
            fix = "-o runs_column=COLUMN names it"
            raise DataError("has no column of runs", where=str(path), fix=fix)
        columns = TableColumns.of(
            path, rows, image_column, class_column, (runs,), reading.known or ("object",)
        )
        if not columns.label and reading.known is None:
            reading.known = ("object",)
            builder.understand(
                f'{path.name} names no classes: all are "object"; -o classes=NAME calls them so'
            )
        reading.take(path, folder, rows, columns)
    return with_drawn_masks(reading.build(), semantic)


def _text_of(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return "" if value is None else str(value).strip()


@dataclass
class _RunReading(TableReading):
    """Tables of runs while they are read; `order` and `first` are those of the options."""

    order: Literal["", "columns", "rows"] = ""
    first: int | None = None

    def object_of(self, where: str, row: Mapping[str, Any], columns: TableColumns) -> TableObject:
        """Return what a row says; its numbers are starts and lengths in turn."""
        text, category = _text_of(row, columns.box[0]), " ".join(_text_of(row, columns.label).split())
        if category.lower() in MISSING_WORDS:
            category = ""
        if text.lower() in _EMPTY:
            return TableObject(where, "", None)
        try:
            numbers = np.array(re.split(r"[\s,]+", text.strip("[]( )")), np.int64).tolist()
        except (ValueError, OverflowError):
            wrong = f'holds "{text[:40]}", which is no list of whole numbers'
            return TableObject(where, category, None, f"{wrong} (masks of COCO are read from COCO JSON)")
        if len(numbers) % 2:
            wrong = f"holds {len(numbers)} numbers, but runs are pairs of start and length"
            return TableObject(where, category, None, wrong)
        return TableObject(where, category, numbers)

    def give_shapes(
        self, path: Path, columns: TableColumns, own: Sequence[tuple[TableObject, tuple[int, int]]]
    ) -> None:
        """Give the objects of a table their outlines, or say of each why its runs can't be used.

        Raises:
            DataError: The runs fit another order, or another number of the first pixel, alone.
        """
        place = self.builder.place(path)
        runs = [(label, size, np.array(label.numbers, np.int64).reshape(-1, 2)) for label, size in own]
        begins = [label.where for label, _, runs_N2 in runs if (runs_N2[:, 0] == 0).any()]
        if begins and self.first is None:
            what = f"a run begins at 0 (and in {len(begins):,} rows), so its pixels aren't counted from 1"
            raise DataError(what, where=begins[0], fix="-o first=0 counts them from 0")
        first = 1 if self.first is None else self.first
        fitting = []
        for label, size, runs_N2 in runs:
            runs_N2 = runs_N2 - (first, 0)
            label.wrong = _wrong(runs_N2, size, first)
            if not label.wrong:
                fitting.append((label, size, runs_N2))
        order = self.order or self._default_order(place, fitting)
        for label, size, runs_N2 in fitting:
            found = object_of(_mask(runs_N2, size, order), "")
            assert found is not None
            label.shape = LabelShape(polygons=found.polygons, holes=found.holes)
        self.builder.understand(
            f"{place}: {columns.box[0]} holds runs (start, length) {_ORDERS[order]}, counted from {first}; -o order="
            f"{_OTHER[order]} and -o first={1 - first} read them otherwise"
        )

    def _default_order(
        self, place: str, runs: Sequence[tuple[TableObject, tuple[int, int], np.ndarray]]
    ) -> Literal["columns"]:
        """Return how pixels are counted on Kaggle, unless runs cross the ends of columns and none that of a row."""
        crossing = {
            order: [
                label.where
                for label, size, runs_N2 in runs
                if (runs_N2[:, 0] % size[axis] + runs_N2[:, 1] > size[axis]).any()
            ]
            for axis, order in enumerate(("rows", "columns"))
        }
        if crossing["columns"] and not crossing["rows"]:
            count = len(crossing["columns"])
            raise DataError(
                f"runs of {count:,} {'row' if count == 1 else 'rows'} of the table go on from the foot of a column to the "
                f"head of the next (the first: {crossing['columns'][0]}), and none from one row of pixels to the next, so "
                "pixels seem to be counted row by row",
                where=place,
                fix="-o order=rows reads them so, -o order=columns column by column",
            )
        return "columns"


def _wrong(runs_N2: np.ndarray, size: tuple[int, int], first: int) -> str:
    """Return why runs, counted from 0, are no mask of an image; "": they are."""
    starts_N, lengths_N = runs_N2.T
    pixels = size[0] * size[1]
    outside_N = (starts_N < 0) | (lengths_N < 1) | (lengths_N > pixels) | (starts_N > pixels - lengths_N)
    if outside_N.any():
        k = int(outside_N.argmax())
        run = f"run {k + 1} ({starts_N[k] + first} {lengths_N[k]})"
        return f"{run} doesn't lie in the {pixels:,} pixels of its image of {size[0]}×{size[1]}"
    again_N = starts_N[1:] < (starts_N + lengths_N)[:-1]
    if again_N.any():
        k = int(again_N.argmax())
        return f"run {k + 2} begins before run {k + 1} ends: runs overlap, aren't in order, or hold ends as lengths"
    return ""


def _mask(runs_N2: np.ndarray, size: tuple[int, int], order: str) -> np.ndarray:
    """Return the mask (H, W) bool of runs of start, counted from 0, and length."""
    width, height = size
    turns = np.zeros(width * height + 1, np.int8)
    np.add.at(turns, runs_N2[:, 0], 1)
    np.add.at(turns, runs_N2.sum(axis=1), -1)
    inside = np.cumsum(turns[:-1], dtype=np.int8) > 0
    return inside.reshape(height, width) if order == "rows" else inside.reshape(width, height).T
