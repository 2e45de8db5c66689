"""What annotation tools save as shapes of images: one way from their files to a set, whatever the tool is.

A tool's own module turns its files into `Drawing`s, one an image.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitp.core.errors import ConfigError, DataError
from vitp.core.reading import open_file
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.drawn_masks import with_drawn_masks
from vitp.data.formats.image_labels import ImageLabels, LabelShape
from vitp.data.formats.walk import (
    comma_list,
    files_below,
    images_below,
    name_index,
    parse_label_json,
    read_label_text,
    split_in,
)
from vitp.records.geometry import as_flat
from vitp.records.labels import LabelledSet
from vitp.records.regions import outline

Empty = Literal["", "nothing", "unlabelled"]

IGNORED_PLACE = "ignored regions"
"""Label of shapes that a file marks as ignored: their places are neither objects nor background, and no fault."""

_LOOKED_AT = 8
"""Files of one suffix that tell whether they are of a tool."""


@dataclass(frozen=True)
class ToolShape:
    """One shape.

    Attributes:
        where: Its place in the file.
        label: Its class; empty: nobody gave it one, or it isn't meant as one, and its place is ignored.
        shape: Where it lies, or why that isn't known.
        difficult: The file says so.
        why: What a finding says of a shape that is ignored.
    """

    where: str
    label: str
    shape: LabelShape | str
    difficult: bool = False
    why: str = "a shape without a label"


@dataclass(frozen=True)
class Drawing:
    """The shapes of one image.

    Attributes:
        where: Place of the image's entry in the labels.
        file: The file of the labels.
        image: Name of the image as the file has it, perhaps with folders.
        stem: Name without suffix by which the image is known, too; empty: none.
        size: Width and height that the file tells; 0: not told.
        shapes: What is drawn; a function where it depends on the image's true width and height.
        source: What the labels are counted by; None: the folder of the file.
        silent: There are no shapes, and the tool doesn't say whether anybody looked.
        split: The split that the labels tell; None: that of the image's folder.
    """

    where: str
    file: Path
    image: str
    stem: str
    size: Sequence[object]
    shapes: Sequence[ToolShape] | Callable[[tuple[int, int]], Sequence[ToolShape]]
    source: str | None = None
    silent: bool = False
    split: str | None = None


def read_drawings(
    root: Path,
    options: ReadOptions,
    found: Callable[[SetBuilder], Iterable[Drawing]],
    *,
    classes: str | list[str] | None,
    semantic: bool | str,
    missing: str = "have no JSON file",
    empty: Empty = "",
) -> LabelledSet:
    """Return the set of a tool's files.

    Args:
        root: Holds files and images anywhere below.
        options: Name, licence, splits.
        found: Reads the files.
        classes: The classes in order; the places of others are ignored.
        semantic: True: masks of classes instead of objects; "both": beside them.
        missing: What is said of images without labels.
        empty: What images without shapes are whose tool doesn't say it: "nothing" is there, or they are "unlabelled".

    Raises:
        DataError: A file can't be read, belongs to two images, or labels one that has labels; or there are images
            without shapes, and `empty` says nothing.
        ConfigError: `empty` is something else.
    """
    if empty not in ("", "nothing", "unlabelled"):
        raise ConfigError(f'is "{empty}"', where="empty", fix="choose nothing or unlabelled")
    builder = SetBuilder(root, options)
    known, names = comma_list(classes), name_index(root)
    seen: set[str] = set()
    used: dict[Path, str] = {}
    silent: list[str] = []
    for drawing in found(builder):
        image = _image_of(builder, drawing, names)
        if image is None:
            continue
        if (other := used.setdefault(image, drawing.where)) != drawing.where:
            raise DataError(
                f"labels {builder.place(image)} again, after {other}", where=drawing.where, fix="keep one"
            )
        if drawing.silent:
            silent.append(builder.place(image))
            if empty != "nothing":
                continue
        size = builder.size_of(image, drawing.where)
        if size is None or not builder.agree(drawing.where, drawing.size, size, image):
            continue
        source = drawing.source or builder.place(drawing.file.parent)
        labels = builder.labels_of(size, source, folder=drawing.source is None)
        shapes = drawing.shapes(size) if callable(drawing.shapes) else drawing.shapes
        seen |= _take(labels, shapes, known)
        split = drawing.split or split_in(image.relative_to(root))[0]
        builder.add_labelled(image, labels, split=split)
    if silent:
        _say_silent(builder, silent, len(used), empty)
    if rest := [image for image in images_below(root) if image not in used]:
        builder.note("images", f"{len(rest):,} {missing} ({builder.place(rest[0])}); left out")
    return with_drawn_masks(builder.build(object_classes=known or sorted(seen)), semantic)


def _say_silent(builder: SetBuilder, silent: Sequence[str], images: int, empty: str) -> None:
    """Say what images without shapes are taken for.

    Raises:
        DataError: Nobody says it.
    """
    what = f"{len(silent):,} of {images:,} images have no shape (the first: {silent[0]})"
    if not empty:
        raise DataError(
            f"{what}: nothing is there, or nobody has labelled them yet",
            where=str(builder.root),
            fix="-o empty=nothing or -o empty=unlabelled says which",
        )
    meant = "there is nothing" if empty == "nothing" else "left out as unlabelled"
    builder.understand(f"{what}: {meant}, as -o empty={empty} says")


def _image_of(builder: SetBuilder, drawing: Drawing, names: Mapping[str, list[Path]]) -> Path | None:
    """Return the image of a drawing: what it names, else what is called like its file.

    Raises:
        DataError: It may be of two images.
    """

    told = tuple(word for word in drawing.image.replace("\\", "/").split("/") if word not in ("", "."))

    def nearest(word: str) -> list[Path]:
        found = names.get(word, ())
        split = split_in(drawing.file.relative_to(builder.root))[0]
        same = [image for image in found if split_in(image.relative_to(builder.root))[0] == split]
        beside = [image for image in found if image.parent == drawing.file.parent]
        # Two images of one name are told apart by the folders that the file gives.
        within = [image for image in found if image.parts[-len(told) :] == told] if len(told) > 1 else []
        return beside or (within if len(found) > 1 else []) or same or list(found)

    name = told[-1] if told else ""
    named, called = nearest(name), nearest(drawing.stem) if drawing.stem else []
    found = named or called
    if not found:
        builder.lose(drawing.where, f"{name or drawing.stem} is missing; left out", absent=True)
        return None
    if len(found) > 1 or (called and found[0] not in called):
        both = [*found, *(image for image in called if image not in found)]
        shown = " or ".join(builder.place(image) for image in both[:2])
        raise DataError(
            f"may be of {shown}",
            where=drawing.where,
            fix="mend the image's name in the file, or call the file like its image",
        )
    return found[0]


def _take(found: ImageLabels, shapes: Iterable[ToolShape], known: tuple[str, ...] | None) -> set[str]:
    """Take the shapes of an image; return the classes that were used."""
    used = set()
    for one in shapes:
        if isinstance(one.shape, str):
            named = one.label or "a shape without a label"
            found.lose(one.where, f"{named}: {one.shape}", one.label)
        elif not one.label:
            found.ignore(one.where, one.why, "unknown", one.shape)
        elif found.add(one.where, one.label, one.shape, known=known, difficult=one.difficult) is not None:
            used.add(one.label)
    return used


# --- reading the files of tools


def label_json(path: Path) -> Any:
    """Return the content of a JSON file; None where it can't be read, or is none."""
    try:
        return parse_label_json(read_label_text(path), path)
    except DataError:
        return None


