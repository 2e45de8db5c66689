"""DOTA-v2.0 (aerial and satellite) and RSAR (radar): oriented boxes as DOTA text.

DOTA-v2.0, as unpacked:

    {train,val}/images/P0000.png …    {train,val}/labelTxt-v2.0/DOTA-v2.0_train/P0000.txt …
    test-dev/images/P0006.png …

RSAR:

    {train,val,test}/images/0000001.png …    {train,val,test}/annfiles/0000001.txt …
"""

from __future__ import annotations

from pathlib import Path

from vitp.data.benchmarks.base import Benchmark, Reading, reader_of
from vitp.data.formats.dota import read_dota_objects
from vitp.data.formats.walk import list_images
from vitp.records.labels import LabelledSet

DOTA = Benchmark(
    name="dota_v2",
    title="DOTA-v2.0",
    task="oriented",
    modality="RGB",
    classes=(
        "plane",
        "baseball-diamond",
        "bridge",
        "ground-track-field",
        "small-vehicle",
        "large-vehicle",
        "ship",
        "tennis-court",
        "basketball-court",
        "storage-tank",
        "soccer-ball-field",
        "roundabout",
        "harbor",
        "swimming-pool",
        "helicopter",
        "container-crane",
        "airport",
        "helipad",
    ),
    published_by="Wuhan University (CAPTAIN group), on the DOTA page; train and val images are those of DOTA-v1.0 "
    "plus the v2.0 additions",
    counts={"train": 1830, "val": 593, "test": 2792},
    metric="AP50",
    train_on=("train", "val"),
    test_on="test",
    test_labels=False,
    crop=1024,
    overlap=200,
    min_visible=0.7,
    window=1024,
    stride=824,
    drop_empty=True,
    notes=(
        "files of older versions begin with the header lines imagesource: and gsd:",
        "the last column is 1 for difficult objects; they are not trained on and not counted",
        "test-dev has no labels: the evaluation server scores the archive that write_dota_submission makes",
    ),
)

RSAR = Benchmark(
    name="rsar",
    title="RSAR",
    task="oriented",
    modality="SAR",
    classes=("ship", "aircraft", "car", "tank", "bridge", "harbor"),
    published_by="the authors of RSAR (X. Zhang and others, CVPR 2025), in the project's repository",
    counts={"train": 78837, "val": 8467, "test": 8538},
    metric="AP50",
    drop_empty=True,
    notes=("images are PNG, JPEG and BMP files side by side; an image is found by its stem",),
)


@reader_of(DOTA)
def read(reading: Reading) -> LabelledSet:
    """Read DOTA-v2.0. Images of test-dev have no labels (`objects` is None)."""
    places = {
        split: (
            reading.folder(f"{split}/images"),
            reading.folder(
                f"{split}/labelTxt-v2.0/DOTA-v2.0_{split}", f"{split}/labelTxt-v2.0", f"{split}/labelTxt"
            ),
        )
        for split in ("train", "val")
    }
    test = reading.folder("test-dev/images", "test/images")
    for split, (images, labels) in places.items():
        _add_split(reading, split, images, labels)
    reading.add_folder("test", test)
    return reading.finish(object_classes=DOTA.classes)


@reader_of(RSAR)
def read_rsar(reading: Reading) -> LabelledSet:
    """Read RSAR."""
    places = {
        split: (reading.folder(f"{split}/images"), reading.folder(f"{split}/annfiles"))
        for split in ("train", "val", "test")
    }
    for split, (images, labels) in places.items():
        _add_split(reading, split, images, labels)
    return reading.finish(object_classes=RSAR.classes)


def _add_split(reading: Reading, split: str, images: Path, labels: Path) -> None:
    """Add the images of a split; each must have a label file, and each label file its image."""
    found = {image.stem: image for image in list_images(images)}
    suffixes = {image.suffix for image in found.values()}
    suffix = suffixes.pop() if len(suffixes) == 1 else ".*"
    for path in sorted(labels.glob("*.txt")):
        if path.stem not in found:
            reading.lacks(images / f"{path.stem}{suffix}")
    for image in found.values():
        path = labels / f"{image.stem}.txt"
        if not reading.has(path) or (size := reading.builder.size_of(image)) is None:
            continue
        labelled = reading.builder.labels_of(size, reading.builder.place(labels), folder=True)
        read_dota_objects(reading.builder.place(path), path, labelled, reading.facts.classes)
        reading.builder.add_labelled(image, labelled, split=split)
