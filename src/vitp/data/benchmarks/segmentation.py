"""Sets with the class of each pixel: iSAID, LoveDA, UAVid and COVID-QU-Ex.

iSAID, instance and semantic masks for the images of DOTA-v1.0:

    {train,val}/images/images/P0000.png …             (or {train,val}/images/)
    {train,val}/Semantic_masks/images/P0000_instance_color_RGB.png …
    {train,val}/Annotations/iSAID_train.json          (instances in COCO's form, optional)
    test/images/images/P0006.png …                    (no labels)

LoveDA, land cover from above:

    {Train,Val}/{Urban,Rural}/{images_png,masks_png}/0.png …    Test/{Urban,Rural}/images_png/4191.png …

UAVid, streets from a drone:

    uavid_{train,val}/seq1/{Images,Labels}/000000.png …          uavid_test/seq21/Images/000000.png …

COVID-QU-Ex, chest X-rays with lung and infection masks:

    Infection Segmentation Data/Infection Segmentation Data/{Train,Val,Test}/{COVID-19,Non-COVID,Normal}/
        images/*.png    infection masks/*.png    lung masks/*.png
    Lung Segmentation Data/Lung Segmentation Data/{Train,Val,Test}/{COVID-19,Non-COVID,Normal}/
        images/*.png    lung masks/*.png
"""

from __future__ import annotations

from vitp.data.benchmarks.base import Benchmark, Reading, Values, option, reader_of
from vitp.data.formats.coco import read_coco_files
from vitp.data.formats.walk import list_images
from vitp.records.labels import IGNORE, SPLITS, LabelledSet

# fmt: off
_ISAID = {
    "background": (0, 0, 0), "ship": (0, 0, 63), "storage_tank": (0, 63, 63), "baseball_diamond": (0, 63, 0),
    "tennis_court": (0, 63, 127), "basketball_court": (0, 63, 191), "Ground_Track_Field": (0, 63, 255),
    "Bridge": (0, 127, 63), "Large_Vehicle": (0, 127, 127), "Small_Vehicle": (0, 0, 127),
    "Helicopter": (0, 0, 191), "Swimming_pool": (0, 0, 255), "Roundabout": (0, 191, 127),
    "Soccer_ball_field": (0, 127, 191), "plane": (0, 127, 255), "Harbor": (0, 100, 155),
}
ISAID = Benchmark(
    name="isaid", title="iSAID", task="segmentation", modality="RGB", classes=tuple(_ISAID),
    palette=tuple(_ISAID.values()),
    published_by="the authors of iSAID (Inception Institute and Wuhan University), on the iSAID page; the images are "
        "those of DOTA-v1.0",
    counts={"train": 1411, "val": 458, "test": 937}, metric="mIoU", test_on="val", test_labels=False,
    crop=896, overlap=384, window=896, stride=448,
    notes=(
        "masks are colours; background counts as a class",
        "the published code trains and tests on val crops of 896 with an overlap of 384; here the test images stay "
        "whole and a window slides over them",
    ),
)
_LOVEDA = {
    "background": (255, 255, 255), "building": (255, 0, 0), "road": (255, 255, 0), "water": (0, 0, 255),
    "barren": (159, 129, 183), "forest": (0, 255, 0), "agricultural": (255, 195, 128),
}
LOVEDA = Benchmark(
    name="loveda", title="LoveDA", task="segmentation", modality="RGB", classes=tuple(_LOVEDA),
    palette=tuple(_LOVEDA.values()),
    published_by="Wuhan University (J. Wang and others), in the LoveDA repository and on Zenodo",
    counts={"train": 2522, "val": 1669, "test": 1796}, metric="mIoU", train_on=("train", "val"),
    test_labels=False, window=512, stride=384, licence="CC BY-NC-SA 4.0",
    notes=(
        "mask values: 0 is no data and ignored, 1–7 are the classes",
        "the server scores the test split; whether the paper trains on val as well isn't said",
    ),
)
_UAVID = {
    "background clutter": (0, 0, 0), "building": (128, 0, 0), "road": (128, 64, 128), "tree": (0, 128, 0),
    "low vegetation": (128, 128, 0), "moving car": (64, 0, 128), "static car": (192, 0, 192),
    "human": (64, 64, 0),
}
UAVID = Benchmark(
    name="uavid", title="UAVid", task="segmentation", modality="RGB", classes=tuple(_UAVID),
    palette=tuple(_UAVID.values()),
    published_by="the University of Twente (Y. Lyu and others), on the UAVid page",
    counts={"train": 200, "val": 70, "test": 150}, metric="mIoU", train_on=("train", "val"),
    test_labels=False, window=768, stride=512, licence="CC BY-NC-SA 4.0",
    notes=(
        "ten frames of each sequence are labelled; a sequence is never split",
        "masks are colours; images of 3840 × 2160 and 4096 × 2160",
        "the server scores the test split; whether the paper trains on val as well isn't said",
    ),
)
# fmt: on