def files_of_tool(
    root: Path, suffix: str, words: Sequence[str], is_one: Callable[[Path], bool]
) -> list[Path]:
    """Return the files of one suffix below a folder, if any of the first ones is of a tool.

    Args:
        root: The folder.
        suffix: Of the files.
        words: Stand in every file of the tool. Files without them aren't parsed, as some are very large.
        is_one: Whether a file that has them is one.
    """
    files = [path for path in files_below(root, suffix) if not path.name.startswith(".")]
    looked_at = islice(files, _LOOKED_AT)
    return files if any(mentions(path, words) and is_one(path) for path in looked_at) else []


def mentions(path: Path, words: Sequence[str]) -> bool:
    """Return whether all words stand in an ordinary file."""
    try:
        with open_file(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(word.encode()) >= 0 for word in words)
    except (OSError, ValueError):  # an empty file can't be mapped
        return False


def drawn(where: str, label: object, draw: Callable[[], LabelShape]) -> ToolShape:
    """Return a shape, or why it can't be drawn: what `draw` raises as ValueError."""
    name = " ".join(str(label if label is not None else "").split())
    try:
        return ToolShape(where, name, draw())
    except ValueError as error:
        return ToolShape(where, name, str(error))


def numbers_under(values: Mapping[str, Any], *keys: str) -> list[float]:
    """Return finite numbers under keys.

    Raises:
        ValueError: One is missing, or is none.
    """
    try:
        found = [float(values[key]) for key in keys]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError(f"it has no numbers {', '.join(keys)}") from None
    if not all(map(math.isfinite, found)):
        raise ValueError("a coordinate is no finite number")
    return found


