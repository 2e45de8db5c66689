"""BDD100K and Scalabel: JSON of frames with boxes (`box2d`) and outlines (`poly2d`) in pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.drawings import (
    IGNORED_PLACE,
    Drawing,
    Empty,
    ToolShape,
    dicts_of,
    drawn,
    files_of_tool,
    finite_points,
    label_json,
    numbers_under,
    read_drawings,
    ring_shape,
)
from vitp.data.formats.image_labels import LabelShape
from vitp.data.formats.walk import split_word
from vitp.records.labels import LabelledSet

_STEPS = 8
"""Points of a curve between two corners of an outline."""


def scalabel_files(root: Path) -> list[Path]:
    """Return the JSON files below a folder that are BDD100K's or Scalabel's."""
    return list(_scalabel_sets(root))


def _scalabel_sets(root: Path) -> dict[Path, list[dict[str, Any]]]:
    paths = files_of_tool(root, ".json", ('"name"', '"category"', '2d"'), lambda path: bool(_frames(path)))
    found = {path: frames for path in paths if (frames := _frames(path))}
    rows = (row for frames in found.values() for frame in frames for row in dicts_of(frame.get("labels")))
    return found if any("box2d" in row or "poly2d" in row for row in rows) else {}


def _frames(path: Path) -> list[dict[str, Any]]:
    """Return the frames of a file, each with its `name` and its `labels`; none for a file of another kind."""
    content = label_json(path)
    frames = content.get("frames") if isinstance(content, dict) else content
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        return []
    if isinstance(content, dict) and len(frames) == 1 and isinstance(content.get("name"), str):
        # BDD100K's first files are one an image, with its objects in a frame of their own and a name without suffix.
        frames = [{**frames[0], "name": content["name"], "labels": frames[0].get("objects") or []}]
    rows = [row for frame in frames for row in dicts_of(frame.get("labels"))]
    is_one = all("category" in row for row in rows) and (rows or any("labels" in frame for frame in frames))
    return frames if is_one and all(isinstance(frame.get("name"), str) for frame in frames) else []


def _parts(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of an outline; BDD100K's first files have one, as points [x, y, type], and lanes are open."""
    told = row.get("poly2d")
    if (
        not isinstance(told, list)
        or not told
        or not all(isinstance(one, list) and len(one) == 3 for one in told)
    ):
        return dicts_of(told)
    is_open = str(row.get("category")).startswith("lane")
    return [
        {
            "vertices": [one[:2] for one in told],
            "types": "".join(str(one[2]) for one in told),
            "closed": not is_open,
        }
    ]


def read_scalabel(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    classes: str | list[str] | None = None,
    semantic: bool | str = False,
    empty: Empty = "",
) -> LabelledSet:
    """Read BDD100K's detection, drivable areas and instances as JSON, of any of its versions, and other Scalabel files.

    Crowds are difficult, what is marked as ignored is ignored in its place, and open lines (lanes) aren't read.

    Args:
        root: Holds the files, such as `labels/det_20/det_train.json`, and the images, anywhere below.
        options: Name, licence, splits.
        classes: The classes in order; the places of others are ignored.
        semantic: True: masks of classes instead of objects; "both": beside them.
        empty: What frames without labels are: "nothing" is there, or they are "unlabelled".

    Raises:
        DataError: A file can't be read, or whether frames without labels are empty isn't known.
    """

    def found(builder: SetBuilder) -> Iterator[Drawing]:
        for path, frames in _scalabel_sets(root).items():
            place = builder.place(path)
            for frame in frames:
                name, rows = str(frame["name"]), dicts_of(frame.get("labels"))
                drawn = [(row, _parts(row)) for row in rows]
                areas = [
                    row
                    for row, parts in drawn
                    if not parts or any(part.get("closed") is not False for part in parts)
                ]
                if len(areas) < len(rows):
                    builder.understand("BDD100K: open lines, such as lanes, have no area and aren't read")
                shapes = [_shape(f"{place}: {name}, label {n}", row) for n, row in enumerate(areas, 1)]
                # A file of many images is one of a split; that of one is called as its image.
                split = split_word(path.stem) if len(frames) > 1 else None
                yield Drawing(f"{place}: {name}", path, name, name, (0, 0), shapes, place, not rows, split)

    missing = "are in no file of BDD100K"
    return read_drawings(
        root, options, found, classes=classes, semantic=semantic, missing=missing, empty=empty
    )


def _shape(where: str, row: Mapping[str, Any]) -> ToolShape:
    told = row.get("attributes")
    attributes = {key.lower(): value for key, value in told.items()} if isinstance(told, dict) else {}
    label = IGNORED_PLACE if attributes.get("ignored") is True else row.get("category")
    return replace(drawn(where, label, partial(_place, row)), difficult=attributes.get("crowd") is True)


def _place(row: Mapping[str, Any]) -> LabelShape:
    rings = [ring_shape(_curved(part)).polygons[0] for part in _parts(row) if part.get("closed") is not False]
    box = row.get("box2d")
    values = numbers_under(box, "x1", "y1", "x2", "y2") if isinstance(box, dict) else None
    if not rings and values is None:
        raise ValueError("it has no box2d or poly2d")
    return LabelShape(box=values, polygons=rings)


def _curved(part: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return the points of an outline; two of the type C are the handles of a curve between the corners around them."""
    points, kinds = finite_points(part.get("vertices") or ()), str(part.get("types") or "")
    if "C" not in kinds:
        return points
    found: list[tuple[float, float]] = []
    for at, (point, kind) in enumerate(zip(points, kinds.ljust(len(points), "L"), strict=False)):
        if kind == "L":
            found.append(point)
        elif found and kinds[at : at + 2] == "CC" and kinds[at - 1] != "C":
            found += _curve(points[at - 1], point, points[at + 1], points[(at + 2) % len(points)])
    return found


def _curve(*corners: Sequence[float]) -> list[tuple[float, float]]:
    """Return points of a cubic Bézier curve, without its ends."""
    steps = [step / _STEPS for step in range(1, _STEPS)]
    shares = [((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3) for t in steps]
    x, y = (
        [sum(share * corner[axis] for share, corner in zip(own, corners, strict=True)) for own in shares]
        for axis in (0, 1)
    )
    return list(zip(x, y, strict=True))
