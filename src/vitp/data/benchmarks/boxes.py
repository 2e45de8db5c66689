"""Sets of boxes, upright and oriented: DIOR, DIOR-R, DOTA-v2.0, RSAR, SARDet-100K and SSDD.

DIOR and DIOR-R, 23,463 images of 800 × 800, the same ones with upright and with oriented boxes:

    ImageSets/Main/{train,val,test}.txt
    JPEGImages-trainval/00001.jpg …      JPEGImages-test/11726.jpg …
    Annotations/Horizontal Bounding Boxes/00001.xml …      Annotations/Oriented Bounding Boxes/00001.xml …

DOTA-v2.0 (aerial and satellite), as unpacked:

    {train,val}/images/P0000.png …    {train,val}/labelTxt-v2.0/DOTA-v2.0_train/P0000.txt …
    test-dev/images/P0006.png …

RSAR (radar):

    {train,val,test}/images/0000001.png …    {train,val,test}/annfiles/0000001.txt …

SARDet-100K (radar):

    Annotations/{train,val,test}.json    JPEGImages/{train,val,test}/*.{jpg,png}

SSDD (radar; one variant of the official release holds boxes, oriented boxes and outlines together):

    BBox_RBox_PSeg_SSDD/coco_style/annotations/{train,test}.json
    BBox_RBox_PSeg_SSDD/coco_style/images/{train,test}/000001.jpg …
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vitp.core.errors import DataError
from vitp.data.benchmarks.base import Benchmark, Reading, reader_of
from vitp.data.formats.coco import read_coco_files
from vitp.data.formats.dota import read_dota_objects
from vitp.data.formats.image_labels import ImageLabels, LabelShape
from vitp.data.formats.voc import BOX_EDGES, QUAD_CORNERS
from vitp.data.formats.walk import list_images, read_label_text, read_label_xml
from vitp.records.labels import SPLITS, LabelledSet

_RADAR_CLASSES = ("ship", "aircraft", "car", "tank", "bridge", "harbor")

# fmt: off
_DIOR_CLASSES = (
    "airplane", "airport", "baseballfield", "basketballcourt", "bridge", "chimney",
    "expressway-service-area", "expressway-toll-station", "dam", "golffield", "groundtrackfield", "harbor",
    "overpass", "ship", "stadium", "storagetank", "tenniscourt", "trainstation", "vehicle", "windmill",
)

DIOR = Benchmark(
    name="dior", title="DIOR", task="detection", modality="RGB", classes=_DIOR_CLASSES,
    published_by="Northwestern Polytechnical University (G. Cheng, J. Han), on the DIOR page of its authors",
    counts={"train": 5862, "val": 5863, "test": 11738}, metric="AP50", train_on=("train", "val"),
    drop_empty=True,
    notes=(
        "class names are written in several ways in the XML files (Expressway-Service-area); they are lowered",
        "trained on train and val, tested on test",
    ),
)

DIOR_R = replace(
    DIOR, name="dior_r", title="DIOR-R", task="oriented",
    notes=(*DIOR.notes, "oriented boxes are four named corners (robndbox), not centre and angle"),
)

_DOTA_CLASSES = (
    "plane", "baseball-diamond", "bridge", "ground-track-field", "small-vehicle", "large-vehicle", "ship",
    "tennis-court", "basketball-court", "storage-tank", "soccer-ball-field", "roundabout", "harbor",
    "swimming-pool", "helicopter", "container-crane", "airport", "helipad",
)

DOTA = Benchmark(
    name="dota_v2", title="DOTA-v2.0", task="oriented", modality="RGB", classes=_DOTA_CLASSES,
    published_by="Wuhan University (CAPTAIN group), on the DOTA page; train and val images are those of DOTA-v1.0 "
        "plus the v2.0 additions",
    counts={"train": 1830, "val": 593, "test": 2792}, metric="AP50", train_on=("train", "val"),
    test_labels=False, crop=1024, overlap=200, min_visible=0.7, window=1024, stride=824, drop_empty=True,
    notes=(
        "files of older versions begin with the header lines imagesource: and gsd:",
        "the last column is 1 for difficult objects; they are not trained on and not counted",
        "test-dev has no labels: the evaluation server scores the archive that write_dota_submission makes",
    ),
)

RSAR = Benchmark(
    name="rsar", title="RSAR", task="oriented", modality="SAR", classes=_RADAR_CLASSES,
    published_by="the authors of RSAR (X. Zhang and others, CVPR 2025), in the project's repository",
    counts={"train": 78837, "val": 8467, "test": 8538}, metric="AP50", drop_empty=True,
    notes=("images are PNG, JPEG and BMP files side by side; an image is found by its stem",),
)

SARDET = Benchmark(
    name="sardet100k", title="SARDet-100K", task="detection", modality="SAR", classes=_RADAR_CLASSES,
    published_by="the authors of SARDet-100K (Y. Li and others, NeurIPS 2024), in the project's repository",
    counts={"train": 94493, "val": 10492, "test": 11613}, metric="mAP", drop_empty=True,
    notes=("the paper says 800 px, the published configuration 1024",),
)

SSDD = Benchmark(
    name="ssdd", title="SSDD", task="instance", modality="SAR", classes=("ship",),
    published_by="the authors of SSDD (T. Zhang and others, Remote Sensing 2021), as Official-SSDD-OPEN",
    counts={"train": 928, "test": 232}, metric="box mAP and mask mAP", drop_empty=True,
    notes=(
        "images whose number ends with 1 or 9 are the test images; there is no validation split",
        "the parts inshore and offshore of the test split are chosen with the option part",
    ),
)
# fmt: on


@reader_of(DIOR)
def read_dior(reading: Reading) -> LabelledSet:
    """Read DIOR with its upright boxes."""
    return _read_xml_boxes(reading, "Annotations/Horizontal Bounding Boxes", "bndbox", BOX_EDGES)


@reader_of(DIOR_R)
def read_dior_r(reading: Reading) -> LabelledSet:
    """Read DIOR-R: the images of DIOR with oriented boxes."""
    return _read_xml_boxes(reading, "Annotations/Oriented Bounding Boxes", "robndbox", QUAD_CORNERS)


def _read_xml_boxes(reading: Reading, labels: str, box: str, numbers: tuple[str, ...]) -> LabelledSet:
    # Everything is asked for before anything is read: the first thing that is missing is named at once.
    lists = {split: reading.file(f"ImageSets/Main/{split}.txt", f"Main/{split}.txt") for split in SPLITS}
    label_folder = reading.folder(labels)
    trainval, test = reading.folder("JPEGImages-trainval"), reading.folder("JPEGImages-test")
    for split, path in lists.items():
        folder = test if split == "test" else trainval
        for stem in read_label_text(path).split():
            image, xml = folder / f"{stem}.jpg", label_folder / f"{stem}.xml"
            if (
                reading.has(image)
                and reading.has(xml)
                and (size := reading.builder.size_of(image)) is not None
            ):
                found = reading.builder.labels_of(size, labels, folder=True)
                _read_objects(reading, xml, found, box, numbers)
                reading.builder.add_labelled(image, found, split=split)
    return reading.finish(object_classes=reading.facts.classes)


def _read_objects(
    reading: Reading, path: Path, found: ImageLabels, box: str, numbers: tuple[str, ...]
) -> None:
    for number, node in enumerate(read_label_xml(path, "unpack the file again").iter("object"), 1):
        where = reading.builder.place(path, f"object {number}")
        name = (node.findtext("name") or "").strip().lower()
        try:
            values = tuple(float(node.findtext(f"{box}/{key}") or "") for key in numbers)
        except ValueError as error:
            raise DataError(
                f"object {number} has no readable {box}",
                where=str(path),
                fix=f"give {', '.join(numbers)} as numbers, or unpack the file again",
            ) from error
        shape = LabelShape(box=values) if numbers == BOX_EDGES else LabelShape(quad=values)
        difficult = (node.findtext("difficult") or "0").strip() not in ("", "0")
        if name in reading.facts.classes:
            found.add(where, name, shape, difficult=difficult)
        else:
            found.ignore(where, f'unknown class "{name}"', name, shape)


@reader_of(DOTA)
def read_dota_v2(reading: Reading) -> LabelledSet:
    """Read DOTA-v2.0. Images of test-dev have no labels (`objects` is None)."""
    labels = ("{0}/labelTxt-v2.0/DOTA-v2.0_{0}", "{0}/labelTxt-v2.0", "{0}/labelTxt")
    return _read_dota_text(reading, ("train", "val"), labels, ("test-dev/images", "test/images"))


@reader_of(RSAR)
def read_rsar(reading: Reading) -> LabelledSet:
    """Read RSAR."""
    return _read_dota_text(reading, SPLITS, ("{0}/annfiles",))


def _read_dota_text(
    reading: Reading, splits: tuple[str, ...], labels: tuple[str, ...], unlabelled: tuple[str, ...] = ()
) -> LabelledSet:
    """Read images with a text file each; each must have a label file, and each label file its image.

    Args:
        reading: Takes the images.
        splits: The labelled ones, with images in `SPLIT/images`.
        labels: Where the label files of a split are, by all names.
        unlabelled: Where the test images without labels are, by all names.
    """
    places = [
        (split, reading.folder(f"{split}/images"), reading.folder(*(name.format(split) for name in labels)))
        for split in splits
    ]
    test = reading.folder(*unlabelled) if unlabelled else None
    for split, images, folder in places:
        found = {image.stem: image for image in list_images(images)}
        suffixes = {image.suffix for image in found.values()}
        suffix = suffixes.pop() if len(suffixes) == 1 else ".*"
        for path in sorted(folder.glob("*.txt")):
            if path.stem not in found:
                reading.lacks(images / f"{path.stem}{suffix}")
        for image in found.values():
            path = folder / f"{image.stem}.txt"
            if reading.has(path) and (size := reading.builder.size_of(image)) is not None:
                labelled = reading.builder.labels_of(size, reading.builder.place(folder), folder=True)
                read_dota_objects(reading.builder.place(path), path, labelled, reading.facts.classes)
                reading.builder.add_labelled(image, labelled, split=split)
    if test is not None:
        reading.add_folder("test", test)
    return reading.finish(object_classes=reading.facts.classes)


@reader_of(SARDET)
def read_sardet(reading: Reading) -> LabelledSet:
    """Read SARDet-100K."""
    annotations = [reading.file(f"Annotations/{split}.json") for split in SPLITS]
    folders = [reading.folder(f"JPEGImages/{split}") for split in SPLITS]
    return _read_coco(reading, list(zip(annotations, SPLITS, folders, strict=True)))


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
    return _read_coco(reading, list(zip(annotations, ("train", "test"), folders, strict=True)))


def _read_coco(reading: Reading, entries: list[tuple[Path, str, Path]]) -> LabelledSet:
    """Read (annotation file, split, image folder) rows; class names may differ from the set's in case."""
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
