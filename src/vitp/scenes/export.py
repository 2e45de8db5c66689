"""Writing a labelled set to a folder in the layouts that people have their own labels in.

| layout | what is written |
|---|---|
| `masks` | `SPLIT/images/*.png`, `SPLIT/masks/*.png` (8-bit class index), `classes.txt` |
| `coco` | `SPLIT/images/*.png`, `annotations/instances_SPLIT.json` |
| `panoptic` | `SPLIT/images/*.png`, `annotations/panoptic_SPLIT.json`, `annotations/panoptic_SPLIT/*.png` (ids) |
| `yolo` | `SPLIT/images/*.png`, `SPLIT/labels/*.txt` (oriented, nine columns, where quads are known), `data.yaml` |
| `dota` | `SPLIT/images/*.png`, `SPLIT/labelTxt/*.txt` |
| `voc` | `JPEGImages/*.png`, `Annotations/*.xml`, `ImageSets/Main/SPLIT.txt` |
| `folders` | `SPLIT/CLASS/*.png` |
| `pairs` | `SPLIT/A/*.png`, `SPLIT/B/*.png`, `SPLIT/label/*.png` (255 = changed) |
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from vitp.core.errors import ConfigError, DataError, did_you_mean
from vitp.core.files import atomic_dir
from vitp.records.geometry import area, as_points
from vitp.records.labels import IGNORE, LabelledImage, LabelledSet, ObjectLabel
from vitp.records.regions import rasterise
from vitp.records.rle import encode
from vitp.scenes.address import load_scene
from vitp.scenes.named import entered

_Value = TypeVar("_Value")
LayoutWriter = Callable[[LabelledSet, Iterable[LabelledImage], Path], None]
LAYOUT_WRITERS: dict[str, LayoutWriter] = {}
"""Layout → function that writes a set's classes and its images, which are rendered one by one, to a folder."""


def _given(value: _Value | None, item: LabelledImage, what: str, fix: str = "use another layout") -> _Value:
    """Return what a layout needs of an image.

    Raises:
        DataError: The image doesn't have it.
    """
    if value is None:
        raise DataError(f"has no {what}", where=item.id, fix=fix)
    return value


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _save_image(item: LabelledImage, folder: Path) -> None:
    _save(load_scene(item.image).image_HWC, folder / f"{item.id}.png")


