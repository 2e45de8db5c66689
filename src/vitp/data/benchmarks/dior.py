"""DIOR and DIOR-R: 23,463 images of 800 × 800, the same images with upright and with oriented boxes.

ImageSets/Main/{train,val,test}.txt
JPEGImages-trainval/00001.jpg …      JPEGImages-test/11726.jpg …
Annotations/Horizontal Bounding Boxes/00001.xml …      Annotations/Oriented Bounding Boxes/00001.xml …
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from vitp.core.errors import DataError
from vitp.core.reading import parse_xml
from vitp.data.benchmarks.base import Benchmark, Reading, reader_of
from vitp.data.formats.image_labels import ImageLabels, LabelShape
from vitp.data.formats.walk import read_label_text
from vitp.records.labels import LabelledSet

CLASSES = (
    "airplane",
    "airport",
    "baseballfield",
    "basketballcourt",
    "bridge",
    "chimney",
    "expressway-service-area",
    "expressway-toll-station",
    "dam",
    "golffield",
    "groundtrackfield",
    "harbor",
    "overpass",
    "ship",
    "stadium",
    "storagetank",
    "tenniscourt",
    "trainstation",
    "vehicle",
    "windmill",
)
_SPLITS = ("train", "val", "test")
_CORNERS = tuple(
    f"{axis}_{corner}"
    for corner in ("left_top", "right_top", "right_bottom", "left_bottom")
    for axis in ("x", "y")
)

DIOR = Benchmark(
    name="dior",
    title="DIOR",
    task="detection",
    modality="RGB",
    classes=CLASSES,
    published_by="Northwestern Polytechnical University (G. Cheng, J. Han), on the DIOR page of its authors",
    counts={"train": 5862, "val": 5863, "test": 11738},
    metric="AP50",
    train_on=("train", "val"),
    drop_empty=True,
    notes=(
        "class names are written in several ways in the XML files (Expressway-Service-area); they are lowered",
        "trained on train and val, tested on test",
    ),
)
DIOR_R = replace(
    DIOR,
    name="dior_r",
    title="DIOR-R",
    task="oriented",
    notes=(*DIOR.notes, "oriented boxes are four named corners (robndbox), not centre and angle"),
)


@reader_of(DIOR)
def read(reading: Reading) -> LabelledSet:
    """Read DIOR with its upright boxes."""
    return _read(reading, "Annotations/Horizontal Bounding Boxes")


@reader_of(DIOR_R)
def read_oriented(reading: Reading) -> LabelledSet:
    """Read DIOR-R: the images of DIOR with oriented boxes."""
    return _read(reading, "Annotations/Oriented Bounding Boxes")


def _read(reading: Reading, labels: str) -> LabelledSet:
    # Everything is asked for before anything is read: the first thing that is missing is named at once.
    lists = {split: reading.file(f"ImageSets/Main/{split}.txt", f"Main/{split}.txt") for split in _SPLITS}
    label_folder = reading.folder(labels)
    trainval, test = reading.folder("JPEGImages-trainval"), reading.folder("JPEGImages-test")
    for split, path in lists.items():
        folder = test if split == "test" else trainval
        for stem in read_label_text(path).split():
            image, xml = folder / f"{stem}.jpg", label_folder / f"{stem}.xml"
            if not (reading.has(image) and reading.has(xml)):
                continue
            size = reading.builder.size_of(image)
            if size is not None:
                found = reading.builder.labels_of(size, labels, folder=True)
                _read_objects(reading, xml, found, reading.facts.task == "oriented")
                reading.builder.add_labelled(image, found, split=split)
    return reading.finish(object_classes=CLASSES)


def _read_objects(reading: Reading, path: Path, found: ImageLabels, oriented: bool) -> None:
    try:
        tree = parse_xml(read_label_text(path))
    except ElementTree.ParseError as error:
        raise DataError(
            f"is not XML ({error})", where=f"{path}:{error.position[0]}", fix="unpack the file again"
        ) from error
    for number, node in enumerate(tree.iter("object"), 1):
        where = reading.builder.place(path, f"object {number}")
        name = (node.findtext("name") or "").strip().lower()
        box, quad = _shape(node, path, number, oriented)
        difficult = (node.findtext("difficult") or "0").strip() not in ("", "0")
        if name in CLASSES:
            found.add(where, name, LabelShape(box=box, quad=quad), difficult=difficult)
        else:
            found.ignore(where, f'unknown class "{name}"', name, LabelShape(box=box, quad=quad))


def _shape(
    node: ElementTree.Element, path: Path, number: int, oriented: bool
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return the upright box or the four corners of an object, the other one None."""
    parent, names = ("robndbox", _CORNERS) if oriented else ("bndbox", ("xmin", "ymin", "xmax", "ymax"))
    try:
        values = tuple(float(node.findtext(f"{parent}/{name}") or "") for name in names)
    except ValueError as error:
        raise DataError(
            f"object {number} has no readable {parent}",
            where=str(path),
            fix=f"give {', '.join(names)} as numbers, or unpack the file again",
        ) from error
    return (None, values) if oriented else (values, None)
