"""CrowdHuman (`annotation_train.odgt`) and WIDER FACE (`wider_face_train_bbx_gt.txt`): boxes of people and of faces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from vitp.core.errors import ConfigError, DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.drawings import (
    IGNORED_PLACE,
    Drawing,
    ToolShape,
    box_of,
    dicts_of,
    drawn,
    files_of_tool,
    read_drawings,
)
from vitp.data.formats.image_labels import LabelShape
from vitp.data.formats.walk import files_below, parse_label_json, read_label_lines, split_word
from vitp.records.labels import LabelledSet

_PARTS = {"fbox": "person", "vbox": "person", "hbox": "head"}
_FACE_COLUMNS = 10
"""x, y, width, height, blur, expression, illumination, invalid, occlusion, pose."""
_INVALID = 7


def crowdhuman_files(root: Path) -> list[Path]:
    """Return CrowdHuman's files below a folder; other sets are odgt, too, and don't speak of `gtboxes`."""
    return files_of_tool(root, ".odgt", ('"ID"', '"gtboxes"'), lambda path: True)


def read_crowdhuman(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    part: Literal["fbox", "vbox", "hbox"] = "fbox",
) -> LabelledSet:
    """Read CrowdHuman: one kind of the boxes of people. What is ignored, and people who are none, is ignored in place.

    Args:
        root: Holds `annotation_train.odgt` and the like, with the images anywhere below.
        options: Name, licence, splits.
        classes: The classes in order.
        part: Which boxes: "fbox" (whole bodies, hidden parts included), "vbox" (what is visible) or "hbox" (heads).

    Raises:
        DataError: A file can't be read.
        ConfigError: There is no such part.
    """
    if part not in _PARTS:
        raise ConfigError(f'is "{part}"', where="part", fix=f"choose {', '.join(_PARTS)}")

    def found(builder: SetBuilder) -> Iterator[Drawing]:
        builder.understand(f"CrowdHuman: boxes are {part} (-o part=fbox: whole, vbox: visible, hbox: heads)")
        for path in crowdhuman_files(root):
            for row, line in enumerate(read_label_lines(path), 1):
                content = parse_label_json(line, path, row=row) if line.strip() else None
                if content is None:
                    continue
                name = str(content.get("ID") or "") if isinstance(content, dict) else ""
                if not name or not isinstance(content.get("gtboxes"), list):
                    what = "is no row of CrowdHuman (ID, gtboxes)"
                    raise DataError(what, where=f"{path}:{row}", fix="mend or remove the row")
                where = builder.place(path, row)
                shapes = [
                    _person(f"{where}, box {n}", box, part)
                    for n, box in enumerate(dicts_of(content["gtboxes"]), 1)
                ]
                yield Drawing(
                    where,
                    path,
                    f"{name}.jpg",
                    name,
                    (0, 0),
                    shapes,
                    builder.place(path),
                    split=split_word(path.stem),
                )

    return read_drawings(
        root, options, found, classes=classes, semantic=False, missing="are in no .odgt file"
    )


def _person(where: str, box: Mapping[str, Any], part: str) -> ToolShape:
    def flag(key: str) -> bool:
        told = box.get(key)
        return isinstance(told, dict) and bool(told.get("ignore"))

    is_ignored = box.get("tag") != "person" or flag("extra") or (part == "hbox" and flag("head_attr"))
    four = box.get(part)
    values = dict(zip("xywh", four if isinstance(four, list) else (), strict=False))
    # Whole bodies reach outside of the image, so four numbers aren't asked whether they are two corners.
    return drawn(
        where,
        IGNORED_PLACE if is_ignored else _PARTS[part],
        lambda: LabelShape(box=box_of(values, *"xywh").box),
    )


def widerface_files(root: Path) -> list[Path]:
    """Return WIDER FACE's lists of boxes below a folder."""
    return [path for path in files_below(root, ".txt") if path.stem.lower().endswith("_bbx_gt")]


def read_widerface(
    root: Path, options: ReadOptions = ReadOptions(), *, classes: str | list[str] | None = None
) -> LabelledSet:
    """Read WIDER FACE's lists: an image, how many faces, and a row for each. Invalid ones are ignored in place.

    Args:
        root: Holds `wider_face_split/wider_face_train_bbx_gt.txt` and the like, and `WIDER_train/images`.
        options: Name, licence, splits.
        classes: The classes in order.

    Raises:
        DataError: A row can't be understood.
    """

    def found(builder: SetBuilder) -> Iterator[Drawing]:
        for path in widerface_files(root):
            lines = iter(enumerate(read_label_lines(path), 1))
            for row, name in lines:
                if not name.strip():
                    continue
                told = next(lines, (0, ""))[1].strip()
                count = int(told) if told.isdecimal() and len(told) < 10 else -1
                # An image without faces has one row of zeros.
                rows = list(islice(lines, max(count, 1)))
                if count < 0 or len(rows) < count:
                    what = (
                        f'"{told[:20]}" is no number of faces'
                        if count < 0
                        else f"ends before its {count} rows"
                    )
                    raise DataError(what, where=f"{path}:{row + 1}", fix="mend or remove the entry")
                shapes = [_face(builder, path, *entry) for entry in (rows if count else ())]
                where, split = builder.place(path, row), split_word(path.stem)
                image = f"WIDER_{split}/images/{name.strip()}"
                yield Drawing(where, path, image, "", (0, 0), shapes, builder.place(path), split=split)

    return read_drawings(
        root, options, found, classes=classes, semantic=False, missing="are in no list of boxes"
    )


def _face(builder: SetBuilder, path: Path, row: int, line: str) -> ToolShape:
    words = line.split()
    if len(words) != _FACE_COLUMNS:
        what = f"has {len(words)} columns, not {_FACE_COLUMNS}"
        raise DataError(what, where=f"{path}:{row}", fix="mend the row")
    values = dict(zip("xywh", words, strict=False))
    label = IGNORED_PLACE if words[_INVALID] == "1" else "face"
    return drawn(builder.place(path, row), label, lambda: LabelShape(box=box_of(values, *"xywh").box))
