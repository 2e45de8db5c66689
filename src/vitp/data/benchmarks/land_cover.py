"""LoveDA (land cover from above) and UAVid (streets from a drone): semantic masks.

LoveDA:

    {Train,Val}/{Urban,Rural}/{images_png,masks_png}/0.png …    Test/{Urban,Rural}/images_png/4191.png …

UAVid:

    uavid_{train,val}/seq1/{Images,Labels}/000000.png …          uavid_test/seq21/Images/000000.png …
"""

from __future__ import annotations

from vitp.data.benchmarks.base import Benchmark, Reading, reader_of
from vitp.records.labels import IGNORE, LabelledSet

LOVEDA = Benchmark(
    name="loveda",
    title="LoveDA",
    task="segmentation",
    modality="RGB",
    classes=("background", "building", "road", "water", "barren", "forest", "agricultural"),
    palette=(
        (255, 255, 255),
        (255, 0, 0),
        (255, 255, 0),
        (0, 0, 255),
        (159, 129, 183),
        (0, 255, 0),
        (255, 195, 128),
    ),
    published_by="Wuhan University (J. Wang and others), in the LoveDA repository and on Zenodo",
    counts={"train": 2522, "val": 1669, "test": 1796},
    metric="mIoU",
    train_on=("train", "val"),
    test_labels=False,
    window=512,
    stride=384,
    licence="CC BY-NC-SA 4.0",
    notes=(
        "mask values: 0 is no data and ignored, 1–7 are the classes",
        "the server scores the test split; whether the paper trains on val as well isn't said",
    ),
)

_UAVID = {
    "background clutter": (0, 0, 0),
    "building": (128, 0, 0),
    "road": (128, 64, 128),
    "tree": (0, 128, 0),
    "low vegetation": (128, 128, 0),
    "moving car": (64, 0, 128),
    "static car": (192, 0, 192),
    "human": (64, 64, 0),
}

UAVID = Benchmark(
    name="uavid",
    title="UAVid",
    task="segmentation",
    modality="RGB",
    classes=tuple(_UAVID),
    palette=tuple(_UAVID.values()),
    published_by="the University of Twente (Y. Lyu and others), on the UAVid page",
    counts={"train": 200, "val": 70, "test": 150},
    metric="mIoU",
    train_on=("train", "val"),
    test_labels=False,
    window=768,
    stride=512,
    licence="CC BY-NC-SA 4.0",
    notes=(
        "ten frames of each sequence are labelled; a sequence is never split",
        "masks are colours; images of 3840 × 2160 and 4096 × 2160",
        "the server scores the test split; whether the paper trains on val as well isn't said",
    ),
)


@reader_of(LOVEDA)
def read(reading: Reading, *, part: str = "") -> LabelledSet:
    """Read LoveDA.

    Args:
        part: "Urban" or "Rural": only this half, for domain adaptation; both by default.
    """
    values = ((0, IGNORE), *((index + 1, index) for index in range(len(LOVEDA.classes))))
    halves = (part,) if part else ("Urban", "Rural")
    places = []
    for split in ("Train", "Val", "Test"):
        for half in halves:
            images = reading.folder(f"{split}/{half}/images_png")
            masks = None if split == "Test" else reading.folder(f"{split}/{half}/masks_png")
            places.append((split.lower(), images, masks))
    for split, images, masks in places:
        reading.add_folder(split, images, masks, values)
    return reading.finish(semantic_classes=LOVEDA.classes)


@reader_of(UAVID)
def read_uavid(reading: Reading) -> LabelledSet:
    """Read UAVid."""
    values = tuple((r << 16 | g << 8 | b, index) for index, (r, g, b) in enumerate(UAVID.palette))
    splits = {split: reading.folder(f"uavid_{split}", split) for split in ("train", "val", "test")}
    for split, base in splits.items():
        sequences = sorted(p for p in base.iterdir() if p.is_dir() and p.name.startswith("seq"))
        if not sequences:
            reading.refuse(f"{reading.builder.place(base)}/ holds no folder seq…")
        for sequence in sequences:
            place = reading.builder.place(sequence)
            images = reading.folder(f"{place}/Images")
            masks = None if split == "test" else reading.folder(f"{place}/Labels")
            reading.add_folder(split, images, masks, values, group=sequence.name)
    return reading.finish(semantic_classes=UAVID.classes)