_CASES = ("COVID-19", "Non-COVID", "Normal")
# fmt: off
COVIDQUEX = Benchmark(
    name="covidquex", title="COVID-QU-Ex", task="segmentation", modality="X-ray",
    classes=("background", "infection"), palette=((0, 0, 0), (255, 255, 255)),
    published_by="Qatar University (A. Tahir and others), on Kaggle as covidqu",
    counts={"train": 3728, "val": 932, "test": 1166}, metric="mean Dice",
    notes=(
        "the infection part of the set; option target=lung reads the lung masks instead, cases=COVID-19 only the ill",
        "the paper's table says two classes: background and infection are assumed",
        "images without infection have an empty mask; where a mask file is not 0 the class is there",
    ),
)
# fmt: on


@reader_of(ISAID)
def read_isaid(reading: Reading, *, labels: str = "semantic") -> LabelledSet:
    """Read iSAID.

    Args:
        labels: "semantic": the class of each pixel; "instances": objects with outlines.
    """
    option("labels", labels, ("semantic", "instances"), "isaid")
    images = {}
    for split in SPLITS:
        inner = f"{split}/images/images"
        images[split] = reading.folder(inner if (reading.root / inner).is_dir() else f"{split}/images")
    if labels == "instances":
        annotations = {s: reading.file(f"{s}/Annotations/iSAID_{s}.json") for s in ("train", "val")}
        entries = [(path, split, images[split]) for split, path in annotations.items()]
        read_coco_files(reading.builder, entries, reading.lacks)
        reading.add_folder("test", images["test"])
        return reading.finish(object_classes=ISAID.classes[1:])
    ending = "_instance_color_RGB"
    places = ("{0}/Semantic_masks/images", "{0}/Semantic_masks")
    masks = {s: reading.folder(*(place.format(s) for place in places)) for s in ("train", "val")}
    for split, folder in masks.items():
        for mask in sorted(folder.glob(f"*{ending}.png")):
            image = images[split] / f"{mask.stem.removesuffix(ending)}.png"
            if reading.has(image):
                reading.add(image, split, mask, ISAID.colours)
        masked = {mask.stem.removesuffix(ending) for mask in folder.glob("*.png")}
        for image in list_images(images[split]):
            if image.stem not in masked and "_instance_" not in image.stem:
                reading.lacks(folder / f"{image.stem}{ending}.png")
    reading.add_folder("test", images["test"])
    return reading.finish(semantic_classes=ISAID.classes)


@reader_of(LOVEDA)
def read_loveda(reading: Reading, *, part: str = "") -> LabelledSet:
    """Read LoveDA.

    Args:
        part: "Urban" or "Rural": only this half, for domain adaptation; both by default.
    """
    values = ((0, IGNORE), *((index + 1, index) for index in range(len(LOVEDA.classes))))
    halves = (part,) if part else ("Urban", "Rural")
    rows = [
        (split, f"{split.capitalize()}/{half}/images_png", f"{split.capitalize()}/{half}/masks_png")
        for split in SPLITS
        for half in halves
    ]
    _add_folders(reading, rows, values, unlabelled="test")
    return reading.finish(semantic_classes=LOVEDA.classes)


@reader_of(UAVID)
def read_uavid(reading: Reading) -> LabelledSet:
    """Read UAVid."""
    bases = {split: reading.folder(f"uavid_{split}", split) for split in SPLITS}
    for split, base in bases.items():
        sequences = sorted(p for p in base.iterdir() if p.is_dir() and p.name.startswith("seq"))
        if not sequences:
            reading.refuse(f"{reading.builder.place(base)}/ holds no folder seq…")
        for sequence in sequences:
            place = reading.builder.place(sequence)
            images = reading.folder(f"{place}/Images")
            masks = None if split == "test" else reading.folder(f"{place}/Labels")
            reading.add_folder(split, images, masks, UAVID.colours, group=sequence.name)
    return reading.finish(semantic_classes=UAVID.classes)


@reader_of(COVIDQUEX)
def read_covidquex(reading: Reading, *, target: str = "infection", cases: str = "all") -> LabelledSet:
    """Read COVID-QU-Ex.

    Args:
        target: "infection": the part with infection masks; "lung": the part with lung masks.
        cases: "COVID-19", "Non-COVID", "Normal" or "all".
    """
    option("target", target, ("infection", "lung"), "covidquex")
    groups = _CASES if cases == "all" else (option("cases", cases, (*_CASES, "all"), "covidquex"),)
    part = f"{target.capitalize()} Segmentation Data"
    base = reading.base("Train", f"{part}/{part}/", f"{part}/", "")
    folders = [(split, f"{base}{split.capitalize()}/{group}") for split in SPLITS for group in groups]
    rows = [(split, f"{folder}/images", f"{folder}/{target} masks") for split, folder in folders]
    _add_folders(reading, rows, ((0, 0), *((value, 1) for value in range(1, 256))))
    return reading.finish(semantic_classes=("background", target))


def _add_folders(
    reading: Reading, rows: list[tuple[str, str, str]], values: Values, unlabelled: str = ""
) -> None:
    """Add (split, image folder, mask folder) rows; the images of the split `unlabelled` have no masks."""
    # Everything is asked for before anything is read: the first thing that is missing is named at once.
    places = [
        (split, reading.folder(images), None if split == unlabelled else reading.folder(masks))
        for split, images, masks in rows
    ]
    for split, folder, mask_folder in places:
        reading.add_folder(split, folder, mask_folder, values)
