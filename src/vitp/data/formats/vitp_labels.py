"""Our own label files: a `LabelledSet` in lossless JSON, one line an image, masks by path.

    labels/set.json        name, classes, licence, findings, image_root, label_root
    labels/{split}.jsonl   one image a line

Roots are relative to the folder that holds `labels`, or absolute. Images are relative to `image_root`, masks
to `label_root`; the two differ where the images are crops.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from vitp.core import files
from vitp.core.errors import DataError
from vitp.core.files import to_json as json_text
from vitp.core.reading import parse_json
from vitp.data.formats.common import read_text
from vitp.data.formats.pixel_masks import MaskReader, mask_from_json, mask_to_json
from vitp.io.images import is_scene
from vitp.records.labels import SPLITS, LabelledImage, LabelledSet, ObjectLabel

VERSION = 1

_LARGEST_SIDE = 10_000_000
"""Pixels of an image's side, and of a coordinate in it."""


@dataclass(frozen=True)
class Roots:
    """Folders that paths are relative to.

    Attributes:
        out: Holds `labels`.
        images: Of the images.
        labels: Of the masks.
    """

    out: Path
    images: Path
    labels: Path


def relative(path: str | Path, root: Path) -> str:
    """Return a path relative to `root` where it lies in it, `scene:` addresses as they are."""
    if is_scene(path):
        return str(path)
    path = Path(path)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


class LabelWriter:
    """Writes `labels/` image by image, so that a large or generated set never has to be in memory.

    It writes in place: give it a folder that is put in its place as a whole (`vitp.core.files.atomic_dir`).

    Args:
        roots: Folders that paths are made relative to.
    """

    def __init__(self, roots: Roots) -> None:
        self.roots = roots
        self._open: dict[str, TextIO] = {}

    def __enter__(self) -> LabelWriter:
        folder = self.roots.out / "labels"
        folder.mkdir(parents=True, exist_ok=True)
        self._open = {
            split: (folder / f"{split}.jsonl").open("w", encoding="utf-8", newline="\n") for split in SPLITS
        }
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._open.values():
            file.close()

    def add(self, item: LabelledImage) -> None:
        """Write one image's labels into its split.

        Raises:
            DataError: A mask is neither in a file nor of a generated scene.
        """
        row = item_to_json(item, self.roots)
        self._open[item.split].write(json_text(row) + "\n")


def write_head(
    labelled: LabelledSet, roots: Roots, *, image_root: str | None = None, label_root: str | None = None
) -> None:
    """Write `labels/set.json`.

    Args:
        labelled: The set; its items aren't looked at.
        roots: Folders; those inside `roots.out` are recorded relative to it.
        image_root: What to record instead of `roots.images`, when the images are still to be moved.
        label_root: What to record instead of `roots.labels`, likewise.
    """
    head = {
        "format": "vitp-labels",
        "version": VERSION,
        "name": labelled.name,
        "image_root": image_root or relative(roots.images, roots.out),
        "label_root": label_root or relative(roots.labels, roots.out),
        "object_classes": list(labelled.object_classes),
        "scene_classes": list(labelled.scene_classes),
        "semantic_classes": list(labelled.semantic_classes),
        "licence": labelled.licence,
        "findings": list(labelled.findings),
        "understood": list(labelled.understood),
    }
    files.write_json(roots.out / "labels" / "set.json", head)


def write(labelled: LabelledSet, roots: Roots) -> None:
    """Write a whole set under `roots.out`.

    Raises:
        DataError: A mask is neither in a file nor of a generated scene.
    """
    with LabelWriter(roots) as writer:
        for item in labelled.items:
            writer.add(item)
    write_head(labelled, roots)


def read(root: Path) -> LabelledSet:
    """Read the set that `write` wrote under `root`.

    Raises:
        DataError: There is no such set, or a row can't be understood.
    """
    folder = root / "labels"
    head = _head(folder / "set.json")
    roots = Roots(root, root / head["image_root"], root / head["label_root"])
    items = [item for split in SPLITS for item in _items(folder / f"{split}.jsonl", split, roots)]
    return LabelledSet(
        name=head["name"],
        items=items,
        object_classes=tuple(head["object_classes"]),
        scene_classes=tuple(head["scene_classes"]),
        semantic_classes=tuple(head["semantic_classes"]),
        licence=head["licence"],
        findings=tuple(head["findings"]),
        understood=tuple(head["understood"]),
    )


def _head(path: Path) -> dict[str, Any]:
    fix = "compile the labels again"
    if not path.is_file():
        raise DataError(
            "holds no compiled labels",
            where=str(path.parent.parent),
            fix="make them with `vitp data compile`",
        )
    try:
        head = parse_json(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"is not JSON ({error.msg})", where=f"{path}:{error.lineno}", fix=fix) from error
    if not isinstance(head, dict) or head.get("format") != "vitp-labels" or head.get("version") != VERSION:
        raise DataError(f"is not a label set of version {VERSION}", where=str(path), fix=fix)
    for key in ("name", "image_root", "label_root", "licence"):
        if not isinstance(head.get(key), str) or "\0" in head[key]:
            raise DataError(f'"{key}" is no text', where=str(path), fix=fix)
    for key in ("object_classes", "scene_classes", "semantic_classes", "findings", "understood"):
        texts = head.setdefault(key, []) if key == "understood" else head.get(key)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(f'"{key}" is no list of texts', where=str(path), fix=fix)
    return head