def box_of(values: Mapping[str, Any], *keys: str) -> LabelShape:
    """Return the box whose left, upper edge, width and height stand under four keys.

    Raises:
        ValueError: One is missing, or is no number.
    """
    x, y, width, height = numbers_under(values, *keys)
    return LabelShape(box=(x, y, x + width, y + height), corners=(x, y, width, height))


def dicts_of(value: object) -> list[dict[str, Any]]:
    """Return the mappings in a list, or in a mapping of names to them, as older files have it."""
    found = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return [one if isinstance(one, dict) else {} for one in found]


def finite_points(points: Iterable[Sequence[object]]) -> list[tuple[float, float]]:
    """Return pairs of numbers.

    Raises:
        ValueError: They are none.
    """
    try:
        found = [(float(x), float(y)) for x, y in points]  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise ValueError("its points are no pairs of numbers") from None
    if not all(math.isfinite(value) for point in found for value in point):
        raise ValueError("a coordinate is no finite number")
    return found


def ring_shape(
    points: Sequence[tuple[float, float]], holes: Sequence[Sequence[tuple[float, float]]] = ()
) -> LabelShape:
    """Return the shape within a ring of points, less the rings in it.

    Raises:
        ValueError: The ring has fewer than three points.
    """
    if len(points) < 3:
        raise ValueError(f"a polygon of {len(points)} points")
    rings = [tuple(value for point in ring for value in point) for ring in (points, *holes)]
    return LabelShape(polygons=(rings[0],), holes=tuple(rings[1:]))


def masked_part(part_HW: np.ndarray, corner: tuple[float, float], size: tuple[int, int]) -> LabelShape:
    """Return the outline of a mask of a part of the image.

    Args:
        part_HW: True where the object is.
        corner: Left and upper edge of the part in the image.
        size: Width and height of the image.

    Raises:
        ValueError: Nothing of the mask lies in the image.
    """
    mask_HW = np.zeros((size[1], size[0]), bool)
    x, y = (round(value) for value in corner)
    part_HW = part_HW[max(0, -y) :, max(0, -x) :]
    held_HW = mask_HW[max(0, y) : max(0, y) + part_HW.shape[0], max(0, x) : max(0, x) + part_HW.shape[1]]
    held_HW[:] = part_HW[: held_HW.shape[0], : held_HW.shape[1]]
    if not mask_HW.any():
        raise ValueError("its mask is empty")
    drawn = outline(mask_HW)
    return LabelShape(polygons=tuple(map(as_flat, drawn.rings)), holes=tuple(map(as_flat, drawn.holes)))
