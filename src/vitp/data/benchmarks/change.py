"""SVCD, WHU-CD, LEVIR-CD and S2Looking: two dates of a place and what changed.

SVCD       ChangeDetectionDataset/Real/subset/{train,val,test}/{A,B,OUT}/00000.jpg …
LEVIR-CD   {train,val,test}/{A,B,label}/train_1.png …
S2Looking  {train,val,test}/{Image1,Image2,label,label1,label2}/1.png …
WHU-CD     1. The two-period image data/{2012,2016}/whole_image/{train,test}/image/2012_train.tif …
           1. The two-period image data/change_label/{train,test}/change_label.tif
           or, as the crops that the field passes around, A, B, label and list/{train,val,test}.txt
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from vitp.data.benchmarks.base import Benchmark, Reading, option, reader_of
from vitp.data.formats.pixel_masks import ChangeFile
from vitp.data.formats.walk import list_images, read_label_text
from vitp.records.labels import SPLITS, LabelledSet

# fmt: off
_change_set = partial(
    Benchmark, task="change", modality="RGB pair", classes=("unchanged", "changed"),
    palette=((0, 0, 0), (255, 255, 255)), metric="F1",
)

SVCD = _change_set(
    name="svcd", title="SVCD (CDD)",
    published_by="M. Lebedev and others (ISPRS Archives 2018), as ChangeDetectionDataset",
    counts={"train": 10000, "val": 3000, "test": 3000},
    notes=(
        "the part Real/subset holds the crops of 256 that all papers use; Model/with_shift and Model/without_shift are rendered",
        "masks are JPEG files: what is at least half bright has changed",
    ),
)

WHU_CD = _change_set(
    name="whu_cd", title="WHU-CD",
    published_by="Wuhan University (S. Ji and others), as Building change detection dataset", counts={},
    crop=256, crop_test=True,
    notes=(
        "published as two mosaics of 2012 and 2016, cut into a western train and an eastern test part",
        "papers use several random splits of its crops; the scores of different splits can't be compared",
    ),
)

LEVIR_CD = _change_set(
    name="levir_cd", title="LEVIR-CD", published_by="Beihang University (H. Chen, Z. Shi), on the LEVIR page",
    counts={"train": 445, "val": 64, "test": 128}, crop=256, window=256, stride=128,
)

S2LOOKING = _change_set(
    name="s2looking", title="S2Looking",
    published_by="L. Shen and others (Remote Sensing 2021), in the S2Looking repository",
    counts={"train": 3500, "val": 500, "test": 1000},
    notes=("label is what changed; label1 and label2 tell new and demolished buildings apart",),
)
# fmt: on


def _read_split_folders(reading: Reading, base: str, *folders: str) -> LabelledSet:
    """Read `base/{split}/{before, after, mask}/same name`."""
    places = [(split, [reading.folder(f"{base}{split}/{name}") for name in folders]) for split in SPLITS]
    for split, (before, after, masks) in places:
        for image in list_images(before):
            _add_pair(reading, split, image, after / image.name, masks / image.name)
        reading.has(*(before / path.name for folder in (after, masks) for path in list_images(folder)))
    return reading.finish()


def _add_pair(reading: Reading, split: str, before: Path, after: Path, mask: Path) -> None:
    if not reading.has(before, after, mask):
        return
    sizes = [reading.builder.size_of(path) for path in (before, after, mask)]
    if sizes[0] is None or None in sizes:
        return
    if len(set(sizes)) > 1:
        shown = ", ".join(f"{s[0]}×{s[1]}" for s in sizes if s)
        what = f"the dates and the mask differ in size ({shown}); left out"
        reading.builder.note(reading.builder.place(before), what)
        return
    reading.builder.add(before, sizes[0], split=split, second_image=str(after), change=ChangeFile(str(mask)))


@reader_of(SVCD)
def read_svcd(reading: Reading, *, part: str = "Real/subset") -> LabelledSet:
    """Read SVCD.

    Args:
        part: "Real/subset", "Model/with_shift" or "Model/without_shift".
    """
    option("part", part, ("Real/subset", "Model/with_shift", "Model/without_shift"), "svcd")
    base = reading.base("train", f"ChangeDetectionDataset/{part}/", f"{part}/", "")
    return _read_split_folders(reading, base, "A", "B", "OUT")


@reader_of(LEVIR_CD)
def read_levir_cd(reading: Reading) -> LabelledSet:
    """Read LEVIR-CD."""
    return _read_split_folders(reading, "", "A", "B", "label")


@reader_of(S2LOOKING)
def read_s2looking(reading: Reading, *, mask: str = "label") -> LabelledSet:
    """Read S2Looking.

    Args:
        mask: "label": all changes, the published task; "label1" or "label2": one direction only.
    """
    option("mask", mask, ("label", "label1", "label2"), "s2looking")
    return _read_split_folders(reading, "", "Image1", "Image2", mask)


@reader_of(WHU_CD)
def read_whu_cd(reading: Reading) -> LabelledSet:
    """Read WHU-CD: the published mosaics, or crops with lists.

    The mosaics have no validation part; `ReadOptions` doesn't hold any out either, since a mosaic is one image.
    """
    if (reading.root / "list").is_dir():
        lists = {split: reading.file(f"list/{split}.txt") for split in SPLITS}
        before, after, masks = (reading.folder(name) for name in ("A", "B", "label"))
        for split, path in lists.items():
            for name in read_label_text(path).split():
                _add_pair(reading, split, before / name, after / name, masks / name)
        return reading.finish()
    if (reading.root / "train" / "A").is_dir():
        return _read_split_folders(reading, "", "A", "B", "label")
    inner = "1. The two-period image data/"
    base = reading.base("change_label", f"Building change detection dataset_add/{inner}", inner, "")
    for split in ("train", "test"):
        dates = [
            reading.file(f"{base}{year}/whole_image/{split}/image/{year}_{split}.tif")
            for year in ("2012", "2016")
        ]
        mask = reading.file(f"{base}change_label/{split}/change_label.tif")
        _add_pair(reading, split, dates[0], dates[1], mask)
    return reading.finish()
