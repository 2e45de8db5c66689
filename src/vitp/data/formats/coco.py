"""COCO JSON: boxes, polygons, run-length masks and captions."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitp.data.formats.common import ReadOptions, SetBuilder, read_text
from vitp.data.formats.geometry import area, as_flat, as_points
from vitp.data.formats.regions import outline
from vitp.data.formats.rle import decode
from vitp.data.formats.splits import split_of
from vitp.data.labels import LabelledSet, ObjectLabel
from vitp.errors import DataError
from vitp.reading import parse_json


@dataclass
class _Labels:
    """What the files of one set say of one image."""

    objects: list[ObjectLabel] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _File:
    path: Path
    split: str | None
    content: dict[str, Any]
    images: Path | None = None


def read(root: Path, options: ReadOptions = ReadOptions()) -> LabelledSet:
    """Read COCO annotations.

    Args:
        root: A JSON file, or a folder with JSON files in itself, in `annotations/` or in folders of the
            splits; a file's split follows from its name ("instances_val2017.json") or its folder's. Images
            lie beside the file or in `images/`, `train2017/` and the like.
        options: Name, licence, splits.

    Raises:
        DataError: A file isn't COCO JSON, or a row lacks what it must have.
    """
    paths = annotation_files(root)
    if not paths:
        raise DataError("no COCO JSON file found", where=str(root), fix="put it into annotations/")
    base = root if root.is_dir() else root.parent
    builder = SetBuilder(base, options)
    paths = _without_doubles(builder, paths)
    files = [_load(path, base) for path in paths]
    categories = _categories(files)
    sizes: dict[Path, tuple[int, int]] = {}
    splits: dict[Path, str | None] = {}
    labels: dict[Path, _Labels] = defaultdict(_Labels)
    instances = any(_is_instances(file.content) for file in files)
    for file in files:
        _read_file(builder, file, categories, sizes, splits, labels)
    for path, size in sizes.items():
        found = labels[path]
        objects = tuple(found.objects) if instances else None
        builder.add(path, size, split=splits[path], objects=objects, captions=tuple(found.captions))
    return builder.build(object_classes=dict.fromkeys(categories.values()) if instances else ())


def read_files(
    builder: SetBuilder,
    entries: Sequence[tuple[Path, str, Path]],
    on_missing: Callable[[Path], None],
) -> tuple[str, ...]:
    """Add the images of COCO files whose place is known.

    Args:
        builder: Takes the images and findings.
        entries: Annotation file, split and folder of its images.
        on_missing: Is told of every image that isn't there.

    Returns:
        The names of the categories, in the order of the files.

    Raises:
        DataError: A file isn't COCO JSON, or a row lacks what it must have.
    """
    files = [
        replace(_load(path, builder.root), split=split, images=folder) for path, split, folder in entries
    ]
    categories = _categories(files)
    sizes: dict[Path, tuple[int, int]] = {}
    splits: dict[Path, str | None] = {}
    labels: dict[Path, _Labels] = defaultdict(_Labels)
    for file in files:
        _read_file(builder, file, categories, sizes, splits, labels, on_missing)
    for path, size in sizes.items():
        builder.add(path, size, split=splits[path], objects=tuple(labels[path].objects))
    return tuple(dict.fromkeys(categories.values()))


def annotation_files(root: Path) -> list[Path]:
    """Return the JSON files that may be COCO annotations, sorted."""
    if root.is_file():
        return [root]
    folders = [
        root / "annotations",
        root,
        *sorted(p for p in root.iterdir() if p.is_dir() and split_of(p.name)),
    ]
    for folder in folders[:2]:
        if found := sorted(folder.glob("*.json")):
            return found
    return sorted(path for folder in folders[2:] for path in folder.glob("*.json"))


def _without_doubles(builder: SetBuilder, paths: list[Path]) -> list[Path]:
    """Leave out the files that COCO ships beside its instances and that label the same objects again."""
    if not any(path.name.startswith("instances") for path in paths):
        return paths
    doubles = [p for p in paths if p.name.startswith(("person_keypoints", "panoptic", "stuff", "image_info"))]
    for path in doubles:
        builder.note(builder.place(path), "labels the objects of the instances files again; left out")
    return [path for path in paths if path not in doubles]


def _load(path: Path, base: Path) -> _File:
    try:
        content = parse_json(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"is not JSON ({error.msg})", where=f"{path}:{error.lineno}", fix="mend the file"
        ) from error
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(
                f'has no list "{key}"', where=str(path), fix="give a COCO file, or move others away"
            )
    return _File(path, _split_in(path, base), content)


def _split_in(path: Path, base: Path) -> str | None:
    """Return the split in a file's name or in its folder's ("person_keypoints_val2017" → "val")."""
    words = path.stem.replace("-", "_").replace(".", "_").split("_")
    if path.parent != base:
        words.append(path.parent.name)
    found = (split_of(word.rstrip("0123456789")) for word in words)
    return next((split for split in found if split), None)


def _is_instances(content: dict[str, Any]) -> bool:
    return bool(content.get("categories")) or any(
        "category_id" in row for row in content["annotations"][:100]
    )


def _categories(files: Sequence[_File]) -> dict[Any, str]:
    categories: dict[Any, str] = {}
    for file in files:
        for number, row in enumerate(file.content.get("categories") or ()):
            where = f"{file.path}: categories[{number}]"
            try:
                key, name = row["id"], str(row["name"])
            except (KeyError, TypeError) as error:
                raise DataError("has no id or name", where=where, fix="give both") from error
            if categories.setdefault(key, name) != name:
                raise DataError(
                    f'number {key} is "{categories[key]}" in another file and "{name}" here',
                    where=where,
                    fix="number the categories alike in all files",
                )
    return categories


def _read_file(
    builder: SetBuilder,
    file: _File,
    categories: dict[Any, str],
    sizes: dict[Path, tuple[int, int]],
    splits: dict[Path, str | None],
    labels: dict[Path, _Labels],
    on_missing: Callable[[Path], None] | None = None,
) -> None:
    paths: dict[Any, Path | None] = {}
    folders = [file.images] if file.images is not None else _image_folders(builder, file)
    for number, row in enumerate(file.content["images"]):
        where = builder.place(file.path, f"images[{number}]")
        try:
            key, name = row["id"], str(row["file_name"])
        except (KeyError, TypeError) as error:
            raise DataError("has no id or file_name", where=where, fix="give both") from error
        path = paths[key] = next((p for p in (folder / name for folder in folders) if p.is_file()), None)
        if path is None and on_missing is not None:
            on_missing(folders[0] / name)
        elif path is None:
            builder.note(where, f"{name} is missing; image left out")
        elif path not in sizes and not _take_size(builder, where, path, row, sizes):
            paths[key] = None
        else:
            splits.setdefault(path, file.split)
    for number, row in enumerate(file.content["annotations"]):
        where = builder.place(file.path, f"annotations[{number}]")
        if not isinstance(row, dict) or row.get("image_id") not in paths:
            builder.note(where, "belongs to no image of the file; left out")
            continue
        path = paths[row["image_id"]]
        if path is None:
            continue
        if str(row.get("caption") or "").strip():
            labels[path].captions.append(" ".join(str(row["caption"]).split()))
        elif (label := _object(builder, where, row, sizes[path], categories)) is not None:
            labels[path].objects.append(label)


def _take_size(
    builder: SetBuilder, where: str, path: Path, row: dict[str, Any], sizes: dict[Path, tuple[int, int]]
) -> bool:
    size = builder.size_of(path, where)
    if size is None:
        return False
    told = (row.get("width") or size[0], row.get("height") or size[1])
    if told != size:
        builder.note(where, f"says {told[0]}×{told[1]} but the image has {size[0]}×{size[1]}; image left out")
        return False
    sizes[path] = size
    return True


def _image_folders(builder: SetBuilder, file: _File) -> list[Path]:
    """Return where the images of a file may lie, the file's own split first.

    Folders of other splits are left out: two splits may use the same file names for different images.
    """
    folders: list[Path] = []
    for base in dict.fromkeys((file.path.parent, builder.root)):
        plain = [base, base / "images", base / "JPEGImages"]
        places = [
            p for parent in plain[:2] if parent.is_dir() for p in sorted(parent.iterdir()) if p.is_dir()
        ]
        named = [(split_of(place.name.rstrip("0123456789")), place) for place in places]
        own = [place for split, place in named if split and file.split in (None, split)]
        folders += [*(f for place in own for f in (place, place / "images")), *plain]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _object(
    builder: SetBuilder, where: str, row: dict[str, Any], size: tuple[int, int], categories: dict[Any, str]
) -> ObjectLabel | None:
    category = categories.get(row.get("category_id"))
    if category is None:
        builder.note(where, f"unknown class number {row.get('category_id')}; left out")
        return None
    if row.get("iscrowd"):
        builder.note(where, f"a crowd of {category}, not one object; left out")
        return None
    polygons = _polygons(where, row.get("segmentation"), size)
    bbox = row.get("bbox")
    if not bbox and not polygons:
        builder.note(where, f"{category} has neither bbox nor segmentation; left out")
        return None
    box = None
    if bbox:
        try:
            x, y, w, h = (float(value) for value in bbox)
        except (TypeError, ValueError) as error:
            raise DataError(
                "bbox is not four numbers", where=where, fix="write [x, y, width, height]"
            ) from error
        box = (x, y, x + w, y + h)
    return builder.label(where, category, size, box=box, polygons=polygons)


def _polygons(where: str, segmentation: Any, size: tuple[int, int]) -> list[tuple[float, ...]]:
    """Return the rings of polygons or of a run-length mask; rings without area are dropped."""
    if not segmentation:
        return []
    try:
        if isinstance(segmentation, dict):
            height, width = (int(value) for value in segmentation["size"])
            if (width, height) != size:
                raise ValueError(f"the mask is {width}×{height}, the image {size[0]}×{size[1]}")
            rings = outline(decode(segmentation["counts"], height, width))
        else:
            rings = tuple(as_points([float(value) for value in ring]) for ring in segmentation)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"segmentation can't be understood ({error})",
            where=where,
            fix="write polygons [[x1, y1, …], …] or a run-length mask {size, counts}",
        ) from error
    return [as_flat(ring) for ring in rings if np.isfinite(ring).all() and area(ring) > 0]
