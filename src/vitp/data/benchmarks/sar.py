"""SARDet-100K and SSDD: radar images with COCO annotations.

SARDet-100K:

    Annotations/{train,val,test}.json    JPEGImages/{train,val,test}/*.{jpg,png}

SSDD (the official release; one of its variants holds boxes, oriented boxes and outlines together):

    BBox_RBox_PSeg_SSDD/coco_style/annotations/{train,test}.json
    BBox_RBox_PSeg_SSDD/coco_style/images/{train,test}/000001.jpg …
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vitp.core.errors import DataError
from vitp.data.benchmarks.base import Benchmark, Reading, reader_of
from vitp.data.formats.coco import read_coco_files
from vitp.records.labels import LabelledSet

SARDET = Benchmark(
    name="sardet100k",
    title="SARDet-100K",
    task="detection",
    modality="SAR",
    classes=("ship", "aircraft", "car", "tank", "bridge", "harbor"),
    published_by="the authors of SARDet-100K (Y. Li and others, NeurIPS 2024), in the project's repository",
    counts={"train": 94493, "val": 10492, "test": 11613},
    metric="mAP",
    drop_empty=True,
    notes=("the paper says 800 px, the published configuration 1024",),
)

SSDD = Benchmark(
    name="ssdd",
    title="SSDD",
    task="instance",
    modality="SAR",
    classes=("ship",),
    published_by="the authors of SSDD (T. Zhang and others, Remote Sensing 2021), as Official-SSDD-OPEN",
    counts={"train": 928, "test": 232},
    metric="box mAP and mask mAP",
    drop_empty=True,
    notes=(
        "images whose number ends with 1 or 9 are the test images; there is no validation split",
        "the parts inshore and offshore of the test split are chosen with the option part",
    ),
)


@reader_of(SARDET)
def read(reading: Reading) -> LabelledSet:
    """Read SARDet-100K."""
    splits = ("train", "val", "test")
    annotations = [reading.file(f"Annotations/{split}.json") for split in splits]
    folders = [reading.folder(f"JPEGImages/{split}") for split in splits]
    return _finish(reading, list(zip(annotations, splits, folders, strict=True)))


@reader_of(SSDD)
def read_ssdd(reading: Reading, *, part: str = "") -> LabelledSet:
    """Read SSDD with boxes and outlines; the root is the release, or one of its `coco_style` folders.

    Args:
        part: "inshore" or "offshore": only these test images; all by default.
    """
    bases = [
        f"{top}{variant}/coco_style/"
        for top in ("", "Official-SSDD-OPEN/")
        for variant in ("BBox_RBox_PSeg_SSDD", "PSeg_SSDD")
    ]
    base = reading.base("annotations", *bases, "coco_style/", "")
    test = f"test_{part}" if part else "test"
    annotations = [reading.file(f"{base}annotations/{name}.json") for name in ("train", test)]
    folders = [reading.folder(f"{base}images/{split}", f"{base}images") for split in ("train", "test")]
    return _finish(reading, list(zip(annotations, ("train", "test"), folders, strict=True)))


def _finish(reading: Reading, entries: list[tuple[Path, str, Path]]) -> LabelledSet:
    found = read_coco_files(reading.builder, entries, reading.lacks)
    classes = reading.facts.classes
    if unknown := [name for name in found if name.lower() not in classes]:
        raise DataError(
            f'has the class "{unknown[0]}", {reading.facts.title} has {", ".join(classes)}',
            where=str(entries[0][0]),
            fix="check that this is the set's own annotation file",
        )
    labelled = reading.finish(object_classes=classes)
    if set(found) <= set(classes):
        return labelled
    items = [
        replace(item, objects=tuple(replace(o, category=o.category.lower()) for o in item.objects or ()))
        for item in labelled.items
    ]
    return replace(labelled, items=items)
