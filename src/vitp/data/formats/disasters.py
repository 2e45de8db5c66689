"""xView2 (xBD): two dates of each place in one folder, outlines as WKT in JSON, damage at the later date.

    {train,test,hold,tier1,tier3}/images/NAME_00000001_{pre,post}_disaster.png
    {train,test,hold,tier1,tier3}/labels/NAME_00000001_{pre,post}_disaster.json

Buildings of the earlier date are objects. What became what is known by pixels: of nothing or a building at the earlier
date, a level of damage at the later one; what has changed are the buildings with damage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.core.extras import need
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.drawn_masks import Drawn, DrawnMask, DrawnPart, drawing_order, parts_of
from vitp.data.formats.geo_shapes import object_label
from vitp.data.formats.image_labels import LabelShape
from vitp.data.formats.pixel_masks import TransitionFiles
from vitp.data.formats.walk import files_below, images_below, parse_label_json, read_label_text, split_of
from vitp.records.labels import BACKGROUND, IGNORE, LabelledSet

_PRE, _POST = "_pre_disaster", "_post_disaster"
UNDAMAGED = "no-damage"
UNCLASSIFIED = "un-classified"
DAMAGE = (UNDAMAGED, "minor-damage", "major-damage", "destroyed")
_BUILDING = "building"
_STATES = (BACKGROUND, _BUILDING, *DAMAGE)
_OFFICIAL = {"train": "train", "tier1": "train", "tier3": "train", "test": "test", "hold": "val"}


@dataclass(frozen=True)
class _Place:
    """The files of one place: both images and both label files."""

    images: tuple[Path, Path]
    labels: tuple[Path, Path]
    split: str | None


def is_xbd(root: Path) -> bool:
    """Return whether a folder holds label files of both dates as xView2 names them."""
    return bool(_label_files(root))


def _label_files(root: Path) -> dict[str, Path]:
    """Return the label files of the earlier dates by name, those that have one of the later date beside them."""
    found = [path for path in files_below(root, ".json") if path.stem.endswith(_PRE)]
    return {path.stem: path for path in found if path.with_name(path.name.replace(_PRE, _POST)).is_file()}


def read_xbd(root: Path, options: ReadOptions = ReadOptions()) -> LabelledSet:
    """Read a folder of xView2.

    Damage that is not classified is neither damaged nor undamaged: its pixels say nothing at either date.

    Args:
        root: Holds images and labels, in folders of the splits (`hold` is for validation) or not.
        options: Name, licence, splits.

    Raises:
        DataError: A label file can't be understood.
    """
    builder = SetBuilder(root, options)
    images = {path.stem: path for path in images_below(root) if path.stem.endswith((_PRE, _POST))}
    for stem, label in _label_files(root).items():
        later = stem.replace(_PRE, _POST)
        if stem not in images or later not in images:
            builder.note(builder.place(label), "one of its two images is missing; left out")
            continue
        parts = label.relative_to(root).parts[:-1]
        split = next(filter(None, (_OFFICIAL.get(part.lower()) or split_of(part) for part in parts)), None)
        pair = (images[stem], images[later])
        _read_place(builder, _Place(pair, (label, label.with_name(label.name.replace(_PRE, _POST))), split))
    builder.understand(
        f"two dates of each place: {_PRE.strip('_')} and {_POST.strip('_')}; buildings, and what became "
        "of them; what changed is what is damaged"
    )
    return builder.build(object_classes=(_BUILDING,), change_classes=_STATES)


def _read_place(builder: SetBuilder, place: _Place) -> None:
    sizes = [builder.size_of(path) for path in place.images]
    if sizes[0] is None or sizes[1] is None:
        return
    if sizes[0] != sizes[1]:
        builder.note(builder.place(place.images[0]), "the two dates differ in size; left out")
        return
    size = sizes[0]
    found = builder.labels_of(size, builder.place(place.labels[0].parent), folder=True)
    facts = [_content(path) for path in place.labels]
    standing: list[Drawn] = []
    for number, feature in enumerate(facts[0][0], 1):
        where = builder.place(place.labels[0], f"feature {number}")
        parts = _parts(feature, where)
        if found.add(where, _BUILDING, _shape(parts)) is not None:
            standing.append((_STATES.index(_BUILDING), parts))
    levels = _levels(builder, place.labels[1], facts[1][0])
    known = found.are_known and levels is not None
    damaged = [shape for shape in levels or () if shape[0] > _STATES.index(UNDAMAGED)]
    # A mask of change knows no "not known": one unclear building leaves the pair without it.
    unclear = any(value == IGNORE for value, _ in damaged)
    both = [DrawnMask(size, drawing_order(shapes)) for shapes in (standing, levels or ())]
    builder.add_labelled(
        place.images[0],
        found,
        split=place.split,
        second_image=str(place.images[1]),
        transition=TransitionFiles(*both) if known else None,
        change=DrawnMask(size, drawing_order(damaged), change=True) if known and not unclear else None,
        metadata=_metadata(facts[0][1], facts[1][1]) or None,
    )


def _levels(builder: SetBuilder, path: Path, features: Sequence[dict[str, Any]]) -> list[Drawn] | None:
    """Return the state of each building at the later date; None where one of them has no place."""
    levels: list[Drawn] = []
    for number, feature in enumerate(features, 1):
        where = builder.place(path, f"feature {number}")
        facts = feature.get("properties")
        level = str((facts.get("subtype") if isinstance(facts, dict) else None) or UNCLASSIFIED)
        parts = _parts(feature, where)
        if not parts:
            builder.note(where, "has no outline; nothing is said of the later date")
            return None
        if level not in (*DAMAGE, UNCLASSIFIED):
            builder.note(where, f'unknown damage "{level}"; nothing is said of its place')
        levels.append((_STATES.index(level) if level in DAMAGE else IGNORE, parts))
    return levels


def _content(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the features in pixels and the metadata of a label file."""
    content = parse_label_json(read_label_text(path), path)
    try:
        features, metadata = content["features"]["xy"], content.get("metadata") or {}
        if not isinstance(features, list) or not all(isinstance(one, dict) for one in features):
            raise TypeError("features.xy is no list")
    except (KeyError, TypeError, AttributeError) as error:
        what = f"has no features.xy ({error})"
        raise DataError(what, where=str(path), fix="give it as xView2 writes it") from error
    return features, metadata if isinstance(metadata, dict) else {}


def _parts(feature: dict[str, Any], where: str) -> tuple[DrawnPart, ...]:
    """Return the polygons of a feature in pixels, mended; none where there are none."""
    shapely = need("geo", "shapely", where)
    try:
        shape = shapely.make_valid(shapely.from_wkt(str(feature.get("wkt"))))
    except shapely.GEOSException:
        return ()
    return parts_of(shape)


def _shape(parts: tuple[DrawnPart, ...]) -> LabelShape:
    if not parts:
        return LabelShape()
    label = object_label("", parts)
    return LabelShape(label.box, label.quad, label.polygons, label.holes)


def _metadata(first: dict[str, Any], second: dict[str, Any]) -> dict[str, str]:
    """Return what both dates say of how they were taken."""
    found = {
        "sensor": second.get("sensor"),
        "date": first.get("capture_date"),
        "later_date": second.get("capture_date"),
    }
    return {
        key: str(value)[:10] if key != "sensor" else str(value)
        for key, value in found.items()
        if isinstance(value, str) and value
    }