def _save_text(text: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _save_lines(lines: Iterable[str], path: Path) -> None:
    _save_text("".join(f"{line}\n" for line in lines), path)


def _objects(item: LabelledImage) -> tuple[ObjectLabel, ...]:
    return _given(item.objects, item, "object labels", "use a layout without objects")


@entered(LAYOUT_WRITERS)
def _masks(labels: LabelledSet, items: Iterable[LabelledImage], out: Path) -> None:
    for item in items:
        _save_image(item, out / item.split / "images")
        _save(_given(item.semantic, item, "mask")(), out / item.split / "masks" / f"{item.id}.png")
    _save_lines(labels.semantic_classes, out / "classes.txt")


def _coco_annotation(label: ObjectLabel, item: LabelledImage) -> dict[str, Any]:
    x1, y1, x2, y2 = label.box
    # COCO's polygons have no holes, so outlines with holes become run lengths.
    segmentation: list[list[float]] | dict[str, list[int]] = [list(ring) for ring in label.polygons]
    if label.holes:
        segmentation = encode(rasterise(label.polygons, (item.height, item.width), label.holes))
    rings, holes = (sum(area(as_points(ring)) for ring in flat) for flat in (label.polygons, label.holes))
    return {
        "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
        "segmentation": segmentation,
        # An object without outlines has the area of its box.
        "area": rings - holes or (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
    }


@entered(LAYOUT_WRITERS)
def _coco(labels: LabelledSet, items: Iterable[LabelledImage], out: Path) -> None:
    categories = [{"id": number, "name": name} for number, name in enumerate(labels.object_classes, 1)]
    files: dict[str, dict[str, list[Any]]] = {}
    for number, item in enumerate(items, 1):
        _save_image(item, out / item.split / "images")
        content = files.setdefault(item.split, {"images": [], "annotations": [], "categories": categories})
        image = {"id": number, "file_name": f"{item.id}.png", "width": item.width, "height": item.height}
        content["images"].append(image)
        for label in _objects(item):
            ids = {
                "id": len(content["annotations"]) + 1,
                "image_id": number,
                "category_id": labels.object_classes.index(label.category) + 1,
            }
            content["annotations"].append(ids | _coco_annotation(label, item))
    for split, content in files.items():
        _save_text(json.dumps(content), out / "annotations" / f"instances_{split}.json")


@entered(LAYOUT_WRITERS)
def _panoptic(labels: LabelledSet, items: Iterable[LabelledImage], out: Path) -> None:
    names = labels.semantic_classes
    categories = [
        {"id": number, "name": name, "isthing": int(name in labels.object_classes)}
        for number, name in enumerate(names, 1)
    ]
    files: dict[str, dict[str, list[Any]]] = {}
    for number, item in enumerate(items, 1):
        _save_image(item, out / item.split / "images")
        content = files.setdefault(item.split, {"images": [], "annotations": [], "categories": categories})
        image = {"id": number, "file_name": f"{item.id}.png", "width": item.width, "height": item.height}
        content["images"].append(image)
        scene = load_scene(item.image)
        # Objects follow the classes of stuff; what shows too little is of none.
        ids_HW = np.where(scene.instance_HW > 0, len(names) + scene.instance_HW, scene.semantic_HW + 1)
        ids_HW = np.where(scene.semantic_HW == IGNORE, 0, ids_HW).astype(np.uint32)
        segments = []
        for ident in np.unique(ids_HW[ids_HW > 0]).tolist():
            mask_HW = ids_HW == ident
            rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
            box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
            category = int(scene.semantic_HW[mask_HW][0]) + 1
            area_of = {"area": int(mask_HW.sum()), "bbox": [int(value) for value in box]}
            segments.append({"id": ident, "category_id": category, "iscrowd": 0, **area_of})
        content["annotations"].append(
            {"image_id": number, "file_name": f"{item.id}.png", "segments_info": segments}
        )
        # COCO's panoptic files keep an id as red + 256 · green + 65,536 · blue.
        pixels_HWC = np.stack([ids_HW & 255, ids_HW >> 8 & 255, ids_HW >> 16], -1).astype(np.uint8)
        _save(pixels_HWC, out / "annotations" / f"panoptic_{item.split}" / f"{item.id}.png")
    for split, content in files.items():
        _save_text(json.dumps(content), out / "annotations" / f"panoptic_{split}.json")


def _yolo_line(label: ObjectLabel, item: LabelledImage, number: int) -> str:
    if label.quad is None:
        x1, y1, x2, y2 = label.box
        values = [(x1 + x2) / 2 / item.width, (y1 + y2) / 2 / item.height]
        values += [(x2 - x1) / item.width, (y2 - y1) / item.height]
    else:
        sides = (item.width, item.height) * 4
        # The format has no coordinates outside the image; clipping bends quads at the border a little.
        values = [min(max(value / side, 0.0), 1.0) for value, side in zip(label.quad, sides, strict=True)]
    return " ".join([str(number), *(f"{value:.6f}" for value in values)])


@entered(LAYOUT_WRITERS)
def _yolo(labels: LabelledSet, items: Iterable[LabelledImage], out: Path) -> None:
    splits = set()
    for item in items:
        splits.add(item.split)
        _save_image(item, out / item.split / "images")
        lines = [_yolo_line(o, item, labels.object_classes.index(o.category)) for o in _objects(item)]
        _save_lines(lines, out / item.split / "labels" / f"{item.id}.txt")
    names = [f"  {number}: {name}" for number, name in enumerate(labels.object_classes)]
    rows = [f"{split}: {split}/images" for split in sorted(splits)]
    _save_lines([*rows, "names:", *names], out / "data.yaml")


@entered(LAYOUT_WRITERS)
def _dota(labels: LabelledSet, items: Iterable[LabelledImage], out: Path) -> None:
    for item in items:
        _save_image(item, out / item.split / "images")
        lines = []
        for label in _objects(item):
            x1, y1, x2, y2 = label.box
            corners = [f"{value:.3f}" for value in label.quad or (x1, y1, x2, y1, x2, y2, x1, y2)]
            lines.append(" ".join([*corners, label.category, str(int(label.difficult))]))
        _save_lines(lines, out / item.split / "labelTxt" / f"{item.id}.txt")


def _nodes(parent: ElementTree.Element, **texts: object) -> ElementTree.Element:
    """Add an element for each text and return the parent."""
    for name, text in texts.items():
        ElementTree.SubElement(parent, name).text = str(text)
    return parent


@entered(LAYOUT_WRITERS)
def _voc(labels: LabelledSet, items: Iterable[LabelledImage], out: Path) -> None:
    splits: dict[str, list[str]] = {}
    for item in items:
        splits.setdefault(item.split, []).append(item.id)
        _save_image(item, out / "JPEGImages")
        root = _nodes(ElementTree.Element("annotation"), filename=f"{item.id}.png")
        _nodes(ElementTree.SubElement(root, "size"), width=item.width, height=item.height, depth=3)
        for label in _objects(item):
            node = ElementTree.SubElement(root, "object")
            _nodes(node, name=label.category, difficult=int(label.difficult))
            (x1, y1), (x2, y2) = map(math.floor, label.box[:2]), map(math.ceil, label.box[2:])
            # VOC counts pixels from 1 and includes the last one.
            _nodes(ElementTree.SubElement(node, "bndbox"), xmin=x1 + 1, ymin=y1 + 1, xmax=x2, ymax=y2)
        ElementTree.indent(root)
        _save_text(ElementTree.tostring(root, encoding="unicode"), out / "Annotations" / f"{item.id}.xml")
    for split, names in splits.items():
        _save_lines(names, out / "ImageSets" / "Main" / f"{split}.txt")


@entered(LAYOUT_WRITERS)
def _folders(labels: LabelledSet, items: Iterable[LabelledImage], out: Path) -> None:
    for item in items:
        _save_image(item, out / item.split / _given(item.scene, item, "scene class"))


@entered(LAYOUT_WRITERS)
def _pairs(labels: LabelledSet, items: Iterable[LabelledImage], out: Path) -> None:
    for item in items:
        fix = "generate the set with pairs"
        later = _given(item.second_image, item, "second date", f"{fix}, or use another layout")
        change = _given(item.change, item, "change mask", fix)
        _save_image(item, out / item.split / "A")
        _save(load_scene(later).image_HWC, out / item.split / "B" / f"{item.id}.png")
        _save(change().astype(np.uint8) * 255, out / item.split / "label" / f"{item.id}.png")


def write_scenes(labels: LabelledSet | Sequence[LabelledSet], out: str | Path, *, layout: str) -> None:
    """Write generated scenes to a folder: images as PNG and labels in one of the usual layouts.

    Args:
        labels: One set, or one a split of the same domain.
        out: New or empty folder; it appears once all is written.
        layout: Key of `LAYOUT_WRITERS`.

    Raises:
        ConfigError: Unknown layout, no set, sets of different classes, or a folder that is in use.
        DataError: The set lacks what the layout needs.
        VitpError: The folder can't be written.
    """
    if layout not in LAYOUT_WRITERS:
        known = f"use one of {', '.join(LAYOUT_WRITERS)}"
        raise ConfigError(f'there is no layout "{layout}"', fix=did_you_mean(layout, LAYOUT_WRITERS) or known)
    sets = [labels] if isinstance(labels, LabelledSet) else list(labels)
    if not sets or any(one.semantic_classes != sets[0].semantic_classes for one in sets):
        raise ConfigError("the sets to write don't share their classes", fix="give sets of one domain")
    out = Path(out)
    # What is there is somebody's work, and nothing in it says that it may be replaced.
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError("exists and isn't empty", where=str(out), fix="name a new folder")
    items = itertools.chain.from_iterable(one.items for one in sets)
    with atomic_dir(out) as folder:
        LAYOUT_WRITERS[layout](sets[0], items, folder)
