"""SVCD, WHU-CD, LEVIR-CD and S2Looking: two dates of a place and what changed.

SVCD       ChangeDetectionDataset/Real/subset/{train,val,test}/{A,B,OUT}/00000.jpg …
LEVIR-CD   {train,val,test}/{A,B,label}/train_1.png …
S2Looking  {train,val,test}/{Image1,Image2,label,label1,label2}/1.png …
WHU-CD     1. The two-period image data/{2012,2016}/whole_image/{train,test}/image/2012_train.tif …
           1. The two-period image data/change_label/{train,test}/change_label.tif
           or, as the crops that the field passes around, A, B, label and list/{train,val,test}.txt
"""

from __future__ import annotations

from pathlib import Path

from vitp.data.benchmarks.base import Benchmark, Protocol, Reading, option
from vitp.data.formats.common import ReadOptions, list_images, read_text
from vitp.data.formats.pixel_masks import ChangeFile
from vitp.data.labels import LabelledSet

_SPLITS = ("train", "val", "test")
_CLASSES = ("unchanged", "changed")
_PALETTE = ((0, 0, 0), (255, 255, 255))

SVCD = Benchmark(
    name="svcd",
    title="SVCD (CDD)",
    task="change",
    modality="RGB pair",
    classes=_CLASSES,
    palette=_PALETTE,
    published_by="M. Lebedev and others (ISPRS Archives 2018), as ChangeDetectionDataset",
    counts={"train": 10000, "val": 3000, "test": 3000},
    metric="F1",
    notes=(
        "the part Real/subset holds the crops of 256 that all papers use; Model/with_shift and Model/without_shift are rendered",
        "masks are JPEG files: what is at least half bright has changed",
    ),
)
WHU_CD = Benchmark(
    name="whu_cd",
    title="WHU-CD",
    task="change",
    modality="RGB pair",
    classes=_CLASSES,
    palette=_PALETTE,
    published_by="Wuhan University (S. Ji and others), as Building change detection dataset",
    counts={},
    metric="F1",
    crop=256,
    crop_test=True,
    notes=(
        "published as two mosaics of 2012 and 2016, cut into a western train and an eastern test part",
        "papers use several random splits of its crops; the scores of different splits can't be compared",
    ),
)
LEVIR_CD = Benchmark(
    name="levir_cd",
    title="LEVIR-CD",
    task="change",
    modality="RGB pair",
    classes=_CLASSES,
    palette=_PALETTE,
    published_by="Beihang University (H. Chen, Z. Shi), on the LEVIR page",
    counts={"train": 445, "val": 64, "test": 128},
    metric="F1",
    crop=256,
    window=256,
    stride=128,
)
S2LOOKING = Benchmark(
    name="s2looking",
    title="S2Looking",
    task="change",
    modality="RGB pair",
    classes=_CLASSES,
    palette=_PALETTE,
    published_by="L. Shen and others (Remote Sensing 2021), in the S2Looking repository",
    counts={"train": 3500, "val": 500, "test": 1000},
    metric="F1",
    notes=("label is what changed; label1 and label2 tell new and demolished buildings apart",),
)


def _read_split_folders(
    reading: Reading, base: str, folders: tuple[str, str, str], protocol: Protocol
) -> LabelledSet:
    """Read `base/{split}/{before, after, mask}/same name`."""
    places = [(split, [reading.folder(f"{base}{split}/{name}") for name in folders]) for split in _SPLITS]
    for split, (before, after, masks) in places:
        _add_pairs(reading, split, before, after, masks, [path.name for path in list_images(before)])
        for folder in (after, masks):
            for path in list_images(folder):
                reading.has(before / path.name)
    return reading.finish(protocol)


def _add_pairs(
    reading: Reading, split: str, before: Path, after: Path, masks: Path, names: list[str]
) -> None:
    for name in names:
        paths = [folder / name for folder in (before, after, masks)]
        if reading.have(*paths):
            _add_pair(reading, split, paths[0], paths[1], paths[2])


