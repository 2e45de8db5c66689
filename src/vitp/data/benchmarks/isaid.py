"""iSAID: instance and semantic masks for the images of DOTA-v1.0.

{train,val}/images/images/P0000.png …             (or {train,val}/images/)
{train,val}/Semantic_masks/images/P0000_instance_color_RGB.png …
{train,val}/Annotations/iSAID_train.json          (instances in COCO's form, optional)
test/images/images/P0006.png …                    (no labels)
"""

from __future__ import annotations

from pathlib import Path

from vitp.data.benchmarks.base import Benchmark, Reading, option, reader_of
from vitp.data.formats.coco import read_coco_files
from vitp.data.formats.pixel_masks import MaskFile
from vitp.data.formats.walk import list_images
from vitp.records.labels import LabelledSet

_COLOURS = {
    "background": (0, 0, 0),
    "ship": (0, 0, 63),
    "storage_tank": (0, 63, 63),
    "baseball_diamond": (0, 63, 0),
    "tennis_court": (0, 63, 127),
    "basketball_court": (0, 63, 191),
    "Ground_Track_Field": (0, 63, 255),
    "Bridge": (0, 127, 63),
    "Large_Vehicle": (0, 127, 127),
    "Small_Vehicle": (0, 0, 127),
    "Helicopter": (0, 0, 191),
    "Swimming_pool": (0, 0, 255),
    "Roundabout": (0, 191, 127),
    "Soccer_ball_field": (0, 127, 191),
    "plane": (0, 127, 255),
    "Harbor": (0, 100, 155),
}

ISAID = Benchmark(
    name="isaid",
    title="iSAID",
    task="segmentation",
    modality="RGB",
    classes=tuple(_COLOURS),
    palette=tuple(_COLOURS.values()),
    published_by="the authors of iSAID (Inception Institute and Wuhan University), on the iSAID page; the images are "
    "those of DOTA-v1.0",
    counts={"train": 1411, "val": 458, "test": 937},
    metric="mIoU",
    test_on="val",
    test_labels=False,
    crop=896,
    overlap=384,
    window=896,
    stride=448,
    notes=(
        "masks are colours; background counts as a class",
        "the published code trains and tests on val crops of 896 with an overlap of 384; here the test images stay "
        "whole and a window slides over them",
    ),
)


@reader_of(ISAID)
def read(reading: Reading, *, labels: str = "semantic") -> LabelledSet:
    """Read iSAID.

    Args:
        labels: "semantic": the class of each pixel; "instances": objects with outlines.
    """
    option("labels", labels, ("semantic", "instances"), "isaid")
    inner = {s: f"{s}/images/images" for s in ("train", "val", "test")}
    images = {
        s: reading.folder(p if (reading.root / p).is_dir() else f"{s}/images") for s, p in inner.items()
    }
    if labels == "instances":
        _read_instances(reading, images)
    else:
        _read_masks(reading, images)
    reading.add_folder("test", images["test"])
    return reading.finish(
        object_classes=ISAID.classes[1:] if labels == "instances" else (),
        semantic_classes=ISAID.classes if labels == "semantic" else (),
    )


def _read_masks(reading: Reading, images: dict[str, Path]) -> None:
    places = {
        split: reading.folder(f"{split}/Semantic_masks/images", f"{split}/Semantic_masks")
        for split in ("train", "val")
    }
    values = tuple((r << 16 | g << 8 | b, index) for index, (r, g, b) in enumerate(ISAID.palette))
    for split, folder in places.items():
        for mask in sorted(folder.glob("*_instance_color_RGB.png")):
            image = images[split] / f"{mask.name.removesuffix('_instance_color_RGB.png')}.png"
            if reading.has(image) and (size := reading.builder.size_of(image)) is not None:
                reading.builder.add(image, size, split=split, semantic=MaskFile(str(mask), values))
        masked = {mask.name.removesuffix("_instance_color_RGB.png") for mask in folder.glob("*.png")}
        for image in list_images(images[split]):
            if image.stem not in masked and "_instance_" not in image.stem:
                reading.lacks(folder / f"{image.stem}_instance_color_RGB.png")


def _read_instances(reading: Reading, images: dict[str, Path]) -> None:
    entries = [
        (reading.file(f"{split}/Annotations/iSAID_{split}.json"), split, images[split])
        for split in ("train", "val")
    ]
    read_coco_files(reading.builder, entries, reading.lacks)
