"""Rows of tables: CSV with a head, parted by commas, semicolons, tabs or bars; JSON and JSON Lines."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from vitp.core.errors import DataError
from vitp.core.reading import head_of
from vitp.data.formats.walk import (
    image_folders,
    name_index,
    parse_label_json,
    read_label_text,
    suffixed,
    within,
)

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
TABLE_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
IMAGE_KEYS = (
    *("image", "file_name", "filename", "path", "filepath", "image_path", "image_name", "imagename", "img"),
    *("image_id", "file", "fname", "img_path", "image_file", "image_index", "imageid", "dicom_id"),
)
PATIENT_KEYS = (
    "patient",
    "patient_id",
    "patientid",
    "subject",
    "subject_id",
    "case_id",
    "slide_id",
    "lesion_id",
)
STUDY_KEYS = ("study_id", "study", "studyinstanceuid", "study_instance_uid", "accession", "case_id", "case")
"""Columns that name a study: a folder of images."""


_PLACES = (
    ("x", "y"),
    ("xmin", "ymin"),
    ("x_min", "y_min"),
    ("x1", "y1"),
    ("left", "top"),
    ("bbox_x", "bbox_y"),
)
_EXTENTS = (
    ("w", "h"),
    ("bbox_width", "bbox_height"),
    ("bbox_w", "bbox_h"),
    ("box_w", "box_h"),
    ("width", "height"),
)
_CENTRES = (
    ("cx", "cy"),
    ("x_center", "y_center"),
    ("center_x", "center_y"),
    ("xcenter", "ycenter"),
    ("xc", "yc"),
)

BOX_FORMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "corners": (
        *(("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"), ("x1", "y1", "x2", "y2")),
        *(
            ("x0", "y0", "x1", "y1"),
            ("left", "top", "right", "bottom"),
            ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"),
        ),
        ("bbox_xmin", "bbox_ymin", "bbox_xmax", "bbox_ymax"),
    ),
    "centre": tuple((*place, *extent) for place in _CENTRES for extent in _EXTENTS),
    "size": tuple((*place, *extent) for place in _PLACES for extent in _EXTENTS),
    "": (("bbox",), ("box",), ("bounding_box",), ("boxesstring",), ("boxes_string",)),
}
"""What four numbers of a box are → names of their columns; "": one column holds them all."""


def box_columns(row: dict[str, Any]) -> tuple[tuple[str, ...], str] | None:
    """Return the columns of a box, and what its numbers are by their names ("" where these don't say it), or None."""
    for form, names in BOX_FORMS.items():
        for own in names:
            keys = tuple(find_key(row, (name,)) or "" for name in own)
            if all(keys):
                return keys, form
    return None


def table_files(root: Path) -> list[Path]:
    """Return the files in a folder that may be tables."""
    return sorted(path for path in root.iterdir() if path.suffix.lower() in TABLE_SUFFIXES and path.is_file())


def raw_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield line or row number and row. A JSON object image → value becomes rows of "image" and "caption".

    Raises:
        DataError: The file can't be read or understood.
    """
    text = read_label_text(path)
    # Files of other suffixes (.txt) are what they hold.
    if path.suffix.lower() in (".csv", ".tsv") or (
        path.suffix.lower() not in TABLE_SUFFIXES and text.lstrip()[:1] not in ("[", "{")
    ):
        yield from _csv_rows(text, path)
        return
    if path.suffix.lower() == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield number, parse_label_json(line, path, "mend the row", number)
        return
    content = parse_label_json(text, path, "mend the row")
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        content = content["images"]
    elif isinstance(content, dict):
        content = [{"image": name, "caption": value} for name, value in content.items()]
    if not isinstance(content, list):
        what = "is neither a list nor an object"
        raise DataError(what, where=str(path), fix='write [{"image": …, "caption": …}]')
    yield from enumerate(content, 1)


def _delimiter(head: str, path: Path) -> str:
    order = ("\t", ",", ";", "|") if path.suffix.lower() == ".tsv" else tuple(DELIMITERS)
    return next((mark for mark in order if mark in head), order[0])


def delimiter_of(path: Path) -> str:
    """Return what parts the cells of a table that isn't JSON, "" for JSON.

    Raises:
        DataError: The file can't be read.
    """
    if path.suffix.lower() in (".json", ".jsonl"):
        return ""
    text = read_label_text(path)
    return "" if text.lstrip()[:1] in ("[", "{") else _delimiter(text.split("\n", 1)[0], path)


def headed_texts(root: Path, keys: Sequence[Sequence[str]]) -> list[Path]:
    """Return the `.txt` files in a folder whose first line is the head of a table with a key of each list."""
    found = []
    for path in suffixed(root, ".txt"):
        try:
            head = head_of(path, 8000).split(b"\n", 1)[0].decode("utf-8-sig")[:2000].strip()
        except UnicodeDecodeError:
            continue
        cells = {cell.strip().strip('"'): "" for cell in head.split(_delimiter(head, path))}
        if len(cells) > 1 and all(find_key(cells, known) is not None for known in keys):
            found.append(path)
    return found


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    delimiter = _delimiter(text.split("\n", 1)[0], path)
    # Quoted cells may hold line breaks, so the text isn't cut into lines before it is parsed.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    keys: list[str] | None = None
    end = 0
    try:
        for cells in reader:
            line, end = end + 1, reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if keys is None:
                keys = [cell.strip() for cell in cells]
                continue
            cells = under_head(keys, cells, f"{path}:{line}", delimiter)
            row = dict(zip(keys, cells, strict=True))
            yield line, row if len(row) == len(keys) else with_doubles(keys, cells, f"{path}:{line}")
    except csv.Error as error:
        raise DataError(f"is not CSV ({error})", where=f"{path}:{end + 1}", fix="mend the row") from error


def under_head(keys: Sequence[str], cells: Sequence[str], where: str, delimiter: str) -> list[str]:
    """Return a cell for each key of a table's head; those that a row lacks, and blank ones at its end, are "".

    Raises:
        DataError: The row has more cells than the head, so that some may stand under the wrong key.
    """
    if any(cell.strip() for cell in cells[len(keys) :]):
        mark = {"\t": "tabs"}.get(delimiter, f'"{delimiter}"')
        what = f"has {len(cells)} cells, the head {len(keys)}"
        raise DataError(what, where=where, fix=f"put cells that hold {mark} into quotes")
    return [*cells[: len(keys)], *[""] * (len(keys) - len(cells))]


class TwoCells(str):
    """What a row holds in columns of one name whose cells differ; `refuse_doubles` of who reads it.

    Attributes:
        cells: Of the first of the columns, and of the first that differs.
        where: File and line.
    """

    cells: tuple[str, str]
    where: str

    @classmethod
    def of(cls, cells: tuple[str, str], where: str) -> TwoCells:
        """Return the two cells of a row."""
        made = cls(" and ".join(f'"{cell[:40]}"' for cell in cells))
        made.cells, made.where = cells, where
        return made


def with_doubles(keys: Sequence[str], cells: Sequence[str], where: str) -> dict[str, str]:
    """Return a row of which columns share a name; an empty name is nobody's."""
    row: dict[str, str] = {}
    for key, cell in zip(keys, cells, strict=True):
        if key and row.setdefault(key, cell) != cell and not isinstance(row[key], TwoCells):
            row[key] = TwoCells.of((row[key], cell), where)
    return row


def refuse_doubles(row: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raise where columns of one name that are read hold different cells; columns that nobody reads may."""
    for key in keys:
        if isinstance(held := row.get(key), TwoCells):
            what = f'has {held} in two columns that are both called "{key}"'
            raise DataError(what, where=held.where, fix="give each column a name of its own")


def find_key(row: dict[str, Any], keys: Sequence[str]) -> str | None:
    """Return the first of the keys that a row has, in any case, with blanks or without "_", or None."""
    known = {key.lower().replace(" ", "_"): key for key in reversed(list(row)) if isinstance(key, str)}
    known |= {key.lower(): key for key in reversed(list(row)) if isinstance(key, str)}
    return next((known[key.lower()] for key in keys if key.lower() in known), None)


_LOOKED_AT = 200
"""Rows that tell what a table is."""


def table_weight(root: Path, path: Path, keys: Sequence[str]) -> Literal["none", "some", "most"]:
    """Return whether a table is about the set's images: at least half of its rows must name one.

    "most" where it names half of the images or more, "some" where it names fewer: it may lie there for another purpose.
    """
    # A broken row further down doesn't make it another table: reading it will tell.
    rows = first_table_rows(path) or first_table_rows(path, 1)
    named, different = images_named(root, rows, keys)
    if not named or 2 * named < len(rows):
        return "none"
    images = sum(
        len(folder.files) for folder in image_folders(root) if folder.role not in ("mask", "instance")
    )
    return "most" if len(rows) >= _LOOKED_AT or 2 * different >= images else "some"


def first_table_rows(path: Path, count: int = _LOOKED_AT) -> list[dict[str, Any]]:
    """Return the first rows of a table; none where it can't be read or a row isn't one of keys and values."""
    try:
        rows = [row for _, row in islice(raw_rows(path), count)]
    except DataError:
        return []
    return rows if all(isinstance(row, dict) for row in rows) else []


def images_named(root: Path, rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> tuple[int, int]:
    """Return how many rows name an image of the set's folder, and how many images they name."""
    images = TableImages(root)
    named = find_key(rows[0], keys) if rows else None
    column = named or (find_key(rows[0], STUDY_KEYS) if rows else None)
    if column is None:
        return 0, 0
    texts = (str(row.get(column) or "").strip() for row in rows)
    found = [own for text in texts if (own := images.named(text, study=named is None))]
    return len(found), len({path for own in found for path in (own if named is None else own[:1])})


class TableImages:
    """The images of a set by what tables call them: a name, a path's end, or the folder of a study.

    Args:
        root: The set's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.by_name = name_index(root)

    @cached_property
    def by_study(self) -> dict[str, list[Path]]:
        """Images by each folder that they lie in; MIMIC's are called `s` or `p` and the number that tables have."""
        found: dict[str, list[Path]] = {}
        for folder in image_folders(self.root):
            for part in dict.fromkeys(Path(within(folder.path, self.root)).parts):
                bare = re.sub(r"^[ps](?=\d{5,}$)", "", part)
                for name in dict.fromkeys((part, bare)):
                    found.setdefault(name, []).extend(folder.files)
        return found

    def named(self, text: str, *, study: bool = False) -> list[Path]:
        """Return the images that a cell names, those of its study where the column names studies."""
        if study:
            return list(self.by_study.get(text) or self.by_name.get(text, []))
        text = text if text in self.by_name else text.replace("\\", "/")
        parts = Path(text).parts
        tails = ("/".join(parts[first:]) for first in range(len(parts)))
        return list(self.by_name.get(text) or next((self.by_name[t] for t in tails if t in self.by_name), []))


def refuse_several_tables(root: Path, paths: Sequence[Path]) -> None:
    """Raise a DataError that names the tables, of which only one can be meant."""
    what = f"several tables: {', '.join(path.name for path in paths)}"
    raise DataError(what, where=str(root), fix="name one with the option table")