def _add_pair(reading: Reading, split: str, before: Path, after: Path, mask: Path) -> None:
    sizes = [reading.builder.size_of(path) for path in (before, after, mask)]
    if sizes[0] is None or None in sizes:
        return
    if len(set(sizes)) > 1:
        shown = ", ".join(f"{s[0]}×{s[1]}" for s in sizes if s)
        reading.builder.note(
            reading.builder.place(before), f"the dates and the mask differ in size ({shown}); left out"
        )
        return
    reading.builder.add(before, sizes[0], split=split, second_image=str(after), change=ChangeFile(str(mask)))


def read_svcd(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    protocol: Protocol = "official",
    partial: bool = False,
    part: str = "Real/subset",
) -> LabelledSet:
    """Read SVCD.

    Args:
        root: The download.
        options: Name, licence, splits.
        protocol: "official" or "paper", see `vitp.data.benchmarks.base.under_protocol`.
        partial: Go on without files that are missing.
        part: "Real/subset", "Model/with_shift" or "Model/without_shift".

    Raises:
        DataError: A file is missing, or can't be understood.
    """
    reading = Reading(SVCD, root, options, partial)
    option("part", part, ("Real/subset", "Model/with_shift", "Model/without_shift"), "svcd")
    bases = (f"ChangeDetectionDataset/{part}/", f"{part}/", "")
    base = next((b for b in bases if (root / b / "train").is_dir()), bases[0])
    return _read_split_folders(reading, base, ("A", "B", "OUT"), protocol)


def read_levir_cd(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    protocol: Protocol = "official",
    partial: bool = False,
) -> LabelledSet:
    """Read LEVIR-CD; arguments as `read_svcd`.

    Raises:
        DataError: A file is missing, or can't be understood.
    """
    return _read_split_folders(Reading(LEVIR_CD, root, options, partial), "", ("A", "B", "label"), protocol)


def read_s2looking(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    protocol: Protocol = "official",
    partial: bool = False,
    mask: str = "label",
) -> LabelledSet:
    """Read S2Looking.

    Args:
        root: The download.
        options: Name, licence, splits.
        protocol: "official" or "paper", see `vitp.data.benchmarks.base.under_protocol`.
        partial: Go on without files that are missing.
        mask: "label": all changes, the published task; "label1" or "label2": one direction only.

    Raises:
        DataError: A file is missing, or can't be understood.
    """
    option("mask", mask, ("label", "label1", "label2"), "s2looking")
    reading = Reading(S2LOOKING, root, options, partial)
    return _read_split_folders(reading, "", ("Image1", "Image2", mask), protocol)


def read_whu_cd(
    root: Path,
    options: ReadOptions = ReadOptions(),
    *,
    protocol: Protocol = "official",
    partial: bool = False,
) -> LabelledSet:
    """Read WHU-CD: the published mosaics, or crops with lists; arguments as `read_svcd`.

    The mosaics have no validation part; `ReadOptions` doesn't hold any out either, since a mosaic is one image.

    Raises:
        DataError: A file is missing, or can't be understood.
    """
    reading = Reading(WHU_CD, root, options, partial)
    if (root / "list").is_dir():
        lists = {split: reading.file(f"list/{split}.txt") for split in _SPLITS}
        before, after, masks = (reading.folder(name) for name in ("A", "B", "label"))
        for split, path in lists.items():
            _add_pairs(reading, split, before, after, masks, read_text(path).split())
        return reading.finish(protocol)
    if (root / "train" / "A").is_dir():
        return _read_split_folders(reading, "", ("A", "B", "label"), protocol)
    inner = "1. The two-period image data/"
    bases = (f"Building change detection dataset_add/{inner}", inner, "")
    base = next((b for b in bases if (root / b / "change_label").is_dir()), bases[0])
    for split in ("train", "test"):
        dates = [
            reading.file(f"{base}{year}/whole_image/{split}/image/{year}_{split}.tif")
            for year in ("2012", "2016")
        ]
        mask = reading.file(f"{base}change_label/{split}/change_label.tif")
        _add_pair(reading, split, dates[0], dates[1], mask)
    return reading.finish(protocol)
