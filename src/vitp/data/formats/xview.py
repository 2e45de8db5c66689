"""xView: one GeoJSON for all images, with boxes in pixels and the name of the image as properties.

xView_train.geojson       features with `image_id`, `type_id` and `bounds_imcoords`
train_images/100.tif
xview_class_labels.txt    lines "11:Fixed-wing Aircraft"
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitp.core.errors import DataError
from vitp.core.reading import head_of
from vitp.data.formats.builder import ReadOptions, SetBuilder
from vitp.data.formats.image_labels import LabelShape
from vitp.data.formats.walk import (
    comma_list,
    files_below,
    name_index,
    parse_label_json,
    read_label_lines,
    read_label_text,
    split_in,
)
from vitp.records.labels import LabelledSet

_BOUNDS = b'"bounds_imcoords"'
_HEAD = 8192


def xview_files(root: Path) -> list[Path]:
    """Return the GeoJSON files under a folder whose first feature has a box in pixels."""
    return [path for path in files_below(root, ".geojson") if _BOUNDS in head_of(path, _HEAD)]


def read_xview(
    root: Path, options: ReadOptions = ReadOptions(), *, classes: str | list[str] | None = None
) -> LabelledSet:
    """Read a folder of xView.

    Args:
        root: Holds the GeoJSON and the images, anywhere below.
        options: Name, licence, splits.
        classes: The classes in order; the places of others are ignored.

    Raises:
        DataError: A feature can't be understood.
    """
    builder = SetBuilder(root, options)
    known, names = comma_list(classes), _names(root)
    paths = xview_files(root)
    if not paths:
        fix = "put xView_train.geojson into it"
        raise DataError("holds no GeoJSON with bounds_imcoords", where=str(root), fix=fix)
    by_image = _rows(builder, paths)
    said = (
        "named by xview_class_labels.txt" if names else "their numbers, as xview_class_labels.txt isn't there"
    )
    builder.understand(
        f"{', '.join(builder.place(path) for path in paths)}: boxes in pixels; classes are {said}"
    )
    images = name_index(root)
    seen: set[str] = set()
    missing: Counter[str] = Counter()
    for name, rows in sorted(by_image.items()):
        places = images.get(name) or []
        if len(places) > 1:
            raise DataError(f"{name} is {len(places)} files", where=rows[0][0], fix="keep one of them")
        if not places:
            missing[name] = len(rows)
            continue
        size = builder.size_of(places[0], rows[0][0])
        if size is None:
            continue
        found = builder.labels_of(size, rows[0][0].rpartition(":")[0])
        for where, facts in rows:
            kind = str(facts.get("type_id"))
            category = names.get(kind, kind)
            box = _box(facts.get("bounds_imcoords"), where)
            if names and kind not in names:
                found.ignore(where, f"class number {kind} has no name", kind, LabelShape(box=box))
            elif found.add(where, category, LabelShape(box=box), known=known) is not None:
                seen.add(category)
        builder.add_labelled(places[0], found, split=split_in(places[0].relative_to(root))[0])
    if missing:
        first = next(iter(missing))
        builder.note(
            "labels",
            f"{missing.total():,} objects of {len(missing)} images that aren't there ({first}); left out",
        )
    return builder.build(object_classes=known or sorted(seen))


def _rows(builder: SetBuilder, paths: Sequence[Path]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Return place and properties of the features by the name of their image."""
    found: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for path in paths:
        content = parse_label_json(read_label_text(path), path)
        for number, feature in enumerate(content.get("features") or [], 1):
            facts = feature.get("properties") if isinstance(feature, dict) else None
            if not isinstance(facts, dict) or "image_id" not in facts:
                fix = "give each feature image_id, type_id and bounds_imcoords"
                raise DataError("names no image", where=f"{path}: feature {number}", fix=fix)
            found[str(facts["image_id"])].append((builder.place(path, f"feature {number}"), facts))
    return found


def _box(text: Any, where: str) -> tuple[float, ...]:
    try:
        x1, y1, x2, y2 = (float(word) for word in str(text).split(","))
    except ValueError as error:
        fix = 'write bounds_imcoords as "x1,y1,x2,y2"'
        raise DataError(f"has no box in pixels ({text!r:.40})", where=where, fix=fix) from error
    return x1, y1, x2, y2


def _names(root: Path) -> dict[str, str]:
    """Return number → name of the classes, from lines "11:Fixed-wing Aircraft"."""
    path = next(iter(sorted(root.rglob("xview_class_labels.txt"))), None)
    if path is None:
        return {}
    rows = (line.partition(":") for line in read_label_lines(path) if line.strip())
    return {number.strip(): name.strip() for number, _, name in rows if name.strip()}