def _items(path: Path, split: str, roots: Roots) -> Iterable[LabelledImage]:
    for row, line in enumerate(read_text(path).splitlines(), 1):
        try:
            yield item_from_json(parse_json(line), split, roots)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"is not a labelled image ({type(error).__name__}: {error})",
                where=f"{path}:{row}",
                fix="compile the labels again",
            ) from error


def item_to_json(item: LabelledImage, roots: Roots) -> dict[str, Any]:
    """Return an image and its labels as JSON; absent keys mean "not labelled"."""
    row: dict[str, Any] = {
        "id": item.id,
        "image": relative(item.image, roots.images),
        "width": item.width,
        "height": item.height,
    }
    if item.group:
        row["group"] = item.group
    if item.objects is not None:
        row["objects"] = [_object_to_json(label) for label in item.objects]
    if item.ignored:
        row["ignored"] = [_object_to_json(label) for label in item.ignored]
    if item.scene is not None:
        row["scene"] = item.scene
    if item.captions:
        row["captions"] = list(item.captions)
    if item.semantic is not None:
        row["semantic"] = _mask_to_json(item.semantic, item, roots)
    if item.second_image is not None:
        row["second_image"] = relative(item.second_image, roots.images)
    if item.change is not None:
        row["change"] = _mask_to_json(item.change, item, roots)
    if item.later_objects is not None:
        row["later_objects"] = [_object_to_json(label) for label in item.later_objects]
    return row


def _mask_to_json(mask: Any, item: LabelledImage, roots: Roots) -> dict[str, Any]:
    if not isinstance(mask, MaskReader):
        raise DataError(
            "its mask is neither in a file nor of a generated scene",
            where=item.id,
            fix="save the mask as PNG",
        )
    return mask_to_json(mask, roots.labels)


def _object_to_json(label: ObjectLabel) -> dict[str, Any]:
    row: dict[str, Any] = {"category": label.category, "box": list(label.box)}
    if label.quad is not None:
        row["quad"] = list(label.quad)
    if label.polygons:
        row["polygons"] = [list(ring) for ring in label.polygons]
    if label.difficult:
        row["difficult"] = True
    if label.holes:
        row["holes"] = [list(ring) for ring in label.holes]
    return row


def item_from_json(row: dict[str, Any], split: str, roots: Roots) -> LabelledImage:
    """Return what `item_to_json` wrote down.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: The JSON isn't of that form.
    """
    second = row.get("second_image")
    semantic, change = row.get("semantic"), row.get("change")
    return LabelledImage(
        id=_text(row["id"]),
        image=_address(row["image"], roots.images),
        width=_side(row["width"]),
        height=_side(row["height"]),
        split=split,
        group=_text(row.get("group", "")),
        objects=_objects_from_json(row, "objects"),
        scene=None if row.get("scene") is None else _text(row["scene"]),
        captions=tuple(_text(caption) for caption in row.get("captions", ())),
        semantic=mask_from_json(semantic, roots.labels) if semantic is not None else None,
        second_image=_address(second, roots.images) if second is not None else None,
        change=mask_from_json(change, roots.labels) if change is not None else None,
        later_objects=_objects_from_json(row, "later_objects"),
        ignored=_objects_from_json(row, "ignored") or (),
    )


def _address(name: str, root: Path) -> str:
    return name if is_scene(name) else str(root / name)


def _objects_from_json(row: dict[str, Any], key: str) -> tuple[ObjectLabel, ...] | None:
    return tuple(_object_from_json(label) for label in row[key]) if key in row else None


def _object_from_json(row: dict[str, Any]) -> ObjectLabel:
    x1, y1, x2, y2 = _points(row["box"], 2)
    return ObjectLabel(
        _text(row["category"]),
        (x1, y1, x2, y2),
        _points(row["quad"], 4) if "quad" in row else None,
        tuple(_points(ring) for ring in row.get("polygons", ())),
        row.get("difficult", False) is True,
        tuple(_points(ring) for ring in row.get("holes", ())),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is no text")
    return value


def _side(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _LARGEST_SIDE:
        raise ValueError(f"{value!r:.60} is no width or height")
    return value


def _points(values: Any, count: int | None = None) -> tuple[float, ...]:
    """Return the coordinates x, y, x, y, … of a number of points; None: of any number."""
    numbers = isinstance(values, list) and all(
        type(v) in (int, float) and abs(v) <= _LARGEST_SIDE for v in values
    )
    if not numbers or len(values) % 2 or (count is not None and len(values) != 2 * count):
        raise ValueError(f"{values!r:.60} are no coordinates of points")
    return tuple(values)
