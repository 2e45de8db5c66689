"""Writing a labelled set to a folder in the layouts that people have their own labels in.

| layout | what is written |
|---|---|
| `masks` | `SPLIT/images/*.png`, `SPLIT/masks/*.png` (8-bit class index), `classes.txt` |
| `coco` | `SPLIT/images/*.png`, `annotations/instances_SPLIT.json` |
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from vitp.core.errors import ConfigError, DataError, did_you_mean
from vitp.core.files import atomic_dir
from vitp.records.geometry import area, as_points
from vitp.records.labels import LabelledImage, LabelledSet, ObjectLabel
from vitp.records.regions import rasterise
from vitp.records.rle import encode
from vitp.scenes.address import load_scene


@dataclass(frozen=True)
class _Chain(Sequence[LabelledImage]):
    """Several item sequences as one, still rendered one by one while its picture is in the cache."""

    parts: tuple[Sequence[LabelledImage], ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __iter__(self) -> Iterator[LabelledImage]:
        return itertools.chain.from_iterable(self.parts)

    @overload
    def __getitem__(self, at: int) -> LabelledImage: ...

    @overload
    def __getitem__(self, at: slice) -> list[LabelledImage]: ...

    def __getitem__(self, at: int | slice) -> LabelledImage | list[LabelledImage]:
        if isinstance(at, slice):
            return [self[number] for number in range(len(self))[at]]
        at = range(len(self))[at]
        for part in self.parts:
            if at < len(part):
                return part[at]
            at -= len(part)
        raise IndexError(at)


def _image(address: str | None, item: LabelledImage) -> Image.Image:
    if address is None:
        raise DataError(
            "has no second date", where=item.id, fix="generate the set with pairs, or use another layout"
        )
    return Image.fromarray(load_scene(address).image_HWC)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _text(lines: Iterable[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _objects(item: LabelledImage) -> tuple[ObjectLabel, ...]:
    if item.objects is None:
        raise DataError("has no object labels", where=item.id, fix="use a layout without objects")
    return item.objects


def _masks(labels: LabelledSet, out: Path) -> None:
    for item in labels.items:
        if item.semantic is None:
            raise DataError("has no mask", where=item.id, fix="use another layout")
        _save(_image(item.image, item), out / item.split / "images" / f"{item.id}.png")
        _save(Image.fromarray(item.semantic()), out / item.split / "masks" / f"{item.id}.png")
    _text(labels.semantic_classes, out / "classes.txt")


def _object_area(label: ObjectLabel) -> float:
    rings, holes = (sum(area(as_points(ring)) for ring in flat) for flat in (label.polygons, label.holes))
    return rings - holes


def _segmentation(label: ObjectLabel, item: LabelledImage) -> list[list[float]] | dict[str, list[int]]:
    """Return COCO polygons, or run lengths where there are holes: polygons of COCO have none."""
    if label.holes:
        return encode(rasterise(label.polygons, (item.height, item.width), label.holes))
    return [list(ring) for ring in label.polygons]


def _coco(labels: LabelledSet, out: Path) -> None:
    categories = [{"id": number, "name": name} for number, name in enumerate(labels.object_classes, 1)]
    files: dict[str, dict[str, list]] = {}
    for number, item in enumerate(labels.items, 1):
        _save(_image(item.image, item), out / item.split / "images" / f"{item.id}.png")
        content = files.setdefault(item.split, {"images": [], "annotations": [], "categories": categories})
        content["images"].append(
            {"id": number, "file_name": f"{item.id}.png", "width": item.width, "height": item.height}
        )
        for label in _objects(item):
            x1, y1, x2, y2 = label.box
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": labels.object_classes.index(label.category) + 1,
                    "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
                    "segmentation": _segmentation(label, item),
                    "area": _object_area(label) or (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    for split, content in files.items():
        path = out / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")


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


def _yolo(labels: LabelledSet, out: Path) -> None:
    splits = set()
    for item in labels.items:
        splits.add(item.split)
        _save(_image(item.image, item), out / item.split / "images" / f"{item.id}.png")
        lines = [_yolo_line(o, item, labels.object_classes.index(o.category)) for o in _objects(item)]
        _text(lines, out / item.split / "labels" / f"{item.id}.txt")
    names = [f"  {number}: {name}" for number, name in enumerate(labels.object_classes)]
    _text([*(f"{split}: {split}/images" for split in sorted(splits)), "names:", *names], out / "data.yaml")


def _dota(labels: LabelledSet, out: Path) -> None:
    for item in labels.items:
        _save(_image(item.image, item), out / item.split / "images" / f"{item.id}.png")
        lines = []
        for label in _objects(item):
            x1, y1, x2, y2 = label.box
            corners = label.quad or (x1, y1, x2, y1, x2, y2, x1, y2)
            lines.append(
                " ".join([*(f"{value:.3f}" for value in corners), label.category, str(int(label.difficult))])
            )
        _text(lines, out / item.split / "labelTxt" / f"{item.id}.txt")


def _voc_xml(item: LabelledImage) -> bytes:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{item.id}.png"
    size = ElementTree.SubElement(root, "size")
    for name, value in (("width", item.width), ("height", item.height), ("depth", 3)):
        ElementTree.SubElement(size, name).text = str(value)
    for label in _objects(item):
        node = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(node, "name").text = label.category
        ElementTree.SubElement(node, "difficult").text = str(int(label.difficult))
        box = ElementTree.SubElement(node, "bndbox")
        x1, y1, x2, y2 = label.box
        # VOC counts pixels from 1 and includes the last one.
        corners = (math.floor(x1) + 1, math.floor(y1) + 1, math.ceil(x2), math.ceil(y2))
        for name, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
            ElementTree.SubElement(box, name).text = str(value)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8")


def _voc(labels: LabelledSet, out: Path) -> None:
    splits: dict[str, list[str]] = {}
    for item in labels.items:
        splits.setdefault(item.split, []).append(item.id)
        _save(_image(item.image, item), out / "JPEGImages" / f"{item.id}.png")
        path = out / "Annotations" / f"{item.id}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_voc_xml(item))
    for split, names in splits.items():
        _text(names, out / "ImageSets" / "Main" / f"{split}.txt")


def _folders(labels: LabelledSet, out: Path) -> None:
    for item in labels.items:
        if item.scene is None:
            raise DataError("has no scene class", where=item.id, fix="use another layout")
        _save(_image(item.image, item), out / item.split / item.scene / f"{item.id}.png")


def _pairs(labels: LabelledSet, out: Path) -> None:
    for item in labels.items:
        later = _image(item.second_image, item)
        if item.change is None:
            raise DataError("has no change mask", where=item.id, fix="generate the set with pairs")
        _save(_image(item.image, item), out / item.split / "A" / f"{item.id}.png")
        _save(later, out / item.split / "B" / f"{item.id}.png")
        change = Image.fromarray(item.change().astype(np.uint8) * 255)
        _save(change, out / item.split / "label" / f"{item.id}.png")


LAYOUT_WRITERS: dict[str, Callable[[LabelledSet, Path], None]] = {
    "masks": _masks,
    "coco": _coco,
    "yolo": _yolo,
    "dota": _dota,
    "voc": _voc,
    "folders": _folders,
    "pairs": _pairs,
}


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
    # What is there is somebody's work, and nothing in it says that we may replace it.
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError("exists and isn't empty", where=str(out), fix="name a new folder")
    first = sets[0]
    whole = LabelledSet(
        first.name,
        _Chain(tuple(one.items for one in sets)),
        first.object_classes,
        first.scene_classes,
        first.semantic_classes,
        first.licence,
    )
    with atomic_dir(out) as folder:
        LAYOUT_WRITERS[layout](whole, folder)
