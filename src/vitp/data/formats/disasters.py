"""xView2 (xBD): two dates of each place in one folder, outlines as WKT in JSON, damage at the later date.

    {train,test,hold,tier1,tier3}/images/NAME_00000001_{pre,post}_disaster.png
    {train,test,hold,tier1,tier3}/labels/NAME_00000001_{pre,post}_disaster.json

Buildings of the earlier date are objects, those of the later one have their damage level as class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.drawn_masks import DrawnMask, drawing_order, parts_of
from vitp.data.formats.geo_shapes import object_label
from vitp.data.formats.image_labels import ImageLabels, LabelShape
from vitp.data.formats.walk import files_below, images_below, parse_label_json, read_label_text, split_of
from vitp.io.ground import need_geo
from vitp.records.labels import LabelledSet

_PRE, _POST = "_pre_disaster", "_post_disaster"
UNDAMAGED = "no-damage"
UNCLASSIFIED = "un-classified"
DAMAGE = (UNDAMAGED, "minor-damage", "major-damage", "destroyed")
_BUILDING = "building"
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

    Damage that is not classified is neither damaged nor undamaged: the building is difficult at the later date.

    Args:
        root: Holds images and labels, in folders of the splits (`hold` is for validation) or not.
        options: Name, licence, splits.

    Raises:
        DataError: A label file can't be understood.
    """
    builder = SetBuilder(root, options)
    images = {path.stem: path for path in images_below(root) if path.stem.endswith((_PRE, _POST))}
    seen: set[str] = set()
    for stem, label in _label_files(root).items():
        later = stem.replace(_PRE, _POST)
        if stem not in images or later not in images:
            builder.note(builder.place(label), "one of its two images is missing; left out")
            continue
        split = next(
            (_OFFICIAL.get(part.lower()) or split_of(part) for part in label.relative_to(root).parts[:-1]),
            None,
        )
        pair = (images[stem], images[later])
        _read_place(
            builder, _Place(pair, (label, label.with_name(label.name.replace(_PRE, _POST))), split), seen
        )
    builder.understand(
        f"two dates of each place: {_PRE.strip('_')} and {_POST.strip('_')}; buildings, and their damage at the later date "
        "as class; what changed is what is damaged"
    )
    return builder.build(object_classes=(_BUILDING,))


def _read_place(builder: SetBuilder, place: _Place, seen: set[str]) -> None:
    sizes = [builder.size_of(path) for path in place.images]
    if sizes[0] is None or sizes[1] is None:
        return
    if sizes[0] != sizes[1]:
        builder.note(builder.place(place.images[0]), "the two dates differ in size; left out")
        return
    size = sizes[0]
    before, after = (
        builder.labels_of(size, builder.place(path.parent), folder=True) for path in place.labels
    )
    facts = [_content(path) for path in place.labels]
    for number, feature in enumerate(facts[0][0], 1):
        _take(before, builder.place(place.labels[0], f"feature {number}"), feature, _BUILDING)
    damaged = []
    for number, feature in enumerate(facts[1][0], 1):
        where = builder.place(place.labels[1], f"feature {number}")
        level = str(feature.get("properties", {}).get("subtype") or UNCLASSIFIED)
        if level not in (*DAMAGE, UNCLASSIFIED):
            after.ignore(where, f'unknown damage "{level}"', level, _shape(feature, where))
            continue
        unknown = level == UNCLASSIFIED
        label = _take(after, where, feature, _BUILDING if unknown else level, difficult=unknown)
        if label is not None and not unknown:
            seen.add(level)
            if level != UNDAMAGED:
                damaged.append((1, tuple(_parts(feature, where))))
    known = before.are_known and after.are_known
    builder.add_labelled(
        place.images[0],
        before,
        split=place.split,
        second_image=str(place.images[1]),
        change=DrawnMask(size, drawing_order(damaged), change=True) if known else None,
        metadata=_metadata(facts[0][1], facts[1][1]) or None,
    )


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


def _parts(feature: dict[str, Any], where: str) -> tuple[Any, ...]:
    shapely = need_geo("shapely", where)
    try:
        shape = shapely.make_valid(shapely.from_wkt(str(feature.get("wkt"))))
    except shapely.GEOSException:
        return ()
    return parts_of(shape)


def _shape(feature: dict[str, Any], where: str) -> LabelShape:
    parts = _parts(feature, where)
    if not parts:
        return LabelShape()
    label = object_label("", parts)
    return LabelShape(label.box, label.quad, label.polygons, label.holes)


def _take(
    found: ImageLabels, where: str, feature: dict[str, Any], category: str, *, difficult: bool = False
) -> Any:
    return found.add(where, category, _shape(feature, where), difficult=difficult)


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
