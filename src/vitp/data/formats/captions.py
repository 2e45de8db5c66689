"""Captions: a JSON, JSON Lines or CSV table of image → text, or a text file beside each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitp.core.errors import DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.tables import (
    DELIMITERS,
    IMAGE_KEYS,
    PATIENT_KEYS,
    STUDY_KEYS,
    TableImages,
    delimiter_of,
    find_key,
    first_table_rows,
    headed_texts,
    raw_rows,
    refuse_doubles,
    refuse_several_tables,
    table_files,
    table_weight,
)
from vitp.data.formats.volume_names import volume_suffix
from vitp.data.formats.walk import (
    Folder,
    image_folders,
    read_label_lines,
    read_label_text,
    split_folders,
    split_of,
    stem_of,
    suffixed,
    words_of,
)
from vitp.io.images import IMAGE_SUFFIXES
from vitp.records.instructions import IMAGE_MARK, text_problem
from vitp.records.labels import LabelledSet

TEXT_KEYS = (
    *("caption", "captions", "text", "sentences", "report", "description"),
    *("sentence", "comment", "report_text", "findings", "impression"),
)
_SECTIONS = ("findings", "impression")
"""Columns that are parts of one report."""

_NO_REPORTS = frozenset(
    (
        *(
            "date",
            "dates",
            "readme",
            "info",
            "meta",
            "metadata",
            "license",
            "licence",
            "parameters",
            "params",
            "config",
        ),
        *(
            "settings",
            "calibration",
            "calib",
            "intrinsics",
            "pose",
            "poses",
            "log",
            "index",
            "list",
            "files",
            "classes",
        ),
        *("labels", "label", "timestamps", "times", "header", "md", "checksum", "bounds", "extent", "mtl"),
    )
)
"""Words of names of texts that say something else of a folder than what its images show (OSCD's `dates.txt`)."""

_MISSING = frozenset({"nan", "n/a", "#n/a", "na", "<na>", "none", "null", "-", "--"})
"""How tables write that there is no text."""


_LOOKED_AT = 20
"""Images of each folder that are looked at for texts beside them."""


@dataclass(frozen=True)
class _Row:
    place: str
    image: str
    texts: tuple[str, ...]
    split: str | None
    study: bool = False
    patient: str = ""


def read_captions(
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
    same image are joined. A report of a study (a row that names the study's folder, or a text beside or in it) is a
    caption of all images of that study.

    Args:
        root: The table, or the folder that holds it, or images with `.txt` files of the same stem beside
            them (one caption a line), in any folder below.
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
    keys = (
        (image_column,) if image_column else IMAGE_KEYS,
        (caption_column,) if caption_column else TEXT_KEYS,
    )
    return _read_table(builder, path, keys)


def _read_table(
    builder: SetBuilder, path: Path, keys: tuple[tuple[str, ...], tuple[str, ...]]
) -> LabelledSet:
    """Read a table whose images and texts have one of these keys."""
    base = builder.root
    texts: dict[Path, list[str]] = {}
    rows: dict[Path, _Row] = {}
    if (delimiter := delimiter_of(path)) not in ("", ","):
        builder.understand(f"{builder.place(path)}: its cells are parted by {DELIMITERS[delimiter]}")
    index: TableImages | None = None
    seen = _Texts(builder)
    for row in _rows(path, builder, *keys, seen):
        places = (base / folder / row.image for folder in ("", "images", row.split or ""))
        found = [] if row.study else [place for place in places if place.is_file()][:1]
        if not found:
            # The first image that isn't in the usual places makes all folders of the set be looked through.
            index = TableImages(base) if index is None else index
            found = index.named(row.image, study=row.study)
        if not found or (len(found) > 1 and not row.study):
            fate = f"is {len(found)} files" if found else "is missing"
            builder.lose(row.place, f"{row.image} {fate}; left out", absent=not found)
        elif not row.texts:
            builder.note(row.place, "no caption; left out")
        else:
            for image in found:
                texts.setdefault(image, []).extend(row.texts)
                rows[image] = row if image not in rows or rows[image].split is None else rows[image]
    seen.tell()
    if any(row.study for row in rows.values()):
        builder.understand(f"{builder.place(path)}: a text is about all images in the folder of its study")
    for image, captions in texts.items():
        row = rows[image]
        others = {"group": row.patient, "person": "patient"} if row.patient else {}
        builder.add_file(image, split=row.split, captions=tuple(dict.fromkeys(captions)), **others)
    return builder.build()


def is_caption_table(path: Path) -> bool:
    """Return whether the first row of a table names an image and has a text about it."""
    rows = first_table_rows(path, 1)
    if not rows or find_key(rows[0], TEXT_KEYS) is None:
        return False
    image = _values(rows[0], IMAGE_KEYS)
    if isinstance(image, str) and (
        Path(image.strip()).suffix.lower() in IMAGE_SUFFIXES or volume_suffix(image.strip())
    ):
        return True
    study = _values(rows[0], STUDY_KEYS)
    return study is not None and bool(TableImages(path.parent).by_study.get(str(study).strip()))


def caption_tables(root: Path) -> list[Path]:
    """Return the files in a folder that are tables of captions, by their first row."""
    candidates = (*table_files(root), *headed_texts(root, (IMAGE_KEYS, TEXT_KEYS)))
    return [path for path in candidates if is_caption_table(path)]


def caption_weight(root: Path) -> Literal["none", "some", "most"]:
    """Return whether captions are there for "none", "some" or "most" of a folder's images.

    Tables count that are about the images of the folder, and text files beside the first images of each folder; "some"
    where most of these lie in folders that may be classes.
    """
    found = {table_weight(root, path, IMAGE_KEYS) for path in caption_tables(root)}
    found.add(_report_weight(root))
    bases = {base / name for _, base in split_folders(root) for name in ("", "images")}
    texts = images = plain = 0
    for folder in _pictures(root):
        own = {path.stem for path in suffixed(folder.path, ".txt")}
        first = folder.files[:_LOOKED_AT]
        count = sum(stem_of(image) in own for image in first)
        texts, images = texts + count, images + len(first)
        plain += count if folder.path in bases else 0
    found.add("none" if not texts else "most" if 2 * texts >= images and 2 * plain >= texts else "some")
    return "most" if "most" in found else "some" if "some" in found else "none"


def _pictures(root: Path) -> list[Folder]:
    """Return the folders of images that texts beside them may describe: none of masks, of several roles."""
    folders = image_folders(root)
    return [folder for folder in folders if folder.role in ("", "image")] or folders


def study_reports(root: Path) -> dict[Path, tuple[Path, ...]]:
    """Return the text of each study → its images: a text beside the folder and of its name, or the only one in it."""
    found: dict[Path, tuple[Path, ...]] = {}
    texts: dict[Path, dict[str, Path]] = {}
    for folder in image_folders(root):
        if folder.path == root:
            continue
        above = folder.path.parent
        texts.setdefault(above, {path.stem: path for path in suffixed(above, ".txt")})
        beside = texts[above].get(folder.path.name)
        inside = [
            path
            for path in suffixed(folder.path, ".txt")
            if path.stem not in folder.stems and not _NO_REPORTS & set(words_of(path.stem))
        ]
        if beside is not None and beside.is_file():
            found[beside] = folder.files
        elif len(inside) == 1 and split_of(folder.path.name) is None:
            found[inside[0]] = folder.files
    # One text in one folder of images is a note about the set.
    return found if len(found) > 1 else {}


def _report_weight(root: Path) -> Literal["none", "some", "most"]:
    reports = study_reports(root)
    if not reports:
        return "none"
    told = sum(len(files) for files in reports.values())
    return "most" if 2 * told >= sum(len(folder.files) for folder in image_folders(root)) else "some"


def _read_reports(builder: SetBuilder, reports: dict[Path, tuple[Path, ...]]) -> LabelledSet:
    seen = _Texts(builder)
    for path, images in reports.items():
        captions = seen.used(read_label_text(path), builder.place(path))
        if not captions:
            builder.note(builder.place(path), f"empty; {len(images)} images left out")
        for image in images if captions else ():
            builder.add_file(image, captions=captions)
    seen.tell()
    builder.understand(f"{len(reports):,} reports, each about all images of its study")
    return builder.build()


def _table(root: Path, name: str | None) -> Path | None:
    if root.is_file() or name is not None:
        return root if root.is_file() else root / str(name)
    found = caption_tables(root) or table_files(root)
    found = [path for path in found if table_weight(root, path, IMAGE_KEYS) != "none"] or found
    if len(found) > 1:
        refuse_several_tables(root, found)
    return found[0] if found else None


def _read_sidecars(builder: SetBuilder, root: Path) -> LabelledSet:
    if reports := study_reports(root):
        return _read_reports(builder, reports)
    seen = _Texts(builder)
    for folder in _pictures(root):
        texts = {path.stem: path for path in suffixed(folder.path, ".txt")}
        for image in folder.files:
            path = texts.get(stem_of(image))
            if path is None or not path.is_file():
                builder.note(builder.place(image), "no text file; image left out")
                continue
            captions = seen.used(read_label_lines(path), builder.place(path))
            if not captions:
                builder.note(builder.place(path), "empty; image left out")
            else:
                builder.add_file(image, split=folder.split, captions=captions)
    seen.tell()
    return builder.build()


class _Texts:
    """Counts the texts that aren't used as they are."""

    def __init__(self, builder: SetBuilder) -> None:
        self.builder = builder
        self.missing: Counter[str] = Counter()
        self.marks = 0

    def used(self, value: Any, place: str) -> tuple[str, ...]:
        """Return the texts that say something, of one text, a list of texts or a list of {"raw": text}.

        Raises:
            DataError: A text holds what no file can.
        """
        kept = []
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, dict):
                text = text.get("raw") or text.get("caption") or text.get("text")
            text = "" if text is None else " ".join(str(text).split())
            if text.lower() in _MISSING:
                self.missing[text] += 1
            elif text:
                _check_text(text, place)
                self.marks += IMAGE_MARK in text
                kept.append(text)
        return tuple(kept)

    def tell(self) -> None:
        """Note what was counted."""
        if self.missing:
            listed = ", ".join(f'"{text}" {count:,}' for text, count in self.missing.most_common())
            self.builder.note("captions", f"texts that say that there is none, not used: {listed}")
        if self.marks:
            text = f'{self.marks:,} hold {IMAGE_MARK}, which stands for an image; read as "image"'
            self.builder.note("captions", text)


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
        study = None
        if image is None and isinstance(row, dict) and find_key(row, image_keys) is None:
            study = image = _values(row, STUDY_KEYS)
            image = None if image is None else str(image)
        if not isinstance(image, str) or not image.strip():
            what = f"row names no image (looked for {', '.join(image_keys)})"
            raise DataError(what, where=place, fix="name the key with the option image_column")
        if find_key(row, text_keys) is None:
            what = f"row has no caption (looked for {', '.join(text_keys)})"
            raise DataError(what, where=place, fix="name the key with the option caption_column")
        _check_text(image, place)
        texts = seen.used(_text_of(row, text_keys), place)
        patient = _values(row, tuple(filter(None, (builder.options.patient, *PATIENT_KEYS))))
        refuse_doubles(row, ("split",))
        split = split_of(str(row.get("split") or ""))
        yield _Row(place, image.strip(), texts, split, study is not None, str(patient or "").strip())


def _text_of(row: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """Return the text of a row; its sections together, where it has them in columns of their own."""
    if all(find_key(row, (key,)) is not None for key in _SECTIONS) and find_key(row, keys[:-3]) is None:
        parts = [str(_values(row, (key,)) or "").strip() for key in _SECTIONS]
        return " ".join(part for part in parts if part and part.lower() not in _MISSING)
    return _values(row, keys)


def _check_text(text: str, place: str) -> None:
    if (problem := text_problem(text)) is not None:
        raise DataError(problem, where=place, fix="mend the text or remove the row")


def _values(row: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """Return the first value that isn't empty among the keys, in any case."""
    for key in keys:
        own = find_key(row, (key,))
        if own is not None and row[own]:
            refuse_doubles(row, (own,))
            return row[own]
    return None
